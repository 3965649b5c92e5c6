//! The record layout shared by Countersign's kernel programs and its user space.
//!
//! Owns the wire format of everything that crosses the ring buffer and, unchanged, everything that lies in a spool:
//! fixed-width little-endian integers, explicit padding, sizes asserted at compile time. It owns no logic beyond
//! constants, and deliberately does not know aya: the kernel crate and the sans-IO core both depend on it.
//!
//! Every record starts with a [`RecordHeader`]; [`RecordHeader::size`] is the length of the whole record, so a reader can
//! skip kinds it does not know. A change to any struct here is a new [`ABI_VERSION`].
#![no_std]
#![forbid(unsafe_code)]

pub mod evasion;
pub mod load;

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of the layouts in this crate. Stored in every spool segment header.
pub const ABI_VERSION: u32 = 2;

/// Oldest version whose records are read: version 2 added kinds, flags and reasons, and changed no layout.
pub const ABI_VERSION_OLDEST: u32 = 1;

/// Largest payload of one [`Transfer`] record, in bytes. Longer operations are sent as several records.
pub const CHUNK_MAX_BYTES: usize = 64 * 1024;

/// Bytes captured of one operation by an untrusted writer; the rest is a [`gap::LIMIT`] record. Stops one giant
/// `write` from filling the ring: what must be exact is the frame at its end of record, which is not this end.
pub const WRITER_OP_MAX_BYTES: u64 = 256 * 1024;

/// Bytes captured of one operation by a reader.
pub const READER_OP_MAX_BYTES: u64 = 1024 * 1024;

/// Bytes captured of one operation by a proxy, at either end.
pub const PROXY_OP_MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Longest file name or argument string in an [`Exec`] record, in bytes.
pub const EXEC_TEXT_MAX_BYTES: usize = 256;

/// [`Transfer::syscall`] when it is not known: an `io_uring` worker is in none.
pub const SYSCALL_UNKNOWN: u16 = u16::MAX;

/// Values of [`RecordHeader::kind`]. Below [`kind::FIRST_USER`]: from the kernel. From there on: written into the spool by
/// user space, a [`RecordHeader`] followed by one JSON object.
pub mod kind {
    /// [`Transfer`](super::Transfer) followed by `len` payload bytes.
    pub const CHUNK: u16 = 1;
    /// [`Transfer`](super::Transfer) without payload: `len` bytes of the operation were not captured, `reason` says why.
    pub const GAP: u16 = 2;
    /// [`Fork`](super::Fork).
    pub const FORK: u16 = 3;
    /// [`Exec`](super::Exec) followed by `filename_len` + `args_len` bytes.
    pub const EXEC: u16 = 4;
    /// [`Exit`](super::Exit).
    pub const EXIT: u16 = 5;
    /// [`ChannelEnd`](super::ChannelEnd): a process got hold of an end.
    pub const CHANNEL_END: u16 = 6;
    /// [`FileOpen`](super::FileOpen): a proxy opened a regular file for writing.
    pub const FILE_OPEN: u16 = 7;
    /// [`Peer`](super::Peer): a process outside the tagged tree touched a watched channel and is watched from now on.
    pub const PEER: u16 = 8;
    /// [`Queued`](super::Queued): what a channel's counts and its queue said at one moment.
    pub const QUEUED: u16 = 12;
    /// [`SocketCounts`](super::SocketCounts): what the kernel itself counted at one end of a TCP connection, beside what was counted here.
    pub const SOCKET_COUNTS: u16 = 15;
    /// [`Transfer`](super::Transfer) followed by `len` bytes that the kernel was about to copy to a reader, taken from the kernel's own
    /// buffer while the channel was locked. `op_seq`, `stream_before`, `exit_ns` and `returned` are 0: none is known by then. The operation's other
    /// records have the same channel, thread and `enter_ns` and come later; bytes past what it returned never reached the reader.
    pub const KERNEL_COPY: u16 = 11;
    /// [`SocketAddress`](super::SocketAddress): the addresses of a TCP socket's end, before anything else names it.
    pub const SOCKET_ADDRESS: u16 = 9;
    /// [`Evasion`](super::evasion::Evasion): a watched process tried something that can get round the witness.
    pub const EVASION: u16 = 10;

    /// First kind that user space writes.
    pub const FIRST_USER: u16 = 256;
    /// JSON: what `/proc` said of a process (executable, command line, uid, cgroup, descriptors).
    pub const PROCESS_SCAN: u16 = 256;
    /// JSON: a pair of boot and wall clock readings.
    pub const CLOCK: u16 = 257;
    /// JSON: heartbeat with every program's run counts and misses, and the kernel's [`counter`](super::counter)s.
    pub const LEDGER: u16 = 258;
    /// JSON: totals of one channel as counted by the kernel, read at rest or at the end of the capture.
    pub const CHANNEL_TOTALS: u16 = 259;
    /// JSON: the capture started or ended, its settings, what was attached.
    pub const CAPTURE: u16 = 260;
    /// JSON: something was lost or could not be done outside the kernel (disk full, tag reconciled, scan failed).
    pub const LOSS: u16 = 261;
}

/// Values of [`ChannelId::kind`].
pub mod channel_kind {
    /// An anonymous pipe.
    pub const PIPE: u8 = 1;
    /// A FIFO, a pipe with a name in a file system.
    pub const FIFO: u8 = 2;
    /// An `AF_UNIX` `SOCK_STREAM` socket, connected.
    pub const UNIX_STREAM: u8 = 3;
    /// A regular file that a proxy writes: the third view.
    pub const FILE: u8 = 4;
    /// An `AF_UNIX` `SOCK_DGRAM` socket. It has a peer only where two are connected to each other, as a socket pair is.
    pub const UNIX_DGRAM: u8 = 5;
    /// An `AF_UNIX` `SOCK_SEQPACKET` socket, connected.
    pub const UNIX_SEQPACKET: u8 = 6;
    /// A TCP socket over IPv4 or IPv6, connected.
    pub const TCP: u8 = 7;
    /// One side of a pseudo-terminal.
    pub const TTY: u8 = 8;
}

/// Values of [`Transfer::direction`], as seen by the process.
pub mod direction {
    /// Bytes went from the channel to the process.
    pub const READ: u8 = 0;
    /// Bytes went from the process to the channel.
    pub const WRITE: u8 = 1;
}

/// Bits of [`Transfer::flags`].
pub mod transfer_flags {
    /// The descriptor named another file at `sys_exit` than at `sys_enter`; the record is attributed to the file of `sys_enter`.
    pub const FD_SWAPPED: u16 = 1 << 0;
    /// `sys_enter` was not seen (the task was tagged during the call); the file is the one at `sys_exit`, the enter time is the exit time.
    pub const NO_ENTER: u16 = 1 << 1;
    /// The call did not consume the bytes (`MSG_PEEK`). Neither counted in `op_seq` nor in `stream_before`.
    pub const PEEK: u16 = 1 << 2;
    /// The task carried the proxy tag.
    pub const BY_PROXY: u16 = 1 << 3;
    /// The task carried the peer tag (not part of the tagged tree).
    pub const BY_PEER: u16 = 1 << 4;
    /// Out-of-band data (`MSG_OOB`): not part of the byte stream.
    pub const OOB: u16 = 1 << 5;
    /// More than the walker's limit of I/O vectors or messages; a gap record with [`gap::VECTORS`](super::gap::VECTORS) covers the rest.
    pub const TRUNCATED_VECTOR: u16 = 1 << 6;
    /// A call of the 32-bit ABI: `syscall` is the number of the same call in the 64-bit one. What `socketcall` was asked to do is read from user memory.
    pub const COMPAT: u16 = 1 << 7;
    /// By `io_uring`: `syscall` holds the opcode (`IORING_OP_*`), `enter_ns` the submission and `exit_ns` the completion.
    pub const IO_URING: u16 = 1 << 8;
    /// By legacy AIO (`io_submit`).
    pub const AIO: u16 = 1 << 9;
    /// The bytes were looked up in the kernel's buffers by a call that has no user buffer. Another process may have changed them since or
    /// before: what is read later is exact, this is not.
    pub const SNAPSHOT: u16 = 1 << 10;
    /// Captured where a kernel function returned: the file is the one that the function was given, whatever the descriptor names.
    /// The times are those of the function, not those of the system call.
    pub const BY_FUNCTION: u16 = 1 << 11;
    /// [`kind::KERNEL_COPY`](super::kind::KERNEL_COPY) records were made for every byte of the operation.
    pub const KERNEL_COPY: u16 = 1 << 12;
    /// The receiver took a message (or, of a stream, bytes) that it had no buffer for: the rest is gone. Where its size is known, a
    /// gap record with [`gap::TRUNCATED`](super::gap::TRUNCATED) covers it.
    pub const MESSAGE_TRUNCATED: u16 = 1 << 13;
}

/// Values of [`Transfer::reason`] in a [`kind::GAP`] record.
pub mod gap {
    /// Not a gap (the value in [`kind::CHUNK`] records).
    pub const NONE: u16 = 0;
    /// The per-operation limit was reached.
    pub const LIMIT: u16 = 1;
    /// The user memory could not be read at return: unmapped or replaced since.
    pub const FAULT: u16 = 2;
    /// The ring was full.
    pub const RING_FULL: u16 = 3;
    /// The call moves bytes without a user buffer (`splice`, `tee`, `vmsplice`, `sendfile`).
    pub const SPLICE: u16 = 4;
    /// More I/O vectors than the walker follows.
    pub const VECTORS: u16 = 5;
    /// An `io_uring` request that takes its buffers from a group and completes more than once, or takes several at a time.
    pub const MULTISHOT: u16 = 6;
    /// A legacy AIO operation whose result is not in its completion ring.
    pub const AIO: u16 = 7;
    /// Vectors of the 32-bit ABI where they are not followed.
    pub const COMPAT: u16 = 8;
    /// The kernel moved the bytes by an iterator that is not followed: one of another kind, pages whose address is not
    /// known, or bytes that it did not copy to the reader.
    pub const ITERATOR: u16 = 10;
    /// The receiver had no room for these bytes of a message, or threw them away (`MSG_TRUNC`): they came, and nobody has them.
    pub const TRUNCATED: u16 = 11;
    /// The agent had more on its way to the consumer than one may: its own flood, which costs nobody else.
    pub const CREDIT: u16 = 9;
}

/// Values of [`Queued::why`] and [`SocketCounts::why`].
pub mod queued_why {
    /// A descriptor of it is about to be closed.
    pub const CLOSE: u8 = 1;
    /// A process that holds an end is about to end.
    pub const EXIT: u8 = 2;
    /// User space asked, between operations or at the end.
    pub const ASKED: u8 = 3;
    /// A connection was made or accepted: nothing has moved through it yet.
    pub const BEGUN: u8 = 4;
    /// A connection that is older was seen for the first time.
    pub const FOUND: u8 = 5;
}

/// Bits of [`SocketCounts::flags`].
pub mod count_flags {
    /// The end of what is sent (`FIN`) may be counted as one byte.
    pub const SENT_END: u8 = 1 << 0;
    /// The end of what was received may be counted as one byte.
    pub const TAKEN_END: u8 = 1 << 1;
}

/// Values of [`ChannelEnd::how`].
pub mod end_how {
    /// `pipe`, `pipe2`, `socketpair`.
    pub const CREATED: u8 = 1;
    /// `connect`.
    pub const CONNECTED: u8 = 2;
    /// `accept`, `accept4`.
    pub const ACCEPTED: u8 = 3;
    /// An `open` that yielded a pipe or FIFO: a FIFO's path or `/proc/PID/fd/N`.
    pub const OPENED: u8 = 4;
    /// `pidfd_getfd`.
    pub const PIDFD_GETFD: u8 = 5;
    /// `recvmsg` with `SCM_RIGHTS`.
    pub const SCM_RIGHTS: u8 = 6;
    /// First seen by an operation on it.
    pub const USED: u8 = 7;
}

/// Bits of a task's tag, in task storage and in [`Peer::tag`] and [`Fork::tag`].
pub mod tag {
    /// In the tagged tree: everything it moves through a supported channel is captured.
    pub const TREE: u32 = 1 << 0;
    /// Outside the tree, watched for its I/O on watched channels only.
    pub const PEER: u32 = 1 << 1;
    /// Its executable is one of the configured proxies'. Set and cleared at exec, never inherited over one.
    pub const PROXY: u32 = 1 << 2;
    /// From this bit on: the number of the agent, which each descendant inherits. 0 for what belongs to none.
    pub const AGENT_SHIFT: u32 = 8;
    /// Largest number of an agent. More of them share numbers, and with them their room in the rings.
    pub const AGENT_MAX: u32 = 63;

    /// The bits of an agent's number.
    pub const fn of_agent(number: u32) -> u32 {
        (number & AGENT_MAX) << AGENT_SHIFT
    }

    /// Which [`Credit`](super::load::Credit) a task with this tag uses up. A proxy has one of its own, so that no flood by the
    /// agent around it costs the end of record anything.
    pub const fn pool(bits: u32) -> u32 {
        (bits >> AGENT_SHIFT & AGENT_MAX) << 1 | (bits & PROXY != 0) as u32
    }

    /// Number of pools.
    pub const POOLS: usize = 2 * (AGENT_MAX as usize + 1);
}

/// Indices into the kernel's counter array. Each path that loses something bumps one.
pub mod counter {
    /// Records reserved and submitted. Not counted by the programs: the record numbers taken, less the records dropped.
    pub const RECORDS: u32 = 0;
    /// Payload bytes submitted. Not counted by the programs: the sum of what was taken out of the ring.
    pub const PAYLOAD_BYTES: u32 = 1;
    /// Records dropped because the ring was full.
    pub const RING_DROPPED_RECORDS: u32 = 2;
    /// Payload bytes dropped because the ring was full.
    pub const RING_DROPPED_BYTES: u32 = 3;
    /// Payload bytes that could not be read from user memory.
    pub const FAULT_BYTES: u32 = 4;
    /// Payload bytes over the per-operation limit.
    pub const LIMIT_BYTES: u32 = 5;
    /// A tag could not be stored at fork, exec or seeding.
    pub const TAG_FAILED: u32 = 6;
    /// The state of a system call could not be kept at `sys_enter`.
    pub const PENDING_FAILED: u32 = 7;
    /// The channel table had no room.
    pub const CHANNEL_FAILED: u32 = 8;
    /// Operations whose descriptor changed during the call.
    pub const FD_SWAPPED: u32 = 9;
    /// Operations whose `sys_enter` was not seen.
    pub const NO_ENTER: u32 = 10;
    /// Bytes moved by the splice family.
    pub const SPLICE_BYTES: u32 = 11;
    /// Processes marked as peers.
    pub const PEERS_MARKED: u32 = 12;
    /// System calls by tagged tasks in an ABI, or of a kind in the 32-bit ABI, that is not decoded.
    pub const COMPAT_SYSCALLS: u32 = 13;
    /// `io_uring` and legacy AIO submissions by tagged tasks whose operations cannot be accounted for.
    pub const UNSEEN_SUBMISSIONS: u32 = 14;
    /// Kernel memory that could not be read where the layout says it must be.
    pub const KERNEL_READ_FAILED: u32 = 15;
    /// Entries of a watched kernel function whose return was not seen before the thread's next entry: the program on the return was
    /// skipped.
    pub const FUNCTION_UNPAIRED: u32 = 16;
    /// Operations on watched channels that the programs on kernel functions did not see, and the system call's did.
    pub const FUNCTION_MISSED: u32 = 17;
    /// `io_uring` operations by watched tasks that moved bytes.
    pub const URING_OPS: u32 = 21;
    /// Bytes moved by `io_uring` requests that take their buffers from a group, which are not captured.
    pub const MULTISHOT_BYTES: u32 = 22;
    /// Bytes of the kernel's own copies.
    pub const KERNEL_COPY_BYTES: u32 = 23;
    /// Bytes of which a copy from the kernel's buffers was wanted and failed; the reader's memory stands for them.
    pub const KERNEL_COPY_FAILED: u32 = 24;
    /// Bytes found in pipes by [`SNAPSHOT`](super::transfer_flags::SNAPSHOT).
    pub const SNAPSHOT_BYTES: u32 = 25;
    /// Bytes that tagged tasks moved through terminals that are not watched: those whose other side nobody in the tree holds.
    pub const TERMINAL_BYTES: u32 = 18;
    /// Messages of which the receiver took a part only.
    pub const MESSAGES_TRUNCATED: u32 = 19;
    /// TCP connections whose addresses could not be kept: their other end is found late or never.
    pub const TUPLE_FAILED: u32 = 20;
    /// Attempts to get round the witness, reported or not.
    pub const EVASIONS: u32 = 26;
    /// Of those, the ones that were folded into the count of an earlier report.
    pub const EVASIONS_FOLDED: u32 = 27;
    /// Of the records dropped: those that were to say who did what (process, end, peer).
    pub const CONTROL_DROPPED_RECORDS: u32 = 28;
    /// Of the records dropped: those for which their agent had no credit left.
    pub const CREDIT_DROPPED_RECORDS: u32 = 29;
    /// Payload bytes of those.
    pub const CREDIT_DROPPED_BYTES: u32 = 30;
    /// Descriptors of an ending process, or queues, that were too many to look at.
    pub const BALANCE_SKIPPED: u32 = 31;
    /// Number of counters.
    pub const COUNT: u32 = 32;
}

/// What every record starts with. 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RecordHeader {
    /// One of [`kind`].
    pub kind: u16,
    /// CPU that emitted the record, or [`RecordHeader::USER_CPU`].
    pub cpu: u16,
    /// Length of the whole record with this header, in bytes. The reservation in the ring can be longer.
    pub size: u32,
    /// Count of records attempted on this CPU before this one, dropped ones included: a step over 1 is a loss.
    pub cpu_seq: u64,
    /// `CLOCK_BOOTTIME` when the record was made, in nanoseconds; in a chunk, when its operation returned.
    pub boot_ns: u64,
    /// Capture generation: which load of the programs made it.
    pub generation: u64,
}

impl RecordHeader {
    /// [`RecordHeader::cpu`] of records that user space wrote.
    pub const USER_CPU: u16 = u16::MAX;
}

/// An incarnation of a process and the thread that acted. 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Task {
    /// Thread-group id in the initial pid namespace (what user space calls pid).
    pub tgid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// `start_boottime` of the thread-group leader, nanoseconds of `CLOCK_BOOTTIME`. With `tgid` it names one process of one boot.
    pub start_boot_ns: u64,
}

/// Kernel identity of a channel as one end sees it. 56 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ChannelId {
    /// Kernel address of the inode (pipe, FIFO, file) or of the `struct sock` (socket) at this end.
    pub object: u64,
    /// Inode number at this end.
    pub inode: u64,
    /// Kernel address of the peer's `struct sock`; 0 for pipes and files, or when there is no peer.
    pub peer_object: u64,
    /// Inode number of the peer socket; 0 for pipes and files, or when the peer is closed or not yet accepted.
    pub peer_inode: u64,
    /// When the kernel's channel table first saw this end, `CLOCK_BOOTTIME` nanoseconds. A new value for a known object means
    /// that the counters restarted: a gap of unknown size.
    pub epoch: u64,
    /// Kernel `dev_t` (`major << 20 | minor`) of the inode's super block; 0 for sockets.
    pub dev: u32,
    /// One of [`channel_kind`].
    pub kind: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Zero.
    pub reserved2: u64,
}

/// A part of one operation: the bytes that follow ([`kind::CHUNK`]) or their absence ([`kind::GAP`]). 168 bytes.
///
/// All records of one operation repeat the operation's fields, so each can be understood alone. An operation is identified
/// by (`channel.object`, `channel.epoch`, `direction`, `op_seq`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Transfer {
    /// Common header.
    pub header: RecordHeader,
    /// Who did it.
    pub task: Task,
    /// Where.
    pub channel: ChannelId,
    /// Number of this operation among the successful ones in its direction at its end of the channel, from 0, in the order
    /// in which exit probes ran. A hole in the numbers is a lost operation.
    pub op_seq: u64,
    /// Bytes moved in this direction at this end by the operations numbered before. Sized by the kernel even for lost ones.
    pub stream_before: u64,
    /// `CLOCK_BOOTTIME` nanoseconds at `sys_enter`, or at the entry of the kernel function.
    pub enter_ns: u64,
    /// `CLOCK_BOOTTIME` nanoseconds at `sys_exit`, or at the return of the kernel function.
    pub exit_ns: u64,
    /// Bytes that the operation moved.
    pub returned: u64,
    /// Offset of this part within the operation.
    pub offset: u64,
    /// Length of this part in bytes.
    pub len: u32,
    /// x86-64 system call number.
    pub syscall: u16,
    /// Bits of [`transfer_flags`].
    pub flags: u16,
    /// One of [`gap`]; [`gap::NONE`] in a chunk.
    pub reason: u16,
    /// One of [`direction`].
    pub direction: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

/// A process was created (threads are not reported). 96 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Fork {
    /// Common header.
    pub header: RecordHeader,
    /// The creating task.
    pub parent: Task,
    /// The new process.
    pub child: Task,
    /// Its id in its own pid namespace.
    pub child_ns_tgid: u32,
    /// Real uid, initial user namespace.
    pub uid: u32,
    /// Id of its cgroup (v2 hierarchy; the inode number of its directory).
    pub cgroup: u64,
    /// The tag that the child got.
    pub tag: u32,
    /// Real gid.
    pub gid: u32,
    /// Zero.
    pub reserved: u64,
}

/// A process executed a program. 112 bytes, then the file name, then the first arguments (NUL-separated).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Exec {
    /// Common header.
    pub header: RecordHeader,
    /// Who, after the exec.
    pub task: Task,
    /// Inode number of the executable (of the interpreter, for scripts).
    pub exe_inode: u64,
    /// Kernel `dev_t` of its super block.
    pub exe_dev: u32,
    /// Real uid.
    pub uid: u32,
    /// Effective uid: differs after a set-user-id exec.
    pub euid: u32,
    /// Real gid.
    pub gid: u32,
    /// Cgroup id.
    pub cgroup: u64,
    /// The tag after the exec.
    pub tag: u32,
    /// Id in its own pid namespace.
    pub ns_tgid: u32,
    /// Length of the file name, which follows.
    pub filename_len: u16,
    /// Length of the argument bytes that follow it.
    pub args_len: u16,
    /// Zero.
    pub reserved: u32,
    /// Zero.
    pub reserved2: u64,
    /// Zero.
    pub reserved3: u64,
}

/// The last thread of a process is exiting. 56 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Exit {
    /// Common header.
    pub header: RecordHeader,
    /// Who.
    pub task: Task,
    /// Wait status as in `wait(2)`.
    pub exit_code: u32,
    /// Zero.
    pub reserved: u32,
}

/// A process got hold of an end of a channel. 112 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ChannelEnd {
    /// Common header.
    pub header: RecordHeader,
    /// Who.
    pub task: Task,
    /// Which channel, from this end.
    pub channel: ChannelId,
    /// `f_mode` bits: 1 readable, 2 writable.
    pub mode: u8,
    /// One of [`end_how`].
    pub how: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Descriptor number at that time. Descriptor numbers lie; never key on it.
    pub fd: u32,
}

/// A proxy opened a regular file for writing. 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FileOpen {
    /// Common header.
    pub header: RecordHeader,
    /// Who.
    pub task: Task,
    /// Inode number.
    pub inode: u64,
    /// Kernel `dev_t`.
    pub dev: u32,
    /// Open flags as in `open(2)`.
    pub flags: u32,
}

/// A process outside the tree was marked. 112 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Peer {
    /// Common header.
    pub header: RecordHeader,
    /// Who.
    pub task: Task,
    /// Because of which channel.
    pub channel: ChannelId,
    /// Its tag from now on.
    pub tag: u32,
    /// Real uid.
    pub uid: u32,
}

/// What a channel's counters and its queue said at one moment: bytes that went in, came out and wait. 144 bytes.
///
/// For a socket it speaks of the stream that is read at `channel`'s end. The counters are read at `begun_ns`, the queue until the
/// header's time: an operation on its way meanwhile can be in the one and not in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Queued {
    /// Common header.
    pub header: RecordHeader,
    /// Which channel, from the end that reads.
    pub channel: ChannelId,
    /// Bytes written, by the operations counted.
    pub written_bytes: u64,
    /// Bytes read, by the operations counted.
    pub read_bytes: u64,
    /// Bytes waiting to be read.
    pub queued_bytes: u64,
    /// Operations counted that wrote.
    pub written_ops: u64,
    /// Operations counted that read.
    pub read_ops: u64,
    /// `CLOCK_BOOTTIME` nanoseconds before the counters were read.
    pub begun_ns: u64,
    /// Messages waiting that are not empty, where what is written in one operation is read in one; 0 for streams.
    pub queued_messages: u32,
    /// One of [`queued_why`].
    pub why: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// What the kernel itself counts at one end of a TCP connection, beside what was counted here. 160 bytes.
///
/// The kernel's counts come from its sequence numbers: they rise with every byte that a process hands over or takes, by whatever call. They are
/// good for differences only: where they begin depends on who connected. What was counted here is read at `begun_ns`, the kernel's counts
/// until the header's time: an operation on its way meanwhile can be in these and not in those.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketCounts {
    /// Common header.
    pub header: RecordHeader,
    /// Which channel, from this end.
    pub channel: ChannelId,
    /// Bytes that processes handed over for sending, by the kernel's count.
    pub sent_bytes: u64,
    /// Bytes that processes took, by the kernel's count.
    pub taken_bytes: u64,
    /// Bytes written, by the operations counted here.
    pub written_bytes: u64,
    /// Bytes read, by the operations counted here.
    pub read_bytes: u64,
    /// Operations counted here that wrote.
    pub written_ops: u64,
    /// Operations counted here that read.
    pub read_ops: u64,
    /// `CLOCK_BOOTTIME` nanoseconds before all of them were read.
    pub begun_ns: u64,
    /// Bytes that came and that nobody has taken yet.
    pub waiting_bytes: u32,
    /// Bytes that the other end has not acknowledged yet.
    pub unacked_bytes: u32,
    /// One of [`queued_why`].
    pub why: u8,
    /// The socket's state, as in `include/net/tcp_states.h`.
    pub state: u8,
    /// Bits of [`count_flags`].
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

/// The addresses of one end of a TCP connection. 168 bytes.
///
/// IPv4 addresses are mapped into IPv6 (`::ffff:a.b.c.d`), so that the two ends of a connection mirror each other whatever family
/// their sockets have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketAddress {
    /// Common header.
    pub header: RecordHeader,
    /// Who used it.
    pub task: Task,
    /// Which channel, from this end.
    pub channel: ChannelId,
    /// The socket's cookie; 0 when nobody has asked for one.
    pub cookie: u64,
    /// This end's address, in network order.
    pub local: [u8; 16],
    /// The other end's address.
    pub remote: [u8; 16],
    /// Inode number of the network namespace.
    pub net_ns: u32,
    /// This end's port.
    pub local_port: u16,
    /// The other end's port.
    pub remote_port: u16,
    /// Sequence number at which this end's bytes begin, give or take one (the number that `SYN` takes); 0 when not settled.
    pub local_start: u32,
    /// The same of the other end's bytes. Two ends that mirror each other in addresses and in these are one connection.
    pub remote_start: u32,
    /// `AF_INET` or `AF_INET6`: the socket's family.
    pub family: u16,
    /// The socket's state, as in `include/net/tcp_states.h`.
    pub state: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

const _: () = {
    assert!(size_of::<Queued>() == 144);
    assert!(size_of::<SocketCounts>() == 160);
    assert!(size_of::<RecordHeader>() == 32);
    assert!(size_of::<SocketAddress>() == 168);
    assert!(size_of::<Task>() == 16);
    assert!(size_of::<ChannelId>() == 56);
    assert!(size_of::<Transfer>() == 168);
    assert!(size_of::<Fork>() == 96);
    assert!(size_of::<Exec>() == 112);
    assert!(size_of::<Exit>() == 56);
    assert!(size_of::<ChannelEnd>() == 112);
    assert!(size_of::<FileOpen>() == 64);
    assert!(size_of::<Peer>() == 112);
    assert!(offset_of!(Transfer, channel) == 48);
    assert!(offset_of!(Transfer, op_seq) == 104);
    assert!(offset_of!(Exec, filename_len) == 88);
};
