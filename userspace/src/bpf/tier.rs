//! The ways to capture transfers: at system calls, or at the kernel functions that all of them go through.

use std::{fmt, str::FromStr};

/// How transfers are captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub enum Tier {
    /// Tier T: tracepoints on the entry and exit of system calls.
    #[default]
    #[serde(rename = "t")]
    Tracepoints,
    /// Tier K: kprobes on the entry and return of functions. They run wherever the kernel may preempt.
    #[serde(rename = "k")]
    Kprobes,
    /// Tier F: trampolines (`fentry`, `fexit`) on the same functions. The cheapest, where the kernel does not preempt.
    #[serde(rename = "f")]
    Trampolines,
}

impl Tier {
    /// Its letter, as in options and the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tracepoints => "t",
            Self::Kprobes => "k",
            Self::Trampolines => "f",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tracepoints => "T (tracepoints)",
            Self::Kprobes => "K (kprobes)",
            Self::Trampolines => "F (trampolines)",
        })
    }
}

impl FromStr for Tier {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "t" => Ok(Self::Tracepoints),
            "k" => Ok(Self::Kprobes),
            "f" => Ok(Self::Trampolines),
            _ => anyhow::bail!("`{text}` is no tier: t, k or f"),
        }
    }
}
