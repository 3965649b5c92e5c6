//! mcp-audit's JSONL log: bytes in, entries out.
//!
//! Owns: cutting lines, reading fields, naming what is wrong with a line. Reads every spelling that
//! occurs (the program's own, and `client_to_server` with `hmac-sha256:` from its README).
//! Does not own: opening and following files, checking signatures.

use sha2::{Digest, Sha256};

use super::entry::{BadLine, BadReason, Direction, Entry, Line, LogItem};
use super::timestamp;
use crate::json::{Document, Kind, Leniency, Limits, Value};

/// Longest line that is parsed, bytes. Longer ones are hashed and reported: a log on which the agent
/// can grow one line must not grow the reader. Real logs have lines of 17 MB.
pub const LINE_MAX_BYTES: usize = 64 << 20;

/// Buffers above this are given back once their line is read.
const BUFFER_KEEP_BYTES: usize = 1 << 20;

/// Reads one log file from its start, or from any line start.
///
/// Holds at most one line of [`LINE_MAX_BYTES`] plus what was pushed and not yet polled: poll to
/// `None` after each push.
#[derive(Debug, Default)]
pub struct Reader {
    buffer: Vec<u8>,
    /// Start of the first line in `buffer` that was not yielded.
    start: usize,
    /// No line end in `buffer[start..searched]`.
    searched: usize,
    /// File offset of `buffer[start]`, or of the over-long line that is being skipped.
    offset: u64,
    lines: u64,
    skipping: Option<Skipped>,
    finished: bool,
}

#[derive(Debug, Default)]
struct Skipped {
    hash: Sha256,
    len: u64,
}

impl Reader {
    /// A reader at offset 0, line 1.
    pub fn new() -> Self {
        Self::default()
    }

    /// Hands in the next bytes of the file, cut anywhere.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
            if self.buffer.is_empty() && self.buffer.capacity() > BUFFER_KEEP_BYTES {
                self.buffer = Vec::new();
            }
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Says that the file ends here: what is left is a torn line.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// File offset up to which lines have been yielded.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next line, in file order; `None` until more bytes come.
    pub fn poll(&mut self) -> Option<LogItem> {
        if let Some(found) = memchr::memchr(b'\n', &self.buffer[self.searched..]) {
            let end = self.searched + found;
            let item = self.take(end, false);
            self.start = end + 1;
            self.searched = self.start;
            self.offset += 1;
            return Some(item);
        }
        self.searched = self.buffer.len();
        let pending = self.buffer.len() - self.start;
        if self.skipping.is_some() || pending > LINE_MAX_BYTES {
            let skipped = self.skipping.get_or_insert_default();
            skipped.hash.update(&self.buffer[self.start..]);
            skipped.len += pending as u64;
            self.buffer.clear();
            self.buffer.shrink_to(BUFFER_KEEP_BYTES);
            (self.start, self.searched) = (0, 0);
        }
        if self.finished && (self.skipping.is_some() || self.start < self.buffer.len()) {
            let end = self.buffer.len();
            let item = self.take(end, true);
            (self.start, self.searched) = (end, end);
            return Some(item);
        }
        None
    }

    /// The line `buffer[start..end]` as an item, with whatever of it was skipped before.
    fn take(&mut self, end: usize, unterminated: bool) -> LogItem {
        let bytes = &self.buffer[self.start..end];
        self.lines += 1;
        let skipped = self.skipping.take();
        let too_long = skipped.is_some() || bytes.len() > LINE_MAX_BYTES;
        let Skipped { mut hash, len } = skipped.unwrap_or_default();
        hash.update(bytes);
        let line = Line {
            offset: self.offset,
            len: len + bytes.len() as u64,
            number: self.lines,
            sha256: hash.finalize().into(),
        };
        self.offset += line.len;
        let parsed = if too_long {
            Err(BadReason::TooLong)
        } else {
            entry(line, bytes, unterminated)
        };
        match parsed {
            Ok(entry) => LogItem::Entry(Box::new(entry)),
            Err(BadReason::Json(_)) if unterminated => LogItem::Bad(BadLine {
                line,
                reason: BadReason::Torn,
            }),
            Err(reason) => LogItem::Bad(BadLine { line, reason }),
        }
    }
}

/// Reads one line. Repeated keys: the last wins, as in Go and Python.
fn entry(line: Line, bytes: &[u8], unterminated: bool) -> Result<Entry, BadReason> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(BadReason::Blank);
    }
    let limits = Limits {
        max_bytes: LINE_MAX_BYTES,
        ..Limits::default()
    };
    let doc = Document::parse(bytes, limits).map_err(BadReason::Json)?;
    let root = doc.root();
    if root.kind() != Kind::Object {
        return Err(BadReason::NotAnObject);
    }
    let id = text(root, "id")?.ok_or(BadReason::Missing("id"))?;
    let timestamp = text(root, "timestamp")?.ok_or(BadReason::Missing("timestamp"))?;
    let direction = match text(root, "direction")?.as_deref() {
        Some("client→server" | "client_to_server") => Direction::ClientToServer,
        Some("server→client" | "server_to_client") => Direction::ServerToClient,
        Some(_) => return Err(BadReason::Unusable("direction")),
        None => return Err(BadReason::Missing("direction")),
    };
    let duration_ms = match root.get("duration_ms") {
        Some(value) => Some(value.as_i64().ok_or(BadReason::Unusable("duration_ms"))?),
        None => None,
    };
    let repeated = Leniency::DUPLICATE_KEYS | Leniency::CASE_VARIANT_KEYS;
    Ok(Entry {
        line,
        ulid_ms: ulid::Ulid::from_string(&id)
            .ok()
            .map(|ulid| ulid.timestamp_ms()),
        id,
        utc_ns: timestamp::parse(&timestamp),
        timestamp,
        direction,
        transport: text(root, "transport")?.unwrap_or_default(),
        method: text(root, "method")?.ok_or(BadReason::Missing("method"))?,
        request_id: request_id(root)?,
        tool_name: text(root, "tool_name")?,
        params: span(root, "params"),
        result: span(root, "result"),
        error: span(root, "error"),
        duration_ms,
        client_id: text(root, "client_id")?.unwrap_or_default(),
        server_id: text(root, "server_id")?.unwrap_or_default(),
        signature: text(root, "signature")?.unwrap_or_default(),
        duplicate_keys: root.leniency().intersects(repeated),
        unterminated,
        leniency: doc.leniency(),
    })
}

fn text(root: Value<'_>, field: &'static str) -> Result<Option<String>, BadReason> {
    match root.get(field) {
        None => Ok(None),
        Some(value) if value.kind() == Kind::String => Ok(Some(value.as_str_lossy().into_owned())),
        Some(_) => Err(BadReason::Unusable(field)),
    }
}

/// Always a string in the program's own logs; hand-made ones have the bare number.
fn request_id(root: Value<'_>) -> Result<Option<String>, BadReason> {
    match root.get("request_id") {
        Some(value) if value.kind() == Kind::Number => Ok(value.as_number().map(ToOwned::to_owned)),
        Some(value) if value.is_null() => Ok(None),
        Some(_) | None => text(root, "request_id"),
    }
}

fn span(root: Value<'_>, field: &str) -> Option<Box<[u8]>> {
    root.get(field).map(|value| value.raw().into())
}

#[cfg(test)]
#[path = "mcp_audit_tests.rs"]
mod tests;
