//! The first difference between a call and the entry that is held to be about it.
//!
//! Owns the order of the fields and which of them a known habit of a proxy explains. What a difference means is said elsewhere.

use crate::call::Call;
use crate::json::{Document, Limits, Value};
use crate::pairing::content::{WireContent, expected_direction};
use crate::proxylog::compare::{self, Comparison};
use crate::proxylog::{Entry, Redaction, own};

/// The first difference between call and entry: field and JSON pointer.
pub(super) fn content_difference(
    call: &Call,
    entry: &Entry,
    wire: &WireContent<'_>,
    redaction: &Redaction,
    basis: &mut Vec<&'static str>,
) -> Option<(&'static str, Option<String>)> {
    let request = call.request.as_ref().map(|request| &request.message);
    let method = request.map_or(own::UNMATCHED_RESPONSE, |message| {
        message.method.as_deref().unwrap_or("")
    });
    if entry.method != method {
        return Some(("method", None));
    }
    basis.push("method");
    let tool = request.and_then(|message| message.tool_name.as_deref());
    if entry.tool_name.as_deref().unwrap_or("") != tool.unwrap_or("") {
        return Some(("tool_name", None));
    }
    let id = call.subject().and_then(|passage| passage.message.id_text());
    if entry.request_id.as_deref().unwrap_or("") != id.as_deref().unwrap_or("") {
        return Some(("request_id", None));
    }
    basis.push("request_id");
    if entry.direction != expected_direction(call) {
        return Some(("direction", None));
    }
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
            Comparison::Different { pointer, .. } => return Some((field, Some(pointer))),
        }
    }
    None
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
