//! Messages: the JSON-RPC objects in a frame.
//!
//! Owns the parsing of a frame into messages (one, or several in a batch), each with spans into the frame's bytes, and the
//! question whether a message is MCP by its method and shape. It reads leniently, as real servers do, and flags what strict
//! readers would refuse. It does not pair requests with answers.
//!
//! `id: null` is an id: MCP forbids it and JSON-RPC discourages it, but servers execute such a request and answer it, and proxies
//! log both as one call.

mod envelope;

use std::borrow::Cow;
use std::ops::Range;

use crate::json::{self, Document, Kind as JsonKind, Leniency, Limits, Value};
use crate::proxylog::canonical::{self, Redaction};

pub use envelope::wraps_message;

/// Longest id, method or tool name kept, in bytes. Stops an agent from filling memory with names.
pub const NAME_MAX_BYTES: usize = 64 * 1024;

/// How much of an incomplete text is looked at to tell what it is. Stops a flood of long ones from costing their length twice.
const HEAD_MAX_BYTES: usize = 64 * 1024;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageKind {
    /// Method and id, `null` included.
    Request,
    /// Method without id.
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

/// How a message stood in its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Alone, or in a batch, on a line.
    Line,
    /// On a line with other values, or over several lines: readers of lines do not find it, decoders of streams do.
    Reframed,
    /// Its end could not be read, by the doing of those who sent and received it: what it says is what its beginning says.
    Cut,
    /// Its end was lost on the way to the evidence.
    Lost,
}

/// An id, as peers compare it: `7` and `"7"` differ, `1` and `1.0` do not, and a number is what a float64 makes of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IdKey {
    /// A string, decoded.
    Text(Vec<u8>),
    /// The bits of a finite float64.
    Number(u64),
    /// Anything else, spelled in one way.
    Other(Vec<u8>),
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
    /// How it stood in its stream.
    pub form: Form,
}

impl Message {
    /// The id as the logs of proxies write it: a string's text, anything else as it stands; `null` is none.
    pub fn id_text(&self) -> Option<Cow<'_, str>> {
        let id = self.id.as_deref().filter(|id| *id != "null")?;
        if id.starts_with('"') {
            let document = Document::parse(id.as_bytes(), Limits::default()).ok()?;
            return Some(Cow::Owned(document.root().as_str_lossy().into_owned()));
        }
        Some(Cow::Borrowed(id))
    }

    /// The id as peers compare it.
    pub fn id_key(&self) -> Option<IdKey> {
        let id = self.id.as_deref()?.as_bytes();
        let Ok(document) = Document::parse(id, Limits::default()) else {
            return Some(IdKey::Other(id.to_vec()));
        };
        let root = document.root();
        if let Some(text) = root.as_str_bytes() {
            return Some(IdKey::Text(text.into_owned()));
        }
        if let Some(number) = root.as_f64().filter(|number| number.is_finite()) {
            return Some(IdKey::Number((number + 0.0).to_bits()));
        }
        Some(IdKey::Other(canonical::exact(root, &Redaction::none())))
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

/// Parses a frame's bytes as a decoder of streams does: where they are not one value, the values that they begin with, if one of
/// them is a message. What is no message is left out.
///
/// # Errors
/// As [`parse`].
pub fn parse_stream(frame: &[u8]) -> Result<Messages, json::Error> {
    let error = match parse(frame) {
        Ok(messages) => return Ok(messages),
        Err(error) => error,
    };
    let mut found = Messages {
        messages: Vec::new(),
        batch: false,
        leniency: Leniency::empty(),
    };
    let mut at = 0;
    while let Ok((document, end)) = Document::parse_first(&frame[at..], Limits::default()) {
        found.take(document.root(), at);
        at += end;
    }
    if !matches!(error, json::Error::Malformed { .. })
        && let Some(mut message) = head(frame)
    {
        // Nobody sends so many values but to hide one.
        if message.kind == MessageKind::NotJsonRpc {
            message.kind = MessageKind::Request;
            message.is_mcp = true;
        }
        found.messages.push(message);
    }
    if found.messages.is_empty() {
        return Err(error);
    }
    Ok(found)
}

/// The message that a text without its end begins. Where its method has not come yet it is a request if anything of JSON-RPC's
/// has, else [`MessageKind::NotJsonRpc`]: an object of which nothing is known. `None` if it is no object.
pub fn head(frame: &[u8]) -> Option<Message> {
    let document = Document::parse_head(frame, Limits::default())?;
    let root = document.root();
    if root.kind() != JsonKind::Object {
        return None;
    }
    let mut found = message(root, 0);
    found.form = Form::Cut;
    let has = |key| root.get(key).is_some();
    if found.kind == MessageKind::NotJsonRpc && (has("jsonrpc") || has("params")) {
        found.kind = MessageKind::Request;
        found.is_mcp = true;
    }
    Some(found)
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

impl Messages {
    /// Takes the messages of one of several values.
    fn take(&mut self, value: Value<'_>, offset: usize) {
        self.leniency |= value.leniency_within();
        if value.kind() == JsonKind::Array {
            for element in value.elements() {
                self.take_one(element, offset);
            }
        } else {
            self.take_one(value, offset);
        }
    }

    fn take_one(&mut self, value: Value<'_>, offset: usize) {
        let element = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        let mut message = message(value, element);
        if message.kind == MessageKind::NotJsonRpc {
            return;
        }
        message.form = Form::Reframed;
        let spans = [
            Some(&mut message.span),
            message.params.as_mut(),
            message.result.as_mut(),
            message.error.as_mut(),
        ];
        for span in spans.into_iter().flatten() {
            *span = span.start + offset..span.end + offset;
        }
        self.messages.push(message);
    }
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
        form: Form::Line,
    };
    if value.kind() != JsonKind::Object {
        return message;
    }
    message.id = value
        .get("id")
        .map(|id| shortened(&String::from_utf8_lossy(id.raw())));
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
    let params = value
        .get("params")
        .filter(|params| params.kind() == JsonKind::Object);
    if let Some(method) = &message.method
        && !is_mcp(method, params)
    {
        // Some servers take the first of two members of a name, most the last: what either would take counts.
        let other = value
            .get_all("method")
            .filter(|method| method.kind() == JsonKind::String)
            .map(|method| shortened(&method.as_str_lossy()))
            .find(|method| is_mcp(method, params));
        if other.is_some() {
            message.method = other;
        }
    }
    if let Some(method) = &message.method {
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

    #[test]
    fn an_id_that_is_null_is_an_id() {
        let message = only(br#"{"id":null,"method":"tools/call"}"#);
        assert_eq!(message.kind, MessageKind::Request);
        assert_eq!(message.id_text(), None);
        assert_eq!(
            only(br#"{"method":"ping"}"#).kind,
            MessageKind::Notification
        );
    }

    #[test]
    fn values_on_one_line_are_found_where_they_stand() {
        let text =
            br#"7 {"a":1}{"id":1,"method":"ping","params":{"x":2}} [{"id":1,"result":3}] Content"#;
        let found = parse_stream(text).unwrap().messages;
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|message| message.form == Form::Reframed));
        assert_eq!(&text[found[0].params.clone().unwrap()], br#"{"x":2}"#);
        assert_eq!(&text[found[1].result.clone().unwrap()], b"3");
        assert_eq!(found[1].element, 1);
        for text in [
            &b"{} [info]"[..],
            b"[info] {}",
            b"12:00 {\"method\":\"ping\"}",
        ] {
            assert!(parse_stream(text).is_err());
        }
    }

    #[test]
    fn many_values_on_one_line_cost_one_pass() {
        let text = b"{\"a\":\"\xc3\xa9\"}".repeat(200_000);
        assert!(parse_stream(&text).is_err());
    }

    #[test]
    fn of_two_methods_the_one_of_mcp_counts_whichever_a_server_takes() {
        for text in [
            &br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"},"method":"textDocument/hover"}"#[..],
            br#"{"jsonrpc":"2.0","id":1,"method":"textDocument/hover","params":{"name":"x"},"method":"tools/call"}"#,
        ] {
            let message = only(text);
            assert_eq!(message.method.as_deref(), Some("tools/call"));
            assert!(message.is_mcp);
        }
    }

    #[test]
    fn the_beginning_of_a_message_tells_its_members() {
        let of = |text: &str| head(text.as_bytes()).unwrap();
        let cut = of(
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"evil","x":"aaa\u00"#,
        );
        assert_eq!(cut.tool_name.as_deref(), Some("evil"));
        assert_eq!((cut.kind, cut.form), (MessageKind::Request, Form::Cut));
        assert_eq!(of(r#"{"params":{"x":[[tru"#).kind, MessageKind::Request);
        assert_eq!(of(r#"{"id":1,"result":{"x":-"#).kind, MessageKind::Response);
        assert_eq!(of(r#"{"x":"#).kind, MessageKind::NotJsonRpc);
        assert!(head(br#"{"x": garbage that is no json"#).is_none());
        assert!(head(b"[1,2").is_none());
    }

    fn only(frame: &[u8]) -> Message {
        parse(frame).unwrap().messages.remove(0)
    }
}
