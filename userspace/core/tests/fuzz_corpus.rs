//! Replays the fuzz corpus, so that what fuzzing found stays found without a fuzzer.
#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::path::Path;

#[path = "../../../fuzz/oracles/json.rs"]
mod json;
#[path = "../../../fuzz/oracles/line.rs"]
mod line;
#[path = "../../../fuzz/oracles/mcp_audit.rs"]
mod mcp_audit;
#[path = "../../../fuzz/oracles/message.rs"]
mod message;
#[path = "../../../fuzz/oracles/record.rs"]
mod record;

#[test]
fn the_json_corpus_holds() {
    replay("json", json::check);
}

#[test]
fn the_mcp_audit_corpus_holds() {
    replay("mcp_audit", mcp_audit::check);
}

#[test]
fn the_record_corpus_holds() {
    replay("record", record::check);
}

#[test]
fn the_message_corpus_holds() {
    replay("message", message::check);
}

#[test]
fn the_line_corpus_holds() {
    replay("line", line::check);
}

fn replay(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut replayed = 0;
    for file in std::fs::read_dir(&corpus).unwrap() {
        check(&std::fs::read(file.unwrap().path()).unwrap());
        replayed += 1;
    }
    assert!(
        replayed >= 5,
        "{} holds {replayed} inputs",
        corpus.display()
    );
}
