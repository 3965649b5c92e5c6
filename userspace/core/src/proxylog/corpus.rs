//! The logs and vectors that real programs made, for tests.

#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use super::mcp_audit::Reader;
use super::{Entry, Key, LogItem};
use crate::json::{Document, Limits, Value};

macro_rules! corpus_file {
    ($name:literal) => {
        include_bytes!(concat!("../../testdata/mcp-audit/", $name)).as_slice()
    };
}
pub(super) use corpus_file;

/// One run of mcp-audit's own signing code.
pub(super) struct Vector {
    pub(super) redact: bool,
    pub(super) wire_params: Vec<u8>,
    pub(super) signed_params: Vec<u8>,
    pub(super) line: Vec<u8>,
}

pub(super) fn vectors() -> Vec<Vector> {
    let lines = corpus_file!("vectors.jsonl").split(|byte| *byte == b'\n');
    lines
        .filter(|line| !line.is_empty())
        .map(|line| {
            let doc = parse(line);
            let bytes = |name: &str| base64(doc.root().get(name).unwrap());
            Vector {
                redact: doc.root().get("redact").unwrap().as_bool().unwrap(),
                wire_params: bytes("wire_params_b64"),
                signed_params: bytes("signed_params_b64"),
                line: bytes("line_b64"),
            }
        })
        .collect()
}

pub(super) fn key() -> Key {
    Key::from_file_content(corpus_file!("test-key.txt").to_vec()).unwrap()
}

pub(super) fn parse(text: &[u8]) -> Document<'_> {
    Document::parse(text, Limits::default()).unwrap()
}

pub(super) fn items(log: &[u8]) -> Vec<LogItem> {
    let mut reader = Reader::new();
    reader.push(log);
    reader.finish();
    std::iter::from_fn(|| reader.poll()).collect()
}

pub(super) fn entries(log: &[u8]) -> Vec<Entry> {
    items(log)
        .into_iter()
        .map(|item| match item {
            LogItem::Entry(entry) => *entry,
            LogItem::Bad(bad) => panic!("{bad:?}"),
        })
        .collect()
}

fn base64(value: Value<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for byte in value.as_str_lossy().bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            other => panic!("no base64: {other}"),
        };
        bits = (bits << 6) | u32::from(digit);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push(u8::try_from(bits >> held).unwrap());
            bits &= (1 << held) - 1;
        }
    }
    out
}

/// All JSON messages that one side of the recorded session saw, as `(client to server, text)`.
pub(super) fn wire(recorded: &[u8]) -> Vec<(bool, Vec<u8>)> {
    let mut streams = [Vec::new(), Vec::new()];
    for line in recorded
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let doc = parse(line);
        let client = doc.root().get("dir").unwrap().is_str("c2s");
        streams[usize::from(client)].extend(base64(doc.root().get("b64").unwrap()));
    }
    let mut messages = Vec::new();
    for (client, stream) in [(false, &streams[0]), (true, &streams[1])] {
        for line in stream
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            messages.push((client, line.to_vec()));
        }
    }
    messages
}
