//! Who is watched: tags of processes and the state of the system call that a watched thread is in.
//!
//! A tag lies in the storage of the thread-group *leader*, so one update marks every thread of a process, those that
//! exist and those to come; the leader's `task_struct` outlives its threads, also when it has called `pthread_exit`.

use aya_ebpf::bindings::task_struct;
use countersign_common::{ChannelId, Transfer, counter, tag};

use crate::{
    emit::count,
    log,
    maps::{TAGS, THREADS},
    offsets::has_storage,
};

/// What a watched thread's `sys_enter` saw, and where its capture walker stands.
///
/// It lies in task storage: a program that is preempted and another that runs meanwhile on the same CPU never share it,
/// and values loaded from it are unknown to the verifier, so that the walker's loop converges.
#[repr(C)]
pub struct Thread {
    /// Number of the system call whose `sys_enter` was seen, plus one; 0 when none is open.
    pub open_call: u64,
    /// The tag of its process at that time.
    pub bits: u32,
    /// Not 0 for a call of the 32-bit ABI.
    pub compat: u32,
    /// Its arguments: those that the kernel took, whatever a tracer writes into the registers later.
    pub args: [u64; 6],
    /// `CLOCK_BOOTTIME` at `sys_enter`.
    pub enter_ns: u64,
    /// The files of its descriptors at `sys_enter`: `struct file` and inode.
    pub first: Held,
    /// The second descriptor of the splice family.
    pub second: Held,
    /// The record under construction: all records of an operation repeat it.
    pub transfer: Transfer,
    /// Next `struct iovec` in user memory.
    pub vector: u64,
    /// Vectors left.
    pub vectors_left: u64,
    /// Next byte of the present segment.
    pub segment: u64,
    /// Bytes left in it.
    pub segment_left: u64,
    /// Bytes of the operation that no record accounts for yet.
    pub op_left: u64,
    /// Bytes of it that may still be captured.
    pub limit_left: u64,
    /// Pieces stop at pages up to here.
    pub fault_until: u64,
    /// Reasons of the gaps of the system call so far, a bit each.
    pub missed: u64,
    /// Number of a record that was not made, plus one: the next one has it. 0 for none.
    pub spare_seq: u64,
    /// Start of the message array (`struct mmsghdr`).
    pub messages: u64,
    /// Where the vectors lie and what they describe: one of [`vectors_in`](crate::iterator::vectors_in).
    pub vectors_in: u64,
    /// Bytes of the next vector that lie before the operation.
    pub vector_skip: u64,
    /// The kernel functions that the thread is in, by direction.
    pub calls: [Call; 2],
    /// Operations of the present system call that programs on functions have accounted for.
    pub carried_ops: u64,
    /// Bytes of them, but for those that were not consumed.
    pub carried_bytes: u64,
    /// The `io_uring` request that is looked at.
    pub request: Request,
    /// Bytes that the kernel set out to copy to the reader in the present system call.
    pub delivered: u64,
    /// Not 0 when some of them are in no record.
    pub delivery_failed: u64,
}

/// A kernel function that moves bytes, as its entry found it.
#[repr(C)]
pub struct Call {
    /// Not 0 between entry and return.
    pub open: u64,
    /// Tag of the process at entry.
    pub bits: u64,
    /// `CLOCK_BOOTTIME` at entry.
    pub enter_ns: u64,
    /// Bits of [`transfer_flags`](countersign_common::transfer_flags) from the message's flags.
    pub flags: u64,
    /// What the bytes go through.
    pub held: Held,
    /// Address of the `struct iov_iter`.
    pub iter: u64,
    /// Its kind.
    pub kind: u64,
    /// Its pointer.
    pub pointer: u64,
    /// Bytes of the first segment before the operation.
    pub skip: u64,
    /// Segments.
    pub segments: u64,
    /// Bytes that it describes.
    pub count: u64,
}

/// Vectors of an `io_uring` request that are kept from its submission on. Until its completion a program may put something else into
/// the memory where they were; a request with more that completes later is a gap.
pub const KEPT_MAX: usize = 8;

/// What is known of an `io_uring` request since its submission.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Request {
    /// Address of its `struct io_kiocb`, once more: a table that makes room can hand a value to another request while it is read.
    pub address: u64,
    /// `CLOCK_BOOTTIME` at its submission.
    pub submitted_ns: u64,
    /// Vectors that it has.
    pub vectors: u64,
    /// The first of them.
    pub kept: [[u64; 2]; KEPT_MAX],
}

/// A descriptor's file as `sys_enter` found it.
#[repr(C)]
pub struct Held {
    /// Address of `struct file`; 0 when the descriptor named none.
    pub file: u64,
    /// The channel, with `kind` 0 when it is not one that is watched.
    pub channel: ChannelId,
    /// `f_mode`.
    pub mode: u64,
    /// Address of the inode's super block; 0 for sockets.
    pub super_block: u64,
}

impl Held {
    /// A descriptor that names nothing.
    #[inline(always)]
    pub const fn empty() -> Self {
        Self {
            file: 0,
            channel: ChannelId {
                object: 0,
                inode: 0,
                peer_object: 0,
                peer_inode: 0,
                epoch: 0,
                dev: 0,
                kind: 0,
                reserved: [0; 3],
                reserved2: 0,
            },
            mode: 0,
            super_block: 0,
        }
    }
}

/// The tag of a process, by its leader.
///
/// # Safety
/// `leader` comes from [`group_leader`](crate::offsets::group_leader) or is a trusted leader.
#[inline(always)]
pub unsafe fn tag_of(leader: *mut task_struct) -> Option<u32> {
    // SAFETY: the caller's.
    let bits = unsafe { bits_of(leader) };
    (bits != 0).then_some(bits)
}

/// The tag of a process, by its leader; 0 for none. Not an `Option` on its way here: LLVM 22 spills and merges the payload of `None`, which
/// the verifier refuses ("R2 !read_ok").
///
/// # Safety
/// As [`tag_of`].
#[inline(always)]
pub unsafe fn bits_of(leader: *mut task_struct) -> u32 {
    let mut bits = 0;
    // SAFETY: storage of a live task, aligned.
    unsafe {
        if has_storage(leader)
            && let Some(value) = TAGS.find(leader)
        {
            bits = *value;
        }
    }
    if bits & (tag::TREE | tag::PEER) == 0 {
        return 0;
    }
    bits
}

/// Stores a tag. Counted if it cannot be.
///
/// # Safety
/// As [`tag_of`].
#[inline(always)]
pub unsafe fn set_tag(task: *mut task_struct, bits: u32) -> bool {
    // SAFETY: storage of a live task, aligned; a word-sized store.
    unsafe {
        match TAGS.find_or_create(task) {
            Some(value) => {
                *value = bits;
                true
            }
            None => {
                count(counter::TAG_FAILED, 1);
                false
            }
        }
    }
}

/// The state of the calling thread if it is in this system call, as its `sys_enter` left it.
///
/// # Safety
/// `task` is the current task.
#[inline(always)]
pub unsafe fn entered(task: *mut task_struct, number: u64) -> Option<*mut Thread> {
    // SAFETY: storage of the current task.
    unsafe {
        THREADS
            .find(task)
            .filter(|thread| (**thread).open_call == number + 1)
    }
}

/// The state of the calling thread, made if need be. Counted if it cannot be.
///
/// # Safety
/// `task` is the current task.
#[inline(always)]
pub unsafe fn thread(task: *mut task_struct) -> Option<*mut Thread> {
    // SAFETY: storage of the current task.
    let thread = unsafe { THREADS.find_or_create(task) };
    if thread.is_none() {
        count(counter::PENDING_FAILED, 1);
        log::no_thread_state();
    }
    thread
}
