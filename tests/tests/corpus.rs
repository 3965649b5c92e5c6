//! Sessions that were recorded with the real mcp-audit, as captures: the wire's bytes on both sides of the proxy, its real log,
//! and that log after tampering.
#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use countersign_core::proxylog::Key;
use countersign_tests::scene::{Log, Outcome, Play, Scene, Session};
use serde::Deserialize;

const ALL: usize = usize::MAX;

macro_rules! corpus {
    ($name:literal) => {
        include_bytes!(concat!("../../userspace/core/testdata/mcp-audit/", $name)).as_slice()
    };
}

#[test]
fn a_real_session_is_matched_entry_by_entry() {
    for third_view in [false, true] {
        let outcome = pair(corpus!("fs.audit.jsonl"), third_view);
        let told = outcome.told();
        assert_eq!(told.len(), 9, "{told:#?}");
        assert!(
            told.iter().all(|told| told.starts_with("matched")),
            "{told:#?}"
        );
        assert!(
            outcome
                .verdicts()
                .all(|row| row.signature == Some("valid_disk"))
        );
        let seen = if third_view {
            "seen_written"
        } else {
            "unknown"
        };
        assert!(outcome.entries().all(|entry| entry.third_view == seen));
        assert_eq!(
            outcome
                .findings()
                .filter(|finding| finding.kind != "key_in_reach")
                .count(),
            0
        );
    }
}

#[test]
fn changed_parameters_are_found_by_content_and_signature() {
    for third_view in [false, true] {
        let outcome = pair(corpus!("tampered/params_changed_badsig.jsonl"), third_view);
        only(&outcome, "altered", Some("params"), None);
        assert!(
            outcome
                .verdicts()
                .any(|row| row.verdict == "altered" && row.signature == Some("bad"))
        );
    }
}

#[test]
fn a_changed_result_is_found_though_its_signature_holds() {
    for third_view in [false, true] {
        let outcome = pair(corpus!("tampered/result_changed_sigok.jsonl"), third_view);
        only(&outcome, "altered", Some("result"), None);
        assert!(
            outcome
                .verdicts()
                .all(|row| row.signature == Some("valid_disk"))
        );
    }
}

#[test]
fn a_stripped_signature_is_found() {
    for third_view in [false, true] {
        let outcome = pair(corpus!("tampered/signature_stripped.jsonl"), third_view);
        only(
            &outcome,
            "altered",
            Some("signature"),
            Some("signature_absent"),
        );
    }
}

#[test]
fn a_duplicated_entry_is_replayed() {
    for third_view in [false, true] {
        let outcome = pair(corpus!("tampered/duplicated_entry_sigok.jsonl"), third_view);
        let odd = odd(&outcome);
        assert_eq!(odd.len(), 1, "{odd:?}");
        assert!(odd[0].starts_with("entry replayed"), "{odd:?}");
        assert_eq!(outcome.told().len(), 10);
    }
}

#[test]
fn a_deleted_entry_is_unlogged() {
    let outcome = pair(corpus!("tampered/entry_deleted.jsonl"), false);
    only(&outcome, "unlogged", None, None);
    let outcome = pair(corpus!("tampered/entry_deleted.jsonl"), true);
    only(&outcome, "unlogged", None, Some("line_deleted"));
}

#[test]
fn a_torn_line_is_unlogged_and_named() {
    for third_view in [false, true] {
        let outcome = pair(corpus!("tampered/torn_last_line.jsonl"), third_view);
        only(
            &outcome,
            "unlogged",
            None,
            third_view.then_some("line_deleted"),
        );
        assert_eq!(outcome.found("log_line_unreadable"), 1);
    }
}

/// All but one verdict are `matched`, and that one is this.
#[track_caller]
fn only(outcome: &Outcome, verdict: &str, field: Option<&str>, reason: Option<&str>) {
    let odd: Vec<_> = outcome
        .verdicts()
        .filter(|row| row.verdict != "matched")
        .collect();
    assert_eq!(odd.len(), 1, "{:#?}", outcome.told());
    assert_eq!(
        (odd[0].verdict, odd[0].field, odd[0].reason),
        (verdict, field, reason)
    );
    assert_eq!(outcome.told().len(), 9);
}

fn odd(outcome: &Outcome) -> Vec<String> {
    outcome
        .told()
        .into_iter()
        .filter(|told| !told.starts_with("matched"))
        .collect()
}

#[derive(Deserialize)]
struct Read {
    t_ns: i64,
    dir: String,
    b64: String,
}

/// Plays the recorded session, with a log.
fn pair(log_on_disk: &[u8], third_view: bool) -> Outcome {
    let mut scene = Scene::new();
    let client_side = reads(corpus!("fs.wire.client.jsonl"));
    let server_side = reads(corpus!("fs.wire.upstream.jsonl"));
    scene.until_utc(client_side[0].t_ns - 1_000_000_000);
    let session = Session::start(&mut scene);
    let mut log = Log::new(&mut scene);
    let mut moves: Vec<(bool, &Read)> = client_side.iter().map(|read| (true, read)).collect();
    moves.extend(server_side.iter().map(|read| (false, read)));
    moves.sort_by_key(|(_, read)| read.t_ns);
    for (client, read) in moves {
        scene.until_utc(read.t_ns);
        let (from, to, end) = match (client, read.dir.as_str()) {
            (true, "c2s") => (session.client, session.proxy, session.to_proxy),
            (false, "c2s") => (session.proxy, session.server, session.to_server),
            (false, _) => (session.server, session.proxy, session.from_server),
            (true, _) => (session.proxy, session.client, session.to_client),
        };
        scene.write(from, end, &base64(&read.b64));
        scene.read(to, end, ALL);
    }
    if third_view {
        for line in corpus!("fs.audit.jsonl").split_inclusive(|byte| *byte == b'\n') {
            log.writes_line(&mut scene, session.proxy, line);
        }
    }
    log.disk.push(log_on_disk.to_vec());
    let mut play = Play::new(scene, &[&log]);
    play.key = Some(Key::from_file_content(corpus!("test-key.txt").to_vec()).unwrap());
    play.run()
}

fn reads(recorded: &[u8]) -> Vec<Read> {
    let lines = recorded
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut out, mut bits, mut held) = (Vec::new(), 0u32, 0);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let digit = DIGITS.iter().position(|digit| *digit == byte).unwrap();
        bits = (bits << 6) | u32::try_from(digit).unwrap();
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push(u8::try_from(bits >> held).unwrap());
            bits &= (1 << held) - 1;
        }
    }
    out
}
