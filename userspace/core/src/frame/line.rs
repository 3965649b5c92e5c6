//! Newline framing, as MCP's stdio transport uses it.
//!
//! Owns the cutting of one end's bytes at `\n`. Lines that do not begin like JSON are counted but not kept. A gap ends the
//! line in progress as incomplete; what follows up to the next line end is a tail without its head. Values that lines cut in
//! pieces are put together by [`value`](super::value).

use std::sync::Arc;

use smallvec::SmallVec;

use crate::channel::{End, StreamIx};
use crate::frame::network::Network;
use crate::frame::value::Values;
use crate::frame::{CARRIERS_MAX, FRAME_MAX_BYTES, Frame, FrameFlags};
use crate::json::{Document, Kind as JsonKind, Limits};
use crate::process::ProcessIx;
use crate::stream::Op;
use crate::time::BootNs;

use countersign_common::transfer_flags;

/// What a line that is no message by itself is looked through for: also without its quotes, which can be escaped, or single.
const MCP_HINT: &[u8] = b"jsonrpc";

/// The same in UTF-16, of either byte order.
const MCP_HINT_UTF16: &[u8] = b"j\0s\0o\0n\0r\0p\0c";

/// The same in UTF-32, of either byte order.
const MCP_HINT_UTF32: &[u8] = b"j\0\0\0s\0\0\0o\0\0\0n\0\0\0r\0\0\0p\0\0\0c";

/// How far into a line numbers and other scalars before an object or array are looked at.
const SCALARS_MAX_BYTES: usize = 256;

/// Bytes at the beginning of a line in which a binary length is looked for: of eight bytes, with a tag and flags before it.
const HEAD_BYTES: usize = 16;

/// Messages that one value may go over. Stops very many short ones from having the value read again with each.
const MESSAGES_OF_A_VALUE_MAX: u32 = 16;

/// Cuts one end of one stream into lines.
#[derive(Debug)]
pub struct LineFramer {
    stream: StreamIx,
    end: End,
    line: Option<Line>,
    /// Flags for the next line to begin.
    next_flags: FrameFlags,
    last_exit: BootNs,
    last_by: Option<(ProcessIx, u32)>,
    current_op_overlaps: bool,
    values: Option<Values>,
    /// Each operation moved a message, whole.
    messages: bool,
    /// Of a network: what its first bytes say it carries.
    network: Option<Network>,
    /// Lines that did not begin like JSON.
    pub opaque_lines: u64,
    /// Their bytes.
    pub opaque_bytes: u64,
}

#[derive(Debug)]
struct Line {
    position: u64,
    len: u64,
    first_enter: BootNs,
    first_exit: BootNs,
    last_exit: BootNs,
    by: SmallVec<[ProcessIx; 4]>,
    bytes: Vec<u8>,
    flags: FrameFlags,
    kind: Kind,
    /// Messages that ended within it.
    messages: u32,
    /// The last bytes of a line that is not kept, so that a hint cut in two is found.
    tail: Vec<u8>,
    /// The first bytes of the line, blanks and all.
    head: SmallVec<[u8; HEAD_BYTES]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Blank,
    Json,
    /// Begins like a number or another scalar, which an object may follow.
    Scalar,
    /// Kept because it can go on with a value that an earlier line began.
    Rest,
    Opaque,
}

impl LineFramer {
    /// A framer at the beginning of a stream, or in the middle of one (`attached`).
    pub fn new(stream: StreamIx, end: End, attached: bool) -> Self {
        Self {
            stream,
            end,
            line: None,
            next_flags: if attached {
                FrameFlags::FIRST_OF_ATTACHED
            } else {
                FrameFlags::empty()
            },
            last_exit: BootNs(0),
            last_by: None,
            current_op_overlaps: false,
            values: Some(Values::default()),
            messages: false,
            network: None,
            opaque_lines: 0,
            opaque_bytes: 0,
        }
    }

    /// Lines only: of a file, where a line is a record and nobody decodes a stream.
    #[must_use]
    pub fn of_records(mut self) -> Self {
        self.values = None;
        self
    }

    /// Of messages: a value that ends with its message needs no line end.
    #[must_use]
    pub fn of_messages(mut self) -> Self {
        self.messages = true;
        self
    }

    /// Of a network connection, which can carry framings that are not read.
    #[must_use]
    pub fn of_a_network(mut self) -> Self {
        self.network = Some(Network::default());
        self
    }

    /// The framing that is not read here, if it is one of those.
    pub fn undecoded(&self) -> Option<&'static str> {
        self.network.as_ref().and_then(Network::undecoded)
    }

    /// Bytes held for the line and the value in progress.
    pub fn buffered(&self) -> usize {
        let line = self.line.as_ref().map_or(0, |line| line.bytes.len());
        line + self.values.as_ref().map_or(0, Values::buffered)
    }

    /// Takes bytes of an operation.
    pub fn bytes(
        &mut self,
        op: &Op,
        offset: u64,
        position: u64,
        data: &[u8],
        out: &mut impl FnMut(Frame),
    ) {
        if offset == 0 {
            self.begin_op(op);
            if self.messages {
                self.begin_message(op, data, out);
            }
        }
        if let Some(network) = &mut self.network
            && network.takes(data)
        {
            self.opaque_bytes += data.len() as u64;
            if network.begins_to_speak(data) {
                out(self.hint(op, position, data.len() as u64));
            }
            return;
        }
        let mut rest = data;
        let mut at = position;
        while let Some(newline) = memchr::memchr(b'\n', rest) {
            self.append(op, at, &rest[..newline]);
            self.end_line(op, out);
            at = at.saturating_add(newline as u64 + 1);
            rest = &rest[newline + 1..];
        }
        if !rest.is_empty() {
            self.append(op, at, rest);
        }
        let op_is_over = offset.saturating_add(data.len() as u64) >= op.returned;
        if op_is_over {
            if self.current_op_overlaps
                && let Some(line) = &mut self.line
            {
                line.flags |= FrameFlags::ORDER_AMBIGUOUS;
            }
            if self.messages {
                self.end_message(op, out);
            }
            self.current_op_overlaps = false;
            self.last_exit = self.last_exit.max(op.exit);
            self.last_by = Some((op.process, op.tid));
        }
    }

    /// Notes that bytes are missing here.
    pub fn gap(&mut self, out: &mut impl FnMut(Frame)) {
        if let Some(mut line) = self.line.take() {
            line.flags |= FrameFlags::INCOMPLETE;
            self.emit(line, out);
        }
        self.next_flags = FrameFlags::HEAD_MISSING;
        if let Some(values) = &mut self.values {
            values.reset();
        }
    }

    /// The stream is over.
    pub fn finish(&mut self, out: &mut impl FnMut(Frame)) {
        if let Some(mut line) = self.line.take() {
            line.flags |= FrameFlags::UNTERMINATED;
            self.emit(line, out);
        }
    }

    fn begin_op(&mut self, op: &Op) {
        let same_thread = self.last_by == Some((op.process, op.tid));
        self.current_op_overlaps =
            !same_thread && self.last_by.is_some() && op.enter < self.last_exit;
        // Whole lines can be swapped without changing any of them; only a line in progress is in doubt.
        if self.current_op_overlaps
            && let Some(line) = &mut self.line
        {
            line.flags |= FrameFlags::ORDER_AMBIGUOUS;
        }
    }

    /// A message that is a value by itself is one, whatever an earlier message began.
    fn begin_message(&mut self, op: &Op, data: &[u8], out: &mut impl FnMut(Frame)) {
        if self.line.is_some() && data.len() as u64 == op.returned && is_value(data) {
            self.end_line(op, out);
        }
    }

    /// What a message ends with ends there, unless it is a value that later messages can go on with.
    fn end_message(&mut self, op: &Op, out: &mut impl FnMut(Frame)) {
        let Some(line) = &mut self.line else { return };
        line.messages += 1;
        let goes_on = line.kind == Kind::Json
            && (line.messages > MESSAGES_OF_A_VALUE_MAX || !is_value(&line.bytes));
        if !goes_on {
            self.end_line(op, out);
        }
    }

    /// Stands for bytes of a framing that is not read and speaks of JSON-RPC.
    fn hint(&self, op: &Op, position: u64, len: u64) -> Frame {
        Frame {
            stream: self.stream,
            end: self.end,
            position,
            len,
            first_enter: op.enter,
            first_exit: op.exit,
            last_exit: op.exit,
            by: SmallVec::from_slice(&[op.process]),
            bytes: Arc::default(),
            hash: 0,
            flags: FrameFlags::NOT_JSON | FrameFlags::MCP_LIKE,
            partner: None,
        }
    }

    fn append(&mut self, op: &Op, position: u64, data: &[u8]) {
        let line = self.line.get_or_insert_with(|| Line {
            position,
            len: 0,
            first_enter: op.enter,
            first_exit: op.exit,
            last_exit: op.exit,
            by: SmallVec::new(),
            bytes: Vec::new(),
            flags: std::mem::take(&mut self.next_flags) | FrameFlags::KERNEL_COPY,
            kind: Kind::Blank,
            messages: 0,
            tail: Vec::new(),
            head: SmallVec::new(),
        });
        line.last_exit = line.last_exit.max(op.exit);
        line.len += data.len() as u64;
        if !line.by.contains(&op.process) && line.by.len() < CARRIERS_MAX {
            line.by.push(op.process);
        }
        if op.flags & transfer_flags::KERNEL_COPY == 0 {
            line.flags -= FrameFlags::KERNEL_COPY;
        }
        if op.flags & transfer_flags::FD_SWAPPED != 0 {
            line.flags |= FrameFlags::FD_SWAPPED;
        }
        let room = HEAD_BYTES.saturating_sub(line.head.len());
        line.head.extend_from_slice(&data[..data.len().min(room)]);
        let mut data = data;
        if line.kind == Kind::Blank {
            // Servers skip blanks before a message, however many: so they are not kept, and hide nothing.
            let Some(first) = data.iter().position(|byte| !is_blank(*byte)) else {
                return;
            };
            data = &data[first..];
            let goes_on = |values: &Values| values.goes_on_with(data[0]);
            line.kind = match data[0] {
                b'{' | b'[' => Kind::Json,
                _ if self.values.as_ref().is_some_and(goes_on) => Kind::Rest,
                b'0'..=b'9' | b'-' | b'"' | b't' | b'f' | b'n' | b'N' | b'I' => Kind::Scalar,
                _ => Kind::Opaque,
            };
        }
        if matches!(line.kind, Kind::Opaque | Kind::Rest | Kind::Scalar) {
            line.look_for_hint(data);
        }
        match line.kind {
            Kind::Opaque => {}
            Kind::Blank | Kind::Json | Kind::Rest => line.keep(data),
            Kind::Scalar => {
                line.keep(data);
                line.settle_scalar();
            }
        }
    }

    fn end_line(&mut self, op: &Op, out: &mut impl FnMut(Frame)) {
        let Some(mut line) = self.line.take() else {
            // An empty line. If a gap came right before, it is the end of a line whose head is missing: now in step again.
            self.next_flags = FrameFlags::empty();
            return;
        };
        line.last_exit = line.last_exit.max(op.exit);
        self.emit(line, out);
    }

    fn emit(&mut self, mut line: Line, out: &mut impl FnMut(Frame)) {
        // Not of a cut line: where it is cut says by what.
        let cut = FrameFlags::INCOMPLETE | FrameFlags::TOO_LONG;
        if line.bytes.last() == Some(&b'\r') && !line.flags.intersects(cut) {
            line.bytes.pop();
            line.len -= 1;
        }
        match line.kind {
            Kind::Blank => return,
            Kind::Opaque | Kind::Rest | Kind::Scalar => {
                self.opaque_lines += 1;
                self.opaque_bytes += line.len;
                line.flags |= FrameFlags::NOT_JSON;
            }
            Kind::Json => {
                // What is left of an object whose head is missing has a closing brace too many: a tail that is a whole object is
                // a line of its own.
                let tail = FrameFlags::HEAD_MISSING;
                if line.flags.contains(tail)
                    && !line.flags.intersects(cut)
                    && is_object(&line.bytes)
                {
                    line.flags.remove(tail);
                }
            }
        }
        if line.flags.contains(FrameFlags::MCP_LIKE) && has_binary_length(&line.head) {
            line.flags |= FrameFlags::DISGUISED;
        }
        let mut frame = Frame {
            stream: self.stream,
            end: self.end,
            position: line.position,
            len: line.len,
            first_enter: line.first_enter,
            first_exit: line.first_exit,
            last_exit: line.last_exit,
            by: line.by,
            hash: 0,
            bytes: Arc::new(line.bytes),
            flags: line.flags,
            partner: None,
        };
        let mut found = Vec::new();
        if let Some(values) = &mut self.values {
            if line.kind == Kind::Scalar {
                frame.bytes = Arc::default();
            }
            values.line(&frame, &mut |value| found.push(value));
        }
        if line.kind != Kind::Json {
            frame.bytes = Arc::default();
        }
        out(frame);
        for value in found {
            out(value);
        }
    }
}

impl Line {
    fn keep(&mut self, data: &[u8]) {
        let room = FRAME_MAX_BYTES.saturating_sub(self.bytes.len());
        if data.len() > room {
            self.flags |= FrameFlags::TOO_LONG;
        }
        self.bytes.extend_from_slice(&data[..data.len().min(room)]);
    }

    /// A hint for people, not evidence.
    fn look_for_hint(&mut self, data: &[u8]) {
        if self.flags.contains(FrameFlags::MCP_LIKE) {
            return;
        }
        let reach = MCP_HINT_UTF32.len() - 1;
        let mut window = std::mem::take(&mut self.tail);
        window.extend_from_slice(&data[..data.len().min(reach)]);
        if speaks_of_json_rpc(&window) || speaks_of_json_rpc(data) {
            self.flags |= FrameFlags::MCP_LIKE;
            if speaks_wide(&window) || speaks_wide(data) {
                self.flags |= FrameFlags::DISGUISED;
            }
            return;
        }
        if data.len() >= reach {
            window.clear();
            window.extend_from_slice(&data[data.len() - reach..]);
        } else {
            window.drain(..window.len().saturating_sub(reach));
        }
        self.tail = window;
    }

    /// Some decoders read a number and go on with the object behind it.
    fn settle_scalar(&mut self) {
        let head = &self.bytes[..self.bytes.len().min(SCALARS_MAX_BYTES)];
        self.kind = match memchr::memchr2(b'{', b'[', head) {
            Some(at) if are_scalars(&head[..at]) => Kind::Json,
            None if self.bytes.len() < SCALARS_MAX_BYTES => return,
            Some(_) | None => Kind::Opaque,
        };
        if self.kind == Kind::Opaque {
            self.bytes = Vec::new();
        }
    }
}

/// Whether a text that is no message names JSON-RPC, in UTF-8, UTF-16 or UTF-32.
pub fn speaks_of_json_rpc(text: &[u8]) -> bool {
    [MCP_HINT, MCP_HINT_UTF16, MCP_HINT_UTF32]
        .iter()
        .any(|hint| memchr::memmem::find(text, hint).is_some())
}

/// Whether a text names JSON-RPC in UTF-16 or UTF-32.
fn speaks_wide(text: &[u8]) -> bool {
    [MCP_HINT_UTF16, MCP_HINT_UTF32]
        .iter()
        .any(|hint| memchr::memmem::find(text, hint).is_some())
}

/// Whether a line begins with a few bytes that are no text and an object behind them: a length, as binary framings have it.
fn has_binary_length(head: &[u8]) -> bool {
    let Some(at) = memchr::memchr2(b'{', b'[', head) else {
        return false;
    };
    head[..at]
        .iter()
        .any(|byte| (byte.is_ascii_control() && !byte.is_ascii_whitespace()) || *byte >= 0xf8)
}

fn are_scalars(text: &[u8]) -> bool {
    let mut rest = text.trim_ascii();
    while !rest.is_empty() {
        let Ok((_, end)) = Document::parse_first(rest, Limits::default()) else {
            return false;
        };
        rest = rest[end..].trim_ascii_start();
    }
    true
}

fn is_value(text: &[u8]) -> bool {
    matches!(text.trim_ascii().last(), Some(b'}' | b']'))
        && Document::parse(text.trim_ascii(), Limits::default()).is_ok()
}

fn is_object(text: &[u8]) -> bool {
    Document::parse(text, Limits::default())
        .is_ok_and(|document| document.root().kind() == JsonKind::Object)
}

/// White space, also as Python strips it, or a byte of the mark that some writers put before UTF-8.
fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, 0x0b | 0x1c..=0x1f | 0xef | 0xbb | 0xbf)
}

#[cfg(test)]
#[path = "line_tests.rs"]
pub(super) mod tests;
