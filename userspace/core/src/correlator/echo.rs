//! Echoes: what a terminal gives back to the side that wrote it.

use super::Correlator;
use crate::channel::{ChannelKind, End};
use crate::frame::Frame;

impl Correlator {
    /// Whether a terminal gave back to one side what that side had written to the other.
    pub(super) fn is_echo(&self, frame: &Frame) -> bool {
        let stream = frame.stream;
        frame.end == End::Reader
            && !frame.bytes.is_empty()
            && self.channels.channel(stream.channel).kind == ChannelKind::Terminal
            && self
                .texts
                .get(&frame.hash)
                .and_then(|same| self.frames.get(same.0 as usize))
                .is_some_and(|same| {
                    same.stream.channel == stream.channel
                        && same.stream.from_end != stream.from_end
                        && same.is_same_text(frame)
                })
    }
}
