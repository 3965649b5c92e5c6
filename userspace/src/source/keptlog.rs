//! Copies of the proxies' logs as they were seen while recording.
//!
//! Owns a directory beside the spool: one file per log file, byte for byte, and `events.jsonl` with what
//! happened to the logs. So a log that is cut, rotated away or replaced after it was read stays in
//! evidence, and pairing can be repeated from the spool alone. At the end the copies are sealed with their lengths and checksums:
//! against a disk that fails, not against root.

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

/// Disk space taken for `events.jsonl` at the start, so that a disk that fills up later cannot keep the seal from being written.
const EVENTS_RESERVED_BYTES: u64 = 64 * 1024;

/// Writes the copies. Never stops the capture: what cannot be written is counted.
#[derive(Debug)]
pub struct KeptLogWriter {
    dir: Dir,
    events: File,
    events_crc: crc32fast::Hasher,
    copies: BTreeMap<(usize, u64), Copy>,
    lost_bytes: u64,
}

#[derive(Debug)]
struct Copy {
    file: File,
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
    /// The seal of the events: the checksum of all lines before it.
    Sealed {
        crc32: u32,
    },
}

/// What the copies turned out to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// There are copies.
    pub found: bool,
    /// They were sealed: the recording came to its end.
    pub sealed: bool,
    /// A copy that could not be written to its end, as the recording says itself.
    pub cut: Option<String>,
    /// The first thing that is not as it was written.
    pub trouble: Option<String>,
}

impl KeptLogWriter {
    /// Begins in the spool's directory.
    ///
    /// # Errors
    /// When the directory or its first file cannot be made.
    pub fn create(spool: &Dir) -> io::Result<Self> {
        let dir = spool.create_dir(KEPT_LOGS)?;
        let events = dir.create_file(EVENTS)?;
        // Some file systems cannot; then the seal is as sure as the rest.
        let _ = rustix::fs::fallocate(
            &events,
            rustix::fs::FallocateFlags::KEEP_SIZE,
            0,
            EVENTS_RESERVED_BYTES,
        );
        Ok(Self {
            dir,
            events,
            events_crc: crc32fast::Hasher::new(),
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
        self.line(proxy, kept);
    }

    fn line(&mut self, proxy: usize, event: Kept) {
        let written = serde_json::to_vec(&Line { proxy, event })
            .map_err(io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                self.events_crc.update(&line);
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

    /// Seals the copies and makes them durable.
    pub fn finish(mut self) -> u64 {
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
        self.line(0, Kept::Sealed { crc32 });
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
                            crc: crc32fast::Hasher::new(),
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
        copy.crc.update(data);
        copy.written += data.len() as u64;
    }
}

/// Reads the copies in `spool` back as the events that they were made from: for each file first its
/// opening, then all of its bytes, then what happened to it. What is damaged is said, not hidden: whether the rest is of use is
/// the caller's to say.
///
/// # Errors
/// When the copies cannot be read, or `sink` fails.
pub fn replay(
    spool: &Dir,
    sink: &mut dyn FnMut(usize, LogEvent<'_>) -> io::Result<()>,
) -> io::Result<Replayed> {
    let dir = match spool.open_dir(std::path::Path::new(KEPT_LOGS)) {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Replayed::default()),
        Err(error) => return Err(error),
    };
    let mut reading = Reading {
        dir,
        copies: BTreeMap::new(),
        replayed: Replayed {
            found: true,
            ..Replayed::default()
        },
    };
    let events = match reading.dir.open_file(EVENTS) {
        Ok(events) => events,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            reading.trouble(format!("{EVENTS} is missing"));
            return Ok(reading.replayed);
        }
        Err(error) => return Err(error),
    };
    let mut events = BufReader::new(events);
    let mut crc = crc32fast::Hasher::new();
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        (&mut events)
            .take(LINE_MAX_BYTES)
            .read_until(b'\n', &mut line)?;
        if line.is_empty() {
            break;
        }
        match serde_json::from_slice(&line) {
            Ok(Line { proxy, event }) => {
                reading.event(proxy, event, crc.clone().finalize(), sink)?;
            }
            Err(_) => reading.trouble(format!("line {number} of {EVENTS} cannot be read")),
        }
        crc.update(&line);
    }
    Ok(reading.replayed)
}

/// The copies while they are read back.
struct Reading {
    dir: Dir,
    /// Length and checksum of each, as found.
    copies: BTreeMap<(usize, u64), (u64, u32)>,
    replayed: Replayed,
}

impl Reading {
    fn trouble(&mut self, what: String) {
        self.replayed.trouble.get_or_insert(what);
    }

    fn event(
        &mut self,
        proxy: usize,
        event: Kept,
        crc_before: u32,
        sink: &mut dyn FnMut(usize, LogEvent<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        match event.into_item() {
            Item::Event(event) => {
                let opened = if let LogEvent::Opened { file, .. } = &event {
                    Some(file.0)
                } else {
                    None
                };
                sink(proxy, event)?;
                if let Some(file) = opened {
                    let found = replay_bytes(&self.dir, proxy, file, sink)?;
                    self.copies.insert((proxy, file), found);
                }
            }
            Item::Copy {
                file,
                bytes,
                crc32,
                whole,
            } => {
                let name = copy_name(proxy, file);
                if !whole {
                    let what = format!("{name} could not be written to its end");
                    self.replayed.cut.get_or_insert(what);
                }
                if self.copies.get(&(proxy, file)) != Some(&(bytes, crc32)) {
                    self.trouble(format!("{name} is not what was written"));
                }
            }
            Item::End { crc32 } => {
                self.replayed.sealed = true;
                if crc32 != crc_before {
                    self.trouble(format!("{EVENTS} is not what was written"));
                }
            }
        }
        Ok(())
    }
}

/// Hands out the bytes of a copy; their number and checksum.
fn replay_bytes(
    dir: &Dir,
    proxy: usize,
    file: u64,
    sink: &mut dyn FnMut(usize, LogEvent<'_>) -> io::Result<()>,
) -> io::Result<(u64, u32)> {
    let mut crc = crc32fast::Hasher::new();
    let mut copy = match dir.open_file(&copy_name(proxy, file)) {
        Ok(copy) => copy,
        // No byte was ever read of it, or its seal will say otherwise.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, crc.finalize())),
        Err(error) => return Err(error),
    };
    let mut buffer = vec![0; 256 * 1024];
    let mut offset = 0;
    loop {
        let length = copy.read(&mut buffer)?;
        if length == 0 {
            return Ok((offset, crc.finalize()));
        }
        crc.update(&buffer[..length]);
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

/// A line of `events.jsonl`, taken apart.
enum Item {
    Event(LogEvent<'static>),
    Copy {
        file: u64,
        bytes: u64,
        crc32: u32,
        whole: bool,
    },
    End {
        crc32: u32,
    },
}

impl Kept {
    fn into_item(self) -> Item {
        Item::Event(match self {
            Self::Copied {
                file,
                bytes,
                crc32,
                whole,
            } => {
                return Item::Copy {
                    file,
                    bytes,
                    crc32,
                    whole,
                };
            }
            Self::Sealed { crc32 } => return Item::End { crc32 },
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
        })
    }
}

fn copy_name(proxy: usize, file: u64) -> String {
    format!("{proxy}-{file}.log")
}

#[cfg(test)]
#[path = "keptlog_tests.rs"]
mod tests;
