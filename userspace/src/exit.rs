//! Exit codes of the `countersign` command, and errors that know theirs.
//!
//! Owns the mapping from an outcome or a failure to a process exit code. Does not print anything.
//! Codes 0 to 2 speak about the evidence; everything from 64 on says that there is none, with the
//! values of `sysexits.h` where one fits. The watched agent's own exit code is printed, never
//! returned, so that the two cannot be confused.

use std::fmt;
use std::process::ExitCode;

/// Every exit code that the command returns.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[repr(u8)]
pub enum Code {
    /// Everything was seen and every call matched (or was expected).
    Clean = 0,
    /// At least one bad verdict, or finding of severity `medium` or above. Goes before [`Code::CouldNotSee`].
    Findings = 1,
    /// No finding, but something could not be seen or decided: loss, damage, an undecided verdict.
    CouldNotSee = 2,
    /// The command line is wrong (`EX_USAGE`).
    Usage = 64,
    /// Input is not what it claims to be, such as a file that is no spool (`EX_DATAERR`).
    Data = 65,
    /// Input is missing or of a kind that is refused, such as a log that is a FIFO (`EX_NOINPUT`).
    NoInput = 66,
    /// The kernel or this build lacks something that is needed (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// A defect in Countersign (`EX_SOFTWARE`).
    Internal = 70,
    /// The output directory cannot be used (`EX_CANTCREAT`).
    CantCreate = 73,
    /// Reading or writing failed (`EX_IOERR`).
    Io = 74,
    /// A privilege is missing (`EX_NOPERM`).
    NoPermission = 77,
    /// The configuration file, a key or a named program is wrong (`EX_CONFIG`).
    Config = 78,
    /// The agent, or the server of `proxy`, was found but could not be executed (as shells say it).
    AgentNotExecutable = 126,
    /// The agent, or the server of `proxy`, was not found (as shells say it).
    AgentNotFound = 127,
}

impl Code {
    /// The outcome of a completed run: findings go before what could not be seen.
    pub const fn of_evidence(findings: bool, could_not_see: bool) -> Self {
        match (findings, could_not_see) {
            (true, _) => Self::Findings,
            (false, true) => Self::CouldNotSee,
            (false, false) => Self::Clean,
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// The table of exit codes, for `--help`.
pub const HELP: &str = "\
Exit codes:
  0    clean: everything was seen and nothing is wrong
  1    bypassed, forged, altered, replayed or unlogged, or a finding of severity medium or above
       (goes before 2; findings of severity low and info do not count)
  2    could not see: loss, damage or an undecided verdict
  64   wrong command line
  65   input is damaged or not what it claims to be
  66   input is missing or of a refused kind
  69   the kernel or this build lacks something
  70   a defect in countersign
  73   the output directory cannot be used
  74   reading or writing failed
  77   a privilege is missing
  78   wrong configuration, key or proxy program
  126  the agent, or the server of `proxy`, could not be executed
  127  the agent, or the server of `proxy`, was not found
The agent's own exit code is printed, never returned.";

/// What the codes of `record` say, for its `--help`: it judges nothing.
pub const RECORD_HELP: &str = "\
Exit codes:
  0    everything that is watched was recorded
  2    something could not be recorded; the spool says what
Neither says anything of the calls: `countersign pair DIR` does. Codes from 64 on are those of `countersign --help`.";

/// An error together with the exit code that it ends the command with.
#[derive(Debug)]
pub struct Failure {
    /// What to exit with.
    pub code: Code,
    /// What went wrong and how to fix it.
    pub error: anyhow::Error,
}

impl Failure {
    /// A failure made from a message alone.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            error: anyhow::Error::msg(message.into()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl std::error::Error for Failure {}

/// Attaches an exit code to any error.
pub trait OrExit<T> {
    /// Turns the error into a [`Failure`] with `code`.
    ///
    /// # Errors
    /// The original error, wrapped.
    fn or_exit(self, code: Code) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, code: Code) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            code,
            error: error.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_go_before_what_could_not_be_seen() {
        assert_eq!(Code::of_evidence(true, true), Code::Findings);
        assert_eq!(Code::of_evidence(false, true), Code::CouldNotSee);
        assert_eq!(Code::of_evidence(false, false), Code::Clean);
    }

    #[test]
    fn every_code_is_in_the_help_text() {
        for code in [0, 1, 2, 64, 65, 66, 69, 70, 73, 74, 77, 78, 126, 127] {
            assert!(
                HELP.lines()
                    .any(|line| line.trim_start().starts_with(&format!("{code} "))),
                "{code} is not documented"
            );
        }
    }
}
