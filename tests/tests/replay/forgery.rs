//! Logs that were changed, and logs that lack what happened.

use countersign_core::proxylog::Direction;
use countersign_tests::scene::session::{request, tool_params};
use countersign_tests::scene::{Answer, Entry, Log, Play, Scene, Session};

use crate::expect;

#[test]
fn a_changed_parameter_is_altered() {
    let (scene, mut log) = three_calls();
    log.edit(1, "/tmp/b", "/tmp/z");
    let outcome = Play::new(scene, &[&log]).run();
    expect(
        &outcome,
        &[
            "altered@params tools/call b 2",
            "matched tools/call a 1",
            "matched tools/call c 3",
        ],
    );
    let row = outcome
        .verdicts()
        .find(|row| row.verdict == "altered")
        .unwrap();
    assert_eq!(row.pointer.as_deref(), Some("/arguments/path"));
    assert_eq!(row.signature, Some("bad"));
}

#[test]
fn a_changed_result_is_altered_though_every_signature_holds() {
    let (scene, mut log) = three_calls();
    log.edit(1, r#""ok":true"#, r#""ok":false"#);
    let outcome = Play::new(scene, &[&log]).run();
    expect(
        &outcome,
        &[
            "altered@result tools/call b 2",
            "matched tools/call a 1",
            "matched tools/call c 3",
        ],
    );
    let row = outcome
        .verdicts()
        .find(|row| row.verdict == "altered")
        .unwrap();
    assert_eq!(row.signature, Some("valid_disk"));
}

#[test]
fn signatures_that_are_gone_or_wrong_are_altered() {
    let (scene, mut log) = three_calls();
    for (line, from) in [(0, true), (1, false)] {
        let text = String::from_utf8(log.disk[line].clone()).unwrap();
        let at = text.find(r#""signature":""#).unwrap() + 13;
        let (head, tail) = (&text[..at], &text[at + 64..]);
        let middle = if from { String::new() } else { "0".repeat(64) };
        log.disk[line] = format!("{head}{middle}{tail}").into_bytes();
    }
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "altered:signature_absent@signature tools/call a 1",
            "altered:signature_bad@signature tools/call b 2",
            "matched tools/call c 3",
        ],
    );
}

#[test]
fn a_line_rewritten_with_the_key_is_proved_by_the_third_view() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    session.tool(&mut scene, &mut log, "2", "b");
    // Another time stamp, signed with the true key: everything agrees but what the proxy wrote.
    scene.wait_ms(20);
    let entry = Entry::of_call(
        "2",
        "tools/call",
        &tool_params("b"),
        Answer::Result(r#"{"ok":true}"#),
    );
    log.disk[1] = log.line_with_id(&scene, &entry, "01M7VX54Y00000000000000002");
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "altered:rewritten_on_disk@line tools/call b 2",
            "matched tools/call a 1",
        ],
    );
}

#[test]
fn a_deleted_line_is_proved_by_the_third_view() {
    let (scene, mut log) = three_calls();
    log.disk.remove(1);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "matched tools/call a 1",
            "matched tools/call c 3",
            "unlogged:line_deleted tools/call b 2",
        ],
    );
}

#[test]
fn a_call_that_the_proxy_did_not_log_is_unlogged() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    session.unlogged(
        &mut scene,
        "2",
        "tools/call",
        &tool_params("b"),
        Answer::Result("{}"),
    );
    expect(
        &Play::new(scene, &[&log]).run(),
        &["matched tools/call a 1", "unlogged tools/call b 2"],
    );
}

#[test]
fn a_call_without_an_answer_is_unlogged_as_this_proxy_does() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    session.to_server(&mut scene, &request("2", "tools/call", &tool_params("b")));
    // While the proxy lives its answer may still come.
    scene.exit(session.proxy);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "matched tools/call a 1",
            "unlogged~unanswered tools/call b 2",
        ],
    );
}

#[test]
fn known_silences_of_the_proxy_are_named() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    session.to_server(
        &mut scene,
        br#"{"jsonrpc":"2.0","id":2,"method":"tools/call","error":"x","params":{"name":"b"}}"#,
    );
    session.to_client(&mut scene, &Answer::Result("{}").line("2"));
    session.to_server(&mut scene, br#"{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"c","arguments":{"n":NaN}}}"#);
    session.to_client(&mut scene, &Answer::Result("{}").line("3"));
    session.to_server(&mut scene, &request("4", "tools/call", &tool_params("d")));
    scene.wait_ms(31_000);
    session.to_client(&mut scene, &Answer::Result("{}").line("4"));
    for tool in ["e", "f"] {
        session.to_server(&mut scene, &request("5", "tools/call", &tool_params(tool)));
    }
    for result in [r#"{"n":1}"#, r#"{"n":2}"#] {
        session.to_client(&mut scene, &Answer::Result(result).line("5"));
    }
    // mcp-audit overwrites the first of two requests with one id.
    let entry = Entry::of_call(
        "5",
        "tools/call",
        &tool_params("f"),
        Answer::Result(r#"{"n":1}"#),
    );
    log.writes(&mut scene, session.proxy, &entry);
    let told = Play::new(scene, &[&log]).run().told();
    for wanted in [
        "unlogged~error_in_request tools/call b 2",
        "unlogged~unparsable_for_the_proxy tools/call c 3",
        "unlogged~answered_after_30_s tools/call d 4",
    ] {
        assert!(told.contains(&wanted.to_owned()), "{told:?}");
    }
    assert!(
        told.contains(&"matched tools/call f 5".to_owned()),
        "{told:?}"
    );
    assert!(
        told.contains(&"unlogged~duplicate_id_in_flight tools/call e 5".to_owned()),
        "{told:?}"
    );
}

#[test]
fn keys_that_differ_in_case_make_the_log_lie() {
    let (mut scene, session, mut log) = start();
    let params = r#"{"name":"evil","NAME":"safe"}"#;
    session.to_server(&mut scene, &request("1", "tools/call", params));
    session.to_client(&mut scene, &Answer::Result("{}").line("1"));
    let entry = Entry {
        tool: "safe".to_owned(),
        ..Entry::of_call("1", "tools/call", params, Answer::Result("{}"))
    };
    log.writes(&mut scene, session.proxy, &entry);
    session.to_server(&mut scene, br#"{"jsonrpc":"2.0","id":2,"method":"tools/call","Method":"ping","params":{"name":"evil"}}"#);
    session.to_client(&mut scene, &Answer::Result("{}").line("2"));
    let entry = Entry::of_call("2", "ping", r#"{"name":"evil"}"#, Answer::Result("{}"));
    log.writes(&mut scene, session.proxy, &entry);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "altered@method tools/call evil 2",
            "altered@tool_name tools/call evil 1",
        ],
    );
}

#[test]
fn an_entry_with_a_bad_signature_and_without_a_call_is_forged() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    let entry = Entry::of_call("9", "tools/list", "{}", Answer::Result("{}"));
    let line = log.line(&scene, &entry);
    log.disk.push(line);
    log.edit(1, "tools/list", "tools/last");
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "entry forged:signature_bad tools/last 9",
            "matched tools/call a 1",
        ],
    );
}

#[test]
fn an_entry_that_the_proxy_never_wrote_is_forged_though_its_signature_is_good() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    let entry = Entry::of_call("9", "tools/list", "{}", Answer::Result("{}"));
    let line = log.line(&scene, &entry);
    log.disk.push(line);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "entry forged:never_written tools/list 9",
            "matched tools/call a 1",
        ],
    );
}

#[test]
fn a_forged_entry_is_not_excused_by_the_time_that_it_claims() {
    for stamp in [
        "2026-11-20T05:00:00.5Z",
        "yesterday",
        "2199-01-01T00:00:00Z",
    ] {
        let (mut scene, session, mut log) = start();
        session.tool(&mut scene, &mut log, "1", "a");
        let entry = Entry::of_call("9", "tools/list", "{}", Answer::Result("{}"));
        let line = String::from_utf8(log.line(&scene, &entry)).unwrap();
        let (head, tail) = line.split_once(r#""timestamp":""#).unwrap();
        let (_, tail) = tail.split_once('"').unwrap();
        log.disk
            .push(format!(r#"{head}"timestamp":"{stamp}"{tail}"#).into_bytes());
        let told = Play::new(scene, &[&log]).run().told();
        assert!(told[0].starts_with("entry forged:"), "{stamp}: {told:?}");
    }
}

#[test]
fn an_entry_that_stands_twice_is_replayed_once() {
    let (scene, mut log) = three_calls();
    log.disk.push(log.disk[0].clone());
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "entry replayed tools/call a 1",
            "matched tools/call a 1",
            "matched tools/call b 2",
            "matched tools/call c 3",
        ],
    );
}

#[test]
fn an_entry_of_nothing_that_was_seen_is_unobserved() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    log.writes(
        &mut scene,
        session.proxy,
        &Entry::of_call("9", "tools/list", "{}", Answer::Result("{}")),
    );
    expect(
        &Play::new(scene, &[&log]).run(),
        &["entry unobserved tools/list 9", "matched tools/call a 1"],
    );
}

#[test]
fn of_equal_calls_with_an_entry_too_few_the_surplus_is_unlogged() {
    let (mut scene, session, mut log) = start();
    for _ in 0..4 {
        session.tool(&mut scene, &mut log, "1", "a");
    }
    // Without the third view nothing says which of them it was.
    session.unlogged(
        &mut scene,
        "1",
        "tools/call",
        &tool_params("a"),
        Answer::Result(r#"{"ok":true}"#),
    );
    let outcome = Play::new(scene, &[&log]).run();
    let mut wanted = vec!["matched tools/call a 1"; 4];
    wanted.push("unlogged tools/call a 1");
    expect(&outcome, &wanted);
    assert!(
        outcome
            .verdicts()
            .all(|row| row.interchangeable && row.group_size == 5)
    );
}

#[test]
fn with_the_third_view_a_deleted_one_of_equal_lines_is_known() {
    let (mut scene, session, mut log) = start();
    for _ in 0..4 {
        session.tool(&mut scene, &mut log, "1", "a");
    }
    log.disk.remove(2);
    let mut wanted = vec!["matched tools/call a 1"; 3];
    wanted.push("unlogged:line_deleted tools/call a 1");
    expect(&Play::new(scene, &[&log]).run(), &wanted);
}

#[test]
fn a_direction_that_was_changed_is_altered() {
    let (scene, mut log) = three_calls();
    log.edit(0, "server→client", "client→server");
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "altered@direction tools/call a 1",
            "matched tools/call b 2",
            "matched tools/call c 3",
        ],
    );
}

#[test]
fn an_id_that_was_changed_is_altered() {
    let (scene, mut log) = three_calls();
    log.edit(0, r#""request_id":"1""#, r#""request_id":"8""#);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "altered@request_id tools/call a 1",
            "matched tools/call b 2",
            "matched tools/call c 3",
        ],
    );
}

#[test]
fn a_line_that_says_two_things_is_altered() {
    let (scene, mut log) = three_calls();
    log.edit(
        0,
        r#""transport":"stdio""#,
        r#""transport":"stdio","method":"tools/call""#,
    );
    let told = Play::new(scene, &[&log]).run().told();
    assert!(
        told.iter()
            .any(|told| told.starts_with("altered:") && told.ends_with("a 1")),
        "{told:?}"
    );
}

#[test]
fn without_a_key_nothing_is_said_of_signatures() {
    let (mut scene, session, log) = start();
    let mut log = log.unsigned();
    session.tool(&mut scene, &mut log, "1", "a");
    let mut play = Play::new(scene, &[&log]);
    play.key = None;
    let outcome = play.run();
    expect(&outcome, &["matched tools/call a 1"]);
    assert!(
        outcome
            .verdicts()
            .all(|row| row.signature == Some("absent"))
    );
}

#[test]
fn a_refusal_that_is_a_lie_is_altered() {
    let (mut scene, session, mut log) = start();
    let error = Answer::Error(r#"{"code":-32030,"message":"denied"}"#);
    let params = tool_params("delete");
    session.to_server(&mut scene, &request("1", "tools/call", &params));
    session.returns(&mut scene, &error.line("1"));
    let entry = Entry {
        direction: Direction::ClientToServer,
        ..Entry::of_call("1", "tools/call", &params, error)
    };
    log.writes(&mut scene, session.proxy, &entry);
    expect(
        &Play::new(scene, &[&log]).run(),
        &["altered:refused_but_forwarded@error tools/call delete 1"],
    );
}

fn three_calls() -> (Scene, Log) {
    let (mut scene, session, mut log) = start();
    for (id, name) in [("1", "a"), ("2", "b"), ("3", "c")] {
        session.tool(&mut scene, &mut log, id, name);
    }
    (scene, log)
}

fn start() -> (Scene, Session, Log) {
    let mut scene = Scene::new();
    let session = Session::start(&mut scene);
    let log = Log::new(&mut scene);
    (scene, session, log)
}
