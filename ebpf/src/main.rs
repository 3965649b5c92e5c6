//! Countersign's kernel programs, tier T: BTF tracepoints (Linux >= 5.17 for `bpf_loop`).
//!
//! The programs report facts and judge nothing. Here are only the entry points: each takes a tracepoint's arguments and
//! decides who is looked at. `tp_btf` gives typed pointers, which task storage needs.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(
    missing_docs,
    reason = "the tracepoint macro makes functions that cannot carry documentation"
)]
#![expect(
    internal_features,
    reason = "atomic addition has no stable form on this target"
)]

mod arch;
mod channel;
mod credit;
mod emit;
mod log;
mod maps;
mod offsets;
mod probes;
mod queue;
mod resolve;
mod scope;

use aya_ebpf::{
    bindings::task_struct,
    helpers::{bpf_probe_read_user, generated::bpf_get_current_task_btf},
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use countersign_common::{counter, tag};
use countersign_ebpf::{
    AT_ENTER, AT_EXIT, Class, SETUP_FLAGS_OFFSET, SETUP_SQPOLL, classify, is_in, nr,
};

use crate::{
    arch::{PtRegs, TS_COMPAT, X32_BIT, syscall_args, syscall_number},
    emit::count,
    offsets::{group_leader, has_storage, off},
    probes::{balance, ends, process, splice, transfer},
    scope::tag_of,
};

/// `sys_enter(struct pt_regs *regs, long id)`, `kernel/entry/common.c`.
#[btf_tracepoint(function = "sys_enter")]
pub fn sys_enter(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments of the tracepoint, the current task and its leader; the verifier checks each use.
    unsafe {
        let regs: *const PtRegs = ctx.arg(0);
        let number: u64 = ctx.arg(1);
        let task = bpf_get_current_task_btf();
        let compat = in_compat(task, number);
        if !compat && !is_in(&AT_ENTER, number) {
            return 0;
        }
        let leader = group_leader(task);
        let Some(bits) = tag_of(leader) else { return 0 };
        if compat {
            count(counter::COMPAT_SYSCALLS, 1);
            log::compat(number);
            // It may be an `execve`, and a tag lost there is lost for good.
            process::before_exec(task, leader, bits);
            return 0;
        }
        match classify(number) {
            Class::Transfer => transfer::enter(task, bits, regs, number),
            Class::Splice => splice::enter(task, regs, number),
            Class::Exec => process::before_exec(task, leader, bits),
            Class::Close => balance::closing(task, bits, syscall_args(regs)[0]),
            Class::Unseen if number != nr::IO_URING_SETUP || polls(regs) => {
                count(counter::UNSEEN_SUBMISSIONS, 1);
                log::unseen(number);
            }
            Class::Other | Class::End | Class::OwnEnd | Class::Unseen => {}
        }
    }
    0
}

/// Whether a ring that is being set up takes submissions without system calls: then none of them can be counted, and the
/// ring itself is.
///
/// # Safety
/// `regs` are the tracepoint's.
#[inline(always)]
unsafe fn polls(regs: *const PtRegs) -> bool {
    // SAFETY: the caller's; the helper checks the address.
    let flags = unsafe {
        let place = syscall_args(regs)[1] + SETUP_FLAGS_OFFSET;
        bpf_probe_read_user(place as *const u32)
    };
    flags.is_ok_and(|flags| flags & SETUP_SQPOLL != 0)
}

/// `sys_exit(struct pt_regs *regs, long ret)`, `kernel/entry/common.c`.
#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe {
        let regs: *const PtRegs = ctx.arg(0);
        let returned: i64 = ctx.arg(1);
        let number = syscall_number(regs);
        if !is_in(&AT_EXIT, number) {
            return 0;
        }
        let task = bpf_get_current_task_btf();
        let leader = group_leader(task);
        let class = classify(number);
        if class == Class::Transfer {
            if has_storage(leader) && !in_compat(task, number) {
                transfer::exit(task, leader, regs, number, returned);
            }
            return 0;
        }
        // Not an `Option` any more: LLVM 22 spills the payload of `None`, which the verifier refuses ("R2 !read_ok").
        let bits = tag_of(leader).unwrap_or(0);
        if in_compat(task, number) {
            return 0;
        }
        match class {
            Class::Splice if bits != 0 => splice::exit(task, leader, bits, regs, number, returned),
            Class::End if bits != 0 => {
                ends::tagged_exit(task, leader, bits, regs, number, returned)
            }
            Class::OwnEnd if bits & tag::TREE != 0 => {
                ends::tagged_exit(task, leader, bits, regs, number, returned);
            }
            Class::End => ends::untagged_exit(task, leader, regs, number, returned),
            _ => {}
        }
    }
    0
}

/// `sched_process_fork(struct task_struct *parent, struct task_struct *child)`, `kernel/fork.c`.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { process::fork(ctx.arg(0), ctx.arg(1)) };
    0
}

/// `sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`, `fs/exec.c`.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { process::exec(ctx.arg(0), ctx.arg(2)) };
    0
}

/// `sched_process_exit(struct task_struct *p)`, from 6.16 on with `bool group_dead`, `kernel/exit.c`.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe {
        balance::exiting(ctx.arg(0));
        process::exit(ctx.arg(0));
    }
    0
}

/// Attached to nothing: user space runs it when it wants the balances of all channels that moved since, or with the argument 1 of each.
#[raw_tracepoint]
pub fn balances(ctx: RawTracePointContext) -> i32 {
    balance::all(ctx.arg(0))
}

/// Whether the call is of the 32-bit or the x32 ABI, whose numbers mean something else.
///
/// # Safety
/// `task` is a trusted pointer.
#[inline(always)]
unsafe fn in_compat(task: *mut task_struct, number: u64) -> bool {
    // SAFETY: a typed load inside `struct task_struct`.
    let status = unsafe {
        task.cast::<u8>()
            .add(off!(task_thread_info_status) as usize)
            .cast::<u32>()
            .read()
    };
    // A number that is not one (a tracer's -1, or a stray bit) has the x32 bit too; nothing is lost by counting it.
    status & TS_COMPAT != 0 || number & X32_BIT != 0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // A panic path that is not optimised away does not load: the verifier refuses the loop.
    loop {}
}

// `bpf_loop`, task storage and the probe-read helpers are GPL-only: without "GPL" in it the object does not load.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
