//! Sockets that are not a pair from birth: TCP connections and datagrams, with one end outside or both inside.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        linux::fs::MetadataExt,
        unix::net::UnixDatagram,
    },
};

use countersign_common::{
    SocketAddress, channel_kind, counter, direction, end_how, gap, tag, transfer_flags,
};

use crate::harness::{
    Witness, open, pipe, read, socket_pair_of, spawn, tcp_pair, token, witness, write,
};

const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

fn mirror(a: &SocketAddress, b: &SocketAddress) -> bool {
    let near = |a: u32, b: u32| a != 0 && a.abs_diff(b) <= 1;
    (a.local, a.local_port, a.net_ns) == (b.remote, b.remote_port, b.net_ns)
        && (b.local, b.local_port) == (a.remote, a.remote_port)
        && near(a.local_start, b.remote_start)
        && near(b.local_start, a.remote_start)
}

#[test]
fn the_ends_of_a_connection_tell_addresses_that_mirror_each_other() {
    let Some(mut witness) = witness() else { return };
    let net_ns = std::fs::metadata("/proc/self/ns/net").unwrap().st_ino();
    for address in LOOPBACKS {
        let before = witness.addresses().len();
        witness.run(tag::TREE, || {
            let [near, far] = tcp_pair(address);
            write(near, b"x");
            read(far, 1);
        });
        let addresses = &witness.addresses()[before..];
        let [near, far] = addresses else {
            panic!("one of each end: {addresses:?}")
        };
        assert!(mirror(near, far), "{addresses:?}");
        assert_eq!(u64::from(near.net_ns), net_ns);
        assert_eq!(far.channel.peer_object, near.channel.object);
        let loopback: SocketAddr = address.parse().unwrap();
        let shown = std::net::Ipv6Addr::from(near.local).to_canonical();
        assert_eq!(shown, loopback.ip());
    }
}

#[test]
fn a_process_outside_that_connects_to_the_trees_port_becomes_a_peer() {
    for address in LOOPBACKS {
        let Some(mut witness) = witness() else { return };
        connects_from_outside(&mut witness, address, TcpStream::connect::<SocketAddr>);
    }
}

#[test]
fn a_process_outside_that_connects_without_waiting_becomes_a_peer() {
    for address in LOOPBACKS {
        let Some(mut witness) = witness() else { return };
        connects_from_outside(&mut witness, address, connect_without_waiting);
    }
}

fn connects_from_outside(
    witness: &mut Witness,
    address: &str,
    connect: impl Fn(SocketAddr) -> std::io::Result<TcpStream>,
) {
    let [ready_read, ready_write] = pipe();
    let (question, answer) = (token("question"), token("answer"));
    let (child, gate) = spawn(|| {
        let listener = TcpListener::bind(address).unwrap();
        write(
            ready_write,
            &listener.local_addr().unwrap().port().to_le_bytes(),
        );
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![0; question.len()];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&answer).unwrap();
    });
    witness.capture.tag_pid(child, tag::TREE).unwrap();
    open(gate);
    let port = u16::from_le_bytes(read(ready_read, 2).try_into().unwrap());
    let mut address: SocketAddr = address.parse().unwrap();
    address.set_port(port);
    let (outsider, gate) = spawn(|| {
        let mut stream = connect(address).unwrap();
        stream.write_all(&question).unwrap();
        let mut bytes = vec![0; answer.len()];
        stream.read_exact(&mut bytes).unwrap();
        // What a peer does elsewhere is its own business.
        let [near, far] = tcp_pair("127.0.0.1:0");
        write(near, b"private");
        read(far, 16);
    });
    open(gate);
    witness.reap(outsider);
    witness.reap(child);
    let peers: Vec<_> = witness.peers().iter().map(|peer| peer.task.tgid).collect();
    assert_eq!(peers, [outsider]);
    for token in [&question, &answer] {
        let [written, read] =
            [direction::WRITE, direction::READ].map(|end| witness.moved(end, token));
        assert_eq!((written.len(), read.len()), (1, 1), "{:?}", witness.ops());
        assert_ne!(written[0].first.task.tgid, read[0].first.task.tgid);
        // On a busy machine a client can write before the server has its socket: then the addresses alone tie the ends.
        let peer = written[0].first.channel.peer_object;
        assert!(
            peer == read[0].first.channel.object || peer == 0,
            "{peer:x}"
        );
    }
    assert_eq!(witness.moved(direction::WRITE, b"private"), []);
    let [near, far] = &witness.addresses()[..] else {
        panic!("one of each end: {:?}", witness.addresses())
    };
    assert!(mirror(near, far), "{near:?} {far:?}");
}

#[test]
fn a_process_outside_that_accepts_a_connection_of_the_tree_becomes_a_peer() {
    for address in LOOPBACKS {
        accepts_outside(address, TcpStream::connect::<SocketAddr>);
    }
}

#[test]
fn a_process_outside_that_accepts_what_the_tree_did_not_wait_for_becomes_a_peer() {
    for address in LOOPBACKS {
        accepts_outside(address, connect_without_waiting);
    }
}

fn accepts_outside(address: &str, connect: impl Fn(SocketAddr) -> std::io::Result<TcpStream>) {
    let Some(mut witness) = witness() else { return };
    let token = token("to-outside");
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    let (outsider, outsider_gate) = spawn(|| {
        // It waits in `accept` while the tree connects.
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![0; token.len()];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(b"!").unwrap();
    });
    open(outsider_gate);
    let child = witness.run(tag::TREE, || {
        let mut stream = connect(address).unwrap();
        stream.write_all(&token).unwrap();
        stream.read_exact(&mut [0]).unwrap();
    });
    witness.reap(outsider);
    let peers: Vec<_> = witness.peers().iter().map(|peer| peer.task.tgid).collect();
    assert_eq!(peers, [outsider]);
    let reads = witness.moved(direction::READ, &token);
    assert_eq!(reads.len(), 1, "{:?}", witness.ops());
    assert_eq!(reads[0].first.task.tgid, outsider);
    let how: Vec<_> = witness
        .ends()
        .iter()
        .map(|end| (end.task.tgid, end.how))
        .collect();
    assert!(how.contains(&(child, end_how::CONNECTED)), "{how:?}");
    assert!(how.contains(&(outsider, end_how::ACCEPTED)), "{how:?}");
}

#[test]
fn connections_between_strangers_are_not_looked_at() {
    let Some(mut witness) = witness() else { return };
    let [done_read, done_write] = pipe();
    let (child, gate) = spawn(|| {
        let _listener = TcpListener::bind("127.0.0.1:0").unwrap();
        tcp_pair("127.0.0.1:0");
        read(done_read, 1);
    });
    witness.capture.tag_pid(child, tag::TREE).unwrap();
    open(gate);
    let (outsider, gate) = spawn(|| {
        let [near, far] = tcp_pair("127.0.0.1:0");
        write(near, b"private");
        read(far, 16);
    });
    open(gate);
    witness.reap(outsider);
    write(done_write, b"d");
    witness.reap(child);
    assert!(witness.peers().is_empty());
    assert_eq!(witness.moved(direction::WRITE, b"private"), []);
}

#[test]
fn a_connection_that_a_child_inherits_stays_one_channel() {
    let Some(mut witness) = witness() else { return };
    let (first, second) = (token("parent"), token("child"));
    witness.run(tag::TREE, || {
        let [near, far] = tcp_pair("127.0.0.1:0");
        write(near, &first);
        assert_eq!(read(far, 256), first);
        let (child, gate) = spawn(|| {
            write(near, &second);
        });
        open(gate);
        assert_eq!(read(far, 256), second);
        // SAFETY: a child of this process.
        unsafe { libc::waitpid(child.cast_signed(), std::ptr::null_mut(), 0) };
    });
    let [first, second] = [&first, &second].map(|token| {
        let written = witness.moved(direction::WRITE, token);
        assert_eq!(written.len(), 1);
        written[0].first
    });
    assert_eq!(first.channel, second.channel);
    assert_ne!(first.task.tgid, second.task.tgid);
    assert_eq!((first.op_seq, second.op_seq), (0, 1));
}

#[test]
fn a_socket_that_connects_again_is_another_channel() {
    let Some(mut witness) = witness() else { return };
    let (first, second) = (token("first"), token("second"));
    witness.run(tag::TREE, || {
        let [one, two] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let stream = TcpStream::connect(one.local_addr().unwrap()).unwrap();
        write(stream.as_raw_fd(), &first);
        // SAFETY: an address of no family, which undoes the connection.
        unsafe {
            let nowhere: libc::sockaddr = std::mem::zeroed();
            let size = libc::socklen_t::try_from(size_of::<libc::sockaddr>()).unwrap();
            assert_eq!(
                libc::connect(stream.as_raw_fd(), &raw const nowhere, size),
                0
            );
        }
        connect_socket(stream.as_raw_fd(), two.local_addr().unwrap());
        write(stream.as_raw_fd(), &second);
    });
    let [first, second] =
        [&first, &second].map(|token| witness.moved(direction::WRITE, token)[0].first);
    assert_eq!(first.channel.object, second.channel.object);
    assert_ne!(first.channel.epoch, second.channel.epoch);
    assert_eq!((first.op_seq, second.op_seq), (0, 0));
    let ports: std::collections::BTreeSet<_> = witness
        .addresses()
        .iter()
        .filter(|address| address.channel.object == first.channel.object)
        .map(|address| address.remote_port)
        .filter(|port| *port != 0)
        .collect();
    assert_eq!(ports.len(), 2);
}

#[test]
fn a_connection_in_another_network_namespace_says_so() {
    let Some(mut witness) = witness() else { return };
    let token = token("elsewhere");
    witness.run(tag::TREE, || {
        // SAFETY: no preconditions.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        let up = std::process::Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.unwrap().success());
        let [near, far] = tcp_pair("127.0.0.1:0");
        write(near, &token);
        assert_eq!(read(far, 256), token);
    });
    let own = std::fs::metadata("/proc/self/ns/net").unwrap().st_ino();
    let written = witness.moved(direction::WRITE, &token);
    assert_eq!(written.len(), 1);
    let address = witness
        .addresses()
        .into_iter()
        .find(|address| address.channel.object == written[0].first.channel.object)
        .unwrap();
    assert_ne!(u64::from(address.net_ns), own);
}

#[test]
fn what_a_message_loses_at_its_receiver_is_a_gap_or_said() {
    let Some(mut witness) = witness() else { return };
    let token = token("longer-than-the-buffer");
    for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        witness.run(tag::TREE, || {
            let [near, far] = socket_pair_of(kind);
            write(near, &token);
            let mut bytes = [0_u8; 8];
            // SAFETY: a buffer and its length.
            let got =
                unsafe { libc::recv(far, bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_TRUNC) };
            assert_eq!(usize::try_from(got).unwrap(), token.len());
            write(near, &token);
            assert_eq!(receive_message(far, &mut bytes), 8);
        });
    }
    let len = u64::try_from(token.len()).unwrap();
    let reads: Vec<_> = witness
        .ops()
        .into_iter()
        .filter(|op| op.first.direction == direction::READ && op.bytes.starts_with(&token[..8]))
        .collect();
    assert_eq!(reads.len(), 4, "{reads:?}");
    for op in &reads {
        assert_eq!(op.first.flags, transfer_flags::MESSAGE_TRUNCATED, "{op:?}");
        if op.first.returned == len {
            let lost = u32::try_from(len - 8).unwrap();
            assert_eq!(op.gaps, [(lost, gap::TRUNCATED)]);
        } else {
            assert_eq!((op.first.returned, op.gaps.len()), (8, 0));
        }
    }
    assert_eq!(witness.counter(counter::MESSAGES_TRUNCATED), 4);
    assert_eq!(witness.counter(counter::FAULT_BYTES), 0);
}

#[test]
fn bytes_that_a_tcp_reader_throws_away_are_a_gap_and_nothing_else() {
    let Some(mut witness) = witness() else { return };
    let token = token("thrown-away");
    witness.run(tag::TREE, || {
        let [near, far] = tcp_pair("127.0.0.1:0");
        write(near, &token);
        // What lies in the buffer is not what came.
        let mut bytes = vec![b'?'; token.len()];
        // SAFETY: a buffer and its length.
        let got =
            unsafe { libc::recv(far, bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_TRUNC) };
        assert_eq!(usize::try_from(got).unwrap(), token.len());
        assert!(bytes.iter().all(|byte| *byte == b'?'));
    });
    let reads: Vec<_> = witness
        .ops()
        .into_iter()
        .filter(|op| op.first.direction == direction::READ)
        .filter(|op| op.first.channel.kind == channel_kind::TCP)
        .collect();
    let len = u32::try_from(token.len()).unwrap();
    assert_eq!(reads.len(), 1, "{reads:?}");
    assert_eq!(reads[0].gaps, [(len, gap::TRUNCATED)]);
}

#[test]
fn datagrams_from_anybody_leave_each_socket_a_channel_of_its_own() {
    let Some(mut witness) = witness() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let (connected, sent_to) = (token("connected"), token("sent-to"));
    witness.run(tag::TREE, || {
        let receiver = UnixDatagram::bind(&path).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect(&path).unwrap();
        sender.send(&connected).unwrap();
        let other = UnixDatagram::unbound().unwrap();
        other.send_to(&sent_to, &path).unwrap();
        for token in [&connected, &sent_to] {
            let mut bytes = [0; 256];
            let len = receiver.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..len], token.as_slice());
        }
    });
    let mut objects = std::collections::BTreeSet::new();
    for token in [&connected, &sent_to] {
        for end in [direction::WRITE, direction::READ] {
            let ops = witness.moved(end, token);
            assert_eq!(ops.len(), 1, "{ops:?}");
            let channel = ops[0].first.channel;
            assert_eq!(channel.kind, channel_kind::UNIX_DGRAM);
            assert_eq!((channel.peer_object, channel.peer_inode), (0, 0));
            objects.insert(channel.object);
        }
    }
    assert_eq!(objects.len(), 3, "two senders, one receiver");
}

fn receive_message(fd: i32, bytes: &mut [u8]) -> isize {
    let mut vector = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: plain data, for which zeroes are a value, and a message of one buffer.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut vector;
        header.msg_iovlen = 1;
        libc::recvmsg(fd, &raw mut header, 0)
    }
}

/// The result of `connect`, 0 or the error's number.
fn connect_socket(fd: i32, address: SocketAddr) -> i32 {
    // SAFETY: an address and its length.
    let result = unsafe {
        match address {
            SocketAddr::V4(address) => {
                let mut to: libc::sockaddr_in = std::mem::zeroed();
                to.sin_family = 2;
                to.sin_port = address.port().to_be();
                to.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
                libc::connect(
                    fd,
                    (&raw const to).cast(),
                    libc::socklen_t::try_from(size_of_val(&to)).unwrap(),
                )
            }
            SocketAddr::V6(address) => {
                let mut to: libc::sockaddr_in6 = std::mem::zeroed();
                to.sin6_family = 10;
                to.sin6_port = address.port().to_be();
                to.sin6_addr.s6_addr = address.ip().octets();
                libc::connect(
                    fd,
                    (&raw const to).cast(),
                    libc::socklen_t::try_from(size_of_val(&to)).unwrap(),
                )
            }
        }
    };
    if result == 0 {
        0
    } else {
        std::io::Error::last_os_error().raw_os_error().unwrap()
    }
}

/// Connects without blocking, waits until the socket can be written, and makes it an ordinary one.
fn connect_without_waiting(address: SocketAddr) -> std::io::Result<TcpStream> {
    let family = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // SAFETY: plain numbers; the descriptor is owned at once.
    let socket = unsafe {
        let fd = libc::socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0);
        OwnedFd::from_raw_fd(fd)
    };
    assert_eq!(
        connect_socket(socket.as_raw_fd(), address),
        libc::EINPROGRESS
    );
    let mut fds = [libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    }];
    // SAFETY: one descriptor.
    assert_eq!(unsafe { libc::poll(fds.as_mut_ptr(), 1, 5000) }, 1);
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}
