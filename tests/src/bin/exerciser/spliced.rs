//! Bytes that move without a buffer of ours: splice, tee, vmsplice, sendfile.

use std::{io, os::fd::RawFd, ptr::null_mut};

use crate::{
    ends::pipe,
    method::{Method, all, one_call},
    system::{close, memory_file, moved},
};

/// Bytes per call: what fits into a pipe, whatever its pages hold.
pub(crate) const PIECE_BYTES: usize = 32 * 1024;

pub(crate) const SENDS: &[Method] = &[
    all("splice from a pipe", |fd, b| {
        through_pipe_out(b, |from, len| {
            moved(unsafe { libc::splice(from, null_mut(), fd, null_mut(), len, 0) })
        })
    }),
    all("splice from a file", |fd, b| {
        from_file(b, |file, len| {
            let mut at = 0;
            moved(unsafe { libc::splice(file, &raw mut at, fd, null_mut(), len, 0) })
        })
    }),
    all("tee", |fd, b| {
        through_pipe_out(b, |from, len| moved(unsafe { libc::tee(from, fd, len, 0) }))
    }),
    all("vmsplice", |fd, b| {
        let vector = libc::iovec {
            iov_base: b.as_mut_ptr().cast(),
            iov_len: b.len(),
        };
        moved(unsafe { libc::vmsplice(fd, &raw const vector, 1, 0) })
    }),
    all("sendfile from a file", |fd, b| {
        from_file(b, |file, len| {
            let mut at = 0;
            moved(unsafe { libc::sendfile(fd, file, &raw mut at, len) })
        })
    }),
];

pub(crate) const RECEIVES: &[Method] = &[
    all("splice to a pipe", |fd, b| {
        through_pipe_in(b, |to, len| {
            moved(unsafe { libc::splice(fd, null_mut(), to, null_mut(), len, 0) })
        })
    }),
    all("splice to a file", |fd, b| {
        into_file(b, |file, len| {
            moved(unsafe { libc::splice(fd, null_mut(), file, null_mut(), len, 0) })
        })
    }),
    one_call("tee out", |fd, b| {
        through_pipe_in(b, |to, len| moved(unsafe { libc::tee(fd, to, len, 0) }))
    }),
    all("vmsplice out", |fd, b| {
        let vector = libc::iovec {
            iov_base: b.as_mut_ptr().cast(),
            iov_len: b.len(),
        };
        moved(unsafe { libc::vmsplice(fd, &raw const vector, 1, 0) })
    }),
    all("sendfile to a file", |fd, b| {
        into_file(b, |file, len| {
            moved(unsafe { libc::sendfile(file, fd, null_mut(), len) })
        })
    }),
];

/// Puts a piece of the buffer into a pipe of its own and lets `call` take it out of there.
pub(crate) fn through_pipe_out(
    bytes: &[u8],
    call: impl FnOnce(RawFd, usize) -> io::Result<usize>,
) -> io::Result<usize> {
    let piece = &bytes[..bytes.len().min(PIECE_BYTES)];
    let (to, from) = pipe()?;
    let result = moved(unsafe { libc::write(to, piece.as_ptr().cast(), piece.len()) })
        .and_then(|len| call(from, len));
    close(to);
    close(from);
    result
}

/// Lets `call` move bytes into a pipe of its own, and reads them from there into the buffer.
pub(crate) fn through_pipe_in(
    bytes: &mut [u8],
    call: impl FnOnce(RawFd, usize) -> io::Result<usize>,
) -> io::Result<usize> {
    let (to, from) = pipe()?;
    let want = bytes.len().min(PIECE_BYTES);
    let result = call(to, want).and_then(|len| {
        let mut got = 0;
        while got < len {
            let rest = &mut bytes[got..len];
            let n = moved(unsafe { libc::read(from, rest.as_mut_ptr().cast(), rest.len()) })?;
            if n == 0 {
                break;
            }
            got += n;
        }
        Ok(got)
    });
    close(to);
    close(from);
    result
}

/// Puts a piece of the buffer into a file and lets `call` send it from there.
fn from_file(
    bytes: &[u8],
    call: impl FnOnce(RawFd, usize) -> io::Result<usize>,
) -> io::Result<usize> {
    let piece = &bytes[..bytes.len().min(PIECE_BYTES)];
    let file = memory_file()?;
    let result = moved(unsafe { libc::pwrite(file, piece.as_ptr().cast(), piece.len(), 0) })
        .and_then(|len| call(file, len));
    close(file);
    result
}

/// Lets `call` move bytes into a file, and reads them from there into the buffer.
fn into_file(
    bytes: &mut [u8],
    call: impl FnOnce(RawFd, usize) -> io::Result<usize>,
) -> io::Result<usize> {
    let file = memory_file()?;
    let result = call(file, bytes.len().min(PIECE_BYTES)).and_then(|len| {
        let len = len.min(bytes.len());
        moved(unsafe { libc::pread(file, bytes.as_mut_ptr().cast(), len, 0) })
    });
    close(file);
    result
}
