//! Kernel memory into records: what user memory is to [`emit`](crate::emit), with fewer classes.

use core::{ffi::c_void, ptr::copy_nonoverlapping};

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    helpers::generated::{
        bpf_ktime_get_boot_ns, bpf_probe_read_kernel, bpf_ringbuf_discard, bpf_ringbuf_reserve,
    },
};
use countersign_common::{Transfer, counter, load::TRAILER_BYTES, tag};

use crate::{
    credit::{DATA_RING, give_back, place_of, take},
    emit::{count, header_of, number_for, submit},
    scope::Thread,
};

/// Kernel memory into one record of a kind that has no class yet; whether it fits and could be read.
///
/// # Safety
/// `thread` is the current thread's state, with the record described.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn kernel_chunk(
    thread: *mut Thread,
    address: u64,
    len: u64,
    record_kind: u64,
) -> u64 {
    if thread.is_null() {
        return 0;
    }
    // The compiler must not know that the comparisons below bound it: the verifier of Linux 6.1 forgets them at a spill.
    let same = core::hint::black_box(len);
    // SAFETY: the caller's.
    unsafe {
        if len <= 1 << 6 {
            kernel_chunk_of::<{ 1 << 6 }>(thread, address, same, record_kind as u16)
        } else if len <= 1 << 8 {
            kernel_chunk_of::<{ 1 << 8 }>(thread, address, same, record_kind as u16)
        } else if len <= 1 << 10 {
            kernel_chunk_of::<{ 1 << 10 }>(thread, address, same, record_kind as u16)
        } else if len <= 1 << 12 {
            kernel_chunk_of::<{ 1 << 12 }>(thread, address, same, record_kind as u16)
        } else if len <= 1 << 15 {
            kernel_chunk_of::<{ 1 << 15 }>(thread, address, same, record_kind as u16)
        } else {
            0
        }
    }
}

#[inline(always)]
unsafe fn kernel_chunk_of<const CLASS: u64>(
    thread: *mut Thread,
    address: u64,
    len: u64,
    record_kind: u16,
) -> u64 {
    const HEADER: u64 = size_of::<Transfer>() as u64;
    // SAFETY: reserve, fill, submit or discard; the verifier checks that `len` stays within the class.
    unsafe {
        let seq = number_for(thread);
        let pool = tag::pool((*thread).bits);
        let whole = HEADER + CLASS + TRAILER_BYTES as u64;
        if !take::<DATA_RING>(pool, whole, false) {
            count(counter::RING_DROPPED_RECORDS, 1);
            count(counter::CREDIT_DROPPED_RECORDS, 1);
            return 0;
        }
        let place = bpf_ringbuf_reserve(place_of::<DATA_RING>(), whole, 0).cast::<u8>();
        if place.is_null() {
            give_back::<DATA_RING>(pool, whole);
            count(counter::RING_DROPPED_RECORDS, 1);
            return 0;
        }
        // Once more, in a register of its own: the compiler may compare a value on the stack and read it from there again, and Linux 6.1 does
        // not know that they are the same.
        let len = core::hint::black_box(len);
        let len = if len > CLASS { CLASS } else { len };
        if bpf_probe_read_kernel(
            place.add(HEADER as usize).cast(),
            len as u32,
            address as *const c_void,
        ) != 0
        {
            bpf_ringbuf_discard(place.cast(), u64::from(BPF_RB_NO_WAKEUP));
            give_back::<DATA_RING>(pool, whole);
            (*thread).spare_seq = seq + 1;
            return 0;
        }
        let record = place.cast::<Transfer>();
        copy_nonoverlapping(&raw const (*thread).transfer, record, 1);
        (*record).header = header_of(
            seq,
            bpf_ktime_get_boot_ns(),
            record_kind,
            (HEADER + len) as u32,
        );
        (*record).len = len as u32;
        place
            .add((HEADER + CLASS) as usize)
            .cast::<u64>()
            .write(u64::from(pool));
        submit(place.cast(), whole);
    }
    1
}
