//! Hostile writers and readers in figures, end to end: an agent and a server that change their memory while the kernel copies
//! it, under `countersign run`, against what they say was really transferred.
//!
//! `COUNTERSIGN_HOSTILE` sets the number of messages of all cases together.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
};

use serde_json::Value;

use crate::harness::witness;

/// Messages of all cases together where nothing else is asked for.
const MESSAGES: usize = 2200;

/// Of the cases in which only chance makes an attack come in time, how many messages of a hundred must be altered all in all.
const ALTERED_PERCENT_MIN: usize = 5;

/// Who tries what.
struct Case {
    channel: &'static str,
    /// What the agent does to its buffers, and the server to those that it reads into and those that it writes from.
    agent: &'static str,
    reads: &'static str,
    writes: &'static str,
    proxied: bool,
}

const CASES: [Case; 22] = [
    proxied("pipe", "stall", "none", "none"),
    proxied("pipe", "flip", "none", "none"),
    proxied("pipe", "full", "none", "none"),
    proxied("pipe", "drop", "none", "none"),
    proxied("socket", "stall", "none", "none"),
    proxied("socket", "flip", "none", "none"),
    proxied("socket", "full", "none", "none"),
    proxied("socket", "drop", "none", "none"),
    proxied("pipe", "none", "stall", "none"),
    proxied("pipe", "none", "rewrite", "none"),
    proxied("pipe", "none", "drop", "none"),
    proxied("pipe", "none", "none", "stall"),
    proxied("pipe", "none", "none", "flip"),
    proxied("pipe", "none", "none", "drop"),
    proxied("pipe", "stall", "stall", "stall"),
    private("socket", "stall", "none", "stall"),
    private("socket", "none", "stall", "none"),
    private("socket", "stall", "stall", "stall"),
    private("socket", "drop", "drop", "drop"),
    private("pipe", "stall", "none", "stall"),
    private("pipe", "stall", "stall", "stall"),
    private("pipe", "stall", "drop", "none"),
];

const fn proxied(
    channel: &'static str,
    agent: &'static str,
    reads: &'static str,
    writes: &'static str,
) -> Case {
    Case {
        channel,
        agent,
        reads,
        writes,
        proxied: true,
    }
}

const fn private(
    channel: &'static str,
    agent: &'static str,
    reads: &'static str,
    writes: &'static str,
) -> Case {
    Case {
        proxied: false,
        ..proxied(channel, agent, reads, writes)
    }
}

/// What came of a case.
#[derive(Default)]
struct Figures {
    calls: usize,
    /// Messages, calls and answers, that an attack was made on.
    attacked: usize,
    /// Of them those of which the memory showed something else than what was transferred.
    altered: usize,
    /// Rows of calls whose tool in the evidence is not the one that was transferred.
    wrong: usize,
    undecided: usize,
    /// Calls without the verdict that they must have, or with another one besides.
    misjudged: usize,
}

#[test]
fn hostile_memory_neither_enters_the_evidence_nor_buys_doubt() {
    if witness().is_none() {
        return;
    }
    let asked = std::env::var("COUNTERSIGN_HOSTILE");
    let messages = asked.map_or(MESSAGES, |text| text.parse().unwrap());
    let calls = messages.div_ceil(CASES.len());
    let mut table = String::from(
        "| way | channel | agent writes | server reads | server writes | calls | attacked | altered | wrong in evidence | undecided | misjudged |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let (mut attacked, mut altered, mut failed) = (0, 0, false);
    for case in &CASES {
        let figures = play(case, calls);
        let way = if case.proxied { "proxy" } else { "private" };
        let _infallible = writeln!(
            table,
            "| {way} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            case.channel,
            case.agent,
            case.reads,
            case.writes,
            figures.calls,
            figures.attacked,
            figures.altered,
            figures.wrong,
            figures.undecided,
            figures.misjudged
        );
        attacked += figures.attacked;
        altered += figures.altered;
        // Of a private pipe no copy is kept: what either end shows is an accusation, and nobody vouches for its words.
        let can_be_known = case.proxied || case.channel == "socket";
        failed |= figures.calls != calls || figures.undecided + figures.misjudged > 0;
        failed |= can_be_known && figures.wrong > 0;
    }
    // Not `eprintln!`: the test runner keeps what a passing test prints that way to itself.
    let _unheard = std::io::stderr().write_all(table.as_bytes());
    assert!(!failed, "\n{table}");
    assert!(
        altered * 100 >= attacked * ALTERED_PERCENT_MIN,
        "too few attacks came in time\n{table}"
    );
}

fn play(case: &Case, calls: usize) -> Figures {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let key = place.path().join("key");
    fs::write(&key, b"0123456789abcdef0123456789abcdef").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let hostile = Path::new(env!("CARGO_BIN_EXE_countersign-hostile"));
    let countersign = hostile.with_file_name("countersign");
    let log = ["--proxy-log", "log", "--key-file", "key"];
    let mut run = Command::new(&countersign);
    run.current_dir(place.path())
        .args(["run", "--user", "root", "--json", "--payload", "full"])
        .args(log)
        .args(["-o", "out", "--"])
        .arg(hostile)
        .args(["agent", case.channel, case.agent])
        .arg(calls.to_string())
        .args(["agent.truth", "--"]);
    if case.proxied {
        let proxy = ["proxy", "--log", "log", "--key-file", "key", "--"];
        run.arg(&countersign).args(proxy);
    }
    run.arg(hostile)
        .args(["server", case.reads, case.writes, "server.truth"]);
    let output = run.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the agent exited with code 0"), "{said}");
    let truth = ["agent.truth", "server.truth"]
        .map(|name| fs::read_to_string(place.path().join(name)).unwrap())
        .concat();
    figures(case, &Truth::new(&truth), &output.stdout)
}

/// What the programs wrote down, by way and number: the two words.
#[derive(Default)]
struct Truth {
    wrote: BTreeMap<(String, usize), [String; 2]>,
    read: BTreeMap<(String, usize), [String; 2]>,
}

impl Truth {
    fn new(text: &str) -> Self {
        let mut truth = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [what, way, number, first, second] = words[..] else {
                panic!("{line}");
            };
            let list = match what {
                "wrote" => &mut truth.wrote,
                _ => &mut truth.read,
            };
            let key = (way.to_owned(), number.parse().unwrap());
            list.insert(key, [first, second].map(str::to_owned));
        }
        truth
    }

    /// What was transferred.
    fn word(&self, way: &str, number: usize) -> &str {
        &self.read[&(way.to_owned(), number)][0]
    }
}

fn figures(case: &Case, truth: &Truth, printed: &[u8]) -> Figures {
    let mut figures = Figures::default();
    for ((way, number), memory) in &truth.wrote {
        let attack = if way == "request" {
            case.agent
        } else {
            case.writes
        };
        let transferred = truth.word(way, *number);
        figures.attacked += usize::from(attack != "none");
        figures.altered += usize::from(memory.iter().any(|word| word != transferred));
    }
    for ((way, _), [came, shown]) in &truth.read {
        figures.attacked += usize::from(way == "request" && case.reads != "none");
        figures.altered += usize::from(came != shown);
    }
    let wanted = if case.proxied { "matched" } else { "bypassed" };
    let mut judged = BTreeSet::new();
    let printed = String::from_utf8_lossy(printed);
    for line in printed.lines() {
        let Ok(row) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let number = |name: &str| -> Option<usize> {
            let text = row.get(name)?.as_str()?;
            text.trim_matches('"').parse().ok()
        };
        match row["table"].as_str() {
            Some("calls") => {
                let Some(number) = number("jsonrpc_id") else {
                    continue;
                };
                // Results are not printed; of calls through the proxy, whose log has them, `matched` compares them.
                let right = row["tool_name"] == truth.word("request", number);
                figures.wrong += usize::from(!right);
            }
            // A verdict on a gap is none on a call.
            Some("verdicts") if row["subject"] != "gap" => {
                figures.undecided += usize::from(row["verdict"] == "undecided");
                let Some(number) = number("request_id") else {
                    continue;
                };
                let first = judged.insert(number);
                // On a private pipe both ends accuse where they differ.
                let one_too_many = !first && case.proxied;
                figures.misjudged += usize::from(row["verdict"] != wanted || one_too_many);
            }
            _ => {}
        }
    }
    figures.calls = judged.len();
    figures
}
