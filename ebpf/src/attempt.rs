//! An attempt to get round the witness on its way into a record: what is known of it so far, and how often it was made before.
//!
//! Attempts that are alike (same process, kind, target and number) are counted and reported seldom; any that differs in one of
//! these is reported. So repeating one costs little room in the ring, and hides no other.

use aya_ebpf::{bindings::task_struct, helpers::generated::bpf_get_current_task_btf};
use countersign_common::{
    Task, counter,
    evasion::{Evasion, flags},
    kind,
    load::AttemptKey,
};

use crate::{
    emit::{count, fetch_add, record},
    maps::{ATTEMPT_COUNTS, ATTEMPTS},
    offsets::{current, group_leader, kernel, off},
};

/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;
/// Attempts that are alike and are all reported; of later ones each whose number is a power of two.
const REPORTED_ALL: u64 = 4;

/// The attempt that a thread is at. It lies in task storage: what is on the stack is shared by all frames.
#[repr(C)]
pub struct Attempt {
    /// Number of the system call whose `sys_enter` was seen, plus one; 0 when none is open.
    pub open_call: u64,
    /// Whom it is done to.
    pub target: Task,
    /// The effective capabilities before the call.
    pub capabilities: u64,
    /// As in [`Evasion::inode`].
    pub inode: u64,
    /// As in [`Evasion::number`].
    pub number: u64,
    /// As in [`Evasion::argument`].
    pub argument: u64,
    /// As in [`Evasion::returned`].
    pub returned: i64,
    /// As in [`Evasion::dev`].
    pub dev: u32,
    /// As in [`Evasion::flags`].
    pub flags: u32,
    /// The effective uid before the call.
    pub euid: u32,
    /// As in [`Evasion::what`].
    pub what: u32,
    /// The system call.
    pub syscall: u64,
    /// Where the look through a message's control data stands, and the bytes left from there.
    pub control: u64,
    pub control_left: u64,
    /// Bytes of descriptors left under the present header of it.
    pub descriptors_left: u64,
}

/// The state of the current thread, empty. `None`, counted, if there is no memory for it.
///
/// # Safety
/// `task` is the current task.
#[inline(always)]
pub unsafe fn begin(task: *mut task_struct, syscall: u64) -> Option<*mut Attempt> {
    // SAFETY: storage of the current task; aligned words of the value.
    unsafe {
        let Some(attempt) = ATTEMPTS.find_or_create(task) else {
            count(counter::PENDING_FAILED, 1);
            return None;
        };
        reset(attempt, syscall);
        Some(attempt)
    }
}

/// Empties a state, for a call.
///
/// # Safety
/// `attempt` is the current thread's.
#[inline(always)]
pub unsafe fn reset(attempt: *mut Attempt, syscall: u64) {
    // SAFETY: aligned words of the value.
    unsafe {
        (*attempt).open_call = 0;
        (*attempt).capabilities = 0;
        (*attempt).euid = 0;
        (*attempt).target.tgid = 0;
        (*attempt).target.tid = 0;
        (*attempt).target.start_boot_ns = 0;
        (*attempt).syscall = syscall;
        clear(attempt);
    }
}

/// Takes out what a record said, so that the next can be made; the target and what was before the call stay.
///
/// # Safety
/// `attempt` is the current thread's.
#[inline(always)]
pub unsafe fn clear(attempt: *mut Attempt) {
    // SAFETY: aligned words of the value.
    unsafe {
        (*attempt).inode = 0;
        (*attempt).number = 0;
        (*attempt).argument = 0;
        (*attempt).returned = 0;
        (*attempt).dev = 0;
        (*attempt).flags = 0;
        (*attempt).what = 0;
    }
}

/// The state that `sys_enter` of this call left.
///
/// # Safety
/// `task` is the current task.
#[inline(always)]
pub unsafe fn noted(task: *mut task_struct, number: u64) -> Option<*mut Attempt> {
    // SAFETY: storage of the current task.
    unsafe {
        ATTEMPTS
            .find(task)
            .filter(|attempt| (**attempt).open_call == number + 1)
    }
}

/// Counts the attempt of the current thread and reports it unless enough like it were.
///
/// # Safety
/// `attempt` is the current thread's.
#[inline(never)]
pub unsafe fn report(attempt: *mut Attempt) -> i64 {
    // SAFETY: the caller's; a value of the map that is only changed atomically.
    unsafe {
        let task = bpf_get_current_task_btf();
        let mut actor = current(group_leader(task));
        // Loaded before it is known which of the two counts: of one load for both the verifier says "same insn cannot be used with
        // different pointers".
        actor.start_boot_ns = core::hint::black_box(actor.start_boot_ns);
        if (*attempt).flags & flags::BY_KERNEL != 0 {
            actor.tgid = (*attempt).target.tgid;
            actor.tid = (*attempt).target.tid;
            actor.start_boot_ns = (*attempt).target.start_boot_ns;
        }
        let mut subject = (*attempt).inode;
        let mut subject_part = (*attempt).dev;
        if (*attempt).target.tgid != 0 {
            // The start alone: with an inode besides, both count.
            subject ^= (*attempt).target.start_boot_ns;
            subject_part ^= (*attempt).target.tgid;
        }
        let key = AttemptKey {
            actor_start: actor.start_boot_ns,
            subject,
            actor_tgid: actor.tgid,
            subject_part,
            what: (*attempt).what,
            number: (*attempt).number as u32,
        };
        count(counter::EVASIONS, 1);
        let mut nth = 1;
        let mut known = ATTEMPT_COUNTS.get_ptr_mut(&key);
        // On the stack and not a constant, which would lie in a section of its own.
        let first = core::ptr::read_volatile(&raw const nth);
        if known.is_none() && ATTEMPT_COUNTS.insert(&key, &first, NO_EXIST).is_err() {
            // Another thread of it was faster.
            known = ATTEMPT_COUNTS.get_ptr_mut(&key);
        }
        if let Some(value) = known {
            nth = fetch_add(value, 1) + 1;
        }
        if nth > REPORTED_ALL && nth & (nth - 1) != 0 {
            count(counter::EVASIONS_FOLDED, 1);
            return 0;
        }
        let euid = euid_of(task);
        record::<Evasion>(kind::EVASION, |place| {
            (*place).task = actor;
            (*place).target.tgid = (*attempt).target.tgid;
            (*place).target.tid = (*attempt).target.tid;
            (*place).target.start_boot_ns = (*attempt).target.start_boot_ns;
            (*place).inode = (*attempt).inode;
            (*place).number = (*attempt).number;
            (*place).argument = (*attempt).argument;
            (*place).returned = (*attempt).returned;
            (*place).nth = nth;
            (*place).dev = (*attempt).dev;
            (*place).what = (*attempt).what as u16;
            (*place).syscall = (*attempt).syscall as u16;
            (*place).euid = euid;
            (*place).flags = (*attempt).flags;
        });
    }
    0
}

/// [`report`] for a call that has not returned.
///
/// # Safety
/// As there.
#[inline(always)]
pub unsafe fn report_begun(attempt: *mut Attempt) {
    // SAFETY: the caller's.
    unsafe {
        (*attempt).flags |= flags::NO_RESULT;
        report(attempt);
    }
}

/// Effective uid, initial user namespace.
#[inline(always)]
pub fn euid_of(task: *mut task_struct) -> u32 {
    let Some(cred) = kernel::<u64>(task as u64, off!(task_real_cred)) else {
        return u32::MAX;
    };
    kernel(cred, off!(cred_euid)).unwrap_or(u32::MAX)
}

/// Effective capabilities towards the whole machine: none for who lives in a user namespace of its own.
#[inline(always)]
pub fn capabilities_of(task: *mut task_struct) -> u64 {
    let of = || {
        let cred: u64 = kernel(task as u64, off!(task_real_cred))?;
        let namespace: u64 = kernel(cred, off!(cred_user_ns))?;
        if kernel::<u32>(namespace, off!(user_namespace_level))? != 0 {
            return Some(0);
        }
        kernel(cred, off!(cred_cap_effective))
    };
    of().unwrap_or(0)
}
