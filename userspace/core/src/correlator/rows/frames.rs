//! Rows of frames: both ends of every delivery on a stream that carries MCP, and of other JSON-RPC.

use std::collections::BTreeSet;

use super::{Writer, leniency_words};
use crate::call::PlacedIx;
use crate::call::passage::Oddity;
use crate::channel::End;
use crate::evidence::{Placed, Source};
use crate::frame::{Frame, FrameFlags, FrameIx};
use crate::role::Leg;
use crate::row::FrameRow;

impl Writer<'_> {
    pub(super) fn frames(&mut self) {
        let derived = self.derived;
        let refuted = self.refuted();
        for (placed, ix) in derived.placed.iter().zip(0u32..) {
            let ix = PlacedIx(ix);
            let wanted = !self.carried.by(ix).is_empty() || derived.mcp.contains(&placed.stream);
            // Between two proxies a frame is on two legs, and one row.
            let again = derived.roles.second_leg(placed.stream) == Some(placed.leg);
            if !wanted || again || matches!(placed.leg, Leg::ProxyFile(_)) {
                continue;
            }
            for frame in [placed.delivery.written, placed.delivery.read]
                .into_iter()
                .flatten()
            {
                let row = self.frame_row(ix, placed, frame, refuted.contains(&ix));
                self.emit(row);
            }
        }
    }

    /// What was never in its channel, as a better end shows.
    fn refuted(&self) -> BTreeSet<PlacedIx> {
        let oddities = self.derived.passages.oddities.iter();
        oddities
            .filter_map(|oddity| match oddity {
                Oddity::ReaderLies(ix) | Oddity::WriterLies(ix) => Some(*ix),
                Oddity::ReaderDenies(_)
                | Oddity::Malformed(_)
                | Oddity::LineCut(_)
                | Oddity::McpLike(_)
                | Oddity::Wrapped(_)
                | Oddity::NotJsonRpc(_)
                | Oddity::Incomplete(_)
                | Oddity::Relayed(_) => None,
            })
            .collect()
    }

    fn frame_row(
        &self,
        ix: PlacedIx,
        placed: &Placed,
        frame_ix: FrameIx,
        refuted: bool,
    ) -> FrameRow {
        let frame = &self.correlator.frames[frame_ix.0 as usize];
        let carried = self.carried.by(ix);
        let only = match carried {
            [passage] => Some(&passage.message),
            [] | [_, ..] => None,
        };
        let proxy = placed
            .leg
            .instance()
            .map(|instance| self.derived.roles.instance(instance).proxy);
        let of_record = frame_ix == placed.record;
        let in_scope =
            placed.leg != Leg::Direct || carried.iter().any(|passage| passage.message.is_mcp);
        // Nobody received what was refuted: its bytes are no evidence of anything but a lie, which its hash can prove.
        let payload = (of_record && in_scope && !refuted && !frame.bytes.is_empty())
            .then(|| self.privacy.bytes(&frame.bytes, proxy))
            .flatten();
        let complete = frame.is_complete();
        let leniency = carried
            .iter()
            .fold(crate::json::Leniency::empty(), |all, passage| {
                all | passage.message.leniency
            });
        let process_at = |end: End| {
            let at = if frame.end == end {
                Some(frame_ix)
            } else {
                partner(placed, end)
            };
            let frame = at.and_then(|ix| self.correlator.frames.get(ix.0 as usize))?;
            frame.by.first().map(|process| self.process_id(*process))
        };
        FrameRow {
            frame_id: self.frame_id(frame_ix),
            capture_id: self.capture(),
            channel_id: self.channel_id(frame.stream.channel),
            stream: self.stream_name(frame.stream),
            hop: self.hop_name(ix),
            end: frame.end.as_str(),
            evidence_source: source_of(placed, frame),
            untrusted_end: !of_record || placed.untrusted,
            writer_process_id: process_at(End::Writer),
            reader_process_id: process_at(End::Reader),
            several_writers: frame.end == End::Writer && frame.by.len() > 1,
            first_byte_utc: self.utc(frame.first_exit),
            first_byte_boot_ns: frame.first_exit,
            last_byte_utc: self.utc(frame.last_exit),
            last_byte_boot_ns: frame.last_exit,
            stream_offset: frame.position,
            byte_len: frame.len,
            framing: if frame.flags.contains(FrameFlags::SPANS_LINES) {
                "value"
            } else {
                "line"
            },
            complete,
            gap_bytes: 0,
            gap_reason: self.gap_reason(frame),
            after_gap: frame.flags.contains(FrameFlags::HEAD_MISSING),
            unterminated: frame.flags.contains(FrameFlags::UNTERMINATED),
            leniency: leniency_words(leniency),
            kind: match carried {
                _ if frame.flags.contains(FrameFlags::NOT_JSON) => "not_json",
                _ if frame.flags.contains(FrameFlags::TOO_LONG) => "oversized",
                _ if !complete => "incomplete",
                _ if refuted => "refuted",
                [] => "not_json_rpc",
                [passage] => passage.message.kind.as_str(),
                [_, ..] => "batch",
            },
            element_count: u32::try_from(carried.len()).unwrap_or(u32::MAX),
            jsonrpc_id: only.and_then(|message| message.id.clone()),
            method: only.and_then(|message| message.method.clone()),
            tool_name: only.and_then(|message| message.tool_name.clone()),
            out_of_scope: (!in_scope).then_some("unknown_method"),
            payload_mode: match (&payload, in_scope) {
                _ if refuted => "refuted",
                (Some(_), true) => self.privacy.mode.as_str(),
                (None, true) => "hash",
                (_, false) => "withheld",
            },
            payload,
            payload_hash: (complete && !frame.bytes.is_empty())
                .then(|| self.privacy.hash(&frame.bytes))
                .flatten(),
        }
    }

    fn gap_reason(&self, frame: &Frame) -> Option<&'static str> {
        if frame.flags.contains(FrameFlags::ORDER_AMBIGUOUS) {
            return Some("order_ambiguous");
        }
        if frame.is_complete() {
            return None;
        }
        let stream = self.correlator.streams.get(&frame.stream)?;
        let gap = stream
            .gaps
            .iter()
            .rev()
            .find(|(end, gap)| *end == frame.end && gap.since <= frame.last_exit)?;
        Some(gap.1.reason.as_str())
    }
}

fn partner(placed: &Placed, end: End) -> Option<FrameIx> {
    match end {
        End::Writer => placed.delivery.written,
        End::Reader => placed.delivery.read,
    }
}

fn source_of(placed: &Placed, frame: &Frame) -> &'static str {
    match frame.end {
        end if placed.source == Source::ProxyEnd && end == placed.leg.end_of_proxy() => {
            Source::ProxyEnd.as_str()
        }
        End::Reader if frame.flags.contains(FrameFlags::KERNEL_COPY) => Source::KernelCopy.as_str(),
        End::Reader => Source::ReaderEnd.as_str(),
        End::Writer => Source::WriterEnd.as_str(),
    }
}
