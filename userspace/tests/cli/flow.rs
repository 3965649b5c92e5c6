//! Numbered messages through a pipe at a rate that is set while they flow, and what a spool must hold of them: each record once, each
//! byte at its place.

use std::collections::BTreeMap;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use countersign::outdir::Dir;
use countersign::spool::{DamageKind, SpoolItem, SpoolReader};
use countersign_common::{RecordHeader, Transfer, channel_kind, kind};
use zerocopy::FromBytes;

/// Length of a message.
const MESSAGE: usize = 64;
/// Digits at its start.
const DIGITS: usize = 12;
/// Bytes that the reader asks for at once.
const READ: usize = 4096;
/// Messages between two looks at the clock.
const BURST: u64 = 64;

/// What the test and the writer say to each other.
#[derive(Default)]
struct Board {
    rate: AtomicU64,
    stop: AtomicBool,
    written: AtomicU64,
}

/// A process that writes into a pipe, and its child that reads from it.
struct Flow {
    writer: libc::pid_t,
    board: NonNull<Board>,
}

impl Flow {
    /// Starts both; nothing flows yet.
    fn start() -> Self {
        // SAFETY: new memory, shared with the processes that are forked next; all zeroes is a board.
        let board = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Board>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(board, libc::MAP_FAILED);
        let board = NonNull::new(board.cast::<Board>()).unwrap();
        // SAFETY: the child makes system calls only, and never comes back.
        let writer = unsafe { libc::fork() };
        assert!(writer >= 0);
        if writer == 0 {
            // SAFETY: the mapping is there as long as this process.
            write(unsafe { board.as_ref() });
        }
        Self { writer, board }
    }

    fn board(&self) -> &Board {
        // SAFETY: mapped for as long as this process lives.
        unsafe { self.board.as_ref() }
    }

    /// Messages so far.
    fn written(&self) -> u64 {
        self.board().written.load(Ordering::Relaxed)
    }

    /// Ends both; how many messages there were.
    fn end(self) -> u64 {
        self.board().stop.store(true, Ordering::Relaxed);
        let mut status = 0;
        // SAFETY: our own child.
        let ended = unsafe { libc::waitpid(self.writer, &raw mut status, 0) };
        assert_eq!(ended, self.writer);
        assert_eq!(status, 0, "the writer failed");
        let written = self.written();
        std::mem::forget(self);
        written
    }
}

/// Several of them: agents of one recording. One alone is stopped at two thirds of the ring.
pub(super) struct Flows(Vec<Flow>);

impl Flows {
    pub(super) fn start(count: usize) -> Self {
        Self((0..count).map(|_| Flow::start()).collect())
    }

    /// The flags that name them.
    pub(super) fn targets(&self) -> Vec<String> {
        let pids = self.0.iter().map(|flow| flow.writer.to_string());
        pids.flat_map(|pid| ["--pid".to_owned(), pid]).collect()
    }

    /// Messages a second of all together from now on; 0: none.
    pub(super) fn set_rate(&self, rate: u64) {
        for flow in &self.0 {
            let share = rate / self.0.len() as u64;
            flow.board().rate.store(share, Ordering::Relaxed);
        }
    }

    /// Messages so far.
    pub(super) fn written(&self) -> u64 {
        self.0.iter().map(Flow::written).sum()
    }

    /// Ends them; how many messages there were in each.
    pub(super) fn end(self) -> Vec<u64> {
        self.0.into_iter().map(Flow::end).collect()
    }
}

/// Nothing outlives a test that fails; the reader ends with its pipe.
impl Drop for Flow {
    fn drop(&mut self) {
        // SAFETY: our own child, which nobody has waited for.
        unsafe {
            libc::kill(self.writer, libc::SIGKILL);
            libc::waitpid(self.writer, std::ptr::null_mut(), 0);
        }
    }
}

fn now_ns() -> u64 {
    // SAFETY: all zeroes is a time, which the call fills.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// The writer from its first instruction to its end: a copy of a process with threads, so system calls only.
fn write(board: &Board) -> ! {
    let mut ends = [0; 2];
    // SAFETY: two descriptors' room; buffers outlive the calls; both processes end here.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            libc::_exit(1);
        }
        let reader = libc::fork();
        if reader == 0 {
            libc::close(ends[1]);
            let mut buffer = [0_u8; READ];
            while libc::read(ends[0], buffer.as_mut_ptr().cast(), READ) > 0 {}
            libc::_exit(0);
        }
        libc::close(ends[0]);
        let mut message = [b'x'; MESSAGE];
        let (mut number, mut rate) = (0_u64, 0_u64);
        let (mut base, mut since) = (0, now_ns());
        while !board.stop.load(Ordering::Relaxed) {
            let now = now_ns();
            let wanted = board.rate.load(Ordering::Relaxed);
            let due = base + rate * (now - since) / 1_000_000_000;
            // What could not be written in time is not made up for later.
            if wanted != rate || due > number + rate / 10 {
                (rate, base, since) = (wanted, number, now);
                continue;
            }
            for _ in 0..due.saturating_sub(number).min(BURST) {
                digits(number, &mut message);
                if libc::write(ends[1], message.as_ptr().cast(), MESSAGE) != MESSAGE.cast_signed() {
                    libc::_exit(2);
                }
                number += 1;
                board.written.store(number, Ordering::Relaxed);
            }
            if number >= due {
                let pause = libc::timespec {
                    tv_sec: 0,
                    tv_nsec: 300_000,
                };
                libc::nanosleep(&raw const pause, std::ptr::null_mut());
            }
        }
        libc::close(ends[1]);
        libc::waitpid(reader, std::ptr::null_mut(), 0);
        libc::_exit(0);
    }
}

fn digits(mut number: u64, message: &mut [u8; MESSAGE]) {
    for place in message[..DIGITS].iter_mut().rev() {
        *place = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
    }
}

/// Which numbers of a CPU's records were seen.
#[derive(Default)]
struct Numbers {
    bits: Vec<u64>,
    seen: u64,
    highest: u64,
}

impl Numbers {
    /// `false`: it was there before.
    fn take(&mut self, number: u64) -> bool {
        let (word, bit) = (usize::try_from(number / 64).unwrap(), 1 << (number % 64));
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        let new = self.bits[word] & bit == 0;
        self.bits[word] |= bit;
        self.seen += u64::from(new);
        self.highest = self.highest.max(number);
        new
    }
}

/// One direction of the pipe.
#[derive(Default)]
struct Direction {
    /// Operations that came before their turn: bytes, and bytes before them.
    early: BTreeMap<u64, (u64, u64)>,
    next: u64,
    bytes: u64,
    captured: u64,
}

impl Direction {
    fn take(&mut self, transfer: &Transfer, payload: &[u8]) {
        let mut place = transfer.stream_before + transfer.offset;
        let mut rest = payload;
        let mut message = [b'x'; MESSAGE];
        while !rest.is_empty() {
            digits(place / MESSAGE as u64, &mut message);
            let expected = &message[usize::try_from(place % MESSAGE as u64).unwrap()..];
            let (part, after) = rest.split_at(expected.len().min(rest.len()));
            assert_eq!(part, &expected[..part.len()], "byte {place} of the stream");
            place += part.len() as u64;
            rest = after;
        }
        self.captured += payload.len() as u64;
        if transfer.op_seq >= self.next {
            let op = (transfer.returned, transfer.stream_before);
            self.early.insert(transfer.op_seq, op);
        }
        while let Some((returned, before)) = self.early.remove(&self.next) {
            assert_eq!(before, self.bytes, "operation {}", self.next);
            self.bytes += returned;
            self.next += 1;
        }
    }
}

/// What was found in a spool, or in parts of it one after the other.
#[derive(Default)]
pub(super) struct Check {
    cpus: BTreeMap<u16, Numbers>,
    directions: BTreeMap<(u64, u8), Direction>,
}

impl Check {
    /// Reads all segments in a directory: no record of the kernel is there twice, and what there is of the pipe is in its place.
    pub(super) fn read(&mut self, spool: &Path) {
        let mut reader = SpoolReader::open(Dir::open_named(spool).unwrap()).unwrap();
        while let Some(item) = reader.next_item().unwrap() {
            match item {
                SpoolItem::Record(record) => self.take(record),
                SpoolItem::Segment(_) => {}
                // Those before were read earlier. Records that are in no segment are found out at the end.
                SpoolItem::Damage(damage) => {
                    assert_eq!(damage.kind, DamageKind::MissingSegment, "{damage:?}");
                }
            }
        }
    }

    fn take(&mut self, record: &[u8]) {
        let (header, _) = RecordHeader::read_from_prefix(record).unwrap();
        if header.kind >= kind::FIRST_USER {
            return;
        }
        let new = self
            .cpus
            .entry(header.cpu)
            .or_default()
            .take(header.cpu_seq);
        assert!(new, "twice: {header:?}");
        if header.kind == kind::CHUNK {
            let (transfer, payload) = Transfer::read_from_prefix(record).unwrap();
            if transfer.channel.kind == channel_kind::PIPE {
                let key = (transfer.channel.object, transfer.direction);
                let direction = self.directions.entry(key).or_default();
                direction.take(&transfer, payload);
            }
        }
    }

    /// No record is missing, and both ends of each pipe are there to the byte. How many records there are.
    pub(super) fn finish(self, mut written: Vec<u64>) -> u64 {
        let mut records = 0;
        for (cpu, numbers) in &self.cpus {
            let missing = numbers.highest + 1 - numbers.seen;
            let seen = numbers.seen;
            assert_eq!(missing, 0, "records of cpu {cpu} are missing, of {seen}");
            records += seen;
        }
        let mut found = Vec::new();
        for direction in self.directions.values() {
            assert!(direction.early.is_empty(), "operations are missing");
            assert_eq!(direction.bytes, direction.captured);
            found.push(direction.bytes / MESSAGE as u64);
        }
        found.sort_unstable();
        written.extend(written.clone());
        written.sort_unstable();
        assert_eq!(found, written, "messages at both ends of each pipe");
        records
    }
}
