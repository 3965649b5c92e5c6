//! Calls that move bytes without a buffer, out of band, into files or past the capture; and channels of proxies that no churn
//! can push out of the kernel's table.

use std::{ffi::CString, fs::File, os::fd::AsRawFd, ptr::null_mut};

use countersign_common::{channel_kind, counter, direction, gap, tag, transfer_flags};

use countersign::bpf::tier::Tier;

use crate::harness::{
    Op, Witness, carried, close, open, pipe, read, socket_pair, spawn, tier, token, witness, write,
};

fn by_syscall(witness: &Witness, number: i64) -> Vec<Op> {
    let ops = witness.ops().into_iter();
    ops.filter(|op| i64::from(op.first.syscall) == number)
        .collect()
}

fn assert_gap(op: &Op, op_direction: u8, len: usize) {
    assert_eq!(op.first.direction, op_direction, "{op:?}");
    assert_eq!(
        op.gaps,
        [(u32::try_from(len).unwrap(), gap::SPLICE)],
        "{op:?}"
    );
}

#[test]
fn tee_is_a_gap_at_the_sink_and_takes_nothing_from_the_source() {
    let Some(mut witness) = witness() else { return };
    let token = token("tee");
    witness.run(tag::TREE, || {
        let [from_read, from_write] = pipe();
        let [to_read, to_write] = pipe();
        assert!(write(from_write, &token) > 0);
        let moved = unsafe { libc::tee(from_read, to_write, 4096, 0) };
        assert_eq!(moved, isize::try_from(token.len()).unwrap());
        assert_eq!(read(from_read, 256), token);
        assert_eq!(read(to_read, 256), token);
    });
    let tees = by_syscall(&witness, libc::SYS_tee);
    assert_eq!(tees.len(), 2, "{tees:?}");
    assert_gap(&tees[0], direction::READ, token.len());
    assert_eq!(tees[0].first.flags, transfer_flags::PEEK);
    assert_gap(&tees[1], direction::WRITE, token.len());
    let reads = witness.moved(direction::READ, &token);
    assert_eq!(reads.len(), 2);
    for read in &reads {
        assert_eq!(
            (read.first.op_seq, read.first.stream_before),
            (0, 0),
            "{read:?}"
        );
    }
}

#[test]
fn vmsplice_is_a_gap_in_the_direction_of_the_pipes_end() {
    let Some(mut witness) = witness() else { return };
    let token = token("vmsplice");
    witness.run(tag::TREE, || {
        let [read_end, write_end] = pipe();
        let mut bytes = token.clone();
        let vector = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        let len = isize::try_from(token.len()).unwrap();
        assert_eq!(
            unsafe { libc::vmsplice(write_end, &raw const vector, 1, 0) },
            len
        );
        assert_eq!(read(read_end, 256), token);
        assert!(write(write_end, &token) > 0);
        assert_eq!(
            unsafe { libc::vmsplice(read_end, &raw const vector, 1, 0) },
            len
        );
    });
    let calls = by_syscall(&witness, libc::SYS_vmsplice);
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert_gap(&calls[0], direction::WRITE, token.len());
    assert_gap(&calls[1], direction::READ, token.len());
    assert_eq!(witness.moved(direction::READ, &token).len(), 1);
}

#[test]
fn sendfile_is_a_gap_at_the_sink_and_exact_at_the_reader() {
    if tier() != Tier::Tracepoints {
        // There it is captured, as another test shows.
        return;
    }
    let Some(mut witness) = witness() else { return };
    let token = token("sendfile");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &token).unwrap();
    witness.run(tag::TREE, || {
        for [read_end, write_end] in [pipe(), socket_pair()] {
            let source = File::open(file.path()).unwrap();
            let moved = unsafe { libc::sendfile(write_end, source.as_raw_fd(), null_mut(), 4096) };
            assert_eq!(moved, isize::try_from(token.len()).unwrap());
            assert_eq!(read(read_end, 256), token);
        }
    });
    let calls = by_syscall(&witness, libc::SYS_sendfile);
    assert_eq!(calls.len(), 2, "{calls:?}");
    for (call, kind) in calls
        .iter()
        .zip([channel_kind::PIPE, channel_kind::UNIX_STREAM])
    {
        assert_gap(call, direction::WRITE, token.len());
        assert_eq!(call.first.channel.kind, kind);
    }
    assert_eq!(witness.moved(direction::READ, &token).len(), 2);
}

#[test]
fn out_of_band_bytes_are_marked_at_both_ends() {
    let Some(mut witness) = witness() else { return };
    witness.run(tag::TREE, || {
        let [left, right] = socket_pair();
        let sent = unsafe { libc::send(left, b"!".as_ptr().cast(), 1, libc::MSG_OOB) };
        assert_eq!(
            sent, 1,
            "the kernel has no out-of-band data on unix sockets"
        );
        let mut byte = [0_u8];
        assert_eq!(
            unsafe { libc::recv(right, byte.as_mut_ptr().cast(), 1, libc::MSG_OOB) },
            1
        );
        assert_eq!(&byte, b"!");
    });
    for side in [direction::WRITE, direction::READ] {
        let ops = witness.moved(side, b"!");
        assert_eq!(ops.len(), 1, "{:?}", witness.ops());
        assert_eq!(ops[0].first.flags, carried(transfer_flags::OOB));
    }
}

#[test]
fn every_way_in_which_a_proxy_writes_its_log_is_captured() {
    let Some(mut witness) = witness() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = CString::new(dir.path().join("log").to_str().unwrap()).unwrap();
    let calls = ["write", "writev", "pwrite64", "pwritev", "pwritev2"];
    let tokens = calls.map(token);
    witness.run(tag::TREE | tag::PROXY, || unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o600);
        assert!(fd >= 0);
        for (number, token) in tokens.iter().enumerate() {
            let vector = libc::iovec {
                iov_base: token.as_ptr().cast_mut().cast(),
                iov_len: token.len(),
            };
            let written = match number {
                0 => write(fd, token),
                1 => libc::writev(fd, &raw const vector, 1),
                2 => libc::pwrite(fd, token.as_ptr().cast(), token.len(), 1000),
                3 => libc::pwritev(fd, &raw const vector, 1, 2000),
                _ => libc::pwritev2(fd, &raw const vector, 1, 3000, 0),
            };
            assert_eq!(written, isize::try_from(token.len()).unwrap());
        }
    });
    for token in &tokens {
        let ops = witness.moved(direction::WRITE, token);
        assert_eq!(ops.len(), 1, "{:?}", witness.ops());
        assert_eq!(ops[0].first.channel.kind, channel_kind::FILE);
        assert_eq!(ops[0].first.flags, transfer_flags::BY_PROXY);
    }
    assert_eq!(witness.opens().len(), 1);
}

#[test]
fn positioned_calls_on_a_pipe_move_nothing_and_leave_no_record() {
    let Some(mut witness) = witness() else { return };
    witness.run(tag::TREE, || {
        let [read_end, write_end] = pipe();
        let mut byte = [7_u8];
        let vector = libc::iovec {
            iov_base: byte.as_mut_ptr().cast(),
            iov_len: 1,
        };
        assert_eq!(
            unsafe { libc::pwritev(write_end, &raw const vector, 1, 0) },
            -1
        );
        assert_eq!(
            unsafe { libc::preadv(read_end, &raw const vector, 1, 0) },
            -1
        );
        assert_eq!(write(write_end, b"end"), 3);
    });
    assert_eq!(by_syscall(&witness, libc::SYS_pwritev), []);
    assert_eq!(by_syscall(&witness, libc::SYS_preadv), []);
    assert_eq!(witness.moved(direction::WRITE, b"end").len(), 1);
}

#[test]
fn a_child_in_a_pid_namespace_of_its_own_is_captured_under_both_ids() {
    let Some(mut witness) = witness() else { return };
    let token = token("clone3");
    witness.run(tag::TREE, || unsafe {
        let [read_end, write_end] = pipe();
        // `struct clone_args` of Linux 5.3: eight words, flags first, exit signal fifth.
        let mut arguments = [0_u64; 8];
        arguments[0] = u64::from(libc::CLONE_NEWPID.cast_unsigned());
        arguments[4] = u64::from(libc::SIGCHLD.cast_unsigned());
        let child = libc::syscall(
            libc::SYS_clone3,
            arguments.as_mut_ptr(),
            size_of_val(&arguments),
        );
        if child == 0 {
            write(write_end, &token);
            libc::_exit(0);
        }
        assert!(child > 0, "clone3: {}", std::io::Error::last_os_error());
        assert_eq!(read(read_end, 256), token);
        libc::waitpid(i32::try_from(child).unwrap(), null_mut(), 0);
    });
    let forks = witness.forks();
    assert_eq!(forks.len(), 1);
    assert_eq!((forks[0].child_ns_tgid, forks[0].tag), (1, tag::TREE));
    let writes = witness.moved(direction::WRITE, &token);
    assert_eq!(writes.len(), 1);
    assert_eq!(writes[0].first.task.tgid, forks[0].child.tgid);
}

/// Four times what the table of channels holds: an entry that has been used since is passed over once, and each CPU takes its victims
/// from a part of its own.
const CHURN: usize = 260_000;

#[test]
fn churning_through_pipes_pushes_out_an_idle_channel_of_the_agent_but_none_of_a_proxy() {
    let Some(mut witness) = witness() else { return };
    let tokens = ["before", "after"].map(token);
    let [done_read, done_write] = pipe();
    let session = |bits: u32| {
        // A pipe for each: from a shared one the first could take the other's turn.
        let [turn_read, turn_write] = pipe();
        let (child, gate) = spawn(|| {
            let [pipe_read, pipe_write] = pipe();
            let [left, right] = socket_pair();
            for token in &tokens {
                assert!(write(pipe_write, token) > 0);
                assert_eq!(read(pipe_read, 256), *token);
                assert!(write(left, token) > 0);
                assert_eq!(read(right, 256), *token);
                write(done_write, b"d");
                read(turn_read, 1);
            }
        });
        (child, gate, bits, turn_write)
    };
    let sessions = [session(tag::TREE | tag::PROXY), session(tag::TREE)];
    for (child, gate, bits, _) in sessions {
        witness.capture.tag_pid(child, bits).unwrap();
        open(gate);
        read(done_read, 1);
    }
    witness.run(tag::TREE, || {
        for _ in 0..CHURN {
            let [read_end, write_end] = pipe();
            close(read_end);
            close(write_end);
        }
    });
    for (.., turn) in sessions {
        write(turn, b"t");
        read(done_read, 1);
        write(turn, b"t");
    }
    for (child, ..) in sessions {
        witness.reap(child);
    }
    let [proxy, agent] = sessions.map(|(child, ..)| child);
    let epochs = |pid: u32| {
        let ops = witness.ops();
        let mut epochs = Vec::new();
        for op_direction in [direction::WRITE, direction::READ] {
            for kind in [channel_kind::PIPE, channel_kind::UNIX_STREAM] {
                let both = tokens.each_ref().map(|token| {
                    let op = ops.iter().find(|op| {
                        op.first.task.tgid == pid
                            && op.first.direction == op_direction
                            && op.first.channel.kind == kind
                            && op.bytes == *token
                    });
                    let op = op.expect("each token is captured at each end");
                    (op.first.channel.epoch, op.first.op_seq)
                });
                epochs.push(both);
            }
        }
        epochs
    };
    for [before, after] in epochs(proxy) {
        assert_eq!(before.0, after.0, "the counters of a proxy's channel go on");
        assert_eq!((before.1, after.1), (0, 1));
    }
    // Not all of them: which ones the kernel takes is approximate, and Linux 7.2 keeps some that 6.18 lets go.
    assert!(
        epochs(agent)
            .iter()
            .any(|[before, after]| before.0 != after.0),
        "the churn was enough to push out what no proxy uses"
    );
    let moved = witness.capture.channel_totals().unwrap();
    let counted = moved.iter().filter(|totals| totals.state.ops == [2, 2]);
    assert_eq!(counted.count(), 1, "a moved pipe is counted once, in full");
}

#[test]
fn a_channel_that_a_proxy_joins_in_full_flight_keeps_its_numbers() {
    const MESSAGES: usize = 3000;
    let Some(mut witness) = witness() else { return };
    // The agent's threads write while a proxy begins to read: its first read moves the channel to another table.
    let [read_end, write_end] = pipe();
    let (writer, writer_gate) = spawn(|| {
        for _ in 0..MESSAGES {
            assert_eq!(write(write_end, &[b'm'; 16]), 16);
        }
    });
    let (reader, reader_gate) = spawn(|| {
        let mut left = MESSAGES * 16;
        while left > 0 {
            left -= read(read_end, left.min(64)).len();
        }
    });
    witness.capture.tag_pid(writer, tag::TREE).unwrap();
    witness
        .capture
        .tag_pid(reader, tag::TREE | tag::PROXY)
        .unwrap();
    open(writer_gate);
    open(reader_gate);
    witness.reap(writer);
    witness.reap(reader);
    let any = witness
        .ops()
        .into_iter()
        .find(|op| op.first.task.tgid == writer && op.first.returned == 16)
        .unwrap();
    // Asserts that numbers and positions have neither hole nor repetition.
    let (written, read) = witness.streams(&any);
    assert_eq!((written.len(), read.len()), (MESSAGES * 16, MESSAGES * 16));
    assert_eq!(witness.counter(counter::CHANNEL_FAILED), 0);
}
