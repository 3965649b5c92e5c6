//! Processes that change their own memory, or their descriptors, so that less is seen.

use countersign_common::{direction, gap, transfer_flags};
use countersign_tests::scene::session::{request, tool_params};
use countersign_tests::scene::{Answer, Entry, Log, Play, Scene, Session, Shown, program};

use crate::expect;

const ALL: usize = usize::MAX;

#[test]
fn a_server_that_rewrites_what_it_read_is_found_and_nobody_else_accused() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("read");
    let asked = request("1", "tools/call", &params);
    session.client_asks(&mut scene, &asked);
    scene.write(session.proxy, session.to_server, &line(&asked));
    let lie = line(&request("9", "tools/call", &tool_params("evil")));
    let memory = padded(&lie, asked.len() + 1);
    scene.read_as(
        session.server,
        session.to_server,
        ALL,
        &Shown {
            memory: Some(memory),
            ..Shown::default()
        },
    );
    session.to_client(&mut scene, &Answer::Result("{}").line("1"));
    log.writes(
        &mut scene,
        session.proxy,
        &Entry::of_call("1", "tools/call", &params, Answer::Result("{}")),
    );
    let outcome = Play::new(scene, &[&log]).run();
    expect(&outcome, &["matched tools/call read 1"]);
    assert_eq!(outcome.found("evidence_denied"), 1);
}

#[test]
fn the_kernels_copy_stands_for_what_a_server_rewrote_and_accuses_it() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("read");
    let asked = request("1", "tools/call", &params);
    session.client_asks(&mut scene, &asked);
    scene.write(session.proxy, session.to_server, &line(&asked));
    let memory = padded(&line(&request("9", "ping", "{}")), asked.len() + 1);
    let shown = Shown {
        memory: Some(memory),
        copied: true,
        ..Shown::default()
    };
    scene.read_as(session.server, session.to_server, ALL, &shown);
    session.to_client(&mut scene, &Answer::Result("{}").line("1"));
    log.writes(
        &mut scene,
        session.proxy,
        &Entry::of_call("1", "tools/call", &params, Answer::Result("{}")),
    );
    let outcome = Play::new(scene, &[&log]).run();
    expect(&outcome, &["matched tools/call read 1"]);
    assert_eq!(outcome.found("evidence_denied"), 1);
}

#[test]
fn the_kernels_copy_of_an_honest_reader_accuses_nobody() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("read");
    let asked = request("1", "tools/call", &params);
    session.client_asks(&mut scene, &asked);
    scene.write(session.proxy, session.to_server, &line(&asked));
    let shown = Shown {
        copied: true,
        ..Shown::default()
    };
    scene.read_as(session.server, session.to_server, ALL, &shown);
    session.to_client(&mut scene, &Answer::Result("{}").line("1"));
    log.writes(
        &mut scene,
        session.proxy,
        &Entry::of_call("1", "tools/call", &params, Answer::Result("{}")),
    );
    let outcome = Play::new(scene, &[&log]).run();
    expect(&outcome, &["matched tools/call read 1"]);
    assert_eq!(outcome.found("evidence_denied"), 0);
}

#[test]
fn one_byte_of_its_own_does_not_let_a_server_accuse_the_agent() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("read");
    let asked = request("1", "tools/call", &params);
    session.client_asks(&mut scene, &asked);
    scene.write(session.server, session.to_server, b"\n");
    scene.write(session.proxy, session.to_server, &line(&asked));
    let lie = line(&request("9", "tools/call", &tool_params("evil")));
    let memory = padded(&lie, asked.len() + 2);
    scene.read_as(
        session.server,
        session.to_server,
        ALL,
        &Shown {
            memory: Some(memory),
            ..Shown::default()
        },
    );
    session.to_client(&mut scene, &Answer::Result("{}").line("1"));
    log.writes(
        &mut scene,
        session.proxy,
        &Entry::of_call("1", "tools/call", &params, Answer::Result("{}")),
    );
    let outcome = Play::new(scene, &[&log]).run();
    expect(&outcome, &["matched tools/call read 1"]);
    assert_eq!(outcome.found("evidence_denied"), 1);
}

#[test]
fn a_reader_that_unmaps_its_memory_on_a_private_channel_does_not_go_free() {
    for (memory, missing) in [(false, true), (true, false)] {
        let mut scene = Scene::new();
        let agent = scene.root(program::AGENT);
        let pipe = scene.pipe(agent);
        let server = scene.spawn(agent, program::SERVER);
        let asked = line(&request("1", "tools/call", &tool_params("evil")));
        let len = asked.len();
        scene.write(agent, pipe, &asked);
        let shown = Shown {
            memory: memory.then(|| vec![b' '; len]),
            gap: missing.then_some((0..len as u64, gap::FAULT)),
            ..Shown::default()
        };
        scene.read_as(server, pipe, ALL, &shown);
        let outcome = Play::new(scene, &[]).run();
        let told = outcome.told();
        assert!(
            told.contains(&"bypassed/own_server tools/call evil 1".to_owned()),
            "{told:?}"
        );
        assert_eq!(outcome.found("evidence_denied"), 1, "{told:?}");
    }
}

#[test]
fn a_writer_that_lies_about_what_it_wrote_to_the_proxy_changes_nothing() {
    let (mut scene, session, mut log) = start();
    let params = tool_params("read");
    let asked = request("1", "tools/call", &params);
    let memory = padded(&line(b"{}"), asked.len() + 1);
    scene.write_as(
        session.client,
        session.to_proxy,
        &line(&asked),
        &Shown {
            memory: Some(memory),
            ..Shown::default()
        },
    );
    scene.read(session.proxy, session.to_proxy, ALL);
    session.forwards(&mut scene, &asked);
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
fn a_writers_own_gaps_buy_no_doubt() {
    let (mut scene, session, mut log) = start();
    let wide = format!(
        r#"{{"arguments":{{"text":"{}"}},"name":"write"}}"#,
        "x".repeat(16 << 20)
    );
    let asked = line(&request("1", "tools/call", &wide));
    let cut = |from: u64| Shown {
        gap: Some((from..asked.len() as u64, gap::LIMIT)),
        ..Shown::default()
    };
    scene.write_as(session.client, session.to_proxy, &asked, &cut(256 << 10));
    while !scene
        .read(session.proxy, session.to_proxy, 1 << 20)
        .is_empty()
    {}
    scene.write(session.proxy, session.to_server, &asked);
    scene.read_as(session.server, session.to_server, ALL, &cut(1 << 20));
    session.to_client(&mut scene, &Answer::Result("{}").line("1"));
    log.writes(
        &mut scene,
        session.proxy,
        &Entry::of_call("1", "tools/call", &wide, Answer::Result("{}")),
    );
    let outcome = Play::new(scene, &[&log]).run();
    expect(&outcome, &["matched tools/call write 1"]);
    assert!(
        outcome
            .coverage()
            .filter(|row| row.kind == "gap")
            .all(|row| row.self_inflicted && !row.weakens)
    );
}

#[test]
fn a_swapped_descriptor_is_attributed_to_the_file_at_entry() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "read");
    let swapped = Shown {
        flags: transfer_flags::FD_SWAPPED,
        ..Shown::default()
    };
    let evil = line(&request("2", "tools/call", &tool_params("evil")));
    scene.write_as(session.client, session.to_server, &evil, &swapped);
    scene.read(session.server, session.to_server, ALL);
    expect(
        &Play::new(scene, &[&log]).run(),
        &[
            "bypassed/foreign_writer tools/call evil 2",
            "matched tools/call read 1",
        ],
    );
}

#[test]
fn what_was_only_peeked_at_is_not_received() {
    let mut scene = Scene::new();
    let agent = scene.root(program::AGENT);
    let near = scene.socketpair(agent);
    let server = scene.spawn(agent, program::SERVER);
    let asked = line(&request("1", "tools/call", &tool_params("evil")));
    scene.write(agent, near, &asked);
    let peek = Shown {
        flags: transfer_flags::PEEK,
        ..Shown::default()
    };
    scene.peek(server, near.other(), &asked, &peek);
    expect(
        &Play::new(scene, &[]).run(),
        &["undecided/own_server:peer_unmarked tools/call evil 1"],
    );
}

#[test]
fn chunks_of_any_size_tell_the_same() {
    for chunk in [1, 7, 64, 4096] {
        let (mut scene, session, mut log) = start();
        let params = tool_params("read");
        let shown = Shown {
            chunk,
            ..Shown::default()
        };
        let asked = line(&request("1", "tools/call", &params));
        let answer = line(&Answer::Result("{}").line("1"));
        for (from, to, through, text) in [
            (session.client, session.proxy, session.to_proxy, &asked),
            (session.proxy, session.server, session.to_server, &asked),
            (session.server, session.proxy, session.from_server, &answer),
            (session.proxy, session.client, session.to_client, &answer),
        ] {
            for part in text.chunks(chunk.max(3)) {
                scene.write_as(from, through, part, &shown);
            }
            while !scene.read_as(to, through, 11, &shown).is_empty() {}
        }
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
}

#[test]
fn bytes_that_were_written_but_never_read_are_no_bypass() {
    let (mut scene, session, mut log) = start();
    session.tool(&mut scene, &mut log, "1", "read");
    scene.write(
        session.client,
        session.to_server,
        &line(&request("2", "tools/call", &tool_params("evil"))),
    );
    let told = Play::new(scene, &[&log]).run().told();
    assert_eq!(
        told,
        [
            "matched tools/call read 1",
            "undecided/foreign_writer:not_read tools/call evil 2"
        ]
    );
    let _ = direction::READ;
}

/// A lie of a certain length: blanks before its end.
fn padded(lie: &[u8], len: usize) -> Vec<u8> {
    let mut text = lie.to_vec();
    if text.len() > len {
        let cut = text.len() - len;
        text.drain(1..=cut);
        return [&b"{"[..], &text[1..]].concat();
    }
    let end = text.len() - 1;
    text.splice(end..end, std::iter::repeat_n(b' ', len - lie.len()));
    text
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
