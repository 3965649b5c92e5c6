//! Following a proxy's log file: late, growing, rotated, truncated or replaced.
//!
//! Owns opening the file safely and turning what happens to it into events. Does not look into the
//! bytes: each file (by device and inode) is a stream of its own, for a reader in the core. Nothing
//! that was read is ever taken back; a log that changes behind our back yields an event that says so.
//!
//! The directory is opened once and held, the file is opened in it without following links, and only
//! regular files are read, so an agent that can write there can neither lead us elsewhere nor hang us.

mod file;
mod rotation;

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

pub use file::FileFacts;
use file::{OpenLog, Progress, Refusal, open_log};

/// Most rotated files followed at once. Stops an agent from rotating a log it can write to until descriptors run out.
const ROTATED_OPEN_MAX: usize = 16;

/// Most rotated files read in one run, for the same reason.
const FILES_MAX: u64 = 4096;

/// Most bytes read in one call of [`Follower::poll`], so that a large log cannot keep the caller from the kernel's ring.
const POLL_MAX_BYTES: u64 = 4 * 1024 * 1024;

/// Number of a log file within one follower, in the order of opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

/// What happened to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEvent<'a> {
    /// A file is read from its beginning.
    Opened {
        /// Its number from now on.
        file: FileId,
        /// Its name at that time.
        path: PathBuf,
        /// What it is.
        facts: FileFacts,
        /// The file whose changed content this is, if it was read before.
        again: Option<FileId>,
    },
    /// Bytes of a file, in order, without holes.
    Bytes {
        /// Which file.
        file: FileId,
        /// Offset of the first byte.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
    },
    /// The file became shorter than what was read of it. It is read again as a new [`LogEvent::Opened`].
    Truncated {
        /// Which file.
        file: FileId,
        /// Bytes read before.
        read: u64,
        /// Its size now.
        size: u64,
    },
    /// Bytes that were read have changed on disk without the file becoming shorter; found at the end only. It
    /// is read again as a new [`LogEvent::Opened`].
    Rewritten {
        /// Which file.
        file: FileId,
    },
    /// The name leads to another file now. The old one is still read to its end.
    Rotated {
        /// The old file.
        file: FileId,
    },
    /// The name never led to a file, up to the end.
    Missing,
    /// The file has no name any more: it was deleted, or another was renamed over it. What was read of it stays read.
    Removed {
        /// Which file.
        file: FileId,
    },
    /// The name leads to something that is not read.
    Refused {
        /// Why not.
        why: String,
    },
    /// Reading a file failed; the rest of it is not seen.
    Unreadable {
        /// Which file.
        file: FileId,
        /// The system's reason.
        why: String,
    },
    /// More files or rotations than are followed; the rest is not seen.
    TooMany,
}

/// Why a log cannot be followed at all.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The path has no file name.
    #[error("{} is not the path of a file: check --proxy-log", .0.display())]
    NoName(PathBuf),
    /// A symbolic link, FIFO, directory, socket or device.
    #[error("the proxy log {} is {what}: pass the regular file itself to --proxy-log", path.display())]
    Refused {
        /// The log.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The file does not exist and must.
    #[error("the proxy log {} does not exist: check --proxy-log", .0.display())]
    Missing(PathBuf),
    /// The system said no.
    #[error("cannot read the proxy log {}: this process must be allowed to", path.display())]
    Io {
        /// The log.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// Follows one log path.
#[derive(Debug)]
pub struct Follower {
    parent: PathBuf,
    name: OsString,
    /// Held from the first time that it exists.
    dir: Option<OwnedFd>,
    current: Option<OpenLog>,
    /// Files that lost the name, still read.
    rotated: VecDeque<OpenLog>,
    /// (device, inode) of rotated files that were there before us or were read.
    known: Vec<(u64, u64)>,
    next_id: u64,
    last_refusal: Option<Refusal>,
    said_too_many: bool,
    buffer: Vec<u8>,
}

impl Follower {
    /// Prepares to follow `path`. It may appear later; if something is there already, it must be a regular file.
    ///
    /// # Errors
    /// [`LogError`] when what is there is not a readable regular file.
    pub fn new(path: &Path) -> Result<Self, LogError> {
        let name = path
            .file_name()
            .ok_or_else(|| LogError::NoName(path.to_owned()))?
            .to_owned();
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut follower = Self {
            parent,
            name,
            dir: None,
            current: None,
            rotated: VecDeque::new(),
            known: Vec::new(),
            next_id: 0,
            last_refusal: None,
            said_too_many: false,
            buffer: vec![0; 256 * 1024],
        };
        if follower.hold_dir() {
            match follower.open(&follower.name) {
                Ok(_) | Err(Refusal::Missing) => {}
                Err(refusal) => return Err(refusal.into_error(path)),
            }
        }
        Ok(follower)
    }

    /// Path of the log, as given.
    pub fn path(&self) -> PathBuf {
        self.parent.join(&self.name)
    }

    /// Marks the rotated files that exist now as not part of this run. Call once before the first poll of a live
    /// run; offline, leave it out and use [`Follower::read_rotated`].
    pub fn ignore_old_rotations(&mut self) {
        self.ignore_old_rotations_but(&[]);
    }

    /// [`Follower::ignore_old_rotations`] but for these files (kernel device and inode), which were the log during this run.
    pub fn ignore_old_rotations_but(&mut self, ours: &[(u32, u64)]) {
        if !self.hold_dir() {
            return;
        }
        for name in rotation::files(self.dir.as_ref(), &self.name) {
            if let Ok(log) = self.open(&name) {
                let (dev, inode) = log.identity();
                if !ours.contains(&(crate::device::kernel_dev(dev), inode)) {
                    self.remember((dev, inode));
                }
            }
        }
    }

    /// Reads the rotated files that belong to the log, oldest first. For offline use, before the first poll.
    pub fn read_rotated(&mut self, sink: &mut impl FnMut(LogEvent<'_>)) {
        if self.hold_dir() {
            self.pick_up_rotated(sink);
            self.read_all(sink);
            self.rotated.clear();
        }
    }

    /// Looks once at the log and reports what is new. Returns whether there is more to read at once.
    pub fn poll(&mut self, sink: &mut impl FnMut(LogEvent<'_>)) -> bool {
        let mut budget = POLL_MAX_BYTES;
        // Older files first: what they still get is older than what the new one holds.
        for log in &mut self.rotated {
            let _ = log.advance(&mut self.buffer, &mut budget, sink);
        }
        if let Some(log) = &mut self.current {
            match log.advance(&mut self.buffer, &mut budget, sink) {
                Progress::CaughtUp | Progress::Failed => {}
                Progress::Truncated => self.reread(&mut budget, sink),
            }
        }
        if budget > 0 {
            self.look_at_name(&mut budget, sink);
        }
        budget == 0
    }

    /// Reads everything that is left, checks that what was read is still there, and ends. For use when the
    /// writers have ended.
    pub fn finish(mut self, sink: &mut impl FnMut(LogEvent<'_>)) {
        self.read_all(sink);
        self.pick_up_rotated(sink);
        if let Some(log) = &mut self.current
            && log.was_rewritten(&mut self.buffer)
        {
            sink(LogEvent::Rewritten { file: log.id() });
            self.reread(&mut POLL_MAX_BYTES.clone(), sink);
            self.read_all(sink);
        }
        if let Some(log) = self.current.as_ref().filter(|log| log.is_removed()) {
            sink(LogEvent::Removed { file: log.id() });
        }
        if self.next_id == 0 && self.last_refusal.is_none() {
            sink(LogEvent::Missing);
        }
    }

    fn read_all(&mut self, sink: &mut impl FnMut(LogEvent<'_>)) {
        // A writer that never stops must not keep us here: what is there now is enough, in bounded rounds.
        let goal = self.size_left();
        let mut rounds = goal / POLL_MAX_BYTES + 4;
        while self.poll(sink) && rounds > 0 {
            rounds -= 1;
        }
        // One more look: a rotation found by the last round has unread files.
        self.poll(sink);
    }

    fn size_left(&self) -> u64 {
        self.rotated
            .iter()
            .chain(&self.current)
            .map(OpenLog::unread)
            .sum()
    }

    /// Whether the log's directory is held; tries to open it if not.
    fn hold_dir(&mut self) -> bool {
        if self.dir.is_none() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            self.dir = rustix::fs::open(&self.parent, flags, Mode::empty()).ok();
        }
        self.dir.is_some()
    }

    fn open(&self, name: &OsStr) -> Result<OpenLog, Refusal> {
        let dir = self.dir.as_ref().ok_or(Refusal::Missing)?;
        open_log(dir, name)
    }

    /// Checks whether the name still leads to the file being read.
    fn look_at_name(&mut self, budget: &mut u64, sink: &mut impl FnMut(LogEvent<'_>)) {
        self.hold_dir();
        if self.still_current() {
            return;
        }
        match self.open(&self.name) {
            Ok(found) => {
                self.last_refusal = None;
                self.remember(found.identity());
                self.retire_current(sink);
                // Files that had the name in between, or before we first looked, and lost it again.
                self.pick_up_rotated(sink);
                self.adopt(found, None, budget, sink);
            }
            // Not there yet; or between the rename and the next file, or deleted: keep reading what we hold.
            Err(Refusal::Missing) => {}
            Err(refusal) => {
                if self.last_refusal.as_ref() != Some(&refusal) {
                    sink(LogEvent::Refused {
                        why: refusal.to_string(),
                    });
                    self.last_refusal = Some(refusal);
                }
            }
        }
    }

    /// Whether the name leads to the file that is being read: the cheap question of every look.
    fn still_current(&self) -> bool {
        let (Some(dir), Some(current)) = (&self.dir, &self.current) else {
            return false;
        };
        rustix::fs::statat(dir, &self.name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == current.identity())
    }

    fn retire_current(&mut self, sink: &mut impl FnMut(LogEvent<'_>)) {
        let Some(mut old) = self.current.take() else {
            return;
        };
        // What was written between the last read and the rename.
        let _ = old.advance(&mut self.buffer, &mut u64::MAX.clone(), sink);
        sink(if old.is_removed() {
            LogEvent::Removed { file: old.id() }
        } else {
            LogEvent::Rotated { file: old.id() }
        });
        self.remember(old.identity());
        self.keep_reading(old, sink);
    }

    fn pick_up_rotated(&mut self, sink: &mut impl FnMut(LogEvent<'_>)) {
        for name in rotation::files(self.dir.as_ref(), &self.name) {
            let Ok(mut log) = self.open(&name) else {
                continue;
            };
            if self.known.contains(&log.identity()) {
                continue;
            }
            if self.next_id >= FILES_MAX {
                self.say_too_many(sink);
                return;
            }
            log.set_id(self.take_id());
            self.remember(log.identity());
            sink(LogEvent::Opened {
                file: log.id(),
                path: self.parent.join(&name),
                facts: log.facts(),
                again: None,
            });
            let _ = log.advance(&mut self.buffer, &mut u64::MAX.clone(), sink);
            self.keep_reading(log, sink);
        }
    }

    fn keep_reading(&mut self, log: OpenLog, sink: &mut impl FnMut(LogEvent<'_>)) {
        self.rotated.push_back(log);
        if self.rotated.len() > ROTATED_OPEN_MAX
            && let Some(mut oldest) = self.rotated.pop_front()
        {
            let _ = oldest.advance(&mut self.buffer, &mut u64::MAX.clone(), sink);
        }
    }

    fn adopt(
        &mut self,
        mut log: OpenLog,
        again: Option<FileId>,
        budget: &mut u64,
        sink: &mut impl FnMut(LogEvent<'_>),
    ) {
        if self.next_id >= FILES_MAX {
            self.say_too_many(sink);
            return;
        }
        log.set_id(self.take_id());
        sink(LogEvent::Opened {
            file: log.id(),
            path: self.path(),
            facts: log.facts(),
            again,
        });
        self.current = Some(log);
        if let Some(log) = &mut self.current {
            let _ = log.advance(&mut self.buffer, budget, sink);
        }
    }

    fn take_id(&mut self) -> FileId {
        self.next_id += 1;
        FileId(self.next_id - 1)
    }

    /// Reads the current file from the beginning under a new number.
    fn reread(&mut self, budget: &mut u64, sink: &mut impl FnMut(LogEvent<'_>)) {
        if let Some(old) = self.current.take() {
            let id = old.id();
            self.adopt(old.restarted(), Some(id), budget, sink);
        }
    }

    fn remember(&mut self, identity: (u64, u64)) {
        if !self.known.contains(&identity) && (self.known.len() as u64) < FILES_MAX {
            self.known.push(identity);
        }
    }

    fn say_too_many(&mut self, sink: &mut impl FnMut(LogEvent<'_>)) {
        if !self.said_too_many {
            self.said_too_many = true;
            sink(LogEvent::TooMany);
        }
    }
}

#[cfg(test)]
mod tests;
