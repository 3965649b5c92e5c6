//! What must hold for any records given to the correlator.
//!
//! The input is a list of records, each after its length in two bytes, little-endian. The header's length is set right, or
//! hardly any input would get past it. Debug builds check besides that every call, entry and gap has exactly one verdict.

use countersign_core::correlator::{Correlator, PayloadMode, Proxy, RETAINED_BYTES_MAX, Settings};
use countersign_core::process::FileId;
use countersign_core::role::ProxyIdentity;
use countersign_core::row::ids::CaptureId;
use countersign_core::row::{Row, UtcNs};
use countersign_core::verdict::ProxyPolicy;

/// Panics if a property does not hold.
pub(crate) fn check(bytes: &[u8]) {
    let records = records(bytes);
    let rows = correlate(&records);
    assert_eq!(
        rows,
        correlate(&records),
        "the same records give the same rows"
    );
}

fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<2>() {
        let len = usize::from(u16::from_le_bytes(*len)).min(rest.len());
        let (record, rest) = rest.split_at(len);
        bytes = rest;
        let mut record = record.to_vec();
        if let (Some(size), Ok(len)) = (record.get_mut(4..8), u32::try_from(len)) {
            size.copy_from_slice(&len.to_le_bytes());
        }
        records.push(record);
    }
    records
}

fn correlate(records: &[Vec<u8>]) -> Vec<Row> {
    let mut core = Correlator::new(Settings {
        capture: CaptureId::new(UtcNs(0), b"boot", b"host", 0),
        payload: PayloadMode::Redacted,
        hash_key: b"key".to_vec(),
        proxies: vec![Proxy {
            name: "proxy".to_owned(),
            identity: ProxyIdentity {
                exes: vec![FileId {
                    dev: 8 << 20 | 1,
                    inode: 200,
                }],
                ..ProxyIdentity::default()
            },
            policy: ProxyPolicy::default(),
        }],
        retained_bytes_max: RETAINED_BYTES_MAX,
        allow_direct: Vec::new(),
    });
    for record in records {
        core.handle_record(record);
    }
    let mut rows = Vec::new();
    core.finish(&mut |row| rows.push(row));
    rows
}
