//! Legacy AIO: on pipes and sockets `io_submit` does all the work before it returns, and leaves the results in the context's
//! completion ring.
//!
//! The control blocks and the ring are memory of the program, which another thread of it can change meanwhile; what a block says is
//! the program's word for where its bytes are, as its buffer is for what they are. An operation whose result is not in the ring is counted as
//! unseen: its size is not known.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::task_struct,
    helpers::{
        bpf_probe_read_user,
        generated::{bpf_get_current_task_btf, bpf_ktime_get_boot_ns, bpf_loop},
    },
};
use countersign_common::{channel_kind, counter, direction, end_how, tag, transfer_flags};
use countersign_ebpf::{AIO_BLOCKS_MAX, AIO_EVENTS_BACK_MAX, nr, op_limit};

use super::{
    ends,
    transfer::{begin, describe, from_vectors, whose},
};
use crate::{
    arch::{Abi, PtRegs, syscall_args},
    channel::{Enrolled, enrol_operation, leave},
    emit::{capture_buffer, count},
    log,
    offsets::{current, group_leader},
    resolve::{FILES, file_of, resolve},
    scope::{Thread, thread},
};

/// Opcodes of control blocks (`include/uapi/linux/aio_abi.h`).
const PREAD: u64 = 0;
const PWRITE: u64 = 1;
const PREADV: u64 = 7;
const PWRITEV: u64 = 8;
/// Size of the ring's header (`struct aio_ring`), and of an entry (`struct io_event`).
const RING_ENTRY_BYTES: u64 = 32;

/// At `sys_enter` of a watched task.
///
/// # Safety
/// The arguments are the tracepoint's.
#[inline(always)]
pub unsafe fn enter(task: *mut task_struct, bits: u32, regs: *const PtRegs) {
    // SAFETY: the caller's.
    unsafe {
        let Some(thread) = thread(task) else { return };
        (*thread).args = syscall_args(regs, Abi::Native);
        (*thread).enter_ns = bpf_ktime_get_boot_ns();
        (*thread).open_call = nr::IO_SUBMIT + 1;
        (*thread).compat = 0;
        (*thread).bits = bits;
    }
}

/// At `sys_exit` of a watched task: each control block that was submitted is an operation of its own.
///
/// # Safety
/// `task` is the current task.
#[inline(never)]
pub unsafe fn exit(task: *mut task_struct, returned: i64) -> i64 {
    // SAFETY: the caller's; the callback gets the address of `context`, which lives until the helper returns.
    unsafe {
        let Some(thread) = thread(task) else { return 0 };
        let open = (*thread).open_call;
        (*thread).open_call = 0;
        if returned <= 0 {
            return 0;
        }
        if open != nr::IO_SUBMIT + 1 {
            count(counter::UNSEEN_SUBMISSIONS, 1);
            return 0;
        }
        (*thread).messages = (*thread).args[2];
        (*thread).missed = 0;
        let blocks = if returned > i64::from(AIO_BLOCKS_MAX) {
            count(counter::UNSEEN_SUBMISSIONS, 1);
            AIO_BLOCKS_MAX
        } else {
            returned as u32
        };
        let mut context = thread;
        bpf_loop(
            blocks,
            block_step as *const () as *mut c_void,
            (&raw mut context).cast(),
            0,
        );
    }
    0
}

/// One control block; 1 ends the loop.
unsafe extern "C" fn block_step(_index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `exit` passes the address of its pointer.
    unsafe {
        let thread = *context.cast::<*mut Thread>();
        let place = (*thread).messages;
        (*thread).messages = place + 8;
        let address = bpf_probe_read_user(place as *const u64).unwrap_or(0);
        // `struct iocb`: opcode and descriptor in the third word, address and length in the fourth and fifth.
        let Ok(words) = bpf_probe_read_user((address + 16) as *const [u64; 3]) else {
            count(counter::UNSEEN_SUBMISSIONS, 1);
            return 0;
        };
        let opcode = words[0] & 0xffff;
        let op_direction = match opcode {
            PREAD | PREADV => direction::READ,
            PWRITE | PWRITEV => direction::WRITE,
            _ => return 0,
        };
        let bits = (*thread).bits;
        let how = if bits & tag::PROXY != 0 && op_direction == direction::WRITE {
            FILES
        } else {
            0
        };
        let task = bpf_get_current_task_btf();
        let file = file_of(task, words[0] >> 32);
        resolve(&mut (*thread).first, file, how);
        if (*thread).first.channel.kind == 0 {
            return 0;
        }
        let returned = result_of(thread, address);
        if returned == UNKNOWN {
            count(counter::UNSEEN_SUBMISSIONS, 1);
            log::unseen(nr::IO_SUBMIT);
            return 0;
        }
        if returned as i64 <= 0 {
            return 0;
        }
        let enrolled = enrol_operation(
            &mut (*thread).first,
            leave(bits),
            u64::from(op_direction),
            returned,
            &raw mut (*thread).transfer,
        );
        if enrolled == Enrolled::No && (*thread).first.channel.epoch == 0 {
            if (*thread).first.channel.kind == channel_kind::TTY {
                count(counter::TERMINAL_BYTES, returned);
            }
            return 0;
        }
        let who = current(group_leader(task));
        if enrolled == Enrolled::New {
            ends::report(
                &(*thread).first,
                &who,
                end_how::USED,
                (words[0] >> 32) as u32,
            );
        }
        describe(
            thread,
            &who,
            nr::IO_SUBMIT,
            bpf_ktime_get_boot_ns(),
            transfer_flags::AIO | whose(bits),
            op_direction,
        );
        (*thread).limit_left = op_limit(bits, op_direction);
        begin(thread, returned);
        if opcode == PREAD || opcode == PWRITE {
            capture_buffer(thread, words[1], returned);
        } else {
            from_vectors(thread, words[1], words[2]);
        }
    }
    0
}

/// No result was found.
const UNKNOWN: u64 = u64::MAX;

/// The result of a control block: the latest one in the ring, which others may have put theirs into meanwhile.
#[inline(always)]
unsafe fn result_of(thread: *mut Thread, address: u64) -> u64 {
    // SAFETY: the current thread's state; the callback gets the address of `context`, which lives until the helper returns.
    unsafe {
        let Ok([_, size, _, tail]) = bpf_probe_read_user((*thread).args[0] as *const [u32; 4])
        else {
            return UNKNOWN;
        };
        (*thread).segment = address;
        (*thread).segment_left = u64::from(tail);
        (*thread).vectors_left = u64::from(size);
        (*thread).op_left = UNKNOWN;
        let mut context = thread;
        bpf_loop(
            AIO_EVENTS_BACK_MAX,
            event_step as *const () as *mut c_void,
            (&raw mut context).cast(),
            0,
        );
        (*thread).op_left
    }
}

/// One step back in the ring; 1 ends the loop.
unsafe extern "C" fn event_step(_index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `result_of` passes the address of its pointer; the helper checks addresses.
    unsafe {
        let thread = *context.cast::<*mut Thread>();
        let mut at = (*thread).segment_left;
        if at == 0 {
            at = (*thread).vectors_left;
        }
        if at == 0 {
            return 1;
        }
        (*thread).segment_left = at - 1;
        let entry = (*thread).args[0] + RING_ENTRY_BYTES * at;
        // Data, control block, result. The header has the size of an entry: entry number `at - 1` is at `at`.
        let Ok([_, block, result]) = bpf_probe_read_user(entry as *const [u64; 3]) else {
            return 1;
        };
        if block == (*thread).segment {
            (*thread).op_left = result;
            return 1;
        }
    }
    0
}
