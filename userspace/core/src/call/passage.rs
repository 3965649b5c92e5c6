//! Passages: one message's way over the legs of its route.
//!
//! Owns the joining of what a proxy read with what it wrote: first frames with equal bytes, first in first out, then single
//! messages by kind, id and method, whose content then differs. What a proxy's channel delivered and the proxy did not write
//! is foreign. Direct streams give one passage a message.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use ahash::AHashMap;

use crate::call::cut;
use crate::call::on_lines::OnLines;
use crate::call::relay;
use crate::call::scene::{Scene, bytes, direct_route, frame};
use crate::call::tail;
use crate::call::trouble;
use crate::call::{Hops, Passage, PlacedIx, Route, Sighting, Way};
use crate::channel::ChannelKind;
use crate::evidence::{self, Author};
use crate::frame::FrameFlags;
use crate::frame::line::speaks_of_json_rpc;
use crate::json::{self, Document, Limits};
use crate::message::{self, Form, IdKey, Message, MessageKind, Messages};
use crate::proxylog::{Comparison, Redaction, compare};
use crate::role::{InstanceIx, Leg};

/// Something on a leg that is no message on its way, but must not be passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Oddity {
    /// The reader shows bytes that nobody can have written: it changed its memory after the read.
    ReaderLies(PlacedIx),
    /// Only its writer's memory shows it: it was something else in the channel.
    WriterLies(PlacedIx),
    /// It begins like JSON and is none, even for a lenient reader.
    Malformed(PlacedIx),
    /// It begins like JSON and the stream ended before it did.
    LineCut(PlacedIx),
    /// Not JSON by itself, but it speaks of JSON-RPC: another framing, or a value over several lines.
    McpLike(PlacedIx),
    /// JSON with a JSON-RPC message somewhere inside.
    Wrapped(PlacedIx),
    /// JSON on a proxied leg that is no JSON-RPC message.
    NotJsonRpc(PlacedIx),
    /// Part of its bytes is missing or in doubt at the end of record.
    Incomplete(PlacedIx),
    /// It was taken out of its channel, but whoever took it does not show it.
    ReaderDenies(PlacedIx),
    /// Somebody between client and proxy passed it on; the passage through the proxy is the call.
    Relayed(PlacedIx),
}

/// All passages of a capture, in order of time, and what is odd.
#[derive(Debug, Default)]
pub struct Passages {
    /// In order of time.
    pub passages: Vec<Arc<Passage>>,
    /// In order of time of their deliveries.
    pub oddities: Vec<Oddity>,
}

/// Makes passages of all deliveries.
pub fn assemble(scene: Scene<'_>) -> Passages {
    let mut out = Passages::default();
    let mut legs: BTreeMap<(InstanceIx, Way), Joint> = BTreeMap::new();
    let mut direct = Vec::new();
    let mut cut = Vec::new();
    for (placed, ix) in scene.placed.iter().zip(0u32..) {
        let ix = PlacedIx(ix);
        let frame = &scene.frames[placed.record.0 as usize];
        if placed.contradicted {
            if !frame.flags.contains(FrameFlags::NOT_JSON) {
                out.oddities.push(Oddity::WriterLies(ix));
            }
            continue;
        }
        // A regular file carries no calls, whoever writes it.
        let is_file = scene.channels.channel(placed.stream.channel).kind == ChannelKind::File;
        if frame.flags.contains(FrameFlags::NOT_JSON) || is_file {
            if frame.flags.contains(FrameFlags::MCP_LIKE) && !is_file {
                out.oddities.push(Oddity::McpLike(ix));
            } else if placed.leg.is_to_server() && frame.is_a_line() {
                // A byte without a line end is a signal between threads, not a message.
                out.oddities.push(Oddity::NotJsonRpc(ix));
            }
            continue;
        }
        if !frame.is_complete() {
            out.oddities.push(Oddity::Incomplete(ix));
            if cut::is_readable(placed, frame) {
                cut.push(ix);
            }
            continue;
        }
        let spans = frame.flags.contains(FrameFlags::SPANS_LINES);
        match placed.leg {
            // A proxy of lines passes on the lines, whatever a decoder of streams makes of them.
            Leg::ClientToProxy(_) | Leg::ServerToProxy(_) if spans => out.not_lines(scene, ix),
            Leg::ClientToProxy(at) => legs.entry((at, Way::ToServer)).or_default().read.push(ix),
            Leg::ServerToProxy(at) => legs.entry((at, Way::ToClient)).or_default().read.push(ix),
            Leg::ProxyToServer(at) => {
                out.side(scene, ix, at, legs.entry((at, Way::ToServer)).or_default());
            }
            Leg::ProxyToClient(at) => {
                out.side(scene, ix, at, legs.entry((at, Way::ToClient)).or_default());
            }
            Leg::Direct => direct.push(ix),
            Leg::ProxyFile(_) => {}
        }
    }
    let relayed = relay::relayed(scene, &direct);
    for ((instance, way), joint) in legs {
        out.join(scene, instance, way, joint);
    }
    let on_lines = OnLines::of(scene, &direct);
    for ix in &direct {
        if relayed.contains(ix) {
            out.oddities.push(Oddity::Relayed(*ix));
        } else {
            out.direct(scene, *ix, &on_lines);
        }
    }
    cut::take(scene, &cut, &relayed, &mut out);
    out.passages.sort_by_key(|passage| {
        (
            passage.at,
            passage
                .primary()
                .map(|sighting| (sighting.placed, sighting.element)),
        )
    });
    out
}

/// What one proxy read and wrote in one way.
#[derive(Debug, Default)]
struct Joint {
    read: Vec<PlacedIx>,
    written: Vec<PlacedIx>,
    foreign: Vec<PlacedIx>,
}

/// One message of a frame that found no equal frame.
#[derive(Debug)]
struct Loose {
    sighting: Sighting,
    message: Message,
}

impl Passages {
    /// Sorts a delivery on a leg that the proxy writes into what it wrote and what it did not.
    fn side(&mut self, scene: Scene<'_>, ix: PlacedIx, instance: InstanceIx, joint: &mut Joint) {
        let placed = &scene.placed[ix.0 as usize];
        let spans = scene.frames[placed.record.0 as usize]
            .flags
            .contains(FrameFlags::SPANS_LINES);
        match placed.author {
            Author::Proxy if spans => self.not_lines(scene, ix),
            Author::Proxy => joint.written.push(ix),
            Author::Other => joint.foreign.push(ix),
            Author::Unseen if tail::is_of_proxys_line(scene, placed, instance) => {}
            Author::Unseen => {
                let created = scene.channels.channel(placed.stream.channel).created;
                let possible = scene.streams.get(&placed.stream).is_none_or(|stream| {
                    let len = scene.frames[placed.record.0 as usize].len;
                    evidence::foreign_bytes_possible(stream, scene.roles, instance, created, len)
                });
                if possible {
                    joint.foreign.push(ix);
                } else if !spans {
                    self.oddities.push(Oddity::ReaderLies(ix));
                }
            }
        }
    }

    fn join(&mut self, scene: Scene<'_>, instance: InstanceIx, way: Way, joint: Joint) {
        // A line is passed on after it was read, as a rule at once: of several equal ones the last before it is its origin. So
        // one that was kept back, or whose passing on was missed, stays alone where that happened.
        let mut waiting: AHashMap<u64, Vec<PlacedIx>> = AHashMap::new();
        let mut partner: AHashMap<PlacedIx, PlacedIx> = AHashMap::new();
        let mut loose_written = Vec::new();
        let mut reads = joint.read.iter().peekable();
        let mut written: Vec<PlacedIx> = joint.written.clone();
        written.sort_by_key(|ix| (scene.placed[ix.0 as usize].until, *ix));
        for written in &written {
            let until = scene.placed[written.0 as usize].until;
            while let Some(read) = reads.next_if(|read| scene.placed[read.0 as usize].at <= until) {
                waiting
                    .entry(frame(scene, *read).hash)
                    .or_default()
                    .push(*read);
            }
            let text = frame(scene, *written);
            let read = waiting.get_mut(&text.hash).and_then(|stack| {
                let same = |read: &PlacedIx| frame(scene, *read).is_same_text(text);
                let at = stack.iter().rposition(same)?;
                Some(stack.remove(at))
            });
            match read {
                Some(read) => {
                    partner.insert(read, *written);
                }
                None => self.explode(scene, *written, &mut loose_written),
            }
        }
        for read in reads {
            let hash = frame(scene, *read).hash;
            waiting.entry(hash).or_default().push(*read);
        }
        // A line that the proxy read, did not pass on as far as was seen, and that its receiver has.
        let mut foreign = joint.foreign;
        foreign.retain(
            |ix| match tail::on_its_way(scene, *ix, instance, &mut waiting) {
                Some(read) => {
                    partner.insert(read, *ix);
                    false
                }
                None => true,
            },
        );
        let mut loose_read = Vec::new();
        for read in &joint.read {
            let Some(written) = partner.get(read) else {
                self.explode(scene, *read, &mut loose_read);
                continue;
            };
            for message in self.messages(scene, *read) {
                let sent = Sighting {
                    placed: *read,
                    element: message.element,
                };
                let received = Sighting {
                    placed: *written,
                    element: message.element,
                };
                self.push(
                    scene,
                    Route::Proxy(instance),
                    way,
                    message,
                    (Some(sent), Some(received)),
                    Hops::Equal,
                );
            }
        }
        self.join_loose(scene, instance, way, loose_read, loose_written);
        for ix in foreign {
            for message in self.messages_of_stream(scene, ix) {
                let received = Sighting {
                    placed: ix,
                    element: message.element,
                };
                self.push(
                    scene,
                    Route::Foreign(instance),
                    way,
                    message,
                    (None, Some(received)),
                    Hops::Single,
                );
            }
        }
    }

    /// Joins single messages whose frames differ: a proxy that re-serialises, splits batches, or changes what it forwards.
    fn join_loose(
        &mut self,
        scene: Scene<'_>,
        instance: InstanceIx,
        way: Way,
        read: Vec<Loose>,
        written: Vec<Loose>,
    ) {
        type Key = (MessageKind, Option<IdKey>, Option<String>);
        let key = |loose: &Loose| -> Key {
            (
                loose.message.kind,
                loose.message.id_key(),
                loose.message.method.clone(),
            )
        };
        let mut waiting: HashMap<Key, VecDeque<Loose>> = HashMap::new();
        for loose in written {
            waiting.entry(key(&loose)).or_default().push_back(loose);
        }
        let watched = tail::goes_on_watched(scene, instance, way);
        for loose in read {
            let read_at = scene.placed[loose.sighting.placed.0 as usize].at;
            // What was written before is no copy of what was read after.
            let found = waiting.get_mut(&key(&loose)).and_then(|queue| {
                let at = queue.iter().position(|written| {
                    scene.placed[written.sighting.placed.0 as usize].until >= read_at
                })?;
                queue.remove(at)
            });
            let hops = match &found {
                // Where it goes on is no channel that can be watched: that is no missing leg.
                None if !watched => Hops::Single,
                None => Hops::Missing,
                Some(found) if same_content(text(scene, &loose), text(scene, found)) => Hops::Equal,
                Some(_) => Hops::Changed,
            };
            let received = found.map(|found| found.sighting);
            self.push(
                scene,
                Route::Proxy(instance),
                way,
                loose.message,
                (Some(loose.sighting), received),
                hops,
            );
        }
        let mut rest: Vec<Loose> = waiting.into_values().flatten().collect();
        rest.sort_by_key(|loose| (loose.sighting.placed, loose.sighting.element));
        for loose in rest {
            self.push(
                scene,
                Route::ProxyOwn(instance),
                way,
                loose.message,
                (None, Some(loose.sighting)),
                Hops::Single,
            );
        }
    }

    fn direct(&mut self, scene: Scene<'_>, ix: PlacedIx, on_lines: &OnLines) {
        let placed = &scene.placed[ix.0 as usize];
        let (route, way) = direct_route(scene, placed);
        let denied = placed.delivery.read.is_none() && tail::taken(scene, placed);
        if denied {
            self.oddities.push(Oddity::ReaderDenies(ix));
        }
        let mut messages = self.messages_of_stream(scene, ix);
        if scene.roles.is_log(placed.stream)
            && messages.iter().any(|message| message.form != Form::Line)
        {
            self.oddities.push(Oddity::McpLike(ix));
            messages.retain(|message| message.form == Form::Line);
        }
        let told = on_lines.within(scene, ix);
        for message in messages {
            let text = || bytes(scene, ix).get(message.span.clone());
            if !told.is_empty() && text().is_some_and(|text| told.contains(text)) {
                continue;
            }
            let sighting = Sighting {
                placed: ix,
                element: message.element,
            };
            let received = (denied || placed.delivery.read.is_some()).then_some(sighting);
            self.push(
                scene,
                route,
                way,
                message,
                (Some(sighting), received),
                Hops::Single,
            );
        }
    }

    pub(super) fn push(
        &mut self,
        scene: Scene<'_>,
        route: Route,
        way: Way,
        message: Message,
        (sent, received): (Option<Sighting>, Option<Sighting>),
        hops: Hops,
    ) {
        let legs = || {
            [sent, received]
                .into_iter()
                .flatten()
                .map(|sighting| &scene.placed[sighting.placed.0 as usize])
        };
        let Some(at) = legs().map(|placed| placed.at).min() else {
            return;
        };
        let until = legs().map(|placed| placed.until).max().unwrap_or(at);
        let proved = legs().all(|placed| placed.proved);
        let trouble = trouble::of(scene, sent, received);
        self.passages.push(Arc::new(Passage {
            route,
            way,
            message,
            sent,
            received,
            hops,
            at,
            until,
            proved,
            trouble,
        }));
    }

    /// The JSON-RPC messages of a line; what else it holds becomes an oddity.
    fn messages(&mut self, scene: Scene<'_>, ix: PlacedIx) -> Vec<Message> {
        self.read(scene, ix, message::parse(bytes(scene, ix)))
    }

    /// The JSON-RPC messages that a decoder of streams finds in a delivery, whatever stands beside them.
    fn messages_of_stream(&mut self, scene: Scene<'_>, ix: PlacedIx) -> Vec<Message> {
        let spans = scene.frames[scene.placed[ix.0 as usize].record.0 as usize]
            .flags
            .contains(FrameFlags::SPANS_LINES);
        let parsed = message::parse_stream(bytes(scene, ix));
        if spans && parsed.is_err() {
            // Its lines are told of.
            return Vec::new();
        }
        let mut messages = self.read(scene, ix, parsed);
        if spans {
            for message in &mut messages {
                message.form = Form::Reframed;
            }
        }
        messages
    }

    fn read(
        &mut self,
        scene: Scene<'_>,
        ix: PlacedIx,
        parsed: Result<Messages, json::Error>,
    ) -> Vec<Message> {
        let Ok(Messages { mut messages, .. }) = parsed else {
            let cut = frame(scene, ix).flags.contains(FrameFlags::UNTERMINATED);
            self.oddities.push(if cut {
                Oddity::LineCut(ix)
            } else {
                Oddity::Malformed(ix)
            });
            return Vec::new();
        };
        let all = messages.len();
        messages.retain(|message| message.kind != MessageKind::NotJsonRpc);
        if messages.len() < all {
            let leg = scene.placed[ix.0 as usize].leg;
            if message::wraps_message(bytes(scene, ix)) {
                self.oddities.push(Oddity::Wrapped(ix));
                return messages;
            }
            // In an envelope, a batch of batches: a server can be made to take it out.
            let hidden =
                (leg == Leg::Direct || leg.is_to_server()) && speaks_of_json_rpc(bytes(scene, ix));
            self.oddities.push(if hidden {
                Oddity::McpLike(ix)
            } else {
                Oddity::NotJsonRpc(ix)
            });
        }
        messages
    }

    /// A value that a proxy of lines does not take for a message, and a decoder of streams behind it does.
    fn not_lines(&mut self, scene: Scene<'_>, ix: PlacedIx) {
        let message = |parsed: Messages| {
            parsed
                .messages
                .iter()
                .any(|message| message.kind != MessageKind::NotJsonRpc)
        };
        if message::parse(bytes(scene, ix)).is_ok_and(message) {
            self.oddities.push(Oddity::McpLike(ix));
        }
    }

    fn explode(&mut self, scene: Scene<'_>, ix: PlacedIx, into: &mut Vec<Loose>) {
        for message in self.messages(scene, ix) {
            into.push(Loose {
                sighting: Sighting {
                    placed: ix,
                    element: message.element,
                },
                message,
            });
        }
    }
}

/// Whether two messages of one kind, id and method have the same content, by value.
fn same_content(one: &[u8], other: &[u8]) -> bool {
    let parse = |text| Document::parse(text, Limits::default());
    if one == other {
        return true;
    }
    let (Ok(one), Ok(other)) = (parse(one), parse(other)) else {
        return false;
    };
    ["params", "result", "error"].iter().all(|field| {
        let (one, other) = (one.root().get(field), other.root().get(field));
        compare::optional(one, other, &Redaction::none()) == Comparison::Equal
    })
}

fn text<'a>(scene: Scene<'a>, loose: &Loose) -> &'a [u8] {
    let record = scene.placed[loose.sighting.placed.0 as usize].record;
    let bytes: &'a [u8] = scene.frames[record.0 as usize].bytes.as_slice();
    bytes.get(loose.message.span.clone()).unwrap_or_default()
}
