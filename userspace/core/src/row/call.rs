//! The table of calls.

use super::ids::{CallId, CaptureId, ChannelId, FrameId, ProcessId};
use super::table::{PayloadText, table};
use super::{BootNs, UtcNs};

table! {
    /// One row per call as its sender made it: a request with its answer or the lack of one, a notification, or an answer without
    /// request. A batch of n is n calls.
    CallRow: "calls" by sent_utc {
        /// Id of the call.
        call_id: CallId,
        /// Capture that it belongs to.
        capture_id: CaptureId,
        /// `request`, `notification` or `response_without_request`.
        kind: &'static str,
        /// `client_to_server` or `server_to_client`.
        direction: &'static str,
        /// How it travelled: `proxy`, `own_server`, `direct_connect`, `foreign_writer`, `handed_over` or `unknown`.
        via: &'static str,
        /// Name of the proxy that it went through; null if none.
        proxy_name: Option<String>,
        /// Channel that the sender wrote it to.
        channel_id: ChannelId,
        /// Process that sent it; null if not seen.
        sender_process_id: Option<ProcessId>,
        /// Process that received it in the end (the server for a client's request); null if it was not seen to arrive.
        receiver_process_id: Option<ProcessId>,
        /// Frame of record of the request or notification on the sender's hop.
        request_frame_id: Option<FrameId>,
        /// Place in that frame's batch, from 0.
        request_element: u32,
        /// Frame of record of the answer on the sender's hop.
        response_frame_id: Option<FrameId>,
        /// Place in that frame's batch, from 0; null without an answer.
        response_element: Option<u32>,
        /// Method.
        method: Option<String>,
        /// Name of the tool in a `tools/call`.
        tool_name: Option<String>,
        /// The JSON-RPC id as the sender wrote it.
        jsonrpc_id: Option<String>,
        /// Parameters, after this capture's payload mode.
        params: Option<PayloadText>,
        /// Result, after this capture's payload mode.
        result: Option<PayloadText>,
        /// Error, after this capture's payload mode.
        error: Option<PayloadText>,
        /// The `code` of the error.
        error_code: Option<i64>,
        /// An answer was seen.
        answered: bool,
        /// When the first byte was sent; for an answer without request, of the answer.
        sent_utc: UtcNs,
        /// The same by the boot clock.
        sent_boot_ns: BootNs,
        /// When the last byte of the answer was received by the sender of the request.
        answered_utc: Option<UtcNs>,
        /// The same by the boot clock.
        answered_boot_ns: Option<BootNs>,
        /// From first byte of the request to last byte of the answer, in nanoseconds.
        duration_ns: Option<u64>,
        /// Why this is not MCP traffic, in the words of `frames.out_of_scope`; null if it is.
        out_of_scope: Option<&'static str>,
        /// An operator's rule that allowed this channel; null if none did.
        allowed_by: Option<String>,
    }
}
