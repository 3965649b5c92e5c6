use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::super::corpus::{corpus_file, entries, items};
use super::super::entry::{BadReason, Direction, LogItem};
use super::{LINE_MAX_BYTES, Reader};

const MINIMAL: &str =
    r#"{"id":"x","timestamp":"t","direction":"client_to_server","method":"ping"}"#;

fn read(log: &[u8], chunk: usize) -> Vec<LogItem> {
    let mut reader = Reader::new();
    let mut items = Vec::new();
    for piece in log.chunks(chunk) {
        reader.push(piece);
        items.extend(std::iter::from_fn(|| reader.poll()));
    }
    reader.finish();
    items.extend(std::iter::from_fn(|| reader.poll()));
    items
}

fn reason(line: &str) -> BadReason {
    match items(format!("{line}\n").as_bytes()).remove(0) {
        LogItem::Bad(bad) => bad.reason,
        LogItem::Entry(entry) => panic!("{entry:?}"),
    }
}

#[test]
fn all_fields_of_a_real_entry_are_read_with_their_exact_spans() {
    let log = corpus_file!("edge_noredact.audit.jsonl");
    let read = entries(log);
    assert_eq!(read.len(), 20);
    let entry = &read[1];
    assert_eq!(entry.line.number, 2);
    let start = usize::try_from(entry.line.offset).unwrap_or_default();
    let end = start + usize::try_from(entry.line.len).unwrap_or_default();
    assert_eq!((log[start], log[end]), (b'{', b'\n'));
    assert_eq!(
        entry.line.sha256,
        <[u8; 32]>::from(Sha256::digest(&log[start..end]))
    );
    assert_eq!(entry.id, "01M7VX7BBGS3EBF5BQWTSV5B5H");
    assert_eq!(entry.utc_ns, Some(1_795_159_207_280_703_382));
    assert_eq!(entry.ulid_ms, Some(1_795_159_207_280));
    assert_eq!(entry.request_utc_ns(), Some(1_795_159_207_124_703_382));
    assert_eq!(entry.direction, Direction::ServerToClient);
    assert_eq!(entry.request_id.as_deref(), Some("1"));
    assert_eq!(entry.tool_name.as_deref(), Some("t1"));
    assert_eq!(
        entry.params.as_deref(),
        Some(
            &br#"{"name":"t1","arguments":{"n":9007199254740993,"f":1.0,"g":1e21,"h":1e-7,"z":-0.0,"big":1e400}}"#
                [..]
        )
    );
    assert_eq!(
        (entry.client_id.as_str(), entry.server_id.as_str()),
        ("raw", "fake")
    );
    assert_eq!(read[0].direction, Direction::ClientToServer);
    assert_eq!(read[0].request_id, None);
    assert_eq!(read[8].params.as_deref(), Some(&b"null"[..]));
    assert_eq!(read[9].request_id.as_deref(), Some("10.0"));
}

#[test]
fn lines_that_are_no_entry_are_named() {
    assert_eq!(reason(" \t"), BadReason::Blank);
    assert!(matches!(reason("{\"id\":"), BadReason::Json(_)));
    assert_eq!(reason("[1]"), BadReason::NotAnObject);
    assert_eq!(reason("{}"), BadReason::Missing("id"));
    assert_eq!(
        reason(&MINIMAL.replace("\"ping\"", "7")),
        BadReason::Unusable("method")
    );
    assert_eq!(
        reason(&MINIMAL.replace("client_to", "up")),
        BadReason::Unusable("direction")
    );
}

#[test]
fn repeated_keys_are_flagged_and_the_last_wins() {
    let line = MINIMAL.replace("\"ping\"", r#""ping","method":"tools/call""#);
    let entry = entries(line.as_bytes()).remove(0);
    assert_eq!(entry.method, "tools/call");
    assert!(entry.duplicate_keys);
    assert!(entry.unterminated);
    assert!(
        entries(
            MINIMAL
                .replace("ping\"", "ping\",\"METHOD\":\"x\"")
                .as_bytes()
        )[0]
        .duplicate_keys
    );
    assert!(!entries(format!("{MINIMAL}\n").as_bytes())[0].duplicate_keys);
    assert!(!entries(format!("{MINIMAL}\n").as_bytes())[0].unterminated);
}

#[test]
fn bad_lines_do_not_stop_the_reader_and_offsets_stay_exact() {
    let log = format!("{MINIMAL}\nnoise\n\n{MINIMAL}\r\n{{\"id\"");
    for chunk in [1, 3, 4096] {
        let items = read(log.as_bytes(), chunk);
        let kinds: Vec<_> = items
            .iter()
            .map(|item| match item {
                LogItem::Entry(entry) => (entry.line.offset, entry.line.number, None),
                LogItem::Bad(bad) => (bad.line.offset, bad.line.number, Some(bad.reason)),
            })
            .collect();
        let first = MINIMAL.len() as u64;
        assert_eq!(kinds[0], (0, 1, None));
        assert!(matches!(kinds[1], (at, 2, Some(BadReason::Json(_))) if at == first + 1));
        assert_eq!(kinds[2], (first + 7, 3, Some(BadReason::Blank)));
        assert_eq!(kinds[3], (first + 8, 4, None));
        assert_eq!(kinds[4], (2 * first + 10, 5, Some(BadReason::Torn)));
        assert_eq!(kinds.len(), 5);
    }
}

#[test]
fn a_torn_line_is_not_reported_while_the_log_is_being_written() {
    let mut reader = Reader::new();
    reader.push(&MINIMAL.as_bytes()[..20]);
    assert_eq!(reader.poll(), None);
    reader.push(&MINIMAL.as_bytes()[20..]);
    assert_eq!(reader.poll(), None);
    reader.push(b"\n");
    assert!(matches!(reader.poll(), Some(LogItem::Entry(_))));
    reader.finish();
    assert_eq!(reader.poll(), None);
}

#[test]
fn an_endless_line_is_hashed_and_skipped_in_bounded_memory() {
    let piece = vec![b'x'; 1 << 20];
    let mut reader = Reader::new();
    let mut hash = Sha256::new();
    let pieces = LINE_MAX_BYTES / piece.len() + 3;
    for _ in 0..pieces {
        reader.push(&piece);
        hash.update(&piece);
        assert_eq!(reader.poll(), None);
        assert!(reader.buffer.len() <= LINE_MAX_BYTES);
    }
    reader.push(format!("tail\n{MINIMAL}\n").as_bytes());
    hash.update(b"tail");
    let Some(LogItem::Bad(bad)) = reader.poll() else {
        panic!("a bad line was pushed")
    };
    assert_eq!(bad.reason, BadReason::TooLong);
    assert_eq!(bad.line.len, (pieces * piece.len() + 4) as u64);
    assert_eq!(bad.line.sha256, <[u8; 32]>::from(hash.finalize()));
    let Some(LogItem::Entry(entry)) = reader.poll() else {
        panic!("an entry was pushed")
    };
    assert_eq!(entry.line.offset, bad.line.len + 1);
    assert!(reader.buffer.capacity() < LINE_MAX_BYTES);
}

proptest! {
    #[test]
    fn chunking_changes_nothing(chunk in 1usize..3000) {
        let log = corpus_file!("tampered/torn_last_line.jsonl");
        prop_assert_eq!(read(log, chunk), items(log));
    }

    #[test]
    fn no_bytes_panic_and_every_byte_is_in_one_line(
        log in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200)
    ) {
        let mut at = 0;
        for item in read(&log, 7) {
            let line = match item {
                LogItem::Entry(entry) => entry.line,
                LogItem::Bad(bad) => bad.line,
            };
            prop_assert_eq!(line.offset, at);
            at += line.len + 1;
        }
        let ends = log.len() as u64 + u64::from(log.last().is_some_and(|byte| *byte != b'\n'));
        prop_assert_eq!(at, ends);
    }
}
