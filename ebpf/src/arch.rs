//! The x86-64 side of the capture: registers at a system call and the marks of the 32-bit ABI.
//!
//! Owns the layout of `struct pt_regs` (`arch/x86/include/asm/ptrace.h`, unchanged since 2.6). Another architecture is
//! another version of this file; nothing else here knows registers.

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
pub const TS_COMPAT: u32 = 0x0002;

/// `__X32_SYSCALL_BIT` (`arch/x86/include/uapi/asm/unistd.h`).
pub const X32_BIT: u64 = 0x4000_0000;

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
