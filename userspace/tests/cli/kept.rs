//! Pairing again from what a recording kept: its settings, its copies of the logs, its segments, whole or damaged.

use std::path::{Path, PathBuf};
use std::process::Command;

use countersign::config::{Config, Flags};
use countersign::outdir::Dir;
use countersign::source::keptlog::KeptLogWriter;
use countersign::source::proxylog::Follower;
use countersign::source::user_record::user_record;
use countersign::spool::{Limits, SegmentHeader, SpoolWriter};
use countersign_common::kind;

use super::place::{IntoOutcome, Outcome, Place, binary, text};
use super::session::{Row, of, pair_with};

const CAPTURE: &str = "01M7W8A32X5A61542FDDZS4AYP";

/// The recording of a demo, with a copy of its log as a recording keeps it.
fn recording() -> Place {
    let place = Place::new();
    let session = session();
    std::fs::create_dir_all(place.path("out/spool")).unwrap();
    std::fs::copy(
        session.join("00000001.spool"),
        place.path("out/spool/00000001.spool"),
    )
    .unwrap();
    let key = std::fs::read(session.join("key")).unwrap();
    place.file("key", &key, 0o600);
    let log = std::fs::read(session.join("audit.jsonl")).unwrap();
    place.file("log", &log, 0o600);
    let spool = Dir::open_named(&place.path("out/spool")).unwrap();
    let mut keeper = KeptLogWriter::create(&spool).unwrap();
    Follower::new(&place.path("log"))
        .unwrap()
        .finish(&mut |event| keeper.event(0, &event));
    assert_eq!(keeper.finish(), 0);
    place
}

fn session() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/replay/spools/demo-pipes")
}

fn refused(place: &Place, flags: &[&str]) -> Outcome {
    let fixed = ["pair", "out", "-o", "refused"];
    place
        .command(&[&fixed[..], flags].concat())
        .output()
        .into_outcome()
}

/// What was said of each call and entry, without names that depend on the log's path.
fn said(rows: &[Row]) -> Vec<String> {
    let columns = ["verdict", "via", "reason", "signature", "request_id"];
    let mut said: Vec<_> = of(rows, "verdicts")
        .map(|row| columns.map(|column| row[column].to_string()).join(" "))
        .collect();
    said.sort_unstable();
    said
}

#[test]
fn without_a_named_log_the_settings_and_the_copy_of_the_recording_are_used() {
    let place = recording();
    let (named_code, named, _) = pair_with(
        &place,
        &["--proxy-log", "log", "--key-file", "key"],
        "named",
    );
    let (kept_code, kept, words) = pair_with(&place, &["--key-file", "key"], "kept");
    assert_eq!((named_code, kept_code), (1, 1), "{words}");
    assert_eq!(said(&kept), said(&named));
    assert!(said(&kept).iter().any(|line| line.contains("\"matched\"")));
    // Without the key nothing is said of signatures, and nobody becomes a bypasser for it.
    let (_, keyless, _) = pair_with(&place, &[], "keyless");
    let bypassed = |rows: &[Row]| {
        of(rows, "verdicts")
            .filter(|row| row["verdict"] == "bypassed")
            .count()
    };
    assert_eq!(bypassed(&keyless), bypassed(&named));
}

#[test]
fn a_copy_that_is_damaged_is_not_used_and_not_overlooked() {
    let place = recording();
    let copy = place.path("out/spool/logs/0-0.log");
    let mut bytes = std::fs::read(&copy).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&copy, bytes).unwrap();
    let outcome = refused(&place, &["--key-file", "key"]);
    outcome.fails(65, "0-0.log is not what was written");
    outcome.fails(65, "add --proxy-log FILE");
    let flags = ["--proxy-log", "log", "--key-file", "key"];
    let (code, rows, words) = pair_with(&place, &flags, "named");
    assert_eq!(code, 1, "{words}");
    assert!(words.contains("0-0.log is not what was written"), "{words}");
    let damage = of(&rows, "findings").filter(|row| row["kind"] == "kept_log_damaged");
    assert_eq!(damage.count(), 1);
}

#[test]
fn copies_that_are_gone_or_have_no_end_are_told_of() {
    let place = recording();
    let events = place.path("out/spool/logs/events.jsonl");
    let lines = std::fs::read_to_string(&events).unwrap();
    let (first, _) = lines.split_once('\n').unwrap();
    std::fs::write(&events, format!("{first}\n")).unwrap();
    let (_, _, words) = pair_with(&place, &["--key-file", "key"], "unsealed");
    assert!(words.contains("have no end"), "{words}");
    std::fs::remove_dir_all(place.path("out/spool/logs")).unwrap();
    refused(&place, &["--key-file", "key"]).fails(64, "add --proxy-log FILE");
}

#[test]
fn a_recording_without_a_proxy_is_not_paired_into_bypasses() {
    let place = Place::new();
    spool(&place, Flags::default());
    refused(&place, &[]).fails(64, "every call would be `bypassed`: add --proxy-log FILE");
    place.file("empty.toml", b"", 0o600);
    refused(&place, &["--config", "empty.toml"]).fails(64, "[[proxy]] block");
}

#[test]
fn one_key_for_two_proxies_is_refused() {
    let place = Place::new();
    place.file(
        "two.toml",
        b"[[proxy]]\nname = 'a'\nlog = 'a'\n[[proxy]]\nname = 'b'\nlog = 'b'\n",
        0o600,
    );
    let file = Some(place.path("two.toml"));
    spool(
        &place,
        Flags {
            file,
            ..Flags::default()
        },
    );
    place.file("key", b"k", 0o600);
    refused(&place, &["--key-file", "key"]).fails(64, "has 2 proxies");
}

#[test]
fn a_spool_without_a_readable_header_is_refused_with_the_way_out() {
    let place = recording();
    for content in [&b""[..], b"CSSPOOL", b"not a spool at all", &[0; 4096]] {
        std::fs::write(place.path("out/spool/00000001.spool"), content).unwrap();
        let outcome = refused(&place, &["--proxy-log", "log", "--key-file", "key"]);
        outcome.fails(65, "no segment of the spool has a readable header");
        outcome.fails(65, "record again");
        assert!(
            std::fs::read_dir(place.path("refused"))
                .unwrap()
                .next()
                .is_none()
        );
    }
}

#[test]
fn a_missing_first_segment_is_a_hole_and_the_rest_counts() {
    let place = Place::new();
    spool(&place, Flags::default());
    place.file("log", b"", 0o600);
    assert!(place.path("out/spool/00000003.spool").exists());
    std::fs::remove_file(place.path("out/spool/00000001.spool")).unwrap();
    let (code, rows, words) = pair_with(&place, &["--proxy-log", "log"], "paired");
    assert_eq!(code, 2, "{words}");
    assert!(words.contains("damaged or missing"), "{words}");
    let hole = of(&rows, "coverage").find(|row| row["name"] == "spool_damage");
    let detail = hole.unwrap()["detail"].to_string();
    assert!(detail.contains("segment 1"), "{detail}");
}

#[test]
fn evidence_is_complete_though_nobody_listens() {
    let place = recording();
    for (format, output, listener, code) in [
        (&["--json"][..], "json", "nobody", 1),
        (&[], "text", "nobody", 1),
        (&["--json"], "json-full", "a full disk", 74),
        (&[], "text-full", "a full disk", 74),
    ] {
        let to_full = listener == "a full disk";
        let script = if to_full {
            "\"$0\" \"$@\" > /dev/full; echo $? > code"
        } else {
            "{ \"$0\" \"$@\"; echo $? > code; } | true"
        };
        let outcome = Command::new("sh")
            .args(["-c", script])
            .arg(binary())
            .args(["pair", "out", "--key-file", "key", "-o", output])
            .args(format)
            .current_dir(place.path("."))
            .output()
            .unwrap();
        let said = text(&outcome.stderr);
        let ended = std::fs::read_to_string(place.path("code")).unwrap();
        assert_eq!(ended, format!("{code}\n"), "{said}");
        assert_eq!(said.contains("is complete"), to_full, "{said}");
        assert!(place.path(output).join("verdicts").exists());
    }
}

/// Writes a spool of some small segments with the settings that these flags make.
fn spool(place: &Place, flags: Flags) {
    std::fs::create_dir_all(place.path("out/spool")).unwrap();
    let dir = Dir::open_named(&place.path("out/spool")).unwrap();
    let keeper = KeptLogWriter::create(&dir).unwrap();
    keeper.finish();
    let header = SegmentHeader::of_this_machine(CAPTURE.to_owned(), 1, "00".to_owned()).unwrap();
    let limits = Limits {
        segment_bytes: 64,
        ..Limits::default()
    };
    let mut writer = SpoolWriter::create(dir, header, limits).unwrap();
    let config = Config::load(flags).unwrap();
    for note in [
        serde_json::json!({ "event": "start", "settings": config }),
        serde_json::json!({ "event": "agent" }),
        serde_json::json!({ "event": "end" }),
    ] {
        writer.record(&user_record(kind::CAPTURE, 1, &note).unwrap());
        writer.flush();
    }
    assert!(!writer.finish().lost_something());
}
