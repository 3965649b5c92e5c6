//! Messages: the JSON-RPC objects in a frame.
//!
//! Owns the parsing of a frame into messages (one, or several in a batch), each with spans into the frame's bytes, and the
//! question whether a message is MCP by its method and shape. It reads leniently, as real servers do, and flags what strict
//! readers would refuse. It does not pair requests with answers.

use std::borrow::Cow;
use std::ops::Range;

use crate::json::{self, Document, Kind as JsonKind, Leniency, Limits, Value};

/// Longest id, method or tool name kept, in bytes. Stops an agent from filling memory with names.
pub const NAME_MAX_BYTES: usize = 64 * 1024;

/// How much of an incomplete text is looked at to tell what it is. Stops a flood of long ones from costing their length twice.
const HEAD_MAX_BYTES: usize = 64 * 1024;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageKind {
    /// Method and id.
    Request,
    /// Method without id, or with `id: null`.
    Notification,
    /// Result.
    Response,
    /// Error.
    ErrorResponse,
    /// A JSON object or other value that is no JSON-RPC message.
    NotJsonRpc,
}

impl MessageKind {
    /// Name as stored in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Notification => "notification",
            Self::Response => "response",
            Self::ErrorResponse => "error_response",
            Self::NotJsonRpc => "not_json_rpc",
        }
    }

    /// An answer of either kind.
    pub fn is_response(self) -> bool {
        matches!(self, Self::Response | Self::ErrorResponse)
    }
}

/// One message of a frame. Spans are byte offsets in the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Place in the batch, from 0.
    pub element: u32,
    /// What it is.
    pub kind: MessageKind,
    /// The id as it stands in the text: `7` and `"7"` differ.
    pub id: Option<String>,
    /// Method, decoded.
    pub method: Option<String>,
    /// `params.name` of a `tools/call`, decoded.
    pub tool_name: Option<String>,
    /// The whole message.
    pub span: Range<usize>,
    /// `params`.
    pub params: Option<Range<usize>>,
    /// `result`.
    pub result: Option<Range<usize>>,
    /// `error`.
    pub error: Option<Range<usize>>,
    /// The `code` of the error.
    pub error_code: Option<i64>,
    /// Departures from strict JSON anywhere in it.
    pub leniency: Leniency,
    /// By method and shape this is MCP.
    pub is_mcp: bool,
}

impl Message {
    /// The id as the logs of proxies write it: a string's text or a number's text.
    pub fn id_text(&self) -> Option<Cow<'_, str>> {
        let id = self.id.as_deref()?;
        if id.starts_with('"') {
            let document = Document::parse(id.as_bytes(), Limits::default()).ok()?;
            return Some(Cow::Owned(document.root().as_str_lossy().into_owned()));
        }
        Some(Cow::Borrowed(id))
    }
}

/// The messages of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Messages {
    /// In order.
    pub messages: Vec<Message>,
    /// The frame is a batch.
    pub batch: bool,
    /// Departures from strict JSON anywhere in the frame.
    pub leniency: Leniency,
}

/// Parses a frame's bytes.
///
/// # Errors
/// [`json::Error`] if the text is not JSON even in the lenient sense, or exceeds a limit.
pub fn parse(frame: &[u8]) -> Result<Messages, json::Error> {
    let document = Document::parse(frame, Limits::default())?;
    let root = document.root();
    let batch = root.kind() == JsonKind::Array;
    let messages = if batch {
        root.elements()
            .zip(0u32..)
            .map(|(value, element)| message(value, element))
            .collect()
    } else {
        vec![message(root, 0)]
    };
    Ok(Messages {
        messages,
        batch,
        leniency: document.leniency(),
    })
}

/// Whether the beginning of a text that could not be read to its end looks like an MCP request or notification: it says
/// `"jsonrpc"`, or names a method of MCP's.
pub fn begins_like_mcp(head: &[u8]) -> bool {
    let head = &head[..head.len().min(HEAD_MAX_BYTES)];
    if memchr::memmem::find(head, b"\"jsonrpc\"").is_some() {
        return true;
    }
    memchr::memmem::find_iter(head, b"\"method\"").any(|at| {
        let rest = head[at + 8..].trim_ascii_start();
        let Some(rest) = rest.strip_prefix(b":") else {
            return false;
        };
        let Some(rest) = rest.trim_ascii_start().strip_prefix(b"\"") else {
            return false;
        };
        let end = memchr::memchr(b'"', rest).unwrap_or(rest.len());
        let name = String::from_utf8_lossy(&rest[..end]).replace("\\/", "/");
        name == "initialize" || is_mcp(&name, None)
    })
}

fn message(value: Value<'_>, element: u32) -> Message {
    let mut message = Message {
        element,
        kind: MessageKind::NotJsonRpc,
        id: None,
        method: None,
        tool_name: None,
        span: value.span(),
        params: None,
        result: None,
        error: None,
        error_code: None,
        leniency: value.leniency_within(),
        is_mcp: false,
    };
    if value.kind() != JsonKind::Object {
        return message;
    }
    let id = value.get("id").filter(|id| !id.is_null());
    message.id = id.map(|id| shortened(&String::from_utf8_lossy(id.raw())));
    message.method = value
        .get("method")
        .filter(|method| method.kind() == JsonKind::String)
        .map(|method| shortened(&method.as_str_lossy()));
    message.params = value.get("params").map(|params| params.span());
    message.result = value.get("result").map(|result| result.span());
    let error = value.get("error");
    message.error = error.map(|error| error.span());
    message.error_code = error
        .filter(|error| error.kind() == JsonKind::Object)
        .and_then(|error| error.get("code"))
        .and_then(|code| code.as_i64());
    message.kind = match (&message.method, &message.id) {
        (Some(_), Some(_)) => MessageKind::Request,
        (Some(_), None) => MessageKind::Notification,
        (None, _) if message.result.is_some() => MessageKind::Response,
        (None, _) if message.error.is_some() => MessageKind::ErrorResponse,
        (None, _) => MessageKind::NotJsonRpc,
    };
    if let Some(method) = &message.method {
        let params = value
            .get("params")
            .filter(|params| params.kind() == JsonKind::Object);
        if method == "tools/call" {
            message.tool_name = params
                .and_then(|params| params.get("name"))
                .filter(|name| name.kind() == JsonKind::String)
                .map(|name| shortened(&name.as_str_lossy()));
        }
        message.is_mcp = is_mcp(method, params);
    }
    message
}

/// Whether a method with these parameters is MCP's, in any revision up to 2026-07-28.
fn is_mcp(method: &str, params: Option<Value<'_>>) -> bool {
    match method {
        // The Language Server Protocol has an `initialize` too; MCP's names a protocol version.
        "initialize" => params.is_some_and(|params| params.get("protocolVersion").is_some()),
        "ping"
        | "completion/complete"
        | "logging/setLevel"
        | "sampling/createMessage"
        | "elicitation/create"
        | "server/discover"
        | "subscriptions/listen" => true,
        // `$/progress`, `window/…`, `textDocument/…` are LSP's and do not begin like these.
        _ => [
            "tools/",
            "resources/",
            "prompts/",
            "roots/",
            "tasks/",
            "notifications/",
        ]
        .iter()
        .any(|prefix| method.starts_with(prefix)),
    }
}

fn shortened(name: &str) -> String {
    let mut end = name.len().min(NAME_MAX_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]
    use super::*;

    #[test]
    fn a_number_and_its_text_are_different_ids() {
        let number = only(br#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#);
        let text = only(br#"{"jsonrpc":"2.0","id":"7","method":"ping"}"#);
        assert_ne!(number.id, text.id);
        assert_eq!(number.id_text(), text.id_text());
    }

    #[test]
    fn a_request_that_also_has_an_error_is_still_executed_and_so_still_a_request() {
        let message = only(br#"{"id":1,"method":"tools\/call","error":"x","params":{"name":"evil","NAME":"safe"}}"#);
        assert_eq!(message.kind, MessageKind::Request);
        assert_eq!(message.tool_name.as_deref(), Some("evil"));
        assert!(message.is_mcp);
        assert!(message.leniency.contains(Leniency::CASE_VARIANT_KEYS));
    }

    #[test]
    fn another_protocol_that_speaks_json_rpc_is_not_mcp() {
        let message =
            only(br#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"rootUri":null}}"#);
        assert!(!message.is_mcp);
    }

    #[test]
    fn a_batch_of_two_is_two_messages() {
        let messages =
            parse(br#"[{"id":1,"method":"ping"},{"method":"notifications/x"}]"#).unwrap();
        assert!(messages.batch);
        assert_eq!(messages.messages[1].kind, MessageKind::Notification);
        assert_eq!(messages.messages[1].element, 1);
    }

    #[test]
    fn the_beginning_of_a_request_tells_what_it_is() {
        assert!(begins_like_mcp(
            br#"{"id":1, "method" : "tools\/call","params":{"x":"yyy"#
        ));
        assert!(begins_like_mcp(br#"{"jsonrpc":"2.0","id":1,"params":{"#));
        assert!(!begins_like_mcp(br#"{"level":"info","method":"GET /","#));
        assert!(!begins_like_mcp(br#"{"method""#));
    }

    fn only(frame: &[u8]) -> Message {
        parse(frame).unwrap().messages.remove(0)
    }
}
