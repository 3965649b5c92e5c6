//! Requests of `io_uring` when they are submitted: what has to be known of them at their completion and cannot be found then.

use aya_ebpf::{
    bindings::task_struct,
    helpers::generated::{bpf_ktime_get_boot_ns, bpf_probe_read_user},
};
use countersign_common::counter;
use countersign_ebpf::{Form, changes_files, form_of, is_attempt, op};

use super::uring::{AMBIGUOUS, BUNDLE, RECV_MULTISHOT, VECTORIZED, key_of, socket_flags};
use super::watched;
use crate::{
    emit::count,
    log,
    maps::{MULTISHOTS, REQUESTS},
    offsets::{group_leader, kernel, off},
    scope::{KEPT_MAX, bits_of, thread},
};

/// `REQ_F_CQE_SKIP`, the request's own `IOSQE_CQE_SKIP_SUCCESS`.
const CQE_SKIP: u32 = 1 << 6;

/// Offsets in `struct user_msghdr`.
const MESSAGE_VECTORS: u64 = 16;

/// At `io_uring_submit_req` (before Linux 6.4 `io_uring_submit_sqe`): the request is prepared and has not begun.
///
/// # Safety
/// `task` is the current task.
#[inline(always)]
pub unsafe fn submitted(task: *mut task_struct, request: u64) {
    // SAFETY: the caller's.
    unsafe {
        let leader = group_leader(task);
        if bits_of(leader) == 0 {
            return;
        }
        let Some(opcode) = kernel::<u8>(request, off!(kiocb_opcode)) else {
            return;
        };
        let form = form_of(opcode);
        if form == Form::None && !is_attempt(opcode) {
            return;
        }
        let flags: u32 = kernel(request, off!(kiocb_flags)).unwrap_or(0);
        if flags & CQE_SKIP != 0 {
            count(counter::UNSEEN_SUBMISSIONS, 1);
            log::unseen(u64::from(opcode));
        }
        if form == Form::None {
            if changes_files(opcode) {
                watched::note();
            }
            return;
        }
        let Some(thread) = thread(task) else { return };
        (*thread).request.address = request;
        (*thread).request.submitted_ns = bpf_ktime_get_boot_ns();
        (*thread).request.vectors = 0;
        let sr_flags = if matches!(form, Form::Socket | Form::Message | Form::Elsewhere) {
            socket_flags(request)
        } else {
            0
        };
        let place = place_of(request, form, sr_flags);
        if place.1 != 0 && place.1 != u64::MAX {
            (*thread).request.vectors = place.1;
            let few = if place.1 > KEPT_MAX as u64 {
                KEPT_MAX as u64
            } else {
                place.1
            };
            if bpf_probe_read_user(
                (&raw mut (*thread).request.kept).cast(),
                few as u32 * 16,
                place.0 as *const _,
            ) != 0
            {
                (*thread).request.vectors = u64::MAX;
            }
        }
        let _ = REQUESTS.insert(&request, &(*thread).request, 0);
        let again = opcode == op::READ_MULTISHOT
            || opcode == op::RECV_ZC
            || (matches!(form, Form::Socket | Form::Message)
                && sr_flags & (RECV_MULTISHOT | BUNDLE) != 0);
        if again {
            let key = key_of(request);
            let mut value = request;
            if let Some(known) = MULTISHOTS.get(&key)
                && *known != request
            {
                value = AMBIGUOUS;
            }
            let _ = MULTISHOTS.insert(&key, &value, 0);
        }
    }
}

/// Where the request's vectors are and how many, in the form of 64-bit programs; without any, `(0, 0)`.
#[inline(always)]
fn place_of(request: u64, form: Form, sr_flags: u16) -> (u64, u64) {
    match form {
        Form::Vectors => (
            kernel(request, off!(rw_addr)).unwrap_or(0),
            u64::from(kernel::<u32>(request, off!(rw_len)).unwrap_or(0)),
        ),
        Form::Socket if sr_flags & VECTORIZED != 0 => (
            kernel(request, off!(sr_buf)).unwrap_or(0),
            u64::from(kernel::<u32>(request, off!(sr_len)).unwrap_or(0)),
        ),
        Form::Message => {
            let message: u64 = kernel(request, off!(sr_buf)).unwrap_or(0);
            let mut place = [0_u64; 2];
            // SAFETY: two words on the stack; the helper checks the address.
            let read = unsafe {
                bpf_probe_read_user(
                    (&raw mut place).cast(),
                    16,
                    (message + MESSAGE_VECTORS) as *const _,
                )
            };
            if read == 0 {
                (place[0], place[1])
            } else {
                (0, u64::MAX)
            }
        }
        _ => (0, 0),
    }
}
