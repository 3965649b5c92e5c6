//! Both rings of the kernel programs, read as one, and the credit that is given back for what was taken out.
//!
//! Records come out in the order of their time, so that what says who somebody is comes before what he did. Interprets no record
//! beyond its header.

use std::cmp::Ordering as Order;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{MapData, RingBuf};
use countersign_common::{
    RecordHeader,
    load::{Credit, TRAILER_BYTES},
    tag::POOLS,
};
use zerocopy::FromBytes;

/// Places of the rings in [`Credit`].
const DATA: usize = 0;
const CONTROL: usize = 1;

/// Bytes taken out before their credit is given back: each time costs the kernel's side a cache line.
const GIVE_BACK_BYTES: u64 = 64 << 10;

/// The rings.
pub(super) struct Rings {
    data: RingBuf<MapData>,
    control: RingBuf<MapData>,
    /// The next record of the control ring, already taken out of it, with its pool; empty for none.
    head: Vec<u8>,
    head_pool: u8,
    credits: Credits,
    malformed: u64,
}

impl Rings {
    pub(super) fn new(data: RingBuf<MapData>, control: RingBuf<MapData>, credits: Credits) -> Self {
        Self {
            data,
            control,
            head: Vec::new(),
            head_pool: 0,
            credits,
            malformed: 0,
        }
    }

    /// What to wait for: the ring that fills fastest.
    pub(super) fn waitable(&self) -> &RingBuf<MapData> {
        &self.data
    }

    /// Entries whose size contradicts their length.
    pub(super) fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Gives up to `most` records with their pools to `take`, cut to their sizes; how many.
    pub(super) fn drain(&mut self, most: usize, mut take: impl FnMut(u8, &[u8])) -> usize {
        let Self {
            data,
            control,
            head,
            head_pool,
            credits,
            malformed,
        } = self;
        let mut records = 0;
        while records < most {
            let item = data.next();
            // Only now: what this record follows from was in the control ring before it was in its own.
            loop {
                if head.is_empty() {
                    match next_control(control, head, credits, malformed) {
                        Some(pool) => *head_pool = pool,
                        None => break,
                    }
                }
                if !is_before(head, item.as_deref()) {
                    break;
                }
                take(*head_pool, head);
                records += 1;
                head.clear();
            }
            let Some(item) = item else { break };
            match whole_record(&item) {
                Some((record, pool)) => {
                    take(pool, record);
                    records += 1;
                    credits.took(DATA, pool, item.len() as u64);
                }
                None => *malformed += 1,
            }
        }
        credits.give_back();
        records
    }
}

/// Moves the next record of the control ring to `head`; its pool.
fn next_control(
    control: &mut RingBuf<MapData>,
    head: &mut Vec<u8>,
    credits: &mut Credits,
    malformed: &mut u64,
) -> Option<u8> {
    loop {
        let item = control.next()?;
        let Some((record, pool)) = whole_record(&item) else {
            *malformed += 1;
            continue;
        };
        head.extend_from_slice(record);
        credits.took(CONTROL, pool, item.len() as u64);
        return Some(pool);
    }
}

/// Whether a control record was made before a data record, or there is none. On one processor the numbers tell.
fn is_before(control: &[u8], data: Option<&[u8]>) -> bool {
    let header = |bytes: &[u8]| {
        RecordHeader::read_from_prefix(bytes)
            .ok()
            .map(|(header, _)| header)
    };
    let (Some(control), Some(data)) = (header(control), data.and_then(header)) else {
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

    fn took(&mut self, ring: usize, pool: u8, bytes: u64) {
        self.owed[ring][usize::from(pool)] += bytes;
        self.unsaid += bytes;
        if self.unsaid >= GIVE_BACK_BYTES {
            self.give_back();
        }
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
                    // SAFETY: within the mapping, which lives as long as this value; an aligned word that only we write.
                    let consumed = unsafe {
                        AtomicU64::from_ptr(
                            &raw mut (*self.place.as_ptr().add(pool)).consumed[ring],
                        )
                    };
                    consumed.store(
                        consumed.load(Ordering::Relaxed).wrapping_add(bytes),
                        Ordering::Relaxed,
                    );
                }
            }
        }
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
