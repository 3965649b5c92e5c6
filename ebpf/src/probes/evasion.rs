//! Calls by which a watched process can get round the witness: into another process's memory, out of the tree, past its rights.
//!
//! Who the target is, and which rights there were, is found out at `sys_enter`; what came of it at `sys_exit`. A thread that
//! was tagged in between is looked at at `sys_exit` alone.

use aya_ebpf::{bindings::task_struct, helpers::bpf_probe_read_user};
use countersign_common::{
    channel_kind,
    evasion::{flags, foreign, what},
    tag,
};
use countersign_ebpf::{SETUP_FLAGS_OFFSET, nr};

use super::{foreign as channels, watched};
use crate::{
    arch::{Abi, PtRegs, syscall_args},
    attempt::{Attempt, begin, capabilities_of, clear, euid_of, noted, report, report_begun},
    offsets::{kernel, off},
    resolve::{FILES, WHOLE, file_of, resolve},
    scope::Held,
    target,
};

/// Requests of `ptrace` that attach (`include/uapi/linux/ptrace.h`).
const PTRACE_TRACEME: u64 = 0;
const PTRACE_ATTACH: u64 = 16;
const PTRACE_SEIZE: u64 = 0x4206;
/// `MAP_TYPE`, `MAP_SHARED`, `MAP_SHARED_VALIDATE`, `MAP_ANONYMOUS` (`include/uapi/linux/mman.h`).
const MAP_TYPE: u64 = 0x0f;
const MAP_SHARED: u64 = 1;
const MAP_SHARED_VALIDATE: u64 = 3;
const MAP_ANONYMOUS: u64 = 0x20;
const SHM_RDONLY: u64 = 0o10000;
const CLONE_NEWUSER: u64 = 0x1000_0000;
const SECCOMP_SET_MODE_FILTER: u64 = 1;
const SECCOMP_FILTER_FLAG_NEW_LISTENER: u64 = 1 << 3;
const FMODE_WRITE: u64 = 2;
const EINPROGRESS: i64 = 115;
/// The highest return value that is an error (`MAX_ERRNO`).
const ERROR_MAX: u64 = 4095;

/// At `sys_enter` of a call whose outcome cannot be told without what was before.
///
/// # Safety
/// The arguments are the tracepoint's.
#[inline(never)]
pub unsafe fn note(task: *mut task_struct, regs: *const PtRegs, number: u64) -> i64 {
    // SAFETY: the caller's.
    unsafe {
        let Some(attempt) = begin(task, number) else {
            return 0;
        };
        (*attempt).open_call = number + 1;
        look(task, regs, attempt, number);
    }
    0
}

/// Notes target, rights or files, whichever the call is about.
///
/// # Safety
/// As [`note`]; `attempt` is the current thread's.
#[inline(always)]
unsafe fn look(task: *mut task_struct, regs: *const PtRegs, attempt: *mut Attempt, number: u64) {
    // SAFETY: the caller's.
    unsafe {
        let args = syscall_args(regs, Abi::Native);
        match number {
            nr::PTRACE if args[0] == PTRACE_TRACEME => {}
            nr::PTRACE => {
                target::by_number(task, attempt, args[1]);
            }
            nr::KILL if (args[0] as i32) <= 0 => {
                (*attempt).flags |= flags::TARGET_UNKNOWN;
                (*attempt).argument = args[0] as i32 as i64 as u64;
            }
            nr::PROCESS_VM_READV
            | nr::PROCESS_VM_WRITEV
            | nr::KILL
            | nr::TKILL
            | nr::TGKILL
            | nr::RT_SIGQUEUEINFO
            | nr::RT_TGSIGQUEUEINFO => {
                target::by_number(task, attempt, args[0]);
            }
            nr::PRLIMIT64 if args[0] as u32 != 0 && args[2] != 0 => {
                target::by_number(task, attempt, args[0]);
            }
            nr::PIDFD_SEND_SIGNAL | nr::PROCESS_MADVISE => {
                target::by_pidfd(task, attempt, args[0]);
            }
            nr::SETUID | nr::SETREUID | nr::SETRESUID | nr::CAPSET | nr::EXECVE | nr::EXECVEAT => {
                (*attempt).capabilities = capabilities_of(task);
                (*attempt).euid = euid_of(task);
            }
            nr::TRUNCATE
            | nr::FTRUNCATE
            | nr::UNLINK
            | nr::UNLINKAT
            | nr::RENAME
            | nr::RENAMEAT
            | nr::RENAMEAT2 => {
                watched::note();
            }
            _ => {}
        }
    }
}

/// At `sys_exit`: reports what was tried.
///
/// # Safety
/// The arguments are the tracepoint's.
#[inline(never)]
pub unsafe fn exit(task: *mut task_struct, regs: *const PtRegs, number: u64, returned: i64) -> i64 {
    // SAFETY: the caller's.
    unsafe {
        let args = syscall_args(regs, Abi::Native);
        if number == nr::MMAP {
            mapped(task, &args, returned);
            return 0;
        }
        if !concerns(number, &args, returned) {
            return 0;
        }
        if number == nr::SOCKET || number == nr::BIND {
            let (fd, done) = if number == nr::SOCKET {
                (returned as u64, foreign::MADE)
            } else {
                (args[0], foreign::BOUND)
            };
            channels::socket(task, fd, done, of_vsock(&args, number), number);
            return 0;
        }
        let attempt = match noted(task, number) {
            Some(attempt) => attempt,
            None => {
                let Some(attempt) = begin(task, number) else {
                    return 0;
                };
                look(task, regs, attempt, number);
                attempt
            }
        };
        (*attempt).open_call = 0;
        (*attempt).returned = returned;
        let own = (aya_ebpf::helpers::bpf_get_current_pid_tgid() >> 32) as u32;
        let another = (*attempt).target.tgid != own;
        match number {
            nr::PTRACE => tell(attempt, what::PTRACE, args[0]),
            nr::PROCESS_VM_READV if another => tell(attempt, what::MEMORY_READ, 0),
            nr::PROCESS_VM_WRITEV if another => tell(attempt, what::MEMORY_WRITTEN, 0),
            nr::PROCESS_MADVISE if another => tell(attempt, what::MEMORY_ADVICE, args[3]),
            nr::KILL | nr::TKILL | nr::RT_SIGQUEUEINFO | nr::PIDFD_SEND_SIGNAL if another => {
                tell(attempt, what::SIGNAL, args[1] & 0xff);
            }
            nr::TGKILL | nr::RT_TGSIGQUEUEINFO if another => {
                tell(attempt, what::SIGNAL, args[2] & 0xff);
            }
            nr::PRLIMIT64 if another => tell(attempt, what::LIMIT_SET, args[1] & 0xffff_ffff),
            nr::SETUID | nr::SETREUID | nr::SETRESUID | nr::CAPSET => gained(task, attempt),
            nr::TRUNCATE
            | nr::FTRUNCATE
            | nr::UNLINK
            | nr::UNLINKAT
            | nr::RENAME
            | nr::RENAMEAT
            | nr::RENAMEAT2 => {
                watched::compare(attempt);
            }
            nr::SHMAT => {
                (*attempt).inode = args[0] & 0xffff_ffff;
                let mode = if args[2] & SHM_RDONLY == 0 { 2 } else { 1 };
                tell(attempt, what::SEGMENT_ATTACHED, mode);
            }
            nr::UNSHARE | nr::CLONE => tell(attempt, what::USER_NAMESPACE, args[0]),
            nr::CLONE3 => {
                let made = bpf_probe_read_user(args[0] as *const u64).unwrap_or(0);
                if made & CLONE_NEWUSER != 0 {
                    tell(attempt, what::USER_NAMESPACE, made);
                }
            }
            nr::SECCOMP => tell(attempt, what::SYSTEM_CALL_SUPERVISOR, args[1]),
            nr::BPF => tell(attempt, what::BPF, args[0] & 0xffff_ffff),
            nr::PERF_EVENT_OPEN => tell(attempt, what::PERF_EVENT, 0),
            nr::MSGGET => channels::sysv_queue(attempt, returned as u64),
            nr::MSGSND | nr::MSGRCV => channels::sysv_queue(attempt, args[0]),
            nr::MQ_OPEN => {
                channels::nameless(task, attempt, returned as u64, foreign::MESSAGE_QUEUE);
            }
            nr::MEMFD_CREATE => channels::nameless(task, attempt, returned as u64, foreign::MEMFD),
            _ => {}
        }
    }
    0
}

/// Whether the arguments make the call one that counts: most calls do not, and are done with here.
#[inline(always)]
fn concerns(number: u64, args: &[u64; 6], returned: i64) -> bool {
    match number {
        nr::PTRACE => {
            args[0] == PTRACE_TRACEME || args[0] == PTRACE_ATTACH || args[0] == PTRACE_SEIZE
        }
        nr::KILL | nr::TKILL | nr::RT_SIGQUEUEINFO | nr::PIDFD_SEND_SIGNAL => args[1] as u32 != 0,
        nr::TGKILL | nr::RT_TGSIGQUEUEINFO => args[2] as u32 != 0,
        nr::PRLIMIT64 => args[0] as u32 != 0 && args[2] != 0,
        nr::SHMAT => (returned as u64) < 0_u64.wrapping_sub(ERROR_MAX),
        // In the child it returns 0, and is the parent's doing.
        nr::CLONE => args[0] & CLONE_NEWUSER != 0 && returned != 0,
        nr::CLONE3 => returned != 0,
        nr::UNSHARE => args[0] & CLONE_NEWUSER != 0,
        nr::SECCOMP => {
            args[0] as u32 == SECCOMP_SET_MODE_FILTER as u32
                && args[1] & SECCOMP_FILTER_FLAG_NEW_LISTENER != 0
        }
        nr::SETUID
        | nr::SETREUID
        | nr::SETRESUID
        | nr::CAPSET
        | nr::TRUNCATE
        | nr::FTRUNCATE
        | nr::UNLINK
        | nr::UNLINKAT
        | nr::RENAME
        | nr::RENAMEAT
        | nr::RENAMEAT2 => returned == 0,
        nr::SOCKET
        | nr::BIND
        | nr::MSGGET
        | nr::MSGSND
        | nr::MSGRCV
        | nr::MQ_OPEN
        | nr::MEMFD_CREATE => returned >= 0,
        _ => true,
    }
}

#[inline(always)]
unsafe fn tell(attempt: *mut Attempt, kind: u16, number: u64) {
    // SAFETY: the current thread's attempt.
    unsafe {
        (*attempt).what = u32::from(kind);
        (*attempt).number = number;
        report(attempt);
    }
}

/// Reports rights that the current task has and had not when its call began.
///
/// # Safety
/// `attempt` is the current thread's, from the call's `sys_enter`.
#[inline(never)]
pub unsafe fn gained(task: *mut task_struct, attempt: *mut Attempt) {
    // SAFETY: the caller's.
    unsafe {
        let before = (*attempt).euid;
        let new = capabilities_of(task) & !(*attempt).capabilities;
        if before != 0 && euid_of(task) == 0 {
            tell(attempt, what::ROOT_GAINED, u64::from(before));
        }
        if new != 0 {
            tell(attempt, what::CAPABILITIES_GAINED, new);
        }
    }
}

/// At `sched_process_exec`: rights that came with the program, a tracer that came along, and what the loader is told.
///
/// # Safety
/// `task` is the current task, with its tag.
#[inline(never)]
pub unsafe fn executed(task: *mut task_struct, bits: u32) -> i64 {
    // SAFETY: the caller's.
    unsafe {
        let known = noted(task, nr::EXECVE).or_else(|| noted(task, nr::EXECVEAT));
        let attempt = match known {
            Some(attempt) => {
                gained(task, attempt);
                attempt
            }
            None => {
                let Some(attempt) = begin(task, nr::EXECVE) else {
                    return 0;
                };
                attempt
            }
        };
        (*attempt).open_call = 0;
        clear(attempt);
        if kernel::<u32>(task as u64, off!(task_ptrace)).unwrap_or(0) != 0 {
            let tracer: u64 = kernel(task as u64, off!(task_parent)).unwrap_or(0);
            if tracer == 0 || !target::by_task(attempt, tracer) {
                (*attempt).flags |= flags::TARGET_UNKNOWN;
            }
            tell(attempt, what::TRACED_EXEC, 0);
            clear(attempt);
        }
        if bits & tag::PROXY != 0 {
            (*attempt).target.tgid = 0;
            (*attempt).target.tid = 0;
            (*attempt).target.start_boot_ns = 0;
            let found = super::environment::variables(task);
            if found != 0 {
                tell(attempt, what::LOADER_ENVIRONMENT, found);
            }
        }
    }
    0
}

/// A shared mapping of a file that could be made.
#[inline(always)]
unsafe fn mapped(task: *mut task_struct, args: &[u64; 6], returned: i64) {
    let shared = args[3] & MAP_TYPE == MAP_SHARED || args[3] & MAP_TYPE == MAP_SHARED_VALIDATE;
    if !shared || returned as u64 >= 0_u64.wrapping_sub(ERROR_MAX) {
        return;
    }
    // SAFETY: the current task.
    unsafe {
        let Some(attempt) = begin(task, nr::MMAP) else {
            return;
        };
        if args[3] & MAP_ANONYMOUS != 0 {
            channels::tell(attempt, foreign::ANONYMOUS_MEMORY);
            return;
        }
        let mut held = Held::empty();
        resolve(&mut held, file_of(task, args[4]), FILES | WHOLE);
        if held.channel.kind != channel_kind::FILE {
            return;
        }
        (*attempt).inode = held.channel.inode;
        (*attempt).dev = held.channel.dev;
        let mode = if held.mode & FMODE_WRITE == 0 { 1 } else { 2 };
        tell(attempt, what::SHARED_MAPPING, mode);
    }
}

/// At `sys_exit` of a call that gave a watched process a descriptor.
///
/// # Safety
/// The arguments are the tracepoint's.
#[inline(never)]
pub unsafe fn yielded(
    task: *mut task_struct,
    bits: u32,
    regs: *const PtRegs,
    number: u64,
    returned: i64,
) -> i64 {
    // SAFETY: the caller's.
    unsafe {
        let args = syscall_args(regs, Abi::Native);
        match number {
            nr::PIDFD_GETFD => {
                let Some(attempt) = begin(task, number) else {
                    return 0;
                };
                target::by_pidfd(task, attempt, args[0]);
                let own = (aya_ebpf::helpers::bpf_get_current_pid_tgid() >> 32) as u32;
                if (*attempt).target.tgid == own {
                    return 0;
                }
                (*attempt).returned = returned;
                if returned >= 0 {
                    let file = file_of(task, returned as u64);
                    let inode: u64 = kernel(file, off!(file_inode)).unwrap_or(0);
                    (*attempt).inode = kernel(inode, off!(inode_ino)).unwrap_or(0);
                }
                tell(attempt, what::DESCRIPTOR_TAKEN, 0);
            }
            nr::CONNECT if returned == 0 || returned == -EINPROGRESS => {
                connected(task, file_of(task, args[0]), number);
            }
            nr::CONNECT | nr::ACCEPT | nr::ACCEPT4 => {}
            _ if returned >= 0 => {
                watched::opened(task, bits, returned as u64, number);
            }
            _ => {}
        }
    }
    0
}

/// The address given to `bind`, where the socket does not have it in a place that is known.
#[inline(always)]
fn of_vsock(args: &[u64; 6], number: u64) -> u64 {
    const AF_VSOCK: u16 = 40;
    if number != nr::BIND {
        return 0;
    }
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_user(args[1] as *const u16) } {
        Ok(AF_VSOCK) => args[1],
        _ => 0,
    }
}

/// A connection to a unix socket: the kernel remembers who listens there. One of a kind that is not watched is told as such.
///
/// # Safety
/// `task` is the current task.
#[inline(never)]
pub unsafe fn connected(task: *mut task_struct, file: u64, number: u64) -> i64 {
    // SAFETY: the caller's.
    unsafe {
        channels::socket_file(task, file, foreign::REACHED, 0, number);
        connected_to_listener(task, file, number);
    }
    0
}

#[inline(always)]
unsafe fn connected_to_listener(task: *mut task_struct, file: u64, number: u64) {
    let mut held = Held::empty();
    resolve(&mut held, file, WHOLE);
    if held.channel.kind != channel_kind::UNIX_STREAM {
        return;
    }
    let pid: u64 = kernel(held.channel.object, off!(sock_peer_pid)).unwrap_or(0);
    if pid == 0 {
        return;
    }
    // SAFETY: the current task.
    unsafe {
        let Some(attempt) = begin(task, number) else {
            return;
        };
        if !target::by_pid(attempt, pid) {
            (*attempt).flags |= flags::TARGET_UNKNOWN;
        }
        tell(attempt, what::CONNECTED, 0);
    }
}

/// A call of another ABI, whose numbers mean something else.
///
/// # Safety
/// `task` is the current task.
#[inline(never)]
pub unsafe fn other_abi(task: *mut task_struct, number: u64) -> i64 {
    // SAFETY: the caller's.
    unsafe {
        let Some(attempt) = begin(task, number) else {
            return 0;
        };
        (*attempt).what = u32::from(what::OTHER_ABI);
        (*attempt).number = number;
        report_begun(attempt);
    }
    0
}

/// A ring of `io_uring`, set up by a watched task.
///
/// # Safety
/// The arguments are the tracepoint's.
#[inline(never)]
pub unsafe fn ring(task: *mut task_struct, regs: *const PtRegs) -> i64 {
    // SAFETY: the caller's; the helper checks the address.
    unsafe {
        let Some(attempt) = begin(task, nr::IO_URING_SETUP) else {
            return 0;
        };
        let place = syscall_args(regs, Abi::Native)[1] + SETUP_FLAGS_OFFSET;
        let setup = bpf_probe_read_user(place as *const u32).unwrap_or(0);
        (*attempt).what = u32::from(what::IO_URING);
        (*attempt).number = u64::from(setup);
        report_begun(attempt);
    }
    0
}
