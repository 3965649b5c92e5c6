//! An agent that calls tools through `countersign proxy`, a recorder of it, and what an auditor reads afterwards.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::place::{Place, binary, text};

/// Longest wait for something that must come.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// Reads `name id` from its input and makes a call of it, through a proxy that it has started with pipes or sockets.
pub(super) const AGENT: &str = r#"
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
    if name in ("big", "huge"):
        call["params"]["arguments"] = "x" * (60000 if name == "big" else 300000)
    to.write(json.dumps(call).encode() + b"\n")
    to.flush()
    print(back.readline().decode().strip(), flush=True)
"#;

/// Answers each call; the one named `slow` only once a file named `go` is there.
pub(super) const SERVER: &str = r#"
import json, os, sys, time
for line in sys.stdin:
    call = json.loads(line)
    if call["params"]["name"] == "slow":
        open("got", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.005)
    print(json.dumps({"jsonrpc": "2.0", "id": call["id"], "result": {"n": call["id"]}}), flush=True)
"#;

/// Arguments of this program that make it the agent's proxy.
const PROXY: [&str; 8] = [
    "proxy",
    "--log",
    "log",
    "--key-file",
    "key",
    "--",
    "python3",
    "server.py",
];

/// Puts the programs and the key of a session in place.
fn prepare(place: &Place) {
    place.file("agent.py", AGENT.as_bytes(), 0o644);
    place.file("server.py", SERVER.as_bytes(), 0o644);
    place.file("key", b"0123456789abcdef0123456789abcdef", 0o600);
}

pub(super) struct Session {
    pub(super) agent: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Session {
    /// Puts everything in place for an agent that reads its commands from a file.
    pub(super) fn files(place: &Place, commands: &str) {
        prepare(place);
        place.file("commands", commands.as_bytes(), 0o644);
    }

    /// The agent's command line.
    pub(super) fn agent(kind: &str) -> Vec<&std::ffi::OsStr> {
        ["python3", "agent.py", kind]
            .into_iter()
            .map(std::ffi::OsStr::new)
            .chain([binary().as_os_str()])
            .chain(PROXY.map(std::ffi::OsStr::new))
            .collect()
    }

    pub(super) fn start(place: &Place, kind: &str) -> Self {
        let mut agent = Command::new("env");
        agent.current_dir(place.path("."));
        Self::within(place, agent, kind)
    }

    /// Starts the agent by another program, which executes or starts what follows its own arguments.
    pub(super) fn within(place: &Place, mut starter: Command, kind: &str) -> Self {
        prepare(place);
        let mut agent = starter
            .args(Self::agent(kind))
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

    pub(super) fn ask(&mut self, name: &str, number: u32) {
        let commands = self.commands.as_mut().unwrap();
        writeln!(commands, "{name} {number}").unwrap();
    }

    pub(super) fn answer(&mut self, number: u32) {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert!(
            line.contains(&format!("\"result\": {{\"n\": {number}}}")),
            "{line}"
        );
    }

    pub(super) fn call(&mut self, name: &str, number: u32) {
        self.ask(name, number);
        self.answer(number);
    }

    /// Closes the agent's input, at which it ends.
    pub(super) fn hang_up(&mut self) {
        self.commands = None;
    }

    pub(super) fn end(mut self) {
        self.hang_up();
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

pub(super) struct Recorder {
    pub(super) child: Child,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Recorder {
    pub(super) fn start(place: &Place, targets: &[&str]) -> Self {
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
    pub(super) fn until(&mut self, needle: &str) {
        while !self.said.contains(needle) {
            let got = self.stderr.read_line(&mut self.said).unwrap();
            assert!(got > 0, "it ended: {}", self.said);
        }
    }

    /// Ends it where a test would wait for ever: the wait for its words then fails.
    pub(super) fn watched(child: &Child) {
        let pid = Pid::from_child(child);
        std::thread::spawn(move || {
            std::thread::sleep(DEADLINE);
            let _ = kill_process(pid, Signal::INT);
        });
    }

    /// Stops it; its code and all that it said.
    pub(super) fn stop(mut self) -> (i32, String) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::INT).unwrap();
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut self.stderr, &mut rest).unwrap();
        let code = self.child.wait().unwrap().code().unwrap();
        (code, self.said + &text(&rest))
    }
}
/// Runs the agent of this file with these lines as its commands and these flags; code, rows, and what was said.
pub(super) fn run(
    place: &Place,
    output: &str,
    flags: &[&str],
    commands: &str,
) -> (i32, Vec<Row>, String) {
    Session::files(place, commands);
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
    let output = place
        .command(&[&fixed[..], flags, &["--"]].concat())
        .args(Session::agent("pipes"))
        .stdin(std::fs::File::open(place.path("commands")).unwrap())
        .output()
        .unwrap();
    let rows = rows_of(&output.stdout);
    (output.status.code().unwrap(), rows, text(&output.stderr))
}
pub(super) type Row = serde_json::Map<String, serde_json::Value>;

/// Pairs what lies in `out`, of which something was not seen.
pub(super) fn pair(place: &Place) -> Vec<Row> {
    let flags = ["--proxy-log", "log", "--key-file", "key"];
    let (code, rows, said) = pair_with(place, &flags, "paired");
    assert_eq!(code, 2, "{said}");
    rows
}

/// Pairs what lies in `out` with these flags; code, rows, and what was said.
pub(super) fn pair_with(place: &Place, flags: &[&str], output: &str) -> (i32, Vec<Row>, String) {
    let fixed = ["pair", "out", "--json", "-o", output];
    let output = place
        .command(&[&fixed[..], flags].concat())
        .output()
        .unwrap();
    let rows = rows_of(&output.stdout);
    (output.status.code().unwrap(), rows, text(&output.stderr))
}

/// The rows among what was printed; an agent prints there too.
pub(super) fn rows_of(printed: &[u8]) -> Vec<Row> {
    text(printed)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

pub(super) fn of<'a>(rows: &'a [Row], table: &'a str) -> impl Iterator<Item = &'a Row> {
    rows.iter()
        .filter(move |row| row.get("table").is_some_and(|name| name == table))
}

/// Verdicts by tool and id; those on gaps have neither.
pub(super) fn verdicts(rows: &[Row]) -> BTreeMap<(String, String), Vec<String>> {
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

pub(super) fn wait_for(path: &Path) {
    let deadline = Instant::now() + DEADLINE;
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} never came", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Nobody is accused: everything is seen to be right, or said not to have been seen.
#[track_caller]
pub(super) fn assert_no_accusation(rows: &[Row]) {
    let verdicts = verdicts(rows);
    for verdict in verdicts.values().flatten() {
        assert!(
            ["matched", "undecided", "outside", "out_of_scope"].contains(&verdict.as_str()),
            "{verdicts:?}"
        );
    }
}

/// The verdicts on one call.
#[track_caller]
pub(super) fn verdict_of(rows: &[Row], tool: &str, id: u32) -> String {
    verdicts(rows)
        .get(&(tool.to_owned(), id.to_string()))
        .map(|found| found.join(" "))
        .unwrap_or_default()
}
