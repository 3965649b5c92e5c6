//! The arithmetic of the kernel programs that needs no kernel: which system calls matter, how much of an operation is
//! captured, how a piece is cut. Tested on the host with `cargo test --lib`.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

use countersign_common::{
    CHUNK_MAX_BYTES, PROXY_OP_MAX_BYTES, READER_OP_MAX_BYTES, WRITER_OP_MAX_BYTES, direction, tag,
};

/// x86-64 system call numbers (`arch/x86/entry/syscalls/syscall_64.tbl`).
pub mod nr {
    #![expect(missing_docs, reason = "each name is the system call's")]
    pub const READ: u64 = 0;
    pub const WRITE: u64 = 1;
    pub const OPEN: u64 = 2;
    pub const CLOSE: u64 = 3;
    pub const PWRITE64: u64 = 18;
    pub const READV: u64 = 19;
    pub const WRITEV: u64 = 20;
    pub const PIPE: u64 = 22;
    pub const SENDFILE: u64 = 40;
    pub const CONNECT: u64 = 42;
    pub const ACCEPT: u64 = 43;
    pub const SENDTO: u64 = 44;
    pub const RECVFROM: u64 = 45;
    pub const SENDMSG: u64 = 46;
    pub const RECVMSG: u64 = 47;
    pub const LISTEN: u64 = 50;
    pub const SOCKETPAIR: u64 = 53;
    pub const EXECVE: u64 = 59;
    pub const CREAT: u64 = 85;
    pub const IO_SUBMIT: u64 = 209;
    pub const OPENAT: u64 = 257;
    pub const SPLICE: u64 = 275;
    pub const TEE: u64 = 276;
    pub const VMSPLICE: u64 = 278;
    pub const ACCEPT4: u64 = 288;
    pub const PIPE2: u64 = 293;
    pub const PREADV: u64 = 295;
    pub const PWRITEV: u64 = 296;
    pub const RECVMMSG: u64 = 299;
    pub const OPEN_BY_HANDLE_AT: u64 = 304;
    pub const SENDMMSG: u64 = 307;
    pub const EXECVEAT: u64 = 322;
    pub const PREADV2: u64 = 327;
    pub const PWRITEV2: u64 = 328;
    pub const IO_URING_SETUP: u64 = 425;
    pub const IO_URING_ENTER: u64 = 426;
    pub const OPENAT2: u64 = 437;
    pub const PIDFD_GETFD: u64 = 438;
}

/// What a system call is to the capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Class {
    /// Nothing: costs no look-up.
    Other,
    /// Moves bytes between a descriptor and user memory.
    Transfer,
    /// Moves bytes between two descriptors, or pages into one.
    Splice,
    /// May yield an end of a channel. Looked at for untagged tasks too.
    End,
    /// Yields ends, but only private ones: looked at for tagged tasks.
    OwnEnd,
    /// Replaces the program.
    Exec,
    /// Submits work that is not decoded.
    Unseen,
    /// Gives up a descriptor.
    Close,
}

/// Sorts a system call.
#[inline(always)]
pub const fn classify(number: u64) -> Class {
    match number {
        nr::READ
        | nr::WRITE
        | nr::PWRITE64
        | nr::READV
        | nr::WRITEV
        | nr::SENDTO
        | nr::RECVFROM
        | nr::SENDMSG
        | nr::RECVMSG
        | nr::PREADV
        | nr::PWRITEV
        | nr::RECVMMSG
        | nr::SENDMMSG
        | nr::PREADV2
        | nr::PWRITEV2 => Class::Transfer,
        nr::SPLICE | nr::TEE | nr::VMSPLICE | nr::SENDFILE => Class::Splice,
        nr::OPEN
        | nr::OPENAT
        | nr::OPENAT2
        | nr::CREAT
        | nr::OPEN_BY_HANDLE_AT
        | nr::CONNECT
        | nr::ACCEPT
        | nr::ACCEPT4
        | nr::PIDFD_GETFD => Class::End,
        nr::PIPE | nr::PIPE2 | nr::SOCKETPAIR | nr::LISTEN => Class::OwnEnd,
        nr::EXECVE | nr::EXECVEAT => Class::Exec,
        nr::CLOSE => Class::Close,
        nr::IO_SUBMIT | nr::IO_URING_SETUP | nr::IO_URING_ENTER => Class::Unseen,
        _ => Class::Other,
    }
}

/// System call numbers from here on are none that [`classify`] knows. A power of two: else the verifier takes the end of the last
/// word for out of bounds ("R2 max value is outside of the allowed memory range").
pub const NUMBERS: u64 = 512;

/// A bit for each system call number.
pub type Numbers = [u64; (NUMBERS / 64) as usize];

/// System calls that the program for `sys_enter` looks at.
pub static AT_ENTER: Numbers = numbers(true);

/// System calls that the program for `sys_exit` looks at.
pub static AT_EXIT: Numbers = numbers(false);

/// Whether the number is in the set: what every system call of every task pays.
#[inline(always)]
pub fn is_in(numbers: &Numbers, number: u64) -> bool {
    number < NUMBERS && numbers[(number / 64) as usize] >> (number % 64) & 1 != 0
}

const fn numbers(enter: bool) -> Numbers {
    let mut set = [0; (NUMBERS / 64) as usize];
    let mut number = 0;
    while number < NUMBERS {
        let wanted = match classify(number) {
            Class::Other => false,
            Class::Transfer | Class::Splice => true,
            Class::End | Class::OwnEnd => !enter,
            Class::Exec | Class::Unseen | Class::Close => enter,
        };
        if wanted {
            set[(number / 64) as usize] |= 1 << (number % 64);
        }
        number += 1;
    }
    set
}

/// `IORING_SETUP_SQPOLL` (`include/uapi/linux/io_uring.h`): the kernel takes submissions by itself, without a system call.
pub const SETUP_SQPOLL: u32 = 1 << 1;

/// Offset of the flags in `struct io_uring_params`.
pub const SETUP_FLAGS_OFFSET: u64 = 8;

/// Direction of a [`Class::Transfer`] call.
#[inline(always)]
pub const fn direction_of(number: u64) -> u8 {
    match number {
        nr::READ
        | nr::READV
        | nr::RECVFROM
        | nr::RECVMSG
        | nr::PREADV
        | nr::PREADV2
        | nr::RECVMMSG => direction::READ,
        _ => direction::WRITE,
    }
}

/// Bytes captured of one operation.
#[inline(always)]
pub const fn op_limit(tag_bits: u32, op_direction: u8) -> u64 {
    if tag_bits & tag::PROXY != 0 {
        PROXY_OP_MAX_BYTES
    } else if op_direction == direction::READ {
        READER_OP_MAX_BYTES
    } else {
        WRITER_OP_MAX_BYTES
    }
}

/// I/O vectors followed in one operation (`UIO_MAXIOV`: the kernel refuses more).
pub const VECTORS_MAX: u64 = 1024;

/// Messages followed in one `recvmmsg` or `sendmmsg` (the kernel caps them at `UIO_MAXIOV`).
pub const MESSAGES_MAX: u32 = 1024;

/// Size of the pieces that a chunk is retried in when it touches memory that cannot be read.
pub const PAGE_BYTES: u64 = 4096;

/// Steps of the walker for one operation: each vector ends one piece, each chunk ends one, and after a fault each page.
pub const STEPS_MAX: u32 = (VECTORS_MAX
    + 2 * (PROXY_OP_MAX_BYTES / PAGE_BYTES)
    + PROXY_OP_MAX_BYTES / CHUNK_MAX_BYTES as u64) as u32
    + 16;

/// Bytes of the next piece: not over a chunk, nor over the segment, nor over what the operation has left; and only to
/// the end of the page while `fault_until`, the end of a piece that could not be read, is ahead.
#[inline(always)]
pub const fn piece(address: u64, segment_left: u64, op_left: u64, fault_until: u64) -> u64 {
    let mut len = CHUNK_MAX_BYTES as u64;
    if address < fault_until {
        len = PAGE_BYTES - (address & (PAGE_BYTES - 1));
    }
    if len > segment_left {
        len = segment_left;
    }
    if len > op_left {
        len = op_left;
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_never_exceeds_a_chunk_the_segment_or_the_operation() {
        assert_eq!(piece(0x1000, 1 << 30, 1 << 30, 0), CHUNK_MAX_BYTES as u64);
        assert_eq!(piece(0x1000, 10, 1 << 30, 0), 10);
        assert_eq!(piece(0x1000, 10, 7, 0), 7);
        assert_eq!(piece(0x1000, 0, 7, 0), 0);
    }

    #[test]
    fn after_a_fault_pieces_end_at_pages_until_the_faulting_piece_is_passed() {
        assert_eq!(piece(0x1ff0, 0x3000, 0x3000, 0x4000), 0x10);
        assert_eq!(piece(0x2000, 0x3000, 0x3000, 0x4000), 0x1000);
        assert_eq!(piece(0x4000, 0x3000, 0x3000, 0x4000), 0x3000);
    }

    #[test]
    fn a_proxy_is_captured_in_full_and_an_untrusted_writer_least() {
        assert_eq!(
            op_limit(tag::TREE | tag::PROXY, direction::WRITE),
            PROXY_OP_MAX_BYTES
        );
        assert_eq!(op_limit(tag::TREE, direction::WRITE), WRITER_OP_MAX_BYTES);
        assert_eq!(op_limit(tag::PEER, direction::READ), READER_OP_MAX_BYTES);
    }

    #[test]
    fn every_transfer_call_has_the_direction_of_its_name() {
        for read in [
            nr::READ,
            nr::READV,
            nr::RECVFROM,
            nr::RECVMSG,
            nr::RECVMMSG,
            nr::PREADV,
            nr::PREADV2,
        ] {
            assert_eq!(classify(read), Class::Transfer);
            assert_eq!(direction_of(read), direction::READ);
        }
        for write in [
            nr::WRITE,
            nr::WRITEV,
            nr::SENDTO,
            nr::SENDMSG,
            nr::SENDMMSG,
            nr::PWRITEV,
            nr::PWRITEV2,
            nr::PWRITE64,
        ] {
            assert_eq!(classify(write), Class::Transfer);
            assert_eq!(direction_of(write), direction::WRITE);
        }
    }

    #[test]
    fn each_program_looks_at_its_calls_and_at_no_other() {
        for number in (0..2 * NUMBERS).chain([u64::MAX, 1 << 32, 0x4000_0000]) {
            let class = classify(number);
            let both = matches!(class, Class::Transfer | Class::Splice);
            let enter = both || matches!(class, Class::Exec | Class::Unseen | Class::Close);
            let exit = both || matches!(class, Class::End | Class::OwnEnd);
            assert_eq!(is_in(&AT_ENTER, number), enter, "{number}");
            assert_eq!(is_in(&AT_EXIT, number), exit, "{number}");
        }
    }

    #[test]
    fn the_walker_has_steps_enough_for_the_largest_operation() {
        let chunks = PROXY_OP_MAX_BYTES / CHUNK_MAX_BYTES as u64;
        assert!(u64::from(STEPS_MAX) > VECTORS_MAX + chunks);
    }
}
