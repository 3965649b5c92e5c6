//! The spool: raw records on disk, in segments, before anything is computed from them.
//!
//! Owns the segment format, its writer and its reader. Knows nothing of what a record means beyond its
//! header: whether it carries payload decides what is given up first when the disk is full.
//!
//! A spool is a directory (0700) of files `00000001.spool`, `00000002.spool` … (0600):
//!
//! ```text
//! segment = magic "CSSPOOL1" | frame(header as JSON) | frame(record) …
//! frame   = length u32 LE | CRC-32 u32 LE over length and body | body
//! ```
//!
//! While it is written, a file `reserve` holds disk space for its end: when payload finds no room any more, what was lost, the
//! kernel's totals and the end of the recording still do.
//!
//! The checksum covers the length, so that a run of zeros is no frame. It detects damage, not
//! tampering: who can write to the spool can also write checksums.

mod backlog;
mod header;
mod loss;
mod reader;
mod resume;
mod syncer;
mod writer;

pub use backlog::{BACKLOG_MAX_BYTES, BACKLOG_SMALL_BYTES, Backlog, Inlet, SpoolThread};
pub use header::{HeaderError, SegmentHeader, boot_id, host_name, kernel_release, machine};
pub use reader::{Damage, DamageKind, SpoolError, SpoolItem, SpoolReader};
pub use resume::{Recent, Resumed, resume};
pub use writer::{Limits, SpoolStats, SpoolWriter};

/// First bytes of every segment; the digit is the version of the framing.
pub const MAGIC: [u8; 8] = *b"CSSPOOL1";

/// Default size at which a segment is closed and the next one begun, in bytes.
pub const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// Longest record in bytes. Stops a damaged length from allocating memory, and a user record (a scan of a
/// process with very many descriptors) from growing without end.
pub const RECORD_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Longest segment header in bytes.
pub const HEADER_MAX_BYTES: usize = 64 * 1024;

/// Most segments in one spool. Stops a directory full of invented names from growing the reader's list.
pub const SEGMENTS_MAX: usize = 1 << 20;

/// Bytes of a frame before its body.
const FRAME_HEAD_BYTES: usize = 8;

fn checksum(length: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// Appends one frame. `false` if the body is too long for one.
fn push_frame(buffer: &mut Vec<u8>, body: &[u8], limit: usize) -> bool {
    let Ok(length) = u32::try_from(body.len()) else {
        return false;
    };
    if body.is_empty() || body.len() > limit {
        return false;
    }
    buffer.reserve(FRAME_HEAD_BYTES + body.len());
    buffer.extend_from_slice(&length.to_le_bytes());
    buffer.extend_from_slice(&checksum(length, body).to_le_bytes());
    buffer.extend_from_slice(body);
    true
}

/// The records of whole frames.
fn frames(buffer: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let (head, tail) = rest.split_at_checked(FRAME_HEAD_BYTES)?;
        let length = u32::from_le_bytes(*head.first_chunk()?) as usize;
        let (record, after) = tail.split_at_checked(length)?;
        rest = after;
        Some(record)
    })
}

fn segment_name(number: u32) -> String {
    format!("{number:08}.spool")
}

fn segment_number(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".spool")?;
    if digits.len() < 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u32 = digits.parse().ok()?;
    (number > 0 && segment_name(number) == name).then_some(number)
}

#[cfg(test)]
mod resume_tests;
#[cfg(test)]
mod tests;
