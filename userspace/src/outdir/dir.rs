//! A directory held by descriptor.
//!
//! Owns the `openat2` calls: every path is resolved beneath the descriptor, through no link of any
//! kind, so that renaming or replacing a component outside changes nothing.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};

/// Most names listed. Stops a directory filled by someone else from taking all memory.
const NAMES_MAX: usize = 1 << 21;

/// An open directory.
#[derive(Debug)]
pub struct Dir(OwnedFd);

impl Dir {
    /// Takes an open descriptor of a directory.
    pub(super) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Opens an existing directory that the caller of the command named. Links in the path are followed: this
    /// is for reading what the operator points at, not for output.
    ///
    /// # Errors
    /// When it is missing, no directory or not readable.
    pub fn open_named(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// A second handle on the same directory.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Makes a subdirectory (0700) and opens it.
    ///
    /// # Errors
    /// When it exists, or the file system refuses.
    pub fn create_dir(&self, name: &str) -> io::Result<Self> {
        rustix::fs::mkdirat(&self.0, name, Mode::RWXU)?;
        self.open_dir(Path::new(name))
    }

    /// Opens a subdirectory.
    ///
    /// # Errors
    /// When it is missing or the way to it leads through a link or out of this directory.
    pub fn open_dir(&self, path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        self.openat2(path, flags, Mode::empty()).map(Self)
    }

    /// Opens a subdirectory, making what is missing of the way (0700).
    ///
    /// # Errors
    /// As [`Dir::open_dir`].
    pub fn ensure_dir(&self, path: &Path) -> io::Result<Self> {
        let mut held = self.try_clone()?;
        for component in path.components() {
            let std::path::Component::Normal(name) = component else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "the path leaves the directory",
                ));
            };
            match rustix::fs::mkdirat(&held.0, name, Mode::RWXU) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            held = held.open_dir(Path::new(name))?;
        }
        Ok(held)
    }

    /// Creates a file (0600) for writing.
    ///
    /// # Errors
    /// When the name exists, or the file system refuses.
    pub fn create_file(&self, name: &str) -> io::Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        self.openat2(Path::new(name), flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
    }

    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// When it is missing, no regular file or behind a link.
    pub fn open_file(&self, name: &str) -> io::Result<File> {
        // Non-blocking, so that a FIFO under that name cannot hang us; it has no effect on regular files.
        let flags =
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(self.openat2(Path::new(name), flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name} is not a regular file"),
            ));
        }
        Ok(file)
    }

    /// Opens a regular file for appending.
    ///
    /// # Errors
    /// As [`Dir::open_file`].
    pub fn append_file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR
            | OFlags::APPEND
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | OFlags::CLOEXEC
            | OFlags::NOFOLLOW;
        let file = File::from(self.openat2(Path::new(name), flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name} is not a regular file"),
            ));
        }
        Ok(file)
    }

    /// Cuts a regular file to a length.
    ///
    /// # Errors
    /// As [`Dir::open_file`].
    pub fn truncate_file(&self, name: &str, length: u64) -> io::Result<()> {
        self.append_file(name)?.set_len(length)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// When it is missing or the file system refuses.
    pub fn remove_file(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// Removes an empty subdirectory.
    ///
    /// # Errors
    /// When it is missing, not empty, or the file system refuses.
    pub fn remove_dir(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR)?)
    }

    /// Gives a file its final name, which must be free.
    ///
    /// # Errors
    /// When the name is taken, or the file system refuses.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        use rustix::fs::{RenameFlags, renameat_with};
        match renameat_with(&self.0, from, &self.0, to, RenameFlags::NOREPLACE) {
            // File systems without that flag: a hard link has the same refusal.
            Err(rustix::io::Errno::INVAL) => {
                rustix::fs::linkat(&self.0, from, &self.0, to, AtFlags::empty())?;
                self.remove_file(from)
            }
            other => Ok(other?),
        }
    }

    /// Names in the directory, without `.` and `..`, in no order.
    ///
    /// # Errors
    /// When it cannot be read or holds too many.
    pub fn file_names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.0)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name == b"." || name == b".." {
                continue;
            }
            if names.len() == NAMES_MAX {
                return Err(io::Error::other("the directory holds too many files"));
            }
            names.push(OsString::from_vec(name));
        }
        Ok(names)
    }

    /// Bytes that this process may still write.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.0)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Makes names in the directory durable.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }

    fn openat2(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // The kernel asks for another try when something on the way was renamed meanwhile.
        for _ in 0..16 {
            match rustix::fs::openat2(&self.0, path, flags, mode, resolve) {
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
