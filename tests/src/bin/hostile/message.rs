//! A line in pieces as the attacks need it: its bytes and its words as numbers.

use countersign_tests::hostile::{Line, Meaning, Shape, Way, word};

/// A line with the words that it may have.
pub(crate) struct Message {
    pub(crate) bytes: Vec<u8>,
    /// Offset of the word.
    pub(crate) word_at: usize,
    pub(crate) good: u64,
    pub(crate) evil: u64,
    pub(crate) lie: u64,
    line: Line,
}

impl Message {
    /// The line of a number, with its good word.
    pub(crate) fn new(way: Way, number: usize, shape: Shape) -> Self {
        let text = Line::new(way, number, shape);
        let [good, evil, lie] =
            [Meaning::Good, Meaning::Evil, Meaning::Lie].map(|meaning| word(meaning, number));
        Self {
            bytes: text.bytes(&good),
            word_at: text.head.len(),
            good: u64::from_ne_bytes(good),
            evil: u64::from_ne_bytes(evil),
            lie: u64::from_ne_bytes(lie),
            line: text,
        }
    }

    /// The word of a line that came for this one; 0 if anything else in it is not as it must be.
    pub(crate) fn word_in(&self, line: &[u8]) -> u64 {
        self.line
            .word_of(line)
            .and_then(|word| word.try_into().ok())
            .map_or(0, u64::from_ne_bytes)
    }
}
