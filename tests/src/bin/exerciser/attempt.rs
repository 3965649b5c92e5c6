//! One attempt: a fresh channel, a token, a method at one end and a plain partner at the other.

use std::{
    io,
    os::fd::RawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use countersign_tests::exercise::{Outcome, Side, Truth, token};

use crate::{
    carriers::{Carrier, Mover, Report, Task, move_all, plain},
    ends::Kind,
    method::{Method, Sizes, Way},
    system::{boot_ns, close, done, errno_name, inode, moved, random, start_ticks},
};

/// How long the partner goes on once the method is done.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks whether that is so.
const LOOK_MS: i32 = 2;
/// What one plain read of the partner takes at most: a whole message of every kind.
const PARTNER_BYTES: usize = 256 * 1024;

/// Tries `method` with a token of this length.
pub(crate) fn attempt(kind: Kind, side: Side, method: &Method, bytes: usize) -> Truth {
    let now = boot_ns();
    let mut truth = Truth {
        method: method.name.to_owned(),
        kind: kind.name().to_owned(),
        side,
        size: bytes,
        seed: random(),
        pid: std::process::id(),
        start_ticks: start_ticks(std::process::id()),
        inode: 0,
        from_ns: now,
        to_ns: now,
        outcome: Outcome::Moved { bytes: 0 },
    };
    truth.outcome = match outcome(kind, method, &mut truth) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Refused {
            errno: errno_name(&error),
        },
    };
    truth
}

fn outcome(kind: Kind, method: &Method, truth: &mut Truth) -> io::Result<Outcome> {
    let (side, seed) = (truth.side, truth.seed);
    if kind == Kind::PtyMaster && matches!(method.way, Way::Carried(Carrier::Reopened)) {
        // The name of a master leads to the multiplexer, which makes another terminal.
        return Ok(Outcome::Refused {
            errno: "another terminal".to_owned(),
        });
    }
    let task = Task::new(side, seed, truth.size)?;
    let mut begun = None;
    let mut mover = match method.way {
        Way::Carried(Carrier::Passed) => Some(Mover::waiting(task)?),
        Way::Carried(_) | Way::Call(_) => None,
    };
    let mut ends = kind.make(side)?;
    truth.inode = inode(ends.mine);
    if let Way::Carried(carrier) = method.way {
        match carrier {
            Carrier::Duplicated => {
                let copy = done(unsafe { libc::dup(ends.mine) })?;
                close(ends.mine);
                ends.mine = copy;
            }
            Carrier::Reopened => {
                let again = reopened(side, ends.mine).inspect_err(|_| ends.close())?;
                close(ends.mine);
                ends.mine = again;
            }
            Carrier::Passed => {
                if let Some(mover) = &mut mover {
                    mover.give(ends.mine)?;
                }
            }
            Carrier::Forked | Carrier::Executed | Carrier::Executed32 => {
                // A program that is not ours does not tell when it began.
                begun = Some(boot_ns());
                mover = Some(Mover::inheriting(carrier, task, ends.mine)?);
            }
        }
    }
    let partner = Partner::start(side, ends.other, token(seed, truth.size));
    let mut buffer = match side {
        Side::Send => token(seed, truth.size),
        Side::Receive => vec![0; truth.size],
    };
    let mut seen_by_us = true;
    truth.from_ns = begun.unwrap_or_else(boot_ns);
    let result = match (mover, method.way) {
        (Some(mover), way) => {
            seen_by_us = false;
            moved_by(mover, way, task, truth)?
        }
        (None, Way::Call(call)) => {
            let once = method.sizes == Sizes::OneCall;
            if once && side == Side::Receive {
                partner.wait_until_sent();
            }
            let once = once || side == Side::Receive && kind.has_messages();
            move_all(call, ends.mine, &mut buffer, once)
        }
        (None, Way::Carried(_)) => move_all(plain(side), ends.mine, &mut buffer, false),
    };
    if seen_by_us {
        truth.to_ns = boot_ns();
        let _unused = task.report();
    }
    let taken = partner.finish(result.as_ref().map_or(0, |bytes| *bytes));
    ends.close();
    let bytes = result?;
    let expected = token(seed, bytes.min(truth.size));
    let odd = |why: &str, got: &[u8]| Outcome::Odd {
        why: format!("{why}: {} of {bytes} bytes, another text", got.len()),
    };
    Ok(match side {
        Side::Send if taken != expected => odd("at the other end", &taken),
        Side::Receive if seen_by_us && bytes > 0 && buffer.iter().all(|byte| *byte == 0) => {
            Outcome::Discarded { bytes }
        }
        Side::Receive if seen_by_us && buffer[..bytes] != expected => odd("received", &buffer),
        Side::Send | Side::Receive => Outcome::Moved { bytes },
    })
}

/// Opens the end once more by its name in `/proc`.
fn reopened(side: Side, fd: RawFd) -> io::Result<RawFd> {
    let path = std::ffi::CString::new(format!("/proc/self/fd/{fd}")).unwrap_or_default();
    let mode = match side {
        Side::Send => libc::O_WRONLY,
        Side::Receive => libc::O_RDONLY,
    };
    done(unsafe { libc::open(path.as_ptr(), mode | libc::O_NOCTTY) })
}

/// Waits for another process and takes its account.
fn moved_by(
    mover: Mover,
    way: Way,
    task: Task,
    truth: &mut Truth,
) -> io::Result<io::Result<usize>> {
    mover.ended()?;
    truth.pid = mover.pid.cast_unsigned();
    truth.start_ticks = start_ticks(truth.pid);
    truth.to_ns = boot_ns();
    let code = mover.reaped()?;
    if matches!(way, Way::Carried(Carrier::Executed32)) {
        let _unused = task.report();
        // 255: it could not be executed. Its call's errors look like counts over any token's length.
        return Ok(match usize::try_from(code) {
            Ok(bytes) if bytes <= truth.size => Ok(bytes),
            _ => Err(io::Error::from_raw_os_error(libc::ENOEXEC)),
        });
    }
    let Report {
        result,
        from_ns,
        to_ns,
    } = task.report()?;
    (truth.from_ns, truth.to_ns) = (from_ns, to_ns);
    Ok(result)
}

/// The plain end: feeds or takes, in a thread of its own, and never blocks for good.
struct Partner {
    thread: JoinHandle<Vec<u8>>,
    /// Bytes that the method moved, once it is done.
    expected: Arc<AtomicUsize>,
    sent: Arc<AtomicBool>,
}

impl Partner {
    fn start(side: Side, fd: RawFd, token: Vec<u8>) -> Self {
        let expected = Arc::new(AtomicUsize::new(usize::MAX));
        let sent = Arc::new(AtomicBool::new(false));
        let (goal, all) = (Arc::clone(&expected), Arc::clone(&sent));
        let thread = thread::spawn(move || {
            unsafe {
                let flags = libc::fcntl(fd, libc::F_GETFL);
                libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK);
            }
            match side {
                Side::Send => take(fd, &goal),
                Side::Receive => {
                    feed(fd, &token, &goal);
                    all.store(true, Ordering::Release);
                    Vec::new()
                }
            }
        });
        Self {
            thread,
            expected,
            sent,
        }
    }

    fn wait_until_sent(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.sent.load(Ordering::Acquire) && Instant::now() < deadline {
            thread::yield_now();
        }
    }

    /// What it took, once it has taken what was sent.
    fn finish(self, expected: usize) -> Vec<u8> {
        self.expected.store(expected, Ordering::Release);
        self.thread.join().unwrap_or_default()
    }
}

fn ready(fd: RawFd, events: i16) {
    let mut poll = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    unsafe { libc::poll(&raw mut poll, 1, LOOK_MS) };
    if poll.revents & events == 0 && poll.revents != 0 {
        // Only an error or a hang-up, which does not wait.
        thread::sleep(Duration::from_millis(1));
    }
}

fn take(fd: RawFd, goal: &AtomicUsize) -> Vec<u8> {
    let mut taken = Vec::new();
    let mut buffer = vec![0; PARTNER_BYTES];
    let mut deadline = None;
    loop {
        let goal = goal.load(Ordering::Acquire);
        if goal != usize::MAX {
            let deadline = deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
            if taken.len() >= goal || Instant::now() > *deadline {
                return taken;
            }
        }
        ready(fd, libc::POLLIN);
        let got = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
        if let Ok(got) = moved(got) {
            taken.extend(&buffer[..got]);
        }
    }
}

fn feed(fd: RawFd, token: &[u8], goal: &AtomicUsize) {
    let mut at = 0;
    while at < token.len() && goal.load(Ordering::Acquire) == usize::MAX {
        let rest = &token[at..];
        match moved(unsafe { libc::write(fd, rest.as_ptr().cast(), rest.len()) }) {
            Ok(bytes) => at += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready(fd, libc::POLLOUT),
            Err(_) => return,
        }
    }
}
