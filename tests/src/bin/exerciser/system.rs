//! What every method needs of the system: results, clocks, who we are.

use std::{fs, io, os::fd::RawFd};

/// The number of bytes, or the error of the call that was just made.
pub(crate) fn moved(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_negative| io::Error::last_os_error())
}

/// The result of a call that is zero or a small number.
pub(crate) fn done(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The result of `syscall(2)`.
pub(crate) fn raw(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_negative| io::Error::last_os_error())
}

/// What the kernel said, when it says it without `errno`: a count, or a negated error.
pub(crate) fn direct(result: i64) -> io::Result<usize> {
    usize::try_from(result).map_err(|_negative| {
        io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EIO))
    })
}

/// `CLOCK_BOOTTIME` in nanoseconds.
pub(crate) fn boot_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Field 22 of `/proc/PID/stat`; 0 when it cannot be read.
pub(crate) fn start_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold anything, brackets too; what follows the last one are numbers.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let since_boot = fields.split(' ').nth(19);
    since_boot.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Inode number of an open file; 0 when it has none.
pub(crate) fn inode(fd: RawFd) -> u64 {
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    if unsafe { libc::fstat(fd, &raw mut stat) } == 0 {
        stat.st_ino
    } else {
        0
    }
}

pub(crate) fn close(fd: RawFd) {
    unsafe { libc::close(fd) };
}

/// An anonymous file.
pub(crate) fn memory_file() -> io::Result<RawFd> {
    done(unsafe { libc::memfd_create(c"exerciser".as_ptr(), 0) })
}

/// A number that nobody else has.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    assert_eq!(got, 8, "getrandom fails only when it is told wrong things");
    u64::from_le_bytes(bytes)
}

/// Name of an error, as in `errno.h`.
pub(crate) fn errno_name(error: &io::Error) -> String {
    const NAMES: [(i32, &str); 20] = [
        (libc::EPERM, "EPERM"),
        (libc::EIO, "EIO"),
        (libc::ENXIO, "ENXIO"),
        (libc::EBADF, "EBADF"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::EACCES, "EACCES"),
        (libc::EFAULT, "EFAULT"),
        (libc::ENODEV, "ENODEV"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENOEXEC, "ENOEXEC"),
        (libc::ESPIPE, "ESPIPE"),
        (libc::EPIPE, "EPIPE"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ENOTSOCK, "ENOTSOCK"),
        (libc::EMSGSIZE, "EMSGSIZE"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::ENOTCONN, "ENOTCONN"),
        (libc::ENOBUFS, "ENOBUFS"),
        (libc::EBADFD, "EBADFD"),
    ];
    let Some(code) = error.raw_os_error() else {
        return error.to_string();
    };
    NAMES
        .iter()
        .find(|(number, _)| *number == code)
        .map_or_else(|| format!("errno {code}"), |(_, name)| (*name).to_owned())
}
