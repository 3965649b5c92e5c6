//! Logs that the real mcp-audit wrote of odd sessions, held against sessions that are played as its scripts ran: what it keeps to
//! itself must be told, what it tells must be believed no further than it can be proved.
#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::collections::BTreeMap;

use countersign_core::proxylog::mcp_audit::Reader;
use countersign_core::proxylog::{Direction, Entry, Key, LogItem};
use countersign_tests::scene::session::request;
use countersign_tests::scene::{Log, Outcome, Play, Scene, Session};

macro_rules! corpus {
    ($name:literal) => {
        include_bytes!(concat!("../../userspace/core/testdata/mcp-audit/", $name)).as_slice()
    };
}

/// What mcp-audit answers itself.
const REFUSED: &str = "-32030";

#[test]
fn every_edge_case_is_matched_but_what_the_log_rounds_renames_or_refuses() {
    // The log without redaction has the wire's text, compacted.
    let wire: BTreeMap<(String, String), Entry> = entries(corpus!("edge_noredact.audit.jsonl"))
        .into_iter()
        .map(|entry| (key_of(&entry), entry))
        .collect();
    let log = corpus!("edge_redact.audit.jsonl");
    let steps = entries(log)
        .into_iter()
        .flat_map(|entry| steps_of(&entry, &wire[&key_of(&entry)]))
        .collect();
    let outcome = play(steps, log, true);
    let told = outcome.told();
    assert_eq!(told.len(), 20, "{told:#?}");
    let odd: Vec<&String> = told
        .iter()
        .filter(|told| !told.starts_with("matched"))
        .collect();
    assert_eq!(
        odd,
        [
            "altered@tool_name tools/call delete_file 12",
            "blocked tools/call delete_file 24",
            "blocked tools/call delete_file 25",
            "undecided:lossy_log@params tools/call t2 2",
        ]
    );
}

#[test]
fn a_log_without_redaction_is_matched_but_for_what_it_renames_or_refuses() {
    let log = corpus!("edge_noredact.audit.jsonl");
    let steps = entries(log)
        .into_iter()
        .flat_map(|entry| steps_of(&entry, &entry))
        .collect();
    let outcome = play(steps, log, true);
    let told = outcome.told();
    assert_eq!(told.len(), 20, "{told:#?}");
    let renamed = "altered@tool_name tools/call delete_file 12".to_owned();
    assert!(told.contains(&renamed), "{told:#?}");
    // The wire's own bytes, which three of the signatures cover, are not kept with the log.
    let unproved = |told: &&String| told.starts_with("altered:signature_bad");
    assert_eq!(told.iter().filter(unproved).count(), 3, "{told:#?}");
    let fine = |told: &&String| told.starts_with("matched") || told.starts_with("blocked");
    assert_eq!(told.iter().filter(fine).count(), 16, "{told:#?}");
}

#[test]
fn of_two_requests_with_one_id_the_log_has_the_last() {
    let log = corpus!("dupid.audit.jsonl");
    let entries = entries(log);
    let first = entries[0].clone();
    let mut steps: Vec<Step> = entries
        .iter()
        .flat_map(|entry| steps_of(entry, entry))
        .collect();
    let before = steps[0].at - 1_000_000;
    steps.push(Step::client(
        before,
        request("1", "tools/call", r#"{"name":"evil"}"#),
    ));
    let late = first.utc_ns.unwrap() + 1_000_000;
    steps.push(Step::server(
        late,
        br#"{"jsonrpc":"2.0","id":1,"result":{}}"#.to_vec(),
    ));
    let told = play(steps, log, true).told();
    assert_eq!(
        told,
        [
            "matched tools/call benign 1",
            "matched tools/call never_answered 2",
            "unlogged~duplicate_id_in_flight tools/call evil 1",
        ]
    );
}

#[test]
fn an_answer_after_half_a_minute_is_unlogged_as_expected() {
    let log = corpus!("slow.audit.jsonl");
    let entries = entries(log);
    let mut steps: Vec<Step> = entries
        .iter()
        .flat_map(|entry| steps_of(entry, entry))
        .collect();
    let asked = entries[1].utc_ns.unwrap() + 1_000_000_000;
    let params = r#"{"name":"sleep","arguments":{"s":40}}"#;
    steps.push(Step::client(asked, request("3", "tools/call", params)));
    let answer = br#"{"jsonrpc":"2.0","id":3,"result":{"slept":40}}"#;
    steps.push(Step::server(asked + 40_000_000_000, answer.to_vec()));
    let told = play(steps, log, true).told();
    assert_eq!(
        told,
        [
            "matched tools/call sleep 1",
            "matched tools/call sleep 2",
            "unlogged~answered_after_30_s tools/call sleep 3",
        ]
    );
}

#[test]
fn a_call_in_flight_when_the_proxy_was_killed_is_unlogged_as_expected() {
    let log = corpus!("kill_sync.audit.jsonl");
    let entries = entries(log);
    let mut steps: Vec<Step> = entries
        .iter()
        .flat_map(|entry| steps_of(entry, entry))
        .collect();
    let asked = entries[2].utc_ns.unwrap() + 1_000_000;
    steps.push(Step::client(
        asked,
        request("4", "tools/call", r#"{"name":"hang"}"#),
    ));
    steps.push(Step {
        at: asked + 1_000_000,
        what: What::Killed,
    });
    let told = play(steps, log, true).told();
    assert_eq!(
        told,
        [
            "matched tools/call t1 1",
            "matched tools/call t2 2",
            "matched tools/call t3 3",
            "unlogged~unanswered tools/call hang 4",
        ]
    );
}

#[test]
fn an_unsigned_log_is_believed_only_where_no_key_is_known() {
    let log = corpus!("unsigned.audit.jsonl");
    let steps = || -> Vec<Step> {
        entries(log)
            .into_iter()
            .flat_map(|entry| steps_of(&entry, &entry))
            .collect()
    };
    let outcome = play(steps(), log, false);
    assert!(
        outcome
            .told()
            .iter()
            .all(|told| told.starts_with("matched"))
    );
    assert!(
        outcome
            .verdicts()
            .all(|row| row.signature == Some("absent"))
    );
    let told = play(steps(), log, true).told();
    let absent = |told: &String| told.starts_with("altered:signature_absent@signature");
    assert!(told.len() == 3 && told.iter().all(absent), "{told:?}");
}

/// Something that happens in a session.
struct Step {
    /// UTC nanoseconds.
    at: i64,
    what: What,
}

enum What {
    /// A line from the client to the server.
    ToServer(Vec<u8>),
    /// A line from the server to the client.
    ToClient(Vec<u8>),
    /// A request that the proxy refuses, and its answer.
    Refused(Vec<u8>, Vec<u8>),
    /// The proxy dies.
    Killed,
}

impl Step {
    fn client(at: i64, line: Vec<u8>) -> Self {
        let what = What::ToServer(line);
        Self { at, what }
    }

    fn server(at: i64, line: Vec<u8>) -> Self {
        let what = What::ToClient(line);
        Self { at, what }
    }
}

/// What was on the wire when `entry` was made, with the texts of `wire`.
fn steps_of(entry: &Entry, wire: &Entry) -> Vec<Step> {
    let text = |json: &Option<Box<[u8]>>| -> Option<String> {
        json.as_ref()
            .map(|json| String::from_utf8(json.to_vec()).unwrap())
    };
    let (params, result, error) = (text(&wire.params), text(&wire.result), text(&wire.error));
    let params = params
        .map(|params| format!(r#","params":{params}"#))
        .unwrap_or_default();
    let method = &wire.method;
    let at = entry.utc_ns.unwrap();
    let answer = match (&result, &error) {
        (Some(result), _) => Some(format!(r#""result":{result}"#)),
        (None, Some(error)) => Some(format!(r#""error":{error}"#)),
        (None, None) => None,
    };
    let to_server = Direction::ClientToServer;
    let Some(answer) = answer else {
        let line = format!(r#"{{"jsonrpc":"2.0","method":"{method}"{params}}}"#).into_bytes();
        return vec![if entry.direction == to_server {
            Step::client(at, line)
        } else {
            Step::server(at, line)
        }];
    };
    let id = match wire.request_id.as_deref() {
        None => "null".to_owned(),
        Some(id) if id.parse::<f64>().is_ok() => id.to_owned(),
        Some(id) => format!("\"{id}\""),
    };
    let asked =
        format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}"{params}}}"#).into_bytes();
    let answered = format!(r#"{{"jsonrpc":"2.0","id":{id},{answer}}}"#).into_bytes();
    let began = at - entry.duration_ms.unwrap_or(0) * 1_000_000;
    if error.is_some_and(|error| error.contains(REFUSED)) {
        let what = What::Refused(asked, answered);
        return vec![Step { at: began, what }];
    }
    if entry.direction == to_server {
        vec![Step::server(began, asked), Step::client(at, answered)]
    } else {
        vec![Step::client(began, asked), Step::server(at, answered)]
    }
}

fn key_of(entry: &Entry) -> (String, String) {
    (
        entry.method.clone(),
        entry.request_id.clone().unwrap_or_default(),
    )
}

fn entries(log: &[u8]) -> Vec<Entry> {
    let mut reader = Reader::new();
    reader.push(log);
    reader.finish();
    let items = std::iter::from_fn(|| reader.poll());
    items
        .map(|item| match item {
            LogItem::Entry(entry) => *entry,
            LogItem::Bad(bad) => panic!("{bad:?}"),
        })
        .collect()
}

fn play(mut steps: Vec<Step>, log_on_disk: &[u8], with_key: bool) -> Outcome {
    steps.sort_by_key(|step| step.at);
    let mut scene = Scene::new();
    scene.until_utc(steps[0].at - 1_000_000_000);
    let session = Session::start(&mut scene);
    let mut log = Log::new(&mut scene);
    for step in steps {
        scene.until_utc(step.at);
        match step.what {
            What::ToServer(line) => session.to_server(&mut scene, &line),
            What::ToClient(line) => session.to_client(&mut scene, &line),
            What::Refused(line, answer) => {
                session.client_asks(&mut scene, &line);
                session.returns(&mut scene, &answer);
            }
            What::Killed => scene.exit(session.proxy),
        }
    }
    log.disk.push(log_on_disk.to_vec());
    scene.wait_ms(1000);
    scene.user(countersign_common::kind::CLOCK, &clock(&scene));
    let mut play = Play::new(scene, &[&log]);
    let key = Key::from_file_content(corpus!("test-key.txt").to_vec()).unwrap();
    play.key = with_key.then_some(key);
    play.run()
}

/// A clock reading of now, so that the capture lasts until after the last entry.
fn clock(scene: &Scene) -> Vec<u8> {
    format!(r#"{{"boot_ns":{},"utc_ns":{}}}"#, scene.now(), scene.utc()).into_bytes()
}
