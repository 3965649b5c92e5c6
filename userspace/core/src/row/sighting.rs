//! The table of sightings.

use super::UtcNs;
use super::ids::{CallId, CaptureId, FrameId, VerdictId};
use super::table::table;

table! {
    /// One row per frame that a verdict rests on: which message of which frame, at which end of which leg.
    SightingRow: "sightings" by subject_utc {
        /// Verdict that rests on it.
        verdict_id: VerdictId,
        /// Capture that it belongs to.
        capture_id: CaptureId,
        /// Time of the verdict's subject, as in `verdicts`, so that both lie in the same partition.
        subject_utc: UtcNs,
        /// Call that was seen; null if none could be made of it.
        call_id: Option<CallId>,
        /// Frame that shows it.
        frame_id: FrameId,
        /// Place in that frame's batch, from 0.
        element: u32,
        /// Leg of the way, in the words of `frames.hop`.
        hop: &'static str,
        /// End of the leg: `writer` or `reader`.
        end: &'static str,
        /// What it shows of the call: `request`, `response` or `notification`.
        role: &'static str,
        /// This is the sighting whose bytes count for its leg.
        of_record: bool,
        /// How its content compares with that of the sender's leg: `equal`, `changed`; null if it was not compared.
        content: Option<&'static str>,
    }
}
