//! Tests of the line framer.

use super::*;
use crate::channel::ChannelIx;

const STREAM: StreamIx = StreamIx {
    channel: ChannelIx(0),
    from_end: 0,
};

#[test]
fn a_gap_makes_the_line_in_progress_and_the_next_one_suspect() {
    let mut lines = LineFramer::new(STREAM, End::Reader, false);
    let mut frames = Vec::new();
    feed(&mut lines, b"{\"a\":1}\n{\"b\"", 0, &mut frames);
    lines.gap(&mut |frame| frames.push(frame));
    feed(&mut lines, b"{2}\n{\"c\":3}\n", 100, &mut frames);
    let flags: Vec<_> = frames.iter().map(|frame| frame.flags).collect();
    assert_eq!(
        flags,
        [
            FrameFlags::empty(),
            FrameFlags::INCOMPLETE,
            FrameFlags::HEAD_MISSING,
            FrameFlags::empty()
        ]
    );
}

#[test]
fn lines_that_are_not_json_are_counted_not_kept() {
    let mut lines = LineFramer::new(STREAM, End::Reader, false);
    let mut frames = Vec::new();
    feed(&mut lines, b"hello world\n\n  \n{}\r\n", 0, &mut frames);
    assert_eq!(lines.opaque_lines, 1);
    assert!(frames[0].bytes.is_empty());
    assert_eq!(frames[1].bytes.as_slice(), b"{}");
}

#[test]
fn blanks_before_a_message_hide_nothing() {
    let text = [vec![b' '; 10_000], b"{}\n".to_vec()].concat();
    for chunk in [1, 4096, text.len()] {
        let mut lines = LineFramer::new(STREAM, End::Reader, false);
        let mut frames = Vec::new();
        for (piece, at) in text.chunks(chunk).zip((0u64..).step_by(chunk)) {
            feed(&mut lines, piece, at, &mut frames);
        }
        assert_eq!(frames[0].bytes.as_slice(), b"{}");
    }
}

proptest::proptest! {
    #[test]
    fn rechunking_changes_no_frame(
        text in "([ {}\\[\\]:,1a\"\\\\\n\r]{0,40}\n){0,6}",
        cuts in proptest::collection::vec(0usize..300, 0..12),
    ) {
        let whole = frames_of(text.as_bytes(), &[]);
        let cut = frames_of(text.as_bytes(), &cuts);
        proptest::prop_assert_eq!(whole, cut);
    }
}

fn frames_of(text: &[u8], cuts: &[usize]) -> Vec<(u64, Vec<u8>, FrameFlags)> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).collect();
    cuts.extend([0, text.len()]);
    cuts.sort_unstable();
    let mut lines = LineFramer::new(STREAM, End::Reader, false);
    let mut frames = Vec::new();
    for pair in cuts.windows(2) {
        if pair[0] < pair[1] {
            feed(
                &mut lines,
                &text[pair[0]..pair[1]],
                pair[0] as u64,
                &mut frames,
            );
        }
    }
    frames
        .into_iter()
        .map(|frame| (frame.position, frame.bytes.to_vec(), frame.flags))
        .collect()
}

pub(in crate::frame) fn feed(
    lines: &mut LineFramer,
    data: &[u8],
    position: u64,
    frames: &mut Vec<Frame>,
) {
    let op = Op {
        process: ProcessIx(0),
        tid: 1,
        syscall: 0,
        flags: 0,
        enter: BootNs(position),
        exit: BootNs(position + 1),
        returned: data.len() as u64,
        stream_before: position,
    };
    lines.bytes(&op, 0, position, data, &mut |frame| frames.push(frame));
}
