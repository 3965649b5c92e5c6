//! Calls that move bytes between a channel and user memory: `read`, `write` and all their kin.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::task_struct,
    helpers::{
        bpf_probe_read_user,
        generated::{bpf_ktime_get_boot_ns, bpf_loop},
    },
};
use countersign_common::{Task, counter, end_how, gap, tag, transfer_flags};
use countersign_ebpf::{MESSAGES_MAX, VECTORS_MAX, direction_of, nr, op_limit};

use super::ends;
use crate::{
    arch::{PtRegs, syscall_args},
    channel::{Enrolled, advance, enrol_operation, leave},
    emit::{capture_buffer, count, walk},
    log,
    offsets::current,
    resolve::{FILES, file_of, resolve},
    scope::{Thread, entered, tag_of, thread},
};

const MSG_OOB: u64 = 1;
const MSG_PEEK: u64 = 2;
/// Size of `struct mmsghdr`: a `struct user_msghdr` of 56 bytes, `msg_len`, padding (`include/linux/socket.h`).
const MMSGHDR_BYTES: u64 = 64;
const MSG_LEN_OFFSET: u64 = 56;

/// At `sys_enter` of a watched task: notes what the descriptor names now and when.
///
/// # Safety
/// The arguments are the tracepoint's.
#[inline(always)]
pub unsafe fn enter(task: *mut task_struct, bits: u32, regs: *const PtRegs, number: u64) {
    // SAFETY: the caller's.
    unsafe {
        let Some(thread) = thread(task) else { return };
        (*thread).args = syscall_args(regs);
        (*thread).enter_ns = bpf_ktime_get_boot_ns();
        (*thread).open_call = number + 1;
        (*thread).bits = bits;
        let file = file_of(task, (*thread).args[0]);
        resolve(&mut (*thread).first, file, wants_files(bits, number));
    }
}

/// At `sys_exit` of a task that may be watched: captures what moved. The tag of `sys_enter` counts, for the price of one look-up.
///
/// # Safety
/// The arguments are the tracepoint's; `leader` is the task's.
#[inline(always)]
pub unsafe fn exit(
    task: *mut task_struct,
    leader: *mut task_struct,
    regs: *const PtRegs,
    number: u64,
    returned: i64,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut flags = 0;
        let thread = match entered(task, number) {
            Some(thread) => {
                (*thread).open_call = 0;
                if returned <= 0 || (*thread).first.channel.kind == 0 {
                    return;
                }
                if file_of(task, (*thread).args[0]) != (*thread).first.file {
                    flags |= transfer_flags::FD_SWAPPED;
                }
                thread
            }
            None => {
                // Tagged during the call.
                let bits = tag_of(leader).unwrap_or(0);
                if bits == 0 || returned <= 0 {
                    return;
                }
                let Some(thread) = thread(task) else { return };
                enter(task, bits, regs, number);
                (*thread).open_call = 0;
                if (*thread).first.channel.kind == 0 {
                    return;
                }
                flags |= transfer_flags::NO_ENTER;
                thread
            }
        };
        let bits = (*thread).bits;
        let mut exit_ns = (*thread).enter_ns;
        if flags & transfer_flags::NO_ENTER == 0 {
            exit_ns = bpf_ktime_get_boot_ns();
        }
        let op_direction = direction_of(number);
        flags |= message_flags(number, &(*thread).args) | whose(bits);
        let bytes = if numbers_itself(number) || flags & transfer_flags::PEEK != 0 {
            0
        } else {
            returned as u64
        };
        let enrolled = enrol_operation(
            &mut (*thread).first,
            leave(bits),
            u64::from(op_direction),
            bytes,
            &raw mut (*thread).transfer,
        );
        if enrolled == Enrolled::No {
            if (*thread).first.channel.epoch == 0 {
                return;
            }
            log::no_channel((*thread).first.channel.inode);
        }
        let who = current(leader);
        if enrolled == Enrolled::New {
            let fd = (*thread).args[0] as u32;
            ends::report(&(*thread).first, &who, end_how::USED, fd);
        }
        if flags & transfer_flags::FD_SWAPPED != 0 {
            count(counter::FD_SWAPPED, 1);
        }
        if flags & transfer_flags::NO_ENTER != 0 {
            count(counter::NO_ENTER, 1);
        }
        describe(thread, &who, number, exit_ns, flags, op_direction);
        (*thread).limit_left = op_limit(bits, op_direction);
        (*thread).missed = 0;
        if !capture(thread, number, returned as u64) {
            tell_missed((*thread).missed, returned as u64);
        }
    }
}

/// Messages about what an operation lacks.
#[inline(always)]
fn tell_missed(missed: u64, bytes: u64) {
    if missed & (1 << gap::RING_FULL | 1 << gap::CREDIT) != 0 {
        log::ring_full(bytes);
    }
    if missed & 1 << gap::FAULT != 0 {
        log::fault(bytes);
    }
}

/// The flags that say on whose behalf.
#[inline(always)]
pub fn whose(bits: u32) -> u16 {
    let mut flags = 0;
    if bits & tag::PROXY != 0 {
        flags |= transfer_flags::BY_PROXY;
    }
    if bits & tag::TREE == 0 {
        flags |= transfer_flags::BY_PEER;
    }
    flags
}

/// Writes what all records of a call share.
///
/// # Safety
/// `thread` is the current thread's state.
#[inline(always)]
pub unsafe fn describe(
    thread: *mut Thread,
    who: &Task,
    number: u64,
    exit_ns: u64,
    flags: u16,
    op_direction: u8,
) {
    // SAFETY: the caller's.
    unsafe {
        // Field by field: building the structure first costs a `memset` that goes byte by byte, and a copy.
        let transfer = &raw mut (*thread).transfer;
        (*transfer).task = *who;
        (*transfer).channel = (*thread).first.channel;
        (*transfer).enter_ns = (*thread).enter_ns;
        (*transfer).exit_ns = exit_ns;
        (*transfer).syscall = number as u16;
        (*transfer).flags = flags;
        (*transfer).reason = gap::NONE;
        (*transfer).direction = op_direction;
        (*transfer).reserved = [0; 5];
    }
}

/// Numbers one operation of `returned` bytes on the channel described, and begins it.
///
/// # Safety
/// `thread` is the current thread's state.
#[inline(always)]
pub unsafe fn number(thread: *mut Thread, returned: u64) {
    // SAFETY: the caller's.
    unsafe {
        let transfer = &mut (*thread).transfer;
        let mut place = (0, 0);
        if transfer.flags & transfer_flags::PEEK == 0 {
            place = advance(&transfer.channel, transfer.direction, returned);
        }
        (transfer.op_seq, transfer.stream_before) = place;
        begin(thread, returned);
    }
}

/// Begins the capture of an operation that has its number.
///
/// # Safety
/// `thread` is the current thread's state.
#[inline(always)]
unsafe fn begin(thread: *mut Thread, returned: u64) {
    // SAFETY: the caller's.
    unsafe {
        (*thread).transfer.returned = returned;
        (*thread).transfer.offset = 0;
        (*thread).op_left = returned;
        (*thread).fault_until = 0;
    }
}

/// Calls that move several messages: each is an operation of its own.
#[inline(always)]
const fn numbers_itself(number: u64) -> bool {
    matches!(number, nr::SENDMMSG | nr::RECVMMSG)
}

/// Captures what moved; whether all of it.
#[inline(always)]
unsafe fn capture(thread: *mut Thread, number: u64, returned: u64) -> bool {
    // SAFETY: the caller's.
    unsafe {
        match number {
            nr::READV | nr::WRITEV | nr::PREADV | nr::PWRITEV | nr::PREADV2 | nr::PWRITEV2 => {
                begin(thread, returned);
                let (vector, vectors) = ((*thread).args[1], (*thread).args[2]);
                from_vectors(thread, vector, vectors);
            }
            nr::SENDMSG | nr::RECVMSG => {
                begin(thread, returned);
                let message = (*thread).args[1];
                from_message(thread, message);
                if number == nr::RECVMSG {
                    ends::received(thread, message);
                }
            }
            nr::SENDMMSG | nr::RECVMMSG => {
                (*thread).messages = (*thread).args[1];
                // Each message has the limit of an operation of its own.
                (*thread).args[2] = (*thread).limit_left;
                let messages = if returned > u64::from(MESSAGES_MAX) {
                    MESSAGES_MAX
                } else {
                    returned as u32
                };
                let mut context = thread;
                bpf_loop(
                    messages,
                    message_step as *const () as *mut c_void,
                    (&raw mut context).cast(),
                    0,
                );
            }
            _ => {
                begin(thread, returned);
                return capture_buffer(thread, (*thread).args[1]);
            }
        }
        (*thread).missed == 0
    }
}

#[inline(always)]
unsafe fn from_vectors(thread: *mut Thread, vector: u64, vectors: u64) {
    // SAFETY: the caller's.
    unsafe {
        (*thread).vector = vector;
        (*thread).vectors_left = if vectors > VECTORS_MAX {
            VECTORS_MAX
        } else {
            vectors
        };
        (*thread).segment_left = 0;
        walk(thread);
    }
}

/// `struct user_msghdr`: the vectors' address at 16, their number at 24.
#[inline(always)]
unsafe fn from_message(thread: *mut Thread, message: u64) {
    // SAFETY: the helper checks the address.
    let [vector, vectors] =
        unsafe { bpf_probe_read_user((message + 16) as *const [u64; 2]) }.unwrap_or([0, 0]);
    // SAFETY: the caller's.
    unsafe { from_vectors(thread, vector, vectors) };
}

/// One message of `sendmmsg` or `recvmmsg`; 1 ends the loop.
unsafe extern "C" fn message_step(_index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `capture` passes the address of its pointer.
    unsafe {
        let thread = *context.cast::<*mut Thread>();
        let message = (*thread).messages;
        (*thread).messages = message + MMSGHDR_BYTES;
        let Ok(len) = bpf_probe_read_user((message + MSG_LEN_OFFSET) as *const u32) else {
            count(counter::FAULT_BYTES, 1);
            return 1;
        };
        if len == 0 {
            return 0;
        }
        (*thread).limit_left = (*thread).args[2];
        number(thread, u64::from(len));
        from_message(thread, message);
        0
    }
}

#[inline(always)]
fn message_flags(number: u64, args: &[u64; 6]) -> u16 {
    let given = match number {
        nr::SENDTO | nr::RECVFROM | nr::SENDMMSG | nr::RECVMMSG => args[3],
        nr::SENDMSG | nr::RECVMSG => args[2],
        _ => 0,
    };
    let mut flags = 0;
    if given & MSG_PEEK != 0 {
        flags |= transfer_flags::PEEK;
    }
    if given & MSG_OOB != 0 {
        flags |= transfer_flags::OOB;
    }
    flags
}

/// The third view: what a proxy writes to regular files.
#[inline(always)]
fn wants_files(bits: u32, number: u64) -> u64 {
    if bits & tag::PROXY != 0
        && matches!(
            number,
            nr::WRITE | nr::WRITEV | nr::PWRITE64 | nr::PWRITEV | nr::PWRITEV2
        )
    {
        FILES
    } else {
        0
    }
}
