//! A proxy in front of a proxy: a call passes both, each logs it, and each log is held against its own passage.

use countersign_tests::scene::session::{request, tool_params};
use countersign_tests::scene::{Answer, Entry, Log, Play, Scene, Session, program};

use crate::expect;

const OK: Answer<'_> = Answer::Result("{}");

#[test]
fn a_call_through_two_proxies_is_matched_by_both_logs() {
    let (mut scene, nested, mut logs) = start();
    for id in ["1", "2", "3"] {
        nested.call(&mut scene, &mut logs, id, "read");
    }
    let told = Play::new(scene, &[&logs.0, &logs.1]).run().told();
    assert_eq!(told.len(), 6, "{told:?}");
    assert!(
        told.iter().all(|told| told.starts_with("matched")),
        "{told:?}"
    );
}

#[test]
fn a_line_deleted_from_one_of_two_logs_is_unlogged_there_only() {
    let (mut scene, nested, mut logs) = start();
    for id in ["1", "2"] {
        nested.call(&mut scene, &mut logs, id, "read");
    }
    logs.1.disk.remove(0);
    expect(
        &Play::new(scene, &[&logs.0, &logs.1]).run(),
        &[
            "matched tools/call read 1",
            "matched tools/call read 2",
            "matched tools/call read 2",
            "unlogged:line_deleted tools/call read 1",
        ],
    );
}

#[test]
fn a_call_that_the_second_proxy_changed_is_altered_at_it() {
    let (mut scene, nested, mut logs) = start();
    let (asked, sent) = (tool_params("read"), tool_params("evil"));
    nested
        .outer
        .client_asks(&mut scene, &request("1", "tools/call", &asked));
    nested.between(&mut scene, &request("1", "tools/call", &asked));
    nested
        .inner
        .forwards(&mut scene, &request("1", "tools/call", &sent));
    nested.answered(&mut scene, "1");
    nested.logged(&mut scene, &mut logs, "1", &asked);
    expect(
        &Play::new(scene, &[&logs.0, &logs.1]).run(),
        &[
            "altered:legs_differ@params tools/call read 1",
            "matched tools/call read 1",
        ],
    );
}

#[test]
fn a_call_put_between_two_proxies_is_bypassed_at_the_first_and_logged_by_the_second() {
    let (mut scene, nested, mut logs) = start();
    nested.call(&mut scene, &mut logs, "1", "read");
    let params = tool_params("evil");
    let line = [request("9", "tools/call", &params), b"\n".to_vec()].concat();
    scene.write(nested.outer.client, nested.outer.to_server, &line);
    scene.read(nested.inner.proxy, nested.outer.to_server, usize::MAX);
    nested
        .inner
        .forwards(&mut scene, &request("9", "tools/call", &params));
    nested.answered(&mut scene, "9");
    let entry = Entry::of_call("9", "tools/call", &params, OK);
    logs.1.writes(&mut scene, nested.inner.proxy, &entry);
    let told = Play::new(scene, &[&logs.0, &logs.1]).run().told();
    assert!(
        told.contains(&"bypassed/foreign_writer tools/call evil 9".to_owned()),
        "{told:?}"
    );
    assert!(
        told.contains(&"matched tools/call evil 9".to_owned()),
        "{told:?}"
    );
}

/// Client, outer proxy, inner proxy, server: the outer proxy's server is the inner proxy, whose client is the outer one.
struct Nested {
    outer: Session,
    inner: Session,
}

impl Nested {
    fn call(&self, scene: &mut Scene, logs: &mut (Log, Log), id: &str, name: &str) {
        let params = tool_params(name);
        let asked = request(id, "tools/call", &params);
        self.outer.client_asks(scene, &asked);
        self.between(scene, &asked);
        self.inner.forwards(scene, &asked);
        self.answered(scene, id);
        self.logged(scene, logs, id, &params);
    }

    fn between(&self, scene: &mut Scene, line: &[u8]) {
        self.inner.client_asks(scene, line);
    }

    fn answered(&self, scene: &mut Scene, id: &str) {
        let answer = OK.line(id);
        self.inner.server_says(scene, &answer);
        self.inner.returns(scene, &answer);
        self.outer.returns(scene, &answer);
    }

    fn logged(&self, scene: &mut Scene, logs: &mut (Log, Log), id: &str, params: &str) {
        let entry = Entry::of_call(id, "tools/call", params, OK);
        logs.1.writes(scene, self.inner.proxy, &entry);
        logs.0.writes(scene, self.outer.proxy, &entry);
    }
}

fn start() -> (Scene, Nested, (Log, Log)) {
    let mut scene = Scene::new();
    let client = scene.root(program::AGENT);
    let (to_proxy, to_client) = (scene.pipe(client), scene.pipe(client));
    let outer = scene.spawn(client, program::PROXY);
    let (to_inner, from_inner) = (scene.pipe(outer), scene.pipe(outer));
    let inner = scene.spawn(outer, program::PROXY);
    let (to_server, from_server) = (scene.pipe(inner), scene.pipe(inner));
    let server = scene.spawn(inner, program::SERVER);
    let nested = Nested {
        outer: Session {
            client,
            proxy: outer,
            server: inner,
            to_proxy,
            to_server: to_inner,
            from_server: from_inner,
            to_client,
        },
        inner: Session {
            client: outer,
            proxy: inner,
            server,
            to_proxy: to_inner,
            to_server,
            from_server,
            to_client: from_inner,
        },
    };
    let logs = (Log::new(&mut scene), Log::new(&mut scene));
    (scene, nested, logs)
}
