//! Loading, attaching and reading the kernel programs.

use std::{
    fmt, fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

use anyhow::Context;
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, Map, MapData, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, RawTracePoint, RawTracePointRunOptions, TestRun},
};
use countersign_common::{
    Transfer, counter, kind,
    load::{ChannelKey, ChannelState, CpuState, ExeKey, MOVED, Offsets},
};
use countersign_core::hex::hex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sha2::{Digest, Sha256};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    messages::{self, Messages},
    object, offsets,
    rings::{Credits, Rings},
    tag::Tagger,
};

/// Default size of the data ring, in bytes. A longer one makes each record of the watched dearer, since its memory has left the
/// caches when they come round to it; what must wait longer waits behind the consumer ([`crate::spool::BACKLOG_MAX_BYTES`]).
pub const RING_BYTES_DEFAULT: u32 = 64 << 20;

/// Default size of the control ring, in bytes: some twenty thousand executions or a hundred thousand other records.
pub const CONTROL_BYTES_DEFAULT: u32 = 16 << 20;

/// The program that is attached to nothing and makes the balances when it is run.
const BALANCES: &str = "balances";

/// The programs of tier T; each has the name of its tracepoint. Fork comes first and `sys_exit` before `sys_enter`: what is
/// attached half-way can only miss, never misattribute.
const PROGRAMS: [&str; 5] = [
    "sched_process_fork",
    "sched_process_exec",
    "sched_process_exit",
    "sys_exit",
    "sys_enter",
];

/// What a capture is loaded with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Size of the data ring in bytes; rounded up to a power of two of pages.
    pub ring_bytes: u32,
    /// Size of the control ring in bytes; rounded in the same way.
    pub control_bytes: u32,
    /// Which load this is: copied into every record's header.
    pub generation: u64,
    /// Executables of proxies: kernel `dev_t` (`major << 20 | minor`) and inode number.
    pub proxy_exes: Vec<(u32, u64)>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            ring_bytes: RING_BYTES_DEFAULT,
            control_bytes: CONTROL_BYTES_DEFAULT,
            generation: 1,
            proxy_exes: Vec::new(),
        }
    }
}

/// A table of channels.
type ChannelMap = HashMap<MapData, [u8; size_of::<ChannelKey>()], [u8; size_of::<ChannelState>()]>;

/// Loaded and attached programs. Dropping it detaches them.
pub struct Capture {
    /// Holds the programs and their links.
    ebpf: Ebpf,
    rings: Rings,
    tags: Tagger,
    cpus: PerCpuArray<MapData, [u8; size_of::<CpuState>()]>,
    channels: [ChannelMap; 2],
    programs: Vec<(&'static str, RawFd)>,
    /// Payload bytes taken out of the ring.
    payload_bytes: u64,
    generation: u64,
    offsets: Offsets,
    messages: Messages,
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
    /// Its name, that of its tracepoint.
    pub name: &'static str,
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

/// Loads the kernel programs into the running kernel and attaches them. No process is tagged yet.
///
/// # Errors
/// When the programs are not built in, the kernel lacks BTF or a structure member, or refuses a program (then with the
/// verifier's words).
pub fn load(options: &LoadOptions) -> anyhow::Result<Capture> {
    let object = object::require_object()?;
    let offsets = offsets::of_running_kernel()?;
    let btf = aya::Btf::from_sys_fs().context("read the kernel's btf")?;
    let [ring_bytes, control_bytes] = [options.ring_bytes, options.control_bytes].map(ring_size);
    let sizes = [u64::from(ring_bytes), u64::from(control_bytes)];
    let mut ebpf = EbpfLoader::new()
        .btf(Some(&btf))
        .allow_unsupported_maps()
        .override_global("OFFSETS", offsets.as_bytes(), true)
        .override_global("GENERATION", &options.generation, true)
        .override_global("AYA_LOG_LEVEL", &messages::level(), true)
        .override_global("RING_BYTES", sizes.as_bytes(), true)
        .map_max_entries("RING", ring_bytes)
        .map_max_entries("CONTROL", control_bytes)
        .load(object)
        .context("create the maps (capturing needs root, or CAP_BPF and CAP_PERFMON)")?;

    let proxies = ebpf
        .map_mut("PROXY_EXES")
        .context("the object has no map PROXY_EXES")?;
    let mut proxies: HashMap<_, [u8; size_of::<ExeKey>()], u32> = proxies.try_into()?;
    for (dev, inode) in &options.proxy_exes {
        let key = ExeKey {
            inode: *inode,
            dev: *dev,
            reserved: 0,
        };
        proxies
            .insert(as_array(&key)?, 1, 0)
            .context("add a proxy's executable")?;
    }

    let mut programs = Vec::new();
    for name in PROGRAMS {
        let program: &mut BtfTracePoint = ebpf
            .program_mut(name)
            .with_context(|| format!("the object has no program {name}"))?
            .try_into()?;
        program
            .load(name, &btf)
            .with_context(|| format!("load the program for {name}"))?;
        program
            .attach()
            .with_context(|| format!("attach to {name}"))?;
        programs.push((name, program.fd()?.as_fd().as_raw_fd()));
    }

    let balances: &mut RawTracePoint = ebpf
        .program_mut(BALANCES)
        .context("the object has no program for balances")?
        .try_into()?;
    balances.load().context("load the program for balances")?;

    let mut take = |name: &str| {
        ebpf.take_map(name)
            .with_context(|| format!("the object has no map {name}"))
    };
    let ring = RingBuf::try_from(take("RING")?).context("map the ring")?;
    let control = RingBuf::try_from(take("CONTROL")?).context("map the control ring")?;
    let Map::Array(credits) = take("CREDITS")? else {
        anyhow::bail!("the map CREDITS is not an array");
    };
    let credits = Credits::map(credits.fd().as_fd()).context("map the credits")?;
    let cpus = PerCpuArray::try_from(take("CPUS")?)?;
    let channels = [
        HashMap::try_from(take("CHANNELS")?)?,
        HashMap::try_from(take("PROXY_CHANNELS")?)?,
    ];
    let Map::Unsupported(tags) = take("TAGS")? else {
        anyhow::bail!("the map TAGS is not a task storage");
    };
    let tags = tags
        .fd()
        .as_fd()
        .try_clone_to_owned()
        .context("keep the tag map open")?;
    let messages = Messages::of(&mut ebpf)?;
    Ok(Capture {
        ebpf,
        rings: Rings::new(ring, control, credits),
        tags: Tagger::new(tags),
        cpus,
        channels,
        programs,
        payload_bytes: 0,
        generation: options.generation,
        offsets,
        messages,
    })
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

    /// The kernel's structure offsets that the programs were loaded with.
    pub fn offsets(&self) -> &Offsets {
        &self.offsets
    }

    /// SHA-256 of [`Capture::offsets`] in hex.
    pub fn offsets_sha256(&self) -> String {
        hex(&Sha256::digest(self.offsets.as_bytes()))
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
        self.programs
            .iter()
            .map(|(name, fd)| {
                let text =
                    fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
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
                    name,
                    recursion_misses: field("recursion_misses"),
                    run_count: field("run_cnt"),
                    run_time_ns: field("run_time_ns"),
                }
            })
            .collect()
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
        let mut options = RawTracePointRunOptions::new();
        options.args[0] = u64::from(which == Balanced::Each);
        let program: &RawTracePoint = self
            .ebpf
            .program(BALANCES)
            .context("the object has no program for balances")?
            .try_into()?;
        let result = program
            .test_run(options)
            .context("run the program for balances")?;
        Ok(result.return_value)
    }

    /// Ring entries so far whose size field contradicts their length. Anything but 0 is a bug or another ABI.
    pub fn malformed(&self) -> u64 {
        self.rings.malformed()
    }

    /// Gives the messages of the kernel programs to `tracing`. Without any, it reads two words of shared memory.
    pub fn tell(&mut self) {
        self.messages.tell();
    }

    /// Waits until the kernel says that much is waiting, at most `timeout`. Little data gives no wake-up: poll.
    ///
    /// # Errors
    /// When polling fails for another reason than a signal.
    pub fn wait(&self, timeout: Duration) -> anyhow::Result<()> {
        let timeout = Timespec::try_from(timeout).context("wait for that long")?;
        let mut fds = [PollFd::new(self.rings.waitable(), PollFlags::IN)];
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

/// What the kernel makes of a wanted size: a power of two of whole pages.
fn ring_size(wanted: u32) -> u32 {
    const PAGE_BYTES: u32 = 4096;
    wanted.clamp(PAGE_BYTES, 1 << 31).next_power_of_two()
}

fn as_array<T: IntoBytes + zerocopy::Immutable, const N: usize>(
    value: &T,
) -> anyhow::Result<[u8; N]> {
    value
        .as_bytes()
        .try_into()
        .context("a key has another size")
}
