#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::path::Path;

use countersign_common::{RecordHeader, kind};
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;
use crate::outdir::Dir;

#[test]
fn records_come_back_in_order_over_segments() {
    let place = Place::new();
    let records: Vec<_> = (0..5000_u32)
        .map(|number| record(kind::CHUNK, &[7; 1000], number))
        .collect();
    let stats = place.write(
        &records,
        Limits {
            segment_bytes: 1 << 20,
            ..Limits::default()
        },
    );
    assert!(stats.segments > 2, "{stats:?}");
    assert_eq!((stats.records, stats.lost_records), (5000, 0));
    let (read, damage, segments) = place.read();
    assert_eq!(read, records);
    assert_eq!(damage, []);
    assert_eq!(segments, (1..=stats.segments).collect::<Vec<_>>());
}

#[test]
fn files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    place.write(&[record(kind::FORK, b"", 0)], Limits::default());
    let mode = std::fs::metadata(place.segment(1))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn a_tail_torn_at_any_byte_costs_only_the_torn_record() {
    let place = Place::new();
    let records = [
        record(kind::FORK, b"one", 0),
        record(kind::CHUNK, b"two two", 1),
        record(kind::EXIT, b"", 2),
    ];
    place.write(&records, Limits::default());
    let whole = std::fs::read(place.segment(1)).unwrap();
    let ends: Vec<usize> = records
        .iter()
        .rev()
        .scan(whole.len(), |end, record| {
            let this = *end;
            *end -= record.len() + FRAME_HEAD_BYTES;
            Some(this)
        })
        .collect();
    let first = ends.last().unwrap() - records[0].len() - FRAME_HEAD_BYTES;
    for length in 0..=whole.len() {
        std::fs::write(place.segment(1), &whole[..length]).unwrap();
        let (read, damage, _) = place.read();
        let kept = ends.iter().filter(|end| **end <= length).count();
        assert_eq!(read, records[..kept], "cut at {length}");
        let clean = length == first || ends.contains(&length);
        assert_eq!(damage.is_empty(), clean, "cut at {length}: {damage:?}");
        assert!(
            damage
                .iter()
                .all(|damage| damage.kind == DamageKind::TornTail),
            "cut at {length}: {damage:?}"
        );
    }
}

#[test]
fn one_flipped_bit_costs_at_most_its_record_and_is_reported() {
    let place = Place::new();
    let records: Vec<_> = (0..4)
        .map(|number| record(kind::CHUNK, b"payload", number))
        .collect();
    place.write(&records, Limits::default());
    let whole = std::fs::read(place.segment(1)).unwrap();
    let size = records[0].len() + FRAME_HEAD_BYTES;
    let first = whole.len() - 4 * size;
    // In the body of the second record; its length stays good, so the third is found.
    let mut bytes = whole.clone();
    bytes[first + size + FRAME_HEAD_BYTES + 3] ^= 1;
    std::fs::write(place.segment(1), &bytes).unwrap();
    let (read, damage, _) = place.read();
    assert_eq!(
        read,
        [records[0].clone(), records[2].clone(), records[3].clone()]
    );
    assert_eq!(damage.len(), 1);
    assert_eq!(
        (damage[0].offset, damage[0].bytes),
        ((first + size) as u64, size as u64)
    );
    // Anywhere at all: never a wrong record, always a report.
    for position in first..whole.len() {
        let mut bytes = whole.clone();
        bytes[position] ^= 0x10;
        std::fs::write(place.segment(1), &bytes).unwrap();
        let (read, damage, _) = place.read();
        assert!(
            read.iter().all(|record| records.contains(record)),
            "bit at {position}"
        );
        assert!(!damage.is_empty() && read.len() < 4, "bit at {position}");
    }
}

#[test]
fn a_missing_segment_is_damage_not_silence() {
    let place = Place::new();
    let records: Vec<_> = (0..3000)
        .map(|number| record(kind::CHUNK, &[1; 1024], number))
        .collect();
    let stats = place.write(
        &records,
        Limits {
            segment_bytes: 1 << 20,
            ..Limits::default()
        },
    );
    assert!(stats.segments >= 3);
    std::fs::remove_file(place.segment(2)).unwrap();
    let (_, damage, _) = place.read();
    assert_eq!(
        damage
            .iter()
            .map(|damage| (damage.segment, damage.kind))
            .collect::<Vec<_>>(),
        [(2, DamageKind::MissingSegment)]
    );
}

#[test]
fn a_segment_of_another_capture_is_not_mixed_in() {
    let (place, other) = (Place::new(), Place::new());
    let records: Vec<_> = (0..3000)
        .map(|number| record(kind::CHUNK, &[1; 1024], number))
        .collect();
    let limits = Limits {
        segment_bytes: 1 << 20,
        ..Limits::default()
    };
    place.write(&records, limits);
    other.write_as(&records, limits, "01OTHER");
    std::fs::copy(other.segment(2), place.segment(2)).unwrap();
    let (_, damage, _) = place.read();
    assert_eq!(
        damage
            .iter()
            .map(|damage| (damage.segment, damage.kind))
            .collect::<Vec<_>>(),
        [(2, DamageKind::ForeignSegment)]
    );
}

#[test]
fn another_abi_version_is_an_error() {
    let place = Place::new();
    place.write(&[record(kind::FORK, b"", 0)], Limits::default());
    let mut start = MAGIC.to_vec();
    push_frame(
        &mut start,
        br#"{"abi_version":4000000000}"#,
        HEADER_MAX_BYTES,
    );
    std::fs::write(place.segment(1), start).unwrap();
    let mut reader = SpoolReader::open(place.dir()).unwrap();
    assert!(matches!(
        reader.next_item(),
        Err(SpoolError::Header(HeaderError::Abi { .. }))
    ));
}

#[test]
fn an_empty_directory_is_no_spool() {
    assert!(matches!(
        SpoolReader::open(Place::new().dir()),
        Err(SpoolError::NoSegments)
    ));
}

#[test]
fn the_disk_budget_removes_paired_segments_first_and_counts_what_it_cannot_keep() {
    let place = Place::new();
    let limits = Limits {
        segment_bytes: 1 << 20,
        max_disk_bytes: Some(6 << 20),
    };
    let mut writer = SpoolWriter::create(place.dir(), identity("01A"), limits).unwrap();
    let chunk = record(kind::CHUNK, &vec![3; 60_000], 0);
    for _ in 0..70 {
        writer.record(&chunk);
    }
    assert_eq!(writer.stats().lost_records, 0, "{:?}", writer.stats());
    let oldest = writer.closed_segments().next().unwrap();
    writer.mark_paired(oldest);
    for _ in 0..200 {
        writer.record(&chunk);
    }
    writer.record(&record(kind::EXIT, b"", 1));
    assert!(writer.stats().lost_records > 0, "{:?}", writer.stats());
    assert_eq!(writer.stats().segments_removed, 1);
    let all: Vec<_> = writer.closed_segments().collect();
    for segment in all {
        writer.mark_paired(segment);
    }
    let stats = writer.finish();
    assert!(stats.disk_bytes <= 6 << 20);
    // Small records survive what payload does not, and the loss is told in the spool.
    let (read, _, _) = place.read();
    let kinds: Vec<u16> = read
        .iter()
        .map(|record| u16::from_le_bytes([record[0], record[1]]))
        .collect();
    assert!(kinds.contains(&kind::EXIT), "{stats:?}");
    assert_eq!(stats.lost_small_records, 0);
}

#[test]
fn a_large_block_is_written_whole_or_given_up_and_counted_record_by_record() {
    let place = Place::new();
    let limits = Limits {
        max_disk_bytes: Some(3 << 20),
        ..Limits::default()
    };
    let mut writer = SpoolWriter::create(place.dir(), identity("01A"), limits).unwrap();
    let mut block = Vec::new();
    for n in 0..16 {
        push_frame(
            &mut block,
            &record(kind::CHUNK, &vec![3; 60_000], n),
            RECORD_MAX_BYTES,
        );
    }
    push_frame(&mut block, &record(kind::FORK, b"", 16), RECORD_MAX_BYTES);
    for _ in 0..4 {
        writer.block(&block, 17);
    }
    let stats = writer.finish();
    let (read, damage, _) = place.read();
    assert!(damage.is_empty());
    let of = |wanted: u16| {
        read.iter()
            .filter(|record| record.starts_with(&wanted.to_ne_bytes()))
            .count() as u64
    };
    assert_eq!(
        (of(kind::FORK), stats.lost_small_records),
        (4, 0),
        "{stats:?}"
    );
    assert_eq!(of(kind::CHUNK) + stats.lost_records, 64, "{stats:?}");
    assert!(stats.lost_records > 0 && of(kind::CHUNK) >= 16);
}

#[test]
fn the_end_of_a_recording_has_room_when_payload_has_none() {
    let place = Place::new();
    let limits = Limits {
        max_disk_bytes: Some(3 << 20),
        ..Limits::default()
    };
    let mut writer = SpoolWriter::create(place.dir(), identity("01A"), limits).unwrap();
    let chunk = record(kind::CHUNK, &vec![3; 60_000], 0);
    let forks: u64 = 2 * (1 << 20) / 100;
    for _ in 0..200 {
        writer.record(&chunk);
    }
    for _ in 0..forks {
        writer.record(&record(kind::FORK, &[0; 64], 1));
    }
    writer.record(&record(kind::CAPTURE, b"end", 2));
    let stats = writer.finish();
    assert!(stats.disk_bytes <= 3 << 20, "{stats:?}");
    assert!(stats.lost_small_records > 0, "{stats:?}");
    let (read, damage, _) = place.read();
    assert_eq!(damage, []);
    let kinds: Vec<u16> = read
        .iter()
        .map(|record| u16::from_le_bytes([record[0], record[1]]))
        .collect();
    assert_eq!(kinds.last(), Some(&kind::CAPTURE));
    let told = read
        .iter()
        .find(|record| record[..2] == kind::LOSS.to_le_bytes())
        .unwrap();
    let told: serde_json::Value =
        serde_json::from_slice(&told[size_of::<RecordHeader>()..]).unwrap();
    assert_eq!(told["records"], stats.lost_records);
    assert_eq!(told["bytes"], stats.lost_bytes);
    let kept = kinds.iter().filter(|kind| **kind != kind::LOSS).count() as u64;
    assert_eq!(kept + stats.lost_records, 200 + forks + 1);
    assert!(!place.0.path().join("reserve").exists());
}

/// On a real full file system: a tmpfs of four megabytes in a mount namespace of this thread's own.
#[test]
fn a_full_disk_costs_payload_only_and_is_reported_once_there_is_room() {
    if !rustix::process::geteuid().is_root() {
        assert!(
            std::env::var_os("COUNTERSIGN_REQUIRE_LIVE").is_none(),
            "this test needs root"
        );
        skipped("mounting a small file system needs root");
        return;
    }
    std::thread::spawn(|| {
        let place = Place::new();
        mount_small(place.0.path());
        let ballast = place.0.path().join("ballast");
        std::fs::write(&ballast, vec![0; 2 << 20]).unwrap();
        let mut writer =
            SpoolWriter::create(place.dir(), identity("01A"), Limits::default()).unwrap();
        let chunk = record(kind::CHUNK, &vec![3; 60_000], 0);
        for _ in 0..100 {
            writer.record(&chunk);
        }
        writer.record(&record(kind::EXEC, b"who", 1));
        let lost = writer.stats().lost_records;
        assert!(
            writer.stats().starved == 1 && lost > 0,
            "{:?}",
            writer.stats()
        );
        std::fs::remove_file(&ballast).unwrap();
        let stats = writer.finish();
        assert_eq!(stats.lost_small_records, 0, "{stats:?}");
        let (read, damage, _) = place.read();
        assert_eq!(damage, [], "a half-written record stayed behind");
        let kinds: Vec<u16> = read
            .iter()
            .map(|record| u16::from_le_bytes([record[0], record[1]]))
            .collect();
        assert!(kinds.contains(&kind::EXEC));
        assert_eq!(
            kinds.iter().filter(|kind| **kind == kind::CHUNK).count() as u64 + lost,
            100
        );
        let told = read
            .iter()
            .find(|record| record[..2] == kind::LOSS.to_le_bytes())
            .unwrap();
        let told: serde_json::Value =
            serde_json::from_slice(&told[size_of::<RecordHeader>()..]).unwrap();
        assert_eq!(told["records"], lost);
        assert_eq!(told["records_without_payload"], 0);
    })
    .join()
    .unwrap();
}

#[test]
fn a_record_that_is_too_long_is_counted_not_written() {
    let place = Place::new();
    let long = vec![1; RECORD_MAX_BYTES + 1];
    let stats = place.write(
        &[long, Vec::new(), record(kind::EXIT, b"", 0)],
        Limits::default(),
    );
    assert_eq!((stats.records, stats.lost_records), (1, 2));
    assert_eq!(place.read().0.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_records_round_trip(
        bodies in prop::collection::vec((any::<u8>(), 0_usize..3000), 0..200),
        segment_bytes in 1_u64..100_000,
    ) {
        let place = Place::new();
        let records: Vec<_> = bodies.iter().zip(0..).map(|((fill, length), number)| {
            record(kind::CHUNK, &vec![*fill; *length], number)
        }).collect();
        place.write(&records, Limits { segment_bytes, ..Limits::default() });
        let (read, damage, _) = place.read();
        prop_assert_eq!(read, records);
        prop_assert_eq!(damage, vec![]);
    }

    #[test]
    fn hostile_segments_never_panic_nor_loop(bytes in prop::collection::vec(any::<u8>(), 0..2000), keep in 0_usize..400) {
        let place = Place::new();
        place.write(&[record(kind::FORK, b"abc", 0), record(kind::EXIT, b"", 1)], Limits::default());
        let mut whole = std::fs::read(place.segment(1)).unwrap();
        whole.truncate(keep);
        whole.extend(&bytes);
        std::fs::write(place.segment(1), whole).unwrap();
        let mut reader = SpoolReader::open(place.dir()).unwrap();
        let mut items = 0;
        while let Ok(Some(_)) = reader.next_item() {
            items += 1;
            prop_assert!(items < 10_000);
        }
    }
}

#[test]
fn segment_names_and_numbers_agree() {
    for number in [1, 42, 99_999_999, 100_000_000, u32::MAX] {
        assert_eq!(segment_number(&segment_name(number)), Some(number));
    }
    for name in [
        "0.spool",
        "00000000.spool",
        "1.spool",
        "0000000a.spool",
        "00000001.spool.tmp",
        "000000001.spool",
    ] {
        assert_eq!(segment_number(name), None, "{name}");
    }
}

#[test]
fn zeros_are_no_frame() {
    assert_ne!(checksum(0, b""), 0);
}

/// A directory for one spool.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn dir(&self) -> Dir {
        Dir::open_named(self.0.path()).unwrap()
    }

    fn segment(&self, number: u32) -> std::path::PathBuf {
        Path::new(self.0.path()).join(segment_name(number))
    }

    fn write(&self, records: &[Vec<u8>], limits: Limits) -> SpoolStats {
        self.write_as(records, limits, "01A")
    }

    fn write_as(&self, records: &[Vec<u8>], limits: Limits, capture: &str) -> SpoolStats {
        let mut writer = SpoolWriter::create(self.dir(), identity(capture), limits).unwrap();
        for record in records {
            writer.record(record);
        }
        writer.finish()
    }

    fn read(&self) -> (Vec<Vec<u8>>, Vec<Damage>, Vec<u32>) {
        let (mut records, mut damage, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        let mut reader = SpoolReader::open(self.dir()).unwrap();
        while let Some(item) = reader.next_item().unwrap() {
            match item {
                SpoolItem::Record(record) => records.push(record.to_vec()),
                SpoolItem::Damage(found) => damage.push(found),
                SpoolItem::Segment(header) => segments.push(header.segment),
            }
        }
        (records, damage, segments)
    }
}

fn identity(capture: &str) -> SegmentHeader {
    SegmentHeader::of_this_machine(capture.to_owned(), 1, "00".to_owned()).unwrap()
}

fn record(kind: u16, payload: &[u8], cpu_seq: u32) -> Vec<u8> {
    let size = u32::try_from(size_of::<RecordHeader>() + payload.len()).unwrap();
    let header = RecordHeader {
        kind,
        cpu: 0,
        size,
        cpu_seq: cpu_seq.into(),
        boot_ns: 5,
        generation: 1,
    };
    [header.as_bytes(), payload].concat()
}

fn mount_small(at: &Path) {
    use std::os::unix::ffi::OsStrExt;
    let at = std::ffi::CString::new(at.as_os_str().as_bytes()).unwrap();
    // SAFETY: all strings are NUL-terminated; the namespace is this thread's own and ends with it.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0);
        let none = std::ptr::null();
        assert_eq!(
            libc::mount(
                none,
                c"/".as_ptr(),
                none,
                libc::MS_REC | libc::MS_PRIVATE,
                none.cast()
            ),
            0
        );
        let tmpfs = c"tmpfs".as_ptr();
        assert_eq!(
            libc::mount(tmpfs, at.as_ptr(), tmpfs, 0, c"size=4m".as_ptr().cast()),
            0
        );
    }
}

fn skipped(why: &str) {
    // Not `eprintln!`: the test runner keeps what a passing test prints that way to itself.
    let _unheard = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("skipped: {why}\n").as_bytes(),
    );
}
