//! One end of one stream: operations put in order, holes sized, bytes handed on.
//!
//! Owns the reassembly of operations from their parts and the order of operations at one end. Operations are numbered by the
//! kernel in the order of their exit probes; a number that never comes is a hole whose size the kernel's byte counter
//! tells. It does not know what the bytes mean.

use std::collections::BTreeMap;

use countersign_common as abi;

use crate::process::ProcessIx;
use crate::record::GapReason;
use crate::time::BootNs;

/// Operations held back while an earlier one is missing. Stops a lost operation from holding up memory for ever.
pub const HELD_OPS_MAX: usize = 4096;

/// Bytes held back while an earlier operation is missing.
pub const HELD_BYTES_MAX: usize = 64 << 20;

/// How long an incomplete operation may hold up later ones, in nanoseconds of capture time.
pub const HOLE_WAIT_NS: u64 = 2_000_000_000;

/// What is known of an operation besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// Who.
    pub process: ProcessIx,
    /// Thread.
    pub tid: u32,
    /// System call number.
    pub syscall: u16,
    /// Bits of [`abi::transfer_flags`].
    pub flags: u16,
    /// Entry into the kernel.
    pub enter: BootNs,
    /// Return from the kernel.
    pub exit: BootNs,
    /// Bytes moved.
    pub returned: u64,
    /// Bytes moved before, at this end in this direction.
    pub stream_before: u64,
}

/// What comes out of an end, in order.
#[derive(Clone, Copy, Debug)]
pub enum Item<'a> {
    /// Bytes at `offset` of an operation.
    Bytes {
        /// The operation.
        op: &'a Op,
        /// Offset within it.
        offset: u64,
        /// Position in the stream.
        position: u64,
        /// The bytes, not empty.
        data: &'a [u8],
    },
    /// Bytes that are missing.
    Gap(Gap),
}

/// Missing bytes at one end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Position in the stream by the kernel's counter.
    pub position: u64,
    /// Length; `None` when the kernel could not size it.
    pub len: Option<u64>,
    /// Why.
    pub reason: GapReason,
    /// Whose operation it was; `None` when the operation was never seen.
    pub process: Option<ProcessIx>,
    /// Latest moment at which the missing bytes can have moved.
    pub until: BootNs,
    /// Earliest moment.
    pub since: BootNs,
}

#[derive(Debug)]
struct Held {
    op: Op,
    /// Parts by offset: bytes or the reason for their absence, with their length.
    parts: BTreeMap<u64, (u64, Part)>,
    have: u64,
    first_seen: BootNs,
}

#[derive(Debug)]
enum Part {
    Bytes(Vec<u8>),
    Missing(GapReason),
}

/// Reassembly of one end of one stream.
#[derive(Debug, Default)]
pub struct EndLog {
    epoch: Option<u64>,
    next_seq: u64,
    next_position: u64,
    held: BTreeMap<u64, Held>,
    held_bytes: usize,
    last_exit: BootNs,
    closed: bool,
    /// Operations released.
    pub ops: u64,
    /// Bytes moved according to the kernel.
    pub bytes: u64,
    /// Bytes captured.
    pub captured: u64,
    /// Bytes in gaps. With those captured they are all that moved, whatever was fed.
    pub missing: u64,
    /// Parts that repeated what was there (a replayed spool, a hostile record); ignored.
    pub duplicates: u64,
}

/// What a record brings.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// Captured bytes.
    Bytes(&'a [u8]),
    /// A declared absence of `len` bytes.
    Missing {
        /// Length.
        len: u64,
        /// Why.
        reason: GapReason,
    },
}

impl EndLog {
    /// Takes one part of an operation and hands on all that is now in order.
    pub fn push(
        &mut self,
        transfer: &abi::Transfer,
        op: Op,
        payload: Payload<'_>,
        now: BootNs,
        out: &mut impl FnMut(Item<'_>),
    ) {
        if self.epoch != Some(transfer.channel.epoch) {
            self.begin_epoch(transfer, &op, out);
        }
        let seq = transfer.op_seq;
        if seq < self.next_seq {
            self.duplicates += 1;
            return;
        }
        if let Payload::Bytes(data) = payload
            && seq == self.next_seq
            && self.held.is_empty()
            && transfer.offset == 0
            && data.len() as u64 == op.returned
        {
            self.release_bytes(&op, 0, data, out);
            self.finish_op(seq, &op);
            return;
        }
        self.hold(transfer, op, payload, now);
        self.release_ready(out);
        if self.held.len() > HELD_OPS_MAX || self.held_bytes > HELD_BYTES_MAX {
            self.release_first(out);
            self.release_ready(out);
        }
    }

    /// Gives up waiting for parts that are overdue at `now`.
    pub fn settle(&mut self, now: BootNs, out: &mut impl FnMut(Item<'_>)) {
        while let Some((_, first)) = self.held.first_key_value() {
            if now.0.saturating_sub(first.first_seen.0) < HOLE_WAIT_NS {
                return;
            }
            self.release_first(out);
            self.release_ready(out);
        }
    }

    /// Gives up waiting altogether: the capture is over.
    pub fn finish(&mut self, out: &mut impl FnMut(Item<'_>)) {
        while !self.held.is_empty() {
            self.release_first(out);
        }
    }

    /// Compares with the kernel's totals for this end: what it counted beyond the last operation seen is a gap.
    pub fn close(
        &mut self,
        kernel_ops: u64,
        kernel_bytes: u64,
        at: BootNs,
        out: &mut impl FnMut(Item<'_>),
    ) {
        self.closed = true;
        if kernel_bytes > self.next_position || kernel_ops > self.next_seq {
            let len = kernel_bytes.saturating_sub(self.next_position);
            self.gap(Some(len), GapReason::UnseenOps, None, at, out);
            self.next_position = self.next_position.max(kernel_bytes);
            self.next_seq = self.next_seq.max(kernel_ops);
            self.bytes = self.bytes.saturating_add(len);
            self.missing = self.missing.saturating_add(len);
        }
    }

    /// Whether nothing was seen yet, or what was seen is of this epoch of the kernel's counters.
    pub fn is_of_epoch(&self, epoch: u64) -> bool {
        self.epoch.is_none_or(|known| known == epoch)
    }

    /// The kernel's totals for this end are known: nothing can have come after what is accounted for.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Bytes moved, as far as everything has arrived.
    pub fn position(&self) -> u64 {
        self.next_position
    }

    /// Operations, as far as all have arrived.
    pub fn operations(&self) -> u64 {
        self.next_seq
    }

    /// Whether all operations have arrived up to this number.
    pub fn has_all(&self, ops: u64) -> bool {
        self.next_seq >= ops
    }

    /// Whether what moved is what was captured and what is said to be missing.
    pub fn adds_up(&self) -> bool {
        self.captured.saturating_add(self.missing) == self.bytes
    }

    /// Return of the last operation seen.
    pub fn last_exit(&self) -> BootNs {
        self.last_exit
    }

    fn begin_epoch(&mut self, transfer: &abi::Transfer, op: &Op, out: &mut impl FnMut(Item<'_>)) {
        self.finish(out);
        if self.epoch.is_some() {
            self.gap(None, GapReason::UnseenOps, None, op.exit, out);
        }
        self.epoch = Some(transfer.channel.epoch);
        self.next_seq = 0;
        self.next_position = 0;
    }

    fn hold(&mut self, transfer: &abi::Transfer, op: Op, payload: Payload<'_>, now: BootNs) {
        let held = self.held.entry(transfer.op_seq).or_insert_with(|| Held {
            op,
            parts: BTreeMap::new(),
            have: 0,
            first_seen: now,
        });
        let (len, part) = match payload {
            Payload::Bytes(data) => (data.len() as u64, Part::Bytes(data.to_vec())),
            Payload::Missing { len, reason } => (len, Part::Missing(reason)),
        };
        let end = transfer.offset.saturating_add(len);
        let overlaps =
            held.parts
                .range(..end)
                .next_back()
                .is_some_and(|(offset, (part_len, _))| {
                    offset.saturating_add(*part_len) > transfer.offset
                });
        if overlaps || len == 0 || end > held.op.returned {
            self.duplicates += 1;
            return;
        }
        held.have += len;
        if let Part::Bytes(bytes) = &part {
            self.held_bytes += bytes.len();
        }
        held.parts.insert(transfer.offset, (len, part));
    }

    fn release_ready(&mut self, out: &mut impl FnMut(Item<'_>)) {
        while let Some((seq, held)) = self.held.first_key_value() {
            if *seq != self.next_seq || held.have != held.op.returned {
                return;
            }
            self.release_first(out);
        }
    }

    fn release_first(&mut self, out: &mut impl FnMut(Item<'_>)) {
        let Some((seq, held)) = self.held.pop_first() else {
            return;
        };
        self.step_to(seq, &held.op, out);
        let mut at = 0;
        for (offset, (len, part)) in held.parts {
            if offset > at {
                self.op_gap(&held.op, at, offset - at, GapReason::RingFull, out);
            }
            match part {
                Part::Bytes(data) => {
                    self.held_bytes = self.held_bytes.saturating_sub(data.len());
                    self.release_bytes(&held.op, offset, &data, out);
                }
                Part::Missing(reason) => self.op_gap(&held.op, offset, len, reason, out),
            }
            at = offset + len;
        }
        if at < held.op.returned {
            self.op_gap(
                &held.op,
                at,
                held.op.returned - at,
                GapReason::RingFull,
                out,
            );
        }
        self.finish_op(seq, &held.op);
    }

    /// Accounts for operations that never came before this one. Only a hole in the numbers is a loss: number and byte
    /// counter are taken one after the other, so concurrent operations can have them crossed.
    fn step_to(&mut self, seq: u64, op: &Op, out: &mut impl FnMut(Item<'_>)) {
        if seq > self.next_seq {
            let len = op.stream_before.saturating_sub(self.next_position);
            self.bytes = self.bytes.saturating_add(len);
            self.missing = self.missing.saturating_add(len);
            self.gap(Some(len), GapReason::UnseenOps, None, op.exit, out);
            self.next_position = self.next_position.saturating_add(len);
        }
    }

    fn release_bytes(&mut self, op: &Op, offset: u64, data: &[u8], out: &mut impl FnMut(Item<'_>)) {
        self.captured = self.captured.saturating_add(data.len() as u64);
        out(Item::Bytes {
            op,
            offset,
            position: self.next_position.saturating_add(offset),
            data,
        });
    }

    fn op_gap(
        &mut self,
        op: &Op,
        offset: u64,
        len: u64,
        reason: GapReason,
        out: &mut impl FnMut(Item<'_>),
    ) {
        self.missing = self.missing.saturating_add(len);
        out(Item::Gap(Gap {
            position: self.next_position.saturating_add(offset),
            len: Some(len),
            reason,
            process: Some(op.process),
            since: op.enter,
            until: op.exit,
        }));
    }

    fn gap(
        &mut self,
        len: Option<u64>,
        reason: GapReason,
        process: Option<ProcessIx>,
        until: BootNs,
        out: &mut impl FnMut(Item<'_>),
    ) {
        out(Item::Gap(Gap {
            position: self.next_position,
            len,
            reason,
            process,
            since: self.last_exit,
            until,
        }));
    }

    fn finish_op(&mut self, seq: u64, op: &Op) {
        self.ops += 1;
        self.bytes = self.bytes.saturating_add(op.returned);
        self.next_seq = seq.saturating_add(1);
        self.next_position = self.next_position.saturating_add(op.returned);
        self.last_exit = self.last_exit.max(op.exit);
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
