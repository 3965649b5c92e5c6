//! The controlling terminal's foreground group.
//!
//! Owns handing the terminal to the agent's process group and taking it back, so that an interactive
//! agent can read from it and Ctrl-C reaches the agent first. Does nothing when standard input is no
//! terminal or this process is not in the foreground.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::process::{Pid, getpgrp};
use rustix::termios::{tcgetpgrp, tcsetpgrp};

/// The terminal while the agent's group has it.
#[derive(Debug)]
pub(super) struct Terminal {
    own: Pid,
    agent: Pid,
}

impl Terminal {
    /// Makes the child the leader of a group of its own and puts that group in the foreground.
    pub(super) fn hand_over(child: Pid) -> Option<Self> {
        // The child does this too; whoever is first wins and the other call changes nothing.
        let _ = rustix::process::setpgid(Some(child), Some(child));
        let own = getpgrp();
        if tcgetpgrp(stdin()).ok()? != own {
            return None;
        }
        let terminal = Self { own, agent: child };
        set_foreground(child).then_some(terminal)
    }

    /// Takes the terminal for this process, for the time that the agent is stopped.
    pub(super) fn take(&self) {
        set_foreground(self.own);
    }

    /// Gives it to the agent again.
    pub(super) fn give(&self) {
        set_foreground(self.agent);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.take();
    }
}

/// From a background group this raises `SIGTTOU`, which must be blocked around it; see tcsetpgrp(3).
fn set_foreground(group: Pid) -> bool {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is initialised by `sigemptyset`, `before` by the first `pthread_sigmask`, before use.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
    }
    let done = tcsetpgrp(stdin(), group).is_ok();
    // SAFETY: as above.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
    }
    done
}

fn stdin() -> BorrowedFd<'static> {
    static STDIN: std::sync::OnceLock<std::io::Stdin> = std::sync::OnceLock::new();
    STDIN.get_or_init(std::io::stdin).as_fd()
}
