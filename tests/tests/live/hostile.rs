//! Hostile writers and readers in figures, end to end: an agent and a server that change their memory while the kernel copies
//! it, under `countersign run`, against what they say was really transferred.
//!
//! `COUNTERSIGN_HOSTILE` sets the number of messages under attack of all cases together; `COUNTERSIGN_HOSTILE_ONLY` the cases whose names
//! begin with it; `COUNTERSIGN_HOSTILE_KEEP` keeps the recordings of those that fail.

mod parquet;
mod truth;

use std::{
    env, fmt::Write as _, fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path,
    process::Command,
};

use countersign_tests::hostile::{Shape, Way};
use truth::{Figures, Truth};

use crate::harness::witness;

/// Messages under attack of all cases together where nothing else is asked for.
const MESSAGES: usize = 3000;

/// Of how many messages of a hundred the capture must have been shown something else than was transferred, at least.
const DECEIVED_PERCENT_MIN: usize = 5;

/// Padding with which a message on a socket still lies beside its buffer's head.
const COPIED_BYTES: usize = 2500;

/// Who tries what on its memory.
struct Case {
    proxied: bool,
    channel: &'static str,
    /// The agent, with what it writes and what it reads.
    agent: [&'static str; 2],
    /// The server, with what it reads and what it writes.
    server: [&'static str; 2],
}

const CASES: [Case; 32] = [
    proxied("pipe", ["stall", "none"], ["none", "none"]),
    proxied("pipe", ["flip", "none"], ["none", "none"]),
    proxied("pipe", ["full", "none"], ["none", "none"]),
    proxied("pipe", ["drop", "none"], ["none", "none"]),
    proxied("socket", ["stall", "none"], ["none", "none"]),
    proxied("socket", ["flip", "none"], ["none", "none"]),
    proxied("socket", ["full", "none"], ["none", "none"]),
    proxied("socket", ["drop", "none"], ["none", "none"]),
    proxied("pipe", ["none", "none"], ["stall", "none"]),
    proxied("pipe", ["none", "none"], ["rewrite", "none"]),
    proxied("pipe", ["none", "none"], ["drop", "none"]),
    proxied("pipe", ["none", "none"], ["unmap", "none"]),
    proxied("pipe", ["none", "none"], ["none", "stall"]),
    proxied("pipe", ["none", "none"], ["none", "flip"]),
    proxied("pipe", ["none", "none"], ["none", "full"]),
    proxied("pipe", ["none", "none"], ["none", "drop"]),
    proxied("pipe", ["none", "rewrite"], ["none", "none"]),
    proxied("pipe", ["none", "unmap"], ["none", "none"]),
    proxied("pipe", ["stall", "stall"], ["stall", "stall"]),
    private("socket", ["stall", "none"], ["none", "stall"]),
    private("socket", ["full", "none"], ["none", "flip"]),
    private("socket", ["none", "none"], ["stall", "none"]),
    private("socket", ["none", "none"], ["rewrite", "none"]),
    private("socket", ["none", "none"], ["unmap", "none"]),
    private("socket", ["none", "rewrite"], ["none", "none"]),
    private("socket", ["stall", "stall"], ["stall", "stall"]),
    private("socket", ["drop", "none"], ["none", "drop"]),
    private("socket", ["none", "drop"], ["drop", "none"]),
    private("pipe", ["stall", "none"], ["none", "stall"]),
    private("pipe", ["none", "none"], ["rewrite", "none"]),
    private("pipe", ["stall", "stall"], ["stall", "stall"]),
    private("pipe", ["stall", "none"], ["drop", "none"]),
];

const fn proxied(
    channel: &'static str,
    agent: [&'static str; 2],
    server: [&'static str; 2],
) -> Case {
    Case {
        proxied: true,
        channel,
        agent,
        server,
    }
}

const fn private(
    channel: &'static str,
    agent: [&'static str; 2],
    server: [&'static str; 2],
) -> Case {
    Case {
        proxied: false,
        ..proxied(channel, agent, server)
    }
}

impl Case {
    fn name(&self) -> String {
        let way = if self.proxied { "proxy" } else { "private" };
        let ([writes, reads], [server_reads, server_writes]) = (self.agent, self.server);
        format!(
            "{way} | {} | {writes} | {server_reads} | {server_writes} | {reads}",
            self.channel
        )
    }

    fn writers_attack(&self, way: Way) -> &'static str {
        match way {
            Way::Request => self.agent[0],
            Way::Answer => self.server[1],
        }
    }

    fn readers_attack(&self, way: Way) -> &'static str {
        match way {
            Way::Request => self.server[0],
            Way::Answer => self.agent[1],
        }
    }

    /// Ends under attack: as many messages a call.
    fn attacks(&self) -> usize {
        let all = [self.agent, self.server];
        all.as_flattened()
            .iter()
            .filter(|attack| **attack != "none")
            .count()
    }

    /// What the agent's and the server's other end takes is the kernel's own copy.
    fn has_kernels_copy(&self) -> bool {
        !self.proxied && self.channel == "socket"
    }

    /// Of a private pipe no copy is kept, of a private socket only of what fits beside a buffer's head: what either end shows is an
    /// accusation, and nobody vouches for its words.
    fn is_unverifiable(&self) -> bool {
        let is_long = |way| self.shape(way).before + self.shape(way).after > COPIED_BYTES;
        !self.proxied && (self.channel == "pipe" || is_long(Way::Request) || is_long(Way::Answer))
    }

    /// Where the channel is to be full, the word lies in the middle of more than it holds. Where a thread must come between the
    /// word's copy and the return of the system call, much is copied behind the word.
    fn shape(&self, way: Way) -> Shape {
        let (before, after) = match (self.writers_attack(way), self.readers_attack(way)) {
            // Of a copy that is stalled, all that is left is in one page.
            ("stall", _) | (_, "stall" | "drop" | "unmap") => (0, 400),
            ("full", _) => (9000, 9000),
            (_, "rewrite") | ("drop", _) if self.has_kernels_copy() => (0, COPIED_BYTES),
            (_, "rewrite") | ("drop", _) => (0, 30_000),
            _ => (0, 400),
        };
        Shape { before, after }
    }
}

#[test]
fn hostile_memory_neither_enters_the_evidence_nor_buys_doubt() {
    if witness().is_none() {
        return;
    }
    let asked = env::var("COUNTERSIGN_HOSTILE");
    let messages: usize = asked.map_or(MESSAGES, |text| text.parse().unwrap());
    let only = env::var("COUNTERSIGN_HOSTILE_ONLY").unwrap_or_default();
    let of_one = messages.div_ceil(CASES.len());
    say(
        "| way | channel | agent writes | server reads | server writes | agent reads | calls | attacked | altered | deceived | wrong | wrong bytes | missing | undecided | misjudged |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let (mut attacked, mut deceived, mut failed) = (0, 0, String::new());
    for case in &CASES {
        let name = case.name();
        if !name.replace(" |", "").starts_with(&only) {
            continue;
        }
        let calls = of_one.div_ceil(case.attacks());
        let figures = play(case, calls);
        let mut row = format!("| {name}");
        for number in [
            figures.calls,
            figures.attacked,
            figures.altered,
            figures.deceived,
            figures.wrong,
            figures.wrong_bytes,
            figures.missing,
            figures.undecided,
            figures.misjudged,
        ] {
            let _infallible = write!(row, " | {number}");
        }
        row.push_str(" |\n");
        say(&row);
        attacked += figures.attacked;
        deceived += figures.deceived;
        if is_bad(case, &figures, calls) {
            failed.push_str(&row);
        }
    }
    say(&format!("{attacked} attacked, {deceived} deceived\n"));
    assert!(failed.is_empty(), "\n{failed}");
    assert!(
        deceived * 100 >= attacked * DECEIVED_PERCENT_MIN,
        "too few attacks came in time: {deceived} of {attacked}"
    );
}

fn is_bad(case: &Case, figures: &Figures, calls: usize) -> bool {
    let untrue = figures.wrong + figures.missing > 0 && !case.is_unverifiable();
    untrue || figures.calls != calls || figures.undecided + figures.misjudged > 0
}

/// Not `eprintln!`: the test runner keeps what a passing test prints that way to itself.
fn say(text: &str) {
    let _unheard = std::io::stderr().write_all(text.as_bytes());
}

fn play(case: &Case, calls: usize) -> Figures {
    let mut place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let key = place.path().join("key");
    fs::write(&key, b"0123456789abcdef0123456789abcdef").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let hostile = Path::new(env!("CARGO_BIN_EXE_countersign-hostile"));
    let countersign = hostile.with_file_name("countersign");
    let shapes = [Way::Request, Way::Answer].map(|way| case.shape(way));
    let shapes_text = shapes
        .map(|shape| format!("{},{}", shape.before, shape.after))
        .join(",");
    let mut run = Command::new(&countersign);
    run.current_dir(place.path())
        .args(["run", "--user", "root", "--payload", "full"])
        .args(["--proxy-log", "log", "--key-file", "key"]);
    if let Ok(tier) = env::var("COUNTERSIGN_TIER") {
        run.args(["--tier", &tier]);
    }
    run.args(["-o", "out", "--"])
        .arg(hostile)
        .args(["agent", case.channel])
        .args(case.agent)
        .args([&calls.to_string(), &shapes_text, "agent.truth", "--"]);
    if case.proxied {
        let proxy = ["proxy", "--log", "log", "--key-file", "key", "--"];
        run.arg(&countersign).args(proxy);
    }
    run.arg(hostile)
        .arg("server")
        .args(case.server)
        .args([&shapes_text, "server.truth"]);
    let output = run.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("the agent exited with code 0"),
        "{name}: {said}",
        name = case.name()
    );
    let truth = ["agent.truth", "server.truth"]
        .map(|name| fs::read_to_string(place.path().join(name)).unwrap())
        .concat();
    let truth = Truth::new(&truth, shapes);
    let figures = truth::figures(case, &truth, &place.path().join("out"));
    if is_bad(case, &figures, calls) && env::var_os("COUNTERSIGN_HOSTILE_KEEP").is_some() {
        place.disable_cleanup(true);
        say(&format!("kept: {}\n{said}\n", place.path().display()));
    }
    figures
}
