//! The report as text.

use std::fmt::Write as _;

use super::escape::shown;
use super::{COUNTED_ONLY, Evidence, SEVERITIES, Summary, VERDICTS};

/// Widest line, in columns. What stands in a path of the user's own is not cut.
const COLUMNS: usize = 100;

const HEADER: [&str; 7] = [
    "verdict",
    "why",
    "method",
    "tool",
    "id",
    "time (UTC)",
    "who",
];

/// Width that each column of the list of verdicts is sure of; with one blank between them they fill a line. A column that
/// needs less leaves the rest to those that need more.
const WIDTHS: [usize; 7] = [10, 24, 14, 15, 6, 12, 13];

/// Widest cell, in columns, before the line is filled.
const CELL_MAX_COLUMNS: usize = 48;

/// What is shown of one message, in columns.
const MESSAGE_MAX_COLUMNS: usize = 360;

pub(super) fn render(summary: &Summary, evidence: Evidence<'_>) -> String {
    let mut out = String::new();
    push_counts(&mut out, summary);
    push_verdicts(&mut out, summary);
    push_findings(&mut out, summary);
    push_losses(&mut out, summary);
    push_evidence(&mut out, evidence);
    out
}

fn push_counts(out: &mut String, summary: &Summary) {
    line(out, "VERDICTS");
    let total: u64 = summary.verdicts.values().map(|listed| listed.count).sum();
    if total == 0 {
        line(out, "  none: no MCP traffic and no entries were seen");
    }
    let matched = VERDICTS.iter().filter(|verdict| **verdict == "matched");
    let others = VERDICTS.iter().filter(|verdict| **verdict != "matched");
    for verdict in matched.chain(others) {
        let count = summary.count(verdict);
        if count > 0 {
            line(out, &format!("  {count:>9} {verdict}"));
        }
    }
}

fn push_verdicts(out: &mut String, summary: &Summary) {
    let mut rows: Vec<[String; 7]> = Vec::new();
    let mut omitted = Vec::new();
    for (rank, listed) in &summary.verdicts {
        let mut lines: Vec<_> = listed.lines.iter().collect();
        lines.sort_by_key(|line| line.time);
        for line in lines {
            let time = line.time.rfc3339();
            let cells: [&str; 7] = [
                line.verdict,
                line.why.as_deref().unwrap_or("-"),
                line.method.as_deref().unwrap_or("-"),
                line.tool_name.as_deref().unwrap_or("-"),
                line.request_id.as_deref().unwrap_or("-"),
                time.get(11..23).unwrap_or(&time),
                &summary.who(line).unwrap_or_else(|| "-".to_owned()),
            ];
            rows.push(cells.map(str::to_owned));
        }
        if listed.omitted > 0 {
            let verdict = VERDICTS.get(*rank).copied().unwrap_or_default();
            omitted.push(format!(
                "  … and {} more {verdict}: see the table verdicts",
                listed.omitted
            ));
        }
    }
    if rows.is_empty() {
        return;
    }
    line(out, "");
    let widths = widths(&rows);
    push_row(out, &HEADER.map(str::to_owned), widths);
    for row in &rows {
        push_row(out, row, widths);
    }
    for text in omitted {
        line(out, &text);
    }
}

fn push_findings(out: &mut String, summary: &Summary) {
    if summary
        .findings
        .values()
        .all(|listed| listed.lines.is_empty())
    {
        return;
    }
    line(out, "");
    line(out, "FINDINGS");
    for (rank, listed) in &summary.findings {
        let severity = SEVERITIES.get(*rank).copied().unwrap_or_default();
        for finding in &listed.lines {
            let mut text = format!("{} {}", finding.kind, finding.message);
            if let Some(weakens) = &finding.weakens {
                let _ = write!(text, "; weakens {weakens}");
            }
            if finding.times > 1 {
                let _ = write!(text, " ({} times)", finding.times);
            }
            push_wrapped(out, &format!("  {severity:<9}"), &text);
        }
        if listed.omitted > 0 {
            line(
                out,
                &format!(
                    "  … and {} more {severity}: see the table findings",
                    listed.omitted
                ),
            );
        }
    }
}

fn push_losses(out: &mut String, summary: &Summary) {
    line(out, "");
    line(out, "NOT SEEN");
    match summary.watched {
        Some((from, to)) => {
            line(
                out,
                &format!(
                    "  anything before {} and after {}",
                    from.rfc3339(),
                    to.rfc3339()
                ),
            );
        }
        None => line(
            out,
            "  start and end of the capture: it is not known what was watched",
        ),
    }
    push_wrapped(
        out,
        "  ",
        "what TLS and HTTP over TCP say (their bytes are counted), UDP, files and shared memory, \
         and the terminal that the agent runs in: never read so far",
    );
    if summary.unchecked_signatures > 0 {
        let signatures = plural(summary.unchecked_signatures, "signature");
        push_wrapped(
            out,
            "  ",
            &format!(
                "whether {signatures} of the log can be trusted: no key was given (--key-file)"
            ),
        );
    }
    for (kind, loss) in &summary.losses {
        let mut text = kind.kind.to_owned();
        for part in [kind.name.as_deref(), kind.reason].into_iter().flatten() {
            let _ = write!(text, " {part}");
        }
        let _ = write!(text, ": {}", plural(loss.rows, "time"));
        for (count, unit) in [
            (loss.bytes, "byte"),
            (loss.records, "record"),
            (loss.missed_runs, "skipped run"),
        ] {
            if count > 0 {
                let _ = write!(text, ", {}", plural(count, unit));
            }
        }
        if let Some(detail) = &loss.detail {
            let _ = write!(text, "; {detail}");
        }
        push_wrapped(out, "  ", &text);
    }
    if summary.other_losses > 0 {
        line(
            out,
            &format!(
                "  … and {} more: see the table coverage",
                summary.other_losses
            ),
        );
    }
    let counted: Vec<_> = COUNTED_ONLY
        .iter()
        .filter(|verdict| **verdict != "matched" && summary.count(verdict) > 0)
        .copied()
        .collect();
    if !counted.is_empty() {
        line(out, &format!("  not listed above: {}", counted.join(", ")));
    }
}

fn push_evidence(out: &mut String, evidence: Evidence<'_>) {
    line(out, "");
    line(out, &format!("EVIDENCE of capture {}", evidence.capture));
    let rows: u64 = evidence.files.iter().map(|file| file.rows).sum();
    let bytes: u64 = evidence.files.iter().map(|file| file.bytes).sum();
    let files = evidence.files.len() as u64;
    // The user named this path and will want to copy it: whole, but harmless.
    let path = shown(&evidence.out.display().to_string(), usize::MAX);
    line(out, &format!("  {path}"));
    line(
        out,
        &format!(
            "  {} in {}, {}",
            plural(rows, "row"),
            plural(files, "Parquet file"),
            plural(bytes, "byte")
        ),
    );
}

/// What each column needs, cut where together they need more than a line: first from those that have most beyond their own.
fn widths(rows: &[[String; 7]]) -> [usize; 7] {
    let mut widths = HEADER.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(columns(&shown(cell, CELL_MAX_COLUMNS)));
        }
    }
    while widths.iter().sum::<usize>() + widths.len() - 1 > COLUMNS {
        let excess = widths
            .iter()
            .zip(WIDTHS)
            .map(|(width, own)| width.saturating_sub(own));
        let Some((widest, _)) = excess.enumerate().max_by_key(|(_, excess)| *excess) else {
            break;
        };
        widths[widest] -= 1;
    }
    if widths.iter().sum::<usize>() + 2 * (widths.len() - 1) <= COLUMNS {
        widths = widths.map(|width| width + 1);
    }
    widths
}

/// Columns that a cell takes. Wide characters were counted as two when it was cut.
fn columns(cell: &str) -> usize {
    cell.chars()
        .map(|character| {
            if character.is_ascii() || character == '…' {
                1
            } else {
                2
            }
        })
        .sum()
}

fn push_row(out: &mut String, cells: &[String; 7], widths: [usize; 7]) {
    let mut text = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        let cell = shown(cell, width);
        let padding = (width + 1).saturating_sub(columns(&cell));
        text.push_str(&cell);
        text.extend(std::iter::repeat_n(' ', padding));
    }
    line(out, text.trim_end());
}

fn push_wrapped(out: &mut String, indent: &str, text: &str) {
    let text = shown(text, MESSAGE_MAX_COLUMNS);
    let room = COLUMNS.saturating_sub(indent.len());
    let mut start = indent.to_owned();
    let mut current = String::new();
    for word in text.split(' ') {
        let mut word = word;
        let width = |text: &str| {
            text.chars()
                .map(|character| if character.is_ascii() { 1 } else { 2 })
                .sum::<usize>()
        };
        if !current.is_empty() && width(&current) + 1 + width(word) > room {
            line(out, &format!("{start}{current}"));
            start = " ".repeat(indent.len());
            current.clear();
        }
        if !current.is_empty() {
            current.push(' ');
        }
        // A word without a blank for a whole line is cut anywhere.
        while width(word) > room {
            let end = word
                .char_indices()
                .nth(room / 2)
                .map_or(word.len(), |(end, _)| end);
            let (head, tail) = word.split_at(end);
            line(out, &format!("{start}{head}"));
            start = " ".repeat(indent.len());
            word = tail;
        }
        current.push_str(word);
    }
    line(out, &format!("{start}{current}"));
}

fn plural(count: u64, unit: &str) -> String {
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}
