//! Copies of the proxies' logs as they were seen while recording.
//!
//! Owns a directory beside the spool: one file per log file, byte for byte, and `events.jsonl` with what
//! happened to the logs. So a log that is cut, rotated away or replaced after it was read stays in
//! evidence, and pairing can be repeated from the spool alone. At the end the copies are sealed with their lengths and checksums:
//! against a disk that fails, not against root.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::proxylog::{FileFacts, FileId, LogEvent};
use crate::outdir::Dir;

mod reading;
mod resuming;

pub use reading::{Replayed, replay, was_cut};

/// Name of the directory, beside the segments.
pub const KEPT_LOGS: &str = "logs";

const EVENTS: &str = "events.jsonl";

/// Disk space taken for `events.jsonl` at a time, ahead of its end, so that a disk that fills up cannot keep the seal from being
/// written: without it a copy that was cut would pass for one whose recorder was killed.
const EVENTS_AHEAD_BYTES: u64 = 64 * 1024;

/// Most bytes of one line of the seal.
const SEAL_LINE_BYTES: u64 = 256;

/// Writes the copies. Never stops the capture: what cannot be written is counted.
#[derive(Debug)]
pub struct KeptLogWriter {
    dir: Dir,
    events: File,
    events_crc: crc32fast::Hasher,
    events_lost: u64,
    events_bytes: u64,
    /// Bytes of `events.jsonl` that have their place on the disk.
    events_reserved: u64,
    copies: BTreeMap<(usize, u64), Copy>,
    lost_bytes: u64,
    /// Added to the numbers of files: those below are an earlier writer's.
    first_file: u64,
    /// Files that an earlier writer copied, by proxy, device and inode.
    earlier: BTreeMap<(usize, u32, u64), u64>,
}

#[derive(Debug)]
struct Copy {
    /// `None`: it could not even be made.
    file: Option<File>,
    written: u64,
    crc: crc32fast::Hasher,
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
    /// The seal of one copy.
    Copied {
        file: u64,
        bytes: u64,
        crc32: u32,
        whole: bool,
    },
    /// The seal of the events: the checksum of all lines before it, and how many could not be written.
    Sealed {
        crc32: u32,
        #[serde(default)]
        lost: u64,
    },
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
            events_crc: crc32fast::Hasher::new(),
            events_lost: 0,
            events_bytes: 0,
            events_reserved: 0,
            copies: BTreeMap::new(),
            lost_bytes: 0,
            first_file: 0,
            earlier: BTreeMap::new(),
        })
    }

    /// Keeps one event of the log of proxy number `proxy`.
    pub fn event(&mut self, proxy: usize, event: &LogEvent<'_>) {
        let number = |file: &FileId| file.0 + self.first_file;
        let kept = match event {
            LogEvent::Bytes { file, offset, data } => {
                let file = FileId(number(file));
                self.bytes(proxy, file, *offset, data);
                return;
            }
            LogEvent::Opened {
                file,
                path,
                facts,
                again,
            } => Kept::Opened {
                file: number(file),
                path: path.clone(),
                facts: *facts,
                again: again.as_ref().map(number).or_else(|| {
                    let identity = (proxy, facts.kernel_dev, facts.inode);
                    self.earlier.get(&identity).copied()
                }),
            },
            LogEvent::Truncated { file, read, size } => Kept::Truncated {
                file: number(file),
                read: *read,
                size: *size,
            },
            LogEvent::Rewritten { file } => Kept::Rewritten { file: number(file) },
            LogEvent::Rotated { file } => Kept::Rotated { file: number(file) },
            LogEvent::Removed { file } => Kept::Removed { file: number(file) },
            LogEvent::Missing => Kept::Missing,
            LogEvent::Refused { why } => Kept::Refused { why: why.clone() },
            LogEvent::Unreadable { file, why } => Kept::Unreadable {
                file: number(file),
                why: why.clone(),
            },
            LogEvent::TooMany => Kept::TooMany,
        };
        self.line(proxy, kept);
    }

    fn line(&mut self, proxy: usize, event: Kept) {
        let is_seal = matches!(event, Kept::Copied { .. } | Kept::Sealed { .. });
        let written = serde_json::to_vec(&Line { proxy, event })
            .map_err(io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                if !is_seal {
                    self.reserve(line.len() as u64)?;
                }
                append(&mut self.events, &line)?;
                self.events_bytes += line.len() as u64;
                self.events_crc.update(&line);
                Ok(())
            });
        if let Err(error) = written {
            if self.events_lost == 0 {
                tracing::warn!(%error, "an event of a proxy log could not be kept");
            }
            self.events_lost += 1;
            self.lost_bytes += 1;
        }
    }

    /// Makes sure that this much fits into `events.jsonl`, and all lines of the seal after it.
    fn reserve(&mut self, bytes: u64) -> io::Result<()> {
        // One for each copy, for the one that the event may begin, and for the end.
        let seal = (self.copies.len() as u64 + 2) * SEAL_LINE_BYTES;
        let needed = self.events_bytes + bytes + seal;
        if needed <= self.events_reserved {
            return Ok(());
        }
        let ahead = needed + EVENTS_AHEAD_BYTES;
        let keep_size = rustix::fs::FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.events, keep_size, 0, ahead) {
            Ok(()) => self.events_reserved = ahead,
            // Some file systems cannot; then the seal is as sure as the rest.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                self.events_reserved = u64::MAX;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Bytes (and events, counted as one) that could not be kept.
    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    /// Seals the copies and makes them durable.
    pub fn finish(mut self) -> u64 {
        self.compare_with_earlier();
        let seals: Vec<_> = self
            .copies
            .iter()
            .map(|((proxy, file), copy)| {
                let seal = Kept::Copied {
                    file: *file,
                    bytes: copy.written,
                    crc32: copy.crc.clone().finalize(),
                    whole: !copy.broken,
                };
                (*proxy, seal)
            })
            .collect();
        for (proxy, seal) in seals {
            self.line(proxy, seal);
        }
        let crc32 = self.events_crc.clone().finalize();
        let lost = self.events_lost;
        self.line(0, Kept::Sealed { crc32, lost });
        for file in self
            .copies
            .values()
            .filter_map(|copy| copy.file.as_ref())
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
        if self.events_lost > 0 && !self.copies.contains_key(&key) {
            // Its opening may be what was lost, and there may be no room for its seal; nobody uses the copies any more.
            self.lost_bytes += data.len() as u64;
            return;
        }
        let dir = &self.dir;
        let copy = self.copies.entry(key).or_insert_with(|| {
            let made = dir.create_file(&copy_name(proxy, file.0));
            let made = made.inspect_err(|error| {
                tracing::warn!(%error, "a proxy log cannot be kept");
            });
            Copy {
                broken: made.is_err(),
                file: made.ok(),
                written: 0,
                crc: crc32fast::Hasher::new(),
            }
        });
        let file = match &mut copy.file {
            Some(file) if !copy.broken && copy.written == offset => file,
            Some(_) | None => {
                copy.broken = true;
                self.lost_bytes += data.len() as u64;
                return;
            }
        };
        if let Err(error) = append(file, data) {
            tracing::warn!(%error, "a proxy log cannot be kept any further");
            copy.broken = true;
            self.lost_bytes += data.len() as u64;
            return;
        }
        copy.crc.update(data);
        copy.written += data.len() as u64;
    }
}

/// Writes all of it at the end or nothing: a full disk takes the beginning, which the seal would not know.
fn append(file: &mut File, data: &[u8]) -> io::Result<()> {
    let before = file.stream_position()?;
    file.write_all(data).inspect_err(|_| {
        // Where this fails too, the reader knows the length from the seal.
        let _ = file.set_len(before);
        let _ = file.seek(io::SeekFrom::Start(before));
    })
}

fn copy_name(proxy: usize, file: u64) -> String {
    format!("{proxy}-{file}.log")
}

#[cfg(test)]
#[path = "keptlog_tests.rs"]
mod tests;
