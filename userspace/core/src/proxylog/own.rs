//! What `countersign proxy` writes where mcp-audit is silent, in the same format.
//!
//! Facts about traffic that is no ordinary call stand in entries with a method of their own, in
//! `params`, because the signature covers those.

use crate::json::{Document, Limits};

/// A line that is no JSON. `params: {bytes, reason, sha256}` describe it without its line end.
pub const UNPARSEABLE: &str = "countersign/unparseable";

/// A line of JSON that holds (or is a batch that holds) something that is neither request nor answer.
/// `params` as above; the messages beside it in a batch have entries of their own.
pub const NOT_A_MESSAGE: &str = "countersign/not_a_message";

/// A line over the limit. `params` as above.
pub const OVERSIZED: &str = "countersign/oversized";

/// An answer to no request that is in flight; `request_id`, `result`, `error` are the answer's.
pub const UNMATCHED_RESPONSE: &str = "countersign/unmatched_response";

/// Entries that `--fail-open` gave up. `params: {entries}`.
pub const DROPPED: &str = "countersign/dropped";

/// `error.code` of the entry for a request that was never answered; its `error.data` is
/// `{"countersign":"no_response","reason":…}`, so that it cannot be taken for a server's own error.
pub const NO_RESPONSE_CODE: i64 = -32001;

/// The value of `error.data.countersign` for a request that was never answered.
pub const NO_RESPONSE: &str = "no_response";

/// Whether an entry's error says that no answer came.
pub fn says_unanswered(error: Option<&[u8]>) -> bool {
    let Some(document) = error.and_then(|raw| Document::parse(raw, Limits::default()).ok()) else {
        return false;
    };
    let root = document.root();
    root.get("code").and_then(|code| code.as_i64()) == Some(NO_RESPONSE_CODE)
        && root
            .get("data")
            .and_then(|data| data.get("countersign"))
            .is_some_and(|word| word.is_str(NO_RESPONSE))
}
