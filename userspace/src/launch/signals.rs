//! Signals as something to wait for.
//!
//! Owns the blocked mask and the signal descriptor. Made first thing in `main`'s thread, so that threads
//! started later inherit the mask and no signal is ever handled asynchronously.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// What the operator or the system may send to stop a capture.
pub(super) const STOPPING: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Signals of this process, delivered through a descriptor.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
    original: libc::sigset_t,
}

impl Signals {
    /// Blocks the stopping signals in this thread and opens the descriptor. They stay blocked until [`Signals::release`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        let mut original = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the sets are initialised by `sigemptyset` and `pthread_sigmask` before they are read.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in STOPPING {
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

    /// The next signal that has arrived, if any.
    pub fn next(&self) -> Option<i32> {
        let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
        let length = rustix::io::read(&self.fd, &mut info).ok()?;
        // `ssi_signo` is the first member.
        let (number, _) = info[..length].split_first_chunk::<4>()?;
        i32::try_from(u32::from_ne_bytes(*number)).ok()
    }

    /// Gives the signals of this thread their effect again, so that they can end what is left to do; those that have come until
    /// now are forgotten.
    pub fn release(self) {
        while self.next().is_some() {}
        // SAFETY: a mask that the kernel gave; no old one is asked for.
        unsafe {
            libc::pthread_sigmask(
                libc::SIG_SETMASK,
                &raw const self.original,
                std::ptr::null_mut(),
            );
        }
    }

    /// The mask that the process was started with, for the agent.
    pub(super) fn original_mask(&self) -> libc::sigset_t {
        self.original
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
