//! Calls that move bytes without a user buffer: `splice`, `tee`, `vmsplice`, `sendfile`.
//!
//! The bytes are not captured, their number is: a gap at each watched end. Bytes that are later read are captured at the
//! reader.

use aya_ebpf::{
    bindings::task_struct,
    helpers::generated::{bpf_get_current_task_btf, bpf_ktime_get_boot_ns},
};
use countersign_common::{channel_kind, counter, direction, end_how, gap, transfer_flags};
use countersign_ebpf::nr;

use super::{
    compat::arguments,
    ends,
    transfer::{self, describe, whose},
};
use crate::{
    arch::PtRegs,
    channel::{Enrolled, enrol, leave},
    emit::{count, missing},
    log,
    offsets::{current, functions_carry},
    resolve::{WHOLE, file_of, resolve},
    scope::{Held, Thread, thread},
};

/// No second descriptor.
const NONE: u64 = u64::MAX;

/// At `sys_enter` of a watched task: notes what both descriptors name now and when.
///
/// # Safety
/// The arguments are the tracepoint's.
#[inline(always)]
pub unsafe fn enter<const COMPAT: bool>(task: *mut task_struct, regs: *const PtRegs, number: u64) {
    // SAFETY: the caller's.
    unsafe {
        let Some(thread) = thread(task) else { return };
        (*thread).args = arguments::<COMPAT>(regs);
        (*thread).enter_ns = bpf_ktime_get_boot_ns();
        (*thread).open_call = number + 1;
        (*thread).carried_bytes = 0;
        let (source, sink) = descriptors(number, &(*thread).args);
        resolve(&mut (*thread).first, file_of(task, source), WHOLE);
        let file = if sink == NONE { 0 } else { file_of(task, sink) };
        resolve(&mut (*thread).second, file, WHOLE);
    }
}

/// At `sys_exit` of a watched task: a gap of the returned size at each end that is a channel.
///
/// # Safety
/// The arguments are the tracepoint's; `leader` is the task's.
#[inline(never)]
pub unsafe fn exit<const COMPAT: bool>(
    leader: *mut task_struct,
    bits: u32,
    regs: *const PtRegs,
    number: u64,
    returned: i64,
) {
    // SAFETY: the caller's.
    unsafe {
        let task = bpf_get_current_task_btf();
        let Some(thread) = thread(task) else { return };
        let entered = (*thread).open_call == number + 1;
        (*thread).open_call = 0;
        let carried = (*thread).carried_bytes;
        (*thread).carried_bytes = 0;
        if returned <= 0 {
            return;
        }
        if !entered {
            (*thread).args = arguments::<COMPAT>(regs);
            (*thread).enter_ns = bpf_ktime_get_boot_ns();
            let (source, sink) = descriptors(number, &(*thread).args);
            resolve(&mut (*thread).first, file_of(task, source), WHOLE);
            let file = if sink == NONE { 0 } else { file_of(task, sink) };
            resolve(&mut (*thread).second, file, WHOLE);
        }
        if (*thread).first.channel.kind == 0 && (*thread).second.channel.kind == 0 {
            return;
        }
        // What is no pipe is read and written through functions (sockets are sent to so from Linux 6.5 on), and was accounted for there. At
        // most one end is such: the other is a pipe or a file.
        let (mut taken, mut given) = (returned as u64, returned as u64);
        if functions_carry() {
            let left = (returned as u64).saturating_sub(carried);
            if is_own((*thread).first.channel.kind) {
                taken = left;
            } else {
                given = left;
            }
        }
        (*thread).bits = bits;
        count(counter::SPLICE_BYTES, returned as u64);
        log::spliced(number);
        let mut flags = whose(bits);
        if COMPAT {
            flags |= transfer_flags::COMPAT;
        }
        if !entered {
            flags |= transfer_flags::NO_ENTER;
            count(counter::NO_ENTER, 1);
        }
        let (source, sink) = descriptors(number, &(*thread).args);
        // `vmsplice` has one descriptor: the end of the pipe says the direction.
        let first_writes = number == nr::VMSPLICE && (*thread).first.mode & 2 != 0;
        let first_direction = if first_writes {
            direction::WRITE
        } else {
            direction::READ
        };
        // `tee` leaves the bytes where they are.
        let peek = if number == nr::TEE {
            transfer_flags::PEEK
        } else {
            0
        };
        end(
            task,
            leader,
            thread,
            bits,
            number,
            taken,
            flags | peek,
            first_direction,
            source,
        );
        // The second end takes the first one's place: what follows is written for `first`.
        copy_second(thread);
        end(
            task,
            leader,
            thread,
            bits,
            number,
            given,
            flags,
            direction::WRITE,
            sink,
        );
    }
}

#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "a body shared by two ends, inlined by the compiler"
)]
unsafe fn end(
    task: *mut task_struct,
    leader: *mut task_struct,
    thread: *mut Thread,
    bits: u32,
    number: u64,
    returned: u64,
    flags: u16,
    op_direction: u8,
    fd: u64,
) {
    // SAFETY: the caller's.
    unsafe {
        if returned == 0 || (*thread).first.channel.kind == 0 {
            return;
        }
        let mut flags = flags;
        if file_of(task, fd) != (*thread).first.file {
            flags |= transfer_flags::FD_SWAPPED;
            count(counter::FD_SWAPPED, 1);
        }
        let enrolled = enrol(&mut (*thread).first, leave(bits));
        if enrolled == Enrolled::No && (*thread).first.channel.epoch == 0 {
            if (*thread).first.channel.kind == channel_kind::TTY {
                count(counter::TERMINAL_BYTES, returned);
            }
            return;
        }
        let who = current(leader);
        if enrolled == Enrolled::New {
            ends::report(&(*thread).first, &who, end_how::USED, fd as u32);
        }
        describe(
            thread,
            &who,
            number,
            bpf_ktime_get_boot_ns(),
            flags,
            op_direction,
        );
        transfer::number(thread, returned);
        missing(thread, returned, gap::SPLICE);
    }
}

#[inline(always)]
unsafe fn copy_second(thread: *mut Thread) {
    // SAFETY: two fields of the current thread's state; plain data.
    unsafe {
        core::ptr::copy_nonoverlapping::<Held>(
            &raw const (*thread).second,
            &raw mut (*thread).first,
            1,
        );
    }
}

/// Whether an end of this kind has functions of its own even in a splice: a pipe's buffers are moved without any.
#[inline(always)]
fn is_own(kind: u8) -> bool {
    !matches!(kind, 0 | channel_kind::PIPE | channel_kind::FIFO)
}

/// Source and sink.
#[inline(always)]
fn descriptors(number: u64, args: &[u64; 6]) -> (u64, u64) {
    match number {
        nr::SPLICE => (args[0], args[2]),
        nr::SENDFILE => (args[1], args[0]),
        nr::TEE => (args[0], args[1]),
        _ => (args[0], NONE),
    }
}
