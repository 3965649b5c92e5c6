//! Messages whose end is missing from the evidence, past any proxy.
//!
//! Owns what their beginning tells. Only so much of an operation is taken from an untrusted process, so a message can be sent in
//! one that is larger, with its method at the end: it is a call all the same, of which less is known. It judges nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::passage::Passages;
use super::scene::{Scene, direct_route};
use super::tail::taken;
use super::{Hops, PlacedIx, Route, Sighting, Way};
use crate::channel::{End, StreamIx};
use crate::evidence::{self, Author, Placed};
use crate::frame::{Frame, FrameFlags};
use crate::message::{self, Form, Message, MessageKind};
use crate::role::Leg;

/// Whether the beginning of an incomplete frame is there, and nobody else tells of it: no proxy sent or received it.
pub(super) fn is_readable(placed: &Placed, frame: &Frame) -> bool {
    let past_the_proxy = match placed.leg {
        Leg::Direct => true,
        // What the server's end lacks of the proxy's own writing the proxy's end has.
        Leg::ProxyToServer(_) | Leg::ProxyToClient(_) => {
            placed.author == Author::Other && frame.end == End::Writer
        }
        Leg::ClientToProxy(_) | Leg::ServerToProxy(_) | Leg::ProxyFile(_) => false,
    };
    past_the_proxy
        && !frame.flags.contains(FrameFlags::HEAD_MISSING)
        && frame.bytes.first() == Some(&b'{')
}

/// Makes calls of the beginnings of messages.
pub(super) fn take(
    scene: Scene<'_>,
    cut: &[PlacedIx],
    relayed: &BTreeSet<PlacedIx>,
    out: &mut Passages,
) {
    if cut.is_empty() {
        return;
    }
    let placed = |ix: &PlacedIx| &scene.placed[ix.0 as usize];
    // Where lines are passed on to a proxy, this may be one of them: its gap is told of.
    let relays: BTreeSet<StreamIx> = relayed.iter().map(|ix| placed(ix).stream).collect();
    let streams: BTreeSet<StreamIx> = cut.iter().map(|ix| placed(ix).stream).collect();
    let read = frames_read(scene, &streams);
    let own_doing = gaps(scene, &streams);
    let mut unknown = Vec::new();
    for ix in cut {
        let placed = placed(ix);
        let frame = &scene.frames[placed.record.0 as usize];
        if relays.contains(&placed.stream)
            || scene.roles.is_log(placed.stream)
            || (frame.end == End::Writer && covered(&read, frame))
        {
            continue;
        }
        let Some(mut message) = message::head(&frame.bytes) else {
            continue;
        };
        let end = frame.position.saturating_add(frame.len);
        let own = frame.flags.contains(FrameFlags::TOO_LONG)
            || own_doing.get(&(frame.stream, frame.end == End::Writer, end)) == Some(&true);
        message.form = if own { Form::Cut } else { Form::Lost };
        if message.kind == MessageKind::NotJsonRpc {
            unknown.push((*ix, message));
        } else {
            push(scene, *ix, message, out);
        }
    }
    // Of an object that shows nothing of JSON-RPC the company tells.
    let sessions: BTreeSet<Route> = out.passages.iter().map(|passage| passage.route).collect();
    for (ix, mut message) in unknown {
        if sessions.contains(&route(scene, ix).0) {
            message.kind = MessageKind::Request;
            message.is_mcp = true;
            push(scene, ix, message, out);
        }
    }
}

fn push(scene: Scene<'_>, ix: PlacedIx, message: Message, out: &mut Passages) {
    let placed = &scene.placed[ix.0 as usize];
    let (route, way) = route(scene, ix);
    let sighting = Sighting {
        placed: ix,
        element: message.element,
    };
    let received = placed.delivery.read.is_some() || taken(scene, placed);
    let ends = (Some(sighting), received.then_some(sighting));
    out.push(scene, route, way, message, ends, Hops::Single);
}

fn route(scene: Scene<'_>, ix: PlacedIx) -> (Route, Way) {
    let placed = &scene.placed[ix.0 as usize];
    match placed.leg {
        Leg::ProxyToServer(instance) => (Route::Foreign(instance), Way::ToServer),
        Leg::ProxyToClient(instance) => (Route::Foreign(instance), Way::ToClient),
        Leg::Direct | Leg::ClientToProxy(_) | Leg::ServerToProxy(_) | Leg::ProxyFile(_) => {
            direct_route(scene, placed)
        }
    }
}

/// Where the frames of the readers' ends lie that begin with their first byte: position and end.
fn frames_read(scene: Scene<'_>, streams: &BTreeSet<StreamIx>) -> BTreeMap<(StreamIx, u64), u64> {
    let read = scene.placed.iter().filter_map(|placed| {
        let frame = scene.frames.get(placed.delivery.read?.0 as usize)?;
        let counts = streams.contains(&frame.stream)
            && !frame
                .flags
                .intersects(FrameFlags::HEAD_MISSING | FrameFlags::NOT_JSON);
        let end = frame.position.saturating_add(frame.len);
        counts.then_some(((frame.stream, frame.position), end))
    });
    read.collect()
}

/// Whether the readers' end shows the frame that begins where this one does.
fn covered(read: &BTreeMap<(StreamIx, u64), u64>, frame: &Frame) -> bool {
    read.range(..=(frame.stream, frame.position))
        .next_back()
        .is_some_and(|((stream, _), end)| *stream == frame.stream && *end > frame.position)
}

/// Gaps by stream, end (true: the writers') and position, with whether they are an untrusted process's own doing.
fn gaps(scene: Scene<'_>, streams: &BTreeSet<StreamIx>) -> BTreeMap<(StreamIx, bool, u64), bool> {
    let mut found = BTreeMap::new();
    for stream in streams {
        for (end, gap) in scene
            .streams
            .get(stream)
            .into_iter()
            .flat_map(|of| &of.gaps)
        {
            let own = evidence::self_inflicted(gap, scene.roles);
            let known = found
                .entry((*stream, *end == End::Writer, gap.position))
                .or_insert(own);
            *known &= own;
        }
    }
    found
}
