//! Between draining and writing: a bounded queue, and the thread that empties it into the spool.
//!
//! Whoever empties the kernel's ring must never wait for a disk. So it only puts records here; a slow disk lets the queue
//! grow, and when it is full, payload is dropped and counted exactly as when the disk is full. An agent that floods it loses its own
//! payload: it may have waiting up to twice what is free. It decides nothing about segments and budgets; the writer does.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use countersign_common::tag::POOLS;

use super::loss::{Loss, has_payload};
use super::{FRAME_HEAD_BYTES, RECORD_MAX_BYTES, SpoolStats, SpoolWriter, frames, push_frame};
use crate::bpf::Place;
use crate::source::live::RecordSink;

/// Most bytes that wait for the disk. Stops a flood on a slow disk from taking all memory. A burst may be this long; memory here costs
/// the watched nothing, other than a longer ring, whose cold memory they would write to.
pub const BACKLOG_MAX_BYTES: usize = 256 << 20;

/// Room beyond [`BACKLOG_MAX_BYTES`] for records without payload; past it these are dropped and counted too. Stops a fork
/// storm on a slow disk from taking all memory.
pub const BACKLOG_SMALL_BYTES: usize = 16 << 20;

/// Bytes handed over at once.
const BLOCK_BYTES: usize = 256 << 10;

/// Empty blocks kept for reuse: memory that is given back and taken again costs a page fault per 4 KiB.
const SPARE_BLOCKS: usize = 64;

/// Time between two hand-overs of the writer's buffer to the file system, and between two records about losses here.
const FLUSH_EVERY: Duration = Duration::from_millis(200);

/// The queue. Clones share it.
#[derive(Clone, Debug)]
pub struct Backlog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    filled: Condvar,
    /// The last mark that the file system has.
    safe: Mutex<Option<Place>>,
}

#[derive(Debug)]
struct State {
    blocks: VecDeque<Block>,
    spare: Vec<Block>,
    /// Bytes in `blocks` and in the block being written.
    bytes: usize,
    /// Of these, by the pool at whose expense they were made.
    by_pool: Box<[usize; POOLS]>,
    /// Not yet told in the spool.
    loss: Loss,
    closed: bool,
}

/// Records as they will lie in a segment: whoever has one in the cache frames it, and nobody copies it again.
#[derive(Debug)]
struct Block {
    frames: Vec<u8>,
    records: u64,
    /// Bytes of records by pool: where one ends and another begins.
    runs: Vec<(u8, usize)>,
    /// The producer wants to know when all up to here is with the file system.
    mark: Option<Place>,
    /// Somebody waits until all up to here is with the file system.
    waiter: Option<mpsc::SyncSender<bool>>,
}

/// A producer's end: gathers records into blocks.
#[derive(Debug)]
pub struct Inlet {
    backlog: Backlog,
    block: Block,
}

/// The thread that writes what waits.
#[derive(Debug)]
pub struct SpoolThread {
    backlog: Backlog,
    thread: JoinHandle<SpoolStats>,
}

enum Next {
    Block(Block),
    Timeout,
    Closed,
}

impl Backlog {
    fn new() -> Self {
        let state = State {
            blocks: VecDeque::new(),
            spare: Vec::new(),
            bytes: 0,
            by_pool: Box::new([0; POOLS]),
            loss: new_loss(),
            closed: false,
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                filled: Condvar::new(),
                safe: Mutex::new(None),
            }),
        }
    }

    /// A producer of its own.
    pub fn inlet(&self) -> Inlet {
        Inlet {
            backlog: self.clone(),
            block: Block::new(0),
        }
    }

    /// Puts one record at the end, at once.
    pub fn record(&self, record: &[u8]) {
        let mut inlet = self.inlet();
        inlet.append(0, record);
        inlet.hand_over();
    }

    /// Waits until everything put in so far is with the file system; `false` when that took too long, or the disk takes nothing.
    pub fn settle(&self, most: Duration) -> bool {
        let (done, settled) = mpsc::sync_channel(1);
        let mut block = Block::new(0);
        block.waiter = Some(done);
        self.push(block);
        settled.recv_timeout(most).unwrap_or(false)
    }

    /// Takes a full block, gives an empty one. Never waits for the disk.
    fn push(&self, block: Block) -> Block {
        let mut state = self.lock();
        let block = if state.has_room_for(&block) {
            block
        } else {
            state.what_has_room(&block)
        };
        if !block.frames.is_empty() || block.mark.is_some() || block.waiter.is_some() {
            state.bytes += block.frames.len();
            for (pool, bytes) in &block.runs {
                state.by_pool[usize::from(*pool)] += bytes;
            }
            state.blocks.push_back(block);
        }
        let empty = state.spare.pop();
        drop(state);
        self.shared.filled.notify_one();
        empty.unwrap_or_else(|| Block::new(2 * BLOCK_BYTES))
    }

    /// Waits for a block until `deadline`.
    fn next(&self, deadline: Instant) -> Next {
        let mut state = self.lock();
        loop {
            if let Some(block) = state.blocks.pop_front() {
                return Next::Block(block);
            }
            if state.closed {
                return Next::Closed;
            }
            let now = Instant::now();
            if now >= deadline {
                return Next::Timeout;
            }
            state = self
                .shared
                .filled
                .wait_timeout(state, deadline - now)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Takes a block back that has been written.
    fn written(&self, mut block: Block) {
        let mut state = self.lock();
        state.bytes = state.bytes.saturating_sub(block.frames.len());
        for (pool, bytes) in block.runs.drain(..) {
            let of = &mut state.by_pool[usize::from(pool)];
            *of = of.saturating_sub(bytes);
        }
        if state.spare.len() < SPARE_BLOCKS {
            block.frames.clear();
            block.records = 0;
            block.mark = None;
            block.waiter = None;
            state.spare.push(block);
        }
    }

    fn take_loss(&self) -> Option<Loss> {
        let mut state = self.lock();
        (state.loss.records > 0).then(|| std::mem::replace(&mut state.loss, new_loss()))
    }

    fn close(&self) {
        self.lock().closed = true;
        self.shared.filled.notify_all();
    }

    fn safe(&self) -> MutexGuard<'_, Option<Place>> {
        self.shared
            .safe
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether all of a block may wait: nobody has more waiting than is free twice over.
    fn has_room_for(&self, block: &Block) -> bool {
        let Some(free) = BACKLOG_MAX_BYTES.checked_sub(self.bytes + block.frames.len()) else {
            return false;
        };
        let mut pools = block.runs.iter().map(|(pool, _)| usize::from(*pool));
        pools.all(|pool| self.by_pool[pool] + block.frames.len() <= 2 * free)
    }

    /// What of a block may still be kept when somebody has no room for payload; the rest is counted.
    fn what_has_room(&mut self, block: &Block) -> Block {
        let mut kept = Block::new(0);
        let mut pools = block.runs.iter().copied();
        let (mut pool, mut left) = pools.next().unwrap_or_default();
        let mut kept_by_pool = [0_usize; POOLS];
        // Given up is dealt with, too: the loss has been counted.
        kept.mark = block.mark;
        for record in frames(&block.frames) {
            let len = record.len() + FRAME_HEAD_BYTES;
            while left == 0
                && let Some(next) = pools.next()
            {
                (pool, left) = next;
            }
            left = left.saturating_sub(len);
            let waiting = self.bytes + kept.frames.len() + len;
            let own = self.by_pool[usize::from(pool)] + kept_by_pool[usize::from(pool)] + len;
            let room = if has_payload(record) {
                BACKLOG_MAX_BYTES
                    .checked_sub(waiting)
                    .is_some_and(|free| own <= 2 * free)
            } else {
                waiting <= BACKLOG_MAX_BYTES + BACKLOG_SMALL_BYTES
            };
            if room {
                kept.append(pool, record);
                kept_by_pool[usize::from(pool)] += len;
            } else {
                self.loss.add(record);
            }
        }
        kept
    }
}

impl Inlet {
    fn append(&mut self, pool: u8, record: &[u8]) {
        if !self.block.append(pool, record) {
            self.backlog.lock().loss.add(record);
        }
        if self.block.frames.len() >= BLOCK_BYTES {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        if !self.block.frames.is_empty() || self.block.mark.is_some() {
            let full = std::mem::replace(&mut self.block, Block::new(0));
            self.block = self.backlog.push(full);
        }
    }
}

impl Block {
    fn new(capacity: usize) -> Self {
        Self {
            frames: Vec::with_capacity(capacity),
            records: 0,
            runs: Vec::new(),
            mark: None,
            waiter: None,
        }
    }

    /// `false` if the record is empty or too long for a spool.
    fn append(&mut self, pool: u8, record: &[u8]) -> bool {
        let before = self.frames.len();
        let fits = push_frame(&mut self.frames, record, RECORD_MAX_BYTES);
        self.records += u64::from(fits);
        let bytes = self.frames.len() - before;
        match self.runs.last_mut() {
            Some((last, run)) if *last == pool => *run += bytes,
            Some(_) | None => self.runs.push((pool, bytes)),
        }
        fits
    }
}

impl RecordSink for Inlet {
    fn record(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.append(0, bytes);
        Ok(())
    }

    fn record_of(&mut self, pool: u8, bytes: &[u8]) -> anyhow::Result<()> {
        // A pool that does not exist comes from no kernel program; it is nobody's.
        let pool = if usize::from(pool) < POOLS { pool } else { 0 };
        self.append(pool, bytes);
        Ok(())
    }

    fn pause(&mut self) {
        self.hand_over();
    }

    fn mark(&mut self, place: Place) {
        self.block.mark = Some(place);
        self.hand_over();
    }

    fn safe(&self) -> Option<Place> {
        *self.backlog.safe()
    }
}

impl SpoolThread {
    /// Starts the thread with a writer that has begun its spool.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(writer: SpoolWriter) -> io::Result<Self> {
        let backlog = Backlog::new();
        let queue = backlog.clone();
        let thread = std::thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || {
                crate::source::live::prioritise(WRITER_NICENESS);
                write(&queue, writer)
            })?;
        Ok(Self { backlog, thread })
    }

    /// Where records go.
    pub fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    /// Writes what waits, makes it durable and ends the thread. Producers must have ended.
    pub fn finish(self) -> SpoolStats {
        self.backlog.close();
        self.thread.join().unwrap_or_else(|_panic| SpoolStats {
            not_durable: true,
            last_error: Some("the thread that writes the spool panicked".to_owned()),
            ..SpoolStats::default()
        })
    }
}

/// Niceness of the writing thread: before what it watches, after the one that empties the ring.
const WRITER_NICENESS: i32 = -15;

fn write(backlog: &Backlog, mut writer: SpoolWriter) -> SpoolStats {
    let mut lost = SpoolStats::default();
    let mut flush_at = Instant::now() + FLUSH_EVERY;
    // The last mark that is not safe yet.
    let mut marked = None;
    loop {
        match backlog.next(flush_at) {
            Next::Block(mut block) => {
                writer.block(&block.frames, block.records);
                marked = block.mark.or(marked);
                if block.mark.is_some() || block.waiter.is_some() {
                    // What was given up must be told before the kernel may forget it, too.
                    tell_loss(backlog, &mut writer, &mut lost);
                    settle(backlog, &mut writer, &mut marked);
                }
                if let Some(waiter) = block.waiter.take() {
                    // Whoever has stopped waiting does not care.
                    let _ = waiter.try_send(!writer.is_starved());
                }
                backlog.written(block);
            }
            Next::Timeout => {}
            Next::Closed => break,
        }
        if Instant::now() >= flush_at {
            tell_loss(backlog, &mut writer, &mut lost);
            settle(backlog, &mut writer, &mut marked);
            flush_at = Instant::now() + FLUSH_EVERY;
        }
    }
    tell_loss(backlog, &mut writer, &mut lost);
    let mut stats = writer.finish();
    stats.lost_records += lost.lost_records;
    stats.lost_bytes += lost.lost_bytes;
    stats.lost_small_records += lost.lost_small_records;
    stats.last_error = stats.last_error.or(lost.last_error);
    stats
}

/// Hands all to the file system. What is marked is safe then, unless the disk takes nothing: then the rings keep what they have, and the
/// kernel counts what they have no room for where the end of this process does not matter.
fn settle(backlog: &Backlog, writer: &mut SpoolWriter, marked: &mut Option<Place>) {
    writer.flush();
    // Again: coming back from starvation leaves a loss record in the buffer.
    writer.flush();
    if !writer.is_starved()
        && let Some(mark) = marked.take()
    {
        *backlog.safe() = Some(mark);
    }
}

fn tell_loss(backlog: &Backlog, writer: &mut SpoolWriter, lost: &mut SpoolStats) {
    let Some(given_up) = backlog.take_loss() else {
        return;
    };
    if lost.lost_records == 0 {
        tracing::warn!("the disk is slower than the records come; payload is dropped");
    }
    lost.lost_records += given_up.records;
    lost.lost_bytes += given_up.bytes;
    lost.lost_small_records += given_up.small_records;
    lost.last_error = Some(given_up.cause.clone());
    writer.loss(&given_up);
}

fn new_loss() -> Loss {
    Loss::new(
        "backlog",
        "records came faster than the disk took them".to_owned(),
    )
}

#[cfg(test)]
#[path = "backlog_tests.rs"]
mod tests;
