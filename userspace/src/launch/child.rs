//! What the child does between fork and exec.
//!
//! Owns the code that runs in the forked child. It may run in a process that had threads, so it calls
//! nothing but raw system calls on memory prepared before the fork: no allocation, no locks, no
//! panics, no libc wrapper with state of its own (glibc's `setuid` signals threads that no longer exist).

use std::os::fd::RawFd;

use libc::{c_char, c_int, c_long};

use super::terminal_guard;

/// The step at which the child gave up. One byte on the error pipe, followed by the error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Step {
    Descriptors = 1,
    Group = 2,
    Groups = 3,
    Gid = 4,
    Uid = 5,
    NoNewPrivileges = 6,
    Terminal = 7,
    Exec = 8,
}

impl Step {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Descriptors,
            Self::Group,
            Self::Groups,
            Self::Gid,
            Self::Uid,
            Self::NoNewPrivileges,
            Self::Terminal,
            Self::Exec,
        ]
        .into_iter()
        .find(|step| *step as u8 == byte)
    }

    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Descriptors => "closing descriptors (close_range needs Linux 5.9)",
            Self::Group => "making a process group",
            Self::Groups => "setting the groups",
            Self::Gid => "setting the group",
            Self::Uid => "setting the user",
            Self::NoNewPrivileges => "setting no_new_privs",
            Self::Terminal => "keeping it from typing into the terminal (CONFIG_SECCOMP_FILTER)",
            Self::Exec => "executing the program",
        }
    }
}

/// Everything the child needs, as plain memory. The pointers lead to what [`super::Command`] keeps alive until
/// after the fork; the child has its own copy of that memory.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) go: RawFd,
    pub(super) errors: RawFd,
    /// Uid, gid, groups; `None`: stay who we are.
    pub(super) user: Option<(u32, u32, *const u32, usize)>,
    pub(super) allow_setuid: bool,
    /// There is a controlling terminal, which the agent shares with whoever started this program.
    pub(super) has_terminal: bool,
    pub(super) candidates: *const *const c_char,
    pub(super) candidate_count: usize,
    pub(super) argv: *const *const c_char,
    pub(super) envp: *const *const c_char,
    pub(super) mask: libc::sigset_t,
}

/// Runs the plan. Never returns.
///
/// # Safety
/// Only in a freshly forked child, with a plan whose pointers are valid and NULL-terminated where exec wants it.
pub(super) unsafe fn run(plan: &Plan) -> ! {
    // SAFETY: the caller's promise; every call below is a raw system call or async-signal-safe.
    unsafe {
        // Waits without reading: a read would be the first thing that the capture sees of the agent.
        let mut wait = libc::pollfd {
            fd: plan.go,
            events: libc::POLLIN,
            revents: 0,
        };
        while libc::syscall(libc::SYS_ppoll, &raw mut wait, 1, 0, 0, 0) < 0 {
            if errno() != libc::EINTR {
                leave();
            }
        }
        if wait.revents & libc::POLLIN == 0 {
            // The parent is gone or gave up: the agent must not run unseen.
            leave();
        }
        let (step, error) = match prepare(plan) {
            Ok(()) => (Step::Exec, exec(plan)),
            Err(failed) => failed,
        };
        let mut message = [step as u8, 0, 0, 0, 0];
        message[1..].copy_from_slice(&error.to_ne_bytes());
        libc::syscall(libc::SYS_write, ERRORS_AT, message.as_ptr(), message.len());
        leave();
    }
}

/// Where the error pipe lies once all else above the standard descriptors is closed.
const ERRORS_AT: RawFd = 3;

unsafe fn prepare(plan: &Plan) -> Result<(), (Step, c_int)> {
    // SAFETY: as in `run`.
    unsafe {
        if plan.errors != ERRORS_AT {
            check(
                Step::Descriptors,
                libc::syscall(libc::SYS_dup3, plan.errors, ERRORS_AT, libc::O_CLOEXEC),
            )?;
        }
        check(
            Step::Descriptors,
            libc::syscall(libc::SYS_close_range, ERRORS_AT + 1, u32::MAX, 0),
        )?;
        check(Step::Group, libc::syscall(libc::SYS_setpgid, 0, 0))?;
        if !plan.allow_setuid {
            check(
                Step::NoNewPrivileges,
                libc::syscall(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            )?;
        }
        if plan.has_terminal {
            let filtered = check(Step::Terminal, terminal_guard::install());
            // Without no_new_privs it needs CAP_SYS_ADMIN; the operator has asked for less protection.
            if !plan.allow_setuid {
                filtered?;
            }
        }
        if let Some((uid, gid, groups, count)) = plan.user {
            check(
                Step::Groups,
                libc::syscall(libc::SYS_setgroups, count, groups),
            )?;
            check(Step::Gid, libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
            check(Step::Uid, libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        }
        // Rust ignores SIGPIPE at start; agents expect the default.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const plan.mask,
            std::ptr::null_mut(),
        );
        Ok(())
    }
}

/// Tries each candidate like `execvp`; returns the error worth reporting.
unsafe fn exec(plan: &Plan) -> c_int {
    let mut worst = libc::ENOENT;
    for index in 0..plan.candidate_count {
        // SAFETY: as in `run`; `candidates` has `candidate_count` entries.
        let error = unsafe {
            libc::syscall(
                libc::SYS_execve,
                *plan.candidates.add(index),
                plan.argv,
                plan.envp,
            );
            errno()
        };
        match error {
            libc::ENOENT | libc::ENOTDIR => {}
            // A later directory of PATH may still have one that can be run.
            libc::EACCES => worst = error,
            other => return other,
        }
    }
    worst
}

fn check(step: Step, result: c_long) -> Result<(), (Step, c_int)> {
    if result >= 0 {
        Ok(())
    } else {
        Err((step, errno()))
    }
}

fn errno() -> c_int {
    // SAFETY: glibc and musl promise a valid pointer to this thread's error number.
    unsafe { *libc::__errno_location() }
}

fn leave() -> ! {
    // SAFETY: ends the process without running anything that was registered by the parent.
    unsafe { libc::_exit(127) }
}
