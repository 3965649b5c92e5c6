//! What no program saw: a balance that does not add up is doubt about its own stream, and one that does clears a loss elsewhere.

use countersign_tests::scene::session::{request, tool_params};
use countersign_tests::scene::{Answer, End, Entry, Log, Outcome, Play, Scene, Session};

use crate::expect;

const ALL: usize = usize::MAX;

#[test]
fn streams_that_add_up_at_every_look_change_nothing() {
    let (mut scene, session, mut log) = start();
    for id in ["1", "2", "3"] {
        session.tool(&mut scene, &mut log, id, "a");
        look(&mut scene, &session);
    }
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "matched tools/call a 1",
            "matched tools/call a 2",
            "matched tools/call a 3",
        ],
    );
}

#[test]
fn a_call_of_which_every_step_was_unseen_is_not_held_against_its_entry() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    look(&mut scene, &session);
    // The proxy reads the request by a way that is not seen, and writes it on.
    let params = tool_params("b");
    let asked = line(&request("2", "tools/call", &params));
    scene.write(session.client, session.to_proxy, &asked);
    scene.read_unseen(session.to_proxy, ALL);
    scene.write_unseen(session.to_server, &asked);
    scene.read(session.server, session.to_server, ALL);
    let answer = Answer::Result("{}");
    session.to_client(&mut scene, &answer.line("2"));
    log.writes(
        &mut scene,
        session.proxy,
        &Entry::of_call("2", "tools/call", &params, answer),
    );
    look(&mut scene, &session);
    let outcome = Play::new(scene, &[&log]).run();
    let told = outcome.told();
    assert!(
        told.contains(&"matched tools/call a 1".to_owned()),
        "{told:?}"
    );
    let fine =
        |told: &String| told.contains("matched tools/call a 1") || told.contains("undecided");
    assert!(told.iter().all(fine), "{told:?}");
    let gaps = gaps(&outcome);
    let len = asked.len() as u64;
    assert!(gaps.contains(&("reader", Some(len))), "{gaps:?}");
    assert!(gaps.contains(&("writer", Some(len))), "{gaps:?}");
}

#[test]
fn an_entry_whose_call_moved_unseen_is_undecided_and_not_unobserved() {
    for looked in [true, false] {
        let (mut scene, session, mut log) = start();
        session.tool(&mut scene, &mut log, "1", "a");
        look(&mut scene, &session);
        let params = tool_params("b");
        let asked = line(&request("2", "tools/call", &params));
        scene.write_unseen(session.to_proxy, &asked);
        scene.read_unseen(session.to_proxy, ALL);
        scene.write_unseen(session.to_server, &asked);
        // Half a message of it is seen, which the balance betrays.
        scene.read(session.server, session.to_server, 1);
        scene.read_unseen(session.to_server, ALL);
        let answer = Answer::Result("{}");
        scene.write_unseen(session.to_client, &line(&answer.line("2")));
        scene.read(session.client, session.to_client, ALL);
        log.writes(
            &mut scene,
            session.proxy,
            &Entry::of_call("2", "tools/call", &params, answer),
        );
        if looked {
            look(&mut scene, &session);
        }
        let told = Play::new(scene, &[&log]).run().told();
        assert!(
            told.contains(&"matched tools/call a 1".to_owned()),
            "{told:?}"
        );
        assert!(
            !told.iter().any(|told| told.contains("unobserved")
                || told.contains("forged")
                || told.contains("bypassed")
                || told.contains("matched tools/call b")),
            "{looked} {told:?}"
        );
    }
}

#[test]
fn what_is_unseen_on_one_proxys_streams_is_no_doubt_about_another_time() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    look(&mut scene, &session);
    scene.write_unseen(session.to_server, b"[1]\n");
    scene.read(session.server, session.to_server, ALL);
    look(&mut scene, &session);
    scene.wait_ms(5_000);
    look(&mut scene, &session);
    session.tool(&mut scene, &mut log, "2", "b");
    look(&mut scene, &session);
    let outcome = Play::new(scene, &[&log]).run();
    let told = outcome.told();
    for call in ["matched tools/call a 1", "matched tools/call b 2"] {
        assert!(told.contains(&call.to_owned()), "{told:?}");
    }
    assert_eq!(gaps(&outcome), [("writer", Some(4))]);
}

#[test]
fn an_end_that_reads_less_than_is_gone_is_told_by_the_last_counts_too() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    look(&mut scene, &session);
    let asked = line(&request("2", "tools/call", &tool_params("b")));
    scene.write(session.client, session.to_proxy, &asked);
    scene.read_unseen(session.to_proxy, ALL);
    // The channel is closed before anybody looks again.
    let outcome = Play::new(scene, &[&log]).run();
    assert_eq!(gaps(&outcome), [("reader", Some(asked.len() as u64))]);
    let told = outcome.told();
    assert!(
        told.contains(&"matched tools/call a 1".to_owned()),
        "{told:?}"
    );
}

#[test]
fn a_program_that_was_skipped_leaves_in_doubt_what_the_balance_does_not_clear() {
    // Skipped runs, looks at the balance before and after: what must become of an entry without a call.
    for (missed, looked, wanted) in [
        (0, true, "entry unobserved"),
        (1, true, "entry unobserved"),
        (1, false, "entry undecided:gap"),
        // One at each end can have made up for the other.
        (2, true, "entry undecided:gap"),
    ] {
        let (mut scene, session, mut log) = start();
        session.tool(&mut scene, &mut log, "1", "a");
        if looked {
            look(&mut scene, &session);
        }
        scene.heartbeat(0);
        session.tool(&mut scene, &mut log, "2", "b");
        log.writes(
            &mut scene,
            session.proxy,
            &Entry::of_call("3", "tools/list", "{}", Answer::Result("{}")),
        );
        scene.heartbeat(missed);
        if looked {
            look(&mut scene, &session);
        }
        scene.wait_ms(5_000);
        session.tool(&mut scene, &mut log, "4", "d");
        if looked {
            look(&mut scene, &session);
        }
        let told = Play::new(scene, &[&log]).run().told();
        assert!(
            told.iter().any(|told| told.starts_with(wanted)),
            "{missed} {looked}: {told:?}"
        );
        assert!(
            told.contains(&"matched tools/call d 4".to_owned()),
            "{missed} {looked}: {told:?}"
        );
    }
}

#[test]
fn a_balance_clears_no_two_skipped_runs_between_two_looks() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    look(&mut scene, &session);
    scene.heartbeat(0);
    // What was written in the one time can be what was read in the other.
    scene.heartbeat(1);
    scene.wait_ms(10);
    log.writes(
        &mut scene,
        session.proxy,
        &Entry::of_call("3", "tools/list", "{}", Answer::Result("{}")),
    );
    scene.heartbeat(2);
    session.tool(&mut scene, &mut log, "4", "d");
    look(&mut scene, &session);
    let told = Play::new(scene, &[&log]).run().told();
    assert!(
        told.contains(&"entry undecided:gap tools/list 3".to_owned()),
        "{told:?}"
    );
}

#[test]
fn a_recording_that_breaks_off_is_in_doubt_from_its_last_heartbeat_on() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    scene.heartbeat(0);
    let last = scene.now();
    scene.wait_ms(20_000);
    scene.heartbeat(0);
    let late = scene.now();
    session.tool(&mut scene, &mut log, "2", "b");
    let end = scene.now();
    let mut play = Play::new(scene, &[&log]);
    // The records that tell the end, and the totals before it.
    let end_at = play.records.len() - 1;
    play.records.truncate(end_at);
    let outcome = play.run();
    let rows: Vec<_> = outcome.coverage().collect();
    let of = |name: &str| {
        let row = rows
            .iter()
            .find(|row| row.name.as_deref() == Some(name))
            .unwrap();
        (row.from_boot_ns.0, row.to_boot_ns.0, row.weakens)
    };
    assert_eq!(of("late"), (last, late, false));
    assert_eq!(of("end_missing"), (late, end, true));
}

/// End and length of every gap.
fn gaps(outcome: &Outcome) -> Vec<(&'static str, Option<u64>)> {
    outcome
        .coverage()
        .filter(|row| row.kind == "gap")
        .map(|row| (row.end.unwrap(), row.lost_bytes))
        .collect()
}

fn look(scene: &mut Scene, session: &Session) {
    let ends: [End; 4] = [
        session.to_proxy,
        session.to_server,
        session.from_server,
        session.to_client,
    ];
    for end in ends {
        scene.balance(end);
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
