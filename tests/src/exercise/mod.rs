//! The exerciser's ground truth: what it moved, how, through what, and who did it.
//!
//! Owns the line format and the bytes of a token. The program is `src/bin/exerciser`, what a capture made of it says
//! [`classify`], [`table`] what that means for each method and kind, [`rule`] which cells may be declared, and [`index`]
//! what all tables say together.

pub mod attempted;
pub mod classify;
pub mod index;
pub mod rule;
pub mod table;

use serde::{Deserialize, Serialize};

/// Sizes of the tokens, in bytes: a line, several pages, more than a pipe holds, and one that meets the limits per operation.
pub const SIZES: [usize; 4] = [32, 9_000, 70_000, 1 << 20];

/// Channel kinds that are exercised with the largest token; the others stop at the one before.
pub const KINDS_OF_ALL_SIZES: [&str; 3] = ["pipe", "unix_stream", "tcp4"];

/// One attempt to move one token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truth {
    /// How, as `io_uring-read` or `int80-write`.
    pub method: String,
    /// Through what, as `pipe` or `tcp6`.
    pub kind: String,
    /// In which direction the method moved bytes.
    pub side: Side,
    /// Length of the token in bytes.
    pub size: usize,
    /// Determines the token: [`token`].
    pub seed: u64,
    /// The process that did it.
    pub pid: u32,
    /// When that process started: field 22 of `/proc/PID/stat`, clock ticks since boot.
    pub start_ticks: u64,
    /// Inode number of the end that it used (`fstat`).
    pub inode: u64,
    /// `CLOCK_BOOTTIME` before the first call, in nanoseconds.
    pub from_ns: u64,
    /// `CLOCK_BOOTTIME` after the last call, in nanoseconds.
    pub to_ns: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// Direction of a method, as its process sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The process writes.
    Send,
    /// The process reads.
    Receive,
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The first `bytes` bytes of the token were moved, and a check at the other end found them there.
    Moved {
        /// How many.
        bytes: usize,
    },
    /// The kernel took this many bytes out of the channel and gave them to nobody (`MSG_TRUNC` on TCP).
    Discarded {
        /// How many.
        bytes: usize,
    },
    /// The kernel moved nothing.
    Refused {
        /// Its reason, as in `errno.h`.
        errno: String,
    },
    /// Something moved, but it was not the token: the exerciser or the kernel is not what we think it is.
    Odd {
        /// What was seen.
        why: String,
    },
}

/// The token of a seed: bytes that occur nowhere else, whatever the length.
pub fn token(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed;
    // Word by word: without optimisation, and emulated, byte by byte would take most of the time of a run.
    let mut bytes = vec![0; size.next_multiple_of(8)];
    for place in bytes.chunks_exact_mut(8) {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        place.copy_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}
