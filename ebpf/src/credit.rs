//! Who may still put how much into the rings.
//!
//! Owns the credit of each pool of tasks: an agent's, or its proxies'. A pool may have on its way up to twice what is free in the
//! ring. So one that floods stops at two thirds and k of them leave a share of 1 / (1 + 2k) free, whoever they are: a quiet agent
//! beside them always finds room. Nothing need be known of how many there are.

use core::{
    ffi::c_void,
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr::read_volatile,
};

use aya_ebpf::{
    bindings::BPF_RB_AVAIL_DATA,
    helpers::generated::{bpf_get_current_task_btf, bpf_ringbuf_query},
};
use countersign_common::tag::{self, POOLS};

use crate::{
    maps::{CONTROL, CREDITS, RING},
    offsets::group_leader,
    scope::tag_of,
};

/// The ring of payload, its gaps and balances.
pub const DATA_RING: u32 = 0;
/// The ring of all other records.
pub const CONTROL_RING: u32 = 1;

/// Sizes of both rings in bytes. Set at load.
#[unsafe(no_mangle)]
pub static RING_BYTES: [u64; 2] = [0; 2];

/// Whether the pool may have `bytes` more on its way; then it has. What is small may take half as much again, so that there is room
/// to say why something larger is missing.
#[inline(always)]
pub fn take<const RING: u32>(pool: u32, bytes: u64, small: bool) -> bool {
    let Some(credit) = CREDITS.get_ptr_mut(pool & (POOLS as u32 - 1)) else {
        return false;
    };
    // SAFETY: a value of the map; one side only grows here, the other only in user space.
    unsafe {
        let produced = &raw mut (*credit).produced[RING as usize];
        let taken = read_volatile(&raw const (*credit).consumed[RING as usize]);
        let mut waiting = read_volatile(produced).wrapping_sub(taken);
        if waiting >> 63 != 0 {
            // More was given back than taken: user space counted anew meanwhile.
            waiting = 0;
        }
        let free = size::<RING>().wrapping_sub(bpf_ringbuf_query(
            place_of::<RING>(),
            u64::from(BPF_RB_AVAIL_DATA),
        ));
        let most = if small { 3 * free } else { 2 * free };
        if waiting + bytes > most {
            return false;
        }
        add(produced, bytes);
    }
    true
}

/// Takes [`take`] back: no record came of it.
#[inline(always)]
pub fn give_back<const RING: u32>(pool: u32, bytes: u64) {
    if let Some(credit) = CREDITS.get_ptr_mut(pool & (POOLS as u32 - 1)) {
        // SAFETY: a value of the map.
        unsafe {
            add(
                &raw mut (*credit).produced[RING as usize],
                bytes.wrapping_neg(),
            )
        };
    }
}

/// The pool of the current task.
#[inline(always)]
pub fn pool_now() -> u32 {
    // SAFETY: the current task and its leader.
    unsafe { tag::pool(tag_of(group_leader(bpf_get_current_task_btf())).unwrap_or(0)) }
}

/// The ring as the helpers take it.
#[inline(always)]
pub fn place_of<const WHICH: u32>() -> *mut c_void {
    if WHICH == CONTROL_RING {
        core::ptr::from_ref(&CONTROL).cast_mut().cast()
    } else {
        core::ptr::from_ref(&RING).cast_mut().cast()
    }
}

#[inline(always)]
fn size<const WHICH: u32>() -> u64 {
    // SAFETY: a static of this object; volatile because the loader sets it.
    unsafe { read_volatile(&raw const RING_BYTES[WHICH as usize]) }
}

/// # Safety
/// An aligned word of a map.
#[inline(always)]
unsafe fn add(value: *mut u64, amount: u64) {
    // SAFETY: the caller's.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(value, amount) };
}
