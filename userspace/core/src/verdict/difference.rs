//! The first difference between a call and the entry that is held to be about it.
//!
//! Owns the order of the fields and which of them a known habit of a proxy explains. What a difference means is said elsewhere.
//!
//! A log in Go rounds numbers to float64 and replaces what is no Unicode, so its entry, and the signature over it, hold for
//! several messages. That the log has exactly what Go makes of the message shows that nobody edited it; it does not show which
//! of those messages it was about. Such a field is [`Finding::Lossy`], never equal.

use crate::call::Call;
use crate::json::{Document, Leniency, Limits, Value};
use crate::message::Message;
use crate::pairing::content::{WireContent, expected_direction};
use crate::proxylog::compare::{self, Comparison};
use crate::proxylog::{Entry, Redaction, own};

/// What keeps an entry from telling the same story as its call: the field and the JSON pointer.
#[derive(Debug)]
pub(super) enum Finding {
    /// They say different things.
    Different(&'static str, Option<String>),
    /// The entry says what this proxy's log makes of the call, and of others.
    Lossy(&'static str, Option<String>),
}

/// The first difference between call and entry, else the first field in which the log lost something.
pub(super) fn content_difference(
    call: &Call,
    entry: &Entry,
    wire: &WireContent<'_>,
    redaction: &Redaction,
    basis: &mut Vec<&'static str>,
) -> Option<Finding> {
    let different = |field| Some(Finding::Different(field, None));
    let request = call.request.as_ref().map(|request| &request.message);
    let method = request.map_or(own::UNMATCHED_RESPONSE, |message| {
        message.method.as_deref().unwrap_or("")
    });
    if entry.method != method {
        return different("method");
    }
    basis.push("method");
    let tool = request.and_then(|message| message.tool_name.as_deref());
    if entry.tool_name.as_deref().unwrap_or("") != tool.unwrap_or("") {
        return different("tool_name");
    }
    let id = call.subject().and_then(|passage| passage.message.id_text());
    if entry.request_id.as_deref().unwrap_or("") != id.as_deref().unwrap_or("") {
        return different("request_id");
    }
    basis.push("request_id");
    if entry.direction != expected_direction(call) {
        return different("direction");
    }
    let mut lossy = request
        .and_then(name_was_replaced)
        .map(|field| Finding::Lossy(field, None));
    let values = [
        ("params", wire.params, entry.params.as_deref()),
        ("result", wire.result, entry.result.as_deref()),
        ("error", wire.error, entry.error.as_deref()),
    ];
    for (field, wire, log) in values {
        if field == "error"
            && wire.is_none()
            && call.response.is_none()
            && own::says_unanswered(log)
        {
            basis.push("unanswered");
            continue;
        }
        match compare_field(field, wire, log, redaction) {
            Comparison::Equal | Comparison::EqualAfterRedaction => {
                if wire.is_some() {
                    basis.push(field);
                }
            }
            Comparison::Collapsed { pointer } => {
                lossy.get_or_insert(Finding::Lossy(field, Some(pointer)));
            }
            Comparison::Different { pointer, .. } => {
                return Some(Finding::Different(field, Some(pointer)));
            }
        }
    }
    lossy
}

/// A name that was no Unicode, and is one in the log.
fn name_was_replaced(message: &Message) -> Option<&'static str> {
    let odd = Leniency::LONE_SURROGATE | Leniency::INVALID_UTF8;
    let replaced = |name: &Option<String>| {
        name.as_ref()
            .is_some_and(|name| name.contains(char::REPLACEMENT_CHARACTER))
    };
    if !message.leniency.intersects(odd) {
        return None;
    }
    if replaced(&message.method) {
        return Some("method");
    }
    replaced(&message.tool_name).then_some("tool_name")
}

fn compare_field(
    field: &str,
    wire: Option<&[u8]>,
    log: Option<&[u8]>,
    redaction: &Redaction,
) -> Comparison {
    // The same text says the same, and most logs repeat it.
    if wire.is_some() && wire == log {
        return Comparison::Equal;
    }
    let wire = wire.map(|raw| Document::parse(raw, Limits::default()));
    let log = log.map(|raw| Document::parse(raw, Limits::default()));
    let root = |document: &'_ Option<Result<Document<'_>, crate::json::Error>>| -> bool {
        matches!(document, Some(Err(_)))
    };
    if root(&wire) || root(&log) {
        return Comparison::Different {
            pointer: String::new(),
            difference: compare::Difference::Kind,
        };
    }
    let wire = wire.and_then(Result::ok);
    let log = log.and_then(Result::ok);
    let wire_root: Option<Value<'_>> = wire.as_ref().map(Document::root);
    let log_root: Option<Value<'_>> = log.as_ref().map(Document::root);
    if field == "error" {
        compare::errors(wire_root, log_root, redaction)
    } else {
        compare::optional(wire_root, log_root, redaction)
    }
}
