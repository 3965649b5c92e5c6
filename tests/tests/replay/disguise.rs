//! JSON-RPC that no reader of text takes for such, on a private channel on which nobody answers.

use countersign_tests::scene::session::{request, tool_params};
use countersign_tests::scene::{Outcome, Play, Scene, program};

const ALL: usize = usize::MAX;

/// What an agent says to a child of its own, piece by piece.
fn said<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut scene = Scene::new();
    let agent = scene.root(program::AGENT);
    let pipe = scene.pipe(agent);
    let server = scene.spawn(agent, program::SERVER);
    for piece in pieces {
        scene.write(agent, pipe, piece);
        scene.read(server, pipe, ALL);
    }
    Play::new(scene, &[]).run()
}

#[test]
fn json_rpc_in_disguise_on_a_private_channel_that_nobody_answers_is_a_medium_finding() {
    let plain = request("1", "tools/call", &tool_params("evil"));
    let utf16: Vec<u8> = plain.iter().flat_map(|byte| [*byte, 0]).collect();
    let utf16_be: Vec<u8> = plain.iter().flat_map(|byte| [0, *byte]).collect();
    let marked = [b"\xff\xfe".as_slice(), &utf16].concat();
    let utf32: Vec<u8> = plain.iter().flat_map(|byte| [*byte, 0, 0, 0]).collect();
    let len = u32::try_from(plain.len()).unwrap();
    let little = [&len.to_le_bytes()[..], &plain].concat();
    let big = [&len.to_be_bytes()[..], &plain].concat();
    let wide = [&u64::from(len).to_be_bytes()[..], &plain].concat();
    let grpc = [&[0], &len.to_be_bytes()[..], &plain].concat();
    for (name, text) in [
        ("utf-16", utf16),
        ("utf-16be", utf16_be),
        ("utf-16 with a mark", marked),
        ("utf-32", utf32),
        ("little", little),
        ("big", big),
        ("wide", wide),
        ("grpc", grpc),
    ] {
        for chunk in [3, ALL] {
            let line = [&text[..], b"\n"].concat();
            let outcome = said(line.chunks(chunk.min(line.len())));
            let found = |severity: &str| {
                let mut rows = outcome.findings();
                // Little-endian text begins like JSON, and is none.
                let kinds = ["mcp_like", "not_mcp"];
                rows.any(|row| kinds.contains(&row.kind) && row.severity == severity)
            };
            assert!(found("medium"), "{name} {chunk}: {:?}", outcome.told());
        }
    }
    // What a program prints of it, and finds in files, stays what it was.
    for text in [&b"log: {\"jsonrpc\":\"2.0\"}\n"[..], b"\tjsonrpc {\n"] {
        let outcome = said([text].into_iter());
        assert!(outcome.findings().all(|row| row.severity != "medium"));
    }
}
