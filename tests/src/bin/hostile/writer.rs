//! Writers whose buffer shows one message outside of `write` and holds another within.

use std::{
    io,
    os::fd::RawFd,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use crate::{
    memory::Memory,
    message::{EVIL, GOOD, Way, message},
    stall::{Filling, stall},
};

/// In front of the word where the channel is to be full before it comes.
const MORE_THAN_FITS: usize = 9000;

/// Room of a channel that is soon full, in bytes.
const SMALL: i32 = 4096;

pub(crate) struct Writer {
    fd: RawFd,
    way: Way,
    attack: String,
    padding: usize,
    memory: Arc<Memory>,
    filling: Option<Filling>,
}

impl Writer {
    pub(crate) fn new(fd: RawFd, way: Way, attack: &str) -> io::Result<Self> {
        let memory = Memory::new(attack == "drop")?;
        let mut filling = None;
        let mut padding = 0;
        match attack {
            "none" => {}
            "flip" | "full" => memory.haunted(|memory| {
                for word in [EVIL, GOOD] {
                    memory.word().store(word, Ordering::SeqCst);
                    for _ in 0..300 {
                        std::hint::spin_loop();
                    }
                }
            }),
            "drop" => memory.haunted(|memory| {
                memory.drop_first();
                std::thread::yield_now();
            }),
            "stall" => {
                filling = Some(stall(&memory, |memory| {
                    memory.word().store(GOOD, Ordering::SeqCst);
                })?);
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        if attack == "full" {
            padding = MORE_THAN_FITS;
            let small = SMALL;
            let room = (&raw const small).cast();
            unsafe {
                // One of the two is right for this descriptor.
                libc::fcntl(fd, libc::F_SETPIPE_SZ, SMALL);
                libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, room, 4);
            }
        }
        Ok(Self {
            fd,
            way,
            attack: attack.to_owned(),
            padding,
            memory,
            filling,
        })
    }

    /// Sends the message of this number; what its word was before and after the system call.
    pub(crate) fn send(&mut self, number: usize) -> io::Result<[u64; 2]> {
        let message = message(self.way, number, self.padding);
        let behind = self.memory.put(&message, self.filling.is_some())?;
        if let Some(filling) = &self.filling {
            *filling.lock().unwrap_or_else(PoisonError::into_inner) = behind;
            self.memory.drop_second();
        }
        let before = match self.attack.as_str() {
            "stall" | "drop" => EVIL,
            _ => GOOD,
        };
        if !matches!(self.attack.as_str(), "none" | "stall") {
            self.memory.arm();
        }
        self.memory.word().store(before, Ordering::SeqCst);
        let mut done = 0;
        while done < message.bytes.len() {
            let from = unsafe { self.memory.start(message.word_at).add(done) };
            let wrote = unsafe { libc::write(self.fd, from.cast(), message.bytes.len() - done) };
            done += usize::try_from(wrote).map_err(|_negative| io::Error::last_os_error())?;
        }
        let after = self.memory.word().load(Ordering::SeqCst);
        self.memory.armed.store(false, Ordering::Release);
        Ok([before, after])
    }
}
