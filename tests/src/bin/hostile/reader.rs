//! Readers whose buffer shows another message, or none, by the time `read` returns.

use std::{
    io,
    os::fd::RawFd,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use crate::{
    memory::Memory,
    message::{LIE, Way, message, word_in},
    stall::{Filling, stall},
};

/// How long a reader's thread waits for bytes before it lets another one run.
const SPINS: u32 = 500;

pub(crate) struct Reader {
    fd: RawFd,
    way: Way,
    attack: String,
    memory: Arc<Memory>,
    filling: Option<Filling>,
    /// Read by an honest reader and not taken yet.
    kept: Vec<u8>,
}

impl Reader {
    pub(crate) fn new(fd: RawFd, way: Way, attack: &str) -> io::Result<Self> {
        let memory = Memory::new(false)?;
        let mut filling = None;
        match attack {
            "none" => {}
            "rewrite" => memory.haunted(|memory| {
                if took(memory) {
                    memory.word().store(LIE, Ordering::SeqCst);
                }
            }),
            // Between the word and the rest there is time enough for both.
            "drop" => {
                filling = Some(stall(&memory, |memory| {
                    let word = memory.word().load(Ordering::SeqCst);
                    memory.found.store(word, Ordering::SeqCst);
                    memory.drop_first();
                })?);
            }
            "stall" => {
                filling = Some(stall(&memory, |memory| {
                    let word = memory.word().swap(LIE, Ordering::SeqCst);
                    memory.found.store(word, Ordering::SeqCst);
                })?);
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        Ok(Self {
            fd,
            way,
            attack: attack.to_owned(),
            memory,
            filling,
            kept: Vec::new(),
        })
    }

    /// Receives the message of this number: the word that came, and what the buffer holds instead. `None` at the end.
    pub(crate) fn receive(&mut self, number: usize) -> io::Result<Option<[u64; 2]>> {
        if self.attack == "none" {
            return Ok(self.line()?.map(|line| [word_in(&line); 2]));
        }
        let expected = message(self.way, number, 0);
        self.memory.word().store(0, Ordering::SeqCst);
        self.memory.found.store(0, Ordering::SeqCst);
        if let Some(filling) = &self.filling {
            let behind = self.memory.put(&expected, true)?;
            self.memory.word().store(0, Ordering::SeqCst);
            *filling.lock().unwrap_or_else(PoisonError::into_inner) = behind;
            self.memory.drop_second();
        }
        self.memory.armed.store(true, Ordering::Release);
        let to = self.memory.start(expected.word_at);
        let got = unsafe { libc::read(self.fd, to.cast(), expected.bytes.len()) };
        let after = self.memory.word().load(Ordering::SeqCst);
        self.memory.armed.store(false, Ordering::Release);
        match usize::try_from(got).map_err(|_negative| io::Error::last_os_error())? {
            0 => return Ok(None),
            len if len == expected.bytes.len() => {}
            _ => return Err(io::Error::other("a message came in pieces")),
        }
        let found = match self.memory.found.load(Ordering::SeqCst) {
            0 => after,
            found => found,
        };
        Ok(Some([found, after]))
    }

    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.kept.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.kept.drain(..=end).collect()));
            }
            let mut bytes = [0_u8; 16384];
            let got = unsafe { libc::read(self.fd, bytes.as_mut_ptr().cast(), bytes.len()) };
            match usize::try_from(got).map_err(|_negative| io::Error::last_os_error())? {
                0 => return Ok(None),
                len => self.kept.extend(&bytes[..len]),
            }
        }
    }
}

/// Whether a word has come, which is then noted.
fn took(memory: &Memory) -> bool {
    for _ in 0..SPINS {
        let word = memory.word().load(Ordering::SeqCst);
        if memory.found.load(Ordering::SeqCst) != 0 {
            break;
        }
        if word != 0 {
            memory.found.store(word, Ordering::SeqCst);
            return true;
        }
        std::hint::spin_loop();
    }
    std::thread::yield_now();
    false
}
