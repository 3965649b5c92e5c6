//! Messages that are seen twice: on a line, and in a value over several lines that the line is part of.
//!
//! Owns the question which messages of such a value are calls already. It judges nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

use super::PlacedIx;
use super::scene::{Scene, bytes};
use crate::channel::StreamIx;
use crate::frame::FrameFlags;
use crate::message;

/// Messages that stand on lines which a value over several lines also holds: they are calls already.
#[derive(Debug, Default)]
pub(super) struct OnLines {
    /// By stream and position of the line: its messages.
    lines: BTreeMap<(StreamIx, u64), Line>,
}

/// A line's delivery, and where its messages lie in it.
type Line = (PlacedIx, Vec<Range<usize>>);

impl OnLines {
    pub(super) fn of(scene: Scene<'_>, direct: &[PlacedIx]) -> Self {
        let frame = |ix: &PlacedIx| &scene.frames[scene.placed[ix.0 as usize].record.0 as usize];
        let spans = |ix: &&PlacedIx| frame(ix).flags.contains(FrameFlags::SPANS_LINES);
        let streams: BTreeSet<StreamIx> = direct
            .iter()
            .filter(spans)
            .map(|ix| frame(ix).stream)
            .collect();
        let mut lines = BTreeMap::new();
        for ix in direct.iter().filter(|ix| !spans(ix)) {
            let frame = frame(ix);
            if !streams.contains(&frame.stream) {
                continue;
            }
            let Ok(parsed) = message::parse_stream(&frame.bytes) else {
                continue;
            };
            let spans = parsed.messages.into_iter().map(|message| message.span);
            lines.insert((frame.stream, frame.position), (*ix, spans.collect()));
        }
        Self { lines }
    }

    /// The messages on the lines of a value over several lines; none for anything else.
    pub(super) fn within<'a>(&self, scene: Scene<'a>, ix: PlacedIx) -> HashSet<&'a [u8]> {
        let frame = &scene.frames[scene.placed[ix.0 as usize].record.0 as usize];
        if !frame.flags.contains(FrameFlags::SPANS_LINES) {
            return HashSet::new();
        }
        // A line's position is that of the blanks before it; the last line begins before the value ends.
        let range = (frame.stream, frame.position)
            ..(frame.stream, frame.position.saturating_add(frame.len));
        let lines = self.lines.range(range).map(|(_, line)| line);
        lines
            .flat_map(|(line, spans)| {
                spans
                    .iter()
                    .filter_map(|span| bytes(scene, *line).get(span.clone()))
            })
            .collect()
    }
}
