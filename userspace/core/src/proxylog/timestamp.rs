//! RFC 3339 times to and from UTC nanoseconds.

use crate::time::civil;

const NS_PER_SECOND: i64 = 1_000_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// UTC nanoseconds since 1970 of an RFC 3339 time. `None` if it is none, has more than nine fraction
/// digits, or lies outside 1677..2262.
pub fn parse(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    if bytes.len() < 20 {
        return None;
    }
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if separators.iter().any(|(at, wanted)| bytes[*at] != *wanted)
        || !matches!(bytes[10], b'T' | b't')
    {
        return None;
    }
    let (year, month, day) = (
        digits(&bytes[..4])?,
        digits(&bytes[5..7])?,
        digits(&bytes[8..10])?,
    );
    let (hour, minute) = (digits(&bytes[11..13])?, digits(&bytes[14..16])?);
    let second = digits(&bytes[17..19])?;
    let in_range = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !in_range {
        return None;
    }
    let (fraction_ns, zone) = fraction(&bytes[19..])?;
    let seconds =
        days_since_1970(year, month, day) * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second
            - zone_seconds(zone)?;
    seconds.checked_mul(NS_PER_SECOND)?.checked_add(fraction_ns)
}

fn fraction(rest: &[u8]) -> Option<(i64, &[u8])> {
    let Some(after_dot) = rest.strip_prefix(b".") else {
        return Some((0, rest));
    };
    let count = after_dot
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let scale = 9u32.checked_sub(u32::try_from(count).ok()?)?;
    let value = digits(&after_dot[..count])?;
    Some((value * 10i64.pow(scale), &after_dot[count..]))
}

fn zone_seconds(zone: &[u8]) -> Option<i64> {
    let (sign, clock) = match zone {
        b"Z" | b"z" => return Some(0),
        [b'+', clock @ ..] => (1, clock),
        [b'-', clock @ ..] => (-1, clock),
        _ => return None,
    };
    if clock.len() != 5 || clock[2] != b':' {
        return None;
    }
    let (hours, minutes) = (digits(&clock[..2])?, digits(&clock[3..])?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

fn digits(bytes: &[u8]) -> Option<i64> {
    if bytes.is_empty() {
        return None;
    }
    bytes.iter().try_fold(0i64, |value, byte| {
        byte.is_ascii_digit()
            .then(|| value * 10 + i64::from(byte - b'0'))
    })
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar: the inverse of [`civil`], from the same source, `days_from_civil`.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// A UTC time as Go's `time.RFC3339Nano` writes it: trailing zeros of the fraction stripped, no dot
/// at a whole second.
pub fn format(utc_ns: i64) -> String {
    let seconds = utc_ns.div_euclid(NS_PER_SECOND);
    let fraction = utc_ns.rem_euclid(NS_PER_SECOND);
    let clock = seconds.rem_euclid(SECONDS_PER_DAY);
    let (year, month, day) = civil(seconds.div_euclid(SECONDS_PER_DAY));
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    let mut out = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if fraction != 0 {
        let digits = format!(".{fraction:09}");
        out.push_str(digits.trim_end_matches('0'));
    }
    out.push('Z');
    out
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use proptest::prelude::*;

    use super::{format, parse};

    #[test]
    fn known_times_are_read_to_the_nanosecond() {
        assert_eq!(parse("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(
            parse("2026-11-20T07:18:55.189522853Z"),
            Some(1_795_159_135_189_522_853)
        );
        assert_eq!(
            parse("2026-11-20T08:18:55.1+01:00"),
            Some(1_795_159_135_100_000_000)
        );
        assert_eq!(
            parse("2024-02-29T00:00:00Z"),
            Some(1_709_164_800_000_000_000)
        );
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "2026-11-20",
            "2026-11-20 07:18:55Z",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-11-20T24:00:00Z",
            "2026-11-20T07:18:55",
            "2026-11-20T07:18:55.Z",
            "2026-11-20T07:18:55.1234567890Z",
            "2026-11-20T07:18:55+0100",
            "9999-12-31T23:59:59Z",
            "２026-11-20T07:18:55Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_nanosecond_survives_the_way_through_text(ns in any::<i64>()) {
            // The first whole second of i64 range is not representable once split from its fraction.
            prop_assume!(ns > i64::MIN + 1_000_000_000);
            prop_assert_eq!(parse(&format(ns)).unwrap(), ns);
        }
    }
}
