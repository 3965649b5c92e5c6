//! The structure offsets that the kernel programs need, from the running kernel's BTF.

use std::fs;

use anyhow::Context;
use countersign_common::load::Offsets;

use super::btf::{Btf, BtfError};

/// Where the kernel keeps its BTF.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Programs that a kernel may have no tracepoint for, with the names that it has had; and those that are here, each with its name.
pub type Candidates = [(&'static str, &'static [&'static str])];
/// See [`Candidates`].
pub type Present = Vec<(&'static str, &'static str)>;

/// Reads the offsets of the running kernel, and which of the tracepoints it has.
///
/// # Errors
/// When the kernel has no BTF, or a structure or member that is not there.
pub fn of_running_kernel(candidates: &Candidates) -> anyhow::Result<(Offsets, Present)> {
    let bytes = fs::read(VMLINUX)
        .with_context(|| format!("read {VMLINUX}: the kernel needs CONFIG_DEBUG_INFO_BTF"))?;
    let btf = Btf::parse(&bytes).with_context(|| {
        format!(
            "the kernel types in {VMLINUX} cannot be used: mount the kernel's own sysfs on /sys"
        )
    })?;
    let offsets = from_btf(&btf).with_context(|| format!("find structure members in {VMLINUX}"))?;
    let mut present = Vec::new();
    for (program, tracepoints) in candidates {
        for tracepoint in *tracepoints {
            if btf.tracepoint_args(tracepoint)?.is_some() {
                present.push((*program, *tracepoint));
                break;
            }
        }
    }
    Ok((offsets, present))
}

fn from_btf(btf: &Btf<'_>) -> Result<Offsets, BtfError> {
    let task = |member| btf.offset("task_struct", member);
    let signal = |member| btf.offset("signal_struct", member);
    let cred = |member| btf.offset("cred", member);
    Ok(Offsets {
        task_group_leader: task("group_leader")?,
        task_files: task("files")?,
        task_start_boottime: task("start_boottime")?,
        task_signal: task("signal")?,
        task_tgid: task("tgid")?,
        task_pid: task("pid")?,
        task_mm: task("mm")?,
        task_thread_info_status: task("thread_info.status")?,
        task_real_cred: task("real_cred")?,
        task_cgroups: task("cgroups")?,
        task_thread_pid: task("thread_pid")?,
        task_exit_code: task("exit_code")?,
        task_bpf_storage: task("bpf_storage")?,
        files_fdt: btf.offset("files_struct", "fdt")?,
        fdtable_fd: btf.offset("fdtable", "fd")?,
        fdtable_max_fds: btf.offset("fdtable", "max_fds")?,
        file_inode: btf.offset("file", "f_inode")?,
        file_mode: btf.offset("file", "f_mode")?,
        file_flags: btf.offset("file", "f_flags")?,
        file_private_data: btf.offset("file", "private_data")?,
        inode_mode: btf.offset("inode", "i_mode")?,
        inode_ino: btf.offset("inode", "i_ino")?,
        inode_sb: btf.offset("inode", "i_sb")?,
        sb_dev: btf.offset("super_block", "s_dev")?,
        sb_magic: btf.offset("super_block", "s_magic")?,
        socket_type: btf.offset("socket", "type")?,
        socket_sk: btf.offset("socket", "sk")?,
        socket_alloc_inode: btf.offset("socket_alloc", "vfs_inode")?,
        sock_family: btf.offset("sock", "__sk_common.skc_family")?,
        sock_socket: btf.offset("sock", "sk_socket")?,
        unix_peer: btf.offset("unix_sock", "peer")?,
        unix_addr: btf.offset("unix_sock", "addr")?,
        signal_live: signal("live")?,
        signal_flags: signal("flags")?,
        signal_group_exit_code: signal("group_exit_code")?,
        cred_uid: cred("uid")?,
        cred_euid: cred("euid")?,
        cred_gid: cred("gid")?,
        bprm_file: btf.offset("linux_binprm", "file")?,
        bprm_filename: btf.offset("linux_binprm", "filename")?,
        mm_arg_start: btf.offset("mm_struct", "arg_start")?,
        mm_arg_end: btf.offset("mm_struct", "arg_end")?,
        css_set_dfl_cgrp: btf.offset("css_set", "dfl_cgrp")?,
        cgroup_kn: btf.offset("cgroup", "kn")?,
        kernfs_id: btf.offset("kernfs_node", "id")?,
        pid_level: btf.offset("pid", "level")?,
        pid_numbers: btf.offset("pid", "numbers")?,
        inode_pipe: btf.offset("inode", "i_pipe")?,
        pipe_head: btf.offset("pipe_inode_info", "head")?,
        pipe_tail: btf.offset("pipe_inode_info", "tail")?,
        pipe_ring_size: btf.offset("pipe_inode_info", "ring_size")?,
        pipe_bufs: btf.offset("pipe_inode_info", "bufs")?,
        pipe_buffer_len: btf.offset("pipe_buffer", "len")?,
        pipe_buffer_size: btf.size("pipe_buffer")?,
        sock_receive_queue: btf.offset("sock", "sk_receive_queue")?,
        skb_list_next: btf.offset("sk_buff_head", "next")?,
        skb_list_qlen: btf.offset("sk_buff_head", "qlen")?,
        skb_next: btf.offset("sk_buff", "next")?,
        // Without these tier T still works: whether they are there is asked before the functions are attached.
        kiocb_filp: optional(btf.offset("kiocb", "ki_filp")),
        iter_type: optional(btf.offset("iov_iter", "iter_type")),
        iter_offset: optional(btf.offset("iov_iter", "iov_offset")),
        // All pointers are one union; this one has never been renamed.
        iter_pointer: optional(btf.offset("iov_iter", "kvec")),
        iter_count: optional(btf.offset("iov_iter", "count")),
        iter_segments: optional(btf.offset("iov_iter", "nr_segs")),
        msghdr_iter: optional(btf.offset("msghdr", "msg_iter")),
        msghdr_flags: optional(btf.offset("msghdr", "msg_flags")),
        socket_file: optional(btf.offset("socket", "file")),
        task_flags: optional(btf.offset("task_struct", "flags")),
        bvec_page: optional(btf.offset("bio_vec", "bv_page")),
        bvec_len: optional(btf.offset("bio_vec", "bv_len")),
        bvec_offset: optional(btf.offset("bio_vec", "bv_offset")),
        kind_ubuf: optional(btf.enumerator("iter_type", "ITER_UBUF")),
        kind_iovec: optional(btf.enumerator("iter_type", "ITER_IOVEC")),
        kind_kvec: optional(btf.enumerator("iter_type", "ITER_KVEC")),
        kind_bvec: optional(btf.enumerator("iter_type", "ITER_BVEC")),
        page_shift: page_shift(btf),
        skb_cb: btf.offset("sk_buff", "cb")?,
        skb_len: btf.offset("sk_buff", "len")?,
        skb_data_len: btf.offset("sk_buff", "data_len")?,
        skb_data: btf.offset("sk_buff", "data")?,
        skb_head: btf.offset("sk_buff", "head")?,
        skb_end: btf.offset("sk_buff", "end")?,
        skb_sk: btf.offset("sk_buff", "sk")?,
        unixcb_consumed: btf.offset("unix_skb_parms", "consumed")?,
        shinfo_nr_frags: btf.offset("skb_shared_info", "nr_frags")?,
        shinfo_frags: btf.offset("skb_shared_info", "frags")?,
        shinfo_frag_list: btf.offset("skb_shared_info", "frag_list")?,
        ..of_rings(btf)?
    })
}

/// The members that `io_uring` is decoded by; a kernel may lack each.
fn of_rings(btf: &Btf<'_>) -> Result<Offsets, BtfError> {
    Ok(Offsets {
        uring_complete_args: btf
            .tracepoint_args("io_uring_complete")?
            .unwrap_or_default(),
        kiocb_opcode: optional(btf.offset("io_kiocb", "opcode")),
        kiocb_flags: optional(btf.offset("io_kiocb", "flags")),
        kiocb_cqe: optional(btf.offset("io_kiocb", "cqe")),
        kiocb_ctx: optional(btf.offset("io_kiocb", "ctx")),
        kiocb_tctx: optional(btf.offset("io_kiocb", "tctx")),
        kiocb_task: optional(btf.offset("io_kiocb", "task")),
        tctx_task: optional(btf.offset("io_uring_task", "task")),
        ring_compat_bit: optional(btf.bit_offset("io_ring_ctx", "compat")),
        rw_addr: optional(btf.offset("io_rw", "addr")),
        rw_len: optional(btf.offset("io_rw", "len")),
        sr_buf: optional(btf.offset("io_sr_msg", "buf")),
        sr_len: optional(btf.offset("io_sr_msg", "len")),
        sr_done: optional(btf.offset("io_sr_msg", "done_io")),
        sr_msg_flags: optional(btf.offset("io_sr_msg", "msg_flags")),
        sr_flags: optional(btf.offset("io_sr_msg", "flags")),
        uring_splice_fd_in: optional(btf.offset("io_splice", "splice_fd_in")),
        uring_splice_flags: optional(btf.offset("io_splice", "flags")),
        proto_ops_sendpage: optional(btf.offset("proto_ops", "sendpage")),
        kiocb_async_data: optional(btf.offset("io_kiocb", "async_data")),
        async_msg_namelen: optional(btf.offset("io_async_msghdr", "namelen")),
        async_msg_controllen: optional(btf.offset("io_async_msghdr", "controllen")),
        ..of_sockets(btf)?
    })
}

/// The members by which TCP sockets and terminals are known.
fn of_sockets(btf: &Btf<'_>) -> Result<Offsets, BtfError> {
    let common = |member: &str| btf.offset("sock", &format!("__sk_common.{member}"));
    let tcp = |member| btf.offset("tcp_sock", member);
    Ok(Offsets {
        sock_protocol: btf.offset("sock", "sk_protocol")?,
        sock_state: common("skc_state")?,
        sock_num: common("skc_num")?,
        sock_dport: common("skc_dport")?,
        sock_rcv_saddr: common("skc_rcv_saddr")?,
        sock_daddr: common("skc_daddr")?,
        // A kernel without IPv6 has no socket whose family leads here.
        sock_v6_rcv_saddr: common("skc_v6_rcv_saddr").unwrap_or(0),
        sock_v6_daddr: common("skc_v6_daddr").unwrap_or(0),
        sock_net: common("skc_net.net")?,
        sock_cookie: common("skc_cookie")?,
        net_inum: btf.offset("net", "ns.inum")?,
        tcp_rcv_nxt: tcp("rcv_nxt")?,
        tcp_bytes_received: tcp("bytes_received")?,
        tcp_snd_una: tcp("snd_una")?,
        tcp_bytes_acked: tcp("bytes_acked")?,
        tcp_write_seq: tcp("write_seq")?,
        tcp_copied_seq: tcp("copied_seq")?,
        icsk_ulp_ops: btf.offset("inet_connection_sock", "icsk_ulp_ops")?,
        tty_file_tty: btf.offset("tty_file_private", "tty")?,
        tty_link: btf.offset("tty_struct", "link")?,
        tty_index: btf.offset("tty_struct", "index")?,
        inode_rdev: btf.offset("inode", "i_rdev")?,
        signal_tty: btf.offset("signal_struct", "tty")?,
        ..of_attempts(btf)?
    })
}

/// The members by which attempts to get round the witness are told.
fn of_attempts(btf: &Btf<'_>) -> Result<Offsets, BtfError> {
    let task = |member| btf.offset("task_struct", member);
    let cred = |member| btf.offset("cred", member);
    Ok(Offsets {
        task_ptrace: task("ptrace")?,
        task_parent: task("parent")?,
        task_pid_links: task("pid_links")?,
        cred_cap_effective: cred("cap_effective")?,
        cred_user_ns: cred("user_ns")?,
        user_namespace_level: btf.offset("user_namespace", "level")?,
        mm_env_start: btf.offset("mm_struct", "env_start")?,
        mm_env_end: btf.offset("mm_struct", "env_end")?,
        upid_ns: btf.offset("upid", "ns")?,
        pid_namespace_tree: btf.offset("pid_namespace", "idr.idr_rt.xa_head")?,
        xa_node_shift: btf.offset("xa_node", "shift")?,
        xa_node_slots: btf.offset("xa_node", "slots")?,
        pid_tasks: btf.offset("pid", "tasks")?,
        inode_private: btf.offset("inode", "i_private")?,
        inode_nlink: btf.offset("inode", "i_nlink")?,
        inode_size: btf.offset("inode", "i_size")?,
        file_dentry: btf.offset("file", "f_path.dentry")?,
        dentry_parent: btf.offset("dentry", "d_parent")?,
        dentry_inode: btf.offset("dentry", "d_inode")?,
        dentry_name: btf.offset("dentry", "d_name.name")?,
        dentry_name_len: btf.offset("dentry", "d_name.len")?,
        proc_inode_pid: btf.offset("proc_inode", "pid")?,
        proc_inode_inode: btf.offset("proc_inode", "vfs_inode")?,
        sock_peer_pid: btf.offset("sock", "sk_peer_pid")?,
        task_real_parent: optional(btf.offset("task_struct", "real_parent")),
        io_open_slot: optional(btf.offset("io_open", "file_slot")),
        io_accept_slot: optional(btf.offset("io_accept", "file_slot")),
        io_socket_slot: optional(btf.offset("io_socket", "file_slot")),
        ..of_events(btf)
    })
}

/// The members of what trace events hand over, and what they do not hand over.
fn of_events(btf: &Btf<'_>) -> Offsets {
    let event =
        |name: &str, member: &str| optional(btf.offset(&format!("trace_event_raw_{name}"), member));
    let complete = |member| event("io_uring_complete", member);
    let submit = |name| event(name, "req");
    Offsets {
        mm_exe_file: optional(btf.offset("mm_struct", "exe_file")),
        event_fork_child: event("sched_process_fork", "child_pid"),
        event_exec_name: event("sched_process_exec", "__data_loc_filename"),
        event_complete_ring: complete("ctx"),
        event_complete_request: complete("req"),
        event_complete_data: complete("user_data"),
        event_complete_result: complete("res"),
        // Before Linux 6.4 it has the other name.
        event_submit_request: submit("io_uring_submit_req").min(submit("io_uring_submit_sqe")),
        event_copy_buffer: event("skb_copy_datagram_iovec", "skbaddr"),
        event_copy_len: event("skb_copy_datagram_iovec", "len"),
        event_enter_number: event("sys_enter", "id"),
        event_exit_returned: event("sys_exit", "ret"),
        ..Offsets::default()
    }
}

fn optional(found: Result<u32, BtfError>) -> u32 {
    found.unwrap_or(Offsets::UNKNOWN)
}

/// Binary logarithm of the size of `struct page`. Of a size that is no power of two nothing is known: kernel programs do not divide.
fn page_shift(btf: &Btf<'_>) -> u32 {
    match btf.size("page") {
        Ok(size) if size.is_power_of_two() => size.ilog2(),
        Ok(_) | Err(_) => Offsets::UNKNOWN,
    }
}

/// What programs on trace events need and the running kernel lacks. Of `io_uring` nothing is asked for: a kernel without it has no such program either.
pub(super) fn missing_for_events(offsets: &Offsets) -> Option<&'static str> {
    /// What a system call's entry and return hand over lies where programs that read it directly expect it.
    const PLACES: (u32, u32) = (8, 16);
    if (offsets.event_enter_number, offsets.event_exit_returned) != PLACES {
        return Some("sys_enter's number and sys_exit's return value where they have always been");
    }
    first_unknown(&[
        (offsets.mm_exe_file, "mm_struct.exe_file"),
        (offsets.task_real_parent, "task_struct.real_parent"),
        (offsets.event_fork_child, "sched_process_fork's child"),
        (offsets.event_exec_name, "sched_process_exec's file"),
    ])
}

/// What capture at kernel functions needs and the running kernel lacks. Enumerators are not asked for: an iterator of an unknown kind is a
/// gap.
pub(super) fn missing_for_functions(offsets: &Offsets) -> Option<&'static str> {
    first_unknown(&[
        (offsets.kiocb_filp, "kiocb.ki_filp"),
        (offsets.iter_type, "iov_iter.iter_type"),
        (offsets.iter_offset, "iov_iter.iov_offset"),
        (offsets.iter_pointer, "iov_iter.kvec"),
        (offsets.iter_count, "iov_iter.count"),
        (offsets.iter_segments, "iov_iter.nr_segs"),
        (offsets.msghdr_iter, "msghdr.msg_iter"),
        (offsets.msghdr_flags, "msghdr.msg_flags"),
        (offsets.socket_file, "socket.file"),
        (offsets.task_flags, "task_struct.flags"),
        (offsets.task_real_parent, "task_struct.real_parent"),
    ])
}

fn first_unknown(members: &[(u32, &'static str)]) -> Option<&'static str> {
    members
        .iter()
        .find(|(offset, _)| *offset == Offsets::UNKNOWN)
        .map(|(_, member)| *member)
}
