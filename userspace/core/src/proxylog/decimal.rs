//! Numbers by their digits: equality that no binary format rounds.
//!
//! Owns: whether two JSON numbers are the same decimal. Does not own: what a program makes of them.

/// Longest exponent that is read, digits; two numbers with longer ones are the same only if their
/// texts are. Stops `1e` with a million digits from needing big integers.
const EXPONENT_DIGITS_MAX: usize = 15;

/// Whether two JSON numbers are the same decimal: `1.0` and `1e0` are, `9007199254740993` and
/// `9007199254740992` are not. The sign of zero counts. What is no decimal (`NaN`) is the same as its own
/// text only.
pub(super) fn same(one: &[u8], other: &[u8]) -> bool {
    one == other
        || match (Decimal::parse(one), Decimal::parse(other)) {
            (Some(one), Some(other)) => one.same(&other),
            (Some(_) | None, _) => false,
        }
}

/// Whether a JSON number is zero, of either sign.
pub(super) fn is_zero(number: &[u8]) -> bool {
    Decimal::parse(number).is_some_and(|number| number.is_zero())
}

/// Sign, digits before and after the point without zeros around them, and the power of ten of the last
/// digit.
struct Decimal<'a> {
    negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
    exponent: i64,
}

impl<'a> Decimal<'a> {
    fn parse(text: &'a [u8]) -> Option<Self> {
        let (negative, text) = match text {
            [b'-', rest @ ..] => (true, rest),
            _ => (false, text),
        };
        let (mantissa, exponent) = match text.iter().position(|byte| matches!(byte, b'e' | b'E')) {
            Some(at) => (&text[..at], exponent(&text[at + 1..])?),
            None => (text, 0),
        };
        let (whole, fraction) = match memchr::memchr(b'.', mantissa) {
            Some(at) => (&mantissa[..at], &mantissa[at + 1..]),
            None => (mantissa, &[][..]),
        };
        if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
            return None;
        }
        let mut parsed = Self {
            negative,
            whole: without_leading_zeros(whole),
            fraction: without_trailing_zeros(fraction),
            exponent,
        };
        parsed.exponent -= i64::try_from(parsed.fraction.len()).ok()?;
        if parsed.whole.is_empty() {
            parsed.fraction = without_leading_zeros(parsed.fraction);
        }
        if parsed.fraction.is_empty() {
            let len = parsed.whole.len();
            parsed.whole = without_trailing_zeros(parsed.whole);
            parsed.exponent += i64::try_from(len - parsed.whole.len()).ok()?;
        }
        Some(parsed)
    }

    fn is_zero(&self) -> bool {
        self.whole.is_empty() && self.fraction.is_empty()
    }

    fn same(&self, other: &Self) -> bool {
        let digits = || self.whole.iter().chain(self.fraction);
        self.negative == other.negative
            && (self.is_zero() && other.is_zero() || self.exponent == other.exponent)
            && digits().eq(other.whole.iter().chain(other.fraction))
    }
}

fn exponent(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let digits = if digits.is_empty() {
        return None;
    } else {
        without_leading_zeros(digits)
    };
    if digits.len() > EXPONENT_DIGITS_MAX {
        return None;
    }
    let mut value = 0i64;
    for digit in digits {
        value = value * 10 + i64::from(char::from(*digit).to_digit(10)?);
    }
    Some(if negative { -value } else { value })
}

fn without_leading_zeros(digits: &[u8]) -> &[u8] {
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
    &digits[zeros..]
}

fn without_trailing_zeros(digits: &[u8]) -> &[u8] {
    let zeros = digits
        .iter()
        .rev()
        .take_while(|digit| **digit == b'0')
        .count();
    &digits[..digits.len() - zeros]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spelling_of_the_same_decimal_is_the_same() {
        for (one, other) in [
            ("1", "1.0"),
            ("100", "1e2"),
            ("1E+02", "100.00"),
            ("0.001", "1e-3"),
            ("0.0", "0e99"),
            ("-0", "-0.0"),
            ("1e400", "10e399"),
            ("120", "12e1"),
            ("1.50", "15e-1"),
            ("0.10", "1e-1"),
            ("NaN", "NaN"),
            ("1e9999999999999999999", "1e9999999999999999999"),
        ] {
            assert!(same(one.as_bytes(), other.as_bytes()), "{one} {other}");
            assert!(same(other.as_bytes(), one.as_bytes()), "{other} {one}");
        }
    }

    #[test]
    fn no_two_decimals_are_rounded_into_one() {
        for (one, other) in [
            ("9007199254740993", "9007199254740992"),
            ("0.1", "0.1000000000000000055511151231257827"),
            ("1e-400", "0"),
            ("1e400", "1e401"),
            ("0", "-0"),
            ("1", "-1"),
            ("10", "1"),
            ("1.01", "1.1"),
            ("0.01", "0.1"),
            ("101", "11"),
            ("NaN", "0"),
            ("Infinity", "-Infinity"),
            ("1e9999999999999999999", "1e9999999999999999998"),
        ] {
            assert!(!same(one.as_bytes(), other.as_bytes()), "{one} {other}");
        }
    }

    proptest::proptest! {
        #[test]
        fn shifting_the_point_changes_nothing(digits in "[0-9]{1,30}", fraction in "[0-9]{1,30}", by in 0usize..30) {
            let plain = format!("1{digits}.{fraction}");
            let shifted = format!("1{digits}{fraction}{}e-{}", "0".repeat(by), fraction.len() + by);
            proptest::prop_assert!(same(plain.as_bytes(), shifted.as_bytes()));
            let other = format!("1{digits}.{fraction}1");
            proptest::prop_assert!(!same(other.as_bytes(), shifted.as_bytes()));
        }
    }
}
