//! Rows of calls.

use super::Writer;
use crate::call::scene::ends;
use crate::call::{Call, CallKind, Passage, Route, Way};
use crate::pairing::content::WireContent;
use crate::row::CallRow;
use crate::row::ids::ProcessId;
use crate::verdict::{Judgement, Verdict, Via};

impl Writer<'_> {
    pub(super) fn calls(&mut self) {
        let judgements = self.judgements;
        for judgement in judgements {
            let Some(ix) = judgement.call() else { continue };
            let call = &self.derived.calls[ix];
            if let Some(row) = self.call_row(ix, call, judgement) {
                self.emit(row);
            }
        }
    }

    fn call_row(&self, ix: usize, call: &Call, judgement: &Judgement) -> Option<CallRow> {
        let subject = call.subject()?;
        let primary = subject.primary()?;
        let placed = &self.derived.placed[primary.placed.0 as usize];
        let proxy = call
            .route
            .instance()
            .map(|instance| self.derived.roles.instance(instance).proxy);
        let out_of_scope = (judgement.verdict == Verdict::OutOfScope)
            .then_some(judgement.reason)
            .flatten();
        let wire = if out_of_scope.is_some() {
            WireContent::default()
        } else {
            WireContent::of(self.case.scene, call)
        };
        let (sender, receiver) = self.parties(subject);
        let at = call.at();
        let answered = call.response.as_ref().filter(|_| call.request.is_some());
        let message = call.request.as_ref().map(|request| &request.message);
        Some(CallRow {
            call_id: self.call_id(ix)?,
            capture_id: self.capture(),
            kind: call.kind().as_str(),
            direction: direction(call),
            via: judgement.via.map_or("unknown", Via::as_str),
            proxy_name: proxy
                .and_then(|proxy| self.proxy_name(proxy))
                .map(str::to_owned),
            channel_id: self.channel_id(placed.stream.channel),
            sender_process_id: sender,
            receiver_process_id: receiver,
            request_frame_id: call
                .request
                .as_ref()
                .and_then(|request| self.frame_of(request)),
            request_element: call
                .request
                .as_deref()
                .and_then(Passage::primary)
                .map_or(0, |sighting| sighting.element),
            response_frame_id: call
                .response
                .as_ref()
                .and_then(|response| self.frame_of(response)),
            response_element: call
                .response
                .as_deref()
                .and_then(Passage::primary)
                .map(|sighting| sighting.element),
            method: message.and_then(|message| message.method.clone()),
            tool_name: message.and_then(|message| message.tool_name.clone()),
            jsonrpc_id: subject.message.id.clone(),
            params: self.privacy.text(wire.params, proxy),
            result: self.privacy.text(wire.result, proxy),
            error: self.privacy.text(wire.error, proxy),
            error_code: call
                .response
                .as_ref()
                .and_then(|response| response.message.error_code),
            answered: answered.is_some(),
            sent_utc: self.utc(at),
            sent_boot_ns: at,
            answered_utc: answered.map(|response| self.utc(response.until)),
            answered_boot_ns: answered.map(|response| response.until),
            duration_ns: answered.map(|response| response.until.0.saturating_sub(at.0)),
            out_of_scope,
            allowed_by: (judgement.verdict == Verdict::Allowed)
                .then(|| {
                    self.correlator
                        .settings
                        .allow_direct
                        .first()
                        .map(|rule| rule.reason.clone())
                })
                .flatten(),
        })
    }

    /// The process that sent the call's first message and the one that received it at the end of its way.
    pub(super) fn parties(&self, passage: &Passage) -> (Option<ProcessId>, Option<ProcessId>) {
        let end = |sighting: Option<crate::call::Sighting>| {
            sighting.map(|sighting| {
                ends(
                    self.case.scene,
                    &self.derived.placed[sighting.placed.0 as usize],
                )
            })
        };
        let first = end(passage.sent.or(passage.received));
        let last = end(passage.received.or(passage.sent));
        (
            first
                .and_then(|(writer, _)| writer)
                .map(|process| self.process_id(process)),
            last.and_then(|(_, reader)| reader)
                .map(|process| self.process_id(process)),
        )
    }

    fn frame_of(&self, passage: &Passage) -> Option<crate::row::ids::FrameId> {
        passage
            .primary()
            .map(|sighting| self.frame_id(self.record_of(sighting.placed)))
    }
}

/// On a direct channel nothing says who the client is but who asks: the requests' way is the client's.
fn direction(call: &Call) -> &'static str {
    match (call.route, call.kind()) {
        (Route::Direct(..), CallKind::Request) => Way::ToServer.as_str(),
        (Route::Direct(..), CallKind::ResponseWithoutRequest) => Way::ToClient.as_str(),
        (Route::Direct(..), CallKind::Notification)
        | (Route::Proxy(_) | Route::ProxyOwn(_) | Route::Foreign(_), _) => call.way.as_str(),
    }
}
