//! Checks that the watched agent cannot reach the output directory.
//!
//! Owns the walk from `/` down to it. Each directory is opened from its parent's descriptor without
//! following links and judged by what was opened, so nothing can be swapped between check and use.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{Dir, OutDirError};

/// Whose reach is tested.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Agent {
    /// The uid that the agent runs with.
    pub uid: u32,
    /// Its groups, the primary one included.
    pub groups: Vec<u32>,
}

impl Agent {
    /// Whether the agent can change names in a directory with these attributes. Its owner always can: it may
    /// change the mode. Access control lists only ever grant within the group bits, so group bits count for
    /// everyone as soon as there is one.
    fn can_write(&self, stat: &Stat, has_acl: bool) -> bool {
        let mode = stat.st_mode;
        stat.st_uid == self.uid
            || mode & 0o002 != 0
            || (mode & 0o020 != 0 && (has_acl || self.groups.contains(&stat.st_gid)))
    }
}

/// Whether the directory must be new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// It is made if it is missing, and must be empty.
    None,
    /// It is there, with an earlier process's output.
    Ours,
}

/// Walks to `path`, creates it if it is missing, and hands out the held directory.
pub(super) fn open(
    path: &Path,
    agents: Vec<&Agent>,
    contents: Contents,
) -> Result<Dir, OutDirError> {
    let mut walk = Walk::start(agents)?;
    let mut components = path.components().peekable();
    while let Some(component) = components.next() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => walk.enter(
                name,
                components.peek().is_none() && contents == Contents::None,
            )?,
            // `absolute` keeps `..`; going up through the descriptor stays exact.
            Component::ParentDir => walk.enter(OsStr::new(".."), false)?,
            Component::Prefix(_) => return Err(OutDirError::NotDirectory(path.to_owned())),
        }
    }
    walk.finish(path, contents)
}

struct Walk<'a> {
    agents: Vec<&'a Agent>,
    path: PathBuf,
    here: OwnedFd,
    stat: Stat,
}

impl<'a> Walk<'a> {
    fn start(agents: Vec<&'a Agent>) -> Result<Self, OutDirError> {
        let path = PathBuf::from("/");
        let here = rustix::fs::open("/", directory_flags(), Mode::empty())
            .map_err(|error| reason(&path, error))?;
        let stat = rustix::fs::fstat(&here).map_err(|error| reason(&path, error))?;
        Ok(Self {
            agents,
            path,
            here,
            stat,
        })
    }

    /// Goes down one component, judging whether the agent could have replaced it.
    fn enter(&mut self, name: &OsStr, last: bool) -> Result<(), OutDirError> {
        let path = self.path.join(name);
        let next = match self.open(name) {
            Err(Errno::NOENT) if last => {
                self.refuse_agent(None)?;
                match rustix::fs::mkdirat(&self.here, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(reason(&path, error)),
                }
                self.open(name)
            }
            Err(Errno::NOENT) => return Err(OutDirError::NoParent(path)),
            other => other,
        };
        let next = next.map_err(|error| self.explain(name, &path, error))?;
        let stat = rustix::fs::fstat(&next).map_err(|error| reason(&path, error))?;
        self.refuse_agent(Some(&stat))?;
        (self.path, self.here, self.stat) = (path, next, stat);
        Ok(())
    }

    fn open(&self, name: &OsStr) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(&self.here, name, directory_flags(), Mode::empty())
    }

    /// Refuses if an agent can write to the directory that we are in, except where the sticky bit keeps it
    /// from touching the entry (`child`, or the one about to be made by us). Nothing is out of root's reach.
    fn refuse_agent(&self, child: Option<&Stat>) -> Result<(), OutDirError> {
        let has_acl = has_acl(&self.here);
        for agent in self.agents.iter().filter(|agent| agent.uid != 0) {
            if !agent.can_write(&self.stat, has_acl) {
                continue;
            }
            let sticky = self.stat.st_mode & 0o1000 != 0 && self.stat.st_uid != agent.uid;
            if sticky && child.is_none_or(|child| child.st_uid != agent.uid) {
                continue;
            }
            return Err(OutDirError::AgentCanWrite {
                path: self.path.clone(),
                uid: agent.uid,
            });
        }
        Ok(())
    }

    fn explain(&self, name: &OsStr, path: &Path, error: Errno) -> OutDirError {
        let is_link = rustix::fs::statat(&self.here, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_symlink());
        if is_link {
            OutDirError::Symlink(path.to_owned())
        } else {
            reason(path, error)
        }
    }

    /// Judges the directory itself.
    fn finish(self, path: &Path, contents: Contents) -> Result<Dir, OutDirError> {
        let own = rustix::process::geteuid().as_raw();
        if self.stat.st_uid != own {
            return Err(OutDirError::ForeignOwner {
                path: path.to_owned(),
                uid: self.stat.st_uid,
            });
        }
        let readable = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.here, ".", readable, Mode::empty())
            .map_err(|error| reason(path, error))?;
        let dir = Dir::from_fd(fd);
        let names = dir.file_names().map_err(|source| OutDirError::Io {
            path: path.to_owned(),
            source,
        })?;
        // A fresh file system has this directory, and it belongs to root.
        if contents == Contents::None && names.iter().any(|name| name != "lost+found") {
            return Err(OutDirError::NotEmpty(path.to_owned()));
        }
        if self.stat.st_mode & 0o7777 != 0o700 {
            rustix::fs::fchmod(dir.as_fd(), Mode::RWXU).map_err(|error| reason(path, error))?;
        }
        // Permission bits do not stop root, and a read-only mount can hide behind a directory that exists already.
        let probe = ".countersign-probe";
        if contents == Contents::Ours {
            // Left by a process that was killed just here.
            match dir.remove_file(probe) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    let error = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                    return Err(reason(path, error));
                }
            }
        }
        dir.create_file(probe)
            .and_then(|_| dir.remove_file(probe))
            .map_err(|error| reason(path, Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        Ok(dir)
    }
}

fn directory_flags() -> OFlags {
    OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn has_acl(dir: &OwnedFd) -> bool {
    // An O_PATH descriptor has no attributes of its own; its entry in /proc leads to the file.
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let mut value = [0_u8; 0];
    rustix::fs::getxattr(link, "system.posix_acl_access", &mut value).is_ok_and(|size| size > 0)
}

fn reason(path: &Path, error: Errno) -> OutDirError {
    let path = path.to_owned();
    match error {
        Errno::LOOP => OutDirError::Symlink(path),
        Errno::NOTDIR => OutDirError::NotDirectory(path),
        Errno::ROFS => OutDirError::ReadOnly(path),
        Errno::ACCESS | Errno::PERM => OutDirError::Denied(path),
        Errno::NOSPC | Errno::DQUOT => OutDirError::Full { path, free: 0 },
        other => OutDirError::Io {
            path,
            source: other.into(),
        },
    }
}
