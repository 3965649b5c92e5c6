//! The table of verdicts.

use super::ids::{CallId, CaptureId, CoverageId, EntryId, ProcessId, VerdictId};
use super::table::table;
use super::{BootNs, UtcNs};

table! {
    /// One row per call, covered entry and gap on an MCP stream: what became of it when both views were held against each other.
    VerdictRow: "verdicts" by subject_utc {
        /// Id of the verdict.
        verdict_id: VerdictId,
        /// Capture that it belongs to.
        capture_id: CaptureId,
        /// What it is about: `call_and_entry`, `call`, `entry` or `gap`.
        subject: &'static str,
        /// Time of the subject: a call's first byte, else when the entry was observed, else when the gap began.
        subject_utc: UtcNs,
        /// The same by the boot clock.
        subject_boot_ns: Option<BootNs>,
        /// The call; null if the subject has none.
        call_id: Option<CallId>,
        /// The entry; null if the subject has none.
        entry_id: Option<EntryId>,
        /// The gap's row in `coverage`; null if the subject is none, and for `undecided` the gap that made it so, if one did.
        coverage_id: Option<CoverageId>,
        /// `matched`, `bypassed`, `altered`, `unlogged`, `blocked`, `undecided`, `allowed`, `pending`, `forged`, `replayed`, `unobserved`,
        /// `outside` or `out_of_scope`.
        verdict: &'static str,
        /// Why, in one word: the ambiguity for `undecided`, the reason for `out_of_scope` and `unobserved`, else null.
        reason: Option<&'static str>,
        /// How a bypass was made: `own_server`, `direct_connect`, `foreign_writer`, `handed_over`; null for other verdicts.
        via: Option<&'static str>,
        /// What is known about the signature, in the words of `entries.signature_state`; null without entry.
        signature: Option<&'static str>,
        /// Who could have read the signing key: `agent`, `server`, `other` or `none_known`; null if no key is at stake.
        key_reach: Option<&'static str>,
        /// What the legs of the way tell of each other: `equal`, `changed`, `missing`; null where there is one leg or none.
        hops: Option<&'static str>,
        /// What agreed, or what the verdict rests on, as `method`, `params`, `params_redacted`, `result`, `error`, `request_id`, `time`,
        /// `third_view`, `both_ends`.
        basis: Vec<&'static str>,
        /// What differs in an `altered` subject: `signature`, `method`, `tool_name`, `params`, `result`, `error`, `direction`.
        field: Option<&'static str>,
        /// Where in that field: a JSON pointer (RFC 6901), shortened if long.
        pointer: Option<String>,
        /// Which side differs from the others: `log`, `proxy_to_server`, `proxy_to_client`.
        side: Option<&'static str>,
        /// A known silence of this proxy that would explain an `unlogged` call; it does not excuse it.
        expected: Option<&'static str>,
        /// Whether the agent could have provoked that silence; null without one.
        agent_controllable: Option<bool>,
        /// The subject stands in a group of equal calls and equal entries, and could change places with another of the group.
        interchangeable: bool,
        /// Number of calls and entries in that group, the larger of the two; 1 outside a group.
        group_size: u32,
        /// Calls or entries that would fit as well, where the choice was open.
        candidates: Vec<String>,
        /// The content rests on the memory of a process that is not trusted.
        untrusted_end: bool,
        /// What raises or lowers the trust in this verdict, as `answered`, `request_only`, `claimed_proxy`, `log_owner`, `gap_nearby`.
        confidence: Vec<&'static str>,
        /// Name of the proxy at stake; null if none.
        proxy_name: Option<String>,
        /// Process of the agent's tree that made the call; null if not seen.
        process_id: Option<ProcessId>,
        /// Method, from the call or else the entry.
        method: Option<String>,
        /// Tool, from the call or else the entry.
        tool_name: Option<String>,
        /// Id of the request, from the call (as in its text) or else the entry (as in the log).
        request_id: Option<String>,
    }
}
