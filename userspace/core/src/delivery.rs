//! Deliveries: what was written at one end of a stream, tied to what was read at the other.
//!
//! Owns the frames of one stream at both ends and the ties between them. Two frames are tied when their bytes are equal: those
//! at the same place of the stream, else first in first out. A frame that stays
//! alone is a delivery with one end. It does not say which end is to be believed.

pub mod takers;

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use ahash::AHashMap;

use crate::channel::End;
use crate::frame::{Frame, FrameFlags, FrameIx};
use crate::process::ProcessIx;
use crate::record::GapReason;
use crate::stream::{Gap, Op};
use crate::time::BootNs;

use takers::Takers;

/// Frames kept per stream. Stops an agent that floods lines into a pipe nobody reads from filling memory.
pub const STREAM_FRAMES_MAX: usize = 4 << 20;

/// Gaps kept per stream; later ones are added to the last.
pub const STREAM_GAPS_MAX: usize = 4096;

/// Lines that are not JSON remembered per stream end; the rest is counted.
pub const OPAQUE_FRAMES_MAX: usize = 256;

/// Lines that are not JSON and speak of JSON-RPC remembered per stream end; further ones are frames without room.
pub const MCP_LIKE_FRAMES_MAX: usize = 1 << 16;

/// Longest write that no other write can cut: `PIPE_BUF` (pipe(7)).
const ATOMIC_WRITE_BYTES: u64 = 4096;

/// Times of contention kept per stream; later ones are added to the last.
const CONTENTIONS_MAX: usize = 4096;

/// Index of a delivery in the store of its correlation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryIx(pub u32);

/// One frame's way through one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// As written, if seen.
    pub written: Option<FrameIx>,
    /// As read, if seen.
    pub read: Option<FrameIx>,
}

/// Bytes that a process moved at one end of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Operations.
    pub ops: u64,
    /// Bytes.
    pub bytes: u64,
}

/// All that was seen of one stream.
#[derive(Debug, Default)]
pub struct StreamFrames {
    written: Vec<FrameIx>,
    read: Vec<FrameIx>,
    unmatched: [AHashMap<u64, Waiting>; 2],
    /// Missing bytes, by end.
    pub gaps: Vec<(End, Gap)>,
    /// Gaps that found no room of their own.
    pub gaps_folded: u64,
    moved_index: AHashMap<(End, ProcessIx), usize>,
    /// What each process wrote, in order of first write.
    pub writers: Vec<(ProcessIx, Moved)>,
    /// What each process read.
    pub readers: Vec<(ProcessIx, Moved)>,
    /// Which of them took what.
    pub takers: Takers,
    /// Frames that found no room.
    pub overflowed: u64,
    opaque: [usize; 2],
    mcp_like: [usize; 2],
    contention: Contention,
    json: bool,
}

/// When writes of several processes were on their way at once and one of them was long enough to be cut by another: which
/// bytes came where is then not known from the writers' side.
#[derive(Debug, Default)]
struct Contention {
    /// The writes that returned last, of two processes.
    last: Latest,
    /// The same among those that can be cut.
    last_long: Latest,
    times: Vec<(BootNs, BootNs)>,
}

/// The latest operation of each of the two processes that were last at it.
#[derive(Debug, Default)]
struct Latest([Option<(ProcessIx, BootNs, BootNs)>; 2]);

impl Latest {
    fn put(&mut self, process: ProcessIx, enter: BootNs, exit: BootNs) {
        if self.0[0].is_some_and(|(first, ..)| first != process) {
            self.0.swap(0, 1);
        }
        self.0[0] = Some((process, enter, exit));
    }

    /// The latest operation of another process, if it was still on its way at `enter`.
    fn overlapping(&self, process: ProcessIx, enter: BootNs) -> Option<(BootNs, BootNs)> {
        let other = self
            .0
            .iter()
            .flatten()
            .find(|(other, ..)| *other != process)?;
        (other.2 > enter).then_some((other.1, other.2))
    }
}

impl Contention {
    fn write(&mut self, process: ProcessIx, op: &Op) {
        let long = op.returned > ATOMIC_WRITE_BYTES;
        let met = if long {
            self.last
                .overlapping(process, op.enter)
                .map(|_| (op.enter, op.exit))
        } else {
            self.last_long.overlapping(process, op.enter)
        };
        if let Some((from, to)) = met {
            self.add(from.min(op.enter), to.max(op.exit));
        }
        self.last.put(process, op.enter, op.exit);
        if long {
            self.last_long.put(process, op.enter, op.exit);
        }
    }

    fn add(&mut self, mut from: BootNs, mut to: BootNs) {
        while let Some((last_from, last_to)) = self.times.last().copied() {
            if last_to < from && self.times.len() < CONTENTIONS_MAX {
                break;
            }
            from = from.min(last_from);
            to = to.max(last_to);
            self.times.pop();
        }
        self.times.push((from, to));
    }

    fn at(&self, from: BootNs, to: BootNs) -> bool {
        let next = self.times.partition_point(|(_, end)| *end < from);
        self.times.get(next).is_some_and(|(begin, _)| *begin <= to)
    }
}

impl StreamFrames {
    /// Takes a frame seen at one end. Returns `false` when there is no room for it and the store need not keep it.
    pub fn push(&mut self, ix: FrameIx, frame: &mut Frame, frames: &mut [Frame]) -> bool {
        if self.written.len() + self.read.len() >= STREAM_FRAMES_MAX {
            self.overflowed += 1;
            let gap = Gap {
                position: frame.position,
                len: Some(frame.len),
                reason: GapReason::MemoryLimit,
                process: None,
                since: frame.first_enter,
                until: frame.last_exit,
            };
            self.push_gap(frame.end, gap);
            return false;
        }
        let side = side(frame.end);
        if frame.flags.contains(FrameFlags::NOT_JSON) {
            if frame.flags.contains(FrameFlags::MCP_LIKE) {
                // Noise must not use up the room of what is pointed out.
                self.mcp_like[side] += 1;
                if self.mcp_like[side] > MCP_LIKE_FRAMES_MAX {
                    self.overflowed += 1;
                    return false;
                }
            } else {
                self.opaque[side] += 1;
                if self.opaque[side] > OPAQUE_FRAMES_MAX {
                    return false;
                }
            }
        } else {
            self.json = true;
        }
        if !frame.flags.contains(FrameFlags::NOT_JSON) && frame.is_complete() {
            self.tie(ix, frame, frames, side);
        }
        match frame.end {
            End::Writer => self.written.push(ix),
            End::Reader => self.read.push(ix),
        }
        true
    }

    /// Whether anything that begins like JSON was seen in it.
    pub fn has_json(&self) -> bool {
        self.json
    }

    /// Notes missing bytes.
    pub fn push_gap(&mut self, end: End, gap: Gap) {
        if self.gaps.len() >= STREAM_GAPS_MAX {
            self.gaps_folded += 1;
            if let Some((_, last)) = self.gaps.last_mut() {
                last.len = last.len.zip(gap.len).map(|(a, b)| a.saturating_add(b));
                last.until = last.until.max(gap.until);
            }
            return;
        }
        self.gaps.push((end, gap));
    }

    /// Bytes that the readers took, by the return values of their operations.
    pub fn bytes_read(&self) -> u64 {
        self.readers
            .iter()
            .fold(0, |sum, (_, moved)| sum.saturating_add(moved.bytes))
    }

    /// Bytes that were written, by the return values of the operations.
    pub fn bytes_written(&self) -> u64 {
        self.writers
            .iter()
            .fold(0, |sum, (_, moved)| sum.saturating_add(moved.bytes))
    }

    /// What was read, as kept.
    pub fn read(&self) -> impl Iterator<Item = FrameIx> + '_ {
        self.read.iter().copied()
    }

    /// The lines that were written at a position of the stream.
    pub fn written_at<'a>(
        &'a self,
        position: u64,
        frames: &'a [Frame],
    ) -> impl Iterator<Item = &'a Frame> + 'a {
        let of = |ix: &FrameIx| frames.get(ix.0 as usize);
        self.written
            .iter()
            .filter_map(of)
            .filter(move |frame| frame.position == position)
    }

    /// Whether what was written between two moments can have been cut by another's write.
    pub fn contended(&self, from: BootNs, to: BootNs) -> bool {
        self.contention.at(from, to)
    }

    /// Notes that a process moved bytes.
    pub fn moved(&mut self, end: End, op: &Op) {
        let (process, bytes) = (op.process, op.returned);
        if end == End::Writer {
            self.contention.write(process, op);
        } else {
            self.takers.took(op);
        }
        let list = match end {
            End::Writer => &mut self.writers,
            End::Reader => &mut self.readers,
        };
        let position = *self.moved_index.entry((end, process)).or_insert_with(|| {
            list.push((process, Moved::default()));
            list.len() - 1
        });
        let moved = &mut list[position].1;
        moved.ops += 1;
        moved.bytes = moved.bytes.saturating_add(bytes);
    }

    /// The deliveries: first what was written, in order, then what was read without having been seen written.
    pub fn deliveries<'a>(&'a self, frames: &'a [Frame]) -> impl Iterator<Item = Delivery> + 'a {
        let partner = |ix: &FrameIx| frames.get(ix.0 as usize).and_then(|frame| frame.partner);
        let written = self.written.iter().map(move |ix| Delivery {
            written: Some(*ix),
            read: partner(ix),
        });
        let read_only = self
            .read
            .iter()
            .filter(move |ix| partner(ix).is_none())
            .map(|ix| Delivery {
                written: None,
                read: Some(*ix),
            });
        written.chain(read_only)
    }

    fn tie(&mut self, ix: FrameIx, frame: &mut Frame, frames: &mut [Frame], side: usize) {
        let hash = frame.hash;
        if let Entry::Occupied(mut waiting) = self.unmatched[1 - side].entry(hash)
            && let Some(other) = waiting.get_mut().take(frame, frames)
        {
            if waiting.get().is_empty() {
                waiting.remove();
            }
            if let Some(tied) = frames.get_mut(other.0 as usize) {
                frame.bytes = Arc::clone(&tied.bytes);
                tied.partner = Some(ix);
                frame.partner = Some(other);
            }
            return;
        }
        match self.unmatched[side].entry(hash) {
            Entry::Occupied(mut waiting) => waiting.get_mut().push(ix),
            Entry::Vacant(place) => {
                place.insert(Waiting::One(ix));
            }
        }
    }
}

/// Frames of one end and one hash that no frame of the other end was tied to, in the order in which they came.
#[derive(Debug)]
enum Waiting {
    /// As a rule there is one.
    One(FrameIx),
    Several(VecDeque<FrameIx>),
}

impl Waiting {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Several(queue) if queue.is_empty())
    }

    fn push(&mut self, ix: FrameIx) {
        match self {
            Self::One(first) => *self = Self::Several(VecDeque::from([*first, ix])),
            Self::Several(queue) => queue.push_back(ix),
        }
    }

    /// Takes out the frame that is the other end of `frame`.
    ///
    /// Both ends count the same bytes, so of several equal lines the one at the same place is it. Where writes that overlap were
    /// numbered in another order than they came to lie in, the first is as good as any.
    fn take(&mut self, frame: &Frame, frames: &[Frame]) -> Option<FrameIx> {
        let of = |other: &FrameIx| frames.get(other.0 as usize);
        let equal = |other: &FrameIx| of(other).is_some_and(|other| other.is_same_text(frame));
        match self {
            Self::One(other) => {
                let other = *other;
                equal(&other).then(|| {
                    *self = Self::Several(VecDeque::new());
                    other
                })
            }
            Self::Several(queue) => {
                let place = queue.partition_point(|other| {
                    of(other).is_some_and(|other| other.position < frame.position)
                });
                let same_place = Some(place).filter(|at| {
                    queue.get(*at).is_some_and(|other| {
                        equal(other)
                            && of(other).is_some_and(|other| other.position == frame.position)
                    })
                });
                let found = same_place.or_else(|| queue.iter().position(equal))?;
                queue.remove(found)
            }
        }
    }
}

fn side(end: End) -> usize {
    match end {
        End::Writer => 0,
        End::Reader => 1,
    }
}
