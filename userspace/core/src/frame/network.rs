//! What a network connection carries, by its first bytes: framings that are known by name and not read.
//!
//! Owns the recognition of HTTP and TLS at the beginning of a stream. Such a stream is not cut into lines: its bytes are counted, and
//! that it speaks of JSON-RPC is noticed once. Everything else is read like any other stream.

use super::line::speaks_of_json_rpc;

/// Bytes looked at. The longest beginning that decides is `CONNECT ` with what follows the method.
const BEGINNING_BYTES: usize = 24;

/// Bytes of a piece that are looked through again with the next one, so that a hint cut in two is found.
const TAIL_BYTES: usize = 32;

/// Methods of HTTP (RFC 9110, RFC 5789), with the blank that follows.
const METHODS: [&[u8]; 9] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"CONNECT ",
    b"OPTIONS ",
    b"TRACE ",
    b"PATCH ",
];

/// The beginning of every HTTP/2 connection (RFC 9113, section 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n";

/// State of the recognition.
#[derive(Debug, Default)]
pub(super) struct Network {
    beginning: Vec<u8>,
    decided: bool,
    undecoded: Option<&'static str>,
    tail: Vec<u8>,
    spoke: bool,
}

impl Network {
    pub(super) fn undecoded(&self) -> Option<&'static str> {
        self.undecoded
    }

    /// Takes the next bytes; whether they are of a framing that is not read. The first bytes decide, those of the first pieces until
    /// there are enough.
    pub(super) fn takes(&mut self, data: &[u8]) -> bool {
        if !self.decided {
            let room = BEGINNING_BYTES - self.beginning.len();
            self.beginning
                .extend_from_slice(&data[..data.len().min(room)]);
            self.undecoded = recognise(&self.beginning);
            self.decided = self.undecoded.is_some() || self.beginning.len() == BEGINNING_BYTES;
        }
        self.undecoded.is_some()
    }

    /// Whether the bytes are the first that speak of JSON-RPC.
    pub(super) fn begins_to_speak(&mut self, data: &[u8]) -> bool {
        // In what only begins like TLS too: what is enciphered does not speak of it by chance.
        if self.spoke {
            return false;
        }
        let mut window = std::mem::take(&mut self.tail);
        window.extend_from_slice(&data[..data.len().min(TAIL_BYTES)]);
        self.spoke = speaks_of_json_rpc(&window) || speaks_of_json_rpc(data);
        let keep = data.len().min(TAIL_BYTES);
        self.tail = data[data.len() - keep..].to_vec();
        self.spoke
    }
}

fn recognise(beginning: &[u8]) -> Option<&'static str> {
    if beginning.starts_with(HTTP2) {
        return Some("http2");
    }
    let request = METHODS
        .iter()
        .find_map(|method| beginning.strip_prefix(*method))
        .and_then(|target| target.first());
    // A target is a path, a whole address, an authority, or a star.
    if request.is_some_and(u8::is_ascii_graphic) || beginning.starts_with(b"HTTP/1.") {
        return Some("http");
    }
    // A handshake of SSL 3.0 to TLS 1.3, which says 1.0 or 1.2 of itself.
    match beginning {
        [22, 3, 0..=4, ..] => Some("tls"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_answers_and_handshakes_are_known_by_their_first_bytes() {
        assert_eq!(recognise(b"POST /mcp HTTP/1.1\r\n"), Some("http"));
        assert_eq!(recognise(b"HTTP/1.1 200 OK\r\n"), Some("http"));
        assert_eq!(recognise(HTTP2), Some("http2"));
        assert_eq!(recognise(&[22, 3, 1, 2, 0, 1]), Some("tls"));
        for other in [&b"{\"jsonrpc\":\"2.0\"}"[..], b"GETTING /", b"GET \n{", b""] {
            assert_eq!(recognise(other), None, "{other:?}");
        }
    }

    #[test]
    fn what_begins_with_a_message_is_read_whatever_follows() {
        let mut network = Network::default();
        assert!(!network.takes(b"{\"jsonrpc\":\"2.0\",\"id\":1}\n"));
        assert!(!network.takes(b"POST /mcp HTTP/1.1\r\n"));
    }

    #[test]
    fn a_hint_that_is_cut_in_two_is_found_once() {
        let mut network = Network::default();
        assert!(network.takes(b"POST / HTTP/1.1\r\n\r\n{\"json"));
        assert!(!network.begins_to_speak(b"{\"json"));
        assert!(network.begins_to_speak(b"rpc\":"));
        assert!(!network.begins_to_speak(b"\"jsonrpc\":"));
    }
}
