//! What the hostile programs say was transferred, and what the evidence makes of it, byte by byte.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::Path,
};

use countersign_tests::hostile::{Line, Shape, Way};
use sha2::{Digest as _, Sha256};

use super::{
    Case,
    parquet::{Row, Table},
};

/// What came of a case.
#[derive(Default)]
pub(super) struct Figures {
    pub(super) calls: usize,
    /// Messages that an attack was made on: calls and answers, once for each end at which there was one.
    pub(super) attacked: usize,
    /// Of them those of which the program's memory showed something else than what was transferred, before or after the system call.
    pub(super) altered: usize,
    /// Of them those of which the capture itself took something else at that end, or nothing.
    pub(super) deceived: usize,
    /// Messages in the evidence, in rows of calls and of frames, that are not what was transferred.
    pub(super) wrong: usize,
    /// Bytes of them that are not.
    pub(super) wrong_bytes: usize,
    /// Rows of calls without parameters or, though answered, without result.
    pub(super) missing: usize,
    pub(super) undecided: usize,
    /// Calls without the verdict that they must have, or with another one besides.
    pub(super) misjudged: usize,
}

/// What the programs wrote down, by way and number: the two words.
#[derive(Default)]
pub(super) struct Truth {
    wrote: BTreeMap<(Way, usize), [String; 2]>,
    read: BTreeMap<(Way, usize), [String; 2]>,
    shapes: BTreeMap<Way, Shape>,
}

const WAYS: [Way; 2] = [Way::Request, Way::Answer];

impl Truth {
    pub(super) fn new(text: &str, shapes: [Shape; 2]) -> Self {
        let mut truth = Self {
            shapes: WAYS.into_iter().zip(shapes).collect(),
            ..Self::default()
        };
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [what, way, number, first, second] = words[..] else {
                panic!("{line}");
            };
            let list = match what {
                "wrote" => &mut truth.wrote,
                _ => &mut truth.read,
            };
            let way = WAYS.into_iter().find(|known| known.name() == way).unwrap();
            let key = (way, number.parse().unwrap());
            list.insert(key, [first, second].map(str::to_owned));
        }
        truth
    }

    /// What was transferred: what came to its reader.
    fn word(&self, way: Way, number: usize) -> Option<&[u8]> {
        let [came, _shown] = self.read.get(&(way, number))?;
        Some(came.as_bytes())
    }

    fn line(&self, way: Way, number: usize) -> Line {
        Line::new(way, number, self.shapes[&way])
    }

    /// The message that was transferred, without the line's end.
    fn message(&self, way: Way, number: usize) -> Option<Vec<u8>> {
        let mut bytes = self.line(way, number).bytes(self.word(way, number)?);
        bytes.pop();
        Some(bytes)
    }
}

/// Holds a case's evidence against the truth.
pub(super) fn figures(case: &Case, truth: &Truth, out: &Path) -> Figures {
    let mut figures = Figures::default();
    for way in WAYS {
        for (memory, attack) in [
            (&truth.wrote, case.writers_attack(way)),
            (&truth.read, case.readers_attack(way)),
        ] {
            let of_way = memory.iter().filter(|((of, _), _)| *of == way);
            for ((_, number), words) in of_way.filter(|_| attack != "none") {
                let transferred = truth.word(way, *number).unwrap_or_default();
                let differs = words.iter().any(|word| word.as_bytes() != transferred);
                figures.attacked += 1;
                figures.altered += usize::from(differs);
            }
        }
    }
    let frames = Table::read(out, "frames");
    let findings = Table::read(out, "findings");
    let deceived = |way| {
        deceived(case, truth, &frames, way, "writer")
            + deceived(case, truth, &frames, way, "reader")
    };
    figures.deceived = WAYS.into_iter().map(deceived).sum();
    if case.has_kernels_copy() {
        let denied = |row: &Row<'_>| row.text("kind") == Some("evidence_denied");
        let denied = findings.rows().filter(denied);
        figures.deceived += denied.map(|row| row.count("count")).sum::<usize>();
    }
    for row in frames.rows() {
        if let Some(payload) = row.bytes("payload") {
            figures.frame(truth, payload);
        }
    }
    for row in Table::read(out, "calls").rows() {
        figures.call(truth, &row);
    }
    figures.verdicts(case, &Table::read(out, "verdicts"));
    figures
}

/// Messages that an attack was made on at an end and of which the capture did not take there what was transferred: no frame of
/// that end has its hash.
fn deceived(case: &Case, truth: &Truth, frames: &Table, way: Way, end: &str) -> usize {
    let attack = match end {
        "writer" => case.writers_attack(way),
        _ => case.readers_attack(way),
    };
    // There the frame has the kernel's bytes; what the memory had is told by a finding.
    let told_otherwise = end == "reader" && case.has_kernels_copy();
    if attack == "none" || told_otherwise {
        return 0;
    }
    let hop = match (case.proxied, way, end) {
        (false, Way::Request, _) => "direct_request",
        (false, Way::Answer, _) => "direct_response",
        (true, Way::Request, "writer") => "client_to_proxy",
        (true, Way::Request, _) => "proxy_to_server",
        (true, Way::Answer, "writer") => "server_to_proxy",
        (true, Way::Answer, _) => "proxy_to_client",
    };
    let shown: HashSet<&str> = frames
        .rows()
        .filter(|row| row.text("hop") == Some(hop) && row.text("end") == Some(end))
        .filter_map(|row| row.text("payload_hash"))
        .collect();
    let of_way = truth.read.keys().filter(|(of, _)| *of == way);
    let messages = of_way.filter_map(|(_, number)| truth.message(way, *number));
    let hash = |message: Vec<u8>| {
        let digest = Sha256::digest(message);
        digest
            .iter()
            .fold(String::new(), |hash, byte| format!("{hash}{byte:02x}"))
    };
    messages
        .filter(|message| !shown.contains(hash(message.clone()).as_str()))
        .count()
}

impl Figures {
    /// A frame whose bytes stand in the evidence.
    fn frame(&mut self, truth: &Truth, payload: &[u8]) {
        let numbers = truth.read.keys().map(|(_, number)| *number);
        let last = numbers.max().unwrap_or(0);
        let said = payload
            .strip_prefix(br#"{"jsonrpc":"2.0","id":""#)
            .and_then(|rest| rest.get(..7))
            .and_then(|digits| str::from_utf8(digits).ok()?.parse::<usize>().ok())
            .filter(|number| *number <= last);
        let expected = said.and_then(|number| {
            let is_request = payload
                .get(30..)
                .is_some_and(|rest| rest.starts_with(b"\",\"method"));
            let way = if is_request {
                Way::Request
            } else {
                Way::Answer
            };
            truth.message(way, number)
        });
        self.compare(&expected.unwrap_or_default(), payload);
    }

    fn call(&mut self, truth: &Truth, row: &Row<'_>) {
        let Some(number) = number(row, "jsonrpc_id") else {
            self.wrong += 1;
            return;
        };
        for (way, column) in [(Way::Request, "params"), (Way::Answer, "result")] {
            let word = truth.word(way, number).unwrap_or_default();
            match row.text(column) {
                Some(text) => self.compare(&truth.line(way, number).body(word), text.as_bytes()),
                None => self.missing += 1,
            }
        }
        if let Some(tool) = row.text("tool_name") {
            let word = truth.word(Way::Request, number).unwrap_or_default();
            self.compare(word, tool.as_bytes());
        }
    }

    fn compare(&mut self, transferred: &[u8], stored: &[u8]) {
        if transferred != stored {
            let differing = transferred
                .iter()
                .zip(stored)
                .filter(|(one, other)| one != other);
            self.wrong += 1;
            self.wrong_bytes += differing.count() + transferred.len().abs_diff(stored.len());
        }
    }

    fn verdicts(&mut self, case: &Case, verdicts: &Table) {
        let wanted = if case.proxied { "matched" } else { "bypassed" };
        let mut judged = BTreeSet::new();
        // A verdict on a gap is none on a call.
        for row in verdicts
            .rows()
            .filter(|row| row.text("subject") != Some("gap"))
        {
            let verdict = row.text("verdict");
            self.undecided += usize::from(verdict == Some("undecided"));
            let Some(number) = number(&row, "request_id") else {
                continue;
            };
            let first = judged.insert(number);
            // On a private pipe both ends accuse where they differ.
            let one_too_many = !first && !case.is_unverifiable();
            self.misjudged += usize::from(verdict != Some(wanted) || one_too_many);
        }
        self.calls = judged.len();
    }
}

fn number(row: &Row<'_>, column: &str) -> Option<usize> {
    row.text(column)?.trim_matches('"').parse().ok()
}
