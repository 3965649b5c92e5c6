//! Copies of the proxies' logs as they were seen while recording.
//!
//! Owns a directory beside the spool: one file per log file, byte for byte, and `events.jsonl` with what
//! happened to the logs. So a log that is cut, rotated away or replaced after it was read stays in
//! evidence, and pairing can be repeated from the spool alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::proxylog::{FileFacts, FileId, LogEvent};
use crate::outdir::Dir;

/// Name of the directory, beside the segments.
pub const KEPT_LOGS: &str = "logs";

const EVENTS: &str = "events.jsonl";

/// Longest line of `events.jsonl` in bytes. Stops a damaged file from taking all memory.
const LINE_MAX_BYTES: u64 = 64 * 1024;

/// Writes the copies. Never stops the capture: what cannot be written is counted.
#[derive(Debug)]
pub struct KeptLogWriter {
    dir: Dir,
    events: File,
    copies: BTreeMap<(usize, u64), Copy>,
    lost_bytes: u64,
}

#[derive(Debug)]
struct Copy {
    file: File,
    written: u64,
    /// Once something is missing, nothing may follow: offsets in the copy are offsets in the log.
    broken: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    proxy: usize,
    #[serde(flatten)]
    event: Kept,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Kept {
    Opened {
        file: u64,
        path: PathBuf,
        facts: FileFacts,
        again: Option<u64>,
    },
    Truncated {
        file: u64,
        read: u64,
        size: u64,
    },
    Rewritten {
        file: u64,
    },
    Rotated {
        file: u64,
    },
    Removed {
        file: u64,
    },
    Missing,
    Refused {
        why: String,
    },
    Unreadable {
        file: u64,
        why: String,
    },
    TooMany,
}

impl KeptLogWriter {
    /// Begins in the spool's directory.
    ///
    /// # Errors
    /// When the directory or its first file cannot be made.
    pub fn create(spool: &Dir) -> io::Result<Self> {
        let dir = spool.create_dir(KEPT_LOGS)?;
        let events = dir.create_file(EVENTS)?;
        Ok(Self {
            dir,
            events,
            copies: BTreeMap::new(),
            lost_bytes: 0,
        })
    }

    /// Keeps one event of the log of proxy number `proxy`.
    pub fn event(&mut self, proxy: usize, event: &LogEvent<'_>) {
        let kept = match event {
            LogEvent::Bytes { file, offset, data } => {
                self.bytes(proxy, *file, *offset, data);
                return;
            }
            LogEvent::Opened {
                file,
                path,
                facts,
                again,
            } => Kept::Opened {
                file: file.0,
                path: path.clone(),
                facts: *facts,
                again: again.map(|file| file.0),
            },
            LogEvent::Truncated { file, read, size } => Kept::Truncated {
                file: file.0,
                read: *read,
                size: *size,
            },
            LogEvent::Rewritten { file } => Kept::Rewritten { file: file.0 },
            LogEvent::Rotated { file } => Kept::Rotated { file: file.0 },
            LogEvent::Removed { file } => Kept::Removed { file: file.0 },
            LogEvent::Missing => Kept::Missing,
            LogEvent::Refused { why } => Kept::Refused { why: why.clone() },
            LogEvent::Unreadable { file, why } => Kept::Unreadable {
                file: file.0,
                why: why.clone(),
            },
            LogEvent::TooMany => Kept::TooMany,
        };
        let written = serde_json::to_vec(&Line { proxy, event: kept })
            .map_err(io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                self.events.write_all(&line)
            });
        if let Err(error) = written {
            tracing::warn!(%error, "an event of a proxy log could not be kept");
            self.lost_bytes += 1;
        }
    }

    /// Bytes (and events, counted as one) that could not be kept.
    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    /// Makes the copies durable.
    pub fn finish(self) -> u64 {
        for file in self
            .copies
            .values()
            .map(|copy| &copy.file)
            .chain([&self.events])
        {
            if let Err(error) = file.sync_all() {
                tracing::warn!(%error, "the copy of a proxy log could not be made durable");
            }
        }
        self.lost_bytes
    }

    fn bytes(&mut self, proxy: usize, file: FileId, offset: u64, data: &[u8]) {
        let key = (proxy, file.0);
        if !self.copies.contains_key(&key) {
            match self.dir.create_file(&copy_name(proxy, file.0)) {
                Ok(file) => {
                    self.copies.insert(
                        key,
                        Copy {
                            file,
                            written: 0,
                            broken: false,
                        },
                    );
                }
                Err(error) => {
                    tracing::warn!(%error, "a proxy log cannot be kept");
                    self.lost_bytes += data.len() as u64;
                    return;
                }
            }
        }
        let Some(copy) = self.copies.get_mut(&key) else {
            return;
        };
        if copy.broken || copy.written != offset {
            copy.broken = true;
            self.lost_bytes += data.len() as u64;
            return;
        }
        if let Err(error) = copy.file.write_all(data) {
            tracing::warn!(%error, "a proxy log cannot be kept any further");
            copy.broken = true;
            self.lost_bytes += data.len() as u64;
            return;
        }
        copy.written += data.len() as u64;
    }
}

/// Reads the copies in `spool` back as the events that they were made from: for each file first its
/// opening, then all of its bytes, then what happened to it. Returns whether there were any.
///
/// # Errors
/// When the copies cannot be read or are damaged.
pub fn replay(
    spool: &Dir,
    sink: &mut dyn FnMut(usize, LogEvent<'_>) -> io::Result<()>,
) -> io::Result<bool> {
    let dir = match spool.open_dir(std::path::Path::new(KEPT_LOGS)) {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut events = BufReader::new(dir.open_file(EVENTS)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut events)
            .take(LINE_MAX_BYTES)
            .read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(true);
        }
        let Line { proxy, event } = serde_json::from_slice(&line)?;
        let opened = if let Kept::Opened { file, .. } = &event {
            Some(*file)
        } else {
            None
        };
        sink(proxy, event.into_event())?;
        if let Some(file) = opened {
            replay_bytes(&dir, proxy, file, sink)?;
        }
    }
}

fn replay_bytes(
    dir: &Dir,
    proxy: usize,
    file: u64,
    sink: &mut dyn FnMut(usize, LogEvent<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let mut copy = match dir.open_file(&copy_name(proxy, file)) {
        Ok(copy) => copy,
        // No byte was ever read of it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut buffer = vec![0; 256 * 1024];
    let mut offset = 0;
    loop {
        let length = copy.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        sink(
            proxy,
            LogEvent::Bytes {
                file: FileId(file),
                offset,
                data: &buffer[..length],
            },
        )?;
        offset += length as u64;
    }
}

impl Kept {
    fn into_event(self) -> LogEvent<'static> {
        match self {
            Self::Opened {
                file,
                path,
                facts,
                again,
            } => LogEvent::Opened {
                file: FileId(file),
                path,
                facts,
                again: again.map(FileId),
            },
            Self::Truncated { file, read, size } => LogEvent::Truncated {
                file: FileId(file),
                read,
                size,
            },
            Self::Rewritten { file } => LogEvent::Rewritten { file: FileId(file) },
            Self::Rotated { file } => LogEvent::Rotated { file: FileId(file) },
            Self::Removed { file } => LogEvent::Removed { file: FileId(file) },
            Self::Missing => LogEvent::Missing,
            Self::Refused { why } => LogEvent::Refused { why },
            Self::Unreadable { file, why } => LogEvent::Unreadable {
                file: FileId(file),
                why,
            },
            Self::TooMany => LogEvent::TooMany,
        }
    }
}

fn copy_name(proxy: usize, file: u64) -> String {
    format!("{proxy}-{file}.log")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use super::super::proxylog::Follower;
    use super::*;

    #[test]
    fn a_replay_gives_the_bytes_and_events_back() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("audit.jsonl");
        std::fs::create_dir(directory.path().join("spool")).unwrap();
        let spool = Dir::open_named(&directory.path().join("spool")).unwrap();
        let mut keeper = KeptLogWriter::create(&spool).unwrap();
        std::fs::write(&log, "one\n").unwrap();
        let mut follower = Follower::new(&log).unwrap();
        follower.poll(&mut |event| keeper.event(0, &event));
        std::fs::write(&log, "x\n").unwrap();
        follower.finish(&mut |event| keeper.event(0, &event));
        assert_eq!(keeper.finish(), 0);

        let mut bytes = BTreeMap::<u64, Vec<u8>>::new();
        let mut names = Vec::new();
        let found = replay(&spool, &mut |_, event| {
            match event {
                LogEvent::Bytes { file, data, .. } => bytes.entry(file.0).or_default().extend(data),
                LogEvent::Opened { .. } => names.push("opened"),
                LogEvent::Truncated { .. } => names.push("truncated"),
                LogEvent::Rewritten { .. }
                | LogEvent::Rotated { .. }
                | LogEvent::Removed { .. }
                | LogEvent::Missing
                | LogEvent::Refused { .. }
                | LogEvent::Unreadable { .. }
                | LogEvent::TooMany => names.push("other"),
            }
            Ok(())
        });
        assert!(found.unwrap());
        assert_eq!(bytes[&0], b"one\n");
        assert_eq!(bytes[&1], b"x\n");
        assert_eq!(names, ["opened", "truncated", "opened"]);
    }
}
