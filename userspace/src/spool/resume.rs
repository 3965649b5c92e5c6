//! Going on with a spool whose writer died.
//!
//! Owns cutting a torn tail off, and telling which records are there already: whoever emptied the ring may have been killed
//! between writing a record down and telling the kernel, and then the kernel hands it out once more.

use std::collections::HashSet;
use std::io::{self, Read};

use countersign_common::{RecordHeader, kind};
use zerocopy::FromBytes;

use super::{
    FRAME_HEAD_BYTES, HEADER_MAX_BYTES, MAGIC, RECORD_MAX_BYTES, SEGMENTS_MAX, SegmentHeader,
    SpoolError, checksum, segment_name, segment_number,
};
use crate::outdir::Dir;

/// What a spool holds when its writer has died.
#[derive(Debug)]
pub struct Resumed {
    /// The header of its segments.
    pub identity: SegmentHeader,
    /// Number for the next segment.
    pub next_number: u32,
    /// Whole segments with their lengths in bytes, oldest first.
    pub segments: Vec<(u32, u64)>,
    /// Bytes of a half-written frame that were cut off its end.
    pub torn_bytes: u64,
    /// When its last record was made, `CLOCK_BOOTTIME` nanoseconds; 0 when it has none.
    pub last_boot_ns: u64,
    /// The last records of the kernel.
    pub recent: Recent,
}

/// Records of the kernel by CPU and number: what makes one unique in a capture.
#[derive(Debug, Default)]
pub struct Recent(HashSet<(u16, u64)>);

impl Recent {
    /// Whether a record is among them.
    pub fn has(&self, record: &[u8]) -> bool {
        kernel_header(record).is_some_and(|header| self.0.contains(&(header.cpu, header.cpu_seq)))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// How much later a record can have been put into the ring than one of a higher number of the same CPU: numbers are given just
/// before places are, and an interrupt can come in between.
const SWAPPED_MAX: u64 = 4096;

/// Looks at a spool, cuts a torn tail off and gathers its last records: those that can lie in rings of `ring_bytes` together which
/// begin with the records `next`. All have the same order but for a little, so the search ends where a record of each one's CPU has a
/// clearly lower number.
///
/// # Errors
/// When it has no readable segment or is of another record layout.
pub fn resume(
    dir: &Dir,
    ring_bytes: u64,
    mut next: [Option<RecordHeader>; 2],
) -> Result<Resumed, SpoolError> {
    let mut numbers: Vec<u32> = dir
        .file_names()?
        .iter()
        .filter_map(|name| segment_number(name.to_str()?))
        .take(SEGMENTS_MAX)
        .collect();
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    let mut found: Option<Resumed> = None;
    let mut segments = Vec::new();
    let mut left = if next == [None, None] { 0 } else { ring_bytes };
    for number in numbers {
        let name = segment_name(number);
        if found.is_some() && left == 0 {
            segments.push((number, dir.open_file(&name)?.metadata()?.len()));
            continue;
        }
        let mut bytes = Vec::new();
        dir.open_file(&name)?.read_to_end(&mut bytes)?;
        let Some((header, records, end)) = contents(&bytes)? else {
            if found.is_none() {
                // The writer died while it made the segment: nothing is in it.
                dir.remove_file(&name)?;
            }
            continue;
        };
        let found = found.get_or_insert_with(|| Resumed {
            identity: header,
            next_number: number.saturating_add(1),
            segments: Vec::new(),
            torn_bytes: 0,
            last_boot_ns: 0,
            recent: Recent::default(),
        });
        if end < bytes.len() {
            // Only the last segment can end in mid-frame; an earlier one is damaged and stays as it is.
            if segments.is_empty() {
                dir.truncate_file(&name, end as u64)?;
                found.torn_bytes = (bytes.len() - end) as u64;
            }
            segments.push((number, end as u64));
        } else {
            segments.push((number, bytes.len() as u64));
        }
        for record in records.into_iter().rev() {
            if found.last_boot_ns == 0
                && let Ok((header, _)) = RecordHeader::read_from_prefix(record)
            {
                found.last_boot_ns = header.boot_ns;
            }
            let Some(header) = kernel_header(record) else {
                continue;
            };
            if left == 0 {
                break;
            }
            left = left.saturating_sub(record.len() as u64);
            for next in &mut next {
                if next.is_some_and(|next| {
                    next.cpu == header.cpu
                        && header.cpu_seq.saturating_add(SWAPPED_MAX) < next.cpu_seq
                }) {
                    *next = None;
                }
            }
            if next == [None, None] {
                left = 0;
            }
            found.recent.0.insert((header.cpu, header.cpu_seq));
        }
    }
    let mut found = found.ok_or(SpoolError::NoSegments)?;
    segments.reverse();
    found.segments = segments;
    Ok(found)
}

fn kernel_header(record: &[u8]) -> Option<RecordHeader> {
    let (header, _) = RecordHeader::read_from_prefix(record).ok()?;
    (header.kind < kind::FIRST_USER).then_some(header)
}

/// Header, whole records and where they end. `None` when there is no whole header.
#[expect(
    clippy::type_complexity,
    reason = "three things that nobody else needs"
)]
fn contents(bytes: &[u8]) -> Result<Option<(SegmentHeader, Vec<&[u8]>, usize)>, SpoolError> {
    if !bytes.starts_with(&MAGIC) {
        return Ok(None);
    }
    let Some((header, mut at)) = frame(bytes, MAGIC.len(), HEADER_MAX_BYTES) else {
        return Ok(None);
    };
    let header = SegmentHeader::parse(header).map_err(|error| match error {
        super::HeaderError::Abi { .. } => error.into(),
        super::HeaderError::Malformed(error) => SpoolError::Io(io::Error::from(error)),
    })?;
    let mut records = Vec::new();
    while let Some((record, next)) = frame(bytes, at, RECORD_MAX_BYTES) {
        records.push(record);
        at = next;
    }
    Ok(Some((header, records, at)))
}

/// The body of the frame at `at`, and where the next one begins.
fn frame(bytes: &[u8], at: usize, limit: usize) -> Option<(&[u8], usize)> {
    let rest = bytes.get(at..)?;
    let length = u32::from_le_bytes(*rest.first_chunk()?);
    let expected = u32::from_le_bytes(*rest.get(4..)?.first_chunk()?);
    let size = length as usize;
    if size == 0 || size > limit {
        return None;
    }
    let body = rest.get(FRAME_HEAD_BYTES..FRAME_HEAD_BYTES + size)?;
    (checksum(length, body) == expected).then_some((body, at + FRAME_HEAD_BYTES + size))
}
