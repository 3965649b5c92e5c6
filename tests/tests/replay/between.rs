//! An agent that stands between the proxy and its server, or makes the two read one line differently: what the log tells is then
//! true of the proxy and of nobody else, and is not matched.

use countersign_common::{direction, gap};
use countersign_tests::scene::session::{request, tool_params};
use countersign_tests::scene::{Answer, Entry, Log, Play, Scene, Session, Shown};

use crate::expect;

#[test]
fn a_message_hidden_between_carriage_returns_is_not_matched() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("good");
    let evil = String::from_utf8(request("1", "tools/call", &tool_params("evil"))).unwrap();
    let good = String::from_utf8(request("1", "tools/call", &params)).unwrap();
    let line = good.replacen('{', &format!("{{\"_\":[\r{evil}\r],"), 1);
    session.to_server(&mut scene, line.as_bytes());
    finish(&mut scene, &session, &mut log, &params);
    expect(
        &Play::new(scene, &[&log]).run(),
        &["altered:read_differently@delivery tools/call good 1"],
    );
}

#[test]
fn carriage_returns_that_hide_nothing_are_white_space() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("good");
    let good = String::from_utf8(request("1", "tools/call", &params)).unwrap();
    session.to_server(&mut scene, good.replacen(',', ",\r", 1).as_bytes());
    finish(&mut scene, &session, &mut log, &params);
    expect(
        &Play::new(scene, &[&log]).run(),
        &["matched tools/call good 1"],
    );
}

#[test]
fn an_answer_that_the_agent_wrote_for_the_server_is_not_matched() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("good");
    session.to_server(&mut scene, &request("1", "tools/call", &params));
    let answer = Answer::Result(r#"{"forged":true}"#);
    let line = [answer.line("1"), b"\n".to_vec()].concat();
    scene.write(session.client, session.from_server, &line);
    scene.read(session.proxy, session.from_server, usize::MAX);
    session.returns(&mut scene, &answer.line("1"));
    let entry = Entry::of_call("1", "tools/call", &params, answer);
    log.writes(&mut scene, session.proxy, &entry);
    expect(
        &Play::new(scene, &[&log]).run(),
        &["altered:foreign_author@delivery tools/call good 1"],
    );
}

#[test]
fn a_call_that_the_agent_took_away_from_the_server_is_not_matched() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("good");
    let line = request("1", "tools/call", &params);
    session.client_asks(&mut scene, &line);
    scene.write(
        session.proxy,
        session.to_server,
        &[line, b"\n".to_vec()].concat(),
    );
    scene.read(session.client, session.to_server, usize::MAX);
    finish(&mut scene, &session, &mut log, &params);
    expect(
        &Play::new(scene, &[&log]).run(),
        &["altered:taken_by_another@delivery tools/call good 1"],
    );
}

#[test]
fn a_call_spliced_away_and_another_spliced_in_is_a_bypass_and_no_match() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("good");
    let line = [request("1", "tools/call", &params), b"\n".to_vec()].concat();
    session.client_asks(&mut scene, &request("1", "tools/call", &params));
    scene.write(session.proxy, session.to_server, &line);
    let unseen = Shown {
        gap: Some((0..line.len() as u64, gap::SPLICE)),
        ..Shown::default()
    };
    scene.read_as(session.client, session.to_server, usize::MAX, &unseen);
    let evil = [
        request("1", "tools/call", &tool_params("evil")),
        b"\n".to_vec(),
    ]
    .concat();
    scene.write_as(session.client, session.to_server, &evil, &unseen);
    scene.read(session.server, session.to_server, usize::MAX);
    finish(&mut scene, &session, &mut log, &params);
    let told = Play::new(scene, &[&log]).run().told();
    assert!(
        told.iter()
            .any(|told| told.starts_with("bypassed/foreign_writer tools/call evil")),
        "{told:?}"
    );
    assert!(
        !told.iter().any(|told| told.starts_with("matched")),
        "{told:?}"
    );
}

#[test]
fn bytes_that_another_puts_into_the_proxys_channel_unreadably_are_a_finding() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("good");
    let line = [request("1", "tools/call", &params), b"\n".to_vec()].concat();
    session.client_asks(&mut scene, &request("1", "tools/call", &params));
    scene.write(session.proxy, session.to_server, &line);
    scene.read(session.server, session.to_server, usize::MAX);
    let evil = [
        request("2", "tools/call", &tool_params("evil")),
        b"\n".to_vec(),
    ]
    .concat();
    // Neither who put it there nor the server, which has it moved on within the kernel, shows it.
    let unseen = Shown {
        gap: Some((0..evil.len() as u64, gap::SPLICE)),
        ..Shown::default()
    };
    scene.write_as(session.client, session.to_server, &evil, &unseen);
    scene.read_as(session.server, session.to_server, usize::MAX, &unseen);
    finish(&mut scene, &session, &mut log, &params);
    let outcome = Play::new(scene, &[&log]).run();
    assert_eq!(outcome.found("foreign_bytes"), 1, "{:?}", outcome.told());
}

#[test]
fn a_write_that_the_kernel_never_carried_out_is_no_delivery() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("swallowed");
    session.client_asks(&mut scene, &request("1", "tools/call", &params));
    // A supervisor of the proxy answers its write for the kernel: only the proxy's end has it.
    let line = [request("1", "tools/call", &params), b"\n".to_vec()].concat();
    scene.report(
        session.proxy,
        session.to_server,
        direction::WRITE,
        &line,
        &Shown::default(),
    );
    session.tool(&mut scene, &mut log, "2", "good");
    let answer = Answer::Error(
        r#"{"code":-32001,"message":"no response","data":{"countersign":"no_response","reason":"proxy ended"}}"#,
    );
    let entry = Entry::of_call("1", "tools/call", &params, answer);
    log.writes(&mut scene, session.proxy, &entry);
    let told = Play::new(scene, &[&log]).run().told();
    assert!(
        !told
            .iter()
            .any(|told| told.contains("swallowed") && told.starts_with("matched")),
        "{told:?}"
    );
    assert!(
        told.iter().any(|told| told.starts_with("matched")),
        "{told:?}"
    );
}

fn start() -> (Scene, Session, Log) {
    let mut scene = Scene::new();
    let session = Session::start(&mut scene);
    let log = Log::new(&mut scene);
    (scene, session, log)
}

/// The server's answer and the entry of the call.
fn finish(scene: &mut Scene, session: &Session, log: &mut Log, params: &str) {
    let answer = Answer::Result("{}");
    session.to_client(scene, &answer.line("1"));
    let entry = Entry::of_call("1", "tools/call", params, answer);
    log.writes(scene, session.proxy, &entry);
}
