//! TCP sockets: their addresses as records, and connections that the tree takes part in, known before either side returns.
//!
//! A server can have accepted a connection, and a client be done connecting, before the other side's call returns. So what matters is
//! the moment at which a socket becomes established: from then on the other end is found by the addresses.

use aya_ebpf::helpers::generated::bpf_get_current_task_btf;
use countersign_common::{SocketAddress, channel_kind, counter, kind, load::TcpTuple, tag};

use crate::{
    emit::{count, record},
    inet::{ESTABLISHED, SYN_SENT, nowhere, read_tuple, tcp_is_accepted_by_tree, tcp_keep},
    maps::CONNECTING,
    offsets::{current, group_leader, kernel, off},
    scope::tag_of,
};

/// `inet_sock_set_state(sk, oldstate, newstate)`. Connecting begins in the connecting task; all else happens anywhere.
///
/// # Safety
/// The arguments are the tracepoint's.
#[inline(always)]
pub unsafe fn state_changed(sock: u64, old: i32, new: i32) {
    if new == i32::from(SYN_SENT) {
        // SAFETY: the current task.
        let bits = unsafe { tag_of(group_leader(bpf_get_current_task_btf())) }.unwrap_or(0);
        if bits & tag::TREE != 0 && CONNECTING.insert(&sock, &1, 0).is_err() {
            count(counter::TUPLE_FAILED, 1);
        }
        return;
    }
    if new != i32::from(ESTABLISHED) {
        return;
    }
    let of_tree = if old == i32::from(SYN_SENT) {
        CONNECTING.remove(&sock).is_ok()
    } else {
        tcp_is_accepted_by_tree(sock) != 0
    };
    if of_tree {
        tcp_keep(sock, 0);
    }
}

/// Reports the addresses of an end that the current task uses.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tcp_report(
    sock: u64,
    inode: u64,
    epoch: u64,
    peer_object: u64,
    peer_inode: u64,
) -> u64 {
    let mut tuple: TcpTuple = nowhere();
    let state = read_tuple(sock, &mut tuple) as u8;
    if state == 0 {
        return 0;
    }
    // SAFETY: the current task.
    let who = current(unsafe { group_leader(bpf_get_current_task_btf()) });
    let [local_start, remote_start] = starts(sock);
    let cookie: u64 = kernel(sock, off!(sock_cookie)).unwrap_or(0);
    let family: u16 = kernel(sock, off!(sock_family)).unwrap_or(0);
    record::<SocketAddress>(kind::SOCKET_ADDRESS, |place| {
        // SAFETY: a fresh reservation of that size; the addresses are plain bytes.
        unsafe {
            (*place).task = who;
            // Field by field: built first, it would need room on the stack.
            let channel = &raw mut (*place).channel;
            (*channel).object = sock;
            (*channel).inode = inode;
            (*channel).peer_object = peer_object;
            (*channel).peer_inode = peer_inode;
            (*channel).epoch = epoch;
            (*channel).dev = 0;
            (*channel).kind = channel_kind::TCP;
            (*channel).reserved = [0; 3];
            (*channel).reserved2 = 0;
            (*place).cookie = cookie;
            (*place).local = words(tuple.local);
            (*place).remote = words(tuple.remote);
            (*place).net_ns = tuple.net_ns;
            (*place).local_port = tuple.local_port;
            (*place).remote_port = tuple.remote_port;
            (*place).local_start = local_start;
            (*place).remote_start = remote_start;
            (*place).family = family;
            (*place).state = state;
            (*place).reserved = [0; 5];
        }
    });
    0
}

#[inline(always)]
const fn words(words: [u64; 2]) -> [u8; 16] {
    // SAFETY: both are sixteen bytes without padding.
    unsafe { core::mem::transmute(words) }
}

/// Where this end's and the other end's bytes begin. Another CPU may be counting a segment meanwhile: then twice the same was not
/// read, and nothing is said.
#[inline(always)]
fn starts(sock: u64) -> [u32; 2] {
    let first = [sent_from(sock), received_from(sock)];
    let second = [sent_from(sock), received_from(sock)];
    if first[0] == second[0] && first[1] == second[1] {
        first
    } else {
        [0, 0]
    }
}

#[inline(always)]
fn sent_from(sock: u64) -> u32 {
    let acked: u64 = kernel(sock, off!(tcp_bytes_acked)).unwrap_or(0);
    let next: u32 = kernel(sock, off!(tcp_snd_una)).unwrap_or(0);
    next.wrapping_sub(acked as u32)
}

#[inline(always)]
fn received_from(sock: u64) -> u32 {
    let received: u64 = kernel(sock, off!(tcp_bytes_received)).unwrap_or(0);
    let next: u32 = kernel(sock, off!(tcp_rcv_nxt)).unwrap_or(0);
    next.wrapping_sub(received as u32)
}
