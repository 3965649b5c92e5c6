//! One process at a time uses the programs that are pinned under a name.
//!
//! Owns the lock on a name's directory, which ends with the process that has it however that dies, and the checks that the directory
//! is ours: whoever else could write there could put programs and records of his own in place of the witness's.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::pin::{CONTENTS, PinDir, ROOT};

/// Where the BPF file system is mounted, by convention.
const BPFFS: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` (`include/uapi/linux/magic.h`).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// Times that a directory is opened again because its user removed it meanwhile.
const ATTEMPTS_MAX: usize = 16;

/// Why a name cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another recorder has it.
    #[error(
        "another recorder uses {}: stop it first (SIGTERM; it takes its programs out of the kernel itself), or pass another \
         name to --pin", .0.display()
    )]
    InUse(PathBuf),
    /// It is somebody else's, or open to others.
    #[error(
        "{} belongs to uid {uid} with mode {mode:04o}, and must be this user's with mode 0700: it is none of ours; look at what \
         is in it, remove it, or pass another name to --pin", path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permissions.
        mode: u32,
    },
    /// Something else lies there.
    #[error("{} is not made by this program: look at it and remove it, or pass another name to --pin", .0.display())]
    NotOurs(PathBuf),
    /// There is no BPF file system and none can be mounted.
    #[error("the bpf file system cannot be mounted on {BPFFS}")]
    Mount(#[source] io::Error),
    /// Anything else.
    #[error("cannot use {}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// The right to use a name, for as long as this lives. An empty directory goes with it.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    held: OwnedFd,
}

impl PinDir {
    /// Makes the directory where it is not, with the file system around it, and takes it for this process.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn claim(&self) -> Result<Claim, ClaimError> {
        mount().map_err(ClaimError::Mount)?;
        make(Path::new(ROOT))?;
        open(Path::new(ROOT))?;
        for _ in 0..ATTEMPTS_MAX {
            make(self.path())?;
            if let Some(claim) = self.claim_what_is_there()? {
                return Ok(claim);
            }
        }
        Err(ClaimError::InUse(self.path().to_owned()))
    }

    /// The same of a directory that is there already; `None` when it is not.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn claim_what_is_there(&self) -> Result<Option<Claim>, ClaimError> {
        let path = self.path();
        let held = match open(path) {
            Ok(held) => held,
            Err(ClaimError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        match rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(ClaimError::InUse(path.to_owned())),
            Err(error) => return Err(failed(path)(error.into())),
        }
        if !is_at(&held, path) {
            // Its user removed it between our opening and locking it.
            return Ok(None);
        }
        for entry in fs::read_dir(path).map_err(failed(path))? {
            let name = entry.map_err(failed(path))?.file_name();
            if !CONTENTS.iter().any(|ours| name == *ours) {
                return Err(ClaimError::NotOurs(path.join(name)));
            }
        }
        Ok(Some(Claim {
            path: path.to_owned(),
            held,
        }))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // What is held is locked, so nobody else has begun to use it; with something in it, it stays.
        if is_at(&self.held, &self.path) {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Whether an open directory is the one at a path.
fn is_at(held: &OwnedFd, path: &Path) -> bool {
    let (Ok(held), Ok(there)) = (rustix::fs::fstat(held), fs::symlink_metadata(path)) else {
        return false;
    };
    (held.st_dev, held.st_ino) == (there.dev(), there.ino())
}

fn make(path: &Path) -> Result<(), ClaimError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed(path)(error)),
    }
}

/// Opens a directory that is this user's alone.
fn open(path: &Path) -> Result<OwnedFd, ClaimError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(path)(error.into()))?;
    let facts = rustix::fs::fstat(&held).map_err(|error| failed(path)(error.into()))?;
    let mode = facts.st_mode & 0o7777;
    if facts.st_uid != rustix::process::geteuid().as_raw() || mode & 0o077 != 0 {
        return Err(ClaimError::Foreign {
            path: path.to_owned(),
            uid: facts.st_uid,
            mode,
        });
    }
    Ok(held)
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ClaimError {
    move |source| ClaimError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Mounts the BPF file system where it is not.
fn mount() -> io::Result<()> {
    if rustix::fs::statfs(BPFFS).is_ok_and(|facts| facts.f_type.cast_unsigned() == BPF_FS_MAGIC) {
        return Ok(());
    }
    rustix::mount::mount(
        "bpf",
        BPFFS,
        "bpf",
        rustix::mount::MountFlags::NOSUID
            | rustix::mount::MountFlags::NODEV
            | rustix::mount::MountFlags::NOEXEC,
        Some(c"mode=0700"),
    )?;
    Ok(())
}
