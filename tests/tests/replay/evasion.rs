//! Attempts to get round the witness: what they take from the evidence, and that they buy nobody doubt about his own deeds.

use countersign_common::end_how;
use countersign_common::evasion::{file_class, foreign, loader, what};
use countersign_tests::scene::session::{request, tool_params};
use countersign_tests::scene::{Log, Outcome, Play, Proc, Scene, Session, program};

use crate::expect;

const ALL: usize = usize::MAX;
const ATTACH: u64 = 16;
const MATCHED: &str = "matched tools/call a 1";
const TAMPERED: &str = "undecided:proxy_tampered tools/call b 2";

/// A call, then `act`, then another call.
fn between(act: impl FnOnce(&mut Scene, &Session, &Log)) -> Outcome {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "a");
    act(&mut scene, &session, &log);
    session.tool(&mut scene, &mut log, "2", "b");
    Play::new(scene, &[&log]).run()
}

/// Kind and severity of what was found.
fn found(outcome: &Outcome) -> Vec<(&str, &str)> {
    outcome
        .findings()
        .filter(|finding| finding.kind != "key_in_reach")
        .map(|finding| (finding.kind, finding.severity))
        .collect()
}

#[test]
fn what_a_proxy_passes_after_somebody_got_into_its_memory_is_not_matched() {
    for (kind, number, finding) in [
        (what::PTRACE, ATTACH, "proxy_traced"),
        (what::PTRACE, 0x4206, "proxy_traced"),
        (what::MEMORY_WRITTEN, 0, "proxy_memory_written"),
        (what::MEMORY_OPENED, 2, "proxy_memory_written"),
    ] {
        let outcome = between(|scene, session, _| {
            scene.tries(session.client, kind, number, Some(session.proxy));
        });
        assert_eq!(outcome.told(), [MATCHED, TAMPERED], "{kind}");
        assert_eq!(found(&outcome), [(finding, "high")]);
        let row = outcome.findings().find(|row| row.kind == finding).unwrap();
        assert!(row.process_id.is_some() && row.target_process_id.is_some());
        assert_eq!(row.proxy_name.as_deref(), Some("proxy"));
        assert!(row.weakens.is_some());
    }
}

#[test]
fn tampering_with_the_proxy_buys_no_doubt_about_a_bypass() {
    let (mut scene, session, mut log) = start();
    scene.tries(session.client, what::PTRACE, ATTACH, Some(session.proxy));
    session.tool(&mut scene, &mut log, "1", "a");
    let evil = line(&request("2", "tools/call", &tool_params("evil")));
    scene.write(session.client, session.to_server, &evil);
    scene.read(session.server, session.to_server, ALL);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "bypassed/foreign_writer tools/call evil 2",
            "undecided:proxy_tampered tools/call a 1",
        ],
    );
}

#[test]
fn a_call_that_a_tampered_proxy_did_not_log_stays_unlogged() {
    let (mut scene, session, log) = start();
    scene.tries(session.client, what::MEMORY_WRITTEN, 0, Some(session.proxy));
    session.to_server(&mut scene, &request("1", "tools/call", &tool_params("a")));
    let answer = br#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
    session.to_client(&mut scene, answer);
    let outcome = Play::new(scene, &[&log]).run();
    expect(&outcome, &["unlogged tools/call a 1"]);
}

#[test]
fn an_attempt_that_failed_is_told_and_weakens_nothing() {
    let outcome = between(|scene, session, _| {
        let refused = -1;
        let (agent, proxy) = (session.client, Some(session.proxy));
        scene.tries_in_vain(agent, what::PTRACE, ATTACH, proxy, refused);
        scene.tries_in_vain(agent, what::MEMORY_WRITTEN, 0, proxy, refused);
    });
    expect(&outcome, &[MATCHED, "matched tools/call b 2"]);
    assert_eq!(
        found(&outcome),
        [
            ("proxy_traced", "medium"),
            ("proxy_memory_written", "medium")
        ]
    );
}

#[test]
fn debugging_ones_own_child_is_noted_and_weakens_no_call() {
    let outcome = between(|scene, session, _| {
        let child = scene.spawn(session.client, program::TOOL);
        scene.tries(session.client, what::PTRACE, ATTACH, Some(child));
        scene.tries(child, what::PTRACE, 0, None);
        scene.tries(child, what::TRACED_EXEC, 0, Some(session.client));
    });
    expect(&outcome, &[MATCHED, "matched tools/call b 2"]);
    assert_eq!(
        found(&outcome),
        [("process_traced", "low"), ("process_traced", "low")]
    );
}

/// A session whose proxy is started in a certain way.
fn started(act: impl FnOnce(&mut Scene, Proc, Proc)) -> Outcome {
    let mut scene = Scene::new();
    let client = scene.root(program::AGENT);
    let (to_proxy, to_client) = (scene.pipe(client), scene.pipe(client));
    let proxy = scene.fork(client);
    scene.exec(proxy, program::PROXY);
    act(&mut scene, client, proxy);
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
    session.tool(&mut scene, &mut log, "2", "b");
    Play::new(scene, &[&log]).run()
}

#[test]
fn a_proxy_that_runs_somebody_elses_code_from_the_start_matches_nothing() {
    for (bits, severity) in [
        (loader::PRELOAD, "high"),
        (loader::AUDIT, "high"),
        (loader::LIBRARY_PATH, "medium"),
        (loader::UNREAD, "medium"),
    ] {
        let outcome = started(|scene, _, proxy| {
            scene.tries(proxy, what::LOADER_ENVIRONMENT, bits, None);
        });
        assert_eq!(outcome.told(), [TAMPERED]);
        assert_eq!(found(&outcome), [("proxy_code_loaded", severity)]);
    }
    let outcome = started(|scene, _, proxy| {
        scene.tries(proxy, what::LOADER_ENVIRONMENT, loader::PYTHON, None);
    });
    expect(&outcome, &["matched tools/call b 2"]);
    assert_eq!(found(&outcome), [("proxy_code_loaded", "low")]);
}

#[test]
fn a_proxy_that_was_executed_under_a_tracer_matches_nothing() {
    let outcome = started(|scene, client, proxy| {
        scene.tries(proxy, what::TRACED_EXEC, 0, Some(client));
    });
    assert_eq!(outcome.told(), [TAMPERED]);
    assert_eq!(found(&outcome), [("proxy_traced", "high")]);
}

#[test]
fn a_supervisor_of_system_calls_weakens_the_proxies_that_inherit_it_and_no_others() {
    let outcome = between(|scene, session, _| {
        scene.tries(session.client, what::SYSTEM_CALL_SUPERVISOR, 8, None);
    });
    expect(&outcome, &[MATCHED, "matched tools/call b 2"]);
    assert_eq!(found(&outcome), [("system_calls_supervised", "medium")]);

    let mut scene = Scene::new();
    let client = scene.root(program::AGENT);
    scene.tries(client, what::SYSTEM_CALL_SUPERVISOR, 8, None);
    let session = Session::under(&mut scene, client);
    let mut log = Log::new(&mut scene);
    session.tool(&mut scene, &mut log, "2", "b");
    let outcome = Play::new(scene, &[&log]).run();
    assert_eq!(outcome.told(), [TAMPERED]);
    assert_eq!(found(&outcome), [("system_calls_supervised", "high")]);
}

#[test]
fn signals_to_the_proxy_are_told_by_what_they_do_and_who_sends_them() {
    for (signal, by_server, expected) in [
        (19, false, Some(("proxy_signalled", "medium"))),
        (9, false, Some(("proxy_signalled", "low"))),
        (15, false, None),
        (15, true, Some(("proxy_signalled", "low"))),
    ] {
        let outcome = between(|scene, session, _| {
            let sender = if by_server {
                session.server
            } else {
                session.client
            };
            scene.tries(sender, what::SIGNAL, signal, Some(session.proxy));
        });
        assert_eq!(found(&outcome), Vec::from_iter(expected), "{signal}");
        expect(&outcome, &[MATCHED, "matched tools/call b 2"]);
    }
}

#[test]
fn memory_shared_between_agent_and_server_is_told_and_between_others_is_not() {
    let share = |scene: &mut Scene, users: [Proc; 2], modes: [u64; 2]| {
        let object = scene.file();
        for (user, mode) in users.into_iter().zip(modes) {
            scene.tries_file(user, what::SHARED_MAPPING, mode, object);
        }
    };
    let outcome = between(|scene, session, _| {
        share(scene, [session.client, session.server], [2, 1]);
    });
    assert_eq!(found(&outcome), [("memory_shared", "medium"); 2]);
    let outcome = between(|scene, session, _| {
        let child = scene.spawn(session.client, program::TOOL);
        share(scene, [session.client, child], [2, 2]);
        let helper = scene.spawn(session.server, program::TOOL);
        share(scene, [session.server, helper], [2, 2]);
        // Nobody can say anything there.
        share(scene, [session.client, session.server], [1, 1]);
    });
    assert_eq!(found(&outcome), []);
}

#[test]
fn reading_what_the_proxy_keeps_secret_is_told_and_weakens_signatures() {
    for (kind, finding, severity) in [
        (what::MEMORY_READ, "proxy_memory_read", "high"),
        (what::ENVIRONMENT_OPENED, "proxy_environment_read", "medium"),
    ] {
        let outcome = between(|scene, session, _| {
            scene.tries(session.client, kind, 0, Some(session.proxy));
        });
        assert_eq!(found(&outcome), [(finding, severity)]);
        let mut weakened = outcome.findings().filter(|row| row.kind == finding);
        assert_eq!(
            weakened.next().unwrap().weakens.as_deref(),
            Some("every signature of this proxy")
        );
        expect(&outcome, &[MATCHED, "matched tools/call b 2"]);
    }
}

#[test]
fn whoever_touches_the_log_is_named_but_not_the_proxy_itself() {
    let class = u64::from(file_class::WRITTEN_BY_PROXY);
    let outcome = between(|scene, session, log| {
        for (kind, actor) in [
            (what::FILE_OPENED, session.client),
            (what::FILE_CUT, session.client),
            (what::FILE_REMOVED, session.client),
            (what::FILE_RENAMED, session.proxy),
        ] {
            scene.tries_file(actor, kind, class, log.file);
        }
    });
    let kinds: Vec<&str> = found(&outcome).iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, ["log_opened_for_writing", "log_cut", "log_removed"]);
}

#[test]
fn an_end_of_a_proxys_channel_that_was_handed_over_is_told() {
    for (how, expected) in [
        (end_how::SCM_RIGHTS, 1),
        (end_how::PIDFD_GETFD, 1),
        (end_how::OPENED, 1),
        (end_how::CREATED, 0),
    ] {
        let outcome = between(|scene, session, _| {
            let other = scene.spawn(session.client, program::TOOL);
            scene.got(other, session.to_server, how);
        });
        assert_eq!(outcome.found("end_handed_over"), expected, "{how}");
    }
}

#[test]
fn rights_that_are_gained_are_told() {
    let outcome = between(|scene, session, _| {
        scene.tries(session.client, what::ROOT_GAINED, 1000, None);
        scene.tries(session.client, what::CAPABILITIES_GAINED, 1 << 39, None);
        scene.tries(session.client, what::BPF, 5, None);
        scene.tries(session.client, what::USER_NAMESPACE, 0, None);
    });
    assert_eq!(
        found(&outcome),
        [
            ("root_gained", "high"),
            ("capabilities_gained", "high"),
            ("bpf_used", "medium"),
            ("user_namespace", "low")
        ]
    );
}

#[test]
fn looking_at_environments_as_ps_does_is_no_attack() {
    let outcome = between(|scene, session, _| {
        scene.tries_in_vain(
            session.client,
            what::ENVIRONMENT_OPENED,
            0,
            Some(session.proxy),
            -13,
        );
        let recorder = scene.outsider();
        scene.records(recorder);
        scene.tries(session.client, what::ENVIRONMENT_OPENED, 0, Some(recorder));
    });
    let mut found = found(&outcome);
    found.sort_unstable();
    assert_eq!(
        found,
        [
            ("proxy_environment_read", "low"),
            ("witness_touched", "low")
        ]
    );
}

#[test]
fn reaching_for_countersign_itself_is_told() {
    let outcome = between(|scene, session, _| {
        let recorder = scene.outsider();
        scene.records(recorder);
        scene.tries_in_vain(session.client, what::SIGNAL, 9, Some(recorder), -1);
    });
    assert_eq!(found(&outcome), [("witness_touched", "high")]);
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

/// UDP over IPv4 to 127.0.0.1, as the kernel tells of it.
const UDP: u64 = foreign::SOCKET | 2 << 8 | 17 << 16;
const LOOPBACK: [u64; 2] = [0, 0xffff_0000 | 0x0100_007f << 32];

#[test]
fn channels_of_other_kinds_are_one_low_row_for_each_process_and_kind_with_their_addresses() {
    let outcome = between(|scene, session, _| {
        scene.uses_foreign(session.client, UDP, [0; 2], foreign::MADE);
        for port in 1..=100 {
            scene.uses_foreign(session.client, UDP, LOOPBACK, foreign::REACHED + port);
        }
        let route = foreign::SOCKET | 16 << 8;
        scene.uses_foreign(session.server, route, [0; 2], foreign::MADE);
    });
    assert_eq!(outcome.told().len(), 2);
    let rows: Vec<_> = outcome
        .findings()
        .filter(|row| row.kind == "unwatched_channel")
        .collect();
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert!(rows.iter().all(|row| row.severity == "low"), "{rows:?}");
    assert_eq!(rows[0].count, 101);
    for part in ["a UDP socket to 127.0.0.1:1, ", " and 60 more"] {
        assert!(rows[0].message.contains(part), "{}", rows[0].message);
    }
    assert!(rows[1].message.contains("a netlink socket of protocol 0"));
}

#[test]
fn two_processes_of_the_tree_that_meet_where_nobody_looks_are_a_medium_row_each() {
    let queue = [u64::from_le_bytes(*b"mailbox\0"), 0];
    let cases: [(u64, [u64; 2], [u32; 2]); 3] = [
        (
            UDP,
            LOOPBACK,
            [foreign::BOUND + 7000, foreign::REACHED + 7000],
        ),
        (foreign::MESSAGE_QUEUE, queue, [0, 0]),
        (foreign::SYSV_QUEUE, [7, 0], [0, 0]),
    ];
    for (number, place, dev) in cases {
        let outcome = between(|scene, session, _| {
            scene.uses_foreign(session.server, number, place, dev[0]);
            scene.uses_foreign(session.client, number, place, dev[1]);
        });
        let rows: Vec<_> = found(&outcome);
        assert_eq!(rows, [("unwatched_channel", "medium"); 2], "{number}");
    }
    // One process alone, two that are bound, another port and the name server's meet nobody.
    for (first, second) in [
        (foreign::BOUND + 7000, foreign::BOUND + 7000),
        (foreign::BOUND + 7000, foreign::REACHED + 7001),
        (foreign::BOUND + 53, foreign::REACHED + 53),
    ] {
        let outcome = between(|scene, session, _| {
            scene.uses_foreign(session.server, UDP, LOOPBACK, first);
            scene.uses_foreign(session.client, UDP, LOOPBACK, second);
        });
        assert_eq!(found(&outcome), [("unwatched_channel", "low"); 2]);
    }
}

#[test]
fn a_signal_that_arrived_at_the_proxy_counts_however_it_was_sent() {
    for (signal, severity) in [(9, "low"), (19, "medium"), (20, "medium")] {
        let outcome = between(|scene, session, _| {
            scene.tries(
                session.client,
                what::SIGNAL_ARRIVED,
                signal,
                Some(session.proxy),
            );
        });
        assert_eq!(found(&outcome), [("proxy_signalled", severity)], "{signal}");
    }
}

#[test]
fn an_end_of_a_proxys_channel_in_a_message_and_an_unwatched_request_of_a_ring_are_rows() {
    let outcome = between(|scene, session, _| {
        scene.tries_file(session.client, what::DESCRIPTOR_SENT, 1, session.to_proxy);
        scene.tries(session.client, what::RING_REQUEST, 40, None);
    });
    assert_eq!(
        found(&outcome),
        [
            ("descriptor_sent", "medium"),
            ("io_uring_request_unwatched", "medium")
        ]
    );
    let ring = outcome
        .findings()
        .find(|row| row.kind == "io_uring_request_unwatched");
    assert!(ring.unwrap().message.ends_with("msg_ring"));
}

#[test]
fn a_file_is_a_channel_while_its_writer_runs() {
    for dies in [false, true] {
        let outcome = between(|scene, session, _| {
            let writer = scene.spawn(session.client, program::SERVER);
            if dies {
                scene.exit(writer);
            }
            scene.tries(session.server, what::FILE_SHARED, 1, Some(writer));
        });
        let rows: &[_] = if dies {
            &[]
        } else {
            &[("unwatched_channel", "low")]
        };
        assert_eq!(found(&outcome), rows);
    }
}
