//! From a descriptor to a channel: `fd → struct file → inode → pipe, FIFO, unix or TCP socket, terminal or regular file`.
//!
//! Every pointer is read with `bpf_probe_read_kernel`: objects that vanish meanwhile give a failed or stale read, never a
//! fault. The look-up holds no reference, so another thread can swap the descriptor between this look-up and the
//! kernel's own; comparing `sys_enter` with `sys_exit` shows all but a swap there and back, which the channel's byte
//! balance shows.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    bindings::task_struct,
    helpers::generated::{bpf_get_current_task_btf, bpf_probe_read_kernel},
};
use countersign_common::{channel_kind, counter};

use crate::{
    emit::count,
    inet::socket_inode,
    offsets::{kernel, off},
    scope::Held,
};

const S_IFMT: u16 = 0o170_000;
const S_IFIFO: u16 = 0o010_000;
const S_IFREG: u16 = 0o100_000;
const S_IFSOCK: u16 = 0o140_000;
/// `PIPEFS_MAGIC` (`include/uapi/linux/magic.h`): the super block of anonymous pipes.
const PIPEFS_MAGIC: u64 = 0x5049_5045;
const S_IFCHR: u16 = 0o020_000;
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const SOCK_STREAM: u64 = 1;
const SOCK_DGRAM: u64 = 2;
const SOCK_SEQPACKET: u64 = 5;
const IPPROTO_TCP: u16 = 6;
/// `/dev/tty` and `/dev/ptmx`, as `dev_t` of the kernel; and the majors of `/dev/pts/N` (`Documentation/admin-guide/devices.txt`).
const DEV_TTY: u32 = 5 << 20;
const DEV_PTMX: u32 = 5 << 20 | 2;
const PTS_MAJORS: core::ops::RangeInclusive<u32> = 136..=143;
/// In the inode number of a terminal: it is the master's side.
const MASTER: u64 = 1 << 32;

/// `struct file` behind a descriptor of the current task; 0 for none.
#[inline(always)]
pub fn file_of(task: *mut task_struct, fd: u64) -> u64 {
    // The kernel takes descriptors as `unsigned int` or `int`: the upper half of the register means nothing.
    let fd = fd & 0xffff_ffff;
    let (array, limit) = table_of(task);
    if fd >= limit {
        return 0;
    }
    kernel::<u64>(array, fd * 8).unwrap_or(0)
}

/// Where the descriptors of the current task lie, and how many there is room for.
#[inline(always)]
pub fn table_of(task: *mut task_struct) -> (u64, u64) {
    // SAFETY: typed loads, which the verifier follows through `struct task_struct`, `files_struct` and `fdtable`: a fifth of the
    // price of a helper call each. The task's own tables outlive its system call; a null on the way reads as 0.
    unsafe {
        let files = member::<*const u8>(task.cast(), off!(task_files));
        let table = member::<*const u8>(files, off!(files_fdt));
        (
            member::<u64>(table, off!(fdtable_fd)),
            u64::from(member::<u32>(table, off!(fdtable_max_fds))),
        )
    }
}

/// A member of a kernel structure through a typed pointer.
///
/// # Safety
/// `base` is a typed pointer in the verifier's eyes, and the offset is that of such a member.
#[inline(always)]
unsafe fn member<T>(base: *const u8, offset: u64) -> T {
    // SAFETY: the caller's.
    unsafe { base.add(offset as usize).cast::<T>().read() }
}

/// [`resolve`]: regular files count.
pub const FILES: u64 = 1;
/// [`resolve`]: device and kind of what lies in a file system are found out as well. Without it [`enrol_operation`](crate::channel::enrol_operation) does so, for
/// channels that it does not know.
pub const WHOLE: u64 = 2;

/// Fills `held` with what `file` is. The kind stays 0 for what is not watched.
#[inline(always)]
pub fn resolve(held: &mut Held, file: u64, how: u64) {
    // SAFETY: a place for the answer.
    unsafe { resolve_file(held, file, how) };
}

/// [`resolve`], verified once.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn resolve_file(held: *mut Held, file: u64, how: u64) -> u64 {
    if held.is_null() {
        return 0;
    }
    // SAFETY: the caller's.
    let held = unsafe { &mut *held };
    clear(held);
    held.file = file;
    if file != 0 {
        let _ = try_resolve(held, file, how & FILES != 0);
        if how & WHOLE != 0 {
            let _ = identify(held);
        }
    }
    0
}

/// Zeroes in words: for a plain assignment LLVM calls a `memset` that goes byte by byte.
#[inline(always)]
fn clear(held: &mut Held) {
    let words = core::ptr::from_mut(held).cast::<u64>();
    let mut at = 0;
    while at < size_of::<Held>() / size_of::<u64>() {
        // SAFETY: within the structure, which consists of whole words.
        unsafe { words.add(at).write_volatile(0) };
        at += 1;
    }
}

/// Bytes of a structure that are read at once: one call of a helper instead of one for each member.
const WINDOW_BYTES: usize = 64;

/// Room for a part of a kernel structure.
pub type Room = MaybeUninit<[u64; WINDOW_BYTES / 8]>;

/// A part of a kernel structure, in room that the caller owns: two structures that are needed one after the other share it, for
/// all frames of a program share 512 bytes of stack.
pub struct Window<'a> {
    base: u64,
    start: u64,
    bytes: &'a Room,
}

impl<'a> Window<'a> {
    /// Reads the part from `start` on.
    #[inline(always)]
    pub fn read(room: &'a mut Room, base: u64, start: u64) -> Option<Self> {
        let start = start & !7;
        // SAFETY: the room's address and size; the helper checks the other address, and writes zeroes where it fails.
        let failed = unsafe {
            bpf_probe_read_kernel(
                room.as_mut_ptr().cast(),
                WINDOW_BYTES as u32,
                (base + start) as *const c_void,
            )
        };
        if failed != 0 {
            count(counter::KERNEL_READ_FAILED, 1);
            return None;
        }
        Some(Self {
            base,
            start,
            bytes: room,
        })
    }

    /// Whether a member lies inside.
    #[inline(always)]
    pub fn holds<T>(&self, offset: u64) -> bool {
        offset.wrapping_sub(self.start) <= (WINDOW_BYTES - size_of::<T>()) as u64
    }

    /// A member; read from the kernel where it lies outside. Offsets are constants to the verifier, which removes the way
    /// that is not taken.
    #[inline(always)]
    pub fn member<T>(&self, offset: u64) -> Option<T> {
        let at = offset.wrapping_sub(self.start);
        if at <= (WINDOW_BYTES - size_of::<T>()) as u64 {
            let bytes = self.bytes.as_ptr().cast::<u8>();
            // SAFETY: inside of the window, which was filled; members are aligned in the kernel, and so is the window.
            Some(unsafe { bytes.add(at as usize).cast::<T>().read_volatile() })
        } else {
            kernel(self.base, offset)
        }
    }
}

#[inline(always)]
fn min(a: u64, b: u64) -> u64 {
    if a < b { a } else { b }
}

#[inline(always)]
fn try_resolve(held: &mut Held, file: u64, with_files: bool) -> Option<()> {
    // One after the other in the same room.
    let mut room = Room::uninit();
    let window = Window::read(&mut room, file, min(off!(file_inode), off!(file_mode)))?;
    let address: u64 = window.member(off!(file_inode))?;
    let file_mode = u64::from(window.member::<u32>(off!(file_mode))?);
    let private_is_near = window.holds::<u64>(off!(file_private_data));
    let mut private: u64 = 0;
    if private_is_near {
        private = window.member(off!(file_private_data))?;
    }
    let inode = Window::read(&mut room, address, off!(inode_sb))?;
    // The mode is the first member, the number follows the super block: two lines of the cache.
    let mode: u16 = kernel(address, off!(inode_mode))?;
    let format = mode & S_IFMT;
    if format == S_IFIFO || (format == S_IFREG && with_files) {
        held.super_block = inode.member(off!(inode_sb))?;
        held.channel.object = address;
        held.channel.inode = inode.member(off!(inode_ino))?;
        held.mode = file_mode;
        // A pipe until its super block says otherwise.
        held.channel.kind = if format == S_IFIFO {
            channel_kind::PIPE
        } else {
            channel_kind::FILE
        };
    } else if format == S_IFSOCK {
        held.channel.inode = inode.member(off!(inode_ino))?;
        if !private_is_near {
            private = kernel(file, off!(file_private_data))?;
        }
        let start = min(off!(socket_type), off!(socket_sk));
        let socket = Window::read(&mut room, private, start)?;
        let of_type: u16 = socket.member(off!(socket_type))?;
        let sock: u64 = socket.member(off!(socket_sk))?;
        held.channel.object = sock;
        held.mode = 3;
        let kind = socket_kind(sock, u64::from(of_type));
        held.channel.kind = kind as u8;
        if kind != 0 && kind != u64::from(channel_kind::TCP) {
            let peer = unix_peer(sock, kind);
            held.channel.peer_object = peer;
            // A peer that is closed, or that nobody has accepted yet, has no inode.
            held.channel.peer_inode = socket_inode(peer);
        }
    } else if format == S_IFCHR {
        let device: u32 = kernel(address, off!(inode_rdev))?;
        if device != DEV_TTY && device != DEV_PTMX && !PTS_MAJORS.contains(&(device >> 20)) {
            return None;
        }
        if !private_is_near {
            private = kernel(file, off!(file_private_data))?;
        }
        let tty: u64 = kernel(private, off!(tty_file_tty))?;
        let link = terminal_link(tty);
        if link != 0 {
            let number = terminal_number(tty);
            // The inodes of masters are all the same one, so the terminal's number stands for it.
            let of_master = if device == DEV_PTMX { MASTER } else { 0 };
            held.channel.object = tty;
            held.channel.peer_object = link;
            held.channel.inode = number | of_master;
            held.channel.peer_inode = number | (MASTER ^ of_master);
            held.channel.dev = DEV_TTY;
            held.channel.kind = channel_kind::TTY;
            held.mode = file_mode;
        }
    }
    Some(())
}

// Functions with a C name are global to the verifier: it looks at each once, and not again in every state of every caller.

/// The kind of a socket; 0 for one that is not watched.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn socket_kind(sock: u64, of_type: u64) -> u64 {
    if sock == 0 {
        return 0;
    }
    let Some(family) = kernel::<u16>(sock, off!(sock_family)) else {
        return 0;
    };
    let kind = if family == AF_UNIX {
        match of_type {
            SOCK_STREAM => channel_kind::UNIX_STREAM,
            SOCK_DGRAM => channel_kind::UNIX_DGRAM,
            SOCK_SEQPACKET => channel_kind::UNIX_SEQPACKET,
            _ => 0,
        }
    } else if (family == AF_INET || family == AF_INET6)
        && of_type == SOCK_STREAM
        && kernel::<u16>(sock, off!(sock_protocol)) == Some(IPPROTO_TCP)
    {
        channel_kind::TCP
    } else {
        0
    };
    u64::from(kind)
}

/// The socket that a unix socket is connected to; 0 for none. A datagram socket can be connected to one that takes messages from
/// anybody: that is no pair, and its end is a channel of its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn unix_peer(sock: u64, kind: u64) -> u64 {
    let peer = kernel::<u64>(sock, off!(unix_peer)).unwrap_or(0);
    if peer == 0 {
        return 0;
    }
    if kind == u64::from(channel_kind::UNIX_DGRAM)
        && kernel::<u64>(peer, off!(unix_peer)) != Some(sock)
    {
        return 0;
    }
    peer
}

/// The other side of a pseudo-terminal; 0 for a console, which has none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn terminal_link(tty: u64) -> u64 {
    if tty == 0 {
        return 0;
    }
    kernel(tty, off!(tty_link)).unwrap_or(0)
}

/// The number of a terminal, from 1.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn terminal_number(tty: u64) -> u64 {
    u64::from(kernel::<u32>(tty, off!(tty_index)).unwrap_or(0)) + 1
}

/// Whether a task of the tree that uses this terminal may make it a watched channel: the master's side is the tree's own
/// making. Of the slave's side the one that is the task's controlling terminal is left alone: as a rule somebody sits at it, and
/// what they type and see is none of the evidence's business. (What the tree makes itself is watched from the master's side on.)
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_own_terminal(tty: u64, inode: u64) -> u64 {
    if inode & MASTER != 0 {
        return 1;
    }
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task_btf() };
    let Some(signal) = kernel::<u64>(task as u64, off!(task_signal)) else {
        return 0;
    };
    u64::from(kernel::<u64>(signal, off!(signal_tty)) != Some(tty))
}

/// Reads device and kind from the super block.
#[inline(always)]
pub fn identify(held: &mut Held) -> Option<()> {
    let sb = held.super_block;
    if sb == 0 {
        return None;
    }
    held.channel.dev = kernel(sb, off!(sb_dev))?;
    if held.channel.kind == channel_kind::PIPE && kernel::<u64>(sb, off!(sb_magic))? != PIPEFS_MAGIC
    {
        held.channel.kind = channel_kind::FIFO;
    }
    Some(())
}
