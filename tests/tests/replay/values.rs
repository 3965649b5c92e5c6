//! Numbers and text that the log holds rounded or replaced: one entry then stands for many messages, and matches none of them.

use countersign_tests::scene::session::request;
use countersign_tests::scene::{Answer, Entry, Log, Outcome, Play, Scene, Session};

use crate::expect;

const OK: Answer<'_> = Answer::Result("{}");

#[test]
fn a_number_that_the_log_rounds_is_not_matched() {
    for (wire, log) in [
        ("9007199254740993", "9007199254740992"),
        ("0.1000000000000000055511151231257827", "0.1"),
        ("1e-400", "0"),
        (r#""\ud800""#, "\"\u{fffd}\""),
    ] {
        let outcome = logged_as(&tool(wire), &tool(log));
        expect(&outcome, &["undecided:lossy_log@params tools/call pay 1"]);
        let row = outcome.verdicts().next().unwrap();
        assert_eq!(row.pointer.as_deref(), Some("/arguments/n"));
        assert_eq!(row.signature, Some("valid_disk"));
    }
}

#[test]
fn other_spellings_of_the_same_value_are_matched() {
    for (wire, log) in [
        ("1.0", "1"),
        ("1e2", "100"),
        ("9007199254740992", "9007199254740992"),
        ("-0.0", "-0"),
        ("1e400", "1e400"),
        (r#""\u00e9""#, "\"é\""),
        (r#""\ud83d\ude00""#, "\"😀\""),
    ] {
        expect(
            &logged_as(&tool(wire), &tool(log)),
            &["matched tools/call pay 1"],
        );
    }
}

#[test]
fn a_log_that_holds_more_than_the_wire_was_edited() {
    let (mut scene, session, mut log) = start();
    let answer = Answer::Result(r#"{"n":9007199254740992}"#);
    session.call(&mut scene, &mut log, "1", "tools/call", &tool("1"), answer);
    log.edit(0, "9007199254740992", "9007199254740993");
    expect(
        &Play::new(scene, &[&log]).run(),
        &["altered@result tools/call pay 1"],
    );
}

#[test]
fn a_result_that_the_log_rounds_is_not_matched() {
    let (mut scene, session, mut log) = start();
    let answer = Answer::Result(r#"{"mtime_ns":1795159135189522853}"#);
    session.call(&mut scene, &mut log, "1", "tools/call", &tool("1"), answer);
    expect(
        &Play::new(scene, &[&log]).run(),
        &["undecided:lossy_log@result tools/call pay 1"],
    );
}

#[test]
fn a_name_that_the_log_replaces_is_not_matched() {
    let params = r#"{"name":"pay\ud800"}"#;
    let outcome = logged_as(params, "{\"name\":\"pay\u{fffd}\"}");
    expect(
        &outcome,
        &["undecided:lossy_log@tool_name tools/call pay\u{fffd} 1"],
    );
}

#[test]
fn bytes_that_are_no_text_are_not_matched() {
    let (mut scene, session, mut log) = start();
    let mut asked = request("1", "tools/call", &tool("\"x?\""));
    let at = asked.iter().position(|byte| *byte == b'?').unwrap();
    asked[at] = 0xff;
    session.to_server(&mut scene, &asked);
    session.to_client(&mut scene, &OK.line("1"));
    let entry = Entry::of_call("1", "tools/call", &tool("\"x\u{fffd}\""), OK);
    log.writes(&mut scene, session.proxy, &entry);
    expect(
        &Play::new(scene, &[&log]).run(),
        &["undecided:lossy_log@params tools/call pay 1"],
    );
}

#[test]
fn a_rounding_log_does_not_hide_a_wrong_value_or_signature() {
    let outcome = logged_as(&tool("9007199254740993"), &tool("9007199254740994"));
    expect(&outcome, &["altered@params tools/call pay 1"]);
    let (mut scene, session, mut log) = start();
    session.call(
        &mut scene,
        &mut log,
        "1",
        "tools/call",
        &tool("9007199254740993"),
        OK,
    );
    let line = String::from_utf8(log.disk[0].clone()).unwrap();
    let at = line.find("signature").unwrap() + 12;
    log.edit(0, &line[at..at + 8], "00000000");
    expect(
        &Play::new(scene, &[&log]).run(),
        &["altered:signature_bad@signature tools/call pay 1"],
    );
}

#[test]
fn a_proxy_that_rounds_what_it_passes_on_altered_the_call() {
    for (read, written) in [
        ("9007199254740993", "9007199254740992"),
        (r#""\ud800""#, "\"\u{fffd}\""),
        ("-0", "0"),
    ] {
        let (mut scene, session, mut log) = start();
        session.client_asks(&mut scene, &request("1", "tools/call", &tool(read)));
        session.forwards(&mut scene, &request("1", "tools/call", &tool(written)));
        session.to_client(&mut scene, &OK.line("1"));
        let entry = Entry::of_call("1", "tools/call", &tool(read), OK);
        log.writes(&mut scene, session.proxy, &entry);
        let told = Play::new(scene, &[&log]).run().told();
        assert_eq!(told, ["altered:legs_differ@params tools/call pay 1"]);
    }
}

#[test]
fn a_proxy_that_spells_a_number_in_another_way_changed_nothing() {
    let (mut scene, session, mut log) = start();
    session.client_asks(&mut scene, &request("1", "tools/call", &tool("1.50")));
    session.forwards(&mut scene, &request("1", "tools/call", &tool("15e-1")));
    session.to_client(&mut scene, &OK.line("1"));
    let entry = Entry::of_call("1", "tools/call", &tool("1.5"), OK);
    log.writes(&mut scene, session.proxy, &entry);
    expect(
        &Play::new(scene, &[&log]).run(),
        &["matched tools/call pay 1"],
    );
}

#[test]
fn of_two_calls_with_one_form_in_the_log_only_the_true_one_is_matched() {
    let (mut scene, session, mut log) = start();
    for wire in ["9007199254740993", "9007199254740992"] {
        session.call(&mut scene, &mut log, "1", "tools/call", &tool(wire), OK);
    }
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "matched tools/call pay 1",
            "undecided:lossy_log@params tools/call pay 1",
        ],
    );
}

#[test]
fn answers_to_ids_that_are_one_float_go_to_the_right_calls() {
    let (mut scene, session, mut log) = start();
    let ids = ["9007199254740993", "9007199254740992"];
    let names = ["first", "second"];
    let params = |name: &str| format!(r#"{{"name":"{name}"}}"#);
    for (id, name) in ids.iter().zip(names) {
        session.to_server(&mut scene, &request(id, "tools/call", &params(name)));
    }
    for (id, name) in ids.iter().zip(names) {
        let result = format!(r#"{{"of":"{name}"}}"#);
        let answer = Answer::Result(&result);
        session.to_client(&mut scene, &answer.line(id));
        let entry = Entry::of_call(id, "tools/call", &params(name), answer);
        log.writes(&mut scene, session.proxy, &entry);
    }
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "matched tools/call first 9007199254740993",
            "matched tools/call second 9007199254740992",
        ],
    );
}

/// One call with these parameters, whose entry has those.
fn logged_as(wire: &str, log_params: &str) -> Outcome {
    let (mut scene, session, mut log) = start();
    session.unlogged(&mut scene, "1", "tools/call", wire, OK);
    let entry = Entry::of_call("1", "tools/call", log_params, OK);
    log.writes(&mut scene, session.proxy, &entry);
    Play::new(scene, &[&log]).run()
}

fn tool(n: &str) -> String {
    format!(r#"{{"arguments":{{"n":{n}}},"name":"pay"}}"#)
}

fn start() -> (Scene, Session, Log) {
    let mut scene = Scene::new();
    let session = Session::start(&mut scene);
    let log = Log::new(&mut scene);
    (scene, session, log)
}
