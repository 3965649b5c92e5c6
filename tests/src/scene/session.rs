//! A session of client, proxy and server with its four pipes, and the proxy's log.

use countersign_common::end_how;
use countersign_core::json::{Document, Limits};
use countersign_core::proxylog::{Direction, Draft, Key, Redaction, canonical, timestamp};

use super::{End, Proc, Scene, program};

/// The key of every log of a scene.
const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";

/// Everything that can be read at once.
const ALL: usize = usize::MAX;

/// A client, a proxy and a server.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// The client.
    pub client: Proc,
    /// The proxy.
    pub proxy: Proc,
    /// The server.
    pub server: Proc,
    /// Client to proxy.
    pub to_proxy: End,
    /// Proxy to server.
    pub to_server: End,
    /// Server to proxy.
    pub from_server: End,
    /// Proxy to client.
    pub to_client: End,
}

/// What a server says.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// A result, as JSON.
    Result(&'a str),
    /// An error, as JSON.
    Error(&'a str),
}

impl Answer<'_> {
    /// The line of it.
    #[must_use]
    pub fn line(&self, id: &str) -> Vec<u8> {
        match self {
            Self::Result(result) => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#),
            Self::Error(error) => format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#),
        }
        .into_bytes()
    }
}

impl Session {
    /// A session under an agent of its own, with pipes.
    pub fn start(scene: &mut Scene) -> Self {
        let client = scene.root(program::AGENT);
        Self::under(scene, client)
    }

    /// A session under an agent, with pipes.
    pub fn under(scene: &mut Scene, client: Proc) -> Self {
        let (to_proxy, to_client) = (scene.pipe(client), scene.pipe(client));
        let proxy = scene.spawn(client, program::PROXY);
        let (to_server, from_server) = (scene.pipe(proxy), scene.pipe(proxy));
        let server = scene.spawn(proxy, program::SERVER);
        Self {
            client,
            proxy,
            server,
            to_proxy,
            to_server,
            from_server,
            to_client,
        }
    }

    /// A session that was there before the capture: its pipes and its proxy were not seen to be made.
    pub fn from_before(scene: &mut Scene) -> Self {
        let client = scene.root(program::AGENT);
        let [to_proxy, to_client, to_server, from_server] =
            [0; 4].map(|_| scene.pipe_from_before());
        let proxy = scene.root(program::PROXY);
        let server = scene.spawn(proxy, program::SERVER);
        Self {
            client,
            proxy,
            server,
            to_proxy,
            to_server,
            from_server,
            to_client,
        }
    }

    /// A session under an agent, with socket pairs, as Node makes them.
    pub fn with_sockets(scene: &mut Scene) -> Self {
        let client = scene.root(program::AGENT);
        let (near, far) = (scene.socketpair(client), scene.socketpair(client));
        let proxy = scene.spawn(client, program::PROXY);
        let (server_in, server_out) = (scene.socketpair(proxy), scene.socketpair(proxy));
        let server = scene.spawn(proxy, program::SERVER);
        Self {
            client,
            proxy,
            server,
            to_proxy: near,
            to_client: far,
            to_server: server_in,
            from_server: server_out,
        }
    }

    /// A line from the client to the server over both legs; the line's end is added.
    pub fn to_server(&self, scene: &mut Scene, line: &[u8]) {
        self.client_asks(scene, line);
        self.forwards(scene, line);
    }

    /// A line from the server to the client over both legs.
    pub fn to_client(&self, scene: &mut Scene, line: &[u8]) {
        self.server_says(scene, line);
        self.returns(scene, line);
    }

    /// A line from the client that the proxy reads.
    pub fn client_asks(&self, scene: &mut Scene, line: &[u8]) {
        let line = ended(line);
        scene.write(self.client, self.to_proxy, &line);
        scene.read(self.proxy, far(scene, self.to_proxy), ALL);
    }

    /// A line that the proxy writes to the server, which reads it.
    pub fn forwards(&self, scene: &mut Scene, line: &[u8]) {
        scene.write(self.proxy, self.to_server, &ended(line));
        scene.read(self.server, far(scene, self.to_server), ALL);
    }

    /// A line from the server that the proxy reads.
    pub fn server_says(&self, scene: &mut Scene, line: &[u8]) {
        scene.write(self.server, far(scene, self.from_server), &ended(line));
        scene.read(self.proxy, self.from_server, ALL);
    }

    /// A line that the proxy writes to the client, which reads it.
    pub fn returns(&self, scene: &mut Scene, line: &[u8]) {
        scene.write(self.proxy, far(scene, self.to_client), &ended(line));
        scene.read(self.client, self.to_client, ALL);
    }

    /// A whole `tools/call` of the tool `name` with its answer and its entry.
    pub fn tool(&self, scene: &mut Scene, log: &mut Log, id: &str, name: &str) {
        let params = tool_params(name);
        self.call(
            scene,
            log,
            id,
            "tools/call",
            &params,
            Answer::Result(r#"{"ok":true}"#),
        );
    }

    /// A whole call with its answer and its entry.
    pub fn call(
        &self,
        scene: &mut Scene,
        log: &mut Log,
        id: &str,
        method: &str,
        params: &str,
        answer: Answer<'_>,
    ) {
        self.unlogged(scene, id, method, params, answer);
        let entry = Entry::of_call(id, method, params, answer);
        log.writes(scene, self.proxy, &entry);
    }

    /// A whole call with its answer, of which the proxy logs nothing.
    pub fn unlogged(
        &self,
        scene: &mut Scene,
        id: &str,
        method: &str,
        params: &str,
        answer: Answer<'_>,
    ) {
        self.to_server(scene, &request(id, method, params));
        self.to_client(scene, &answer.line(id));
    }
}

/// The line of a request.
pub fn request(id: &str, method: &str, params: &str) -> Vec<u8> {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#).into_bytes()
}

/// The line of a notification.
pub fn notification(method: &str, params: &str) -> Vec<u8> {
    format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params}}}"#).into_bytes()
}

/// The parameters of a call of a tool.
pub fn tool_params(name: &str) -> String {
    format!(r#"{{"arguments":{{"path":"/tmp/{name}"}},"name":"{name}"}}"#)
}

/// What an entry is to say.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which way the completing message went.
    pub direction: Direction,
    /// Method.
    pub method: String,
    /// Id as the log has it; empty: none.
    pub id: String,
    /// Tool; empty: none.
    pub tool: String,
    /// JSON, any spelling.
    pub params: Option<String>,
    /// JSON.
    pub result: Option<String>,
    /// JSON.
    pub error: Option<String>,
    /// Milliseconds.
    pub duration_ms: i64,
}

impl Entry {
    /// The entry of a client's request.
    pub fn of_call(id: &str, method: &str, params: &str, answer: Answer<'_>) -> Self {
        let (result, error) = match answer {
            Answer::Result(result) => (Some(result.to_owned()), None),
            Answer::Error(error) => (None, Some(error.to_owned())),
        };
        Self {
            direction: Direction::ServerToClient,
            method: method.to_owned(),
            id: id.trim_matches('"').to_owned(),
            tool: if method == "tools/call" {
                tool_of(params)
            } else {
                String::new()
            },
            params: Some(params.to_owned()),
            result,
            error,
            duration_ms: 0,
        }
    }

    /// The entry of a notification.
    pub fn of_notification(direction: Direction, method: &str, params: &str) -> Self {
        Self {
            direction,
            method: method.to_owned(),
            id: String::new(),
            tool: String::new(),
            params: Some(params.to_owned()),
            result: None,
            error: None,
            duration_ms: 0,
        }
    }
}

fn tool_of(params: &str) -> String {
    let document = Document::parse(params.as_bytes(), Limits::default()).expect("json");
    document
        .root()
        .get("name")
        .map(|name| name.as_str_lossy().into_owned())
        .unwrap_or_default()
}

/// A proxy's log: what the proxy writes, and what lies on disk in the end, which a scene can change.
#[derive(Debug)]
pub struct Log {
    /// The file.
    pub file: End,
    /// Lines on disk, each with its end.
    pub disk: Vec<Vec<u8>>,
    /// What the proxy redacts.
    pub redaction: Redaction,
    key: Option<Key>,
    verbatim: bool,
    next_id: u64,
    opened: Vec<Proc>,
}

impl Log {
    /// An empty signed log.
    pub fn new(scene: &mut Scene) -> Self {
        Self {
            file: scene.file(),
            disk: Vec::new(),
            redaction: Redaction::default(),
            key: Some(key()),
            verbatim: false,
            next_id: 0,
            opened: Vec::new(),
        }
    }

    /// A log without signatures.
    #[must_use]
    pub fn unsigned(mut self) -> Self {
        self.key = None;
        self
    }

    /// A log of mcp-audit with redaction off: it signs the wire's bytes and writes them compacted.
    #[must_use]
    pub fn verbatim(mut self) -> Self {
        self.verbatim = true;
        self.redaction = Redaction::none();
        self
    }

    /// A proxy writes an entry, and it stays on disk.
    pub fn writes(&mut self, scene: &mut Scene, proxy: Proc, entry: &Entry) {
        let line = self.line(scene, entry);
        self.writes_line(scene, proxy, &line);
        self.disk.push(line);
    }

    /// A proxy writes a line, which does not come to disk by that.
    pub fn writes_line(&mut self, scene: &mut Scene, proxy: Proc, line: &[u8]) {
        if !self.opened.contains(&proxy) {
            scene.opens(proxy, self.file);
            scene.got(proxy, self.file, end_how::OPENED);
            self.opened.push(proxy);
        }
        scene.write(proxy, self.file, line);
    }

    /// The signed line of an entry, stamped now, with an id of its own.
    pub fn line(&mut self, scene: &Scene, entry: &Entry) -> Vec<u8> {
        self.next_id += 1;
        let id = format!("01M7VX54Y{:017}", self.next_id);
        self.line_with_id(scene, entry, &id)
    }

    /// The signed line of an entry, stamped now.
    pub fn line_with_id(&self, scene: &Scene, entry: &Entry, id: &str) -> Vec<u8> {
        let [params, result, error] = [&entry.params, &entry.result, &entry.error].map(|json| {
            let json = json.as_ref()?;
            if self.verbatim {
                return Some(json.clone().into_bytes());
            }
            let document = Document::parse(json.as_bytes(), Limits::default()).expect("json");
            Some(canonical::canonicalise_any(
                document.root(),
                &self.redaction,
            ))
        });
        Draft {
            id,
            timestamp: &timestamp::format(scene.utc()),
            direction: entry.direction,
            transport: "stdio",
            method: &entry.method,
            request_id: &entry.id,
            tool_name: &entry.tool,
            params: params.as_deref(),
            result: result.as_deref(),
            error: error.as_deref(),
            duration_ms: entry.duration_ms,
            client_id: "client",
            server_id: "server",
        }
        .line(self.key.as_ref())
    }

    /// Replaces text in a line on disk.
    pub fn edit(&mut self, line: usize, from: &str, to: &str) {
        let text = String::from_utf8(self.disk[line].clone()).expect("utf-8");
        assert!(text.contains(from), "{text} has no {from}");
        self.disk[line] = text.replace(from, to).into_bytes();
    }
}

/// The key of every log of a scene.
pub(super) fn key() -> Key {
    Key::new(KEY.to_vec()).expect("a key")
}

/// The reader's side of an end: of a socket the other end, of a pipe the same.
fn far(scene: &Scene, end: End) -> End {
    if scene.is_socket(end) {
        end.other()
    } else {
        end
    }
}

fn ended(line: &[u8]) -> Vec<u8> {
    [line, b"\n"].concat()
}
