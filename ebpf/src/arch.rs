//! The x86-64 side of the capture: registers at a system call and the marks of the 32-bit ABI.
//!
//! Owns the layout of `struct pt_regs` (`arch/x86/include/asm/ptrace.h`, unchanged since 2.6). Another architecture is
//! another version of this file; nothing else here knows registers.

use aya_ebpf::bindings::task_struct;

use crate::offsets::off;

/// `struct pt_regs`: what the kernel saved at entry. At `sys_exit` the argument registers still hold what they held then.
#[repr(C)]
pub struct PtRegs {
    _r15_to_r12: [u64; 4],
    bp: u64,
    bx: u64,
    _r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    _ax: u64,
    cx: u64,
    dx: u64,
    si: u64,
    di: u64,
    orig_ax: u64,
}

/// `TS_COMPAT` of `thread_info.status`: the task is in a system call of the 32-bit ABI (`arch/x86/include/asm/thread_info.h`).
const TS_COMPAT: u32 = 0x0002;

/// `__X32_SYSCALL_BIT` (`arch/x86/include/uapi/asm/unistd.h`).
const X32_BIT: u64 = 0x4000_0000;

/// Which table a system call's number is of.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Abi {
    /// The 64-bit one.
    Native,
    /// i386, by `int 0x80` or from a 32-bit program.
    Compat,
    /// x32, which few kernels have: not decoded. A number that is not one (a tracer's -1, or a stray bit) looks like it.
    X32,
}

/// The system call's number.
///
/// # Safety
/// `regs` is the tracepoint's own argument.
#[inline(always)]
pub unsafe fn syscall_number(regs: *const PtRegs) -> u64 {
    // SAFETY: a typed pointer from the tracepoint; the verifier checks the load.
    unsafe { (*regs).orig_ax }
}

/// The system call's six arguments; those of the 32-bit ABI are in other registers, of which the lower halves count.
///
/// # Safety
/// `regs` is the tracepoint's own argument.
#[inline(always)]
pub unsafe fn syscall_args(regs: *const PtRegs, abi: Abi) -> [u64; 6] {
    /// What the kernel takes of a register.
    const HALF: u64 = 0xffff_ffff;
    // SAFETY: as above.
    unsafe {
        if abi == Abi::Compat {
            return [
                (*regs).bx & HALF,
                (*regs).cx & HALF,
                (*regs).dx & HALF,
                (*regs).si & HALF,
                (*regs).di & HALF,
                (*regs).bp & HALF,
            ];
        }
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
    // SAFETY: the caller's.
    unsafe { abi_of(task, number) != Abi::Native }
}

/// Which table the call's number is of.
///
/// # Safety
/// `task` is a trusted pointer.
#[inline(always)]
pub unsafe fn abi_of(task: *mut task_struct, number: u64) -> Abi {
    // SAFETY: a typed load inside `struct task_struct`.
    let status = unsafe {
        task.cast::<u8>()
            .add(off!(task_thread_info_status) as usize)
            .cast::<u32>()
            .read()
    };
    if status & TS_COMPAT != 0 {
        Abi::Compat
    } else if number & X32_BIT != 0 {
        Abi::X32
    } else {
        Abi::Native
    }
}
