//! Channels of kinds whose bytes are not captured, and descriptors that are sent: notes of use.
//!
//! An address that a call was given is read from the caller's memory afterwards, where its other threads can change it; those of
//! connected and bound internet sockets are read from the socket.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::task_struct,
    helpers::{
        bpf_probe_read_user,
        generated::{bpf_get_current_task_btf, bpf_loop},
    },
};
use countersign_common::{
    channel_kind,
    evasion::{foreign, what},
};
use countersign_ebpf::nr;

use crate::{
    attempt::{Attempt, begin, clear, report},
    offsets::{kernel, off},
    resolve::{FILES, WHOLE, file_of, resolve},
    scope::Held,
};

const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const AF_VSOCK: u64 = 40;
/// `::ffff:0:0/96` as the second word of an address in memory.
const MAPPED: u64 = 0xffff_0000;
const SCM_RIGHTS_OF_SOCKET: u64 = 1 | 1 << 32;
/// Descriptors and headers looked at of one message: `SCM_MAX_FD` and a few more.
const CONTROL_STEPS_MAX: u32 = 260;

/// A socket that was made, bound, connected or sent from, if it is none of a watched kind. `address` is where the caller says it goes.
#[inline(never)]
pub unsafe fn socket(task: *mut task_struct, fd: u64, done: u32, address: u64, number: u64) -> i64 {
    // SAFETY: the current task.
    unsafe { socket_file(task, file_of(task, fd), done, address, number) }
}

/// [`socket`] by its file.
#[inline(always)]
pub unsafe fn socket_file(
    task: *mut task_struct,
    file: u64,
    done: u32,
    address: u64,
    number: u64,
) -> i64 {
    let mut held = Held::empty();
    resolve(&mut held, file, 0);
    // A socket has its `struct sock` here whatever its kind; what else has one has a kind.
    if held.channel.kind != 0 || held.channel.object == 0 {
        return 0;
    }
    let sock = held.channel.object;
    let family = u64::from(kernel::<u16>(sock, off!(sock_family)).unwrap_or(0));
    let protocol = u64::from(kernel::<u16>(sock, off!(sock_protocol)).unwrap_or(0));
    // SAFETY: the current task.
    unsafe {
        let Some(attempt) = begin(task, number) else {
            return 0;
        };
        if done != foreign::MADE {
            if address != 0 {
                given(attempt, family, address);
            } else {
                held_by(attempt, sock, family, done);
            }
        }
        (*attempt).dev |= done;
        (*attempt).what = u32::from(what::FOREIGN_CHANNEL);
        (*attempt).number = foreign::SOCKET | (family & 0xff) << 8 | protocol << 16;
        report(attempt);
    }
    0
}

/// The address of an internet socket as the kernel has it.
#[inline(always)]
unsafe fn held_by(attempt: *mut Attempt, sock: u64, family: u64, done: u32) {
    // SAFETY: the current thread's attempt.
    unsafe {
        let bound = done == foreign::BOUND;
        if family == AF_INET {
            let at = if bound {
                off!(sock_rcv_saddr)
            } else {
                off!(sock_daddr)
            };
            let address = u64::from(kernel::<u32>(sock, at).unwrap_or(0));
            (*attempt).argument = MAPPED | address << 32;
        } else if family == AF_INET6 {
            let at = if bound {
                off!(sock_v6_rcv_saddr)
            } else {
                off!(sock_v6_daddr)
            };
            (*attempt).inode = kernel(sock, at).unwrap_or(0);
            (*attempt).argument = kernel(sock, at + 8).unwrap_or(0);
        } else {
            return;
        }
        (*attempt).dev = if bound {
            u32::from(kernel::<u16>(sock, off!(sock_num)).unwrap_or(0))
        } else {
            u32::from(
                kernel::<u16>(sock, off!(sock_dport))
                    .unwrap_or(0)
                    .swap_bytes(),
            )
        };
    }
}

/// The address that the caller gave.
#[inline(always)]
unsafe fn given(attempt: *mut Attempt, family: u64, address: u64) {
    // SAFETY: the current thread's attempt; the helper checks the address.
    unsafe {
        let first: u64 = bpf_probe_read_user(address as *const u64).unwrap_or(0);
        let port = (first >> 16) as u16;
        if family == AF_INET {
            (*attempt).argument = MAPPED | first >> 32 << 32;
            (*attempt).dev = u32::from(port.swap_bytes());
        } else if family == AF_INET6 {
            let [high, low] =
                bpf_probe_read_user((address + 8) as *const [u64; 2]).unwrap_or([0; 2]);
            (*attempt).inode = high;
            (*attempt).argument = low;
            (*attempt).dev = u32::from(port.swap_bytes());
        } else if family == AF_VSOCK {
            // `struct sockaddr_vm`: port at 4, context at 8.
            let context: u32 = bpf_probe_read_user((address + 8) as *const u32).unwrap_or(0);
            (*attempt).inode = u64::from(context);
            (*attempt).dev = (first >> 32) as u32 & 0xffff;
        }
    }
}

/// A System V message queue.
#[inline(always)]
pub unsafe fn sysv_queue(attempt: *mut Attempt, id: u64) {
    // SAFETY: the current thread's attempt.
    unsafe {
        (*attempt).inode = id & 0xffff_ffff;
        tell(attempt, foreign::SYSV_QUEUE);
    }
}

/// A file without a place in a file system that was made or opened.
#[inline(always)]
pub unsafe fn nameless(task: *mut task_struct, attempt: *mut Attempt, fd: u64, kind: u64) {
    // SAFETY: the current thread's attempt.
    unsafe {
        let file = file_of(task, fd);
        if kind == foreign::MESSAGE_QUEUE {
            let entry: u64 = kernel(file, off!(file_dentry)).unwrap_or(0);
            let name: u64 = kernel(entry, off!(dentry_name)).unwrap_or(0);
            let [first, second]: [u64; 2] = kernel(name, 0).unwrap_or([0; 2]);
            let len = u64::from(kernel::<u32>(entry, off!(dentry_name_len)).unwrap_or(0));
            (*attempt).inode = cut(first, len);
            (*attempt).argument = if len > 8 { cut(second, len - 8) } else { 0 };
        } else {
            let inode: u64 = kernel(file, off!(file_inode)).unwrap_or(0);
            (*attempt).inode = kernel(inode, off!(inode_ino)).unwrap_or(0);
        }
        tell(attempt, kind);
    }
}

/// The first `len` bytes of eight.
#[inline(always)]
fn cut(text: u64, len: u64) -> u64 {
    if len >= 8 {
        text
    } else {
        text & ((1 << (len * 8)) - 1)
    }
}

/// Reports the use of a kind.
#[inline(always)]
pub unsafe fn tell(attempt: *mut Attempt, kind: u64) {
    // SAFETY: the current thread's attempt.
    unsafe {
        (*attempt).what = u32::from(what::FOREIGN_CHANNEL);
        (*attempt).number = kind;
        report(attempt);
    }
}

/// At `sys_exit` of a call that sent messages: where they went, and which descriptors with them.
///
/// # Safety
/// The arguments are the tracepoint's.
#[inline(never)]
pub unsafe fn sent(task: *mut task_struct, args: &[u64; 6], number: u64) -> i64 {
    // SAFETY: the caller's; the helper checks addresses. `struct user_msghdr`: name at 0, control at 32, its length at 40; `struct
    // mmsghdr` begins with one, and of several messages the first is looked at.
    unsafe {
        if number == nr::SENDTO {
            socket(task, args[0], foreign::REACHED, args[4], number);
            return 0;
        }
        message(task, file_of(task, args[0]), args[1], number);
    }
    0
}

/// One message that was sent.
#[inline(never)]
pub unsafe fn message(task: *mut task_struct, file: u64, message: u64, number: u64) -> i64 {
    // SAFETY: as above.
    unsafe {
        let name: u64 = bpf_probe_read_user(message as *const u64).unwrap_or(0);
        if name != 0 {
            socket_file(task, file, foreign::REACHED, name, number);
        }
        let Ok([control, len]) = bpf_probe_read_user((message + 32) as *const [u64; 2]) else {
            return 0;
        };
        if len < 20 {
            return 0;
        }
        let Some(attempt) = begin(task, number) else {
            return 0;
        };
        (*attempt).control = control;
        (*attempt).control_left = len;
        (*attempt).descriptors_left = 0;
        let mut context = attempt;
        bpf_loop(
            CONTROL_STEPS_MAX,
            step as *const () as *mut c_void,
            (&raw mut context).cast(),
            0,
        );
    }
    0
}

/// One header or one descriptor; 1 ends the loop. Linux 6.1 verifies it once, as the first step: what lay on the stack would be constant.
unsafe extern "C" fn step(_index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `message` passes the address of its pointer; the helper checks addresses.
    unsafe {
        let attempt = *context.cast::<*mut Attempt>();
        let (place, left) = ((*attempt).control, (*attempt).control_left);
        if (*attempt).descriptors_left >= 4 {
            let Ok(fd) = bpf_probe_read_user(place as *const u32) else {
                return 1;
            };
            (*attempt).descriptors_left -= 4;
            // Each header starts aligned to 8.
            let wide = (*attempt).descriptors_left == 0 && place & 7 == 0;
            let by = if wide { 8 } else { 4 };
            (*attempt).control = place + by;
            (*attempt).control_left = left.saturating_sub(by);
            descriptor(attempt, u64::from(fd));
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
        if which == SCM_RIGHTS_OF_SOCKET {
            (*attempt).descriptors_left = len - 16;
            (*attempt).control = place + 16;
            (*attempt).control_left = left - 16;
            return 0;
        }
        let by = (len + 7) & !7;
        (*attempt).control = place + by;
        (*attempt).control_left = left.saturating_sub(by);
    }
    0
}

/// A descriptor that was sent.
#[inline(always)]
unsafe fn descriptor(attempt: *mut Attempt, fd: u64) {
    // SAFETY: the current thread's attempt and task.
    unsafe {
        let file = file_of(bpf_get_current_task_btf(), fd);
        if file == 0 {
            return;
        }
        let mut held = Held::empty();
        resolve(&mut held, file, FILES | WHOLE);
        clear(attempt);
        (*attempt).inode = held.channel.inode;
        if held.channel.inode == 0 {
            let inode: u64 = kernel(file, off!(file_inode)).unwrap_or(0);
            (*attempt).inode = kernel(inode, off!(inode_ino)).unwrap_or(0);
        }
        if held.channel.kind == channel_kind::FILE {
            (*attempt).dev = held.channel.dev;
        }
        (*attempt).number = u64::from(held.channel.kind);
        (*attempt).what = u32::from(what::DESCRIPTOR_SENT);
        report(attempt);
    }
}
