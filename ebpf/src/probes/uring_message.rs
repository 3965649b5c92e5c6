//! What the result of a request that receives says: how much of it is message, and whether there was more.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use countersign_common::{channel_kind, counter, load::Offsets, transfer_flags};
use countersign_ebpf::Form;

use super::transfer::{MSG_TRUNC, says_truncated};
use crate::{
    emit::count,
    offsets::{kernel, off},
};

/// [`transfer_flags::MESSAGE_TRUNCATED`] or nothing: whether a request received less than came. `what` is the kind of the channel and the
/// flags given. As with system calls, a message that was cut without a word (`IORING_OP_RECV` without `MSG_TRUNC`) is not known to be.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn truncated_request(request: u64, what: u64, form: u64, returned: u64) -> u64 {
    let truncated = match (what >> 32) as u8 {
        channel_kind::TCP => what & MSG_TRUNC != 0,
        channel_kind::UNIX_DGRAM | channel_kind::UNIX_SEQPACKET => {
            if form == Form::Message as u64 {
                let message: u64 = kernel(request, off!(sr_buf)).unwrap_or(0);
                // SAFETY: in a program.
                unsafe { says_truncated(message, u64::from(is_compat(request))) }
            } else {
                what & MSG_TRUNC != 0 && returned > room_of(request)
            }
        }
        _ => false,
    };
    if !truncated {
        return 0;
    }
    count(counter::MESSAGES_TRUNCATED, 1);
    u64::from(transfer_flags::MESSAGE_TRUNCATED)
}

/// Bytes of the message in the result of a multishot receive: a `struct io_uring_recvmsg_out`, the room for a name and that for control
/// data come before it. The kernel's own note of these lengths counts; without it (before Linux 6.10 it lies on the stack where the message
/// was there already) both count as message, which says too much rather than too little.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn payload_of(request: u64, returned: u64) -> u64 {
    const OUT_BYTES: u64 = 16;
    let unknown = u64::from(Offsets::UNKNOWN);
    if off!(kiocb_async_data) == unknown
        || off!(async_msg_namelen) == unknown
        || off!(async_msg_controllen) == unknown
    {
        return less(returned, OUT_BYTES);
    }
    let note: u64 = kernel(request, off!(kiocb_async_data)).unwrap_or(0);
    if note == 0 {
        return less(returned, OUT_BYTES);
    }
    let name: u32 = kernel(note, off!(async_msg_namelen)).unwrap_or(0);
    let control: u64 = kernel(note, off!(async_msg_controllen)).unwrap_or(0);
    less(
        returned,
        OUT_BYTES + u64::from(name) + (control & 0xffff_ffff),
    )
}

/// `returned` without what comes before the message, if it can be.
#[inline(always)]
fn less(returned: u64, before: u64) -> u64 {
    if before <= returned {
        returned - before
    } else {
        returned
    }
}

/// Bytes that a request with one buffer had room for.
#[inline(always)]
pub fn room_of(request: u64) -> u64 {
    let left: u32 = kernel(request, off!(sr_len)).unwrap_or(0);
    let done: u32 = kernel(request, off!(sr_done)).unwrap_or(0);
    u64::from(left) + u64::from(done)
}

/// Whether the ring was made by a 32-bit call: then vectors are of another layout.
#[inline(always)]
pub fn is_compat(request: u64) -> bool {
    let bit = off!(ring_compat_bit);
    if bit == u64::from(Offsets::UNKNOWN) {
        return false;
    }
    let ring: u64 = kernel(request, off!(kiocb_ctx)).unwrap_or(0);
    // Not an `Option`: Linux 6.1 loses sight of when its value is there.
    let mut byte = [0_u8];
    // SAFETY: a byte on the stack; the helper checks the other address.
    let failed = unsafe {
        bpf_probe_read_kernel(
            (&raw mut byte).cast(),
            1,
            (ring + bit / 8) as *const core::ffi::c_void,
        )
    };
    if failed != 0 {
        count(counter::KERNEL_READ_FAILED, 1);
        return true;
    }
    byte[0] >> (bit % 8) & 1 != 0
}
