//! Replays the fuzz corpus, so that what fuzzing found stays found without a fuzzer.
#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::path::Path;

#[path = "../../../fuzz/oracles/json.rs"]
mod json;
#[path = "../../../fuzz/oracles/mcp_audit.rs"]
mod mcp_audit;

#[test]
fn the_json_corpus_holds() {
    replay("json", json::check);
}

#[test]
fn the_mcp_audit_corpus_holds() {
    replay("mcp_audit", mcp_audit::check);
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
