//! `bpf(2)` itself, for the commands that aya has no words for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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

/// Calls it with the start of `union bpf_attr` that the command uses; what it returns.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// Memory that the attribute points to lives until the call returns, and is as long as the command and its object want it.
pub(super) unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is as long as is said; the rest is the caller's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// `BPF_MAP_LOOKUP_ELEM` into memory of any size.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// `key` is of the map's type; `value` has room for one of its values, rounded up to 8 bytes.
pub(super) unsafe fn look_up<K>(map: BorrowedFd<'_>, key: &K, value: *mut u8) -> io::Result<()> {
    // SAFETY: the caller's.
    unsafe { element_at(BPF_MAP_LOOKUP_ELEM, map, key, value) }
}

/// `BPF_MAP_UPDATE_ELEM` from memory of any size.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// `key` is of the map's type; `value` has as many bytes as one of its values.
pub(super) unsafe fn update<K>(map: BorrowedFd<'_>, key: &K, value: *const u8) -> io::Result<()> {
    // SAFETY: the caller's; the kernel only reads it.
    unsafe { element_at(BPF_MAP_UPDATE_ELEM, map, key, value.cast_mut()) }
}

/// A command on one element of a map.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// `key` and `value` are of the map's types.
pub(super) unsafe fn element<K, V>(
    command: libc::c_int,
    map: BorrowedFd<'_>,
    key: &K,
    value: &mut V,
) -> io::Result<()> {
    // SAFETY: both live until the call returns; their sizes are the caller's.
    unsafe { element_at(command, map, key, std::ptr::from_mut(value).cast()) }
}

unsafe fn element_at<K>(
    command: libc::c_int,
    map: BorrowedFd<'_>,
    key: &K,
    value: *mut u8,
) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: std::ptr::from_ref(key).expose_provenance() as u64,
        value: value.expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: both live until the call returns; their sizes are the caller's.
    unsafe { bpf(command, &mut attr) }.map(drop)
}
