//! Recorded sessions, paired again: the same spool and the same log give the same verdicts, without root.
#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

#[test]
fn the_demo_over_pipes() {
    replays("demo-pipes", "audit.jsonl", 1);
}

#[test]
fn the_demo_over_pipes_with_a_tampered_log() {
    replays("demo-pipes", "tampered.jsonl", 1);
}

#[test]
fn the_typescript_sdk_over_socket_pairs() {
    replays("typescript-sdk-sockets", "audit.jsonl", 1);
}

#[test]
fn without_the_key_signatures_are_not_called_good() {
    let stage = Stage::of("demo-pipes");
    let (rows, _) = stage.pair("audit.jsonl", false, "out");
    let states = column(&rows, "verdicts", "signature");
    assert!(states.contains(&"no_key".to_owned()));
    assert!(!states.iter().any(|state| state.starts_with("valid")));
}

#[test]
fn a_spool_that_was_cut_anywhere_never_gives_a_new_accusation() {
    let stage = Stage::of("demo-pipes");
    let (whole, _) = stage.pair("audit.jsonl", true, "whole");
    let accused = accusations(&whole);
    let spool = fs::read(stage.spool().join("00000001.spool")).unwrap();
    for part in 1..48 {
        let cut = spool.len() * part / 48;
        fs::write(stage.spool().join("00000001.spool"), &spool[..cut]).unwrap();
        let (rows, code) = stage.pair("audit.jsonl", true, &format!("cut-{part}"));
        for accusation in accusations(&rows) {
            // What is gone from the spool was not seen, so its entries have no call; nothing worse may be said of them.
            assert!(
                accused.contains(&accusation) || accusation.starts_with("unobserved"),
                "cut at {cut}: {accusation}"
            );
        }
        assert!(code == 1 || code == 2, "cut at {cut}: exit code {code}");
    }
}

#[test]
fn a_line_that_is_no_json_is_named_and_the_others_still_count() {
    let stage = Stage::of("demo-pipes");
    let log = stage.altered(|lines| lines.insert(3, b"this is no json\n".to_vec()));
    let (rows, code) = stage.pair_with(&log, true, "out");
    assert_eq!(code, 1);
    assert_eq!(
        findings(&rows, "log_line_unreadable"),
        ["line 4 of the log is not json: no json: malformed json at byte 0: expected a value"]
    );
    assert_eq!(verdicts(&rows), on_file("demo-pipes", "audit.verdicts"));
}

#[test]
fn a_line_over_the_limit_is_skipped_and_the_others_still_count() {
    let stage = Stage::of("demo-pipes");
    let log = stage.altered(|lines| {
        let mut long = br#"{"id":""#.to_vec();
        long.resize(66 << 20, b'x');
        long.extend_from_slice(b"\"}\n");
        lines.insert(3, long);
    });
    let (rows, code) = stage.pair_with(&log, true, "out");
    assert_eq!(code, 1);
    assert_eq!(findings(&rows, "log_line_unreadable").len(), 1);
    assert_eq!(verdicts(&rows), on_file("demo-pipes", "audit.verdicts"));
}

#[test]
fn a_torn_last_line_is_named_and_its_call_is_unlogged() {
    let stage = Stage::of("demo-pipes");
    let log = stage.altered(|lines| {
        let last = lines.last_mut().unwrap();
        last.truncate(last.len() / 2);
    });
    let (rows, code) = stage.pair_with(&log, true, "out");
    assert_eq!(code, 1);
    assert_eq!(findings(&rows, "log_line_unreadable").len(), 1);
    assert_eq!(count(&rows, "unlogged"), 1);
    assert_eq!(count(&rows, "matched"), 14);
}

#[test]
fn an_entry_that_stands_twice_is_replayed_once() {
    let stage = Stage::of("demo-pipes");
    let log = stage.altered(|lines| {
        let again = lines[4].clone();
        lines.push(again);
    });
    let (rows, code) = stage.pair_with(&log, true, "out");
    assert_eq!(code, 1);
    assert_eq!(count(&rows, "replayed"), 1);
    assert_eq!(count(&rows, "matched"), 15);
}

#[test]
fn another_entry_with_an_id_that_was_used_is_replayed() {
    let stage = Stage::of("demo-pipes");
    let log = stage.altered(|lines| {
        let text = String::from_utf8(lines[4].clone()).unwrap();
        let at = text.find("\"duration_ms\":").unwrap() + 14;
        lines.push(format!("{}7{}", &text[..at], &text[at..]).into_bytes());
    });
    let (rows, code) = stage.pair_with(&log, true, "out");
    assert_eq!(code, 1);
    assert_eq!(count(&rows, "replayed"), 1);
    assert_eq!(count(&rows, "matched"), 15);
}

#[test]
fn with_another_key_nothing_is_matched() {
    let stage = Stage::of("demo-pipes");
    fs::write(stage.key(), "another key").unwrap();
    let (rows, code) = stage.pair("audit.jsonl", true, "out");
    assert_eq!(code, 1);
    assert_eq!(count(&rows, "matched"), 0);
    assert_eq!(count(&rows, "altered"), 15);
}

#[test]
fn an_empty_log_accuses_nobody_of_forgery() {
    let stage = Stage::of("demo-pipes");
    let log = stage.altered(Vec::clear);
    let (rows, _) = stage.pair_with(&log, true, "out");
    assert_eq!(count(&rows, "unlogged"), 15);
    assert_eq!(count(&rows, "bypassed"), 2);
}

/// Pairs the session with one of its logs, compares the verdicts with those on file, and does it twice.
fn replays(session: &str, log: &str, exit_code: i32) {
    let stage = Stage::of(session);
    let (rows, code) = stage.pair(log, true, "first");
    assert_eq!(code, exit_code);
    let (again, _) = stage.pair(log, true, "second");
    assert_eq!(rows, again, "a replay of the same input differs");
    let found = verdicts(&rows).join("\n") + "\n";
    let on_file = stage.source.join(Path::new(log).with_extension("verdicts"));
    if std::env::var_os("COUNTERSIGN_BLESS").is_some() {
        fs::write(&on_file, &found).unwrap();
    }
    let expected = fs::read_to_string(&on_file).unwrap();
    assert_eq!(
        found,
        expected,
        "verdicts differ from {}",
        on_file.display()
    );
}

/// Sorted, one line a verdict: what an auditor would read.
fn verdicts(rows: &[Value]) -> Vec<String> {
    let mut lines: Vec<String> = rows
        .iter()
        .filter(|row| row["table"] == "verdicts")
        .map(|row| {
            let columns = [
                "verdict",
                "via",
                "reason",
                "field",
                "pointer",
                "signature",
                "method",
                "tool_name",
                "request_id",
            ];
            let cells = columns.map(|name| match &row[name] {
                Value::Null => "-".to_owned(),
                Value::String(text) => text.clone(),
                other
                @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                    other.to_string()
                }
            });
            cells.join(" ")
        })
        .collect();
    lines.sort_unstable();
    lines
}

fn on_file(session: &str, name: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/replay/spools")
        .join(session)
        .join(name);
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn findings(rows: &[Value], kind: &str) -> Vec<String> {
    let of_kind = rows
        .iter()
        .filter(|row| row["table"] == "findings" && row["kind"] == kind);
    of_kind
        .map(|row| row["message"].as_str().unwrap().to_owned())
        .collect()
}

fn count(rows: &[Value], verdict: &str) -> usize {
    rows.iter()
        .filter(|row| row["table"] == "verdicts" && row["verdict"] == verdict)
        .count()
}

/// Verdict, way and id of everything that accuses somebody.
fn accusations(rows: &[Value]) -> Vec<String> {
    const BAD: [&str; 6] = [
        "bypassed",
        "altered",
        "forged",
        "replayed",
        "unobserved",
        "unlogged",
    ];
    rows.iter()
        .filter(|row| row["table"] == "verdicts" && BAD.iter().any(|bad| row["verdict"] == *bad))
        .map(|row| {
            format!(
                "{} {} {}",
                row["verdict"].as_str().unwrap(),
                row["via"],
                row["request_id"]
            )
        })
        .collect()
}

fn column(rows: &[Value], table: &str, name: &str) -> Vec<String> {
    rows.iter()
        .filter(|row| row["table"] == table)
        .filter_map(|row| row[name].as_str().map(str::to_owned))
        .collect()
}

struct Stage {
    source: PathBuf,
    folder: tempfile::TempDir,
}

impl Stage {
    fn of(session: &str) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/replay/spools")
            .join(session);
        let folder = tempfile::tempdir().unwrap();
        let stage = Self { source, folder };
        fs::create_dir(stage.spool()).unwrap();
        fs::copy(
            stage.source.join("00000001.spool"),
            stage.spool().join("00000001.spool"),
        )
        .unwrap();
        // A checkout makes it readable by all, which is refused for a key.
        fs::copy(stage.source.join("key"), stage.key()).unwrap();
        fs::set_permissions(stage.key(), fs::Permissions::from_mode(0o600)).unwrap();
        stage
    }

    fn spool(&self) -> PathBuf {
        self.folder.path().join("spool")
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    /// A copy of the honest log with its lines, line ends included, changed.
    fn altered(&self, change: impl FnOnce(&mut Vec<Vec<u8>>)) -> PathBuf {
        let text = fs::read(self.source.join("audit.jsonl")).unwrap();
        let mut lines: Vec<Vec<u8>> = text
            .split_inclusive(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect();
        change(&mut lines);
        let path = self.folder.path().join("altered.jsonl");
        fs::write(&path, lines.concat()).unwrap();
        path
    }

    fn pair(&self, log: &str, with_key: bool, out: &str) -> (Vec<Value>, i32) {
        self.pair_with(&self.source.join(log), with_key, out)
    }

    fn pair_with(&self, log: &Path, with_key: bool, out: &str) -> (Vec<Value>, i32) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
        command.arg("pair").arg(self.spool()).arg("--json");
        command.arg("--proxy-log").arg(log);
        if with_key {
            command.arg("--key-file").arg(self.key());
        }
        let output = command
            .arg("-o")
            .arg(self.folder.path().join(out))
            .output()
            .unwrap();
        let rows = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        (rows, output.status.code().unwrap())
    }
}
