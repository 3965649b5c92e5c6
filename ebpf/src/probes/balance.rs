//! Balances: what went into a channel, what came out, what waits, all at one moment.
//!
//! Taken when a process ends, when a descriptor is closed, and of every channel that moved when user space asks. The record states
//! the three numbers; whether they add up is judged elsewhere. A channel that has not moved since its last record gives none.

use core::{ffi::c_void, ptr::read_volatile};

use aya_ebpf::{
    bindings::task_struct,
    helpers::generated::{bpf_for_each_map_elem, bpf_ktime_get_boot_ns, bpf_loop},
};
use countersign_common::{
    Queued, channel_kind, counter, kind,
    load::{ChannelKey, ChannelState, MOVED},
    queued_why, tag,
};

use super::counts::tcp_counts;
use crate::{
    channel::state_of,
    emit::{count, data_record},
    maps::{BALANCED, CHANNELS, PROXY_CHANNELS},
    offsets::{group_leader, kernel, off},
    queue::{MESSAGES_SHIFT, UNKNOWN, queued},
    resolve::{file_of, resolve, table_of},
    scope::{Thread, tag_of, thread},
};

/// Descriptors of an ending process that are looked at. Stops a process with a million of them from stalling its CPU.
const DESCRIPTORS_MAX: u64 = 1024;

/// Records made when user space asks once. Stops an agent that moves a byte in each of ten thousand pipes from filling the ring; the
/// rest is told the next time.
const ASKED_MAX: u64 = 4096;

/// At `sys_enter` of `close` by a watched task.
///
/// # Safety
/// `task` is the current one.
#[inline(always)]
pub unsafe fn closing(task: *mut task_struct, bits: u32, fd: u64) {
    let file = file_of(task, fd);
    if file == 0 {
        return;
    }
    // SAFETY: the caller's.
    unsafe {
        let Some(thread) = thread(task) else { return };
        (*thread).bits = bits;
        of_file(thread, file, queued_why::CLOSE);
    }
}

/// At `sched_process_exit`, before the descriptors of the process are closed.
///
/// # Safety
/// `task` is the tracepoint's, the current task.
#[inline(always)]
pub unsafe fn exiting(task: *mut task_struct) {
    // SAFETY: the caller's.
    unsafe {
        let Some(bits) = tag_of(group_leader(task)) else {
            return;
        };
        let Some(signal) = kernel::<u64>(task as u64, off!(task_signal)) else {
            return;
        };
        if kernel::<u32>(signal, off!(signal_live)) != Some(0) {
            return;
        }
        let Some(thread) = thread(task) else { return };
        let (array, mut descriptors) = table_of(task);
        if descriptors > DESCRIPTORS_MAX {
            count(counter::BALANCE_SKIPPED, descriptors - DESCRIPTORS_MAX);
            descriptors = DESCRIPTORS_MAX;
        }
        (*thread).bits = bits;
        (*thread).vector = array;
        let mut context = thread;
        bpf_loop(
            descriptors as u32,
            descriptor_step as *const () as *mut c_void,
            (&raw mut context).cast(),
            0,
        );
    }
}

unsafe extern "C" fn descriptor_step(_index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `exiting` passes the address of its pointer.
    unsafe {
        let thread = *context.cast::<*mut Thread>();
        let place = (*thread).vector;
        (*thread).vector = place + 8;
        if let Some(file) = kernel::<u64>(place, 0)
            && file != 0
        {
            of_file(thread, file, queued_why::EXIT);
        }
    }
    0
}

/// # Safety
/// `thread` is the current thread's state.
#[inline(never)]
unsafe fn of_file(thread: *mut Thread, file: u64, why: u8) -> i64 {
    // SAFETY: the caller's.
    unsafe {
        resolve(&mut (*thread).second, file, 0);
        let id = &(*thread).second.channel;
        if id.kind == 0 {
            return 0;
        }
        let key = ChannelKey {
            object: id.object,
            inode: id.inode,
        };
        if let Some(state) = state_of(&key) {
            tell(&key, state, tag::pool((*thread).bits), why);
        }
    }
    0
}

/// Of every channel in the tables that moved since its last record, or of `each`; how many were made.
#[inline(always)]
pub fn all(each: u64) -> i32 {
    let mut each = each;
    let Some(made) = BALANCED.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: maps of this object; the callback gets the address of `each`, which lives until the helper returns. User space runs
    // one at a time.
    unsafe {
        *made = 0;
        bpf_for_each_map_elem(
            core::ptr::from_ref(&PROXY_CHANNELS).cast_mut().cast(),
            channel_step as *const () as *mut c_void,
            (&raw mut each).cast(),
            0,
        );
        bpf_for_each_map_elem(
            core::ptr::from_ref(&CHANNELS).cast_mut().cast(),
            channel_step as *const () as *mut c_void,
            (&raw mut each).cast(),
            0,
        );
        *made as i32
    }
}

unsafe extern "C" fn channel_step(
    _map: *mut c_void,
    key: *const ChannelKey,
    state: *mut ChannelState,
    each: *mut c_void,
) -> i64 {
    let Some(made) = BALANCED.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: a key and a value of the map; `all` passes the address of its argument.
    unsafe {
        let each = *each.cast::<u64>() != 0;
        if *made >= ASKED_MAX && !each {
            return 1;
        }
        if read_volatile(&raw const (*state).ops[0]) & MOVED != 0 {
            return 0;
        }
        if each {
            (*state).told_ops = 0;
        }
        let key = ChannelKey {
            object: (*key).object,
            inode: (*key).inode,
        };
        *made += tell(&key, state, 0, queued_why::ASKED) as u64;
    }
    0
}

/// Makes the record of the stream that is read at this end, if it moved since the last; whether it did.
///
/// # Safety
/// `state` is a value of the maps for this key.
#[inline(never)]
unsafe fn tell(key: &ChannelKey, state: *mut ChannelState, pool: u32, why: u8) -> i64 {
    // SAFETY: the caller's; words that are only changed atomically.
    unsafe {
        let begun = bpf_ktime_get_boot_ns();
        let mut writer = state;
        let what = (*state).kind;
        if what == u32::from(channel_kind::TCP) {
            return tcp_counts(key.object, key.inode, u64::from(pool), u64::from(why)) as i64;
        }
        let of_messages = what == u32::from(channel_kind::UNIX_SEQPACKET)
            || what == u32::from(channel_kind::UNIX_DGRAM);
        if what == u32::from(channel_kind::UNIX_STREAM) || of_messages {
            let other = ChannelKey {
                object: (*state).peer_object,
                inode: (*state).peer_inode,
            };
            // Nobody watches the other end: there is nothing to hold against.
            let Some(other) = state_of(&other) else {
                return 0;
            };
            writer = other;
        }
        let written_ops = read_volatile(&raw const (*writer).ops[1]);
        let written = read_volatile(&raw const (*writer).bytes[1]);
        let read_ops = read_volatile(&raw const (*state).ops[0]);
        let read = read_volatile(&raw const (*state).bytes[0]);
        if (written_ops | read_ops | written | read) & MOVED != 0 {
            return 0;
        }
        let ops = written_ops + read_ops;
        if (*state).told_ops == ops {
            return 0;
        }
        let mut waiting = queued(what, key.object, key.inode);
        if waiting == UNKNOWN {
            return 0;
        }
        let mut messages = 0;
        if of_messages {
            messages = (waiting >> MESSAGES_SHIFT) as u32;
            waiting &= (1 << MESSAGES_SHIFT) - 1;
        }
        let made = data_record::<Queued>(pool, kind::QUEUED, |place| {
            (*place).channel.object = key.object;
            (*place).channel.inode = key.inode;
            (*place).channel.peer_object = (*state).peer_object;
            (*place).channel.peer_inode = (*state).peer_inode;
            (*place).channel.epoch = (*state).epoch;
            (*place).channel.dev = (*state).dev;
            (*place).channel.kind = what as u8;
            (*place).channel.reserved = [0; 3];
            (*place).channel.reserved2 = 0;
            (*place).written_bytes = written;
            (*place).read_bytes = read;
            (*place).queued_bytes = waiting;
            (*place).written_ops = written_ops;
            (*place).read_ops = read_ops;
            (*place).begun_ns = begun;
            (*place).queued_messages = messages;
            (*place).why = why;
            (*place).reserved = [0; 3];
        });
        if made {
            (*state).told_ops = ops;
        }
        i64::from(made)
    }
}
