//! One log file, open for reading.
//!
//! Owns the safe open and the position. Keeps a running SHA-256 of what was read, so that a change to it
//! can be noticed at the end.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use sha2::{Digest, Sha256};

use super::{FileId, LogError, LogEvent};

/// What a log file is, at the time of opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileFacts {
    /// Device as the kernel keeps it (`major << 20 | minor`), as in the kernel's records.
    pub kernel_dev: u32,
    /// Inode number.
    pub inode: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Size in bytes.
    pub size: u64,
}

impl FileFacts {
    /// Whether every user of the machine can write to it.
    pub fn world_writable(&self) -> bool {
        self.mode & 0o002 != 0
    }
}

/// Why a name is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Missing,
    Kind(&'static str),
    Io(i32),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("it does not exist"),
            Self::Kind(what) => write!(f, "it is {what}, not a regular file"),
            Self::Io(error) => write!(f, "{}", io::Error::from_raw_os_error(*error)),
        }
    }
}

impl Refusal {
    pub(super) fn into_error(self, path: &Path) -> LogError {
        let path = path.to_owned();
        match self {
            Self::Missing => LogError::Missing(path),
            Self::Kind(what) => LogError::Refused { path, what },
            Self::Io(error) => LogError::Io {
                path,
                source: io::Error::from_raw_os_error(error),
            },
        }
    }
}

/// How far one step got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// To the end of the file or of the budget.
    CaughtUp,
    /// The file is shorter than what was read; nothing was read now.
    Truncated,
    /// Reading failed; said once.
    Failed,
}

/// An open log file and the position in it.
#[derive(Debug)]
pub(super) struct OpenLog {
    file: File,
    id: FileId,
    facts: FileFacts,
    dev: u64,
    offset: u64,
    digest: Sha256,
    failed: bool,
    truncation_said: bool,
}

/// Opens `name` in `dir` if it is a regular file. Looks at what the name leads to before opening it for
/// reading: opening a device can have effects, opening a FIFO can hang.
pub(super) fn open_log(dir: &OwnedFd, name: &OsStr) -> Result<OpenLog, Refusal> {
    let io_refusal = |error: rustix::io::Errno| match error {
        rustix::io::Errno::NOENT => Refusal::Missing,
        other => Refusal::Io(other.raw_os_error()),
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(io_refusal)?;
    let stat = rustix::fs::fstat(&handle).map_err(io_refusal)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Symlink => return Err(Refusal::Kind("a symbolic link")),
        FileType::Fifo => return Err(Refusal::Kind("a FIFO")),
        FileType::Directory => return Err(Refusal::Kind("a directory")),
        FileType::Socket => return Err(Refusal::Kind("a socket")),
        FileType::CharacterDevice | FileType::BlockDevice => return Err(Refusal::Kind("a device")),
        FileType::Unknown => return Err(Refusal::Kind("of an unknown kind")),
    }
    let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(link, flags, Mode::empty()).map_err(io_refusal)?);
    let metadata = file
        .metadata()
        .map_err(|error| Refusal::Io(error.raw_os_error().unwrap_or(libc::EIO)))?;
    let facts = FileFacts {
        kernel_dev: crate::device::kernel_dev(metadata.dev()),
        inode: metadata.ino(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        mode: metadata.mode() & 0o7777,
        size: metadata.len(),
    };
    Ok(OpenLog {
        file,
        id: FileId(u64::MAX),
        facts,
        dev: metadata.dev(),
        offset: 0,
        digest: Sha256::new(),
        failed: false,
        truncation_said: false,
    })
}

impl OpenLog {
    /// Whether no name leads to the file any more.
    pub(super) fn is_removed(&self) -> bool {
        rustix::fs::fstat(&self.file).is_ok_and(|stat| stat.st_nlink == 0)
    }

    pub(super) fn id(&self) -> FileId {
        self.id
    }

    /// Gives it its number, once it is known that it will be read.
    pub(super) fn set_id(&mut self, id: FileId) {
        self.id = id;
    }

    pub(super) fn facts(&self) -> FileFacts {
        self.facts
    }

    pub(super) fn identity(&self) -> (u64, u64) {
        (self.dev, self.facts.inode)
    }

    /// Bytes of the file that were not read yet.
    pub(super) fn unread(&self) -> u64 {
        self.file
            .metadata()
            .map_or(0, |metadata| metadata.len().saturating_sub(self.offset))
    }

    /// Reads on, at most `budget` bytes, which is lowered by what was read.
    pub(super) fn advance(
        &mut self,
        buffer: &mut [u8],
        budget: &mut u64,
        sink: &mut impl FnMut(LogEvent<'_>),
    ) -> Progress {
        if self.failed {
            return Progress::Failed;
        }
        // What is there now and no more: a writer that never stops must not keep us here.
        let mut left = match self.file.metadata() {
            Ok(metadata) if metadata.len() < self.offset => {
                if !self.truncation_said {
                    self.truncation_said = true;
                    sink(LogEvent::Truncated {
                        file: self.id,
                        read: self.offset,
                        size: metadata.len(),
                    });
                }
                return Progress::Truncated;
            }
            Ok(metadata) => metadata.len() - self.offset,
            Err(error) => return self.fail(&error, sink),
        };
        while *budget > 0 && left > 0 {
            let most = usize::try_from(left.min(*budget))
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            match self.file.read(&mut buffer[..most]) {
                Ok(0) => break,
                Ok(length) => {
                    let data = &buffer[..length];
                    self.digest.update(data);
                    sink(LogEvent::Bytes {
                        file: self.id,
                        offset: self.offset,
                        data,
                    });
                    self.offset += length as u64;
                    *budget -= length as u64;
                    left -= length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.fail(&error, sink),
            }
        }
        Progress::CaughtUp
    }

    /// Whether the bytes that were read are no longer what the file holds.
    pub(super) fn was_rewritten(&self, buffer: &mut [u8]) -> bool {
        let mut digest = Sha256::new();
        let mut offset = 0;
        while offset < self.offset {
            let most = usize::try_from(self.offset - offset)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            match self.file.read_at(&mut buffer[..most], offset) {
                Ok(0) | Err(_) => return true,
                Ok(length) => {
                    digest.update(&buffer[..length]);
                    offset += length as u64;
                }
            }
        }
        digest.finalize() != self.digest.clone().finalize()
    }

    /// The same file from its beginning.
    pub(super) fn restarted(self) -> Self {
        use std::io::Seek;
        let mut file = self.file;
        let failed = file.rewind().is_err();
        Self {
            file,
            offset: 0,
            digest: Sha256::new(),
            failed,
            truncation_said: false,
            ..self
        }
    }

    fn fail(&mut self, error: &io::Error, sink: &mut impl FnMut(LogEvent<'_>)) -> Progress {
        self.failed = true;
        sink(LogEvent::Unreadable {
            file: self.id,
            why: error.to_string(),
        });
        Progress::Failed
    }
}
