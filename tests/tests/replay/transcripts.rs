//! Who prints what was said is no accomplice; who hides behind that is not cleared.

use countersign_tests::scene::session::{notification, request, tool_params};
use countersign_tests::scene::{Log, Play, Proc, Scene, Session, program};

use crate::expect;

const ALL: usize = usize::MAX;
const MATCHED: &str = "matched tools/call a 1";
const ANSWER: &[u8] = br#"{"jsonrpc":"2.0","id":1,"result":{"ok":true}}"#;

/// A call through the proxy, then what the agent sends to a child of its own.
fn then(lines: &[Vec<u8>]) -> (Scene, Log) {
    let mut scene = Scene::new();
    let session = Session::start(&mut scene);
    let mut log = Log::new(&mut scene);
    session.tool(&mut scene, &mut log, "1", "a");
    sends(&mut scene, session.client, lines);
    (scene, log)
}

fn sends(scene: &mut Scene, agent: Proc, lines: &[Vec<u8>]) {
    let pipe = scene.pipe(agent);
    let reader = scene.spawn(agent, program::SERVER);
    for line in lines {
        scene.write(agent, pipe, &[line.as_slice(), b"\n"].concat());
        scene.read(reader, pipe, ALL);
    }
}

fn asked(name: &str) -> Vec<u8> {
    request("1", "tools/call", &tool_params(name))
}

#[test]
fn a_transcript_of_a_call_through_the_proxy_is_undecided_and_no_bypass() {
    let spaced = String::from_utf8(asked("a")).unwrap().replace(',', ", ");
    for first in [asked("a"), spaced.into_bytes()] {
        let (scene, log) = then(&[first, ANSWER.to_vec()]);
        let outcome = Play::new(scene, &[&log]).run();
        let told = outcome.told();
        assert!(told.contains(&MATCHED.to_owned()), "{told:?}");
        let copy = "undecided/own_server:transcript tools/call a 1";
        assert!(told.contains(&copy.to_owned()), "{told:?}");
        assert!(!told.iter().any(|told| told.starts_with("bypassed")));
        let row = outcome.findings().find(|row| row.kind == "transcript");
        assert_eq!(row.map(|row| row.severity), Some("low"));
    }
}

#[test]
fn a_copied_call_without_its_answer_is_a_bypass() {
    let (scene, log) = then(&[asked("a")]);
    expect(
        &Play::new(scene, &[&log]).run(),
        &["bypassed/own_server tools/call a 1", MATCHED],
    );
}

#[test]
fn a_call_that_the_proxy_never_passed_is_a_bypass_whatever_stands_around_it() {
    let evil = request("2", "tools/call", &tool_params("evil"));
    let (scene, log) = then(&[
        asked("a"),
        ANSWER.to_vec(),
        evil,
        br#"{"jsonrpc":"2.0","id":2,"result":{"ok":true}}"#.to_vec(),
    ]);
    let told = Play::new(scene, &[&log]).run().told();
    let bypassed = "bypassed/own_server tools/call evil 2";
    assert!(told.contains(&bypassed.to_owned()), "{told:?}");
}

#[test]
fn a_copy_before_the_call_is_none() {
    let mut scene = Scene::new();
    let session = Session::start(&mut scene);
    let mut log = Log::new(&mut scene);
    sends(&mut scene, session.client, &[asked("a"), ANSWER.to_vec()]);
    session.tool(&mut scene, &mut log, "1", "a");
    let told = Play::new(scene, &[&log]).run().told();
    let bypassed = "bypassed/own_server tools/call a 1";
    assert!(told.contains(&bypassed.to_owned()), "{told:?}");
}

#[test]
fn a_copied_call_that_is_answered_is_a_bypass() {
    let mut scene = Scene::new();
    let session = Session::start(&mut scene);
    let mut log = Log::new(&mut scene);
    session.tool(&mut scene, &mut log, "1", "a");
    let agent = session.client;
    let (to, from) = (scene.pipe(agent), scene.pipe(agent));
    let server = scene.spawn(agent, program::SERVER);
    for line in [asked("a"), ANSWER.to_vec()] {
        scene.write(agent, to, &[line.as_slice(), b"\n"].concat());
        scene.read(server, to, ALL);
    }
    scene.write(server, from, &[ANSWER, b"\n"].concat());
    scene.read(agent, from, ALL);
    let told = Play::new(scene, &[&log]).run().told();
    let bypassed = "bypassed/own_server tools/call a 1";
    assert!(told.contains(&bypassed.to_owned()), "{told:?}");
}

#[test]
fn a_notification_is_a_copy_only_within_a_transcript() {
    let note = notification("notifications/cancelled", r#"{"requestId":9}"#);
    let (scene, log) = then(&[asked("a"), ANSWER.to_vec(), note]);
    let told = Play::new(scene, &[&log]).run().told();
    // It never passed the proxy.
    assert!(
        told.iter()
            .any(|told| told.starts_with("bypassed/own_server notifications/cancelled")),
        "{told:?}"
    );
}

#[test]
fn a_line_of_the_log_that_is_printed_is_no_bypass_and_one_that_only_looks_so_is() {
    for (edited, wanted) in [
        (false, "undecided/own_server:transcript"),
        (true, "bypassed/own_server"),
    ] {
        let mut scene = Scene::new();
        let session = Session::start(&mut scene);
        let mut log = Log::new(&mut scene);
        session.tool(&mut scene, &mut log, "1", "a");
        let mut line = log.disk.last().unwrap().trim_ascii_end().to_vec();
        if edited {
            line = String::from_utf8(line)
                .unwrap()
                .replace("\"a\"", "\"evil\"")
                .into_bytes();
        }
        sends(&mut scene, session.client, &[line]);
        let told = Play::new(scene, &[&log]).run().told();
        assert!(told.contains(&MATCHED.to_owned()), "{told:?}");
        let copies: Vec<_> = told.iter().filter(|told| *told != MATCHED).collect();
        assert!(
            copies.len() == 1 && copies[0].starts_with(wanted),
            "{told:?}"
        );
    }
}
