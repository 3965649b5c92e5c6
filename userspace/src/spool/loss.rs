//! Records that were given up, until a record in the spool says so.

use countersign_common::{RecordHeader, kind};
use serde_json::json;
use zerocopy::FromBytes;

use crate::source::user_record::user_record;

/// A loss that is not yet in the spool.
#[derive(Clone, Debug, Default)]
pub(super) struct Loss {
    pub(super) what: &'static str,
    pub(super) cause: String,
    pub(super) records: u64,
    pub(super) bytes: u64,
    pub(super) small_records: u64,
    first_boot_ns: u64,
    last_boot_ns: u64,
}

impl Loss {
    pub(super) fn new(what: &'static str, cause: String) -> Self {
        Self {
            what,
            cause,
            ..Self::default()
        }
    }

    /// Adds a record that was given up.
    pub(super) fn add(&mut self, record: &[u8]) {
        let boot_ns =
            RecordHeader::read_from_prefix(record).map_or(0, |(header, _)| header.boot_ns);
        if self.records == 0 {
            self.first_boot_ns = boot_ns;
        }
        self.last_boot_ns = boot_ns;
        self.records += 1;
        self.bytes += record.len() as u64;
        self.small_records += u64::from(!has_payload(record));
    }

    pub(super) fn to_record(&self, generation: u64) -> anyhow::Result<Vec<u8>> {
        let body = json!({
            "what": self.what,
            "cause": self.cause,
            "records": self.records,
            "bytes": self.bytes,
            "records_without_payload": self.small_records,
            "first_boot_ns": self.first_boot_ns,
            "last_boot_ns": self.last_boot_ns,
        });
        user_record(kind::LOSS, generation, &body)
    }
}

/// Whether a record carries payload: those are given up first, the small ones that say who did what last.
pub(super) fn has_payload(record: &[u8]) -> bool {
    RecordHeader::read_from_prefix(record).is_ok_and(|(header, _)| header.kind == kind::CHUNK)
}
