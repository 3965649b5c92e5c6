//! A small `io_uring`, so that a test decides each bit of a submission.

use std::{
    ptr::null_mut,
    sync::atomic::{AtomicU32, Ordering},
};

/// Opcodes (`include/uapi/linux/io_uring.h`).
pub(crate) mod op {
    pub(crate) const READV: u8 = 1;
    pub(crate) const WRITEV: u8 = 2;
    pub(crate) const READ_FIXED: u8 = 4;
    pub(crate) const WRITE_FIXED: u8 = 5;
    pub(crate) const SENDMSG: u8 = 9;
    pub(crate) const RECVMSG: u8 = 10;
    pub(crate) const READ: u8 = 22;
    pub(crate) const WRITE: u8 = 23;
    pub(crate) const SEND: u8 = 26;
    pub(crate) const RECV: u8 = 27;
    pub(crate) const SPLICE: u8 = 30;
    pub(crate) const PROVIDE_BUFFERS: u8 = 31;
    pub(crate) const TEE: u8 = 33;
    pub(crate) const SEND_ZC: u8 = 47;
}

pub(crate) const SETUP_SQPOLL: u32 = 1 << 1;
pub(crate) const IOSQE_IO_LINK: u8 = 1 << 2;
pub(crate) const IOSQE_ASYNC: u8 = 1 << 4;
pub(crate) const IOSQE_BUFFER_SELECT: u8 = 1 << 5;
pub(crate) const IOSQE_CQE_SKIP_SUCCESS: u8 = 1 << 6;
pub(crate) const RECV_MULTISHOT: u16 = 1 << 1;

const ENTER_GETEVENTS: u32 = 1;
const ENTER_SQ_WAKEUP: u32 = 2;
const OFF_SQES: libc::off_t = 0x1000_0000;

/// `struct io_uring_sqe`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Submission {
    pub(crate) opcode: u8,
    pub(crate) flags: u8,
    pub(crate) ioprio: u16,
    pub(crate) fd: i32,
    pub(crate) off: u64,
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) op_flags: u32,
    pub(crate) user_data: u64,
    pub(crate) buf_index: u16,
    pub(crate) personality: u16,
    pub(crate) splice_fd_in: i32,
    pub(crate) rest: [u64; 2],
}

/// `struct io_uring_cqe`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Completion {
    pub(crate) user_data: u64,
    pub(crate) res: i32,
    pub(crate) flags: u32,
}

/// A ring of sixteen entries.
pub(crate) struct Ring {
    fd: i32,
    rings: *mut u64,
    entries: *mut Submission,
    parameters: [u32; 30],
    polls: bool,
}

impl Ring {
    pub(crate) fn new(flags: u32) -> Self {
        let mut parameters = [0_u32; 30];
        parameters[2] = flags;
        // A polling thread that goes to sleep after two seconds.
        parameters[4] = 2000;
        unsafe {
            let fd = libc::syscall(libc::SYS_io_uring_setup, 16, parameters.as_mut_ptr());
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            let fd = i32::try_from(fd).unwrap();
            let map = |len, offset| {
                let place = libc::mmap(
                    null_mut(),
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_POPULATE,
                    fd,
                    offset,
                );
                assert_ne!(place, libc::MAP_FAILED);
                place
            };
            Self {
                fd,
                rings: map(4096, 0).cast(),
                entries: map(4096, OFF_SQES).cast(),
                parameters,
                polls: flags & SETUP_SQPOLL != 0,
            }
        }
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        unsafe { &*self.rings.byte_add(offset as usize).cast::<AtomicU32>() }
    }

    /// Submits and waits for that many completions. The tables of offsets begin at byte 40 and 80 of the parameters.
    pub(crate) fn run(&mut self, submissions: &[Submission], wait: usize) -> Vec<Completion> {
        let tail = self.word(self.parameters[11]);
        let mask = self.word(self.parameters[12]).load(Ordering::Relaxed);
        for submission in submissions {
            let at = tail.load(Ordering::Relaxed);
            unsafe { self.entries.add((at & mask) as usize).write(*submission) };
            self.word(self.parameters[16] + 4 * (at & mask))
                .store(at & mask, Ordering::Relaxed);
            tail.store(at.wrapping_add(1), Ordering::Release);
        }
        let mut flags = ENTER_GETEVENTS;
        if self.polls {
            flags |= ENTER_SQ_WAKEUP;
        }
        let entered = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd,
                submissions.len(),
                wait,
                flags,
                0,
                0,
            )
        };
        assert!(entered >= 0, "{}", std::io::Error::last_os_error());
        self.reap()
    }

    /// Takes what has completed.
    pub(crate) fn reap(&mut self) -> Vec<Completion> {
        let head = self.word(self.parameters[20]);
        let tail = self.word(self.parameters[21]).load(Ordering::Acquire);
        let mask = self.word(self.parameters[22]).load(Ordering::Relaxed);
        let mut completions = Vec::new();
        let mut at = head.load(Ordering::Relaxed);
        while at != tail {
            let offset = self.parameters[25] as usize + 16 * (at & mask) as usize;
            completions.push(unsafe { self.rings.byte_add(offset).cast::<Completion>().read() });
            at = at.wrapping_add(1);
        }
        head.store(at, Ordering::Release);
        completions
    }

    /// Registers one buffer.
    pub(crate) fn register(&mut self, vector: &libc::iovec) {
        let done = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.fd,
                0,
                std::ptr::from_ref(vector),
                1,
            )
        };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}

pub(crate) fn submission(opcode: u8, fd: i32, bytes: &[u8]) -> Submission {
    Submission {
        opcode,
        fd,
        addr: bytes.as_ptr().addr() as u64,
        len: u32::try_from(bytes.len()).unwrap(),
        off: if opcode == op::READ || opcode == op::WRITE {
            u64::MAX
        } else {
            0
        },
        user_data: 7,
        ..Submission::default()
    }
}
