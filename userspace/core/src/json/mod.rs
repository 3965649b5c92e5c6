//! Lenient JSON: reads what real MCP programs execute, and says where it left the standard.
//!
//! Owns: scanning bytes into a flat tape, string decoding, flags for every departure from RFC 8259.
//! Does not own: what a message means, canonical forms, comparison.
//!
//! A parser stricter than the program that executes the text is a hole in the audit, so `NaN`, lone
//! surrogates, invalid UTF-8, raw control characters and duplicate keys are values with a
//! [`Leniency`] flag. Text that no known program accepts is an [`Error`] with its offset.

mod keys;
mod scan;
mod text;
mod value;

pub use text::fold_key;
pub(crate) use text::lower_char;
pub use value::{Elements, Entries, Value};

use bitflags::bitflags;

/// Longest text accepted by default, in bytes. Stops a peer from pinning memory with one document.
pub const MAX_BYTES: usize = 256 << 20;

/// Deepest nesting accepted by default. The scanner keeps four bytes a level and does not recurse, so
/// this is far above what a server executes: a lower limit would hide calls from the audit.
pub const MAX_DEPTH: usize = 1_000_000;

/// Most tokens (values and keys) accepted by default. Stops `[1,1,1,…`, whose tape is eight times
/// longer than its text.
pub const MAX_TOKENS: usize = 16 << 20;

bitflags! {
    /// How a text, or one value in it, departs from strict JSON or from what all parsers agree on.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Leniency: u16 {
        /// `NaN`, `Infinity` or `-Infinity` as a number.
        const NON_FINITE = 1;
        /// A number beyond the range of a float64 (`1e99999`).
        const FLOAT_OVERFLOW = 1 << 1;
        /// A `\uD800`…`\uDFFF` escape without its other half.
        const LONE_SURROGATE = 1 << 2;
        /// Bytes in a string that are not UTF-8.
        const INVALID_UTF8 = 1 << 3;
        /// U+2028 or U+2029 unescaped; some readers take it for a line end.
        const RAW_LINE_SEPARATOR = 1 << 4;
        /// A byte below 0x20 unescaped in a string.
        const CONTROL_IN_STRING = 1 << 5;
        /// The same key twice in one object.
        const DUPLICATE_KEYS = 1 << 6;
        /// Keys of one object that differ only in case; Go takes them for the same.
        const CASE_VARIANT_KEYS = 1 << 7;
        /// A byte order mark before the text.
        const BOM = 1 << 8;
        /// White space before or after the text.
        const SURROUNDING_SPACE = 1 << 9;
    }
}

/// Bounds for one parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest text, bytes; at most `u32::MAX`.
    pub max_bytes: usize,
    /// Deepest nesting of arrays and objects.
    pub max_depth: usize,
    /// Most values and keys.
    pub max_tokens: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: MAX_BYTES,
            max_depth: MAX_DEPTH,
            max_tokens: MAX_TOKENS,
        }
    }
}

/// Why a text could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No program we know accepts this.
    #[error("malformed json at byte {offset}: expected {expected}")]
    Malformed {
        /// Offset of the first byte that does not fit.
        offset: usize,
        /// What would have fitted.
        expected: &'static str,
    },
    /// Longer than [`Limits::max_bytes`].
    #[error("json text of {len} bytes is over the limit of {limit}")]
    TooLong {
        /// Length of the text, bytes.
        len: usize,
        /// The limit, bytes.
        limit: usize,
    },
    /// Deeper than [`Limits::max_depth`].
    #[error("json nested deeper than {limit} at byte {offset}")]
    TooDeep {
        /// Offset of the bracket that went too far.
        offset: usize,
        /// The limit.
        limit: usize,
    },
    /// More values than [`Limits::max_tokens`].
    #[error("json has more than {limit} values at byte {offset}")]
    TooManyTokens {
        /// Offset of the value that went too far.
        offset: usize,
        /// The limit.
        limit: usize,
    },
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number, `NaN` and infinities included.
    Number,
    /// A string.
    String,
    /// An array.
    Array,
    /// An object.
    Object,
}

/// A parsed text: the bytes and a flat tape of spans over them.
#[derive(Debug, Clone)]
pub struct Document<'a> {
    bytes: &'a [u8],
    tape: Vec<Token>,
    leniency: Leniency,
}

impl<'a> Document<'a> {
    /// Parses one JSON value that fills `bytes`, white space and a byte order mark aside.
    ///
    /// # Errors
    /// [`Error::Malformed`] for text that is not JSON in the lenient sense, the others for limits.
    pub fn parse(bytes: &'a [u8], limits: Limits) -> Result<Self, Error> {
        scan::parse(bytes, limits)
    }

    /// Parses the value that `bytes` begin with, white space before it aside, and says where it ends. Does not look at what
    /// comes after, so that many values in one text cost one pass.
    ///
    /// # Errors
    /// As [`Document::parse`].
    pub fn parse_first(bytes: &'a [u8], limits: Limits) -> Result<(Self, usize), Error> {
        scan::parse_first(bytes, limits)
    }

    /// What can be read of a text whose end is missing, or that is too large to be read whole: values that were open are closed
    /// where it ends. `None` if it is no beginning of a value.
    pub fn parse_head(bytes: &'a [u8], limits: Limits) -> Option<Self> {
        scan::parse_head(bytes, limits)
    }

    /// The value that the text holds.
    pub fn root(&self) -> Value<'_> {
        Value::at(self.bytes, &self.tape, 0)
    }

    /// All departures from strict JSON anywhere in the text.
    pub fn leniency(&self) -> Leniency {
        self.leniency
    }

    /// The text as given.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// One value or key. Keys and values of an object alternate on the tape.
#[derive(Debug, Clone, Copy)]
struct Token {
    start: u32,
    end: u32,
    /// Tape index behind this value and everything in it.
    next: u32,
    kind: Kind,
    /// The string holds escapes.
    escaped: bool,
    leniency: Leniency,
}

#[cfg(test)]
mod tests;
