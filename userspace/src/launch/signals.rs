//! Signals as something to wait for.
//!
//! Owns the blocked mask and the signal descriptor. Made first thing in `main`'s thread, so that threads
//! started later inherit the mask and no signal is ever handled asynchronously.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// What the operator or the system may send to stop a capture.
const STOPPING: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// What somebody may send to the agent by way of this program. Without a handler each would end the program and leave the agent
/// running unseen.
const FOR_THE_AGENT: [i32; 2] = [libc::SIGUSR1, libc::SIGUSR2];

/// Signals that would end this program as well and mean nothing to it: timers that were set before it was executed, limits
/// (a write beyond the largest allowed file fails all the same), power and input. Those for real-time programs belong to them.
const IGNORED: [i32; 8] = [
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    libc::SIGXCPU,
    libc::SIGXFSZ,
];

/// Signals of this process, delivered through a descriptor.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
    original: libc::sigset_t,
}

impl Signals {
    /// Blocks all signals that would end this program, but for those of its own defects and the one that cannot be blocked, in this
    /// thread and opens the descriptor. Those that stop it stay blocked until [`Signals::release`], the others for good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        let mut original = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the sets are initialised by `sigemptyset` and `pthread_sigmask` before they are read.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in STOPPING.into_iter().chain(harmless()) {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), original.as_mut_ptr());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self {
                fd: OwnedFd::from_raw_fd(fd),
                original: original.assume_init(),
            })
        }
    }

    /// The next signal that has arrived and means something to this program or to the agent, if any.
    pub fn next(&self) -> Option<i32> {
        loop {
            let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
            let length = rustix::io::read(&self.fd, &mut info).ok()?;
            // `ssi_signo` is the first member.
            let (number, _) = info[..length].split_first_chunk::<4>()?;
            let number = i32::try_from(u32::from_ne_bytes(*number)).ok()?;
            if is_stopping(number) || FOR_THE_AGENT.contains(&number) {
                return Some(number);
            }
        }
    }

    /// The next signal that has arrived and is to stop the capture, if any; others are forgotten.
    pub fn next_stopping(&self) -> Option<i32> {
        std::iter::from_fn(|| self.next()).find(|signal| is_stopping(*signal))
    }

    /// Gives the signals that stop this program their effect again, so that they can end what is left to do; those that have come
    /// until now are forgotten.
    pub fn release(self) {
        while self.next().is_some() {}
        let mut mask = self.original;
        // SAFETY: a mask that the kernel gave, with some more signals; no old one is asked for.
        unsafe {
            for signal in harmless() {
                libc::sigaddset(&raw mut mask, signal);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, std::ptr::null_mut());
        }
    }

    /// The mask that the process was started with, for the agent.
    pub(super) fn original_mask(&self) -> libc::sigset_t {
        self.original
    }
}

/// Whether the operator or the system wants the capture to end.
pub(super) fn is_stopping(signal: i32) -> bool {
    STOPPING.contains(&signal)
}

/// Signals that must not end this program.
fn harmless() -> impl Iterator<Item = i32> {
    FOR_THE_AGENT
        .into_iter()
        .chain(IGNORED)
        .chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
