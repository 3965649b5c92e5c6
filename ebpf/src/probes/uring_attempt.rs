//! Requests of `io_uring` that do what system calls do which are looked at: opening, connecting, removing and the like.
//!
//! Looked at when they complete, in the ring's own thread group, whose descriptors the worker threads share. A request for a
//! place in the ring's own table of files, and those of kinds that are not followed, are told by their opcode.

use aya_ebpf::bindings::task_struct;
use countersign_common::{
    end_how,
    evasion::{flags, foreign, what},
    load::Offsets,
};
use countersign_ebpf::{nr, op};

use super::{ends, evasion, foreign as channels, watched};
use crate::{
    attempt::{begin, report},
    offsets::{group_leader, kernel, off},
    scope::bits_of,
};

const EINPROGRESS: i32 = -115;

/// At `io_uring_complete` of a request that [`is_attempt`](countersign_ebpf::is_attempt).
///
/// # Safety
/// `task` is the current task.
#[inline(always)]
pub unsafe fn completed(task: *mut task_struct, request: u64) {
    // SAFETY: the caller's.
    unsafe {
        let bits = bits_of(group_leader(task));
        if bits == 0 {
            return;
        }
        let opcode = kernel::<u8>(request, off!(kiocb_opcode)).unwrap_or(0);
        let result: i32 = kernel(request, off!(kiocb_cqe) + 8).unwrap_or(0);
        let fd = result as u32 as u64;
        let number = nr::IO_URING_ENTER;
        match opcode {
            op::OPENAT | op::OPENAT2 if result >= 0 => {
                if has_slot(request, off!(io_open_slot)) {
                    tell(task, opcode, result);
                } else {
                    ends::hold_end(u64::from(bits), end_how::OPENED, fd);
                    watched::opened(task, bits, fd, number);
                }
            }
            op::ACCEPT if result >= 0 => {
                if has_slot(request, off!(io_accept_slot)) {
                    tell(task, opcode, result);
                } else {
                    ends::hold_end(u64::from(bits), end_how::ACCEPTED, fd);
                }
            }
            op::SOCKET if result >= 0 => {
                if has_slot(request, off!(io_socket_slot)) {
                    tell(task, opcode, result);
                } else {
                    channels::socket(task, fd, foreign::MADE, 0, number);
                }
            }
            op::CONNECT if result >= 0 || result == EINPROGRESS => {
                let file: u64 = kernel(request, 0).unwrap_or(0);
                ends::hold_file(u64::from(bits), end_how::CONNECTED, file);
                evasion::connected(task, file, number);
            }
            op::BIND if result >= 0 => {
                let file: u64 = kernel(request, 0).unwrap_or(0);
                channels::socket_file(task, file, foreign::BOUND, 0, number);
            }
            op::UNLINKAT | op::RENAMEAT | op::FTRUNCATE if result >= 0 => {
                if let Some(attempt) = begin(task, number) {
                    watched::compare(attempt);
                }
            }
            op::LISTEN | op::MSG_RING | op::URING_CMD | op::FIXED_FD_INSTALL => {
                tell(task, opcode, result);
            }
            op::PIPE.. => tell(task, opcode, result),
            _ => {}
        }
    }
}

/// Whether the result goes to a place in the ring's own table of files.
#[inline(always)]
fn has_slot(request: u64, member: u64) -> bool {
    member != u64::from(Offsets::UNKNOWN) && kernel::<u32>(request, member).unwrap_or(0) != 0
}

/// A request that is not looked into.
#[inline(always)]
unsafe fn tell(task: *mut task_struct, opcode: u8, result: i32) {
    // SAFETY: the current task.
    unsafe {
        let Some(attempt) = begin(task, nr::IO_URING_ENTER) else {
            return;
        };
        (*attempt).flags = flags::BY_RING;
        (*attempt).returned = i64::from(result);
        (*attempt).number = u64::from(opcode);
        (*attempt).what = u32::from(what::RING_REQUEST);
        report(attempt);
    }
}
