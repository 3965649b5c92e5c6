//! Readers whose buffer shows another message, or none, by the time `read` returns.

use std::{
    io,
    os::fd::RawFd,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use countersign_tests::hostile::{Shape, Way};

use crate::{
    memory::Memory,
    message::Message,
    stall::{Filling, stall},
};

/// How often a reader's thread looks for bytes before it lets others run.
const LOOKS: u32 = 20_000;

/// How long it lets them run: it comes before all others, and where nothing arrives somebody must be able to send.
const PAUSE: Duration = Duration::from_micros(50);

pub(crate) struct Reader {
    fd: RawFd,
    way: Way,
    shape: Shape,
    attack: String,
    memory: Arc<Memory>,
    filling: Option<Filling>,
    /// Read by an honest reader and not taken yet.
    kept: Vec<u8>,
}

impl Reader {
    pub(crate) fn new(fd: RawFd, way: Way, shape: Shape, attack: &str) -> io::Result<Self> {
        let memory = Memory::new(false)?;
        let mut filling = None;
        // Between the word and the rest there is time enough for both.
        let found = |memory: &Memory| {
            let word = memory.word().load(Ordering::SeqCst);
            memory.found.store(word, Ordering::SeqCst);
        };
        match attack {
            "none" => {}
            "rewrite" => memory.haunted(rewrite),
            "drop" => {
                filling = Some(stall(&memory, move |memory| {
                    found(memory);
                    memory.drop_first();
                })?);
            }
            "unmap" => {
                filling = Some(stall(&memory, move |memory| {
                    found(memory);
                    memory.map_first(false);
                })?);
            }
            "stall" => {
                filling = Some(stall(&memory, move |memory| {
                    found(memory);
                    let lie = memory.lie.load(Ordering::SeqCst);
                    memory.word().store(lie, Ordering::SeqCst);
                })?);
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        Ok(Self {
            fd,
            way,
            shape,
            attack: attack.to_owned(),
            memory,
            filling,
            kept: Vec::new(),
        })
    }

    /// Receives the message of this number: the word that came, and what the buffer holds instead. `None` at the end.
    pub(crate) fn receive(&mut self, number: usize) -> io::Result<Option<[u64; 2]>> {
        let expected = Message::new(self.way, number, self.shape);
        if self.attack == "none" {
            let line = self.line()?;
            return Ok(line.map(|line| [expected.word_in(&line); 2]));
        }
        let behind = self.memory.put(&expected, self.filling.is_some())?;
        self.memory.word().store(0, Ordering::SeqCst);
        self.memory.found.store(0, Ordering::SeqCst);
        if let Some(filling) = &self.filling {
            *filling.lock().unwrap_or_else(PoisonError::into_inner) = behind;
            self.memory.drop_second();
        }
        self.memory.arm();
        let result = self.all_of(&expected);
        self.memory.disarm();
        if self.attack == "unmap" {
            self.memory.map_first(true);
        }
        let after = self.memory.word().load(Ordering::SeqCst);
        if !result? {
            return Ok(None);
        }
        let found = match self.memory.found.load(Ordering::SeqCst) {
            0 => after,
            found => found,
        };
        Ok(Some([found, after]))
    }

    /// Reads a message into its memory, in as many pieces as it comes in; `false` at the end.
    fn all_of(&self, expected: &Message) -> io::Result<bool> {
        let mut done = 0;
        while done < expected.bytes.len() {
            let to = unsafe { self.memory.start(expected.word_at).add(done) };
            let got = unsafe { libc::read(self.fd, to.cast(), expected.bytes.len() - done) };
            match usize::try_from(got).map_err(|_negative| io::Error::last_os_error())? {
                0 if done == 0 => return Ok(false),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                len if done == 0 && len < expected.word_at + size_of::<u64>() => {
                    return Err(io::Error::other("a word came in pieces"));
                }
                len => done += len,
            }
        }
        Ok(true)
    }

    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut looked = 0;
        loop {
            if let Some(end) = self.kept[looked..].iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.kept.drain(..=looked + end).collect()));
            }
            looked = self.kept.len();
            let mut bytes = [0_u8; 16384];
            let got = unsafe { libc::read(self.fd, bytes.as_mut_ptr().cast(), bytes.len()) };
            match usize::try_from(got).map_err(|_negative| io::Error::last_os_error())? {
                0 => return Ok(None),
                len => self.kept.extend(&bytes[..len]),
            }
        }
    }
}

/// Rewrites a word as soon as it has come, and notes what it was.
fn rewrite(memory: &Memory) {
    if memory.found.load(Ordering::SeqCst) != 0 {
        std::thread::sleep(PAUSE);
        return;
    }
    for _ in 0..LOOKS {
        let word = memory.word().load(Ordering::Relaxed);
        // Not while a part of it is still to come: that would not be what came.
        if word.to_ne_bytes().iter().all(|byte| *byte != 0) {
            let lie = memory.lie.load(Ordering::Relaxed);
            memory.word().store(lie, Ordering::SeqCst);
            memory.found.store(word, Ordering::SeqCst);
            return;
        }
        if !memory.is_armed() {
            return;
        }
        std::hint::spin_loop();
    }
    std::thread::sleep(PAUSE);
}
