//! The scene: what was seen, placed, as the stages after it look at it.
//!
//! Owns the questions that all of them ask: whose ends a delivery has, and what its bytes are.

use std::collections::BTreeMap;

use crate::call::{PlacedIx, Route, Way};
use crate::channel::{ChannelTable, StreamIx};
use crate::delivery::StreamFrames;
use crate::evidence::Placed;
use crate::frame::Frame;
use crate::process::ProcessIx;
use crate::role::Roles;

/// What passages are made from.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// All frames.
    pub frames: &'a [Frame],
    /// All placed deliveries, in order of time.
    pub placed: &'a [Placed],
    /// All streams.
    pub streams: &'a BTreeMap<StreamIx, StreamFrames>,
    /// All channels.
    pub channels: &'a ChannelTable,
    /// Who is who.
    pub roles: &'a Roles,
}

/// Who wrote and who read a delivery: as seen, else the stream's first.
pub(crate) fn ends(scene: Scene<'_>, placed: &Placed) -> (Option<ProcessIx>, Option<ProcessIx>) {
    let by = |frame: Option<crate::frame::FrameIx>| {
        frame
            .and_then(|ix| scene.frames.get(ix.0 as usize))
            .and_then(|frame| frame.by.first().copied())
    };
    let stream = scene.streams.get(&placed.stream);
    let writer = by(placed.delivery.written)
        .or_else(|| stream.and_then(|stream| stream.writers.first().map(|(process, _)| *process)));
    let reader = by(placed.delivery.read)
        .or_else(|| stream.and_then(|stream| stream.readers.first().map(|(process, _)| *process)));
    (writer, reader)
}

/// Both ways of a session have one route; the process with the lower index counts as the client's side.
pub(super) fn direct_route(scene: Scene<'_>, placed: &Placed) -> (Route, Way) {
    let (writer, reader) = ends(scene, placed);
    if writer <= reader {
        (Route::Direct(writer, reader), Way::ToServer)
    } else {
        (Route::Direct(reader, writer), Way::ToClient)
    }
}

pub(super) fn bytes(scene: Scene<'_>, ix: PlacedIx) -> &[u8] {
    frame(scene, ix).bytes.as_slice()
}

pub(super) fn frame(scene: Scene<'_>, ix: PlacedIx) -> &Frame {
    let record = scene.placed[ix.0 as usize].record;
    &scene.frames[record.0 as usize]
}
