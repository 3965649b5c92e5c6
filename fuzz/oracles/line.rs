//! What must hold for any bytes cut into lines.

use countersign_core::channel::{ChannelIx, End, StreamIx};
use countersign_core::frame::line::LineFramer;
use countersign_core::frame::{Frame, FrameFlags};
use countersign_core::process::ProcessIx;
use countersign_core::stream::Op;
use countersign_core::time::BootNs;

/// Panics if a property does not hold.
pub(crate) fn check(bytes: &[u8]) {
    let whole = frames(bytes, bytes.len().max(1));
    assert_eq!(whole, frames(bytes, 1), "chunking changes nothing");
    assert_eq!(whole, frames(bytes, 7), "chunking changes nothing");
    let mut end = 0;
    for (position, len, text, spans) in whole {
        assert!(position + len <= bytes.len() as u64);
        if spans {
            continue;
        }
        assert!(position >= end, "frames do not overlap");
        end = position + len;
        assert!(!text.contains(&b'\n'));
    }
}

fn frames(bytes: &[u8], chunk: usize) -> Vec<(u64, u64, Vec<u8>, bool)> {
    let stream = StreamIx {
        channel: ChannelIx(0),
        from_end: 0,
    };
    let mut lines = LineFramer::new(stream, End::Reader, false);
    let mut frames: Vec<Frame> = Vec::new();
    let mut position = 0;
    for piece in bytes.chunks(chunk) {
        let op = Op {
            process: ProcessIx(0),
            tid: 1,
            syscall: 0,
            flags: 0,
            enter: BootNs(position),
            exit: BootNs(position + 1),
            returned: piece.len() as u64,
            stream_before: position,
        };
        lines.bytes(&op, 0, position, piece, &mut |frame| frames.push(frame));
        position += piece.len() as u64;
    }
    lines.finish(&mut |frame| frames.push(frame));
    frames
        .into_iter()
        .map(|frame| {
            let spans = frame.flags.contains(FrameFlags::SPANS_LINES);
            (frame.position, frame.len, frame.bytes.to_vec(), spans)
        })
        .collect()
}
