//! Decoding of strings and numbers.

use std::borrow::Cow;

use super::Token;

/// Folds a key the way Go matches member names to struct fields: `NAME`, `name` and `naſe`-like
/// spellings with U+017F or U+212A fall together.
///
/// Source: Go `encoding/json/fold.go` (the smallest rune of the `unicode.SimpleFold` orbit), here by
/// lower case, which separates the same keys.
pub fn fold_key(key: &str) -> String {
    key.chars().map(fold_char).collect()
}

fn fold_char(ch: char) -> char {
    match ch {
        'ſ' => 's',
        '\u{212a}' => 'k',
        _ if ch.is_ascii() => ch.to_ascii_lowercase(),
        _ => lower_char(ch),
    }
}

/// Go's `unicode.ToLower`: always one character for one.
pub(crate) fn lower_char(ch: char) -> char {
    if ch == 'İ' {
        return 'i';
    }
    let mut lower = ch.to_lowercase();
    match (lower.next(), lower.next()) {
        (Some(one), None) => one,
        _ => ch,
    }
}

/// The bytes between the quotes of a string token.
pub(super) fn inner<'b>(bytes: &'b [u8], token: &Token) -> &'b [u8] {
    bytes
        .get(token.start as usize + 1..(token.end as usize).saturating_sub(1))
        .unwrap_or_default()
}

/// Resolves escapes. Lone surrogates become their three WTF-8 bytes, invalid bytes stay.
pub(super) fn decode(inner: &[u8], escaped: bool) -> Cow<'_, [u8]> {
    if !escaped {
        return Cow::Borrowed(inner);
    }
    let mut out = Vec::with_capacity(inner.len());
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', &inner[at..]) {
        out.extend_from_slice(&inner[at..at + found]);
        at += found;
        let (len, unit) = escape(&inner[at..]);
        match unit {
            Unit::Char(ch) => out.extend_from_slice(ch.encode_utf8(&mut [0; 4]).as_bytes()),
            Unit::Surrogate(code) => out.extend_from_slice(&wtf8(code)),
        }
        at += len;
    }
    out.extend_from_slice(&inner[at..]);
    Cow::Owned(out)
}

/// Resolves escapes the way Go does: each lone surrogate and each invalid byte becomes one U+FFFD.
///
/// Source: Go `encoding/json/decode.go`, `unquoteBytes`.
pub(super) fn decode_lossy(inner: &[u8], escaped: bool) -> Cow<'_, str> {
    let bytes = if escaped {
        decode(inner, true)
    } else {
        Cow::Borrowed(inner)
    };
    match bytes {
        Cow::Borrowed(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => Cow::Owned(replace_invalid(bytes)),
        },
        Cow::Owned(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Cow::Owned(text),
            // Escapes and raw bytes differ here: an escaped lone surrogate is one U+FFFD, while its
            // three raw bytes are three.
            Err(_) => Cow::Owned(decode_escapes_lossy(inner)),
        },
    }
}

fn decode_escapes_lossy(inner: &[u8]) -> String {
    let mut out = String::with_capacity(inner.len());
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', &inner[at..]) {
        push_lossy(&mut out, &inner[at..at + found]);
        at += found;
        let (len, unit) = escape(&inner[at..]);
        out.push(match unit {
            Unit::Char(ch) => ch,
            Unit::Surrogate(_) => char::REPLACEMENT_CHARACTER,
        });
        at += len;
    }
    push_lossy(&mut out, &inner[at..]);
    out
}

fn replace_invalid(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    push_lossy(&mut out, bytes);
    out
}

fn push_lossy(out: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        for _ in chunk.invalid() {
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

enum Unit {
    Char(char),
    Surrogate(u16),
}

/// The escape at the start of `rest`, which the scanner has found to be whole.
fn escape(rest: &[u8]) -> (usize, Unit) {
    let simple = match rest.get(1) {
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => {
            return match unicode_escape(rest) {
                Some((len, Some(ch))) => (len, Unit::Char(ch)),
                Some((len, None)) => (len, Unit::Surrogate(hex4(rest).unwrap_or_default())),
                None => (rest.len(), Unit::Char(char::REPLACEMENT_CHARACTER)),
            };
        }
        Some(byte) => char::from(*byte),
        None => char::REPLACEMENT_CHARACTER,
    };
    (2.min(rest.len()), Unit::Char(simple))
}

/// Length and character of the `\uXXXX` (or pair of them) that `rest` starts with. The character is
/// `None` for a lone surrogate; `None` as a whole means broken digits.
pub(super) fn unicode_escape(rest: &[u8]) -> Option<(usize, Option<char>)> {
    let first = hex4(rest)?;
    if (0xd800..0xdc00).contains(&first)
        && rest.get(6..8) == Some(b"\\u")
        && let Some(second) = hex4(&rest[6..])
        && (0xdc00..0xe000).contains(&second)
    {
        let code = 0x1_0000 + ((u32::from(first) - 0xd800) << 10) + (u32::from(second) - 0xdc00);
        return Some((12, char::from_u32(code)));
    }
    Some((6, char::from_u32(u32::from(first))))
}

fn hex4(rest: &[u8]) -> Option<u16> {
    let mut code = 0u16;
    for byte in rest.get(2..6)? {
        let digit = char::from(*byte).to_digit(16)?;
        code = (code << 4) | u16::try_from(digit).ok()?;
    }
    Some(code)
}

fn wtf8(code: u16) -> [u8; 3] {
    let [high, low] = code.to_be_bytes();
    [
        0xe0 | (high >> 4),
        0x80 | ((high & 0x0f) << 2) | (low >> 6),
        0x80 | (low & 0x3f),
    ]
}

/// True if a byte is below 0x20. Chunks without a branch, so that it runs at memory speed.
pub(super) fn has_control(bytes: &[u8]) -> bool {
    let mut chunks = bytes.chunks_exact(64);
    for chunk in &mut chunks {
        if chunk.iter().fold(u8::MAX, |least, byte| least.min(*byte)) < 0x20 {
            return true;
        }
    }
    chunks.remainder().iter().any(|byte| *byte < 0x20)
}

/// The float64 nearest to a number's text; `None` if it is none.
pub(crate) fn number(raw: &[u8]) -> Option<f64> {
    std::str::from_utf8(raw).ok()?.parse().ok()
}
