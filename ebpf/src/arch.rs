//! The x86-64 side of the capture: registers at a system call and the marks of the 32-bit ABI.
//!
//! Owns the layout of `struct pt_regs` (`arch/x86/include/asm/ptrace.h`, unchanged since 2.6). Another architecture is
//! another version of this file; nothing else here knows registers.

use aya_ebpf::bindings::task_struct;

use crate::offsets::off;

/// `struct pt_regs`: what the kernel saved at entry. At `sys_exit` the argument registers still hold what they held then.
#[repr(C)]
pub struct PtRegs {
    _r15_to_bx: [u64; 6],
    _r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    _ax: u64,
    _cx: u64,
    dx: u64,
    si: u64,
    di: u64,
    orig_ax: u64,
}

/// `TS_COMPAT` of `thread_info.status`: the task is in a system call of the 32-bit ABI (`arch/x86/include/asm/thread_info.h`).
const TS_COMPAT: u32 = 0x0002;

/// `__X32_SYSCALL_BIT` (`arch/x86/include/uapi/asm/unistd.h`).
const X32_BIT: u64 = 0x4000_0000;

/// The system call's number.
///
/// # Safety
/// `regs` is the tracepoint's own argument.
#[inline(always)]
pub unsafe fn syscall_number(regs: *const PtRegs) -> u64 {
    // SAFETY: a typed pointer from the tracepoint; the verifier checks the load.
    unsafe { (*regs).orig_ax }
}

/// The system call's six arguments.
///
/// # Safety
/// `regs` is the tracepoint's own argument.
#[inline(always)]
pub unsafe fn syscall_args(regs: *const PtRegs) -> [u64; 6] {
    // SAFETY: as above.
    unsafe {
        [
            (*regs).di,
            (*regs).si,
            (*regs).dx,
            (*regs).r10,
            (*regs).r8,
            (*regs).r9,
        ]
    }
}

/// Whether the call is of the 32-bit or the x32 ABI, whose numbers mean something else.
///
/// # Safety
/// `task` is a trusted pointer.
#[inline(always)]
pub unsafe fn in_compat(task: *mut task_struct, number: u64) -> bool {
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
