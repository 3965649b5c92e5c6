//! The coverage table: a status for each method and kind, its Markdown, and the list of cells that may be missed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{
    Side,
    attempted::{About, Attempted},
    classify::Status,
};

/// What a cell is about: direction, method, kind.
pub type Cell = (Side, String, String);

/// Statuses of all cells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// In the order of the exerciser.
    methods: Vec<(Side, String)>,
    kinds: Vec<String>,
    cells: BTreeMap<Cell, Status>,
}

impl Table {
    /// Takes in one attempt. A cell is as bad as the worst of its sizes.
    pub fn add(&mut self, attempted: Attempted) {
        let Attempted {
            side,
            method,
            kind,
            status,
            ..
        } = attempted;
        if !self.methods.contains(&(side, method.clone())) {
            self.methods.push((side, method.clone()));
        }
        if !self.kinds.contains(&kind) {
            self.kinds.push(kind.clone());
        }
        let place = self.cells.entry((side, method, kind));
        let place = place.or_insert_with(|| status.clone());
        if status > *place {
            *place = status;
        }
    }

    /// Cells whose bytes are declared to be missing.
    pub fn declared(&self) -> BTreeSet<Cell> {
        let declared = self
            .cells
            .iter()
            .filter(|(_, status)| **status == Status::Declared);
        declared.map(|(cell, _)| cell.clone()).collect()
    }

    /// Cells in which the capture claims what did not happen.
    pub fn wrong(&self) -> Vec<(&Cell, &Status)> {
        let wrong = |status: &Status| matches!(status, Status::Wrong(_));
        self.cells
            .iter()
            .filter(|(_, status)| wrong(status))
            .collect()
    }

    /// Cells that nothing accounts for.
    pub fn missed(&self) -> BTreeSet<Cell> {
        let missed = self
            .cells
            .iter()
            .filter(|(_, status)| **status == Status::Missed);
        missed.map(|(cell, _)| cell.clone()).collect()
    }

    /// Cells that were tried and not refused.
    pub fn tried(&self) -> BTreeSet<Cell> {
        let tried = |status: &Status| !matches!(status, Status::Refused(_));
        let cells = self.cells.iter().filter(|(_, status)| tried(status));
        cells.map(|(cell, _)| cell.clone()).collect()
    }

    /// Cells that another table has with another text. Those that it does not have count as well.
    pub fn unlike(&self, others: &BTreeMap<Cell, String>) -> Vec<String> {
        let mut found = Vec::new();
        for (cell, status) in &self.cells {
            let mine = shown(Some(status)).replace('*', "");
            let other = others.get(cell).map_or("", String::as_str);
            if mine != other {
                found.push(format!("{cell:?}: {mine}, not {other}"));
            }
        }
        found
    }

    /// How many cells have each status: captured, snapshot, declared, missed, wrong, refused.
    pub fn counts(&self) -> [usize; 6] {
        let mut counts = [0; 6];
        for status in self.cells.values() {
            counts[match status {
                Status::Captured => 0,
                Status::Snapshot => 1,
                Status::Declared => 2,
                Status::Missed => 3,
                Status::Wrong(_) => 4,
                Status::Refused(_) => 5,
            }] += 1;
        }
        counts
    }

    /// The table as Markdown.
    pub fn markdown(&self, about: &About) -> String {
        format!("{}{}", self.heading(about), self.body())
    }

    /// What stands above the cells.
    fn heading(&self, about: &About) -> String {
        let [captured, snapshot, declared, missed, wrong, refused] = self.counts();
        let About {
            kernel,
            release,
            tier,
            ..
        } = about;
        let sizes = match about.max_size {
            Some(max) => format!("of 32 to {max} bytes"),
            None => {
                "of 32 bytes to 70 KB (1 MiB for pipes, unix streams and TCP over IPv4)".to_owned()
            }
        };
        let place = if about.emulated {
            format!("On Linux {release}, emulated")
        } else {
            format!("On Linux {kernel}")
        };
        let policy = if about.unpreempted {
            "; every task of the run has the same real-time priority, so that none preempts another"
        } else {
            ""
        };
        let hook = if about.on_events {
            "; programs of tracepoints on trace events"
        } else {
            ""
        };
        format!(
            "# Coverage: Linux {kernel}, {tier}\n\n\
             Written by `cargo xtask coverage`, checked by the live test `every_way_to_move_bytes_is_captured_or_declared`. \
             Each cell is a fresh channel of that kind, used at one end by that method with random tokens {sizes}, with a \
             plain partner at the other end.\n\n\
             {place}, preemption {}{policy}{hook}.\n\n\
             - **yes**: every byte is in the records of that channel, direction and process. What exceeds the limit per \
             operation is a `limit` gap.\n\
             - **snap**: every byte, but some come from a look into the pipe's buffers, which others may change meanwhile: \
             evidence, not proof.\n\
             - **gap**: the bytes are not there, and gap records of that channel, direction and process say so.\n\
             - **NO**: bytes moved and nothing there accounts for them.\n\
             - **WRONG**: the records claim bytes that did not move.\n\
             - **–**: the kernel refuses it; why is below the tables.\n\n\
             {captured} yes, {snapshot} snap, {declared} gap, {missed} NO, {wrong} WRONG, {refused} refused.\n",
            about.preemption
        )
    }

    /// The cells and what was refused: what must not change from run to run.
    pub fn body(&self) -> String {
        let mut text = String::new();
        for (side, heading) in [(Side::Send, "Senders"), (Side::Receive, "Receivers")] {
            // Writing to a string does not fail.
            let _ok = write!(text, "\n## {heading}\n\n| method |");
            for kind in &self.kinds {
                let _ok = write!(text, " {kind} |");
            }
            let _ok = write!(text, "\n|---|{}\n", "---|".repeat(self.kinds.len()));
            for (_, method) in self.methods.iter().filter(|(of, _)| *of == side) {
                let _ok = write!(text, "| {method} |");
                for kind in &self.kinds {
                    let cell = (side, method.clone(), kind.clone());
                    let _ok = write!(text, " {} |", shown(self.cells.get(&cell)));
                }
                text.push('\n');
            }
        }
        text.push_str("\n## Refused by the kernel\n\n| method | error | kinds |\n|---|---|---|\n");
        let mut refusals: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
        for ((_, method, kind), status) in &self.cells {
            if let Status::Refused(errno) = status {
                refusals.entry((method, errno)).or_default().insert(kind);
            }
        }
        for ((method, errno), kinds) in refusals {
            let kinds: Vec<_> = kinds.into_iter().collect();
            let _ok = writeln!(text, "| {method} | {errno} | {} |", kinds.join(", "));
        }
        text
    }
}

fn shown(status: Option<&Status>) -> &'static str {
    match status {
        Some(Status::Captured) => "yes",
        Some(Status::Snapshot) => "snap",
        Some(Status::Declared) => "gap",
        Some(Status::Missed) => "**NO**",
        Some(Status::Wrong(_)) => "**WRONG**",
        Some(Status::Refused(_)) => "–",
        None => "",
    }
}

/// What stands above the list of cells that may be missed.
const LIST_HEADING: &str = "\
# Ways to move bytes that this tier neither captures nor declares: `direction | method | kinds`.
# A missed cell that is not here fails the test, and so does one here that is no longer missed.
";

/// The list of cells as text: one line per method.
pub fn list_of(cells: &BTreeSet<Cell>) -> String {
    let mut lines: BTreeMap<(Side, &str), Vec<&str>> = BTreeMap::new();
    for (side, method, kind) in cells {
        lines.entry((*side, method)).or_default().push(kind);
    }
    let mut text = LIST_HEADING.to_owned();
    for ((side, method), kinds) in lines {
        let side = match side {
            Side::Send => "send",
            Side::Receive => "receive",
        };
        let _ok = writeln!(text, "{side} | {method} | {}", kinds.join(" "));
    }
    text
}

/// The cells of a list.
///
/// # Panics
/// When a line is not of the form that [`list_of`] writes.
pub fn cells_of(list: &str) -> BTreeSet<Cell> {
    let mut cells = BTreeSet::new();
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let parts: Vec<_> = line.split(" | ").collect();
        let [side, method, kinds] = parts[..] else {
            panic!("not `direction | method | kinds`: {line}");
        };
        let side = match side {
            "send" => Side::Send,
            "receive" => Side::Receive,
            other => panic!("neither send nor receive: {other}"),
        };
        cells.extend(
            kinds
                .split(' ')
                .map(|kind| (side, method.to_owned(), kind.to_owned())),
        );
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_reads_back_as_it_was_written() {
        let cell = |side, method: &str, kind: &str| (side, method.to_owned(), kind.to_owned());
        let cells = BTreeSet::from([
            cell(Side::Send, "send MSG_MORE", "tcp4"),
            cell(Side::Send, "send MSG_MORE", "tcp6"),
            cell(Side::Receive, "io_uring-read, provided buffer", "pipe"),
        ]);
        assert_eq!(cells_of(&list_of(&cells)), cells);
    }

    #[test]
    fn a_cell_is_as_bad_as_the_worst_of_its_sizes() {
        let mut table = Table::default();
        for status in [Status::Captured, Status::Missed, Status::Declared] {
            table.add(Attempted {
                side: Side::Send,
                method: "write".to_owned(),
                kind: "pipe".to_owned(),
                size: 32,
                status,
            });
        }
        assert_eq!(table.counts(), [0, 0, 0, 1, 0, 0]);
        assert!(table.body().contains("| write | **NO** |"));
    }
}
