//! Synthetic captures: a small model of pipes, sockets, files and processes that emits the kernel's records.
//!
//! Owns what the kernel programs would report of a scripted scene: identities, numbers of operations, byte counters, chunks,
//! gaps, and the totals at the end. Channels really queue their bytes, so a read can only show what was written, unless the
//! reader is told to lie. It holds no judgement, and shares none with the core.
#![expect(
    clippy::missing_panics_doc,
    reason = "a scene that cannot be played is a wrong test"
)]

mod copies;
mod outcome;
mod processes;
pub mod program;
pub mod session;
mod sockets;
mod unseen;

use std::collections::VecDeque;
use std::ops::Range;

use countersign_common as abi;
use countersign_core::time::UtcNs;
use zerocopy::IntoBytes;

pub use outcome::{LogName, Outcome, Play};
pub use session::{Answer, Entry, Log, Session};

/// Boot clock at the start of every scene, nanoseconds.
pub const BOOT_NS: u64 = 5_000_000_000_000;

/// The same moment in UTC: 2026-11-20T07:18:55.189522853Z.
pub const START: UtcNs = UtcNs(1_795_159_135_189_522_853);

/// Time that passes with every operation, nanoseconds.
const TICK_NS: u64 = 1_000;

/// Device of executables and files.
const DISK: u32 = 8 << 20 | 1;

/// A process of a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Proc {
    pid: u32,
    start: u64,
}

/// An end of a channel of a scene: for a pipe both are the same object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    channel: usize,
    end: usize,
}

impl End {
    /// The other end of a socket pair; of a pipe, the pipe.
    #[must_use]
    pub fn other(self) -> Self {
        Self {
            end: 1 - self.end,
            ..self
        }
    }
}

/// How an operation is shown in the records.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// Longest chunk; 0: [`abi::CHUNK_MAX_BYTES`].
    pub chunk: usize,
    /// The process's memory when it was looked at, if it is not what moved.
    pub memory: Option<Vec<u8>>,
    /// Bytes of it that were not captured, with the reason.
    pub gap: Option<(Range<u64>, u16)>,
    /// Bits of [`abi::transfer_flags`].
    pub flags: u16,
    /// When the call entered the kernel; else one tick before it returns.
    pub enter: Option<u64>,
    /// The kernel's own copy of what moved comes before it.
    pub copied: bool,
    /// Every record of it is lost, and its number is used up.
    pub lost: bool,
}

#[derive(Debug)]
struct Channel {
    kind: u8,
    /// Neither end is told of the other.
    unnamed: bool,
    /// Per end: object, inode.
    keys: [(u64, u64); 2],
    epoch: u64,
    /// Bytes on their way, by writing end.
    queues: [VecDeque<u8>; 2],
    /// Per end and direction: operations, bytes.
    counts: [[(u64, u64); 2]; 2],
    /// Per end and direction: bytes that moved and that no operation has.
    uncounted: [[u64; 2]; 2],
}

/// A scene in the making: its records so far and the state of its kernel.
#[derive(Debug)]
pub struct Scene {
    records: Vec<Vec<u8>>,
    channels: Vec<Channel>,
    now: u64,
    cpu_seq: u64,
    next_pid: u32,
    next_object: u64,
    proxies: Vec<Proc>,
    /// Totals of channels that are not reported at the end.
    untold: Vec<usize>,
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

impl Scene {
    /// A scene in which nothing has happened.
    pub fn new() -> Self {
        let mut scene = Self {
            records: Vec::new(),
            channels: Vec::new(),
            now: BOOT_NS,
            cpu_seq: 0,
            next_pid: 1000,
            next_object: 0xffff_8000_0000_1000,
            proxies: Vec::new(),
            untold: Vec::new(),
        };
        let clock = format!(r#"{{"boot_ns":{BOOT_NS},"utc_ns":{}}}"#, START.0);
        scene.user(abi::kind::CLOCK, clock.as_bytes());
        scene
    }

    /// Boot clock, nanoseconds.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// UTC of now, nanoseconds.
    pub fn utc(&self) -> i64 {
        START.0 + (self.now - BOOT_NS).cast_signed()
    }

    /// Lets time pass.
    pub fn wait_ms(&mut self, ms: u64) {
        self.now += ms * 1_000_000;
    }

    /// Lets time pass until a moment in UTC, nanoseconds; not back.
    pub fn until_utc(&mut self, utc_ns: i64) {
        let boot = BOOT_NS.saturating_add_signed(utc_ns - START.0);
        self.now = self.now.max(boot);
    }

    /// A pipe made by a watched process.
    pub fn pipe(&mut self, creator: Proc) -> End {
        let end = self.pipe_from_before();
        self.got(creator, end, abi::end_how::CREATED);
        end
    }

    /// A pipe that was there before the capture.
    pub fn pipe_from_before(&mut self) -> End {
        self.channel(abi::channel_kind::PIPE)
    }

    /// A FIFO; its openings are up to the scene.
    pub fn fifo(&mut self) -> End {
        self.channel(abi::channel_kind::FIFO)
    }

    /// A socket pair: the first end.
    pub fn socketpair(&mut self, creator: Proc) -> End {
        let end = self.socket();
        self.got(creator, end, abi::end_how::CREATED);
        self.got(creator, end.other(), abi::end_how::CREATED);
        end
    }

    /// A connected pair of sockets; how its ends were got is up to the scene.
    pub fn socket(&mut self) -> End {
        self.channel(abi::channel_kind::UNIX_STREAM)
    }

    /// A regular file.
    pub fn file(&mut self) -> End {
        self.channel(abi::channel_kind::FILE)
    }

    /// Device and inode of a file.
    pub fn file_id(&self, file: End) -> (u32, u64) {
        (DISK, self.channels[file.channel].keys[0].1)
    }

    /// The totals of this channel are not reported at the end.
    pub fn without_totals(&mut self, end: End) {
        self.untold.push(end.channel);
    }

    /// A process comes by an end: `how` is one of [`abi::end_how`].
    pub fn got(&mut self, process: Proc, end: End, how: u8) {
        let record = abi::ChannelEnd {
            header: self.header(abi::kind::CHANNEL_END, size_of::<abi::ChannelEnd>()),
            task: task(process),
            channel: self.channel_id(end),
            mode: 3,
            how,
            reserved: [0; 2],
            fd: 3,
        };
        self.emit(record.as_bytes(), &[]);
    }

    /// A proxy opens a file for writing.
    pub fn opens(&mut self, process: Proc, file: End) {
        let (dev, inode) = self.file_id(file);
        let open = abi::FileOpen {
            header: self.header(abi::kind::FILE_OPEN, size_of::<abi::FileOpen>()),
            task: task(process),
            inode,
            dev,
            flags: 0o2001,
        };
        self.emit(open.as_bytes(), &[]);
    }

    /// Writes bytes.
    pub fn write(&mut self, process: Proc, end: End, bytes: &[u8]) {
        self.write_as(process, end, bytes, &Shown::default());
    }

    /// Writes bytes, shown in a certain way.
    pub fn write_as(&mut self, process: Proc, end: End, bytes: &[u8], shown: &Shown) {
        let from = if self.is_socket(end) { end.end } else { 0 };
        if self.channels[end.channel].kind != abi::channel_kind::FILE {
            self.channels[end.channel].queues[from].extend(bytes);
        }
        self.transfer(process, end, abi::direction::WRITE, bytes, shown);
    }

    /// Reads up to `max` bytes; what was read.
    pub fn read(&mut self, process: Proc, end: End, max: usize) -> Vec<u8> {
        self.read_as(process, end, max, &Shown::default())
    }

    /// Reads up to `max` bytes, shown in a certain way.
    pub fn read_as(&mut self, process: Proc, end: End, max: usize, shown: &Shown) -> Vec<u8> {
        let from = if self.is_socket(end) { 1 - end.end } else { 0 };
        let queue = &mut self.channels[end.channel].queues[from];
        let bytes: Vec<u8> = queue.drain(..max.min(queue.len())).collect();
        if !bytes.is_empty() {
            self.transfer(process, end, abi::direction::READ, &bytes, shown);
        }
        bytes
    }

    /// Puts bytes between those that are on their way, as a concurrent write does to one that is larger than the kernel's
    /// atomic size.
    pub fn splice_into_queue(&mut self, end: End, at: usize, bytes: &[u8]) {
        let from = if self.is_socket(end) { end.end } else { 0 };
        let queue = &mut self.channels[end.channel].queues[from];
        let tail: Vec<u8> = queue.drain(at..).collect();
        queue.extend(bytes);
        queue.extend(tail);
    }

    /// Records an operation without moving bytes: what the kernel would report, whatever the queue holds.
    pub fn report(&mut self, process: Proc, end: End, direction: u8, bytes: &[u8], shown: &Shown) {
        self.transfer(process, end, direction, bytes, shown);
    }

    /// Looks at bytes without taking them: neither numbered nor counted.
    pub fn peek(&mut self, process: Proc, end: End, bytes: &[u8], shown: &Shown) {
        let ends = if self.is_socket(end) { end.end } else { 0 };
        let before = self.channels[end.channel].counts[ends][0];
        self.transfer(process, end, abi::direction::READ, bytes, shown);
        self.channels[end.channel].counts[ends][0] = before;
    }

    /// What happens in `act` happens, but none of its records arrives; the numbers of the processor show the hole.
    pub fn losing(&mut self, act: impl FnOnce(&mut Self)) {
        let kept = self.records.len();
        act(self);
        self.records.truncate(kept);
    }

    /// Adds a record of user space.
    pub fn user(&mut self, kind: u16, json: &[u8]) {
        let header = abi::RecordHeader {
            cpu: abi::RecordHeader::USER_CPU,
            cpu_seq: 0,
            ..self.header(kind, size_of::<abi::RecordHeader>() + json.len())
        };
        self.emit(header.as_bytes(), json);
    }

    /// All records, with the totals of every channel as the kernel counted them.
    pub fn into_records(mut self) -> Vec<Vec<u8>> {
        for ix in 0..self.channels.len() {
            if self.untold.contains(&ix) {
                continue;
            }
            let ends = 1 + usize::from(sockets::is_two_way(self.channels[ix].kind));
            for end in 0..ends {
                let id = self.channel_id(End { channel: ix, end });
                let [(read_ops, read_bytes), (written_ops, written_bytes)] =
                    self.channels[ix].counts[end];
                let totals = format!(
                    r#"{{"object":{},"inode":{},"dev":{},"kind":{},"epoch":{},"peer_object":{},"peer_inode":{},"read_ops":{read_ops},"read_bytes":{read_bytes},"written_ops":{written_ops},"written_bytes":{written_bytes}}}"#,
                    id.object, id.inode, id.dev, id.kind, id.epoch, id.peer_object, id.peer_inode,
                );
                self.user(abi::kind::CHANNEL_TOTALS, totals.as_bytes());
            }
        }
        self.user(abi::kind::CAPTURE, br#"{"event":"end"}"#);
        self.records
    }

    fn transfer(&mut self, process: Proc, end: End, direction: u8, moved: &[u8], shown: &Shown) {
        self.now += TICK_NS;
        let exit_ns = self.now;
        let end_ix = if self.is_socket(end) { end.end } else { 0 };
        let count = &mut self.channels[end.channel].counts[end_ix][usize::from(direction)];
        let (op_seq, stream_before) = *count;
        count.0 += 1;
        count.1 += moved.len() as u64;
        let memory = shown.memory.as_deref().unwrap_or(moved);
        assert_eq!(
            memory.len(),
            moved.len(),
            "a lie has the length of the truth"
        );
        let proxy = self.proxies.contains(&process);
        let base = abi::Transfer {
            header: self.header(abi::kind::CHUNK, 0),
            task: task(process),
            channel: self.channel_id(end),
            op_seq,
            stream_before,
            enter_ns: shown.enter.unwrap_or(exit_ns - TICK_NS / 2),
            exit_ns,
            returned: moved.len() as u64,
            offset: 0,
            len: 0,
            syscall: u16::from(direction == abi::direction::WRITE),
            flags: shown.bits(proxy),
            reason: abi::gap::NONE,
            direction,
            reserved: [0; 5],
        };
        if shown.lost {
            self.cpu_seq += 1;
            return;
        }
        let chunk = if shown.chunk == 0 {
            abi::CHUNK_MAX_BYTES
        } else {
            shown.chunk
        } as u64;
        if shown.copied {
            self.copy(base, moved);
        }
        let mut at = 0;
        while at < base.returned {
            if let Some((gap, reason)) = shown.gap.as_ref().filter(|(gap, _)| gap.contains(&at)) {
                let len = gap.end.min(base.returned) - at;
                self.part(
                    abi::Transfer {
                        offset: at,
                        len: len32(len),
                        reason: *reason,
                        ..base
                    },
                    &[],
                );
                at += len;
                continue;
            }
            let stop = shown.gap.as_ref().map_or(u64::MAX, |(gap, _)| {
                if gap.start > at { gap.start } else { u64::MAX }
            });
            let len = chunk.min(base.returned - at).min(stop - at);
            let bytes = &memory[index(at)..index(at + len)];
            self.part(
                abi::Transfer {
                    offset: at,
                    len: len32(len),
                    ..base
                },
                bytes,
            );
            at += len;
        }
    }

    fn part(&mut self, mut transfer: abi::Transfer, bytes: &[u8]) {
        let kind = if transfer.reason == abi::gap::NONE {
            abi::kind::CHUNK
        } else {
            abi::kind::GAP
        };
        transfer.header = self.header(kind, size_of::<abi::Transfer>() + bytes.len());
        self.emit(transfer.as_bytes(), bytes);
    }

    fn channel(&mut self, kind: u8) -> End {
        let keys = [0, 1].map(|_| {
            self.next_object += 0x400;
            (self.next_object, self.next_object >> 10)
        });
        self.channels.push(Channel {
            kind,
            unnamed: false,
            keys,
            epoch: self.now,
            queues: [VecDeque::new(), VecDeque::new()],
            counts: [[(0, 0); 2]; 2],
            uncounted: [[0; 2]; 2],
        });
        End {
            channel: self.channels.len() - 1,
            end: 0,
        }
    }

    fn channel_id(&self, end: End) -> abi::ChannelId {
        let channel = &self.channels[end.channel];
        let socket = sockets::is_two_way(channel.kind);
        let (object, inode) = channel.keys[if socket { end.end } else { 0 }];
        let (peer_object, peer_inode) = if socket && !channel.unnamed {
            channel.keys[1 - end.end]
        } else {
            (0, 0)
        };
        abi::ChannelId {
            object,
            inode,
            peer_object,
            peer_inode,
            epoch: channel.epoch,
            dev: if socket { 0 } else { DISK },
            kind: channel.kind,
            reserved: [0; 3],
            reserved2: 0,
        }
    }

    fn is_socket(&self, end: End) -> bool {
        sockets::is_two_way(self.channels[end.channel].kind)
    }

    fn new_process(&mut self) -> Proc {
        self.next_pid += 1;
        self.now += TICK_NS;
        Proc {
            pid: self.next_pid,
            start: self.now,
        }
    }

    fn header(&mut self, kind: u16, size: usize) -> abi::RecordHeader {
        let cpu_seq = self.cpu_seq;
        // A template takes no number.
        if size > 0 && kind < abi::kind::FIRST_USER {
            self.cpu_seq += 1;
        }
        abi::RecordHeader {
            kind,
            cpu: 0,
            size: u32::try_from(size).expect("small"),
            cpu_seq,
            boot_ns: self.now,
            generation: 1,
        }
    }

    fn emit(&mut self, head: &[u8], tail: &[u8]) {
        self.records.push([head, tail].concat());
    }
}

fn task(process: Proc) -> abi::Task {
    abi::Task {
        tgid: process.pid,
        tid: process.pid,
        start_boot_ns: process.start,
    }
}

fn len32(len: u64) -> u32 {
    u32::try_from(len).expect("an operation of a scene is small")
}

fn index(at: u64) -> usize {
    usize::try_from(at).expect("small")
}
