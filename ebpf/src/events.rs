//! The same programs once more, on trace events instead of BTF tracepoints: for kernels that skip the others (Linux 7.0 and later).
//!
//! From Linux 7.0 on a program on a BTF tracepoint can be preempted, and the kernel then skips it for every other task on that
//! CPU. Programs that hang on a trace event by way of perf run with preemption off, on every kernel. What they are given is the record of
//! the event: numbers and no typed pointers. So the registers come from the current task, an executed file from its memory, and of a new
//! process only the number is known: its tag waits for its first step.
//!
//! Each has the name of the other one with `e_` before it. Not here are `inet_sock_set_state` and
//! `signal_generate`: they run in interrupts too, and there a program by way of perf would be skipped whenever the interrupted task is in any of
//! ours; nor does the event of the latter say which task it is about.

use aya_ebpf::{
    EbpfContext as _,
    bindings::task_struct,
    helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    macros::tracepoint,
    programs::TracePointContext,
};

use countersign_ebpf::is_attempt;

use crate::{
    arch::{Abi, PtRegs, abi_of},
    at_attempt, at_compat_enter, at_compat_exit, at_enter, at_exit, attempted,
    maps::RING_ATTEMPTS,
    offsets::{group_leader, has_storage, kernel, off},
    probes::{balance, delivery, process, uring, uring_attempt, uring_submit},
    sent,
};

/// `fork`, `vfork`, `clone` and `clone3`, each in the 64-bit and in the 32-bit ABI.
const FORKS: [[u64; 4]; 2] = [[57, 58, 56, 435], [2, 190, 120, 435]];

/// A word of the event's record; the first is the kernel's own. Of the events for system calls they have always been number and return
/// value (or arguments).
#[inline(always)]
unsafe fn word(ctx: &TracePointContext, index: usize) -> u64 {
    // SAFETY: the verifier compares the offset with the event's size.
    unsafe { ctx.as_ptr().cast::<u64>().add(index).read() }
}

/// A member of the event's record.
#[inline(always)]
fn member<T: Default>(ctx: &TracePointContext, offset: u64) -> T {
    kernel(ctx.as_ptr() as u64, offset).unwrap_or_default()
}

#[inline(always)]
unsafe fn registers() -> *const PtRegs {
    // SAFETY: the current task's.
    unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as *const PtRegs }
}

/// `raw_syscalls:sys_enter`.
#[tracepoint]
pub fn e_sys_enter(ctx: TracePointContext) -> u32 {
    // SAFETY: the event's number, the current task's registers.
    unsafe { at_enter(&ctx, registers(), word(&ctx, 1)) };
    0
}

#[tracepoint]
pub fn e_sys_enter_compat(ctx: TracePointContext) -> u32 {
    // SAFETY: as above.
    unsafe { at_compat_enter(&ctx, registers(), word(&ctx, 1)) };
    0
}

#[tracepoint]
pub fn e_evasion_enter(ctx: TracePointContext) -> u32 {
    // SAFETY: as above.
    unsafe { at_attempt(registers(), word(&ctx, 1)) };
    0
}

/// `raw_syscalls:sys_exit`.
#[tracepoint]
pub fn e_sys_exit(ctx: TracePointContext) -> u32 {
    // SAFETY: as above.
    unsafe {
        let (number, returned) = (word(&ctx, 1), word(&ctx, 2) as i64);
        if returned == 0 && is_new(bpf_get_current_task_btf(), number) {
            // Where no function is probed, this is the first that is seen of it.
            process::first_step();
        }
        at_exit(&ctx, registers(), number, returned);
    }
    0
}

#[tracepoint]
pub fn e_sys_exit_compat(ctx: TracePointContext) -> u32 {
    // SAFETY: as above.
    unsafe { at_compat_exit(registers(), word(&ctx, 2) as i64) };
    0
}

#[tracepoint]
pub fn e_evasion_exit(ctx: TracePointContext) -> u32 {
    // SAFETY: as above.
    unsafe { attempted(registers(), word(&ctx, 2) as i64) };
    0
}

#[tracepoint]
pub fn e_sent_exit(_ctx: TracePointContext) -> u32 {
    // SAFETY: as above.
    unsafe { sent(registers()) };
    0
}

/// Whether a call that returned 0 did so in a new task.
#[inline(always)]
unsafe fn is_new(task: *mut task_struct, number: u64) -> bool {
    let [native, compat] = FORKS;
    let is_one =
        |of: [u64; 4]| number == of[0] || number == of[1] || number == of[2] || number == of[3];
    if !is_one(native) && !is_one(compat) {
        return false;
    }
    // SAFETY: the caller's.
    match unsafe { abi_of(task, number) } {
        Abi::Native => is_one(native),
        Abi::Compat => is_one(compat),
        Abi::X32 => false,
    }
}

/// `sched:sched_process_fork`.
#[tracepoint]
pub fn e_sched_process_fork(ctx: TracePointContext) -> u32 {
    // SAFETY: in the parent.
    unsafe { process::forked(member(&ctx, off!(event_fork_child))) };
    0
}

/// `sched:sched_process_exec`.
#[tracepoint]
pub fn e_sched_process_exec(ctx: TracePointContext) -> u32 {
    // Length and place of the name in one.
    let name: u32 = member(&ctx, off!(event_exec_name));
    let name = ctx.as_ptr() as u64 + u64::from(name & 0xffff);
    // SAFETY: the current task.
    unsafe {
        let task = bpf_get_current_task_btf();
        process::exec(task, process::executed_file(task), name);
    }
    0
}

/// `sched:sched_process_exit`.
#[tracepoint]
pub fn e_sched_process_exit(_ctx: TracePointContext) -> u32 {
    // SAFETY: the current task.
    unsafe {
        let task = bpf_get_current_task_btf();
        balance::exiting(task);
        process::exit(task);
    }
    0
}

/// `skb:skb_copy_datagram_iovec`.
#[tracepoint]
pub fn e_skb_copy_datagram_iovec(ctx: TracePointContext) -> u32 {
    let buffer: u64 = member(&ctx, off!(event_copy_buffer));
    let len: i32 = member(&ctx, off!(event_copy_len));
    // SAFETY: the current task.
    unsafe { delivery::delivers(bpf_get_current_task_btf(), buffer, len) };
    0
}

/// `io_uring:io_uring_submit_req`, before Linux 6.4 `io_uring_submit_sqe`.
#[tracepoint]
pub fn e_io_uring_submit(ctx: TracePointContext) -> u32 {
    let request: u64 = member(&ctx, off!(event_submit_request));
    // SAFETY: the current task.
    unsafe { uring_submit::submitted(bpf_get_current_task_btf(), request) };
    0
}

/// `io_uring:io_uring_complete`.
#[tracepoint]
pub fn e_io_uring_complete(ctx: TracePointContext) -> u32 {
    // SAFETY: the current task.
    unsafe {
        let task = bpf_get_current_task_btf();
        if !has_storage(group_leader(task)) {
            return 0;
        }
        let request: u64 = member(&ctx, off!(event_complete_request));
        if request != 0 {
            if kernel::<u8>(request, off!(kiocb_opcode)).is_some_and(is_attempt) {
                RING_ATTEMPTS.tail_call(&ctx, 0);
            }
            uring::completed(task, request);
            return 0;
        }
        let ring: u64 = member(&ctx, off!(event_complete_ring));
        let data: u64 = member(&ctx, off!(event_complete_data));
        let result: i32 = member(&ctx, off!(event_complete_result));
        uring::completed_again(task, ring, data, result);
    }
    0
}

#[tracepoint]
pub fn e_ring_attempt(ctx: TracePointContext) -> u32 {
    let request: u64 = member(&ctx, off!(event_complete_request));
    // SAFETY: the current task.
    unsafe { uring_attempt::completed(bpf_get_current_task_btf(), request) };
    0
}
