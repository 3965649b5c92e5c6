//! TCP connections: the addresses of a socket's end, and the other end found by them.
//!
//! Each end is a socket of its own, and nothing in the kernel leads from one to the other. Both are on this host only if their
//! addresses mirror each other; two live sockets of one network namespace that do are the two ends of one connection.
//!
//! The functions with a C name are global to the verifier: it looks at each once, and not again at every call and in every state.
//! They take and return numbers only.

use countersign_common::{
    counter,
    load::{ChannelKey, TcpListener, TcpTuple},
};

use crate::{
    emit::count,
    maps::{TCP_LISTENERS, TUPLES},
    offsets::{kernel, off},
    scope::Held,
};

const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;
/// States of a TCP socket (`include/net/tcp_states.h`).
pub const ESTABLISHED: u8 = 1;
pub const SYN_SENT: u8 = 2;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;
/// `::ffff:0.0.0.0`, as the two halves of it lie in memory.
const MAPPED: u64 = 0xffff_0000;
/// `::1`, its second half.
const LOOPBACK: u64 = 1 << 56;

/// No address. For zeroes that it knows LLVM calls a `memset`, and its frame of the stack.
#[inline(always)]
pub fn nowhere() -> TcpTuple {
    let zero = core::hint::black_box(0_u64);
    TcpTuple {
        local: [zero; 2],
        remote: [zero; 2],
        net_ns: zero as u32,
        local_port: zero as u16,
        remote_port: zero as u16,
    }
}

/// Reads the addresses of a TCP socket. Its state, 0 if it is none.
#[inline(never)]
pub fn read_tuple(sock: u64, tuple: &mut TcpTuple) -> u64 {
    match try_read(sock, tuple) {
        Some(state) => u64::from(state),
        None => 0,
    }
}

#[inline(always)]
fn try_read(sock: u64, tuple: &mut TcpTuple) -> Option<u8> {
    if sock == 0 || kernel::<u16>(sock, off!(sock_protocol))? != IPPROTO_TCP {
        return None;
    }
    if kernel::<u16>(sock, off!(sock_family))? == AF_INET6 {
        tuple.local = kernel(sock, off!(sock_v6_rcv_saddr))?;
        tuple.remote = kernel(sock, off!(sock_v6_daddr))?;
    } else {
        tuple.local = mapped(kernel(sock, off!(sock_rcv_saddr))?);
        tuple.remote = mapped(kernel(sock, off!(sock_daddr))?);
    }
    tuple.local_port = kernel(sock, off!(sock_num))?;
    tuple.remote_port = u16::from_be(kernel(sock, off!(sock_dport))?);
    let net: u64 = kernel(sock, off!(sock_net))?;
    tuple.net_ns = kernel(net, off!(net_inum))?;
    kernel(sock, off!(sock_state))
}

#[inline(always)]
fn mapped(address: u32) -> [u64; 2] {
    [0, MAPPED | u64::from(address) << 32]
}

#[inline(always)]
fn is_loopback(address: &[u64; 2]) -> bool {
    let of_ipv4 = address[1] & 0xffff_ffff == MAPPED && address[1] >> 32 & 0xff == 127;
    address[0] == 0 && (of_ipv4 || address[1] == LOOPBACK)
}

/// Notes the addresses of an end of the tree, so that the other end is found.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tcp_keep(sock: u64, inode: u64) -> u64 {
    let mut tuple = nowhere();
    if read_tuple(sock, &mut tuple) == 0 || tuple.remote_port == 0 {
        return 0;
    }
    let key = ChannelKey {
        object: sock,
        inode,
    };
    let mut kept = TUPLES.insert(&tuple, &key, 0).is_ok();
    // From another network namespace the connection looks the same, unless it is one that cannot leave its own.
    if !is_loopback(&tuple.local) {
        tuple.net_ns = 0;
        kept &= TUPLES.insert(&tuple, &key, 0).is_ok();
    }
    if !kept {
        count(counter::TUPLE_FAILED, 1);
    }
    1
}

/// Finds the socket at the other end of a connection among those of the tree and its peers, and names it in the channel's id.
#[inline(always)]
pub fn find_peer(held: &mut Held) -> bool {
    let object = tcp_find_peer(held.channel.object);
    if object == 0 {
        return false;
    }
    held.channel.peer_object = object;
    held.channel.peer_inode = socket_inode(object);
    true
}

/// Finds the other end, and notes this one if it is one of the tree's or a peer's. The socket at the other end, 0 if none is known.
#[inline(always)]
pub fn tcp_meet(sock: u64, inode: u64, of_tree: bool) -> u64 {
    let peer = tcp_find_peer(sock);
    if !of_tree && peer == 0 {
        return 0;
    }
    tcp_keep(sock, inode);
    if peer != 0 {
        return peer;
    }
    // The other end, on another CPU, has kept its own before it looked for this one.
    tcp_find_peer(sock)
}

/// The inode number of a socket; 0 for one that nobody has accepted yet.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn socket_inode(sock: u64) -> u64 {
    if sock == 0 {
        return 0;
    }
    let inode = || {
        let socket: u64 = kernel(sock, off!(sock_socket))?;
        if socket == 0 {
            return None;
        }
        kernel(socket + off!(socket_alloc_inode), off!(inode_ino))
    };
    inode().unwrap_or(0)
}

/// The socket (`struct sock`) at the other end of a connection, 0 if none is known.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tcp_find_peer(sock: u64) -> u64 {
    let mut tuple = nowhere();
    if read_tuple(sock, &mut tuple) == 0 || tuple.remote_port == 0 {
        return 0;
    }
    let mut mirrored = TcpTuple {
        local: tuple.remote,
        remote: tuple.local,
        net_ns: tuple.net_ns,
        local_port: tuple.remote_port,
        remote_port: tuple.local_port,
    };
    let mut found = TUPLES.get_ptr(&mirrored);
    if found.is_none() && !is_loopback(&mirrored.local) {
        mirrored.net_ns = 0;
        found = TUPLES.get_ptr(&mirrored);
    }
    let Some(found) = found else { return 0 };
    // SAFETY: a value of the map.
    let object = unsafe { (*found).object };
    if object == sock {
        return 0;
    }
    let state = read_tuple(object, &mut tuple) as u8;
    let is_live = state != 0 && state != CLOSE && state != LISTEN;
    let is_it = tuple.local[0] == mirrored.local[0]
        && tuple.local[1] == mirrored.local[1]
        && tuple.remote[0] == mirrored.remote[0]
        && tuple.remote[1] == mirrored.remote[1]
        && tuple.local_port == mirrored.local_port
        && tuple.remote_port == mirrored.remote_port;
    if is_live && is_it { object } else { 0 }
}

/// Remembers the address on which the tree listens.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tcp_listens(sock: u64) -> u64 {
    let mut tuple = nowhere();
    if read_tuple(sock, &mut tuple) as u8 != LISTEN {
        return 0;
    }
    let key = TcpListener {
        local: tuple.local,
        net_ns: tuple.net_ns,
        port: u32::from(tuple.local_port),
    };
    if TCP_LISTENERS.insert(&key, &sock, 0).is_err() {
        count(counter::TUPLE_FAILED, 1);
    }
    1
}

/// Whether a connection that came in at this socket came to where the tree listens. 1 if so.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tcp_is_accepted_by_tree(sock: u64) -> u64 {
    let mut tuple = nowhere();
    if read_tuple(sock, &mut tuple) == 0 {
        return 0;
    }
    has_listener(&tuple.local, tuple.net_ns, tuple.local_port, 1)
}

/// Whether a connection that is still being made goes to where the tree listens. 1 if so.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tcp_goes_to_tree(sock: u64) -> u64 {
    let mut tuple = nowhere();
    if read_tuple(sock, &mut tuple) == 0 {
        return 0;
    }
    // That a socket listens on any address says nothing of an address that may be another host's.
    let same = tuple.local[0] == tuple.remote[0] && tuple.local[1] == tuple.remote[1];
    let here = u64::from(same || is_loopback(&tuple.remote));
    has_listener(&tuple.remote, tuple.net_ns, tuple.remote_port, here)
}

#[inline(always)]
fn has_listener(local: &[u64; 2], net_ns: u32, port: u16, or_any: u64) -> u64 {
    let mut key = TcpListener {
        local: *local,
        net_ns,
        port: u32::from(port),
    };
    let mut listener = TCP_LISTENERS.get_ptr(&key);
    if listener.is_none() && or_any != 0 {
        key.local = [0, 0];
        listener = TCP_LISTENERS.get_ptr(&key);
        if listener.is_none() {
            key.local = [0, MAPPED];
            listener = TCP_LISTENERS.get_ptr(&key);
        }
    }
    let Some(listener) = listener else { return 0 };
    // SAFETY: a value of the map.
    let sock = unsafe { *listener };
    let is_live = kernel::<u8>(sock, off!(sock_state)) == Some(LISTEN)
        && kernel::<u16>(sock, off!(sock_num)) == Some(port);
    u64::from(is_live)
}
