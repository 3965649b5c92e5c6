//! From a process id, a pidfd or an entry of `/proc` to the incarnation that it means.
//!
//! A number is looked up as the kernel does, in the tree of the caller's own pid namespace, when the call begins: later the
//! process can be gone and its number another's. The look-up takes no lock; a tree that changes meanwhile can make it miss, which
//! is said.

use aya_ebpf::bindings::task_struct;
use countersign_common::evasion::flags;

use crate::{
    attempt::Attempt,
    offsets::{kernel, off},
    resolve::file_of,
};

/// Levels of a namespace's tree: six bits of the number each, and numbers end at 2^22 (`PID_MAX_LIMIT`).
const LEVELS_MAX: u32 = 4;
/// Size of `struct upid` (`include/linux/pid.h`).
const UPID_BYTES: u64 = 16;
/// What marks an inner node in the low bits of an entry (`include/linux/xarray.h`).
const INNER: u64 = 2;
/// `PID_FS_MAGIC`: since Linux 6.9 a pidfd is a file of this file system, and its inode knows the process.
const PID_FS_MAGIC: u64 = 0x5049_4446;
/// `PROC_SUPER_MAGIC`.
pub const PROC_MAGIC: u64 = 0x9fa0;

/// Notes whom a number means to the current task.
///
/// # Safety
/// `attempt` is the current thread's.
#[inline(never)]
pub unsafe fn by_number(task: *mut task_struct, attempt: *mut Attempt, number: u64) -> i64 {
    let number = number & 0xffff_ffff;
    let pid = pid_of_number(task, number).unwrap_or(0);
    // SAFETY: the caller's.
    unsafe {
        if pid == 0 || !by_pid(attempt, pid) {
            (*attempt).flags |= flags::TARGET_UNKNOWN;
            (*attempt).argument = number;
        }
    }
    0
}

/// Notes whom a pidfd of the current task means.
///
/// # Safety
/// As [`by_number`].
#[inline(never)]
pub unsafe fn by_pidfd(task: *mut task_struct, attempt: *mut Attempt, fd: u64) -> i64 {
    let pid = pid_of_file(file_of(task, fd)).unwrap_or(0);
    // SAFETY: the caller's.
    unsafe {
        if pid == 0 || !by_pid(attempt, pid) {
            (*attempt).flags |= flags::TARGET_UNKNOWN;
            (*attempt).argument = fd & 0xffff_ffff;
        }
    }
    0
}

/// Notes the process of a `struct pid`; whether it has one.
///
/// # Safety
/// As [`by_number`].
#[inline(always)]
pub unsafe fn by_pid(attempt: *mut Attempt, pid: u64) -> bool {
    let Some(task) = task_of(pid) else {
        return false;
    };
    // SAFETY: the caller's.
    unsafe { by_task(attempt, task) }
}

/// Notes the process that a `struct task_struct` belongs to.
///
/// # Safety
/// As [`by_number`].
#[inline(always)]
pub unsafe fn by_task(attempt: *mut Attempt, task: u64) -> bool {
    let Some(leader) = kernel::<u64>(task, off!(task_group_leader)) else {
        return false;
    };
    // SAFETY: the caller's.
    unsafe {
        (*attempt).target.tgid = kernel(task, off!(task_tgid)).unwrap_or(0);
        (*attempt).target.tid = kernel(task, off!(task_pid)).unwrap_or(0);
        (*attempt).target.start_boot_ns = kernel(leader, off!(task_start_boottime)).unwrap_or(0);
        (*attempt).target.tgid != 0
    }
}

/// `struct pid` of a number in the current task's pid namespace.
#[inline(always)]
fn pid_of_number(task: *mut task_struct, number: u64) -> Option<u64> {
    let own: u64 = kernel(task as u64, off!(task_thread_pid))?;
    let level: u32 = kernel(own, off!(pid_level))?;
    let namespace: u64 = kernel(
        own,
        off!(pid_numbers) + u64::from(level) * UPID_BYTES + off!(upid_ns),
    )?;
    let mut entry: u64 = kernel(namespace, off!(pid_namespace_tree))?;
    let mut top = true;
    let mut level = 0;
    while level < LEVELS_MAX {
        if entry & 3 == INNER {
            let node = entry & !3;
            let shift = u64::from(kernel::<u8>(node, off!(xa_node_shift))?) & 63;
            let slot = number >> shift;
            if top && slot > 63 {
                return None;
            }
            top = false;
            entry = kernel(node, off!(xa_node_slots) + (slot & 63) * 8)?;
        }
        level += 1;
    }
    // A tree of one entry has it in place of the node; it is that of number 0, which nobody has.
    (!top && entry & 3 == 0 && entry != 0).then_some(entry)
}

/// The first task of a `struct pid`: the thread with that id.
#[inline(always)]
fn task_of(pid: u64) -> Option<u64> {
    let link: u64 = kernel(pid, off!(pid_tasks))?;
    (link != 0).then(|| link - off!(task_pid_links))
}

/// `struct pid` behind a pidfd, or behind the directory of a process in `/proc`, which does as well.
#[inline(always)]
fn pid_of_file(file: u64) -> Option<u64> {
    if file == 0 {
        return None;
    }
    let inode: u64 = kernel(file, off!(file_inode))?;
    let sb: u64 = kernel(inode, off!(inode_sb))?;
    match kernel::<u64>(sb, off!(sb_magic))? {
        PID_FS_MAGIC => kernel(inode, off!(inode_private)),
        PROC_MAGIC => pid_of_proc(inode),
        _ => kernel(file, off!(file_private_data)),
    }
}

/// `struct pid` that an inode of `/proc` belongs to; 0 for what belongs to none.
#[inline(always)]
pub fn pid_of_proc(inode: u64) -> Option<u64> {
    kernel(inode - off!(proc_inode_inode) + off!(proc_inode_pid), 0)
}
