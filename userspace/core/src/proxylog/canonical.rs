//! The form in which Go's `encoding/json` writes a value it has read, with mcp-audit's redaction.
//!
//! Owns: member order, escapes, number spelling, redaction by key. Does not own: what is signed.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::decimal;
use crate::json::{self, Elements, Kind, Leniency, Value};

/// What stands in place of a redacted value.
pub const REDACTED: &str = "[REDACTED]";

/// mcp-audit's default patterns.
pub const DEFAULT_PATTERNS: [&str; 6] = [
    "password",
    "token",
    "secret",
    "api_key",
    "bearer",
    "authorization",
];

/// Deepest nesting that Go reads; deeper text is stored as it came.
///
/// Source: Go `encoding/json/scanner.go`, `maxNestingDepth`.
const GO_DEPTH_MAX: usize = 10_000;

/// Which members are redacted: those whose lower-cased key contains a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redaction {
    patterns: Vec<String>,
}

impl Default for Redaction {
    fn default() -> Self {
        Self::new(DEFAULT_PATTERNS)
    }
}

impl Redaction {
    /// Redaction by these patterns. Empty patterns are dropped: they would match every key.
    pub fn new<P: AsRef<str>>(patterns: impl IntoIterator<Item = P>) -> Self {
        let lowered = patterns.into_iter().map(|pattern| lower(pattern.as_ref()));
        Self {
            patterns: lowered.filter(|pattern| !pattern.is_empty()).collect(),
        }
    }

    /// No redaction.
    pub fn none() -> Self {
        Self {
            patterns: Vec::new(),
        }
    }

    /// True if a member with this (decoded) key is redacted.
    pub fn hits(&self, key: &str) -> bool {
        if self.patterns.is_empty() {
            return false;
        }
        let key = lower(key);
        self.patterns
            .iter()
            .any(|pattern| key.contains(pattern.as_str()))
    }
}

/// Go's `strings.ToLower`.
fn lower(text: &str) -> String {
    text.chars().map(json::lower_char).collect()
}

/// Why Go would not read a value, so that mcp-audit stores it as it came, unredacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotCanonical {
    /// `NaN`, an infinity, or a raw control character.
    #[error("not strict json")]
    NotStrict,
    /// A number outside float64.
    #[error("number out of range")]
    NumberRange,
    /// Nested deeper than Go reads.
    #[error("nested deeper than {GO_DEPTH_MAX}")]
    TooDeep,
}

/// Go's spelling of a value, redacted: keys sorted by their UTF-8 bytes, the last of repeated keys,
/// numbers through float64, invalid UTF-8 and lone surrogates as U+FFFD, HTML characters escaped.
///
/// # Errors
/// [`NotCanonical`] if Go would refuse the value.
pub fn canonicalise(value: Value<'_>, redaction: &Redaction) -> Result<Vec<u8>, NotCanonical> {
    let leniency = value.leniency_within();
    if leniency.intersects(Leniency::NON_FINITE | Leniency::CONTROL_IN_STRING) {
        return Err(NotCanonical::NotStrict);
    }
    if leniency.intersects(Leniency::FLOAT_OVERFLOW) {
        return Err(NotCanonical::NumberRange);
    }
    write(value, redaction, GO_DEPTH_MAX, Spelling::Go)
}

/// As [`canonicalise`], but for every value: numbers that Go cannot hold keep their text, so nothing
/// escapes redaction by being unreadable to Go.
pub fn canonicalise_any(value: Value<'_>, redaction: &Redaction) -> Vec<u8> {
    write(value, redaction, usize::MAX, Spelling::Go).unwrap_or_default()
}

/// As [`canonicalise_any`], but nothing is rounded: a number that float64 does not hold keeps its
/// text, and a lone surrogate is an escape. Bytes that are not UTF-8 become U+FFFD even so: JSON has no
/// way to write them.
pub fn exact(value: Value<'_>, redaction: &Redaction) -> Vec<u8> {
    write(value, redaction, usize::MAX, Spelling::Exact).unwrap_or_default()
}

/// Go's spelling of a string, with quotes.
pub fn string(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    push_string(&mut out, text);
    out
}

/// Go's `json.Compact` with HTML escaping: white space between tokens removed, nothing else changed.
/// This is how a raw value stands in a JSONL line.
pub fn compact(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut in_string = false;
    let mut at = 0;
    while let Some(&byte) = raw.get(at) {
        let mut len = 1;
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' if !in_string => {}
            b'<' | b'>' | b'&' => push_unicode_escape(&mut out, byte),
            0xe2 if matches!(raw.get(at + 1..at + 3), Some([0x80, 0xa8 | 0xa9])) => {
                out.extend_from_slice(if raw[at + 2] == 0xa8 {
                    b"\\u2028"
                } else {
                    b"\\u2029"
                });
                len = 3;
            }
            b'\\' if in_string => {
                len = 2.min(raw.len() - at);
                out.extend_from_slice(&raw[at..at + len]);
            }
            _ => {
                in_string ^= byte == b'"';
                out.push(byte);
            }
        }
        at += len;
    }
    out
}

/// A container that is being written. A stack of these stands in for recursion, which hostile nesting
/// would overflow.
enum Open<'d> {
    Array(Elements<'d>, bool),
    Object(std::vec::IntoIter<Member<'d>>, bool),
}

/// A member of an object: its key as Go reads it, its key as it stands, its value.
type Member<'d> = (Cow<'d, str>, Value<'d>, Value<'d>);

/// How numbers and strings are spelled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    Go,
    Exact,
}

fn write(
    value: Value<'_>,
    redaction: &Redaction,
    depth_max: usize,
    spelling: Spelling,
) -> Result<Vec<u8>, NotCanonical> {
    let mut out = Vec::with_capacity(value.raw().len());
    let mut open = Vec::new();
    let mut next = Some(value);
    loop {
        if let Some(value) = next.take() {
            match value.kind() {
                Kind::Array => {
                    out.push(b'[');
                    open.push(Open::Array(value.elements(), true));
                }
                Kind::Object => {
                    out.push(b'{');
                    let members = sorted_members(value, spelling).into_iter();
                    open.push(Open::Object(members, true));
                }
                Kind::String => push_text(&mut out, value, spelling),
                Kind::Number => push_number(&mut out, value, spelling),
                Kind::Null | Kind::Bool => out.extend_from_slice(value.raw()),
            }
            if open.len() > depth_max {
                return Err(NotCanonical::TooDeep);
            }
        }
        match open.last_mut() {
            None => return Ok(out),
            Some(Open::Array(elements, first)) => {
                next = elements.next();
                if next.is_none() {
                    out.push(b']');
                    open.pop();
                } else if !std::mem::take(first) {
                    out.push(b',');
                }
            }
            Some(Open::Object(members, first)) => {
                let Some((key, exact, value)) = members.next() else {
                    out.push(b'}');
                    open.pop();
                    continue;
                };
                if !std::mem::take(first) {
                    out.push(b',');
                }
                match spelling {
                    Spelling::Go => push_string(&mut out, &key),
                    Spelling::Exact => push_text(&mut out, exact, spelling),
                }
                out.push(b':');
                if redaction.hits(&key) {
                    push_string(&mut out, REDACTED);
                } else {
                    next = Some(value);
                }
            }
        }
    }
}

/// Members by key, in order of the keys' bytes; of equal keys, the last.
fn sorted_members(object: Value<'_>, spelling: Spelling) -> Vec<Member<'_>> {
    let mut members: Vec<_> = object
        .entries()
        .map(|(key, value)| (key.as_str_lossy(), key, value))
        .collect();
    members.sort_by(|a, b| a.0.cmp(&b.0));
    // The sort is stable, so of a run the last one in the text stands last.
    members.dedup_by(|later, earlier| {
        let same = later.0 == earlier.0
            && (spelling == Spelling::Go || later.1.as_str_bytes() == earlier.1.as_str_bytes());
        if same {
            earlier.2 = later.2;
        }
        same
    });
    members
}

/// Source: Go `encoding/json/encode.go`, `appendString` with `escapeHTML`.
fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut plain = 0;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let special = byte < 0x20 || matches!(byte, b'"' | b'\\' | b'<' | b'>' | b'&');
        let separator = byte == 0xe2 && matches!(bytes[at + 1..], [0x80, 0xa8 | 0xa9, ..]);
        if !special && !separator {
            at += 1;
            continue;
        }
        out.extend_from_slice(&bytes[plain..at]);
        let mut len = 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            8 => out.extend_from_slice(b"\\b"),
            12 => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0xe2 => {
                out.extend_from_slice(if bytes[at + 2] == 0xa8 {
                    b"\\u2028"
                } else {
                    b"\\u2029"
                });
                len = 3;
            }
            _ => push_unicode_escape(out, byte),
        }
        at += len;
        plain = at;
    }
    out.extend_from_slice(&bytes[plain..]);
    out.push(b'"');
}

fn push_unicode_escape(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"\\u00");
    out.push(HEX[usize::from(byte >> 4)]);
    out.push(HEX[usize::from(byte & 15)]);
}

fn push_text(out: &mut Vec<u8>, value: Value<'_>, spelling: Spelling) {
    // Beside stray bytes nothing is exact any more.
    let odd = value.leniency() & (Leniency::LONE_SURROGATE | Leniency::INVALID_UTF8);
    let keep = spelling == Spelling::Exact && odd == Leniency::LONE_SURROGATE;
    match value.as_str_bytes().filter(|_| keep) {
        Some(bytes) => push_wtf8(out, &bytes),
        None => push_string(out, &value.as_str_lossy()),
    }
}

/// A string whose lone surrogates stand as their three bytes.
fn push_wtf8(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut text = Vec::with_capacity(bytes.len() + 2);
    out.push(b'"');
    let mut rest = bytes;
    while !rest.is_empty() {
        let lone = |at: &usize| matches!(rest[*at..], [0xed, 0xa0..=0xbf, 0x80..=0xbf, ..]);
        let at = memchr::memchr_iter(0xed, rest).find(lone);
        let (plain, tail) = rest.split_at(at.unwrap_or(rest.len()));
        text.clear();
        push_string(&mut text, &String::from_utf8_lossy(plain));
        out.extend_from_slice(&text[1..text.len() - 1]);
        rest = tail;
        if let [_, second, third, after @ ..] = tail {
            let code = 0xd000 | (u16::from(second & 0x3f) << 6) | u16::from(third & 0x3f);
            out.extend_from_slice(format!("\\u{code:04x}").as_bytes());
            rest = after;
        }
    }
    out.push(b'"');
}

fn push_number(out: &mut Vec<u8>, value: Value<'_>, spelling: Spelling) {
    let spelled = value
        .as_f64()
        .filter(|number| number.is_finite())
        .map(float)
        .filter(|text| spelling == Spelling::Go || decimal::same(text.as_bytes(), value.raw()));
    match spelled {
        Some(text) => out.extend_from_slice(text.as_bytes()),
        None => out.extend_from_slice(value.raw()),
    }
}

/// The shortest digits that read back as the same float64, in Go's layout.
///
/// Source: Go `encoding/json/encode.go`, `floatEncoder.encode`.
pub(super) fn float(number: f64) -> String {
    let size = number.abs();
    if size == 0.0 || (1e-6..1e21).contains(&size) {
        return format!("{number}");
    }
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(text, "{number:e}");
    match text.split_once('e') {
        Some((digits, exponent)) if !exponent.starts_with('-') => format!("{digits}e+{exponent}"),
        Some(_) | None => text,
    }
}

#[cfg(test)]
#[path = "canonical_tests.rs"]
mod tests;
