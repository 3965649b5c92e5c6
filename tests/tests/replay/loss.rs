//! Records that did not arrive: what was not seen can only weaken what is said.

use countersign_common::gap;
use countersign_tests::scene::session::{request, tool_params};
use countersign_tests::scene::{Answer, Entry, Log, Play, Scene, Session, Shown, program};

use crate::expect;

const ALL: usize = usize::MAX;

#[test]
fn a_forwarded_line_that_was_not_captured_leaves_its_call_undecided() {
    for ring_full in [true, false] {
        let (mut scene, session, mut log) = start();
        session.tool(&mut scene, &mut log, "1", "a");
        let params = tool_params("b");
        let asked = request("2", "tools/call", &params);
        session.client_asks(&mut scene, &asked);
        let text = line(&asked);
        let shown = if ring_full {
            Shown {
                gap: Some((0..text.len() as u64, gap::RING_FULL)),
                ..Shown::default()
            }
        } else {
            Shown {
                lost: true,
                ..Shown::default()
            }
        };
        scene.write_as(session.proxy, session.to_server, &text, &shown);
        scene.read(session.server, session.to_server, ALL);
        session.to_client(&mut scene, &Answer::Result("{}").line("2"));
        log.writes(
            &mut scene,
            session.proxy,
            &Entry::of_call("2", "tools/call", &params, Answer::Result("{}")),
        );
        session.tool(&mut scene, &mut log, "3", "c");
        let told = Play::new(scene, &[&log]).run().told();
        assert!(
            told.contains(&"undecided:gap tools/call b 2".to_owned()),
            "{told:?}"
        );
        assert!(
            told.contains(&"matched tools/call a 1".to_owned()),
            "{told:?}"
        );
        assert!(
            !told.iter().any(|told| told.starts_with("bypassed")),
            "{told:?}"
        );
    }
}

#[test]
fn a_request_that_was_not_captured_leaves_its_entry_undecided() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("b");
    let asked = line(&request("1", "tools/call", &params));
    let lost = Shown {
        lost: true,
        ..Shown::default()
    };
    scene.write_as(session.client, session.to_proxy, &asked, &lost);
    scene.read_as(session.proxy, session.to_proxy, ALL, &lost);
    scene.write_as(session.proxy, session.to_server, &asked, &lost);
    scene.read_as(session.server, session.to_server, ALL, &lost);
    session.to_client(&mut scene, &Answer::Result("{}").line("1"));
    log.writes(
        &mut scene,
        session.proxy,
        &Entry::of_call("1", "tools/call", &params, Answer::Result("{}")),
    );
    let told = Play::new(scene, &[&log]).run().told();
    assert!(
        told.iter().all(|told| told.contains("undecided")),
        "{told:?}"
    );
}

#[test]
fn a_proxy_whose_execution_was_not_seen_is_known_by_its_tag() {
    let mut scene = Scene::new();
    let client = scene.root(program::AGENT);
    let (to_proxy, to_client) = (scene.pipe(client), scene.pipe(client));
    let proxy = scene.fork(client);
    scene.losing(|scene| scene.exec(proxy, program::PROXY));
    let (to_server, from_server) = (scene.pipe(proxy), scene.pipe(proxy));
    let server = scene.spawn(proxy, program::SERVER);
    let session = Session {
        client,
        proxy,
        server,
        to_proxy,
        to_server,
        from_server,
        to_client,
    };
    let mut log = Log::new(&mut scene);
    session.tool(&mut scene, &mut log, "1", "a");
    expect(
        &Play::new(scene, &[&log]).run(),
        &["matched tools/call a 1"],
    );
}

#[test]
fn a_lost_list_of_the_proxies_programs_makes_no_bypass() {
    let (mut scene, session, mut log) = start();
    for id in ["1", "2", "3"] {
        session.tool(&mut scene, &mut log, id, "a");
    }
    let mut play = Play::new(scene, &[&log]);
    play.exes_lost = true;
    let told = play.run().told();
    let fine = |told: &String| told.contains("matched") || told.contains("undecided");
    assert!(told.iter().all(fine), "{told:?}");
}

#[test]
fn no_single_record_that_is_lost_makes_a_bypass() {
    let play = || {
        let (mut scene, session, mut log) = start();
        for id in ["1", "2", "3"] {
            session.tool(&mut scene, &mut log, id, "a");
        }
        // The clock is read more than once.
        let (boot, utc) = (scene.now(), scene.utc());
        let reading = format!(r#"{{"boot_ns":{boot},"utc_ns":{utc}}}"#);
        scene.user(countersign_common::kind::CLOCK, reading.as_bytes());
        Play::new(scene, &[&log])
    };
    for lost in 0..play().records.len() {
        let mut play = play();
        play.records.remove(lost);
        play.lost_from_spool = true;
        let told = play.run().told();
        let fine = |told: &String| told.contains("matched") || told.contains("undecided");
        assert!(told.iter().all(fine), "{lost}: {told:?}");
    }
}

#[test]
fn a_server_whose_creation_was_not_seen_is_still_the_proxys() {
    let (mut scene, mut session, mut log) = start();
    session.server = scene.root(program::SERVER);
    session.tool(&mut scene, &mut log, "1", "a");
    expect(
        &Play::new(scene, &[&log]).run(),
        &["matched tools/call a 1"],
    );
}

#[test]
fn the_last_operation_of_a_stream_is_missed_by_the_kernels_own_count() {
    for told_totals in [true, false] {
        let (mut scene, session, mut log) = start();
        session.tool(&mut scene, &mut log, "1", "a");
        let asked = line(&request("2", "tools/call", &tool_params("b")));
        scene.write(session.client, session.to_proxy, &asked);
        scene.read(session.proxy, session.to_proxy, ALL);
        scene.write_as(
            session.proxy,
            session.to_server,
            &asked,
            &Shown {
                lost: true,
                ..Shown::default()
            },
        );
        scene.read(session.server, session.to_server, ALL);
        if !told_totals {
            scene.without_totals(session.to_server);
        }
        let told = Play::new(scene, &[&log]).run().told();
        assert!(
            told.contains(&"matched tools/call a 1".to_owned()),
            "{told:?}"
        );
        assert!(
            told.contains(&"undecided:gap tools/call b 2".to_owned()),
            "{told_totals} {told:?}"
        );
        assert!(
            !told.iter().any(|told| told.starts_with("bypassed")),
            "{told_totals} {told:?}"
        );
    }
}

#[test]
fn a_lost_entry_of_another_call_does_not_make_this_one_altered() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    // Never answered, never logged.
    session.to_server(&mut scene, &request("2", "tools/call", &tool_params("a")));
    // Logged, but nothing of it was captured.
    let params = tool_params("a");
    scene.losing(|scene| session.to_server(scene, &request("3", "tools/call", &params)));
    scene.losing(|scene| session.to_client(scene, &Answer::Result("{}").line("3")));
    let entry = Entry::of_call("3", "tools/call", &params, Answer::Result("{}"));
    log.writes(&mut scene, session.proxy, &entry);
    let told = Play::new(scene, &[&log]).run().told();
    assert!(
        !told.iter().any(|told| told.starts_with("altered")),
        "{told:?}"
    );
}

#[test]
fn an_id_that_is_used_again_after_a_lost_answer_does_not_make_the_first_call_altered() {
    let (mut scene, session, mut log) = start();
    for (tool, lost) in [("a", true), ("b", false)] {
        let params = tool_params(tool);
        session.to_server(&mut scene, &request("1", "tools/call", &params));
        let result = format!(r#"{{"of":"{tool}"}}"#);
        let answer = Answer::Result(&result);
        if lost {
            scene.losing(|scene| session.to_client(scene, &answer.line("1")));
        } else {
            session.to_client(&mut scene, &answer.line("1"));
        }
        log.writes(
            &mut scene,
            session.proxy,
            &Entry::of_call("1", "tools/call", &params, answer),
        );
    }
    let told = Play::new(scene, &[&log]).run().told();
    assert!(
        !told
            .iter()
            .any(|told| told.starts_with("altered") || told.starts_with("unlogged")),
        "{told:?}"
    );
}

#[test]
fn a_capture_that_began_late_says_so_and_accuses_nobody_of_what_was_before() {
    let mut scene = Scene::new();
    let session = Session::from_before(&mut scene);
    let mut log = Log::new(&mut scene);
    // An answer to something from before the capture.
    session.to_client(&mut scene, &Answer::Result("{}").line("7"));
    session.tool(&mut scene, &mut log, "8", "a");
    let told = Play::new(scene, &[&log]).run().told();
    assert!(
        told.contains(&"matched tools/call a 8".to_owned()),
        "{told:?}"
    );
    assert!(told.contains(&"undecided:gap 7".to_owned()), "{told:?}");
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
