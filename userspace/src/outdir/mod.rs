//! The output directory: where evidence goes, out of the watched agent's reach.
//!
//! Owns the checks on the directory and its parents, and the only way in which files get into it: through
//! held descriptors, beneath it, without following links, under a temporary name until complete. Knows
//! nothing of what is written.

mod dir;
mod guard;
mod temp;

use std::io;
use std::path::{Path, PathBuf};

pub use dir::Dir;
pub use guard::Agent;
use guard::Contents;
pub use temp::TempFile;

/// Free space below which a capture is not started, in bytes: one spool buffer, one row group and change.
pub const FREE_MIN_BYTES: u64 = 16 * 1024 * 1024;

/// Why a directory cannot hold the output.
#[derive(Debug, thiserror::Error)]
pub enum OutDirError {
    /// A component of the path is a symbolic link.
    #[error("{} is a symbolic link: pass the real path to -o (readlink -f shows it)", .0.display())]
    Symlink(PathBuf),
    /// A component of the path is something else.
    #[error("{} is not a directory: pass another path to -o", .0.display())]
    NotDirectory(PathBuf),
    /// It holds something already.
    #[error("the output directory {} is not empty: pass a new directory to -o", .0.display())]
    NotEmpty(PathBuf),
    /// It exists and belongs to another user.
    #[error("the output directory {} belongs to uid {uid}, not to this process: pass a new directory to -o", path.display())]
    ForeignOwner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// The watched agent could move the directory away or replace it.
    #[error(
        "the agent (uid {uid}) can write to {}, so it could remove or replace the evidence: choose a \
         directory under one that only root can write to", path.display()
    )]
    AgentCanWrite {
        /// The directory that is open to the agent.
        path: PathBuf,
        /// The agent's uid.
        uid: u32,
    },
    /// Its parent does not exist.
    #[error("{} does not exist: create it first, or pass another path to -o", .0.display())]
    NoParent(PathBuf),
    /// The file system is read-only.
    #[error("{} is on a read-only file system: pass a path to -o that can be written", .0.display())]
    ReadOnly(PathBuf),
    /// Too little space to begin with.
    #[error("only {free} bytes are free in {} ({FREE_MIN_BYTES} are needed to begin): free some, or pass another path to -o", path.display())]
    Full {
        /// The directory.
        path: PathBuf,
        /// Bytes free for this process.
        free: u64,
    },
    /// Permission denied.
    #[error("no permission to write to {}: run as a user that may, or pass another path to -o", .0.display())]
    Denied(PathBuf),
    /// Anything else.
    #[error("cannot use the output directory {}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// A checked, held, empty directory for one capture's output.
#[derive(Debug)]
pub struct OutDir {
    path: PathBuf,
    dir: Dir,
}

impl OutDir {
    /// Another handle of the same directory.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            path: self.path.clone(),
            dir: self.dir.try_clone()?,
        })
    }

    /// Creates the directory (0700) or takes an existing empty one of this user, after checking that none of
    /// `agents` can reach it. Without an agent (offline pairing) only this process's own rights matter.
    ///
    /// # Errors
    /// [`OutDirError`], naming the directory that is at fault and the way out.
    pub fn create<'a>(
        path: &Path,
        agents: impl IntoIterator<Item = &'a Agent>,
    ) -> Result<Self, OutDirError> {
        let out = Self::open(path, agents, Contents::None)?;
        let Self { path, dir } = out;
        let free = dir.free_bytes().map_err(|source| OutDirError::Io {
            path: path.clone(),
            source,
        })?;
        if free < FREE_MIN_BYTES {
            return Err(OutDirError::Full { path, free });
        }
        Ok(Self { path, dir })
    }

    /// Takes the directory of an earlier process of this user, after the same checks.
    ///
    /// # Errors
    /// As [`OutDir::create`].
    pub fn resume<'a>(
        path: &Path,
        agents: impl IntoIterator<Item = &'a Agent>,
    ) -> Result<Self, OutDirError> {
        Self::open(path, agents, Contents::Ours)
    }

    fn open<'a>(
        path: &Path,
        agents: impl IntoIterator<Item = &'a Agent>,
        contents: Contents,
    ) -> Result<Self, OutDirError> {
        let path = std::path::absolute(path).map_err(|source| OutDirError::Io {
            path: path.to_owned(),
            source,
        })?;
        let dir = guard::open(&path, agents.into_iter().collect(), contents)?;
        Ok(Self { path, dir })
    }

    /// Where it is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The held directory.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Begins a file that appears under `name` (relative, may name subdirectories, which are made) only when
    /// [`TempFile::commit`] is called.
    ///
    /// # Errors
    /// When the name leaves the directory or the file system refuses.
    pub fn temp_file(&self, name: &Path) -> io::Result<TempFile> {
        TempFile::create(&self.dir, name)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_appears_complete_or_not_at_all() {
        let place = tempfile::tempdir().unwrap();
        let out = OutDir::create(&place.path().join("out"), None).unwrap();
        let name = Path::new("frames/date=2026-11-20/host=h/part-0.parquet");
        let mut file = out.temp_file(name).unwrap();
        file.write_all(b"content").unwrap();
        assert!(!out.path().join(name).exists());
        file.commit().unwrap();
        assert_eq!(std::fs::read(out.path().join(name)).unwrap(), b"content");
        drop(out.temp_file(Path::new("dropped")).unwrap());
        let names: Vec<_> = std::fs::read_dir(out.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["frames"]);
    }

    #[test]
    fn a_committed_file_is_never_replaced() {
        let place = tempfile::tempdir().unwrap();
        let out = OutDir::create(&place.path().join("out"), None).unwrap();
        out.temp_file(Path::new("a")).unwrap().commit().unwrap();
        let second = out.temp_file(Path::new("a")).unwrap().commit().unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        let place = tempfile::tempdir().unwrap();
        let out = OutDir::create(&place.path().join("out"), None).unwrap();
        for name in ["../escape", "/etc/escape", "a/../../escape", "..", ""] {
            assert!(out.temp_file(Path::new(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn a_link_planted_later_is_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let out = OutDir::create(&place.path().join("out"), None).unwrap();
        std::os::unix::fs::symlink(place.path(), out.path().join("frames")).unwrap();
        assert!(out.temp_file(Path::new("frames/x")).is_err());
        assert!(!place.path().join(".x.partial").exists());
    }

    #[test]
    fn moving_the_directory_away_does_not_redirect_the_output() {
        let place = tempfile::tempdir().unwrap();
        let out = OutDir::create(&place.path().join("out"), None).unwrap();
        std::fs::rename(place.path().join("out"), place.path().join("moved")).unwrap();
        std::os::unix::fs::symlink("/tmp", place.path().join("out")).unwrap();
        out.temp_file(Path::new("x")).unwrap().commit().unwrap();
        assert!(place.path().join("moved/x").exists());
    }
}
