//! One record of a proxy's log, as the log has it.
//!
//! Nothing here is believed: the fields are what stands on disk, with where it stands.

use crate::json::{self, Leniency};

/// Where a line lies in its log file, and its fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// Byte offset of the line's start, from where the reader started.
    pub offset: u64,
    /// Length in bytes without the line end.
    pub len: u64,
    /// Line number, from 1.
    pub number: u64,
    /// SHA-256 of the line without its line end.
    pub sha256: [u8; 32],
}

/// Which way the message travelled that completed an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client: its notifications, its answers to the server, and what the proxy refused.
    ClientToServer,
    /// From the server: its answers and notifications.
    ServerToClient,
}

/// One entry of a proxy's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub line: Line,
    /// The entry's id as written; a ULID in honest logs.
    pub id: String,
    /// UTC milliseconds from the ULID; `None` if the id is no ULID.
    pub ulid_ms: Option<u64>,
    /// The timestamp as written; this spelling is signed.
    pub timestamp: String,
    /// The timestamp as UTC nanoseconds since 1970; `None` if it is no RFC 3339 time or out of range.
    pub utc_ns: Option<i64>,
    /// Which way the completing message went.
    pub direction: Direction,
    /// `stdio` or `http` in honest logs; empty if absent.
    pub transport: String,
    /// The JSON-RPC method.
    pub method: String,
    /// The JSON-RPC id: a string's text or a number's text. The log does not tell these apart.
    pub request_id: Option<String>,
    /// The tool, for `tools/call`.
    pub tool_name: Option<String>,
    /// The exact bytes of `params` on disk.
    pub params: Option<Box<[u8]>>,
    /// The exact bytes of `result` on disk.
    pub result: Option<Box<[u8]>>,
    /// The exact bytes of `error` on disk.
    pub error: Option<Box<[u8]>>,
    /// Time between request and answer, milliseconds.
    pub duration_ms: Option<i64>,
    /// The client's name in the proxy's configuration.
    pub client_id: String,
    /// The server's name in the proxy's configuration.
    pub server_id: String,
    /// The signature as written; empty if there is none.
    pub signature: String,
    /// The line itself repeats keys: readers disagree on what it says.
    pub duplicate_keys: bool,
    /// The line did not end in `\n`: the last one of a log that was cut or is being written.
    pub unterminated: bool,
    /// Departures from strict JSON anywhere in the line.
    pub leniency: Leniency,
}

impl Entry {
    /// When the request was seen, UTC nanoseconds: the proxy stamps an entry after the answer. Exact to
    /// the millisecond of `duration_ms`.
    pub fn request_utc_ns(&self) -> Option<i64> {
        let duration_ns = self.duration_ms.unwrap_or(0).checked_mul(1_000_000)?;
        self.utc_ns?.checked_sub(duration_ns)
    }
}

/// A line that is no entry. Its bytes are not kept: an agent may have written them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadLine {
    /// Where it stands, with its hash.
    pub line: Line,
    /// Why it is no entry.
    pub reason: BadReason,
}

/// Why a line is no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadReason {
    /// Nothing but white space.
    #[error("blank line")]
    Blank,
    /// No JSON, or over a limit of the parser.
    #[error("no json: {0}")]
    Json(json::Error),
    /// JSON, but not an object.
    #[error("not an object")]
    NotAnObject,
    /// A field that every entry has is not there.
    #[error("field `{0}` is missing")]
    Missing(&'static str),
    /// A field is not of its type, or says what no proxy writes.
    #[error("field `{0}` has a value that no proxy writes")]
    Unusable(&'static str),
    /// Over the line limit; skipped unparsed.
    #[error("line is over the limit")]
    TooLong,
    /// The log ends inside this line.
    #[error("the log ends inside this line")]
    Torn,
}

/// What a log reader yields, in file order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogItem {
    /// An entry, true or not.
    Entry(Box<Entry>),
    /// A line that is none.
    Bad(BadLine),
}
