//! Bytes that wait in a channel, read from the kernel's own structures without a lock.
//!
//! Each walk is bounded and looks at its beginning again afterwards: what changed meanwhile is unknown, not a guess.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use countersign_common::{channel_kind, counter};

use crate::{
    emit::count,
    offsets::{kernel, off},
};

/// The queue could not be read: the channel is closed, it changed, or it is of another kind.
pub const UNKNOWN: u64 = u64::MAX;

/// Buffers of a pipe that are added up. An unprivileged pipe has 256 at most (`/proc/sys/fs/pipe-max-size`); root can make longer
/// ones, which are then not balanced.
const BUFFERS_MAX: u32 = 4096;

/// Packets in a socket that are added up. What a sender may have on its way is bounded (`net.core.wmem_default`): 300 packets of a
/// byte each.
const PACKETS_MAX: u32 = 4096;

/// From this bit on: the number of messages, where what is written in one operation is read in one. Below: bytes.
pub const MESSAGES_SHIFT: u32 = 40;

/// Bytes waiting to be read at this end and, of messages, their number, or [`UNKNOWN`]. A function of the object's own, so that the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn queued(what: u32, object: u64, inode: u64) -> u64 {
    if what == u32::from(channel_kind::PIPE) || what == u32::from(channel_kind::FIFO) {
        in_pipe(object, inode).unwrap_or(UNKNOWN)
    } else if what == u32::from(channel_kind::UNIX_STREAM) {
        in_unix(object, inode, 0).unwrap_or(UNKNOWN)
    } else if what == u32::from(channel_kind::UNIX_SEQPACKET)
        || what == u32::from(channel_kind::UNIX_DGRAM)
    {
        in_unix(object, inode, 1 << MESSAGES_SHIFT).unwrap_or(UNKNOWN)
    } else {
        UNKNOWN
    }
}

/// Where a walk stands.
struct Walk {
    /// Next buffer's number, or address of the next packet.
    next: u64,
    /// Start of the buffers, or of the list.
    base: u64,
    /// Of a pipe: the number of its buffers less one.
    mask: u64,
    /// Of a socket: what a packet that is not empty adds besides its length.
    each: u64,
    sum: u64,
    failed: u64,
}

#[inline(always)]
fn in_pipe(object: u64, number: u64) -> Option<u64> {
    // Memory that is another inode by now, or one whose pipe is gone.
    if kernel::<u64>(object, off!(inode_ino))? != number {
        return None;
    }
    let pipe: u64 = kernel(object, off!(inode_pipe))?;
    if pipe == 0 {
        return None;
    }
    let head: u32 = kernel(pipe, off!(pipe_head))?;
    let tail: u32 = kernel(pipe, off!(pipe_tail))?;
    let size: u32 = kernel(pipe, off!(pipe_ring_size))?;
    let buffers = head.wrapping_sub(tail);
    if buffers > BUFFERS_MAX {
        count(counter::BALANCE_SKIPPED, 1);
        return None;
    }
    let mut walk = Walk {
        next: u64::from(tail),
        base: kernel(pipe, off!(pipe_bufs))?,
        mask: u64::from(size.wrapping_sub(1)),
        each: 0,
        sum: 0,
        failed: 0,
    };
    // SAFETY: the callback gets the address of `walk`, which lives until the helper returns.
    unsafe {
        bpf_loop(
            buffers,
            buffer_step as *const () as *mut c_void,
            (&raw mut walk).cast(),
            0,
        );
    }
    let same = kernel::<u32>(pipe, off!(pipe_head))? == head
        && kernel::<u32>(pipe, off!(pipe_tail))? == tail;
    (same && walk.failed == 0).then_some(walk.sum)
}

unsafe extern "C" fn buffer_step(_index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `in_pipe` passes the address of its walk.
    let walk = unsafe { &mut *context.cast::<Walk>() };
    let buffer = walk.base + (walk.next & walk.mask) * off!(pipe_buffer_size);
    let Some(len) = kernel::<u32>(buffer, off!(pipe_buffer_len)) else {
        walk.failed = 1;
        return 1;
    };
    walk.sum += u64::from(len);
    walk.next += 1;
    0
}

#[inline(always)]
fn in_unix(object: u64, number: u64, each: u64) -> Option<u64> {
    let socket: u64 = kernel(object, off!(sock_socket))?;
    if socket == 0 || kernel::<u64>(socket + off!(socket_alloc_inode), off!(inode_ino))? != number {
        return None;
    }
    let list = object + off!(sock_receive_queue);
    let first: u64 = kernel(list, off!(skb_list_next))?;
    let packets: u32 = kernel(list, off!(skb_list_qlen))?;
    if packets > PACKETS_MAX {
        count(counter::BALANCE_SKIPPED, 1);
        return None;
    }
    let mut walk = Walk {
        next: first,
        base: list,
        mask: 0,
        each,
        sum: 0,
        failed: 0,
    };
    // SAFETY: as above.
    unsafe {
        bpf_loop(
            packets,
            packet_step as *const () as *mut c_void,
            (&raw mut walk).cast(),
            0,
        );
    }
    let same = walk.next == list
        && kernel::<u64>(list, off!(skb_list_next))? == first
        && kernel::<u32>(list, off!(skb_list_qlen))? == packets;
    (same && walk.failed == 0).then_some(walk.sum)
}

unsafe extern "C" fn packet_step(_index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `in_unix` passes the address of its walk.
    let walk = unsafe { &mut *context.cast::<Walk>() };
    if walk.next == walk.base {
        walk.failed = 1;
        return 1;
    }
    // One after the other: of several `Option`s at once LLVM 22 spills payloads that were never written ("R1 !read_ok").
    walk.failed = 1;
    let Some(len) = kernel::<u32>(walk.next, off!(skb_len)) else {
        return 1;
    };
    let Some(consumed) = kernel::<u32>(walk.next, off!(skb_cb) + off!(unixcb_consumed)) else {
        return 1;
    };
    let Some(next) = kernel::<u64>(walk.next, off!(skb_next)) else {
        return 1;
    };
    walk.failed = 0;
    let waits = len.wrapping_sub(consumed);
    walk.sum += u64::from(waits);
    // An empty message is an operation of no bytes at either end, and those are not counted.
    if waits != 0 {
        walk.sum += walk.each;
    }
    walk.next = next;
    0
}
