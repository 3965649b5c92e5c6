//! A ring of `io_uring` with raw system calls: enough to submit one operation and wait for it.

use std::ptr::null_mut;

/// `IORING_OP_READ_FIXED`, `IORING_OP_WRITE_FIXED`, `IORING_OP_READ`, `IORING_OP_WRITE` (`include/uapi/linux/io_uring.h`).
pub(crate) const READ_FIXED: u8 = 4;
pub(crate) const WRITE_FIXED: u8 = 5;
pub(crate) const READ: u8 = 22;
pub(crate) const WRITE: u8 = 23;
/// `IOSQE_ASYNC`: have a worker do it.
pub(crate) const BY_WORKER: u8 = 1 << 4;

const ENTER_GETEVENTS: libc::c_uint = 1;
const REGISTER_BUFFERS: libc::c_uint = 0;
const OFFSET_SQES: libc::off_t = 0x1000_0000;
const RING_BYTES: usize = 1 << 16;

/// A ring with room for one operation.
pub(crate) struct Uring {
    fd: i32,
    rings: *mut u64,
    entries: *mut u64,
    parameters: [u32; 30],
}

impl Uring {
    /// `None` where the kernel does not permit it.
    pub(crate) fn new() -> Option<Self> {
        let mut parameters = [0_u32; 30];
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        let map = |offset| {
            let place = unsafe {
                libc::mmap(
                    null_mut(),
                    RING_BYTES,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_POPULATE,
                    fd,
                    offset,
                )
            };
            // The kernel maps no more than there is.
            (place != libc::MAP_FAILED).then_some(place.cast::<u64>())
        };
        let map = |offset| map(offset).or_else(|| smaller(fd, offset));
        Some(Self {
            fd,
            rings: map(0)?,
            entries: map(OFFSET_SQES)?,
            parameters,
        })
    }

    /// Registers the one buffer of the fixed operations.
    pub(crate) fn register(&self, buffer: &mut [u8]) {
        let vector = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        let done = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.fd,
                REGISTER_BUFFERS,
                &raw const vector,
                1,
            )
        };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    /// Submits one operation and waits; what it returned.
    pub(crate) fn run(&self, opcode: u8, flags: u8, fd: i32, address: *mut u8, len: usize) -> i32 {
        // Words 10, 11, 16: where head, tail and index array of the submissions lie; 20, 25: head and entries of the completions.
        let word = |index: usize| unsafe {
            self.rings
                .byte_add(self.parameters[index] as usize)
                .cast::<u32>()
        };
        unsafe {
            let entry = self.entries;
            entry.write_bytes(0, 8);
            entry.cast::<u8>().write(opcode);
            entry.cast::<u8>().add(1).write(flags);
            entry.byte_add(4).cast::<i32>().write(fd);
            entry.add(2).write(address as u64);
            entry
                .byte_add(24)
                .cast::<u32>()
                .write(u32::try_from(len).unwrap());
            let tail = word(11).read_volatile();
            word(16).write_volatile(0);
            word(11).write_volatile(tail.wrapping_add(1));
            let submitted = libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd,
                1,
                1,
                ENTER_GETEVENTS,
                0,
                0,
            );
            assert_eq!(submitted, 1, "{}", std::io::Error::last_os_error());
            let head = word(20).read_volatile();
            // Two entries for a ring of one.
            let result = word(25).add(4 * (head & 1) as usize + 2).read_volatile();
            word(20).write_volatile(head.wrapping_add(1));
            result.cast_signed()
        }
    }
}

/// One page: what a small ring has.
fn smaller(fd: i32, offset: libc::off_t) -> Option<*mut u64> {
    let place = unsafe {
        libc::mmap(
            null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            fd,
            offset,
        )
    };
    (place != libc::MAP_FAILED).then_some(place.cast())
}
