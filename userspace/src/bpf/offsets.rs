//! The structure offsets that the kernel programs need, from the running kernel's BTF.

use std::fs;

use anyhow::Context;
use countersign_common::load::Offsets;

use super::btf::{Btf, BtfError};

/// Where the kernel keeps its BTF.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Reads the offsets of the running kernel.
///
/// # Errors
/// When the kernel has no BTF, or a structure or member that is not there.
pub fn of_running_kernel() -> anyhow::Result<Offsets> {
    let bytes = fs::read(VMLINUX)
        .with_context(|| format!("read {VMLINUX}: the kernel needs CONFIG_DEBUG_INFO_BTF"))?;
    let btf = Btf::parse(&bytes).with_context(|| {
        format!(
            "the kernel types in {VMLINUX} cannot be used: mount the kernel's own sysfs on /sys"
        )
    })?;
    from_btf(&btf).with_context(|| format!("find structure members in {VMLINUX}"))
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
        skb_len: btf.offset("sk_buff", "len")?,
        skb_unix_consumed: btf
            .offset("sk_buff", "cb")?
            .saturating_add(btf.offset("unix_skb_parms", "consumed")?),
    })
}
