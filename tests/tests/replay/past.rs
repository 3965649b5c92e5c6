//! Calls that reach their receiver past the proxy.

use countersign_common::end_how;
use countersign_tests::scene::session::{notification, request, tool_params};
use countersign_tests::scene::{Answer, Entry, Log, Play, Scene, Session, Shown, program};

use crate::expect;

const ALL: usize = usize::MAX;

#[test]
fn a_call_to_a_server_of_the_agents_own_is_bypassed() {
    let mut scene = Scene::new();
    let agent = scene.root(program::AGENT);
    let (there, back) = (scene.pipe(agent), scene.pipe(agent));
    let server = scene.spawn(agent, program::SERVER);
    scene.write(
        agent,
        there,
        &line(&request("1", "tools/call", &tool_params("evil"))),
    );
    scene.read(server, there, ALL);
    scene.write(server, back, &line(&Answer::Result("{}").line("1")));
    scene.read(agent, back, ALL);
    let outcome = Play::new(scene, &[]).run();
    expect(&outcome, &["bypassed/own_server tools/call evil 1"]);
    assert!(outcome.calls().all(|call| call.answered));
    assert_eq!(outcome.found("bypassed"), 1);
}

#[test]
fn a_fifo_is_a_direct_connection() {
    let mut scene = Scene::new();
    let agent = scene.root(program::AGENT);
    let server = scene.spawn(agent, program::SERVER);
    let fifo = scene.fifo();
    scene.got(agent, fifo, end_how::OPENED);
    scene.got(server, fifo, end_how::OPENED);
    scene.write(
        agent,
        fifo,
        &line(&request("1", "tools/call", &tool_params("evil"))),
    );
    scene.read(server, fifo, ALL);
    let told = Play::new(scene, &[]).run().told();
    assert_eq!(
        told.last().map(String::as_str),
        Some("bypassed/direct_connect tools/call evil 1"),
        "{told:?}"
    );
}

#[test]
fn a_connected_socket_is_a_direct_connection() {
    let mut scene = Scene::new();
    let agent = scene.root(program::AGENT);
    let server = scene.root(program::SERVER);
    let near = scene.socket();
    scene.got(agent, near, end_how::CONNECTED);
    scene.got(server, near.other(), end_how::ACCEPTED);
    scene.write(
        agent,
        near,
        &line(&request("1", "tools/call", &tool_params("evil"))),
    );
    scene.read(server, near.other(), ALL);
    scene.write(server, near.other(), &line(&Answer::Result("{}").line("1")));
    scene.read(agent, near, ALL);
    let told = Play::new(scene, &[]).run().told();
    assert!(
        told.contains(&"bypassed/direct_connect tools/call evil 1".to_owned()),
        "{told:?}"
    );
}

#[test]
fn a_line_that_another_process_writes_to_the_server_is_bypassed() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "read");
    let evil = scene.spawn(session.client, program::TOOL);
    scene.got(evil, session.to_server, end_how::OPENED);
    scene.write(
        evil,
        session.to_server,
        &line(&request("2", "tools/call", &tool_params("evil"))),
    );
    scene.read(session.server, session.to_server, ALL);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "bypassed/foreign_writer tools/call evil 2",
            "matched tools/call read 1",
        ],
    );
}

#[test]
fn an_end_taken_from_the_proxy_is_handed_over() {
    for how in [end_how::PIDFD_GETFD, end_how::SCM_RIGHTS] {
        let (mut scene, session, mut log) = start();
        session.tool(&mut scene, &mut log, "1", "read");
        scene.got(session.client, session.to_server, how);
        scene.write(
            session.client,
            session.to_server,
            &line(&request("2", "tools/call", &tool_params("evil"))),
        );
        scene.read(session.server, session.to_server, ALL);
        expect(
            &Play::new(scene, &[&log]).run(),
            &[
                "bypassed/handed_over tools/call evil 2",
                "matched tools/call read 1",
            ],
        );
    }
}

#[test]
fn the_answer_to_an_injected_call_that_the_proxy_passes_on_does_not_launder_it() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "read");
    scene.write(
        session.client,
        session.to_server,
        &line(&request("2", "tools/call", &tool_params("evil"))),
    );
    scene.read(session.server, session.to_server, ALL);
    session.to_client(&mut scene, &Answer::Result(r#"{"stolen":1}"#).line("2"));
    let outcome = Play::new(scene, &[&log]).run();
    expect(
        &outcome,
        &[
            "bypassed/foreign_writer tools/call evil 2",
            "matched tools/call read 1",
        ],
    );
}

#[test]
fn an_answer_that_others_wrote_to_the_client_is_bypassed_and_answers_nothing() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("read");
    session.to_server(&mut scene, &request("1", "tools/call", &params));
    let evil = scene.spawn(session.client, program::TOOL);
    scene.write(
        evil,
        session.to_client,
        &line(&Answer::Result(r#"{"fake":1}"#).line("1")),
    );
    scene.read(session.client, session.to_client, ALL);
    session.to_client(&mut scene, &Answer::Result("{}").line("1"));
    log.writes(
        &mut scene,
        session.proxy,
        &Entry::of_call("1", "tools/call", &params, Answer::Result("{}")),
    );
    expect(
        &Play::new(scene, &[&log]).run(),
        &["bypassed/foreign_writer 1", "matched tools/call read 1"],
    );
}

#[test]
fn of_two_identical_lines_of_which_one_is_not_the_proxys_one_is_bypassed() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("pay");
    session.to_server(&mut scene, &request("1", "tools/call", &params));
    scene.write(
        session.client,
        session.to_server,
        &line(&request("1", "tools/call", &params)),
    );
    scene.read(session.server, session.to_server, ALL);
    session.to_client(&mut scene, &Answer::Result("{}").line("1"));
    log.writes(
        &mut scene,
        session.proxy,
        &Entry::of_call("1", "tools/call", &params, Answer::Result("{}")),
    );
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "bypassed/foreign_writer tools/call pay 1",
            "matched tools/call pay 1",
        ],
    );
}

#[test]
fn a_line_put_into_the_middle_of_a_long_one_does_not_leave_that_one_matched() {
    let (mut scene, session, mut log) = start();
    let wide = format!(
        r#"{{"arguments":{{"text":"{}"}},"name":"write"}}"#,
        "x".repeat(70_000)
    );
    let asked = line(&request("1", "tools/call", &wide));
    session.client_asks(&mut scene, &asked[..asked.len() - 1]);
    let evil = line(&request("9", "tools/call", &tool_params("evil")));
    // The kernel lets a write of more than a page be cut by others: `…","x"}}}` ends the head as a line of its own.
    let wedge = [&b"\"},\"name\":\"other\"}}\n"[..], &evil].concat();
    let enter = scene.now();
    scene.write_as(session.proxy, session.to_server, &asked, &Shown::default());
    scene.splice_into_queue(session.to_server, 65_536, &wedge);
    scene.report(
        session.client,
        session.to_server,
        countersign_common::direction::WRITE,
        &wedge,
        &Shown {
            enter: Some(enter + 10),
            ..Shown::default()
        },
    );
    scene.read(session.server, session.to_server, ALL);
    session.to_client(&mut scene, &Answer::Result("{}").line("1"));
    log.writes(
        &mut scene,
        session.proxy,
        &Entry::of_call("1", "tools/call", &wide, Answer::Result("{}")),
    );
    let told = Play::new(scene, &[&log]).run().told();
    assert!(
        told.contains(&"bypassed/foreign_writer tools/call evil 9".to_owned()),
        "{told:?}"
    );
    assert!(
        !told.iter().any(|told| told.starts_with("matched")),
        "{told:?}"
    );
}

#[test]
fn a_server_that_also_writes_to_the_proxy_is_no_relay_for_what_it_answers() {
    let (mut scene, session, mut log) = start();
    // The agent's own server gets a call, passes it on to the proxy, and answers by itself too.
    let (there, back) = (scene.pipe(session.client), scene.pipe(session.client));
    let own = scene.spawn(session.client, program::SERVER);
    let through = Session {
        client: own,
        ..session
    };
    let params = tool_params("evil");
    scene.write(
        session.client,
        there,
        &line(&request("1", "tools/call", &params)),
    );
    scene.read(own, there, ALL);
    through.call(
        &mut scene,
        &mut log,
        "1",
        "tools/call",
        &params,
        Answer::Result("{}"),
    );
    scene.write(own, back, &line(&Answer::Result(r#"{"mine":1}"#).line("1")));
    scene.read(session.client, back, ALL);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "bypassed/own_server tools/call evil 1",
            "matched tools/call evil 1",
        ],
    );
}

#[test]
fn one_passage_through_the_proxy_excuses_one_delivery() {
    let (mut scene, session, mut log) = start();
    let there = scene.pipe(session.client);
    let own = scene.spawn(session.client, program::SERVER);
    let through = Session {
        client: own,
        ..session
    };
    let params = tool_params("evil");
    for _ in 0..3 {
        scene.write(
            session.client,
            there,
            &line(&request("1", "tools/call", &params)),
        );
        scene.read(own, there, ALL);
    }
    through.call(
        &mut scene,
        &mut log,
        "1",
        "tools/call",
        &params,
        Answer::Result("{}"),
    );
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "bypassed/own_server tools/call evil 1",
            "bypassed/own_server tools/call evil 1",
            "matched tools/call evil 1",
        ],
    );
}

#[test]
fn a_notification_past_the_proxy_is_bypassed_too() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "read");
    let gone = notification("notifications/cancelled", r#"{"requestId":1}"#);
    scene.write(session.client, session.to_server, &line(&gone));
    scene.read(session.server, session.to_server, ALL);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "bypassed/foreign_writer notifications/cancelled",
            "matched tools/call read 1",
        ],
    );
}

#[test]
fn a_process_that_was_the_proxy_and_executes_another_program_is_none() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "read");
    scene.exec(session.proxy, program::TOOL);
    scene.wait_ms(5);
    let params = tool_params("evil");
    session.to_server(&mut scene, &request("2", "tools/call", &params));
    let told = Play::new(scene, &[&log]).run().told();
    assert!(
        told.contains(&"matched tools/call read 1".to_owned()),
        "{told:?}"
    );
    assert!(
        told.contains(&"bypassed/foreign_writer tools/call evil 2".to_owned()),
        "{told:?}"
    );
}

#[test]
fn a_call_that_hides_behind_missing_bytes_on_a_private_channel_is_bypassed() {
    let mut scene = Scene::new();
    let agent = scene.root(program::AGENT);
    let pipe = scene.pipe(agent);
    let server = scene.spawn(agent, program::SERVER);
    let long = format!(
        r#"{{"name":"evil","arguments":{{"pad":"{}"}}}}"#,
        "x".repeat(3 << 20)
    );
    let text = line(&request("1", "tools/call", &long));
    let limit = |from: u64| Shown {
        gap: Some((from..text.len() as u64, countersign_common::gap::LIMIT)),
        ..Shown::default()
    };
    scene.write_as(agent, pipe, &text, &limit(256 << 10));
    scene.read_as(server, pipe, ALL, &limit(1 << 20));
    let outcome = Play::new(scene, &[]).run();
    expect(
        &outcome,
        &[
            "bypassed/own_server tools/call evil 1",
            "gap undecided:limit",
        ],
    );
    assert!(
        outcome
            .coverage()
            .any(|row| row.kind == "gap" && row.self_inflicted)
    );
    assert_eq!(outcome.found("evidence_denied"), 1);
}

#[test]
fn lines_of_mcp_in_a_file_are_no_calls_whoever_writes_them() {
    let mut scene = Scene::new();
    let agent = scene.root(program::AGENT);
    let tool = scene.spawn(agent, program::TOOL);
    let file = scene.file();
    scene.got(tool, file, countersign_common::end_how::OPENED);
    let asked = line(&request("1", "tools/call", &tool_params("logged")));
    scene.write(tool, file, &asked);
    let cut = Shown {
        gap: Some((20..asked.len() as u64, countersign_common::gap::LIMIT)),
        ..Shown::default()
    };
    scene.write_as(tool, file, &asked, &cut);
    scene.write(tool, file, b"{\n\"id\":1,\"method\":\"tools/call\"}\n");
    let outcome = Play::new(scene, &[]).run();
    expect(&outcome, &[]);
    assert_eq!(outcome.calls().count(), 0);
    assert_eq!(outcome.findings().count(), 0);
}

#[test]
fn honest_calls_after_bytes_that_were_spliced_in_are_not_accused() {
    // A whole line, half a line, and half a line that the next write ends.
    let evil = line(&request("66", "tools/call", &tool_params("evil")));
    for (spliced, ended_by, run_together) in [
        (evil.clone(), &b""[..], false),
        (evil[..evil.len() - 1].to_vec(), b"\n", false),
        (b"{\"x\":\"".to_vec(), b"", true),
        (b"garbage\n".to_vec(), b"", false),
    ] {
        let (mut scene, session, mut log) = start();
        session.tool(&mut scene, &mut log, "1", "before");
        let unseen = Shown {
            gap: Some((0..spliced.len() as u64, countersign_common::gap::SPLICE)),
            ..Shown::default()
        };
        scene.write_as(session.client, session.to_server, &spliced, &unseen);
        if !ended_by.is_empty() {
            scene.write(session.client, session.to_server, ended_by);
        }
        scene.read(session.server, session.to_server, ALL);
        for id in ["2", "3", "4"] {
            session.tool(&mut scene, &mut log, id, "after");
        }
        let told = Play::new(scene, &[&log]).run().told();
        let honest = |told: &&String| told.contains("after") || told.contains("before");
        for told in told.iter().filter(honest) {
            assert!(
                told.starts_with("matched") || told.starts_with("undecided"),
                "{told}"
            );
        }
        assert_eq!(told.iter().filter(honest).count(), 4, "{told:?}");
        let bypassed = told
            .iter()
            .filter(|told| told.starts_with("bypassed"))
            .count();
        assert!(bypassed <= 1, "{told:?}");
        // The server read that one as the end of a line that another began.
        let undecided = "undecided:run_together tools/call after 2".to_owned();
        assert_eq!(told.contains(&undecided), run_together, "{told:?}");
    }
}

fn line(text: &[u8]) -> Vec<u8> {
    [text, b"\n"].concat()
}

fn start() -> (Scene, Session, Log) {
    let mut scene = Scene::new();
    let session = Session::start(&mut scene);
    let log = Log::new(&mut scene);
    (scene, session, log)
}
