//! The report at the end of a run, over the rows of a small capture.
#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::path::Path;

use countersign::report::escape::misleads;
use countersign::report::{Evidence, Summary};
use countersign::sink::RowSink;
use countersign::sink::jsonl::JsonLinesSink;
use countersign_core::row::Row;
use countersign_tests::evidence::{HOSTILE_TOOL, capture, rows};

#[test]
fn the_report_shows_what_is_not_plain_and_where_the_evidence_lies() {
    let text = summary(&rows()).text(evidence());
    let expected = "\
VERDICTS
          2 matched
          1 bypassed
          1 forged

verdict  why            method     tool                                id time (UTC)   who
bypassed own_server     tools/call read\\u{1b}[2J\\u{9b}31m_file\\u{202e} 7  00:00:02.000 100 agent
forged   log: signature tools/call delete_file                         7  00:00:03.000 log of fs

FINDINGS
  high     key_in_reach the agent's user can read the key file of the proxy fs; weakens every good
           signature of this proxy

NOT SEEN
  anything before 2026-11-20T23:59:59.000000001Z and after 2026-11-21T00:00:09.000000001Z
  what TLS and HTTP over TCP say (their bytes are counted), UDP, files and shared memory, and the
  terminal that the agent runs in: never read so far
  gap ring_full: 1 time, 4096 bytes
";
    let (start, end) = text.split_at(text.find("\nEVIDENCE").unwrap());
    assert_eq!(start, expected);
    assert_eq!(end.lines().nth(2), Some("  /out"));
}

#[test]
fn nothing_in_the_report_steers_a_terminal_and_no_line_is_too_long() {
    let mut rows = rows();
    for row in &mut rows {
        match row {
            Row::Verdict(row) => {
                row.method = Some("\u{1b}]0;owned\u{7}\r\n".repeat(50));
                row.request_id = Some("\u{202e}日本語".repeat(50));
                row.pointer = Some("/\u{9b}2J".repeat(1000));
            }
            Row::Finding(row) => row.message = "\u{1b}[31m日".repeat(500),
            Row::Coverage(row) => row.detail = Some("x".repeat(5000)),
            Row::Process(row) => row.exe_path = Some(format!("/tmp/\u{1b}[2J{}", "n".repeat(4000))),
            Row::Call(_)
            | Row::Entry(_)
            | Row::Sighting(_)
            | Row::Frame(_)
            | Row::Channel(_)
            | Row::ChannelEnd(_) => {}
        }
    }
    let summary = summary(&rows);
    let text = summary.text(evidence());
    for line in text.lines() {
        assert!(!line.chars().any(misleads), "{line:?}");
        let columns: usize = line
            .chars()
            .map(|c| if c.is_ascii() || c == '…' { 1 } else { 2 })
            .sum();
        assert!(columns <= 100, "{columns} columns: {line}");
    }
    assert!(text.lines().count() < 60);
    assert!(!summary.json(evidence()).trim_end().chars().any(misleads));
}

#[test]
fn the_json_says_the_same_and_keeps_hostile_names_whole() {
    let json: serde_json::Value = serde_json::from_str(&summary(&rows()).json(evidence())).unwrap();
    assert_eq!(json["verdicts"]["matched"], 2);
    assert_eq!(json["verdicts"]["bypassed"], 1);
    assert_eq!(json["verdicts"]["unlogged"], 0);
    assert_eq!(json["listed"][0]["tool_name"], HOSTILE_TOOL);
    assert_eq!(json["listed"][0]["why"], "own_server");
    assert_eq!(json["findings"][0]["severity"], "high");
    assert_eq!(json["not_seen"][0]["lost_bytes"], 4096);
    assert_eq!(json["has_findings"], true);
    assert_eq!(json["could_not_see"], true);
}

#[test]
fn a_clean_run_is_clean_and_only_a_known_capture_is() {
    let clean: Vec<_> = rows()
        .into_iter()
        .filter(|row| match row {
            Row::Verdict(row) => row.verdict == "matched",
            Row::Finding(_) => false,
            Row::Coverage(row) => !row.weakens,
            Row::Call(_)
            | Row::Entry(_)
            | Row::Sighting(_)
            | Row::Frame(_)
            | Row::Channel(_)
            | Row::ChannelEnd(_)
            | Row::Process(_) => true,
        })
        .collect();
    assert!(!summary(&clean).has_findings());
    assert!(!summary(&clean).could_not_see());
    let blind: Vec<_> = clean
        .into_iter()
        .filter(|row| !matches!(row, Row::Coverage(_)))
        .collect();
    assert!(summary(&blind).could_not_see());
}

#[test]
fn signatures_that_no_key_was_given_for_are_named() {
    let plain = summary(&rows()).text(evidence());
    assert!(!plain.contains("no key was given"), "{plain}");
    let keyless: Vec<_> = rows()
        .into_iter()
        .map(|mut row| {
            if let Row::Verdict(row) = &mut row {
                row.signature = Some("no_key");
            }
            row
        })
        .collect();
    let verdicts = keyless.iter().filter(|row| matches!(row, Row::Verdict(_)));
    let wanted = format!(
        "whether {} signatures of the log can be trusted",
        verdicts.count()
    );
    let text = summary(&keyless).text(evidence());
    assert!(text.contains(&wanted), "{text}");
}

#[test]
fn a_flood_of_one_verdict_does_not_hide_another() {
    let rows = rows();
    let mut summary = Summary::new();
    let bypassed = rows
        .iter()
        .find(|row| matches!(row, Row::Verdict(row) if row.verdict == "bypassed"));
    for _ in 0..100_000 {
        summary.observe(bypassed.unwrap());
    }
    for row in &rows {
        summary.observe(row);
    }
    let text = summary.text(evidence());
    assert!(text.contains("  100001 bypassed"));
    assert!(text.contains("\nforged "));
    assert!(text.contains("and 99801 more bypassed"));
    assert!(text.lines().count() < 300);
}

#[test]
fn json_lines_hold_every_row_and_no_payload() {
    let mut out = Vec::new();
    let mut sink = Box::new(JsonLinesSink::new(&mut out));
    let rows = rows();
    for row in &rows {
        sink.row(row.as_table_row()).unwrap();
    }
    sink.finish().unwrap();
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text.lines().count(), rows.len());
    for line in text.lines() {
        assert!(!line.chars().any(misleads));
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(row["capture_id"], capture().to_string());
    }
    assert!(!text.contains("/etc/hosts") && !text.contains("\"payload\":"));
}

fn summary(rows: &[Row]) -> Summary {
    let mut summary = Summary::new();
    for row in rows {
        summary.observe(row);
    }
    summary
}

fn evidence() -> Evidence<'static> {
    Evidence {
        capture: capture(),
        out: Path::new("/out"),
        files: &[],
    }
}
