//! Which request each answer answers, and what the log says about both.
//!
//! Owns: the requests in flight in either direction. Does not own: bytes, ids of entries, clocks.
//!
//! Reads messages as servers do, not as a strict decoder would: exact keys, the last of repeated ones,
//! and `method` makes a request whatever else stands beside it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

use countersign_core::hex::hex;
use countersign_core::json::{Document, Kind, Limits, Value};
use countersign_core::proxylog::canonical::{canonicalise_any, exact, string};
use countersign_core::proxylog::{Direction, Redaction, own};
use sha2::{Digest, Sha256};

use super::lines::Line;

/// Most requests in flight per direction. A client that never gets answers must not grow the proxy: the
/// oldest is then logged as unanswered.
const PENDING_MAX: usize = 65_536;

/// Most bytes of requests in flight per direction; see [`PENDING_MAX`].
const PENDING_MAX_BYTES: usize = 256 << 20;

/// How far into requests of one id the exact spelling of an answer's id is looked for.
const SAME_ID_SEARCH_MAX: usize = 64;

/// One entry, but for its id, time and signature.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) direction: Direction,
    pub(super) method: String,
    pub(super) request_id: String,
    pub(super) tool_name: String,
    pub(super) params: Option<Vec<u8>>,
    pub(super) result: Option<Vec<u8>>,
    pub(super) error: Option<Vec<u8>>,
    pub(super) duration_ms: i64,
}

#[derive(Debug)]
pub(super) struct Ledger {
    redaction: Redaction,
    from_client: Pending,
    from_server: Pending,
}

impl Ledger {
    pub(super) fn new(redaction: Redaction) -> Self {
        Self {
            redaction,
            from_client: Pending::default(),
            from_server: Pending::default(),
        }
    }

    /// Takes one line that travels in `direction` and gives every entry that it completes.
    pub(super) fn line(
        &mut self,
        direction: Direction,
        line: &Line<'_>,
        now: Instant,
        emit: &mut dyn FnMut(Record),
    ) {
        let bytes = match line {
            Line::Whole(bytes) => *bytes,
            Line::Oversized { len, sha256 } => {
                emit(fact(
                    direction,
                    own::OVERSIZED,
                    *len,
                    "over the line limit",
                    sha256,
                ));
                return;
            }
        };
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let doc = match Document::parse(bytes, Limits::default()) {
            Ok(doc) => doc,
            Err(error) => {
                let hash = Sha256::digest(bytes).into();
                let len = bytes.len() as u64;
                emit(fact(
                    direction,
                    own::UNPARSEABLE,
                    len,
                    &error.to_string(),
                    &hash,
                ));
                return;
            }
        };
        let root = doc.root();
        let mut strange = 0usize;
        if root.kind() == Kind::Array && !root.is_empty() {
            for element in root.elements() {
                strange += usize::from(!self.message(direction, element, now, emit));
            }
        } else {
            strange += usize::from(!self.message(direction, root, now, emit));
        }
        if strange > 0 {
            // One entry for the line: `[7,7,7,…` must not become a log of hundreds of times its size.
            let reason = format!("{strange} of its values are neither request nor answer");
            let hash = Sha256::digest(bytes).into();
            let len = bytes.len() as u64;
            emit(fact(direction, own::NOT_A_MESSAGE, len, &reason, &hash));
        }
    }

    /// Nothing more will come: every request in flight stays unanswered.
    pub(super) fn close(&mut self, reason: &str, now: Instant, emit: &mut dyn FnMut(Record)) {
        for direction in [Direction::ClientToServer, Direction::ServerToClient] {
            while let Some(request) = self.pending(direction).take_oldest() {
                emit(request.unanswered(direction, reason, now));
            }
        }
    }

    /// False if this is neither request nor answer.
    fn message(
        &mut self,
        direction: Direction,
        message: Value<'_>,
        now: Instant,
        emit: &mut dyn FnMut(Record),
    ) -> bool {
        let id = message.get("id");
        let method = message
            .get("method")
            .filter(|method| method.kind() == Kind::String);
        if let Some(method) = method {
            let request = self.request(message, method, id, now);
            match id {
                Some(id) => {
                    for evicted in self.pending(direction).insert(id, request) {
                        emit(evicted.unanswered(direction, "too many requests in flight", now));
                    }
                }
                None => emit(request.notification(direction)),
            }
            return true;
        }
        let (result, error) = (message.get("result"), message.get("error"));
        let Some(id) = id.filter(|_| result.is_some() || error.is_some()) else {
            return false;
        };
        let result = result.map(|result| exact(result, &self.redaction));
        let error = error.map(|error| self.error(error));
        let request = self.pending(opposite(direction)).take(id);
        let request = request.unwrap_or_else(|| InFlight::unmatched(id, now));
        emit(Record {
            duration_ms: millis(request.at, now),
            result,
            error,
            ..request.notification(direction)
        });
        true
    }

    fn request(
        &self,
        message: Value<'_>,
        method: Value<'_>,
        id: Option<Value<'_>>,
        now: Instant,
    ) -> InFlight {
        let params = message.get("params");
        let method = method.as_str_lossy().into_owned();
        let tool = params
            .filter(|_| method == "tools/call")
            .and_then(|params| params.get("name"));
        InFlight {
            at: now,
            id: id.map(|id| id.raw().to_vec()).unwrap_or_default(),
            request_id: id.map(id_text).unwrap_or_default(),
            tool_name: tool
                .map(|tool| tool.as_str_lossy().into_owned())
                .unwrap_or_default(),
            params: params.map(|params| exact(params, &self.redaction)),
            method,
        }
    }

    /// In mcp-audit's order if it is the error object of JSON-RPC, else as it is.
    fn error(&self, error: Value<'_>) -> Vec<u8> {
        let (code, message) = (error.get("code"), error.get("message"));
        let (Some(code), Some(message)) = (
            code.and_then(|code| code.as_i64()),
            message.filter(|message| message.kind() == Kind::String),
        ) else {
            return exact(error, &self.redaction);
        };
        let mut out = format!("{{\"code\":{code},\"message\":").into_bytes();
        out.extend(string(&message.as_str_lossy()));
        if let Some(data) = error.get("data") {
            out.extend_from_slice(b",\"data\":");
            out.extend(exact(data, &self.redaction));
        }
        out.push(b'}');
        out
    }

    fn pending(&mut self, requests: Direction) -> &mut Pending {
        match requests {
            Direction::ClientToServer => &mut self.from_client,
            Direction::ServerToClient => &mut self.from_server,
        }
    }
}

fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::ClientToServer => Direction::ServerToClient,
        Direction::ServerToClient => Direction::ClientToServer,
    }
}

fn millis(from: Instant, to: Instant) -> i64 {
    i64::try_from(to.saturating_duration_since(from).as_millis()).unwrap_or(i64::MAX)
}

/// mcp-audit's spelling: a string's text, or what stands on the wire; `null` is absent.
fn id_text(id: Value<'_>) -> String {
    match id.kind() {
        Kind::String => id.as_str_lossy().into_owned(),
        Kind::Null => String::new(),
        Kind::Bool | Kind::Number | Kind::Array | Kind::Object => {
            String::from_utf8_lossy(id.raw()).into_owned()
        }
    }
}

/// An entry about bytes that are not kept.
fn fact(direction: Direction, method: &str, len: u64, reason: &str, hash: &[u8; 32]) -> Record {
    let hex = hex(hash);
    let reason = String::from_utf8_lossy(&string(reason)).into_owned();
    let params = format!("{{\"bytes\":{len},\"reason\":{reason},\"sha256\":\"{hex}\"}}");
    Record {
        direction,
        method: method.to_owned(),
        request_id: String::new(),
        tool_name: String::new(),
        params: Some(params.into_bytes()),
        result: None,
        error: None,
        duration_ms: 0,
    }
}

#[derive(Debug)]
struct InFlight {
    at: Instant,
    /// The id's exact bytes.
    id: Vec<u8>,
    request_id: String,
    method: String,
    tool_name: String,
    params: Option<Vec<u8>>,
}

impl InFlight {
    fn unmatched(id: Value<'_>, now: Instant) -> Self {
        Self {
            at: now,
            id: Vec::new(),
            request_id: id_text(id),
            method: own::UNMATCHED_RESPONSE.to_owned(),
            tool_name: String::new(),
            params: None,
        }
    }

    fn bytes(&self) -> usize {
        self.id.len() + self.method.len() + self.params.as_ref().map_or(0, Vec::len)
    }

    fn notification(self, direction: Direction) -> Record {
        Record {
            direction,
            method: self.method,
            request_id: self.request_id,
            tool_name: self.tool_name,
            params: self.params,
            result: None,
            error: None,
            duration_ms: 0,
        }
    }

    /// The answer that did not come would have travelled against `direction`.
    fn unanswered(self, direction: Direction, reason: &str, now: Instant) -> Record {
        let reason = String::from_utf8_lossy(&string(reason)).into_owned();
        let error = format!(
            "{{\"code\":{},\"message\":\"no response\",\"data\":{{\"countersign\":\"{}\",\"reason\":{reason}}}}}",
            own::NO_RESPONSE_CODE,
            own::NO_RESPONSE,
        );
        Record {
            duration_ms: millis(self.at, now),
            error: Some(error.into_bytes()),
            ..self.notification(opposite(direction))
        }
    }
}

/// Requests in flight from one side. Requests that share an id queue up behind each other.
#[derive(Debug, Default)]
struct Pending {
    by_id: HashMap<Vec<u8>, VecDeque<(u64, InFlight)>>,
    by_age: BTreeMap<u64, Vec<u8>>,
    bytes: usize,
    sequence: u64,
}

impl Pending {
    /// Adds a request; returns those that had to make room.
    fn insert(&mut self, id: Value<'_>, request: InFlight) -> Vec<InFlight> {
        self.bytes += request.bytes();
        self.sequence += 1;
        let key = key(id);
        self.by_age.insert(self.sequence, key.clone());
        self.by_id
            .entry(key)
            .or_default()
            .push_back((self.sequence, request));
        let mut evicted = Vec::new();
        // The newest stays, whatever its size: it is one line at most.
        while self.by_age.len() > 1
            && (self.by_age.len() > PENDING_MAX || self.bytes > PENDING_MAX_BYTES)
        {
            evicted.extend(self.take_oldest());
        }
        evicted
    }

    /// The request that an answer with this id answers: the oldest of the same spelling, else the
    /// oldest of the same value, because some servers re-spell numbers.
    fn take(&mut self, id: Value<'_>) -> Option<InFlight> {
        let key = key(id);
        let queue = self.by_id.get(&key)?;
        let same = |(_, request): &(u64, InFlight)| request.id == id.raw();
        let at = queue
            .iter()
            .take(SAME_ID_SEARCH_MAX)
            .position(same)
            .unwrap_or(0);
        self.remove(&key, at)
    }

    fn take_oldest(&mut self) -> Option<InFlight> {
        let (_, key) = self.by_age.pop_first()?;
        // The oldest of all is the oldest of its id.
        self.remove(&key, 0)
    }

    fn remove(&mut self, key: &[u8], at: usize) -> Option<InFlight> {
        let queue = self.by_id.get_mut(key)?;
        let (sequence, request) = queue.remove(at)?;
        if queue.is_empty() {
            self.by_id.remove(key);
        }
        self.by_age.remove(&sequence);
        self.bytes -= request.bytes();
        Some(request)
    }
}

/// Equal for ids of the same kind and value: `"7"` and `7` are two ids, `7` and `7.0` are one.
fn key(id: Value<'_>) -> Vec<u8> {
    let mut key = vec![match id.kind() {
        Kind::Null => b'0',
        Kind::Bool => b'b',
        Kind::Number => b'n',
        Kind::String => b's',
        Kind::Array => b'a',
        Kind::Object => b'o',
    }];
    match id.as_str_bytes() {
        Some(text) => key.extend_from_slice(&text),
        None => key.extend(canonicalise_any(id, &Redaction::none())),
    }
    key
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
