//! Records to signed lines, and lines to the file.
//!
//! Owns: entry ids, timestamps, the signature, the queue before the file and what happens when the file
//! cannot be written. Does not own: what an entry says.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use countersign_core::proxylog::{Direction, Draft, Key, own, timestamp};
use ulid::Ulid;

use super::ledger::Record;
use super::queue::Queue;

/// Pause before a full disk is tried again.
const FULL_DISK_RETRY: Duration = Duration::from_millis(200);

/// Names in the proxy's configuration that stand in every entry.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub(super) client_id: String,
    pub(super) server_id: String,
}

/// Turns records into lines in the queue.
#[derive(Debug)]
pub(super) struct Journal {
    key: Key,
    names: Names,
    ids: Ids,
    queue: Arc<Queue>,
    fail_open: bool,
    dropped: u64,
}

impl Journal {
    pub(super) fn new(key: Key, names: Names, queue: Arc<Queue>, fail_open: bool) -> Result<Self> {
        Ok(Self {
            key,
            names,
            ids: Ids::new()?,
            queue,
            fail_open,
            dropped: 0,
        })
    }

    /// Queues an entry. Waits while the queue is full, unless failing open. False if nothing may be
    /// forwarded any more, because it could not be logged.
    pub(super) fn record(&mut self, record: &Record) -> bool {
        let line = self.line(record);
        let queued = self.queue.push(line, self.fail_open);
        if !queued {
            self.dropped += 1;
        }
        queued || self.fail_open
    }

    /// Queues a last entry about entries that were given up, and closes the queue. Returns how many
    /// were.
    pub(super) fn close(&mut self) -> u64 {
        if self.dropped > 0 {
            let params = format!("{{\"entries\":{}}}", self.dropped);
            let line = self.line(&Record {
                direction: Direction::ServerToClient,
                method: own::DROPPED.to_owned(),
                request_id: String::new(),
                tool_name: String::new(),
                params: Some(params.into_bytes()),
                result: None,
                error: None,
                duration_ms: 0,
            });
            // Waits for room: nothing is being forwarded any more.
            self.queue.push(line, false);
        }
        self.queue.close();
        self.dropped
    }

    fn line(&mut self, record: &Record) -> Vec<u8> {
        // The id first, then the time, as mcp-audit does.
        let id = self.ids.next(utc_ns());
        let timestamp = timestamp::format(utc_ns());
        let draft = Draft {
            id: &id,
            timestamp: &timestamp,
            direction: record.direction,
            transport: "stdio",
            method: &record.method,
            request_id: &record.request_id,
            tool_name: &record.tool_name,
            params: record.params.as_deref(),
            result: record.result.as_deref(),
            error: record.error.as_deref(),
            duration_ms: record.duration_ms,
            client_id: &self.names.client_id,
            server_id: &self.names.server_id,
        };
        draft.line(Some(&self.key))
    }
}

fn utc_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Ids that rise strictly within this process, even when the clock goes back.
#[derive(Debug)]
struct Ids {
    random: File,
    last: Ulid,
}

impl Ids {
    fn new() -> Result<Self> {
        let random = File::open("/dev/urandom").context("cannot open /dev/urandom")?;
        Ok(Self {
            random,
            last: Ulid::nil(),
        })
    }

    fn next(&mut self, utc_ns: i64) -> String {
        let now_ms = u64::try_from(utc_ns / 1_000_000).unwrap_or_default();
        let next = if now_ms > self.last.timestamp_ms() {
            let mut random = [0; 16];
            // Ids need to be distinct, not secret: if there is no randomness, the clock must do.
            let _ = self.random.read_exact(&mut random[6..]);
            Ulid::from_parts(now_ms, u128::from_be_bytes(random))
        } else {
            // Overflow of 80 bits within a millisecond: the next millisecond, early.
            self.last
                .increment()
                .unwrap_or_else(|_| Ulid::from_parts(self.last.timestamp_ms() + 1, 0))
        };
        self.last = next;
        next.to_string()
    }
}

/// Writes lines from the queue until it is closed and empty: one `write` per line.
///
/// A full disk is waited for; any other error ends the writing, and closes the queue, so that nothing
/// more is forwarded unlogged. With `fail_open` a line that cannot be written is given up instead.
///
/// # Errors
/// The file can no longer be written.
pub(super) fn write_lines(queue: &Queue, mut file: File, fail_open: bool) -> io::Result<u64> {
    let mut lost = 0;
    let mut torn = false;
    while let Some(mut line) = queue.pop() {
        if torn {
            // What was begun and given up ends here, as a bad line of its own.
            line.insert(0, b'\n');
        }
        let mut written = 0;
        while written < line.len() {
            match file.write(&line[written..]) {
                Ok(0) => return fail(queue, io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if fail_open => {
                    lost += 1;
                    break;
                }
                Err(error) if disk_is_full(&error) => std::thread::sleep(FULL_DISK_RETRY),
                Err(error) => return fail(queue, error),
            }
        }
        torn = (torn && written == 0) || (written > 0 && written < line.len());
    }
    Ok(lost)
}

fn fail(queue: &Queue, error: io::Error) -> io::Result<u64> {
    queue.close();
    Err(error)
}

fn disk_is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use super::Ids;

    #[test]
    fn ids_rise_when_the_clock_stands_or_goes_back() {
        let mut ids = Ids::new().unwrap();
        let times = [5_000_000, 5_000_000, 4_000_000, 5_999_999, 6_000_000, 1];
        let made: Vec<_> = times.iter().map(|ns| ids.next(*ns)).collect();
        assert!(
            made.is_sorted() && made.windows(2).all(|pair| pair[0] != pair[1]),
            "{made:?}"
        );
        assert!(made.iter().all(|id| id.len() == 26));
    }
}
