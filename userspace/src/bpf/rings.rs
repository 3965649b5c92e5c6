//! Both rings of the kernel programs, read as one, and the credit that is given back for what was taken out.
//!
//! Records come out in the order of their time, so that what says who somebody is comes before what he did. Interprets no record
//! beyond its header.

use std::cmp::Ordering as Order;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use countersign_common::{
    RecordHeader,
    load::{Credit, TRAILER_BYTES},
    tag::POOLS,
};
use zerocopy::FromBytes;

use super::ring::Ring;

/// Places of the rings in [`Credit`].
const DATA: usize = 0;
const CONTROL: usize = 1;

/// Bytes taken out before their credit is given back: each time costs the kernel's side a cache line.
const GIVE_BACK_BYTES: u64 = 64 << 10;

/// How far both rings are read, in the kernel's count of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// In the data ring.
    pub data: u64,
    /// In the control ring.
    pub control: u64,
}

impl Place {
    /// Whether nothing before `other` is left in either ring.
    pub fn is_past(self, other: Self) -> bool {
        self.data >= other.data && self.control >= other.control
    }
}

/// The rings.
pub(super) struct Rings {
    data: Ring,
    control: Ring,
    credits: Credits,
    /// Room, and with it credit, is given back when the caller says so and not when a record is read.
    keeps: bool,
    malformed: u64,
}

impl Rings {
    pub(super) fn new(data: Ring, control: Ring, credits: Credits) -> Self {
        Self {
            data,
            control,
            credits,
            keeps: false,
            malformed: 0,
        }
    }

    /// From now on what was read stays in the rings until [`Rings::release`].
    pub(super) fn keep(&mut self) {
        self.keeps = true;
    }

    /// What to wait for.
    pub(super) fn waitable(&self) -> [&Ring; 2] {
        [&self.data, &self.control]
    }

    /// Whether records were read that are still in the rings.
    pub(super) fn keeps_some(&self) -> bool {
        [&self.data, &self.control]
            .iter()
            .any(|ring| ring.released() != ring.place())
    }

    /// Entries whose size contradicts their length.
    pub(super) fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Size of both.
    pub(super) fn bytes(&self) -> u64 {
        self.data.bytes() + self.control.bytes()
    }

    /// How far both were read.
    pub(super) fn place(&self) -> Place {
        Place {
            data: self.data.place(),
            control: self.control.place(),
        }
    }

    /// How far the kernel has written.
    pub(super) fn produced(&self) -> Place {
        Place {
            data: self.data.produced(),
            control: self.control.produced(),
        }
    }

    /// The headers of the next records, which stay the next ones.
    pub(super) fn next_headers(&mut self) -> [Option<RecordHeader>; 2] {
        [&mut self.data, &mut self.control].map(|ring| header_of(ring.peek()?))
    }

    /// Gives the room of all records before `place` back to the kernel, and then their credit.
    pub(super) fn release(&mut self, place: Place) {
        let Self {
            data,
            control,
            credits,
            ..
        } = self;
        for (which, ring, place) in [(DATA, data, place.data), (CONTROL, control, place.control)] {
            // Before the kernel may write there.
            ring.unreleased(place, |entry| {
                if let Some(pool) = pool_of(entry) {
                    credits.owe(which, pool, entry.len() as u64);
                }
            });
            ring.release(place);
        }
        credits.give_back();
    }

    /// Sets what each pool has on its way to what lies in the rings: whoever emptied them before may have been killed between giving
    /// room and giving credit back.
    pub(super) fn recount(&mut self) {
        let Self {
            data,
            control,
            credits,
            ..
        } = self;
        for (which, ring) in [(DATA, data), (CONTROL, control)] {
            // The place first: what comes in between is then on its way and not counted, which is harmless; the other way round a pool
            // would have less for ever.
            let end = ring.produced();
            let taken = credits.produced(which);
            let mut waiting = [0_u64; POOLS];
            ring.unreleased(end, |entry| {
                if let Some(pool) = pool_of(entry) {
                    waiting[usize::from(pool)] += entry.len() as u64;
                }
            });
            credits.set(which, &taken, &waiting);
        }
    }

    /// Gives up to `most` records with their pools to `take`, cut to their sizes; how many.
    pub(super) fn drain(&mut self, most: usize, mut take: impl FnMut(u8, &[u8])) -> usize {
        let Self {
            data,
            control,
            credits,
            keeps,
            malformed,
        } = self;
        let mut records = 0;
        while records < most {
            let item = data.next();
            // Only now: what this record follows from was in the control ring before it was in its own.
            while let Some(head) = control.peek() {
                match whole_record(head) {
                    Some((record, _)) if !is_before(record, item) => break,
                    Some((record, pool)) => {
                        take(pool, record);
                        records += 1;
                        if !*keeps {
                            credits.took(CONTROL, pool, head.len() as u64);
                        }
                    }
                    None => *malformed += 1,
                }
                control.next();
                if !*keeps {
                    control.release(control.place());
                }
            }
            let Some(item) = item else { break };
            match whole_record(item) {
                Some((record, pool)) => {
                    take(pool, record);
                    records += 1;
                    if !*keeps {
                        credits.took(DATA, pool, item.len() as u64);
                    }
                }
                None => *malformed += 1,
            }
            if !*keeps {
                data.release(data.place());
            }
        }
        if !*keeps {
            credits.give_back();
        }
        records
    }
}

fn header_of(entry: &[u8]) -> Option<RecordHeader> {
    let (header, _) = RecordHeader::read_from_prefix(entry).ok()?;
    Some(header)
}

/// Whether a control record was made before a data record, or there is none. On one processor the numbers tell.
fn is_before(control: &[u8], data: Option<&[u8]>) -> bool {
    let (Some(control), Some(data)) = (header_of(control), data.and_then(header_of)) else {
        return true;
    };
    let order = if control.cpu == data.cpu {
        control.cpu_seq.cmp(&data.cpu_seq)
    } else {
        control.boot_ns.cmp(&data.boot_ns)
    };
    order != Order::Greater
}

/// The record at the start of a ring entry, without the rest of its reservation, and its pool, which lies at the entry's end.
fn whole_record(entry: &[u8]) -> Option<(&[u8], u8)> {
    let (header, _) = RecordHeader::read_from_prefix(entry).ok()?;
    let size = usize::try_from(header.size).ok()?;
    (size >= size_of::<RecordHeader>()).then_some(())?;
    let (rest, trailer) = entry.split_last_chunk::<TRAILER_BYTES>()?;
    let pool = u8::try_from(u64::from_ne_bytes(*trailer)).ok()?;
    (usize::from(pool) < POOLS).then_some(())?;
    Some((rest.get(..size)?, pool))
}

/// The pool of an entry that is a record.
fn pool_of(entry: &[u8]) -> Option<u8> {
    whole_record(entry).map(|(_, pool)| pool)
}

/// The table of credits, shared with the kernel programs.
#[derive(Debug)]
pub(super) struct Credits {
    place: NonNull<Credit>,
    /// Taken out and not yet given back, by ring and pool.
    owed: Box<[[u64; POOLS]; 2]>,
    unsaid: u64,
}

// SAFETY: the mapping belongs to this value alone, and is only used through it.
unsafe impl Send for Credits {}

impl Credits {
    /// Maps the table.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn map(table: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a new mapping of a map of that size; nothing else is touched.
        let place = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Credit>() * POOLS,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                table.as_raw_fd(),
                0,
            )
        };
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let place = NonNull::new(place.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            place,
            owed: Box::new([[0; POOLS]; 2]),
            unsaid: 0,
        })
    }

    /// Notes what was taken out, and gives back when it is worth it.
    fn took(&mut self, ring: usize, pool: u8, bytes: u64) {
        self.owe(ring, pool, bytes);
        if self.unsaid >= GIVE_BACK_BYTES {
            self.give_back();
        }
    }

    fn owe(&mut self, ring: usize, pool: u8, bytes: u64) {
        self.owed[ring][usize::from(pool)] += bytes;
        self.unsaid += bytes;
    }

    fn give_back(&mut self) {
        if self.unsaid == 0 {
            return;
        }
        self.unsaid = 0;
        for ring in [DATA, CONTROL] {
            for pool in 0..POOLS {
                let bytes = std::mem::take(&mut self.owed[ring][pool]);
                if bytes > 0 {
                    let consumed = self.consumed(ring, pool);
                    consumed.store(
                        consumed.load(Ordering::Relaxed).wrapping_add(bytes),
                        Ordering::Relaxed,
                    );
                }
            }
        }
    }

    /// What each pool has put into a ring so far.
    fn produced(&self, ring: usize) -> [u64; POOLS] {
        std::array::from_fn(|pool| {
            // SAFETY: within the mapping, which lives as long as this value; an aligned word that is only changed atomically.
            let produced = unsafe {
                AtomicU64::from_ptr(&raw mut (*self.place.as_ptr().add(pool)).produced[ring])
            };
            produced.load(Ordering::Acquire)
        })
    }

    /// Of what the pools had produced, this much is waiting.
    fn set(&mut self, ring: usize, produced: &[u64; POOLS], waiting: &[u64; POOLS]) {
        for (pool, (produced, waiting)) in produced.iter().zip(waiting).enumerate() {
            let taken = produced.wrapping_sub(*waiting);
            self.consumed(ring, pool).store(taken, Ordering::Relaxed);
        }
    }

    fn consumed(&self, ring: usize, pool: usize) -> &AtomicU64 {
        // SAFETY: within the mapping, which lives as long as this value; an aligned word that only we write.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.place.as_ptr().add(pool)).consumed[ring]) }
    }
}

impl Drop for Credits {
    fn drop(&mut self) {
        // SAFETY: our own mapping, used no more.
        unsafe { libc::munmap(self.place.as_ptr().cast(), size_of::<Credit>() * POOLS) };
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use zerocopy::IntoBytes;

    use super::*;

    fn entry(size: u32, len: usize, pool: u64) -> Vec<u8> {
        let mut bytes = header(0, 0, 0, size).as_bytes().to_vec();
        bytes.resize(len, 0);
        bytes.extend(pool.to_ne_bytes());
        bytes
    }

    fn header(cpu: u16, cpu_seq: u64, boot_ns: u64, size: u32) -> RecordHeader {
        RecordHeader {
            kind: 1,
            cpu,
            size,
            cpu_seq,
            boot_ns,
            generation: 0,
        }
    }

    #[test]
    fn a_ring_entry_is_cut_to_the_size_in_its_header() {
        let entry = entry(40, 64, 3);
        let (record, pool) = whole_record(&entry).unwrap();
        assert_eq!((record.len(), pool), (40, 3));
    }

    #[test]
    fn a_size_that_contradicts_the_entry_is_refused() {
        assert_eq!(whole_record(&entry(65, 64, 0)), None);
        assert_eq!(whole_record(&entry(31, 64, 0)), None);
        assert_eq!(whole_record(&entry(40, 64, POOLS as u64)), None);
        assert_eq!(whole_record(&[0; 8]), None);
    }

    #[test]
    fn on_one_processor_the_numbers_tell_the_order_else_the_time() {
        let is = |control: RecordHeader, data: RecordHeader| {
            is_before(control.as_bytes(), Some(data.as_bytes()))
        };
        assert!(is(header(0, 1, 200, 32), header(0, 2, 100, 32)));
        assert!(!is(header(0, 3, 50, 32), header(0, 2, 100, 32)));
        assert!(is(header(1, 9, 100, 32), header(0, 2, 100, 32)));
        assert!(!is(header(1, 1, 101, 32), header(0, 2, 100, 32)));
        assert!(is_before(header(0, 0, 0, 32).as_bytes(), None));
    }
}
