//! Balances: what the kernel's queues hold against what was counted, at exit, at close, and when asked.

use std::time::{Duration, Instant};

use countersign::bpf::{capture::Balanced, options::LoadOptions};
use countersign_common::{Queued, channel_kind, counter, queued_why, tag};

use crate::harness::{
    Witness, close, open, pipe, read, socket_pair, socket_pair_of, spawn, witness, witness_with,
    write,
};

/// Written, read, waiting.
fn numbers(balance: &Queued) -> (u64, u64, u64) {
    (
        balance.written_bytes,
        balance.read_bytes,
        balance.queued_bytes,
    )
}

fn of(witness: &Witness, why: u8, kind: u8) -> Vec<(u64, u64, u64)> {
    let balances = witness.balances().into_iter();
    balances
        .filter(|balance| (balance.why, balance.channel.kind) == (why, kind))
        .map(|balance| numbers(&balance))
        .collect()
}

#[test]
fn what_an_ending_process_leaves_in_its_channels_is_told() {
    let Some(mut witness) = witness() else { return };
    witness.run(tag::TREE, || {
        let [pipe_end, into_pipe] = pipe();
        // Three buffers, the first half read.
        for len in [4096, 4000, 10] {
            assert_eq!(write(into_pipe, &vec![1; len]), len.cast_signed());
        }
        assert_eq!(read(pipe_end, 2048).len(), 2048);
        let [left, right] = socket_pair();
        for len in [100, 50] {
            assert_eq!(write(left, &vec![2; len]), len.cast_signed());
        }
        assert_eq!(read(right, 70).len(), 70);
    });
    assert_eq!(
        of(&witness, queued_why::EXIT, channel_kind::PIPE),
        [(8106, 2048, 6058)]
    );
    assert!(
        of(&witness, queued_why::EXIT, channel_kind::UNIX_STREAM).contains(&(150, 70, 80)),
        "{:?}",
        witness.balances()
    );
}

#[test]
fn what_waits_when_a_descriptor_is_closed_is_told_once() {
    let Some(mut witness) = witness() else { return };
    witness.run(tag::TREE, || {
        let [read_end, write_end] = pipe();
        assert_eq!(write(write_end, b"seven..").cast_unsigned(), 7);
        close(read_end);
        close(write_end);
    });
    // Another is of the pipe through which the child was told to go.
    let told = of(&witness, queued_why::CLOSE, channel_kind::PIPE);
    let of_seven = told.iter().filter(|(written, ..)| *written == 7);
    assert_eq!(of_seven.collect::<Vec<_>>(), [&(7, 0, 7)]);
}

#[test]
fn bytes_that_an_unwatched_process_put_in_or_took_out_do_not_add_up() {
    let Some(mut witness) = witness() else { return };
    let ([read_end, write_end], [near, far]) = (pipe(), socket_pair());
    let (child, gate) = spawn(|| {
        // Blocks until everything else has happened.
        assert_eq!(write(write_end, b"12345678"), 8);
        assert_eq!(write(near, b"abcd"), 4);
        assert_eq!(read(far, 1).len(), 1);
        // SAFETY: a signal to the caller.
        unsafe { libc::raise(libc::SIGSTOP) };
        assert_eq!(read(read_end, 5).len(), 5);
        assert_eq!(read(far, 1).len(), 1);
    });
    witness.capture.tag_pid(child, tag::TREE).unwrap();
    open(gate);
    let mut status = 0;
    // SAFETY: a child of ours.
    unsafe {
        libc::waitpid(child.cast_signed(), &raw mut status, libc::WUNTRACED);
        assert!(libc::WIFSTOPPED(status));
    }
    witness.capture.balance(Balanced::Moved).unwrap();
    witness.drain();
    let asked = |witness: &Witness, kind| of(witness, queued_why::ASKED, kind);
    assert_eq!(asked(&witness, channel_kind::PIPE), [(8, 0, 8)]);
    assert!(asked(&witness, channel_kind::UNIX_STREAM).contains(&(4, 1, 3)));
    // Nothing moved since: nothing is told, unless each is asked for.
    let before = witness.balances().len();
    witness.capture.balance(Balanced::Moved).unwrap();
    witness.drain();
    assert_eq!(witness.balances().len(), before);
    // Unseen: this process has no tag.
    assert_eq!(read(read_end, 2).len(), 2);
    assert_eq!(write(near, b"xyz"), 3);
    witness.capture.balance(Balanced::Each).unwrap();
    witness.drain();
    assert_eq!(asked(&witness, channel_kind::PIPE).last(), Some(&(8, 0, 6)));
    assert!(asked(&witness, channel_kind::UNIX_STREAM).contains(&(4, 1, 6)));
    // SAFETY: a signal to a child of ours.
    unsafe { libc::kill(child.cast_signed(), libc::SIGCONT) };
    witness.reap(child);
    assert!(of(&witness, queued_why::EXIT, channel_kind::PIPE).contains(&(8, 5, 1)));
    assert!(of(&witness, queued_why::EXIT, channel_kind::UNIX_STREAM).contains(&(4, 2, 5)));
}

/// Of the last record of messages that wait: how many, and the bytes of them.
fn waiting(witness: &Witness, kind: u8) -> Option<(u32, u64)> {
    let balances = witness.balances().into_iter();
    let of_kind = balances.filter(|balance| balance.channel.kind == kind);
    let mut told = of_kind.filter(|balance| balance.written_ops > 0);
    told.next_back()
        .map(|balance| (balance.queued_messages, balance.queued_bytes))
}

/// End and length of every gap that no operation made.
fn unseen(witness: &Witness) -> Vec<(Option<&'static str>, Option<u64>)> {
    let outcome = witness.judged();
    let gaps = outcome.coverage().filter(|row| row.kind == "gap");
    let unseen = gaps.filter(|row| row.reason == Some("unseen_ops"));
    unseen.map(|row| (row.end, row.lost_bytes)).collect()
}

const OF_MESSAGES: [(i32, u8); 2] = [
    (libc::SOCK_SEQPACKET, channel_kind::UNIX_SEQPACKET),
    (libc::SOCK_DGRAM, channel_kind::UNIX_DGRAM),
];

#[test]
fn messages_that_wait_are_told_with_their_number_and_empty_ones_are_none() {
    for (socket, kind) in OF_MESSAGES {
        let Some(mut witness) = witness() else { return };
        witness.run(tag::TREE, || {
            let [near, far] = socket_pair_of(socket);
            for len in [10, 0, 20, 30] {
                assert_eq!(write(near, &vec![1; len]), len.cast_signed());
            }
            // A part of the first; what did not fit is gone.
            assert_eq!(read(far, 4).len(), 4);
        });
        assert_eq!(waiting(&witness, kind), Some((2, 50)));
        assert_eq!(unseen(&witness), [], "{:?}", witness.balances());
    }
}

#[test]
fn a_message_that_an_unwatched_process_took_or_put_in_is_a_gap() {
    for (socket, kind) in OF_MESSAGES {
        let Some(mut witness) = witness() else { return };
        let [near, far] = socket_pair_of(socket);
        let (child, gate) = spawn(|| {
            for len in [10, 20, 30] {
                assert_eq!(write(near, &vec![1; len]), len.cast_signed());
            }
            assert_eq!(read(far, 100).len(), 10);
            // SAFETY: a signal to the caller.
            unsafe { libc::raise(libc::SIGSTOP) };
            assert_eq!(read(far, 100).len(), 30);
            assert_eq!(write(near, b"last"), 4);
            assert_eq!(read(far, 100).len(), 4);
            // SAFETY: as above.
            unsafe { libc::raise(libc::SIGSTOP) };
            assert_eq!(read(far, 100).len(), 7);
        });
        witness.capture.tag_pid(child, tag::TREE).unwrap();
        open(gate);
        stopped(child);
        witness.capture.balance(Balanced::Moved).unwrap();
        witness.drain();
        assert_eq!(waiting(&witness, kind), Some((2, 50)));
        assert_eq!(unseen(&witness), []);
        // Unseen: this process has no tag.
        assert_eq!(read(far, 100).len(), 20);
        // SAFETY: a signal to a child of ours.
        unsafe { libc::kill(child.cast_signed(), libc::SIGCONT) };
        stopped(child);
        witness.capture.balance(Balanced::Moved).unwrap();
        witness.drain();
        assert_eq!(
            unseen(&witness),
            [(Some("reader"), Some(20))],
            "{:?}",
            witness.balances()
        );
        assert_eq!(write(near, b"unasked"), 7);
        // SAFETY: as above.
        unsafe { libc::kill(child.cast_signed(), libc::SIGCONT) };
        witness.reap(child);
        assert_eq!(
            unseen(&witness),
            [(Some("reader"), Some(20)), (Some("writer"), Some(7))],
            "{:?}",
            witness.balances()
        );
        close(near);
        close(far);
    }
}

fn stopped(child: u32) {
    let mut status = 0;
    // SAFETY: a child of ours and a place for its status.
    unsafe { libc::waitpid(child.cast_signed(), &raw mut status, libc::WUNTRACED) };
    assert!(libc::WIFSTOPPED(status), "{status:#x}");
}

/// A sender and a receiver in each of some channels, who now and then wait for each other, looked at all the time.
fn honest(kind: u8, make: fn() -> [i32; 2], message: fn(usize) -> usize, room: fn(usize) -> usize) {
    const TIME: Duration = Duration::from_millis(1500);
    let options = LoadOptions {
        ring_bytes: 64 << 20,
        ..LoadOptions::default()
    };
    let Some(mut witness) = witness_with(&options) else {
        return;
    };
    let (child, gate) = spawn(move || {
        let until = Instant::now() + TIME;
        let pairs: Vec<_> = (0..8).map(|_| make()).collect();
        let threads = pairs.into_iter().map(|[out, into]| {
            std::thread::spawn(move || {
                let sender = std::thread::spawn(move || {
                    for number in 0.. {
                        let len = message(number);
                        assert_eq!(write(into, &vec![5; len]), len.cast_signed());
                        if number % 10 == 0 {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        if Instant::now() > until {
                            break;
                        }
                    }
                    // Nothing tells a receiver of datagrams that there are no more: an empty one says so.
                    if matches!(kind, channel_kind::UNIX_DGRAM) {
                        assert_eq!(write(into, b""), 0);
                    }
                    close(into);
                });
                for number in 0.. {
                    if read(out, room(number)).is_empty() {
                        break;
                    }
                }
                sender.join().unwrap();
            })
        });
        for thread in threads.collect::<Vec<_>>() {
            thread.join().unwrap();
        }
    });
    witness.capture.tag_pid(child, tag::TREE).unwrap();
    open(gate);
    let mut status = 0;
    // SAFETY: a child of ours and a place for its status.
    while unsafe { libc::waitpid(child.cast_signed(), &raw mut status, libc::WNOHANG) } == 0 {
        witness.drain();
        witness.capture.balance(Balanced::Each).unwrap();
    }
    assert_eq!(status, 0, "the child failed");
    witness.drain();
    assert_eq!(witness.counter(counter::RING_DROPPED_RECORDS), 0);
    let looks = of(&witness, queued_why::ASKED, kind).len();
    assert!(looks > 0);
    assert_eq!(unseen(&witness), []);
}

#[test]
fn honest_streams_add_up_whenever_they_are_looked_at() {
    // Now and then more than the channel holds: a writer waits half way.
    let message = |number| match number % 125 {
        0 => 200_000,
        _ => 1 + number * 7 % 900,
    };
    honest(channel_kind::PIPE, pipe, message, |_| 3000);
    honest(channel_kind::UNIX_STREAM, socket_pair, message, |_| 3000);
}

#[test]
fn honest_messages_add_up_whenever_they_are_looked_at() {
    let message = |number| 1 + number * 7 % 900;
    // Now and then without room for all of it.
    let room = |number| if number % 50 == 0 { 3 } else { 1000 };
    let seqpacket = || socket_pair_of(libc::SOCK_SEQPACKET);
    honest(channel_kind::UNIX_SEQPACKET, seqpacket, message, room);
    let pairs = || socket_pair_of(libc::SOCK_DGRAM);
    honest(channel_kind::UNIX_DGRAM, pairs, message, room);
}
