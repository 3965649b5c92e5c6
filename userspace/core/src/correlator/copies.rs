//! The kernel's own copies: held until the operation that they belong to is known, then put in the place of what the reader's memory
//! held when it returned.
//!
//! Owns what is kept of them and the differences found. A copy is made before the kernel copies to the reader, so it has neither
//! the operation's number nor its result: thread, channel and time of entry tie the two. What lies past the
//! result was never delivered.

use std::collections::HashMap;

use countersign_common as abi;

use crate::channel::ChannelIx;
use crate::process::ProcessIx;
use crate::record::GapReason;
use crate::stream::{Op, Payload};
use crate::time::BootNs;

/// Bytes of copies held. Stops many threads that wait in the middle of a read from filling memory; what does not fit is believed as
/// the reader's memory says it.
pub(super) const COPIES_MAX_BYTES: usize = 64 << 20;

/// Differences kept. Stops a reader that rewrites its buffer in a loop from filling memory.
pub(super) const DIFFERENCES_MAX: usize = 1 << 16;

/// A reader whose memory held something else at its return than the kernel had copied there, or was gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    /// Who.
    pub(super) process: ProcessIx,
    /// Where.
    pub(super) channel: ChannelIx,
    /// Return of the operation.
    pub(super) at: BootNs,
    /// Bytes read at that end before.
    pub(super) position: u64,
}

/// One open operation's copies, contiguous from its first byte.
#[derive(Debug)]
struct Held {
    object: u64,
    enter_ns: u64,
    bytes: Vec<u8>,
    whole: bool,
}

/// Copies of operations whose end has not come yet: a thread is in one at a time.
#[derive(Debug, Default)]
pub(super) struct Copies {
    held: HashMap<(u32, u32, u64), Held>,
    bytes: usize,
    /// Differences found, in the order of their operations.
    pub(super) differences: Vec<Difference>,
    /// Differences that found no room.
    pub(super) differences_dropped: u64,
}

fn key(task: &abi::Task) -> (u32, u32, u64) {
    (task.tgid, task.tid, task.start_boot_ns)
}

impl Copies {
    /// Takes a copy.
    pub(super) fn take(&mut self, transfer: &abi::Transfer, data: &[u8]) {
        let key = key(&transfer.task);
        let stale = self.held.get(&key).is_some_and(|held| {
            (held.object, held.enter_ns) != (transfer.channel.object, transfer.enter_ns)
        });
        if stale {
            self.drop_of(&transfer.task);
        }
        let no_room = self.bytes.saturating_add(data.len()) > COPIES_MAX_BYTES;
        let held = self.held.entry(key).or_insert_with(|| Held {
            object: transfer.channel.object,
            enter_ns: transfer.enter_ns,
            bytes: Vec::new(),
            whole: true,
        });
        if no_room || transfer.offset != held.bytes.len() as u64 {
            held.whole = false;
        }
        if held.whole {
            self.bytes += data.len();
            held.bytes.extend_from_slice(data);
        }
    }

    /// Puts the kernel's bytes of a part of an operation in the place of what the reader's memory held, if they are all there; else the
    /// operation is no longer said to have them.
    pub(super) fn replace<'a>(
        &'a self,
        transfer: &abi::Transfer,
        op: &mut Op,
        payload: Payload<'a>,
    ) -> (Payload<'a>, bool) {
        let own = (op.flags & abi::transfer_flags::KERNEL_COPY != 0)
            .then(|| self.of(transfer))
            .flatten();
        let Some(own) = own else {
            op.flags &= !abi::transfer_flags::KERNEL_COPY;
            return (payload, false);
        };
        let differs = match payload {
            Payload::Bytes(data) => data != own,
            // The kernel has just touched it there: it was taken away meanwhile.
            Payload::Missing { reason, .. } => reason == GapReason::Fault,
        };
        (Payload::Bytes(own), differs)
    }

    /// A part of a read has been taken: notes a difference, and forgets the operation after its last part.
    pub(super) fn taken(
        &mut self,
        transfer: &abi::Transfer,
        op: &Op,
        channel: ChannelIx,
        differs: bool,
    ) {
        if differs {
            self.differs(Difference {
                process: op.process,
                channel,
                at: op.exit,
                position: op.stream_before,
            });
        }
        if transfer.offset.saturating_add(u64::from(transfer.len)) >= transfer.returned {
            self.drop_of(&transfer.task);
        }
    }

    /// The kernel's bytes of a part of an operation, if it has them all.
    fn of(&self, transfer: &abi::Transfer) -> Option<&[u8]> {
        let held = self.held.get(&key(&transfer.task))?;
        let same = (held.object, held.enter_ns) == (transfer.channel.object, transfer.enter_ns);
        let start = usize::try_from(transfer.offset).ok()?;
        let all = usize::try_from(transfer.returned).ok()?;
        if !same || !held.whole || held.bytes.len() < all {
            return None;
        }
        held.bytes
            .get(start..start.checked_add(transfer.len as usize)?)
    }

    /// Forgets what a thread's last operation had: it is over, whether it succeeded or not.
    fn drop_of(&mut self, task: &abi::Task) {
        if let Some(held) = self.held.remove(&key(task)) {
            self.bytes = self.bytes.saturating_sub(held.bytes.len());
        }
    }

    /// Notes a difference, once for an operation.
    fn differs(&mut self, difference: Difference) {
        if self.differences.last() == Some(&difference) {
            return;
        }
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(difference);
        } else {
            self.differences_dropped += 1;
        }
    }
}
