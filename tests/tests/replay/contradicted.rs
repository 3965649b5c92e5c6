//! Writers and readers whose memory the other end refutes, and those that it cannot refute.

use countersign_common::{direction, gap};
use countersign_tests::scene::session::{request, tool_params};
use countersign_tests::scene::{Answer, Entry, Log, Play, Scene, Session, Shown, program};

use crate::expect;

const ALL: usize = usize::MAX;

#[test]
fn a_call_that_only_its_writers_memory_shows_is_a_lie_where_the_proxy_read_another() {
    let (mut scene, session, mut log) = start();
    call(&mut scene, &session, &mut log, "1", Some("evil"));
    call(&mut scene, &session, &mut log, "2", None);
    let outcome = Play::new(scene, &[&log]).run();
    expect(
        &outcome,
        &["matched tools/call read 1", "matched tools/call read 2"],
    );
    assert_eq!(outcome.found("writer_reader_mismatch"), 1);
    assert_eq!(outcome.refuted(), 1, "its bytes are no evidence");
}

#[test]
fn the_last_line_of_a_writer_is_refuted_as_well() {
    let (mut scene, session, mut log) = start();
    call(&mut scene, &session, &mut log, "1", Some("evil"));
    let outcome = Play::new(scene, &[&log]).run();
    expect(&outcome, &["matched tools/call read 1"]);
    assert_eq!(outcome.found("writer_reader_mismatch"), 1);
}

#[test]
fn a_line_that_still_waits_is_no_lie() {
    let (mut scene, session, mut log) = start();
    call(&mut scene, &session, &mut log, "1", None);
    let waits = line(&request("2", "tools/call", &tool_params("read")));
    scene.write(session.client, session.to_proxy, &waits);
    let outcome = Play::new(scene, &[&log]).run();
    expect(
        &outcome,
        &[
            "matched tools/call read 1",
            "undecided:not_read tools/call read 2",
        ],
    );
    assert_eq!(outcome.found("writer_reader_mismatch"), 0);
}

#[test]
fn what_the_proxy_read_unseen_refutes_nobody() {
    let (mut scene, session, mut log) = start();
    call(&mut scene, &session, &mut log, "1", None);
    let asked = line(&request("2", "tools/call", &tool_params("read")));
    scene.write(session.client, session.to_proxy, &asked);
    let missing = Shown {
        gap: Some((0..asked.len() as u64, gap::RING_FULL)),
        ..Shown::default()
    };
    scene.read_as(session.proxy, session.to_proxy, ALL, &missing);
    let outcome = Play::new(scene, &[&log]).run();
    assert_eq!(outcome.found("writer_reader_mismatch"), 0);
    let told = outcome.told();
    assert!(
        told.contains(&"undecided:not_read tools/call read 2".to_owned()),
        "{told:?}"
    );
}

#[test]
fn the_kernels_copy_refutes_a_writer_on_a_private_socket() {
    for copied in [true, false] {
        let mut scene = Scene::new();
        let agent = scene.root(program::AGENT);
        let near = scene.socketpair(agent);
        let server = scene.spawn(agent, program::SERVER);
        let truth = line(&request("1", "tools/call", &tool_params("evil")));
        let memory = line(&request("9", "tools/call", &tool_params("good")));
        scene.write_as(agent, near, &truth, &showing(&memory));
        let shown = Shown {
            copied,
            ..Shown::default()
        };
        scene.read_as(server, near.other(), ALL, &shown);
        let outcome = Play::new(scene, &[]).run();
        let mut wanted = vec!["bypassed/own_server tools/call evil 1"];
        if !copied {
            // Nobody vouches for either memory: both accuse.
            wanted.push("undecided/own_server:not_read tools/call good 9");
        }
        let told = outcome.told();
        assert!(told.contains(&wanted[0].to_owned()), "{told:?}");
        assert_eq!(told.len(), wanted.len(), "{told:?}");
        assert_eq!(
            outcome.found("writer_reader_mismatch"),
            usize::from(copied),
            "{told:?}"
        );
    }
}

#[test]
fn a_writer_of_a_channel_from_before_the_capture_is_refuted_by_what_waited_then() {
    let (mut scene, session, mut log) = late(true);
    call(&mut scene, &session, &mut log, "1", None);
    call(&mut scene, &session, &mut log, "2", Some("evil"));
    call(&mut scene, &session, &mut log, "3", None);
    let outcome = Play::new(scene, &[&log]).run();
    let told = outcome.told();
    for id in ["1", "2", "3"] {
        assert!(
            told.contains(&format!("matched tools/call read {id}")),
            "{told:?}"
        );
    }
    assert!(!told.iter().any(|told| told.contains("evil")), "{told:?}");
    assert_eq!(outcome.found("writer_reader_mismatch"), 1);
}

#[test]
fn where_nothing_says_what_waited_before_the_capture_a_writer_is_not_accused() {
    let (mut scene, session, mut log) = late(false);
    call(&mut scene, &session, &mut log, "1", None);
    call(&mut scene, &session, &mut log, "2", Some("evil"));
    call(&mut scene, &session, &mut log, "3", None);
    let outcome = Play::new(scene, &[&log]).run();
    let told = outcome.told();
    assert!(
        told.contains(&"undecided:not_read tools/call evil 9".to_owned()),
        "{told:?}"
    );
    assert_eq!(outcome.found("writer_reader_mismatch"), 0);
}

#[test]
fn a_line_that_waits_in_a_channel_from_before_the_capture_is_no_lie() {
    let (mut scene, session, mut log) = late(true);
    call(&mut scene, &session, &mut log, "1", None);
    let waits = line(&request("2", "tools/call", &tool_params("read")));
    scene.write(session.client, session.to_proxy, &waits);
    let outcome = Play::new(scene, &[&log]).run();
    let told = outcome.told();
    assert!(
        told.contains(&"undecided:not_read tools/call read 2".to_owned()),
        "{told:?}"
    );
    assert_eq!(outcome.found("writer_reader_mismatch"), 0);
}

#[test]
fn a_second_reader_at_the_proxys_end_buys_no_doubt_for_what_the_proxy_read() {
    for hidden in [false, true] {
        let (mut scene, session, mut log) = start();
        call(&mut scene, &session, &mut log, "1", None);
        // The agent takes a line of its own out again, and may hide that.
        let own = line(b"to myself");
        scene.write(session.client, session.to_proxy, &own);
        let shown = Shown {
            gap: hidden.then_some((0..own.len() as u64, gap::FAULT)),
            ..Shown::default()
        };
        scene.read_as(session.client, session.to_proxy, ALL, &shown);
        call(&mut scene, &session, &mut log, "2", None);
        call(&mut scene, &session, &mut log, "3", Some("evil"));
        call(&mut scene, &session, &mut log, "4", None);
        let outcome = Play::new(scene, &[&log]).run();
        let told = outcome.told();
        assert!(!told.iter().any(|told| told.contains("evil")), "{told:?}");
        assert!(
            told.contains(&"matched tools/call read 3".to_owned()),
            "{told:?}"
        );
        assert_eq!(outcome.found("writer_reader_mismatch"), 1, "{told:?}");
    }
}

#[test]
fn what_a_second_reader_took_refutes_nobody() {
    let (mut scene, session, mut log) = start();
    call(&mut scene, &session, &mut log, "1", None);
    let accomplice = scene.spawn(session.client, program::SERVER);
    let asked = line(&request("2", "tools/call", &tool_params("evil")));
    scene.write(session.client, session.to_proxy, &asked);
    let blank = [&vec![b' '; asked.len() - 1][..], b"\n"].concat();
    scene.read_as(accomplice, session.to_proxy, ALL, &showing(&blank));
    call(&mut scene, &session, &mut log, "3", None);
    let outcome = Play::new(scene, &[&log]).run();
    let told = outcome.told();
    assert_eq!(outcome.found("writer_reader_mismatch"), 0, "{told:?}");
    assert!(
        told.iter().any(|told| told.contains("tools/call evil 2")),
        "{told:?}"
    );
}

#[test]
fn of_two_readers_that_were_at_it_at_once_neither_refutes() {
    let (mut scene, session, mut log) = start();
    call(&mut scene, &session, &mut log, "1", None);
    let accomplice = scene.spawn(session.client, program::SERVER);
    let since = scene.now();
    let truth = request("3", "tools/call", &tool_params("read"));
    let lie = line(&request("9", "tools/call", &tool_params("evil")));
    scene.write_as(
        session.client,
        session.to_proxy,
        &line(&truth),
        &showing(&lie),
    );
    scene.read(session.proxy, session.to_proxy, ALL);
    session.forwards(&mut scene, &truth);
    answer(&mut scene, &session, &mut log, "3");
    scene.write(session.client, session.to_proxy, b"x\n");
    let shown = Shown {
        enter: Some(since),
        ..Shown::default()
    };
    scene.read_as(accomplice, session.to_proxy, ALL, &shown);
    let outcome = Play::new(scene, &[&log]).run();
    let told = outcome.told();
    assert_eq!(outcome.found("writer_reader_mismatch"), 0, "{told:?}");
    assert!(
        told.contains(&"undecided:not_read tools/call evil 9".to_owned()),
        "{told:?}"
    );
}

#[test]
fn a_server_that_does_not_show_a_line_that_came_through_buys_no_doubt() {
    let (mut scene, session, mut log) = start();
    let asked = request("1", "tools/call", &tool_params("read"));
    session.client_asks(&mut scene, &asked);
    scene.write(session.proxy, session.to_server, &line(&asked));
    let blank = [&vec![b' '; asked.len()][..], b"\n"].concat();
    scene.read_as(session.server, session.to_server, ALL, &showing(&blank));
    answer(&mut scene, &session, &mut log, "1");
    call(&mut scene, &session, &mut log, "2", None);
    expect(
        &Play::new(scene, &[&log]).run(),
        &["matched tools/call read 1", "matched tools/call read 2"],
    );
}

#[test]
fn a_line_that_a_later_one_overtook_did_not_come_through() {
    let (mut scene, session, mut log) = start();
    let asked = request("1", "tools/call", &tool_params("read"));
    session.client_asks(&mut scene, &asked);
    // Reported as written, and never in the channel.
    let lost = line(&asked);
    let shown = Shown::default();
    scene.report(
        session.proxy,
        session.to_server,
        direction::WRITE,
        &lost,
        &shown,
    );
    answer(&mut scene, &session, &mut log, "1");
    call(&mut scene, &session, &mut log, "2", None);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "matched tools/call read 2",
            "undecided:not_read tools/call read 1",
        ],
    );
}

/// A whole call; what the client's memory shows is the call of another tool if there is one.
fn call(scene: &mut Scene, session: &Session, log: &mut Log, id: &str, lie: Option<&str>) {
    let asked = request(id, "tools/call", &tool_params("read"));
    match lie {
        None => session.client_asks(scene, &asked),
        Some(tool) => {
            let memory = line(&request("9", "tools/call", &tool_params(tool)));
            scene.write_as(
                session.client,
                session.to_proxy,
                &line(&asked),
                &showing(&memory),
            );
            scene.read(session.proxy, session.to_proxy, ALL);
        }
    }
    session.forwards(scene, &asked);
    answer(scene, session, log, id);
}

fn answer(scene: &mut Scene, session: &Session, log: &mut Log, id: &str) {
    session.to_client(scene, &Answer::Result("{}").line(id));
    let params = tool_params("read");
    log.writes(
        scene,
        session.proxy,
        &Entry::of_call(id, "tools/call", &params, Answer::Result("{}")),
    );
}

/// A session that began before the capture, with something on its way to the proxy; it is known how much if `balanced`.
fn late(balanced: bool) -> (Scene, Session, Log) {
    let mut scene = Scene::new();
    let session = Session::from_before(&mut scene);
    let log = Log::new(&mut scene);
    scene.write_unseen(session.to_proxy, b"the rest of a line\n");
    if balanced {
        scene.balance(session.to_proxy);
    }
    (scene, session, log)
}

fn showing(memory: &[u8]) -> Shown {
    Shown {
        memory: Some(memory.to_vec()),
        ..Shown::default()
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
