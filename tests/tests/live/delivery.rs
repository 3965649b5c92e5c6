//! The kernel's own copy of what it delivers to readers of unix stream sockets.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use countersign_common::{counter, direction, tag, transfer_flags};

use crate::harness::{Witness, close, read, socket_pair, token, witness, write};

/// What the kernel copied for each operation that says so, by the numbers of the operations.
fn delivered(witness: &Witness) -> Vec<(Vec<u8>, Vec<u8>)> {
    let copies = witness.copies();
    let ops = witness.ops().into_iter().filter(|op| {
        op.first.direction == direction::READ && op.first.flags & transfer_flags::KERNEL_COPY != 0
    });
    ops.map(|op| {
        let mut bytes = Vec::new();
        for (copy, data) in &copies {
            let same = (copy.task, copy.enter_ns, copy.channel.object)
                == (op.first.task, op.first.enter_ns, op.first.channel.object);
            if same {
                assert_eq!(copy.offset, bytes.len() as u64);
                bytes.extend(data);
            }
        }
        bytes.truncate(usize::try_from(op.first.returned).unwrap());
        (bytes, op.bytes)
    })
    .collect()
}

#[test]
fn what_the_kernel_delivers_is_copied_from_its_own_buffers() {
    let Some(mut witness) = witness() else { return };
    let tokens: Vec<Vec<u8>> = (0..3).map(|_| token("copied")).collect();
    let large = vec![b'l'; 3000];
    witness.run(tag::TREE, || {
        let [left, right] = socket_pair();
        for token in &tokens {
            assert!(write(left, token) > 0);
        }
        // A part of a message, the rest with the next ones, one alone, and after looking ahead.
        assert_eq!(read(right, 5), tokens[0][..5]);
        let mut ahead = [0_u8; 9];
        let got = unsafe { libc::recv(right, ahead.as_mut_ptr().cast(), 9, libc::MSG_PEEK) };
        assert_eq!(got, 9);
        assert_eq!(read(right, 4096), tokens.concat()[5..]);
        assert!(write(left, &large) > 0);
        assert_eq!(read(right, 4096), large);
        close(left);
    });
    let delivered = delivered(&witness);
    let wanted = [&tokens[0][..5], &tokens.concat()[5..], &large[..]];
    assert_eq!(delivered.len(), 3, "{:?}", witness.ops());
    for ((kernel, reader), wanted) in delivered.iter().zip(wanted) {
        assert_eq!((&kernel[..], &reader[..]), (wanted, wanted));
    }
    assert_eq!(
        witness.counter(counter::KERNEL_COPY_BYTES),
        wanted.iter().map(|bytes| bytes.len() as u64).sum::<u64>()
    );
}

#[test]
fn a_copy_that_fails_half_way_counts_as_far_as_it_came() {
    let Some(mut witness) = witness() else { return };
    let tokens = ["whole", "fails"].map(token);
    let len = tokens[0].len();
    witness.run(tag::TREE, || unsafe {
        let [left, right] = socket_pair();
        for token in &tokens {
            assert!(write(left, token) > 0);
        }
        // Room for the first message; the second one's lies in memory that is not there.
        let map = libc::mmap(
            std::ptr::null_mut(),
            8192,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        libc::munmap(map.byte_add(4096), 4096);
        let place = map.byte_add(4096 - len);
        assert_eq!(
            libc::read(right, place, 2 * len),
            isize::try_from(len).unwrap()
        );
        assert_eq!(read(right, 256), tokens[1]);
    });
    let delivered = delivered(&witness);
    assert_eq!(delivered.len(), 2, "{:?}", witness.ops());
    for ((kernel, reader), token) in delivered.iter().zip(&tokens) {
        assert_eq!((kernel, reader), (token, token));
    }
}

#[test]
fn pages_behind_a_buffer_are_not_claimed() {
    let Some(mut witness) = witness() else { return };
    let large: Vec<u8> = (0..60_000_u32).map(|n| b'a' + (n % 23) as u8).collect();
    witness.run(tag::TREE, || {
        let [left, right] = socket_pair();
        assert_eq!(write(left, &large), 60_000);
        let mut got = Vec::new();
        while got.len() < large.len() {
            got.extend(read(right, 65536));
        }
        assert_eq!(got, large);
    });
    // Where some of it was copied after all, it is right.
    for (kernel, reader) in delivered(&witness) {
        assert_eq!(kernel, reader);
    }
    assert!(witness.counter(counter::KERNEL_COPY_FAILED) > 0);
}

#[test]
fn neither_a_hostile_writer_nor_a_hostile_reader_changes_what_the_kernel_copied() {
    const MESSAGES: usize = 3000;
    const LEN: usize = 1024;
    const ROUNDS_MAX: usize = 20;
    // Whether the reader's thread comes in time is the scheduler's choice: once is enough.
    for _ in 0..ROUNDS_MAX {
        let Some(mut witness) = witness() else { return };
        witness.run(tag::TREE, || {
            let [left, right] = socket_pair();
            let stop = Arc::new(AtomicBool::new(false));
            // Both buffers have a thread that rewrites them all the time.
            let rewritten = |first: u8, second: u8| {
                let buffer = Box::leak(vec![first; LEN].into_boxed_slice());
                let address = buffer.as_mut_ptr().addr();
                let stop = Arc::clone(&stop);
                let thread = std::thread::spawn(move || {
                    let buffer = address as *mut u8;
                    while !stop.load(Ordering::Relaxed) {
                        for byte in [first, second] {
                            unsafe { buffer.write_bytes(byte, LEN) };
                            std::hint::spin_loop();
                        }
                    }
                });
                (address, thread)
            };
            let (from, writer) = rewritten(b'G', b'E');
            let (to, reader) = rewritten(b'x', b'y');
            for _ in 0..MESSAGES {
                // Lets both have the processors: without it all messages can pass before either has begun.
                std::thread::sleep(std::time::Duration::from_micros(100));
                unsafe {
                    assert_eq!(libc::write(left, from as *const _, LEN), 1024);
                    assert_eq!(libc::read(right, to as *mut _, LEN), 1024);
                }
            }
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap();
            reader.join().unwrap();
        });
        let delivered = delivered(&witness);
        assert_eq!(delivered.len(), MESSAGES);
        let lies = delivered.iter().filter(|(kernel, reader)| kernel != reader);
        let lies = lies.count();
        // Nothing but what the writer ever had in its buffer went through the socket.
        for (kernel, _) in &delivered {
            assert_eq!(kernel.len(), LEN);
            assert!(kernel.iter().all(|byte| matches!(byte, b'G' | b'E')));
        }
        if lies > 0 {
            return;
        }
    }
    panic!("the reader's thread never came in time: nothing was tested");
}
