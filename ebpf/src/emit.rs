//! Records into the ring, counters, and the capture walker: memory straight into ring reservations.
//!
//! A reservation's size must be a constant to the verifier: pieces go into classes of 64 B to 64 KiB of payload *plus* the
//! header, doubling. Nothing is staged: a per-CPU buffer can be overwritten where programs are preemptible.

use core::{
    ffi::c_void,
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr::{copy_nonoverlapping, read_volatile},
};

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_probe_read_user,
        generated::{
            self, bpf_get_smp_processor_id, bpf_ktime_get_boot_ns, bpf_loop, bpf_probe_read_kernel,
            bpf_ringbuf_discard, bpf_ringbuf_reserve, bpf_ringbuf_submit,
        },
    },
};
use countersign_common::{
    CHUNK_MAX_BYTES, RecordHeader, Transfer, counter, gap, kind, load::TRAILER_BYTES, tag,
    transfer_flags,
};
use countersign_ebpf::{STEPS_MAX, piece};

use crate::{
    credit::{CONTROL_RING, DATA_RING, give_back, place_of, pool_now, take},
    iterator::{next_segment, vectors_in},
    maps::CPUS,
    offsets::{GENERATION, functions_carry},
    scope::{KEPT_MAX, Thread},
};

/// The consumer is woken when a CPU has put another so many bytes into the ring; else it polls.
const WAKE_UP_BYTES: u64 = 1 << 20;

/// Adds to a counter of this CPU.
#[inline(always)]
pub fn count(index: u32, amount: u64) {
    if let Some(cpu) = CPUS.get_ptr_mut(0) {
        // SAFETY: a value of the map. Atomic: on Linux >= 7.0 another task's program can come in between.
        unsafe {
            atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(
                &raw mut (*cpu).counters[index as usize],
                amount,
            );
        }
    }
}

/// Emits a record of fixed layout into the control ring: `fill` writes all of it but the header.
#[inline(always)]
pub fn record<T>(record_kind: u16, fill: impl FnOnce(*mut T)) {
    if !numbered::<T, CONTROL_RING>(next_number(), pool_now(), record_kind, fill) {
        count(counter::CONTROL_DROPPED_RECORDS, 1);
    }
}

/// [`record`] into the data ring, at the expense of a pool; whether there was room.
#[inline(always)]
pub fn data_record<T>(pool: u32, record_kind: u16, fill: impl FnOnce(*mut T)) -> bool {
    numbered::<T, DATA_RING>(next_number(), pool, record_kind, fill)
}

/// [`record`] with a number; whether there was room.
#[inline(always)]
fn numbered<T, const RING: u32>(
    cpu_seq: u64,
    pool: u32,
    record_kind: u16,
    fill: impl FnOnce(*mut T),
) -> bool {
    // SAFETY: reserve, fill, submit; the verifier follows the reservation.
    unsafe {
        // Before the place is taken: then whatever follows from this record has a later time than all that lie before it in the
        // ring, and the two rings can be merged by time.
        let now = bpf_ktime_get_boot_ns();
        let Some(place) = room::<RING>(pool, size_of::<T>() as u64, SMALL) else {
            return false;
        };
        let place = place.cast::<T>();
        fill(place);
        place.cast::<RecordHeader>().write(header_of(
            cpu_seq,
            now,
            record_kind,
            size_of::<T>() as u32,
        ));
        submit(place.cast(), size_of::<T>() as u64);
    }
    true
}

/// [`room`] for payload: what is wanted most is refused first.
const PAYLOAD: bool = false;
/// [`room`] for a record without payload, which may say why there is none.
const SMALL: bool = true;

/// A reservation of `size` bytes and the trailer, if the pool has credit and the ring has room. Counted if not.
#[inline(always)]
fn room<const RING: u32>(pool: u32, size: u64, small: bool) -> Option<*mut u8> {
    let whole = size + TRAILER_BYTES as u64;
    if !take::<RING>(pool, whole, small) {
        count(counter::RING_DROPPED_RECORDS, 1);
        count(counter::CREDIT_DROPPED_RECORDS, 1);
        return None;
    }
    // SAFETY: a map of this object.
    let place = unsafe { bpf_ringbuf_reserve(place_of::<RING>(), whole, 0) }.cast::<u8>();
    if place.is_null() {
        give_back::<RING>(pool, whole);
        count(counter::RING_DROPPED_RECORDS, 1);
        return None;
    }
    // SAFETY: the last word of the reservation, aligned as it is: all sizes are multiples of 8.
    unsafe {
        place
            .add(size as usize)
            .cast::<u64>()
            .write(u64::from(pool))
    };
    Some(place)
}

/// Reserves in the control ring, for records with a tail that the caller fills. `size` is a multiple of 8.
#[inline(always)]
pub fn reserve(size: u64) -> Option<*mut u8> {
    let place = room::<CONTROL_RING>(pool_now(), size, SMALL);
    if place.is_none() {
        let _ = next_number();
        count(counter::CONTROL_DROPPED_RECORDS, 1);
    }
    place
}

/// Submits a reservation of `size` bytes. The wake-up is most of a record's cost, so only the record that completes another
/// mebibyte of this CPU's pays for one; otherwise the consumer's own clock wakes it.
///
/// # Safety
/// `place` is a reservation with a written header.
#[inline(always)]
pub unsafe fn submit(place: *mut c_void, size: u64) {
    let mut flags = BPF_RB_NO_WAKEUP;
    if let Some(cpu) = CPUS.get_ptr_mut(0) {
        // SAFETY: a value of the map. Where another program comes in between, a wake-up comes a little early or late.
        unsafe {
            let mut unannounced = (*cpu).unannounced + size;
            if unannounced >= WAKE_UP_BYTES {
                unannounced = 0;
                flags = BPF_RB_FORCE_WAKEUP;
            }
            (*cpu).unannounced = unannounced;
        }
    }
    // SAFETY: the caller's.
    unsafe { bpf_ringbuf_submit(place, u64::from(flags)) };
}

/// The header of the next record of this CPU. A record that finds no room has a number too, and leaves a hole.
#[inline(always)]
pub fn header(record_kind: u16, size: u32) -> RecordHeader {
    // SAFETY: no arguments.
    header_of(
        next_number(),
        unsafe { bpf_ktime_get_boot_ns() },
        record_kind,
        size,
    )
}

/// Takes the next record number of this CPU.
#[inline(always)]
fn next_number() -> u64 {
    match CPUS.get_ptr_mut(0) {
        // SAFETY: a value of the map.
        Some(cpu) => unsafe { fetch_add(&raw mut (*cpu).seq, 1) },
        None => 0,
    }
}

/// The number for the thread's next record: the one that a record left over which came to nothing in this run, so on this CPU,
/// or a new one.
///
/// # Safety
/// `thread` is the current thread's state.
#[inline(always)]
pub unsafe fn number_for(thread: *mut Thread) -> u64 {
    // SAFETY: the caller's.
    unsafe {
        let spare = (*thread).spare_seq;
        if spare != 0 {
            (*thread).spare_seq = 0;
            return spare - 1;
        }
    }
    next_number()
}

/// [`header`] with a number, and a time, that are there already: reading the clock costs as much as looking up a channel.
#[inline(always)]
pub fn header_of(cpu_seq: u64, boot_ns: u64, record_kind: u16, size: u32) -> RecordHeader {
    // SAFETY: no arguments; a static of this object, volatile because the loader sets it.
    unsafe {
        RecordHeader {
            kind: record_kind,
            cpu: bpf_get_smp_processor_id() as u16,
            size,
            cpu_seq,
            boot_ns,
            generation: read_volatile(&raw const GENERATION),
        }
    }
}

/// Captures the operation that `thread.transfer` describes from the segment and vectors set there.
///
/// # Safety
/// `thread` is the current thread's state.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn walk(thread: *mut Thread) -> u64 {
    if thread.is_null() {
        return 0;
    }
    let mut context = thread;
    // SAFETY: the callback gets the address of `context`, which lives until the helper returns.
    unsafe {
        bpf_loop(
            STEPS_MAX,
            step as *const () as *mut c_void,
            (&raw mut context).cast(),
            0,
        );
        let left = (*thread).op_left;
        if left > 0 {
            if (*thread).transfer.flags & transfer_flags::MESSAGE_TRUNCATED != 0 {
                missing(thread, left, gap::TRUNCATED);
            } else if (*thread).vectors_left == 0 {
                // The vectors in user memory now describe less than the kernel moved: they were replaced.
                count(counter::FAULT_BYTES, left);
                missing(thread, left, gap::FAULT);
            } else {
                (*thread).transfer.flags |= transfer_flags::TRUNCATED_VECTOR;
                count(counter::LIMIT_BYTES, left);
                missing(thread, left, gap::VECTORS);
            }
        }
    }
    0
}

/// Captures an operation with one buffer, which has room for so many bytes; whether all of it. Most fit into one record and need no walk.
///
/// # Safety
/// `thread` is the current thread's state, with the operation described and begun.
#[inline(always)]
pub unsafe fn capture_buffer(thread: *mut Thread, address: u64, room: u64) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let len = (*thread).op_left;
        if len <= CHUNK_MAX_BYTES as u64 && len <= (*thread).limit_left && len <= room {
            match chunk(thread, address, len) {
                CAPTURED => return true,
                // What the walker would do after its own attempt: page by page.
                FAULT => (*thread).fault_until = address + len,
                outcome => {
                    no_room(thread, len, outcome);
                    return false;
                }
            }
        }
        (*thread).segment = address;
        (*thread).segment_left = room;
        (*thread).vectors_left = 0;
        walk(thread);
        (*thread).missed == 0
    }
}

/// Emits a gap of `len` bytes at the walker's place.
///
/// # Safety
/// `thread` is the current thread's state.
#[inline(always)]
pub unsafe fn missing(thread: *mut Thread, len: u64, reason: u16) {
    // SAFETY: the caller's.
    unsafe { emit_gap(thread, len, u64::from(reason)) };
}

/// [`missing`], verified once.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn emit_gap(thread: *mut Thread, len: u64, reason: u64) -> u64 {
    if thread.is_null() {
        return 0;
    }
    // SAFETY: the current thread's state.
    let (number, pool) = unsafe { (number_for(thread), tag::pool((*thread).bits)) };
    numbered::<Transfer, DATA_RING>(number, pool, kind::GAP, |place| {
        // SAFETY: a fresh reservation of that size; a copy of plain data.
        unsafe {
            copy_nonoverlapping(&raw const (*thread).transfer, place, 1);
            (*place).len = len as u32;
            (*place).reason = reason as u16;
        }
    });
    // SAFETY: the current thread's state.
    unsafe {
        (*thread).transfer.offset += len;
        (*thread).op_left -= len;
        (*thread).missed |= 1 << reason;
    }
    0
}

/// One step of the walker; 1 ends the loop.
unsafe extern "C" fn step(_index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `walk` passes the address of its pointer.
    unsafe {
        let thread = *context.cast::<*mut Thread>();
        let op_left = (*thread).op_left;
        if op_left == 0 {
            return 1;
        }
        if (*thread).segment_left == 0 {
            if (*thread).vectors_left == 0 {
                return 1;
            }
            if functions_carry()
                && (*thread).vectors_in != vectors_in::USER
                && (*thread).vectors_in < vectors_in::COMPAT
            {
                return next_segment(thread);
            }
            return next_vector(thread);
        }
        let limit_left = (*thread).limit_left;
        if limit_left == 0 {
            count(counter::LIMIT_BYTES, op_left);
            missing(thread, op_left, gap::LIMIT);
            return 1;
        }
        let allowed = if op_left < limit_left {
            op_left
        } else {
            limit_left
        };
        let address = (*thread).segment;
        let len = piece(
            address,
            (*thread).segment_left,
            allowed,
            (*thread).fault_until,
        );
        match chunk(thread, address, len) {
            CAPTURED => {
                if len == op_left {
                    (*thread).op_left = 0;
                    return 1;
                }
                (*thread).transfer.offset += len;
                (*thread).op_left -= len;
            }
            FAULT if address >= (*thread).fault_until => {
                // One page is enough to fail the whole piece: take it again page by page.
                (*thread).fault_until = address + len;
                return 0;
            }
            FAULT => {
                count(counter::FAULT_BYTES, len);
                missing(thread, len, gap::FAULT);
            }
            outcome => {
                no_room(thread, len, outcome);
            }
        }
        (*thread).limit_left -= len;
        (*thread).segment = address + len;
        (*thread).segment_left -= len;
        0
    }
}

/// Accounts for a piece that found no room.
///
/// # Safety
/// `thread` is the current thread's state.
#[inline(always)]
unsafe fn no_room(thread: *mut Thread, len: u64, outcome: u64) {
    count(counter::RING_DROPPED_BYTES, len);
    let mut reason = gap::RING_FULL;
    if outcome == NO_CREDIT {
        count(counter::CREDIT_DROPPED_BYTES, len);
        reason = gap::CREDIT;
    }
    // SAFETY: the caller's.
    unsafe { missing(thread, len, reason) };
}

/// What became of a piece.
const CAPTURED: u64 = 0;
const FAULT: u64 = 1;
const RING_FULL: u64 = 2;
const NO_CREDIT: u64 = 3;

/// Takes the next vector as the segment; 1 when it cannot be read.
#[inline(always)]
unsafe fn next_vector(thread: *mut Thread) -> i64 {
    // SAFETY: the current thread's state; the helper checks addresses.
    unsafe {
        let place = (*thread).vector;
        match (*thread).vectors_in {
            vectors_in::KEPT => {
                let vector = &raw const (*thread).request.kept[place as usize & (KEPT_MAX - 1)];
                (*thread).segment = (*vector)[0];
                (*thread).segment_left = (*vector)[1];
                (*thread).vector = place + 1;
            }
            vectors_in::COMPAT => {
                let Ok(vector) = bpf_probe_read_user(place as *const [u32; 2]) else {
                    (*thread).vectors_left = 0;
                    return 1;
                };
                (*thread).segment = u64::from(vector[0]);
                (*thread).segment_left = u64::from(vector[1]);
                (*thread).vector = place + 8;
            }
            _ => {
                let Ok(vector) = bpf_probe_read_user(place as *const [u64; 2]) else {
                    (*thread).vectors_left = 0;
                    return 1;
                };
                (*thread).segment = vector[0];
                (*thread).segment_left = vector[1];
                (*thread).vector = place + 16;
            }
        }
        (*thread).vectors_left -= 1;
    }
    0
}

/// One piece into one record, in the smallest class that holds it.
///
/// # Safety
/// `thread` is the current thread's state.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn chunk(thread: *mut Thread, address: u64, len: u64) -> u64 {
    if thread.is_null() {
        return FAULT;
    }
    // The compiler must not know that the comparisons below bound it: the verifier of Linux 6.1 forgets them at a spill.
    let same = core::hint::black_box(len);
    // SAFETY: the caller's.
    unsafe {
        if len <= 1 << 6 {
            chunk_of::<{ 1 << 6 }>(thread, address, same)
        } else if len <= 1 << 7 {
            chunk_of::<{ 1 << 7 }>(thread, address, same)
        } else if len <= 1 << 8 {
            chunk_of::<{ 1 << 8 }>(thread, address, same)
        } else if len <= 1 << 9 {
            chunk_of::<{ 1 << 9 }>(thread, address, same)
        } else if len <= 1 << 10 {
            chunk_of::<{ 1 << 10 }>(thread, address, same)
        } else if len <= 1 << 11 {
            chunk_of::<{ 1 << 11 }>(thread, address, same)
        } else if len <= 1 << 12 {
            chunk_of::<{ 1 << 12 }>(thread, address, same)
        } else if len <= 1 << 13 {
            chunk_of::<{ 1 << 13 }>(thread, address, same)
        } else if len <= 1 << 14 {
            chunk_of::<{ 1 << 14 }>(thread, address, same)
        } else if len <= 1 << 15 {
            chunk_of::<{ 1 << 15 }>(thread, address, same)
        } else {
            chunk_of::<{ 1 << 16 }>(thread, address, same)
        }
    }
}

#[inline(always)]
unsafe fn chunk_of<const CLASS: u64>(thread: *mut Thread, address: u64, len: u64) -> u64 {
    const HEADER: u64 = size_of::<Transfer>() as u64;
    // SAFETY: reserve, fill, submit or discard; the verifier checks that `len` stays within the class.
    unsafe {
        // First of all: an addition that must be atomic waits for the stores before it, and those into the ring are slow.
        let seq = number_for(thread);
        let pool = tag::pool((*thread).bits);
        let whole = HEADER + CLASS + TRAILER_BYTES as u64;
        if !take::<DATA_RING>(pool, whole, PAYLOAD) {
            count(counter::RING_DROPPED_RECORDS, 1);
            count(counter::CREDIT_DROPPED_RECORDS, 1);
            return NO_CREDIT;
        }
        let place = bpf_ringbuf_reserve(place_of::<DATA_RING>(), whole, 0).cast::<u8>();
        if place.is_null() {
            give_back::<DATA_RING>(pool, whole);
            count(counter::RING_DROPPED_RECORDS, 1);
            return RING_FULL;
        }
        let len = if len > CLASS { CLASS } else { len };
        let to: *mut c_void = place.add(HEADER as usize).cast();
        let failed = if functions_carry()
            && ((*thread).vectors_in == vectors_in::MAPPED
                || (*thread).vectors_in == vectors_in::PAGES)
        {
            bpf_probe_read_kernel(to, len as u32, address as *const c_void)
        } else {
            generated::bpf_probe_read_user(to, len as u32, address as *const c_void)
        };
        if failed != 0 {
            bpf_ringbuf_discard(place.cast(), u64::from(BPF_RB_NO_WAKEUP));
            give_back::<DATA_RING>(pool, whole);
            (*thread).spare_seq = seq + 1;
            return FAULT;
        }
        let record = place.cast::<Transfer>();
        copy_nonoverlapping(&raw const (*thread).transfer, record, 1);
        (*record).header = header_of(
            seq,
            (*thread).transfer.exit_ns,
            kind::CHUNK,
            (HEADER + len) as u32,
        );
        (*record).len = len as u32;
        place
            .add((HEADER + CLASS) as usize)
            .cast::<u64>()
            .write(u64::from(pool));
        submit(place.cast(), whole);
    }
    CAPTURED
}

/// Adds atomically; the value before. `AtomicU64::fetch_add` does not exist for this target, which has no compare-and-swap
/// in its baseline; `BPF_ATOMIC | BPF_FETCH` comes with `-C target-cpu=v3` (Linux >= 5.12).
///
/// Sequentially consistent although nothing needs it: for a relaxed addition LLVM 22 emits the form *without* `BPF_FETCH` even
/// where the result is used, and the "result" is then the amount.
///
/// # Safety
/// An aligned word of a map that is only changed atomically.
#[inline(always)]
pub unsafe fn fetch_add(value: *mut u64, amount: u64) -> u64 {
    // SAFETY: the caller's.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(value, amount) }
}
