//! Legacy AIO on pipes and sockets.

use std::ptr::null_mut;

use countersign_common::{counter, direction, tag, transfer_flags};

use crate::harness::{Op, pipe, socket_pair, token, witness};

/// `struct iocb`.
#[repr(C)]
struct Block {
    data: u64,
    key: u64,
    opcode: u16,
    priority: i16,
    fd: u32,
    address: u64,
    len: u64,
    rest: [u64; 3],
}

fn block(opcode: u16, fd: i32, address: u64, len: usize) -> Block {
    Block {
        data: 0,
        key: 0,
        opcode,
        priority: 0,
        fd: fd.cast_unsigned(),
        address,
        len: len as u64,
        rest: [0; 3],
    }
}

#[test]
fn control_blocks_on_pipes_and_sockets_are_operations_with_their_bytes() {
    let Some(mut witness) = witness() else { return };
    let tokens = ["one", "two"].map(token);
    witness.run(tag::TREE, || unsafe {
        let mut ring = 0_u64;
        assert_eq!(libc::syscall(libc::SYS_io_setup, 8, &raw mut ring), 0);
        for [read_end, write_end] in [pipe(), socket_pair()] {
            let got = tokens.each_ref().map(|token| vec![0_u8; token.len()]);
            let vector = |bytes: &[u8]| libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            };
            let vectors = [vector(&tokens[1]), vector(&got[1])];
            // A plain one and one with vectors each way, and one that fails between them.
            let mut blocks = [
                block(
                    1,
                    write_end,
                    tokens[0].as_ptr().addr() as u64,
                    tokens[0].len(),
                ),
                block(8, write_end, (&raw const vectors[0]).addr() as u64, 1),
                block(1, write_end, 1, 5),
                block(0, read_end, got[0].as_ptr().addr() as u64, got[0].len()),
                block(7, read_end, (&raw const vectors[1]).addr() as u64, 1),
            ];
            let pointers = blocks.each_mut().map(std::ptr::from_mut);
            assert_eq!(
                libc::syscall(libc::SYS_io_submit, ring, 5, pointers.as_ptr()),
                5
            );
            let mut events = [[0_u64; 4]; 8];
            let count = libc::syscall(
                libc::SYS_io_getevents,
                ring,
                5,
                8,
                events.as_mut_ptr(),
                null_mut::<u8>(),
            );
            assert_eq!(count, 5);
            assert_eq!(got, tokens);
        }
    });
    let ops: Vec<Op> = witness
        .ops()
        .into_iter()
        .filter(|op| op.first.flags & transfer_flags::AIO != 0)
        .collect();
    assert_eq!(ops.len(), 8, "{:?}", witness.ops());
    for of_channel in ops.chunks(4) {
        for (op, (op_direction, token)) in of_channel.iter().zip([
            (direction::WRITE, &tokens[0]),
            (direction::WRITE, &tokens[1]),
            (direction::READ, &tokens[0]),
            (direction::READ, &tokens[1]),
        ]) {
            assert_eq!(
                (op.first.direction, &op.bytes),
                (op_direction, token),
                "{op:?}"
            );
            assert_eq!(op.gaps, []);
            assert!(op.first.enter_ns < op.first.exit_ns);
        }
    }
    assert_eq!(witness.counter(counter::UNSEEN_SUBMISSIONS), 0);
}
