//! Loading and attaching the kernel programs, or opening those that another process left pinned.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, Map, MapData, PerCpuArray, ProgramArray},
    programs::{ProgramFd, RawTracePoint},
};
use countersign_common::load::Offsets;
use zerocopy::IntoBytes;

use super::{
    capture::Capture,
    functions::{self, Functions, LinearMap, carried_kinds},
    hook::Hook,
    messages::{self, Messages},
    object, offsets,
    options::{LoadOptions, add_proxies, watch_files},
    pin::{Note, PinDir},
    ring::Ring,
    rings::{Credits, Rings},
    tag::Tagger,
    tier::Tier,
    verify::{Wanted, verify},
};

/// The program that is attached to nothing and makes the balances when it is run.
const BALANCES: &str = "balances";

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
const OPTIONAL: [(&str, &[&str]); 4] = [
    ("signal_generate", &["signal_generate"]),
    ("skb_copy_datagram_iovec", &["skb_copy_datagram_iovec"]),
    ("io_uring_complete", &["io_uring_complete"]),
    (
        "io_uring_submit",
        &["io_uring_submit_req", "io_uring_submit_sqe"],
    ),
];

/// Programs that others go on with, each with the tracepoint and the table that it is found by.
const CONTINUED: [(&str, &str, &str); 6] = [
    ("sys_exit_compat", "sys_exit", "COMPAT_EXIT"),
    ("sys_enter_compat", "sys_enter", "COMPAT_ENTER"),
    ("evasion_exit", "sys_exit", "EVASION_AT_EXIT"),
    ("evasion_enter", "sys_enter", "EVASION_AT_ENTER"),
    ("sent_exit", "sys_exit", "SENT_AT_EXIT"),
    ("ring_attempt", "io_uring_complete", "RING_ATTEMPTS"),
];

/// Those that take the verifier longest.
const LARGE: [&str; 3] = ["sys_exit", "sys_exit_compat", "io_uring_complete"];

/// Whether a program of the ledger is on a tracepoint.
pub fn is_tracepoint(name: &str) -> bool {
    PROGRAMS.contains(&name) || OPTIONAL.iter().any(|(program, _)| *program == name)
}

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

/// Loads the kernel programs into the running kernel and attaches them. No process is tagged yet.
///
/// # Errors
/// When the programs are not built in, the kernel lacks BTF or a structure member, or refuses a program (then with the
/// verifier's words).
pub fn load(options: &LoadOptions) -> anyhow::Result<Capture> {
    Functions::require(options.tier)?;
    let object = object::require_object()?;
    let (offsets, optional) = offsets::of_running_kernel(&OPTIONAL)?;
    options.hook.check(&offsets)?;
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
        .map_max_entries("FORKED", options.hook.forked_max())
        .load(object)
        .context("create the maps (capturing needs root, or CAP_BPF and CAP_PERFMON)")?;

    add_proxies(&mut ebpf, &options.proxy_exes)?;
    watch_files(&mut ebpf, &options.watched_files)?;
    let on_tracepoints: offsets::Present = PROGRAMS
        .into_iter()
        .map(|name| (name, name))
        .chain(optional)
        .collect();
    let gone_on_with = CONTINUED.into_iter().filter(|(_, tracepoint, _)| {
        on_tracepoints
            .iter()
            .any(|(_, present)| present == tracepoint)
    });
    let mut wanted: offsets::Present = gone_on_with
        .clone()
        .map(|(name, tracepoint, _)| (name, tracepoint))
        .collect();
    wanted.extend_from_slice(&on_tracepoints);
    verify(&mut ebpf, &btf, &ahead(options, wanted))?;
    let mut continued = Vec::new();
    for (name, tracepoint, table) in gone_on_with {
        if let Some((dir, _)) = &options.pin {
            dir.pin_maps(&ebpf, &[table])?;
        }
        let fd = options.hook.load(&mut ebpf, &btf, name, tracepoint)?;
        continued.push(continue_with(&mut ebpf, &fd, name, table)?);
    }

    // Nothing is tagged yet, so that the order costs nothing; what a kernel refuses, it refuses here.
    let pin = options.pin.as_ref().map(|(dir, _)| dir);
    let mut functions = Functions::attach(options.tier, &mut ebpf, &btf, &offsets, pin)
        .context("attach to kernel functions")?;
    let mut programs = functions.take_programs();
    attach_tracepoints(&mut ebpf, &btf, options, on_tracepoints, &mut programs)?;
    if let Some((dir, _)) = &options.pin {
        dir.pin_maps(&ebpf, &PINNED_MAPS)?;
    }

    let balances = load_balances(&mut ebpf, options)?;
    let maps = Maps::taken_from(&mut ebpf)?;
    let messages = Messages::of(&mut ebpf)?;
    let (pinned, capture_id) = options.pin.clone().unzip();
    let mut capture = Capture {
        functions,
        tier: options.tier,
        hook: options.hook,
        _continued: continued,
        _ebpf: Some(ebpf),
        messages: Some(messages),
        pinned,
        ..of_maps(maps, programs, balances, options.generation, &offsets)?
    };
    if let Some(id) = capture_id {
        let digest = capture.offsets_digest();
        let way = (options.tier, options.hook);
        let note = Note::new(way, options.generation, &id, digest)?;
        capture.unsigned = Some(note);
        capture.rings.keep();
    }
    Ok(capture)
}

/// The programs that can be loaded before it is known where they go, those that take longest first.
fn ahead(options: &LoadOptions, mut tracepoints: offsets::Present) -> Vec<Wanted> {
    tracepoints.sort_by_key(|(name, _)| !LARGE.contains(name));
    let tracepoints = tracepoints
        .into_iter()
        .map(|(name, tracepoint)| options.hook.wanted(name, tracepoint));
    let functions = functions::programs(options.tier).into_iter();
    tracepoints.chain(functions.map(Wanted::Kprobe)).collect()
}

/// Attaches the programs to system calls, processes and whatever else this kernel tells of.
fn attach_tracepoints(
    ebpf: &mut Ebpf,
    btf: &aya::Btf,
    options: &LoadOptions,
    present: offsets::Present,
    programs: &mut Vec<(String, OwnedFd)>,
) -> anyhow::Result<()> {
    for (name, tracepoint) in present {
        let pins = options.pin.is_some();
        let (fd, link) = options.hook.attach(ebpf, btf, name, tracepoint, pins)?;
        if let Some((dir, _)) = &options.pin {
            dir.pin_program(name, &fd)?;
        }
        programs.push((name.to_owned(), fd));
        if let (Some((dir, _)), Some(link)) = (&options.pin, link) {
            dir.pin_link(name, link)?;
        }
    }
    Ok(())
}

/// Loads the program that is attached to nothing.
fn load_balances(ebpf: &mut Ebpf, options: &LoadOptions) -> anyhow::Result<OwnedFd> {
    let program: &mut RawTracePoint = ebpf
        .program_mut(BALANCES)
        .context("the object has no program for balances")?
        .try_into()?;
    program.load().context("load the program for balances")?;
    let balances = program.fd()?.as_fd().try_clone_to_owned()?;
    if let Some((dir, _)) = &options.pin {
        dir.pin_program(BALANCES, &balances)?;
    }
    Ok(balances)
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
    let mut capture = of_maps(maps, programs, balances, note.generation, &offsets)?;
    anyhow::ensure!(
        capture.offsets_digest() == note.offsets_sha256,
        "the pinned programs were loaded for other kernel structures"
    );
    capture.rings.keep();
    capture.rings.recount();
    let tier = note.tier()?;
    Ok(Capture {
        functions: Functions::pinned(tier, &dir)?,
        tier,
        hook: note.hook()?,
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

impl Maps {
    /// Out of the loaded object.
    fn taken_from(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let mut take = |name: &str| {
            ebpf.take_map(name)
                .with_context(|| format!("the object has no map {name}"))
        };
        let mut take_ring = |name: &str| {
            let Map::RingBuf(ring) = take(name)? else {
                anyhow::bail!("the map {name} is not a ring buffer");
            };
            Ok(ring)
        };
        let (data, control) = (take_ring("RING")?, take_ring("CONTROL")?);
        let Map::Array(credits) = take("CREDITS")? else {
            anyhow::bail!("the map CREDITS is not an array");
        };
        Ok(Self {
            data,
            control,
            credits,
            cpus: take("CPUS")?,
            channels: [take("CHANNELS")?, take("PROXY_CHANNELS")?],
            tags: take("TAGS")?,
        })
    }
}

fn of_maps(
    maps: Maps,
    programs: Vec<(String, OwnedFd)>,
    balances: OwnedFd,
    generation: u64,
    offsets: &Offsets,
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
        hook: Hook::default(),
        _ebpf: None,
        _continued: Vec::new(),
        rings: Rings::new(
            Ring::open(maps.data).context("map the data ring")?,
            Ring::open(maps.control).context("map the control ring")?,
            Credits::map(maps.credits.fd().as_fd()).context("map the credits")?,
        ),
        pinned: None,
        unsigned: None,
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
        offsets: *offsets,
        messages: None,
    })
}

/// Puts a program that another goes on to where that one looks.
fn continue_with(
    ebpf: &mut Ebpf,
    fd: &ProgramFd,
    name: &str,
    table: &str,
) -> anyhow::Result<ProgramArray<MapData>> {
    let map = ebpf
        .take_map(table)
        .with_context(|| format!("the object has no map {table}"))?;
    let mut table = ProgramArray::try_from(map)?;
    table
        .set(0, fd, 0)
        .with_context(|| format!("put the program {name} where it is looked for"))?;
    Ok(table)
}

/// What the kernel makes of a wanted size: a power of two of whole pages.
fn ring_size(wanted: u32) -> u32 {
    const PAGE_BYTES: u32 = 4096;
    wanted.clamp(PAGE_BYTES, 1 << 31).next_power_of_two()
}
