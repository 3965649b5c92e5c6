//! Content: what a call and an entry say, reduced to fingerprints that are equal when they say the same.
//!
//! Owns the fingerprints, taken over the proxy's own canonical form so that key order, white space and number spelling do not
//! count. Equal fingerprints only propose a pair; [`compare`](crate::proxylog::compare) decides what differs.

use sha2::{Digest, Sha256};

use crate::call::{Call, CallKind, Passage, Way};
use crate::json::{Document, Kind, Limits, Value};
use crate::proxylog::canonical::{self, Redaction};
use crate::proxylog::{Direction, Entry, own};

/// Fingerprint of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

/// Both fingerprints of one content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprints {
    /// Over everything.
    pub full: Fingerprint,
    /// Over what is left when secrets are replaced.
    pub redacted: Fingerprint,
}

/// The three values of a call that a log can repeat, as bytes on the wire.
#[derive(Clone, Copy, Debug, Default)]
pub struct WireContent<'a> {
    /// `params` of the request or notification.
    pub params: Option<&'a [u8]>,
    /// `result` of the answer.
    pub result: Option<&'a [u8]>,
    /// `error` of the answer.
    pub error: Option<&'a [u8]>,
}

impl<'a> WireContent<'a> {
    /// Cuts the values out of the frames that carry a call.
    pub fn of(
        request: Option<(&Passage, &'a [u8])>,
        response: Option<(&Passage, &'a [u8])>,
    ) -> Self {
        let cut = |bytes: &'a [u8], span: &Option<std::ops::Range<usize>>| {
            span.clone().and_then(|span| bytes.get(span))
        };
        Self {
            params: request.and_then(|(passage, bytes)| cut(bytes, &passage.message.params)),
            result: response.and_then(|(passage, bytes)| cut(bytes, &passage.message.result)),
            error: response.and_then(|(passage, bytes)| cut(bytes, &passage.message.error)),
        }
    }
}

/// Fingerprints of a call.
pub fn of_call(call: &Call, wire: &WireContent<'_>, redaction: &Redaction) -> Fingerprints {
    let message = call.request.as_ref().map(|request| &request.message);
    let id = call.subject().and_then(|passage| passage.message.id_text());
    fingerprints(
        Head {
            direction: expected_direction(call),
            notification: call.kind() == CallKind::Notification,
            id: id.as_deref(),
            method: message.map_or(own::UNMATCHED_RESPONSE, |message| {
                message.method.as_deref().unwrap_or("")
            }),
            tool_name: message
                .and_then(|message| message.tool_name.as_deref())
                .unwrap_or(""),
        },
        wire,
        redaction,
    )
}

/// Fingerprints of an entry.
pub fn of_entry(entry: &Entry, redaction: &Redaction) -> Fingerprints {
    let content = WireContent {
        params: entry.params.as_deref(),
        result: entry.result.as_deref(),
        // Of a request that was never answered there is no error on the wire.
        error: entry
            .error
            .as_deref()
            .filter(|error| !own::says_unanswered(Some(error))),
    };
    fingerprints(
        Head {
            direction: entry.direction,
            notification: entry.request_id.is_none(),
            id: entry.request_id.as_deref(),
            method: &entry.method,
            tool_name: entry.tool_name.as_deref().unwrap_or(""),
        },
        &content,
        redaction,
    )
}

/// Fingerprints of nothing at all: equal to no call's and no entry's.
pub fn nothing() -> Fingerprints {
    Fingerprints {
        full: Fingerprint([0; 32]),
        redacted: Fingerprint([0; 32]),
    }
}

/// The direction that an entry about this call has: the way of the message that completed it.
pub fn expected_direction(call: &Call) -> Direction {
    let completed = match (call.kind(), &call.response) {
        (CallKind::Notification | CallKind::ResponseWithoutRequest, _) => call.way,
        // Refused by the proxy: the request is all that it ever forwarded or not.
        (CallKind::Request, Some(response)) if response.sent.is_none() => call.way,
        (CallKind::Request, Some(_) | None) => call.way.back(),
    };
    match completed {
        Way::ToServer => Direction::ClientToServer,
        Way::ToClient => Direction::ServerToClient,
    }
}

#[derive(Clone, Copy)]
struct Head<'a> {
    direction: Direction,
    notification: bool,
    id: Option<&'a str>,
    method: &'a str,
    tool_name: &'a str,
}

fn fingerprints(head: Head<'_>, content: &WireContent<'_>, redaction: &Redaction) -> Fingerprints {
    let none = Redaction::none();
    Fingerprints {
        full: fingerprint(&head, content, &none),
        redacted: fingerprint(&head, content, redaction),
    }
}

fn fingerprint(head: &Head<'_>, content: &WireContent<'_>, redaction: &Redaction) -> Fingerprint {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(match head.direction {
        Direction::ClientToServer => b">",
        Direction::ServerToClient => b"<",
    });
    part(if head.notification { b"n" } else { b"r" });
    part(head.id.map_or(&b""[..], str::as_bytes));
    part(head.method.as_bytes());
    part(head.tool_name.as_bytes());
    part(&canonical_value(content.params, redaction));
    part(&canonical_value(content.result, redaction));
    part(&canonical_error(content.error, redaction));
    Fingerprint(hash.finalize().into())
}

fn canonical_value(raw: Option<&[u8]>, redaction: &Redaction) -> Vec<u8> {
    let Some(raw) = raw else { return Vec::new() };
    match Document::parse(raw, Limits::default()) {
        Ok(document) if document.root().is_null() => Vec::new(),
        Ok(document) => canonical::canonicalise_any(document.root(), redaction),
        Err(_not_json) => raw.to_vec(),
    }
}

/// Logs keep `code`, `message` and `data` of an error, nothing else.
fn canonical_error(raw: Option<&[u8]>, redaction: &Redaction) -> Vec<u8> {
    let Some(raw) = raw else { return Vec::new() };
    let Ok(document) = Document::parse(raw, Limits::default()) else {
        return raw.to_vec();
    };
    let root = document.root();
    if root.kind() != Kind::Object {
        return canonical_value(Some(raw), redaction);
    }
    let mut out = vec![b'e'];
    for member in ["code", "message", "data"] {
        let value: Option<Value<'_>> = root.get(member).filter(|value| !value.is_null());
        if let Some(value) = value {
            out.extend_from_slice(&canonical::canonicalise_any(value, redaction));
        }
        out.push(0);
    }
    out
}
