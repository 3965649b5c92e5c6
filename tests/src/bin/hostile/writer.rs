//! Writers whose buffer shows one message outside of `write` and holds another within.

use std::{
    io,
    os::fd::RawFd,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use countersign_tests::hostile::{Shape, Way};

use crate::{
    memory::{Memory, PAGE},
    message::Message,
    stall::{Filling, stall},
};

/// Room of a channel that is soon full, in bytes.
const SMALL: i32 = 4096;

/// How long a word stands when it is flipped.
const FLIP_PAUSES: u32 = 4;

pub(crate) struct Writer {
    fd: RawFd,
    way: Way,
    shape: Shape,
    attack: String,
    memory: Arc<Memory>,
    filling: Option<Filling>,
}

impl Writer {
    pub(crate) fn new(fd: RawFd, way: Way, shape: Shape, attack: &str) -> io::Result<Self> {
        let memory = Memory::new(attack == "drop")?;
        let mut filling = None;
        match attack {
            "none" => {}
            "flip" | "full" => memory.haunted(flip),
            "drop" => {
                // Where the call waits for room there is more time.
                let pauses = if shape.after > PAGE { 16 } else { 1 };
                memory.haunted(move |memory| drop_once(memory, pauses));
            }
            "stall" => {
                filling = Some(stall(&memory, |memory| {
                    let good = memory.good.load(Ordering::SeqCst);
                    memory.word().store(good, Ordering::SeqCst);
                })?);
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        if matches!(attack, "full" | "drop") {
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
            shape,
            attack: attack.to_owned(),
            memory,
            filling,
        })
    }

    /// Sends the message of this number; what its word was before and after the system call.
    pub(crate) fn send(&mut self, number: usize) -> io::Result<[u64; 2]> {
        let message = Message::new(self.way, number, self.shape);
        let behind = self.memory.put(&message, self.filling.is_some())?;
        if let Some(filling) = &self.filling {
            *filling.lock().unwrap_or_else(PoisonError::into_inner) = behind;
            self.memory.drop_second();
        }
        let before = match self.attack.as_str() {
            "stall" | "drop" => message.evil,
            _ => message.good,
        };
        self.memory.word().store(before, Ordering::SeqCst);
        let haunted = !matches!(self.attack.as_str(), "none" | "stall");
        if haunted {
            self.memory.arm();
        }
        let mut done = 0;
        while done < message.bytes.len() {
            let from = unsafe { self.memory.start(message.word_at).add(done) };
            let wrote = unsafe { libc::write(self.fd, from.cast(), message.bytes.len() - done) };
            done += usize::try_from(wrote).map_err(|_negative| io::Error::last_os_error())?;
        }
        let after = self.memory.word().load(Ordering::SeqCst);
        self.memory.disarm();
        Ok([before, after])
    }
}

/// A word and another one, as long as the system call lasts. So short a time each that the kernel's copy and the look that
/// somebody takes later fall on one or the other by chance.
fn flip(memory: &Memory) {
    let [evil, good] = [&memory.evil, &memory.good].map(|word| word.load(Ordering::Relaxed));
    while memory.is_armed() {
        for word in [evil, good] {
            memory.word().store(word, Ordering::SeqCst);
            for _ in 0..FLIP_PAUSES {
                std::hint::spin_loop();
            }
        }
    }
}

/// Drops the page of the word at a moment that is as good as any while the call waits for room: who looks later finds what the
/// file has, or nothing.
fn drop_once(memory: &Memory, pauses: u32) {
    let mut pauses = u32::from(memory.chance().to_ne_bytes()[0]) * pauses;
    while memory.is_armed() && pauses > 0 {
        std::hint::spin_loop();
        pauses -= 1;
    }
    if memory.is_armed() {
        memory.drop_first();
    }
    while memory.is_armed() {
        std::hint::spin_loop();
    }
}
