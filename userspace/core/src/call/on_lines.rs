//! Messages that are seen twice: on a line, and in a value over several lines that the line is part of.
//!
//! Owns the question which messages of such a value are calls already. It judges nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::PlacedIx;
use super::passage::Scene;
use crate::channel::StreamIx;
use crate::frame::FrameFlags;
use crate::frame::hash;
use crate::message::{self, Message};

/// Messages that stand on lines which a value over several lines also holds: they are calls already.
#[derive(Debug, Default)]
pub(super) struct OnLines {
    /// By stream and position of the line: hashes of its messages.
    lines: BTreeMap<(StreamIx, u64), Vec<u64>>,
}

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
            let texts = parsed.messages.iter().filter_map(|message| {
                let text = frame.bytes.get(message.span.clone())?;
                Some(hash(text))
            });
            lines.insert((frame.stream, frame.position), texts.collect());
        }
        Self { lines }
    }

    /// Whether a message of a value over several lines is one that a line holds.
    pub(super) fn holds(&self, scene: Scene<'_>, ix: PlacedIx, message: &Message) -> bool {
        let frame = &scene.frames[scene.placed[ix.0 as usize].record.0 as usize];
        if !frame.flags.contains(FrameFlags::SPANS_LINES) {
            return false;
        }
        let Some(text) = frame.bytes.get(message.span.clone()) else {
            return false;
        };
        let text = hash(text);
        // A line's position is that of the blanks before it; the last line begins before the value ends.
        let range = (frame.stream, frame.position)
            ..(frame.stream, frame.position.saturating_add(frame.len));
        self.lines
            .range(range)
            .any(|(_, messages)| messages.contains(&text))
    }
}
