//! The two clocks of the evidence. Time is an input of the core; nothing here reads one.

/// Nanoseconds of `CLOCK_BOOTTIME`: monotonic, runs through suspend, starts at boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootNs(pub u64);

/// Nanoseconds since the Unix epoch, UTC without leap seconds. 1677-09-21 to 2262-04-11.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UtcNs(pub i64);

const NS_PER_MS: i64 = 1_000_000;
const NS_PER_DAY: i64 = 86_400 * 1_000_000_000;

impl UtcNs {
    /// Whole milliseconds since the epoch; 0 for a time before it.
    pub fn unix_ms(self) -> u64 {
        u64::try_from(self.0.div_euclid(NS_PER_MS)).unwrap_or(0)
    }

    /// The date as `YYYY-MM-DD`.
    pub fn date(self) -> String {
        let (year, month, day) = civil(self.0.div_euclid(NS_PER_DAY));
        format!("{year:04}-{month:02}-{day:02}")
    }

    /// RFC 3339 with nine fraction digits and `Z`.
    pub fn rfc3339(self) -> String {
        let ns = self.0.rem_euclid(NS_PER_DAY);
        let (second, fraction) = (ns / 1_000_000_000, ns % 1_000_000_000);
        format!(
            "{}T{:02}:{:02}:{:02}.{fraction:09}Z",
            self.date(),
            second / 3600,
            second / 60 % 60,
            second % 60
        )
    }
}

/// Boot clock to UTC, from pairs of readings of both. Piecewise: a step of the wall clock shows from the next pair on.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// (boot, UTC less boot), sorted by boot time.
    pairs: Vec<(u64, i64)>,
}

/// Pairs of readings kept. Stops a spool full of clock records from filling memory.
pub const CLOCK_PAIRS_MAX: usize = 1 << 20;

impl Clock {
    /// Takes a pair of readings of the same moment.
    pub fn observe(&mut self, boot: BootNs, utc: UtcNs) {
        let offset = utc.0.wrapping_sub(boot.0.cast_signed());
        // A reading that says nothing new need not be kept: jitter of a microsecond is no step.
        if self
            .pairs
            .last()
            .is_some_and(|(_, last)| last.abs_diff(offset) < 1_000)
        {
            return;
        }
        if self.pairs.len() < CLOCK_PAIRS_MAX {
            let at = self.pairs.partition_point(|(known, _)| *known <= boot.0);
            self.pairs.insert(at, (boot.0, offset));
        }
    }

    /// UTC of a moment of the boot clock; the first offset holds for what is before the first reading.
    pub fn utc(&self, boot: BootNs) -> UtcNs {
        let at = self.pairs.partition_point(|(known, _)| *known <= boot.0);
        let offset = self
            .pairs
            .get(at.saturating_sub(1))
            .map_or(0, |(_, offset)| *offset);
        UtcNs(boot.0.cast_signed().wrapping_add(offset))
    }

    /// Whether any reading was taken.
    pub fn is_set(&self) -> bool {
        !self.pairs.is_empty()
    }
}

/// Year, month and day of a number of days since the epoch, in the proleptic Gregorian calendar.
///
/// Counts from 0000-03-01, so that the leap day is the last of its year (Howard Hinnant, *chrono-Compatible Low-Level Date
/// Algorithms*, `civil_from_days`).
pub(crate) fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_gregorian_calendar() {
        for (ns, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
            (1_709_164_800_000_000_001, "2024-02-29T00:00:00.000000001Z"),
            (1_795_159_135_189_522_853, "2026-11-20T07:18:55.189522853Z"),
            (i64::MAX, "2262-04-11T23:47:16.854775807Z"),
            (i64::MIN, "1677-09-21T00:12:43.145224192Z"),
        ] {
            assert_eq!(UtcNs(ns).rfc3339(), text);
        }
    }

    #[test]
    fn each_day_follows_the_one_before() {
        let mut last = civil(-110_000);
        for days in -109_999..110_000 {
            let (year, month, day) = civil(days);
            let follows = if day > 1 {
                (year, month, day - 1) == last
            } else if month > 1 {
                (year, month - 1) == (last.0, last.1) && last.2 >= 28
            } else {
                (year - 1, 12, 31) == last
            };
            assert!(follows, "{last:?} then {:?}", (year, month, day));
            last = (year, month, day);
        }
    }
}
