//! `io_uring`, one ring per call.

use std::sync::atomic::{AtomicU64, Ordering};
use std::{io, os::fd::RawFd};

use io_uring::{IoUring, cqueue, opcode, squeue, types::Fd, types::Fixed, types::RecvMsgOut};

use crate::{
    method::{Method, all, one_call},
    plain::{message, vectors},
    spliced::{through_pipe_in, through_pipe_out},
    system::direct,
};

/// The group that buffers are provided in.
const GROUP: u16 = 7;
/// How many buffers.
const BUFFERS: u16 = 8;
/// Room for the kernel's header before the payload of a multishot `recvmsg`.
const HEADER_BYTES: usize = 64;
/// Idle time after which a polling kernel thread sleeps, in milliseconds.
const POLL_IDLE_MS: u32 = 50;

pub(crate) const SENDS: &[Method] = &[
    all("io_uring-write", |fd, b| one(&plain()?, &write(fd, b))),
    all("io_uring-write async", |fd, b| {
        one(&plain()?, &write(fd, b).flags(squeue::Flags::ASYNC))
    }),
    all("io_uring-write SQPOLL", |fd, b| {
        one(&polling()?, &write(fd, b))
    }),
    all("io_uring-writev", |fd, b| {
        let v = vectors(b, 3);
        one(
            &plain()?,
            &opcode::Writev::new(Fd(fd), v.as_ptr(), count(v.len())).build(),
        )
    }),
    all("io_uring-write fixed", |fd, b| {
        fixed(b, |b| {
            opcode::WriteFixed::new(Fd(fd), b.as_ptr(), count(b.len()), 0).build()
        })
    }),
    all("io_uring-write, registered file", |fd, b| {
        let ring = plain()?;
        ring.submitter().register_files(&[fd])?;
        let entry = opcode::Write::new(Fixed(0), b.as_ptr(), count(b.len())).offset(u64::MAX);
        one(&ring, &entry.build())
    }),
    all("io_uring-write, two linked", |fd, b| {
        let (first, second) = b.split_at_mut(b.len() / 2);
        linked(&write(fd, first), &write(fd, second))
    }),
    all("io_uring-send", |fd, b| {
        one(
            &plain()?,
            &opcode::Send::new(Fd(fd), b.as_ptr(), count(b.len())).build(),
        )
    }),
    all("io_uring-sendmsg", |fd, b| {
        let mut v = vectors(b, 3);
        let m = message(&mut v);
        one(
            &plain()?,
            &opcode::SendMsg::new(Fd(fd), &raw const m).build(),
        )
    }),
    all("io_uring-send_zc", |fd, b| {
        one(
            &plain()?,
            &opcode::SendZc::new(Fd(fd), b.as_ptr(), count(b.len())).build(),
        )
    }),
    all("io_uring-sendmsg_zc", |fd, b| {
        let mut v = vectors(b, 3);
        let m = message(&mut v);
        one(
            &plain()?,
            &opcode::SendMsgZc::new(Fd(fd), &raw const m).build(),
        )
    }),
    all("io_uring-splice from a pipe", |fd, b| {
        through_pipe_out(b, |from, len| {
            one(
                &plain()?,
                &opcode::Splice::new(Fd(from), -1, Fd(fd), -1, count(len)).build(),
            )
        })
    }),
    all("io_uring-tee", |fd, b| {
        through_pipe_out(b, |from, len| {
            one(
                &plain()?,
                &opcode::Tee::new(Fd(from), Fd(fd), count(len)).build(),
            )
        })
    }),
];

pub(crate) const RECEIVES: &[Method] = &[
    all("io_uring-read", |fd, b| one(&plain()?, &read(fd, b))),
    all("io_uring-read async", |fd, b| {
        one(&plain()?, &read(fd, b).flags(squeue::Flags::ASYNC))
    }),
    all("io_uring-read SQPOLL", |fd, b| {
        one(&polling()?, &read(fd, b))
    }),
    all("io_uring-readv", |fd, b| {
        let v = vectors(b, 3);
        one(
            &plain()?,
            &opcode::Readv::new(Fd(fd), v.as_ptr(), count(v.len())).build(),
        )
    }),
    all("io_uring-read fixed", |fd, b| {
        fixed(b, |b| {
            opcode::ReadFixed::new(Fd(fd), b.as_mut_ptr(), count(b.len()), 0).build()
        })
    }),
    all("io_uring-read, registered file", |fd, b| {
        let ring = plain()?;
        ring.submitter().register_files(&[fd])?;
        let entry = opcode::Read::new(Fixed(0), b.as_mut_ptr(), count(b.len())).offset(u64::MAX);
        one(&ring, &entry.build())
    }),
    all("io_uring-recv", |fd, b| {
        one(
            &plain()?,
            &opcode::Recv::new(Fd(fd), b.as_mut_ptr(), count(b.len())).build(),
        )
    }),
    one_call("io_uring-recv MSG_PEEK", |fd, b| {
        let peek = opcode::Recv::new(Fd(fd), b.as_mut_ptr(), count(b.len())).flags(libc::MSG_PEEK);
        one(&plain()?, &peek.build())
    }),
    all("io_uring-recvmsg", |fd, b| {
        let mut v = vectors(b, 3);
        let mut m = message(&mut v);
        one(&plain()?, &opcode::RecvMsg::new(Fd(fd), &raw mut m).build())
    }),
    all("io_uring-recv, provided buffer", |fd, b| {
        let one = opcode::Recv::new(Fd(fd), std::ptr::null_mut(), count(b.len())).buf_group(GROUP);
        provided(b, &one.build().flags(squeue::Flags::BUFFER_SELECT), None)
    }),
    all("io_uring-read, provided buffer", |fd, b| {
        let one = opcode::Read::new(Fd(fd), std::ptr::null_mut(), count(b.len())).buf_group(GROUP);
        let one = one.offset(u64::MAX).build();
        provided(b, &one.flags(squeue::Flags::BUFFER_SELECT), None)
    }),
    all("io_uring-recv multishot", |fd, b| {
        provided(b, &opcode::RecvMulti::new(Fd(fd), GROUP).build(), None)
    }),
    all("io_uring-read multishot", |fd, b| {
        provided(
            b,
            &opcode::ReadMulti::new(Fd(fd), 0, GROUP)
                .offset(u64::MAX)
                .build(),
            None,
        )
    }),
    all("io_uring-recvmsg multishot", |fd, b| {
        let m = message(&mut []);
        let entry = opcode::RecvMsgMulti::new(Fd(fd), &raw const m, GROUP).build();
        provided(b, &entry, Some(&m))
    }),
    all("io_uring-splice to a pipe", |fd, b| {
        through_pipe_in(b, |to, len| {
            one(
                &plain()?,
                &opcode::Splice::new(Fd(fd), -1, Fd(to), -1, count(len)).build(),
            )
        })
    }),
    one_call("io_uring-tee out", |fd, b| {
        through_pipe_in(b, |to, len| {
            one(
                &plain()?,
                &opcode::Tee::new(Fd(fd), Fd(to), count(len)).build(),
            )
        })
    }),
];

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn plain() -> io::Result<IoUring> {
    IoUring::new(4)
}

/// A ring whose submissions a kernel thread takes.
fn polling() -> io::Result<IoUring> {
    IoUring::builder().setup_sqpoll(POLL_IDLE_MS).build(4)
}

fn write(fd: RawFd, bytes: &[u8]) -> squeue::Entry {
    opcode::Write::new(Fd(fd), bytes.as_ptr(), count(bytes.len()))
        .offset(u64::MAX)
        .build()
}

fn read(fd: RawFd, bytes: &mut [u8]) -> squeue::Entry {
    opcode::Read::new(Fd(fd), bytes.as_mut_ptr(), count(bytes.len()))
        .offset(u64::MAX)
        .build()
}

/// Each request with a mark of its own: by ring and mark the kernel tells the completions of one that has several.
fn push(ring: &IoUring, entry: &squeue::Entry) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let full = |_full| io::Error::from_raw_os_error(libc::ENOBUFS);
    let entry = entry
        .clone()
        .user_data(NEXT.fetch_add(1, Ordering::Relaxed));
    unsafe { ring.submission_shared().push(&entry) }.map_err(full)
}

/// The next completion, waited for.
fn next(ring: &IoUring) -> io::Result<cqueue::Entry> {
    loop {
        if let Some(entry) = unsafe { ring.completion_shared() }.next() {
            return Ok(entry);
        }
        match ring.submitter().submit_and_wait(1) {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            other => drop(other?),
        }
    }
}

/// Submits one request; its result.
fn one(ring: &IoUring, entry: &squeue::Entry) -> io::Result<usize> {
    push(ring, entry)?;
    ring.submit()?;
    let first = next(ring)?;
    let result = direct(i64::from(first.result()));
    if cqueue::more(first.flags()) {
        // A zero-copy send says once more when the buffer is free again.
        next(ring)?;
    }
    result
}

/// Two requests in one submission, the second after the first; what both moved. A short first one cancels the second.
fn linked(first: &squeue::Entry, second: &squeue::Entry) -> io::Result<usize> {
    let ring = plain()?;
    push(&ring, &first.clone().flags(squeue::Flags::IO_LINK))?;
    push(&ring, second)?;
    ring.submit()?;
    let results = [next(&ring)?.result(), next(&ring)?.result()];
    let moved = results.map(|result| usize::try_from(result).unwrap_or(0));
    match moved[0] + moved[1] {
        0 => direct(i64::from(results[0])),
        bytes => Ok(bytes),
    }
}

/// With the buffer registered.
fn fixed(bytes: &mut [u8], entry: impl FnOnce(&mut [u8]) -> squeue::Entry) -> io::Result<usize> {
    let ring = plain()?;
    let vector = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    unsafe { ring.submitter().register_buffers(&[vector]) }?;
    one(&ring, &entry(bytes))
}

/// Provides buffers, submits, and collects completions until the buffer is full or the request has ended.
fn provided(
    bytes: &mut [u8],
    entry: &squeue::Entry,
    header: Option<&libc::msghdr>,
) -> io::Result<usize> {
    let size = bytes.len() + HEADER_BYTES;
    let mut pool = vec![0; size * usize::from(BUFFERS)];
    let ring = plain()?;
    let len = i32::try_from(size).unwrap_or(i32::MAX);
    let provide = opcode::ProvideBuffers::new(pool.as_mut_ptr(), len, BUFFERS, GROUP, 0);
    one(&ring, &provide.build())?;
    push(&ring, entry)?;
    ring.submit()?;
    let mut got = 0;
    while got < bytes.len() {
        let completion = next(&ring)?;
        let (result, flags) = (completion.result(), completion.flags());
        let Some(buffer) = cqueue::buffer_select(flags).filter(|_| result > 0) else {
            if got == 0 {
                return direct(i64::from(result));
            }
            break;
        };
        let begin = usize::from(buffer) * size;
        let piece = &pool[begin..begin + direct(i64::from(result))?];
        let payload = match header {
            None => piece.to_vec(),
            Some(header) => RecvMsgOut::parse(piece, header)
                .map_err(|()| io::Error::from_raw_os_error(libc::EBADMSG))?
                .payload_data()
                .to_vec(),
        };
        bytes[got..got + payload.len()].copy_from_slice(&payload);
        got += payload.len();
        if !cqueue::more(flags) {
            break;
        }
    }
    Ok(got)
}
