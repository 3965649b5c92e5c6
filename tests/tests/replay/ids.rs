//! Ids that MCP forbids and programs use: `null`, objects, arrays, booleans, fractions. One honest call is one verdict.

use countersign_core::proxylog::Direction;
use countersign_tests::scene::session::{request, tool_params};
use countersign_tests::scene::{Answer, Entry, Log, Play, Scene, Session, program};

use crate::expect;

const OK: Answer<'_> = Answer::Result("{}");

/// As asked, as answered, as logged, as told.
const IDS: [(&str, &str, &str, &str); 9] = [
    ("null", "null", "", " null"),
    (
        r#"{"a":1,"b":[]}"#,
        r#"{"b": [], "a": 1}"#,
        r#"{"a":1,"b":[]}"#,
        r#" {"a":1,"b":[]}"#,
    ),
    ("[1]", "[ 1.0 ]", "[1]", " [1]"),
    ("true", "true", "true", " true"),
    ("1.5", "15e-1", "1.5", " 1.5"),
    ("10.0", "10", "10.0", " 10.0"),
    ("1e400", "1e400", "1e400", " 1e400"),
    (r#""a\/b""#, r#""a/b""#, "a/b", r#" "a\/b""#),
    (
        "9007199254740993",
        "9007199254740992",
        "9007199254740993",
        " 9007199254740993",
    ),
];

#[test]
fn a_call_of_any_id_is_matched() {
    for (asked, answered, logged, told) in IDS {
        let (mut scene, session, mut log) = start();
        let params = tool_params("read");
        session.to_server(&mut scene, &request(asked, "tools/call", &params));
        session.to_client(&mut scene, &OK.line(answered));
        let mut entry = Entry::of_call("1", "tools/call", &params, OK);
        logged.clone_into(&mut entry.id);
        log.writes(&mut scene, session.proxy, &entry);
        expect(
            &Play::new(scene, &[&log]).run(),
            &[&format!("matched tools/call read{told}")],
        );
    }
}

#[test]
fn a_private_call_of_any_id_is_one_bypass() {
    for (asked, answered, _, told) in IDS {
        let mut scene = Scene::new();
        let agent = scene.root(program::AGENT);
        let (there, back) = (scene.pipe(agent), scene.pipe(agent));
        let server = scene.spawn(agent, program::SERVER);
        let line = [
            request(asked, "tools/call", &tool_params("evil")),
            b"\n".to_vec(),
        ]
        .concat();
        scene.write(agent, there, &line);
        scene.read(server, there, usize::MAX);
        scene.write(server, back, &[OK.line(answered), b"\n".to_vec()].concat());
        scene.read(agent, back, usize::MAX);
        expect(
            &Play::new(scene, &[]).run(),
            &[&format!("bypassed/own_server tools/call evil{told}")],
        );
    }
}

#[test]
fn an_error_without_a_known_request_has_no_id_and_answers_nothing() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "read");
    let error = Answer::Error(r#"{"code":-32700,"message":"parse"}"#);
    session.to_client(&mut scene, &error.line("null"));
    let mut entry = Entry::of_call("", "countersign/unmatched_response", "{}", error);
    entry.params = None;
    entry.direction = Direction::ServerToClient;
    log.writes(&mut scene, session.proxy, &entry);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "matched tools/call read 1",
            "matched countersign/unmatched_response null",
        ],
    );
}

#[test]
fn a_proxy_that_spells_an_id_in_another_way_changed_nothing() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("read");
    session.client_asks(&mut scene, &request("10.0", "tools/call", &params));
    session.forwards(&mut scene, &request("10", "tools/call", &params));
    session.server_says(&mut scene, &OK.line("10"));
    session.returns(&mut scene, &OK.line("10.0"));
    let entry = Entry::of_call("10.0", "tools/call", &params, OK);
    log.writes(&mut scene, session.proxy, &entry);
    expect(
        &Play::new(scene, &[&log]).run(),
        &["matched tools/call read 10.0"],
    );
}

fn start() -> (Scene, Session, Log) {
    let mut scene = Scene::new();
    let session = Session::start(&mut scene);
    let log = Log::new(&mut scene);
    (scene, session, log)
}
