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
};

use crate::message::Message;

pub(crate) const PAGE: usize = 4096;

/// From the word to the second page. Copies of a few dozen bytes at a time must not reach over it.
const BEFORE_SECOND: usize = 264;

/// Bytes before the second page: room for the longest message.
const FIRST: usize = 4 * PAGE;

/// How long a system call is put off for a thread that may have no processor.
const SPINS: u32 = 100_000;

/// What the thread and the system calls share.
pub(crate) struct Memory {
    /// First byte of the mapping.
    base: usize,
    /// The file behind it, if any.
    file: Option<RawFd>,
    /// For the thread: a system call is about to be or is being made.
    pub(crate) armed: AtomicBool,
    /// What the thread found in the word before it changed it; 0 if it did not.
    pub(crate) found: AtomicU64,
    /// How often the thread has come round.
    turns: AtomicU64,
    /// For the thread: there is nothing more to do.
    pub(crate) over: AtomicBool,
}

impl Memory {
    /// Anonymous memory, or that of a file to which it falls back when it is dropped.
    pub(crate) fn new(with_file: bool) -> io::Result<Arc<Self>> {
        let mut flags = libc::MAP_PRIVATE;
        let mut file = None;
        if with_file {
            let fd = unsafe { libc::memfd_create(c"hostile".as_ptr(), libc::MFD_CLOEXEC) };
            let len = libc::off_t::try_from(FIRST + PAGE).unwrap_or(0);
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
                FIRST + PAGE,
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
            found: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            over: AtomicBool::new(false),
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
        let start = self.start(message.word_at);
        let first = self.second() - start.addr();
        let (before, behind) = message
            .bytes
            .split_at_checked(first)
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

    /// Begins a system call, as far as the thread is concerned, and lets it come into its stride on another processor.
    pub(crate) fn arm(&self) {
        let before = self.turns.load(Ordering::Acquire);
        self.armed.store(true, Ordering::Release);
        for _ in 0..SPINS {
            if self.turns.load(Ordering::Acquire) > before + 1 {
                break;
            }
            std::hint::spin_loop();
        }
    }

    /// Runs a thread that changes this memory until it is over.
    pub(crate) fn haunted(self: &Arc<Self>, thread: impl Fn(&Self) + Send + 'static) {
        let memory = Arc::clone(self);
        std::thread::spawn(move || {
            while !memory.over.load(Ordering::Relaxed) {
                if memory.armed.load(Ordering::Acquire) {
                    thread(&memory);
                    memory.turns.fetch_add(1, Ordering::Release);
                } else {
                    std::thread::yield_now();
                }
            }
        });
    }
}

fn dropped(page: usize) {
    unsafe { libc::madvise(page as *mut _, PAGE, libc::MADV_DONTNEED) };
}
