//! Reading kernel structures: offsets set at load, and the few reads built on them.
//!
//! Rust emits no CO-RE relocations, so user space reads the offsets from the running kernel's BTF and overrides
//! [`OFFSETS`]. The map is frozen before the programs are verified: every offset is a constant to the verifier.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    bindings::task_struct,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_probe_read_kernel},
};
use countersign_common::{
    Task, counter,
    load::{CARRIED_KINDS, Offsets},
};

use crate::emit::count;

/// Set at load.
#[unsafe(no_mangle)]
pub static OFFSETS: Offsets = ZERO;

/// Which load of the programs this is; copied into every record. Set at load.
#[unsafe(no_mangle)]
pub static GENERATION: u64 = 0;

/// The channel kinds (a [`kind_bit`](countersign_common::load::kind_bit) each) whose transfers programs on kernel functions capture (tiers K
/// and F); 0 in tier T. Set at load.
#[unsafe(no_mangle)]
pub static FUNCTIONS: u32 = 0;

/// Kernel address of the variable `page_offset_base`; 0 when it is not known. Set at load.
#[unsafe(no_mangle)]
pub static PAGE_OFFSET_BASE: u64 = 0;

/// Kernel address of the variable `vmemmap_base`; 0 when it is not known. Set at load.
#[unsafe(no_mangle)]
pub static VMEMMAP_BASE: u64 = 0;

/// Whether programs on kernel functions capture transfers: then those on system calls capture what was left. A constant to the
/// verifier, which removes the way that is not taken.
#[inline(always)]
pub fn functions_carry() -> bool {
    carried_kinds() != 0
}

#[inline(always)]
fn carried_kinds() -> u32 {
    // SAFETY: a static of this object, volatile because the loader sets it.
    unsafe { core::ptr::read_volatile(&raw const FUNCTIONS) }
}

/// Whether they capture those of every kind: then nothing needs to be looked up before it is known that they did not.
#[inline(always)]
pub fn functions_carry_all() -> bool {
    carried_kinds() == CARRIED_KINDS
}

/// Whether they capture those of this kind. What they do not is left to the programs on system calls.
#[inline(always)]
pub fn functions_carry_kind(kind: u8) -> bool {
    carried_kinds() >> (kind & 31) & 1 != 0
}

const ZERO: Offsets = {
    // SAFETY: `Offsets` is `FromBytes`: all zeroes is a value of it.
    unsafe { core::mem::zeroed() }
};

/// An offset, as a constant of the frozen map: `off!(task_files)`.
macro_rules! off {
    ($member:ident) => {
        $crate::offsets::constant(&raw const $crate::offsets::OFFSETS.$member)
    };
}
pub(crate) use off;

/// Reads a member of [`OFFSETS`]; use [`off!`].
#[inline(always)]
pub fn constant(member: *const u32) -> u64 {
    // SAFETY: a static of this object; volatile, or the compiler would take the zero of the source for the value.
    u64::from(unsafe { core::ptr::read_volatile(member) })
}

/// Reads `T` at `base + offset` in kernel memory. `None`, counted, if it is not there.
///
/// The value is loaded before it is known to be one (a helper that fails leaves zeroes): the way of `None` has it in its register as well. LLVM
/// joins the two ways after the counting and asks once more which it was; verifiers before Linux 6.8 do not know that the answer is
/// the same, and refuse the register that only one of them has written ("R1 !read_ok").
#[inline(always)]
pub fn kernel<T>(base: u64, offset: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the address itself, fails instead of faulting, and writes all bytes either way; `T` is plain data everywhere. Volatile,
    // or the compiler would load after it has looked at the result.
    let (failed, value) = unsafe {
        let failed = bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            (base + offset) as *const c_void,
        );
        (failed, value.as_ptr().read_volatile())
    };
    if failed == 0 {
        return Some(value);
    }
    count(counter::KERNEL_READ_FAILED, 1);
    None
}

/// The leader of the task's thread group, as a pointer that the verifier accepts for task storage.
///
/// # Safety
/// `task` is a trusted pointer: `bpf_get_current_task_btf` or a tracepoint's argument.
#[inline(always)]
pub unsafe fn group_leader(task: *mut task_struct) -> *mut task_struct {
    // SAFETY: a typed load. The verifier calls the result `rcu_ptr_task_struct` (`BTF_TYPE_SAFE_RCU(struct task_struct)`
    // names the member, Linux >= 6.2), which task storage accepts.
    unsafe { *(task.cast::<u8>().add(off!(task_group_leader) as usize)).cast::<*mut task_struct>() }
}

/// Whether the task has any storage at all, of whomever: what an unwatched task pays instead of a look-up.
///
/// # Safety
/// As [`group_leader`], or its result.
#[inline(always)]
pub unsafe fn has_storage(task: *mut task_struct) -> bool {
    // SAFETY: a typed load inside `struct task_struct`.
    unsafe { *(task.cast::<u8>().add(off!(task_bpf_storage) as usize)).cast::<u64>() != 0 }
}

/// Who runs now. `leader` is the leader of the task's thread group, as a typed pointer.
#[inline(always)]
pub fn current(leader: *mut task_struct) -> Task {
    let pid_tgid = bpf_get_current_pid_tgid();
    Task {
        tgid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        // SAFETY: a typed load inside `struct task_struct`.
        start_boot_ns: unsafe {
            leader
                .cast::<u8>()
                .add(off!(task_start_boottime) as usize)
                .cast::<u64>()
                .read()
        },
    }
}
