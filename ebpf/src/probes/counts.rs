//! What TCP itself counts of an end, beside what was counted here: the application's bytes, by the sequence numbers of the connection.
//!
//! No queue has to be walked, and the other end need not be watched: each end's own numbers say what processes handed over and took, by
//! whatever call. Where they begin depends on who connected, so a first record is made when the end is first seen, and only differences
//! count.

use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use countersign_common::{
    SocketCounts, channel_kind, count_flags, kind,
    load::{ChannelKey, MOVED},
    queued_why,
};

use crate::{
    channel::state_of,
    emit::data_record,
    inet::{ESTABLISHED, SYN_SENT, socket_inode},
    offsets::{kernel, off},
};

/// States of a TCP socket (`include/net/tcp_states.h`).
const SYN_RECEIVED: u8 = 3;
const FIN_WAIT_1: u8 = 4;
const FIN_WAIT_2: u8 = 5;
const CLOSE_WAIT: u8 = 8;

/// Tries to read counters that belong together: a segment can arrive meanwhile.
const TRIES: u32 = 3;

/// What a socket counts. Not yet told apart from where the counts begin.
struct Counts {
    sent: u64,
    taken: u64,
    waiting: u32,
    unacked: u32,
    state: u8,
}

/// Makes the record of this end, if anything was counted since the last, or if it is the first; 1 if so.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tcp_counts(object: u64, inode: u64, pool: u64, why: u64) -> u64 {
    let key = ChannelKey { object, inode };
    let Some(state) = state_of(&key) else {
        return 0;
    };
    // SAFETY: a value of the maps for this key; words that are only changed atomically.
    unsafe {
        let begun = bpf_ktime_get_boot_ns();
        // The counts before the socket's: an operation that ends in between is in these only, and is known to be on its way. Of each
        // operation the bytes are counted before its number.
        let written_ops = read_volatile(&raw const (*state).ops[1]);
        let read_ops = read_volatile(&raw const (*state).ops[0]);
        let written = read_volatile(&raw const (*state).bytes[1]);
        let read = read_volatile(&raw const (*state).bytes[0]);
        let ready = read_volatile(&raw const (*state).ready);
        if (written_ops | read_ops | written | read) & MOVED != 0 || ready == 0 {
            return 0;
        }
        let first = why == u64::from(queued_why::BEGUN) || why == u64::from(queued_why::FOUND);
        let ops = written_ops + read_ops;
        if !first && (*state).told_ops == ops {
            return 0;
        }
        let Some(mut counts) = counts(object, inode) else {
            return 0;
        };
        if why == u64::from(queued_why::BEGUN) && counts.state == SYN_SENT {
            // Where the first bytes shall go with the first segment (`TCP_FASTOPEN_CONNECT`), nothing has been numbered yet.
            counts.sent = 1;
            counts.unacked = 1;
        }
        let made = data_record::<SocketCounts>(pool as u32, kind::SOCKET_COUNTS, |place| {
            (*place).channel.object = object;
            (*place).channel.inode = inode;
            (*place).channel.peer_object = (*state).peer_object;
            (*place).channel.peer_inode = (*state).peer_inode;
            (*place).channel.epoch = (*state).epoch;
            (*place).channel.dev = 0;
            (*place).channel.kind = channel_kind::TCP;
            (*place).channel.reserved = [0; 3];
            (*place).channel.reserved2 = 0;
            (*place).sent_bytes = counts.sent;
            (*place).taken_bytes = counts.taken;
            (*place).written_bytes = written;
            (*place).read_bytes = read;
            (*place).written_ops = written_ops;
            (*place).read_ops = read_ops;
            (*place).begun_ns = begun;
            (*place).waiting_bytes = counts.waiting;
            (*place).unacked_bytes = counts.unacked;
            (*place).why = why as u8;
            (*place).state = counts.state;
            (*place).flags = ends_in(counts.state, counts.waiting);
            (*place).reserved = [0; 5];
        });
        if made {
            (*state).told_ops = ops;
        }
        u64::from(made)
    }
}

/// Which of the counts may hold the number that the end of a direction takes. Not settled here: the state and the number change one after
/// the other.
#[inline(always)]
fn ends_in(state: u8, waiting: u32) -> u8 {
    let open = state == ESTABLISHED || state == SYN_SENT || state == SYN_RECEIVED;
    let mut flags = 0;
    if !open && state != CLOSE_WAIT {
        flags |= count_flags::SENT_END;
    }
    if !open && state != FIN_WAIT_1 && state != FIN_WAIT_2 && waiting == 0 {
        flags |= count_flags::TAKEN_END;
    }
    flags
}

/// What the socket counts, if it is still the one with this inode and the bytes go through TCP as they are: under TLS in the kernel,
/// or whatever else is put between (`TCP_ULP`), the sequence numbers count other bytes than the application's.
#[inline(always)]
fn counts(sock: u64, inode: u64) -> Option<Counts> {
    if socket_inode(sock) != inode || kernel::<u64>(sock, off!(icsk_ulp_ops))? != 0 {
        return None;
    }
    // A socket that was disconnected leads nowhere.
    if kernel::<u16>(sock, off!(sock_dport))? == 0 {
        return None;
    }
    let mut tries = 0;
    while tries < TRIES {
        tries += 1;
        let acked: u64 = kernel(sock, off!(tcp_bytes_acked))?;
        let received: u64 = kernel(sock, off!(tcp_bytes_received))?;
        let una: u32 = kernel(sock, off!(tcp_snd_una))?;
        let next: u32 = kernel(sock, off!(tcp_rcv_nxt))?;
        let written: u32 = kernel(sock, off!(tcp_write_seq))?;
        let copied: u32 = kernel(sock, off!(tcp_copied_seq))?;
        // After the numbers that it says whether they can be in.
        let state: u8 = kernel(sock, off!(sock_state))?;
        if kernel::<u64>(sock, off!(tcp_bytes_acked))? != acked
            || kernel::<u64>(sock, off!(tcp_bytes_received))? != received
            || kernel::<u32>(sock, off!(tcp_snd_una))? != una
            || kernel::<u32>(sock, off!(tcp_rcv_nxt))? != next
        {
            continue;
        }
        // 32-bit numbers that come round; their distances are those of bytes in memory.
        let (unacked, waiting) = (written.wrapping_sub(una), next.wrapping_sub(copied));
        return Some(Counts {
            sent: acked.wrapping_add(u64::from(unacked)),
            taken: received.wrapping_sub(u64::from(waiting)),
            waiting,
            unacked,
            state,
        });
    }
    None
}
