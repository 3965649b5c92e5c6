//! What user space wrote into the spool: clocks, ledgers, totals, scans, losses.
//!
//! Owns the JSON of user records. All of it is optional and checked: a spool can come from anywhere.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Correlator;
use crate::channel::Found;
use crate::evasion::Recorder;
use crate::process::{Execution, FileId, Incarnation, ScannedFacts};
use crate::record::Direction;
use crate::time::{BootNs, UtcNs};

use countersign_common as abi;

/// A statement for the coverage table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What it states, in the words of the table.
    pub kind: &'static str,
    /// Name of the thing.
    pub name: String,
    /// When; of a time, its end.
    pub at: BootNs,
    /// Of a time, its beginning.
    pub since: Option<BootNs>,
    /// It takes something from the evidence.
    pub weakens: bool,
    /// For people.
    pub detail: Option<String>,
    /// How often it ran, or how many there were.
    pub count: Option<u64>,
    /// How often it was skipped.
    pub missed: Option<u64>,
    /// Records lost.
    pub lost_records: Option<u64>,
    /// Bytes lost.
    pub lost_bytes: Option<u64>,
}

impl Note {
    pub(super) fn new(kind: &'static str, name: impl Into<String>, at: BootNs) -> Self {
        Self {
            kind,
            name: name.into(),
            at,
            since: None,
            weakens: false,
            detail: None,
            count: None,
            missed: None,
            lost_records: None,
            lost_bytes: None,
        }
    }

    pub(super) fn loss(at: BootNs, name: &str, detail: String, lost_bytes: u64) -> Self {
        Self {
            weakens: true,
            detail: Some(detail),
            lost_bytes: Some(lost_bytes),
            ..Self::new("loss", name, at)
        }
    }
}

#[derive(Deserialize)]
struct ClockNote {
    boot_ns: u64,
    utc_ns: i64,
}

#[derive(Deserialize)]
struct LedgerNote {
    #[serde(default)]
    programs: Vec<ProgramNote>,
    #[serde(default)]
    counters: BTreeMap<String, u64>,
    #[serde(default)]
    malformed: u64,
}

#[derive(Deserialize)]
struct ProgramNote {
    name: String,
    #[serde(default)]
    recursion_misses: u64,
    #[serde(default)]
    run_count: u64,
}

#[derive(Deserialize)]
struct TotalsNote {
    object: u64,
    inode: u64,
    epoch: u64,
    kind: u32,
    #[serde(default)]
    dev: u32,
    #[serde(default)]
    peer_object: u64,
    #[serde(default)]
    peer_inode: u64,
    read_ops: u64,
    read_bytes: u64,
    written_ops: u64,
    written_bytes: u64,
}

#[derive(Deserialize)]
struct ScanNote {
    pid: u32,
    start_boot_ns: u64,
    #[serde(default)]
    exe: String,
    #[serde(default)]
    exe_dev: u32,
    #[serde(default)]
    exe_inode: u64,
    uid: Option<u32>,
    ppid: Option<u32>,
    #[serde(default)]
    tick_ns: u64,
    #[serde(default)]
    tag: u32,
    #[serde(default)]
    fds: Vec<FdNote>,
}

#[derive(Deserialize)]
struct FdNote {
    inode: u64,
    #[serde(default)]
    dev: u32,
    /// 1 readable, 2 writable.
    mode: u8,
}

#[derive(Deserialize)]
struct ExeNote {
    /// Index of the configured proxy; `None`: Countersign's own program.
    proxy: Option<usize>,
    dev: u32,
    inode: u64,
}

/// Programs without which an operation is neither numbered nor captured.
const OF_OPERATIONS: [&str; 2] = ["sys_enter", "sys_exit"];

/// Counters of operations that are neither numbered nor captured.
const LOST_OPERATIONS: [&str; 1] = ["pending_failed"];

/// Operations that a heartbeat says were missed since the programs were loaded.
fn missed_operations(ledger: &LedgerNote) -> u64 {
    let programs = ledger.programs.iter();
    let skipped = programs
        .filter(|program| OF_OPERATIONS.contains(&program.name.as_str()))
        .map(|program| program.recursion_misses);
    let counted = LOST_OPERATIONS
        .iter()
        .filter_map(|name| ledger.counters.get(*name).copied());
    skipped.chain(counted).fold(0, u64::saturating_add)
}

/// Time between heartbeats, nanoseconds, from which on the later one was late; they come each second.
const HEARTBEAT_LATE_NS: u64 = 5_000_000_000;

/// Log files remembered per proxy. Stops a log that is replaced over and over from filling memory.
const LOGS_MAX: usize = 4096;

/// Processes that recorded, at most. Stops a forged spool from filling memory; a capture has one.
const RECORDERS_MAX: usize = 16;

/// Counters that mean a loss when they are not 0.
const LOSSES: [&str; 9] = [
    "ring_dropped_records",
    "fault_bytes",
    "tag_failed",
    "pending_failed",
    "channel_failed",
    "compat_syscalls",
    "unseen_submissions",
    "kernel_read_failed",
    "control_dropped_records",
];

impl Correlator {
    pub(super) fn user(&mut self, header: &abi::RecordHeader, json: &[u8]) {
        let at = BootNs(header.boot_ns);
        let known = match header.kind {
            abi::kind::CLOCK => serde_json::from_slice(json).map(|note: ClockNote| {
                self.clock.observe(BootNs(note.boot_ns), UtcNs(note.utc_ns));
                self.observed = UtcNs(note.utc_ns);
            }),
            abi::kind::LEDGER => serde_json::from_slice(json).map(|note| self.ledger(note, at)),
            abi::kind::CHANNEL_TOTALS => {
                serde_json::from_slice(json).map(|note| self.totals(&note, at))
            }
            abi::kind::PROCESS_SCAN => serde_json::from_slice(json).map(|note| self.scan(note, at)),
            abi::kind::CAPTURE => serde_json::from_slice(json).map(|note: serde_json::Value| {
                let event = note
                    .get("event")
                    .and_then(serde_json::Value::as_str)
                    .unwrap_or("capture");
                match event {
                    "proxy_exes" => return self.proxy_exes(&note),
                    "log_opened" => self.log_opened(&note),
                    "drained" => {
                        let at = note.get("boot_ns").and_then(serde_json::Value::as_u64);
                        self.seen_to = at.map(BootNs);
                        return;
                    }
                    "recorder" => return self.recorder(&note),
                    "end" => self.ended_in_order = true,
                    // Never a row: it protects the payloads that are stored as hashes only.
                    "hash_key" => return self.hash_key(&note),
                    _ => {}
                }
                let mut row = Note::new("capture", event, at);
                row.detail = Some(note.to_string());
                self.note(row);
            }),
            abi::kind::LOSS => serde_json::from_slice(json).map(|note: serde_json::Value| {
                let number = |key: &str| note.get(key).and_then(serde_json::Value::as_u64);
                let what = note
                    .get("what")
                    .and_then(serde_json::Value::as_str)
                    .unwrap_or("spool");
                let mut row = Note::loss(at, what, note.to_string(), number("bytes").unwrap_or(0));
                row.lost_records = number("records");
                self.note(row);
            }),
            _ => {
                self.unknown_records += 1;
                return;
            }
        };
        self.now = self.now.max(at);
        if known.is_err() {
            self.malformed_records += 1;
        }
    }

    /// A heartbeat that was long in coming says that nobody was at work meanwhile; what that cost is counted elsewhere.
    fn heartbeat(&mut self, at: BootNs) {
        if let Some(last) = self.last_heartbeat
            && at.0.saturating_sub(last.0) > HEARTBEAT_LATE_NS
        {
            let mut note = Note::new("heartbeat", "late", at);
            note.since = Some(last);
            self.note(note);
        }
        self.last_heartbeat = self.last_heartbeat.max(Some(at));
    }

    /// Only what changed since the last heartbeat is worth a row.
    fn ledger(&mut self, ledger: LedgerNote, at: BootNs) {
        self.unnamed.heartbeat(at, missed_operations(&ledger));
        self.heartbeat(at);
        for program in ledger.programs {
            let mut note = Note::new("program", program.name, at);
            note.count = Some(program.run_count);
            note.missed = Some(program.recursion_misses);
            note.weakens = program.recursion_misses > 0;
            self.note_if_new(note);
        }
        for (name, value) in ledger.counters {
            let mut note = Note::new("counter", name, at);
            note.weakens = value > 0 && LOSSES.contains(&note.name.as_str());
            note.count = Some(value);
            self.note_if_new(note);
        }
        if ledger.malformed > 0 {
            self.note_if_new(Note {
                count: Some(ledger.malformed),
                ..Note::loss(at, "malformed_ring_entries", String::new(), 0)
            });
        }
    }

    /// Keeps the last value of a thing that is counted from heartbeat to heartbeat.
    fn note_if_new(&mut self, note: Note) {
        let same = |other: &&mut Note| other.kind == note.kind && other.name == note.name;
        match self.notes.iter_mut().rev().take(256).find(same) {
            Some(known) => *known = note,
            None => self.note(note),
        }
    }

    /// Holds the kernel's counts against what arrived.
    fn totals(&mut self, totals: &TotalsNote, at: BootNs) {
        let id = abi::ChannelId {
            object: totals.object,
            inode: totals.inode,
            peer_object: totals.peer_object,
            peer_inode: totals.peer_inode,
            epoch: totals.epoch,
            dev: totals.dev,
            kind: u8::try_from(totals.kind).unwrap_or(0),
            reserved: [0; 3],
            reserved2: 0,
        };
        let sides = [
            (Direction::Read, totals.read_ops, totals.read_bytes),
            (Direction::Write, totals.written_ops, totals.written_bytes),
        ];
        for (direction, ops, bytes) in sides {
            if ops == 0 && bytes == 0 {
                continue;
            }
            let Some((channel, end)) = self.channels.resolve(&id, at) else {
                return;
            };
            let (stream, side) = self.channels.stream_of(channel, end, direction);
            self.balances.total(stream, side, ops, bytes);
            self.counts.total(stream, side, ops);
            self.with_end(stream, side, |log, out| {
                log.finish(&mut |item| out(item));
                if log.is_of_epoch(totals.epoch) {
                    log.close(ops, bytes, at, &mut |item| out(item));
                }
            });
        }
    }

    /// The executables that were taken for proxies while recording: what lies at their paths now may be something else.
    fn proxy_exes(&mut self, note: &serde_json::Value) {
        let exes = note
            .get("exes")
            .and_then(|exes| serde_json::from_value::<Vec<ExeNote>>(exes.clone()).ok());
        for exe in exes.into_iter().flatten() {
            let file = FileId {
                dev: exe.dev,
                inode: exe.inode,
            };
            let last = self.settings.proxies.len().saturating_sub(1);
            for (ix, proxy) in self.settings.proxies.iter_mut().enumerate() {
                let identity = &mut proxy.identity;
                match exe.proxy {
                    None => identity.own_exes.push(file),
                    Some(of) if of.min(last) == ix => identity.exes.push(file),
                    Some(_) => {}
                }
            }
        }
    }

    /// What a log's name led to while recording.
    fn log_opened(&mut self, note: &serde_json::Value) {
        let number = |key: &str| note.get(key).and_then(serde_json::Value::as_u64);
        let (Some(proxy), Some(dev), Some(inode)) =
            (number("proxy"), number("dev"), number("inode"))
        else {
            return;
        };
        let last = self.settings.proxies.len().saturating_sub(1);
        let proxy = usize::try_from(proxy).map_or(last, |proxy| proxy.min(last));
        let log = FileId {
            dev: u32::try_from(dev).unwrap_or(0),
            inode,
        };
        if let Some(proxy) = self.settings.proxies.get_mut(proxy)
            && proxy.identity.logs.len() < LOGS_MAX
            && !proxy.identity.logs.contains(&log)
        {
            proxy.identity.logs.push(log);
        }
    }

    /// Which process records: what is done to it is done to the witness.
    fn recorder(&mut self, note: &serde_json::Value) {
        let number = |key: &str| note.get(key).and_then(serde_json::Value::as_u64);
        if let (Some(pid), Some(start)) = (number("pid"), number("start_boot_ns"))
            && let Ok(tgid) = u32::try_from(pid)
            && self.recorders.len() < RECORDERS_MAX
        {
            self.recorders.push(Recorder {
                tgid,
                start: BootNs(start),
                tick_ns: number("tick_ns").unwrap_or(0),
            });
        }
    }

    fn hash_key(&mut self, note: &serde_json::Value) {
        if let Some(key) = note.get("key").and_then(serde_json::Value::as_str) {
            self.settings.hash_key = key.as_bytes().to_vec();
        }
    }

    fn scan(&mut self, scan: ScanNote, at: BootNs) {
        let execution = (scan.exe_inode != 0).then(|| Execution {
            at,
            exe: FileId {
                dev: scan.exe_dev,
                inode: scan.exe_inode,
            },
            filename: scan.exe.into_bytes(),
            args: Vec::new(),
            inherited: false,
        });
        let incarnation = Incarnation {
            tgid: scan.pid,
            start: BootNs(scan.start_boot_ns),
        };
        let facts = ScannedFacts {
            uid: scan.uid,
            execution,
            parent: scan.ppid,
            tick_ns: scan.tick_ns,
            tag: scan.tag,
        };
        let process = self.processes.scanned(incarnation, at, facts);
        for fd in scan.fds {
            let (reads, writes) = (fd.mode & 1 != 0, fd.mode & 2 != 0);
            self.channels.found(Found {
                process,
                dev: fd.dev,
                inode: fd.inode,
                reads,
                writes,
                at,
            });
        }
    }
}
