//! What all coverage tables say together: `docs/coverage/README.md`.
//!
//! Owns the reading of tables that [`super::table`] wrote, and the marked part of the index.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs, io,
    path::Path,
};

use super::{Side, rule::may_declare, table::Cell};

/// Lines around the part of the index that is written.
const BEGIN: &str = "<!-- written by `cargo xtask coverage` -->";
const END: &str = "<!-- end -->";

/// One table, as far as the index goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// As in the heading: `6.1-debian`.
    pub kernel: String,
    /// As in the heading.
    pub tier: String,
    /// Where and how: the sentence under the heading.
    pub place: String,
    /// The text of each cell: `yes`, `gap`, `NO`.
    pub cells: BTreeMap<Cell, String>,
    /// What is declared by reasons that count, with the number of cells.
    pub declared: BTreeMap<&'static str, usize>,
    /// Cells that must be captured and are not.
    pub bad: BTreeSet<Cell>,
}

impl Summary {
    /// Of a table's text.
    ///
    /// # Errors
    /// It is not such a table.
    pub fn of(markdown: &str) -> io::Result<Self> {
        let odd = |what: &str| io::Error::other(format!("not a coverage table: {what}"));
        let mut lines = markdown.lines();
        let (kernel, tier) = lines
            .next()
            .and_then(|line| line.strip_prefix("# Coverage: Linux "))
            .and_then(|line| line.split_once(", "))
            .ok_or_else(|| odd("no heading"))?;
        let mut summary = Self {
            kernel: kernel.to_owned(),
            tier: tier.to_owned(),
            ..Self::default()
        };
        let (mut side, mut kinds) = (None, Vec::new());
        for line in lines {
            match line {
                "## Senders" => side = Some(Side::Send),
                "## Receivers" => side = Some(Side::Receive),
                "## Refused by the kernel" => side = None,
                _ if line.starts_with("On Linux ") => line.clone_into(&mut summary.place),
                _ => {}
            }
            let Some(side) = side else { continue };
            let Some(row) = line
                .strip_prefix("| ")
                .and_then(|row| row.strip_suffix(" |"))
            else {
                continue;
            };
            let mut cells = row.split(" | ");
            let method = cells.next().unwrap_or_default();
            if method == "method" {
                kinds = cells.collect();
                continue;
            }
            let cells: Vec<_> = cells.map(str::trim).collect();
            if cells.len() != kinds.len() {
                return Err(odd(line));
            }
            for (kind, text) in kinds.iter().zip(cells) {
                summary.cell(side, method, kind, text);
            }
        }
        if summary.cells.is_empty() {
            return Err(odd("no cells"));
        }
        Ok(summary)
    }

    fn cell(&mut self, side: Side, method: &str, kind: &str, text: &str) {
        let text = text.replace('*', "");
        let cell = (side, method.to_owned(), kind.to_owned());
        let reason = may_declare(&self.tier, side, method, kind);
        match (text.as_str(), reason) {
            ("yes" | "–" | "", _) => {}
            ("gap" | "snap", Some(reason)) => *self.declared.entry(reason).or_default() += 1,
            _ => {
                self.bad.insert(cell.clone());
            }
        }
        self.cells.insert(cell, text);
    }

    fn count(&self, text: &str) -> usize {
        self.cells.values().filter(|shown| *shown == text).count()
    }
}

/// Every table of the folder with its file's name, by kernel and tier.
///
/// # Errors
/// The folder cannot be read, or a file in it that is named like a table is none.
pub fn summaries(folder: &Path) -> io::Result<Vec<(String, Summary)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        // Named by the kernel's version; other pages are about something else.
        let is_table = name.starts_with(|first: char| first.is_ascii_digit());
        if is_table && path.extension().is_some_and(|end| end == "md") {
            let summary = Summary::of(&fs::read_to_string(&path)?)?;
            found.push((name, summary));
        }
    }
    let number = |part: &str| part.parse::<u32>().unwrap_or(0);
    found.sort_by_key(|(_, summary)| {
        let version: Vec<_> = summary.kernel.split(['.', '-']).map(number).collect();
        (version, summary.kernel.clone(), summary.tier.clone())
    });
    Ok(found)
}

/// The written part of the index.
pub fn markdown(summaries: &[(String, Summary)]) -> String {
    let mut text = format!(
        "{BEGIN}\n\n| kernel, tier | captured | declared | missed | wrong | refused | declared are |\n|---|---|---|---|---|---|---|\n"
    );
    for (name, summary) in summaries {
        let declared: Vec<_> = summary
            .declared
            .iter()
            .map(|(reason, cells)| format!("{reason} ({cells})"))
            .collect();
        // Writing to a string does not fail.
        let _ok = writeln!(
            text,
            "| [{}, {}]({name}) | {} | {} | {} | {} | {} | {} |",
            summary.kernel,
            summary.tier,
            summary.count("yes"),
            summary.count("gap") + summary.count("snap"),
            summary.count("NO"),
            summary.count("WRONG"),
            summary.count("–"),
            declared.join("; "),
        );
    }
    text.push('\n');
    for (name, summary) in summaries {
        let _ok = writeln!(text, "- {name}: {}", summary.place);
    }
    let bad: Vec<_> = summaries
        .iter()
        .flat_map(|(name, summary)| {
            let cells = summary.bad.iter();
            cells.map(move |cell| (name, cell, &summary.cells[cell]))
        })
        .collect();
    if !bad.is_empty() {
        text.push_str("\nMust be captured and are not:\n\n");
    }
    for (name, (side, method, kind), shown) in bad {
        let side = match side {
            Side::Send => "send",
            Side::Receive => "receive",
        };
        let _ok = writeln!(text, "- {name}: {side} | {method} | {kind}: {shown}");
    }
    let _ok = write!(text, "\n{END}\n");
    text
}

/// Replaces the written part of an index.
///
/// # Errors
/// The marks are not there.
pub fn replaced(index: &str, part: &str) -> io::Result<String> {
    let (head, rest) = index
        .split_once(BEGIN)
        .ok_or_else(|| io::Error::other("the index has no place for the tables"))?;
    let (_, tail) = rest
        .split_once(END)
        .ok_or_else(|| io::Error::other("the place for the tables does not end"))?;
    Ok(format!(
        "{head}{part}{}",
        tail.strip_prefix('\n').unwrap_or(tail)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exercise::{
        attempted::{About, Attempted},
        classify::Status,
        table::Table,
    };

    fn folder() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/coverage")
    }

    fn about() -> About {
        About {
            kernel: "6.1-debian".to_owned(),
            release: "6.1.0-50-cloud-amd64".to_owned(),
            preemption: "voluntary".to_owned(),
            tier: "kprobes".to_owned(),
            max_size: Some(9_000),
            unpreempted: false,
            on_events: false,
            emulated: true,
        }
    }

    fn attempted(method: &str, status: Status) -> Attempted {
        Attempted {
            side: Side::Receive,
            method: method.to_owned(),
            kind: "pipe".to_owned(),
            size: 32,
            status,
        }
    }

    #[test]
    fn a_table_is_read_back_with_what_it_declares_and_lacks() {
        let mut table = Table::default();
        table.add(attempted("read", Status::Captured));
        table.add(attempted("tee out", Status::Declared));
        table.add(attempted("aio-pread", Status::Declared));
        table.add(attempted("readv", Status::Missed));
        let summary = Summary::of(&table.markdown(&about())).expect("a table");
        assert_eq!(
            (summary.kernel.as_str(), summary.tier.as_str()),
            ("6.1-debian", "kprobes")
        );
        assert_eq!(summary.count("gap"), 2);
        assert_eq!(summary.declared.get("splice family"), Some(&1));
        let bad: Vec<_> = summary
            .bad
            .iter()
            .map(|cell| (cell.1.as_str(), summary.cells[cell].as_str()))
            .collect();
        assert_eq!(bad, [("aio-pread", "gap"), ("readv", "NO")]);
    }

    #[test]
    fn the_written_part_of_an_index_is_replaced_and_the_rest_stays() {
        let index = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let part = markdown(&[]);
        let once = replaced(&index, &part).expect("marks");
        assert!(once.starts_with("a\n") && once.ends_with("\nb\n") && !once.contains("old"));
        assert_eq!(replaced(&once, &part).expect("marks"), once);
    }

    #[test]
    fn no_committed_table_lacks_a_cell_and_the_index_is_up_to_date() {
        let summaries = summaries(&folder()).expect("tables");
        for (name, summary) in &summaries {
            assert!(summary.bad.is_empty(), "{name}: {:#?}", summary.bad);
        }
        let index = fs::read_to_string(folder().join("README.md")).expect("the index");
        let wanted = replaced(&index, &markdown(&summaries)).expect("marks");
        assert_eq!(index, wanted, "run cargo xtask coverage --index");
    }
}
