//! Messages that stand on no line of their own: pretty-printed, one behind the other, with lengths before them, or larger than what
//! is taken of one operation. Decoders of streams execute them all.

use countersign_common::gap;
use countersign_tests::scene::session::{request, tool_params};
use countersign_tests::scene::{Answer, End, Log, Play, Proc, Scene, Session, Shown, program};

use crate::expect;

const ALL: usize = usize::MAX;
const OK: Answer<'_> = Answer::Result("{}");

/// One evil call in each framing that is not a line.
fn framings() -> Vec<Vec<u8>> {
    let plain = String::from_utf8(request("1", "tools/call", &tool_params("evil"))).unwrap();
    let pretty = plain
        .replace(',', ",\n  ")
        .replace('{', "{\n  ")
        .replace('}', "\n}");
    let escaped = plain.replace("tools/call", "tools\\/call");
    [
        format!("{pretty}\n"),
        format!("[\n{plain}\n]\n"),
        format!("\n{}\n", plain.replacen(',', "\n,", 1)),
        format!(
            "{}\n",
            plain.replacen("\"params\":{", "\"a\":{}\n,\"params\":{", 1)
        ),
        format!("{{}}{plain}\n"),
        format!("{plain}{{}}\n"),
        format!("7 {plain}\n"),
        format!("\"x\"{plain}\n"),
        format!("{plain}Content-Length: 7\r\n\r\n"),
        format!("{{\"level\":\"info\"}} {{\n\"x\":[]}}{escaped}\n"),
        format!("Content-Length: 9\r\n\r\n{pretty}Content-Length: 7\r\n\r\n"),
    ]
    .map(String::into_bytes)
    .to_vec()
}

#[test]
fn a_private_call_in_any_framing_that_is_answered_is_a_bypass() {
    for text in framings() {
        for chunk in [1, 7, ALL] {
            let (mut scene, own) = own_server();
            for piece in text.chunks(chunk.min(text.len())) {
                scene.write(own.agent, own.to_server, piece);
                scene.read(own.server, own.to_server, ALL);
            }
            own.answers(&mut scene, &OK.line("1"));
            let told = Play::new(scene, &[]).run().told();
            let shown = String::from_utf8_lossy(&text);
            assert_eq!(told, ["bypassed/own_server tools/call evil 1"], "{shown}");
        }
    }
}

#[test]
fn a_private_call_in_another_framing_that_nobody_answers_is_undecided_and_a_finding() {
    // Of a batch over lines one line is a whole message.
    let other = |text: &Vec<u8>| !text.starts_with(b"[");
    for text in framings().into_iter().filter(other) {
        let (mut scene, own) = own_server();
        scene.write(own.agent, own.to_server, &text);
        scene.read(own.server, own.to_server, ALL);
        let outcome = Play::new(scene, &[]).run();
        let shown = String::from_utf8_lossy(&text);
        assert_eq!(
            outcome.told(),
            ["undecided/own_server:framing tools/call evil 1"],
            "{shown}"
        );
        assert!(
            outcome
                .findings()
                .any(|row| row.kind == "mcp_like" && row.severity == "medium")
        );
    }
}

#[test]
fn an_answer_that_nobody_reads_is_an_answer() {
    for text in framings() {
        let (mut scene, own) = own_server();
        scene.write(own.agent, own.to_server, &text);
        scene.read(own.server, own.to_server, ALL);
        let answer = [OK.line("1"), b"\n".to_vec()].concat();
        scene.write(own.server, own.to_agent, &answer);
        let told = Play::new(scene, &[]).run().told();
        assert_eq!(told, ["bypassed/own_server tools/call evil 1"]);
    }
}

#[test]
fn the_last_body_with_a_length_before_it_is_a_call() {
    let (mut scene, own) = own_server();
    let body = request("1", "tools/call", &tool_params("evil"));
    let text = [b"Content-Length: 9\r\n\r\n".as_slice(), &body].concat();
    scene.write(own.agent, own.to_server, &text);
    scene.read(own.server, own.to_server, ALL);
    expect(
        &Play::new(scene, &[]).run(),
        &["bypassed/own_server tools/call evil 1"],
    );
}

#[test]
fn every_message_of_a_stream_with_lengths_is_a_call_of_its_own() {
    let (mut scene, own) = own_server();
    for name in ["a", "b", "c"] {
        let body = request(&format!("\"{name}\""), "tools/call", &tool_params(name));
        let head = format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes();
        scene.write(own.agent, own.to_server, &[head, body].concat());
        scene.read(own.server, own.to_server, ALL);
        let answer = OK.line(&format!("\"{name}\""));
        let head = format!("Content-Length: {}\r\n\r\n", answer.len()).into_bytes();
        own.says(&mut scene, &[head, answer].concat());
    }
    expect(
        &Play::new(scene, &[]).run(),
        &[
            "bypassed/own_server tools/call a \"a\"",
            "bypassed/own_server tools/call b \"b\"",
            "bypassed/own_server tools/call c \"c\"",
        ],
    );
}

#[test]
fn text_in_utf16_for_one_who_answers_is_a_finding() {
    let plain = String::from_utf8(request("1", "tools/call", &tool_params("evil"))).unwrap();
    for swap in [false, true] {
        let (mut scene, own) = own_server();
        let order = |unit: u16| {
            if swap {
                unit.to_be_bytes()
            } else {
                unit.to_le_bytes()
            }
        };
        let text: Vec<u8> = format!("{plain}\n")
            .encode_utf16()
            .flat_map(order)
            .collect();
        for piece in text.chunks(3) {
            scene.write(own.agent, own.to_server, piece);
            scene.read(own.server, own.to_server, ALL);
        }
        own.answers(&mut scene, &OK.line("1"));
        let outcome = Play::new(scene, &[]).run();
        let found = outcome
            .findings()
            .any(|row| row.severity == "medium" || row.severity == "high");
        assert!(found, "{swap}");
    }
}

#[test]
fn text_about_json_rpc_between_programs_is_no_grave_finding() {
    let (mut scene, own) = own_server();
    let text = b"src/a.rs: \"jsonrpc\": \"2.0\"\n+  \"jsonrpc\"\n";
    scene.write(own.agent, own.to_server, text);
    scene.read(own.server, own.to_server, ALL);
    own.says(&mut scene, text);
    let outcome = Play::new(scene, &[]).run();
    expect(&outcome, &[]);
    assert!(outcome.findings().all(|row| row.severity == "low"));
}

#[test]
fn a_server_that_prints_what_it_got_is_not_accused() {
    let (mut scene, session, mut log) = start();
    let errors = scene.pipe(session.client);
    session.tool(&mut scene, &mut log, "1", "read");
    let plain = String::from_utf8(request("1", "tools/call", &tool_params("read"))).unwrap();
    let pretty = plain
        .replace(',', ",\n  ")
        .replace('{', "{\n  ")
        .replace('}', "\n}");
    for text in [
        format!("{pretty}\n"),
        format!("got {plain}\n"),
        format!("12 {plain}\n"),
        "{ fruit: 'apple',\n  list: [ 1,\n 2 ] }\n".to_owned(),
    ] {
        scene.write(session.server, errors, text.as_bytes());
        scene.read(session.client, errors, ALL);
    }
    let outcome = Play::new(scene, &[&log]).run();
    expect(&outcome, &["matched tools/call read 1"]);
    let grave = outcome
        .findings()
        .filter(|row| !matches!(row.severity, "low" | "info"));
    assert_eq!(grave.count(), 0);
}

#[test]
fn what_is_no_line_accuses_nobody_at_a_proxy_and_is_a_finding() {
    for text in framings() {
        let (mut scene, session, mut log) = start();
        session.tool(&mut scene, &mut log, "0", "read");
        scene.write(session.client, session.to_proxy, &text);
        scene.read(session.proxy, session.to_proxy, ALL);
        scene.write(session.proxy, session.to_server, &text);
        scene.read(session.server, session.to_server, ALL);
        let outcome = Play::new(scene, &[&log]).run();
        let told = outcome.told();
        let plain_lines = [
            "matched tools/call read 0",
            "unlogged~unanswered tools/call evil 1",
        ];
        // Of a batch over lines one line is a whole message to a proxy of lines too.
        let fine = told == plain_lines[..1] || (text.starts_with(b"[\n") && told.len() == 2);
        assert!(fine, "{told:?} {}", String::from_utf8_lossy(&text));
        assert!(
            outcome
                .findings()
                .any(|row| row.severity == "medium" || row.severity == "high"),
            "{}",
            String::from_utf8_lossy(&text)
        );
    }
}

#[test]
fn a_value_over_lines_that_another_wrote_into_the_proxys_channel_is_foreign() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "0", "read");
    let plain = String::from_utf8(request("1", "tools/call", &tool_params("evil"))).unwrap();
    let pretty = plain.replace(',', ",\n  ");
    let text = format!("{pretty}\n").into_bytes();
    scene.write(session.client, session.to_server, &text);
    scene.read(session.server, session.to_server, ALL);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "matched tools/call read 0",
            "undecided/foreign_writer:framing tools/call evil 1",
        ],
    );
}

#[test]
fn a_message_too_large_to_be_taken_is_a_call() {
    let filler = "x".repeat(3 << 20);
    for (text, wanted) in [
        (
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"evil","x":"{filler}"}}}}"#
            ),
            "bypassed/own_server tools/call evil 1",
        ),
        (
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"params":{{"x":"{filler}","name":"evil"}},"method":"tools/call"}}"#
            ),
            "undecided/own_server:method_unseen 1",
        ),
        (
            format!(
                r#"{{"params":{{"x":"{filler}","name":"evil"}},"id":1,"method":"tools/call"}}"#
            ),
            "undecided/own_server:method_unseen",
        ),
        (
            format!(r#"{{"x":"{filler}","id":1,"method":"tools/call"}}"#),
            "undecided/own_server:method_unseen",
        ),
        (
            format!(r#"{{"result":{{"x":"{filler}"}},"id":1,"method":"tools/call"}}"#),
            "undecided/own_server:method_unseen",
        ),
    ] {
        let (mut scene, own) = own_server();
        own.asks(&mut scene, &request("0", "ping", "{}"));
        own.answers(&mut scene, &OK.line("0"));
        let text = format!("{text}\n").into_bytes();
        let cut = |from: u64| Shown {
            gap: Some((from..text.len() as u64, gap::LIMIT)),
            ..Shown::default()
        };
        scene.write_as(own.agent, own.to_server, &text, &cut(256 << 10));
        scene.read_as(own.server, own.to_server, ALL, &cut(1 << 20));
        let outcome = Play::new(scene, &[]).run();
        let told = outcome.told();
        assert!(told.contains(&wanted.to_owned()), "{wanted}: {told:?}");
        assert_eq!(
            told.iter().filter(|told| !told.starts_with("gap")).count(),
            2,
            "{told:?}"
        );
        assert!(
            outcome
                .findings()
                .any(|row| matches!(row.severity, "medium" | "high" | "critical"))
        );
    }
}

#[test]
fn a_large_message_of_which_a_part_was_lost_is_undecided() {
    let filler = "x".repeat(300 << 10);
    let text = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"evil","x":"{filler}"}}}}"#
    );
    let text = format!("{text}\n").into_bytes();
    let (mut scene, own) = own_server();
    let lost = Shown {
        gap: Some((100 << 10..text.len() as u64, gap::RING_FULL)),
        ..Shown::default()
    };
    scene.write_as(own.agent, own.to_server, &text, &lost);
    scene.read_as(own.server, own.to_server, ALL, &lost);
    let told = Play::new(scene, &[]).run().told();
    assert!(
        told.contains(&"undecided/own_server:gap tools/call evil 1".to_owned()),
        "{told:?}"
    );
    assert!(!told.iter().any(|told| told.starts_with("bypassed")));
}

#[test]
fn large_objects_between_programs_that_speak_no_json_rpc_are_nothing() {
    let (mut scene, own) = own_server();
    let text = format!("{{\"id\":1,\"items\":[\"{}\"]}}\n", "x".repeat(3 << 20)).into_bytes();
    let cut = Shown {
        gap: Some((1 << 20..text.len() as u64, gap::LIMIT)),
        ..Shown::default()
    };
    scene.write_as(own.agent, own.to_server, &text, &cut);
    scene.read_as(own.server, own.to_server, ALL, &cut);
    let pretty = b"{\n  \"name\": \"x\",\n  \"list\": [\n    1\n  ]\n}\n";
    scene.write(own.agent, own.to_server, pretty);
    scene.read(own.server, own.to_server, ALL);
    let outcome = Play::new(scene, &[]).run();
    expect(&outcome, &[]);
    assert_eq!(outcome.findings().count(), 0);
}

/// An agent with a server of its own.
struct Own {
    agent: Proc,
    server: Proc,
    to_server: End,
    to_agent: End,
}

impl Own {
    fn asks(&self, scene: &mut Scene, line: &[u8]) {
        scene.write(self.agent, self.to_server, &[line, b"\n"].concat());
        scene.read(self.server, self.to_server, ALL);
    }

    fn answers(&self, scene: &mut Scene, line: &[u8]) {
        self.says(scene, &[line, b"\n"].concat());
    }

    fn says(&self, scene: &mut Scene, text: &[u8]) {
        scene.write(self.server, self.to_agent, text);
        scene.read(self.agent, self.to_agent, ALL);
    }
}

#[test]
fn what_neither_end_of_a_private_stream_shows_weakens_and_what_one_shows_does_not() {
    let text = [
        request("1", "tools/call", &tool_params("evil")),
        b"\n".to_vec(),
    ]
    .concat();
    for (by_writer, by_reader) in [(true, true), (true, false), (false, true)] {
        let (mut scene, own) = own_server();
        let hidden = |hides: bool| Shown {
            gap: hides.then_some((0..text.len() as u64, gap::SPLICE)),
            ..Shown::default()
        };
        scene.write_as(own.agent, own.to_server, &text, &hidden(by_writer));
        scene.read_as(own.server, own.to_server, ALL, &hidden(by_reader));
        let outcome = Play::new(scene, &[]).run();
        let mut gaps = outcome
            .coverage()
            .filter(|row| row.reason == Some("splice"));
        assert_eq!(
            gaps.any(|row| row.weakens),
            by_writer && by_reader,
            "{by_writer} {by_reader}"
        );
    }
}

#[test]
fn a_message_in_disguise_is_a_finding() {
    let plain = String::from_utf8(request("1", "tools/call", &tool_params("evil"))).unwrap();
    let utf32: Vec<u8> = plain
        .chars()
        .flat_map(|char| u32::from(char).to_be_bytes())
        .collect();
    let quoted = serde_json::to_string(&plain).unwrap();
    let wrapped = format!(r#"{{"type":"message","payload":{plain}}}"#);
    for (text, to_own_server) in [
        (utf32, false),
        (quoted.into_bytes(), false),
        (wrapped.clone().into_bytes(), false),
        (format!("[[{plain}]]").into_bytes(), true),
        (wrapped.into_bytes(), true),
        (plain.replace('"', "'").into_bytes(), true),
    ] {
        let text = [text, b"\n".to_vec()].concat();
        let outcome = if to_own_server {
            let (mut scene, own) = own_server();
            scene.write(own.agent, own.to_server, &text);
            scene.read(own.server, own.to_server, ALL);
            Play::new(scene, &[]).run()
        } else {
            let (mut scene, session, log) = start();
            scene.write(session.client, session.to_proxy, &text);
            scene.read(session.proxy, session.to_proxy, ALL);
            Play::new(scene, &[&log]).run()
        };
        assert!(
            outcome.findings().any(|row| row.severity == "medium"),
            "{} {:?}",
            String::from_utf8_lossy(&text),
            outcome.told()
        );
    }
}

#[test]
fn noise_before_a_disguise_does_not_hide_it() {
    let (mut scene, own) = own_server();
    let noise = b"not json\n".repeat(300);
    let quoted = br#""{\"jsonrpc\":\"2.0\",\"method\":\"tools/call\"}""#;
    for text in [noise, [&quoted[..], b"\n"].concat()] {
        scene.write(own.agent, own.to_server, &text);
        scene.read(own.server, own.to_server, ALL);
    }
    let outcome = Play::new(scene, &[]).run();
    // Lines that are no JSON are not tied: each end tells of it.
    assert_eq!(outcome.found("mcp_like"), 2, "{:?}", outcome.told());
}

fn own_server() -> (Scene, Own) {
    let mut scene = Scene::new();
    let agent = scene.root(program::AGENT);
    let (to_server, to_agent) = (scene.pipe(agent), scene.pipe(agent));
    let server = scene.spawn(agent, program::SERVER);
    let own = Own {
        agent,
        server,
        to_server,
        to_agent,
    };
    (scene, own)
}

fn start() -> (Scene, Session, Log) {
    let mut scene = Scene::new();
    let session = Session::start(&mut scene);
    let log = Log::new(&mut scene);
    (scene, session, log)
}
