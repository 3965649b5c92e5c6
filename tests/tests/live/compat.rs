//! The 32-bit ABI, by `int 0x80` from a 64-bit program: the kernel takes it from any program.

use std::{arch::asm, ptr::null_mut};

use countersign_common::{channel_kind, counter, direction, end_how, gap, tag, transfer_flags};

use crate::harness::{Op, Witness, close, pipe, read, socket_pair, token, witness, write};

/// Memory below 4 GiB: all pointers of a 32-bit call are 32 bits wide.
struct Low {
    base: *mut u8,
    used: usize,
}

impl Low {
    fn new() -> Self {
        let base = unsafe {
            libc::mmap(
                null_mut(),
                65536,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        Self {
            base: base.cast(),
            used: 0,
        }
    }

    /// Puts bytes there; their address.
    fn put(&mut self, bytes: &[u8]) -> u32 {
        unsafe {
            let place = self.base.add(self.used);
            place.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            self.used += bytes.len().next_multiple_of(16);
            u32::try_from(place.addr()).unwrap()
        }
    }

    fn words(&mut self, words: &[u32]) -> u32 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.put(&bytes)
    }

    /// `struct compat_iovec` of both halves.
    fn vectors(&mut self, address: u32, len: u32) -> u32 {
        self.words(&[address, len / 2, address + len / 2, len - len / 2])
    }
}

/// A system call of the 32-bit ABI.
fn call(number: u32, args: [u32; 5]) -> i32 {
    let result: i64;
    unsafe {
        asm!(
            "xchg {first}, rbx",
            "int 0x80",
            "xchg {first}, rbx",
            first = inout(reg) u64::from(args[0]) => _,
            inout("rax") i64::from(number) => result,
            in("rcx") u64::from(args[1]),
            in("rdx") u64::from(args[2]),
            in("rsi") u64::from(args[3]),
            in("rdi") u64::from(args[4]),
            // The kernel zeroes them on the way.
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    i32::try_from(result).unwrap()
}

fn fd(fd: i32) -> u32 {
    fd.cast_unsigned()
}

fn assert_compat(witness: &Witness, op_direction: u8, bytes: &[u8], count: usize) -> Vec<Op> {
    let ops = witness.moved(op_direction, bytes);
    let ops: Vec<Op> = ops
        .into_iter()
        .filter(|op| op.first.flags & transfer_flags::COMPAT != 0)
        .collect();
    assert_eq!(ops.len(), count, "{:?}", witness.ops());
    for op in &ops {
        assert_eq!(op.gaps, []);
        let flags = op.first.flags & !transfer_flags::KERNEL_COPY;
        assert_eq!(flags, transfer_flags::COMPAT, "{op:?}");
        assert!(op.first.enter_ns < op.first.exit_ns);
    }
    ops
}

#[test]
fn reads_and_writes_of_the_32_bit_abi_are_captured() {
    let Some(mut witness) = witness() else { return };
    let token = token("int80");
    let len = u32::try_from(token.len()).unwrap();
    witness.run(tag::TREE, || {
        let mut low = Low::new();
        let there = low.put(&token);
        let back = low.put(&vec![0; token.len()]);
        let [read_end, write_end] = pipe();
        let there_vectors = low.vectors(there, len);
        let back_vectors = low.vectors(back, len);
        let moved = i32::try_from(len).unwrap();
        // write, read; writev, readv; pwritev2 and preadv2 at no position.
        assert_eq!(call(4, [fd(write_end), there, len, 0, 0]), moved);
        assert_eq!(call(3, [fd(read_end), back, len, 0, 0]), moved);
        assert_eq!(call(146, [fd(write_end), there_vectors, 2, 0, 0]), moved);
        assert_eq!(call(145, [fd(read_end), back_vectors, 2, 0, 0]), moved);
    });
    for (op_direction, numbers) in [
        (direction::WRITE, [libc::SYS_write, libc::SYS_writev]),
        (direction::READ, [libc::SYS_read, libc::SYS_readv]),
    ] {
        let ops = assert_compat(&witness, op_direction, &token, 2);
        assert_eq!([0, 1].map(|at| i64::from(ops[at].first.syscall)), numbers);
    }
    assert_eq!(witness.counter(counter::COMPAT_SYSCALLS), 0);
}

#[test]
fn messages_of_the_32_bit_abi_are_captured() {
    let Some(mut witness) = witness() else { return };
    let token = token("int80-message");
    let len = u32::try_from(token.len()).unwrap();
    let moved = i32::try_from(len).unwrap();
    witness.run(tag::TREE, || {
        let mut low = Low::new();
        let there = low.put(&token);
        let back = low.put(&vec![0; token.len()]);
        let vectors = [low.vectors(there, len), low.vectors(back, len)];
        // `struct compat_msghdr`, and the same with its result for the calls that take several.
        let [send, receive] = vectors.map(|vectors| low.words(&[0, 0, vectors, 2, 0, 0, 0, 0]));
        let [left, right] = socket_pair();
        // sendmsg, recvmsg; sendmmsg, recvmmsg; sendto, recvfrom.
        assert_eq!(call(370, [fd(left), send, 0, 0, 0]), moved);
        assert_eq!(call(372, [fd(right), receive, 0, 0, 0]), moved);
        assert_eq!(call(345, [fd(left), send, 1, 0, 0]), 1);
        assert_eq!(call(417, [fd(right), receive, 1, 0, 0]), 1);
        assert_eq!(call(369, [fd(left), there, len, 0, 0]), moved);
        assert_eq!(call(371, [fd(right), back, len, 0, 0]), moved);
        // The same through one number: send, recv, sendmsg, recvmsg.
        for (which, arguments) in [
            (9, [fd(left), there, len, 0]),
            (10, [fd(right), back, len, 0]),
            (16, [fd(left), send, 0, 0]),
            (17, [fd(right), receive, 0, 0]),
        ] {
            let arguments = low.words(&arguments);
            assert_eq!(call(102, [which, arguments, 0, 0, 0]), moved);
        }
    });
    assert_compat(&witness, direction::WRITE, &token, 5);
    assert_compat(&witness, direction::READ, &token, 5);
    assert_eq!(witness.counter(counter::COMPAT_SYSCALLS), 0);
}

#[test]
fn ends_made_by_the_32_bit_abi_are_reported_and_what_it_splices_is_a_gap() {
    let Some(mut witness) = witness() else { return };
    let token = token("int80-ends");
    witness.run(tag::TREE, || {
        let mut low = Low::new();
        let pair = low.words(&[0, 0]);
        let fds = |pair: u32| unsafe { (pair as usize as *const [i32; 2]).read() };
        assert_eq!(call(42, [pair, 0, 0, 0, 0]), 0);
        let [from_read, from_write] = fds(pair);
        assert_eq!(call(331, [pair, 0, 0, 0, 0]), 0);
        let [to_read, to_write] = fds(pair);
        let arguments = low.words(&[1, 1, 0, pair]);
        assert_eq!(call(102, [8, arguments, 0, 0, 0]), 0);
        let [left, _right] = fds(pair);
        assert!(write(left, b"x") > 0);
        assert!(write(from_write, &token) > 0);
        // splice takes six arguments; tee four.
        assert_eq!(
            call(315, [fd(from_read), fd(to_write), 4096, 0, 0]),
            i32::try_from(token.len()).unwrap()
        );
        assert_eq!(read(to_read, 256), token);
        close(from_read);
    });
    let created: Vec<_> = witness
        .ends()
        .into_iter()
        .filter(|end| end.how == end_how::CREATED)
        .collect();
    assert_eq!(created.len(), 6, "{created:?}");
    assert_eq!(created[4].channel.kind, channel_kind::UNIX_STREAM);
    let tees: Vec<Op> = witness
        .ops()
        .into_iter()
        .filter(|op| i64::from(op.first.syscall) == libc::SYS_tee)
        .collect();
    assert_eq!(tees.len(), 2, "{:?}", witness.ops());
    let len = u32::try_from(token.len()).unwrap();
    for tee in &tees {
        assert_eq!(tee.gaps, [(len, gap::SPLICE)]);
        assert_ne!(tee.first.flags & transfer_flags::COMPAT, 0);
    }
}
