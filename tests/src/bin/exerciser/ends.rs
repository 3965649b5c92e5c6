//! The kinds of channels and how a fresh one of each is made.

use std::{
    ffi::CString,
    io,
    mem::size_of,
    os::fd::RawFd,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use countersign_tests::exercise::Side;

use crate::system::{close, done};

/// Longest wait of a socket call, in seconds: a method that is refused silently must not hang the rest.
const PATIENCE_SECONDS: i64 = 2;

/// A kind of channel, with the end that the method uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Pipe,
    Fifo,
    UnixStream,
    UnixStreamListener,
    UnixDgram,
    UnixDgramNamed,
    UnixSeqpacket,
    UnixSeqpacketListener,
    Tcp4,
    Tcp6,
    Tcp4Netns,
    PtyMaster,
    PtySlave,
}

/// Two ends of a fresh channel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    /// What the method uses.
    pub(crate) mine: RawFd,
    /// What feeds it or takes from it.
    pub(crate) other: RawFd,
}

impl Ends {
    pub(crate) fn close(self) {
        close(self.mine);
        close(self.other);
    }
}

impl Kind {
    pub(crate) const ALL: [Self; 13] = [
        Self::Pipe,
        Self::Fifo,
        Self::UnixStream,
        Self::UnixStreamListener,
        Self::UnixDgram,
        Self::UnixDgramNamed,
        Self::UnixSeqpacket,
        Self::UnixSeqpacketListener,
        Self::Tcp4,
        Self::Tcp6,
        Self::Tcp4Netns,
        Self::PtyMaster,
        Self::PtySlave,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pipe => "pipe",
            Self::Fifo => "fifo",
            Self::UnixStream => "unix_stream",
            Self::UnixStreamListener => "unix_stream_listener",
            Self::UnixDgram => "unix_dgram",
            Self::UnixDgramNamed => "unix_dgram_named",
            Self::UnixSeqpacket => "unix_seqpacket",
            Self::UnixSeqpacketListener => "unix_seqpacket_listener",
            Self::Tcp4 => "tcp4",
            Self::Tcp6 => "tcp6",
            Self::Tcp4Netns => "tcp4_netns",
            Self::PtyMaster => "pty_master",
            Self::PtySlave => "pty_slave",
        }
    }

    /// Whether a read takes one message, however short its buffer is.
    pub(crate) fn has_messages(self) -> bool {
        matches!(
            self,
            Self::UnixDgram
                | Self::UnixDgramNamed
                | Self::UnixSeqpacket
                | Self::UnixSeqpacketListener
        )
    }

    /// Makes one. The connecting socket sends and the accepted one receives.
    pub(crate) fn make(self, side: Side) -> io::Result<Ends> {
        let (from, to) = match self {
            Self::Pipe => pipe()?,
            Self::Fifo => fifo()?,
            Self::UnixStream => pair(libc::SOCK_STREAM)?,
            Self::UnixDgram => pair(libc::SOCK_DGRAM)?,
            Self::UnixSeqpacket => pair(libc::SOCK_SEQPACKET)?,
            Self::UnixStreamListener => through_name(libc::SOCK_STREAM)?,
            Self::UnixSeqpacketListener => through_name(libc::SOCK_SEQPACKET)?,
            Self::UnixDgramNamed => through_name(libc::SOCK_DGRAM)?,
            Self::Tcp4 => tcp4()?,
            Self::Tcp6 => tcp6()?,
            Self::Tcp4Netns => in_namespace()?,
            Self::PtyMaster | Self::PtySlave => {
                let (master, slave) = pty()?;
                return Ok(if self == Self::PtyMaster {
                    Ends {
                        mine: master,
                        other: slave,
                    }
                } else {
                    Ends {
                        mine: slave,
                        other: master,
                    }
                });
            }
        };
        if !matches!(self, Self::Pipe | Self::Fifo) {
            patience(from);
            patience(to);
        }
        Ok(match side {
            Side::Send => Ends {
                mine: from,
                other: to,
            },
            Side::Receive => Ends {
                mine: to,
                other: from,
            },
        })
    }
}

/// Write end, read end.
pub(crate) fn pipe() -> io::Result<(RawFd, RawFd)> {
    let mut fds = [0; 2];
    done(unsafe { libc::pipe(fds.as_mut_ptr()) })?;
    Ok((fds[1], fds[0]))
}

/// A path of ours that nobody else uses; it need not be in a file system that lasts.
fn fresh_path(what: &str) -> CString {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir();
    let text = format!("{}/{what}.{}.{number}", dir.display(), std::process::id());
    CString::new(text).unwrap_or_default()
}

fn fifo() -> io::Result<(RawFd, RawFd)> {
    let path = fresh_path("fifo");
    done(unsafe { libc::mkfifo(path.as_ptr(), 0o600) })?;
    // Open for both first, so that neither of the others waits.
    let both = done(unsafe { libc::open(path.as_ptr(), libc::O_RDWR) })?;
    let from = done(unsafe { libc::open(path.as_ptr(), libc::O_WRONLY) })?;
    let to = done(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY) })?;
    close(both);
    unsafe { libc::unlink(path.as_ptr()) };
    Ok((from, to))
}

pub(crate) fn pair(socket_type: i32) -> io::Result<(RawFd, RawFd)> {
    let mut fds = [0; 2];
    done(unsafe { libc::socketpair(libc::AF_UNIX, socket_type, 0, fds.as_mut_ptr()) })?;
    Ok((fds[0], fds[1]))
}

fn patience(fd: RawFd) {
    let time = libc::timeval {
        tv_sec: PATIENCE_SECONDS,
        tv_usec: 0,
    };
    for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        unsafe {
            libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                option,
                (&raw const time).cast(),
                length::<libc::timeval>(),
            )
        };
    }
}

fn length<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

/// A bound unix socket and one that connects to it; what is sent, and what receives.
fn through_name(socket_type: i32) -> io::Result<(RawFd, RawFd)> {
    let path = fresh_path("socket");
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = 1;
    for (place, byte) in address.sun_path.iter_mut().zip(path.to_bytes()) {
        *place = byte.cast_signed();
    }
    let address = (&raw const address).cast();
    let to = done(unsafe { libc::socket(libc::AF_UNIX, socket_type, 0) })?;
    done(unsafe { libc::bind(to, address, length::<libc::sockaddr_un>()) })?;
    let from = done(unsafe { libc::socket(libc::AF_UNIX, socket_type, 0) })?;
    let ends = if socket_type == libc::SOCK_DGRAM {
        done(unsafe { libc::connect(from, address, length::<libc::sockaddr_un>()) })?;
        (from, to)
    } else {
        connected(from, to, address, length::<libc::sockaddr_un>())?
    };
    unsafe { libc::unlink(path.as_ptr()) };
    Ok(ends)
}

/// Listens, connects, accepts, closes the listener.
fn connected(
    from: RawFd,
    listener: RawFd,
    address: *const libc::sockaddr,
    len: libc::socklen_t,
) -> io::Result<(RawFd, RawFd)> {
    done(unsafe { libc::listen(listener, 1) })?;
    done(unsafe { libc::connect(from, address, len) })?;
    let to = unsafe { libc::accept(listener, std::ptr::null_mut(), std::ptr::null_mut()) };
    let to = done(to)?;
    close(listener);
    Ok((from, to))
}

fn tcp4() -> io::Result<(RawFd, RawFd)> {
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = 2;
    address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
    tcp(libc::AF_INET, &mut address)
}

fn tcp6() -> io::Result<(RawFd, RawFd)> {
    let mut address: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    address.sin6_family = 10;
    address.sin6_addr.s6_addr[15] = 1;
    tcp(libc::AF_INET6, &mut address)
}

/// Binds to a port that the kernel chooses, and connects to it.
fn tcp<A>(family: i32, address: &mut A) -> io::Result<(RawFd, RawFd)> {
    let mut len = length::<A>();
    let place = (&raw mut *address).cast();
    let listener = done(unsafe { libc::socket(family, libc::SOCK_STREAM, 0) })?;
    done(unsafe { libc::bind(listener, place, len) })?;
    done(unsafe { libc::getsockname(listener, place, &raw mut len) })?;
    let from = done(unsafe { libc::socket(family, libc::SOCK_STREAM, 0) })?;
    let (from, to) = connected(from, listener, place, len)?;
    for fd in [from, to] {
        let on = 1;
        for (level, option) in [
            (libc::IPPROTO_TCP, libc::TCP_NODELAY),
            (libc::SOL_SOCKET, libc::SO_ZEROCOPY),
        ] {
            unsafe { libc::setsockopt(fd, level, option, (&raw const on).cast(), length::<i32>()) };
        }
    }
    Ok((from, to))
}

/// A connection inside a network namespace that was made for this run. The sockets stay in it, whoever uses them.
fn in_namespace() -> io::Result<(RawFd, RawFd)> {
    static NAMESPACE: OnceLock<Result<RawFd, i32>> = OnceLock::new();
    let code = |error: &io::Error| error.raw_os_error().unwrap_or(libc::EIO);
    let namespace = NAMESPACE.get_or_init(|| {
        thread::spawn(fresh_namespace)
            .join()
            .map_err(|_panic| libc::EIO)?
            .map_err(|error| code(&error))
    });
    let namespace = namespace.map_err(io::Error::from_raw_os_error)?;
    let made = thread::spawn(move || {
        done(unsafe { libc::setns(namespace, libc::CLONE_NEWNET) })?;
        tcp4()
    });
    made.join()
        .map_err(|_panic| io::Error::from_raw_os_error(libc::EIO))?
}

/// A network namespace with its loopback up, made and left by a thread of its own.
fn fresh_namespace() -> io::Result<RawFd> {
    done(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    let socket = done(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) })?;
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = 108;
    request.ifr_name[1] = 111;
    request.ifr_ifru.ifru_flags = 1;
    done(unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request) })?;
    close(socket);
    done(unsafe { libc::open(c"/proc/thread-self/ns/net".as_ptr(), libc::O_RDONLY) })
}

/// Master and slave of a terminal that changes nothing of what passes.
fn pty() -> io::Result<(RawFd, RawFd)> {
    let master = done(unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY) })?;
    done(unsafe { libc::grantpt(master) })?;
    done(unsafe { libc::unlockpt(master) })?;
    let mut name = [0; 64];
    done(unsafe { libc::ptsname_r(master, name.as_mut_ptr(), name.len()) })?;
    let slave = done(unsafe { libc::open(name.as_ptr(), libc::O_RDWR | libc::O_NOCTTY) })?;
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    done(unsafe { libc::tcgetattr(slave, &raw mut settings) })?;
    unsafe { libc::cfmakeraw(&raw mut settings) };
    done(unsafe { libc::tcsetattr(slave, libc::TCSANOW, &raw const settings) })?;
    Ok((master, slave))
}
