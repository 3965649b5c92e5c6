//! MCP over sockets of every kind, and terminals: what is private is a bypass, what is no MCP is nothing, what is cut is in doubt.

use countersign_common::{end_how, gap, transfer_flags};
use countersign_tests::scene::session::{request, tool_params};
use countersign_tests::scene::{Answer, End, Log, Play, Proc, Scene, Session, Shown, program};

use crate::expect;

const ALL: usize = usize::MAX;
const EVIL: &str = "tools/call evil 1";

fn evil() -> Vec<u8> {
    request("1", "tools/call", &tool_params("evil"))
}

fn line(message: &[u8]) -> Vec<u8> {
    [message, b"\n"].concat()
}

/// A call without a proxy, each message in one operation.
fn exchange(scene: &mut Scene, agent: Proc, server: Proc, near: End, end: &[u8]) {
    scene.write(agent, near, &[&evil()[..], end].concat());
    scene.read(server, near.other(), ALL);
    let answer = Answer::Result("{}").line("1");
    scene.write(server, near.other(), &[&answer[..], end].concat());
    scene.read(agent, near, ALL);
}

/// An agent and a server, connected over TCP, with both ends seen.
fn connected(scene: &mut Scene) -> (Proc, Proc, End) {
    let agent = scene.root(program::AGENT);
    let server = scene.root(program::SERVER);
    let near = scene.connection();
    scene.addressed(agent, near, 0, 7);
    scene.got(agent, near, end_how::CONNECTED);
    scene.addressed(server, near.other(), 0, 7);
    scene.got(server, near.other(), end_how::ACCEPTED);
    (agent, server, near)
}

#[test]
fn a_private_server_behind_seqpacket_or_datagrams_is_a_bypass_with_line_ends_and_without() {
    for end in [&b"\n"[..], b""] {
        for make in [Scene::seqpacket_pair, Scene::datagram_pair] {
            let mut scene = Scene::new();
            let agent = scene.root(program::AGENT);
            let near = make(&mut scene, agent);
            let server = scene.spawn(agent, program::SERVER);
            exchange(&mut scene, agent, server, near, end);
            let outcome = Play::new(scene, &[]).run();
            expect(&outcome, &[&format!("bypassed/own_server {EVIL}")]);
            assert!(outcome.calls().all(|call| call.answered));
        }
    }
}

#[test]
fn a_session_over_seqpacket_is_matched() {
    let mut scene = Scene::new();
    let client = scene.root(program::AGENT);
    let (near, far) = (scene.seqpacket_pair(client), scene.seqpacket_pair(client));
    let proxy = scene.spawn(client, program::PROXY);
    let (server_in, server_out) = (scene.seqpacket_pair(proxy), scene.seqpacket_pair(proxy));
    let server = scene.spawn(proxy, program::SERVER);
    let session = Session {
        client,
        proxy,
        server,
        to_proxy: near,
        to_client: far,
        to_server: server_in,
        from_server: server_out,
    };
    let mut log = Log::new(&mut scene);
    session.tool(&mut scene, &mut log, "1", "good");
    expect(
        &Play::new(scene, &[&log]).run(),
        &["matched tools/call good 1"],
    );
}

#[test]
fn a_message_over_several_datagrams_is_put_together() {
    let mut scene = Scene::new();
    let agent = scene.root(program::AGENT);
    let near = scene.seqpacket_pair(agent);
    let server = scene.spawn(agent, program::SERVER);
    for piece in evil().chunks(30) {
        scene.write(agent, near, piece);
        scene.read(server, near.other(), ALL);
    }
    expect(
        &Play::new(scene, &[]).run(),
        &[&format!("bypassed/own_server {EVIL}")],
    );
}

#[test]
fn a_datagram_that_is_a_message_is_one_whatever_came_before() {
    for before in [&b"noise"[..], b"{\"begun\":", b"[1,"] {
        let mut scene = Scene::new();
        let agent = scene.root(program::AGENT);
        let near = scene.datagram_pair(agent);
        let server = scene.spawn(agent, program::SERVER);
        for message in [before, &evil()] {
            scene.write(agent, near, message);
            scene.read(server, near.other(), ALL);
        }
        let told = Play::new(scene, &[]).run().told();
        assert_eq!(told, [format!("bypassed/own_server {EVIL}")], "{before:?}");
    }
}

#[test]
fn a_message_that_was_cut_at_its_receiver_is_no_message() {
    let mut scene = Scene::new();
    let agent = scene.root(program::AGENT);
    let near = scene.datagram_pair(agent);
    let server = scene.spawn(agent, program::SERVER);
    scene.write(agent, near, &evil());
    let len = u64::try_from(evil().len()).unwrap();
    let cut = Shown {
        gap: Some((20..len, gap::TRUNCATED)),
        flags: transfer_flags::MESSAGE_TRUNCATED,
        ..Shown::default()
    };
    scene.read_as(server, near.other(), ALL, &cut);
    let told = Play::new(scene, &[]).run().told();
    assert!(
        told.iter().all(|verdict| !verdict.starts_with("matched")),
        "{told:?}"
    );
    assert!(!told.is_empty());
}

#[test]
fn a_private_server_behind_tcp_is_a_bypass_by_a_direct_connection() {
    let mut scene = Scene::new();
    let (agent, server, near) = connected(&mut scene);
    exchange(&mut scene, agent, server, near, b"\n");
    let outcome = Play::new(scene, &[]).run();
    expect(&outcome, &[&format!("bypassed/direct_connect {EVIL}")]);
    assert!(outcome.calls().all(|call| call.answered));
}

#[test]
fn a_port_that_is_used_again_is_another_connection() {
    let mut scene = Scene::new();
    let (agent, ..) = connected(&mut scene);
    // Of the first the server's end was never seen, of the second it comes first.
    let old = scene.connection();
    scene.addressed(agent, old, 1, 100);
    scene.got(agent, old, end_how::CONNECTED);
    let near = scene.connection();
    let server = scene.spawn(agent, program::SERVER);
    scene.addressed(server, near.other(), 1, 900_000);
    scene.got(server, near.other(), end_how::ACCEPTED);
    scene.addressed(agent, near, 1, 900_000);
    scene.got(agent, near, end_how::CONNECTED);
    exchange(&mut scene, agent, server, near, b"\n");
    let outcome = Play::new(scene, &[]).run();
    expect(&outcome, &[&format!("bypassed/direct_connect {EVIL}")]);
    assert!(outcome.calls().all(|call| call.answered));
}

#[test]
fn ends_in_two_network_namespaces_are_tied_if_there_is_one_candidate() {
    let mut scene = Scene::new();
    let agent = scene.root(program::AGENT);
    let server = scene.root(program::SERVER);
    let near = scene.connection();
    scene.addressed_in(agent, near, 0, 7, 1);
    scene.got(agent, near, end_how::CONNECTED);
    scene.addressed_in(server, near.other(), 0, 7, 2);
    scene.got(server, near.other(), end_how::ACCEPTED);
    exchange(&mut scene, agent, server, near, b"\n");
    let outcome = Play::new(scene, &[]).run();
    expect(&outcome, &[&format!("bypassed/direct_connect {EVIL}")]);
    assert!(outcome.calls().all(|call| call.answered));
}

#[test]
fn http_is_counted_and_accuses_nobody() {
    let mut scene = Scene::new();
    let (agent, server, near) = connected(&mut scene);
    for _ in 0..20 {
        let body = b"{\"model\":\"m\",\"messages\":[]}\n";
        let head = format!(
            "POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        scene.write(agent, near, &[head.as_bytes(), body].concat());
        scene.read(server, near.other(), ALL);
        scene.write(
            server,
            near.other(),
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}\n",
        );
        scene.read(agent, near, ALL);
    }
    let outcome = Play::new(scene, &[]).run();
    expect(&outcome, &[]);
    for finding in ["not_mcp", "mcp_like", "bypassed"] {
        assert_eq!(outcome.found(finding), 0, "{finding}");
    }
}

#[test]
fn http_that_speaks_of_json_rpc_is_pointed_out_once_for_each_direction() {
    let mut scene = Scene::new();
    let (agent, server, near) = connected(&mut scene);
    for _ in 0..5 {
        let body = [&b"POST /mcp HTTP/1.1\r\n\r\n"[..], &line(&evil())].concat();
        scene.write(agent, near, &body);
        scene.read(server, near.other(), ALL);
    }
    let outcome = Play::new(scene, &[]).run();
    expect(&outcome, &[]);
    assert!((1..=2).contains(&outcome.found("mcp_like")));
}

#[test]
fn tls_is_counted_and_accuses_nobody() {
    let mut scene = Scene::new();
    let (agent, server, near) = connected(&mut scene);
    scene.write(agent, near, &[22, 3, 1, 0, 5, 1, b'\n', b'{', b'\n', 0]);
    scene.read(server, near.other(), ALL);
    let outcome = Play::new(scene, &[]).run();
    expect(&outcome, &[]);
    assert_eq!(outcome.found("not_mcp"), 0);
}

#[test]
fn what_a_proxy_says_over_the_network_in_other_framings_takes_nothing_from_its_calls() {
    let mut scene = Scene::new();
    let session = Session::start(&mut scene);
    let mut log = Log::new(&mut scene);
    let outside = scene.root(program::SERVER);
    let near = scene.connection();
    scene.addressed(session.proxy, near, 0, 7);
    scene.got(session.proxy, near, end_how::CONNECTED);
    scene.write(session.proxy, near, b"GET /telemetry HTTP/1.1\r\n\r\n");
    scene.read(outside, near.other(), ALL);
    session.tool(&mut scene, &mut log, "1", "good");
    expect(
        &Play::new(scene, &[&log]).run(),
        &["matched tools/call good 1"],
    );
}

#[test]
fn a_server_on_a_terminal_is_a_bypass_and_its_echo_is_no_call() {
    let mut scene = Scene::new();
    let agent = scene.root(program::AGENT);
    let master = scene.terminal();
    scene.got(agent, master, end_how::OPENED);
    let server = scene.spawn(agent, program::SERVER);
    scene.write(agent, master, &line(&evil()));
    scene.read(server, master.other(), ALL);
    // The line discipline gives back what was typed, and ends lines its own way.
    let back = [&evil()[..], b"\r\n"].concat();
    scene.report(
        agent,
        master,
        countersign_common::direction::READ,
        &back,
        &Shown::default(),
    );
    let answer = Answer::Result("{}").line("1");
    scene.write(server, master.other(), &line(&answer));
    scene.report(
        agent,
        master,
        countersign_common::direction::READ,
        &[&answer[..], b"\r\n"].concat(),
        &Shown::default(),
    );
    let outcome = Play::new(scene, &[]).run();
    expect(&outcome, &[&format!("bypassed/direct_connect {EVIL}")]);
    assert!(outcome.calls().all(|call| call.answered));
}
