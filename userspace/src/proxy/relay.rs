//! Moves the bytes of one direction, untouched, and shows them to the ledger before they go on.
//!
//! A request is known before the server can answer it, and an answer is in the log's queue before the
//! client sees it. Bytes go on as they come; only the read that completes a line waits for the log.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use countersign_core::proxylog::Direction;
use rustix::event::{PollFd, PollFlags, poll};

use super::journal::Journal;
use super::ledger::Ledger;
use super::lines::{LINE_MAX_BYTES, Line, Lines};

/// Bytes taken from a peer at once: what a pipe holds.
const READ_BYTES: usize = 64 << 10;

/// What both directions write to.
#[derive(Debug)]
pub(super) struct Log {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    ledger: Ledger,
    journal: Journal,
    closed: bool,
}

impl Log {
    pub(super) fn new(ledger: Ledger, journal: Journal) -> Self {
        Self {
            inner: Mutex::new(Inner {
                ledger,
                journal,
                closed: false,
            }),
        }
    }

    /// Logs what is unanswered and ends the log. Returns how many entries were given up.
    pub(super) fn close(&self, reason: &str) -> u64 {
        let mut inner = self.lock();
        let Inner {
            ledger,
            journal,
            closed,
        } = &mut *inner;
        *closed = true;
        ledger.close(reason, Instant::now(), &mut |record| {
            journal.record(&record);
        });
        journal.close()
    }

    fn line(&self, direction: Direction, line: &Line<'_>) {
        let mut inner = self.lock();
        let Inner {
            ledger,
            journal,
            closed,
        } = &mut *inner;
        if *closed {
            return;
        }
        let mut logged = true;
        ledger.line(direction, line, Instant::now(), &mut |record| {
            logged &= journal.record(&record);
        });
        *closed = !logged;
    }

    /// Nothing may be forwarded that cannot be logged any more.
    fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Relays until `from` ends or `to` refuses, then closes both, so that each peer sees what it would
/// have seen without a proxy.
pub(super) fn relay(
    log: &Log,
    progress: &Progress,
    direction: Direction,
    mut from: File,
    mut to: File,
) {
    let mut lines = Lines::new(LINE_MAX_BYTES);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        progress.waiting.store(true, Ordering::Release);
        let read = from.read(&mut buffer);
        progress.reads.fetch_add(1, Ordering::Release);
        progress.waiting.store(false, Ordering::Release);
        let count = match read {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if wait(&error, &from, PollFlags::IN) => continue,
            Err(error) => {
                tracing::debug!(?direction, %error, "read failed");
                break;
            }
        };
        let bytes = &buffer[..count];
        lines.push(bytes, |line| log.line(direction, &line));
        if log.is_closed() {
            break;
        }
        if let Err(error) = forward(&mut to, bytes) {
            tracing::debug!(?direction, %error, "the receiver is gone");
            break;
        }
    }
    lines.finish(|line| log.line(direction, &line));
    progress.ended.store(true, Ordering::Release);
}

/// Where a relay stands, for whoever waits for its end.
#[derive(Debug, Default)]
pub(super) struct Progress {
    waiting: AtomicBool,
    reads: AtomicU64,
    ended: AtomicBool,
}

impl Progress {
    pub(super) fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Reads so far, if the relay waits for its sender now; `None` while it is forwarding.
    pub(super) fn idle_at(&self) -> Option<u64> {
        let reads = self.reads.load(Ordering::Acquire);
        self.waiting.load(Ordering::Acquire).then_some(reads)
    }
}

fn forward(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if wait(&error, to, PollFlags::OUT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// True if the call is worth repeating. A peer may have made the shared description non-blocking; then
/// this waits until it is ready.
fn wait(error: &io::Error, file: &File, events: PollFlags) -> bool {
    let kind = error.kind();
    if kind == io::ErrorKind::WouldBlock {
        let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), events)];
        // A failed poll shows again as a failed read or write.
        let _ = poll(&mut fds, None);
    }
    matches!(kind, io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}
