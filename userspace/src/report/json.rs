//! The report as JSON.

use std::fmt::Write as _;

use super::escape::push_json_string;
use super::{Evidence, SEVERITIES, Summary, VERDICTS};

pub(super) fn render(summary: &Summary, evidence: Evidence<'_>) -> String {
    let mut object = Object::new();
    object.text("capture_id", Some(&evidence.capture.to_string()));
    let (from, to) = summary
        .watched
        .map(|(from, to)| (from.rfc3339(), to.rfc3339()))
        .unzip();
    object.text("watched_from", from.as_deref());
    object.text("watched_to", to.as_deref());
    object.raw(
        "has_findings",
        if summary.has_findings() {
            "true"
        } else {
            "false"
        },
    );
    object.raw(
        "could_not_see",
        if summary.could_not_see() {
            "true"
        } else {
            "false"
        },
    );
    object.number("unchecked_signatures", summary.unchecked_signatures);

    let mut counts = Object::new();
    for verdict in VERDICTS {
        counts.number(verdict, summary.count(verdict));
    }
    object.raw("verdicts", &counts.finish());

    let mut omitted = 0;
    let mut listed = Vec::new();
    for verdicts in summary.verdicts.values() {
        omitted += verdicts.omitted;
        for line in &verdicts.lines {
            let mut row = Object::new();
            row.text("verdict_id", Some(&line.verdict_id));
            row.text("verdict", Some(line.verdict));
            row.text("why", line.why.as_deref());
            row.text("method", line.method.as_deref());
            row.text("tool_name", line.tool_name.as_deref());
            row.text("request_id", line.request_id.as_deref());
            row.text("time", Some(&line.time.rfc3339()));
            row.text("who", summary.who(line).as_deref());
            listed.push(row.finish());
        }
    }
    object.list("listed", &listed);
    object.number("listed_omitted", omitted);

    let mut omitted = 0;
    let mut findings = Vec::new();
    for (rank, lines) in &summary.findings {
        omitted += lines.omitted;
        for line in &lines.lines {
            let mut row = Object::new();
            row.text("severity", SEVERITIES.get(*rank).copied());
            row.text("kind", Some(line.kind));
            row.text("message", Some(&line.message));
            row.text("weakens", line.weakens.as_deref());
            row.number("count", line.times);
            findings.push(row.finish());
        }
    }
    object.list("findings", &findings);
    object.number("findings_omitted", omitted);

    let mut losses = Vec::new();
    for (kind, loss) in &summary.losses {
        let mut row = Object::new();
        row.text("kind", Some(kind.kind));
        row.text("name", kind.name.as_deref());
        row.text("reason", kind.reason);
        row.text("detail", loss.detail.as_deref());
        row.number("count", loss.rows);
        row.number("lost_bytes", loss.bytes);
        row.number("lost_records", loss.records);
        row.number("missed_runs", loss.missed_runs);
        losses.push(row.finish());
    }
    object.list("not_seen", &losses);
    object.number("not_seen_omitted", summary.other_losses);

    object.text("out", Some(&evidence.out.display().to_string()));
    let files: Vec<_> = evidence
        .files
        .iter()
        .map(|file| {
            let mut row = Object::new();
            row.text("path", Some(&file.path));
            row.text("table", Some(file.table));
            row.number("rows", file.rows);
            row.number("bytes", file.bytes);
            row.finish()
        })
        .collect();
    object.list("files", &files);
    let mut json = object.finish();
    json.push('\n');
    json
}

struct Object(String);

impl Object {
    fn new() -> Self {
        Self("{".to_owned())
    }

    fn key(&mut self, key: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        push_json_string(&mut self.0, key);
        self.0.push(':');
    }

    fn raw(&mut self, key: &str, json: &str) {
        self.key(key);
        self.0.push_str(json);
    }

    fn text(&mut self, key: &str, text: Option<&str>) {
        self.key(key);
        match text {
            Some(text) => push_json_string(&mut self.0, text),
            None => self.0.push_str("null"),
        }
    }

    fn number(&mut self, key: &str, number: u64) {
        self.key(key);
        // Writing into a string cannot fail.
        let _ = write!(self.0, "{number}");
    }

    fn list(&mut self, key: &str, items: &[String]) {
        self.key(key);
        self.0.push('[');
        self.0.push_str(&items.join(","));
        self.0.push(']');
    }

    fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }
}
