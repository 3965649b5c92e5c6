//! Signals as they arrive: at a proxy from wherever, and at processes outside of the tree from within.
//!
//! `signal_generate` fires for each process that a signal is for, in the context of whoever sends it: a group has a record for each
//! member that matters, and what a terminal, a file or a timer sends is seen too. A signal that was sent to the process itself by
//! number is reported by the program for system calls, with what it returned, and not here.

use aya_ebpf::{bindings::task_struct, helpers::bpf_get_current_pid_tgid};
use countersign_common::{
    evasion::{flags, what},
    tag,
};

use crate::{
    attempt::{Attempt, report, reset},
    emit::count,
    maps::{ATTEMPTS, SIGNALS},
    offsets::{group_leader, has_storage, kernel, off},
    scope::bits_of,
};

/// `SI_USER`, `SI_TKILL`, `SI_QUEUE` (`include/uapi/asm-generic/siginfo.h`): sent by a process, the current one.
const BY_PROCESS: [i32; 3] = [0, -6, -1];
/// `SI_KERNEL`.
const SI_KERNEL: i32 = 0x80;
/// `SEND_SIG_NOINFO`, `SEND_SIG_PRIV` (`include/linux/sched/signal.h`) in place of an address.
const NO_INFO: u64 = 0;
const PRIVILEGED: u64 = 1;
/// Offset of `si_code` in `struct kernel_siginfo` (`include/uapi/asm-generic/siginfo.h`).
const CODE: u64 = 8;
/// Sent whenever a child ends or stops.
const SIGCHLD: i32 = 17;

/// At `signal_generate`.
///
/// # Safety
/// `task` is the current task, `target` the tracepoint's argument.
#[inline(always)]
pub unsafe fn generated(
    task: *mut task_struct,
    target: *mut task_struct,
    signal: i32,
    info: u64,
    result: i32,
) {
    // SAFETY: the caller's.
    unsafe {
        if signal == SIGCHLD {
            return;
        }
        let leader = group_leader(target);
        let own = group_leader(task);
        if !has_storage(leader) && !has_storage(own) {
            return;
        }
        let (of_target, of_own) = (bits_of(leader), bits_of(own));
        let code = match info {
            NO_INFO => 0,
            PRIVILEGED => SI_KERNEL,
            _ => kernel::<i32>(info, CODE).unwrap_or(SI_KERNEL),
        };
        let by_process = code == BY_PROCESS[0] || code == BY_PROCESS[1] || code == BY_PROCESS[2];
        let at_proxy = of_target & tag::PROXY != 0;
        let leaves = of_target == 0 && of_own & tag::TREE != 0 && by_process;
        if !at_proxy && !leaves {
            return;
        }
        let tgid: u32 = kernel(target as u64, off!(task_tgid)).unwrap_or(0);
        if tgid == (bpf_get_current_pid_tgid() >> 32) as u32 {
            return;
        }
        if by_process
            && let Some(noted) = ATTEMPTS.find(task)
            && (*noted).open_call != 0
            && (*noted).target.tgid == tgid
        {
            return;
        }
        let Some(attempt) = SIGNALS.find_or_create(task) else {
            count(countersign_common::counter::PENDING_FAILED, 1);
            return;
        };
        reset(attempt, 0);
        (*attempt).target.tgid = tgid;
        (*attempt).target.tid = kernel(target as u64, off!(task_pid)).unwrap_or(0);
        (*attempt).target.start_boot_ns =
            kernel(leader as u64, off!(task_start_boottime)).unwrap_or(0);
        if !by_process {
            (*attempt).flags = flags::BY_KERNEL;
        }
        (*attempt).argument = code as i64 as u64;
        // `TRACE_SIGNAL_IGNORED` is 1; a signal that was pending already is none the less there.
        (*attempt).returned = if result == 1 { -1 } else { 0 };
        (*attempt).number = signal as u64;
        (*attempt).what = u32::from(what::SIGNAL_ARRIVED);
        report(attempt);
    }
}

const _: () = assert!(size_of::<Attempt>() % 8 == 0);
