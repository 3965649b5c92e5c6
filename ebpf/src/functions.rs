//! Entry points of tiers K and F: the same bodies on the entry and return of kernel functions, by kprobes or by trampolines.
//!
//! A kprobe program is attached to any number of functions that take the same arguments. A trampoline's program is bound to one function when it is
//! loaded, so there is one for each; which function that is, its name on the running kernel says at load.

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use countersign_common::{channel_kind, direction};

use crate::probes::{
    function::{OF_ALL, exit, file_enter, receive_enter, send_enter},
    process,
};

/// `ssize_t (struct kiocb *, struct iov_iter *)`, towards the process.
#[kprobe]
pub fn k_file_read_enter(ctx: ProbeContext) -> u32 {
    // SAFETY: the function's arguments.
    unsafe { file_enter(direction::READ, arg(&ctx, 0), arg(&ctx, 1)) };
    0
}

/// `ssize_t (struct kiocb *, struct iov_iter *)`, from the process.
#[kprobe]
pub fn k_file_write_enter(ctx: ProbeContext) -> u32 {
    // SAFETY: as above.
    unsafe { file_enter(direction::WRITE, arg(&ctx, 0), arg(&ctx, 1)) };
    0
}

/// `int (struct socket *, struct msghdr *, size_t, int)`, but for sequenced packets.
#[kprobe]
pub fn k_receive_enter(ctx: ProbeContext) -> u32 {
    let (socket, message, flags) = (arg(&ctx, 0), arg(&ctx, 1), arg(&ctx, 3));
    // SAFETY: as above.
    unsafe { receive_enter(socket, message, flags, channel_kind::UNIX_SEQPACKET) };
    0
}

/// The same for sequenced packets.
#[kprobe]
pub fn k_receive_seqpacket_enter(ctx: ProbeContext) -> u32 {
    // SAFETY: as above.
    unsafe { receive_enter(arg(&ctx, 0), arg(&ctx, 1), arg(&ctx, 3), OF_ALL) };
    0
}

/// `int (struct socket *, struct msghdr *, size_t)`.
#[kprobe]
pub fn k_send_enter(ctx: ProbeContext) -> u32 {
    // SAFETY: as above.
    unsafe { send_enter(arg(&ctx, 0), arg(&ctx, 1)) };
    0
}

/// Return of [`k_file_read_enter`]'s functions.
#[kretprobe]
pub fn k_file_read_exit(ctx: RetProbeContext) -> u32 {
    // SAFETY: on such a return.
    unsafe { exit(direction::READ, ctx.ret()) };
    0
}

/// Return of [`k_file_write_enter`]'s functions.
#[kretprobe]
pub fn k_file_write_exit(ctx: RetProbeContext) -> u32 {
    // SAFETY: as above.
    unsafe { exit(direction::WRITE, ctx.ret()) };
    0
}

/// Return of [`k_receive_enter`]'s functions, which leave the upper half of the register undefined.
#[kretprobe]
pub fn k_receive_exit(ctx: RetProbeContext) -> u32 {
    // SAFETY: as above.
    unsafe { exit(direction::READ, i64::from(ctx.ret::<i32>())) };
    0
}

/// Return of [`k_receive_seqpacket_enter`]'s function.
#[kretprobe]
pub fn k_receive_seqpacket_exit(ctx: RetProbeContext) -> u32 {
    // SAFETY: as above.
    unsafe { exit(direction::READ, i64::from(ctx.ret::<i32>())) };
    0
}

/// Return of [`k_send_enter`]'s functions.
#[kretprobe]
pub fn k_send_exit(ctx: RetProbeContext) -> u32 {
    // SAFETY: as above.
    unsafe { exit(direction::WRITE, i64::from(ctx.ret::<i32>())) };
    0
}

/// `void schedule_tail(struct task_struct *)`: what a new task runs first.
#[kprobe]
pub fn k_first_step(_ctx: ProbeContext) -> u32 {
    // SAFETY: the current task.
    unsafe { process::first_step() };
    0
}

#[inline(always)]
fn arg(ctx: &ProbeContext, index: usize) -> u64 {
    ctx.arg(index).unwrap_or(0)
}

/// Both programs of a function that takes a `struct kiocb`.
macro_rules! file_function {
    ($enter:ident, $exit:ident, $direction:expr) => {
        #[fentry]
        pub fn $enter(ctx: FEntryContext) -> i32 {
            // SAFETY: the function's arguments.
            unsafe { file_enter($direction, ctx.arg(0), ctx.arg(1)) };
            0
        }

        #[fexit]
        pub fn $exit(ctx: FExitContext) -> i32 {
            // SAFETY: on such a return.
            unsafe { exit($direction, ctx.ret().unwrap_or(0)) };
            0
        }
    };
}

/// Both programs of a protocol's `recvmsg`.
macro_rules! receive_function {
    ($enter:ident, $exit:ident, $passed_by:expr) => {
        #[fentry]
        pub fn $enter(ctx: FEntryContext) -> i32 {
            // SAFETY: the function's arguments.
            unsafe { receive_enter(ctx.arg(0), ctx.arg(1), ctx.arg(3), $passed_by) };
            0
        }

        #[fexit]
        pub fn $exit(ctx: FExitContext) -> i32 {
            // SAFETY: on such a return.
            unsafe { exit(direction::READ, i64::from(ctx.ret::<i32>().unwrap_or(0))) };
            0
        }
    };
}

/// Both programs of a protocol's `sendmsg`.
macro_rules! send_function {
    ($enter:ident, $exit:ident) => {
        #[fentry]
        pub fn $enter(ctx: FEntryContext) -> i32 {
            // SAFETY: the function's arguments.
            unsafe { send_enter(ctx.arg(0), ctx.arg(1)) };
            0
        }

        #[fexit]
        pub fn $exit(ctx: FExitContext) -> i32 {
            // SAFETY: on such a return.
            unsafe { exit(direction::WRITE, i64::from(ctx.ret::<i32>().unwrap_or(0))) };
            0
        }
    };
}

file_function!(f_pipe_read_enter, f_pipe_read_exit, direction::READ);
file_function!(f_pipe_write_enter, f_pipe_write_exit, direction::WRITE);
file_function!(f_tty_read_enter, f_tty_read_exit, direction::READ);
file_function!(f_tty_write_enter, f_tty_write_exit, direction::WRITE);
receive_function!(
    f_unix_stream_recvmsg_enter,
    f_unix_stream_recvmsg_exit,
    OF_ALL
);
receive_function!(
    f_unix_dgram_recvmsg_enter,
    f_unix_dgram_recvmsg_exit,
    channel_kind::UNIX_SEQPACKET
);
receive_function!(
    f_unix_seqpacket_recvmsg_enter,
    f_unix_seqpacket_recvmsg_exit,
    OF_ALL
);
receive_function!(f_inet_recvmsg_enter, f_inet_recvmsg_exit, OF_ALL);
receive_function!(f_inet6_recvmsg_enter, f_inet6_recvmsg_exit, OF_ALL);
send_function!(f_unix_stream_sendmsg_enter, f_unix_stream_sendmsg_exit);
send_function!(f_unix_dgram_sendmsg_enter, f_unix_dgram_sendmsg_exit);
send_function!(f_inet_sendmsg_enter, f_inet_sendmsg_exit);
send_function!(f_inet6_sendmsg_enter, f_inet6_sendmsg_exit);
