//! Records that user space adds to the kernel's: a header and one JSON object.
//!
//! Each gets a number of its own in `cpu_seq`, so that a hole in them shows as one in the kernel's does.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use countersign_common::{RecordHeader, kind};
use serde::Serialize;
use zerocopy::IntoBytes;

/// Makes a record of one of the kinds from [`kind::FIRST_USER`] on, of now.
///
/// # Errors
/// When the kind is one of the kernel's, or the value has no JSON form or one over 4 GiB.
pub fn user_record(
    record_kind: u16,
    generation: u64,
    value: &impl Serialize,
) -> anyhow::Result<Vec<u8>> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    anyhow::ensure!(
        record_kind >= kind::FIRST_USER,
        "record kind {record_kind} belongs to the kernel"
    );
    let mut bytes = vec![0; size_of::<RecordHeader>()];
    serde_json::to_writer(&mut bytes, value).context("write a record as json")?;
    let header = RecordHeader {
        kind: record_kind,
        cpu: RecordHeader::USER_CPU,
        size: u32::try_from(bytes.len()).context("a user record is over 4 gib")?,
        cpu_seq: NEXT.fetch_add(1, Ordering::Relaxed),
        boot_ns: crate::clock::Moment::now().boot_ns,
        generation,
    };
    bytes[..size_of::<RecordHeader>()].copy_from_slice(header.as_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use countersign_core::record::{Record, parse};

    use super::*;

    #[test]
    fn a_user_record_is_read_back_as_its_json() {
        let bytes = user_record(kind::CLOCK, 7, &serde_json::json!({"a": 1})).unwrap();
        let Record::User(header, json) = parse(&bytes).unwrap() else {
            unreachable!()
        };
        assert_eq!((header.kind, header.generation), (kind::CLOCK, 7));
        assert_eq!(json, br#"{"a":1}"#);
    }

    #[test]
    fn a_kernel_kind_is_refused() {
        assert!(user_record(kind::CHUNK, 0, &()).is_err());
    }
}
