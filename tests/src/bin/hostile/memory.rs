//! A message in memory that another thread changes while the kernel copies it.
//!
//! Owns the two pages that a message lies across: the word that is flipped is in the first, the end of the message in the
//! second. So the kernel always copies the word before it needs the second page.

use std::{
    io,
    os::fd::RawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    message::Message,
    processor::{self, Which},
};

pub(crate) const PAGE: usize = 4096;

/// From the word to the second page. Copies of a few dozen bytes at a time must not reach over it.
const BEFORE_SECOND: usize = 264;

/// Bytes before the second page: room for what may stand before a word.
const FIRST: usize = 4 * PAGE;

/// Bytes from the second page on: room for what may stand behind it.
const BEHIND: usize = 16 * PAGE;

/// How long a system call is put off for a thread that may have no processor.
const SPINS: u32 = 100_000;

/// How long a thread that comes before all others sleeps between system calls.
const IDLE: Duration = Duration::from_micros(20);

/// What the thread and the system calls share.
pub(crate) struct Memory {
    /// First byte of the mapping.
    base: usize,
    /// The file behind it, if any.
    file: Option<RawFd>,
    /// For the thread: a system call is about to be or is being made.
    armed: AtomicBool,
    /// The thread may be about to change something.
    busy: AtomicBool,
    /// What the thread found in the word before it changed it; 0 if it did not.
    pub(crate) found: AtomicU64,
    /// What the word is outside of the system call, within it, and as a reader claims.
    pub(crate) good: AtomicU64,
    pub(crate) evil: AtomicU64,
    pub(crate) lie: AtomicU64,
    /// Of the numbers that stand for chance.
    state: AtomicU64,
}

impl Memory {
    /// Anonymous memory, or that of a file to which it falls back when it is dropped.
    pub(crate) fn new(with_file: bool) -> io::Result<Arc<Self>> {
        let mut flags = libc::MAP_PRIVATE;
        let mut file = None;
        if with_file {
            let fd = unsafe { libc::memfd_create(c"hostile".as_ptr(), libc::MFD_CLOEXEC) };
            let len = libc::off_t::try_from(FIRST + BEHIND).unwrap_or(0);
            if fd < 0 || unsafe { libc::ftruncate(fd, len) } != 0 {
                return Err(io::Error::last_os_error());
            }
            file = Some(fd);
        } else {
            flags |= libc::MAP_ANONYMOUS;
        }
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                FIRST + BEHIND,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                file.unwrap_or(-1),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Arc::new(Self {
            base: base.addr(),
            file,
            armed: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            found: AtomicU64::new(0),
            good: AtomicU64::new(0),
            evil: AtomicU64::new(0),
            lie: AtomicU64::new(0),
            state: AtomicU64::new(1),
        }))
    }

    /// Where the second page begins.
    pub(crate) fn second(&self) -> usize {
        self.base + FIRST
    }

    /// The word that is flipped.
    pub(crate) fn word(&self) -> &AtomicU64 {
        unsafe { AtomicU64::from_ptr((self.second() - BEFORE_SECOND) as *mut u64) }
    }

    /// Where a message begins whose word lies so far behind its beginning.
    pub(crate) fn start(&self, word_at: usize) -> *mut u8 {
        (self.second() - BEFORE_SECOND - word_at) as *mut u8
    }

    /// Puts a message down; returns what of it belongs into the second page, which is left alone where `split`.
    pub(crate) fn put(&self, message: &Message, split: bool) -> io::Result<Vec<u8>> {
        self.good.store(message.good, Ordering::SeqCst);
        self.evil.store(message.evil, Ordering::SeqCst);
        self.lie.store(message.lie, Ordering::SeqCst);
        let start = self.start(message.word_at);
        let first = self.second() - start.addr();
        let too_long = start.addr() < self.base
            || message.bytes.len() > first + if split { PAGE } else { BEHIND };
        let parts = message.bytes.split_at_checked(first);
        let (before, behind) = parts
            .filter(|_| !too_long)
            .ok_or(io::ErrorKind::InvalidData)?;
        if let Some(file) = self.file {
            let at = libc::off_t::try_from(start.addr() - self.base).unwrap_or(0);
            let (from, len) = (message.bytes.as_ptr().cast(), message.bytes.len());
            if unsafe { libc::pwrite(file, from, len, at) } < 0 {
                return Err(io::Error::last_os_error());
            }
            // What was written into the memory itself would hide it.
            self.drop_first();
            return Ok(Vec::new());
        }
        let now = if split {
            before
        } else {
            message.bytes.as_slice()
        };
        unsafe { now.as_ptr().copy_to(start, now.len()) };
        Ok(if split { behind.to_vec() } else { Vec::new() })
    }

    /// Drops the page of the word: it is zero afterwards, or what the file has there.
    pub(crate) fn drop_first(&self) {
        dropped(self.second() - PAGE);
    }

    /// Drops the second page.
    pub(crate) fn drop_second(&self) {
        dropped(self.second());
    }

    /// Takes the page of the word out of the address space, or puts an empty one there.
    pub(crate) fn map_first(&self, there: bool) {
        let rights = if there {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_NONE
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let page = (self.second() - PAGE) as *mut libc::c_void;
        unsafe { libc::mmap(page, PAGE, rights, flags, -1, 0) };
    }

    /// Begins a system call, as far as the thread is concerned, and lets it come into its stride on another processor.
    pub(crate) fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
        for _ in 0..SPINS {
            if self.busy.load(Ordering::SeqCst) {
                break;
            }
            std::hint::spin_loop();
        }
    }

    /// The system call is over: returns when the thread touches nothing any more.
    pub(crate) fn disarm(&self) {
        self.armed.store(false, Ordering::SeqCst);
        while self.busy.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    }

    /// Some number, another one each time (xorshift64).
    pub(crate) fn chance(&self) -> u64 {
        let mut state = self.state.load(Ordering::Relaxed) | 1;
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.state.store(state, Ordering::Relaxed);
        state >> 32
    }

    /// Whether the system call is still being made.
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Ordering::SeqCst)
    }

    /// Runs a thread that changes this memory during system calls: on a processor of its own where there are several, and before
    /// all else there.
    pub(crate) fn haunted(self: &Arc<Self>, thread: impl Fn(&Self) + Send + 'static) {
        let memory = Arc::clone(self);
        processor::stay_on(Which::First);
        std::thread::spawn(move || {
            processor::stay_on(Which::Last);
            processor::before_all_others();
            loop {
                if memory.is_armed() {
                    memory.busy.store(true, Ordering::SeqCst);
                    if memory.is_armed() {
                        thread(&memory);
                    }
                    memory.busy.store(false, Ordering::SeqCst);
                } else {
                    std::thread::sleep(IDLE);
                }
            }
        });
    }
}

fn dropped(page: usize) {
    unsafe { libc::madvise(page as *mut _, PAGE, libc::MADV_DONTNEED) };
}
