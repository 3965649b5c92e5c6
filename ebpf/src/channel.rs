//! From a descriptor to a channel: `fd → struct file → inode → pipe, FIFO, unix stream socket or regular file`.
//!
//! Every pointer is read with `bpf_probe_read_kernel`: objects that vanish meanwhile give a failed or stale read, never a
//! fault. The look-up holds no reference, so another thread can swap the descriptor between this look-up and the
//! kernel's own; comparing `sys_enter` with `sys_exit` shows all but a swap there and back, which the channel's byte
//! balance shows.

use core::{ffi::c_void, ptr::read_volatile};

use aya_ebpf::{
    bindings::task_struct,
    helpers::generated::{bpf_ktime_get_boot_ns, bpf_loop},
};
use countersign_common::{
    ChannelId, Transfer, channel_kind, counter, direction,
    load::{ChannelKey, ChannelState, MOVED},
    tag,
};

use crate::{
    emit::{count, fetch_add},
    maps::{CHANNELS, PROXY_CHANNELS},
    offsets::{kernel, off},
    scope::Held,
};

const S_IFMT: u16 = 0o170_000;
const S_IFIFO: u16 = 0o010_000;
const S_IFREG: u16 = 0o100_000;
const S_IFSOCK: u16 = 0o140_000;
/// `PIPEFS_MAGIC` (`include/uapi/linux/magic.h`): the super block of anonymous pipes.
const PIPEFS_MAGIC: u64 = 0x5049_5045;
const AF_UNIX: u16 = 1;
const SOCK_STREAM: u16 = 1;
/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;
/// Looks at a channel that another CPU is moving. A move takes some ten nanoseconds.
const READY_SPINS: u32 = 1 << 14;

/// `struct file` behind a descriptor of the current task; 0 for none.
#[inline(always)]
pub fn file_of(task: *mut task_struct, fd: u64) -> u64 {
    // The kernel takes descriptors as `unsigned int` or `int`: the upper half of the register means nothing.
    let fd = fd & 0xffff_ffff;
    // SAFETY: typed loads, which the verifier follows through `struct task_struct`, `files_struct` and `fdtable`: a fifth of the
    // price of a helper call each. The task's own tables outlive its system call; a null on the way reads as 0.
    let (limit, array) = unsafe {
        let files = member::<*const u8>(task.cast(), off!(task_files));
        let table = member::<*const u8>(files, off!(files_fdt));
        (
            member::<u32>(table, off!(fdtable_max_fds)),
            member::<u64>(table, off!(fdtable_fd)),
        )
    };
    if fd >= u64::from(limit) {
        return 0;
    }
    kernel::<u64>(array, fd * 8).unwrap_or(0)
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
/// [`resolve`]: device and kind of what lies in a file system are found out as well. Without it [`enrol_operation`] does so, for
/// channels that it does not know.
pub const WHOLE: u64 = 2;

/// Fills `held` with what `file` is. The kind stays 0 for what is not watched.
#[inline(never)]
pub fn resolve(held: &mut Held, file: u64, how: u64) {
    clear(held);
    held.file = file;
    if file != 0 {
        let _ = try_resolve(held, file, how & FILES != 0);
        if how & WHOLE != 0 {
            let _ = identify(held);
        }
    }
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

/// A part of a kernel structure.
struct Window {
    base: u64,
    start: u64,
    bytes: [u64; WINDOW_BYTES / 8],
}

impl Window {
    /// Reads the part from `start` on.
    #[inline(always)]
    fn read(base: u64, start: u64) -> Option<Self> {
        let start = start & !7;
        Some(Self {
            base,
            start,
            bytes: kernel(base, start)?,
        })
    }

    /// A member; read from the kernel where it lies outside. Offsets are constants to the verifier, which removes the way
    /// that is not taken.
    #[inline(always)]
    fn member<T>(&self, offset: u64) -> Option<T> {
        let at = offset.wrapping_sub(self.start);
        if at <= (WINDOW_BYTES - size_of::<T>()) as u64 {
            let bytes = self.bytes.as_ptr().cast::<u8>();
            // SAFETY: inside of the window; members are aligned in the kernel, and so is the window.
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
    let file = Window::read(file, min(off!(file_inode), off!(file_mode)))?;
    let address: u64 = file.member(off!(file_inode))?;
    let inode = Window::read(address, off!(inode_sb))?;
    // The mode is the first member, the number follows the super block: two lines of the cache.
    let mode: u16 = kernel(address, off!(inode_mode))?;
    let format = mode & S_IFMT;
    if format == S_IFIFO || (format == S_IFREG && with_files) {
        held.super_block = inode.member(off!(inode_sb))?;
        held.channel.object = address;
        held.channel.inode = inode.member(off!(inode_ino))?;
        held.mode = u64::from(file.member::<u32>(off!(file_mode))?);
        // A pipe until its super block says otherwise.
        held.channel.kind = if format == S_IFIFO {
            channel_kind::PIPE
        } else {
            channel_kind::FILE
        };
    } else if format == S_IFSOCK {
        let socket: u64 = file.member(off!(file_private_data))?;
        let socket = Window::read(socket, min(off!(socket_type), off!(socket_sk)))?;
        if socket.member::<u16>(off!(socket_type))? != SOCK_STREAM {
            return None;
        }
        let sock: u64 = socket.member(off!(socket_sk))?;
        if sock == 0 || kernel::<u16>(sock, off!(sock_family))? != AF_UNIX {
            return None;
        }
        held.channel.object = sock;
        held.channel.inode = inode.member(off!(inode_ino))?;
        held.mode = 3;
        let peer: u64 = kernel(sock, off!(unix_peer))?;
        if peer != 0 {
            held.channel.peer_object = peer;
            let peer_socket: u64 = kernel(peer, off!(sock_socket))?;
            // A peer that is closed, or that nobody has accepted yet, has no socket.
            if peer_socket != 0 {
                held.channel.peer_inode =
                    kernel(peer_socket + off!(socket_alloc_inode), off!(inode_ino))?;
            }
        }
        held.channel.kind = channel_kind::UNIX_STREAM;
    }
    Some(())
}

/// Reads device and kind from the super block.
#[inline(always)]
fn identify(held: &mut Held) -> Option<()> {
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

/// How [`enrol`] found a channel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Enrolled {
    /// It was in the table.
    Known,
    /// It is now.
    New,
    /// It is not, and must not or cannot be.
    No,
}

/// What [`enrol`] may do: add the channel to the table.
pub const MAY_ADD: u64 = 1;
/// What [`enrol`] must do: move the channel to the proxies' table.
pub const BY_PROXY: u64 = 2;

/// What [`enrol`] may and must do for an operation of a task with this tag.
#[inline(always)]
pub const fn leave(bits: u32) -> u64 {
    let mut leave = 0;
    if bits & tag::TREE != 0 {
        leave |= MAY_ADD;
    }
    if bits & tag::PROXY != 0 {
        leave |= BY_PROXY;
    }
    leave
}

/// Finds the channel in the tables, adding it with [`MAY_ADD`] or when its other end is there. Completes the channel's id with
/// device, kind, epoch and the last peer known.
#[inline(never)]
pub fn enrol(held: &mut Held, leave: u64) -> Enrolled {
    find(held, leave).0
}

/// [`enrol`], and numbers an operation of `bytes` in `transfer`, all with one look-up. Without bytes nothing is numbered.
///
/// # Safety
/// `transfer` is the record under construction.
#[inline(never)]
pub unsafe fn enrol_operation(
    held: &mut Held,
    leave: u64,
    op_direction: u64,
    bytes: u64,
    transfer: *mut Transfer,
) -> Enrolled {
    let (how, state) = find(held, leave);
    let mut place = (0, 0);
    if let Some(state) = state
        && bytes != 0
    {
        let key = key_of(&held.channel);
        // SAFETY: a value of the maps for this key.
        place = unsafe { advance_at(&key, state, op_direction as u8, bytes) };
    }
    // SAFETY: the caller's.
    unsafe { ((*transfer).op_seq, (*transfer).stream_before) = place };
    how
}

#[inline(always)]
fn key_of(id: &ChannelId) -> ChannelKey {
    ChannelKey {
        object: id.object,
        inode: id.inode,
    }
}

/// The tables are asked in the order in which the channel is likely to be there. One that has moved is still in the first
/// table, marked, until it makes room.
#[inline(always)]
fn find(held: &mut Held, leave: u64) -> (Enrolled, Option<*mut ChannelState>) {
    let key = key_of(&held.channel);
    let mut how = Enrolled::Known;
    let mut found = None;
    let mut here = None;
    if leave & BY_PROXY == 0 {
        here = CHANNELS.get_ptr_mut(&key).filter(|state| {
            // SAFETY: a value of the map.
            unsafe { !has_moved(*state) }
        });
    }
    if here.is_none() {
        found = PROXY_CHANNELS.get_ptr_mut(&key);
    }
    if found.is_none() {
        found = here.or_else(|| CHANNELS.get_ptr_mut(&key));
        if found.is_none() {
            if leave & MAY_ADD == 0 && !other_end_known(&held.channel) {
                return (Enrolled::No, None);
            }
            let _ = identify(held);
            let id = &held.channel;
            // SAFETY: no arguments.
            let now = unsafe { bpf_ktime_get_boot_ns() };
            let state = ChannelState {
                epoch: now,
                peer_object: id.peer_object,
                peer_inode: id.peer_inode,
                ops: [0; 2],
                bytes: [0; 2],
                dev: id.dev,
                kind: u32::from(id.kind),
                ready: 1,
                super_block: held.super_block,
            };
            // Another CPU may have added it since: then this one is refused and the look-up finds the other.
            let _ = CHANNELS.insert(&key, &state, NO_EXIST);
            found = CHANNELS.get_ptr_mut(&key);
            how = Enrolled::New;
        }
        if leave & BY_PROXY != 0 || other_end_of_proxy(&held.channel) {
            if let Some(state) = found {
                // SAFETY: a value of the map.
                if let Some(moved) = unsafe { move_to_proxies(&key, state) } {
                    found = Some(moved);
                }
            }
        }
    }
    let Some(state) = found else {
        count(counter::CHANNEL_FAILED, 1);
        // SAFETY: no arguments. An epoch of its own: the numbers that follow continue nothing.
        held.channel.epoch = unsafe { bpf_ktime_get_boot_ns() };
        return (Enrolled::No, None);
    };
    // SAFETY: a value of the map, word-sized accesses.
    unsafe {
        if (*state).super_block == held.super_block {
            held.channel.dev = (*state).dev;
            held.channel.kind = (*state).kind as u8;
        } else {
            // Memory that was another file system's inode of that number before.
            let _ = identify(held);
        }
        let id = &mut held.channel;
        id.epoch = (*state).epoch;
        if id.peer_inode != 0 {
            (*state).peer_object = id.peer_object;
            (*state).peer_inode = id.peer_inode;
        } else if id.peer_object == 0 || id.peer_object == (*state).peer_object {
            id.peer_object = (*state).peer_object;
            id.peer_inode = (*state).peer_inode;
        } else {
            (*state).peer_object = id.peer_object;
            (*state).peer_inode = 0;
        }
    }
    (how, Some(state))
}

/// Whether the channel has begun to move to the proxies' table: its counters are marked one after the other, this one first.
///
/// # Safety
/// `state` is a value of a map.
#[inline(always)]
unsafe fn has_moved(state: *mut ChannelState) -> bool {
    // SAFETY: the caller's.
    unsafe { read_volatile(&raw const (*state).ops[0]) & MOVED != 0 }
}

/// Moves a channel to the proxies' table with its epoch and counts. An operation on another CPU meanwhile finds [`MOVED`] in
/// the old counter and counts in the new one, once it is ready.
///
/// # Safety
/// `old` is a value of [`CHANNELS`] for this key.
#[inline(always)]
unsafe fn move_to_proxies(key: &ChannelKey, old: *mut ChannelState) -> Option<*mut ChannelState> {
    // SAFETY: word-sized reads of a value, atomic additions to its counters.
    unsafe {
        let state = ChannelState {
            epoch: (*old).epoch,
            peer_object: (*old).peer_object,
            peer_inode: (*old).peer_inode,
            ops: [0; 2],
            bytes: [0; 2],
            dev: (*old).dev,
            kind: (*old).kind,
            ready: 0,
            super_block: (*old).super_block,
        };
        if PROXY_CHANNELS.insert(key, &state, NO_EXIST).is_err() {
            // Another CPU moves it, or there is no room: then it stays where it was.
            return PROXY_CHANNELS.get_ptr_mut(key);
        }
        let new = PROXY_CHANNELS.get_ptr_mut(key)?;
        let counted = fetch_add(&raw mut (*old).ops[0], MOVED) & !MOVED;
        fetch_add(&raw mut (*new).ops[0], counted);
        let counted = fetch_add(&raw mut (*old).ops[1], MOVED) & !MOVED;
        fetch_add(&raw mut (*new).ops[1], counted);
        let counted = fetch_add(&raw mut (*old).bytes[0], MOVED) & !MOVED;
        fetch_add(&raw mut (*new).bytes[0], counted);
        let counted = fetch_add(&raw mut (*old).bytes[1], MOVED) & !MOVED;
        fetch_add(&raw mut (*new).bytes[1], counted);
        fetch_add(&raw mut (*new).ready, 1);
        Some(new)
    }
}

/// Waits until another CPU has moved the counts of a channel here: four additions, unless it is interrupted. Counted when it
/// takes longer than that can.
///
/// # Safety
/// `state` is a value of the map.
#[inline(always)]
unsafe fn wait_ready(state: *mut ChannelState) {
    // SAFETY: the caller's; the callback gets the address of `context`, which lives until the helper returns.
    unsafe {
        if read_volatile(&raw const (*state).ready) != 0 {
            return;
        }
        let mut context = state;
        bpf_loop(
            READY_SPINS,
            is_ready as *const () as *mut c_void,
            (&raw mut context).cast(),
            0,
        );
        if read_volatile(&raw const (*state).ready) == 0 {
            count(counter::CHANNEL_FAILED, 1);
        }
    }
}

unsafe extern "C" fn is_ready(_index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `wait_ready` passes the address of its pointer.
    unsafe {
        let state = *context.cast::<*mut ChannelState>();
        i64::from(read_volatile(&raw const (*state).ready) != 0)
    }
}

/// Takes a number and a place in the stream for an operation of `bytes`; `(op_seq, stream_before)`.
///
/// The two counters move one after the other: for operations whose probes run at the same time on two CPUs the order of
/// the bytes can be that of the numbers swapped. Such operations overlap in time too, and the sums are exact.
#[inline(always)]
pub fn advance(id: &ChannelId, op_direction: u8, bytes: u64) -> (u64, u64) {
    let key = ChannelKey {
        object: id.object,
        inode: id.inode,
    };
    let Some(state) = PROXY_CHANNELS
        .get_ptr_mut(&key)
        .or_else(|| CHANNELS.get_ptr_mut(&key))
    else {
        return (0, 0);
    };
    // SAFETY: a value of the maps for this key.
    unsafe { advance_at(&key, state, op_direction, bytes) }
}

/// [`advance`] for a channel that was looked up.
///
/// # Safety
/// `state` is a value of the maps for this key.
#[inline(always)]
unsafe fn advance_at(
    key: &ChannelKey,
    state: *mut ChannelState,
    op_direction: u8,
    bytes: u64,
) -> (u64, u64) {
    // SAFETY: values of the maps, aligned to 8 and only ever changed atomically.
    unsafe {
        wait_ready(state);
        let mut place = add(state, op_direction, 1, bytes);
        if (place.0 | place.1) & MOVED != 0 {
            let Some(state) = PROXY_CHANNELS.get_ptr_mut(key) else {
                return (0, 0);
            };
            wait_ready(state);
            // One of the two can have been counted before the move.
            let ops = if place.0 & MOVED != 0 { 1 } else { 0 };
            let more = if place.1 & MOVED != 0 { bytes } else { 0 };
            let there = add(state, op_direction, ops, more);
            if ops != 0 {
                place.0 = there.0;
            }
            if place.1 & MOVED != 0 {
                place.1 = there.1;
            }
        }
        place
    }
}

/// Adds to both counters of a direction; their values before.
///
/// # Safety
/// `state` is a value of a map.
#[inline(always)]
unsafe fn add(state: *mut ChannelState, op_direction: u8, ops: u64, bytes: u64) -> (u64, u64) {
    // SAFETY: the caller's.
    unsafe {
        if op_direction == direction::READ {
            (
                fetch_add(&raw mut (*state).ops[0], ops),
                fetch_add(&raw mut (*state).bytes[0], bytes),
            )
        } else {
            (
                fetch_add(&raw mut (*state).ops[1], ops),
                fetch_add(&raw mut (*state).bytes[1], bytes),
            )
        }
    }
}

/// Whether the channel is in one of the tables.
#[inline(always)]
pub fn is_known(id: &ChannelId) -> bool {
    let key = ChannelKey {
        object: id.object,
        inode: id.inode,
    };
    CHANNELS.get_ptr(&key).is_some() || PROXY_CHANNELS.get_ptr(&key).is_some()
}

/// Whether the socket at the other end is in one of the tables.
#[inline(always)]
pub fn other_end_known(id: &ChannelId) -> bool {
    if id.peer_object == 0 || id.peer_inode == 0 {
        return false;
    }
    let key = ChannelKey {
        object: id.peer_object,
        inode: id.peer_inode,
    };
    CHANNELS.get_ptr(&key).is_some() || PROXY_CHANNELS.get_ptr(&key).is_some()
}

/// Whether the socket at the other end is one that a proxy has used.
#[inline(always)]
fn other_end_of_proxy(id: &ChannelId) -> bool {
    if id.peer_object == 0 || id.peer_inode == 0 {
        return false;
    }
    let key = ChannelKey {
        object: id.peer_object,
        inode: id.peer_inode,
    };
    PROXY_CHANNELS.get_ptr(&key).is_some()
}
