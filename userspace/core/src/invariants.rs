//! What must hold of every set of judgements, whatever was fed.
//!
//! Owns the check that every call, every entry and every gap of record on an MCP stream is the subject of exactly one verdict.
//! Debug builds run it at the end of each correlation. It judges nothing.

use crate::pairing::statement::EntryIx;
use crate::role::Leg;
use crate::verdict::{Case, Judgement, Subject};

/// An invariant that does not hold: our fault, whatever the input was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A call has another number of verdicts than one.
    #[error("call {call} has {verdicts} verdicts")]
    Call {
        /// Index of the call.
        call: usize,
        /// Its verdicts.
        verdicts: u32,
    },
    /// An entry has another number of verdicts than one.
    #[error("entry {} has {verdicts} verdicts", entry.0)]
    Entry {
        /// Index of the entry.
        entry: EntryIx,
        /// Its verdicts.
        verdicts: u32,
    },
    /// A gap has another number of verdicts than it must.
    #[error("gap {gap} has {verdicts} verdicts")]
    Gap {
        /// Index of the gap.
        gap: usize,
        /// Its verdicts.
        verdicts: u32,
    },
}

/// Counts the verdicts of every subject.
///
/// # Errors
/// The first [`Violation`].
pub fn check(
    case: Case<'_>,
    judgements: &[Judgement],
    carries_mcp: impl Fn(crate::channel::StreamIx) -> bool,
) -> Result<(), Violation> {
    let mut calls = vec![0u32; case.calls.len()];
    let mut entries = vec![0u32; case.entries.len()];
    let mut gaps = vec![0u32; case.gaps.all().len()];
    let count = |list: &mut Vec<u32>, ix: usize| {
        if let Some(count) = list.get_mut(ix) {
            *count += 1;
        }
    };
    for judgement in judgements {
        match judgement.subject {
            Subject::Call(call) => count(&mut calls, call),
            Subject::Entry(entry) => count(&mut entries, entry.0 as usize),
            Subject::CallAndEntry(call, entry) => {
                count(&mut calls, call);
                count(&mut entries, entry.0 as usize);
            }
            Subject::Gap(gap) => count(&mut gaps, gap),
        }
    }
    let wrong = |list: &[u32]| list.iter().position(|count| *count != 1);
    if let Some(call) = wrong(&calls) {
        return Err(Violation::Call {
            call,
            verdicts: calls[call],
        });
    }
    if let Some(ix) = wrong(&entries) {
        let entry = EntryIx(u32::try_from(ix).unwrap_or(u32::MAX));
        return Err(Violation::Entry {
            entry,
            verdicts: entries[ix],
        });
    }
    for (gap, (placed, verdicts)) in case.gaps.all().iter().zip(gaps).enumerate() {
        let judged = placed.of_record
            && !matches!(placed.leg, Leg::ProxyFile(_))
            && carries_mcp(placed.stream);
        if verdicts != u32::from(judged) {
            return Err(Violation::Gap { gap, verdicts });
        }
    }
    Ok(())
}
