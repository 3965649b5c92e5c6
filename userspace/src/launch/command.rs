//! What to start, and the fork.
//!
//! Owns the preparation (argument and environment vectors, candidates along `PATH`) and the hand-shake:
//! the child waits until there is a byte; an error before or at exec comes back on a close-on-exec pipe.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal};

use super::child::{self, Plan, Step};
use super::user::{Identity, Origin};
use super::{Agent, Signals};

/// An agent that is to be started.
#[derive(Clone, Debug)]
pub struct Command {
    /// Program and arguments; the program is looked up along `PATH` unless it holds a slash.
    pub argv: Vec<OsString>,
    /// Whom it runs as.
    pub identity: Identity,
    /// Whether set-user-id programs keep their effect (otherwise `no_new_privs` is set).
    pub allow_setuid: bool,
    /// Environment variables that it does not get: those with signing keys.
    pub hidden_variables: Vec<String>,
}

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No program was given.
    #[error("no agent is named: put it after `--`")]
    NoProgram,
    /// An argument or variable holds a NUL byte.
    #[error("an argument of the agent holds a NUL byte: remove it")]
    Nul,
    /// Not in any directory of `PATH`, or not under the given path.
    #[error("the agent {} was not found ({searched}): check its name after `--`", program.display())]
    NotFound {
        /// As given.
        program: PathBuf,
        /// Where it was looked for.
        searched: String,
    },
    /// It is there but cannot be run.
    #[error("the agent {} cannot be executed by uid {uid}", program.display())]
    NotExecutable {
        /// As given.
        program: PathBuf,
        /// Whom it was to run as.
        uid: u32,
        /// The system's reason.
        source: io::Error,
    },
    /// Dropping privileges or the like failed in the child.
    #[error("the agent was not started: {step} failed")]
    Prepare {
        /// What failed.
        step: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The child ended before it could say anything.
    #[error("the agent's process ended before it was started: something killed it")]
    Vanished,
    /// Fork, pipe or the like failed here.
    #[error("cannot start a process")]
    Io(#[from] io::Error),
}

impl Command {
    /// Forks the agent's process, which waits. It has run nothing of the agent; it already has the pid that the
    /// agent will have.
    ///
    /// # Errors
    /// [`LaunchError`] when something needed is missing; no process is left behind.
    pub fn fork(self, signals: &Signals) -> Result<Blocked, LaunchError> {
        let program = self.argv.first().ok_or(LaunchError::NoProgram)?;
        let (candidates, searched) = candidates(program)?;
        let argv = strings(self.argv.iter().cloned())?;
        let envp = strings(self.environment())?;
        let (candidates_at, argv_at, envp_at) =
            (pointers(&candidates), pointers(&argv), pointers(&envp));

        let (go_read, go_write) = pipe()?;
        let (errors_read, errors_write) = pipe()?;
        let identity = &self.identity;
        let plan = Plan {
            go: go_read.as_raw_fd(),
            errors: errors_write.as_raw_fd(),
            user: (identity.origin != Origin::Unchanged).then_some((
                identity.uid,
                identity.gid,
                identity.groups.as_ptr(),
                identity.groups.len(),
            )),
            allow_setuid: self.allow_setuid,
            has_terminal: std::fs::File::open("/dev/tty").is_ok(),
            candidates: candidates_at.as_ptr(),
            candidate_count: candidates.len(),
            argv: argv_at.as_ptr(),
            envp: envp_at.as_ptr(),
            mask: signals.original_mask(),
        };
        // SAFETY: the child runs `child::run` only, which keeps to what is allowed after fork in a process
        // with threads; the plan's pointers outlive the fork.
        let pid = match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error().into()),
            // SAFETY: we are in the fresh child.
            0 => {
                // The write end must go, or the child would keep its own wait alive after the parent's death.
                // SAFETY: as above; the descriptor is ours and never used again in this process.
                unsafe {
                    libc::close(go_write.as_raw_fd());
                    child::run(&plan)
                }
            }
            pid => Pid::from_raw(pid).ok_or(LaunchError::Vanished)?,
        };
        drop((go_read, errors_write));
        // Not reaped yet, so the pid cannot be anyone else's.
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                // Makes the child leave.
                drop(go_write);
                let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
                return Err(io::Error::from(error).into());
            }
        };
        Ok(Blocked {
            command: self,
            searched,
            candidates,
            child: Some(Child { pid, pidfd }),
            go: go_write,
            errors: errors_read,
        })
    }

    fn environment(&self) -> impl Iterator<Item = OsString> + '_ {
        let own = self.identity.environment();
        let inherited = std::env::vars_os()
            .filter(|(name, _)| {
                !self
                    .hidden_variables
                    .iter()
                    .any(|hidden| name == OsStr::new(hidden))
            })
            .filter({
                let names: Vec<_> = own.iter().map(|(name, _)| *name).collect();
                move |(name, _)| !names.iter().any(|own| name == OsStr::new(own))
            });
        inherited
            .chain(
                own.into_iter()
                    .map(|(name, value)| (OsString::from(name), value)),
            )
            .map(|(name, value)| {
                let mut pair = name;
                pair.push("=");
                pair.push(value);
                pair
            })
    }
}

/// A process that exists, waits, and is not yet the agent.
#[derive(Debug)]
pub struct Blocked {
    command: Command,
    searched: String,
    candidates: Vec<CString>,
    child: Option<Child>,
    go: OwnedFd,
    errors: OwnedFd,
}

/// Pid and pidfd of an unreaped child.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
}

impl Blocked {
    /// Its process id, which the agent keeps.
    pub fn pid(&self) -> u32 {
        self.child
            .as_ref()
            .map_or(0, |child| child.pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// Its pidfd.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.child.as_ref().map(|child| child.pidfd.as_fd())
    }

    /// Lets it become the agent. Call only after it was tagged and the tag was read back.
    ///
    /// # Errors
    /// [`LaunchError`] when the program could not be executed; the process is gone then.
    pub fn release(mut self) -> Result<Agent, LaunchError> {
        let terminal = match &self.child {
            Some(child) => super::terminal::Terminal::hand_over(child.pid),
            None => None,
        };
        rustix::io::write(&self.go, b"!").map_err(|_gone| LaunchError::Vanished)?;
        let mut message = Vec::with_capacity(5);
        let errors = std::fs::File::from(self.errors.try_clone()?);
        errors.take(5).read_to_end(&mut message)?;
        if message.is_empty()
            && let Some(child) = self.child.take()
        {
            return Ok(Agent::new(child, terminal));
        }
        Err(self.explain(&message))
    }

    fn explain(&self, message: &[u8]) -> LaunchError {
        let Ok([step, a, b, c, d]) = <[u8; 5]>::try_from(message) else {
            return LaunchError::Vanished;
        };
        let Some(step) = Step::from_byte(step) else {
            return LaunchError::Vanished;
        };
        let source = io::Error::from_raw_os_error(i32::from_ne_bytes([a, b, c, d]));
        let program = PathBuf::from(self.command.argv.first().cloned().unwrap_or_default());
        match (step, source.raw_os_error()) {
            (Step::Exec, Some(libc::ENOENT | libc::ENOTDIR)) => LaunchError::NotFound {
                program,
                searched: self.searched.clone(),
            },
            // A directory of PATH that the user may not search says nothing about the program.
            (Step::Exec, Some(libc::EACCES)) if !self.exists() => LaunchError::NotFound {
                program,
                searched: self.searched.clone(),
            },
            (Step::Exec, _) => LaunchError::NotExecutable {
                program,
                uid: self.command.identity.uid,
                source,
            },
            _ => LaunchError::Prepare {
                step: step.describe(),
                source,
            },
        }
    }
}

impl Blocked {
    fn exists(&self) -> bool {
        let paths = self
            .candidates
            .iter()
            .map(|path| Path::new(OsStr::from_bytes(path.as_bytes())));
        paths.into_iter().any(Path::exists)
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            // Never released, or failed to exec: it has run nothing of the agent.
            let _ = rustix::process::pidfd_send_signal(&child.pidfd, Signal::KILL);
            let _ =
                rustix::process::waitpid(Some(child.pid), rustix::process::WaitOptions::empty());
        }
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// The paths to try, as `execvp` would, made before the fork.
fn candidates(program: &OsStr) -> Result<(Vec<CString>, String), LaunchError> {
    if program.is_empty() {
        return Err(LaunchError::NoProgram);
    }
    if program.as_bytes().contains(&b'/') {
        return Ok((strings([program.to_owned()])?, "no such file".to_owned()));
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let tried = strings(
        std::env::split_paths(&path).map(|directory| directory.join(program).into_os_string()),
    )?;
    Ok((tried, format!("PATH is {}", path.display())))
}

fn strings(items: impl IntoIterator<Item = OsString>) -> Result<Vec<CString>, LaunchError> {
    items
        .into_iter()
        .map(|item| CString::new(item.into_vec()).map_err(|_nul| LaunchError::Nul))
        .collect()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}
