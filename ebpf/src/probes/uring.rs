//! Transfers by `io_uring`: noted when they are submitted, captured when they complete.
//!
//! The worker threads and the polling thread of a ring belong to the thread group that made it, so its tag is theirs, and they see its
//! memory. A completion without room for a message, that is without a queue entry (`IOSQE_CQE_SKIP_SUCCESS`), passes no tracepoint:
//! such requests are counted as unseen when they are submitted.

use aya_ebpf::{
    bindings::task_struct,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_ktime_get_boot_ns},
};
use countersign_common::{
    channel_kind, counter, direction, end_how, gap, load::Offsets, tag, transfer_flags,
};
use countersign_ebpf::{Form, direction_of_request, form_of, op, op_limit};

use super::{
    ends,
    transfer::{begin, describe, discards, message_flags, tell_missed, whose},
    uring_message::{is_compat, payload_of, room_of, truncated_request},
};
use crate::{
    channel::{Enrolled, enrol_operation, leave},
    emit::{capture_buffer, count, missing, walk},
    iterator::vectors_in,
    log,
    maps::{MULTISHOTS, REQUESTS},
    offsets::{current, functions_carry_kind, group_leader, kernel, off},
    resolve::{FILES, file_of, resolve},
    scope::{KEPT_MAX, Request, Thread, bits_of, thread},
};

/// In the table of requests that complete more than once: two with the same user data are under way.
pub const AMBIGUOUS: u64 = 1;

/// `REQ_F_BUFFER_SELECT`, the request's own `IOSQE_BUFFER_SELECT`.
const BUFFER_SELECT: u32 = 1 << 5;
/// `IORING_RECV_MULTISHOT`.
pub const RECV_MULTISHOT: u16 = 1 << 1;
/// `IORING_RECVSEND_BUNDLE`.
pub const BUNDLE: u16 = 1 << 4;
/// `IORING_SEND_VECTORIZED`.
pub const VECTORIZED: u16 = 1 << 5;
/// `SPLICE_F_FD_IN_FIXED`: the source is in the ring's own table.
const FD_IN_FIXED: u32 = 1 << 31;
/// No descriptor.
const NO_FD: u32 = u32::MAX;

/// Ring and user data.
#[inline(always)]
pub fn key_of(request: u64) -> [u64; 2] {
    [
        kernel(request, off!(kiocb_ctx)).unwrap_or(0),
        kernel(request, off!(kiocb_cqe)).unwrap_or(0),
    ]
}

#[inline(always)]
pub fn socket_flags(request: u64) -> u16 {
    if off!(sr_flags) == u64::from(Offsets::UNKNOWN) {
        return 0;
    }
    kernel(request, off!(sr_flags)).unwrap_or(0)
}

/// At `io_uring_complete` with a request, before the completion can be seen by the program.
///
/// # Safety
/// `task` is the current task.
#[inline(always)]
pub unsafe fn completed(task: *mut task_struct, request: u64) {
    // SAFETY: the caller's.
    unsafe {
        let leader = group_leader(task);
        let bits = bits_of(leader);
        if bits == 0 {
            return;
        }
        let Some(opcode) = kernel::<u8>(request, off!(kiocb_opcode)) else {
            return;
        };
        if form_of(opcode) == Form::None {
            return;
        }
        let key = key_of(request);
        let result: i32 = kernel(request, off!(kiocb_cqe) + 8).unwrap_or(0);
        if result > 0 {
            let message = moved(task, leader, request, result as u64, what(bits, opcode));
            // Not in there, where the stack is short.
            if message != 0
                && let Some(thread) = thread(task)
            {
                ends::received(thread, message);
            }
        }
        let _ = REQUESTS.remove(&request);
        if let Some(known) = MULTISHOTS.get(&key)
            && *known == request
        {
            let _ = MULTISHOTS.remove(&key);
        }
    }
}

/// At `io_uring_complete` without a request: one of several completions of one, or a message from another ring.
///
/// # Safety
/// As [`completed`].
#[inline(always)]
pub unsafe fn completed_again(task: *mut task_struct, ring: u64, user_data: u64, result: i32) {
    // SAFETY: the caller's.
    unsafe {
        let leader = group_leader(task);
        let bits = bits_of(leader);
        if bits == 0 || result <= 0 {
            return;
        }
        let Some(request) = MULTISHOTS.get(&[ring, user_data]) else {
            return;
        };
        let request = *request;
        if request == AMBIGUOUS {
            count(counter::UNSEEN_SUBMISSIONS, 1);
            log::unseen(0);
            return;
        }
        let Some(opcode) = kernel::<u8>(request, off!(kiocb_opcode)) else {
            return;
        };
        if form_of(opcode) == Form::None {
            return;
        }
        moved(
            task,
            leader,
            request,
            result as u64,
            what(bits, opcode) | AGAIN,
        );
    }
}

/// [`what`]: more completions follow.
const AGAIN: u64 = 1 << 8;

/// Tag and opcode in one: a function of the kernel's programs takes five arguments.
#[inline(always)]
fn what(bits: u32, opcode: u8) -> u64 {
    u64::from(bits) << 32 | u64::from(opcode)
}

/// One completion of `returned` bytes. Of a message that was received and captured, its address; else 0.
#[inline(never)]
unsafe fn moved(
    task: *mut task_struct,
    leader: *mut task_struct,
    request: u64,
    returned: u64,
    what: u64,
) -> u64 {
    let mut message = 0;
    // SAFETY: the caller's.
    unsafe {
        let (bits, opcode, again) = ((what >> 32) as u32, what as u8, what & AGAIN != 0);
        let form = form_of(opcode);
        let Some(thread) = thread(task) else { return 0 };
        // A completion can come in the middle of another system call of this thread, whose notes are overwritten here.
        (*thread).open_call = 0;
        (*thread).compat = 0;
        (*thread).bits = bits;
        (*thread).request.address = request;
        (*thread).request.vectors = u64::MAX;
        let mut flags = transfer_flags::IO_URING | whose(bits);
        let now = bpf_ktime_get_boot_ns();
        (*thread).enter_ns = now;
        if !recall(thread, request) {
            flags |= transfer_flags::NO_ENTER;
            count(counter::NO_ENTER, 1);
        }
        let op_direction = direction_of_request(opcode);
        let file: u64 = kernel(request, 0).unwrap_or(0);
        let how = if bits & tag::PROXY != 0 && op_direction == direction::WRITE {
            FILES
        } else {
            0
        };
        resolve(&mut (*thread).first, file, how);
        if form == Form::Splice {
            spliced(task, leader, thread, bits, request, opcode, returned, flags);
            return 0;
        }
        if (*thread).first.channel.kind == 0 || functions_carry_kind((*thread).first.channel.kind) {
            return 0;
        }
        count(counter::URING_OPS, 1);
        let mut sr_flags = 0;
        let mut returned = returned;
        if matches!(form, Form::Socket | Form::Message) {
            sr_flags = socket_flags(request);
            if form == Form::Message && sr_flags & RECV_MULTISHOT != 0 {
                returned = payload_of(request, returned);
                if returned == 0 {
                    return 0;
                }
            }
            let given: u32 = kernel(request, off!(sr_msg_flags)).unwrap_or(0);
            let said = message_flags(u64::from(given));
            if op_direction == direction::READ {
                let what = u64::from((*thread).first.channel.kind) << 32 | u64::from(given);
                flags |= said | truncated_request(request, what, form as u64, returned) as u16;
            } else {
                flags |= said & !transfer_flags::PEEK;
            }
        }
        if !open_operation(
            thread,
            leader,
            bits,
            opcode,
            op_direction,
            flags,
            returned,
            now,
        ) {
            return 0;
        }
        let reason = if again
            || form == Form::Elsewhere
            || opcode == op::READ_MULTISHOT
            || sr_flags & (RECV_MULTISHOT | BUNDLE) != 0
            // Only a plain read leaves the address of the buffer that was chosen in the request.
            || (form != Form::Buffer
                && kernel::<u32>(request, off!(kiocb_flags)).unwrap_or(u32::MAX) & BUFFER_SELECT
                    != 0)
        {
            count(counter::MULTISHOT_BYTES, returned);
            gap::MULTISHOT
        } else if !is_own(request) {
            count(counter::FAULT_BYTES, returned);
            gap::FAULT
        } else if form != Form::Buffer && is_compat(request) {
            gap::COMPAT
        } else {
            gap::NONE
        };
        if reason != gap::NONE {
            missing(thread, returned, reason);
            return 0;
        }
        let whole = match form {
            Form::Buffer => {
                let address: u64 = kernel(request, off!(rw_addr)).unwrap_or(0);
                capture_buffer(thread, address, returned)
            }
            Form::Socket if sr_flags & VECTORIZED == 0 => {
                let address: u64 = kernel(request, off!(sr_buf)).unwrap_or(0);
                let done: u32 = kernel(request, off!(sr_done)).unwrap_or(0);
                let mut room = returned;
                if (*thread).transfer.flags & transfer_flags::MESSAGE_TRUNCATED != 0 {
                    room = if discards(thread) {
                        0
                    } else {
                        room_of(request)
                    };
                }
                capture_buffer(thread, address.wrapping_sub(u64::from(done)), room)
            }
            _ => {
                capture_vectors(thread, returned);
                if form == Form::Message && op_direction == direction::READ {
                    message = kernel(request, off!(sr_buf)).unwrap_or(0);
                }
                (*thread).missed == 0
            }
        };
        if !whole {
            tell_missed((*thread).missed, returned);
        }
    }
    message
}

/// Takes what the table knows of the request to the thread's state.
#[inline(always)]
unsafe fn recall(thread: *mut Thread, request: u64) -> bool {
    let Some(known) = REQUESTS.get_ptr(&request) else {
        return false;
    };
    // SAFETY: a value of the map and the current thread's state: plain data of the same layout.
    unsafe {
        core::ptr::copy_nonoverlapping::<Request>(known, &raw mut (*thread).request, 1);
        if core::ptr::read_volatile(&raw const (*known).address) != request
            || (*thread).request.address != request
        {
            (*thread).request.vectors = u64::MAX;
            return false;
        }
        (*thread).enter_ns = (*thread).request.submitted_ns;
    }
    true
}

/// Numbers the operation on `first` and describes it.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "a body shared by two ends, inlined by the compiler"
)]
unsafe fn open_operation(
    thread: *mut Thread,
    leader: *mut task_struct,
    bits: u32,
    opcode: u8,
    op_direction: u8,
    flags: u16,
    returned: u64,
    now: u64,
) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let bytes = if flags & transfer_flags::PEEK != 0 {
            0
        } else {
            returned
        };
        let enrolled = enrol_operation(
            &mut (*thread).first,
            leave(bits),
            u64::from(op_direction),
            bytes,
            &raw mut (*thread).transfer,
        );
        if enrolled == Enrolled::No && (*thread).first.channel.epoch == 0 {
            if (*thread).first.channel.kind == channel_kind::TTY {
                count(counter::TERMINAL_BYTES, returned);
            }
            return false;
        }
        let who = current(leader);
        if enrolled == Enrolled::New {
            ends::report(&(*thread).first, &who, end_how::USED, NO_FD);
        }
        describe(thread, &who, u64::from(opcode), now, flags, op_direction);
        (*thread).limit_left = op_limit(bits, op_direction);
        (*thread).missed = 0;
        begin(thread, returned);
    }
    true
}

/// From the vectors that were kept, if all were.
#[inline(always)]
unsafe fn capture_vectors(thread: *mut Thread, returned: u64) {
    // SAFETY: the current thread's state.
    unsafe {
        let mut given = (*thread).request.vectors;
        if discards(thread) {
            given = 0;
        }
        if given > KEPT_MAX as u64 {
            count(counter::FAULT_BYTES, returned);
            missing(thread, returned, gap::VECTORS);
            return;
        }
        (*thread).vectors_in = vectors_in::KEPT;
        (*thread).vector = 0;
        (*thread).vectors_left = given;
        (*thread).segment_left = 0;
        walk(thread);
    }
}

/// `splice` and `tee` through a ring: a gap at each end that is a channel. `first` is the sink.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a part of its only caller")]
unsafe fn spliced(
    task: *mut task_struct,
    leader: *mut task_struct,
    thread: *mut Thread,
    bits: u32,
    request: u64,
    opcode: u8,
    returned: u64,
    flags: u16,
) -> i64 {
    // SAFETY: the caller's.
    unsafe {
        let now = bpf_ktime_get_boot_ns();
        count(counter::SPLICE_BYTES, returned);
        count(counter::URING_OPS, 1);
        log::spliced(u64::from(opcode));
        if is_unseen((*thread).first.channel.kind, direction::WRITE)
            && open_operation(
                thread,
                leader,
                bits,
                opcode,
                direction::WRITE,
                flags,
                returned,
                now,
            )
        {
            missing(thread, returned, gap::SPLICE);
        }
        let how: u32 = kernel(request, off!(uring_splice_flags)).unwrap_or(0);
        if how & FD_IN_FIXED != 0 {
            // A place in the ring's own table, which may have been let go by now.
            count(counter::UNSEEN_SUBMISSIONS, 1);
            return 0;
        }
        let source: u32 = kernel(request, off!(uring_splice_fd_in)).unwrap_or(NO_FD);
        resolve(&mut (*thread).first, file_of(task, u64::from(source)), 0);
        let peek = if opcode == op::TEE {
            transfer_flags::PEEK
        } else {
            0
        };
        if is_unseen((*thread).first.channel.kind, direction::READ)
            && open_operation(
                thread,
                leader,
                bits,
                opcode,
                direction::READ,
                flags | peek,
                returned,
                now,
            )
        {
            missing(thread, returned, gap::SPLICE);
        }
    }
    0
}

/// Whether no program on functions has seen what a splice moved at an end of this kind. What is no pipe is read and written like any other
/// file in a splice, but for streams: those hand over their buffers, and before Linux 6.5 are given pages.
#[inline(always)]
fn is_unseen(kind: u8, op_direction: u8) -> bool {
    let is_seen = match kind {
        channel_kind::UNIX_DGRAM | channel_kind::UNIX_SEQPACKET | channel_kind::TTY => true,
        channel_kind::UNIX_STREAM | channel_kind::TCP => {
            op_direction == direction::WRITE
                && off!(proto_ops_sendpage) == u64::from(Offsets::UNKNOWN)
        }
        _ => false,
    };
    kind != 0 && !(is_seen && functions_carry_kind(kind))
}

/// Whether the request is of the process that runs: only then its memory is at hand.
#[inline(always)]
fn is_own(request: u64) -> bool {
    let owner: u64 = if off!(kiocb_tctx) != u64::from(Offsets::UNKNOWN) {
        let context: u64 = kernel(request, off!(kiocb_tctx)).unwrap_or(0);
        kernel(context, off!(tctx_task)).unwrap_or(0)
    } else {
        kernel(request, off!(kiocb_task)).unwrap_or(0)
    };
    let tgid: u32 = kernel(owner, off!(task_tgid)).unwrap_or(0);
    tgid == (bpf_get_current_pid_tgid() >> 32) as u32
}
