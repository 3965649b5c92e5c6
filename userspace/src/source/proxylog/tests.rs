#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;

use proptest::prelude::*;

use super::*;

#[test]
fn a_log_that_appears_late_is_read_from_its_beginning() {
    let place = Place::new();
    let mut follower = place.follow();
    let mut seen = Seen::default();
    follower.poll(&mut |event| seen.take(&event));
    follower.poll(&mut |event| seen.take(&event));
    assert_eq!(seen.names, [""; 0]);
    place.append("one\n");
    follower.poll(&mut |event| seen.take(&event));
    place.append("two\n");
    follower.finish(&mut |event| seen.take(&event));
    assert_eq!(seen.names, ["opened"]);
    assert_eq!(seen.text(), ["one\ntwo\n"]);
}

#[test]
fn a_log_that_never_appears_is_missing_at_the_end() {
    let place = Place::new();
    let mut follower = place.follow();
    let mut seen = Seen::default();
    follower.poll(&mut |event| seen.take(&event));
    assert_eq!(seen.names, [""; 0]);
    follower.finish(&mut |event| seen.take(&event));
    assert_eq!(seen.names, ["missing"]);
}

#[test]
fn a_log_whose_directory_appears_late_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("later/audit.jsonl");
    let mut follower = Follower::new(&path).unwrap();
    let mut seen = Seen::default();
    follower.poll(&mut |event| seen.take(&event));
    std::fs::create_dir(directory.path().join("later")).unwrap();
    std::fs::write(&path, "x\n").unwrap();
    follower.finish(&mut |event| seen.take(&event));
    assert_eq!(seen.text(), ["x\n"]);
}

#[test]
fn a_rotated_log_is_read_to_its_end_and_the_next_one_from_its_beginning() {
    let place = Place::new();
    place.append("one\n");
    let mut follower = place.follow();
    let mut seen = Seen::default();
    follower.poll(&mut |event| seen.take(&event));
    place.append("two\n");
    place.rotate("20261120T071855Z");
    place.append("three\n");
    follower.poll(&mut |event| seen.take(&event));
    // The proxy may still hold the old file.
    place.append_to("audit.jsonl.20261120T071855Z", "late\n");
    follower.finish(&mut |event| seen.take(&event));
    assert_eq!(seen.names, ["opened", "rotated", "opened"]);
    assert_eq!(seen.text(), ["one\ntwo\nlate\n", "three\n"]);
}

#[test]
fn files_rotated_between_two_looks_are_not_missed() {
    let place = Place::new();
    place.append("one\n");
    let mut follower = place.follow();
    let mut seen = Seen::default();
    follower.poll(&mut |event| seen.take(&event));
    for (stamp, text) in [
        ("20261120T071855Z", "two\n"),
        ("20261120T071855Z.1", "three\n"),
        ("20261120T071856Z", "four\n"),
    ] {
        place.rotate(stamp);
        place.append(text);
    }
    follower.finish(&mut |event| seen.take(&event));
    let mut texts = seen.text();
    texts.sort();
    assert_eq!(texts, ["four\n", "one\n", "three\n", "two\n"]);
}

#[test]
fn rotations_from_before_the_run_are_left_alone() {
    let place = Place::new();
    place.append("old\n");
    place.rotate("20261120T000000Z");
    place.append("new\n");
    let mut follower = place.follow();
    follower.ignore_old_rotations();
    let mut seen = Seen::default();
    follower.poll(&mut |event| seen.take(&event));
    place.rotate("20261120T000001Z");
    place.append("newer\n");
    follower.finish(&mut |event| seen.take(&event));
    assert_eq!(seen.text(), ["new\n", "newer\n"]);
}

#[test]
fn offline_the_rotated_set_comes_first_and_in_order() {
    let place = Place::new();
    for (stamp, text) in [
        ("20261120T000000Z", "a\n"),
        ("20261120T000000Z.2", "b\n"),
        ("20261120T000000Z.10", "c\n"),
    ] {
        place.append(text);
        place.rotate(stamp);
    }
    place.append("d\n");
    let mut follower = place.follow();
    let mut seen = Seen::default();
    follower.read_rotated(&mut |event| seen.take(&event));
    follower.finish(&mut |event| seen.take(&event));
    assert_eq!(seen.text(), ["a\n", "b\n", "c\n", "d\n"]);
}

#[test]
fn a_truncated_log_is_reported_and_what_was_read_is_kept() {
    let place = Place::new();
    place.append("one\ntwo\n");
    let mut follower = place.follow();
    let mut seen = Seen::default();
    follower.poll(&mut |event| seen.take(&event));
    std::fs::write(place.log(), "x\n").unwrap();
    follower.finish(&mut |event| seen.take(&event));
    assert_eq!(seen.names, ["opened", "truncated", "opened again"]);
    assert_eq!(seen.text(), ["one\ntwo\n", "x\n"]);
}

#[test]
fn a_line_changed_in_place_is_noticed_at_the_end() {
    let place = Place::new();
    place.append("good\n");
    let mut follower = place.follow();
    let mut seen = Seen::default();
    follower.poll(&mut |event| seen.take(&event));
    OpenOptions::new()
        .write(true)
        .open(place.log())
        .unwrap()
        .write_all(b"evil")
        .unwrap();
    follower.finish(&mut |event| seen.take(&event));
    assert_eq!(seen.names, ["opened", "rewritten", "opened again"]);
    assert_eq!(seen.text(), ["good\n", "evil\n"]);
}

#[test]
fn a_deleted_log_stays_readable_and_its_successor_is_read_too() {
    let place = Place::new();
    place.append("one\n");
    let mut follower = place.follow();
    let mut seen = Seen::default();
    follower.poll(&mut |event| seen.take(&event));
    std::fs::remove_file(place.log()).unwrap();
    follower.poll(&mut |event| seen.take(&event));
    place.append("two\n");
    follower.finish(&mut |event| seen.take(&event));
    assert_eq!(seen.text(), ["one\n", "two\n"]);
}

#[test]
fn links_fifos_directories_and_devices_are_refused() {
    let place = Place::new();
    let refuses = |what: &str| {
        let error = Follower::new(&place.log()).unwrap_err().to_string();
        assert!(
            error.contains(what) && error.contains("--proxy-log"),
            "{error}"
        );
    };
    std::os::unix::fs::symlink("/etc/passwd", place.log()).unwrap();
    refuses("symbolic link");
    std::fs::remove_file(place.log()).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        place.log(),
        rustix::fs::FileType::Fifo,
        Mode::RWXU,
        0,
    )
    .unwrap();
    refuses("FIFO");
    std::fs::remove_file(place.log()).unwrap();
    std::fs::create_dir(place.log()).unwrap();
    refuses("directory");
    assert!(matches!(
        Follower::new("/dev/null".as_ref()),
        Err(LogError::Refused {
            what: "a device",
            ..
        })
    ));
    assert!(matches!(
        Follower::new("/".as_ref()),
        Err(LogError::NoName(_))
    ));
}

#[test]
fn a_log_replaced_by_a_fifo_during_the_run_is_reported_once_and_does_not_hang() {
    let place = Place::new();
    place.append("one\n");
    let mut follower = place.follow();
    let mut seen = Seen::default();
    follower.poll(&mut |event| seen.take(&event));
    std::fs::remove_file(place.log()).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        place.log(),
        rustix::fs::FileType::Fifo,
        Mode::RWXU,
        0,
    )
    .unwrap();
    follower.poll(&mut |event| seen.take(&event));
    follower.finish(&mut |event| seen.take(&event));
    assert_eq!(seen.names, ["opened", "refused", "removed"]);
    assert_eq!(seen.text(), ["one\n"]);
}

#[test]
fn a_log_larger_than_one_look_is_read_whole() {
    let place = Place::new();
    let big = "x".repeat(usize::try_from(POLL_MAX_BYTES).unwrap() * 2 + 17);
    place.append(&big);
    let mut follower = place.follow();
    let mut seen = Seen::default();
    while follower.poll(&mut |event| seen.take(&event)) {}
    assert_eq!(seen.text(), std::slice::from_ref(&big));
    let mut again = Seen::default();
    place.follow().finish(&mut |event| again.take(&event));
    assert_eq!(again.text(), [big]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is appended and rotated between whatever looks: each byte exactly once, in order within its file.
    #[test]
    fn every_byte_is_seen_exactly_once(steps in prop::collection::vec(0_u8..4, 1..40)) {
        let place = Place::new();
        let mut follower = place.follow();
        let mut seen = Seen::default();
        let mut expected = vec![String::new()];
        for (number, step) in steps.iter().enumerate() {
            match step {
                0 | 1 => {
                    let line = format!("{number}\n");
                    place.append(&line);
                    expected.last_mut().unwrap().push_str(&line);
                }
                2 if !expected.last().unwrap().is_empty() => {
                    place.rotate(&format!("20261120T0000{:02}Z", expected.len()));
                    expected.push(String::new());
                }
                _ => { follower.poll(&mut |event| seen.take(&event)); }
            }
        }
        follower.finish(&mut |event| seen.take(&event));
        expected.retain(|text| !text.is_empty());
        expected.sort();
        let mut texts = seen.text();
        texts.sort();
        prop_assert_eq!(texts, expected);
    }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn log(&self) -> PathBuf {
        self.0.path().join("audit.jsonl")
    }

    fn follow(&self) -> Follower {
        Follower::new(&self.log()).unwrap()
    }

    fn append(&self, text: &str) {
        self.append_to("audit.jsonl", text);
    }

    fn append_to(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    fn rotate(&self, stamp: &str) {
        std::fs::rename(
            self.log(),
            self.0.path().join(format!("audit.jsonl.{stamp}")),
        )
        .unwrap();
    }
}

/// What a follower said.
#[derive(Default)]
struct Seen {
    names: Vec<&'static str>,
    bytes: BTreeMap<FileId, Vec<u8>>,
}

impl Seen {
    fn take(&mut self, event: &LogEvent<'_>) {
        self.names.push(match event {
            LogEvent::Bytes { file, offset, data } => {
                let bytes = self.bytes.entry(*file).or_default();
                assert_eq!(bytes.len() as u64, *offset, "a hole or a repetition");
                bytes.extend_from_slice(data);
                return;
            }
            LogEvent::Opened { again: None, .. } => "opened",
            LogEvent::Opened { again: Some(_), .. } => "opened again",
            LogEvent::Truncated { .. } => "truncated",
            LogEvent::Rewritten { .. } => "rewritten",
            LogEvent::Rotated { .. } => "rotated",
            LogEvent::Removed { .. } => "removed",
            LogEvent::Missing => "missing",
            LogEvent::Refused { .. } => "refused",
            LogEvent::Unreadable { .. } => "unreadable",
            LogEvent::TooMany => "too many",
        });
    }

    fn text(&self) -> Vec<String> {
        self.bytes
            .values()
            .map(|bytes| String::from_utf8(bytes.clone()).unwrap())
            .collect()
    }
}
