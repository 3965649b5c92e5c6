//! The 32-bit ABI: what its calls are in the numbers and arguments of the 64-bit one. A 64-bit program can make them too.

use aya_ebpf::{bindings::task_struct, helpers::generated::bpf_probe_read_user};
use countersign_ebpf::{
    COMPAT_NUMBERS, COMPAT_SOCKETCALL, NO_CALL, NUMBERS, SOCKETCALL_NUMBERS, SOCKETCALLS,
};

use crate::{
    arch::{Abi, PtRegs, syscall_args, syscall_number},
    maps::THREADS,
};

/// The 64-bit number of an i386 call.
///
/// # Safety
/// `regs` are the tracepoint's.
#[inline(always)]
pub unsafe fn translate(regs: *const PtRegs, number: u64) -> u64 {
    if number == COMPAT_SOCKETCALL {
        // SAFETY: the caller's.
        let call = unsafe { syscall_args(regs, Abi::Compat) }[0];
        if call >= SOCKETCALLS {
            return NO_CALL;
        }
        return u64::from(SOCKETCALL_NUMBERS[call as usize]);
    }
    if number >= NUMBERS {
        return NO_CALL;
    }
    u64::from(COMPAT_NUMBERS[number as usize])
}

/// [`translate`] at `sys_exit`. What a call is that was seen at `sys_enter` is known since then.
///
/// # Safety
/// `task` is the current task, `regs` are the tracepoint's.
#[inline(always)]
pub unsafe fn translate_at_exit(task: *mut task_struct, regs: *const PtRegs, number: u64) -> u64 {
    // SAFETY: storage of the current task; the caller's.
    unsafe {
        if number == COMPAT_SOCKETCALL
            && let Some(thread) = THREADS.find(task)
            && (*thread).open_call != 0
        {
            return (*thread).open_call - 1;
        }
        translate(regs, number)
    }
}

/// The arguments of a call. Those of `socketcall` are in user memory: another thread may change them between this look and the
/// kernel's own.
///
/// # Safety
/// `regs` are the tracepoint's.
#[inline(always)]
pub unsafe fn arguments<const COMPAT: bool>(regs: *const PtRegs) -> [u64; 6] {
    // SAFETY: the caller's; words on the stack; the helper checks the address.
    unsafe {
        let args = syscall_args(regs, if COMPAT { Abi::Compat } else { Abi::Native });
        if !COMPAT || syscall_number(regs) != COMPAT_SOCKETCALL {
            return args;
        }
        let mut words = [0_u32; 4];
        let place = args[1] as *const _;
        // Calls that matter have two to six arguments, and fewer than are read may stand at the end of a mapping.
        if bpf_probe_read_user((&raw mut words).cast(), 16, place) != 0
            && bpf_probe_read_user((&raw mut words).cast(), 12, place) != 0
            && bpf_probe_read_user((&raw mut words).cast(), 8, place) != 0
        {
            // No descriptor.
            return [u64::MAX, 0, 0, 0, 0, 0];
        }
        [
            u64::from(words[0]),
            u64::from(words[1]),
            u64::from(words[2]),
            u64::from(words[3]),
            0,
            0,
        ]
    }
}
