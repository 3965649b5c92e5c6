//! The correlator as the benchmarks use it: what goes in, and a count of the verdicts that come out.

use std::collections::BTreeMap;

use anyhow::ensure;
use countersign_core::row::Row;

/// How many verdicts of each kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdicts(BTreeMap<String, u64>);

impl Verdicts {
    /// Looks at one row.
    pub(crate) fn observe(&mut self, row: &Row) {
        if let Row::Verdict(verdict) = row {
            let reason = verdict
                .reason
                .map(|reason| format!(": {reason}"))
                .unwrap_or_default();
            *self
                .0
                .entry(format!("{}{reason}", verdict.verdict))
                .or_default() += 1;
        }
    }

    /// A benchmark of something that went wrong would measure the wrong thing.
    ///
    /// # Errors
    /// When not exactly `calls` verdicts came, all of them `matched`.
    pub(crate) fn all_matched(&self, calls: u64) -> anyhow::Result<()> {
        ensure!(
            self.0.len() == 1 && self.0.get("matched") == Some(&calls),
            "{calls} faultless calls gave {:?}",
            self.0
        );
        Ok(())
    }
}
