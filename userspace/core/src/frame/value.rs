//! JSON values that begin and end on different lines: pretty-printed ones, and the bodies of a framing that has no line ends.
//!
//! Owns the second look at lines that are no values by themselves. Decoders of streams (Go's is one) execute such values, so a
//! line framer alone can be passed by. What is found is a frame beside its lines, never instead of them; blanks at the
//! beginnings of its lines are not kept. The look costs next to nothing where every line is a value: a line that ends with a closing
//! bracket is held, and read again only if the next one begins with what can follow inside a value.

use std::sync::Arc;

use crate::frame::{CARRIERS_MAX, FRAME_MAX_BYTES, Frame, FrameFlags};

/// Longest line that is held until the next one shows whether it was a whole value, bytes; longer ones are read at once. Stops ten
/// thousand streams from each holding a long one.
const HELD_LINE_MAX_BYTES: usize = 16 * 1024;

/// Values in progress over the lines of one end of a stream.
#[derive(Debug, Default)]
pub(super) struct Values {
    open: Option<Open>,
    /// The last line, if it looked like a whole value.
    last: Option<Frame>,
}

/// A value that has begun and not ended.
#[derive(Debug)]
struct Open {
    text: Vec<u8>,
    scan: Scan,
    /// Where it began, and who carried it so far.
    from: Frame,
}

impl Values {
    /// Bytes held.
    pub(super) fn buffered(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.text.len())
    }

    /// Whether a line that does not begin like a value, but with this byte, can go on with one.
    pub(super) fn goes_on_with(&self, first: u8) -> bool {
        self.open.is_some() || (self.last.is_some() && matches!(first, b',' | b'}' | b']'))
    }

    /// Bytes are missing: no value goes on.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Takes a line with all of its bytes (or none, if it cannot go on with a value).
    pub(super) fn line(&mut self, line: &Frame, out: &mut impl FnMut(Frame)) {
        if !line.is_complete() {
            self.reset();
            return;
        }
        let Some(open) = self.open.take() else {
            self.fresh(line, out);
            return;
        };
        self.go_on(open, line, out);
    }

    fn fresh(&mut self, line: &Frame, out: &mut impl FnMut(Frame)) {
        let last = self.last.take();
        match line.bytes.first() {
            Some(b'{' | b'[')
                if line.bytes.len() <= HELD_LINE_MAX_BYTES && ends_closed(&line.bytes) =>
            {
                self.last = Some(line.clone());
            }
            Some(b',' | b'}' | b']') => {
                if let Some(last) = last {
                    self.seek(&last, 0, false, out);
                    if let Some(open) = self.open.take() {
                        self.go_on(open, line, out);
                    }
                }
            }
            Some(_) => self.seek(line, 0, false, out),
            None => {}
        }
    }

    fn go_on(&mut self, mut open: Open, line: &Frame, out: &mut impl FnMut(Frame)) {
        let text = line.bytes.as_slice();
        let (taken, whole) = match open.scan.feed_line(text) {
            Fed::Broken => {
                self.fresh(line, out);
                return;
            }
            Fed::Open => (text.len(), false),
            Fed::Closed(end) => (end, true),
        };
        if open.text.len() + taken >= FRAME_MAX_BYTES {
            open.from.flags |= FrameFlags::TOO_LONG;
            emit(open.from, open.text, start_of(line), out);
            return;
        }
        open.text.push(b'\n');
        open.text.extend_from_slice(&text[..taken]);
        for process in &line.by {
            if !open.from.by.contains(process) && open.from.by.len() < CARRIERS_MAX {
                open.from.by.push(*process);
            }
        }
        open.from.last_exit = open.from.last_exit.max(line.last_exit);
        open.from.flags = open.from.flags.joined(line.flags - FrameFlags::NOT_JSON);
        if !whole {
            self.open = Some(open);
            return;
        }
        let end = start_of(line).saturating_add(taken as u64);
        emit(open.from, open.text, end, out);
        self.seek(line, taken, true, out);
    }

    /// Looks for values from a place in a line on, with nothing but blanks between them. `tell`: those that end in the line too are
    /// frames; else they are found with the line.
    fn seek(&mut self, line: &Frame, at: usize, tell: bool, out: &mut impl FnMut(Frame)) {
        let mut at = at;
        loop {
            let rest = &line.bytes[at..];
            at += rest
                .iter()
                .take_while(|byte| byte.is_ascii_whitespace())
                .count();
            let rest = &line.bytes[at..];
            if !matches!(rest.first(), Some(b'{' | b'[')) {
                return;
            }
            let mut scan = Scan::default();
            let position = start_of(line).saturating_add(at as u64);
            let from = || Frame {
                position,
                bytes: Arc::default(),
                ..line.clone()
            };
            match scan.feed(rest) {
                Fed::Broken => return,
                Fed::Open => {
                    self.open = Some(Open {
                        text: rest.to_vec(),
                        scan,
                        from: from(),
                    });
                    return;
                }
                Fed::Closed(end) => {
                    if tell {
                        let text = rest[..end].to_vec();
                        emit(from(), text, position.saturating_add(end as u64), out);
                    }
                    at += end;
                }
            }
        }
    }
}

/// Position of a line's first byte that was kept: blanks before it are not.
fn start_of(line: &Frame) -> u64 {
    let blanks = line.len.saturating_sub(line.bytes.len() as u64);
    line.position.saturating_add(blanks)
}

fn emit(from: Frame, text: Vec<u8>, end: u64, out: &mut impl FnMut(Frame)) {
    out(Frame {
        len: end.saturating_sub(from.position),
        bytes: Arc::new(text),
        flags: (from.flags - FrameFlags::NOT_JSON) | FrameFlags::SPANS_LINES,
        ..from
    });
}

fn ends_closed(text: &[u8]) -> bool {
    matches!(text.trim_ascii_end().last(), Some(b'}' | b']'))
}

/// What became of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fed {
    /// It goes on.
    Open,
    /// It ended before this offset.
    Closed(usize),
    /// It is no value.
    Broken,
}

/// Just enough of JSON's grammar to find the end of an object or array, and to give up soon where there is none.
#[derive(Clone, Copy, Debug, Default)]
struct Scan {
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The last byte of consequence outside strings; a string counts as its quote.
    before: u8,
}

impl Scan {
    /// A line end, then a line. No decoder takes a line end inside a string.
    fn feed_line(&mut self, text: &[u8]) -> Fed {
        if self.in_string {
            return Fed::Broken;
        }
        self.feed(text)
    }

    fn feed(&mut self, text: &[u8]) -> Fed {
        let mut at = 0;
        while let Some(byte) = text.get(at) {
            if self.in_string {
                let Some(end) = self.string_end(&text[at..]) else {
                    return Fed::Open;
                };
                at += end;
                continue;
            }
            at += 1;
            match byte {
                b' ' | b'\t' | b'\r' => continue,
                b'{' | b'[' if self.value_may_begin() => self.depth += 1,
                b'"' if self.value_may_begin() || self.before == b'{' => self.in_string = true,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Fed::Closed(at);
                    }
                }
                // Also true, false, null, NaN, Infinity and exponents.
                b','
                | b':'
                | b'0'..=b'9'
                | b'+'
                | b'-'
                | b'.'
                | b'E'
                | b'I'
                | b'N'
                | b'a'
                | b'e'
                | b'f'
                | b'i'
                | b'l'
                | b'n'
                | b'r'
                | b's'
                | b't'
                | b'u'
                | b'y' => {}
                _ => return Fed::Broken,
            }
            self.before = *byte;
        }
        Fed::Open
    }

    fn value_may_begin(self) -> bool {
        matches!(self.before, 0 | b'[' | b',' | b':')
    }

    /// Offset behind the quote that ends a string.
    fn string_end(&mut self, text: &[u8]) -> Option<usize> {
        let mut at = 0;
        if std::mem::take(&mut self.escaped) {
            at = 1;
        }
        loop {
            let rest = text.get(at..)?;
            let found = memchr::memchr2(b'"', b'\\', rest)?;
            at += found;
            if text[at] == b'"' {
                self.in_string = false;
                return Some(at + 1);
            }
            if at + 1 >= text.len() {
                self.escaped = true;
                return None;
            }
            at += 2;
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]
    use proptest::prelude::*;
    use serde_json::Value as Json;

    use super::*;
    use crate::channel::{ChannelIx, End, StreamIx};
    use crate::frame::line::LineFramer;
    use crate::frame::line::tests::feed;

    #[test]
    fn what_is_no_json_ends_the_search_at_once() {
        for text in [
            "{ name: 'x',\n\"a\":1}\n",
            "[info] a\n\"b\"]\n",
            "{\"a\n\":1}\n",
        ] {
            assert_eq!(values(text.as_bytes()), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn a_value_after_garbage_is_found() {
        let text = b"{ name: 'x',\n{\n\"a\":1}\n} [\n]\n";
        assert_eq!(values(text), ["{\n\"a\":1}"]);
    }

    #[test]
    fn a_gap_ends_the_value_in_progress() {
        let mut found = Vec::new();
        let mut lines = framer();
        feed(&mut lines, b"{\n", 0, &mut found);
        lines.gap(&mut |frame| found.push(frame));
        feed(&mut lines, b"\n\"a\":1}\n", 10, &mut found);
        assert!(
            found
                .iter()
                .all(|frame| !frame.flags.contains(FrameFlags::SPANS_LINES))
        );
        assert_eq!(lines.buffered(), 0);
    }

    fn json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i32>().prop_map(Json::from),
            "[a-z{}\\[\\],:\"\\\\]{0,8}".prop_map(Json::from),
        ];
        let inner = leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
                prop::collection::btree_map("[a-z\"{]{0,3}", inner, 0..4)
                    .prop_map(|map| Json::Object(map.into_iter().collect())),
            ]
        });
        prop::collection::vec(inner, 1..3).prop_map(Json::from)
    }

    proptest! {
        #[test]
        fn every_pretty_printed_value_is_found_whole(
            all in prop::collection::vec((json(), any::<bool>()), 1..5),
            noise in "(info: x|[0-9]{2}:[0-9]{2})?",
        ) {
            let mut text = String::new();
            let mut wanted = Vec::new();
            for (value, ended) in &all {
                let pretty = serde_json::to_string_pretty(value).unwrap();
                text.push_str(&pretty);
                if *ended {
                    text.push('\n');
                    text.push_str(&noise);
                    text.push('\n');
                }
                // Blanks before a line's first byte are not kept.
                wanted.push(pretty.lines().map(str::trim_start).collect::<Vec<_>>().join("\n"));
            }
            prop_assert_eq!(values(text.as_bytes()), wanted);
        }
    }

    fn values(text: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        let mut lines = framer();
        feed(&mut lines, text, 0, &mut found);
        lines.finish(&mut |frame| found.push(frame));
        let values = found
            .into_iter()
            .filter(|frame| frame.flags.contains(FrameFlags::SPANS_LINES));
        values
            .map(|frame| {
                let from = usize::try_from(frame.position).unwrap();
                let len = usize::try_from(frame.len).unwrap();
                assert_eq!(text.get(from..from + 1), frame.bytes.get(..1));
                assert!(from + len <= text.len());
                String::from_utf8(frame.bytes.to_vec()).unwrap()
            })
            .collect()
    }

    fn framer() -> LineFramer {
        let stream = StreamIx {
            channel: ChannelIx(0),
            from_end: 0,
        };
        LineFramer::new(stream, End::Reader, false)
    }
}
