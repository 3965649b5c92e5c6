//! Rows of verdicts, and of the sightings that they rest on.

use super::Writer;
use crate::call::{Hops, Passage, Sighting};
use crate::row::ids::VerdictId;
use crate::row::{SightingRow, UtcNs, VerdictRow};
use crate::verdict::{Judgement, KeyReach, Subject, Via, signature_str};

impl Writer<'_> {
    pub(super) fn verdicts(&mut self) {
        let judgements = self.judgements;
        for judgement in judgements {
            let Some(row) = self.verdict_row(judgement) else {
                continue;
            };
            let (verdict_id, subject_utc) = (row.verdict_id, row.subject_utc);
            self.emit(row);
            self.sightings(judgement, verdict_id, subject_utc);
        }
        self.findings();
        self.evasions();
    }

    fn verdict_row(&self, judgement: &Judgement) -> Option<VerdictRow> {
        let (_, subject_utc, subject_boot_ns) = self.subject_key(judgement)?;
        let call = judgement.call().map(|ix| &self.derived.calls[ix]);
        let entry = judgement
            .entry()
            .map(|ix| &self.correlator.entries[ix.0 as usize].entry);
        let message = call
            .and_then(|call| call.request.as_ref())
            .map(|request| &request.message);
        let primary = call
            .and_then(|call| call.subject())
            .and_then(Passage::primary)
            .map(|sighting| &self.derived.placed[sighting.placed.0 as usize]);
        Some(VerdictRow {
            verdict_id: self.verdict_id(judgement)?,
            capture_id: self.capture(),
            subject: match judgement.subject {
                Subject::Call(_) => "call",
                Subject::Entry(_) => "entry",
                Subject::CallAndEntry(..) => "call_and_entry",
                Subject::Gap(_) => "gap",
            },
            subject_utc,
            subject_boot_ns,
            call_id: judgement.call().and_then(|ix| self.call_id(ix)),
            entry_id: judgement.entry().map(|ix| self.entry_id(ix)),
            coverage_id: judgement.gap.map(|ix| self.gap_id(ix)),
            verdict: judgement.verdict.as_str(),
            reason: judgement.reason,
            via: judgement
                .via
                .filter(|via| *via != Via::Proxy)
                .map(Via::as_str),
            signature: judgement.signature.map(signature_str),
            key_reach: judgement.key_reach.map(KeyReach::as_str),
            hops: judgement.hops.and_then(Hops::as_str),
            basis: judgement.basis.clone(),
            field: judgement.field,
            pointer: judgement.pointer.clone(),
            side: judgement.side,
            expected: judgement.expected.map(|(silence, _)| silence),
            agent_controllable: judgement.expected.map(|(_, agent)| agent),
            interchangeable: judgement.interchangeable,
            group_size: judgement.group_size,
            candidates: judgement
                .candidates
                .iter()
                .map(|ix| self.entry_id(*ix).to_string())
                .collect(),
            untrusted_end: primary.is_some_and(|placed| placed.untrusted),
            confidence: judgement.confidence.clone(),
            proxy_name: judgement
                .proxy
                .and_then(|proxy| self.proxy_name(proxy))
                .map(str::to_owned),
            process_id: call
                .and_then(|call| call.subject())
                .and_then(|passage| self.parties(passage).0),
            method: message
                .and_then(|message| message.method.clone())
                .or_else(|| entry.map(|entry| entry.method.clone())),
            tool_name: message
                .and_then(|message| message.tool_name.clone())
                .or_else(|| entry.and_then(|entry| entry.tool_name.clone())),
            request_id: call
                .and_then(|call| call.subject())
                .and_then(|passage| passage.message.id.clone())
                .or_else(|| entry.and_then(|entry| entry.request_id.clone())),
        })
    }

    fn sightings(&mut self, judgement: &Judgement, verdict_id: VerdictId, subject_utc: UtcNs) {
        let Some(ix) = judgement.call() else { return };
        let derived = self.derived;
        let call = &derived.calls[ix];
        let call_id = self.call_id(ix);
        for passage in [&call.request, &call.response].into_iter().flatten() {
            for sighting in [passage.sent, passage.received].into_iter().flatten() {
                let placed = &derived.placed[sighting.placed.0 as usize];
                for frame in [placed.delivery.written, placed.delivery.read]
                    .into_iter()
                    .flatten()
                {
                    let row = SightingRow {
                        verdict_id,
                        capture_id: self.capture(),
                        subject_utc,
                        call_id,
                        frame_id: self.frame_id(frame),
                        element: sighting.element,
                        hop: self.hop_name(sighting.placed),
                        end: self.correlator.frames[frame.0 as usize].end.as_str(),
                        role: role_of(passage),
                        of_record: frame == placed.record,
                        content: content_of(passage, sighting),
                    };
                    self.emit(row);
                }
            }
        }
    }
}

fn role_of(passage: &Passage) -> &'static str {
    use crate::message::MessageKind as K;
    match passage.message.kind {
        K::Request => "request",
        K::Notification => "notification",
        K::Response | K::ErrorResponse | K::NotJsonRpc => "response",
    }
}

fn content_of(passage: &Passage, sighting: Sighting) -> Option<&'static str> {
    if passage.sent == Some(sighting) {
        return None;
    }
    match passage.hops {
        Hops::Equal => Some("equal"),
        Hops::Changed => Some("changed"),
        Hops::Missing | Hops::Single => None,
    }
}
