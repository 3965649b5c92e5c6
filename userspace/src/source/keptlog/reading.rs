//! Reading the copies back.
//!
//! Owns telling a copy that is damaged from one that the recording could not complete and says so.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use super::{EVENTS, KEPT_LOGS, Kept, Line, copy_name};
use crate::outdir::Dir;
use crate::source::proxylog::{FileId, LogEvent};

/// Longest line of `events.jsonl` in bytes. Stops a damaged file from taking all memory.
const LINE_MAX_BYTES: u64 = 64 * 1024;

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
        if !next_line(&mut events, &mut line)? {
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

/// Whether the recording says itself that a copy lacks something; without reading the copies.
///
/// # Errors
/// When what it says cannot be read.
pub fn was_cut(spool: &Dir) -> io::Result<bool> {
    let events = spool
        .open_dir(std::path::Path::new(KEPT_LOGS))
        .and_then(|dir| dir.open_file(EVENTS));
    let mut events = match events {
        Ok(events) => BufReader::new(events),
        // For `replay` to say.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut line = Vec::new();
    while next_line(&mut events, &mut line)? {
        match serde_json::from_slice(&line) {
            Ok(Line {
                event: Kept::Copied { whole: false, .. },
                ..
            }) => return Ok(true),
            Ok(Line {
                event: Kept::Sealed { lost, .. },
                ..
            }) if lost > 0 => return Ok(true),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(false)
}

/// Reads one line, or as much of it as is allowed; `false` at the end.
fn next_line(events: &mut BufReader<File>, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    events.take(LINE_MAX_BYTES).read_until(b'\n', line)?;
    Ok(!line.is_empty())
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
                    // What follows the sealed bytes is what the full disk still took; nobody uses any of it.
                    let what = format!("{name} could not be written to its end");
                    self.replayed.cut.get_or_insert(what);
                } else if self.copies.get(&(proxy, file)) != Some(&(bytes, crc32)) {
                    self.trouble(format!("{name} is not what was written"));
                }
            }
            Item::End { crc32, lost } => {
                self.replayed.sealed = true;
                if lost > 0 {
                    let what = format!("{lost} lines of {EVENTS} could not be written");
                    self.replayed.cut.get_or_insert(what);
                }
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
        lost: u64,
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
            Self::Sealed { crc32, lost } => return Item::End { crc32, lost },
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
