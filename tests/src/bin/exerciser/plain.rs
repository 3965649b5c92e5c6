//! System calls with a buffer.

use std::{io, os::fd::RawFd};

use crate::{
    method::{Method, all, one_call},
    system::{moved, raw},
};

/// Scratch for a second message of a call that takes several.
const SCRATCH_BYTES: usize = 256 * 1024;

pub(crate) const SENDS: &[Method] = &[
    all("write", |fd, b| {
        moved(unsafe { libc::write(fd, b.as_ptr().cast(), b.len()) })
    }),
    all("writev", |fd, b| {
        let v = vectors(b, 3);
        moved(unsafe { libc::writev(fd, v.as_ptr(), count(&v)) })
    }),
    all("writev 300 vectors", |fd, b| {
        let v = vectors(b, 300);
        moved(unsafe { libc::writev(fd, v.as_ptr(), count(&v)) })
    }),
    all("pwrite64", |fd, b| {
        moved(unsafe { libc::pwrite(fd, b.as_ptr().cast(), b.len(), 0) })
    }),
    all("pwritev", |fd, b| {
        let v = vectors(b, 2);
        moved(unsafe { libc::pwritev(fd, v.as_ptr(), count(&v), 0) })
    }),
    all("pwritev2", |fd, b| {
        let v = vectors(b, 2);
        moved(unsafe { libc::pwritev2(fd, v.as_ptr(), count(&v), -1, 0) })
    }),
    all("send", |fd, b| {
        moved(unsafe { libc::send(fd, b.as_ptr().cast(), b.len(), 0) })
    }),
    all("sendto", |fd, b| sendto(fd, b)),
    all("sendmsg 1 vector", |fd, b| sendmsg(fd, b, 1, 0)),
    all("sendmsg 5 vectors", |fd, b| sendmsg(fd, b, 5, 0)),
    all("sendmmsg", sendmmsg),
    all("send MSG_ZEROCOPY", |fd, b| {
        moved(unsafe { libc::send(fd, b.as_ptr().cast(), b.len(), libc::MSG_ZEROCOPY) })
    }),
    all("sendmsg MSG_ZEROCOPY", |fd, b| {
        sendmsg(fd, b, 3, libc::MSG_ZEROCOPY)
    }),
    all("send MSG_MORE", |fd, b| send_more(fd, b)),
    all("x32 write", |fd, b| {
        raw(unsafe { libc::syscall(X32 | 1, fd, b.as_ptr(), b.len()) })
    }),
];

pub(crate) const RECEIVES: &[Method] = &[
    all("read", |fd, b| {
        moved(unsafe { libc::read(fd, b.as_mut_ptr().cast(), b.len()) })
    }),
    all("readv", |fd, b| {
        let v = vectors(b, 3);
        moved(unsafe { libc::readv(fd, v.as_ptr(), count(&v)) })
    }),
    all("readv 300 vectors", |fd, b| {
        let v = vectors(b, 300);
        moved(unsafe { libc::readv(fd, v.as_ptr(), count(&v)) })
    }),
    all("pread64", |fd, b| {
        moved(unsafe { libc::pread(fd, b.as_mut_ptr().cast(), b.len(), 0) })
    }),
    all("preadv", |fd, b| {
        let v = vectors(b, 2);
        moved(unsafe { libc::preadv(fd, v.as_ptr(), count(&v), 0) })
    }),
    all("preadv2", |fd, b| {
        let v = vectors(b, 2);
        moved(unsafe { libc::preadv2(fd, v.as_ptr(), count(&v), -1, 0) })
    }),
    all("recv", |fd, b| receive(fd, b, 0)),
    all("recvfrom", recvfrom),
    all("recv MSG_WAITALL", |fd, b| {
        receive(fd, b, libc::MSG_WAITALL)
    }),
    one_call("recv MSG_PEEK", |fd, b| receive(fd, b, libc::MSG_PEEK)),
    one_call("recv MSG_TRUNC", |fd, b| {
        // More was sent than there is room for: the count says so where the kind has messages.
        let half = b.len() / 2;
        receive(fd, &mut b[..half], libc::MSG_TRUNC).map(|n| n.min(half))
    }),
    all("recvmsg 1 vector", |fd, b| recvmsg(fd, b, 1, 0)),
    all("recvmsg 5 vectors", |fd, b| recvmsg(fd, b, 5, 0)),
    one_call("recvmsg MSG_PEEK", |fd, b| {
        recvmsg(fd, b, 2, libc::MSG_PEEK)
    }),
    all("recvmmsg", recvmmsg),
    all("x32 read", |fd, b| {
        raw(unsafe { libc::syscall(X32, fd, b.as_mut_ptr(), b.len()) })
    }),
];

/// `__X32_SYSCALL_BIT`: 64-bit registers, 32-bit pointers, and numbers that a filter may not expect.
const X32: libc::c_long = 0x4000_0000;

/// The buffer in pieces, each a vector.
pub(crate) fn vectors(bytes: &mut [u8], pieces: usize) -> Vec<libc::iovec> {
    let size = bytes.len().div_ceil(pieces).max(1);
    bytes
        .chunks_mut(size)
        .map(|piece| libc::iovec {
            iov_base: piece.as_mut_ptr().cast(),
            iov_len: piece.len(),
        })
        .collect()
}

fn count(vectors: &[libc::iovec]) -> i32 {
    i32::try_from(vectors.len()).unwrap_or(i32::MAX)
}

/// A message of these vectors.
pub(crate) fn message(vectors: &mut [libc::iovec]) -> libc::msghdr {
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vectors.as_mut_ptr();
    header.msg_iovlen = vectors.len();
    header
}

fn sendto(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    moved(unsafe {
        libc::sendto(
            fd,
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_NOSIGNAL,
            std::ptr::null(),
            0,
        )
    })
}

fn sendmsg(fd: RawFd, bytes: &mut [u8], pieces: usize, flags: i32) -> io::Result<usize> {
    let mut vectors = vectors(bytes, pieces);
    let header = message(&mut vectors);
    moved(unsafe { libc::sendmsg(fd, &raw const header, flags) })
}

/// Two messages in one call; what both moved.
fn sendmmsg(fd: RawFd, bytes: &mut [u8]) -> io::Result<usize> {
    let middle = bytes.len() / 2;
    let (first, second) = bytes.split_at_mut(middle);
    let mut vectors = [vectors(first, 2), vectors(second, 1)];
    let mut headers = vectors.each_mut().map(|vectors| libc::mmsghdr {
        msg_hdr: message(vectors),
        msg_len: 0,
    });
    let sent = unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), 2, 0) };
    let sent = moved(sent as isize)?;
    Ok(headers[..sent].iter().map(|h| h.msg_len as usize).sum())
}

/// The first half may wait for the second.
fn send_more(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let more = libc::MSG_MORE;
    let sent = moved(unsafe { libc::send(fd, first.as_ptr().cast(), first.len(), more) })?;
    if sent < first.len() {
        return Ok(sent);
    }
    let rest = unsafe { libc::send(fd, second.as_ptr().cast(), second.len(), 0) };
    Ok(sent + moved(rest)?)
}

fn receive(fd: RawFd, bytes: &mut [u8], flags: i32) -> io::Result<usize> {
    moved(unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), flags) })
}

fn recvfrom(fd: RawFd, bytes: &mut [u8]) -> io::Result<usize> {
    let mut address: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let mut len = libc::socklen_t::try_from(size_of::<libc::sockaddr_storage>()).unwrap_or(0);
    moved(unsafe {
        libc::recvfrom(
            fd,
            bytes.as_mut_ptr().cast(),
            bytes.len(),
            0,
            (&raw mut address).cast(),
            &raw mut len,
        )
    })
}

fn recvmsg(fd: RawFd, bytes: &mut [u8], pieces: usize, flags: i32) -> io::Result<usize> {
    let mut vectors = vectors(bytes, pieces);
    let mut header = message(&mut vectors);
    moved(unsafe { libc::recvmsg(fd, &raw mut header, flags) })
}

/// Up to two messages: the first may take all, what a second brings is put behind it.
fn recvmmsg(fd: RawFd, bytes: &mut [u8]) -> io::Result<usize> {
    let mut scratch = vec![0; SCRATCH_BYTES];
    let mut vectors = [vectors(bytes, 2), vectors(&mut scratch, 1)];
    let mut headers = vectors.each_mut().map(|vectors| libc::mmsghdr {
        msg_hdr: message(vectors),
        msg_len: 0,
    });
    let wait = libc::MSG_WAITFORONE;
    let none = std::ptr::null_mut();
    let got = moved(unsafe { libc::recvmmsg(fd, headers.as_mut_ptr(), 2, wait, none) } as isize)?;
    let first = headers[0].msg_len as usize;
    let second = if got > 1 {
        headers[1].msg_len as usize
    } else {
        0
    };
    bytes[first..first + second].copy_from_slice(&scratch[..second]);
    Ok(first + second)
}
