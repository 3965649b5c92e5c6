//! What user space and the kernel programs share besides records: the structure offsets set at load, and the keys and
//! values of the maps that user space writes or reads.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::channel_kind;

/// Byte offsets of kernel structure members, read from the running kernel's BTF and set before the programs are loaded.
///
/// Named `STRUCT_MEMBER`; each is relative to the start of the named structure, through anonymous members.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "each name is the kernel's structure and member"
)]
pub struct Offsets {
    pub task_group_leader: u32,
    pub task_files: u32,
    pub task_start_boottime: u32,
    pub task_signal: u32,
    pub task_tgid: u32,
    pub task_pid: u32,
    pub task_mm: u32,
    pub task_thread_info_status: u32,
    pub task_real_cred: u32,
    pub task_cgroups: u32,
    pub task_thread_pid: u32,
    pub task_exit_code: u32,
    pub task_bpf_storage: u32,
    pub files_fdt: u32,
    pub fdtable_fd: u32,
    pub fdtable_max_fds: u32,
    pub file_inode: u32,
    pub file_mode: u32,
    pub file_flags: u32,
    pub file_private_data: u32,
    pub inode_mode: u32,
    pub inode_ino: u32,
    pub inode_sb: u32,
    pub sb_dev: u32,
    pub sb_magic: u32,
    pub socket_type: u32,
    pub socket_sk: u32,
    pub socket_alloc_inode: u32,
    pub sock_family: u32,
    pub sock_socket: u32,
    pub unix_peer: u32,
    pub unix_addr: u32,
    pub signal_live: u32,
    pub signal_flags: u32,
    pub signal_group_exit_code: u32,
    pub cred_uid: u32,
    pub cred_euid: u32,
    pub cred_gid: u32,
    pub bprm_file: u32,
    pub bprm_filename: u32,
    pub mm_arg_start: u32,
    pub mm_arg_end: u32,
    pub css_set_dfl_cgrp: u32,
    pub cgroup_kn: u32,
    pub kernfs_id: u32,
    pub pid_level: u32,
    pub pid_numbers: u32,
    // Queues: what a pipe and a unix socket hold.
    pub inode_pipe: u32,
    pub pipe_head: u32,
    pub pipe_tail: u32,
    pub pipe_ring_size: u32,
    pub pipe_bufs: u32,
    pub pipe_buffer_len: u32,
    pub pipe_buffer_size: u32,
    pub sock_receive_queue: u32,
    pub skb_list_next: u32,
    pub skb_list_qlen: u32,
    pub skb_next: u32,
    // Capture at kernel functions. `Offsets::UNKNOWN` where the kernel has none.
    pub kiocb_filp: u32,
    pub iter_type: u32,
    pub iter_offset: u32,
    pub iter_pointer: u32,
    pub iter_count: u32,
    pub iter_segments: u32,
    pub msghdr_iter: u32,
    pub msghdr_flags: u32,
    pub socket_file: u32,
    pub task_flags: u32,
    pub bvec_page: u32,
    pub bvec_len: u32,
    pub bvec_offset: u32,
    pub kind_ubuf: u32,
    pub kind_iovec: u32,
    pub kind_kvec: u32,
    pub kind_bvec: u32,
    pub page_shift: u32,
    // io_uring. [`Offsets::UNKNOWN`] where the kernel has no such member.
    /// Arguments of the tracepoint `io_uring_complete`; 0 when there is none.
    pub uring_complete_args: u32,
    pub kiocb_opcode: u32,
    pub kiocb_flags: u32,
    pub kiocb_cqe: u32,
    pub kiocb_ctx: u32,
    pub kiocb_tctx: u32,
    pub kiocb_task: u32,
    pub tctx_task: u32,
    /// In bits.
    pub ring_compat_bit: u32,
    pub rw_addr: u32,
    pub rw_len: u32,
    pub sr_buf: u32,
    pub sr_len: u32,
    pub sr_done: u32,
    pub sr_msg_flags: u32,
    pub sr_flags: u32,
    pub uring_splice_fd_in: u32,
    pub uring_splice_flags: u32,
    pub kiocb_async_data: u32,
    pub async_msg_namelen: u32,
    pub async_msg_controllen: u32,
    // The kernel's own copy.
    pub skb_cb: u32,
    pub skb_len: u32,
    pub skb_data_len: u32,
    pub skb_data: u32,
    pub skb_head: u32,
    pub skb_end: u32,
    pub skb_sk: u32,
    pub unixcb_consumed: u32,
    pub shinfo_nr_frags: u32,
    pub shinfo_frags: u32,
    pub shinfo_frag_list: u32,
    // Channel kinds: TCP sockets and terminals.
    pub sock_protocol: u32,
    pub sock_state: u32,
    pub sock_num: u32,
    pub sock_dport: u32,
    pub sock_rcv_saddr: u32,
    pub sock_daddr: u32,
    pub sock_v6_rcv_saddr: u32,
    pub sock_v6_daddr: u32,
    pub sock_net: u32,
    pub sock_cookie: u32,
    pub net_inum: u32,
    pub tcp_rcv_nxt: u32,
    pub tcp_bytes_received: u32,
    pub tcp_snd_una: u32,
    pub tcp_bytes_acked: u32,
    pub tty_file_tty: u32,
    pub tty_link: u32,
    pub tty_index: u32,
    pub inode_rdev: u32,
    pub signal_tty: u32,
    // Evasion.
    pub task_ptrace: u32,
    pub task_parent: u32,
    pub task_pid_links: u32,
    pub cred_cap_effective: u32,
    pub cred_user_ns: u32,
    pub user_namespace_level: u32,
    pub mm_env_start: u32,
    pub mm_env_end: u32,
    pub upid_ns: u32,
    pub pid_namespace_tree: u32,
    pub xa_node_shift: u32,
    pub xa_node_slots: u32,
    pub pid_tasks: u32,
    pub inode_private: u32,
    pub inode_nlink: u32,
    pub inode_size: u32,
    pub file_dentry: u32,
    pub dentry_parent: u32,
    pub dentry_inode: u32,
    pub dentry_name: u32,
    pub dentry_name_len: u32,
    pub proc_inode_pid: u32,
    pub proc_inode_inode: u32,
    pub sock_peer_pid: u32,
    pub task_real_parent: u32,
    // Trace events: members of what they hand over. `Offsets::UNKNOWN` where the kernel has none.
    pub mm_exe_file: u32,
    pub event_fork_child: u32,
    pub event_exec_name: u32,
    pub event_complete_ring: u32,
    pub event_complete_request: u32,
    pub event_complete_data: u32,
    pub event_complete_result: u32,
    pub event_submit_request: u32,
    pub event_copy_buffer: u32,
    pub event_copy_len: u32,
    /// Programs take 8 for granted.
    pub event_enter_number: u32,
    /// And 16 here.
    pub event_exit_returned: u32,
    // What TCP counts.
    pub tcp_write_seq: u32,
    pub tcp_copied_seq: u32,
    pub icsk_ulp_ops: u32,
    // Splices. [`Offsets::UNKNOWN`] where the kernel has no such member.
    /// Before Linux 6.5: sockets are given pages, which no watched function sees.
    pub proto_ops_sendpage: u32,
    // Requests of `io_uring` that yield descriptors. [`Offsets::UNKNOWN`] where the kernel has no such member.
    pub io_open_slot: u32,
    pub io_accept_slot: u32,
    pub io_socket_slot: u32,
}

impl Offsets {
    /// Of an optional member, or value of an enumerator, that the running kernel lacks.
    pub const UNKNOWN: u32 = u32::MAX;
}

/// The bit of a channel kind in a set of them.
pub const fn kind_bit(kind: u8) -> u32 {
    1 << kind
}

/// The channel kinds that kernel functions can carry: all but files.
pub const CARRIED_KINDS: u32 = kind_bit(channel_kind::PIPE)
    | kind_bit(channel_kind::FIFO)
    | kind_bit(channel_kind::UNIX_STREAM)
    | kind_bit(channel_kind::UNIX_DGRAM)
    | kind_bit(channel_kind::UNIX_SEQPACKET)
    | kind_bit(channel_kind::TCP)
    | kind_bit(channel_kind::TTY);

/// Key of the kernel's channel table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ChannelKey {
    /// As in [`ChannelId::object`](super::ChannelId::object).
    pub object: u64,
    /// As in [`ChannelId::inode`](super::ChannelId::inode).
    pub inode: u64,
}

/// Set in a counter of [`ChannelState`] once the channel has moved to the table of proxies' channels: what the counter says
/// besides is void. Larger than any count.
pub const MOVED: u64 = 1 << 62;

/// Value of the kernel's channel tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ChannelState {
    /// When the entry was made, `CLOCK_BOOTTIME` nanoseconds.
    pub epoch: u64,
    /// The last peer socket known: it stays after the peer has closed.
    pub peer_object: u64,
    /// The last peer inode known.
    pub peer_inode: u64,
    /// Operations, indexed by [`direction`](super::direction).
    pub ops: [u64; 2],
    /// Bytes, indexed by [`direction`](super::direction).
    pub bytes: [u64; 2],
    /// Kernel `dev_t`.
    pub dev: u32,
    /// One of [`channel_kind`](super::channel_kind).
    pub kind: u32,
    /// 0 while the counters are still being moved here from the other table.
    pub ready: u64,
    /// Kernel address of the super block that `dev` and `kind` were read from; 0 for sockets.
    pub super_block: u64,
    /// Operations counted when a [`Queued`](super::Queued) record of it was made last.
    pub told_ops: u64,
}

/// What a pool of tasks has on its way to the consumer, in bytes of ring, by ring: 0 data, 1 control. Each side on cache lines of its
/// own. The difference is what waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Credit {
    /// Reserved so far; only the kernel programs add to it.
    pub produced: [u64; 2],
    /// Zero.
    pub reserved: [u64; 6],
    /// Taken out so far; only user space writes it, through a shared mapping.
    pub consumed: [u64; 2],
    /// Zero.
    pub reserved2: [u64; 6],
}

/// Bytes behind each record in a ring, which are not part of it: its pool, a `u64`.
pub const TRAILER_BYTES: usize = 8;

/// Key of the table of TCP connections: one end's view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TcpTuple {
    /// This end's address in IPv6, network order.
    pub local: [u64; 2],
    /// The other end's.
    pub remote: [u64; 2],
    /// Inode number of the network namespace; 0 for the entry by which other namespaces find it.
    pub net_ns: u32,
    /// This end's port.
    pub local_port: u16,
    /// The other end's port.
    pub remote_port: u16,
}

/// Key of the table of addresses on which the tree listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TcpListener {
    /// The address in IPv6, network order; zeroes, or a mapped 0.0.0.0, for any.
    pub local: [u64; 2],
    /// Inode number of the network namespace.
    pub net_ns: u32,
    /// The port.
    pub port: u32,
}

/// Key of the table of proxy executables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ExeKey {
    /// Inode number.
    pub inode: u64,
    /// Kernel `dev_t` of the super block.
    pub dev: u32,
    /// Zero.
    pub reserved: u32,
}

/// Value of the per-CPU table: the record sequence and the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CpuState {
    /// Next [`RecordHeader::cpu_seq`](super::RecordHeader::cpu_seq).
    pub seq: u64,
    /// Bytes put into the ring since this CPU last woke the consumer.
    pub unannounced: u64,
    /// Indexed by [`counter`](super::counter).
    pub counters: [u64; super::counter::COUNT as usize],
}

/// Key of the kernel's table of attempts that were reported: an attempt like an earlier one is counted there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AttemptKey {
    /// Start of who did it, `CLOCK_BOOTTIME` nanoseconds.
    pub actor_start: u64,
    /// Start of the target process, or the inode.
    pub subject: u64,
    /// Process id of who did it.
    pub actor_tgid: u32,
    /// Process id of the target, or the device.
    pub subject_part: u32,
    /// One of [`what`](super::evasion::what).
    pub what: u32,
    /// Lower half of [`Evasion::number`](super::evasion::Evasion::number).
    pub number: u32,
}

/// Value of the table of files that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WatchedFile {
    /// One of [`file_class`](super::evasion::file_class).
    pub class: u32,
    /// Links to it when the present system call began.
    pub links: u32,
    /// Kernel address of its inode; 0 when it is not known.
    pub object: u64,
    /// Kernel address of the directory entry that it was opened by.
    pub entry: u64,
    /// Where that entry was when the present system call began: its directory and the hash of its name in one.
    pub place: u64,
    /// Its length then, bytes.
    pub size: u64,
}

const _: () = {
    assert!(size_of::<TcpTuple>() == 40);
    assert!(size_of::<TcpListener>() == 24);
    assert!(size_of::<AttemptKey>() == 32);
    assert!(size_of::<WatchedFile>() == 40);
    assert!(size_of::<Offsets>() == (47 + 11 + 18 + 21 + 11 + 20 + 24 + 1 + 12 + 3 + 1 + 3) * 4);
    assert!(size_of::<ChannelKey>() == 16);
    assert!(size_of::<ChannelState>() == 88);
    assert!(size_of::<Credit>() == 128);
    assert!(size_of::<ExeKey>() == 16);
    assert!(size_of::<CpuState>() == 16 + 8 * 32);
};
