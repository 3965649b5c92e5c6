//! The kernel's own copy of what it delivers to the reader of a unix stream socket.
//!
//! A reader's other threads can rewrite or unmap its buffer before the system call returns; the kernel's buffer they cannot. It is
//! read where the kernel is about to copy from it, with the socket locked by the reader, so it is exactly what is delivered. Whether the
//! copy succeeded, and what it belongs to, is only known at `sys_exit`: the records say nothing of either, and the
//! operation's own flag says that they are all there.
//!
//! Only the linear part of a buffer is read (some 3.7 KiB): pages behind it have no address that is known here. A proxy is trusted, and
//! its memory is good enough.

use aya_ebpf::bindings::task_struct;
use countersign_common::{channel_kind, counter, direction, kind, tag, transfer_flags};
use countersign_ebpf::{direction_of, nr};

use super::transfer::{describe, given_flags, message_flags, whose};
use crate::{
    emit::count,
    kernel_chunk::kernel_chunk,
    maps::THREADS,
    offsets::{current, group_leader, has_storage, kernel, off},
    scope::Thread,
};

/// Bytes of one operation; further ones are the reader's word. Stops one giant read from filling the ring twice.
const DELIVERED_MAX: u64 = countersign_common::READER_OP_MAX_BYTES;

/// At `skb_copy_datagram_iovec`: `len` bytes of `buffer` are copied next.
///
/// # Safety
/// `task` is the current task.
#[inline(always)]
pub unsafe fn delivers(task: *mut task_struct, buffer: u64, len: i32) {
    // SAFETY: storage of the current task.
    unsafe {
        if len <= 0 || !has_storage(task) {
            return;
        }
        let Some(thread) = THREADS.find(task) else {
            return;
        };
        let (open, bits) = ((*thread).open_call, (*thread).bits);
        if open == 0
            || bits & tag::PROXY != 0
            || (*thread).first.channel.kind != channel_kind::UNIX_STREAM
        {
            return;
        }
        let number = open - 1;
        if direction_of(number) != direction::READ
            // Several messages in one call, of which none has begun when its bytes pass here.
            || number == nr::RECVMMSG
            // Looking ahead begins at a place that the buffer does not tell, and is no part of the stream; neither is this.
            || message_flags(given_flags(number, (*thread).args[2], (*thread).args[3]))
                & (transfer_flags::PEEK | transfer_flags::OOB)
                != 0
        {
            return;
        }
        let place = (*thread).delivered;
        (*thread).delivered = place + len as u64;
        if !copied(thread, buffer, place, len as u64) {
            (*thread).delivery_failed = 1;
            count(counter::KERNEL_COPY_FAILED, len as u64);
        }
    }
}

/// Puts the bytes into a record; whether that was possible.
#[inline(always)]
unsafe fn copied(thread: *mut Thread, buffer: u64, place: u64, len: u64) -> bool {
    // SAFETY: the current thread's state.
    unsafe {
        // Buffers carry their sender: the descriptor may name another socket by now, or have named another one.
        let sender: u64 = kernel(buffer, off!(skb_sk)).unwrap_or(0);
        if sender == 0 || sender != (*thread).first.channel.peer_object {
            return false;
        }
        // What cannot be read makes the condition below fail. Not `Option`s: the verifier refuses what LLVM makes of several.
        let consumed: u32 =
            kernel(buffer, off!(skb_cb) + off!(unixcb_consumed)).unwrap_or(u32::MAX);
        let all: u32 = kernel(buffer, off!(skb_len)).unwrap_or(0);
        let paged: u32 = kernel(buffer, off!(skb_data_len)).unwrap_or(0);
        let data: u64 = kernel(buffer, off!(skb_data)).unwrap_or(0);
        let (consumed, linear) = (u64::from(consumed), u64::from(all.wrapping_sub(paged)));
        if consumed + len > linear || place + len > DELIVERED_MAX {
            return false;
        }
        let leader = group_leader(aya_ebpf::helpers::generated::bpf_get_current_task_btf());
        let who = current(leader);
        describe(
            thread,
            &who,
            (*thread).open_call - 1,
            0,
            transfer_flags::KERNEL_COPY | whose((*thread).bits),
            direction::READ,
        );
        let transfer = &raw mut (*thread).transfer;
        ((*transfer).op_seq, (*transfer).stream_before) = (0, 0);
        ((*transfer).returned, (*transfer).offset) = (0, place);
        if kernel_chunk(thread, data + consumed, len, u64::from(kind::KERNEL_COPY)) == 0 {
            return false;
        }
        count(counter::KERNEL_COPY_BYTES, len);
        true
    }
}
