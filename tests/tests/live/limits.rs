//! Large operations, many vectors, blocked writers, unreadable memory, a full ring: what is missing is said.

use std::ptr::null_mut;

use countersign::bpf::options::LoadOptions;
use countersign_common::{WRITER_OP_MAX_BYTES, channel_kind, counter, direction, gap, tag};

use crate::harness::{close, open, pipe, read, socket_pair, spawn, witness, witness_with, write};

/// Bytes that differ everywhere.
fn pattern(len: usize) -> Vec<u8> {
    (0_u64..)
        .map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .flat_map(u64::to_le_bytes)
        .take(len)
        .collect()
}

fn write_all_against_a_reader(ends: [i32; 2], bytes: &[u8]) {
    let [read_end, write_end] = ends;
    let len = bytes.len();
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        while got.len() < len {
            let piece = read(read_end, 65536);
            assert!(!piece.is_empty());
            got.extend(piece);
        }
        got
    });
    assert_eq!(write(write_end, bytes), isize::try_from(len).unwrap());
    assert_eq!(reader.join().unwrap(), bytes);
}

#[test]
fn a_mebibyte_by_an_untrusted_writer_is_cut_there_and_whole_at_the_reader() {
    let Some(mut witness) = witness() else { return };
    let bytes = pattern(1 << 20);
    witness.run(tag::TREE, || write_all_against_a_reader(pipe(), &bytes));
    let limit = usize::try_from(WRITER_OP_MAX_BYTES).unwrap();
    let ops = witness.ops();
    let written = ops
        .iter()
        .find(|op| op.first.returned == 1 << 20)
        .expect("the write is captured");
    assert_eq!(written.bytes[..limit], bytes[..limit]);
    assert_eq!(
        written.gaps,
        [(u32::try_from(bytes.len() - limit).unwrap(), gap::LIMIT)]
    );
    assert!(witness.streams(written).1 == bytes);
}

#[test]
fn sixteen_mebibytes_by_a_proxy_are_captured_whole_at_both_ends() {
    let options = LoadOptions {
        ring_bytes: 64 << 20,
        ..LoadOptions::default()
    };
    let Some(mut witness) = witness_with(&options) else {
        return;
    };
    let bytes = pattern(16 << 20);
    witness.run(tag::TREE | tag::PROXY, || {
        write_all_against_a_reader(socket_pair(), &bytes);
    });
    let ops = witness.ops();
    let written = ops
        .iter()
        .find(|op| op.first.returned == 16 << 20)
        .expect("the write is captured");
    assert_eq!(written.gaps, []);
    assert!(written.bytes == bytes);
    let mut reads: Vec<_> = ops
        .iter()
        .filter(|op| op.first.channel.object == written.first.channel.peer_object)
        .collect();
    reads.sort_by_key(|op| op.first.op_seq);
    let read: Vec<u8> = reads
        .iter()
        .flat_map(|op| op.bytes.iter().copied())
        .collect();
    assert!(
        read == bytes,
        "{} of {} bytes read back",
        read.len(),
        bytes.len()
    );
    assert_eq!(witness.counter(counter::RING_DROPPED_RECORDS), 0);
}

#[test]
fn a_thousand_and_twenty_four_vectors_are_all_followed() {
    let Some(mut witness) = witness() else { return };
    let mut bytes = pattern(1024 * 3);
    witness.run(tag::TREE, || {
        let [read_end, write_end] = pipe();
        let vectors: Vec<_> = bytes
            .chunks_mut(3)
            .map(|piece| libc::iovec {
                iov_base: piece.as_mut_ptr().cast(),
                iov_len: 3,
            })
            .collect();
        // SAFETY: vectors over `bytes`.
        assert_eq!(
            unsafe { libc::writev(write_end, vectors.as_ptr(), 1024) },
            3072
        );
        assert_eq!(read(read_end, 4096).len(), 3072);
    });
    let bytes = pattern(1024 * 3);
    assert_eq!(
        witness.moved(direction::WRITE, &bytes).len(),
        1,
        "{:?}",
        witness.ops()
    );
    assert_eq!(witness.moved(direction::READ, &bytes).len(), 1);
}

#[test]
fn a_write_blocked_on_a_full_pipe_has_its_whole_time_and_all_its_bytes() {
    let Some(mut witness) = witness() else { return };
    let bytes = pattern(200_000);
    witness.run(tag::TREE, || write_all_against_a_reader(pipe(), &bytes));
    let ops = witness.ops();
    let written = ops
        .iter()
        .find(|op| op.first.returned == 200_000)
        .expect("the write is captured");
    assert!(written.bytes == bytes);
    let (_, read) = witness.streams(written);
    assert!(read == bytes, "{} bytes read", read.len());
    let first_read = ops
        .iter()
        .find(|op| {
            op.first.direction == direction::READ && op.first.channel == written.first.channel
        })
        .expect("the reads are captured");
    // 200,000 bytes do not fit a pipe: the write went on after the first read had begun.
    assert!(first_read.first.enter_ns < written.first.exit_ns);
    assert!(written.first.enter_ns < first_read.first.exit_ns);
}

#[test]
fn memory_that_is_gone_at_return_is_a_gap_of_its_pages_only() {
    let Some(mut witness) = witness() else { return };
    let bytes = pattern(3 * 4096);
    witness.run(tag::TREE, || {
        let [read_end, write_end] = pipe();
        // SAFETY: a mapping of three pages; the middle one is taken away while the write is blocked on a full pipe.
        unsafe {
            let map = libc::mmap(
                null_mut(),
                3 * 4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
            .cast::<u8>();
            map.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            let filler = vec![0; 65536 - 2 * 4096];
            assert_eq!(
                write(write_end, &filler),
                isize::try_from(filler.len()).unwrap()
            );
            let address = map as usize;
            let writer = std::thread::spawn(move || {
                libc::write(write_end, (address as *const u8).cast(), 3 * 4096)
            });
            // Two pages fit; the third waits for room, after the middle one has been copied.
            let mut waiting = 0;
            while waiting < 65536 {
                libc::ioctl(read_end, libc::FIONREAD, &raw mut waiting);
            }
            libc::munmap(map.add(4096).cast(), 4096);
            let mut left = 65536 + 4096;
            while left > 0 {
                left -= read(read_end, left).len();
            }
            assert_eq!(writer.join().unwrap(), 3 * 4096);
        }
        close(read_end);
    });
    let ops = witness.ops();
    let written = ops
        .iter()
        .find(|op| op.first.returned == 3 * 4096)
        .expect("the write is captured");
    assert_eq!(written.gaps, [(4096, gap::FAULT)]);
    assert_eq!(written.bytes[..4096], bytes[..4096]);
    assert_eq!(written.bytes[8192..], bytes[8192..]);
    assert_eq!(witness.counter(counter::FAULT_BYTES), 4096);
}

#[test]
fn what_a_full_ring_drops_shows_in_numbers_and_positions() {
    let options = LoadOptions {
        ring_bytes: 1 << 16,
        ..LoadOptions::default()
    };
    let Some(mut witness) = witness_with(&options) else {
        return;
    };
    let (child, gate) = spawn(|| {
        let [read_end, write_end] = pipe();
        for _ in 0..64 {
            assert_eq!(write(write_end, &[7; 4096]), 4096);
            assert_eq!(read(read_end, 4096).len(), 4096);
        }
        // Stops itself: everybody knows that the ring has been full by then.
        // SAFETY: a signal to the caller.
        unsafe { libc::raise(libc::SIGSTOP) };
        assert_eq!(write(write_end, b"after"), 5);
    });
    witness.capture.tag_pid(child, tag::TREE).unwrap();
    open(gate);
    let mut status = 0;
    // SAFETY: a child of ours; nobody drains until it has stopped.
    unsafe {
        libc::waitpid(child.cast_signed(), &raw mut status, libc::WUNTRACED);
        assert!(libc::WIFSTOPPED(status));
        witness.drain();
        libc::kill(child.cast_signed(), libc::SIGCONT);
    }
    witness.reap(child);
    assert!(witness.counter(counter::RING_DROPPED_RECORDS) > 0);
    assert!(witness.counter(counter::RING_DROPPED_BYTES) > 0);
    let after = witness.moved(direction::WRITE, b"after");
    assert_eq!(after.len(), 1);
    assert_eq!(
        (after[0].first.op_seq, after[0].first.stream_before),
        (64, 64 * 4096)
    );
    let captured = witness
        .ops()
        .iter()
        .filter(|op| op.first.returned == 4096)
        .count();
    assert!(
        captured < 128,
        "{captured} operations found room in a small ring"
    );
    let totals = witness.capture.channel_totals().unwrap();
    let pipe = totals
        .iter()
        .find(|totals| totals.state.ops == [64, 65])
        .expect("the kernel counted each");
    assert_eq!(pipe.state.bytes, [64 * 4096, 64 * 4096 + 5]);
    assert_eq!(pipe.state.kind, u32::from(channel_kind::PIPE));
    assert!(
        holes(&witness.sequence()) > 0,
        "dropped records leave holes in the numbers"
    );
}

fn holes(numbers: &[(u16, u64)]) -> u64 {
    let mut last = std::collections::HashMap::new();
    let mut holes = 0;
    for (cpu, number) in numbers {
        let expected = last.insert(*cpu, number + 1).unwrap_or(0);
        assert!(*number >= expected, "numbers of a cpu only grow");
        holes += number - expected;
    }
    holes
}

#[test]
fn without_loss_the_numbers_of_each_cpu_have_no_hole() {
    let Some(mut witness) = witness() else { return };
    witness.run(tag::TREE, || {
        write_all_against_a_reader(pipe(), &pattern(1 << 20));
    });
    assert_eq!(witness.counter(counter::RING_DROPPED_RECORDS), 0);
    assert_eq!(holes(&witness.sequence()), 0);
}

#[test]
fn eight_writers_and_eight_readers_at_once_lose_nothing() {
    const PAIRS: usize = 8;
    const MESSAGES: usize = 2000;
    let Some(mut witness) = witness() else { return };
    witness.run(tag::TREE, || {
        let threads: Vec<_> = (0..PAIRS)
            .flat_map(|pair| {
                let [read_end, write_end] = if pair % 2 == 0 { pipe() } else { socket_pair() };
                let writer = std::thread::spawn(move || {
                    for number in 0..MESSAGES {
                        let message = format!("{pair:02}-{number:06}-{:->54}", "");
                        assert_eq!(write(write_end, message.as_bytes()), 64);
                    }
                });
                let reader = std::thread::spawn(move || {
                    let mut left = MESSAGES * 64;
                    while left > 0 {
                        left -= read(read_end, left.min(1000)).len();
                    }
                });
                [writer, reader]
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    });
    assert_eq!(witness.counter(counter::RING_DROPPED_RECORDS), 0);
    assert!(
        witness
            .capture
            .ledger()
            .iter()
            .all(|program| program.recursion_misses == 0)
    );
    assert_eq!(holes(&witness.sequence()), 0);
    let mut streams: std::collections::HashMap<_, Vec<_>> = std::collections::HashMap::new();
    for op in witness.parts() {
        let key = (op.channel.object, op.channel.epoch, op.direction);
        streams.entry(key).or_default().push(op);
    }
    let whole = streams
        .into_values()
        .filter_map(|mut ops| {
            ops.sort_by_key(|op| (op.op_seq, op.offset));
            let mut position = 0;
            for op in &ops {
                assert_eq!(
                    op.stream_before + op.offset,
                    position,
                    "the numbers agree with the bytes"
                );
                position += u64::from(op.len);
            }
            (position == (MESSAGES * 64) as u64).then_some(())
        })
        .count();
    assert_eq!(whole, 2 * PAIRS);
}
