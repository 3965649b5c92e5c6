//! Operations on their way: of which bytes can have moved while nothing counts them yet.
//!
//! Owns those that the last look at a stream found on their way and that no look has found counted since. Nearly always that is the one read
//! that a server waits in.

use countersign_common as abi;

use crate::stream::Op;
use crate::time::BootNs;

/// Operations that are kept. Stops an agent that waits in one stream with very many threads from filling memory; those beyond are taken to
/// be on their way for good, which hides as much as they moved.
const OPEN_MAX: usize = 4096;

/// From when on an operation can have been on its way. Of one whose beginning was not seen it is not known.
pub fn since(op: &Op) -> BootNs {
    if op.flags & abi::transfer_flags::NO_ENTER != 0 {
        BootNs(0)
    } else {
        op.enter
    }
}

/// Operations of one end by number, with what each moved.
#[derive(Debug, Default)]
pub struct OnTheWay {
    open: Vec<(u64, i128)>,
    /// What those moved that found no room.
    for_good: i128,
    /// All of it is to be said once more, to the next look.
    again: bool,
}

impl OnTheWay {
    /// An operation that no look has found counted.
    pub fn add(&mut self, number: u64, moved: i128) {
        if self.open.len() < OPEN_MAX {
            self.open.push((number, moved));
        } else {
            self.for_good += moved;
        }
    }

    /// The next look counted so many operations: by how much more, or less, is on its way from then on.
    pub fn look(&mut self, ops: u64) -> i128 {
        let mut change = 0;
        if std::mem::take(&mut self.again) {
            change = self.for_good + self.open.iter().map(|(_, moved)| *moved).sum::<i128>();
        }
        self.open.retain(|(number, moved)| {
            let counted = *number < ops;
            if counted {
                change -= *moved;
            }
            !counted
        });
        change
    }

    /// What was said so far was added to what earlier looks say: the next one starts from nothing.
    pub fn say_again(&mut self) {
        self.again = true;
    }

    /// The numbers begin anew.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}
