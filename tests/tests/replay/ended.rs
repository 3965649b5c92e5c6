//! Sessions whose server or client ends while messages are on their way: nobody did wrong.

use countersign_tests::scene::session::{notification, request, tool_params};
use countersign_tests::scene::{Answer, Entry, Log, Play, Scene, Session, Shown, program};

use countersign_core::proxylog::Direction;

use crate::expect;

/// What a proxy logs of a request that nobody answered.
const NO_ANSWER: Answer<'_> = Answer::Error(
    r#"{"code":-32001,"message":"no response","data":{"countersign":"no_response","reason":"server ended"}}"#,
);

#[test]
fn a_request_that_the_server_did_not_live_to_get_is_undecided() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    scene.exit(session.server);
    let params = tool_params("b");
    session.client_asks(&mut scene, &request("2", "tools/call", &params));
    scene.wait_ms(20);
    logs(&mut scene, &session, &mut log, "2", &params);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "matched tools/call a 1",
            "undecided:receiver_ended tools/call b 2",
        ],
    );
}

#[test]
fn a_notification_that_the_server_did_not_live_to_get_is_undecided() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    session.client_asks(&mut scene, &notification("notifications/progress", "{}"));
    scene.exit(session.server);
    let entry = Entry::of_notification(Direction::ClientToServer, "notifications/progress", "{}");
    log.writes(&mut scene, session.proxy, &entry);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "matched tools/call a 1",
            "undecided:receiver_ended notifications/progress",
        ],
    );
}

#[test]
fn requests_that_a_dying_server_left_in_its_pipe_are_matched() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("a");
    let asked = request("1", "tools/call", &params);
    session.client_asks(&mut scene, &asked);
    scene.write(
        session.proxy,
        session.to_server,
        &[&asked[..], b"\n"].concat(),
    );
    scene.exit(session.server);
    logs(&mut scene, &session, &mut log, "1", &params);
    expect(
        &Play::new(scene, &[&log]).run(),
        &["matched tools/call a 1"],
    );
}

#[test]
fn a_request_that_the_proxy_kept_back_from_a_living_server_is_altered() {
    for exits_later in [false, true] {
        let (mut scene, session, mut log) = start();
        session.tool(&mut scene, &mut log, "1", "a");
        let params = tool_params("b");
        session.client_asks(&mut scene, &request("2", "tools/call", &params));
        scene.wait_ms(5_000);
        if exits_later {
            scene.exit(session.server);
        }
        logs(&mut scene, &session, &mut log, "2", &params);
        expect(
            &Play::new(scene, &[&log]).run(),
            &[
                "altered:not_forwarded@delivery tools/call b 2",
                "matched tools/call a 1",
            ],
        );
    }
}

#[test]
fn a_request_that_the_proxy_passed_over_is_altered_whenever_the_server_ends() {
    let (mut scene, session, mut log) = start();
    let (params, other) = (tool_params("a"), tool_params("b"));
    session.client_asks(&mut scene, &request("1", "tools/call", &params));
    session.to_server(&mut scene, &request("2", "tools/call", &other));
    scene.exit(session.server);
    logs(&mut scene, &session, &mut log, "1", &params);
    logs(&mut scene, &session, &mut log, "2", &other);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "altered:not_forwarded@delivery tools/call a 1",
            "matched tools/call b 2",
        ],
    );
}

#[test]
fn a_request_that_was_kept_back_and_answered_by_the_server_is_altered() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    let params = tool_params("b");
    session.client_asks(&mut scene, &request("2", "tools/call", &params));
    session.to_client(&mut scene, &Answer::Result("{}").line("2"));
    scene.exit(session.server);
    let entry = Entry::of_call("2", "tools/call", &params, Answer::Result("{}"));
    log.writes(&mut scene, session.proxy, &entry);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "altered:not_forwarded@delivery tools/call b 2",
            "matched tools/call a 1",
        ],
    );
}

#[test]
fn an_answer_that_the_client_did_not_live_to_get_is_undecided() {
    for lives in [false, true] {
        let (mut scene, session, mut log) = start();
        session.tool(&mut scene, &mut log, "1", "a");
        let params = tool_params("b");
        session.to_server(&mut scene, &request("2", "tools/call", &params));
        if !lives {
            scene.exit(session.client);
        }
        session.server_says(&mut scene, &Answer::Result("{}").line("2"));
        let entry = Entry::of_call("2", "tools/call", &params, Answer::Result("{}"));
        log.writes(&mut scene, session.proxy, &entry);
        let told = if lives {
            "altered:not_forwarded@delivery tools/call b 2"
        } else {
            "undecided:receiver_ended tools/call b 2"
        };
        expect(
            &Play::new(scene, &[&log]).run(),
            &["matched tools/call a 1", told],
        );
    }
}

#[test]
fn a_request_that_neither_server_nor_proxy_lived_to_treat_is_undecided() {
    for lives in [false, true] {
        let (mut scene, session, mut log) = start();
        session.tool(&mut scene, &mut log, "1", "a");
        scene.exit(session.server);
        let asked = request("2", "tools/call", &tool_params("b"));
        session.client_asks(&mut scene, &asked);
        scene.wait_ms(2_000);
        if !lives {
            scene.exit(session.proxy);
        }
        let told = if lives {
            // The entry may still come.
            "undecided:after_end tools/call b 2"
        } else {
            "undecided:receiver_ended tools/call b 2"
        };
        expect(
            &Play::new(scene, &[&log]).run(),
            &["matched tools/call a 1", told],
        );
    }
}

#[test]
fn a_server_that_ends_within_a_line_denies_nothing() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    let params = tool_params("b");
    let asked = request("2", "tools/call", &params);
    session.client_asks(&mut scene, &asked);
    scene.write(
        session.proxy,
        session.to_server,
        &[&asked[..], b"\n"].concat(),
    );
    scene.read(session.server, session.to_server, 30);
    scene.exit(session.server);
    logs(&mut scene, &session, &mut log, "2", &params);
    let outcome = Play::new(scene, &[&log]).run();
    expect(
        &outcome,
        &["matched tools/call a 1", "matched tools/call b 2"],
    );
    assert_eq!(
        outcome
            .findings()
            .filter(|found| found.kind != "key_in_reach")
            .count(),
        0
    );
}

#[test]
fn a_line_whose_write_has_not_returned_at_the_end_is_undecided() {
    for cut in [false, true] {
        let (mut scene, session, mut log) = start();
        session.tool(&mut scene, &mut log, "1", "a");
        let params = tool_params("b");
        let asked = request("2", "tools/call", &params);
        session.client_asks(&mut scene, &asked);
        let line = [&asked[..], b"\n"].concat();
        let taken = if cut { &line[..30] } else { &line[..] };
        scene.report(
            session.server,
            session.to_server,
            countersign_common::direction::READ,
            taken,
            &Shown::default(),
        );
        let outcome = Play::new(scene, &[&log]).run();
        expect(
            &outcome,
            &[
                "matched tools/call a 1",
                "undecided:after_end tools/call b 2",
            ],
        );
        assert_eq!(outcome.found("evidence_denied"), 0);
        assert!(outcome.findings().all(|found| found.severity == "low"));
    }
}

#[test]
fn a_line_that_nobody_wrote_and_the_proxy_never_read_is_past_it() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    let evil = request("2", "tools/call", &tool_params("evil"));
    scene.report(
        session.server,
        session.to_server,
        countersign_common::direction::READ,
        &[&evil[..], b"\n"].concat(),
        &Shown::default(),
    );
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "bypassed/foreign_writer tools/call evil 2",
            "matched tools/call a 1",
        ],
    );
}

#[test]
fn a_line_that_its_sender_did_not_finish_is_no_message_and_no_offence() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    let asked = request("2", "tools/call", &tool_params("b"));
    for (from, to, through) in [
        (session.client, session.proxy, session.to_proxy),
        (session.proxy, session.server, session.to_server),
    ] {
        scene.write(from, through, &asked[..50]);
        scene.read(to, through, usize::MAX);
    }
    let outcome = Play::new(scene, &[&log]).run();
    expect(&outcome, &["matched tools/call a 1"]);
    assert_eq!(outcome.found("line_cut"), 1);
    assert!(outcome.findings().all(|found| found.severity == "low"));
}

#[test]
fn a_whole_message_without_its_line_end_is_a_message() {
    let mut scene = Scene::new();
    let agent = scene.root(program::AGENT);
    let pipe = scene.pipe(agent);
    let server = scene.spawn(agent, program::SERVER);
    scene.write(
        agent,
        pipe,
        &request("1", "tools/call", &tool_params("evil")),
    );
    scene.read(server, pipe, usize::MAX);
    expect(
        &Play::new(scene, &[]).run(),
        &["bypassed/own_server tools/call evil 1"],
    );
}

#[test]
fn what_came_after_the_last_look_is_not_held_against_anybody() {
    for told in [false, true] {
        let (mut scene, session, mut log) = start();
        session.tool(&mut scene, &mut log, "1", "a");
        let params = tool_params("b");
        session.to_server(&mut scene, &request("2", "tools/call", &params));
        session.server_says(&mut scene, &Answer::Result("{}").line("2"));
        if told {
            let drained = format!(r#"{{"event":"drained","boot_ns":{}}}"#, scene.now() + 1);
            scene.user(countersign_common::kind::CAPTURE, drained.as_bytes());
        }
        scene.wait_ms(50);
        let entry = |id| Entry::of_call(id, "tools/call", &params, Answer::Result("{}"));
        for id in ["2", "3"] {
            let line = log.line(&scene, &entry(id));
            log.disk.push(line);
        }
        scene.wait_ms(50);
        let outcome = Play::new(scene, &[&log]).run();
        let wanted = if told {
            [
                "entry outside tools/call b 3",
                "matched tools/call a 1",
                "undecided:after_end tools/call b 2",
            ]
        } else {
            [
                "entry forged:never_written tools/call b 3",
                "matched tools/call a 1",
                "altered:rewritten_on_disk@line tools/call b 2",
            ]
        };
        expect(&outcome, &wanted);
    }
}

fn logs(scene: &mut Scene, session: &Session, log: &mut Log, id: &str, params: &str) {
    let entry = Entry::of_call(id, "tools/call", params, NO_ANSWER);
    log.writes(scene, session.proxy, &entry);
}

fn start() -> (Scene, Session, Log) {
    let mut scene = Scene::new();
    let session = Session::start(&mut scene);
    let log = Log::new(&mut scene);
    (scene, session, log)
}
