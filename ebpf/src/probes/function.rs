//! Kernel functions that move bytes through a file or a socket: their entry and their return, whoever called them.
//!
//! However a process asks for it (by any system call, in any ABI, through `io_uring` or `io_submit`), its bytes go through one of
//! these functions, in its own context or in that of an `io_uring` worker, which is one of its threads. The file is the one that
//! the function was given, so no descriptor is looked up and none can be swapped. What the functions account for is noted in the thread's state,
//! so that the program for `sys_exit` leaves it alone and captures what they did not see.
//!
//! A thread is in at most one such function for each direction; an entry whose return was not seen is replaced by the next.

use aya_ebpf::{
    bindings::task_struct,
    helpers::generated::{bpf_get_current_task_btf, bpf_ktime_get_boot_ns, bpf_task_pt_regs},
};
use countersign_common::{
    SYSCALL_UNKNOWN, channel_kind, counter, direction, end_how, gap, transfer_flags,
};
use countersign_ebpf::{nr, op_limit};

use super::{
    ends,
    transfer::{MSG_ERRQUEUE, MSG_OOB, MSG_PEEK, MSG_TRUNC, begin, tell_missed, whose},
};
use crate::{
    arch::{PtRegs, in_compat, syscall_number},
    channel::{Enrolled, enrol_operation, leave},
    emit::{capture_buffer, count, missing},
    iterator::{self, Start},
    log,
    maps::THREADS,
    offsets::{current, functions_carry_kind, group_leader, has_storage, kernel, off},
    resolve::resolve,
    scope::{Thread, tag_of, thread},
};

/// `PF_IO_WORKER` (`include/linux/sched.h`): a thread that works for `io_uring`.
const PF_IO_WORKER: u32 = 0x10;
/// In place of a kind that a function leaves to another: it is of no channel.
pub const OF_ALL: u8 = 0;

/// At the entry of a function that takes a `struct kiocb` and a `struct iov_iter`.
///
/// # Safety
/// In a program, with the function's arguments.
#[inline(always)]
pub unsafe fn file_enter(op_direction: u8, kiocb: u64, iter: u64) {
    // SAFETY: the caller's.
    unsafe {
        let Some(watched) = Watched::current() else {
            return;
        };
        if let Some(file) = kernel::<u64>(kiocb, off!(kiocb_filp)) {
            enter(&watched, op_direction, file, iter, 0, OF_ALL);
        }
    }
}

/// At the entry of a protocol's `recvmsg(struct socket *, struct msghdr *, size_t, int flags)`. What is received from a channel of the
/// kind `passed_by` is left to another function, which may or may not call this one: compilers put it in there.
///
/// # Safety
/// As [`file_enter`].
#[inline(always)]
pub unsafe fn receive_enter(socket: u64, message: u64, message_flags: u64, passed_by: u8) {
    // SAFETY: the caller's.
    unsafe {
        let Some(watched) = Watched::current() else {
            return;
        };
        socket_enter(
            &watched,
            direction::READ,
            socket,
            message,
            message_flags,
            passed_by,
        );
    }
}

/// At the entry of a protocol's `sendmsg(struct socket *, struct msghdr *, size_t)`.
///
/// # Safety
/// As [`file_enter`].
#[inline(always)]
pub unsafe fn send_enter(socket: u64, message: u64) {
    // SAFETY: the caller's.
    unsafe {
        let Some(watched) = Watched::current() else {
            return;
        };
        let flags = kernel::<u32>(message, off!(msghdr_flags)).unwrap_or(0);
        socket_enter(
            &watched,
            direction::WRITE,
            socket,
            message,
            u64::from(flags),
            OF_ALL,
        );
    }
}

/// A watched task.
struct Watched {
    task: *mut task_struct,
    bits: u32,
}

impl Watched {
    /// The current one, if it is.
    #[inline(always)]
    unsafe fn current() -> Option<Self> {
        // SAFETY: the current task and its leader; the verifier checks each use.
        unsafe {
            let task = bpf_get_current_task_btf();
            let bits = tag_of(group_leader(task))?;
            Some(Self { task, bits })
        }
    }
}

#[inline(always)]
unsafe fn socket_enter(
    watched: &Watched,
    op_direction: u8,
    socket: u64,
    message: u64,
    message_flags: u64,
    passed_by: u8,
) {
    // A socket of the kernel's own has no file.
    let Some(file) = kernel::<u64>(socket, off!(socket_file)) else {
        return;
    };
    let mut flags = 0;
    // What lies in the error queue has been sent, not received.
    if message_flags & (MSG_PEEK | MSG_ERRQUEUE) != 0 && op_direction == direction::READ {
        flags |= transfer_flags::PEEK;
    }
    if message_flags & MSG_OOB != 0 {
        flags |= transfer_flags::OOB;
    }
    // SAFETY: the caller's.
    unsafe {
        enter(
            watched,
            op_direction,
            file,
            message + off!(msghdr_iter),
            flags,
            passed_by,
        );
    }
}

#[inline(always)]
unsafe fn enter(
    watched: &Watched,
    op_direction: u8,
    file: u64,
    iter: u64,
    flags: u16,
    passed_by: u8,
) {
    if file == 0 {
        return;
    }
    // SAFETY: the caller's.
    unsafe {
        let Some(thread) = thread(watched.task) else {
            return;
        };
        let call = call_of(thread, op_direction);
        resolve(&mut (*call).held, file, 0);
        if (*call).held.channel.kind == passed_by {
            return;
        }
        if (*call).open != 0 {
            count(counter::FUNCTION_UNPAIRED, 1);
            (*call).open = 0;
        }
        // What only one of a kind's functions would see is left to the programs on system calls, or it would be there twice.
        if !functions_carry_kind((*call).held.channel.kind) || iterator::note(call, iter).is_none()
        {
            return;
        }
        (*call).bits = u64::from(watched.bits);
        (*call).flags = u64::from(flags);
        (*call).enter_ns = bpf_ktime_get_boot_ns();
        (*call).open = 1;
    }
}

#[inline(always)]
unsafe fn call_of(thread: *mut Thread, op_direction: u8) -> *mut crate::scope::Call {
    // SAFETY: a member of the thread's state.
    unsafe {
        if op_direction == direction::READ {
            &raw mut (*thread).calls[0]
        } else {
            &raw mut (*thread).calls[1]
        }
    }
}

/// At the return of any of the functions: captures what moved.
///
/// # Safety
/// In a program on the return of a function whose entry is one of the above with the same direction.
#[inline(always)]
pub unsafe fn exit(op_direction: u8, returned: i64) {
    // SAFETY: the current task; the verifier checks each use.
    unsafe {
        let task = bpf_get_current_task_btf();
        if !has_storage(task) {
            return;
        }
        let Some(thread) = THREADS.find(task) else {
            return;
        };
        let call = call_of(thread, op_direction);
        if (*call).open == 0 {
            return;
        }
        (*call).open = 0;
        if returned <= 0 {
            return;
        }
        let bits = (*call).bits as u32;
        (*thread).bits = bits;
        let exit_ns = bpf_ktime_get_boot_ns();
        let flags = (*call).flags as u16 | transfer_flags::BY_FUNCTION | whose(bits);
        (*thread).carried_ops += 1;
        let mut bytes = 0;
        if flags & transfer_flags::PEEK == 0 {
            bytes = returned as u64;
            (*thread).carried_bytes += bytes;
        }
        let enrolled = enrol_operation(
            &mut (*call).held,
            leave(bits),
            u64::from(op_direction),
            bytes,
            &raw mut (*thread).transfer,
        );
        if enrolled == Enrolled::No {
            if (*call).held.channel.epoch == 0 {
                if (*call).held.channel.kind == channel_kind::TTY {
                    count(counter::TERMINAL_BYTES, returned as u64);
                }
                return;
            }
            log::no_channel((*call).held.channel.inode);
        }
        let who = current(group_leader(task));
        if enrolled == Enrolled::New {
            // Which descriptor it was is not known here, and need not be one.
            ends::report(&(*call).held, &who, end_how::USED, u32::MAX);
        }
        let transfer = &raw mut (*thread).transfer;
        let (syscall, context) = caller(task);
        (*transfer).task = who;
        (*transfer).channel = (*call).held.channel;
        (*transfer).enter_ns = (*call).enter_ns;
        (*transfer).exit_ns = exit_ns;
        (*transfer).syscall = syscall;
        (*transfer).flags = flags | context;
        (*transfer).reason = gap::NONE;
        (*transfer).direction = op_direction;
        (*transfer).reserved = [0; 5];
        (*thread).limit_left = op_limit(bits, op_direction);
        (*thread).missed = 0;
        begin(thread, returned as u64);
        if !capture(thread, call, op_direction, returned as u64) {
            tell_missed((*thread).missed, returned as u64);
        }
    }
}

/// Captures what moved; whether all of it.
#[inline(always)]
unsafe fn capture(
    thread: *mut Thread,
    call: *mut crate::scope::Call,
    op_direction: u8,
    returned: u64,
) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let mut beyond = 0;
        let mut reason = gap::ITERATOR;
        if op_direction == direction::READ {
            // What the kernel says it moved and did not copy (`MSG_TRUNC`): the buffer does not hold it.
            let copied = iterator::advanced(call);
            if copied < returned {
                beyond = returned - copied;
                (*thread).op_left = copied;
            }
            if is_truncated(call, beyond) {
                (*thread).transfer.flags |= transfer_flags::MESSAGE_TRUNCATED;
                count(counter::MESSAGES_TRUNCATED, 1);
                reason = gap::TRUNCATED;
            }
        }
        if (*thread).op_left > 0 {
            match iterator::start(thread, call) {
                Start::Walked => {}
                Start::Buffer(address) => {
                    if capture_buffer(thread, address, (*thread).op_left) && beyond == 0 {
                        return true;
                    }
                }
                Start::NotFollowed => {
                    missing(thread, (*thread).op_left, gap::ITERATOR);
                }
            }
        }
        if beyond > 0 {
            (*thread).transfer.offset = returned - beyond;
            (*thread).op_left = beyond;
            missing(thread, beyond, reason);
        }
        (*thread).missed == 0
    }
}

/// Whether the receiver took less than came: the kernel's own word on a message, and bytes of a TCP stream that it threw away.
#[inline(always)]
unsafe fn is_truncated(call: *mut crate::scope::Call, beyond: u64) -> bool {
    // SAFETY: the caller's.
    unsafe {
        match (*call).held.channel.kind {
            channel_kind::TCP => beyond > 0,
            channel_kind::UNIX_DGRAM | channel_kind::UNIX_SEQPACKET => {
                let message = (*call).iter - off!(msghdr_iter);
                let said = kernel::<u32>(message, off!(msghdr_flags)).unwrap_or(0);
                beyond > 0 || u64::from(said) & MSG_TRUNC != 0
            }
            _ => false,
        }
    }
}

/// Number of the system call that the task is in, and the flags that follow from how it came here.
#[inline(always)]
unsafe fn caller(task: *mut task_struct) -> (u16, u16) {
    // SAFETY: typed loads inside `struct task_struct` and of the task's own registers.
    unsafe {
        let task_flags = task
            .cast::<u8>()
            .add(off!(task_flags) as usize)
            .cast::<u32>()
            .read();
        if task_flags & PF_IO_WORKER != 0 {
            return (SYSCALL_UNKNOWN, transfer_flags::IO_URING);
        }
        let regs = bpf_task_pt_regs(task) as *const PtRegs;
        let number = syscall_number(regs);
        if in_compat(task, number) {
            return (number as u16, transfer_flags::COMPAT);
        }
        match number {
            nr::IO_URING_ENTER => (SYSCALL_UNKNOWN, transfer_flags::IO_URING),
            nr::IO_SUBMIT => (number as u16, transfer_flags::AIO),
            _ => (number as u16, 0),
        }
    }
}
