//! Tier T as the commands' witness.
//!
//! Owns the joining of loaded programs with the heartbeats that make their records trustworthy, and the question which tagged
//! processes still live.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use countersign_common::tag;
use sha2::{Digest, Sha256};
use zerocopy::IntoBytes;

use super::Witness;
use crate::bpf::load::{self, Capture, LoadOptions, RING_BYTES_DEFAULT};
use crate::source::live;

/// Time between heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Empty looks at the ring after which it counts as drained, and the time between them: a record that is reserved and not yet
/// submitted makes the ring look empty for some microseconds.
const EMPTY_LOOKS: u32 = 3;
const LOOK_PAUSE: Duration = Duration::from_millis(4);

/// Longest drain at the end. Survivors that go on writing would keep it going for ever.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// A loaded tier T.
pub(super) struct TierT {
    capture: Capture,
    heartbeat_at: Instant,
}

impl TierT {
    pub(super) fn attach(generation: u64, proxy_exes: Vec<(u32, u64)>) -> anyhow::Result<Self> {
        let capture =
            load::load(&LoadOptions { ring_bytes: RING_BYTES_DEFAULT, generation, proxy_exes })?;
        Ok(Self { capture, heartbeat_at: Instant::now() })
    }
}

impl Witness for TierT {
    fn generation(&self) -> u64 {
        self.capture.generation()
    }

    fn offsets_sha256(&self) -> String {
        Sha256::digest(self.capture.offsets().as_bytes())
            .iter()
            .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
    }

    fn tag(&mut self, pid: u32, pidfd: BorrowedFd<'_>) -> anyhow::Result<()> {
        self.capture.tag_process(pidfd, tag::TREE)?;
        let read_back = self.capture.tag_of(pid)?;
        anyhow::ensure!(
            read_back.is_some_and(|bits| bits & tag::TREE != 0),
            "the tag of process {pid} could not be read back"
        );
        Ok(())
    }

    fn drain(&mut self, sink: &mut dyn FnMut(&[u8])) -> anyhow::Result<usize> {
        let records = self.capture.drain(&mut *sink);
        if Instant::now() >= self.heartbeat_at {
            live::heartbeat(&self.capture, &mut |bytes: &[u8]| {
                sink(bytes);
                Ok(())
            })?;
            self.heartbeat_at = Instant::now() + HEARTBEAT;
        }
        Ok(records)
    }

    fn survivors(&mut self) -> anyhow::Result<Vec<u32>> {
        let mut alive = Vec::new();
        for entry in std::fs::read_dir("/proc").context("list processes")? {
            let name = entry.context("list processes")?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // A process that ends while it is looked at is none that lives.
            if let Ok(Some(bits)) = self.capture.tag_of(pid)
                && bits & tag::TREE != 0
            {
                alive.push(pid);
            }
        }
        Ok(alive)
    }

    fn close(&mut self, sink: &mut dyn FnMut(&[u8])) -> anyhow::Result<()> {
        let deadline = Instant::now() + DRAIN_MAX;
        let mut empty_looks = 0;
        while empty_looks < EMPTY_LOOKS && Instant::now() < deadline {
            if self.capture.drain(&mut *sink) == 0 {
                empty_looks += 1;
                std::thread::sleep(LOOK_PAUSE);
            } else {
                empty_looks = 0;
            }
        }
        let mut into = |bytes: &[u8]| {
            sink(bytes);
            Ok(())
        };
        live::totals(&self.capture, &mut into)?;
        live::heartbeat(&self.capture, &mut into)
    }
}
