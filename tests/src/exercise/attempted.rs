//! Results of single attempts as lines, so that a table can be put together of runs in parts and on other machines.
//!
//! Owns the line format. A line may stand in other output, of a test runner for instance.

use serde::{Deserialize, Serialize};

use super::{Side, Truth, classify::Status};

/// What a line begins with, wherever in the output it stands.
const MARK: &str = "@coverage ";

/// A line of results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// What follows was tried here.
    About(About),
    /// One attempt.
    Attempted(Attempted),
    /// All that was asked for was tried.
    Ended,
}

/// Where attempts were made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Major and minor version, and the system if it is one that others have too: `6.1-debian`.
    pub kernel: String,
    /// As `uname -r` says.
    pub release: String,
    /// The kernel's preemption: `/sys/kernel/debug/sched/preempt`, or `?`.
    pub preemption: String,
    /// The tier, in the words of `docs/coverage`.
    pub tier: String,
    /// Tokens were no longer than this; `None`: all sizes of [`super::SIZES`].
    pub max_size: Option<usize>,
    /// No task preempted another (`SCHED_FIFO`, all of one priority).
    pub unpreempted: bool,
    /// What else hangs on tracepoints hangs on trace events, which are not skipped where tracepoints are.
    pub on_events: bool,
    /// CPUs are emulated.
    pub emulated: bool,
}

/// What came of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempted {
    /// Direction.
    pub side: Side,
    /// Name of the method.
    pub method: String,
    /// Name of the channel's kind.
    pub kind: String,
    /// Length of the token in bytes.
    pub size: usize,
    /// What the capture has.
    pub status: Status,
}

impl About {
    /// Name of the table's file in `docs/coverage`.
    pub fn file_name(&self) -> String {
        format!("{}-{}.md", self.kernel, self.tier)
    }
}

impl Attempted {
    /// The result of an attempt.
    pub fn new(truth: &Truth, status: Status) -> Self {
        Self {
            side: truth.side,
            method: truth.method.clone(),
            kind: truth.kind.clone(),
            size: truth.size,
            status,
        }
    }
}

impl Line {
    /// As text, with line ends on both sides: others may be in the middle of a line.
    pub fn text(&self) -> String {
        let json = serde_json::to_string(self).unwrap_or_default();
        format!("\n{MARK}{json}\n")
    }

    /// The results in some output.
    ///
    /// # Errors
    /// A marked line is cut off or of another version.
    pub fn all_of(output: &str) -> Result<Vec<Self>, serde_json::Error> {
        output
            .lines()
            .filter_map(|line| line.split_once(MARK))
            .map(|(_, json)| serde_json::from_str(json.trim_end()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_found_between_other_output() {
        let line = Line::Attempted(Attempted {
            side: Side::Receive,
            method: "read".to_owned(),
            kind: "pipe".to_owned(),
            size: 32,
            status: Status::Wrong("other bytes at 3".to_owned()),
        });
        let output = format!("test a ... {}{}ok\n", Line::Ended.text(), line.text());
        let found = Line::all_of(&output).expect("json");
        assert_eq!(found, [Line::Ended, line]);
    }

    #[test]
    fn a_line_that_was_cut_off_is_an_error() {
        let text = Line::Ended.text();
        assert!(Line::all_of(&text[..text.len() - 3]).is_err());
    }
}
