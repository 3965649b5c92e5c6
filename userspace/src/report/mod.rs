//! What is said at the end of a run: counts, every verdict that is not plain, and what could not be seen.
//!
//! Owns the selection and the judgement behind the exit code; [`text`](Summary::text) and [`json`](Summary::json) only
//! render it. It sees rows as they go to the sinks and keeps little of each, so that its memory does not grow with the
//! capture. Payloads never enter it.

pub mod escape;
mod json;
mod text;

use std::collections::BTreeMap;
use std::path::Path;

use countersign_core::row::ids::{CaptureId, ProcessId};
use countersign_core::row::{CoverageRow, FindingRow, ProcessRow, Row, UtcNs, VerdictRow};

use crate::sink::WrittenFile;

/// Verdicts in the order in which they are listed, worst first.
const VERDICTS: &[&str] = &[
    "bypassed",
    "forged",
    "altered",
    "replayed",
    "unlogged",
    "undecided",
    "unobserved",
    "pending",
    "blocked",
    "allowed",
    "matched",
    "out_of_scope",
    "outside",
];

/// Verdicts that are findings by themselves.
const BAD: &[&str] = &["bypassed", "forged", "altered", "replayed", "unlogged"];

/// Verdicts that say that something could not be seen or settled.
const OPEN: &[&str] = &["undecided", "unobserved", "pending"];

/// Verdicts that are counted and not listed one by one.
const COUNTED_ONLY: &[&str] = &["matched", "out_of_scope", "outside"];

/// Severities, worst first.
const SEVERITIES: &[&str] = &["critical", "high", "medium", "low", "info"];

/// Severities that make a run end with findings.
const GRAVE: &[&str] = &["critical", "high", "medium"];

/// Rows kept of each verdict, and findings of each severity. Stops an agent that earns a million of one kind from taking
/// memory, or from pushing the others off the screen.
const LISTED_MAX: usize = 200;

/// Kinds of loss that are told apart.
const LOSSES_MAX: usize = 200;

/// Processes whose names are kept: stops a fork bomb from taking memory. The others are shown by their id.
const PROCESSES_MAX: usize = 16 * 1024;

/// Characters kept of a text from outside.
const TEXT_MAX_CHARS: usize = 240;

/// Where the evidence lies, for the last lines of a report.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The capture.
    pub capture: CaptureId,
    /// The output directory.
    pub out: &'a Path,
    /// The files in it.
    pub files: &'a [WrittenFile],
}

/// A capture in brief.
#[derive(Debug, Default)]
pub struct Summary {
    verdicts: BTreeMap<usize, Listed<VerdictLine>>,
    findings: BTreeMap<usize, Listed<FindingLine>>,
    losses: BTreeMap<LossKind, Loss>,
    /// Losses of kinds beyond [`LOSSES_MAX`].
    other_losses: u64,
    processes: BTreeMap<ProcessId, Process>,
    watched: Option<(UtcNs, UtcNs)>,
    /// Verdicts on entries whose signatures could not be checked for want of a key.
    unchecked_signatures: u64,
}

impl Summary {
    /// A summary of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes note of a row. Order does not matter but for what is listed when there is too much.
    pub fn observe(&mut self, row: &Row) {
        match row {
            Row::Verdict(row) => self.observe_verdict(row),
            Row::Finding(row) => self.observe_finding(row),
            Row::Coverage(row) => self.observe_coverage(row),
            Row::Process(row) => self.observe_process(row),
            Row::Call(_)
            | Row::Entry(_)
            | Row::Sighting(_)
            | Row::Frame(_)
            | Row::Channel(_)
            | Row::ChannelEnd(_) => {}
        }
    }

    /// A bad verdict, or a finding of severity `medium` or worse.
    pub fn has_findings(&self) -> bool {
        BAD.iter().any(|verdict| self.count(verdict) > 0)
            || GRAVE.iter().any(|severity| {
                rank(SEVERITIES, severity).is_some_and(|rank| self.findings.contains_key(&rank))
            })
    }

    /// A verdict that stays open, or a row of coverage that weakens the evidence.
    pub fn could_not_see(&self) -> bool {
        OPEN.iter().any(|verdict| self.count(verdict) > 0)
            || !self.losses.is_empty()
            || self.other_losses > 0
            || self.watched.is_none()
    }

    /// How many verdicts of that name there are.
    pub fn count(&self, verdict: &str) -> u64 {
        rank(VERDICTS, verdict)
            .and_then(|rank| self.verdicts.get(&rank))
            .map_or(0, |listed| listed.count)
    }

    /// The report for a terminal: at most 100 columns, nothing in it can steer the terminal.
    pub fn text(&self, evidence: Evidence<'_>) -> String {
        text::render(self, evidence)
    }

    /// The report as one JSON document and a line end.
    pub fn json(&self, evidence: Evidence<'_>) -> String {
        json::render(self, evidence)
    }

    fn observe_verdict(&mut self, row: &VerdictRow) {
        self.unchecked_signatures += u64::from(row.signature == Some("no_key"));
        // A word that this list does not know is a defect of ours; it counts as the most dangerous rather than as none.
        let rank = rank(VERDICTS, row.verdict).unwrap_or(0);
        let listed = self.verdicts.entry(rank).or_default();
        if COUNTED_ONLY.contains(&row.verdict) {
            listed.count += 1;
        } else {
            listed.push(|| VerdictLine::new(row));
        }
    }

    fn observe_finding(&mut self, row: &FindingRow) {
        let rank = rank(SEVERITIES, row.severity).unwrap_or(0);
        let listed = self.findings.entry(rank).or_default();
        // The verdict has its own line.
        if row.verdict_id.is_some() {
            listed.count += 1;
        } else {
            listed.push(|| FindingLine {
                kind: row.kind,
                message: kept(&row.message),
                weakens: row.weakens.as_deref().map(kept),
                times: row.count,
            });
        }
    }

    fn observe_coverage(&mut self, row: &CoverageRow) {
        if row.kind == "capture" {
            let (from, to) = self.watched.unwrap_or((row.from_utc, row.to_utc));
            self.watched = Some((from.min(row.from_utc), to.max(row.to_utc)));
        }
        if !row.weakens {
            return;
        }
        let kind = LossKind {
            kind: row.kind,
            reason: row.reason,
            name: row.name.as_deref().map(kept),
        };
        if self.losses.len() >= LOSSES_MAX && !self.losses.contains_key(&kind) {
            self.other_losses += 1;
            return;
        }
        let loss = self.losses.entry(kind).or_default();
        loss.rows += 1;
        loss.bytes = loss.bytes.saturating_add(row.lost_bytes.unwrap_or(0));
        loss.records = loss.records.saturating_add(row.lost_records.unwrap_or(0));
        loss.missed_runs = loss.missed_runs.saturating_add(row.miss_count.unwrap_or(0));
        if loss.detail.is_none() {
            loss.detail = row.detail.as_deref().map(kept);
        }
    }

    fn observe_process(&mut self, row: &ProcessRow) {
        if self.processes.len() >= PROCESSES_MAX && !self.processes.contains_key(&row.process_id) {
            return;
        }
        let path = row.exe_path.as_deref().unwrap_or("?");
        let name = kept(path.rsplit('/').next().unwrap_or(path));
        let process = Process {
            name,
            pid: row.pid,
            exec_seq: row.exec_seq,
        };
        let known = self
            .processes
            .entry(row.process_id)
            .or_insert_with(|| process.clone());
        if known.exec_seq <= process.exec_seq {
            *known = process;
        }
    }

    /// Who stands behind a verdict: the process, its pid first because the name is its own choice and may have to be cut,
    /// else the proxy whose log it concerns.
    fn who(&self, line: &VerdictLine) -> Option<String> {
        match line.process_id {
            Some(id) => Some(match self.processes.get(&id) {
                Some(process) => format!("{} {}", process.pid, process.name),
                None => id.to_string(),
            }),
            None => line
                .proxy_name
                .as_ref()
                .map(|name| format!("log of {name}")),
        }
    }
}

/// Some of what was counted.
#[derive(Debug)]
struct Listed<T> {
    count: u64,
    lines: Vec<T>,
    /// Lines that would have been listed, had there been room.
    omitted: u64,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self {
            count: 0,
            lines: Vec::new(),
            omitted: 0,
        }
    }
}

impl<T> Listed<T> {
    fn push(&mut self, line: impl FnOnce() -> T) {
        self.count += 1;
        if self.lines.len() < LISTED_MAX {
            self.lines.push(line());
        } else {
            self.omitted += 1;
        }
    }
}

#[derive(Debug)]
struct VerdictLine {
    verdict_id: String,
    verdict: &'static str,
    why: Option<String>,
    method: Option<String>,
    tool_name: Option<String>,
    request_id: Option<String>,
    time: UtcNs,
    process_id: Option<ProcessId>,
    proxy_name: Option<String>,
}

impl VerdictLine {
    fn new(row: &VerdictRow) -> Self {
        Self {
            verdict_id: row.verdict_id.to_string(),
            verdict: row.verdict,
            why: why(row),
            method: row.method.as_deref().map(kept),
            tool_name: row.tool_name.as_deref().map(kept),
            request_id: row.request_id.as_deref().map(kept),
            time: row.subject_utc,
            process_id: row.process_id,
            proxy_name: row.proxy_name.as_deref().map(kept),
        }
    }
}

/// The reason for a verdict in few words: how, what differs and where, or which silence explains it.
fn why(row: &VerdictRow) -> Option<String> {
    if let Some(field) = row.field {
        let side = row.side.unwrap_or("log");
        let pointer = row.pointer.as_deref().map(kept).unwrap_or_default();
        return Some(format!("{side}: {field}{pointer}"));
    }
    row.via.or(row.reason).or(row.expected).map(str::to_owned)
}

#[derive(Debug)]
struct FindingLine {
    kind: &'static str,
    message: String,
    weakens: Option<String>,
    times: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LossKind {
    kind: &'static str,
    reason: Option<&'static str>,
    name: Option<String>,
}

#[derive(Debug, Default)]
struct Loss {
    rows: u64,
    bytes: u64,
    records: u64,
    missed_runs: u64,
    detail: Option<String>,
}

#[derive(Clone, Debug)]
struct Process {
    name: String,
    pid: u32,
    exec_seq: u32,
}

fn rank(words: &[&str], word: &str) -> Option<usize> {
    words.iter().position(|other| *other == word)
}

fn kept(text: &str) -> String {
    text.chars().take(TEXT_MAX_CHARS).collect()
}
