//! The life of processes: tags follow fork, the proxy's mark follows the executable.

use aya_ebpf::{
    bindings::task_struct,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{
            bpf_get_current_task_btf, bpf_ktime_get_boot_ns, bpf_probe_read_kernel_str,
            bpf_probe_read_user,
        },
    },
};
use countersign_common::{
    EXEC_TEXT_MAX_BYTES, Exec, Exit, Fork, RecordHeader, Task, counter, kind, load::ExeKey, tag,
};

use super::evasion;
use crate::{
    emit::{count, header, record, reserve, submit},
    log,
    maps::{FORKED, PROXY_EXES},
    offsets::{current, group_leader, kernel, off},
    scope::{bits_of, set_tag, tag_of},
};

/// `SIGNAL_GROUP_EXIT` (`include/linux/sched/signal.h`).
const SIGNAL_GROUP_EXIT: u32 = 0x4;

/// `sched_process_fork(parent, child)`: runs before the child can.
///
/// # Safety
/// The arguments are the tracepoint's.
#[inline(always)]
pub unsafe fn fork(parent: *mut task_struct, child: *mut task_struct) {
    // SAFETY: the caller's.
    unsafe {
        let leader = group_leader(parent);
        let Some(bits) = tag_of(leader) else { return };
        let Some(child_tgid) = kernel::<u32>(child as u64, off!(task_tgid)) else {
            count(counter::TAG_FAILED, 1);
            return;
        };
        let Some(child_pid) = kernel::<u32>(child as u64, off!(task_pid)) else {
            count(counter::TAG_FAILED, 1);
            return;
        };
        if child_pid != child_tgid {
            // A thread: its leader has the tag.
            return;
        }
        let creator = current(leader);
        inherit(&creator, bits, child, child_tgid);
    }
}

/// What a parent left for its child.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Forked {
    /// The parent.
    pub creator: Task,
    /// Its tag.
    pub bits: u64,
    /// When, `CLOCK_BOOTTIME`: a task that began later is another one with the same number.
    pub at_ns: u64,
}

/// At fork, in the parent, with the child's number only: the child tags itself, by [`first_step`].
///
/// # Safety
/// In a program.
#[inline(always)]
pub unsafe fn forked(child: u32) {
    // SAFETY: the current task and its leader.
    unsafe {
        let leader = group_leader(bpf_get_current_task_btf());
        let Some(bits) = tag_of(leader) else { return };
        let left = Forked {
            creator: current(leader),
            bits: u64::from(bits),
            at_ns: bpf_ktime_get_boot_ns(),
        };
        if FORKED.insert(&child, &left, 0).is_err() {
            count(counter::TAG_FAILED, 1);
        }
    }
}

/// At the child's own first step, before it has run any of its program. Where the program at fork could not tag it, the tag is what
/// that one left here; where it was skipped, that of the parent as it is now. A parent that has gone meanwhile leaves it to user space to find
/// the child.
///
/// # Safety
/// In a program of the child.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn first_step() -> u64 {
    // SAFETY: the current task and its leader; typed loads inside `struct task_struct`.
    unsafe {
        let child = bpf_get_current_task_btf();
        let leader = group_leader(child);
        let pid_tgid = bpf_get_current_pid_tgid();
        let (tgid, pid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
        let mut creator = Task {
            tgid: 0,
            tid: 0,
            start_boot_ns: 0,
        };
        let (mut bits, mut at_ns) = (0, 0);
        if let Some(left) = FORKED.get_ptr(&pid) {
            creator = (*left).creator;
            bits = (*left).bits as u32;
            at_ns = (*left).at_ns;
            let _ = FORKED.remove(&pid);
        }
        // Threads have the tag of their leader.
        if pid != tgid || tag_of(leader).is_some() {
            return 0;
        }
        if bits == 0 || current(leader).start_boot_ns > at_ns {
            let parent = *(child.cast::<u8>().add(off!(task_real_parent) as usize))
                .cast::<*mut task_struct>();
            if parent.is_null() {
                return 0;
            }
            let parents = group_leader(parent);
            if parents.is_null() {
                return 0;
            }
            bits = bits_of(parents);
            creator.tgid = kernel(parents as u64, off!(task_tgid)).unwrap_or(0);
            creator.tid = kernel(parent as u64, off!(task_pid)).unwrap_or(0);
            creator.start_boot_ns = kernel(parents as u64, off!(task_start_boottime)).unwrap_or(0);
        }
        if bits != 0 {
            // It is its own leader.
            inherit(&creator, bits, child, tgid);
        }
    }
    0
}

/// Tags a new process and reports it.
///
/// # Safety
/// `child` is a trusted pointer to the process's leader.
#[inline(always)]
unsafe fn inherit(creator: &Task, bits: u32, child: *mut task_struct, child_tgid: u32) {
    // SAFETY: the caller's.
    unsafe {
        // A child that could not be tagged is reported with no tag: user space can still tag it.
        let bits = if set_tag(child, bits) {
            bits
        } else {
            log::untagged(u64::from(child_tgid));
            0
        };
        let who = Task {
            tgid: child_tgid,
            tid: child_tgid,
            start_boot_ns: kernel(child as u64, off!(task_start_boottime)).unwrap_or(0),
        };
        let (uid, _, gid) = ids(child);
        let (cgroup, ns_tgid) = (cgroup(child), ns_pid(child));
        record::<Fork>(kind::FORK, |place| {
            (*place).parent = *creator;
            (*place).child = who;
            (*place).child_ns_tgid = ns_tgid;
            (*place).uid = uid;
            (*place).cgroup = cgroup;
            (*place).tag = bits;
            (*place).gid = gid;
            (*place).reserved = 0;
        });
    }
}

/// At `sys_enter` of `execve`: a thread that is not the leader becomes it, and the leader's storage goes with the old
/// leader. So the thread gets the tag beforehand; where it stays a mere thread, nobody looks at it.
///
/// # Safety
/// `task` is the current task, `leader` its leader.
#[inline(always)]
pub unsafe fn before_exec(task: *mut task_struct, leader: *mut task_struct, bits: u32) {
    if task as u64 != leader as u64 {
        // SAFETY: the caller's.
        unsafe { set_tag(task, bits) };
    }
}

/// `sched_process_exec(task, old_pid, bprm)`.
///
/// # Safety
/// The arguments are the tracepoint's.
#[inline(always)]
pub unsafe fn exec_of(task: *mut task_struct, bprm: u64) {
    // SAFETY: the caller's.
    unsafe {
        if tag_of(task).is_none() {
            return;
        }
        let file: u64 = kernel(bprm, off!(bprm_file)).unwrap_or(0);
        let name: u64 = kernel(bprm, off!(bprm_filename)).unwrap_or(0);
        exec(task, file, name);
    }
}

/// The file that a task executes from now on, as its memory knows it.
#[inline(always)]
pub fn executed_file(task: *mut task_struct) -> u64 {
    let mm: u64 = kernel(task as u64, off!(task_mm)).unwrap_or(0);
    kernel(mm, off!(mm_exe_file)).unwrap_or(0)
}

/// When a task has begun to execute `file` under the `name` at that address.
///
/// # Safety
/// `task` is the current task.
#[inline(always)]
pub unsafe fn exec(task: *mut task_struct, file: u64, name: u64) {
    // SAFETY: the caller's. The task is its own leader by now.
    unsafe {
        let Some(bits) = tag_of(task) else { return };
        let (inode, dev) = executable(file).unwrap_or((0, 0));
        let is_proxy = PROXY_EXES
            .get_ptr(&ExeKey {
                inode,
                dev,
                reserved: 0,
            })
            .is_some();
        let bits = if is_proxy {
            bits | tag::PROXY
        } else {
            bits & !tag::PROXY
        };
        set_tag(task, bits);
        evasion::executed(task, bits);
        let who = current(task);
        let (uid, euid, gid) = ids(task);
        const SIZE: usize = size_of::<Exec>() + 2 * EXEC_TEXT_MAX_BYTES;
        let Some(place) = reserve(SIZE as u64) else {
            return;
        };
        let exec = place.cast::<Exec>();
        (*exec).task = who;
        (*exec).exe_inode = inode;
        (*exec).exe_dev = dev;
        (*exec).uid = uid;
        (*exec).euid = euid;
        (*exec).gid = gid;
        (*exec).cgroup = cgroup(task);
        (*exec).tag = bits;
        (*exec).ns_tgid = ns_pid(task);
        (*exec).reserved = 0;
        (*exec).reserved2 = 0;
        (*exec).reserved3 = 0;

        let text = place.add(size_of::<Exec>());
        let read =
            bpf_probe_read_kernel_str(text.cast(), EXEC_TEXT_MAX_BYTES as u32, name as *const _);
        // The helper counts the NUL.
        let mut name_len = if read > 0 { read as u64 - 1 } else { 0 };
        if name_len > EXEC_TEXT_MAX_BYTES as u64 {
            name_len = 0;
        }
        let args_len = arguments(task, text.add(name_len as usize));
        (*exec).filename_len = name_len as u16;
        (*exec).args_len = args_len as u16;
        let size = size_of::<Exec>() as u64 + name_len + args_len;
        place
            .cast::<RecordHeader>()
            .write(header(kind::EXEC, size as u32));
        submit(place.cast(), SIZE as u64);
    }
}

/// `sched_process_exit(task, …)`: a record when the last thread goes.
///
/// # Safety
/// `task` is the tracepoint's, the current task.
#[inline(always)]
pub unsafe fn exit(task: *mut task_struct) {
    // SAFETY: the caller's.
    unsafe {
        let leader = group_leader(task);
        if tag_of(leader).is_none() {
            return;
        }
        let Some(signal) = kernel::<u64>(task as u64, off!(task_signal)) else {
            return;
        };
        if kernel::<u32>(signal, off!(signal_live)) != Some(0) {
            return;
        }
        let flags: u32 = kernel(signal, off!(signal_flags)).unwrap_or(0);
        let code: u32 = if flags & SIGNAL_GROUP_EXIT != 0 {
            kernel(signal, off!(signal_group_exit_code)).unwrap_or(0)
        } else {
            kernel(leader as u64, off!(task_exit_code)).unwrap_or(0)
        };
        let who = current(leader);
        record::<Exit>(kind::EXIT, |place| {
            (*place).task = who;
            (*place).exit_code = code;
            (*place).reserved = 0;
        });
    }
}

/// Inode and device of the program that runs (of the interpreter, for scripts).
#[inline(always)]
fn executable(file: u64) -> Option<(u64, u32)> {
    let inode: u64 = kernel(file, off!(file_inode))?;
    let sb: u64 = kernel(inode, off!(inode_sb))?;
    Some((kernel(inode, off!(inode_ino))?, kernel(sb, off!(sb_dev))?))
}

/// Copies the first arguments to `text`; their length.
#[inline(always)]
unsafe fn arguments(task: *mut task_struct, text: *mut u8) -> u64 {
    let mm: u64 = kernel(task as u64, off!(task_mm)).unwrap_or(0);
    if mm == 0 {
        return 0;
    }
    let start: u64 = kernel(mm, off!(mm_arg_start)).unwrap_or(0);
    let end: u64 = kernel(mm, off!(mm_arg_end)).unwrap_or(0);
    let mut len = end.wrapping_sub(start);
    if len > EXEC_TEXT_MAX_BYTES as u64 {
        len = EXEC_TEXT_MAX_BYTES as u64;
    }
    // SAFETY: `text` has that much room in the reservation; the helper checks the source.
    if unsafe { bpf_probe_read_user(text.cast(), len as u32, start as *const _) } != 0 {
        return 0;
    }
    len
}

/// Real uid, effective uid, real gid.
#[inline(always)]
fn ids(task: *mut task_struct) -> (u32, u32, u32) {
    let Some(cred) = kernel::<u64>(task as u64, off!(task_real_cred)) else {
        return (0, 0, 0);
    };
    (
        kernel(cred, off!(cred_uid)).unwrap_or(0),
        kernel(cred, off!(cred_euid)).unwrap_or(0),
        kernel(cred, off!(cred_gid)).unwrap_or(0),
    )
}

#[inline(always)]
fn cgroup(task: *mut task_struct) -> u64 {
    let id = || {
        let set: u64 = kernel(task as u64, off!(task_cgroups))?;
        let cgroup: u64 = kernel(set, off!(css_set_dfl_cgrp))?;
        let node: u64 = kernel(cgroup, off!(cgroup_kn))?;
        kernel(node, off!(kernfs_id))
    };
    id().unwrap_or(0)
}

/// The task's id in its own pid namespace: `pid->numbers[pid->level].nr`.
#[inline(always)]
fn ns_pid(task: *mut task_struct) -> u32 {
    /// Size of `struct upid` (`include/linux/pid.h`).
    const UPID_BYTES: u64 = 16;
    let number = || {
        let pid: u64 = kernel(task as u64, off!(task_thread_pid))?;
        let level: u32 = kernel(pid, off!(pid_level))?;
        kernel(pid, off!(pid_numbers) + u64::from(level) * UPID_BYTES)
    };
    number().unwrap_or(0)
}
