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
    pub const MMAP: u64 = 9;
    pub const PWRITE64: u64 = 18;
    pub const READV: u64 = 19;
    pub const WRITEV: u64 = 20;
    pub const PIPE: u64 = 22;
    pub const SHMAT: u64 = 30;
    pub const SENDFILE: u64 = 40;
    pub const SOCKET: u64 = 41;
    pub const CONNECT: u64 = 42;
    pub const ACCEPT: u64 = 43;
    pub const SENDTO: u64 = 44;
    pub const RECVFROM: u64 = 45;
    pub const SENDMSG: u64 = 46;
    pub const RECVMSG: u64 = 47;
    pub const BIND: u64 = 49;
    pub const LISTEN: u64 = 50;
    pub const SOCKETPAIR: u64 = 53;
    pub const CLONE: u64 = 56;
    pub const EXECVE: u64 = 59;
    pub const KILL: u64 = 62;
    pub const MSGGET: u64 = 68;
    pub const MSGSND: u64 = 69;
    pub const MSGRCV: u64 = 70;
    pub const TRUNCATE: u64 = 76;
    pub const FTRUNCATE: u64 = 77;
    pub const RENAME: u64 = 82;
    pub const CREAT: u64 = 85;
    pub const UNLINK: u64 = 87;
    pub const PTRACE: u64 = 101;
    pub const SETUID: u64 = 105;
    pub const SETREUID: u64 = 113;
    pub const SETRESUID: u64 = 117;
    pub const CAPSET: u64 = 126;
    pub const RT_SIGQUEUEINFO: u64 = 129;
    pub const TKILL: u64 = 200;
    pub const IO_SUBMIT: u64 = 209;
    pub const TGKILL: u64 = 234;
    pub const MQ_OPEN: u64 = 240;
    pub const OPENAT: u64 = 257;
    pub const UNLINKAT: u64 = 263;
    pub const RENAMEAT: u64 = 264;
    pub const UNSHARE: u64 = 272;
    pub const SPLICE: u64 = 275;
    pub const TEE: u64 = 276;
    pub const VMSPLICE: u64 = 278;
    pub const ACCEPT4: u64 = 288;
    pub const PIPE2: u64 = 293;
    pub const PREADV: u64 = 295;
    pub const PWRITEV: u64 = 296;
    pub const RT_TGSIGQUEUEINFO: u64 = 297;
    pub const PERF_EVENT_OPEN: u64 = 298;
    pub const RECVMMSG: u64 = 299;
    pub const PRLIMIT64: u64 = 302;
    pub const OPEN_BY_HANDLE_AT: u64 = 304;
    pub const SENDMMSG: u64 = 307;
    pub const PROCESS_VM_READV: u64 = 310;
    pub const PROCESS_VM_WRITEV: u64 = 311;
    pub const RENAMEAT2: u64 = 316;
    pub const SECCOMP: u64 = 317;
    pub const MEMFD_CREATE: u64 = 319;
    pub const BPF: u64 = 321;
    pub const EXECVEAT: u64 = 322;
    pub const PREADV2: u64 = 327;
    pub const PWRITEV2: u64 = 328;
    pub const PIDFD_SEND_SIGNAL: u64 = 424;
    pub const IO_URING_SETUP: u64 = 425;
    pub const IO_URING_ENTER: u64 = 426;
    pub const CLONE3: u64 = 435;
    pub const OPENAT2: u64 = 437;
    pub const PIDFD_GETFD: u64 = 438;
    pub const PROCESS_MADVISE: u64 = 440;
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
    /// Submits control blocks of legacy AIO.
    Aio,
    /// Submits work that is not decoded.
    Unseen,
    /// Gives up a descriptor.
    Close,
    /// Can get round the witness; looked at for watched tasks.
    Attempt,
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
        nr::IO_SUBMIT => Class::Aio,
        nr::IO_URING_SETUP | nr::IO_URING_ENTER => Class::Unseen,
        nr::PTRACE
        | nr::PROCESS_VM_READV
        | nr::PROCESS_VM_WRITEV
        | nr::PROCESS_MADVISE
        | nr::KILL
        | nr::TKILL
        | nr::TGKILL
        | nr::RT_SIGQUEUEINFO
        | nr::RT_TGSIGQUEUEINFO
        | nr::PIDFD_SEND_SIGNAL
        | nr::PRLIMIT64
        | nr::MMAP
        | nr::SHMAT
        | nr::SETUID
        | nr::SETREUID
        | nr::SETRESUID
        | nr::CAPSET
        | nr::UNSHARE
        | nr::CLONE
        | nr::CLONE3
        | nr::SECCOMP
        | nr::BPF
        | nr::PERF_EVENT_OPEN
        | nr::TRUNCATE
        | nr::FTRUNCATE
        | nr::UNLINK
        | nr::UNLINKAT
        | nr::RENAME
        | nr::RENAMEAT
        | nr::RENAMEAT2
        | nr::SOCKET
        | nr::BIND
        | nr::MSGGET
        | nr::MSGSND
        | nr::MSGRCV
        | nr::MQ_OPEN
        | nr::MEMFD_CREATE => Class::Attempt,
        _ => Class::Other,
    }
}

/// Whether the state before an attempt must be known to tell what it did: who the target was, which rights there were, where
/// files lay.
#[inline(always)]
pub const fn is_noted(number: u64) -> bool {
    match number {
        nr::MMAP
        | nr::SHMAT
        | nr::UNSHARE
        | nr::CLONE
        | nr::CLONE3
        | nr::SECCOMP
        | nr::BPF
        | nr::PERF_EVENT_OPEN
        | nr::SOCKET
        | nr::BIND
        | nr::MSGGET
        | nr::MSGSND
        | nr::MSGRCV
        | nr::MQ_OPEN
        | nr::MEMFD_CREATE => false,
        _ => matches!(classify(number), Class::Attempt),
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
    if number >= NUMBERS {
        return false;
    }
    // The comparison above may be of another copy of the number, of which the verifier of Linux 6.1 knows nothing then: the index
    // gets its bound in itself, and the compiler must not know that it has one.
    let word = core::hint::black_box(number / 64) & (NUMBERS / 64 - 1);
    numbers[word as usize] >> (number % 64) & 1 != 0
}

const _: () = assert!((NUMBERS / 64).is_power_of_two());

const fn numbers(enter: bool) -> Numbers {
    let mut set = [0; (NUMBERS / 64) as usize];
    let mut number = 0;
    while number < NUMBERS {
        let wanted = match classify(number) {
            Class::Other => false,
            Class::Transfer | Class::Splice | Class::Aio => true,
            Class::End | Class::OwnEnd => !enter,
            Class::Exec | Class::Unseen | Class::Close => enter,
            Class::Attempt => !enter || is_noted(number),
        };
        if wanted {
            set[(number / 64) as usize] |= 1 << (number % 64);
        }
        number += 1;
    }
    set
}

/// `socketcall` of the 32-bit ABI: which call it is and where its arguments are is in its own.
pub const COMPAT_SOCKETCALL: u64 = 102;

/// [`AT_EXIT`] by the numbers of the 32-bit ABI.
pub static AT_EXIT_COMPAT: Numbers = compat_numbers();

const fn compat_numbers() -> Numbers {
    let mut set = [0; (NUMBERS / 64) as usize];
    let mut number = 0;
    while number < NUMBERS {
        let wanted = number == COMPAT_SOCKETCALL
            || match classify(compat_number(number)) {
                Class::Other
                | Class::Exec
                | Class::Unseen
                | Class::Aio
                | Class::Attempt
                | Class::Close => false,
                Class::Transfer | Class::Splice | Class::End | Class::OwnEnd => true,
            };
        if wanted {
            set[(number / 64) as usize] |= 1 << (number % 64);
        }
        number += 1;
    }
    set
}

/// A number that no call has.
pub const NO_CALL: u64 = NUMBERS;

/// The 64-bit number of a call of the 32-bit ABI (`arch/x86/entry/syscalls/syscall_32.tbl`), for calls that matter and take the same
/// arguments up to those that are looked at; else [`NO_CALL`].
pub const fn compat_number(number: u64) -> u64 {
    match number {
        3 => nr::READ,
        4 => nr::WRITE,
        5 => nr::OPEN,
        6 => nr::CLOSE,
        8 => nr::CREAT,
        11 => nr::EXECVE,
        42 => nr::PIPE,
        145 => nr::READV,
        146 => nr::WRITEV,
        181 => nr::PWRITE64,
        187 | 239 => nr::SENDFILE,
        248 => nr::IO_SUBMIT,
        295 => nr::OPENAT,
        313 => nr::SPLICE,
        315 => nr::TEE,
        316 => nr::VMSPLICE,
        331 => nr::PIPE2,
        333 => nr::PREADV,
        334 => nr::PWRITEV,
        337 | 417 => nr::RECVMMSG,
        342 => nr::OPEN_BY_HANDLE_AT,
        345 => nr::SENDMMSG,
        358 => nr::EXECVEAT,
        360 => nr::SOCKETPAIR,
        362 => nr::CONNECT,
        363 => nr::LISTEN,
        364 => nr::ACCEPT4,
        369 => nr::SENDTO,
        370 => nr::SENDMSG,
        371 => nr::RECVFROM,
        372 => nr::RECVMSG,
        378 => nr::PREADV2,
        379 => nr::PWRITEV2,
        nr::IO_URING_SETUP | nr::IO_URING_ENTER | nr::OPENAT2 | nr::PIDFD_GETFD => number,
        _ => NO_CALL,
    }
}

/// [`compat_number`] as a table. The verifier follows each constant of a `match` through all that comes after; what it loads from
/// a table it does not know.
pub static COMPAT_NUMBERS: [u16; NUMBERS as usize] = {
    let mut table = [0; NUMBERS as usize];
    let mut number = 0;
    while number < NUMBERS {
        table[number as usize] = compat_number(number) as u16;
        number += 1;
    }
    table
};

/// Calls of `socketcall` are below. A power of two, as [`NUMBERS`].
pub const SOCKETCALLS: u64 = 32;

/// [`socketcall_number`] as a table.
pub static SOCKETCALL_NUMBERS: [u16; SOCKETCALLS as usize] = {
    let mut table = [0; SOCKETCALLS as usize];
    let mut call = 0;
    while call < SOCKETCALLS {
        table[call as usize] = socketcall_number(call) as u16;
        call += 1;
    }
    table
};

/// The 64-bit number of what `socketcall` is asked to do (`include/uapi/linux/net.h`); else [`NO_CALL`].
pub const fn socketcall_number(call: u64) -> u64 {
    match call {
        3 => nr::CONNECT,
        4 => nr::LISTEN,
        5 => nr::ACCEPT,
        8 => nr::SOCKETPAIR,
        9 | 11 => nr::SENDTO,
        10 | 12 => nr::RECVFROM,
        16 => nr::SENDMSG,
        17 => nr::RECVMSG,
        18 => nr::ACCEPT4,
        19 => nr::RECVMMSG,
        20 => nr::SENDMMSG,
        _ => NO_CALL,
    }
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

/// Opcodes of `io_uring` (`include/uapi/linux/io_uring.h`).
pub mod op {
    #![expect(missing_docs, reason = "each name is the opcode's")]
    pub const READV: u8 = 1;
    pub const WRITEV: u8 = 2;
    pub const READ_FIXED: u8 = 4;
    pub const WRITE_FIXED: u8 = 5;
    pub const SENDMSG: u8 = 9;
    pub const RECVMSG: u8 = 10;
    pub const ACCEPT: u8 = 13;
    pub const CONNECT: u8 = 16;
    pub const OPENAT: u8 = 18;
    pub const READ: u8 = 22;
    pub const WRITE: u8 = 23;
    pub const SEND: u8 = 26;
    pub const RECV: u8 = 27;
    pub const OPENAT2: u8 = 28;
    pub const SPLICE: u8 = 30;
    pub const TEE: u8 = 33;
    pub const RENAMEAT: u8 = 35;
    pub const UNLINKAT: u8 = 36;
    pub const MSG_RING: u8 = 40;
    pub const SOCKET: u8 = 45;
    pub const URING_CMD: u8 = 46;
    pub const SEND_ZC: u8 = 47;
    pub const SENDMSG_ZC: u8 = 48;
    pub const READ_MULTISHOT: u8 = 49;
    pub const FIXED_FD_INSTALL: u8 = 54;
    pub const FTRUNCATE: u8 = 55;
    pub const BIND: u8 = 56;
    pub const LISTEN: u8 = 57;
    pub const RECV_ZC: u8 = 58;
    pub const READV_FIXED: u8 = 60;
    pub const WRITEV_FIXED: u8 = 61;
    pub const PIPE: u8 = 62;
}

/// Whether a request that moves no bytes can get round the witness: it does what a system call of [`Class::Attempt`] or [`Class::End`] does, or is
/// of a kind that came after this was written.
#[inline(always)]
pub const fn is_attempt(opcode: u8) -> bool {
    matches!(
        opcode,
        op::ACCEPT
            | op::CONNECT
            | op::OPENAT
            | op::OPENAT2
            | op::RENAMEAT
            | op::UNLINKAT
            | op::MSG_RING
            | op::SOCKET
            | op::URING_CMD
            | op::FIXED_FD_INSTALL
            | op::FTRUNCATE
            | op::BIND
            | op::LISTEN
    ) || opcode >= op::PIPE
}

/// Whether a request may cut, remove or rename a file.
#[inline(always)]
pub const fn changes_files(opcode: u8) -> bool {
    matches!(opcode, op::RENAMEAT | op::UNLINKAT | op::FTRUNCATE)
}

/// Where an `io_uring` request says which bytes it moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Form {
    /// It moves none.
    None,
    /// `struct io_rw`: address and length.
    Buffer,
    /// `struct io_rw`: address and number of vectors.
    Vectors,
    /// `struct io_sr_msg`: address and length, both moved on by a part that was sent or received.
    Socket,
    /// `struct io_sr_msg`: address of a message.
    Message,
    /// `struct io_splice`: two files.
    Splice,
    /// Nowhere: bytes of the receiver's memory that the network card wrote to.
    Elsewhere,
}

/// Sorts an opcode.
#[inline(always)]
pub const fn form_of(opcode: u8) -> Form {
    match opcode {
        op::READ | op::WRITE | op::READ_FIXED | op::WRITE_FIXED | op::READ_MULTISHOT => {
            Form::Buffer
        }
        op::READV | op::WRITEV | op::READV_FIXED | op::WRITEV_FIXED => Form::Vectors,
        op::SEND | op::RECV | op::SEND_ZC => Form::Socket,
        op::SENDMSG | op::RECVMSG | op::SENDMSG_ZC => Form::Message,
        op::SPLICE | op::TEE => Form::Splice,
        op::RECV_ZC => Form::Elsewhere,
        _ => Form::None,
    }
}

/// Direction of a request that moves bytes.
#[inline(always)]
pub const fn direction_of_request(opcode: u8) -> u8 {
    match opcode {
        op::READ
        | op::READV
        | op::READ_FIXED
        | op::READV_FIXED
        | op::READ_MULTISHOT
        | op::RECV
        | op::RECVMSG
        | op::RECV_ZC => direction::READ,
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

/// Vectors of pages followed in one operation: as many as the largest captured operation has pages, each in a vector of its own, and one that it
/// begins in.
pub const VECTOR_PAGES_MAX: u64 = PROXY_OP_MAX_BYTES / PAGE_BYTES + 1;

/// Messages followed in one `recvmmsg` or `sendmmsg` (the kernel caps them at `UIO_MAXIOV`).
pub const MESSAGES_MAX: u32 = 1024;

/// Control blocks followed in one `io_submit`; further ones are counted as unseen.
pub const AIO_BLOCKS_MAX: u32 = 1024;

/// Entries of a completion ring looked at for the result of a control block. Stops a ring full of other results from taking the time
/// of the processor.
pub const AIO_EVENTS_BACK_MAX: u32 = 64;

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
            let both =
                matches!(class, Class::Transfer | Class::Splice | Class::Aio) || is_noted(number);
            let enter = both || matches!(class, Class::Exec | Class::Unseen | Class::Close);
            let exit = both || matches!(class, Class::End | Class::OwnEnd | Class::Attempt);
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
