//! Transcripts: messages of calls that went through a proxy before, copied into a pipe by somebody who prints a record of them.
//!
//! A request counts as copied when nobody answers it, its stream also has the answer, from the same side, and both texts are those
//! of a call that went through a proxy before. Whoever sends requests that a proxy never passed, or leaves the answers out, gets
//! nothing from this. An accomplice can execute a copied call once more, so it clears nobody: such a call is undecided.
//!
//! A line of a proxy's log looks like a request, too: one that nobody answers and that is, byte for byte, a line of the log is a copy as well.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};

use crate::call::scene::{Scene, ends};
use crate::call::{Call, Passage, Route, Sighting};
use crate::channel::StreamIx;
use crate::frame::FrameFlags;
use crate::message::{self, IdKey, Message};
use crate::process::ProcessIx;
use crate::role::Leg;
use crate::time::BootNs;
use crate::verdict::Case;

/// The member that each message of the protocol has and no line of a log.
const JSONRPC: &[u8] = b"\"jsonrpc\"";

/// What a message says, without the blanks between its parts.
type Text = [u8; 32];

/// Calls that are copies, by index.
#[derive(Debug, Default)]
pub struct Transcripts {
    copied: HashSet<usize>,
}

impl Transcripts {
    /// Finds them. Without requests past a proxy that nobody answered nothing is looked at; else the streams of those once.
    pub fn of(case: Case<'_>) -> Self {
        let candidates: Vec<(usize, &Passage, StreamIx)> = case
            .calls
            .iter()
            .enumerate()
            .filter_map(|(ix, call)| {
                let request = unanswered(call)?;
                Some((ix, request, stream_of(case, request)?))
            })
            .collect();
        let mut found = Self::default();
        if candidates.is_empty() {
            return found;
        }
        let passed = Passed::of(case);
        let logged: HashSet<Text> = case
            .entries
            .iter()
            .map(|logged| logged.entry.line.sha256)
            .collect();
        if passed.0.is_empty() && logged.is_empty() {
            return found;
        }
        let streams: HashSet<StreamIx> = candidates.iter().map(|(_, _, stream)| *stream).collect();
        let answers = copied_answers(case, &streams, &passed);
        let heard = heard_back(case, &candidates);
        let mut transcripts = HashSet::new();
        for (ix, request, stream) in &candidates {
            let Some(id) = request.message.id_key() else {
                continue;
            };
            let answered = answers
                .get(&(*stream, id.clone()))
                .is_some_and(|last| *last >= request.at);
            let back = back_of(case, request).map(|(from, to)| (from, to, id));
            let heard_back = back
                .and_then(|back| heard.get(&back))
                .is_some_and(|last| *last >= request.at);
            if answered && !heard_back && passed.has(case, request) {
                found.copied.insert(*ix);
                transcripts.insert(*stream);
            } else if !heard_back && is_line_of(case, request, &logged) {
                found.copied.insert(*ix);
            }
        }
        // A notification has no answer: in a transcript, a copy of it is one.
        for (ix, request, stream) in &candidates {
            if transcripts.contains(stream)
                && request.message.id.is_none()
                && passed.has(case, request)
            {
                found.copied.insert(*ix);
            }
        }
        found
    }

    /// Whether a call is a copy of one that went through a proxy.
    pub fn has(&self, call: usize) -> bool {
        self.copied.contains(&call)
    }
}

/// Answers on these streams that went through a proxy before, with the time of the last of each id. They are looked for among what
/// was delivered: an answer that somebody passes on is no message of its own elsewhere.
fn copied_answers(
    case: Case<'_>,
    streams: &HashSet<StreamIx>,
    passed: &Passed,
) -> HashMap<(StreamIx, IdKey), BootNs> {
    let mut answers = HashMap::new();
    for placed in case.scene.placed {
        if !streams.contains(&placed.stream) {
            continue;
        }
        let Some(frame) = case.scene.frames.get(placed.record.0 as usize) else {
            continue;
        };
        let readable = frame.is_complete() && !frame.flags.contains(FrameFlags::NOT_JSON);
        let Some(read) = readable
            .then(|| message::parse(&frame.bytes).ok())
            .flatten()
        else {
            continue;
        };
        for message in read.messages {
            let text = frame.bytes.get(message.span.clone());
            if let (true, Some(id), Some(text)) =
                (message.kind.is_response(), message.id_key(), text)
                && passed.has_text(&digest(text), frame.first_enter)
            {
                answers.insert((placed.stream, id), frame.last_exit);
            }
        }
    }
    answers
}

type Ends = (Option<ProcessIx>, Option<ProcessIx>);

/// From whom to whom an answer would go.
fn back_of(case: Case<'_>, request: &Passage) -> Option<Ends> {
    let (writer, reader) = ends(case.scene, case.placed(request)?);
    Some((reader, writer))
}

/// Answers that went back from who got a candidate to who sent it, on whatever channel, with the time of the last of each id: also
/// one that is a copy itself, and is no answer elsewhere for that.
fn heard_back(
    case: Case<'_>,
    candidates: &[(usize, &Passage, StreamIx)],
) -> HashMap<(Option<ProcessIx>, Option<ProcessIx>, IdKey), BootNs> {
    let backs: HashSet<Ends> = candidates
        .iter()
        .filter_map(|(_, request, _)| back_of(case, request))
        .collect();
    let mut heard = HashMap::new();
    for placed in case.scene.placed {
        let of = ends(case.scene, placed);
        if placed.leg != Leg::Direct || !backs.contains(&of) {
            continue;
        }
        let Some(frame) = case.scene.frames.get(placed.record.0 as usize) else {
            continue;
        };
        if let Ok(parsed) = message::parse(&frame.bytes) {
            for message in parsed.messages {
                if let (true, Some(id)) = (message.kind.is_response(), message.id_key()) {
                    heard.insert((of.0, of.1, id), frame.last_exit);
                }
            }
        }
    }
    heard
}

/// The request of a call past every proxy that nobody answered.
fn unanswered(call: &Call) -> Option<&Passage> {
    let direct = matches!(call.route, Route::Direct(..));
    call.request
        .as_deref()
        .filter(|_| direct && call.response.is_none())
}

fn stream_of(case: Case<'_>, passage: &Passage) -> Option<StreamIx> {
    Some(case.placed(passage)?.stream)
}

/// What went through proxies, and when first.
#[derive(Debug, Default)]
struct Passed(HashMap<Text, BootNs>);

impl Passed {
    fn of(case: Case<'_>) -> Self {
        let mut passed = Self::default();
        for call in case.calls {
            if !matches!(call.route, Route::Proxy(_)) {
                continue;
            }
            for passage in [&call.request, &call.response].into_iter().flatten() {
                // As its sender wrote it, and as the proxy passed it on.
                for sighting in [passage.sent, passage.received].into_iter().flatten() {
                    // The spans are those of the first leg; of the other the whole frame is meant, if it is one message.
                    let whole = passage.primary() != Some(sighting);
                    if let Some(text) = text_of(case.scene, sighting, &passage.message, whole) {
                        let first = passed.0.entry(text).or_insert(passage.until);
                        *first = (*first).min(passage.until);
                    }
                }
            }
        }
        passed
    }

    fn has(&self, case: Case<'_>, passage: &Passage) -> bool {
        passage
            .primary()
            .and_then(|sighting| text_of(case.scene, sighting, &passage.message, false))
            .is_some_and(|text| self.has_text(&text, passage.at))
    }

    /// Whether a text had come through by then.
    fn has_text(&self, text: &Text, at: BootNs) -> bool {
        self.0.get(text).is_some_and(|until| *until <= at)
    }
}

/// Whether a message is a line of a log as it stands there.
fn is_line_of(case: Case<'_>, passage: &Passage, logged: &HashSet<Text>) -> bool {
    let text = passage
        .primary()
        .and_then(|sighting| bytes_of(case.scene, sighting, &passage.message, false));
    // Who can write the log could put a real request there first: one that names the protocol is none of a log's lines.
    let names_protocol = |text: &[u8]| text.windows(JSONRPC.len()).any(|window| window == JSONRPC);
    text.is_some_and(|text| {
        !names_protocol(text) && logged.contains::<Text>(&Sha256::digest(text).into())
    })
}

fn text_of(scene: Scene<'_>, sighting: Sighting, message: &Message, whole: bool) -> Option<Text> {
    bytes_of(scene, sighting, message, whole).map(digest)
}

fn bytes_of<'a>(
    scene: Scene<'a>,
    sighting: Sighting,
    message: &Message,
    whole: bool,
) -> Option<&'a [u8]> {
    let placed = scene.placed.get(sighting.placed.0 as usize)?;
    let bytes = &scene.frames.get(placed.record.0 as usize)?.bytes;
    if whole {
        Some(bytes.as_slice())
    } else {
        bytes.get(message.span.clone())
    }
}

/// SHA-256 of a JSON text without the blanks outside of its strings.
fn digest(text: &[u8]) -> Text {
    let mut hash = Sha256::new();
    let (mut quoted, mut escaped, mut from) = (false, false, 0);
    for (at, byte) in text.iter().enumerate() {
        if quoted {
            quoted = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
        } else if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
            hash.update(&text[from..at]);
            from = at + 1;
        } else {
            quoted = *byte == b'"';
        }
    }
    hash.update(&text[from..]);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::digest;

    #[test]
    fn blanks_between_the_parts_of_a_message_do_not_make_it_another_and_those_in_strings_do() {
        let plain = digest(br#"{"a":"x \" y","b":[1,2]}"#);
        assert_eq!(plain, digest(b"{ \"a\" : \"x \\\" y\",\r\n \"b\":[1, 2]}"));
        assert_ne!(plain, digest(br#"{"a":"x \"y","b":[1,2]}"#));
        assert_ne!(plain, digest(br#"{"a":"x \" y","b":[1,3]}"#));
    }
}
