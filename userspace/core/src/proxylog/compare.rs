//! Comparison by value: what the wire carried against what the log says.
//!
//! Owns: equality by value (numbers by their decimal digits, strings by their code units, the last of
//! repeated keys), redaction, and what Go's collapse excuses. Does not own: which values belong
//! together, or what a difference means.
//!
//! A log written by Go holds numbers as the nearest float64 and U+FFFD where text was no Unicode, so
//! one entry stands for many messages. Such a pair is neither equal nor different: it is
//! [`Comparison::Collapsed`], and proves nothing more than that the log is what this proxy makes of
//! the message. The collapse goes one way: a log that holds *more* than the wire is different.

use std::borrow::Cow;

use super::canonical::{self, REDACTED, Redaction};
use super::decimal;
use crate::json::{Elements, Kind, Leniency, Value};

/// Longest JSON pointer reported, bytes; an agent can make keys of megabytes.
pub const POINTER_MAX_BYTES: usize = 1024;

/// How a value on the wire and one in the log relate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// The same value.
    Equal,
    /// The same but for members that the proxy redacts by their key.
    EqualAfterRedaction,
    /// The log holds what Go makes of the value, and it makes the same of others.
    Collapsed {
        /// Pointer, as below, to the first value that lost something.
        pointer: String,
    },
    /// Not the same.
    Different {
        /// RFC 6901 pointer to the first difference; cut, with `…` at its end, when over
        /// [`POINTER_MAX_BYTES`].
        pointer: String,
        /// What differs there.
        difference: Difference,
    },
}

/// What differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Difference {
    /// Values of different kinds.
    Kind,
    /// Two scalars of the same kind.
    Value,
    /// Arrays of different lengths.
    Length,
    /// On the wire only.
    MissingInLog,
    /// In the log only.
    MissingOnWire,
}

/// Compares two values. Keys that `redaction` hits may hold `"[REDACTED]"` in the log.
pub fn values(wire: Value<'_>, log: Value<'_>, redaction: &Redaction) -> Comparison {
    let exact = Walk::new(Eyes::Exact).run(wire, log, redaction);
    let Comparison::Different { pointer, .. } = exact else {
        return exact;
    };
    let collapsed = |eyes| match Walk::new(eyes).run(wire, log, redaction) {
        different @ Comparison::Different { .. } => different,
        Comparison::Equal | Comparison::EqualAfterRedaction | Comparison::Collapsed { .. } => {
            Comparison::Collapsed {
                pointer: pointer.clone(),
            }
        }
    };
    match collapsed(Eyes::Own) {
        Comparison::Different { .. } => collapsed(Eyes::Go),
        other @ (Comparison::Equal
        | Comparison::EqualAfterRedaction
        | Comparison::Collapsed { .. }) => other,
    }
}

/// As [`values`] where either may be absent. `null` and absent are the same: MCP knows no difference,
/// and proxies do not keep it.
pub fn optional(
    wire: Option<Value<'_>>,
    log: Option<Value<'_>>,
    redaction: &Redaction,
) -> Comparison {
    match (
        wire.filter(|value| !value.is_null()),
        log.filter(|value| !value.is_null()),
    ) {
        (Some(wire), Some(log)) => values(wire, log, redaction),
        (None, None) => Comparison::Equal,
        (Some(_), None) => different(String::new(), Difference::MissingInLog),
        (None, Some(_)) => different(String::new(), Difference::MissingOnWire),
    }
}

/// Compares JSON-RPC error objects: `code`, `message` and `data`. Other members are not kept by
/// proxies and not compared.
pub fn errors(
    wire: Option<Value<'_>>,
    log: Option<Value<'_>>,
    redaction: &Redaction,
) -> Comparison {
    let (Some(wire_error), Some(log_error)) = (wire, log) else {
        return optional(wire, log, redaction);
    };
    if wire_error.kind() != Kind::Object || log_error.kind() != Kind::Object {
        return values(wire_error, log_error, redaction);
    }
    let mut redacted = false;
    let mut collapsed = None;
    for member in ["code", "message", "data"] {
        match optional(wire_error.get(member), log_error.get(member), redaction) {
            Comparison::Equal => {}
            Comparison::EqualAfterRedaction => redacted = true,
            Comparison::Collapsed { pointer } => {
                collapsed.get_or_insert(format!("/{member}{pointer}"));
            }
            Comparison::Different {
                pointer,
                difference,
            } => {
                return different(format!("/{member}{pointer}"), difference);
            }
        }
    }
    collapsed.map_or_else(
        || equal(redacted),
        |pointer| Comparison::Collapsed { pointer },
    )
}

fn different(pointer: String, difference: Difference) -> Comparison {
    Comparison::Different {
        pointer,
        difference,
    }
}

fn equal(redacted: bool) -> Comparison {
    if redacted {
        Comparison::EqualAfterRedaction
    } else {
        Comparison::Equal
    }
}

/// A pair of containers in comparison; the stack of them is the path, without recursion.
enum Open<'d> {
    Array {
        wire: Elements<'d>,
        log: Elements<'d>,
        index: usize,
    },
    Object {
        pairs: std::vec::IntoIter<Pair<'d>>,
        key: Key<'d>,
    },
}

/// A key, decoded; not always UTF-8.
type Key<'d> = Cow<'d, [u8]>;

struct Pair<'d> {
    key: Key<'d>,
    wire: Option<Value<'d>>,
    log: Option<Value<'d>>,
}

/// How the wire is read. The log is always taken as it stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Eyes {
    Exact,
    /// As Countersign's own proxy writes it down: what JSON has no way to write is replaced, all else is kept.
    Own,
    Go,
}

impl Eyes {
    /// For one text: beside bytes that are no UTF-8, nothing of it is kept exactly.
    fn at(self, text: Value<'_>) -> Self {
        match self {
            Self::Own if !text.leniency().intersects(Leniency::INVALID_UTF8) => Self::Exact,
            Self::Exact | Self::Own | Self::Go => self,
        }
    }
}

struct Walk<'d> {
    eyes: Eyes,
    open: Vec<Open<'d>>,
    redacted: bool,
}

impl<'d> Walk<'d> {
    fn new(eyes: Eyes) -> Self {
        Self {
            eyes,
            open: Vec::new(),
            redacted: false,
        }
    }

    fn run(mut self, wire: Value<'d>, log: Value<'d>, redaction: &Redaction) -> Comparison {
        let mut next = Some((wire, log));
        loop {
            let outcome = match next.take() {
                Some((wire, log)) => self.enter(wire, log),
                None => match self.advance(redaction) {
                    Ok(Some(pair)) => {
                        next = Some(pair);
                        continue;
                    }
                    Ok(None) => return equal(self.redacted),
                    Err(difference) => Err(difference),
                },
            };
            if let Err(difference) = outcome {
                return different(self.pointer(), difference);
            }
        }
    }

    /// Compares two scalars, or opens two containers.
    fn enter(&mut self, wire: Value<'d>, log: Value<'d>) -> Result<(), Difference> {
        if wire.kind() != log.kind() {
            return Err(Difference::Kind);
        }
        // The same text is the same value in every reading, numbers out of range included.
        if wire.raw() == log.raw() {
            return Ok(());
        }
        let same = match wire.kind() {
            Kind::Array => {
                self.open.push(Open::Array {
                    wire: wire.elements(),
                    log: log.elements(),
                    index: 0,
                });
                true
            }
            Kind::Object => {
                let pairs = merge(members(wire, self.eyes), members(log, Eyes::Exact)).into_iter();
                self.open.push(Open::Object {
                    pairs,
                    key: Cow::Borrowed(b""),
                });
                true
            }
            Kind::String => self.same_text(wire, log),
            Kind::Number => self.same_number(wire, log),
            Kind::Null => true,
            Kind::Bool => false,
        };
        if same { Ok(()) } else { Err(Difference::Value) }
    }

    fn same_text(&self, wire: Value<'_>, log: Value<'_>) -> bool {
        match self.eyes.at(wire) {
            // Three stray bytes and one stray escape decode to the same bytes, but not to the same text.
            Eyes::Exact => {
                let odd = Leniency::LONE_SURROGATE | Leniency::INVALID_UTF8;
                wire.as_str_bytes() == log.as_str_bytes()
                    && (!(wire.leniency() | log.leniency()).intersects(odd)
                        || wire.as_str_lossy() == log.as_str_lossy())
            }
            Eyes::Own | Eyes::Go => log.is_str(wire.as_str_lossy().as_bytes()),
        }
    }

    fn same_number(&self, wire: Value<'_>, log: Value<'_>) -> bool {
        match self.eyes {
            Eyes::Exact | Eyes::Own => decimal::same(wire.raw(), log.raw()),
            Eyes::Go => {
                let read = wire.as_f64().filter(|number| number.is_finite());
                read.is_some_and(|read| {
                    let zeros = read == 0.0 && decimal::is_zero(log.raw());
                    zeros || decimal::same(canonical::float(read).as_bytes(), log.raw())
                })
            }
        }
    }

    /// The next pair to compare; `None` when everything was.
    fn advance(
        &mut self,
        redaction: &Redaction,
    ) -> Result<Option<(Value<'d>, Value<'d>)>, Difference> {
        while let Some(top) = self.open.last_mut() {
            match top {
                Open::Array { wire, log, index } => match (wire.next(), log.next()) {
                    (Some(wire), Some(log)) => {
                        *index += 1;
                        return Ok(Some((wire, log)));
                    }
                    (None, None) => {}
                    (Some(_), None) | (None, Some(_)) => {
                        *index += 1;
                        return Err(Difference::Length);
                    }
                },
                Open::Object { pairs, key } => {
                    if let Some(pair) = pairs.next() {
                        *key = pair.key;
                        let (wire, log) = match (pair.wire, pair.log) {
                            (Some(wire), Some(log)) => (wire, log),
                            (Some(_), None) => return Err(Difference::MissingInLog),
                            (None, Some(_)) => return Err(Difference::MissingOnWire),
                            (None, None) => continue,
                        };
                        if log.is_str(REDACTED)
                            && !wire.is_str(REDACTED)
                            && redaction.hits(&String::from_utf8_lossy(key))
                        {
                            self.redacted = true;
                            continue;
                        }
                        return Ok(Some((wire, log)));
                    }
                }
            }
            self.open.pop();
        }
        Ok(None)
    }

    /// Where the walk stands.
    fn pointer(&self) -> String {
        let mut out = String::new();
        for open in &self.open {
            out.push('/');
            match open {
                Open::Array { index, .. } => out.push_str(&index.saturating_sub(1).to_string()),
                Open::Object { key, .. } => {
                    for ch in String::from_utf8_lossy(key).chars().take(POINTER_MAX_BYTES) {
                        match ch {
                            '~' => out.push_str("~0"),
                            '/' => out.push_str("~1"),
                            _ => out.push(ch),
                        }
                    }
                }
            }
            if out.len() > POINTER_MAX_BYTES {
                let cut = out.floor_char_boundary(POINTER_MAX_BYTES);
                out.truncate(cut);
                out.push('…');
                break;
            }
        }
        out
    }
}

/// Members by key, in order of the keys' bytes; of equal keys, the last.
fn members<'d>(object: Value<'d>, eyes: Eyes) -> Vec<(Key<'d>, Value<'d>)> {
    let mut members: Vec<(Key<'d>, Value<'d>)> = object
        .entries()
        .map(|(key, value)| {
            let key = match eyes.at(key) {
                Eyes::Exact => key.as_str_bytes().unwrap_or_default(),
                Eyes::Own | Eyes::Go => bytes_of(key.as_str_lossy()),
            };
            (key, value)
        })
        .collect();
    members.sort_by(|a, b| a.0.cmp(&b.0));
    // The sort is stable, so of a run the last one in the text stands last.
    members.dedup_by(|later, earlier| {
        let same = later.0 == earlier.0;
        if same {
            earlier.1 = later.1;
        }
        same
    });
    members
}

fn bytes_of(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

/// Merges two sorted lists of members by key.
fn merge<'d>(wire: Vec<(Key<'d>, Value<'d>)>, log: Vec<(Key<'d>, Value<'d>)>) -> Vec<Pair<'d>> {
    let mut pairs = Vec::with_capacity(wire.len().max(log.len()));
    let mut log = log.into_iter().peekable();
    for (key, value) in wire {
        while let Some((key, value)) = log.next_if(|(other, _)| *other < key) {
            pairs.push(Pair {
                key,
                wire: None,
                log: Some(value),
            });
        }
        let matching = log
            .next_if(|(other, _)| *other == key)
            .map(|(_, value)| value);
        pairs.push(Pair {
            key,
            wire: Some(value),
            log: matching,
        });
    }
    pairs.extend(log.map(|(key, value)| Pair {
        key,
        wire: None,
        log: Some(value),
    }));
    pairs
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
