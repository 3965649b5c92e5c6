//! The plan: what the agent really did, written for whoever checks the verdicts.
//!
//! Owns the file format only. It is the ground truth of a run and never an input to Countersign.

use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

/// Everything one run did, in the order in which it was sent.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    /// Version of this format.
    pub(crate) version: u32,
    /// The seed of the script.
    pub(crate) seed: u64,
    /// Protocol revision that the session settled on.
    pub(crate) revision: String,
    /// The calls, through the proxy and around it.
    pub(crate) calls: Vec<PlannedCall>,
}

/// One call as its sender made it.
#[derive(Debug, Serialize)]
pub(crate) struct PlannedCall {
    /// A text that occurs in the arguments of this call and of no other; none where a method leaves no room for one.
    pub(crate) marker: Option<String>,
    /// `request` or `notification`.
    pub(crate) kind: Kind,
    /// Who sent it.
    pub(crate) direction: Direction,
    /// The JSON-RPC method.
    pub(crate) method: String,
    /// The tool, for `tools/call`.
    pub(crate) tool: Option<String>,
    /// The JSON-RPC id as JSON text, where the sender knows it.
    pub(crate) id: Option<String>,
    /// The way it took.
    pub(crate) via: Via,
    /// The verdict that an untouched log must lead to.
    pub(crate) expected: Expected,
    /// What came back.
    pub(crate) outcome: Outcome,
}

/// Whether an answer is due.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// It has an id and wants an answer.
    Request,
    /// It wants none.
    Notification,
}

/// Which side sent a call.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Direction {
    /// From the agent.
    ClientToServer,
    /// From the server.
    ServerToClient,
}

/// The way a call took.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Via {
    /// Through the proxy, as it should.
    Proxy,
    /// To a copy of the server that the agent started for itself.
    OwnServer,
    /// Written into the proxy's own pipe to the server.
    ForeignWriter,
}

/// The verdict an untouched log must lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Expected {
    /// Host and log agree.
    Matched,
    /// The log knows nothing of it.
    Bypassed,
}

/// What the sender saw come back.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// A result.
    Ok,
    /// A result that says that the tool failed.
    ToolError,
    /// A JSON-RPC error.
    Error,
    /// No answer is due.
    None,
    /// The server did it; its answer went to the proxy, and the client dropped it as an answer to nothing it asked.
    DoneAnswerDropped,
}

impl Plan {
    /// Writes the plan as JSON, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be created or renamed.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let partial = path.with_extension("partial");
        let mut text =
            serde_json::to_vec_pretty(self).context("cannot express the plan as JSON")?;
        text.push(b'\n');
        std::fs::write(&partial, text)
            .with_context(|| format!("cannot write {}", partial.display()))?;
        std::fs::rename(&partial, path)
            .with_context(|| format!("cannot move the plan to {}", path.display()))
    }
}
