//! A running capture: reading its records, what the kernel counted, and giving room back.

use std::{
    fmt, fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use anyhow::Context;
use aya::{
    Ebpf,
    maps::{HashMap, MapData, PerCpuArray, ProgramArray},
};
use countersign_common::{
    RecordHeader, Transfer, counter, kind,
    load::{ChannelKey, ChannelState, CpuState, MOVED, Offsets},
};
use countersign_core::hex::hex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sha2::{Digest, Sha256};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    functions::{FunctionStatus, Functions},
    hook::Hook,
    messages::Messages,
    pin::{Note, PinDir},
    rings::{Place, Rings},
    run::run_program,
    tag::Tagger,
    tier::Tier,
};

/// Time between two looks at a ring with records that were read and not given back yet.
const RELEASE_PAUSE: Duration = Duration::from_millis(1);

/// A table of channels.
pub(super) type ChannelMap =
    HashMap<MapData, [u8; size_of::<ChannelKey>()], [u8; size_of::<ChannelState>()]>;

/// Loaded and attached programs. Dropping it detaches them, unless they are pinned.
pub struct Capture {
    /// First, so that the events on functions go before the programs.
    pub(super) functions: Functions,
    pub(super) tier: Tier,
    pub(super) hook: Hook,
    /// Holds the programs and their links; nothing where they are pinned and another process loaded them.
    pub(super) _ebpf: Option<Ebpf>,
    /// The kernel empties such a table when nobody holds it.
    pub(super) _continued: Vec<ProgramArray<MapData>>,
    pub(super) rings: Rings,
    /// Programs stay in the kernel without this process: what was read is given back only when the caller says so.
    pub(super) pinned: Option<PinDir>,
    /// What makes the pinned directory one that a later process goes on with.
    pub(super) unsigned: Option<Note>,
    pub(super) tags: Tagger,
    pub(super) cpus: PerCpuArray<MapData, [u8; size_of::<CpuState>()]>,
    pub(super) channels: [ChannelMap; 2],
    pub(super) programs: Vec<(String, OwnedFd)>,
    /// The program for balances, which is attached to nothing.
    pub(super) balances: OwnedFd,
    /// Payload bytes taken out of the ring.
    pub(super) payload_bytes: u64,
    pub(super) generation: u64,
    pub(super) offsets: Offsets,
    /// Nothing when another process loaded the programs.
    pub(super) messages: Option<Messages>,
}

/// Channels of which a balance is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balanced {
    /// Those in which something was counted since their last, a few thousand at a time.
    Moved,
    /// Each that is open: what was not counted shows too.
    Each,
}

/// What one program did, from its `fdinfo`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ProgramLedger {
    /// Its name, that of its tracepoint or function.
    pub name: String,
    /// Times that the kernel skipped it because another program was running on that CPU: calls that nobody saw.
    pub recursion_misses: u64,
    /// Runs; 0 unless `kernel.bpf_stats_enabled` is set.
    pub run_count: u64,
    /// Nanoseconds in it; 0 unless `kernel.bpf_stats_enabled` is set.
    pub run_time_ns: u64,
}

/// What the kernel counted on one end of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelTotals {
    /// Which.
    pub key: ChannelKey,
    /// Operations and bytes per direction.
    pub state: ChannelState,
}

impl Capture {
    /// What sets and reads tags; clone it to use it while another thread drains the ring.
    pub fn tagger(&self) -> &Tagger {
        &self.tags
    }

    /// [`Tagger::tag_process`].
    ///
    /// # Errors
    /// As there.
    pub fn tag_process(&self, pidfd: BorrowedFd<'_>, bits: u32) -> anyhow::Result<()> {
        self.tags.tag_process(pidfd, bits)
    }

    /// [`Tagger::tag_pid`].
    ///
    /// # Errors
    /// As there.
    pub fn tag_pid(&self, pid: u32, bits: u32) -> anyhow::Result<()> {
        self.tags.tag_pid(pid, bits)
    }

    /// [`Tagger::tag_of`].
    ///
    /// # Errors
    /// As there.
    pub fn tag_of(&self, pid: u32) -> anyhow::Result<Option<u32>> {
        self.tags.tag_of(pid)
    }

    /// As given at load.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How transfers are captured.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// How programs are on tracepoints.
    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// The kernel functions that are watched, and those that cannot be. Empty in tier T.
    pub fn functions(&self) -> &[FunctionStatus] {
        self.functions.status()
    }

    /// The kernel's structure offsets that the programs were loaded with.
    pub fn offsets(&self) -> &Offsets {
        &self.offsets
    }

    /// SHA-256 of [`Capture::offsets`] in hex.
    pub fn offsets_sha256(&self) -> String {
        hex(&self.offsets_digest())
    }

    pub(super) fn offsets_digest(&self) -> [u8; 32] {
        Sha256::digest(self.offsets.as_bytes()).into()
    }

    /// Whether the programs stay in the kernel when this process dies. Then [`Capture::release`] must be called.
    pub fn is_pinned(&self) -> bool {
        self.pinned.is_some()
    }

    /// What [signs](PinDir::sign) a capture that was pinned here; for whoever writes down what a later process cannot find out
    /// any more, to sign when that is safe. Until then nobody goes on with it.
    pub fn take_unsigned(&mut self) -> Option<(PinDir, Note)> {
        Some((self.pinned.clone()?, self.unsigned.take()?))
    }

    /// The headers of the next records in the data ring and the control ring, which stay there.
    pub fn next_headers(&mut self) -> [Option<RecordHeader>; 2] {
        self.rings.next_headers()
    }

    /// Size of both rings in bytes.
    pub fn ring_bytes(&self) -> u64 {
        self.rings.bytes()
    }

    /// How far the rings were read.
    pub fn place(&self) -> Place {
        self.rings.place()
    }

    /// How far the kernel had written when asked.
    pub fn produced(&self) -> Place {
        self.rings.produced()
    }

    /// Gives the room of all records before `place` back to the kernel: they are where no crash of this process can lose them.
    /// Only for pinned programs; otherwise what was read is given back at once.
    pub fn release(&mut self, place: Place) {
        self.rings.release(place);
    }

    /// Takes the pins away, so that the programs stop with this process.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn unpin(&mut self) -> anyhow::Result<()> {
        match self.pinned.take() {
            Some(dir) => {
                self.functions.let_go();
                dir.remove()
            }
            None => Ok(()),
        }
    }

    /// The kernel's counters, summed over all CPUs, indexed by [`counter`]. One system call.
    ///
    /// # Errors
    /// When the kernel refuses the look-up.
    pub fn counters(&self) -> anyhow::Result<[u64; counter::COUNT as usize]> {
        let mut sums = [0_u64; counter::COUNT as usize];
        let mut numbered = 0_u64;
        let cpus = self.cpus.get(&0, 0).context("read the counters")?;
        for bytes in cpus.iter() {
            let cpu = CpuState::read_from_bytes(bytes.as_slice())
                .map_err(|error| anyhow::anyhow!("the counters have another size: {error}"))?;
            for (sum, value) in sums.iter_mut().zip(cpu.counters) {
                *sum = sum.wrapping_add(value);
            }
            numbered = numbered.wrapping_add(cpu.seq);
        }
        // Each record attempted took a number, so that the programs need not count them once more.
        sums[counter::RECORDS as usize] =
            numbered.wrapping_sub(sums[counter::RING_DROPPED_RECORDS as usize]);
        sums[counter::PAYLOAD_BYTES as usize] = self.payload_bytes;
        Ok(sums)
    }

    /// What each program did. No `bpf(2)` call: it does not disturb the capture.
    pub fn ledger(&self) -> Vec<ProgramLedger> {
        let programs = self.programs.iter().map(|(name, fd)| {
            let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
                .unwrap_or_default();
            let field = |key: &str| {
                text.lines()
                    .find_map(|line| {
                        line.strip_prefix(key)?
                            .strip_prefix(':')?
                            .trim()
                            .parse()
                            .ok()
                    })
                    .unwrap_or(0)
            };
            ProgramLedger {
                name: name.clone(),
                recursion_misses: field("recursion_misses"),
                run_count: field("run_cnt"),
                run_time_ns: field("run_time_ns"),
            }
        });
        programs.chain(self.functions.ledger()).collect()
    }

    /// The totals of every channel in the kernel's table. Thousands of system calls: at rest or at the end only.
    ///
    /// # Errors
    /// When the kernel refuses to list the table.
    pub fn channel_totals(&self) -> anyhow::Result<Vec<ChannelTotals>> {
        self.channels
            .iter()
            .flat_map(HashMap::iter)
            .map(|entry| {
                let (key, state) = entry.context("list the channel table")?;
                let (Ok(key), Ok(state)) = (
                    ChannelKey::read_from_bytes(&key),
                    ChannelState::read_from_bytes(&state),
                ) else {
                    anyhow::bail!("the channel table has entries of another size");
                };
                Ok(ChannelTotals { key, state })
            })
            // What has moved to the other table is counted there.
            .filter(|totals| {
                totals
                    .as_ref()
                    .map_or(true, |totals| totals.state.ops[0] & MOVED == 0)
            })
            .collect()
    }

    /// Gives every record that waits to `take`, cut to its size; the number given. Does not block.
    pub fn drain(&mut self, mut take: impl FnMut(&[u8])) -> usize {
        self.drain_some(usize::MAX, |_pool, record| take(record))
    }

    /// [`Capture::drain`] that stops after `most` records, since a flood can fill the ring as fast as it is emptied, and tells the
    /// [pool](countersign_common::tag::pool) of each.
    pub fn drain_some(&mut self, most: usize, mut take: impl FnMut(u8, &[u8])) -> usize {
        let mut bytes = 0;
        let records = self.rings.drain(most, |pool, record| {
            bytes += payload_bytes(record);
            take(pool, record);
        });
        self.payload_bytes += bytes;
        records
    }

    /// Has the kernel make [`Queued`](countersign_common::Queued) records of channels that both ends were seen to use; how many it
    /// made. No `bpf(2)` call that touches a map: it does not disturb the capture.
    ///
    /// # Errors
    /// When the kernel refuses to run the program.
    pub fn balance(&self, which: Balanced) -> anyhow::Result<u32> {
        let each = u64::from(which == Balanced::Each);
        run_program(self.balances.as_fd(), &[each]).context("run the program for balances")
    }

    /// Ring entries so far whose size field contradicts their length. Anything but 0 is a bug or another ABI.
    pub fn malformed(&self) -> u64 {
        self.rings.malformed()
    }

    /// Gives the messages of the kernel programs to `tracing`. Without any, it reads two words of shared memory.
    pub fn tell(&mut self) {
        if let Some(messages) = &mut self.messages {
            messages.tell();
        }
    }

    /// Waits until the kernel says that much is waiting, at most `timeout`. Little data gives no wake-up: poll.
    ///
    /// # Errors
    /// When polling fails for another reason than a signal.
    pub fn wait(&self, timeout: Duration) -> anyhow::Result<()> {
        if self.rings.keeps_some() {
            // The kernel would call records that were read and not given back yet waiting ones.
            std::thread::sleep(timeout.min(RELEASE_PAUSE));
            return Ok(());
        }
        let timeout = Timespec::try_from(timeout).context("wait for that long")?;
        let mut fds = self
            .rings
            .waitable()
            .map(|ring| PollFd::new(ring, PollFlags::IN));
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("wait for the ring"),
        }
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture")
            .field("programs", &self.programs)
            .finish_non_exhaustive()
    }
}

/// Length of the payload in a record.
fn payload_bytes(record: &[u8]) -> u64 {
    if record.starts_with(&kind::CHUNK.to_ne_bytes()) {
        record.len().saturating_sub(size_of::<Transfer>()) as u64
    } else {
        0
    }
}
