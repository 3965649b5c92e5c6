//! A recording whose programs outlive this process.
//!
//! Owns the order of things between the spool and the kernel: what a later process goes on with is on the disk before the kernel says
//! that there is something to go on with, and before it gives up the last copy.

use std::time::Duration;

use super::Recording;
use crate::bpf::capture::Capture;
use crate::bpf::pin::{Note, PinDir};
use crate::exit::{Code, Failure, OrExit};
use crate::spool::SpoolThread;

/// Longest wait for the disk to take what was noted. Stops a disk that hangs from holding up whoever follows the logs for good.
const SETTLE_MAX: Duration = Duration::from_secs(10);

/// Where the programs of a recording are pinned.
#[derive(Debug)]
pub(super) struct Pin {
    dir: PinDir,
    /// What tells a later process that it can go on, until it can.
    unsigned: Option<Note>,
}

impl Pin {
    pub(super) fn of(capture: &mut Capture) -> Option<Self> {
        let dir = capture.pin_dir().cloned()?;
        let unsigned = capture.take_unsigned();
        Some(Self { dir, unsigned })
    }

    /// Takes the pins away: what ended in order leaves nothing behind. Not before all that was in the rings is on the disk.
    pub(super) fn remove(self, spool: &SpoolThread) -> anyhow::Result<()> {
        settle(spool);
        self.dir.remove()
    }
}

/// Waits until all that was given to the spool is where the end of this process cannot lose it; `false`: the disk does not take it.
pub(super) fn settle(spool: &SpoolThread) -> bool {
    spool.backlog().settle(SETTLE_MAX)
}

impl Recording {
    /// Makes a pinned capture one that a later process goes on with: what only this one knew (settings, keys of hashes, who held
    /// what) is in the spool from then on. Nothing where nothing is pinned.
    ///
    /// # Errors
    /// When the disk does not take it, and there is no earlier process's beginning to rely on.
    pub fn settle(&mut self) -> Result<(), Failure> {
        let Some(pin) = &mut self.pin else {
            return Ok(());
        };
        let settled = settle(&self.spool);
        let Some(note) = pin.unsigned.take() else {
            return Ok(());
        };
        if !settled {
            return Err(Failure::new(
                Code::Io,
                "the disk did not take the beginning of the recording, which a later process could not go on without",
            ));
        }
        pin.dir.sign(&note).or_exit(Code::Unavailable)
    }
}
