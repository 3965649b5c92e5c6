//! The reading end of a ring buffer, with two places instead of one: how far was read, and how far was given back.
//!
//! aya gives a record's room back as soon as the record is dropped. A reader that may be killed at any moment must not: what
//! it has given back and not yet written down is lost. So [`Ring::next`] moves a place of its own, and [`Ring::release`] tells
//! the kernel, when the caller says so. A reader that starts later begins where the kernel was told, and sees the rest again.
//!
//! Owns the layout of `BPF_MAP_TYPE_RINGBUF` as user space sees it (`kernel/bpf/ringbuf.c`): a page with the consumer's place,
//! a page with the producer's, and the data twice in a row, so that no record is cut by the end.

use std::{
    fmt,
    os::fd::{AsFd, BorrowedFd},
    ptr::NonNull,
    slice,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use anyhow::Context;
use aya::maps::MapData;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// `BPF_RINGBUF_BUSY_BIT`: reserved, not yet submitted.
const BUSY: u32 = 1 << 31;
/// `BPF_RINGBUF_DISCARD_BIT`: given up by its writer.
const DISCARDED: u32 = 1 << 30;
/// `BPF_RINGBUF_HDR_SZ`: what the kernel puts in front of each record.
const HEAD_BYTES: u64 = 8;

/// The reading end of a ring.
pub(super) struct Ring {
    map: MapData,
    consumer: Mapping,
    producer: Mapping,
    /// Length of the data, a power of two.
    bytes: u64,
    /// How far was read. The kernel's places only grow, modulo 2^64.
    place: u64,
}

impl Ring {
    /// Maps the ring and begins where the last reader told the kernel that it was.
    ///
    /// # Errors
    /// When the map is no ring, or memory cannot be mapped.
    pub(super) fn open(map: MapData) -> anyhow::Result<Self> {
        let bytes = u64::from(map.info().context("ask for the ring's size")?.max_entries());
        anyhow::ensure!(bytes.is_power_of_two(), "the ring has {bytes} bytes");
        let page = rustix::param::page_size();
        let length = usize::try_from(bytes).context("map the ring")?;
        let fd = map.fd().as_fd();
        let consumer = Mapping::new(fd, page, ProtFlags::READ | ProtFlags::WRITE, 0)?;
        let producer = Mapping::new(fd, page + 2 * length, ProtFlags::READ, page as u64)?;
        let mut ring = Self {
            map,
            consumer,
            producer,
            bytes,
            place: 0,
        };
        ring.place = ring.released();
        Ok(ring)
    }

    /// The next record; `None` when there is none, or the next one is still being written.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        loop {
            // Pairs with the kernel's release store: what lies before this place is visible.
            let produced = self.producer.word().load(Ordering::Acquire);
            if self.place == produced {
                return None;
            }
            let offset = self.place & (self.bytes - 1);
            let length = self.length_at(offset)?;
            if length & BUSY != 0 {
                return None;
            }
            let size = u64::from(length & !DISCARDED);
            self.place = after(self.place, size);
            if length & DISCARDED == 0 {
                return self.data(offset + HEAD_BYTES, size);
            }
        }
    }

    /// Its size.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next record, which stays the next one.
    pub(super) fn peek(&mut self) -> Option<&[u8]> {
        let place = self.place;
        // Only to end the borrow before the place is set back.
        let found = self.next().map(|record| (record.as_ptr(), record.len()));
        self.place = place;
        // SAFETY: the slice that `next` has just returned; nothing was given back since, and `self` stays borrowed.
        found.map(|(start, length)| unsafe { slice::from_raw_parts(start, length) })
    }

    /// How far was read.
    pub(super) fn place(&self) -> u64 {
        self.place
    }

    /// How far the kernel has been told.
    pub(super) fn released(&self) -> u64 {
        self.consumer.word().load(Ordering::Relaxed)
    }

    /// How far the kernel has written.
    pub(super) fn produced(&self) -> u64 {
        self.producer.word().load(Ordering::Acquire)
    }

    /// Gives the room of everything before `place` back.
    pub(super) fn release(&mut self, place: u64) {
        self.consumer.word().store(place, Ordering::Release);
    }

    /// Gives each record between what the kernel was told of and `end` to `look`, whether it was read or not. One that is still being
    /// written is left out.
    pub(super) fn unreleased(&self, end: u64, mut look: impl FnMut(&[u8])) {
        let mut place = self.released();
        // Stops a place that is none of this ring's from making this go round for ever.
        while end.wrapping_sub(place).wrapping_sub(1) < self.bytes {
            let offset = place & (self.bytes - 1);
            let Some(length) = self.length_at(offset) else {
                return;
            };
            let size = u64::from(length & !(BUSY | DISCARDED));
            if length & (BUSY | DISCARDED) == 0
                && let Some(record) = self.data(offset + HEAD_BYTES, size)
            {
                look(record);
            }
            place = after(place, size);
        }
    }

    /// The word in front of a record: its length and what became of it.
    fn length_at(&self, offset: u64) -> Option<u32> {
        let head = self.data(offset, size_of::<u32>() as u64)?;
        // SAFETY: records begin at multiples of 8 and the mapping at a page; the kernel writes the word atomically.
        let word = unsafe { AtomicU32::from_ptr(head.as_ptr().cast_mut().cast()) };
        Some(word.load(Ordering::Acquire))
    }

    /// Bytes of the ring from an offset on. The data is mapped twice in a row, so a record that wraps is whole.
    fn data(&self, offset: u64, length: u64) -> Option<&[u8]> {
        let start = rustix::param::page_size() as u64 + offset;
        let end = start.checked_add(length)?;
        if end > self.producer.length as u64 {
            // Only another layout than the one described above has such a record.
            return None;
        }
        // SAFETY: inside of the mapping, as just checked. The kernel writes there only after `release` has gone past it,
        // which needs `&mut self` and so ends this borrow.
        Some(unsafe {
            slice::from_raw_parts(
                self.producer
                    .start
                    .as_ptr()
                    .add(usize::try_from(start).ok()?),
                usize::try_from(length).ok()?,
            )
        })
    }
}

/// The place after a record of `size` bytes: in multiples of 8, as the kernel rounds.
fn after(place: u64, size: u64) -> u64 {
    place.wrapping_add((HEAD_BYTES + size + 7) & !7)
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("bytes", &self.bytes)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// A shared mapping of a map's memory.
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory belongs to the mapping, whichever thread looks at it.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(
        fd: BorrowedFd<'_>,
        length: usize,
        protection: ProtFlags,
        offset: u64,
    ) -> anyhow::Result<Self> {
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                protection,
                MapFlags::SHARED,
                fd,
                offset,
            )
        }
        .context("map the ring's memory")?;
        let start = NonNull::new(start.cast()).context("the ring was mapped at address 0")?;
        Ok(Self { start, length })
    }

    /// The first word: a place.
    fn word(&self) -> &AtomicU64 {
        // SAFETY: a page-aligned mapping of at least a page, alive as long as `self`; the kernel accesses the word atomically.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nobody borrows any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}
