//! What the machine can do at most with bytes: copy them in memory, write them to the disk of the spools.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// Bytes written and copied; more than fits into the caches.
const BYTES: usize = 512 << 20;
/// Bytes at once.
const BLOCK: usize = 1 << 20;

/// Megabytes per second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) memcpy: u128,
    pub(super) disk: u128,
}

/// Measures on the CPU of the consumer, where the caller runs.
pub(super) fn measure(scratch: &Path) -> anyhow::Result<Limits> {
    let from = vec![1_u8; BYTES];
    let mut to = vec![2_u8; BYTES];
    let started = Instant::now();
    to.copy_from_slice(&from);
    let memcpy = per_second(started.elapsed());
    std::hint::black_box(&to);
    let mut file = tempfile::tempfile_in(scratch).context("make a file to write to")?;
    let started = Instant::now();
    for block in from.chunks(BLOCK) {
        file.write_all(block).context("write to the disk")?;
    }
    file.sync_all().context("make a file durable")?;
    Ok(Limits {
        memcpy,
        disk: per_second(started.elapsed()),
    })
}

fn per_second(time: Duration) -> u128 {
    BYTES as u128 / time.as_micros().max(1)
}
