//! A session over TCP, and one over messages: what the kernel counts besides gives away what no program saw, and clears what a loss
//! elsewhere leaves in doubt.

use countersign_common::end_how;
use countersign_tests::scene::session::{request, tool_params};
use countersign_tests::scene::{Answer, Entry, Log, Outcome, Play, Scene, Session, program};

use crate::expect;

const ALL: usize = usize::MAX;

/// A client that connects to its proxy, which connects to its server.
fn over_tcp(scene: &mut Scene) -> Session {
    let client = scene.root(program::AGENT);
    let proxy = scene.spawn(client, program::PROXY);
    let server = scene.spawn(proxy, program::SERVER);
    let (front, back) = (scene.connection(), scene.connection());
    for (port, end, who, other) in [(0, front, client, proxy), (1, back, proxy, server)] {
        scene.addressed(who, end, port, 7);
        scene.got(who, end, end_how::CONNECTED);
        scene.addressed(other, end.other(), port, 7);
        scene.got(other, end.other(), end_how::ACCEPTED);
    }
    Session {
        client,
        proxy,
        server,
        to_proxy: front,
        to_client: front,
        to_server: back,
        from_server: back,
    }
}

/// The same over pairs of sockets that keep messages apart.
fn over_messages(scene: &mut Scene) -> Session {
    let client = scene.root(program::AGENT);
    let (to_proxy, to_client) = (scene.seqpacket_pair(client), scene.seqpacket_pair(client));
    let proxy = scene.spawn(client, program::PROXY);
    let (to_server, from_server) = (scene.seqpacket_pair(proxy), scene.seqpacket_pair(proxy));
    let server = scene.spawn(proxy, program::SERVER);
    Session {
        client,
        proxy,
        server,
        to_proxy,
        to_client,
        to_server,
        from_server,
    }
}

/// The kernel holds its counts of every end against those of the operations.
fn look(scene: &mut Scene, session: &Session) {
    for end in [session.to_proxy, session.to_server] {
        scene.counts(end);
        scene.counts(end.other());
    }
}

/// The same of queues.
fn look_at_queues(scene: &mut Scene, session: &Session) {
    let Session {
        to_proxy,
        to_client,
        to_server,
        from_server,
        ..
    } = *session;
    for end in [to_proxy, to_client, to_server, from_server] {
        scene.balance(end);
        scene.balance(end.other());
    }
}

fn line(text: &[u8]) -> Vec<u8> {
    [text, b"\n"].concat()
}

/// End and length of every gap.
fn gaps(outcome: &Outcome) -> Vec<(&'static str, Option<u64>)> {
    outcome
        .coverage()
        .filter(|row| row.kind == "gap")
        .map(|row| (row.end.unwrap(), row.lost_bytes))
        .collect()
}

#[test]
fn a_session_over_tcp_that_the_kernel_counts_alike_is_matched() {
    let mut scene = Scene::new();
    let session = over_tcp(&mut scene);
    look(&mut scene, &session);
    let mut log = Log::new(&mut scene);
    for id in ["1", "2"] {
        session.tool(&mut scene, &mut log, id, "a");
        look(&mut scene, &session);
    }
    let outcome = Play::new(scene, &[&log]).run();
    expect(
        &outcome,
        &["matched tools/call a 1", "matched tools/call a 2"],
    );
    assert_eq!(gaps(&outcome), []);
}

#[test]
fn what_a_proxy_takes_and_sends_over_tcp_unseen_is_held_against_nobody() {
    // The request comes unseen, or the answer goes so.
    for answer_unseen in [false, true] {
        let mut scene = Scene::new();
        let session = over_tcp(&mut scene);
        look(&mut scene, &session);
        let mut log = Log::new(&mut scene);
        session.tool(&mut scene, &mut log, "1", "a");
        look(&mut scene, &session);
        let params = tool_params("b");
        let (asked, answer) = (request("2", "tools/call", &params), Answer::Result("{}"));
        let answered = line(&answer.line("2"));
        scene.write(session.client, session.to_proxy, &line(&asked));
        let proxys = session.to_proxy.other();
        let len = if answer_unseen {
            scene.read(session.proxy, proxys, ALL);
            session.forwards(&mut scene, &asked);
            session.server_says(&mut scene, &answer.line("2"));
            scene.write_unseen(session.to_client.other(), &answered);
            scene.read(session.client, session.to_proxy, ALL);
            answered.len()
        } else {
            scene.read_unseen(proxys, ALL);
            session.forwards(&mut scene, &asked);
            session.to_client(&mut scene, &answer.line("2"));
            line(&asked).len()
        };
        log.writes(
            &mut scene,
            session.proxy,
            &Entry::of_call("2", "tools/call", &params, answer),
        );
        look(&mut scene, &session);
        let outcome = Play::new(scene, &[&log]).run();
        let end = if answer_unseen { "writer" } else { "reader" };
        let len = u64::try_from(len).unwrap();
        assert_eq!(gaps(&outcome), [(end, Some(len))], "{answer_unseen}");
        let told = outcome.told();
        assert!(
            told.contains(&"matched tools/call a 1".to_owned()),
            "{told:?}"
        );
        let fine = |told: &String| told.starts_with("matched") || told.contains("undecided");
        assert!(told.iter().all(fine), "{told:?}");
        assert!(
            told.iter().any(|told| told.contains("undecided")),
            "{told:?}"
        );
    }
}

/// An entry without a call, in a time in which the kernel skipped programs: `session` says how it is looked at.
fn skipped(
    session: fn(&mut Scene) -> Session,
    look: fn(&mut Scene, &Session),
    missed: u64,
    looked: (bool, bool),
) -> Vec<String> {
    let mut scene = Scene::new();
    let session = session(&mut scene);
    look(&mut scene, &session);
    let mut log = Log::new(&mut scene);
    session.tool(&mut scene, &mut log, "1", "a");
    if looked.0 {
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
    scene.wait_ms(5_000);
    session.tool(&mut scene, &mut log, "4", "d");
    if looked.1 {
        look(&mut scene, &session);
    }
    Play::new(scene, &[&log]).run().told()
}

#[test]
fn the_kernels_own_counts_clear_any_number_of_skipped_programs() {
    for missed in [0, 1, 2, 1000] {
        for before in [false, true] {
            let told = skipped(over_tcp, look, missed, (before, true));
            assert!(
                told.contains(&"entry unobserved tools/list 3".to_owned()),
                "{missed}: {told:?}"
            );
            for call in ["a 1", "b 2", "d 4"] {
                let wanted = format!("matched tools/call {call}");
                assert!(told.contains(&wanted), "{missed}: {told:?}");
            }
        }
    }
}

#[test]
fn what_was_skipped_after_the_last_look_at_a_connection_stays_in_doubt() {
    for missed in [1, 1000] {
        for before in [false, true] {
            let told = skipped(over_tcp, look, missed, (before, false));
            assert!(
                told.contains(&"entry undecided:gap tools/list 3".to_owned()),
                "{missed}: {told:?}"
            );
        }
    }
}

#[test]
fn a_connection_of_which_something_moved_unseen_clears_nothing() {
    for unseen_by_proxy in [true, false] {
        let mut scene = Scene::new();
        let session = over_tcp(&mut scene);
        look(&mut scene, &session);
        let mut log = Log::new(&mut scene);
        session.tool(&mut scene, &mut log, "1", "a");
        look(&mut scene, &session);
        scene.heartbeat(0);
        let asked = line(&request("3", "tools/list", "{}"));
        if unseen_by_proxy {
            scene.write_unseen(session.to_proxy, &asked);
            scene.read_unseen(session.to_proxy.other(), ALL);
            scene.write_unseen(session.to_server, &asked);
            scene.read_unseen(session.to_server.other(), ALL);
        }
        let answer = Answer::Result("{}");
        log.writes(
            &mut scene,
            session.proxy,
            &Entry::of_call("3", "tools/list", "{}", answer),
        );
        scene.heartbeat(3);
        scene.wait_ms(5_000);
        session.tool(&mut scene, &mut log, "4", "d");
        look(&mut scene, &session);
        let told = Play::new(scene, &[&log]).run().told();
        let wanted = if unseen_by_proxy {
            "entry undecided:gap tools/list 3"
        } else {
            "entry unobserved tools/list 3"
        };
        assert!(told.contains(&wanted.to_owned()), "{told:?}");
    }
}

#[test]
fn messages_that_add_up_clear_one_skipped_program_and_no_two() {
    for (missed, looked, wanted) in [
        (0, (true, true), "entry unobserved tools/list 3"),
        (1, (true, true), "entry unobserved tools/list 3"),
        (1, (true, false), "entry undecided:gap tools/list 3"),
        (2, (true, true), "entry undecided:gap tools/list 3"),
    ] {
        let told = skipped(over_messages, look_at_queues, missed, looked);
        assert!(
            told.contains(&wanted.to_owned()),
            "{missed} {looked:?}: {told:?}"
        );
    }
}

#[test]
fn a_message_that_was_taken_unseen_is_a_gap_of_its_length() {
    let mut scene = Scene::new();
    let session = over_messages(&mut scene);
    let mut log = Log::new(&mut scene);
    session.tool(&mut scene, &mut log, "1", "a");
    look_at_queues(&mut scene, &session);
    let asked = request("2", "tools/call", &tool_params("b"));
    scene.write(session.client, session.to_proxy, &asked);
    scene.read_unseen(session.to_proxy.other(), ALL);
    look_at_queues(&mut scene, &session);
    let outcome = Play::new(scene, &[&log]).run();
    let len = u64::try_from(asked.len()).unwrap();
    assert_eq!(gaps(&outcome), [("reader", Some(len))]);
    let told = outcome.told();
    assert!(
        told.contains(&"matched tools/call a 1".to_owned()),
        "{told:?}"
    );
    assert!(
        !told
            .iter()
            .any(|told| told.contains("bypassed") || told.contains("matched tools/call b")),
        "{told:?}"
    );
}

#[test]
fn a_private_server_that_takes_a_byte_unseen_buys_no_doubt_with_it() {
    for counted in [false, true] {
        for before in [false, true] {
            let mut scene = Scene::new();
            let agent = scene.root(program::AGENT);
            let server = scene.root(program::SERVER);
            let near = scene.connection();
            for (who, end, how) in [
                (agent, near, end_how::CONNECTED),
                (server, near.other(), end_how::ACCEPTED),
            ] {
                scene.addressed(who, end, 0, 7);
                scene.got(who, end, how);
                if counted {
                    scene.counts(end);
                }
            }
            let asked = line(&request("1", "tools/call", &tool_params("evil")));
            if before {
                scene.write(agent, near, b"\n");
                scene.read_unseen(near.other(), ALL);
            }
            scene.write(agent, near, &asked);
            scene.read(server, near.other(), ALL);
            if !before {
                scene.write(agent, near, b"\n");
                scene.read_unseen(near.other(), ALL);
            }
            let answer = Answer::Result("{}").line("1");
            scene.write(server, near.other(), &line(&answer));
            scene.read(agent, near, ALL);
            if counted {
                for end in [near, near.other()] {
                    scene.counts(end);
                }
            }
            let outcome = Play::new(scene, &[]).run();
            let told = outcome.told();
            assert!(
                told.contains(&"bypassed/direct_connect tools/call evil 1".to_owned()),
                "{counted} {before}: {told:?}"
            );
            let wanted: &[_] = if counted { &[("reader", Some(1))] } else { &[] };
            assert_eq!(gaps(&outcome), wanted, "{before}");
        }
    }
}
