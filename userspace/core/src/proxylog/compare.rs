//! Comparison by value: what the wire carried against what the log says.
//!
//! Owns: equality through Go's eyes (numbers as float64, strings with U+FFFD, the last of repeated
//! keys) and redaction. Does not own: which values belong together, or what a difference means.

use std::borrow::Cow;

use super::canonical::{REDACTED, Redaction, sorted_members};
use crate::json::{Elements, Kind, Value};

/// Longest JSON pointer reported, bytes; an agent can make keys of megabytes.
pub const POINTER_MAX_BYTES: usize = 1024;

/// How a value on the wire and one in the log relate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// The same value.
    Equal,
    /// The same but for members that the proxy redacts by their key.
    EqualAfterRedaction,
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
    Walk {
        open: Vec::new(),
        redacted: false,
    }
    .run(wire, log, redaction)
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
    for member in ["code", "message", "data"] {
        match optional(wire_error.get(member), log_error.get(member), redaction) {
            Comparison::Equal => {}
            Comparison::EqualAfterRedaction => redacted = true,
            Comparison::Different {
                pointer,
                difference,
            } => {
                return different(format!("/{member}{pointer}"), difference);
            }
        }
    }
    equal(redacted)
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
        key: Cow<'d, str>,
    },
}

struct Pair<'d> {
    key: Cow<'d, str>,
    wire: Option<Value<'d>>,
    log: Option<Value<'d>>,
}

struct Walk<'d> {
    open: Vec<Open<'d>>,
    redacted: bool,
}

impl<'d> Walk<'d> {
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
                let pairs = merge(sorted_members(wire), sorted_members(log)).into_iter();
                self.open.push(Open::Object {
                    pairs,
                    key: Cow::Borrowed(""),
                });
                true
            }
            Kind::String => wire.as_str_lossy() == log.as_str_lossy(),
            Kind::Number => same_number(wire, log),
            Kind::Null => true,
            Kind::Bool => false,
        };
        if same { Ok(()) } else { Err(Difference::Value) }
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
                        if log.is_str(REDACTED) && !wire.is_str(REDACTED) && redaction.hits(key) {
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
                    for ch in key.chars().take(POINTER_MAX_BYTES) {
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

/// Through float64; numbers outside it by their text.
fn same_number(wire: Value<'_>, log: Value<'_>) -> bool {
    match (wire.as_f64(), log.as_f64()) {
        // Exact on purpose: these are the same float64 or they are different numbers.
        #[expect(clippy::float_cmp, reason = "equality of values, not of measurements")]
        (Some(a), Some(b)) => a.is_finite() && a == b,
        _ => false,
    }
}

/// Merges two sorted lists of members by key.
fn merge<'d>(
    wire: Vec<(Cow<'d, str>, Value<'d>)>,
    log: Vec<(Cow<'d, str>, Value<'d>)>,
) -> Vec<Pair<'d>> {
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
