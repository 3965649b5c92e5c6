//! Calls that give a process an end of a channel, and processes outside the tree that get one.

use core::ffi::c_void;

use aya_ebpf::helpers::{
    bpf_get_current_uid_gid, bpf_probe_read_user,
    generated::{bpf_get_current_task_btf, bpf_loop},
};
use countersign_common::{
    ChannelEnd, ChannelId, FileOpen, Peer, Task, channel_kind, counter, end_how, kind, queued_why,
    tag, transfer_flags,
};
use countersign_ebpf::nr;

use super::{compat::arguments, counts::tcp_counts, inet};
use crate::{
    arch::PtRegs,
    channel::{Enrolled, MAY_ADD, enrol, forget, is_known, leave, other_end_known},
    credit::pool_now,
    emit::{count, record},
    inet::{find_peer, tcp_goes_to_tree, tcp_listens},
    maps::LISTENERS,
    offsets::{current, group_leader, kernel, off},
    resolve::{FILES, WHOLE, file_of, resolve},
    scope::{Held, Thread, set_tag, thread},
};

const FMODE_WRITE: u64 = 2;
const EINPROGRESS: i64 = 115;
const SOL_SOCKET: u32 = 1;
const SCM_RIGHTS: u32 = 1;
/// Steps over the control data of one message: `SCM_MAX_FD` descriptors and a few headers.
const CONTROL_STEPS_MAX: u32 = 300;

/// Reports that `who` holds an end.
#[inline(always)]
pub fn report(held: &Held, who: &Task, how: u8, fd: u32) {
    let id = &held.channel;
    if id.kind == channel_kind::TCP {
        inet::tcp_report(id.object, id.inode, id.epoch, id.peer_object, id.peer_inode);
    }
    // SAFETY: references.
    unsafe { report_end(held, who, u64::from(how), u64::from(fd)) };
    if id.kind == channel_kind::TCP {
        // What the socket's counts are from now on held against.
        let new = how == end_how::CONNECTED || how == end_how::ACCEPTED;
        let why = if new {
            queued_why::BEGUN
        } else {
            queued_why::FOUND
        };
        tcp_counts(id.object, id.inode, u64::from(pool_now()), u64::from(why));
    }
}

/// [`report`], verified once.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn report_end(held: *const Held, who: *const Task, how: u64, fd: u64) -> u64 {
    if held.is_null() || who.is_null() {
        return 0;
    }
    record::<ChannelEnd>(kind::CHANNEL_END, |place| {
        // SAFETY: a fresh reservation of that size.
        unsafe {
            (*place).task = *who;
            (*place).channel = (*held).channel;
            (*place).mode = (*held).mode as u8 & 3;
            (*place).how = how as u8;
            (*place).reserved = [0; 2];
            (*place).fd = fd as u32;
        }
    });
    0
}

/// At `sys_exit` of a tagged task's call that yields an end.
///
/// # Safety
/// The arguments are the tracepoint's.
#[inline(never)]
pub unsafe fn tagged_exit<const COMPAT: bool>(
    bits: u32,
    regs: *const PtRegs,
    number: u64,
    returned: i64,
) {
    if returned < 0 && !is_in_progress(number, returned) {
        return;
    }
    // SAFETY: the caller's.
    let args = unsafe { arguments::<COMPAT>(regs) };
    let bits = u64::from(bits);
    match number {
        nr::PIPE | nr::PIPE2 | nr::SOCKETPAIR => {
            let place = if number == nr::SOCKETPAIR {
                args[3]
            } else {
                args[0]
            };
            // SAFETY: the helper checks the address.
            let Ok(pair) = (unsafe { bpf_probe_read_user(place as *const [u32; 2]) }) else {
                return;
            };
            hold_end(bits, end_how::CREATED, u64::from(pair[0]));
            hold_end(bits, end_how::CREATED, u64::from(pair[1]));
        }
        nr::LISTEN => {
            listening(args[0]);
        }
        nr::CONNECT => hold_end(bits, end_how::CONNECTED, args[0]),
        nr::ACCEPT | nr::ACCEPT4 => {
            // It may listen at a socket that it did not bring to listen.
            listening(args[0]);
            hold_end(bits, end_how::ACCEPTED, returned as u64);
        }
        nr::PIDFD_GETFD => hold_end(bits, end_how::PIDFD_GETFD, returned as u64),
        _ => hold_end(bits, end_how::OPENED, returned as u64),
    }
}

/// The end behind a descriptor.
#[inline(always)]
pub fn hold_end(bits: u64, how: u8, fd: u64) {
    hold(bits, u64::from(how), fd, 0);
}

/// The end behind a file of which the descriptor is not known.
#[inline(always)]
pub fn hold_file(bits: u64, how: u8, file: u64) {
    hold(bits, u64::from(how), u64::from(u32::MAX), file);
}

/// At `sys_exit` of an untagged task's call that may yield an end of a watched channel: marks it as a peer if so.
///
/// # Safety
/// The arguments are the tracepoint's.
#[inline(never)]
pub unsafe fn untagged_exit<const COMPAT: bool>(regs: *const PtRegs, number: u64, returned: i64) {
    if returned < 0 && !is_in_progress(number, returned) {
        return;
    }
    let (fd, how) = match number {
        // SAFETY: the caller's.
        nr::CONNECT => (unsafe { arguments::<COMPAT>(regs) }[0], end_how::CONNECTED),
        nr::ACCEPT | nr::ACCEPT4 => (returned as u64, end_how::ACCEPTED),
        nr::PIDFD_GETFD => (returned as u64, end_how::PIDFD_GETFD),
        _ => (returned as u64, end_how::OPENED),
    };
    mark_holder(u64::from(how), fd);
}

// Functions with a C name are global to the verifier: it looks at each once, and not again in every state of every caller.

/// Marks the current process as a peer if the descriptor is an end of a watched channel.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mark_holder(how: u64, fd: u64) -> u64 {
    // SAFETY: the current task and its leader.
    let (task, leader) = unsafe {
        let task = bpf_get_current_task_btf();
        (task, group_leader(task))
    };
    let how = how as u8;
    let mut held = Held::empty();
    resolve(&mut held, file_of(task, fd), WHOLE);
    let connects = how == end_how::CONNECTED;
    let watched = match held.channel.kind {
        0 => false,
        channel_kind::TCP => {
            is_known(&held.channel)
                || find_peer(&mut held)
                || (connects && tcp_goes_to_tree(held.channel.object) != 0)
        }
        channel_kind::TTY => is_known(&held.channel),
        _ => {
            is_known(&held.channel)
                || other_end_known(&held.channel)
                || (connects && to_listener_of_tree(&held.channel))
        }
    };
    // SAFETY: the leader of the current task.
    if !watched || !unsafe { set_tag(leader, tag::PEER) } {
        return 0;
    }
    let who = current(leader);
    count(counter::PEERS_MARKED, 1);
    enrol(&mut held, MAY_ADD);
    record::<Peer>(kind::PEER, |place| {
        // SAFETY: a fresh reservation of that size.
        unsafe {
            (*place).task = who;
            (*place).channel = held.channel;
            (*place).tag = tag::PEER;
            (*place).uid = bpf_get_current_uid_gid() as u32;
        }
    });
    report(&held, &who, how, fd as u32);
    1
}

/// Whether a `connect` goes on after its return: the addresses are settled by then.
#[inline(always)]
fn is_in_progress(number: u64, returned: i64) -> bool {
    number == nr::CONNECT && returned == -EINPROGRESS
}

/// At `sys_exit` of a `recvmsg` by a watched task: reports the descriptors that came with it. Best effort: the control
/// data is read from user memory, where the receiver's other threads can change it.
///
/// # Safety
/// `thread` is the current thread's state, with its transfer described.
#[inline(always)]
pub unsafe fn received(thread: *mut Thread, message: u64) {
    // SAFETY: the helper checks the address. `struct user_msghdr`: control at 32, its length at 40.
    let Ok([control, len]) = (unsafe { bpf_probe_read_user((message + 32) as *const [u64; 2]) })
    else {
        return;
    };
    if len < 16 {
        return;
    }
    // SAFETY: the caller's.
    unsafe {
        (*thread).vector = control;
        (*thread).vectors_left = len;
        (*thread).segment_left = 0;
        let mut context = thread;
        bpf_loop(
            CONTROL_STEPS_MAX,
            control_step as *const () as *mut c_void,
            (&raw mut context).cast(),
            0,
        );
    }
}

/// One step over control data: a `struct cmsghdr` or one descriptor of an `SCM_RIGHTS`; 1 ends the loop.
/// Here `vector` and `vectors_left` are the place and the bytes left, `segment_left` the bytes of descriptors left.
unsafe extern "C" fn control_step(_index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `received` passes the address of its pointer.
    unsafe {
        let thread = *context.cast::<*mut Thread>();
        let place = (*thread).vector;
        let left = (*thread).vectors_left;
        if (*thread).segment_left >= 4 {
            let Ok(fd) = bpf_probe_read_user(place as *const u32) else {
                return 1;
            };
            (*thread).segment_left -= 4;
            // Control data starts aligned to 8, and so does each header: an odd number of descriptors is followed by 4 bytes.
            let step = if (*thread).segment_left == 0 && place & 7 == 0 {
                8
            } else {
                4
            };
            (*thread).vector = place + step;
            (*thread).vectors_left = if left > step { left - step } else { 0 };
            let bits = if (*thread).transfer.flags & transfer_flags::BY_PEER == 0 {
                tag::TREE
            } else {
                0
            };
            hold_end(u64::from(bits), end_how::SCM_RIGHTS, u64::from(fd));
            return 0;
        }
        if left < 16 {
            return 1;
        }
        let Ok([len, which]) = bpf_probe_read_user(place as *const [u64; 2]) else {
            return 1;
        };
        if len < 16 || len > left {
            return 1;
        }
        if which == u64::from(SOL_SOCKET) | u64::from(SCM_RIGHTS) << 32 {
            (*thread).segment_left = len - 16;
            (*thread).vector = place + 16;
            (*thread).vectors_left = left - 16;
            return 0;
        }
        let step = (len + 7) & !7;
        (*thread).vector = place + step;
        (*thread).vectors_left = if left > step { left - step } else { 0 };
        0
    }
}

/// Puts the channel behind `file`, or where that is 0 behind `fd`, into the table (if it is one that counts) and reports the end. The place for the channel is that of the
/// splice family's second descriptor: none of those calls yields an end, and what this calls needs the stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hold(bits: u64, how: u64, fd: u64, file: u64) -> u64 {
    // SAFETY: the current task, its state and its leader.
    unsafe {
        let task = bpf_get_current_task_btf();
        let Some(thread) = thread(task) else { return 0 };
        let held = &mut (*thread).second;
        let (bits, how) = (bits as u32, how as u8);
        let proxy_open = bits & tag::PROXY != 0 && how == end_how::OPENED;
        let file = if file == 0 { file_of(task, fd) } else { file };
        resolve(held, file, if proxy_open { WHOLE | FILES } else { WHOLE });
        if held.channel.kind == 0 {
            return 0;
        }
        let who = current(group_leader(task));
        if held.channel.kind == channel_kind::FILE {
            if held.mode & FMODE_WRITE != 0 {
                file_opened(held, &who);
            }
            return 0;
        }
        let mut leave = leave(bits);
        if how == end_how::CONNECTED {
            if held.channel.kind == channel_kind::TCP {
                forget(&held.channel);
            } else if to_listener_of_tree(&held.channel) {
                leave |= MAY_ADD;
            }
        }
        if enrol(held, leave) == Enrolled::No && held.channel.epoch == 0 {
            return 0;
        }
        report(held, &who, how, fd as u32);
    }
    1
}

#[inline(always)]
fn file_opened(held: &Held, who: &Task) {
    let flags: u32 = kernel(held.file, off!(file_flags)).unwrap_or(0);
    record::<FileOpen>(kind::FILE_OPEN, |place| {
        // SAFETY: a fresh reservation of that size.
        unsafe {
            (*place).task = *who;
            (*place).inode = held.channel.inode;
            (*place).dev = held.channel.dev;
            (*place).flags = flags;
        }
    });
}

/// Remembers the address that the tree listens on. What connects gets a peer socket that nobody has accepted yet, without
/// an inode; it shares the listener's `struct unix_address`, though.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn listening(fd: u64) -> u64 {
    let mut held = Held::empty();
    // SAFETY: the current task.
    let file = file_of(unsafe { bpf_get_current_task_btf() }, fd);
    resolve(&mut held, file, WHOLE);
    match held.channel.kind {
        channel_kind::TCP => tcp_listens(held.channel.object),
        channel_kind::UNIX_STREAM | channel_kind::UNIX_SEQPACKET => {
            if let Some(address) = kernel::<u64>(held.channel.object, off!(unix_addr))
                && address != 0
                && LISTENERS.insert(&address, &held.channel.object, 0).is_err()
            {
                count(counter::CHANNEL_FAILED, 1);
            }
            0
        }
        _ => 0,
    }
}

#[inline(always)]
fn to_listener_of_tree(id: &ChannelId) -> bool {
    let is_unix = id.kind == channel_kind::UNIX_STREAM || id.kind == channel_kind::UNIX_SEQPACKET;
    if id.peer_object == 0 || !is_unix {
        return false;
    }
    let Some(address) = kernel::<u64>(id.peer_object, off!(unix_addr)) else {
        return false;
    };
    address != 0 && LISTENERS.get_ptr(&address).is_some()
}
