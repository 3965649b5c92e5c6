//! What is said: calls and answers with a word of eight bytes that is one thing or another.

/// What the buffers show to whoever looks outside of the system call.
pub(crate) const GOOD: u64 = u64::from_ne_bytes(*b"goodgood");

/// What is really sent.
pub(crate) const EVIL: u64 = u64::from_ne_bytes(*b"evilevil");

/// What a reader claims that it got.
pub(crate) const LIE: u64 = u64::from_ne_bytes(*b"lieslies");

/// A line with its word.
pub(crate) struct Message {
    pub(crate) bytes: Vec<u8>,
    /// Offset of the word.
    pub(crate) word_at: usize,
}

/// Which way a line goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Request,
    Answer,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Answer => "answer",
        }
    }
}

/// The line of a number, with so much in front of its word.
pub(crate) fn message(way: Way, number: usize, padding: usize) -> Message {
    let (before, after) = ("x".repeat(padding), "y".repeat(400));
    let head = match way {
        Way::Request => format!(
            r#"{{"jsonrpc":"2.0","id":"{number:07}","method":"tools/call","params":{{"arguments":{{"a":"{before}"}},"name":""#
        ),
        Way::Answer => {
            format!(r#"{{"jsonrpc":"2.0","id":"{number:07}","result":{{"a":"{before}","name":""#)
        }
    };
    Message {
        word_at: head.len(),
        bytes: format!("{head}goodgood\",\"b\":\"{after}\"}}}}\n").into_bytes(),
    }
}

/// The word of a line in which nothing else is one.
pub(crate) fn word_in(line: &[u8]) -> u64 {
    const BEFORE: &[u8] = br#""name":""#;
    let at = line
        .windows(BEFORE.len())
        .position(|window| window == BEFORE);
    at.and_then(|at| line.get(at + BEFORE.len()..)?.first_chunk().copied())
        .map_or(0, u64::from_ne_bytes)
}
