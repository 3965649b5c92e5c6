//! Pairing: calls held against what the proxy's log says.
//!
//! Owns the third view ([`statement`]), the fingerprints of content ([`content`]) and the assignment ([`assign`]). Every call
//! and every statement ends in at most one pair; what pairs with what never depends on chance. It does not judge.

pub mod assign;
pub mod content;
pub mod statement;

use crate::proxylog::{BadLine, Entry};

/// Index of a log file in the order in which the shell opened them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileIx(pub u32);

/// An entry with the log that it stands in.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// Index of the configured proxy.
    pub proxy: usize,
    /// Its file.
    pub file: FileIx,
    /// The entry.
    pub entry: Entry,
}

/// A line that is no entry, with the log that it stands in.
#[derive(Clone, Copy, Debug)]
pub struct LogBad {
    /// Index of the configured proxy.
    pub proxy: usize,
    /// Its file.
    pub file: FileIx,
    /// The line.
    pub bad: BadLine,
}
