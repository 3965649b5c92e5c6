//! Tags of processes, written and read from user space: `bpf(2)` on the tag map with a pidfd as key.
//!
//! aya knows no task storage, so these are the raw calls. Each suspends the tracepoint programs of its CPU for the length
//! of the call: seed before the work starts, do not poll.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use anyhow::Context;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;

/// The part of `union bpf_attr` that map element commands use (`include/uapi/linux/bpf.h`).
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Sets the tag of the process behind `pidfd`. All its threads, present and future, have it from then on.
pub(super) fn set(map: BorrowedFd<'_>, pidfd: BorrowedFd<'_>, tag: u32) -> io::Result<()> {
    let mut tag = tag;
    element(BPF_MAP_UPDATE_ELEM, map, pidfd, &mut tag)
}

/// The tag of the process behind `pidfd`; `None` when it has none.
pub(super) fn find(map: BorrowedFd<'_>, pidfd: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let mut tag = 0;
    match element(BPF_MAP_LOOKUP_ELEM, map, pidfd, &mut tag) {
        Ok(()) => Ok(Some(tag)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a process by number. The caller makes sure that the number cannot have been reused.
pub(super) fn open(pid: u32) -> anyhow::Result<std::os::fd::OwnedFd> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .with_context(|| format!("{pid} is not a process id"))?;
    pidfd_open(pid, PidfdFlags::empty())
        .with_context(|| format!("open process {}: it must exist and be no mere thread", pid.as_raw_pid()))
}

fn element(
    command: libc::c_int,
    map: BorrowedFd<'_>,
    pidfd: BorrowedFd<'_>,
    value: &mut u32,
) -> io::Result<()> {
    let key = pidfd.as_fd().as_raw_fd();
    let attr = ElementAttr {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: (&raw const key).expose_provenance() as u64,
        value: (&raw mut *value).expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads `attr` and four bytes of `key`, and reads or writes four bytes of `value` (the map's value
    // size); all live until the call returns.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, &raw const attr, size_of::<ElementAttr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
