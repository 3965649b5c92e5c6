//! Content: what a call and an entry say, reduced to fingerprints that are equal when they say the same.
//!
//! Owns the fingerprints, taken over the proxy's own canonical form so that key order, white space and number spelling do not
//! count. Equal fingerprints only propose a pair; [`compare`](crate::proxylog::compare) decides what differs.

use crate::call::scene::Scene;
use crate::call::{Call, CallKind, Passage, Way, bytes_of};
use crate::message::Message;
use std::ops::Range;
use std::sync::Arc;

use crate::frame::hash;
use crate::json::{Document, Kind, Limits, Value};
use crate::proxylog::canonical::{self, Redaction};
use crate::proxylog::{Direction, Entry, own};

/// Fingerprint of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(Option<u64>);

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
    pub fn of(scene: Scene<'a>, call: &Call) -> Self {
        let cut = |passage: &Option<Arc<Passage>>, span: fn(&Message) -> &Option<Range<usize>>| {
            let passage = passage.as_deref()?;
            let bytes = bytes_of(scene.placed, scene.frames, passage.primary()?)?;
            bytes.get(span(&passage.message).clone()?)
        };
        Self {
            params: cut(&call.request, |message| &message.params),
            result: cut(&call.response, |message| &message.result),
            error: cut(&call.response, |message| &message.error),
        }
    }
}

/// Fingerprints of a call.
pub fn of_call(
    contents: &mut Contents,
    call: &Call,
    wire: &WireContent<'_>,
    redaction: &Redaction,
) -> Fingerprints {
    let message = call.request.as_ref().map(|request| &request.message);
    let id = call.subject().and_then(|passage| passage.message.id_text());
    contents.fingerprints(
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
pub fn of_entry(contents: &mut Contents, entry: &Entry, redaction: &Redaction) -> Fingerprints {
    let content = WireContent {
        params: entry.params.as_deref(),
        result: entry.result.as_deref(),
        // Of a request that was never answered there is no error on the wire.
        error: entry
            .error
            .as_deref()
            .filter(|error| !own::says_unanswered(Some(error))),
    };
    contents.fingerprints(
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
        full: Fingerprint(None),
        redacted: Fingerprint(None),
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

/// Writes contents down to take their fingerprints; keeps its memory from one to the next.
#[derive(Debug, Default)]
pub struct Contents {
    text: Vec<u8>,
}

impl Contents {
    fn fingerprints(
        &mut self,
        head: Head<'_>,
        content: &WireContent<'_>,
        redaction: &Redaction,
    ) -> Fingerprints {
        let (redacted, hit) = self.fingerprint(&head, content, redaction);
        let full = if hit {
            self.fingerprint(&head, content, &Redaction::none()).0
        } else {
            redacted
        };
        Fingerprints { full, redacted }
    }

    /// The fingerprint, and whether anything was redacted.
    fn fingerprint(
        &mut self,
        head: &Head<'_>,
        content: &WireContent<'_>,
        redaction: &Redaction,
    ) -> (Fingerprint, bool) {
        self.text.clear();
        self.part(match head.direction {
            Direction::ClientToServer => b">",
            Direction::ServerToClient => b"<",
        });
        self.part(if head.notification { b"n" } else { b"r" });
        self.part(head.id.map_or(&b""[..], str::as_bytes));
        self.part(head.method.as_bytes());
        self.part(head.tool_name.as_bytes());
        let mut hit = false;
        for (raw, is_error) in [
            (content.params, false),
            (content.result, false),
            (content.error, true),
        ] {
            let begin = self.text.len();
            if let Some(raw) = raw {
                hit |= self.value(raw, is_error, redaction);
            }
            let len = (self.text.len() - begin) as u64;
            self.text.extend_from_slice(&len.to_le_bytes());
        }
        (Fingerprint(Some(hash(&self.text))), hit)
    }

    fn part(&mut self, bytes: &[u8]) {
        self.text
            .extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.text.extend_from_slice(bytes);
    }

    /// Logs keep `code`, `message` and `data` of an error, nothing else.
    fn value(&mut self, raw: &[u8], is_error: bool, redaction: &Redaction) -> bool {
        let Ok(document) = Document::parse(raw, Limits::default()) else {
            self.text.extend_from_slice(raw);
            return false;
        };
        let root = document.root();
        if root.is_null() {
            return false;
        }
        if !is_error || root.kind() != Kind::Object {
            return canonical::canonicalise_any_into(&mut self.text, root, redaction);
        }
        let mut hit = false;
        self.text.push(b'e');
        for member in ["code", "message", "data"] {
            let value: Option<Value<'_>> = root.get(member).filter(|value| !value.is_null());
            if let Some(value) = value {
                hit |= canonical::canonicalise_any_into(&mut self.text, value, redaction);
            }
            self.text.push(0);
        }
        hit
    }
}
