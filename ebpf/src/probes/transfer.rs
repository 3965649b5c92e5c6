//! Calls that move bytes between a channel and user memory: `read`, `write` and all their kin.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::task_struct,
    helpers::{
        bpf_probe_read_user,
        generated::{bpf_get_current_task_btf, bpf_ktime_get_boot_ns, bpf_loop},
    },
};
use countersign_common::{
    Task, channel_kind, counter, direction, end_how, gap, tag, transfer_flags,
};
use countersign_ebpf::{MESSAGES_MAX, VECTORS_MAX, direction_of, nr, op_limit};

use super::{compat::arguments, ends};
use crate::{
    arch::PtRegs,
    channel::{Enrolled, advance, enrol_operation, leave},
    emit::{capture_buffer, count, walk},
    iterator::vectors_in,
    log,
    offsets::{current, functions_carry, functions_carry_all, functions_carry_kind, group_leader},
    resolve::{FILES, file_of, resolve},
    scope::{Thread, bits_of, entered, thread},
};

pub const MSG_OOB: u64 = 1;
pub const MSG_PEEK: u64 = 2;
pub const MSG_TRUNC: u64 = 0x20;
pub const MSG_ERRQUEUE: u64 = 0x2000;
/// Offset of the flags that come back in `struct user_msghdr`.
const MSG_FLAGS_OFFSET: u64 = 48;
/// The same in `struct compat_msghdr`.
const COMPAT_MSG_FLAGS_OFFSET: u64 = 24;
/// Size of `struct mmsghdr`: a `struct user_msghdr` of 56 bytes, `msg_len`, padding (`include/linux/socket.h`).
const MMSGHDR_BYTES: u64 = 64;
const MSG_LEN_OFFSET: u64 = 56;
/// Size of `struct compat_mmsghdr`: a `struct compat_msghdr` of 28 bytes, `msg_len`.
const COMPAT_MMSGHDR_BYTES: u64 = 32;
const COMPAT_MSG_LEN_OFFSET: u64 = 28;

/// At `sys_enter` of a watched task: notes what the descriptor names now and when.
///
/// # Safety
/// The arguments are the tracepoint's.
#[inline(always)]
pub unsafe fn enter<const COMPAT: bool>(
    task: *mut task_struct,
    bits: u32,
    regs: *const PtRegs,
    number: u64,
) {
    // SAFETY: the caller's.
    unsafe {
        let Some(thread) = thread(task) else { return };
        note::<COMPAT>(thread, bits, regs, number);
        let file = file_of(task, (*thread).args[0]);
        let files = wants_files(bits, number);
        if functions_carry() {
            (*thread).carried_ops = 0;
            (*thread).carried_bytes = 0;
            if files == 0 && functions_carry_all() {
                // Most likely the functions look at it. If not, there is time for it at the end.
                (*thread).first.file = file;
                (*thread).first.channel.kind = 0;
                return;
            }
        }
        resolve(&mut (*thread).first, file, files);
    }
}

#[inline(always)]
unsafe fn note<const COMPAT: bool>(
    thread: *mut Thread,
    bits: u32,
    regs: *const PtRegs,
    number: u64,
) {
    // SAFETY: the caller's.
    unsafe {
        (*thread).args = arguments::<COMPAT>(regs);
        (*thread).enter_ns = bpf_ktime_get_boot_ns();
        (*thread).open_call = number + 1;
        (*thread).compat = COMPAT as u32;
        (*thread).bits = bits;
        (*thread).delivered = 0;
        (*thread).delivery_failed = 0;
    }
}

/// Whether an operation is left to capture where programs on functions capture as well. What those have accounted for is not; what
/// they have not is looked at now, if the descriptor still names what it named before. A swapped one names nothing: to
/// attribute bytes to what has come to its place would be a lie that the watched process can order.
///
/// # Safety
/// `thread` is the current thread's state, of a call whose `sys_enter` was seen.
#[inline(always)]
unsafe fn is_left(task: *mut task_struct, thread: *mut Thread, number: u64, returned: i64) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let kind = (*thread).first.channel.kind;
        if kind != 0 && !functions_carry_kind(kind) {
            return true;
        }
        if is_carried(thread, number, returned) {
            return false;
        }
        let file = file_of(task, (*thread).args[0]);
        if file != (*thread).first.file {
            return false;
        }
        resolve(&mut (*thread).first, file, 0);
        if (*thread).first.channel.kind == 0 {
            return false;
        }
        count(counter::FUNCTION_MISSED, 1);
        true
    }
}

/// Whether the programs on functions have accounted for all of the present system call.
///
/// # Safety
/// `thread` is the current thread's state.
#[inline(always)]
unsafe fn is_carried(thread: *mut Thread, number: u64, returned: i64) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let carried = (*thread).carried_ops;
        (*thread).carried_ops = 0;
        if carried == 0 || returned <= 0 {
            return false;
        }
        if number == nr::RECVMSG && (*thread).compat == 0 {
            // Descriptors that came with it are no bytes.
            (*thread).transfer.task = current(group_leader(bpf_get_current_task_btf()));
            (*thread).transfer.flags = whose((*thread).bits);
            ends::received(thread, (*thread).args[1]);
        }
        true
    }
}

/// At `sys_exit` of a task that may be watched: captures what moved. The tag of `sys_enter` counts, for the price of one look-up.
///
/// # Safety
/// The arguments are the tracepoint's; `leader` is the task's.
#[inline(never)]
pub unsafe fn exit<const COMPAT: bool>(
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
                if returned <= 0 {
                    return;
                }
                if functions_carry() && !is_left(task, thread, number, returned) {
                    return;
                }
                if (*thread).first.channel.kind == 0 {
                    return;
                }
                if file_of(task, (*thread).args[0]) != (*thread).first.file {
                    flags |= transfer_flags::FD_SWAPPED;
                }
                if (*thread).delivered >= returned as u64 && (*thread).delivery_failed == 0 {
                    flags |= transfer_flags::KERNEL_COPY;
                }
                thread
            }
            None => {
                // Tagged during the call.
                let bits = bits_of(leader);
                if bits == 0 || returned <= 0 {
                    return;
                }
                let Some(thread) = thread(task) else { return };
                note::<COMPAT>(thread, bits, regs, number);
                (*thread).open_call = 0;
                if functions_carry() && is_carried(thread, number, returned) {
                    return;
                }
                let file = file_of(task, (*thread).args[0]);
                resolve(&mut (*thread).first, file, wants_files(bits, number));
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
        if COMPAT {
            flags |= transfer_flags::COMPAT;
        }
        flags = all_flags(
            number,
            (*thread).args[2],
            (*thread).args[3],
            u64::from(bits),
            u64::from(flags),
        ) as u16;
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
                if (*thread).first.channel.kind == channel_kind::TTY {
                    count(counter::TERMINAL_BYTES, returned as u64);
                }
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
        let compat = if COMPAT { COMPAT_MESSAGE } else { 0 };
        flags |= truncation(
            compat | u64::from((*thread).first.channel.kind) << 32 | number,
            given_flags(number, (*thread).args[2], (*thread).args[3]),
            (*thread).args[1],
            (*thread).args[2],
            returned as u64,
        ) as u16;
        describe(thread, &who, number, exit_ns, flags, op_direction);
        (*thread).limit_left = op_limit(bits, op_direction);
        (*thread).missed = 0;
        if !capture(thread, number, returned as u64) {
            tell_missed((*thread).missed, returned as u64);
        }
    }
}

// Functions with a C name are global to the verifier: it looks at each once, and does not know what they return. Flags that it knew
// would be looked at in each of their combinations.

/// All flags that are known before the channel is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn all_flags(number: u64, third: u64, fourth: u64, bits: u64, flags: u64) -> u64 {
    let given = given_flags(number, third, fourth);
    flags | u64::from(message_flags(given) | whose(bits as u32))
}

/// [`transfer_flags::MESSAGE_TRUNCATED`] or nothing: whether the receiver took less than came. Of a message it took what its
/// buffers hold, of a TCP stream with `MSG_TRUNC` nothing at all. The messages of `recvmmsg` are looked at one by one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn truncation(
    kind_and_number: u64,
    given: u64,
    message: u64,
    room: u64,
    returned: u64,
) -> u64 {
    let number = kind_and_number & 0xffff_ffff;
    if direction_of(number) != direction::READ || numbers_itself(number) {
        return 0;
    }
    let truncated = match (kind_and_number >> 32) as u8 {
        channel_kind::TCP => given & MSG_TRUNC != 0,
        channel_kind::UNIX_DGRAM | channel_kind::UNIX_SEQPACKET => match number {
            nr::RECVFROM => returned > room,
            // SAFETY: the helper checks the address.
            nr::RECVMSG => unsafe { says_truncated(message, kind_and_number & COMPAT_MESSAGE) },
            _ => false,
        },
        _ => false,
    };
    if !truncated {
        return 0;
    }
    count(counter::MESSAGES_TRUNCATED, 1);
    u64::from(transfer_flags::MESSAGE_TRUNCATED)
}

/// In the first argument of [`truncation`]: the message is one of the 32-bit ABI.
const COMPAT_MESSAGE: u64 = 1 << 40;

/// Whether the kernel has said of a message that it was cut. Its word lies in the receiver's memory.
///
/// # Safety
/// In a program; the helper checks the address.
#[inline(always)]
pub unsafe fn says_truncated(message: u64, compat: u64) -> bool {
    let place = message
        + if compat != 0 {
            COMPAT_MSG_FLAGS_OFFSET
        } else {
            MSG_FLAGS_OFFSET
        };
    // SAFETY: the helper checks the address.
    let said = unsafe { bpf_probe_read_user(place as *const u32) };
    said.is_ok_and(|said| u64::from(said) & MSG_TRUNC != 0)
}

/// Messages about what an operation lacks.
#[inline(always)]
pub fn tell_missed(missed: u64, bytes: u64) {
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
pub unsafe fn begin(thread: *mut Thread, returned: u64) {
    // SAFETY: the caller's.
    unsafe {
        (*thread).transfer.returned = returned;
        (*thread).transfer.offset = 0;
        (*thread).op_left = returned;
        (*thread).fault_until = 0;
        (*thread).vectors_in = if (*thread).compat != 0 {
            vectors_in::COMPAT
        } else {
            vectors_in::USER
        };
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
                // The control data of the 32-bit ABI is not followed: an end that came with it is reported when it is used.
                if number == nr::RECVMSG && (*thread).compat == 0 {
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
                let mut room = returned;
                if (*thread).transfer.flags & transfer_flags::MESSAGE_TRUNCATED != 0 {
                    room = if discards(thread) {
                        0
                    } else {
                        (*thread).args[2]
                    };
                }
                return capture_buffer(thread, (*thread).args[1], room);
            }
        }
        (*thread).missed == 0
    }
}

#[inline(always)]
pub unsafe fn from_vectors(thread: *mut Thread, vector: u64, vectors: u64) {
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

/// `struct user_msghdr`: the vectors' address at 16, their number at 24. `struct compat_msghdr`: both in half the room at 8.
#[inline(always)]
pub unsafe fn from_message(thread: *mut Thread, message: u64) {
    // SAFETY: the caller's; the helper checks the address.
    unsafe {
        let (vector, mut vectors);
        if (*thread).compat != 0 {
            let words = bpf_probe_read_user((message + 8) as *const [u32; 2]).unwrap_or([0, 0]);
            (vector, vectors) = (u64::from(words[0]), u64::from(words[1]));
        } else {
            let words = bpf_probe_read_user((message + 16) as *const [u64; 2]).unwrap_or([0, 0]);
            (vector, vectors) = (words[0], words[1]);
        }
        if discards(thread) {
            vectors = 0;
        }
        from_vectors(thread, vector, vectors);
    }
}

/// Whether the bytes went nowhere: what `MSG_TRUNC` means to TCP.
#[inline(always)]
pub unsafe fn discards(thread: *mut Thread) -> bool {
    // SAFETY: the current thread's state.
    unsafe {
        (*thread).transfer.flags & transfer_flags::MESSAGE_TRUNCATED != 0
            && (*thread).transfer.channel.kind == channel_kind::TCP
    }
}

/// One message of `sendmmsg` or `recvmmsg`; 1 ends the loop.
unsafe extern "C" fn message_step(_index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `capture` passes the address of its pointer.
    unsafe {
        let thread = *context.cast::<*mut Thread>();
        let message = (*thread).messages;
        let (bytes, len_at) = if (*thread).compat != 0 {
            (COMPAT_MMSGHDR_BYTES, COMPAT_MSG_LEN_OFFSET)
        } else {
            (MMSGHDR_BYTES, MSG_LEN_OFFSET)
        };
        (*thread).messages = message + bytes;
        let Ok(len) = bpf_probe_read_user((message + len_at) as *const u32) else {
            count(counter::FAULT_BYTES, 1);
            return 1;
        };
        if len == 0 {
            return 0;
        }
        (*thread).limit_left = (*thread).args[2];
        (*thread).transfer.flags &= !transfer_flags::MESSAGE_TRUNCATED;
        if (*thread).transfer.direction == direction::READ
            && match (*thread).first.channel.kind {
                channel_kind::UNIX_DGRAM | channel_kind::UNIX_SEQPACKET => {
                    says_truncated(message, u64::from((*thread).compat))
                }
                channel_kind::TCP => (*thread).args[3] & MSG_TRUNC != 0,
                _ => false,
            }
        {
            (*thread).transfer.flags |= transfer_flags::MESSAGE_TRUNCATED;
            count(counter::MESSAGES_TRUNCATED, 1);
        }
        number(thread, u64::from(len));
        from_message(thread, message);
        0
    }
}

#[inline(always)]
pub const fn given_flags(number: u64, third: u64, fourth: u64) -> u64 {
    match number {
        nr::SENDTO | nr::RECVFROM | nr::SENDMMSG | nr::RECVMMSG => fourth,
        nr::SENDMSG | nr::RECVMSG => third,
        _ => 0,
    }
}

#[inline(always)]
pub const fn message_flags(given: u64) -> u16 {
    let mut flags = 0;
    // What lies in the error queue has been sent, not received.
    if given & (MSG_PEEK | MSG_ERRQUEUE) != 0 {
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
