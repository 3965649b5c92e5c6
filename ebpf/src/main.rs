//! Countersign's kernel programs (Linux >= 5.17 for `bpf_loop`): tier T, BTF tracepoints, here; tiers K and F, kernel functions, in
//! [`functions`].
//!
//! The programs report facts and judge nothing. Here are only the entry points: each takes a tracepoint's arguments and
//! decides who is looked at. `tp_btf` gives typed pointers, which task storage needs.
//!
//! Two limits of verifiers shape what is below. A function that keeps its symbol (`extern "C"`, "verified once") is global
//! to the verifier, which looks at it once for all arguments and not once for each way that leads there: without that, Linux 6.1
//! gives up after a million instructions. Its arguments are plain numbers and pointers to sized structures that it compares
//! with null. And up to Linux 6.12 all frames of a chain of calls, each rounded up to 32 bytes, share 512: what is large in one
//! branch is a function of its own (`inline(never)`), so that the other branches do not pay for it.
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
mod attempt;
mod channel;
mod credit;
mod emit;
mod events;
mod functions;
mod inet;
mod iterator;
mod kernel_chunk;
mod log;
mod maps;
mod offsets;
mod probes;
mod queue;
mod resolve;
mod scope;
mod target;

use aya_ebpf::{
    EbpfContext,
    bindings::task_struct,
    helpers::{bpf_probe_read_user, generated::bpf_get_current_task_btf},
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use countersign_common::{counter, tag};
use countersign_ebpf::{
    AT_ENTER, AT_EXIT, AT_EXIT_COMPAT, COMPAT_SOCKETCALL, Class, SETUP_FLAGS_OFFSET, SETUP_SQPOLL,
    classify, is_attempt, is_in, nr,
};

use crate::{
    arch::{Abi, PtRegs, abi_of, syscall_args, syscall_number},
    emit::count,
    maps::{
        COMPAT_ENTER, COMPAT_EXIT, EVASION_AT_ENTER, EVASION_AT_EXIT, RING_ATTEMPTS, SENT_AT_EXIT,
    },
    offsets::{functions_carry, functions_carry_all, group_leader, has_storage, kernel, off},
    probes::{
        aio, balance,
        compat::{self, arguments},
        delivery, ends, evasion, foreign, inet as sockets, process, signal, splice, transfer,
        uring, uring_attempt, uring_submit,
    },
    scope::{bits_of, tag_of},
};

/// `sys_enter(struct pt_regs *regs, long id)`, `kernel/entry/common.c`.
#[btf_tracepoint(function = "sys_enter")]
pub fn sys_enter(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments of the tracepoint.
    unsafe { at_enter(&ctx, ctx.arg(0), ctx.arg(1)) };
    0
}

/// At the entry of a system call.
///
/// # Safety
/// In a program whose `ctx` it is, with the registers of the call.
#[inline(always)]
unsafe fn at_enter<C: EbpfContext>(ctx: &C, regs: *const PtRegs, number: u64) {
    // SAFETY: the caller's; the current task and its leader; the verifier checks each use.
    unsafe {
        let task = bpf_get_current_task_btf();
        let abi = abi_of(task, number);
        if abi == Abi::Native && !is_in(&AT_ENTER, number) {
            return;
        }
        let leader = group_leader(task);
        let Some(bits) = tag_of(leader) else { return };
        if abi == Abi::Native {
            if entered::<false>(task, leader, bits, regs, number) {
                EVASION_AT_ENTER.tail_call(ctx, 0);
            }
            return;
        }
        // It may be an `execve`, and a tag lost there is lost for good.
        process::before_exec(task, leader, bits);
        if abi == Abi::Compat {
            // A program of its own: with both in one the verifier would give up.
            COMPAT_ENTER.tail_call(ctx, 0);
        }
        count(counter::COMPAT_SYSCALLS, 1);
        log::compat(number);
        EVASION_AT_ENTER.tail_call(ctx, 0);
    }
}

/// The rest of [`sys_enter`] for a watched task in the 32-bit ABI.
#[btf_tracepoint(function = "sys_enter")]
pub fn sys_enter_compat(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { at_compat_enter(&ctx, ctx.arg(0), ctx.arg(1)) };
    0
}

/// At the entry of a system call of the 32-bit ABI by a watched task.
///
/// # Safety
/// As [`at_enter`].
#[inline(always)]
unsafe fn at_compat_enter<C: EbpfContext>(ctx: &C, regs: *const PtRegs, number: u64) {
    // SAFETY: as there.
    unsafe {
        let task = bpf_get_current_task_btf();
        let leader = group_leader(task);
        let Some(bits) = tag_of(leader) else { return };
        let number = compat::translate(regs, number);
        entered::<true>(task, leader, bits, regs, number);
        EVASION_AT_ENTER.tail_call(ctx, 0);
    }
}

/// At `sys_enter` of a watched task; whether it may be an attempt to get round the witness.
///
/// # Safety
/// `task` is the current task, `leader` its leader.
#[inline(always)]
unsafe fn entered<const COMPAT: bool>(
    task: *mut task_struct,
    leader: *mut task_struct,
    bits: u32,
    regs: *const PtRegs,
    number: u64,
) -> bool {
    // SAFETY: the caller's.
    unsafe {
        match classify(number) {
            Class::Transfer => transfer::enter::<COMPAT>(task, bits, regs, number),
            Class::Splice => splice::enter::<COMPAT>(task, regs, number),
            Class::Exec => {
                process::before_exec(task, leader, bits);
                return true;
            }
            Class::Aio if !COMPAT && !functions_carry() => aio::enter(task, bits, regs),
            Class::Aio if functions_carry_all() && bits & tag::PROXY == 0 => {
                // As below.
            }
            Class::Aio => {
                count(counter::UNSEEN_SUBMISSIONS, 1);
                log::unseen(number);
            }
            Class::Attempt => return true,
            Class::Close => balance::closing(task, bits, close_fd::<COMPAT>(regs)),
            Class::Unseen => {
                // Where functions carry transfers they see what moves; not so what a proxy writes to files.
                let seen = functions_carry_all() && bits & tag::PROXY == 0;
                if !seen && unseen::<COMPAT>(number, regs) {
                    count(counter::UNSEEN_SUBMISSIONS, 1);
                    log::unseen(number);
                }
                return true;
            }
            Class::Other | Class::End | Class::OwnEnd => {}
        }
    }
    false
}

/// The descriptor that `close` is called with.
///
/// # Safety
/// `regs` are the tracepoint's.
#[inline(always)]
unsafe fn close_fd<const COMPAT: bool>(regs: *const PtRegs) -> u64 {
    let abi = if COMPAT { Abi::Compat } else { Abi::Native };
    // SAFETY: the caller's.
    unsafe { syscall_args(regs, abi)[0] & 0xffff_ffff }
}

/// Whether a call submits work that no program here sees. Where the kernel tells of requests, those of rings are; else each call
/// counts, and so does a ring that is being set up to take submissions without calls.
///
/// # Safety
/// As [`polls`].
#[inline(always)]
unsafe fn unseen<const COMPAT: bool>(number: u64, regs: *const PtRegs) -> bool {
    match number {
        _ if off!(uring_complete_args) != 0 => false,
        // SAFETY: the caller's.
        nr::IO_URING_SETUP => unsafe { polls::<COMPAT>(regs) },
        _ => true,
    }
}

/// Whether a ring that is being set up takes submissions without system calls: then none of them can be counted, and the
/// ring itself is.
///
/// # Safety
/// `regs` are the tracepoint's.
#[inline(always)]
unsafe fn polls<const COMPAT: bool>(regs: *const PtRegs) -> bool {
    // SAFETY: the caller's; the helper checks the address.
    let flags = unsafe {
        let place = arguments::<COMPAT>(regs)[1] + SETUP_FLAGS_OFFSET;
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
        at_exit(&ctx, regs, syscall_number(regs), ctx.arg(1));
    }
    0
}

/// At the return of a system call.
///
/// # Safety
/// As [`at_enter`].
#[inline(always)]
unsafe fn at_exit<C: EbpfContext>(ctx: &C, regs: *const PtRegs, number: u64, returned: i64) {
    // SAFETY: as there.
    unsafe {
        if !is_in(&AT_EXIT, number) && !is_in(&AT_EXIT_COMPAT, number) {
            return;
        }
        let task = bpf_get_current_task_btf();
        let abi = abi_of(task, number);
        if abi == Abi::Compat {
            if is_in(&AT_EXIT_COMPAT, number) {
                // Without it there is nothing to go by: its `sys_enter` was counted.
                COMPAT_EXIT.tail_call(ctx, 0);
            }
            return;
        }
        if abi == Abi::X32 || !is_in(&AT_EXIT, number) {
            return;
        }
        let goes_on = exited::<false>(task, group_leader(task), regs, number, returned);
        if goes_on && classify(number) == Class::Transfer {
            SENT_AT_EXIT.tail_call(ctx, 0);
        } else if goes_on {
            EVASION_AT_EXIT.tail_call(ctx, 0);
        }
    }
}

/// The rest of [`sys_exit`] for a task in the 32-bit ABI.
#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit_compat(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { at_compat_exit(ctx.arg(0), ctx.arg(1)) };
    0
}

/// At the return of a system call of the 32-bit ABI.
///
/// # Safety
/// As [`at_enter`].
#[inline(always)]
unsafe fn at_compat_exit(regs: *const PtRegs, returned: i64) {
    // SAFETY: as there.
    unsafe {
        let number = syscall_number(regs);
        let task = bpf_get_current_task_btf();
        let leader = group_leader(task);
        if number == COMPAT_SOCKETCALL && !has_storage(leader) {
            // Whether it yields an end of a watched channel is in its memory: read for the watched only. What it moves through such an
            // end is missing at the other one.
            return;
        }
        let number = compat::translate_at_exit(task, regs, number);
        exited::<true>(task, leader, regs, number, returned);
    }
}

/// At `sys_exit` of a call that may matter; whether it may have been an attempt to get round the witness.
///
/// # Safety
/// `task` is the current task, `leader` its leader.
#[inline(always)]
unsafe fn exited<const COMPAT: bool>(
    task: *mut task_struct,
    leader: *mut task_struct,
    regs: *const PtRegs,
    number: u64,
    returned: i64,
) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let class = classify(number);
        if class == Class::Transfer {
            if has_storage(leader) {
                transfer::exit::<COMPAT>(task, leader, regs, number, returned);
                return !COMPAT && returned >= 0 && sends(number, regs) && bits_of(leader) != 0;
            }
            return false;
        }
        exited_otherwise::<COMPAT>(task, leader, regs, number, returned) != 0
    }
}

/// Whether a call can send messages somewhere, or descriptors with them.
///
/// # Safety
/// `regs` are the tracepoint's.
#[inline(always)]
unsafe fn sends(number: u64, regs: *const PtRegs) -> bool {
    match number {
        nr::SENDMSG | nr::SENDMMSG => true,
        // SAFETY: the caller's.
        nr::SENDTO => unsafe { syscall_args(regs, Abi::Native)[4] != 0 },
        _ => false,
    }
}

/// [`exited`] for what is no transfer: a function of its own, so that transfers, whose chain of calls is the longest, do not pay for
/// what it keeps on the stack.
///
/// # Safety
/// As there.
#[inline(never)]
unsafe fn exited_otherwise<const COMPAT: bool>(
    task: *mut task_struct,
    leader: *mut task_struct,
    regs: *const PtRegs,
    number: u64,
    returned: i64,
) -> i64 {
    // SAFETY: the caller's.
    unsafe {
        let class = classify(number);
        let bits = bits_of(leader);
        match class {
            Class::Aio if bits != 0 && !COMPAT && !functions_carry() => {
                aio::exit(task, returned);
            }
            Class::Splice if bits != 0 => {
                splice::exit::<COMPAT>(leader, bits, regs, number, returned);
            }
            Class::End if bits != 0 => {
                ends::tagged_exit::<COMPAT>(bits, regs, number, returned);
                return 1;
            }
            Class::Attempt if bits != 0 => return 1,
            Class::OwnEnd if bits & tag::TREE != 0 => {
                ends::tagged_exit::<COMPAT>(bits, regs, number, returned);
            }
            Class::End => ends::untagged_exit::<COMPAT>(regs, number, returned),
            _ => {}
        }
    }
    0
}

/// `skb_copy_datagram_iovec(const struct sk_buff *skb, int len)`, `net/core/datagram.c`: in the reader's context, before the copy.
#[btf_tracepoint(function = "skb_copy_datagram_iovec")]
pub fn skb_copy_datagram_iovec(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { delivery::delivers(bpf_get_current_task_btf(), ctx.arg(0), ctx.arg(1)) };
    0
}

/// `io_uring_submit_req(struct io_kiocb *req)`; before Linux 6.4 `io_uring_submit_sqe` with one more, `io_uring/io_uring.c`.
#[btf_tracepoint(function = "io_uring_submit_req")]
pub fn io_uring_submit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { uring_submit::submitted(bpf_get_current_task_btf(), ctx.arg(0)) };
    0
}

/// `io_uring_complete(struct io_ring_ctx *ctx, void *req, struct io_uring_cqe *cqe)`; before Linux 6.11 the entry's members one by one,
/// `io_uring/io_uring.h`.
#[btf_tracepoint(function = "io_uring_complete")]
pub fn io_uring_complete(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe {
        let task = bpf_get_current_task_btf();
        if !has_storage(group_leader(task)) {
            return 0;
        }
        let request: u64 = ctx.arg(1);
        if request != 0 {
            if kernel::<u8>(request, off!(kiocb_opcode)).is_some_and(is_attempt) {
                RING_ATTEMPTS.tail_call(&ctx, 0);
            }
            uring::completed(task, request);
            return 0;
        }
        let ring: u64 = ctx.arg(0);
        let (user_data, result) = if off!(uring_complete_args) > 3 {
            let (user_data, result): (u64, u64) = (ctx.arg(2), ctx.arg(3));
            (user_data, result as i32)
        } else {
            // The entry lies in memory that the program can write to. The kernel has just written it, and has not published it yet.
            let entry: u64 = ctx.arg(2);
            (
                kernel(entry, 0).unwrap_or(0),
                kernel::<i32>(entry, 8).unwrap_or(0),
            )
        };
        uring::completed_again(task, ring, user_data, result);
    }
    0
}

/// Where `sys_enter` goes on for calls that can get round the witness: a program of its own, for the verifier's limits.
#[btf_tracepoint(function = "sys_enter")]
pub fn evasion_enter(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { at_attempt(ctx.arg(0), ctx.arg(1)) };
    0
}

/// At the entry of a call that can get round the witness.
///
/// # Safety
/// As [`at_enter`].
#[inline(always)]
unsafe fn at_attempt(regs: *const PtRegs, number: u64) {
    // SAFETY: as there.
    unsafe {
        let task = bpf_get_current_task_btf();
        if abi_of(task, number) != Abi::Native {
            evasion::other_abi(task, number);
        } else if number == nr::IO_URING_SETUP {
            evasion::ring(task, regs);
        } else {
            evasion::note(task, regs, number);
        }
    }
}

/// The same for `sys_exit`.
#[btf_tracepoint(function = "sys_exit")]
pub fn evasion_exit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { attempted(ctx.arg(0), ctx.arg(1)) };
    0
}

/// At the return of a call that can get round the witness.
///
/// # Safety
/// As [`at_enter`].
#[inline(always)]
unsafe fn attempted(regs: *const PtRegs, returned: i64) {
    // SAFETY: as there.
    unsafe {
        let number = syscall_number(regs);
        let task = bpf_get_current_task_btf();
        if classify(number) == Class::Attempt {
            evasion::exit(task, regs, number, returned);
        } else {
            let bits = bits_of(group_leader(task));
            evasion::yielded(task, bits, regs, number, returned);
        }
    }
}

/// Where `sys_exit` goes on for calls that sent messages.
#[btf_tracepoint(function = "sys_exit")]
pub fn sent_exit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { sent(ctx.arg(0)) };
    0
}

/// After a call that sent messages.
///
/// # Safety
/// `regs` are the current task's.
#[inline(always)]
unsafe fn sent(regs: *const PtRegs) {
    // SAFETY: the caller's.
    unsafe {
        let args = syscall_args(regs, Abi::Native);
        foreign::sent(bpf_get_current_task_btf(), &args, syscall_number(regs));
    }
}

/// Where `io_uring_complete` goes on for requests that can get round the witness.
#[btf_tracepoint(function = "io_uring_complete")]
pub fn ring_attempt(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe { uring_attempt::completed(bpf_get_current_task_btf(), ctx.arg(1)) };
    0
}

/// `signal_generate(int sig, struct kernel_siginfo *info, struct task_struct *task, int group, int result)`, `kernel/signal.c`.
#[btf_tracepoint(function = "signal_generate")]
pub fn signal_generate(ctx: BtfTracePointContext) -> i32 {
    // The second argument is an address or a small number: as a typed pointer it would be none that can be compared.
    let info = kernel::<u64>(ctx.as_ptr() as u64, 8).unwrap_or(0);
    // SAFETY: as above.
    unsafe {
        let task = bpf_get_current_task_btf();
        signal::generated(task, ctx.arg(2), ctx.arg(0), info, ctx.arg(4));
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
    unsafe { process::exec_of(ctx.arg(0), ctx.arg(2)) };
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

/// `inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`, `net/ipv4/af_inet.c`.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    // The socket is read as a number: a typed pointer is none that a global function takes.
    let sock = kernel::<u64>(ctx.as_ptr() as u64, 0).unwrap_or(0);
    // SAFETY: as above.
    unsafe { sockets::state_changed(sock, ctx.arg(1), ctx.arg(2)) };
    0
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
