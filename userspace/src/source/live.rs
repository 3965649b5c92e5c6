//! The live source: a thread that moves records from the kernel's ring to a sink.
//!
//! It adds a heartbeat each second (what the programs and the kernel counted, both clocks) and, at the end, what the
//! kernel counted per channel. It interprets no record.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use countersign_common::{counter, kind};
use serde::Serialize;

use super::user_record::user_record;
use crate::{
    bpf::{
        Place,
        capture::{Balanced, Capture, ChannelTotals, ProgramLedger},
    },
    clock::Moment,
};

/// How long the ring may wait unlooked at. The kernel wakes us only when about a mebibyte is waiting.
const POLL: Duration = Duration::from_millis(4);
/// Time between heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Empty looks at the ring, [`POLL`] apart, after which a stopped capture counts as drained. A record that is reserved and not
/// yet submitted makes the ring look empty for some microseconds.
const EMPTY_LOOKS: u32 = 3;
/// Longest drain after a stop. Tagged processes that go on writing would keep it going for ever.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Heartbeats from one balance of each channel to the next; in between only those that moved are balanced.
const BEATS_TO_EACH: u32 = 10;

/// Records taken before the clock is looked at. A flood can fill the ring as fast as it is emptied.
const DRAIN_RECORDS: usize = 1 << 16;
/// The same where the ring keeps records until they are safe: a mark comes after each batch.
const DRAIN_RECORDS_PINNED: usize = 1 << 11;
/// Niceness of the thread that empties the ring. Watched processes that keep every CPU busy would leave it a fair share, and
/// then the ring runs full; measured with 16 of them on 2 CPUs, it lost more than half of the records at niceness 0.
const DRAIN_NICENESS: i32 = -20;

/// Where records go. It must not wait for a disk: meanwhile the ring runs full.
pub trait RecordSink {
    /// Takes one record, header first, cut to its size.
    ///
    /// # Errors
    /// When the sink can take no more; it ends the capture.
    fn record(&mut self, bytes: &[u8]) -> anyhow::Result<()>;

    /// [`RecordSink::record`] with the [pool](countersign_common::tag::pool) at whose expense it was made.
    ///
    /// # Errors
    /// As there.
    fn record_of(&mut self, _pool: u8, bytes: &[u8]) -> anyhow::Result<()> {
        self.record(bytes)
    }

    /// Nothing more comes for the moment.
    fn pause(&mut self) {}

    /// All records given so far lie before this place of the rings.
    fn mark(&mut self, _place: Place) {}

    /// The last mark whose records no crash of this process can lose any more.
    fn safe(&self) -> Option<Place> {
        None
    }
}

impl<F: FnMut(&[u8]) -> anyhow::Result<()>> RecordSink for F {
    fn record(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self(bytes)
    }
}

/// What a capture delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveSummary {
    /// Records from the kernel.
    pub records: u64,
    /// Ring entries that contradicted themselves.
    pub malformed: u64,
    /// Whether the ring was empty at the end; if not, [`DRAIN_MAX`] ran out.
    pub drained: bool,
    /// Records that found the ring full, by the kernel's count.
    pub ring_dropped_records: u64,
    /// Their payload bytes.
    pub ring_dropped_bytes: u64,
    /// Times that the kernel skipped a program.
    pub missed: u64,
}

/// A running capture thread.
#[derive(Debug)]
pub struct Live<S> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(S, anyhow::Result<LiveSummary>)>,
}

impl<S: RecordSink + Send + 'static> Live<S> {
    /// Starts the thread. Tag processes through [`Capture::tagger`] from elsewhere.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(mut capture: Capture, mut sink: S) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || {
                prioritise(DRAIN_NICENESS);
                let result = run(&mut capture, &mut sink, &seen);
                sink.pause();
                (sink, result)
            })
            .context("start the capture thread")?;
        Ok(Self { stop, thread })
    }

    /// Whether the thread has ended by itself: its sink refused a record or the ring failed. [`Live::stop`] says why.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Stops: takes what is in the ring, adds the totals, detaches the programs. The sink comes back in any case.
    ///
    /// # Errors
    /// When the thread panicked, which its code has no way to.
    pub fn stop(self) -> anyhow::Result<(S, anyhow::Result<LiveSummary>)> {
        self.stop.store(true, Ordering::Release);
        self.thread
            .join()
            .map_err(|_panic| anyhow::anyhow!("the capture thread panicked"))
    }
}

/// Gives the calling thread another niceness. Without `CAP_SYS_NICE` it keeps its own: that loses records under load, which
/// are counted.
pub(crate) fn prioritise(niceness: i32) {
    if let Err(error) = rustix::process::setpriority_process(None, niceness) {
        tracing::debug!(niceness, %error, "the thread keeps its priority");
    }
}

/// Moves records until `stop` is set, then until the ring is empty, then adds the totals.
///
/// # Errors
/// The sink's, or the kernel's.
pub fn run(
    capture: &mut Capture,
    sink: &mut impl RecordSink,
    stop: &AtomicBool,
) -> anyhow::Result<LiveSummary> {
    let mut summary = LiveSummary::default();
    heartbeat(capture, sink, &mut summary)?;
    let mut next_heartbeat = Instant::now() + HEARTBEAT;
    let mut beats = 0_u32;
    let mut balances = Balances::default();
    while !stop.load(Ordering::Acquire) {
        if drain(capture, sink, &mut summary)? == 0 {
            sink.pause();
            capture.tell();
            capture.wait(POLL)?;
        }
        if Instant::now() >= next_heartbeat {
            capture.tell();
            // Before the programs' misses are read: what they say of a time is held against balances from before and after it.
            let missed = summary.missed;
            heartbeat(capture, sink, &mut summary)?;
            beats += 1;
            let each = beats.is_multiple_of(BEATS_TO_EACH) || summary.missed > missed;
            let which = if each {
                Balanced::Each
            } else {
                Balanced::Moved
            };
            balances.take(capture, sink, which)?;
            next_heartbeat = Instant::now() + HEARTBEAT;
        }
    }
    let deadline = Instant::now() + DRAIN_MAX;
    let mut empty_looks = 0;
    let mut seen_to = 0;
    while empty_looks < EMPTY_LOOKS && Instant::now() < deadline {
        let looked_at = Moment::now().boot_ns;
        if drain(capture, sink, &mut summary)? == 0 {
            if empty_looks == 0 {
                seen_to = looked_at;
            }
            empty_looks += 1;
            thread::sleep(POLL);
        } else {
            empty_looks = 0;
        }
    }
    summary.drained = empty_looks == EMPTY_LOOKS;
    if summary.drained {
        // What happens from here on is not looked at any more, however long the rest takes.
        let note = serde_json::json!({ "event": "drained", "boot_ns": seen_to });
        sink.record(&user_record(kind::CAPTURE, capture.generation(), &note)?)?;
    }
    capture.tell();
    // Misses up to here can then be held against the balances that follow.
    heartbeat(capture, sink, &mut summary)?;
    balances.take(capture, sink, Balanced::Each)?;
    drain(capture, sink, &mut summary)?;
    totals(capture, sink)?;
    heartbeat(capture, sink, &mut summary)?;
    summary.malformed = capture.malformed();
    // What ended in order leaves nothing behind.
    capture.unpin()?;
    Ok(summary)
}

fn drain(
    capture: &mut Capture,
    sink: &mut impl RecordSink,
    summary: &mut LiveSummary,
) -> anyhow::Result<usize> {
    let mut result = Ok(());
    let most = if capture.is_pinned() {
        DRAIN_RECORDS_PINNED
    } else {
        DRAIN_RECORDS
    };
    let records = capture.drain_some(most, |pool, record| {
        if result.is_ok() {
            result = sink.record_of(pool, record);
        }
    });
    if capture.is_pinned() {
        if records > 0 {
            sink.mark(capture.place());
        }
        if let Some(place) = sink.safe() {
            capture.release(place);
        }
    }
    summary.records += records as u64;
    result.map(|()| records)
}

/// The balances, as long as the kernel makes them.
#[derive(Default)]
struct Balances {
    refused: bool,
}

impl Balances {
    /// Has some made. Where the kernel refuses, the capture goes on without, and the records say so.
    fn take(
        &mut self,
        capture: &Capture,
        sink: &mut impl RecordSink,
        which: Balanced,
    ) -> anyhow::Result<()> {
        if self.refused {
            return Ok(());
        }
        let Err(error) = capture.balance(which) else {
            return Ok(());
        };
        self.refused = true;
        tracing::warn!(error = format!("{error:#}"), "channels cannot be balanced");
        let note = serde_json::json!({ "what": "balance", "cause": format!("{error:#}") });
        sink.record(&user_record(kind::LOSS, capture.generation(), &note)?)
    }
}

/// Adds what the kernel counted per channel. Only at the end: the kernel must be left alone while it captures.
fn totals(capture: &Capture, sink: &mut impl RecordSink) -> anyhow::Result<()> {
    for totals in capture.channel_totals()? {
        sink.record(&user_record(
            kind::CHANNEL_TOTALS,
            capture.generation(),
            &TotalsRecord::from(totals),
        )?)?;
    }
    Ok(())
}

/// Adds both clocks and what programs and kernel counted so far.
fn heartbeat(
    capture: &Capture,
    sink: &mut impl RecordSink,
    summary: &mut LiveSummary,
) -> anyhow::Result<()> {
    let generation = capture.generation();
    let now = Moment::now();
    let clock = ClockRecord {
        boot_ns: now.boot_ns,
        utc_ns: now.utc_ns,
    };
    sink.record(&user_record(kind::CLOCK, generation, &clock)?)?;
    let counters = capture.counters()?;
    let dropped = counters[counter::RING_DROPPED_RECORDS as usize];
    if dropped > 0 && summary.ring_dropped_records == 0 {
        tracing::warn!(records = dropped, "the kernel's ring ran full");
    }
    summary.ring_dropped_records = dropped;
    summary.ring_dropped_bytes = counters[counter::RING_DROPPED_BYTES as usize];
    let programs = capture.ledger();
    summary.missed = programs
        .iter()
        .map(|program| program.recursion_misses)
        .sum();
    let ledger = LedgerRecord {
        programs,
        counters: CounterNames::from(&counters),
        malformed: capture.malformed(),
    };
    sink.record(&user_record(kind::LEDGER, generation, &ledger)?)
}

/// JSON of [`kind::CLOCK`].
#[derive(Serialize)]
struct ClockRecord {
    boot_ns: u64,
    utc_ns: i64,
}

/// JSON of [`kind::LEDGER`].
#[derive(Serialize)]
struct LedgerRecord {
    programs: Vec<ProgramLedger>,
    counters: CounterNames,
    malformed: u64,
}

/// JSON of [`kind::CHANNEL_TOTALS`]: index 0 read, 1 written.
#[derive(Serialize)]
struct TotalsRecord {
    object: u64,
    inode: u64,
    dev: u32,
    kind: u32,
    epoch: u64,
    peer_object: u64,
    peer_inode: u64,
    read_ops: u64,
    read_bytes: u64,
    written_ops: u64,
    written_bytes: u64,
}

impl From<ChannelTotals> for TotalsRecord {
    fn from(totals: ChannelTotals) -> Self {
        let ChannelTotals { key, state } = totals;
        Self {
            object: key.object,
            inode: key.inode,
            dev: state.dev,
            kind: state.kind,
            epoch: state.epoch,
            peer_object: state.peer_object,
            peer_inode: state.peer_inode,
            read_ops: state.ops[0],
            read_bytes: state.bytes[0],
            written_ops: state.ops[1],
            written_bytes: state.bytes[1],
        }
    }
}

/// The kernel's counters by name.
#[derive(Serialize)]
struct CounterNames {
    records: u64,
    payload_bytes: u64,
    ring_dropped_records: u64,
    ring_dropped_bytes: u64,
    fault_bytes: u64,
    limit_bytes: u64,
    tag_failed: u64,
    pending_failed: u64,
    channel_failed: u64,
    fd_swapped: u64,
    no_enter: u64,
    splice_bytes: u64,
    peers_marked: u64,
    compat_syscalls: u64,
    unseen_submissions: u64,
    kernel_read_failed: u64,
    function_unpaired: u64,
    function_missed: u64,
    uring_ops: u64,
    multishot_bytes: u64,
    kernel_copy_bytes: u64,
    kernel_copy_failed_bytes: u64,
    snapshot_bytes: u64,
    evasions: u64,
    evasions_folded: u64,
    control_dropped_records: u64,
    credit_dropped_records: u64,
    credit_dropped_bytes: u64,
    balance_skipped: u64,
}

impl From<&[u64; counter::COUNT as usize]> for CounterNames {
    fn from(values: &[u64; counter::COUNT as usize]) -> Self {
        let of = |index: u32| values[index as usize];
        Self {
            records: of(counter::RECORDS),
            payload_bytes: of(counter::PAYLOAD_BYTES),
            ring_dropped_records: of(counter::RING_DROPPED_RECORDS),
            ring_dropped_bytes: of(counter::RING_DROPPED_BYTES),
            fault_bytes: of(counter::FAULT_BYTES),
            limit_bytes: of(counter::LIMIT_BYTES),
            tag_failed: of(counter::TAG_FAILED),
            pending_failed: of(counter::PENDING_FAILED),
            channel_failed: of(counter::CHANNEL_FAILED),
            fd_swapped: of(counter::FD_SWAPPED),
            no_enter: of(counter::NO_ENTER),
            splice_bytes: of(counter::SPLICE_BYTES),
            peers_marked: of(counter::PEERS_MARKED),
            compat_syscalls: of(counter::COMPAT_SYSCALLS),
            unseen_submissions: of(counter::UNSEEN_SUBMISSIONS),
            kernel_read_failed: of(counter::KERNEL_READ_FAILED),
            function_unpaired: of(counter::FUNCTION_UNPAIRED),
            function_missed: of(counter::FUNCTION_MISSED),
            uring_ops: of(counter::URING_OPS),
            multishot_bytes: of(counter::MULTISHOT_BYTES),
            kernel_copy_bytes: of(counter::KERNEL_COPY_BYTES),
            kernel_copy_failed_bytes: of(counter::KERNEL_COPY_FAILED),
            snapshot_bytes: of(counter::SNAPSHOT_BYTES),
            evasions: of(counter::EVASIONS),
            evasions_folded: of(counter::EVASIONS_FOLDED),
            control_dropped_records: of(counter::CONTROL_DROPPED_RECORDS),
            credit_dropped_records: of(counter::CREDIT_DROPPED_RECORDS),
            credit_dropped_bytes: of(counter::CREDIT_DROPPED_BYTES),
            balance_skipped: of(counter::BALANCE_SKIPPED),
        }
    }
}
