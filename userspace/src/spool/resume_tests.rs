#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use countersign_common::{RecordHeader, kind};
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::outdir::Dir;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn dir(&self) -> Dir {
        Dir::open_named(self.0.path()).unwrap()
    }

    fn segment(&self, number: u32) -> std::path::PathBuf {
        self.0.path().join(segment_name(number))
    }

    /// Writes as a process does that is killed: handed over, never finished.
    fn write(&self, records: &[Vec<u8>]) {
        let identity = SegmentHeader::of_this_machine("01A".to_owned(), 1, "00".to_owned());
        let mut writer =
            SpoolWriter::create(self.dir(), identity.unwrap(), Limits::default()).unwrap();
        for record in records {
            writer.record(record);
        }
        writer.flush();
    }

    fn read(&self) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        let mut reader = SpoolReader::open(self.dir()).unwrap();
        while let Some(item) = reader.next_item().unwrap() {
            match item {
                SpoolItem::Record(record) => records.push(record.to_vec()),
                SpoolItem::Segment(_) => {}
                SpoolItem::Damage(damage) => panic!("{damage:?}"),
            }
        }
        records
    }
}

fn header(cpu: u16, cpu_seq: u64) -> RecordHeader {
    RecordHeader {
        kind: kind::FORK,
        cpu,
        size: u32::try_from(size_of::<RecordHeader>()).unwrap(),
        cpu_seq,
        boot_ns: 100 + cpu_seq,
        generation: 1,
    }
}

fn records(cpu: u16, numbers: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    numbers
        .map(|number| header(cpu, number).as_bytes().to_vec())
        .collect()
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_and_what_follows_is_read_after_it() {
    let before = records(0, 0..3);
    let length = {
        let place = Place::new();
        place.write(&before);
        std::fs::metadata(place.segment(1)).unwrap().len()
    };
    let frame = FRAME_HEAD_BYTES + size_of::<RecordHeader>();
    let start = usize::try_from(length).unwrap() - 3 * frame;
    for cut in start..=start + 3 * frame {
        let place = Place::new();
        place.write(&before);
        let whole = std::fs::read(place.segment(1)).unwrap();
        std::fs::write(place.segment(1), &whole[..cut]).unwrap();
        let kept = (cut - start) / frame;
        let resumed = resume(&place.dir(), 1 << 20, [Some(header(0, 0)), None]).unwrap();
        assert_eq!(
            resumed.torn_bytes,
            ((cut - start) % frame) as u64,
            "cut at {cut}"
        );
        assert_eq!(resumed.recent.len(), kept, "cut at {cut}");
        assert_eq!(
            resumed.last_boot_ns,
            if kept == 0 { 0 } else { 99 + kept as u64 }
        );
        let mut writer = SpoolWriter::resume(place.dir(), &resumed, Limits::default()).unwrap();
        // The ring hands everything out again.
        let again: Vec<_> = records(0, 0..5)
            .into_iter()
            .filter(|record| !resumed.recent.has(record))
            .collect();
        for record in &again {
            writer.record(record);
        }
        writer.finish();
        assert_eq!(place.read(), records(0, 0..5), "cut at {cut}");
    }
}

#[test]
fn a_segment_that_was_begun_and_has_no_header_yet_leaves_no_trace() {
    for length in [0, 4, MAGIC.len(), MAGIC.len() + 6] {
        let place = Place::new();
        place.write(&records(0, 0..2));
        let start = std::fs::read(place.segment(1)).unwrap();
        std::fs::write(place.segment(2), &start[..length]).unwrap();
        let resumed = resume(&place.dir(), 1 << 20, [Some(header(0, 0)), None]).unwrap();
        assert_eq!(resumed.next_number, 2, "{length} bytes");
        SpoolWriter::resume(place.dir(), &resumed, Limits::default())
            .unwrap()
            .finish();
        assert_eq!(place.read(), records(0, 0..2), "{length} bytes");
    }
}

#[test]
fn of_a_long_spool_only_what_the_rings_can_hold_again_is_remembered() {
    let place = Place::new();
    place.write(&[records(0, 0..20_000), records(1, 0..20_000)].concat());
    let next = [Some(header(1, 19_990)), None];
    let resumed = resume(&place.dir(), 1 << 30, next).unwrap();
    let has = |cpu, number| resumed.recent.has(header(cpu, number).as_bytes());
    assert!((19_990..20_000).all(|number| has(1, number)));
    assert!(!has(0, 19_999), "no ring begins with a record of that cpu");
    assert!(resumed.recent.len() < 5000, "{}", resumed.recent.len());
    let empty = resume(&place.dir(), 1 << 30, [None, None]).unwrap();
    assert!(empty.recent.is_empty(), "nothing waits");
}

#[test]
fn a_spool_of_another_layout_is_not_gone_on_with() {
    let place = Place::new();
    let mut start = MAGIC.to_vec();
    push_frame(
        &mut start,
        br#"{"abi_version":4000000000}"#,
        HEADER_MAX_BYTES,
    );
    std::fs::write(place.segment(1), &start).unwrap();
    let error = resume(&place.dir(), 1 << 20, [None, None]).unwrap_err();
    assert!(
        matches!(error, SpoolError::Header(HeaderError::Abi { .. })),
        "{error}"
    );
    assert_eq!(
        std::fs::read(place.segment(1)).unwrap(),
        start,
        "it is left as it is"
    );
}

#[test]
fn what_waits_for_the_disk_can_be_waited_for() {
    let place = Place::new();
    let identity = SegmentHeader::of_this_machine("01A".to_owned(), 1, "00".to_owned());
    let writer = SpoolWriter::create(place.dir(), identity.unwrap(), Limits::default()).unwrap();
    let thread = SpoolThread::start(writer).unwrap();
    for record in records(0, 0..100) {
        thread.backlog().record(&record);
    }
    assert!(thread.backlog().settle(std::time::Duration::from_secs(30)));
    assert_eq!(place.read(), records(0, 0..100), "before the thread ends");
    thread.finish();
    let (last, _) = RecordHeader::read_from_prefix(place.read().last().unwrap()).unwrap();
    assert_eq!(last.cpu_seq, 99);
}
