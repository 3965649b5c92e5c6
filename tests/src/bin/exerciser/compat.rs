//! The 32-bit ABI, entered from a 64-bit process by `int 0x80`: other numbers, 32-bit pointers and structures.
//!
//! Everything that such a call points to must lie below 4 GiB, so all goes through one low mapping.

use std::{
    ffi::CString,
    io,
    os::fd::RawFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    method::{Method, all},
    system::direct,
};

/// Room for structures, before the payload.
const STRUCTURES_BYTES: usize = 4096;
/// Room for the payload.
const PAYLOAD_BYTES: usize = 1 << 20;

/// Numbers of `arch/x86/entry/syscalls/syscall_32.tbl`.
mod number {
    pub(super) const READ: u64 = 3;
    pub(super) const WRITE: u64 = 4;
    pub(super) const SOCKETCALL: u64 = 102;
    pub(super) const READV: u64 = 145;
    pub(super) const WRITEV: u64 = 146;
    pub(super) const SENDMSG: u64 = 370;
    pub(super) const RECVMSG: u64 = 372;
}

/// `SYS_SEND` and `SYS_RECV` of `socketcall(2)`.
const SOCKETCALL_SEND: u64 = 9;
const SOCKETCALL_RECV: u64 = 10;

pub(crate) const SENDS: &[Method] = &[
    all("int80-write", |fd, b| simple(number::WRITE, fd, b)),
    all("int80-writev", |fd, b| vectored(number::WRITEV, fd, b)),
    all("int80-socketcall send", |fd, b| {
        socketcall(SOCKETCALL_SEND, fd, b)
    }),
    all("int80-sendmsg", |fd, b| message(number::SENDMSG, fd, b)),
];

pub(crate) const RECEIVES: &[Method] = &[
    all("int80-read", |fd, b| simple(number::READ, fd, b)),
    all("int80-readv", |fd, b| vectored(number::READV, fd, b)),
    all("int80-socketcall recv", |fd, b| {
        socketcall(SOCKETCALL_RECV, fd, b)
    }),
    all("int80-recvmsg", |fd, b| message(number::RECVMSG, fd, b)),
];

/// Memory below 4 GiB.
struct Low {
    base: *mut u8,
}

// The mapping belongs to whoever holds the lock.
unsafe impl Send for Low {}

static LOW: Mutex<Option<Low>> = Mutex::new(None);

/// Copies the buffer to low memory, calls, and copies it back.
fn with_low(
    bytes: &mut [u8],
    call: impl FnOnce(&Low, usize) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut guard: MutexGuard<'_, Option<Low>> = LOW.lock().unwrap_or_else(PoisonError::into_inner);
    if guard.is_none() {
        *guard = Some(map()?);
    }
    let Some(low) = guard.as_ref() else {
        return Err(io::Error::from_raw_os_error(libc::ENOMEM));
    };
    let len = bytes.len().min(PAYLOAD_BYTES);
    let payload = low.base.wrapping_add(STRUCTURES_BYTES);
    unsafe { payload.copy_from_nonoverlapping(bytes.as_ptr(), len) };
    let result = call(low, len);
    unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(payload, len) };
    result
}

fn map() -> io::Result<Low> {
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            STRUCTURES_BYTES + PAYLOAD_BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(Low { base: base.cast() })
}

impl Low {
    /// Address of the payload.
    fn payload(&self) -> u64 {
        self.base.addr() as u64 + STRUCTURES_BYTES as u64
    }

    /// Writes 32-bit words at an offset of the structures; their address.
    fn words(&self, offset: usize, words: &[u64]) -> u64 {
        let place = self.base.wrapping_add(offset);
        for (index, word) in words.iter().enumerate() {
            // All of them are sizes, small numbers or low addresses.
            let word = u32::try_from(*word).unwrap_or(u32::MAX);
            unsafe {
                place
                    .add(4 * index)
                    .copy_from_nonoverlapping(word.to_le_bytes().as_ptr(), 4);
            }
        }
        place.addr() as u64
    }
}

fn simple(number: u64, fd: RawFd, bytes: &mut [u8]) -> io::Result<usize> {
    with_low(bytes, |low, len| {
        int80(number, fd_word(fd), low.payload(), len as u64)
    })
}

/// Three vectors of eight bytes each.
fn three_vectors(low: &Low, len: usize) -> u64 {
    let (at, third) = (low.payload(), len as u64 / 3);
    low.words(
        0,
        &[
            at,
            third,
            at + third,
            third,
            at + 2 * third,
            len as u64 - 2 * third,
        ],
    )
}

fn vectored(number: u64, fd: RawFd, bytes: &mut [u8]) -> io::Result<usize> {
    with_low(bytes, |low, len| {
        int80(number, fd_word(fd), three_vectors(low, len), 3)
    })
}

fn socketcall(call: u64, fd: RawFd, bytes: &mut [u8]) -> io::Result<usize> {
    with_low(bytes, |low, len| {
        let arguments = low.words(0, &[fd_word(fd), low.payload(), len as u64, 0]);
        int80(number::SOCKETCALL, call, arguments, 0)
    })
}

/// A `struct compat_msghdr` without name and control.
fn message(number: u64, fd: RawFd, bytes: &mut [u8]) -> io::Result<usize> {
    with_low(bytes, |low, len| {
        let vectors = three_vectors(low, len);
        let header = low.words(64, &[0, 0, vectors, 3, 0, 0, 0]);
        int80(number, fd_word(fd), header, 0)
    })
}

fn fd_word(fd: RawFd) -> u64 {
    u64::from(fd.cast_unsigned())
}

fn int80(number: u64, first: u64, second: u64, third: u64) -> io::Result<usize> {
    let result: i64;
    // `rbx` cannot be named as an operand; old kernels clear r8 to r11.
    unsafe {
        std::arch::asm!(
            "xchg {first}, rbx",
            "int 0x80",
            "xchg {first}, rbx",
            first = inout(reg) first => _,
            inout("rax") number.cast_signed() => result,
            in("rcx") second,
            in("rdx") third,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    // The kernel answers in 32 bits.
    let [low, ..] = [result.cast_unsigned() & 0xffff_ffff];
    let result = u32::try_from(low).unwrap_or(0).cast_signed();
    direct(i64::from(result))
}

/// `fork` by the 32-bit ABI: 0 in the child.
pub(crate) fn fork() -> io::Result<usize> {
    const FORK: u64 = 2;
    int80(FORK, 0, 0, 0)
}

/// Where 32-bit programs are mapped.
const BASE: u32 = 0x0804_8000;
/// Length of the headers in front of the code.
const HEADERS: u32 = 52 + 32;
/// Length of the code, filled up.
const CODE: u32 = 34;
/// Address of what follows the code.
const DATA: u32 = BASE + HEADERS + CODE;

/// A static 32-bit program that moves `data.len()` bytes between itself and its descriptor 1 (`write`) or 0 (`read`) with
/// one call and exits with what that returned. Written byte by byte, since a 32-bit compiler is not to be had everywhere.
pub(crate) fn program(writes: bool, data: &[u8]) -> Vec<u8> {
    let (call, fd) = if writes { (4, 1) } else { (3, 0) };
    let len = u32::try_from(data.len()).unwrap_or(0);
    image([call, fd, DATA, len], data)
}

/// A static 32-bit program that executes another with these arguments and an empty environment.
pub(crate) fn executor(arguments: &[CString]) -> Vec<u8> {
    const EXECVE: u32 = 11;
    let mut texts = Vec::new();
    let mut pointers = Vec::new();
    for argument in arguments {
        pointers.push(DATA + u32::try_from(texts.len()).unwrap_or(0));
        texts.extend(argument.as_bytes_with_nul());
    }
    texts.resize(texts.len().next_multiple_of(4), 0);
    let vector = DATA + u32::try_from(texts.len()).unwrap_or(0);
    pointers.push(0);
    for pointer in pointers {
        texts.extend(pointer.to_le_bytes());
    }
    image([EXECVE, DATA, vector, 0], &texts)
}

/// A program of one system call (number and three arguments), which exits with what that returned, and its data.
fn image(call: [u32; 4], data: &[u8]) -> Vec<u8> {
    let size = HEADERS + CODE + u32::try_from(data.len()).unwrap_or(0);
    let mut image = Vec::new();
    image.extend(*b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2_u16, 3] {
        image.extend(half.to_le_bytes());
    }
    // Version, entry, program headers, section headers, flags.
    for word in [1, BASE + HEADERS, 52, 0, 0] {
        image.extend(word.to_le_bytes());
    }
    for half in [52_u16, 32, 1, 0, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    // PT_LOAD of the whole file: readable, writable, executable.
    for word in [1, 0, BASE, BASE, size, size, 7, 4096] {
        image.extend(word.to_le_bytes());
    }
    // mov eax, ebx, ecx, edx.
    for (opcode, value) in [0xb8, 0xbb, 0xb9, 0xba].into_iter().zip(call) {
        image.push(opcode);
        image.extend(value.to_le_bytes());
    }
    // int 0x80; ebx = eax; eax = 1 (exit); int 0x80; and room up to CODE.
    image.extend(*b"\xcd\x80\x89\xc3\xb8\x01\0\0\0\xcd\x80\xf4\xf4\xf4");
    image.extend(data);
    image
}
