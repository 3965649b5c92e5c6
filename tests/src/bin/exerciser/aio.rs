//! Legacy asynchronous I/O: `io_submit`. The kernel moves the bytes inside it, for these kinds.

use std::{io, os::fd::RawFd};

use crate::{
    method::{Method, all},
    plain::vectors,
    system::{direct, raw},
};

/// `struct iocb` (`include/uapi/linux/aio_abi.h`), little-endian.
#[repr(C)]
#[derive(Default)]
struct ControlBlock {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    reqprio: i16,
    fd: i32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Default)]
struct Event {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

const PREAD: u16 = 0;
const PWRITE: u16 = 1;
const PREADV: u16 = 7;
const PWRITEV: u16 = 8;

pub(crate) const SENDS: &[Method] = &[
    all("aio-pwrite", |fd, b| {
        submit(fd, PWRITE, b.as_ptr() as u64, b.len() as u64)
    }),
    all("aio-pwritev", |fd, b| {
        let v = vectors(b, 3);
        submit(fd, PWRITEV, v.as_ptr() as u64, v.len() as u64)
    }),
];

pub(crate) const RECEIVES: &[Method] = &[
    all("aio-pread", |fd, b| {
        submit(fd, PREAD, b.as_mut_ptr() as u64, b.len() as u64)
    }),
    all("aio-preadv", |fd, b| {
        let v = vectors(b, 3);
        submit(fd, PREADV, v.as_ptr() as u64, v.len() as u64)
    }),
];

/// One request, and what became of it.
fn submit(fd: RawFd, opcode: u16, buf: u64, nbytes: u64) -> io::Result<usize> {
    let mut context: u64 = 0;
    raw(unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) })?;
    let mut block = ControlBlock {
        opcode,
        fd,
        buf,
        nbytes,
        ..ControlBlock::default()
    };
    let blocks = [&raw mut block];
    let submitted = raw(unsafe { libc::syscall(libc::SYS_io_submit, context, 1, blocks.as_ptr()) });
    let mut event = Event::default();
    let result = submitted.and_then(|_one| {
        let none = std::ptr::null_mut::<libc::timespec>();
        raw(unsafe { libc::syscall(libc::SYS_io_getevents, context, 1, 1, &raw mut event, none) })?;
        direct(event.res)
    });
    unsafe { libc::syscall(libc::SYS_io_destroy, context) };
    result
}
