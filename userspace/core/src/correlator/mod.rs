//! The correlator: all stages in one state machine.
//!
//! Owns the stores between the stages and the limits of memory. Inputs are records, log events and losses; time is in the
//! records. [`Correlator::finish`] runs the stages that need the whole capture and hands out rows. It judges nothing itself.

mod balances;
mod case;
mod copies;
mod echo;
mod loss;
mod notes;
mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::AHashMap;

use crate::balance::Balances;
use crate::channel::{ChannelKind, ChannelTable, End, StreamIx};
use crate::counted::KernelCounts;
use crate::delivery::StreamFrames;
use crate::evasion::{Attempts, Recorder};
use crate::frame::line::LineFramer;
use crate::frame::{self, Frame, FrameIx};
use crate::pairing::{FileIx, LogBad, LogEntry};
use crate::process::ProcessTable;
use crate::proxylog::LogItem;
use crate::record::{self, Direction, GapReason, Record};
use crate::role::ProxyIdentity;
use crate::row::Row;
use crate::row::ids::CaptureId;
use crate::stream::{EndLog, Gap, Item, Op, Payload};
use crate::time::{BootNs, Clock, UtcNs};
use crate::verdict::{AllowDirect, ProxyPolicy};

use countersign_common as abi;

use copies::Copies;

pub use notes::Note;
pub use rows::PayloadMode;

/// Bytes of frames kept until the end, where nothing else is set. Stops a flood from filling memory; what comes later is a gap.
pub const RETAINED_BYTES_MAX: u64 = 2 << 30;

/// What a frame costs besides its bytes, roughly: its row here, its ties, the sightings that come of it.
const FRAME_COST_BYTES: u64 = 512;

/// Bytes of unfinished lines kept, over all streams. Stops ten thousand streams from each keeping one long line.
pub const PARTIAL_BYTES_MAX: usize = 512 << 20;

/// Notes kept for the coverage table.
pub const NOTES_MAX: usize = 1 << 16;

/// Incidents of logs kept. Stops a log that is truncated over and over from filling memory.
pub const INCIDENTS_MAX: usize = 1 << 16;

/// A configured proxy.
#[derive(Debug, Default)]
pub struct Proxy {
    /// Its name in the evidence.
    pub name: String,
    /// How its processes are recognised.
    pub identity: ProxyIdentity,
    /// Key, redaction, reach.
    pub policy: ProxyPolicy,
}

/// Settings of one correlation.
#[derive(Debug)]
pub struct Settings {
    /// Id of the capture.
    pub capture: CaptureId,
    /// How much of payloads goes into rows.
    pub payload: PayloadMode,
    /// Key of the hashes of payloads that are not stored; thrown away with the capture.
    pub hash_key: Vec<u8>,
    /// Configured proxies.
    pub proxies: Vec<Proxy>,
    /// Allowed direct channels.
    pub allow_direct: Vec<AllowDirect>,
    /// Bytes of frames kept until the end; what comes later is a gap.
    pub retained_bytes_max: u64,
}

/// A log file that was opened.
#[derive(Clone, Debug, Default)]
pub struct LogFile {
    /// Index of the configured proxy.
    pub proxy: usize,
    /// Its name.
    pub name: String,
    /// Kernel device number.
    pub dev: u32,
    /// Inode.
    pub inode: u64,
    /// Whose it is.
    pub uid: u32,
    /// Everybody can write to it.
    pub world_writable: bool,
}

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Good to know.
    Info,
    /// Takes something from the evidence.
    Low,
    /// Must be looked at.
    Medium,
    /// Speaks of a deed.
    High,
}

impl Severity {
    /// Name as stored in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// Something about a log as a file: rotated, truncated, unreadable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogIncident {
    /// Index of the configured proxy.
    pub proxy: usize,
    /// What, in one word.
    pub kind: &'static str,
    /// How bad.
    pub severity: Severity,
    /// One sentence for people.
    pub message: String,
}

#[derive(Debug)]
struct EndState {
    log: EndLog,
    framer: LineFramer,
    /// The kernel's counts at this moment are those of what had arrived.
    confirmed: Option<BootNs>,
}

/// The state machine.
#[derive(Debug)]
pub struct Correlator {
    settings: Settings,
    clock: Clock,
    processes: ProcessTable,
    channels: ChannelTable,
    ends: BTreeMap<(StreamIx, End), EndState>,
    streams: BTreeMap<StreamIx, StreamFrames>,
    balances: Balances,
    counts: KernelCounts,
    unnamed: loss::Unnamed,
    frames: Vec<Frame>,
    /// By hash, the last frame of these bytes: what a proxy passes on is kept once.
    texts: AHashMap<u64, FrameIx>,
    files: Vec<LogFile>,
    entries: Vec<LogEntry>,
    bad_lines: Vec<LogBad>,
    incidents: Vec<LogIncident>,
    notes: Vec<Note>,
    notes_dropped: u64,
    malformed_records: u64,
    unknown_records: u64,
    peeked: u64,
    copies: Copies,
    attempts: Attempts,
    /// The processes that recorded.
    recorders: Vec<Recorder>,
    /// The recorder wrote that it ended, and nothing of what it wrote is known to be lost.
    ended_in_order: bool,
    /// Up to when everything that moved has arrived, if the recording says so.
    seen_to: Option<BootNs>,
    numbers: loss::Numbers,
    last_heartbeat: Option<BootNs>,
    retained: u64,
    partial: usize,
    first: Option<BootNs>,
    now: BootNs,
    observed: UtcNs,
}

impl Correlator {
    /// A correlator that has seen nothing.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            clock: Clock::default(),
            processes: ProcessTable::default(),
            channels: ChannelTable::default(),
            ends: BTreeMap::new(),
            streams: BTreeMap::new(),
            balances: Balances::default(),
            counts: KernelCounts::default(),
            unnamed: loss::Unnamed::default(),
            frames: Vec::new(),
            texts: AHashMap::new(),
            files: Vec::new(),
            entries: Vec::new(),
            bad_lines: Vec::new(),
            incidents: Vec::new(),
            notes: Vec::new(),
            notes_dropped: 0,
            malformed_records: 0,
            unknown_records: 0,
            peeked: 0,
            copies: Copies::default(),
            attempts: Attempts::default(),
            recorders: Vec::new(),
            ended_in_order: false,
            seen_to: None,
            numbers: loss::Numbers::default(),
            last_heartbeat: None,
            retained: 0,
            partial: 0,
            first: None,
            now: BootNs(0),
            observed: UtcNs(0),
        }
    }

    /// Takes one record. A malformed one is counted and weakens the evidence; it never stops the correlation.
    pub fn handle_record(&mut self, bytes: &[u8]) {
        match record::parse(bytes) {
            Ok(record) => self.take(record),
            Err(_malformed) => self.malformed_records += 1,
        }
    }

    /// Takes a loss that the shell knows of: records that never reached the spool, damage in it.
    pub fn handle_loss(&mut self, name: &str, detail: String, lost_bytes: u64) {
        let note = Note::loss(self.now, name, detail, lost_bytes);
        self.note(note);
    }

    /// Takes the opening of a log file and gives it an index. The file says nothing of who the proxy is: it may be a copy. What
    /// the log's name led to while recording is in the records.
    pub fn handle_log_file(&mut self, file: LogFile) -> FileIx {
        self.files.push(file);
        FileIx(u32::try_from(self.files.len() - 1).unwrap_or(u32::MAX))
    }

    /// Takes one line of a log.
    pub fn handle_entry(&mut self, file: FileIx, item: LogItem) {
        let proxy = self.files.get(file.0 as usize).map_or(0, |file| file.proxy);
        match item {
            LogItem::Entry(entry) => self.entries.push(LogEntry {
                proxy,
                file,
                entry: *entry,
            }),
            LogItem::Bad(bad) => self.bad_lines.push(LogBad { proxy, file, bad }),
        }
    }

    /// Takes what happened to a log as a file.
    pub fn handle_log_incident(&mut self, incident: LogIncident) {
        if self.incidents.len() < INCIDENTS_MAX {
            self.incidents.push(incident);
        }
    }

    /// Runs the stages that need the whole capture and hands out all rows.
    pub fn finish(mut self, out: &mut dyn FnMut(Row)) {
        self.finish_streams();
        debug_assert!(
            self.ends.values().all(|state| state.log.adds_up()),
            "what moved is what was captured and what is missing"
        );
        self.finish_balances();
        if self.notes.iter().any(|note| note.kind == "loss") {
            self.ended_in_order = false;
        } else if !self.ended_in_order {
            let mut note = Note::loss(
                self.now,
                "end_missing",
                "the recording has no end: what came after its last record was not seen, and since its last heartbeat nothing says that all was".to_owned(),
                0,
            );
            note.since = self.last_heartbeat;
            self.note(note);
        }
        rows::write(self, out);
    }

    fn take(&mut self, record: Record<'_>) {
        self.numbers.take(record.header());
        match record {
            Record::Chunk(transfer, direction, data) => {
                self.transfer(&transfer, direction, Payload::Bytes(data));
            }
            Record::KernelCopy(transfer, data) => {
                self.advance(transfer.header.boot_ns);
                self.copies.take(&transfer, data);
            }
            Record::Gap(transfer, direction, reason) => {
                let len = u64::from(transfer.len);
                self.transfer(&transfer, direction, Payload::Missing { len, reason });
            }
            Record::Fork(fork) => {
                self.advance(fork.header.boot_ns);
                self.processes.forked(&fork);
            }
            Record::Exec(exec, filename, args) => {
                self.advance(exec.header.boot_ns);
                self.processes.executed(&exec, filename, args);
            }
            Record::Exit(exit) => {
                self.advance(exit.header.boot_ns);
                self.processes.exited(&exit);
            }
            Record::ChannelEnd(end) => {
                self.advance(end.header.boot_ns);
                let process = self
                    .processes
                    .of_task(&end.task, BootNs(end.header.boot_ns));
                self.channels.got_end(&end, process);
                self.begin_balance(&end);
            }
            Record::FileOpen(open) => {
                self.advance(open.header.boot_ns);
                self.processes.opened_file(&open);
            }
            Record::Peer(peer) => {
                self.advance(peer.header.boot_ns);
                self.processes.marked_peer(&peer);
            }
            Record::Queued(queued) => {
                self.advance(queued.header.boot_ns);
                self.queued(&queued);
            }
            Record::SocketCounts(counts) => {
                self.advance(counts.header.boot_ns);
                self.counted(&counts);
            }
            Record::SocketAddress(address) => {
                self.advance(address.header.boot_ns);
                self.channels.addressed(&address);
            }
            Record::Evasion(evasion) => {
                self.advance(evasion.header.boot_ns);
                let at = BootNs(evasion.header.boot_ns);
                let actor = self.processes.of_task(&evasion.task, at);
                self.attempts.take(&evasion, actor);
            }
            Record::User(header, json) => self.user(&header, json),
            Record::Unknown(_) => self.unknown_records += 1,
        }
    }

    fn transfer(&mut self, transfer: &abi::Transfer, direction: Direction, payload: Payload<'_>) {
        use abi::transfer_flags as flags;
        let at = BootNs(transfer.header.boot_ns);
        self.advance(transfer.header.boot_ns);
        if transfer.flags & (flags::PEEK | flags::OOB) != 0 {
            // Neither takes bytes out of the stream; what was peeked is read, and seen, later.
            self.peeked += 1;
            if transfer.flags & flags::OOB != 0 && direction == Direction::Write {
                self.urgent(transfer, at);
            }
            return;
        }
        let process = self.processes.of_task(&transfer.task, at);
        self.processes
            .acted(process, at, transfer.flags & flags::BY_PROXY != 0);
        let Some((channel, end)) = self.channels.resolve(&transfer.channel, at) else {
            return;
        };
        self.channels.used(channel, end, process, direction, at);
        let (stream, side) = self.channels.stream_of(channel, end, direction);
        let mut op = Op {
            process,
            tid: transfer.task.tid,
            syscall: transfer.syscall,
            flags: transfer.flags,
            enter: BootNs(transfer.enter_ns),
            exit: BootNs(transfer.exit_ns),
            returned: transfer.returned,
            stream_before: transfer.stream_before,
        };
        if transfer.offset == 0 {
            self.streams.entry(stream).or_default().moved(side, &op);
            self.balances.operation(stream, side, transfer.op_seq, &op);
            self.counts.operation(stream, side, transfer.op_seq, &op);
        }
        let now = self.now;
        if direction == Direction::Write {
            self.with_end(stream, side, |log, out| {
                log.push(transfer, op, payload, now, &mut |item| out(item));
            });
            return;
        }
        // Taken out for the time being: the kernel's bytes are borrowed from it.
        let mut copies = std::mem::take(&mut self.copies);
        let (payload, differs) = copies.replace(transfer, &mut op, payload);
        self.with_end(stream, side, |log, out| {
            log.push(transfer, op, payload, now, &mut |item| out(item));
        });
        copies.taken(transfer, &op, channel, differs);
        self.copies = copies;
    }

    /// Runs one step of an end's log and takes what comes out of it into the stream.
    fn with_end(
        &mut self,
        stream: StreamIx,
        side: End,
        step: impl FnOnce(&mut EndLog, &mut dyn FnMut(Item<'_>)),
    ) {
        let channel = self.channels.channel(stream.channel);
        let attached = !channel.created && channel.kind != ChannelKind::File;
        let kind = channel.kind;
        let state = self.ends.entry((stream, side)).or_insert_with(|| {
            let framer = LineFramer::new(stream, side, attached);
            EndState {
                log: EndLog::default(),
                framer: if kind == ChannelKind::File {
                    framer.of_records()
                } else if kind == ChannelKind::Tcp {
                    framer.of_a_network()
                } else if kind.is_of_messages() {
                    framer.of_messages()
                } else {
                    framer
                },
                confirmed: None,
            }
        });
        let before = state.framer.buffered();
        let mut frames = Vec::new();
        let mut gaps = Vec::new();
        let lines = &mut state.framer;
        step(&mut state.log, &mut |item| match item {
            Item::Bytes {
                op,
                offset,
                position,
                data,
            } => {
                lines.bytes(op, offset, position, data, &mut |frame| frames.push(frame));
                let to = offset.saturating_add(data.len() as u64);
                if op.flags & abi::transfer_flags::MESSAGE_TRUNCATED != 0 && to >= op.returned {
                    // The rest of the message is gone, and nobody knows how long it was.
                    lines.gap(&mut |frame| frames.push(frame));
                    gaps.push(Gap {
                        position: position.saturating_add(data.len() as u64),
                        len: None,
                        reason: GapReason::Truncated,
                        process: Some(op.process),
                        since: op.enter,
                        until: op.exit,
                    });
                }
            }
            Item::Gap(gap) => {
                lines.gap(&mut |frame| frames.push(frame));
                gaps.push(gap);
            }
        });
        self.partial = (self.partial + lines.buffered()).saturating_sub(before);
        if self.partial > PARTIAL_BYTES_MAX {
            self.partial = self.partial.saturating_sub(lines.buffered());
            lines.gap(&mut |frame| frames.push(frame));
            gaps.push(limit_gap(self.now));
        }
        for gap in gaps {
            self.streams.entry(stream).or_default().push_gap(side, gap);
        }
        for frame in frames {
            self.keep(frame);
        }
    }

    fn keep(&mut self, mut frame: Frame) {
        let (stream, side) = (frame.stream, frame.end);
        let Ok(ix) = u32::try_from(self.frames.len()) else {
            return;
        };
        let len = frame.bytes.len() as u64;
        frame.hash = frame::hash(&frame.bytes);
        if self.is_echo(&frame) {
            return;
        }
        let own = Arc::as_ptr(&frame.bytes);
        let of_stream = self.streams.entry(stream).or_default();
        if self.retained.saturating_add(len + FRAME_COST_BYTES) > self.settings.retained_bytes_max {
            of_stream.push_gap(side, limit_gap(self.now));
            return;
        }
        if of_stream.push(FrameIx(ix), &mut frame, &mut self.frames) {
            let same = self
                .texts
                .insert(frame.hash, FrameIx(ix))
                .and_then(|same| self.frames.get(same.0 as usize))
                .filter(|same| same.is_same_text(&frame));
            if let Some(same) = same {
                frame.bytes = Arc::clone(&same.bytes);
            }
            let shared = !std::ptr::eq(Arc::as_ptr(&frame.bytes), own);
            self.retained += FRAME_COST_BYTES + if shared { 0 } else { len };
            self.frames.push(frame);
        }
    }

    fn finish_streams(&mut self) {
        let keys: Vec<(StreamIx, End)> = self.ends.keys().copied().collect();
        for (stream, side) in keys {
            self.with_end(stream, side, |log, out| log.finish(&mut |item| out(item)));
            let mut frames = Vec::new();
            if let Some(state) = self.ends.get_mut(&(stream, side)) {
                state.framer.finish(&mut |frame| frames.push(frame));
            }
            for frame in frames {
                self.keep(frame);
            }
        }
    }

    /// Last moment of the capture: later ones are of records that tell how it ended.
    fn end(&self) -> BootNs {
        self.seen_to.map_or(self.now, |at| at.min(self.now))
    }

    fn advance(&mut self, boot_ns: u64) {
        self.now = self.now.max(BootNs(boot_ns));
        self.first = Some(
            self.first
                .map_or(BootNs(boot_ns), |first| first.min(BootNs(boot_ns))),
        );
    }

    fn note(&mut self, note: Note) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(note);
        } else {
            self.notes_dropped += 1;
        }
    }
}

fn limit_gap(now: BootNs) -> Gap {
    Gap {
        position: 0,
        len: None,
        reason: GapReason::MemoryLimit,
        process: None,
        since: now,
        until: now,
    }
}
