//! `struct iov_iter`: where the bytes of an operation lie, for programs on kernel functions.
//!
//! The iterator is noted at the function's entry and walked forward from there at its return, as far as the function says that it
//! moved bytes. Walking backwards from where the function left it needs no note, but trusts the iterator after a copy that broke off
//! half-way, which the kernel does not wind back everywhere. What the iterator points to (vectors that the kernel has copied in,
//! pages that it has pinned) belongs to the operation and cannot change before the function returns.
//!
//! Followed are one buffer (`ITER_UBUF`), vectors (`ITER_IOVEC`), kernel memory (`ITER_KVEC`) and pages (`ITER_BVEC`). Pages are read
//! through the kernel's linear mapping of all memory, whose place two variables of the kernel tell; where their addresses
//! are hidden the bytes are a gap.

use countersign_common::{counter, load::Offsets};
use countersign_ebpf::{VECTOR_PAGES_MAX, VECTORS_MAX};

use crate::{
    emit::{count, walk},
    offsets::{PAGE_OFFSET_BASE, VMEMMAP_BASE, kernel, off},
    resolve::{Room, Window},
    scope::{Call, Thread},
};

/// Values of [`Thread::vectors_in`].
pub mod vectors_in {
    /// User memory, describing user memory.
    pub const USER: u64 = 0;
    /// Kernel memory, describing user memory.
    pub const COPIED: u64 = 1;
    /// Kernel memory, describing kernel memory: `struct kvec`.
    pub const MAPPED: u64 = 2;
    /// The same: `struct bio_vec`.
    pub const PAGES: u64 = 3;
    /// User memory again: `struct compat_iovec`, two words of 32 bits.
    pub const COMPAT: u64 = 4;
    /// [`Request::kept`](crate::scope::Request::kept), describing user memory; the place is an index.
    pub const KEPT: u64 = 5;
}

/// Notes where an iterator stands.
///
/// # Safety
/// `call` is a call in the current thread's state.
#[inline(always)]
pub unsafe fn note(call: *mut Call, iter: u64) -> Option<()> {
    let mut room = Room::uninit();
    let window = Window::read(&mut room, iter, 0)?;
    // SAFETY: the caller's.
    unsafe {
        (*call).iter = iter;
        (*call).kind = u64::from(window.member::<u8>(off!(iter_type))?);
        (*call).pointer = window.member(off!(iter_pointer))?;
        (*call).skip = window.member(off!(iter_offset))?;
        (*call).segments = window.member(off!(iter_segments))?;
        (*call).count = window.member(off!(iter_count))?;
    }
    Some(())
}

/// Bytes by which the iterator has advanced since.
///
/// # Safety
/// As [`note`].
#[inline(always)]
pub unsafe fn advanced(call: *mut Call) -> u64 {
    // SAFETY: the caller's.
    unsafe {
        let before = (*call).count;
        match kernel::<u64>((*call).iter, off!(iter_count)) {
            Some(now) if now <= before => before - now,
            _ => 0,
        }
    }
}

/// Points the walker at what the iterator described at entry, and starts it unless there is one buffer, whose address is returned then.
/// [`NOT_FOLLOWED`] for iterators of another kind.
///
/// # Safety
/// `thread` is the current thread's state, with the operation described and begun; `call` is one of its calls.
#[inline(always)]
pub unsafe fn start(thread: *mut Thread, call: *mut Call) -> Start {
    // SAFETY: the caller's.
    unsafe {
        let kind = (*call).kind;
        let skip = (*call).skip;
        if kind == off!(kind_ubuf) {
            return Start::Buffer((*call).pointer + skip);
        }
        (*thread).vectors_in = if kind == off!(kind_iovec) {
            vectors_in::COPIED
        } else if kind == off!(kind_kvec) {
            vectors_in::MAPPED
        } else if kind == off!(kind_bvec) {
            vectors_in::PAGES
        } else {
            return Start::NotFollowed;
        };
        let most = if kind == off!(kind_bvec) {
            VECTOR_PAGES_MAX
        } else {
            VECTORS_MAX
        };
        let segments = (*call).segments;
        (*thread).vector = (*call).pointer;
        (*thread).vectors_left = if segments > most { most } else { segments };
        (*thread).vector_skip = skip;
        (*thread).segment_left = 0;
        walk(thread);
        Start::Walked
    }
}

/// What [`start`] found.
pub enum Start {
    /// One buffer in user memory, at this address.
    Buffer(u64),
    /// Vectors, walked.
    Walked,
    /// Nothing that is followed.
    NotFollowed,
}

/// Takes the next vector in kernel memory as the walker's segment; 1 when there is none.
///
/// # Safety
/// `thread` is the current thread's state.
#[inline(never)]
pub unsafe fn next_segment(thread: *mut Thread) -> i64 {
    // SAFETY: the caller's.
    unsafe {
        let place = (*thread).vector;
        let Some(vector) = kernel::<[u64; 2]>(place, 0) else {
            (*thread).vectors_left = 0;
            return 1;
        };
        // `struct iovec`, `struct kvec` and `struct bio_vec` are of the same size.
        (*thread).vector = place + 16;
        (*thread).vectors_left -= 1;
        let (mut address, mut len) = (vector[0], vector[1]);
        if (*thread).vectors_in == vectors_in::PAGES {
            let (Some(page), Some(bytes), Some(offset)) = (
                kernel::<u64>(place, off!(bvec_page)),
                kernel::<u32>(place, off!(bvec_len)),
                kernel::<u32>(place, off!(bvec_offset)),
            ) else {
                (*thread).vectors_left = 0;
                return 1;
            };
            let start = page_address(page);
            if start == 0 {
                // Not even the next one can be read: the rest is a gap.
                (*thread).vectors_left = 0;
                return 1;
            }
            address = start + u64::from(offset);
            len = u64::from(bytes);
        }
        let skip = (*thread).vector_skip;
        (*thread).vector_skip = 0;
        if skip > len {
            return 0;
        }
        (*thread).segment = address + skip;
        (*thread).segment_left = len - skip;
    }
    0
}

/// Address of a page in the linear mapping; 0 when it cannot be known. `struct page`s are an array (`CONFIG_SPARSEMEM_VMEMMAP`).
#[inline(always)]
fn page_address(page: u64) -> u64 {
    // SAFETY: statics of this object, volatile because the loader sets them.
    let (page_offset, vmemmap) = unsafe {
        (
            core::ptr::read_volatile(&raw const PAGE_OFFSET_BASE),
            core::ptr::read_volatile(&raw const VMEMMAP_BASE),
        )
    };
    let shift = off!(page_shift);
    if page_offset == 0 || vmemmap == 0 || shift == u64::from(Offsets::UNKNOWN) {
        return 0;
    }
    let (Some(page_offset), Some(vmemmap)) =
        (kernel::<u64>(page_offset, 0), kernel::<u64>(vmemmap, 0))
    else {
        return 0;
    };
    if page < vmemmap {
        count(counter::KERNEL_READ_FAILED, 1);
        return 0;
    }
    page_offset + ((page - vmemmap) >> (shift & 63) << 12)
}
