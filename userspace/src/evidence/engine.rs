//! The core correlator with its sinks, as the commands use it.
//!
//! Owns the translation of settings, spool items and log events into the core's inputs, and of the core's rows into files and
//! the report. Log files are handed to the core once they are complete, in the order of their opening; a file whose content
//! was replaced while it was read counts with what it holds at the end.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use countersign_core::correlator::{
    Correlator as Core, LogFile, LogIncident, PayloadMode, Proxy, RETAINED_BYTES_MAX, Settings,
    Severity,
};
use countersign_core::process::FileId as ExeId;
use countersign_core::proxylog::mcp_audit::Reader;
use countersign_core::proxylog::{Key, LogItem, Redaction};
use countersign_core::role::ProxyIdentity;
use countersign_core::row::Row;
use countersign_core::row::ids::CaptureId;
use countersign_core::verdict::{AllowDirect, ProxyPolicy};

use super::{Correlator, Outcome, Setup};
use crate::config::{Config, Payload};
use crate::device::kernel_dev;
use crate::exit::{Code, Failure, OrExit};
use crate::key::KeyBytes;
use crate::outdir::OutDir;
use crate::report::{Evidence, Summary};
use crate::sink::RowSink;
use crate::sink::jsonl::JsonLinesSink;
use crate::sink::parquet::ParquetSink;
use crate::source::proxylog::{FileFacts, FileId, LogEvent};
use crate::spool::{Damage, SegmentHeader};

/// Kinds of things that can happen to a log, and how bad each is.
mod incident {
    use super::Severity;

    pub(super) const TRUNCATED: (&str, Severity) = ("log_truncated", Severity::High);
    pub(super) const REWRITTEN: (&str, Severity) = ("log_rewritten", Severity::High);
    pub(super) const ROTATED: (&str, Severity) = ("log_rotated", Severity::Info);
    pub(super) const MISSING: (&str, Severity) = ("log_missing", Severity::Medium);
    pub(super) const REMOVED: (&str, Severity) = ("log_removed", Severity::High);
    pub(super) const REFUSED: (&str, Severity) = ("log_refused", Severity::High);
    pub(super) const UNREADABLE: (&str, Severity) = ("log_unreadable", Severity::Medium);
    pub(super) const KEPT_DAMAGED: (&str, Severity) = ("kept_log_damaged", Severity::Medium);
    pub(super) const TOO_MANY: (&str, Severity) = ("log_too_many_files", Severity::High);
}

/// One log file while it is read.
#[derive(Debug)]
struct OpenLog {
    path: PathBuf,
    facts: FileFacts,
    reader: Reader,
    items: Vec<LogItem>,
    bad: usize,
    replaced: bool,
}

/// Lines of one log that are no entries and get a row each; further ones are counted. Stops a log of garbage from filling memory.
const BAD_LINES_MAX: usize = 10_000;

impl OpenLog {
    fn keep(&mut self, item: LogItem) {
        if let LogItem::Bad(_) = item {
            self.bad += 1;
            if self.bad > BAD_LINES_MAX {
                return;
            }
        }
        self.items.push(item);
    }
}

/// Feeds the core and writes what it says.
pub(super) struct Engine {
    config: Config,
    keys: Vec<Option<Key>>,
    out: Arc<OutDir>,
    json: bool,
    core: Option<Core>,
    host: String,
    capture: Option<CaptureId>,
    logs: BTreeMap<(usize, FileId), OpenLog>,
    opened: Vec<(usize, FileId)>,
    early: Vec<LogIncident>,
    /// Pieces of the spool that are missing before its first readable segment: at most one for each of its files.
    early_damage: Vec<Damage>,
}

impl Engine {
    pub(super) fn new(setup: Setup<'_>) -> Result<Self, Failure> {
        let keys = setup
            .keys
            .into_iter()
            .map(|key| {
                key.map(|key: KeyBytes| Key::new(key.as_bytes().to_vec()))
                    .transpose()
            })
            .collect::<Result<_, _>>()
            .or_exit(Code::Config)?;
        Ok(Self {
            config: setup.config.clone(),
            keys,
            out: Arc::new(setup.out.try_clone().or_exit(Code::Io)?),
            json: setup.json,
            core: None,
            host: String::new(),
            capture: None,
            logs: BTreeMap::new(),
            opened: Vec::new(),
            early: Vec::new(),
            early_damage: Vec::new(),
        })
    }

    fn core(&mut self) -> Result<&mut Core> {
        self.core
            .as_mut()
            .ok_or_else(|| anyhow!("the spool holds no segment"))
    }

    fn settings(&mut self, capture: CaptureId) -> Settings {
        let proxies = self
            .config
            .proxies
            .iter()
            .zip(std::mem::take(&mut self.keys))
            .map(|(proxy, key)| {
                let redaction = match &proxy.redact_keys {
                    Some(keys) => Redaction::new(keys),
                    None => Redaction::default(),
                };
                Proxy {
                    name: proxy.name.clone(),
                    identity: ProxyIdentity {
                        exes: proxy.exe.iter().filter_map(|exe| exe_id(exe)).collect(),
                        own_exes: Vec::new(),
                        logs: Vec::new(),
                    },
                    policy: ProxyPolicy {
                        key,
                        redaction,
                        key_readable_by_agent: false,
                    },
                }
            });
        Settings {
            capture,
            payload: match self.config.capture.payload {
                Payload::Redacted => PayloadMode::Redacted,
                Payload::Hash => PayloadMode::Hash,
                Payload::Full => PayloadMode::Full,
            },
            hash_key: capture.to_string().into_bytes(),
            proxies: proxies.collect(),
            allow_direct: self
                .config
                .allow_direct
                .iter()
                .filter_map(|rule| {
                    Some(AllowDirect {
                        server: exe_id(&rule.server_exe)?,
                        methods: rule.methods.clone(),
                        reason: rule.reason.clone(),
                    })
                })
                .collect(),
            retained_bytes_max: half_of_memory().max(RETAINED_BYTES_MAX),
        }
    }

    fn incident(
        &mut self,
        proxy: usize,
        (kind, severity): (&'static str, Severity),
        message: String,
    ) {
        let incident = LogIncident {
            proxy,
            kind,
            severity,
            message,
        };
        match &mut self.core {
            Some(core) => core.handle_log_incident(incident),
            None => self.early.push(incident),
        }
    }

    fn feed_logs(&mut self) -> Result<()> {
        for proxy in 0..self.config.proxies.len() {
            if !self.opened.iter().any(|(of, _)| *of == proxy) {
                let path = self.config.proxies[proxy].log.display().to_string();
                let message = format!("the log {path} never appeared: check --proxy-log");
                self.incident(proxy, incident::MISSING, message);
            }
        }
        for key in std::mem::take(&mut self.opened) {
            let Some(mut log) = self.logs.remove(&key) else {
                continue;
            };
            if log.replaced {
                continue;
            }
            log.reader.finish();
            while let Some(item) = log.reader.poll() {
                log.keep(item);
            }
            if log.bad > BAD_LINES_MAX {
                let message = format!(
                    "{} more lines of the log are no entries",
                    log.bad - BAD_LINES_MAX
                );
                self.incident(key.0, incident::UNREADABLE, message);
            }
            let core = self.core()?;
            let file = core.handle_log_file(LogFile {
                proxy: key.0,
                name: log.path.display().to_string(),
                dev: log.facts.kernel_dev,
                inode: log.facts.inode,
                uid: log.facts.uid,
                world_writable: log.facts.world_writable(),
            });
            for item in log.items {
                core.handle_entry(file, item);
            }
        }
        Ok(())
    }
}

impl Correlator for Engine {
    fn segment(&mut self, header: &SegmentHeader) -> Result<()> {
        if self.core.is_some() {
            return Ok(());
        }
        let ulid = ulid::Ulid::from_string(&header.capture).map_err(|error| {
            anyhow!(
                "the spool's capture id {:?} is no ulid: {error:?}",
                header.capture
            )
        })?;
        let capture = CaptureId::from_ulid(ulid);
        self.host.clone_from(&header.host);
        self.capture = Some(capture);
        let mut core = Core::new(self.settings(capture));
        for incident in self.early.drain(..) {
            core.handle_log_incident(incident);
        }
        self.core = Some(core);
        std::mem::take(&mut self.early_damage)
            .into_iter()
            .try_for_each(|damage| self.damage(damage))
    }

    fn record(&mut self, record: &[u8]) -> Result<()> {
        self.core()?.handle_record(record);
        Ok(())
    }

    fn damage(&mut self, damage: Damage) -> Result<()> {
        if self.core.is_none() {
            self.early_damage.push(damage);
            return Ok(());
        }
        let detail = format!(
            "segment {} at byte {}: {:?}",
            damage.segment, damage.offset, damage.kind
        );
        self.core()?
            .handle_loss("spool_damage", detail, damage.bytes);
        Ok(())
    }

    fn kept_log_damaged(&mut self, detail: String) {
        self.incident(0, incident::KEPT_DAMAGED, detail);
    }

    fn log(&mut self, proxy: usize, event: LogEvent<'_>) -> Result<()> {
        match event {
            LogEvent::Opened {
                file,
                path,
                facts,
                again,
            } => {
                if let Some(old) = again.and_then(|old| self.logs.get_mut(&(proxy, old))) {
                    old.replaced = true;
                }
                self.opened.push((proxy, file));
                let log = OpenLog {
                    path,
                    facts,
                    reader: Reader::new(),
                    items: Vec::new(),
                    bad: 0,
                    replaced: false,
                };
                self.logs.insert((proxy, file), log);
            }
            LogEvent::Bytes { file, data, .. } => {
                let log = self
                    .logs
                    .get_mut(&(proxy, file))
                    .context("bytes of a log that was not opened")?;
                log.reader.push(data);
                while let Some(item) = log.reader.poll() {
                    log.keep(item);
                }
            }
            LogEvent::Truncated { read, size, .. } => {
                let message = format!(
                    "the log became shorter: {read} bytes were read of it, now it has {size}"
                );
                self.incident(proxy, incident::TRUNCATED, message);
            }
            LogEvent::Rewritten { .. } => {
                let message =
                    "bytes of the log that had been read were changed in place".to_owned();
                self.incident(proxy, incident::REWRITTEN, message);
            }
            LogEvent::Rotated { .. } => {
                self.incident(proxy, incident::ROTATED, "the log was rotated".to_owned());
            }
            // Told at the end for a log that nothing was ever opened of.
            LogEvent::Missing => {}
            LogEvent::Removed { .. } => {
                let message =
                    "the log was deleted, or another file was put in its place".to_owned();
                self.incident(proxy, incident::REMOVED, message);
            }
            LogEvent::Refused { why } => {
                self.incident(
                    proxy,
                    incident::REFUSED,
                    format!("what has the log's name was not read: {why}"),
                );
            }
            LogEvent::Unreadable { why, .. } => {
                self.incident(
                    proxy,
                    incident::UNREADABLE,
                    format!("the log could not be read: {why}"),
                );
            }
            LogEvent::TooMany => {
                self.incident(
                    proxy,
                    incident::TOO_MANY,
                    "more log files than are followed".to_owned(),
                );
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Outcome> {
        self.feed_logs()?;
        let core = self.core.take().context("the spool holds no segment")?;
        let capture = self.capture.context("the spool holds no segment")?;
        let mut parquet: Box<dyn RowSink> = Box::new(ParquetSink::new(
            Box::new(Arc::clone(&self.out)),
            capture,
            &self.host,
        ));
        let mut lines: Option<Box<dyn RowSink>> = self.json.then(|| {
            Box::new(JsonLinesSink::new(io::BufWriter::new(io::stdout()))) as Box<dyn RowSink>
        });
        let mut summary = Summary::new();
        let mut failed = None;
        let mut unheard = None;
        core.finish(&mut |row: Row| {
            if failed.is_some() {
                return;
            }
            summary.observe(&row);
            failed = parquet.row(row.as_table_row()).err();
            if let Some(sink) = &mut lines
                && let Err(error) = sink.row(row.as_table_row())
            {
                unheard = Some(error);
                lines = None;
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        let files = parquet.finish()?;
        let told = if let Some(lines) = lines {
            lines.finish().map(drop)
        } else if let Some(error) = unheard {
            Err(error)
        } else {
            let text = summary.text(Evidence {
                capture,
                out: self.out.path(),
                files: &files,
            });
            io::stdout()
                .lock()
                .write_all(text.as_bytes())
                .context("cannot print the summary")
        };
        if let Err(error) = told {
            accept_no_listener(error, &self.out)?;
        }
        Ok(Outcome {
            findings: summary.has_findings(),
            could_not_see: summary.could_not_see(),
        })
    }
}

/// Whoever read the output may stop when it likes; the evidence is in its files all the same.
fn accept_no_listener(error: anyhow::Error, out: &OutDir) -> Result<()> {
    let gone = error.downcast_ref::<io::Error>().is_some_and(|error| {
        error.kind() == io::ErrorKind::BrokenPipe
            || (error.raw_os_error() == Some(libc::EIO) && stdout_is_a_device())
    });
    if gone {
        return Ok(());
    }
    Err(error.context(format!(
        "the evidence in {} is complete, but standard output did not take what was to be said of it",
        out.path().display()
    )))
}

/// A terminal whose window was closed answers like a broken disk, and no longer that it is a terminal.
fn stdout_is_a_device() -> bool {
    rustix::fs::fstat(io::stdout()).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice
    })
}

/// Identity of the file at a path now; `None` if there is none.
fn exe_id(path: &std::path::Path) -> Option<ExeId> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(ExeId {
        dev: kernel_dev(metadata.dev()),
        inode: metadata.ino(),
    })
}

/// What may be kept of a recording while it is paired: about six kilobytes a call that passed a proxy.
fn half_of_memory() -> u64 {
    let system = rustix::system::sysinfo();
    // `c_ulong` and `c_uint`: as wide as the machine says.
    u64::from(system.mem_unit).saturating_mul(system.totalram) / 2
}
