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
    take_credit(u64::from(RING), u64::from(pool), bytes, u64::from(small)) != 0
}

/// [`take`], verified once and out of its callers' stacks.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take_credit(ring: u64, pool: u64, bytes: u64, small: u64) -> u64 {
    let Some(credit) = CREDITS.get_ptr_mut(pool as u32 & (POOLS as u32 - 1)) else {
        return 0;
    };
    // SAFETY: a value of the map; one side only grows here, the other only in user space.
    unsafe {
        let (produced, consumed, bytes_of_ring, waiting_in_ring);
        if ring == u64::from(CONTROL_RING) {
            produced = &raw mut (*credit).produced[CONTROL_RING as usize];
            consumed = &raw const (*credit).consumed[CONTROL_RING as usize];
            bytes_of_ring = size::<CONTROL_RING>();
            waiting_in_ring =
                bpf_ringbuf_query(place_of::<CONTROL_RING>(), u64::from(BPF_RB_AVAIL_DATA));
        } else {
            produced = &raw mut (*credit).produced[DATA_RING as usize];
            consumed = &raw const (*credit).consumed[DATA_RING as usize];
            bytes_of_ring = size::<DATA_RING>();
            waiting_in_ring =
                bpf_ringbuf_query(place_of::<DATA_RING>(), u64::from(BPF_RB_AVAIL_DATA));
        }
        let mut waiting = read_volatile(produced).wrapping_sub(read_volatile(consumed));
        if waiting >> 63 != 0 {
            // More was given back than taken: user space counted anew meanwhile.
            waiting = 0;
        }
        let free = bytes_of_ring.wrapping_sub(waiting_in_ring);
        let most = if small != 0 { 3 * free } else { 2 * free };
        if waiting + bytes > most {
            return 0;
        }
        add(produced, bytes);
    }
    1
}

/// Takes [`take`] back: no record came of it.
#[inline(always)]
pub fn give_back<const RING: u32>(pool: u32, bytes: u64) {
    give_back_credit(u64::from(RING), u64::from(pool), bytes);
}

/// [`give_back`], verified once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn give_back_credit(ring: u64, pool: u64, bytes: u64) -> u64 {
    if let Some(credit) = CREDITS.get_ptr_mut(pool as u32 & (POOLS as u32 - 1)) {
        // SAFETY: a value of the map.
        unsafe {
            let produced = if ring == u64::from(CONTROL_RING) {
                &raw mut (*credit).produced[CONTROL_RING as usize]
            } else {
                &raw mut (*credit).produced[DATA_RING as usize]
            };
            add(produced, bytes.wrapping_neg());
        }
    }
    0
}

/// The pool of the current task.
#[inline(always)]
pub fn pool_now() -> u32 {
    pool_of_current() as u32
}

/// [`pool_now`], verified once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pool_of_current() -> u64 {
    // SAFETY: the current task and its leader.
    let bits = unsafe { tag_of(group_leader(bpf_get_current_task_btf())) };
    u64::from(tag::pool(bits.unwrap_or(0)))
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
