//! Proxies that do not pass on what they got.

use countersign_tests::scene::session::{request, tool_params};
use countersign_tests::scene::{Answer, Entry, Log, Play, Scene, Session};

use crate::expect;

#[test]
fn a_request_that_the_proxy_changed_is_altered() {
    let (mut scene, session, mut log) = start();
    let (asked, sent) = (tool_params("read"), r#"{"arguments":{},"name":"read"}"#);
    session.client_asks(&mut scene, &request("1", "tools/call", &asked));
    session.forwards(&mut scene, &request("1", "tools/call", sent));
    session.to_client(&mut scene, &Answer::Result("{}").line("1"));
    log.writes(
        &mut scene,
        session.proxy,
        &Entry::of_call("1", "tools/call", &asked, Answer::Result("{}")),
    );
    expect(
        &Play::new(scene, &[&log]).run(),
        &["altered:legs_differ@params tools/call read 1"],
    );
}

#[test]
fn a_result_that_the_proxy_changed_is_altered() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("read");
    session.to_server(&mut scene, &request("1", "tools/call", &params));
    session.server_says(&mut scene, &Answer::Result(r#"{"n":1}"#).line("1"));
    session.returns(&mut scene, &Answer::Result(r#"{"n":2}"#).line("1"));
    log.writes(
        &mut scene,
        session.proxy,
        &Entry::of_call("1", "tools/call", &params, Answer::Result(r#"{"n":1}"#)),
    );
    expect(
        &Play::new(scene, &[&log]).run(),
        &["altered:legs_differ@result tools/call read 1"],
    );
}

#[test]
fn a_proxy_that_writes_the_same_values_in_another_spelling_changes_nothing() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("read");
    session.client_asks(&mut scene, &request("1", "tools/call", &params));
    session.forwards(
        &mut scene,
        br#"{"id": 1, "jsonrpc": "2.0", "method": "tools/call", "params": {"name": "read", "arguments": {"path": "/tmp/read"}}}"#,
    );
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
fn a_logged_request_that_was_not_passed_on_is_altered() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("read");
    session.client_asks(&mut scene, &request("1", "tools/call", &params));
    session.returns(&mut scene, &Answer::Result("{}").line("1"));
    let answer = Answer::Result("{}");
    let entry = Entry {
        direction: countersign_core::proxylog::Direction::ClientToServer,
        ..Entry::of_call("1", "tools/call", &params, answer)
    };
    log.writes(&mut scene, session.proxy, &entry);
    expect(
        &Play::new(scene, &[&log]).run(),
        &["altered:not_forwarded@delivery tools/call read 1"],
    );
}

#[test]
fn a_call_that_the_proxy_made_up_is_altered() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "read");
    session.forwards(
        &mut scene,
        &request("99", "tools/call", &tool_params("evil")),
    );
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "altered:made_by_the_proxy@method tools/call evil 99",
            "matched tools/call read 1",
        ],
    );
}

#[test]
fn an_answer_to_nothing_that_the_proxy_passes_on_is_unlogged() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "read");
    session.to_client(&mut scene, &Answer::Result("{}").line("55"));
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "matched tools/call read 1",
            "unlogged~answer_without_request 55",
        ],
    );
}

fn start() -> (Scene, Session, Log) {
    let mut scene = Scene::new();
    let session = Session::start(&mut scene);
    let log = Log::new(&mut scene);
    (scene, session, log)
}
