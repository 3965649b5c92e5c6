//! An agent that makes processes in every way and by the thousand: not one line of theirs is missed.

use std::collections::BTreeSet;

use super::place::{Place, text};
use super::session::{of, rows_of};

/// Lines of each kind.
const EACH: usize = 400;

/// Writes one call from each of many short lives into a pipe that a server of its own reads. `AT_ONCE` keeps below the limits on
/// processes of small machines.
const AGENT: &str = r#"
import os, subprocess, sys, threading, time
EACH, AT_ONCE = int(sys.argv[1]), 50
out, into = os.pipe()
server = os.fork()
if server == 0:
    os.close(into)
    lines = sum(1 for _ in os.fdopen(out, "rb"))
    os._exit(0 if lines == 5 * EACH else 1)
os.close(out)
os.set_inheritable(into, True)

def line(kind, number):
    return '{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"%s"}}\n' % (number, kind)

def write(kind, number):
    os.write(into, line(kind, number).encode())

def fork(number):
    child = os.fork()
    if child == 0:
        write("fork", number)
        os._exit(0)
    return child

def vfork(number):
    return os.posix_spawn("/bin/echo", ["echo", "-n", line("vfork", number)], os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, into, 1)])

def orphan(number):
    child = os.fork()
    if child == 0:
        parent = os.getpid()
        if os.fork() == 0:
            while os.getppid() == parent:
                time.sleep(0.001)
            write("orphan", number)
        os._exit(0)
    return child

def chain(number):
    script = 'exec sh -c \'exec sh -c "exec echo \\"\\$0\\"" "$0"\' "$0"'
    return os.posix_spawn("/bin/sh", ["sh", "-c", script, line("chain", number)[:-1]], os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, into, 1)])

number = 0
for start in fork, vfork, orphan, chain:
    for _ in range(EACH // AT_ONCE):
        children = []
        for _ in range(AT_ONCE):
            number += 1
            children.append(start(number))
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
for _ in range(EACH // AT_ONCE):
    threads = [threading.Thread(target=write, args=("thread", number + 1 + n)) for n in range(AT_ONCE)]
    number += AT_ONCE
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
os.close(into)
assert os.waitpid(server, 0)[1] == 0
"#;

#[test]
fn each_of_two_thousand_short_lives_is_seen_with_its_line() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    place.file("churn.py", AGENT.as_bytes(), 0o644);
    let output = place
        .command(&["run", "--user", "root", "--proxy-log", "log"])
        .args(["--json", "-o", "out", "--linger", "500ms"])
        .args(["--", "python3", "churn.py", &EACH.to_string()])
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert!(said.contains("the agent exited with code 0"), "{said}");
    assert!(!said.contains("could not see"), "{said}");
    // No proxy is between them, so each is a bypass: an id that is not there was not seen.
    assert_eq!(output.status.code(), Some(1), "{said}");
    let rows = rows_of(&output.stdout);
    for kind in ["fork", "vfork", "orphan", "chain", "thread"] {
        let calls: Vec<_> = of(&rows, "verdicts")
            .filter(|row| row["tool_name"] == kind)
            .collect();
        assert_eq!(calls.len(), EACH, "{kind}");
        assert!(
            calls.iter().all(|row| row["verdict"] == "bypassed"),
            "{kind}"
        );
        let ids: BTreeSet<_> = calls.iter().map(|row| row["request_id"].as_str()).collect();
        assert_eq!(ids.len(), EACH, "{kind}");
    }
    assert_eq!(of(&rows, "verdicts").count(), 5 * EACH);
}
