//! The record of an attempt to get round the witness: what a watched process did, to whom, with which result.
//!
//! The kernel reports facts; what an attempt takes from the evidence is judged elsewhere.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{RecordHeader, Task};

/// Values of [`Evasion::what`]. Each says what `number` and `argument` hold where they hold anything.
pub mod what {
    /// `ptrace` with a request that attaches; `number` is the request.
    pub const PTRACE: u16 = 1;
    /// A program was executed by a traced process; the target is the tracer.
    pub const TRACED_EXEC: u16 = 2;
    /// `process_vm_readv`.
    pub const MEMORY_READ: u16 = 3;
    /// `process_vm_writev`.
    pub const MEMORY_WRITTEN: u16 = 4;
    /// `/proc/PID/mem` was opened; `number` is the file's mode, 1 readable, 2 writable.
    pub const MEMORY_OPENED: u16 = 5;
    /// `/proc/PID/environ` was opened.
    pub const ENVIRONMENT_OPENED: u16 = 6;
    /// A proxy was executed with variables that put code into it; `number` holds [`loader`](super::loader) bits.
    pub const LOADER_ENVIRONMENT: u16 = 7;
    /// A signal to another process; `number` is the signal, `argument` the process id as given when it named a group.
    pub const SIGNAL: u16 = 8;
    /// `prlimit64` that sets a limit of another process; `number` is the resource.
    pub const LIMIT_SET: u16 = 9;
    /// A file or memory object was mapped shared and can be written through the mapping.
    pub const SHARED_MAPPING: u16 = 10;
    /// A System V segment was attached; `inode` is its id.
    pub const SEGMENT_ATTACHED: u16 = 11;
    /// `pidfd_getfd`; `inode` and `dev` are the file's.
    pub const DESCRIPTOR_TAKEN: u16 = 13;
    /// A watched file was opened; `number` is its [`file_class`](super::file_class), `argument` the file's mode and flags
    /// (mode in the lower half).
    pub const FILE_OPENED: u16 = 14;
    /// A watched file became shorter; `number` is its class.
    pub const FILE_CUT: u16 = 15;
    /// A watched file lost a name; `number` is its class.
    pub const FILE_REMOVED: u16 = 16;
    /// A watched file got another name; `number` is its class.
    pub const FILE_RENAMED: u16 = 17;
    /// The effective user id became 0; `number` is what it was.
    pub const ROOT_GAINED: u16 = 18;
    /// Capabilities became effective that were not; `number` is their mask.
    pub const CAPABILITIES_GAINED: u16 = 19;
    /// A user namespace was made; `number` are the flags.
    pub const USER_NAMESPACE: u16 = 20;
    /// `seccomp` with a listener, which can answer system calls in the kernel's place.
    pub const SYSTEM_CALL_SUPERVISOR: u16 = 21;
    /// `bpf`; `number` is the command.
    pub const BPF: u16 = 22;
    /// `perf_event_open`.
    pub const PERF_EVENT: u16 = 23;
    /// A ring of `io_uring` was set up; `number` are the flags. What is done through it is looked at here in no way.
    pub const IO_URING: u16 = 24;
    /// A system call of the 32-bit or x32 ABI, which is looked at here in no way; `number` is its number.
    pub const OTHER_ABI: u16 = 25;
    /// A connection to a unix socket; the target is the process that listens.
    pub const CONNECTED: u16 = 26;
    /// `process_madvise`; `number` is the advice.
    pub const MEMORY_ADVICE: u16 = 27;
    /// A signal as it arrived at the target, however it was sent: to a group, by a terminal, by a file. `number` is the signal,
    /// `argument` the kernel's `si_code`, `returned` 0 unless the target ignores it.
    pub const SIGNAL_ARRIVED: u16 = 28;
    /// A channel of a kind whose bytes are not captured was made or used: `number` is put together by [`foreign`](super::foreign),
    /// `inode` and `argument` hold its address or name, `dev` what was done to it and a port.
    pub const FOREIGN_CHANNEL: u16 = 29;
    /// A descriptor was sent in a message (`SCM_RIGHTS`); `inode` and `dev` are the file's, `number` is its
    /// [`channel_kind`](crate::channel_kind), 0 for what is none. Read from the sender's memory.
    pub const DESCRIPTOR_SENT: u16 = 30;
    /// A request of `io_uring` that is not looked into; `number` is its opcode.
    pub const RING_REQUEST: u16 = 31;
    /// A regular file was opened that the target had opened for writing; `argument` is its inode, `number` the file's mode.
    pub const FILE_SHARED: u16 = 32;
}

/// Bits of [`Evasion::number`] in [`what::LOADER_ENVIRONMENT`].
pub mod loader {
    /// `LD_PRELOAD`.
    pub const PRELOAD: u64 = 1 << 0;
    /// `LD_AUDIT`.
    pub const AUDIT: u64 = 1 << 1;
    /// `LD_LIBRARY_PATH`.
    pub const LIBRARY_PATH: u64 = 1 << 2;
    /// `NODE_OPTIONS`.
    pub const NODE_OPTIONS: u64 = 1 << 3;
    /// `PYTHONPATH` or `PYTHONHOME`.
    pub const PYTHON: u64 = 1 << 4;
    /// The environment is longer than what was looked through, or could not be read.
    pub const UNREAD: u64 = 1 << 5;
}

/// Why a file is watched.
pub mod file_class {
    /// A proxy opened it for writing: its log, or something else of its own.
    pub const WRITTEN_BY_PROXY: u32 = 1;
    /// It holds a signing key.
    pub const KEY: u32 = 2;
    /// It is Countersign's: its output, its spool, its settings.
    pub const OWN: u32 = 3;
}

/// Bits of [`Evasion::flags`].
pub mod flags {
    /// The target could not be found; `argument` is the number that it was given by.
    pub const TARGET_UNKNOWN: u32 = 1 << 0;
    /// The record was made before the call returned: `returned` says nothing.
    pub const NO_RESULT: u32 = 1 << 1;
    /// The kernel did it, on whose behalf is not known: the task is the target itself.
    pub const BY_KERNEL: u32 = 1 << 2;
    /// Through `io_uring`; `returned` is the request's result.
    pub const BY_RING: u32 = 1 << 3;
}

/// How [`Evasion::number`] and [`Evasion::dev`] of [`what::FOREIGN_CHANNEL`] are put together: the kind in bits 0–7, a socket's
/// family in 8–15 and its protocol in 16–31; the port in bits 0–15 of `dev` and what was done in 16–31.
pub mod foreign {
    /// A socket that is no unix and no plain TCP socket. Its address lies in `inode` and `argument`: of IPv6 and IPv4 (mapped) the 16
    /// bytes in network order, of a vsock its context id.
    pub const SOCKET: u64 = 1;
    /// A POSIX message queue; `inode` and `argument` are the first 16 bytes of its name.
    pub const MESSAGE_QUEUE: u64 = 2;
    /// A System V message queue; `inode` is its id.
    pub const SYSV_QUEUE: u64 = 3;
    /// Memory without a name in a file system (`memfd_create`); `inode` is its inode.
    pub const MEMFD: u64 = 4;
    /// Memory that was mapped shared without a file: children have it too.
    pub const ANONYMOUS_MEMORY: u64 = 5;

    /// It was made, or opened.
    pub const MADE: u32 = 0;
    /// It was bound to the address.
    pub const BOUND: u32 = 1 << 16;
    /// It was connected to the address, or something was sent there.
    pub const REACHED: u32 = 2 << 16;
}

/// A watched process tried something that can get round the witness. 120 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Evasion {
    /// Common header.
    pub header: RecordHeader,
    /// Who.
    pub task: Task,
    /// Whom it was done to, as the process was when the call began; zeroes when no process is concerned.
    pub target: Task,
    /// Inode number of the file or object concerned; 0 for none.
    pub inode: u64,
    /// See [`what`].
    pub number: u64,
    /// See [`what`].
    pub argument: u64,
    /// What the call returned.
    pub returned: i64,
    /// Which of the attempts like this one it is, from 1: same process, same kind, same target, same number. Of many alike
    /// some are not reported.
    pub nth: u64,
    /// Kernel `dev_t` of the file; 0 for none.
    pub dev: u32,
    /// One of [`what`].
    pub what: u16,
    /// x86-64 system call number.
    pub syscall: u16,
    /// Effective uid of who did it, after the call.
    pub euid: u32,
    /// Bits of [`flags`].
    pub flags: u32,
}

const _: () = {
    assert!(size_of::<Evasion>() == 120);
};
