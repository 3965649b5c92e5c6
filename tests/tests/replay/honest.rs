//! Sessions in which nobody does wrong.

use countersign_core::correlator::PayloadMode;
use countersign_core::proxylog::{Direction, Redaction};
use countersign_tests::scene::session::{notification, request, tool_params};
use countersign_tests::scene::{Answer, Entry, Log, Play, Scene, Session, program};

use crate::expect;

#[test]
fn a_logged_call_is_matched() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "read");
    expect(
        &Play::new(scene, &[&log]).run(),
        &["matched tools/call read 1"],
    );
}

#[test]
fn socket_pairs_do_what_pipes_do() {
    let mut scene = Scene::new();
    let session = Session::with_sockets(&mut scene);
    let mut log = Log::new(&mut scene);
    session.tool(&mut scene, &mut log, "1", "read");
    session.tool(&mut scene, &mut log, "2", "read");
    expect(
        &Play::new(scene, &[&log]).run(),
        &["matched tools/call read 1", "matched tools/call read 2"],
    );
}

#[test]
fn notifications_of_both_sides_are_matched() {
    let (mut scene, session, mut log) = start();
    session.to_server(&mut scene, &notification("notifications/initialized", "{}"));
    let entry =
        Entry::of_notification(Direction::ClientToServer, "notifications/initialized", "{}");
    log.writes(&mut scene, session.proxy, &entry);
    session.to_client(
        &mut scene,
        &notification("notifications/progress", r#"{"n":1}"#),
    );
    let entry = Entry::of_notification(
        Direction::ServerToClient,
        "notifications/progress",
        r#"{"n":1}"#,
    );
    log.writes(&mut scene, session.proxy, &entry);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "matched notifications/initialized",
            "matched notifications/progress",
        ],
    );
}

#[test]
fn requests_of_both_sides_may_have_one_id() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("read");
    session.to_server(&mut scene, &request("1", "tools/call", &params));
    session.to_client(
        &mut scene,
        &request("1", "sampling/createMessage", r#"{"maxTokens":9}"#),
    );
    session.to_server(&mut scene, &Answer::Result(r#"{"text":"hi"}"#).line("1"));
    let entry = Entry {
        direction: Direction::ClientToServer,
        ..Entry::of_call(
            "1",
            "sampling/createMessage",
            r#"{"maxTokens":9}"#,
            Answer::Result(r#"{"text":"hi"}"#),
        )
    };
    log.writes(&mut scene, session.proxy, &entry);
    session.to_client(&mut scene, &Answer::Result(r#"{"ok":true}"#).line("1"));
    let entry = Entry::of_call("1", "tools/call", &params, Answer::Result(r#"{"ok":true}"#));
    log.writes(&mut scene, session.proxy, &entry);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "matched sampling/createMessage 1",
            "matched tools/call read 1",
        ],
    );
}

#[test]
fn a_number_and_its_text_can_both_be_in_flight() {
    let (mut scene, session, mut log) = start();
    let (params, other) = (tool_params("read"), tool_params("write"));
    session.to_server(&mut scene, &request("7", "tools/call", &params));
    session.to_server(&mut scene, &request("\"7\"", "tools/call", &other));
    for (id, params, result) in [
        ("\"7\"", &other, r#"{"w":1}"#),
        ("7", &params, r#"{"r":1}"#),
    ] {
        session.to_client(&mut scene, &Answer::Result(result).line(id));
        log.writes(
            &mut scene,
            session.proxy,
            &Entry::of_call(id, "tools/call", params, Answer::Result(result)),
        );
    }
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "matched tools/call read 7",
            "matched tools/call write \"7\"",
        ],
    );
}

#[test]
fn answers_may_come_out_of_order() {
    let (mut scene, session, mut log) = start();
    for id in ["1", "2", "3"] {
        session.to_server(&mut scene, &request(id, "tools/call", &tool_params("read")));
    }
    for id in ["3", "1", "2"] {
        let result = format!(r#"{{"of":{id}}}"#);
        session.to_client(&mut scene, &Answer::Result(&result).line(id));
        let entry = Entry::of_call(
            id,
            "tools/call",
            &tool_params("read"),
            Answer::Result(&result),
        );
        log.writes(&mut scene, session.proxy, &entry);
    }
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "matched tools/call read 1",
            "matched tools/call read 2",
            "matched tools/call read 3",
        ],
    );
}

#[test]
fn a_batch_of_two_is_two_calls() {
    let (mut scene, session, mut log) = start();
    let batch = [
        &b"["[..],
        &request("1", "ping", "{}"),
        b",",
        &request("2", "tools/list", "{}"),
        b"]",
    ]
    .concat();
    session.to_server(&mut scene, &batch);
    let answers = [
        &b"["[..],
        &Answer::Result("{}").line("2"),
        b", ",
        &Answer::Result("{}").line("1"),
        b"]",
    ]
    .concat();
    session.to_client(&mut scene, &answers);
    for (id, method) in [("2", "tools/list"), ("1", "ping")] {
        log.writes(
            &mut scene,
            session.proxy,
            &Entry::of_call(id, method, "{}", Answer::Result("{}")),
        );
    }
    expect(
        &Play::new(scene, &[&log]).run(),
        &["matched ping 1", "matched tools/list 2"],
    );
}

#[test]
fn an_error_is_an_answer() {
    let (mut scene, session, mut log) = start();
    let error = Answer::Error(r#"{"code":-32602,"message":"no <such> file","data":{"token":"x"}}"#);
    session.call(
        &mut scene,
        &mut log,
        "1",
        "tools/call",
        &tool_params("read"),
        error,
    );
    expect(
        &Play::new(scene, &[&log]).run(),
        &["matched tools/call read 1"],
    );
}

#[test]
fn secrets_are_replaced_in_log_and_evidence() {
    let (mut scene, session, mut log) = start();
    let params = r#"{"name":"login","arguments":{"password":"hunter2","user":"eve"}}"#;
    session.call(
        &mut scene,
        &mut log,
        "1",
        "tools/call",
        params,
        Answer::Result(r#"{"token":"hunter3"}"#),
    );
    let outcome = Play::new(scene, &[&log]).run();
    expect(&outcome, &["matched tools/call login 1"]);
    let text = format!(
        "{:?}",
        outcome
            .calls()
            .map(|call| call.params.as_ref().map(|params| &params.0))
            .collect::<Vec<_>>()
    );
    assert!(
        text.contains("eve") && text.contains("[REDACTED]") && !text.contains("hunter"),
        "{text}"
    );
}

#[test]
fn a_log_without_redaction_is_matched_by_its_wire_bytes() {
    let (mut scene, session, mut log) = start();
    log.redaction = Redaction::none();
    let params = r#"{"name":"login","arguments":{"password":"a<b"}}"#;
    session.call(
        &mut scene,
        &mut log,
        "1",
        "tools/call",
        params,
        Answer::Result("{}"),
    );
    let mut play = Play::new(scene, &[&log]);
    play.payload = PayloadMode::Hash;
    let outcome = play.run();
    expect(&outcome, &["matched tools/call login 1"]);
    assert!(outcome.calls().all(|call| call.params.is_none()));
}

#[test]
fn a_signature_over_the_wires_bytes_holds_where_the_disk_has_another_text() {
    let params = r#"{ "name": "login", "arguments": {"query": "a<b", "n": 9007199254740993} }"#;
    let play = |edit: Option<(&str, &str)>| {
        let (mut scene, session, log) = start();
        let mut log = log.verbatim();
        let answer = Answer::Result("{}");
        session.call(&mut scene, &mut log, "1", "tools/call", params, answer);
        if let Some((from, to)) = edit {
            log.edit(0, from, to);
        }
        Play::new(scene, &[&log]).run()
    };
    let outcome = play(None);
    expect(&outcome, &["matched tools/call login 1"]);
    let row = outcome.verdicts().next().unwrap();
    assert_eq!(row.signature, Some("valid_wire"));
    let outcome = play(Some(("9007199254740993", "9007199254740992")));
    expect(
        &outcome,
        &["altered:rewritten_on_disk@line tools/call login 1"],
    );
    assert_eq!(
        outcome.verdicts().next().unwrap().signature,
        Some("recovered")
    );
    expect(
        &play(Some(("\\u003cb", "\\u003cc"))),
        &["altered@params tools/call login 1"],
    );
}

#[test]
fn a_refused_call_that_went_no_further_is_blocked() {
    let (mut scene, session, mut log) = start();
    let error = Answer::Error(r#"{"code":-32030,"message":"denied by policy"}"#);
    let params = tool_params("delete");
    session.client_asks(&mut scene, &request("1", "tools/call", &params));
    session.returns(&mut scene, &error.line("1"));
    let entry = Entry {
        direction: Direction::ClientToServer,
        ..Entry::of_call("1", "tools/call", &params, error)
    };
    log.writes(&mut scene, session.proxy, &entry);
    expect(
        &Play::new(scene, &[&log]).run(),
        &["blocked tools/call delete 1"],
    );
}

#[test]
fn a_refusal_answers_the_request_that_was_refused() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "read");
    let error = Answer::Error(r#"{"code":-32030,"message":"denied by policy"}"#);
    let params = tool_params("delete");
    // One with this id was passed on and never answered.
    session.to_server(&mut scene, &request("2", "tools/call", &params));
    session.client_asks(&mut scene, &request("2", "tools/call", &params));
    session.returns(&mut scene, &error.line("2"));
    let entry = Entry {
        direction: Direction::ClientToServer,
        ..Entry::of_call("2", "tools/call", &params, error)
    };
    log.writes(&mut scene, session.proxy, &entry);
    // While the proxy lives the other's answer may still come.
    scene.exit(session.proxy);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "blocked tools/call delete 2",
            "matched tools/call read 1",
            "unlogged~unanswered tools/call delete 2",
        ],
    );
}

#[test]
fn a_relay_before_the_proxy_is_no_bypass() {
    let mut scene = Scene::new();
    let agent = scene.root(program::AGENT);
    let first = scene.pipe(agent);
    let mut session = Session::under(&mut scene, agent);
    let mut log = Log::new(&mut scene);
    let tee = scene.spawn(agent, program::TOOL);
    session.client = tee;
    let params = tool_params("read");
    let line = [request("1", "tools/call", &params), b"\n".to_vec()].concat();
    scene.write(agent, first, &line);
    scene.read(tee, first, 1 << 20);
    session.to_server(&mut scene, &request("1", "tools/call", &params));
    session.to_client(&mut scene, &Answer::Result("{}").line("1"));
    log.writes(
        &mut scene,
        session.proxy,
        &Entry::of_call("1", "tools/call", &params, Answer::Result("{}")),
    );
    expect(
        &Play::new(scene, &[&log]).run(),
        &["matched tools/call read 1"],
    );
}

#[test]
fn a_server_behind_a_shell_pipeline_is_no_bypass() {
    let (mut scene, mut session, mut log) = start();
    // `sh -c 'tee in | server | tee out'` where the proxy expects its server.
    let shell = session.server;
    let (inner_in, inner_out) = (scene.pipe(shell), scene.pipe(shell));
    let tee_in = scene.spawn(shell, program::TOOL);
    let server = scene.spawn(shell, program::SERVER);
    let tee_out = scene.spawn(shell, program::TOOL);
    let params = tool_params("read");
    let asks = request("1", "tools/call", &params);
    let logs = notification("notifications/message", r#"{"level":"info"}"#);
    let answer = Answer::Result("{}").line("1");
    session.server = tee_in;
    session.to_server(&mut scene, &asks);
    scene.write(tee_in, inner_in, &[&asks[..], b"\n"].concat());
    scene.read(server, inner_in, 1 << 20);
    session.server = tee_out;
    for line in [&logs, &answer] {
        scene.write(server, inner_out, &[&line[..], b"\n"].concat());
        scene.read(tee_out, inner_out, 1 << 20);
        session.to_client(&mut scene, line);
    }
    let said = Entry::of_notification(
        Direction::ServerToClient,
        "notifications/message",
        r#"{"level":"info"}"#,
    );
    log.writes(&mut scene, session.proxy, &said);
    log.writes(
        &mut scene,
        session.proxy,
        &Entry::of_call("1", "tools/call", &params, Answer::Result("{}")),
    );
    expect(
        &Play::new(scene, &[&log]).run(),
        &["matched notifications/message", "matched tools/call read 1"],
    );
}

#[test]
fn a_proxy_may_fork_workers() {
    let (mut scene, mut session, mut log) = start();
    session.proxy = scene.fork(session.proxy);
    session.tool(&mut scene, &mut log, "1", "read");
    session.proxy = scene.fork(session.proxy);
    session.tool(&mut scene, &mut log, "2", "read");
    expect(
        &Play::new(scene, &[&log]).run(),
        &["matched tools/call read 1", "matched tools/call read 2"],
    );
}

#[test]
fn two_instances_with_identical_traffic_and_one_log_are_told_apart() {
    let mut scene = Scene::new();
    let agent = scene.root(program::AGENT);
    let sessions = [
        Session::under(&mut scene, agent),
        Session::under(&mut scene, agent),
    ];
    let mut log = Log::new(&mut scene);
    for _ in 0..3 {
        for session in &sessions {
            session.tool(&mut scene, &mut log, "1", "read");
        }
    }
    // The second instance does not log its fourth call; the first one does.
    sessions[0].tool(&mut scene, &mut log, "1", "read");
    sessions[1].unlogged(
        &mut scene,
        "1",
        "tools/call",
        &tool_params("read"),
        Answer::Result(r#"{"ok":true}"#),
    );
    let outcome = Play::new(scene, &[&log]).run();
    let mut wanted = vec!["matched tools/call read 1"; 7];
    wanted.push("unlogged tools/call read 1");
    expect(&outcome, &wanted);
    let writers: std::collections::BTreeSet<_> = outcome
        .entries()
        .map(|entry| entry.proxy_process_id)
        .collect();
    assert_eq!(writers.len(), 2, "each instance wrote entries");
}

#[test]
fn what_is_not_mcp_is_out_of_scope_on_a_direct_channel() {
    let mut scene = Scene::new();
    let agent = scene.root(program::AGENT);
    let pipe = scene.pipe(agent);
    let server = scene.spawn(agent, program::SERVER);
    for line in [
        request("1", "initialize", r#"{"rootUri":null}"#),
        request("2", "textDocument/hover", "{}"),
        request("3", "shop/order", "{}"),
    ] {
        scene.write(agent, pipe, &[&line[..], b"\n"].concat());
        scene.read(server, pipe, 1 << 20);
    }
    expect(
        &Play::new(scene, &[]).run(),
        &[
            "out_of_scope:unknown_method initialize 1",
            "out_of_scope:unknown_method shop/order 3",
            "out_of_scope:unknown_method textDocument/hover 2",
        ],
    );
}

#[test]
fn a_proxys_own_housekeeping_is_out_of_scope() {
    let (mut scene, session, mut log) = start();
    session.forwards(
        &mut scene,
        &request("0", "initialize", r#"{"protocolVersion":"2025-11-25"}"#),
    );
    session.server_says(&mut scene, &Answer::Result("{}").line("0"));
    session.forwards(&mut scene, &request("p1", "ping", "{}"));
    session.tool(&mut scene, &mut log, "1", "read");
    let outcome = Play::new(scene, &[&log]).run();
    let told = outcome.told();
    assert!(
        told.contains(&"matched tools/call read 1".to_owned()),
        "{told:?}"
    );
    assert!(
        told.contains(&"out_of_scope:proxy_own initialize 0".to_owned()),
        "{told:?}"
    );
}

#[test]
fn an_allowed_direct_channel_is_allowed_for_its_methods() {
    let mut scene = Scene::new();
    let agent = scene.root(program::AGENT);
    let pipe = scene.pipe(agent);
    let server = scene.spawn(agent, program::SERVER);
    for line in [
        request("1", "tools/list", "{}"),
        request("2", "tools/call", &tool_params("x")),
    ] {
        scene.write(agent, pipe, &[&line[..], b"\n"].concat());
        scene.read(server, pipe, 1 << 20);
    }
    let outcome = Play::new(scene, &[])
        .allowing(program::SERVER, Some(&["tools/list"]))
        .run();
    expect(
        &outcome,
        &[
            "allowed/own_server tools/list 1",
            "bypassed/own_server tools/call x 2",
        ],
    );
}

#[test]
fn entries_from_before_the_capture_are_outside() {
    let (mut scene, session, mut log) = start();
    let entry = Entry::of_call("1", "tools/call", &tool_params("old"), Answer::Result("{}"));
    let line = log.line(&scene, &entry);
    let old = String::from_utf8(line)
        .unwrap()
        .replace("2026-11-20T07:", "2026-11-20T05:");
    log.disk.push(old.into_bytes());
    session.tool(&mut scene, &mut log, "1", "read");
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "entry outside tools/call old 1",
            "matched tools/call read 1",
        ],
    );
}

fn start() -> (Scene, Session, Log) {
    let mut scene = Scene::new();
    let session = Session::start(&mut scene);
    let log = Log::new(&mut scene);
    (scene, session, log)
}
