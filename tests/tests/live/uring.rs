//! Transfers by `io_uring`: each way of submitting, and what the capture says where it has no bytes.

use countersign_common::{counter, direction, gap, tag, transfer_flags};

use crate::{
    harness::{Op, Witness, close, pipe, read, socket_pair, token, witness, write},
    ring::{
        IOSQE_ASYNC, IOSQE_BUFFER_SELECT, IOSQE_CQE_SKIP_SUCCESS, IOSQE_IO_LINK, RECV_MULTISHOT,
        Ring, SETUP_SQPOLL, Submission, op, submission,
    },
};

/// The one operation with these bytes, by this opcode.
fn the(witness: &Witness, op_direction: u8, opcode: u8, bytes: &[u8]) -> Op {
    let ops: Vec<Op> = witness
        .moved(op_direction, bytes)
        .into_iter()
        .filter(|op| {
            op.first.flags & transfer_flags::IO_URING != 0 && op.first.syscall == u16::from(opcode)
        })
        .collect();
    assert_eq!(ops.len(), 1, "opcode {opcode}: {:?}", witness.ops());
    let op = ops.into_iter().next().unwrap();
    assert_eq!(op.gaps, [], "{op:?}");
    assert!(op.first.enter_ns < op.first.exit_ns, "{op:?}");
    assert_eq!(op.first.flags & transfer_flags::NO_ENTER, 0, "{op:?}");
    op
}

fn vector(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

/// Writes with one opcode and reads with the other through a pipe or a socket pair.
fn there_and_back(write_op: u8, read_op: u8, sockets: bool, flags: u8, setup: u32) {
    let Some(mut witness) = witness() else { return };
    let token = token("uring");
    let half = token.len() / 2;
    let child = witness.run(tag::TREE, || {
        let mut ring = Ring::new(setup);
        let [read_end, write_end] = if sockets { socket_pair() } else { pipe() };
        let got = vec![0_u8; token.len()];
        for (opcode, fd, bytes) in [(write_op, write_end, &token), (read_op, read_end, &got)] {
            let vectors = [vector(&bytes[..half]), vector(&bytes[half..])];
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = vectors.as_ptr().cast_mut();
            message.msg_iovlen = 2;
            let mut entry = submission(opcode, fd, bytes);
            entry.flags = flags;
            match opcode {
                op::READV | op::WRITEV => {
                    entry.addr = vectors.as_ptr().addr() as u64;
                    entry.len = 2;
                    entry.off = u64::MAX;
                }
                op::SENDMSG | op::RECVMSG => {
                    entry.addr = std::ptr::from_ref(&message).addr() as u64;
                    entry.len = 1;
                }
                op::READ_FIXED | op::WRITE_FIXED => {
                    ring = Ring::new(setup);
                    ring.register(&vector(bytes));
                    entry.off = u64::MAX;
                }
                _ => {}
            }
            let waited = if opcode == op::SEND_ZC { 2 } else { 1 };
            let completions = ring.run(&[entry], waited);
            assert_eq!(
                completions[0].res,
                i32::try_from(token.len()).unwrap(),
                "{completions:?}"
            );
        }
        assert_eq!(got, token);
    });
    let written = the(&witness, direction::WRITE, write_op, &token);
    let read = the(&witness, direction::READ, read_op, &token);
    assert_eq!(
        (written.first.task.tgid, read.first.task.tgid),
        (child, child)
    );
    if !sockets {
        assert_eq!(written.first.channel, read.first.channel);
    }
    assert_eq!(witness.counter(counter::UNSEEN_SUBMISSIONS), 0);
    assert_eq!(witness.counter(counter::URING_OPS), 2);
}

#[test]
fn reads_and_writes_through_a_ring_are_captured_at_both_ends() {
    there_and_back(op::WRITE, op::READ, false, 0, 0);
    there_and_back(op::WRITE, op::READ, true, 0, 0);
}

#[test]
fn vectors_through_a_ring_are_captured_at_both_ends() {
    there_and_back(op::WRITEV, op::READV, false, 0, 0);
}

#[test]
fn registered_buffers_are_captured_at_both_ends() {
    there_and_back(op::WRITE_FIXED, op::READ_FIXED, false, 0, 0);
}

#[test]
fn sends_and_receptions_through_a_ring_are_captured_at_both_ends() {
    there_and_back(op::SEND, op::RECV, true, 0, 0);
    there_and_back(op::SENDMSG, op::RECVMSG, true, 0, 0);
}

#[test]
fn worker_threads_of_a_ring_are_captured_under_their_process() {
    there_and_back(op::WRITE, op::READ, false, IOSQE_ASYNC, 0);
    there_and_back(op::SENDMSG, op::RECVMSG, true, IOSQE_ASYNC, 0);
    there_and_back(op::WRITEV, op::READV, false, IOSQE_ASYNC, 0);
}

#[test]
fn a_ring_that_takes_submissions_without_calls_is_captured() {
    there_and_back(op::WRITE, op::READ, false, 0, SETUP_SQPOLL);
    there_and_back(op::SEND, op::RECV, true, 0, SETUP_SQPOLL);
}

#[test]
fn a_read_that_waits_has_its_whole_time_and_the_vectors_of_its_submission() {
    let Some(mut witness) = witness() else { return };
    let token = token("uring-waits");
    witness.run(tag::TREE, || {
        let mut ring = Ring::new(0);
        let [read_end, write_end] = pipe();
        let got = vec![0_u8; token.len()];
        let mut vectors = [vector(&got)];
        let mut entry = submission(op::READV, read_end, &got);
        entry.addr = vectors.as_ptr().addr() as u64;
        entry.len = 1;
        entry.off = u64::MAX;
        assert!(ring.run(&[entry], 0).is_empty());
        // The ring has its own copy by now: programs may, and do, use the memory for something else.
        let other = *b"something else";
        vectors[0] = vector(&other);
        std::hint::black_box(&mut vectors);
        assert!(write(write_end, &token) > 0);
        let completions = ring.run(&[], 1);
        assert_eq!(completions[0].res, i32::try_from(token.len()).unwrap());
        assert_eq!(got, token);
    });
    let read = the(&witness, direction::READ, op::READV, &token);
    let written = &witness.moved(direction::WRITE, &token)[0];
    assert!(read.first.enter_ns < written.first.enter_ns);
}

#[test]
fn linked_writes_keep_their_order() {
    let Some(mut witness) = witness() else { return };
    let tokens = ["first", "second", "third"].map(token);
    witness.run(tag::TREE, || {
        let mut ring = Ring::new(0);
        let [_read_end, write_end] = pipe();
        let entries: Vec<Submission> = tokens
            .iter()
            .map(|token| {
                let mut entry = submission(op::WRITE, write_end, token);
                entry.flags = IOSQE_IO_LINK;
                entry
            })
            .collect();
        assert_eq!(ring.run(&entries, 3).len(), 3);
    });
    let any = the(&witness, direction::WRITE, op::WRITE, &tokens[0]);
    assert_eq!(witness.streams(&any).0, tokens.concat());
}

#[test]
fn a_send_without_copy_completes_twice_and_counts_once() {
    let Some(mut witness) = witness() else { return };
    let token = token("uring-zc");
    let mut supported = false;
    witness.run(tag::TREE, || {
        let mut ring = Ring::new(0);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&client);
        let completions = ring.run(&[submission(op::SEND_ZC, fd, &token)], 2);
        assert_eq!(completions.len(), 2, "{completions:?}");
        assert_eq!(completions[0].res, i32::try_from(token.len()).unwrap());
        // Unix sockets refuse it.
        let [left, _right] = socket_pair();
        let completions = ring.run(&[submission(op::SEND_ZC, left, &token)], 1);
        assert!(completions[0].res < 0, "{completions:?}");
    });
    let sends: Vec<Op> = witness
        .ops()
        .into_iter()
        .filter(|op| op.first.syscall == u16::from(op::SEND_ZC))
        .collect();
    supported |= !sends.is_empty();
    if supported {
        assert_eq!(sends.len(), 1, "{sends:?}");
        assert_eq!(sends[0].bytes, token);
    }
}

#[test]
fn a_receiver_that_looks_without_taking_is_marked_and_not_counted() {
    let Some(mut witness) = witness() else { return };
    let token = token("uring-peek");
    witness.run(tag::TREE, || {
        let mut ring = Ring::new(0);
        let [left, right] = socket_pair();
        assert!(write(left, &token) > 0);
        let got = vec![0_u8; token.len()];
        let mut entry = submission(op::RECV, right, &got);
        entry.op_flags = libc::MSG_PEEK.cast_unsigned();
        assert_eq!(
            ring.run(&[entry], 1)[0].res,
            i32::try_from(token.len()).unwrap()
        );
        assert_eq!(read(right, 256), token);
    });
    let reads = witness.moved(direction::READ, &token);
    assert_eq!(reads.len(), 2);
    assert_ne!(reads[0].first.flags & transfer_flags::PEEK, 0);
    assert_eq!(
        (reads[1].first.op_seq, reads[1].first.stream_before),
        (0, 0)
    );
}

/// A ring with four provided buffers of 256 bytes in group 3, over `memory`.
fn with_buffers(memory: &[u8]) -> Ring {
    let mut ring = Ring::new(0);
    let mut provide = submission(op::PROVIDE_BUFFERS, 4, memory);
    provide.len = 256;
    provide.off = 0;
    provide.buf_index = 3;
    assert!(ring.run(&[provide], 1)[0].res >= 0);
    ring
}

#[test]
fn a_read_into_a_provided_buffer_is_captured_and_a_reception_is_a_gap() {
    let Some(mut witness) = witness() else { return };
    let token = token("uring-group");
    witness.run(tag::TREE, || {
        let memory = vec![0_u8; 1024];
        let mut ring = with_buffers(&memory);
        let [left, right] = socket_pair();
        let [read_end, write_end] = pipe();
        assert!(write(left, &token) > 0);
        assert!(write(write_end, &token) > 0);
        for (opcode, fd) in [(op::RECV, right), (op::READ, read_end)] {
            let mut entry = submission(opcode, fd, &[]);
            entry.len = 256;
            entry.addr = 0;
            entry.flags = IOSQE_BUFFER_SELECT;
            entry.buf_index = 3;
            let completions = ring.run(&[entry], 1);
            assert_eq!(completions[0].res, i32::try_from(token.len()).unwrap());
        }
    });
    the(&witness, direction::READ, op::READ, &token);
    let ops = witness.ops();
    let received = ops
        .iter()
        .find(|op| {
            op.first.syscall == u16::from(op::RECV) && op.first.flags == transfer_flags::IO_URING
        })
        .unwrap();
    let len = u32::try_from(token.len()).unwrap();
    assert_eq!(received.gaps, [(len, gap::MULTISHOT)]);
}

#[test]
fn a_reception_that_completes_many_times_is_a_gap_of_what_came() {
    let Some(mut witness) = witness() else { return };
    let tokens = ["one", "two"].map(token);
    witness.run(tag::TREE, || {
        let memory = vec![0_u8; 1024];
        let mut ring = with_buffers(&memory);
        let [left, right] = socket_pair();
        let mut entry = submission(op::RECV, right, &[]);
        entry.len = 0;
        entry.addr = 0;
        entry.ioprio = RECV_MULTISHOT;
        entry.flags = IOSQE_BUFFER_SELECT;
        entry.buf_index = 3;
        assert!(ring.run(&[entry], 0).is_empty());
        for token in &tokens {
            assert!(write(left, token) > 0);
            let completions = ring.run(&[], 1);
            assert_eq!(completions[0].res, i32::try_from(token.len()).unwrap());
        }
        close(left);
        ring.run(&[], 1);
    });
    let gaps: Vec<Op> = witness
        .ops()
        .into_iter()
        .filter(|op| op.first.flags & transfer_flags::IO_URING != 0)
        .collect();
    assert_eq!(gaps.len(), 2, "{:?}", witness.ops());
    for (number, (gap, token)) in gaps.iter().zip(&tokens).enumerate() {
        let len = u32::try_from(token.len()).unwrap();
        assert_eq!(gap.gaps, [(len, gap::MULTISHOT)]);
        assert_eq!(gap.first.op_seq, number as u64);
        assert_eq!(gap.first.direction, direction::READ);
    }
    assert_eq!(witness.counter(counter::UNSEEN_SUBMISSIONS), 0);
}

#[test]
fn splice_and_tee_through_a_ring_are_gaps_at_both_ends() {
    let Some(mut witness) = witness() else { return };
    let token = token("uring-splice");
    witness.run(tag::TREE, || {
        let mut ring = Ring::new(0);
        let [from_read, from_write] = pipe();
        let [to_read, to_write] = pipe();
        assert!(write(from_write, &token) > 0);
        for opcode in [op::TEE, op::SPLICE] {
            let mut entry = submission(opcode, to_write, &[]);
            entry.len = 4096;
            entry.addr = u64::MAX;
            entry.off = u64::MAX;
            entry.splice_fd_in = from_read;
            if opcode == op::TEE {
                (entry.addr, entry.off) = (0, 0);
            }
            let completions = ring.run(&[entry], 1);
            assert_eq!(completions[0].res, i32::try_from(token.len()).unwrap());
        }
        assert_eq!(read(to_read, 256), [token.clone(), token.clone()].concat());
    });
    for (opcode, peek) in [(op::TEE, transfer_flags::PEEK), (op::SPLICE, 0)] {
        let ops: Vec<Op> = witness
            .ops()
            .into_iter()
            .filter(|op| op.first.syscall == u16::from(opcode))
            .collect();
        assert_eq!(ops.len(), 2, "{:?}", witness.ops());
        let len = u32::try_from(token.len()).unwrap();
        assert!(ops.iter().all(|op| op.gaps == [(len, gap::SPLICE)]));
        assert_eq!(ops[0].first.direction, direction::WRITE);
        assert_eq!(ops[1].first.direction, direction::READ);
        assert_eq!(ops[1].first.flags & transfer_flags::PEEK, peek);
    }
    assert_eq!(
        witness.counter(counter::SPLICE_BYTES),
        2 * token.len() as u64
    );
}

#[test]
fn a_request_that_asks_for_no_completion_is_counted_as_unseen() {
    let Some(mut witness) = witness() else { return };
    let token = token("uring-skip");
    witness.run(tag::TREE, || {
        let mut ring = Ring::new(0);
        let [read_end, write_end] = pipe();
        let mut entry = submission(op::WRITE, write_end, &token);
        entry.flags = IOSQE_CQE_SKIP_SUCCESS;
        assert!(ring.run(&[entry], 0).is_empty());
        assert_eq!(read(read_end, 256), token);
    });
    assert_eq!(witness.counter(counter::UNSEEN_SUBMISSIONS), 1);
    assert_eq!(witness.moved(direction::READ, &token).len(), 1);
}
