//! Writing one line of mcp-audit's JSONL log, byte for byte as mcp-audit does.
//!
//! Owns: member order, escapes, the signature's place. Does not own: clocks, ids, files.

use super::canonical;
use super::entry::Direction;
use super::signature::{Key, Signed};

/// An entry to be written. Absent and empty are the same to this format.
#[derive(Debug, Clone, Copy)]
pub struct Draft<'a> {
    /// ULID, 26 characters.
    pub id: &'a str,
    /// RFC 3339 in UTC; see [`timestamp::format`](super::timestamp::format).
    pub timestamp: &'a str,
    /// Which way the completing message went.
    pub direction: Direction,
    /// `stdio` or `http`.
    pub transport: &'a str,
    /// JSON-RPC method.
    pub method: &'a str,
    /// JSON-RPC id, as text.
    pub request_id: &'a str,
    /// Tool, for `tools/call`.
    pub tool_name: &'a str,
    /// JSON; signed as given, written compacted. Give it canonical and both are the same.
    pub params: Option<&'a [u8]>,
    /// JSON.
    pub result: Option<&'a [u8]>,
    /// JSON object `{code, message, data?}`.
    pub error: Option<&'a [u8]>,
    /// From request to answer, milliseconds.
    pub duration_ms: i64,
    /// From the configuration.
    pub client_id: &'a str,
    /// From the configuration.
    pub server_id: &'a str,
}

impl Draft<'_> {
    /// The line, signed if there is a key, with its `\n`.
    pub fn line(&self, key: Option<&Key>) -> Vec<u8> {
        let direction = match self.direction {
            Direction::ClientToServer => "client→server",
            Direction::ServerToClient => "server→client",
        };
        let signature = key.map(|key| {
            key.sign(&Signed {
                id: self.id,
                timestamp: self.timestamp,
                method: self.method,
                tool_name: Some(self.tool_name),
                params: self.params,
            })
        });
        let mut out = Members { out: vec![b'{'] };
        out.text("id", self.id);
        out.text("timestamp", self.timestamp);
        out.text("direction", direction);
        out.text("transport", self.transport);
        out.text("method", self.method);
        if !self.request_id.is_empty() {
            out.text("request_id", self.request_id);
        }
        if !self.tool_name.is_empty() {
            out.text("tool_name", self.tool_name);
        }
        for (name, json) in [
            ("params", self.params),
            ("result", self.result),
            ("error", self.error),
        ] {
            if let Some(json) = json {
                out.raw(name, &canonical::compact(json));
            }
        }
        out.raw("duration_ms", self.duration_ms.to_string().as_bytes());
        out.text("client_id", self.client_id);
        out.text("server_id", self.server_id);
        out.text("signature", signature.as_deref().unwrap_or_default());
        let mut line = out.out;
        line.extend_from_slice(b"}\n");
        line
    }
}

struct Members {
    out: Vec<u8>,
}

impl Members {
    fn text(&mut self, name: &str, text: &str) {
        self.raw(name, &canonical::string(text));
    }

    fn raw(&mut self, name: &str, json: &[u8]) {
        if self.out.len() > 1 {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out.extend_from_slice(json);
    }
}
