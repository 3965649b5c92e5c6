#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use countersign_common::{RecordHeader, kind};
use zerocopy::{FromBytes, IntoBytes};

use super::*;

fn record(record_kind: u16, boot_ns: u64, len: usize) -> Vec<u8> {
    let header = RecordHeader {
        kind: record_kind,
        cpu: 0,
        size: u32::try_from(len).unwrap(),
        cpu_seq: 0,
        boot_ns,
        generation: 0,
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(len, 0);
    bytes
}

fn drain(backlog: &Backlog) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Next::Block(block) = backlog.next(Instant::now()) {
        all.extend(frames(&block.frames).map(<[u8]>::to_vec));
        backlog.written(block);
    }
    all
}

#[test]
fn records_come_out_as_they_went_in() {
    let backlog = Backlog::new();
    let mut inlet = backlog.inlet();
    let given: Vec<_> = (0..5000)
        .map(|n| record(kind::CHUNK, n, 40 + usize::try_from(n).unwrap() % 300))
        .collect();
    for record in &given {
        inlet.append(0, record);
    }
    inlet.hand_over();
    assert_eq!(drain(&backlog), given);
    assert!(backlog.take_loss().is_none());
}

#[test]
fn without_a_reader_payload_is_dropped_and_counted_and_the_rest_is_kept() {
    let backlog = Backlog::new();
    let mut inlet = backlog.inlet();
    let chunks = 2 * BACKLOG_MAX_BYTES as u64 / 60_000;
    for n in 0..chunks {
        inlet.append(0, &record(kind::CHUNK, n, 60_000));
        inlet.append(0, &record(kind::FORK, n, 96));
    }
    inlet.hand_over();
    let loss = backlog.take_loss().unwrap();
    let kept = drain(&backlog);
    let forks = kept.iter().filter(|record| !has_payload(record)).count() as u64;
    assert_eq!(forks, chunks, "who did what is kept");
    assert_eq!(kept.len() as u64 + loss.records, 2 * chunks);
    assert!(loss.records > chunks / 3 && loss.small_records == 0);
    assert_eq!(loss.bytes, loss.records * 60_000);
    let bytes: usize = kept.iter().map(Vec::len).sum();
    assert!(bytes <= BACKLOG_MAX_BYTES + BACKLOG_SMALL_BYTES);
    assert_eq!(backlog.lock().bytes, 0);
}

#[test]
fn who_floods_a_backlog_that_nobody_empties_costs_a_quiet_one_nothing() {
    let backlog = Backlog::new();
    let mut inlet = backlog.inlet();
    let chunks = 2 * BACKLOG_MAX_BYTES as u64 / 60_000;
    let quiet = 1000;
    for n in 0..chunks {
        inlet.record_of(2, &record(kind::CHUNK, 2, 60_000)).unwrap();
        inlet.record_of(6, &record(kind::CHUNK, 6, 60_000)).unwrap();
        if n % (chunks / quiet) == 0 {
            inlet.record_of(4, &record(kind::CHUNK, 4, 10_000)).unwrap();
        }
    }
    inlet.hand_over();
    let of = |pool: u64| {
        move |record: &Vec<u8>| RecordHeader::read_from_prefix(record).unwrap().0.boot_ns == pool
    };
    let lost = backlog.take_loss().unwrap().records;
    let kept = drain(&backlog);
    let count = |pool| kept.iter().filter(|record| of(pool)(record)).count() as u64;
    assert!(count(4) >= quiet, "{}", count(4));
    assert_eq!(lost + count(2) + count(6), 2 * chunks);
    assert!(count(2) > 0 && count(6) > 0);
    assert!(backlog.lock().by_pool.iter().all(|bytes| *bytes == 0));
}

#[test]
fn a_storm_of_small_records_is_bounded_too() {
    let backlog = Backlog::new();
    let mut inlet = backlog.inlet();
    let given = 2 * (BACKLOG_MAX_BYTES + BACKLOG_SMALL_BYTES) / 4096;
    for _ in 0..given {
        inlet.append(0, &record(kind::GAP, 7, 4096));
    }
    inlet.hand_over();
    let loss = backlog.take_loss().unwrap();
    assert!(loss.small_records > 0);
    assert_eq!(
        drain(&backlog).len() as u64 + loss.records,
        u64::try_from(given).unwrap()
    );
}
