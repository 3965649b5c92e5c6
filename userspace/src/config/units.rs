//! Durations and sizes as people write them.
//!
//! Owns their parsing, for flags and configuration alike. Errors are messages: the caller names the key.

use std::time::Duration;

/// Longest accepted duration. Stops a slip of the unit from keeping a capture for years.
const DURATION_MAX: Duration = Duration::from_hours(24);

/// Parses `500ms`, `2s`, `1.5s`, `3m` or `1h`.
///
/// # Errors
/// A message with an example.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: write it like 2s, 500ms or 1m");
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    if number.is_empty()
        || !number
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return Err(wrong());
    }
    let number: f64 = number.parse().map_err(|_unparsable| wrong())?;
    Duration::try_from_secs_f64(number * seconds)
        .ok()
        .filter(|duration| *duration <= DURATION_MAX)
        .ok_or_else(|| format!("{text:?} is longer than a day: write less"))
}

/// Parses `1048576`, `64MiB`, `64M`, `10GiB` or `1T`; units are powers of 1024.
///
/// # Errors
/// A message with an example.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size: write it like 512MiB or 10GiB");
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_unparsable| wrong())?;
    number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(wrong)
}

/// Reads the size of a ring: rounded up to a power of two, between [`RING_BYTES_MIN`] and [`RING_BYTES_MAX`].
///
/// # Errors
/// When it is no size, or out of these bounds; the message is for the user.
pub fn parse_ring_bytes(text: &str) -> Result<u32, String> {
    let bytes = parse_bytes(text)?;
    u32::try_from(bytes)
        .ok()
        .and_then(u32::checked_next_power_of_two)
        .filter(|bytes| (RING_BYTES_MIN..=RING_BYTES_MAX).contains(bytes))
        .ok_or_else(|| format!("{text:?} is no size for a ring: give 1MiB to 1GiB"))
}

/// Smallest ring: the longest record takes 64 KiB of it.
pub const RING_BYTES_MIN: u32 = 1 << 20;

/// Largest ring. It is memory of the kernel that nothing else can use.
pub const RING_BYTES_MAX: u32 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit_and_stay_within_a_day() {
        assert_eq!(parse_duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        for bad in [
            "",
            "2",
            "s",
            "-1s",
            "1e9s",
            "infs",
            "NaNs",
            "25h",
            "2 s",
            "1..5s",
            "99999999999999999999999h",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("64MiB"), Ok(64 << 20));
        assert_eq!(parse_bytes("1g"), Ok(1 << 30));
        for bad in [
            "",
            "0",
            "MiB",
            "1.5G",
            "-1",
            "1X",
            "99999999999999999999",
            "99999999999T",
        ] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
