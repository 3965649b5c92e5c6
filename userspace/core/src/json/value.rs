//! Views of the tape.

use std::borrow::Cow;
use std::ops::Range;

use super::{Kind, Leniency, Token, fold_key, text};

/// One value of a [`Document`](super::Document).
#[derive(Clone, Copy)]
pub struct Value<'d> {
    bytes: &'d [u8],
    tape: &'d [Token],
    index: usize,
}

impl<'d> Value<'d> {
    pub(super) fn at(bytes: &'d [u8], tape: &'d [Token], index: usize) -> Self {
        Self { bytes, tape, index }
    }

    /// What the value is.
    pub fn kind(&self) -> Kind {
        self.token().kind
    }

    /// The value's exact bytes; a string's include its quotes.
    pub fn raw(&self) -> &'d [u8] {
        self.bytes.get(self.span()).unwrap_or_default()
    }

    /// Byte range of the value in the text.
    pub fn span(&self) -> Range<usize> {
        let token = self.token();
        token.start as usize..token.end as usize
    }

    /// Departures of this value alone: of an object's keys or a string's bytes, not of what it holds.
    pub fn leniency(&self) -> Leniency {
        self.token().leniency
    }

    /// The member with exactly this key once escapes are resolved; the last one of several, as in
    /// Python, JavaScript and Go. `None` if the value is no object.
    pub fn get(&self, key: &str) -> Option<Value<'d>> {
        self.get_all(key).last()
    }

    /// Every member with exactly this key, in order.
    pub fn get_all(&self, key: &str) -> impl Iterator<Item = Value<'d>> {
        let wanted = key.as_bytes();
        self.entries()
            .filter(move |(key, _)| key.is_str(wanted))
            .map(|(_, value)| value)
    }

    /// Every member that Go would take for this key: equal but for case. In order.
    pub fn get_folded(&self, key: &str) -> impl Iterator<Item = (Value<'d>, Value<'d>)> {
        let wanted = fold_key(key);
        self.entries()
            .filter(move |(key, _)| fold_key(&key.as_str_lossy()) == wanted)
    }

    /// Keys (string values) and values of an object in text order; nothing for other kinds.
    pub fn entries(&self) -> Entries<'d> {
        Entries {
            children: self.children(Kind::Object),
        }
    }

    /// Elements of an array in order; nothing for other kinds.
    pub fn elements(&self) -> Elements<'d> {
        self.children(Kind::Array)
    }

    /// Number of elements or members, repeated keys counted; 0 for other kinds. Walks them.
    pub fn len(&self) -> usize {
        match self.kind() {
            Kind::Array => self.elements().count(),
            Kind::Object => self.entries().count(),
            Kind::Null | Kind::Bool | Kind::Number | Kind::String => 0,
        }
    }

    /// No elements or members.
    pub fn is_empty(&self) -> bool {
        self.children(self.kind()).next().is_none()
    }

    /// The literal `null`.
    pub fn is_null(&self) -> bool {
        self.kind() == Kind::Null
    }

    /// A string's bytes with escapes resolved; `None` for other kinds. WTF-8: a lone surrogate escape
    /// becomes its three bytes, and bytes that were not UTF-8 stay as they are.
    pub fn as_str_bytes(&self) -> Option<Cow<'d, [u8]>> {
        let token = self.token();
        (token.kind == Kind::String)
            .then(|| text::decode(text::inner(self.bytes, &token), token.escaped))
    }

    /// A string's text as Go reads it: one U+FFFD for each lone surrogate escape and each byte that is
    /// not UTF-8. Empty for other kinds.
    pub fn as_str_lossy(&self) -> Cow<'d, str> {
        let token = self.token();
        if token.kind != Kind::String {
            return Cow::Borrowed("");
        }
        text::decode_lossy(text::inner(self.bytes, &token), token.escaped)
    }

    /// True if this is a string that decodes to exactly `wanted`.
    pub fn is_str(&self, wanted: impl AsRef<[u8]>) -> bool {
        let token = self.token();
        if token.kind != Kind::String {
            return false;
        }
        let inner = text::inner(self.bytes, &token);
        if token.escaped {
            *text::decode(inner, true) == *wanted.as_ref()
        } else {
            inner == wanted.as_ref()
        }
    }

    /// A number's text; `None` for other kinds.
    pub fn as_number(&self) -> Option<&'d str> {
        if self.kind() != Kind::Number {
            return None;
        }
        std::str::from_utf8(self.raw()).ok()
    }

    /// The float64 nearest to a number, infinite if it overflows; `None` for other kinds.
    pub fn as_f64(&self) -> Option<f64> {
        match self.as_number()? {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            raw => text::number(raw.as_bytes()),
        }
    }

    /// A number written as a plain integer that fits; `None` for anything else.
    pub fn as_i64(&self) -> Option<i64> {
        self.as_number()?.parse().ok()
    }

    /// A boolean; `None` for other kinds.
    pub fn as_bool(&self) -> Option<bool> {
        (self.kind() == Kind::Bool).then(|| self.raw() == b"true")
    }

    /// All departures in this value and in everything it holds. Walks them.
    pub fn leniency_within(&self) -> Leniency {
        let end = self.token().next as usize;
        self.tape
            .get(self.index..end)
            .unwrap_or_default()
            .iter()
            .fold(Leniency::empty(), |found, token| found | token.leniency)
    }

    fn children(&self, kind: Kind) -> Elements<'d> {
        let token = self.token();
        let container = matches!(token.kind, Kind::Array | Kind::Object);
        let end = if container && token.kind == kind {
            token.next as usize
        } else {
            self.index + 1
        };
        Elements {
            bytes: self.bytes,
            tape: self.tape,
            index: self.index + 1,
            end,
        }
    }

    fn token(&self) -> Token {
        self.tape[self.index]
    }
}

impl std::fmt::Debug for Value<'_> {
    /// Kind and span only: payloads do not belong in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Value")
            .field("kind", &self.kind())
            .field("span", &self.span())
            .finish()
    }
}

/// Values in a row on the tape.
#[derive(Debug, Clone)]
pub struct Elements<'d> {
    bytes: &'d [u8],
    tape: &'d [Token],
    index: usize,
    end: usize,
}

impl<'d> Iterator for Elements<'d> {
    type Item = Value<'d>;

    fn next(&mut self) -> Option<Value<'d>> {
        if self.index >= self.end {
            return None;
        }
        let value = Value::at(self.bytes, self.tape, self.index);
        self.index = value.token().next as usize;
        Some(value)
    }
}

/// Members of an object.
#[derive(Debug, Clone)]
pub struct Entries<'d> {
    children: Elements<'d>,
}

impl<'d> Iterator for Entries<'d> {
    type Item = (Value<'d>, Value<'d>);

    fn next(&mut self) -> Option<Self::Item> {
        Some((self.children.next()?, self.children.next()?))
    }
}
