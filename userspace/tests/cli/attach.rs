//! `countersign record` on sessions that run already: what came before is never held against anybody.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::place::{NOBODY, Place, binary, text};

/// Longest wait for something that must come.
const DEADLINE: Duration = Duration::from_secs(20);

/// Reads `name id` from its input and makes a call of it, through a proxy that it has started with pipes or sockets.
const AGENT: &str = r#"
import json, socket, subprocess, sys
if sys.argv[1] == "sockets":
    (mine_in, its_in), (mine_out, its_out) = socket.socketpair(), socket.socketpair()
    proxy = subprocess.Popen(sys.argv[2:], stdin=its_in, stdout=its_out)
    its_in.close(); its_out.close()
    to, back = mine_in.makefile("wb"), mine_out.makefile("rb")
else:
    proxy = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    to, back = proxy.stdin, proxy.stdout
for line in sys.stdin:
    name, number = line.split()
    call = {"jsonrpc": "2.0", "id": int(number), "method": "tools/call", "params": {"name": name}}
    if name == "big":
        call["params"]["arguments"] = "x" * 60000
    to.write(json.dumps(call).encode() + b"\n")
    to.flush()
    print(back.readline().decode().strip(), flush=True)
"#;

/// Answers each call; the one named `slow` only once a file named `go` is there.
const SERVER: &str = r#"
import json, os, sys, time
for line in sys.stdin:
    call = json.loads(line)
    if call["params"]["name"] == "slow":
        open("got", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.005)
    print(json.dumps({"jsonrpc": "2.0", "id": call["id"], "result": {"n": call["id"]}}), flush=True)
"#;

struct Session {
    agent: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Session {
    fn start(place: &Place, kind: &str) -> Self {
        place.file("agent.py", AGENT.as_bytes(), 0o644);
        place.file("server.py", SERVER.as_bytes(), 0o644);
        place.file("key", b"0123456789abcdef0123456789abcdef", 0o600);
        let mut agent = Command::new("python3")
            .args(["agent.py", kind])
            .arg(binary())
            .args(["proxy", "--log", "log", "--key-file", "key", "--"])
            .args(["python3", "server.py"])
            .current_dir(place.path("."))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test needs python3");
        let commands = agent.stdin.take();
        let answers = BufReader::new(agent.stdout.take().unwrap());
        Self {
            agent,
            commands,
            answers,
        }
    }

    fn ask(&mut self, name: &str, number: u32) {
        let commands = self.commands.as_mut().unwrap();
        writeln!(commands, "{name} {number}").unwrap();
    }

    fn answer(&mut self, number: u32) {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert!(
            line.contains(&format!("\"result\": {{\"n\": {number}}}")),
            "{line}"
        );
    }

    fn call(&mut self, name: &str, number: u32) {
        self.ask(name, number);
        self.answer(number);
    }

    fn end(mut self) {
        self.commands = None;
        assert!(self.agent.wait().unwrap().success());
    }
}

/// Nothing outlives a test that fails.
impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

struct Recorder {
    child: Child,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Recorder {
    fn start(place: &Place, targets: &[&str]) -> Self {
        let arguments = [
            "record",
            "-o",
            "out",
            "--keep-spool",
            "--proxy-log",
            "log",
            "--key-file",
            "key",
        ];
        let mut child = place
            .command(&[&arguments[..], targets].concat())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut recorder = Self {
            child,
            stderr,
            said: String::new(),
        };
        Self::watched(&recorder.child);
        recorder.until("and what they start");
        recorder
    }

    /// Reads what it says until this is among it.
    fn until(&mut self, needle: &str) {
        while !self.said.contains(needle) {
            let got = self.stderr.read_line(&mut self.said).unwrap();
            assert!(got > 0, "it ended: {}", self.said);
        }
    }

    /// Ends it where a test would wait for ever: the wait for its words then fails.
    fn watched(child: &Child) {
        let pid = Pid::from_child(child);
        std::thread::spawn(move || {
            std::thread::sleep(DEADLINE);
            let _ = kill_process(pid, Signal::INT);
        });
    }

    /// Stops it; its code and all that it said.
    fn stop(mut self) -> (i32, String) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::INT).unwrap();
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut self.stderr, &mut rest).unwrap();
        let code = self.child.wait().unwrap().code().unwrap();
        (code, self.said + &text(&rest))
    }
}

/// Runs the agent of this file with these lines as its commands and these flags; code, rows, and what was said.
fn run(place: &Place, output: &str, flags: &[&str], commands: &str) -> (i32, Vec<Row>, String) {
    place.file("agent.py", AGENT.as_bytes(), 0o644);
    place.file("server.py", SERVER.as_bytes(), 0o644);
    place.file("key", b"0123456789abcdef0123456789abcdef", 0o600);
    place.file("commands", commands.as_bytes(), 0o644);
    let fixed = [
        "run",
        "--user",
        "root",
        "--json",
        "--proxy-log",
        "log",
        "--key-file",
        "key",
        "-o",
        output,
    ];
    let agent = ["--", "python3", "agent.py", "pipes"];
    let proxy = [
        "proxy",
        "--log",
        "log",
        "--key-file",
        "key",
        "--",
        "python3",
        "server.py",
    ];
    let output = place
        .command(&[&fixed[..], flags, &agent[..]].concat())
        .arg(binary())
        .args(proxy)
        .stdin(std::fs::File::open(place.path("commands")).unwrap())
        .output()
        .unwrap();
    let rows = text(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    (output.status.code().unwrap(), rows, text(&output.stderr))
}

fn assert_doubt_but_no_accusation(code: i32, rows: &[Row], said: &str) {
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("the agent exited with code 0"), "{said}");
    assert!(said.contains("did not fit into the spool"), "{said}");
    let verdicts = verdicts(rows);
    let all: Vec<_> = verdicts.values().flatten().collect();
    for verdict in &all {
        assert!(
            ["matched", "undecided", "outside", "out_of_scope"].contains(&verdict.as_str()),
            "{verdicts:?}"
        );
    }
    assert!(
        all.iter().any(|verdict| *verdict == "matched"),
        "{verdicts:?}"
    );
    assert!(
        all.iter().any(|verdict| *verdict == "undecided"),
        "{verdicts:?}"
    );
    let loss = of(rows, "coverage").find(|row| row["name"] == "spool");
    let loss = loss.expect("the loss is in the evidence");
    assert_eq!(loss["weakens"], true);
    assert!(loss["lost_records"].as_u64().unwrap() > 0);
}

/// A few calls, then more bytes than there is room for, then a few calls.
fn commands() -> String {
    let big: String = (3..103)
        .flat_map(|number| ["big ".to_owned(), number.to_string(), "\n".to_owned()])
        .collect();
    format!("first 1\nfirst 2\n{big}last 103\n")
}

#[test]
fn a_disk_budget_that_is_too_small_costs_certainty_and_accuses_nobody() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let (code, rows, said) = run(&place, "out", &["--max-disk", "6MiB"], &commands());
    assert!(said.contains("raise --max-disk"), "{said}");
    assert_doubt_but_no_accusation(code, &rows, &said);
}

type Row = serde_json::Map<String, serde_json::Value>;

fn pair(place: &Place) -> Vec<Row> {
    let output = place
        .command(&[
            "pair",
            "out",
            "--proxy-log",
            "log",
            "--key-file",
            "key",
            "-o",
            "paired",
            "--json",
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    let rows = text(&output.stdout);
    rows.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn of<'a>(rows: &'a [Row], table: &'a str) -> impl Iterator<Item = &'a Row> {
    rows.iter()
        .filter(move |row| row.get("table").is_some_and(|name| name == table))
}

/// Verdicts by tool and id; those on gaps have neither.
fn verdicts(rows: &[Row]) -> BTreeMap<(String, String), Vec<String>> {
    let mut verdicts: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for row in of(rows, "verdicts") {
        let of = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        verdicts
            .entry((of("tool_name"), of("request_id")))
            .or_default()
            .push(of("verdict"));
    }
    verdicts
}

fn wait_for(path: &Path) {
    let deadline = Instant::now() + DEADLINE;
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} never came", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn assert_only_the_later_calls_are_judged(rows: &[Row]) {
    let verdicts = verdicts(rows);
    for ((tool, id), found) in &verdicts {
        let expected: &[&str] = match tool.as_str() {
            "before" => &["outside"],
            "after" => &["matched"],
            // Whatever is said of the call in between and of gaps, it is that it was not seen.
            _ => &["undecided", "outside"],
        };
        for verdict in found {
            assert!(
                expected.contains(&verdict.as_str()),
                "{tool} {id} is {verdict}: {verdicts:?}"
            );
        }
    }
    for (tool, id) in [
        ("before", 1),
        ("before", 2),
        ("after", 4),
        ("after", 5),
        ("after", 6),
    ] {
        assert_eq!(
            verdicts
                .get(&(tool.to_owned(), id.to_string()))
                .map(Vec::len),
            Some(1),
            "{tool} {id}: {verdicts:?}"
        );
    }
}

#[test]
fn what_a_session_does_after_the_attach_is_matched_and_nothing_before_is_accused() {
    for kind in ["pipes", "sockets"] {
        let Some(place) = Place::that_can_record() else {
            return;
        };
        let mut session = Session::start(&place, kind);
        session.call("before", 1);
        session.call("before", 2);
        session.ask("slow", 3);
        wait_for(&place.path("got"));
        let pid = session.agent.id().to_string();
        let recorder = Recorder::start(&place, &["--pid", &pid]);
        place.file("go", b"", 0o644);
        session.answer(3);
        for number in 4..=6 {
            session.call("after", number);
        }
        let (code, said) = recorder.stop();
        assert_eq!(code, 0, "{said}");
        session.end();
        let rows = pair(&place);
        assert_only_the_later_calls_are_judged(&rows);
        // The test itself holds the other ends of the agent's pipes.
        let me = u64::from(std::process::id());
        let peer = of(&rows, "processes").find(|row| row["pid"] == me);
        assert_eq!(peer.unwrap()["role"], "peer");
        let roles: Vec<_> = of(&rows, "processes")
            .map(|row| row["role"].clone())
            .collect();
        for role in ["agent", "proxy", "server"] {
            assert!(roles.iter().any(|found| found == role), "{roles:?}");
        }
        assert!(
            of(&rows, "channel_ends").any(|row| row["how"] == "scan"),
            "ends that were held before are there"
        );
    }
}

/// A control group that goes with the test.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Self> {
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .map(PathBuf::from)
            .into_iter()
            .find(|root| root.join("cgroup.procs").exists())?;
        let path = root.join(format!("countersign-test-{}", std::process::id()));
        std::fs::create_dir(&path).ok()?;
        Some(Self(path))
    }

    fn enter(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_control_group_is_recorded_and_who_joins_it_later_is_named_as_unseen_until_then() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let group = Group::new().expect("this test needs cgroups of version 2 that it may write to");
    let mut session = Session::start(&place, "pipes");
    session.call("before", 1);
    session.call("before", 2);
    // The group has the agent only; proxy and server stand outside it, and descend from it.
    group.enter(session.agent.id());
    let name = group.0.file_name().unwrap().to_str().unwrap();
    let mut recorder = Recorder::start(&place, &["--cgroup", name]);
    for number in 4..=6 {
        session.call("after", number);
    }
    let mut stranger = Command::new("sleep").arg("60").spawn().unwrap();
    group.enter(stranger.id());
    recorder.until("had no tag");
    let (code, said) = recorder.stop();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("1 processes ran for a while without being watched"),
        "{said}"
    );
    session.end();
    let rows = pair(&place);
    let verdicts = verdicts(&rows);
    for accused in ["bypassed", "unlogged", "altered", "forged", "unobserved"] {
        assert!(
            !verdicts
                .values()
                .flatten()
                .any(|verdict| verdict == accused),
            "{verdicts:?}"
        );
    }
    let missed = of(&rows, "coverage").find(|row| row["name"] == "tag_reconciled");
    assert_eq!(missed.unwrap()["weakens"], true);
}

#[test]
fn a_directory_that_a_recorded_user_can_write_to_is_refused() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let open = place.path("open");
    std::fs::create_dir(&open).unwrap();
    std::os::unix::fs::chown(&open, Some(NOBODY), None).unwrap();
    let mut agent = Command::new("sleep").arg("60").uid(NOBODY).spawn().unwrap();
    let output = place
        .command(&["record", "-o", "open/out", "--pid", &agent.id().to_string()])
        .output()
        .unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(73), "{said}");
    assert!(
        said.contains("the agent (uid 65534) can write to"),
        "{said}"
    );
    assert!(!open.join("out").exists());
}

#[test]
fn a_recording_of_processes_ends_with_the_last_of_them() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    place.file("key", b"k", 0o600);
    let mut agent = Command::new("sleep").arg("60").spawn().unwrap();
    let mut recorder = Recorder::start(&place, &["--pid", &agent.id().to_string()]);
    agent.kill().unwrap();
    agent.wait().unwrap();
    recorder.until("all recorded processes have ended");
    assert_eq!(recorder.child.wait().unwrap().code(), Some(0));
}
