//! What must hold of every scene, however it is cut and whatever of it is lost.
//!
//! The core itself checks in debug builds that every call, entry and gap has exactly one verdict; every play here runs that check.

use std::collections::BTreeMap;

use countersign_common::kind;
use countersign_core::proxylog::Direction;
use countersign_tests::scene::session::{notification, request, tool_params};
use countersign_tests::scene::{Answer, Entry, Log, Outcome, Play, Scene, Session, program};
use proptest::prelude::*;

/// One thing that happens in a random scene.
#[derive(Clone, Copy, Debug)]
enum Step {
    Call { id: u8, tool: u8 },
    Unanswered { id: u8, tool: u8 },
    Unlogged { id: u8, tool: u8 },
    Refused { id: u8, tool: u8 },
    FromServer { id: u8 },
    Notification { to_server: bool, n: u8 },
    Foreign { id: u8, tool: u8 },
    OwnServer { id: u8, tool: u8 },
    Delete { line: u8 },
    Repeat { line: u8 },
    Falsify { line: u8 },
    Forge { id: u8 },
    Wait { ms: u16 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (id, tool, line) = (0..4u8, 0..3u8, any::<u8>());
    let step = prop_oneof![
        6 => (id.clone(), tool.clone()).prop_map(|(id, tool)| Step::Call { id, tool }),
        1 => (id.clone(), tool.clone()).prop_map(|(id, tool)| Step::Unanswered { id, tool }),
        1 => (id.clone(), tool.clone()).prop_map(|(id, tool)| Step::Unlogged { id, tool }),
        1 => (id.clone(), tool.clone()).prop_map(|(id, tool)| Step::Refused { id, tool }),
        1 => id.clone().prop_map(|id| Step::FromServer { id }),
        2 => (any::<bool>(), 0..3u8).prop_map(|(to_server, n)| Step::Notification { to_server, n }),
        1 => (id.clone(), tool.clone()).prop_map(|(id, tool)| Step::Foreign { id, tool }),
        1 => (id.clone(), tool).prop_map(|(id, tool)| Step::OwnServer { id, tool }),
        1 => line.prop_map(|line| Step::Delete { line }),
        1 => line.prop_map(|line| Step::Repeat { line }),
        1 => line.prop_map(|line| Step::Falsify { line }),
        1 => id.prop_map(|id| Step::Forge { id }),
        1 => (0..3000u16).prop_map(|ms| Step::Wait { ms }),
    ];
    proptest::collection::vec(step, 1..14)
}

/// Plays steps.
fn play(steps: &[Step], sockets: bool) -> Play {
    let mut scene = Scene::new();
    let session = if sockets {
        Session::with_sockets(&mut scene)
    } else {
        Session::start(&mut scene)
    };
    let mut log = Log::new(&mut scene);
    let private = scene.pipe(session.client);
    let own = scene.spawn(session.client, program::SERVER);
    for step in steps {
        act(&mut scene, &session, &mut log, (own, private), *step);
    }
    Play::new(scene, &[&log])
}

#[expect(clippy::too_many_lines, reason = "one arm for each kind of step")]
fn act(
    scene: &mut Scene,
    session: &Session,
    log: &mut Log,
    (own, private): (
        countersign_tests::scene::Proc,
        countersign_tests::scene::End,
    ),
    step: Step,
) {
    let params = |tool: u8| tool_params(["read", "write", "pay"][usize::from(tool)]);
    let refusal = Answer::Error(r#"{"code":-32030,"message":"no"}"#);
    match step {
        Step::Call { id, tool } => {
            let answer = Answer::Result(r#"{"ok":true}"#);
            session.call(
                scene,
                log,
                &id.to_string(),
                "tools/call",
                &params(tool),
                answer,
            );
        }
        Step::Unanswered { id, tool } => {
            session.to_server(
                scene,
                &request(&id.to_string(), "tools/call", &params(tool)),
            );
        }
        Step::Unlogged { id, tool } => {
            session.unlogged(
                scene,
                &id.to_string(),
                "tools/call",
                &params(tool),
                Answer::Result("{}"),
            );
        }
        Step::Refused { id, tool } => {
            let id = id.to_string();
            session.client_asks(scene, &request(&id, "tools/call", &params(tool)));
            session.returns(scene, &refusal.line(&id));
            let entry = Entry::of_call(&id, "tools/call", &params(tool), refusal);
            log.writes(
                scene,
                session.proxy,
                &Entry {
                    direction: Direction::ClientToServer,
                    ..entry
                },
            );
        }
        Step::FromServer { id } => {
            let id = id.to_string();
            session.to_client(scene, &request(&id, "roots/list", "{}"));
            session.to_server(scene, &Answer::Result("{}").line(&id));
            let entry = Entry::of_call(&id, "roots/list", "{}", Answer::Result("{}"));
            log.writes(
                scene,
                session.proxy,
                &Entry {
                    direction: Direction::ClientToServer,
                    ..entry
                },
            );
        }
        Step::Notification { to_server, n } => {
            let params = format!(r#"{{"n":{n}}}"#);
            let line = notification("notifications/progress", &params);
            let direction = if to_server {
                session.to_server(scene, &line);
                Direction::ClientToServer
            } else {
                session.to_client(scene, &line);
                Direction::ServerToClient
            };
            log.writes(
                scene,
                session.proxy,
                &Entry::of_notification(direction, "notifications/progress", &params),
            );
        }
        Step::Foreign { id, tool } => {
            let line = [
                request(&id.to_string(), "tools/call", &params(tool)),
                b"\n".to_vec(),
            ]
            .concat();
            scene.write(session.client, session.to_server, &line);
            session.forwards(scene, b"");
        }
        Step::OwnServer { id, tool } => {
            let line = [
                request(&id.to_string(), "tools/call", &params(tool)),
                b"\n".to_vec(),
            ]
            .concat();
            scene.write(session.client, private, &line);
            scene.read(own, private, usize::MAX);
        }
        Step::Delete { line } if !log.disk.is_empty() => {
            log.disk.remove(usize::from(line) % log.disk.len());
        }
        Step::Repeat { line } if !log.disk.is_empty() => {
            log.disk
                .push(log.disk[usize::from(line) % log.disk.len()].clone());
        }
        Step::Falsify { line } if !log.disk.is_empty() => {
            let at = usize::from(line) % log.disk.len();
            let text = String::from_utf8_lossy(&log.disk[at])
                .replace("\"params\":{", "\"params\":{\"x\":1,");
            log.disk[at] = text.into_bytes();
        }
        Step::Forge { id } => {
            let entry = Entry::of_call(&id.to_string(), "tools/list", "{}", Answer::Result("{}"));
            let line = log.line(scene, &entry);
            log.disk.push(line);
        }
        Step::Wait { ms } => scene.wait_ms(u64::from(ms)),
        Step::Delete { .. } | Step::Repeat { .. } | Step::Falsify { .. } => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_same_input_gives_the_same_rows(steps in steps(), sockets in any::<bool>()) {
        let one = play(&steps, sockets).run();
        let other = play(&steps, sockets).run();
        prop_assert_eq!(one.rows, other.rows);
    }

    #[test]
    fn pipes_and_sockets_tell_the_same(steps in steps()) {
        prop_assert_eq!(play(&steps, false).run().told(), play(&steps, true).run().told());
    }

    #[test]
    fn records_that_arrive_in_another_order_change_nothing(
        steps in steps(),
        swaps in proptest::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let whole = play(&steps, false).run().told();
        let mut shuffled = play(&steps, false);
        for at in swaps {
            let at = at.index(shuffled.records.len() - 1);
            // Only transfers: two rings are not in one order, but each is.
            if is_transfer(&shuffled.records[at]) && is_transfer(&shuffled.records[at + 1]) {
                shuffled.records.swap(at, at + 1);
            }
        }
        prop_assert_eq!(whole, shuffled.run().told());
    }

    #[test]
    fn what_is_lost_accuses_nobody_and_proves_nothing(
        steps in steps(),
        lost in proptest::collection::vec(any::<prop::sample::Index>(), 1..30),
    ) {
        let whole = counts(&play(&steps, false).run());
        let mut lossy = play(&steps, false);
        for at in lost {
            let at = at.index(lossy.records.len());
            if is_transfer(&lossy.records[at]) {
                lossy.records.remove(at);
            }
        }
        let lossy = lossy.run();
        for ((verdict, subject), count) in counts(&lossy) {
            let before = whole.get(&(verdict.clone(), subject.clone())).copied().unwrap_or(0);
            prop_assert!(
                count <= before,
                "{count} instead of {before} {verdict} {subject}\n{:#?}\n{whole:#?}", lossy.told()
            );
        }
    }

    #[test]
    fn no_record_makes_it_panic(
        steps in steps(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 0..60),
    ) {
        let mut play = play(&steps, false);
        for (record, byte, value) in flips {
            let record = record.index(play.records.len());
            let record = &mut play.records[record];
            // The header's size stays, or nothing of the record would be read.
            let at = 8 + byte.index(record.len() - 8);
            record[at] = value;
        }
        let _ = play.run();
    }
}

/// What weighs: accusations, and the acquittal. How a log that was tampered with is described may change with what is known of
/// it; whether it was may not.
fn counts(outcome: &Outcome) -> BTreeMap<(String, String), usize> {
    let mut counts = BTreeMap::new();
    for row in outcome.verdicts() {
        match row.verdict {
            "forged" | "replayed" => {
                counts.insert(("tampered".to_owned(), String::new()), 1);
            }
            "altered" if row.side == Some("log") => {
                counts.insert(("tampered".to_owned(), String::new()), 1);
            }
            "matched" | "bypassed" | "blocked" | "altered" | "allowed" => {
                let subject = format!("{:?} {:?} {:?}", row.method, row.tool_name, row.request_id);
                *counts.entry((row.verdict.to_owned(), subject)).or_default() += 1;
            }
            _ => {}
        }
    }
    counts
}

fn is_transfer(record: &[u8]) -> bool {
    [kind::CHUNK, kind::GAP].contains(&u16::from_le_bytes([record[0], record[1]]))
}
