//! One measurement under a real recording: programs, ring, consumer and spool as `countersign record` has them.
//!
//! Owns the crowd of other tagged processes and the count of what was lost, which is taken from the spool and held against what
//! the worker says it moved.

use std::collections::BTreeMap;
use std::fs;
use std::io::{PipeWriter, Write as _};
use std::ops::AddAssign;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use countersign::bpf::{load::load, options::LoadOptions};
use countersign::config::{Capture, Config, LINGER_DEFAULT, Payload};
use countersign::outdir::{Dir, OutDir};
use countersign::recording::{Recording, SPOOL, TICK, capture_id};
use countersign::spool::{SpoolItem, SpoolReader};
use countersign::witness::Request;
use countersign_common::Transfer;
use countersign_core::record::{Direction, Record, parse};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Deserialize;

use super::traffic::{Pattern, Sample, Test};
use super::{How, start_worker, take_sample};

/// Tagged processes beside the measured ones.
const CROWD_TASKS: usize = 1000;
/// Pipes that they share.
const CROWD_CHANNELS: usize = 100;

/// What did not arrive in the spool.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Losses {
    /// Records that found the ring full.
    pub(crate) ring_dropped: u64,
    /// Records that waited for the disk and found no room.
    pub(crate) backlog_dropped: u64,
    /// Holes in the record numbers of a CPU that neither explains, and damage.
    pub(crate) unexplained: u64,
    /// Bytes that the worker moved and that neither end's records hold.
    pub(crate) missing_bytes: u64,
    /// Of these, what no counter of the kernel and no record of a loss in the spool says.
    pub(crate) untold_bytes: u64,
    /// Times that the kernel skipped a program.
    pub(crate) skipped: u64,
}

impl Losses {
    pub(crate) fn any(&self) -> bool {
        self.ring_dropped
            + self.backlog_dropped
            + self.unexplained
            + self.missing_bytes
            + self.skipped
            > 0
    }
}

impl AddAssign for Losses {
    fn add_assign(&mut self, other: Self) {
        self.ring_dropped += other.ring_dropped;
        self.backlog_dropped += other.backlog_dropped;
        self.unexplained += other.unexplained;
        self.missing_bytes += other.missing_bytes;
        self.untold_bytes += other.untold_bytes;
        self.skipped += other.skipped;
    }
}

/// Nanoseconds in the programs, while the kernel counts them.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProgramTime {
    /// By program: runs and nanoseconds.
    pub(crate) programs: BTreeMap<String, (u64, u64)>,
}

/// One measurement with its losses.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) sample: Sample,
    pub(crate) losses: Losses,
    pub(crate) time: ProgramTime,
    /// Bytes in the spool.
    pub(crate) spool_bytes: u64,
    /// Records in it.
    pub(crate) records: u64,
    /// From the start of the traffic until the spool was closed.
    pub(crate) until_closed: Duration,
}

/// Processes that are tagged and hold channels while others are measured.
#[derive(Debug)]
pub(crate) struct Crowd {
    members: Vec<Child>,
    pipes: Vec<PipeWriter>,
}

impl Crowd {
    /// Starts all of them; each waits in a read.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut crowd = Self {
            members: Vec::new(),
            pipes: Vec::new(),
        };
        let program = std::env::current_exe()?;
        for _ in 0..CROWD_CHANNELS {
            let (reader, writer) = std::io::pipe().context("make a channel of the crowd")?;
            for _ in 0..CROWD_TASKS / CROWD_CHANNELS {
                let member = Command::new(&program)
                    .arg("member")
                    .stdin(reader.try_clone()?)
                    .stdout(Stdio::null())
                    .spawn()
                    .context("start a member of the crowd")?;
                crowd.members.push(member);
            }
            crowd.pipes.push(writer);
        }
        Ok(crowd)
    }

    /// Tags all of them and moves a byte through each channel, so that the kernel has it in its table.
    fn join(&mut self, recording: &Recording) -> anyhow::Result<()> {
        for member in &self.members {
            tag(recording, member)?;
        }
        for pipe in &mut self.pipes {
            pipe.write_all(b"xx")
                .context("move a byte through a channel of the crowd")?;
        }
        Ok(())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.pipes.clear();
        for member in &mut self.members {
            // It ends at the end of its pipe.
            let _ = member.wait();
        }
    }
}

/// Measures `test` with both ends tagged while its records go to a spool in `scratch`, which is removed again.
pub(crate) fn measure(
    scratch: &Path,
    how: How,
    test: Test,
    duration: Duration,
    crowd: Option<&mut Crowd>,
) -> anyhow::Result<Recorded> {
    let folder = tempfile::tempdir_in(scratch).context("make a folder for the spool")?;
    let out = OutDir::create(&folder.path().join("out"), None)?;
    let capture = capture_id()?;
    let request = Request {
        pin: None,
        ring_bytes: countersign::bpf::options::RING_BYTES_DEFAULT,
        watched_files: Vec::new(),
        capture,
        proxy_exes: Vec::new(),
        tier: Some(how.tier),
    };
    let attached = load(&LoadOptions {
        ring_bytes: request.ring_bytes,
        tier: how.tier,
        hook: how.hook,
        ..LoadOptions::default()
    })?;
    let mut recording = Recording::begin(&config(), &out, &request, attached, Vec::new())
        .map_err(|failure| failure.error)?;
    if let Some(crowd) = crowd {
        crowd.join(&recording)?;
    }
    let result = folder.path().join("sample.json");
    let mut worker = start_worker(&[test], duration, &result)?;
    tag(&recording, &worker)?;
    let started = Instant::now();
    worker
        .stdin
        .take()
        .context("the worker has no gate")?
        .write_all(b"g")?;
    let pidfd = pidfd(&worker)?;
    let tick = Timespec::try_from(TICK).context("a tick is short")?;
    loop {
        anyhow::ensure!(recording.tick(), "the capture ended early");
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        if poll(&mut fds, Some(&tick))? > 0 {
            break;
        }
    }
    let sample = take_sample(worker, &result)?;
    let stats = recording.finish(&serde_json::json!({ "event": "end" }));
    let until_closed = started.elapsed();
    anyhow::ensure!(
        stats.failed.is_none(),
        "the capture failed: {:?}",
        stats.failed
    );
    let mut recorded = read_back(out.dir(), sample)?;
    recorded.spool_bytes = stats.spool.disk_bytes;
    recorded.until_closed = until_closed;
    fs::remove_dir_all(folder.path()).context("remove the spool")?;
    Ok(recorded)
}

/// The part of a ledger record that is looked at.
#[derive(Debug, Default, Deserialize)]
struct Ledger {
    programs: Vec<Program>,
    counters: BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize)]
struct Program {
    name: String,
    recursion_misses: u64,
    run_count: u64,
    run_time_ns: u64,
}

/// The part of a loss record that is looked at.
#[derive(Debug, Deserialize)]
struct Told {
    records: u64,
    bytes: u64,
    records_without_payload: u64,
}

impl Told {
    /// Bytes of payload in it. Records without payload are given up last, and never here.
    fn payload_bytes(&self) -> u64 {
        let with_payload = self.records - self.records_without_payload;
        self.bytes
            .saturating_sub(with_payload * size_of::<Transfer>() as u64)
    }
}

fn read_back(out: &Dir, sample: Sample) -> anyhow::Result<Recorded> {
    let mut spool = SpoolReader::open(out.open_dir(SPOOL.as_ref())?)?;
    let mut losses = Losses::default();
    let mut told_bytes = 0;
    let mut ledger = Ledger::default();
    let mut numbers: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
    let mut captured: BTreeMap<u64, [u64; 2]> = BTreeMap::new();
    while let Some(item) = spool.next_item()? {
        let record = match item {
            SpoolItem::Segment(_) => continue,
            SpoolItem::Damage(_) => {
                losses.unexplained += 1;
                continue;
            }
            SpoolItem::Record(record) => parse(record)?,
        };
        let header = match record {
            Record::Chunk(transfer, direction, data) => {
                let side = usize::from(direction == Direction::Write);
                captured.entry(transfer.channel.object).or_default()[side] += data.len() as u64;
                transfer.header
            }
            Record::Gap(transfer, ..) | Record::KernelCopy(transfer, _) => transfer.header,
            Record::Queued(queued) => queued.header,
            Record::SocketCounts(counts) => counts.header,
            Record::SocketAddress(address) => address.header,
            Record::Evasion(evasion) => evasion.header,
            Record::Fork(fork) => fork.header,
            Record::Exec(exec, ..) => exec.header,
            Record::Exit(exit) => exit.header,
            Record::ChannelEnd(end) => end.header,
            Record::FileOpen(open) => open.header,
            Record::Peer(peer) => peer.header,
            Record::User(header, json) => {
                if header.kind == countersign_common::kind::LEDGER {
                    ledger = serde_json::from_slice(json).context("read a ledger")?;
                }
                if header.kind == countersign_common::kind::LOSS {
                    let told: Told = serde_json::from_slice(json).context("read a loss")?;
                    losses.backlog_dropped += told.records;
                    told_bytes += told.payload_bytes();
                }
                continue;
            }
            Record::Unknown(header) => header,
        };
        // Numbers come out of order where a program was interrupted by another: count and last number are what matters.
        let (seen, last) = numbers.entry(header.cpu).or_default();
        *seen += 1;
        *last = (*last).max(header.cpu_seq + 1);
    }
    let counter = |name: &str| ledger.counters.get(name).copied().unwrap_or(0);
    losses.ring_dropped = counter("ring_dropped_records");
    // Each counts before it tries to leave a gap record, which a full ring can drop as well.
    for name in ["ring_dropped_bytes", "limit_bytes", "fault_bytes"] {
        told_bytes += counter(name);
    }
    let holes: u64 = numbers
        .values()
        .map(|(seen, last)| last.saturating_sub(*seen))
        .sum();
    losses.unexplained += holes.saturating_sub(losses.ring_dropped + losses.backlog_dropped);
    losses.skipped = ledger
        .programs
        .iter()
        .map(|program| program.recursion_misses)
        .sum();
    let held = held_by_busiest(captured.into_values().collect(), sample.test.pattern);
    losses.missing_bytes = (2 * sample.moved).saturating_sub(held);
    losses.untold_bytes = losses.missing_bytes.saturating_sub(told_bytes);
    let time = ProgramTime {
        programs: ledger
            .programs
            .into_iter()
            .map(|program| (program.name, (program.run_count, program.run_time_ns)))
            .collect(),
    };
    Ok(Recorded {
        sample,
        losses,
        time,
        spool_bytes: 0,
        records: numbers.values().map(|(seen, _)| seen).sum(),
        until_closed: Duration::ZERO,
    })
}

/// Bytes at both ends of the channels that were measured: those that carried most.
fn held_by_busiest(mut channels: Vec<[u64; 2]>, pattern: Pattern) -> u64 {
    channels.sort_by_key(|ends| std::cmp::Reverse(ends[0].max(ends[1])));
    let measured = match pattern {
        Pattern::RoundTrip => 2,
        Pattern::OneWay => 1,
        Pattern::SystemCall => 0,
    };
    channels.iter().take(measured).flatten().sum()
}

fn tag(recording: &Recording, child: &Child) -> anyhow::Result<()> {
    recording.tag(child.id(), pidfd(child)?.as_fd())
}

fn pidfd(child: &Child) -> anyhow::Result<std::os::fd::OwnedFd> {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("a child has a process id")?;
    pidfd_open(pid, PidfdFlags::empty()).context("open a child")
}

fn config() -> Config {
    Config {
        proxies: Vec::new(),
        allow_direct: Vec::new(),
        capture: Capture {
            linger: LINGER_DEFAULT,
            user: None,
            allow_setuid: false,
            pass_key: false,
            payload: Payload::Redacted,
            max_disk_bytes: None,
            ring_bytes: countersign::bpf::options::RING_BYTES_DEFAULT,
            keep_spool: true,
        },
    }
}
