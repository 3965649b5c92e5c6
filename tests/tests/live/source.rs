//! The live source: what it adds to the kernel's records, and that it stops when all is taken.

use countersign::{
    bpf::{load::is_tracepoint, self_test::self_test, tier::Tier},
    source::live::Live,
};
use countersign_common::{kind, tag};
use countersign_core::record::{Record, parse};

use crate::harness::{hook, open, pipe, read, spawn, tier, token, witness, write};

#[test]
fn the_self_test_finds_its_token() {
    if witness().is_some() {
        self_test(tier(), hook(), false).unwrap();
    }
}

#[test]
fn a_stopped_source_has_delivered_everything_and_the_totals() {
    let Some(witness) = witness() else { return };
    let token = token("live");
    let (capture, _one) = witness.into_capture();
    let tagger = capture.tagger().clone();
    let live = Live::start(capture, |bytes: &[u8]| {
        SINK.lock().unwrap().push(bytes.to_vec());
        Ok(())
    })
    .unwrap();
    let (child, gate) = spawn(|| {
        let [read_end, write_end] = pipe();
        for _ in 0..1000 {
            write(write_end, &token);
            assert_eq!(read(read_end, 256), token);
        }
    });
    tagger.tag_pid(child, tag::TREE).unwrap();
    open(gate);
    // SAFETY: a child of ours.
    unsafe { libc::waitpid(child.cast_signed(), std::ptr::null_mut(), 0) };
    let (_, summary) = live.stop().unwrap();
    let summary = summary.unwrap();
    assert!(summary.drained);
    assert_eq!(summary.malformed, 0);

    let records = std::mem::take(&mut *SINK.lock().unwrap());
    let mut chunks = 0;
    let mut users = Vec::new();
    let mut totals = Vec::new();
    for bytes in &records {
        let record = parse(bytes).unwrap();
        if let Record::Chunk(_, _, payload) = record {
            chunks += usize::from(payload == token);
        }
        if let Record::User(header, json) = record {
            users.push(header.kind);
            if header.kind == kind::CHANNEL_TOTALS {
                totals.push(serde_json::from_slice::<serde_json::Value>(json).unwrap());
            }
        }
    }
    assert_eq!(chunks, 2000);
    assert_eq!(users[..2], [kind::CLOCK, kind::LEDGER]);
    assert_eq!(users[users.len() - 2..], [kind::CLOCK, kind::LEDGER]);
    let bytes = 1000 * token.len();
    assert!(
        totals
            .iter()
            .any(|totals| totals["read_ops"] == 1000 && totals["written_bytes"] == bytes),
        "{totals:?}"
    );
    let Record::User(_, json) = parse(records.last().unwrap()).unwrap() else {
        unreachable!()
    };
    let ledger: serde_json::Value = serde_json::from_slice(json).unwrap();
    assert_eq!(ledger["counters"]["ring_dropped_records"], 0);
    let programs = ledger["programs"].as_array().unwrap();
    let on_tracepoints =
        |program: &&serde_json::Value| is_tracepoint(program["name"].as_str().unwrap());
    assert_eq!(programs.iter().filter(on_tracepoints).count(), 10);
    assert_eq!(programs.len() > 10, tier() != Tier::Tracepoints);
    // Where the kernel preempts tracepoint programs, it may skip them; those on functions carry the transfers then.
    assert!(
        programs
            .iter()
            .filter(|program| tier() == Tier::Tracepoints || !on_tracepoints(program))
            .all(|program| program["recursion_misses"] == 0),
        "{programs:?}"
    );
}

/// What the sink got: the sink itself comes back as an opaque closure.
static SINK: std::sync::Mutex<Vec<Vec<u8>>> = std::sync::Mutex::new(Vec::new());
