//! Loading, attaching and reading the kernel programs.

use std::{
    fmt, fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use anyhow::Context;
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, Map, MapData, PerCpuArray, ProgramArray},
    programs::{BtfTracePoint, RawTracePoint, links::FdLink},
};
use countersign_common::{
    RecordHeader, Transfer, counter, kind,
    load::{ChannelKey, ChannelState, CpuState, ExeKey, MOVED, Offsets, WatchedFile},
};
use countersign_core::hex::hex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sha2::{Digest, Sha256};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    functions::{FunctionStatus, Functions, LinearMap, carried_kinds},
    messages::{self, Messages},
    object, offsets,
    pin::{Note, PinDir},
    ring::Ring,
    rings::{Credits, Place, Rings},
    run::run_program,
    tag::Tagger,
    tier::Tier,
};

/// Default size of the data ring, in bytes. A longer one makes each record of the watched dearer, since its memory has left the
/// caches when they come round to it; what must wait longer waits behind the consumer ([`crate::spool::BACKLOG_MAX_BYTES`]).
pub const RING_BYTES_DEFAULT: u32 = 64 << 20;

/// Default size of the control ring, in bytes: some twenty thousand executions or a hundred thousand other records.
pub const CONTROL_BYTES_DEFAULT: u32 = 16 << 20;

/// The program that is attached to nothing and makes the balances when it is run.
const BALANCES: &str = "balances";

/// Time between two looks at a ring with records that were read and not given back yet.
const RELEASE_PAUSE: Duration = Duration::from_millis(1);

/// The programs of tier T; each has the name of its tracepoint. Fork comes first and `sys_exit` before `sys_enter`: what is
/// attached half-way can only miss, never misattribute.
const PROGRAMS: [&str; 6] = [
    "sched_process_fork",
    "sched_process_exec",
    "sched_process_exit",
    "inet_sock_set_state",
    "sys_exit",
    "sys_enter",
];

/// Programs for tracepoints that a kernel may lack, with the names that those have had. What is then missing the programs for system
/// calls know from the offsets. Completions come first, as above.
const OPTIONAL: [(&str, &[&str]); 3] = [
    ("skb_copy_datagram_iovec", &["skb_copy_datagram_iovec"]),
    ("io_uring_complete", &["io_uring_complete"]),
    (
        "io_uring_submit",
        &["io_uring_submit_req", "io_uring_submit_sqe"],
    ),
];

/// Programs that others go on with, each with the tracepoint and the table that it is found by.
const CONTINUED: [(&str, &str, &str); 4] = [
    ("sys_exit_compat", "sys_exit", "COMPAT_EXIT"),
    ("sys_enter_compat", "sys_enter", "COMPAT_ENTER"),
    ("evasion_exit", "sys_exit", "EVASION_AT_EXIT"),
    ("evasion_enter", "sys_enter", "EVASION_AT_ENTER"),
];

/// Whether a program of the ledger is on a tracepoint.
pub fn is_tracepoint(name: &str) -> bool {
    PROGRAMS.contains(&name) || OPTIONAL.iter().any(|(program, _)| *program == name)
}

/// What a capture is loaded with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Size of the data ring in bytes; rounded up to a power of two of pages.
    pub ring_bytes: u32,
    /// Size of the control ring in bytes; rounded in the same way.
    pub control_bytes: u32,
    /// Which load this is: copied into every record's header.
    pub generation: u64,
    /// How transfers are captured. This tier or none: the choice is made elsewhere.
    pub tier: Tier,
    /// Executables of proxies: kernel `dev_t` (`major << 20 | minor`) and inode number.
    pub proxy_exes: Vec<(u32, u64)>,
    /// Where programs, maps and links are pinned so that they outlive this process, with the ULID of the capture.
    pub pin: Option<(PinDir, String)>,
    /// Files whose opening is an attempt to get round the witness.
    pub watched_files: Vec<WatchedId>,
}

/// A file that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedId {
    /// Kernel `dev_t`.
    pub dev: u32,
    /// Inode number.
    pub inode: u64,
    /// One of [`file_class`](countersign_common::evasion::file_class).
    pub class: u32,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            ring_bytes: RING_BYTES_DEFAULT,
            control_bytes: CONTROL_BYTES_DEFAULT,
            generation: 1,
            tier: Tier::default(),
            proxy_exes: Vec::new(),
            pin: None,
            watched_files: Vec::new(),
        }
    }
}

/// A table of channels.
type ChannelMap = HashMap<MapData, [u8; size_of::<ChannelKey>()], [u8; size_of::<ChannelState>()]>;

/// Maps that a later process needs of a capture.
const PINNED_MAPS: [&str; 7] = [
    "RING",
    "CONTROL",
    "CREDITS",
    "CPUS",
    "CHANNELS",
    "PROXY_CHANNELS",
    "TAGS",
];

/// Loaded and attached programs. Dropping it detaches them, unless they are pinned.
pub struct Capture {
    /// First, so that the events on functions go before the programs.
    functions: Functions,
    tier: Tier,
    /// Holds the programs and their links; nothing where they are pinned and another process loaded them.
    _ebpf: Option<Ebpf>,
    /// The kernel empties such a table when nobody holds it.
    _continued: Vec<ProgramArray<MapData>>,
    rings: Rings,
    /// Programs stay in the kernel without this process: what was read is given back only when the caller says so.
    pinned: Option<PinDir>,
    tags: Tagger,
    cpus: PerCpuArray<MapData, [u8; size_of::<CpuState>()]>,
    channels: [ChannelMap; 2],
    programs: Vec<(String, OwnedFd)>,
    /// The program for balances, which is attached to nothing.
    balances: OwnedFd,
    /// Payload bytes taken out of the ring.
    payload_bytes: u64,
    generation: u64,
    offsets: Offsets,
    /// Nothing when another process loaded the programs.
    messages: Option<Messages>,
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

/// Loads the kernel programs into the running kernel and attaches them. No process is tagged yet.
///
/// # Errors
/// When the programs are not built in, the kernel lacks BTF or a structure member, or refuses a program (then with the
/// verifier's words).
pub fn load(options: &LoadOptions) -> anyhow::Result<Capture> {
    anyhow::ensure!(
        options.pin.is_none() || options.tier == Tier::Tracepoints,
        "only tier T can be pinned so far: leave --pin out, or use --tier t"
    );
    let object = object::require_object()?;
    let (offsets, optional) = offsets::of_running_kernel(&OPTIONAL)?;
    let btf = aya::Btf::from_sys_fs().context("read the kernel's btf")?;
    let [ring_bytes, control_bytes] = [options.ring_bytes, options.control_bytes].map(ring_size);
    let sizes = [u64::from(ring_bytes), u64::from(control_bytes)];
    let carry = if options.tier == Tier::Tracepoints {
        0
    } else {
        carried_kinds()
    };
    let linear_map = if carry == 0 {
        LinearMap::default()
    } else {
        LinearMap::of_running_kernel()
    };
    let mut ebpf = EbpfLoader::new()
        .btf(Some(&btf))
        .allow_unsupported_maps()
        .override_global("OFFSETS", offsets.as_bytes(), true)
        .override_global("GENERATION", &options.generation, true)
        .override_global("FUNCTIONS", &carry, true)
        .override_global("PAGE_OFFSET_BASE", &linear_map.page_offset_base, true)
        .override_global("VMEMMAP_BASE", &linear_map.vmemmap_base, true)
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

    watch_files(&mut ebpf, &options.watched_files)?;
    let mut continued = Vec::new();
    for (name, tracepoint, table) in CONTINUED {
        if let Some((dir, _)) = &options.pin {
            dir.pin_maps(&ebpf, &[table])?;
        }
        continued.push(load_continued(&mut ebpf, &btf, tracepoint, name, table)?);
    }

    // Nothing is tagged yet, so that the order costs nothing; what a kernel refuses, it refuses here.
    let mut functions = Functions::attach(options.tier, &mut ebpf, &btf, &offsets)
        .context("attach to kernel functions")?;
    let mut programs = functions.take_programs();
    let programs_here = PROGRAMS.into_iter().map(|name| (name, name));
    for (name, tracepoint) in programs_here.chain(optional) {
        let program: &mut BtfTracePoint = ebpf
            .program_mut(name)
            .with_context(|| format!("the object has no program {name}"))?
            .try_into()?;
        program
            .load(tracepoint, &btf)
            .with_context(|| format!("load the program for {tracepoint}"))?;
        let link = program
            .attach()
            .with_context(|| format!("attach to {tracepoint}"))?;
        let fd = program.fd()?.as_fd();
        if let Some((dir, _)) = &options.pin {
            dir.pin_program(name, fd)?;
        }
        programs.push((name.to_owned(), fd.try_clone_to_owned()?));
        if let Some((dir, _)) = &options.pin {
            dir.pin_link(name, FdLink::from(program.take_link(link)?))?;
        }
    }
    if let Some((dir, _)) = &options.pin {
        dir.pin_maps(&ebpf, &PINNED_MAPS)?;
    }

    let program: &mut RawTracePoint = ebpf
        .program_mut(BALANCES)
        .context("the object has no program for balances")?
        .try_into()?;
    program.load().context("load the program for balances")?;
    let balances = program.fd()?.as_fd().try_clone_to_owned()?;
    if let Some((dir, _)) = &options.pin {
        dir.pin_program(BALANCES, &balances)?;
    }

    let mut take = |name: &str| {
        ebpf.take_map(name)
            .with_context(|| format!("the object has no map {name}"))
    };
    let mut take_ring = |name: &str| match take(name)? {
        Map::RingBuf(ring) => Ok(ring),
        _ => Err(anyhow::anyhow!("the map {name} is not a ring buffer")),
    };
    let (data, control) = (take_ring("RING")?, take_ring("CONTROL")?);
    let Map::Array(credits) = take("CREDITS")? else {
        anyhow::bail!("the map CREDITS is not an array");
    };
    let maps = Maps {
        data,
        control,
        credits,
        cpus: take("CPUS")?,
        channels: [take("CHANNELS")?, take("PROXY_CHANNELS")?],
        tags: take("TAGS")?,
    };
    let messages = Messages::of(&mut ebpf)?;
    let (pinned, capture_id) = options.pin.clone().unzip();
    let mut capture = Capture {
        functions,
        tier: options.tier,
        _continued: continued,
        _ebpf: Some(ebpf),
        messages: Some(messages),
        pinned,
        ..of_maps(maps, programs, balances, options.generation, offsets)?
    };
    if let (Some(dir), Some(id)) = (&capture.pinned, capture_id) {
        dir.sign(&Note::new(
            options.generation,
            &id,
            capture.offsets_digest(),
        )?)?;
        capture.rings.keep();
    }
    Ok(capture)
}

/// Opens what another process has loaded and pinned, and loads nothing. Reading goes on where that process told the kernel
/// that it was; what it had read beyond is read again.
///
/// # Errors
/// When something is missing, or the kernel's structures are others than those that the programs were loaded for.
pub fn resume(dir: PinDir, note: &Note) -> anyhow::Result<Capture> {
    let (offsets, _) = offsets::of_running_kernel(&[])?;
    let maps = Maps {
        data: dir.map("RING")?,
        control: dir.map("CONTROL")?,
        credits: dir.map("CREDITS")?,
        cpus: Map::from_map_data(dir.map("CPUS")?)?,
        channels: [
            Map::from_map_data(dir.map("CHANNELS")?)?,
            Map::from_map_data(dir.map("PROXY_CHANNELS")?)?,
        ],
        tags: Map::Unsupported(dir.map("TAGS")?),
    };
    let mut programs = dir.programs()?;
    let balances = programs
        .iter()
        .position(|(name, _)| name == BALANCES)
        .context("the program for balances is not pinned")?;
    let (_, balances) = programs.remove(balances);
    let mut capture = of_maps(maps, programs, balances, note.generation, offsets)?;
    anyhow::ensure!(
        capture.offsets_digest() == note.offsets_sha256,
        "the pinned programs were loaded for other kernel structures"
    );
    capture.rings.keep();
    capture.rings.recount();
    Ok(Capture {
        pinned: Some(dir),
        ..capture
    })
}

/// The maps of a capture, from wherever they come.
struct Maps {
    data: MapData,
    control: MapData,
    credits: MapData,
    cpus: Map,
    channels: [Map; 2],
    tags: Map,
}

fn of_maps(
    maps: Maps,
    programs: Vec<(String, OwnedFd)>,
    balances: OwnedFd,
    generation: u64,
    offsets: Offsets,
) -> anyhow::Result<Capture> {
    let Map::Unsupported(tags) = maps.tags else {
        anyhow::bail!("the map TAGS is not a task storage");
    };
    let tags = tags
        .fd()
        .as_fd()
        .try_clone_to_owned()
        .context("keep the tag map open")?;
    let [channels, proxy_channels] = maps.channels;
    Ok(Capture {
        functions: Functions::default(),
        tier: Tier::default(),
        _ebpf: None,
        _continued: Vec::new(),
        rings: Rings::new(
            Ring::open(maps.data).context("map the data ring")?,
            Ring::open(maps.control).context("map the control ring")?,
            Credits::map(maps.credits.fd().as_fd()).context("map the credits")?,
        ),
        pinned: None,
        tags: Tagger::new(tags),
        cpus: PerCpuArray::try_from(maps.cpus)?,
        channels: [
            HashMap::try_from(channels)?,
            HashMap::try_from(proxy_channels)?,
        ],
        programs,
        balances,
        payload_bytes: 0,
        generation,
        offsets,
        messages: None,
    })
}

/// Tells the programs which files matter before any process is watched.
fn watch_files(ebpf: &mut Ebpf, files: &[WatchedId]) -> anyhow::Result<()> {
    let map = ebpf
        .map_mut("WATCHED_FILES")
        .context("the object has no map WATCHED_FILES")?;
    let mut map: HashMap<_, [u8; size_of::<ExeKey>()], [u8; size_of::<WatchedFile>()]> =
        map.try_into()?;
    for file in files {
        let key = ExeKey {
            inode: file.inode,
            dev: file.dev,
            reserved: 0,
        };
        let value = WatchedFile {
            class: file.class,
            links: 0,
            object: 0,
            entry: 0,
            place: 0,
            size: 0,
        };
        map.insert(
            as_array::<_, { size_of::<ExeKey>() }>(&key)?,
            as_array::<_, { size_of::<WatchedFile>() }>(&value)?,
            0,
        )
        .context("watch a file")?;
    }
    Ok(())
}

/// Loads a program that another goes on to and puts it where that one looks.
fn load_continued(
    ebpf: &mut Ebpf,
    btf: &aya::Btf,
    tracepoint: &str,
    name: &str,
    table: &str,
) -> anyhow::Result<ProgramArray<MapData>> {
    let program: &mut BtfTracePoint = ebpf
        .program_mut(name)
        .with_context(|| format!("the object has no program {name}"))?
        .try_into()?;
    program
        .load(tracepoint, btf)
        .with_context(|| format!("load the program {name}"))?;
    let fd = program.fd()?.try_clone()?;
    let map = ebpf
        .take_map(table)
        .with_context(|| format!("the object has no map {table}"))?;
    let mut table = ProgramArray::try_from(map)?;
    table
        .set(0, &fd, 0)
        .with_context(|| format!("put the program {name} where it is looked for"))?;
    Ok(table)
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

    fn offsets_digest(&self) -> [u8; 32] {
        Sha256::digest(self.offsets.as_bytes()).into()
    }

    /// Whether the programs stay in the kernel when this process dies. Then [`Capture::release`] must be called.
    pub fn is_pinned(&self) -> bool {
        self.pinned.is_some()
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
            Some(dir) => dir.remove(),
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
