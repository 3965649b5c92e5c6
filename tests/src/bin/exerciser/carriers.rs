//! Ways by which an end comes into the hands that use it. They then use plain `read` and `write`.

use std::{ffi::CString, io, os::fd::RawFd, str::FromStr};

use countersign_tests::exercise::{Side, token};

use crate::{
    compat,
    ends::pair,
    method::{Call, Sizes},
    system::{boot_ns, close, done, memory_file, moved},
};

/// How an end came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// `dup`.
    Duplicated,
    /// `open` of `/proc/self/fd/N`.
    Reopened,
    /// `SCM_RIGHTS`, to a process that is older than the channel.
    Passed,
    /// `fork`.
    Forked,
    /// `fork` and `execve`.
    Executed,
    /// `fork` and `execve` of a 32-bit program.
    Executed32,
}

impl Carrier {
    pub(crate) const ALL: [(&'static str, Self, Sizes); 6] = [
        ("end dup'd", Self::Duplicated, Sizes::All),
        ("end re-opened", Self::Reopened, Sizes::All),
        ("end passed by SCM_RIGHTS", Self::Passed, Sizes::All),
        ("end inherited by fork", Self::Forked, Sizes::All),
        ("end inherited by exec", Self::Executed, Sizes::All),
        (
            "end inherited by 32-bit exec",
            Self::Executed32,
            Sizes::Line,
        ),
    ];
}

/// What another process is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) side: Side,
    pub(crate) seed: u64,
    pub(crate) size: usize,
    /// A file for its [`Report`].
    report: RawFd,
}

/// What another process did.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) result: io::Result<usize>,
    pub(crate) from_ns: u64,
    pub(crate) to_ns: u64,
}

/// Length of a report in its file.
const REPORT_BYTES: usize = 24;

impl Task {
    pub(crate) fn new(side: Side, seed: u64, bytes: usize) -> io::Result<Self> {
        Ok(Self {
            side,
            seed,
            size: bytes,
            report: memory_file()?,
        })
    }

    /// The other process's part: moves the token and writes the report.
    fn perform(self, fd: RawFd) {
        let mut buffer = match self.side {
            Side::Send => token(self.seed, self.size),
            Side::Receive => vec![0; self.size],
        };
        let from = boot_ns();
        let result = move_all(plain(self.side), fd, &mut buffer, false);
        let to = boot_ns();
        let result = result.and_then(|bytes| {
            if buffer[..bytes] == token(self.seed, self.size)[..bytes] {
                Ok(bytes)
            } else {
                Err(io::Error::from_raw_os_error(libc::EBADMSG))
            }
        });
        let code = match result {
            Ok(bytes) => i64::try_from(bytes).unwrap_or(i64::MAX),
            Err(error) => -i64::from(error.raw_os_error().unwrap_or(libc::EIO)),
        };
        let mut bytes = Vec::with_capacity(REPORT_BYTES);
        for word in [code.cast_unsigned(), from, to] {
            bytes.extend(word.to_le_bytes());
        }
        unsafe { libc::pwrite(self.report, bytes.as_ptr().cast(), bytes.len(), 0) };
    }

    /// The report, once the process is gone.
    pub(crate) fn report(self) -> io::Result<Report> {
        let mut bytes = [0; REPORT_BYTES];
        let got = unsafe { libc::pread(self.report, bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        close(self.report);
        if moved(got)? != REPORT_BYTES {
            return Err(io::Error::from_raw_os_error(libc::ENODATA));
        }
        let mut words = bytes
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
        let [code, from_ns, to_ns] =
            [words.next(), words.next(), words.next()].map(|w| w.unwrap_or(0));
        Ok(Report {
            result: crate::system::direct(code.cast_signed()),
            from_ns,
            to_ns,
        })
    }
}

/// The call of carried ends.
pub(crate) fn plain(side: Side) -> Call {
    match side {
        Side::Send => |fd, b| moved(unsafe { libc::write(fd, b.as_ptr().cast(), b.len()) }),
        Side::Receive => |fd, b| moved(unsafe { libc::read(fd, b.as_mut_ptr().cast(), b.len()) }),
    }
}

/// Calls until all is moved, nothing comes any more, or an error. An error counts if nothing was moved before it.
pub(crate) fn move_all(call: Call, fd: RawFd, buffer: &mut [u8], once: bool) -> io::Result<usize> {
    let mut at = 0;
    while at < buffer.len() {
        match call(fd, &mut buffer[at..]) {
            Ok(0) => break,
            Ok(bytes) => at += bytes,
            // The kernel ends asynchronous requests so when it has other work for us.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if at == 0 => return Err(error),
            Err(_) => break,
        }
        if once {
            break;
        }
    }
    Ok(at)
}

/// Another process that moves a token.
#[derive(Debug)]
pub(crate) struct Mover {
    pub(crate) pid: i32,
    /// Where it waits for its end.
    control: Option<RawFd>,
}

impl Mover {
    /// For [`Carrier::Passed`]: a process that waits for its end. To be called before the channel is made.
    pub(crate) fn waiting(task: Task) -> io::Result<Self> {
        let (mine, its) = pair(libc::SOCK_STREAM)?;
        let pid = done(unsafe { libc::fork() })?;
        if pid == 0 {
            close(mine);
            if let Ok(fd) = take_end(its) {
                task.perform(fd);
            }
            unsafe { libc::_exit(0) };
        }
        close(its);
        Ok(Self {
            pid,
            control: Some(mine),
        })
    }

    /// Hands the end over.
    pub(crate) fn give(&mut self, fd: RawFd) -> io::Result<()> {
        let Some(control) = self.control.take() else {
            return Ok(());
        };
        let result = pass_end(control, fd);
        close(control);
        result
    }

    /// For the carriers by inheritance.
    pub(crate) fn inheriting(carrier: Carrier, task: Task, fd: RawFd) -> io::Result<Self> {
        let arguments = [
            "countersign-exerciser".to_owned(),
            "--move".to_owned(),
            if task.side == Side::Send {
                "send"
            } else {
                "receive"
            }
            .to_owned(),
            fd.to_string(),
            task.seed.to_string(),
            task.size.to_string(),
            task.report.to_string(),
        ]
        .map(|text| CString::new(text).unwrap_or_default());
        let pointers: Vec<_> = arguments
            .iter()
            .map(|text| text.as_ptr())
            .chain([std::ptr::null()])
            .collect();
        let none = [std::ptr::null()];
        let program = if carrier == Carrier::Executed32 {
            Some(program_file(task)?)
        } else {
            None
        };
        let pid = done(unsafe { libc::fork() })?;
        if pid == 0 {
            match program {
                Some(program) => unsafe {
                    libc::dup2(fd, i32::from(task.side == Side::Send));
                    let path = c"".as_ptr();
                    let flags = libc::AT_EMPTY_PATH;
                    let (arguments, environment) = (pointers.as_ptr(), none.as_ptr());
                    libc::syscall(
                        libc::SYS_execveat,
                        program,
                        path,
                        arguments,
                        environment,
                        flags,
                    );
                },
                None if carrier == Carrier::Executed => unsafe {
                    libc::execve(c"/proc/self/exe".as_ptr(), pointers.as_ptr(), none.as_ptr());
                },
                None => {
                    task.perform(fd);
                    unsafe { libc::_exit(0) };
                }
            }
            unsafe { libc::_exit(255) };
        }
        if let Some(program) = program {
            close(program);
        }
        Ok(Self { pid, control: None })
    }

    /// Waits for its end, without letting its number go.
    pub(crate) fn ended(&self) -> io::Result<()> {
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = self.pid.cast_unsigned();
        let flags = libc::WEXITED | libc::WNOWAIT;
        done(unsafe { libc::waitid(libc::P_PID, id, &raw mut info, flags) }).map(drop)
    }

    /// Its exit code.
    pub(crate) fn reaped(self) -> io::Result<i32> {
        if let Some(control) = self.control {
            close(control);
        }
        let mut status = 0;
        done(unsafe { libc::waitpid(self.pid, &raw mut status, 0) })?;
        Ok(if libc::WIFEXITED(status) {
            libc::WEXITSTATUS(status)
        } else {
            -1
        })
    }
}

/// The 32-bit program of a task, in a file without a name.
fn program_file(task: Task) -> io::Result<RawFd> {
    let writes = task.side == Side::Send;
    let image = compat::program(writes, &token(task.seed, task.size));
    let file = memory_file()?;
    moved(unsafe { libc::pwrite(file, image.as_ptr().cast(), image.len(), 0) })?;
    Ok(file)
}

/// Room for one descriptor in a control message, aligned as `struct cmsghdr`.
type Control = [u64; 3];

fn pass_end(control: RawFd, fd: RawFd) -> io::Result<()> {
    with_control(|header, fd_place| {
        unsafe { fd_place.write_unaligned(fd) };
        moved(unsafe { libc::sendmsg(control, header, 0) }).map(drop)
    })
}

fn take_end(control: RawFd) -> io::Result<RawFd> {
    with_control(|header, fd_place| {
        if moved(unsafe { libc::recvmsg(control, header, 0) })? == 0 {
            return Err(io::Error::from_raw_os_error(libc::EPIPE));
        }
        Ok(unsafe { fd_place.read_unaligned() })
    })
}

/// A message of one byte with room for one descriptor.
fn with_control<T>(
    call: impl FnOnce(*mut libc::msghdr, *mut RawFd) -> io::Result<T>,
) -> io::Result<T> {
    let mut byte = [0_u8; 1];
    let mut vectors = crate::plain::vectors(&mut byte, 1);
    let mut header = crate::plain::message(&mut vectors);
    let mut control: Control = [0; 3];
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of::<Control>();
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    unsafe {
        (*first).cmsg_level = libc::SOL_SOCKET;
        (*first).cmsg_type = libc::SCM_RIGHTS;
        (*first).cmsg_len = 16 + size_of::<RawFd>();
    }
    let place = unsafe { libc::CMSG_DATA(first) }.cast();
    call(&raw mut header, place)
}

/// What [`Carrier::Executed`] starts: `send|receive FD SEED SIZE REPORT`.
pub(crate) fn moved_after_exec(arguments: &[String]) -> io::Result<()> {
    fn number<T: FromStr>(text: Option<&String>) -> io::Result<T> {
        text.and_then(|text| text.parse().ok())
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }
    let side = match arguments.first().map(String::as_str) {
        Some("send") => Side::Send,
        _ => Side::Receive,
    };
    let task = Task {
        side,
        seed: number(arguments.get(2))?,
        size: number(arguments.get(3))?,
        report: number(arguments.get(4))?,
    };
    task.perform(number(arguments.get(1))?);
    Ok(())
}
