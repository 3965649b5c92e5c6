//! One recording: kernel records into the spool, proxy logs into their copies, until told to stop.
//!
//! Owns the directory layout of a recording and the rhythm of draining. Does not decide when to stop.

use std::io;
use std::time::{Duration, Instant};

use crate::clock::Moment;
use crate::config::Config;
use crate::exit::{Code, Failure, OrExit};
use crate::outdir::{Dir, OutDir};
use crate::source::keptlog::KeptLogWriter;
use crate::source::proxylog::{Follower, LogError};
use crate::source::user_record::user_record;
use crate::spool::{Limits, SegmentHeader, SpoolStats, SpoolWriter};
use crate::witness::{ProxyExe, Witness};
use countersign_common::kind;

/// Name of the spool's directory in the output directory.
pub const SPOOL: &str = "spool";

/// Time between two looks at the kernel's ring. Waking per record costs more than half of the watched
/// program's speed; a few milliseconds of ring are a few megabytes.
pub const TICK: Duration = Duration::from_millis(5);

/// Time between two hand-overs of the spool's buffer to the file system.
const FLUSH_EVERY: Duration = Duration::from_millis(200);

/// A recording under way.
pub struct Recording {
    witness: Box<dyn Witness>,
    spool: SpoolWriter,
    logs: Vec<Follower>,
    kept: KeptLogWriter,
    flush_at: Instant,
    failed: Option<String>,
}

/// What is known about a recording when it has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// The spool.
    pub spool: SpoolStats,
    /// Bytes of proxy logs that were read but not kept.
    pub log_bytes_lost: u64,
    /// Why the capture ended early, if it did.
    pub failed: Option<String>,
}

impl Recorded {
    /// Whether anything is missing.
    pub fn incomplete(&self) -> bool {
        self.spool.lost_something() || self.log_bytes_lost > 0 || self.failed.is_some()
    }
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording")
            .field("spool", self.spool.stats())
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
    /// Makes the spool and begins to record into it.
    ///
    /// # Errors
    /// When the spool cannot be begun.
    pub fn begin(
        config: &Config,
        out: &OutDir,
        capture: &str,
        witness: Box<dyn Witness>,
        mut logs: Vec<Follower>,
    ) -> Result<Self, Failure> {
        let header = SegmentHeader::of_this_machine(
            capture.to_owned(),
            witness.generation(),
            witness.offsets_sha256(),
        )
        .or_exit(Code::Io)?;
        let dir = out.dir().create_dir(SPOOL).or_exit(Code::CantCreate)?;
        let kept = KeptLogWriter::create(&dir).or_exit(Code::CantCreate)?;
        let limits = Limits {
            max_disk_bytes: config.capture.max_disk_bytes,
            ..Limits::default()
        };
        let spool = SpoolWriter::create(dir, header, limits).or_exit(Code::CantCreate)?;
        for log in &mut logs {
            log.ignore_old_rotations();
        }
        let mut recording = Self {
            witness,
            spool,
            logs,
            kept,
            flush_at: Instant::now(),
            failed: None,
        };
        recording.note(kind::CAPTURE, &serde_json::json!({ "event": "start", "version": env!("CARGO_PKG_VERSION"), "settings": config }));
        Ok(recording)
    }

    /// The capture, for tagging.
    pub fn witness(&mut self) -> &mut dyn Witness {
        &mut *self.witness
    }

    /// Writes a record of this program's own into the spool.
    pub fn note(&mut self, kind: u16, body: &serde_json::Value) {
        match user_record(kind, self.witness.generation(), body) {
            Ok(record) => self.spool.record(&record),
            Err(error) => tracing::warn!(%error, "a note could not be written into the spool"),
        }
    }

    /// Writes down what a later pairing cannot find out any more: which files are proxies' programs, and the key of the
    /// hashes that stand for payloads. The key is random and goes with the spool.
    ///
    /// # Errors
    /// When the kernel has no randomness.
    pub fn note_identity(&mut self, proxy_exes: &[ProxyExe]) -> io::Result<()> {
        let mut key = [0_u8; 32];
        rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())?;
        let key = key
            .iter()
            .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        self.note(
            kind::CAPTURE,
            &serde_json::json!({ "event": "hash_key", "key": key }),
        );
        self.note(
            kind::CAPTURE,
            &serde_json::json!({ "event": "proxy_exes", "exes": proxy_exes }),
        );
        Ok(())
    }

    /// Moves everything that waits. Call every [`TICK`]. `false` once the capture has failed: nothing is seen any more.
    pub fn tick(&mut self) -> bool {
        let spool = &mut self.spool;
        if self.failed.is_none()
            && let Err(error) = self.witness.drain(&mut |record| spool.record(record))
        {
            tracing::warn!(%error, "the capture stopped");
            self.failed = Some(format!("{error:#}"));
        }
        for (index, log) in self.logs.iter_mut().enumerate() {
            log.poll(&mut |event| self.kept.event(index, &event));
        }
        if Instant::now() >= self.flush_at {
            self.spool.flush();
            self.flush_at = Instant::now() + FLUSH_EVERY;
        }
        self.failed.is_none()
    }

    /// Ends the recording: drains, reads the logs to their end, makes all of it durable.
    pub fn finish(mut self, end: &serde_json::Value) -> Recorded {
        let spool = &mut self.spool;
        if self.failed.is_none()
            && let Err(error) = self.witness.close(&mut |record| spool.record(record))
        {
            tracing::warn!(%error, "the capture did not end in order");
            self.failed = Some(format!("{error:#}"));
        }
        for (index, log) in std::mem::take(&mut self.logs).into_iter().enumerate() {
            log.finish(&mut |event| self.kept.event(index, &event));
        }
        if let Some(failed) = self.failed.clone() {
            self.note(
                kind::LOSS,
                &serde_json::json!({ "what": "capture", "cause": failed }),
            );
        }
        let lost = self.kept.lost_bytes();
        if lost > 0 {
            self.note(
                kind::LOSS,
                &serde_json::json!({ "what": "proxy_log", "bytes": lost }),
            );
        }
        self.note(kind::CAPTURE, end);
        Recorded {
            log_bytes_lost: self.kept.finish(),
            spool: self.spool.finish(),
            failed: self.failed,
        }
    }
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
