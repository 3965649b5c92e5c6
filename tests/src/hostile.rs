//! What the hostile agent and server say to each other, for them and for the test that holds the evidence against it.
//!
//! Every line has one word of eight letters that the attacks change. It is another one in every message, so that no part of
//! one can be taken for a part of another.

/// Bytes of a word.
pub const WORD_BYTES: usize = 8;

/// What a word is for: its first letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// What a buffer shows to whoever looks outside of the system call.
    Good,
    /// What is really sent.
    Evil,
    /// What a reader claims that it got.
    Lie,
}

/// The word of a message's number.
#[must_use]
pub fn word(meaning: Meaning, number: usize) -> [u8; WORD_BYTES] {
    let mut word = [b'a'; WORD_BYTES];
    word[0] = match meaning {
        Meaning::Good => b'g',
        Meaning::Evil => b'e',
        Meaning::Lie => b'l',
    };
    let mut rest = number;
    for letter in word[1..].iter_mut().rev() {
        *letter += u8::try_from(rest % 26).unwrap_or(0);
        rest /= 26;
    }
    word
}

/// Which way a line goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// From the agent to the server.
    Request,
    /// Back.
    Answer,
}

impl Way {
    /// Its name in what the programs write down.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Answer => "answer",
        }
    }
}

/// How much stands around the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of padding before it.
    pub before: usize,
    /// And behind it.
    pub after: usize,
}

/// A line in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Up to the word.
    pub head: String,
    /// From behind the word on, with the line's end.
    pub tail: String,
    /// Where in the head the value of `params` or `result` begins.
    body_at: usize,
}

impl Line {
    /// The line of a number.
    #[must_use]
    pub fn new(way: Way, number: usize, shape: Shape) -> Self {
        let (before, after) = ("x".repeat(shape.before), "y".repeat(shape.after));
        let (envelope, body) = match way {
            Way::Request => (
                format!(r#"{{"jsonrpc":"2.0","id":"{number:07}","method":"tools/call","params":"#),
                format!(r#"{{"arguments":{{"a":"{before}"}},"name":""#),
            ),
            Way::Answer => (
                format!(r#"{{"jsonrpc":"2.0","id":"{number:07}","result":"#),
                format!(r#"{{"a":"{before}","name":""#),
            ),
        };
        Self {
            body_at: envelope.len(),
            head: envelope + &body,
            tail: format!("\",\"b\":\"{after}\"}}}}\n"),
        }
    }

    /// All of it, with a word.
    #[must_use]
    pub fn bytes(&self, word: &[u8]) -> Vec<u8> {
        [self.head.as_bytes(), word, self.tail.as_bytes()].concat()
    }

    /// The value of `params` or `result`.
    #[must_use]
    pub fn body(&self, word: &[u8]) -> Vec<u8> {
        let mut body = self.bytes(word).split_off(self.body_at);
        body.truncate(body.len() - "}\n".len());
        body
    }

    /// The word of such a line, whatever it says; `None` if that line is another one.
    #[must_use]
    pub fn word_of<'a>(&self, line: &'a [u8]) -> Option<&'a [u8]> {
        line.strip_prefix(self.head.as_bytes())?
            .strip_suffix(self.tail.as_bytes())
    }
}
