//! Every system call on every kind of channel: the bytes at both ends are those that moved.

use std::{ffi::CString, ptr::null_mut};

use countersign_common::{channel_kind, counter, direction, gap, tag, transfer_flags};

use countersign::bpf::tier::Tier;

use crate::harness::{
    carried, close, pipe, read, socket_pair, socket_pair_of, tcp_pair, terminal, tier, token,
    witness, write,
};

/// How a test sends or receives.
type Method = (&'static str, i64, fn(i32, &mut [u8]) -> isize);

fn vectors(bytes: &mut [u8], pieces: usize) -> Vec<libc::iovec> {
    let size = bytes.len().div_ceil(pieces).max(1);
    bytes
        .chunks_mut(size)
        .map(|piece| libc::iovec {
            iov_base: piece.as_mut_ptr().cast(),
            iov_len: piece.len(),
        })
        .collect()
}

fn message(vectors: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: plain data, for which zeroes are a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vectors.as_mut_ptr();
    header.msg_iovlen = vectors.len();
    header
}

const PIPE_WRITES: &[Method] = &[
    // SAFETY (all of them): buffers and their lengths, descriptors of the test.
    ("write", libc::SYS_write, |fd, b| unsafe {
        libc::write(fd, b.as_ptr().cast(), b.len())
    }),
    ("writev", libc::SYS_writev, |fd, b| unsafe {
        let v = vectors(b, 3);
        libc::writev(fd, v.as_ptr(), i32::try_from(v.len()).unwrap())
    }),
    ("pwritev2", libc::SYS_pwritev2, |fd, b| unsafe {
        let v = vectors(b, 2);
        libc::pwritev2(fd, v.as_ptr(), i32::try_from(v.len()).unwrap(), -1, 0)
    }),
];

const PIPE_READS: &[Method] = &[
    ("read", libc::SYS_read, |fd, b| unsafe {
        libc::read(fd, b.as_mut_ptr().cast(), b.len())
    }),
    ("readv", libc::SYS_readv, |fd, b| unsafe {
        let v = vectors(b, 3);
        libc::readv(fd, v.as_ptr(), i32::try_from(v.len()).unwrap())
    }),
    ("preadv2", libc::SYS_preadv2, |fd, b| unsafe {
        let v = vectors(b, 2);
        libc::preadv2(fd, v.as_ptr(), i32::try_from(v.len()).unwrap(), -1, 0)
    }),
];

const SOCKET_WRITES: &[Method] = &[
    ("sendto", libc::SYS_sendto, |fd, b| unsafe {
        libc::send(fd, b.as_ptr().cast(), b.len(), 0)
    }),
    ("sendmsg", libc::SYS_sendmsg, |fd, b| unsafe {
        let mut v = vectors(b, 4);
        let header = message(&mut v);
        libc::sendmsg(fd, &raw const header, 0)
    }),
    ("sendmmsg", libc::SYS_sendmmsg, |fd, b| unsafe {
        let mut v = vectors(b, 1);
        let mut header = libc::mmsghdr {
            msg_hdr: message(&mut v),
            msg_len: 0,
        };
        libc::sendmmsg(fd, &raw mut header, 1, 0) as isize
            * isize::try_from(header.msg_len).unwrap()
    }),
];

const SOCKET_READS: &[Method] = &[
    ("recvfrom", libc::SYS_recvfrom, |fd, b| unsafe {
        libc::recv(fd, b.as_mut_ptr().cast(), b.len(), 0)
    }),
    ("recvmsg", libc::SYS_recvmsg, |fd, b| unsafe {
        let mut v = vectors(b, 4);
        let mut header = message(&mut v);
        libc::recvmsg(fd, &raw mut header, 0)
    }),
    ("recvmmsg", libc::SYS_recvmmsg, |fd, b| unsafe {
        let mut v = vectors(b, 2);
        let mut header = libc::mmsghdr {
            msg_hdr: message(&mut v),
            msg_len: 0,
        };
        libc::recvmmsg(fd, &raw mut header, 1, 0, null_mut()) as isize
            * isize::try_from(header.msg_len).unwrap()
    }),
];

fn each_pair(channel: u8, writes: &[Method], reads: &[Method], mut make: impl FnMut() -> [i32; 2]) {
    let Some(mut witness) = witness() else { return };
    let mut expected = Vec::new();
    for (writer, write_nr, _) in writes {
        for (reader, read_nr, _) in reads {
            expected.push((
                token(&format!("{writer}-{reader}-{}", "x".repeat(200))),
                *write_nr,
                *read_nr,
            ));
        }
    }
    let tokens: Vec<_> = expected.iter().map(|(token, ..)| token.clone()).collect();
    witness.run(tag::TREE, || {
        let mut tokens = tokens.into_iter();
        let [read_end, write_end] = make();
        for (_, _, send) in writes {
            for (_, _, receive) in reads {
                let mut sent = tokens.next().unwrap();
                let mut received = vec![0; sent.len()];
                let len = isize::try_from(sent.len()).unwrap();
                assert_eq!(send(write_end, &mut sent), len);
                assert_eq!(receive(read_end, &mut received), len);
                assert_eq!(sent, received);
            }
        }
    });
    for (token, write_nr, read_nr) in expected {
        let written = witness.moved(direction::WRITE, &token);
        let read = witness.moved(direction::READ, &token);
        let [written, read] = [&written[..], &read[..]].map(|ops| {
            assert_eq!(
                ops.len(),
                1,
                "{} at one end: {ops:?}",
                String::from_utf8_lossy(&token)
            );
            ops[0].clone()
        });
        assert_eq!(
            (
                i64::from(written.first.syscall),
                i64::from(read.first.syscall)
            ),
            (write_nr, read_nr)
        );
        for op in [&written, &read] {
            assert_eq!(op.first.channel.kind, channel, "{op:?}");
            // Of a socket's bytes the kernel has a copy, where its reader does not take several messages at once.
            let flags = op.first.flags & !transfer_flags::KERNEL_COPY;
            assert_eq!((flags, op.gaps.len()), (carried(0), 0), "{op:?}");
            assert!(op.first.enter_ns <= op.first.exit_ns);
        }
        if matches!(channel, channel_kind::PIPE | channel_kind::FIFO) {
            assert_eq!(written.first.channel, read.first.channel);
        } else {
            assert_eq!(written.first.channel.peer_object, read.first.channel.object);
            assert_eq!(written.first.channel.peer_inode, read.first.channel.inode);
        }
    }
    assert_eq!(witness.counter(counter::RING_DROPPED_RECORDS), 0);
    assert_eq!(witness.counter(counter::FAULT_BYTES), 0);
}

#[test]
fn every_call_on_a_pipe_is_captured_at_both_ends() {
    each_pair(channel_kind::PIPE, PIPE_WRITES, PIPE_READS, pipe);
}

#[test]
fn every_call_on_a_fifo_is_captured_at_both_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = CString::new(dir.path().join("fifo").to_str().unwrap()).unwrap();
    each_pair(channel_kind::FIFO, PIPE_WRITES, PIPE_READS, || {
        // SAFETY: a path of the test; opened for both directions first, so that no open blocks.
        unsafe {
            libc::mkfifo(path.as_ptr(), 0o600);
            let both = libc::open(path.as_ptr(), libc::O_RDWR);
            let ends = [
                libc::open(path.as_ptr(), libc::O_RDONLY),
                libc::open(path.as_ptr(), libc::O_WRONLY),
            ];
            libc::close(both);
            ends
        }
    });
}

#[test]
fn every_call_on_a_socket_pair_is_captured_at_both_ends() {
    each_socket_pair(channel_kind::UNIX_STREAM, socket_pair);
}

#[test]
fn every_call_on_a_seqpacket_pair_is_captured_at_both_ends() {
    each_socket_pair(channel_kind::UNIX_SEQPACKET, || {
        socket_pair_of(libc::SOCK_SEQPACKET)
    });
}

#[test]
fn every_call_on_a_datagram_pair_is_captured_at_both_ends() {
    each_socket_pair(channel_kind::UNIX_DGRAM, || {
        socket_pair_of(libc::SOCK_DGRAM)
    });
}

#[test]
fn every_call_on_a_tcp_connection_over_ipv4_is_captured_at_both_ends() {
    each_socket_pair(channel_kind::TCP, || tcp_pair("127.0.0.1:0"));
}

#[test]
fn every_call_on_a_tcp_connection_over_ipv6_is_captured_at_both_ends() {
    each_socket_pair(channel_kind::TCP, || tcp_pair("[::1]:0"));
}

#[test]
fn every_call_on_a_terminal_of_the_trees_own_is_captured_at_both_ends() {
    let methods = |methods: &[Method]| methods[..2].to_vec();
    let (writes, reads) = (methods(PIPE_WRITES), methods(PIPE_READS));
    each_pair(channel_kind::TTY, &writes, &reads, || {
        let [master, slave] = terminal();
        [slave, master]
    });
}

fn each_socket_pair(channel: u8, make: impl FnMut() -> [i32; 2]) {
    let writes = [PIPE_WRITES, SOCKET_WRITES].concat();
    let writes: Vec<_> = writes
        .into_iter()
        .filter(|method| method.0 != "pwritev2")
        .collect();
    let reads = [PIPE_READS, SOCKET_READS].concat();
    let reads: Vec<_> = reads
        .into_iter()
        .filter(|method| method.0 != "preadv2")
        .collect();
    each_pair(channel, &writes, &reads, make);
}

#[test]
fn each_message_of_a_multi_message_call_is_an_operation() {
    let Some(mut witness) = witness() else { return };
    let tokens = [token("first"), token("second-longer"), token("third")];
    witness.run(tag::TREE, || {
        let [left, right] = socket_pair();
        let mut bytes = tokens.clone();
        let mut vectors: Vec<_> = bytes.iter_mut().map(|bytes| vectors(bytes, 2)).collect();
        let mut headers: Vec<_> = vectors
            .iter_mut()
            .map(|vectors| libc::mmsghdr {
                msg_hdr: message(vectors),
                msg_len: 0,
            })
            .collect();
        // SAFETY: three headers whose vectors live above.
        assert_eq!(
            unsafe { libc::sendmmsg(left, headers.as_mut_ptr(), 3, 0) },
            3
        );
        assert_eq!(read(right, 4096), tokens.concat());
    });
    for token in &tokens {
        assert_eq!(
            witness.moved(direction::WRITE, token).len(),
            1,
            "{:?}",
            witness.ops()
        );
    }
    assert_eq!(witness.moved(direction::READ, &tokens.concat()).len(), 1);
}

#[test]
fn a_peek_is_marked_and_not_counted() {
    let Some(mut witness) = witness() else { return };
    let token = token("peek");
    witness.run(tag::TREE, || {
        let [left, right] = socket_pair();
        assert!(write(left, &token) > 0);
        let mut bytes = [0; 256];
        // SAFETY: a buffer and its length.
        assert!(unsafe { libc::recv(right, bytes.as_mut_ptr().cast(), 256, libc::MSG_PEEK) } > 0);
        read(right, 256);
    });
    let reads = witness.moved(direction::READ, &token);
    assert_eq!(reads.len(), 2, "{reads:?}");
    assert_eq!(reads[0].first.flags, carried(transfer_flags::PEEK));
    assert_eq!(
        (
            reads[1].first.flags,
            reads[1].first.op_seq,
            reads[1].first.stream_before
        ),
        (
            carried(0)
                | if tier() == Tier::Tracepoints {
                    transfer_flags::KERNEL_COPY
                } else {
                    0
                },
            0,
            0
        )
    );
}

#[test]
fn an_untagged_process_leaves_no_trace() {
    let Some(mut witness) = witness() else { return };
    let token = token("untagged");
    witness.run(0, || {
        let [read_end, write_end] = pipe();
        assert!(write(write_end, &token) > 0);
        read(read_end, 256);
    });
    assert_eq!(witness.ops(), []);
    assert_eq!(
        witness.forks().len()
            + witness.execs().len()
            + witness.exits().len()
            + witness.ends().len(),
        0
    );
}

#[test]
fn spliced_bytes_are_a_gap_at_the_pipe_and_exact_at_the_reader() {
    let Some(mut witness) = witness() else { return };
    let token = token("splice");
    witness.run(tag::TREE, || {
        let [from_read, from_write] = pipe();
        let [to_read, to_write] = pipe();
        assert!(write(from_write, &token) > 0);
        // SAFETY: two pipes, no offsets.
        let moved = unsafe { libc::splice(from_read, null_mut(), to_write, null_mut(), 4096, 0) };
        assert_eq!(moved, isize::try_from(token.len()).unwrap());
        assert_eq!(read(to_read, 256), token);
        close(to_write);
    });
    let splices: Vec<_> = witness
        .ops()
        .into_iter()
        .filter(|op| i64::from(op.first.syscall) == libc::SYS_splice)
        .collect();
    assert_eq!(splices.len(), 2, "{:?}", witness.ops());
    for splice in &splices {
        assert_eq!(
            splice.gaps,
            [(u32::try_from(token.len()).unwrap(), gap::SPLICE)]
        );
    }
    assert_eq!(
        [splices[0].first.direction, splices[1].first.direction],
        [direction::READ, direction::WRITE]
    );
    assert_eq!(witness.moved(direction::READ, &token).len(), 1);
    assert_eq!(witness.counter(counter::SPLICE_BYTES), token.len() as u64);
}

#[test]
fn a_descriptor_swapped_during_a_blocked_read_is_flagged_and_not_misattributed() {
    let Some(mut witness) = witness() else { return };
    let token = token("swap");
    witness.run(tag::TREE, || {
        let [read_end, write_end] = pipe();
        let [other, _keep] = pipe();
        let reader = std::thread::spawn(move || read(read_end, 256));
        // The reader sits in `read` once its state is "sleeping in pipe_read"; a short wait for that is enough either way:
        // the flag is asserted on the record below.
        while !blocked_in_read() {
            std::thread::yield_now();
        }
        // SAFETY: descriptors of the test.
        unsafe { libc::dup2(other, read_end) };
        assert!(write(write_end, &token) > 0);
        assert_eq!(reader.join().unwrap(), token);
    });
    let reads = witness.moved(direction::READ, &token);
    let writes = witness.moved(direction::WRITE, &token);
    assert_eq!((reads.len(), writes.len()), (1, 1));
    assert_eq!(
        reads[0].first.flags,
        carried(transfer_flags::FD_SWAPPED),
        "{reads:?}"
    );
    assert_eq!(reads[0].first.channel, writes[0].first.channel);
    let looked_up = tier() == Tier::Tracepoints;
    assert_eq!(witness.counter(counter::FD_SWAPPED), u64::from(looked_up));
}

/// Whether another thread of this process is in `read`.
fn blocked_in_read() -> bool {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .flatten()
        .any(|task| {
            std::fs::read_to_string(task.path().join("syscall"))
                .is_ok_and(|text| text.starts_with("0 "))
                && std::fs::read_to_string(task.path().join("stat"))
                    .is_ok_and(|text| text.contains(") S "))
        })
}
