//! Frames: the bytes of one JSON-RPC payload in a stream, as seen at one end.
//!
//! Owns the frame type and, one module per framing, the state machines that cut streams into frames. It does not parse JSON.

use std::sync::{Arc, OnceLock};

use bitflags::bitflags;
use smallvec::SmallVec;

use crate::channel::{End, StreamIx};
use crate::process::ProcessIx;
use crate::time::BootNs;

pub mod line;
mod network;
mod value;

/// Longest frame kept, in bytes. Stops a writer that never ends its line from filling memory.
pub const FRAME_MAX_BYTES: usize = 64 << 20;

/// Processes remembered as carriers of one line.
const CARRIERS_MAX: usize = 16;

/// Index of a frame in the correlator's store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameIx(pub u32);

bitflags! {
    /// What is wrong or odd about a frame.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FrameFlags: u16 {
        /// A gap lies before its first byte: the beginning may be missing.
        const HEAD_MISSING = 1 << 0;
        /// A gap lies inside or right after it: its bytes are incomplete.
        const INCOMPLETE = 1 << 1;
        /// Operations that overlap in time share it; their order is a guess.
        const ORDER_AMBIGUOUS = 1 << 2;
        /// A descriptor was swapped during one of its operations.
        const FD_SWAPPED = 1 << 3;
        /// Longer than [`FRAME_MAX_BYTES`]; the rest was dropped.
        const TOO_LONG = 1 << 4;
        /// The capture began inside the stream and this is its first frame.
        const FIRST_OF_ATTACHED = 1 << 5;
        /// It does not begin like JSON; its bytes were not kept.
        const NOT_JSON = 1 << 6;
        /// The stream ended without a line end.
        const UNTERMINATED = 1 << 7;
        /// It is not JSON by itself, but speaks of JSON-RPC: another framing, or a value over several lines.
        const MCP_LIKE = 1 << 8;
        /// A JSON value over several lines, or one that begins where another ended; its lines are frames too.
        const SPANS_LINES = 1 << 9;
        /// Every byte is the kernel's own copy of what it delivered to the reader.
        const KERNEL_COPY = 1 << 10;
        /// With [`MCP_LIKE`](Self::MCP_LIKE): in UTF-16 or UTF-32, or behind a binary length. No text that a program prints looks so.
        const DISGUISED = 1 << 11;
    }
}

impl FrameFlags {
    /// Those of a frame made of two: what is wrong with one is wrong with it, and what is good must be of both.
    fn joined(self, other: Self) -> Self {
        let good = self & other & Self::KERNEL_COPY;
        ((self | other) - Self::KERNEL_COPY) | good
    }
}

/// One frame at one end.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Which stream.
    pub stream: StreamIx,
    /// Seen at which end.
    pub end: End,
    /// Position of its first byte in the stream.
    pub position: u64,
    /// Length in bytes, without the line end.
    pub len: u64,
    /// Entry of the operation that carried its first byte.
    pub first_enter: BootNs,
    /// Return of the operation that carried its first byte.
    pub first_exit: BootNs,
    /// Return of the operation that carried its last byte.
    pub last_exit: BootNs,
    /// Whose operations carried it, in order of first byte.
    pub by: SmallVec<[ProcessIx; 4]>,
    /// Its bytes, without the line end; empty when not kept. Frames that were tied, or passed on, share them.
    pub bytes: Arc<Vec<u8>>,
    /// [`hash`] of the bytes, once the frame is kept.
    pub hash: u64,
    /// What is wrong with it.
    pub flags: FrameFlags,
    /// The frame at the other end of the stream that it is tied to.
    pub partner: Option<FrameIx>,
}

impl Frame {
    /// Whether every byte is there.
    pub fn is_complete(&self) -> bool {
        !self
            .flags
            .intersects(FrameFlags::HEAD_MISSING | FrameFlags::INCOMPLETE | FrameFlags::TOO_LONG)
    }

    /// Whether every byte is there and in proved order.
    pub fn is_whole(&self) -> bool {
        self.is_complete() && !self.flags.contains(FrameFlags::ORDER_AMBIGUOUS)
    }

    /// Whether it begins and ends where its line does.
    pub fn is_a_line(&self) -> bool {
        !self.flags.intersects(
            FrameFlags::HEAD_MISSING
                | FrameFlags::FIRST_OF_ATTACHED
                | FrameFlags::INCOMPLETE
                | FrameFlags::UNTERMINATED,
        )
    }

    /// Whether two frames have the same bytes.
    pub fn is_same_text(&self, other: &Self) -> bool {
        self.hash == other.hash
            && (Arc::ptr_eq(&self.bytes, &other.bytes) || self.bytes == other.bytes)
    }
}

/// Proposes that texts are equal; their bytes decide. The key is drawn once a run, so that nobody can choose texts that collide.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    static KEY: OnceLock<ahash::RandomState> = OnceLock::new();
    KEY.get_or_init(ahash::RandomState::new).hash_one(bytes)
}
