//! One recording: kernel records into the spool, proxy logs into their copies, until told to stop.
//!
//! Owns the directory layout of a recording and its threads. Does not decide when to stop.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::bpf::Place;
use crate::bpf::capture::Capture;
use crate::bpf::pin::{Note, PinDir};
use crate::bpf::preemption::Preemption;
use crate::bpf::tag::Tagger;
use crate::clock::Moment;
use crate::config::Config;
use crate::exit::{Code, Failure, OrExit};
use crate::outdir::{Dir, OutDir};
use crate::source::keptlog::KeptLogWriter;
use crate::source::live::{Live, LiveSummary, RecordSink};
use crate::source::proxylog::{Follower, LogError, LogEvent};
use crate::source::user_record::user_record;
use crate::spool::{
    self, Inlet, Limits, Recent, SegmentHeader, SpoolStats, SpoolThread, SpoolWriter,
};
use crate::tree::{Missed, Tree, Untagged};
use crate::witness::{ProxyExe, Request};
use countersign_common::{kind, tag};
use countersign_core::hex::hex;

/// Name of the spool's directory in the output directory.
pub const SPOOL: &str = "spool";

/// Time between two looks at logs, signals and the tree.
pub const TICK: Duration = Duration::from_millis(5);

/// Longest wait for the disk to take what was noted. Stops a disk that hangs from holding up whoever follows the logs for good.
const SETTLE_MAX: Duration = Duration::from_secs(10);

/// A recording under way.
///
/// Three threads: one empties the kernel's ring, one writes the spool, the caller's follows logs and tags processes. So
/// neither a slow disk nor a large log lets the ring run full.
pub struct Recording {
    live: Live<Inflow>,
    spool: SpoolThread,
    tagger: Tagger,
    generation: u64,
    tree: Tree,
    logs: Vec<Follower>,
    kept: KeptLogWriter,
    /// The programs outlive this process, and a later one goes on with what is in the spool.
    pinned: bool,
    /// What says so in the kernel, until it is true.
    unsigned: Option<(PinDir, Note)>,
}

/// What is known of a recording when it has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// The spool.
    pub spool: SpoolStats,
    /// What the kernel's ring delivered and lost.
    pub ring: LiveSummary,
    /// Bytes of proxy logs that were read but not kept.
    pub log_bytes_lost: u64,
    /// Processes that belonged to the recorded tree and ran for a while without being seen.
    pub reconciled: u64,
    /// Why the capture ended early, if it did.
    pub failed: Option<String>,
}

impl Recorded {
    /// Whether anything is missing.
    pub fn incomplete(&self) -> bool {
        self.spool.lost_something()
            || self.ring.ring_dropped_records > 0
            || self.log_bytes_lost > 0
            || self.reconciled > 0
            || self.failed.is_some()
    }
}

/// Takes what comes from the ring: all of it into the backlog, and a copy of what the tree must know of.
struct Inflow {
    inlet: Inlet,
    untagged: Arc<Untagged>,
    /// What a process that died had written down already, and the place up to which the rings can hold it.
    written: Option<(Recent, Place)>,
}

impl RecordSink for Inflow {
    fn record(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.record_of(0, bytes)
    }

    fn record_of(&mut self, pool: u8, bytes: &[u8]) -> anyhow::Result<()> {
        self.untagged.look(bytes);
        if let Some((recent, _)) = &self.written
            && recent.has(bytes)
        {
            return Ok(());
        }
        self.inlet.record_of(pool, bytes)
    }

    fn pause(&mut self) {
        self.inlet.pause();
    }

    fn mark(&mut self, place: Place) {
        if self
            .written
            .as_ref()
            .is_some_and(|(_, until)| place.is_past(*until))
        {
            self.written = None;
        }
        self.inlet.mark(place);
    }

    fn safe(&self) -> Option<Place> {
        self.inlet.safe()
    }
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// A new ULID for a capture: the time and 80 random bits.
///
/// # Errors
/// When the kernel has no randomness.
pub fn capture_id() -> io::Result<String> {
    let mut random = [0_u8; 16];
    let filled = rustix::rand::getrandom(&mut random[..10], rustix::rand::GetRandomFlags::empty())?;
    // getrandom(2): requests of up to 256 bytes are never cut short.
    debug_assert_eq!(filled, 10, "a short read of randomness");
    let milliseconds = u64::try_from(Moment::now().utc_ns / 1_000_000).unwrap_or(0);
    Ok(ulid::Ulid::from_parts(milliseconds, u128::from_le_bytes(random)).to_string())
}

/// Opens the logs of all proxies, so that a log that cannot be followed stops the command before anything starts.
///
/// # Errors
/// The first log that is no regular file or cannot be read.
pub fn open_logs(config: &Config) -> Result<Vec<Follower>, Failure> {
    config
        .proxies
        .iter()
        .map(|proxy| Follower::new(&proxy.log))
        .collect::<Result<_, LogError>>()
        .or_exit(Code::NoInput)
}

impl Recording {
    /// Makes the spool and begins to record into it. Block signals first: the threads inherit the mask.
    ///
    /// # Errors
    /// When the spool cannot be begun.
    pub fn begin(
        config: &Config,
        out: &OutDir,
        request: &Request,
        capture: Capture,
        mut logs: Vec<Follower>,
    ) -> Result<Self, Failure> {
        let generation = capture.generation();
        let header = SegmentHeader::of_this_machine(
            request.capture.clone(),
            generation,
            capture.offsets_sha256(),
        )
        .or_exit(Code::Io)?;
        let dir = out.dir().create_dir(SPOOL).or_exit(Code::CantCreate)?;
        let kept = KeptLogWriter::create(&dir).or_exit(Code::CantCreate)?;
        let limits = Limits {
            max_disk_bytes: config.capture.max_disk_bytes,
            ..Limits::default()
        };
        let writer = SpoolWriter::create(dir, header, limits).or_exit(Code::CantCreate)?;
        for log in &mut logs {
            log.ignore_old_rotations();
        }
        let recording = Self::start(writer, kept, None, request, capture, logs)?;
        recording.note(kind::CAPTURE, &serde_json::json!({ "event": "start", "version": env!("CARGO_PKG_VERSION"), "settings": config }));
        Ok(recording)
    }

    /// Goes on with the recording of a process that died: the capture is one that it pinned, the directory its own. What it had
    /// written down and not told the kernel is not written twice. Block signals first.
    ///
    /// # Errors
    /// When the spool is not there, or is that of another capture.
    pub fn resume(
        config: &Config,
        out: &OutDir,
        request: &Request,
        mut capture: Capture,
        mut logs: Vec<Follower>,
    ) -> Result<Self, Failure> {
        let dir = out
            .dir()
            .open_dir(SPOOL.as_ref())
            .map_err(anyhow::Error::from)
            .map_err(|error| error.context("open the spool to go on with"))
            .or_exit(Code::NoInput)?;
        let produced = capture.produced();
        let next = capture.next_headers();
        let resumed = spool::resume(&dir, capture.ring_bytes(), next).or_exit(Code::NoInput)?;
        if resumed.identity.capture != request.capture
            || resumed.identity.generation != capture.generation()
        {
            return Err(Failure::new(
                Code::NoInput,
                format!(
                    "the spool in {} is of capture {}, the pinned programs are of {}: pass the directory of the latter to -o",
                    out.path().display(),
                    resumed.identity.capture,
                    request.capture
                ),
            ));
        }
        let kept = KeptLogWriter::resume(&dir).or_exit(Code::NoInput)?;
        let limits = Limits {
            max_disk_bytes: config.capture.max_disk_bytes,
            ..Limits::default()
        };
        let writer = SpoolWriter::resume(dir, &resumed, limits).or_exit(Code::CantCreate)?;
        for (index, log) in logs.iter_mut().enumerate() {
            log.ignore_old_rotations_but(&kept.earlier_files(index));
        }
        let note = serde_json::json!({
            "event": "resumed",
            "last_boot_ns": resumed.last_boot_ns,
            "torn_bytes": resumed.torn_bytes,
            "recent_records": resumed.recent.len(),
        });
        let written = Some((resumed.recent, produced));
        let recording = Self::start(writer, kept, written, request, capture, logs)?;
        recording.note(kind::CAPTURE, &note);
        Ok(recording)
    }

    fn start(
        writer: SpoolWriter,
        kept: KeptLogWriter,
        written: Option<(Recent, Place)>,
        request: &Request,
        mut capture: Capture,
        logs: Vec<Follower>,
    ) -> Result<Self, Failure> {
        let generation = capture.generation();
        let pinned = capture.is_pinned();
        let unsigned = capture.take_unsigned();
        let spool = SpoolThread::start(writer).or_exit(Code::Internal)?;
        let tagger = capture.tagger().clone();
        let attached = serde_json::json!({
            "event": "attached",
            "tier": capture.tier(),
            "hook": capture.hook(),
            "preemption": Preemption::of_running_kernel().to_string(),
            "functions": capture.functions(),
        });
        let untagged = Arc::new(Untagged::default());
        let inflow = Inflow {
            inlet: spool.backlog().inlet(),
            untagged: Arc::clone(&untagged),
            written,
        };
        let live = Live::start(capture, inflow).or_exit(Code::Internal)?;
        let recording = Self {
            live,
            spool,
            tree: Tree::new(tagger.clone(), &request.proxy_exes, untagged),
            tagger,
            generation,
            logs,
            kept,
            pinned,
            unsigned,
        };
        recording.note(kind::CAPTURE, &attached);
        Ok(recording)
    }

    /// Tags a process so that it and what it starts from now on are captured, and reads the tag back.
    ///
    /// # Errors
    /// When the tag is not in place: the process must then not be taken for watched.
    pub fn tag(&self, pid: u32, pidfd: BorrowedFd<'_>) -> anyhow::Result<()> {
        self.tagger
            .tag_process(pidfd, tag::TREE | tag::of_agent(1))?;
        let read_back = self.tagger.tag_of(pid)?;
        anyhow::ensure!(
            read_back.is_some_and(|bits| bits & tag::TREE != 0),
            "the tag of process {pid} could not be read back"
        );
        Ok(())
    }

    /// Sets and reads tags.
    pub fn tagger(&self) -> &Tagger {
        &self.tagger
    }

    /// The recorded tree.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Says that a process of the tree ran for a while without being seen.
    pub fn note_missed(&mut self, missed: &Missed) {
        self.tree.count_missed();
        self.tell_missed(missed);
    }

    /// Process ids of tagged processes that still live.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn survivors(&self) -> io::Result<Vec<u32>> {
        self.tree.members()
    }

    /// Writes a record of this program's own into the spool.
    pub fn note(&self, kind: u16, body: &serde_json::Value) {
        match user_record(kind, self.generation, body) {
            Ok(record) => self.spool.backlog().record(&record),
            Err(error) => tracing::warn!(%error, "a note could not be written into the spool"),
        }
    }

    /// Writes down what a later pairing cannot find out any more: which files are proxies' programs, and the key of the
    /// hashes that stand for payloads. The key is random and goes with the spool.
    ///
    /// # Errors
    /// When the kernel has no randomness.
    pub fn note_identity(&self, proxy_exes: &[ProxyExe]) -> io::Result<()> {
        let mut key = [0_u8; 32];
        rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())?;
        self.note(
            kind::CAPTURE,
            &serde_json::json!({ "event": "hash_key", "key": hex(&key) }),
        );
        self.note(
            kind::CAPTURE,
            &serde_json::json!({ "event": "proxy_exes", "exes": proxy_exes }),
        );
        // What is done to this process is done to the witness.
        if let Some(own) = crate::bpf::scan::process(std::process::id())? {
            self.note(
                kind::CAPTURE,
                &serde_json::json!({
                    "event": "recorder",
                    "pid": own.pid,
                    "start_boot_ns": own.start_boot_ns,
                    "tick_ns": own.tick_ns,
                }),
            );
        }
        Ok(())
    }

    /// Waits until all that was noted so far is where the end of this process cannot lose it. A pinned capture is one that a later
    /// process goes on with from then on: what only this one knew (settings, keys of hashes, who held what) is in the spool.
    ///
    /// # Errors
    /// When the disk does not take it, and there is no earlier process's beginning to rely on.
    pub fn settle(&mut self) -> Result<(), Failure> {
        let settled = self.spool.backlog().settle(SETTLE_MAX);
        let Some((dir, note)) = self.unsigned.take() else {
            return Ok(());
        };
        if !settled {
            return Err(Failure::new(
                Code::Io,
                "the disk did not take the beginning of the recording, which a later process could not go on without",
            ));
        }
        dir.sign(&note).or_exit(Code::Unavailable)
    }

    /// Reads the logs and mends the tree. Call every [`TICK`]. `false` once the capture has failed: nothing is seen any more.
    pub fn tick(&mut self) -> bool {
        let mut opened = Vec::new();
        for (index, log) in self.logs.iter_mut().enumerate() {
            log.poll(&mut |event| {
                opened.extend(opening(index, &event));
                self.kept.event(index, &event);
            });
        }
        for note in opened {
            self.note(kind::CAPTURE, &note);
        }
        for missed in self.tree.mend() {
            self.tell_missed(&missed);
        }
        !self.live.has_ended()
    }

    fn tell_missed(&self, missed: &Missed) {
        tracing::warn!(
            pid = missed.pid,
            "a process of the recorded tree had no tag; it is watched from now on"
        );
        self.note(
            kind::LOSS,
            &serde_json::json!({ "what": "tag_reconciled", "pid": missed.pid, "how": missed.how }),
        );
        if let Some(scan) = &missed.scan {
            self.note(kind::PROCESS_SCAN, scan);
        }
        // Its tag outlives this process, so the word that it came late must, too.
        if self.pinned {
            self.spool.backlog().settle(SETTLE_MAX);
        }
    }

    /// Ends the recording: drains, reads the logs to their end, makes all of it durable.
    pub fn finish(mut self, end: &serde_json::Value) -> Recorded {
        for missed in self.tree.mend() {
            self.tell_missed(&missed);
        }
        let mut recorded = Recorded::default();
        let note = |kind, body: serde_json::Value| match user_record(kind, self.generation, &body) {
            Ok(record) => self.spool.backlog().record(&record),
            Err(error) => tracing::warn!(%error, "a note could not be written into the spool"),
        };
        let stopped = self.live.stop().and_then(|(_inflow, summary)| summary);
        match stopped {
            Ok(summary) => recorded.ring = summary,
            Err(error) => {
                tracing::warn!(%error, "the capture did not end in order");
                recorded.failed = Some(format!("{error:#}"));
            }
        }
        if recorded.failed.is_none() && !recorded.ring.drained {
            recorded.failed = Some("the kernel's ring did not run empty at the end".to_owned());
        }
        for (index, log) in self.logs.into_iter().enumerate() {
            let mut opened = Vec::new();
            log.finish(&mut |event| {
                opened.extend(opening(index, &event));
                self.kept.event(index, &event);
            });
            for body in opened {
                note(kind::CAPTURE, body);
            }
        }
        if let Some(failed) = &recorded.failed {
            note(
                kind::LOSS,
                serde_json::json!({ "what": "capture", "cause": failed }),
            );
        }
        let lost = self.kept.lost_bytes();
        if lost > 0 {
            note(
                kind::LOSS,
                serde_json::json!({ "what": "proxy_log", "bytes": lost }),
            );
        }
        note(kind::CAPTURE, end.clone());
        recorded.reconciled = self.tree.reconciled();
        recorded.log_bytes_lost = self.kept.finish();
        recorded.spool = self.spool.finish();
        recorded
    }
}

/// What a log's name led to, for the records: a later pairing may get a copy of the log.
fn opening(proxy: usize, event: &LogEvent<'_>) -> Option<serde_json::Value> {
    let LogEvent::Opened { facts, .. } = event else {
        return None;
    };
    Some(serde_json::json!({
        "event": "log_opened",
        "proxy": proxy,
        "dev": facts.kernel_dev,
        "inode": facts.inode,
    }))
}

/// Removes a paired spool with its copies of logs.
///
/// # Errors
/// When the file system refuses.
pub fn remove_spool(out: &OutDir) -> io::Result<()> {
    let spool = out.dir().open_dir(SPOOL.as_ref())?;
    let logs = spool.open_dir(crate::source::keptlog::KEPT_LOGS.as_ref())?;
    remove_files(&logs)?;
    spool.remove_dir(crate::source::keptlog::KEPT_LOGS)?;
    remove_files(&spool)?;
    out.dir().remove_dir(SPOOL)
}

fn remove_files(dir: &Dir) -> io::Result<()> {
    for name in dir.file_names()? {
        // Only names that we make are there; anything else makes the removal of the directory fail, and be reported.
        if let Some(name) = name.to_str() {
            dir.remove_file(name)?;
        }
    }
    Ok(())
}
