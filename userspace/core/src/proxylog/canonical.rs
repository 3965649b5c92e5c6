//! The form in which Go's `encoding/json` writes a value it has read, with mcp-audit's redaction.
//!
//! Owns: member order, escapes, number spelling, redaction by key. Does not own: what is signed.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::OnceLock;

use smallvec::SmallVec;

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

/// Keys up to this length are looked at without a copy on the heap.
const SHORT_KEY_BYTES: usize = 64;

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
    pub const fn none() -> Self {
        Self {
            patterns: Vec::new(),
        }
    }

    /// What is taken for the redaction of a proxy of which nothing is known.
    pub fn usual() -> &'static Self {
        static USUAL: OnceLock<Redaction> = OnceLock::new();
        USUAL.get_or_init(Self::default)
    }

    /// True if a member with this (decoded) key is redacted.
    pub fn hits(&self, key: &str) -> bool {
        if self.patterns.is_empty() {
            return false;
        }
        let mut short = [0; SHORT_KEY_BYTES];
        if let Some(short) = short.get_mut(..key.len())
            && key.is_ascii()
        {
            short.copy_from_slice(key.as_bytes());
            short.make_ascii_lowercase();
            return self.patterns.iter().any(|pattern| {
                let windows = &mut short.windows(pattern.len());
                windows.any(|window| window == pattern.as_bytes())
            });
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
    let mut out = Vec::with_capacity(value.raw().len());
    write(&mut out, value, redaction, GO_DEPTH_MAX, Spelling::Go)?;
    Ok(out)
}

/// As [`canonicalise`], but for every value: numbers that Go cannot hold keep their text, so nothing
/// escapes redaction by being unreadable to Go.
pub fn canonicalise_any(value: Value<'_>, redaction: &Redaction) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.raw().len());
    canonicalise_any_into(&mut out, value, redaction);
    out
}

/// As [`canonicalise_any`], behind what `out` holds already; whether anything was redacted.
pub fn canonicalise_any_into(out: &mut Vec<u8>, value: Value<'_>, redaction: &Redaction) -> bool {
    // Without a limit of depth there is nothing to refuse.
    write(out, value, redaction, usize::MAX, Spelling::Go).unwrap_or_default()
}

/// As [`canonicalise_any`], but nothing is rounded: a number that float64 does not hold keeps its
/// text, and a lone surrogate is an escape. Bytes that are not UTF-8 become U+FFFD even so: JSON has no
/// way to write them.
pub fn exact(value: Value<'_>, redaction: &Redaction) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.raw().len());
    // Without a limit of depth there is nothing to refuse.
    let _redacted = write(&mut out, value, redaction, usize::MAX, Spelling::Exact);
    out
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
    out: &mut Vec<u8>,
    value: Value<'_>,
    redaction: &Redaction,
    depth_max: usize,
    spelling: Spelling,
) -> Result<bool, NotCanonical> {
    let mut redacted = false;
    let mut open: SmallVec<[Open<'_>; 6]> = SmallVec::new();
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
                Kind::String => push_text(out, value, spelling),
                Kind::Number => push_number(out, value, spelling),
                Kind::Null | Kind::Bool => out.extend_from_slice(value.raw()),
            }
            if open.len() > depth_max {
                return Err(NotCanonical::TooDeep);
            }
        }
        match open.last_mut() {
            None => return Ok(redacted),
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
                    Spelling::Go => push_string(out, &key),
                    Spelling::Exact => push_text(out, exact, spelling),
                }
                out.push(b':');
                if redaction.hits(&key) {
                    redacted = true;
                    push_string(out, REDACTED);
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
    loop {
        at += plain_len(&bytes[at..]);
        let Some(&byte) = bytes.get(at) else { break };
        if byte == 0xe2 && !matches!(bytes[at + 1..], [0x80, 0xa8 | 0xa9, ..]) {
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

/// How many bytes at the start need no second look, eight at a time: no control character, none of `"\\<>&`, and not the first
/// byte of a line separator.
fn plain_len(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // Has the high bit set in every byte that is zero, and perhaps in bytes above one: never clear where it must be set.
    let zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let is = |word: u64, byte: u8| zero(word ^ (ONES * u64::from(byte)));
    let words = bytes.chunks_exact(8);
    let special_word = words.clone().position(|chunk| {
        let word = chunk
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u64::from(*byte));
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
        let special = [b'"', b'\\', b'<', b'>', b'&', 0xe2];
        special
            .iter()
            .fold(control, |found, byte| found | is(word, *byte))
            != 0
    });
    let begin = special_word.unwrap_or(words.len()) * 8;
    let special =
        |byte: &u8| *byte < 0x20 || matches!(byte, b'"' | b'\\' | b'<' | b'>' | b'&' | 0xe2);
    let rest = &bytes[begin..];
    begin + rest.iter().position(special).unwrap_or(rest.len())
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
