//! Judgement of calls that a proxy passed: undecided, altered, blocked, matched or unlogged.

use std::sync::Arc;

use crate::call::{Call, CallKind, Hops, Passage, Route, Trouble, Way};
use crate::evidence::Source;
use crate::pairing::assign::{EARLY_NS, LATE_NS, Likeness};
use crate::pairing::content::WireContent;
use crate::pairing::statement::{EntryIx, ThirdView};
use crate::proxylog::{Redaction, SignatureState, signature};
use crate::role::{InstanceIx, Leg};
use crate::time::BootNs;
use crate::verdict::difference::{self, content_difference};
use crate::verdict::{Case, Judgement, Subject, Verdict, Via};

/// An answer later than this is one that mcp-audit forgets to log, nanoseconds.
const LATE_ANSWER_NS: u64 = 30_000_000_000;

/// Error codes with which mcp-audit refuses: by policy, by rate.
const REFUSALS: [i64; 2] = [-32030, -32029];

/// Through the proxy: undecided, altered, blocked, matched or unlogged.
pub(super) fn proxied(case: Case<'_>, ix: usize, call: &Call, instance: InstanceIx) -> Judgement {
    let subject = Subject::Call(ix);
    let proxy = case.scene.roles.instance(instance).proxy;
    let base = |verdict| {
        let mut judgement = Judgement::new(subject, verdict);
        judgement.via = Some(Via::Proxy);
        judgement.proxy = Some(proxy);
        judgement.hops = Some(call.hops());
        judgement
    };
    let side = case.side_of_call.get(ix).copied().flatten();
    let pair = side.and_then(|side| case.assignment.of_call[side]);
    if let Some(doubt) = doubt_of(case, call, instance) {
        let mut judgement = base(Verdict::Undecided);
        doubt.apply(&mut judgement);
        case.attach_entry(ix, pair.map(|pair| pair.with), &mut judgement);
        return judgement;
    }
    if let Some(gap) = pair.and_then(|pair| unlike_by_loss(case, call, instance, pair.likeness)) {
        let mut judgement = base(Verdict::Undecided);
        judgement.undecide("gap", Some(gap));
        case.attach_entry(ix, pair.map(|pair| pair.with), &mut judgement);
        return judgement;
    }
    if let Some(candidates) = side.and_then(|side| case.assignment.which.get(&side)) {
        let mut judgement = base(Verdict::Undecided);
        judgement.reason = Some("which");
        judgement.candidates = candidates
            .iter()
            .filter_map(|at| case.statements[*at].on_disk)
            .collect();
        return judgement;
    }
    if cut_off(
        case,
        call,
        pair.and_then(|pair| case.statements[pair.with].on_disk),
    ) {
        let mut judgement = base(Verdict::Undecided);
        judgement.reason = Some("after_end");
        case.attach_entry(ix, pair.map(|pair| pair.with), &mut judgement);
        return judgement;
    }
    if pair.is_none()
        && case.scene.roles.instance(instance).to.is_some()
        && case.receivers.excuse(call)
    {
        // The proxy, too, ended before it came to that.
        let mut judgement = base(Verdict::Undecided);
        judgement.reason = Some("receiver_ended");
        return judgement;
    }
    let Some(pair) = pair else {
        let mut judgement = unlogged(case, call, instance, base(Verdict::Unlogged));
        if let Some(size) = side.and_then(|side| case.assignment.surplus_calls.get(&side)) {
            judgement.interchangeable = *size > 1;
            judgement.group_size = *size;
        }
        return judgement;
    };
    let statement = &case.statements[pair.with];
    let Some(entry_ix) = statement.on_disk else {
        let mut judgement = unlogged(case, call, instance, base(Verdict::Unlogged));
        judgement.reason = Some("line_deleted");
        judgement.expected = None;
        judgement.basis.push("third_view");
        return judgement;
    };
    let mut judgement = base(Verdict::Matched);
    judgement.subject = Subject::CallAndEntry(ix, entry_ix);
    judgement.interchangeable = pair.interchangeable;
    judgement.group_size = pair.group;
    judgement.third_view = Some(statement.third_view);
    judgement.key_reach = Some(case.key_reach(instance));
    compare_with_entry(
        case,
        call,
        instance,
        entry_ix,
        pair.likeness,
        &mut judgement,
    );
    // What is wrong with the entry itself is wrong whatever was missed; what is wrong with the call may be that its answer, or
    // its forwarding, is another one's of the same id.
    let of_the_call = judgement.verdict == Verdict::Blocked
        || (judgement.verdict == Verdict::Altered
            && !matches!(judgement.field, Some("signature" | "line")));
    if of_the_call
        && let Some(gap) = case
            .gaps
            .at_proxy(instance, call.at(), call.until(), |_| true)
    {
        judgement.undecide("gap", Some(gap));
    }
    judgement
}

/// The rest of the call may have come after the end of the capture: it is not complete, and the capture was cut, or the entry
/// was written later.
fn cut_off(case: Case<'_>, call: &Call, entry: Option<EntryIx>) -> bool {
    let complete = match (call.kind(), &call.response) {
        (CallKind::Request, None) => false,
        (CallKind::Request | CallKind::Notification | CallKind::ResponseWithoutRequest, _) => {
            [&call.request, &call.response]
                .into_iter()
                .flatten()
                .all(|passage| passage.hops != Hops::Missing)
        }
    };
    let end = case.clock.utc(case.end).0;
    // Its answer, and the entry, may still come.
    let alive = call
        .route
        .instance()
        .is_some_and(|instance| case.scene.roles.instance(instance).to.is_none());
    let later = entry
        .and_then(|ix| case.entries[ix.0 as usize].entry.utc_ns)
        .is_some_and(|at| at > end);
    !complete && (later || alive && entry.is_none() || !case.ended_in_order)
}

/// Holds a call against the entry on disk and settles between altered, blocked and matched.
fn compare_with_entry(
    case: Case<'_>,
    call: &Call,
    instance: InstanceIx,
    entry_ix: EntryIx,
    likeness: Likeness,
    judgement: &mut Judgement,
) {
    let entry = &case.entries[entry_ix.0 as usize].entry;
    let wire = WireContent::of(case.scene, call);
    let policy = case.policy_of(instance).map(|(_, policy)| policy);
    let redaction = policy.map_or(Redaction::usual(), |policy| &policy.redaction);
    let state = signature::verify(
        entry,
        policy.and_then(|policy| policy.key.as_ref()),
        wire.params,
    );
    judgement.signature = Some(state);
    let difference = content_difference(call, entry, &wire, redaction, &mut judgement.basis);
    let trouble = [call.request.as_ref(), call.response.as_ref()]
        .into_iter()
        .flatten()
        .find_map(|passage| passage.trouble.map(|trouble| (trouble, passage.way)));
    if let Some((Trouble::RunTogether, _)) = trouble {
        judgement.undecide(Trouble::RunTogether.as_str(), None);
        return;
    }
    if let Some((trouble, way)) = trouble {
        // The log tells what the proxy saw; it is not what the other side had.
        alter(
            judgement,
            "delivery",
            None,
            if way == Way::ToServer {
                "proxy_to_server"
            } else {
                "server_to_proxy"
            },
        );
        judgement.reason = Some(trouble.as_str());
        return;
    }
    if let Some(difference::Finding::Different(field, pointer)) = difference {
        alter(judgement, field, pointer, "log");
        return;
    }
    if matches!(state, SignatureState::Bad | SignatureState::Absent)
        && policy.is_some_and(|policy| policy.key.is_some())
    {
        alter(judgement, "signature", None, "log");
        judgement.reason = Some(if state == SignatureState::Bad {
            "signature_bad"
        } else {
            "signature_absent"
        });
        return;
    }
    if matches!(
        judgement.third_view,
        Some(ThirdView::Changed | ThirdView::NotWritten)
    ) {
        alter(judgement, "line", None, "log");
        judgement.reason = Some("rewritten_on_disk");
        return;
    }
    if entry.duplicate_keys {
        alter(judgement, "line", None, "log");
        judgement.reason = Some("duplicate_keys");
        return;
    }
    // The line that the proxy wrote may have been another: what was missed there must not be worth more than what was seen.
    if judgement.third_view == Some(ThirdView::Unknown)
        && let Some(gap) = third_view_gap(case, call, instance)
    {
        judgement.undecide("gap", Some(gap));
        return;
    }
    settle_by_legs(call, likeness, judgement);
    if judgement.reason == Some("not_forwarded") {
        let own_proxy = case.scene.roles.instance(instance).own;
        let reason = if case.receivers.excuse(call) {
            Some("receiver_ended")
        } else {
            case.receivers
                .given_up(call, own_proxy, entry)
                .then_some("not_delivered")
        };
        if let Some(reason) = reason {
            judgement.undecide(reason, None);
            judgement.field = None;
            judgement.side = None;
        }
    }
    let Some(difference::Finding::Lossy(field, pointer)) = difference else {
        return;
    };
    if judgement.verdict == Verdict::Matched {
        // The log rounds: the entry tells of this call and of others alike, and nothing proves which.
        judgement.undecide("lossy_log", None);
        judgement.field = Some(field);
        judgement.pointer = pointer;
        judgement.side = Some("log");
    } else {
        judgement.confidence.push("lossy_log");
    }
}

/// Log and wire agree; what the legs tell decides between altered, blocked and matched.
fn settle_by_legs(call: &Call, likeness: Likeness, judgement: &mut Judgement) {
    let refused = call.response.as_ref().is_some_and(|response| {
        matches!(response.route, Route::ProxyOwn(_))
            && response
                .message
                .error_code
                .is_some_and(|code| REFUSALS.contains(&code))
    });
    let forwarded = call
        .request
        .as_ref()
        .is_none_or(|request| request.received.is_some());
    match call.hops() {
        Hops::Changed => {
            let side = changed_side(call);
            alter(
                judgement,
                if side == "proxy_to_server" {
                    "params"
                } else {
                    "result"
                },
                None,
                side,
            );
            judgement.reason = Some("legs_differ");
        }
        Hops::Missing if !forwarded && refused => judgement.verdict = Verdict::Blocked,
        Hops::Missing => {
            let side = if forwarded {
                "proxy_to_client"
            } else {
                "proxy_to_server"
            };
            alter(judgement, "delivery", None, side);
            judgement.reason = Some("not_forwarded");
        }
        Hops::Equal | Hops::Single if refused && forwarded => {
            alter(judgement, "error", None, "proxy_to_server");
            judgement.reason = Some("refused_but_forwarded");
        }
        Hops::Equal | Hops::Single => {
            judgement.basis.push("time");
            if likeness == Likeness::Redacted {
                judgement.basis.push("params_redacted");
            }
        }
    }
}

fn alter(
    judgement: &mut Judgement,
    field: &'static str,
    pointer: Option<String>,
    side: &'static str,
) {
    judgement.verdict = Verdict::Altered;
    judgement.field = Some(field);
    judgement.pointer = pointer;
    judgement.side = Some(side);
}

/// What the log lacks. A known silence explains it and says whether the agent could have provoked it.
fn unlogged(
    case: Case<'_>,
    call: &Call,
    instance: InstanceIx,
    mut judgement: Judgement,
) -> Judgement {
    judgement.key_reach = Some(case.key_reach(instance));
    if case.scene.roles.instance(instance).own {
        return judgement;
    }
    // mcp-audit's silences; which proxy it is shows from the log's format, and this is the only one read so far.
    judgement.expected = match (&call.request, &call.response) {
        (Some(_), None) if call.kind() == CallKind::Request => Some(("unanswered", true)),
        (Some(request), Some(response))
            if response.until.0.saturating_sub(request.at.0) > LATE_ANSWER_NS =>
        {
            Some(("answered_after_30_s", true))
        }
        (None, Some(_)) => Some(("answer_without_request", true)),
        (Some(_), _) if call.duplicate_in_flight => Some(("duplicate_id_in_flight", true)),
        (Some(request), _)
            if request
                .message
                .leniency
                .contains(crate::json::Leniency::NON_FINITE) =>
        {
            Some(("unparsable_for_the_proxy", true))
        }
        (Some(request), _) if request.message.error.is_some() => Some(("error_in_request", true)),
        (Some(_) | None, _) => None,
    };
    judgement
}

/// Says of a leg whether it is meant.
type Legs = fn(Leg) -> bool;

/// The first doubt about a proxied call.
fn doubt_of(case: Case<'_>, call: &Call, instance: InstanceIx) -> Option<Doubt> {
    let passages = [call.request.as_ref(), call.response.as_ref()];
    if passages.iter().flatten().any(|passage| !passage.proved) {
        return Some(Doubt {
            reason: "order_ambiguous",
            gap: None,
        });
    }
    let on_its_way = |passage: &&Arc<Passage>| passage.trouble == Some(Trouble::OnItsWay);
    let made = call
        .response
        .as_ref()
        .is_some_and(|response| matches!(response.route, Route::ProxyOwn(_)));
    // Not of what the proxy says it refused.
    if !made
        && passages
            .into_iter()
            .flatten()
            .any(|passage| on_its_way(&passage))
    {
        let from = call.at();
        let lost = case
            .gaps
            .at_proxy(instance, from, case.end, Leg::proxy_writes);
        return Some(Doubt {
            reason: lost.map_or(Trouble::OnItsWay.as_str(), |_| "gap"),
            gap: lost,
        });
    }
    // Written to the proxy, but not seen to be read by it.
    let unread = passages
        .iter()
        .flatten()
        .filter_map(|passage| case.placed(passage))
        .find(|placed| {
            placed.source == Source::WriterEnd
                && matches!(placed.leg, Leg::ClientToProxy(_) | Leg::ServerToProxy(_))
        });
    if let Some(placed) = unread {
        return Some(Doubt {
            reason: "not_read",
            gap: case.gaps.in_stream(placed.stream, case.end),
        });
    }
    let overtaken = passages
        .iter()
        .flatten()
        // What is known to have become of it says more.
        .filter(|passage| passage.trouble.is_none())
        .filter_map(|passage| passage.received)
        .any(|sighting| case.scene.placed[sighting.placed.0 as usize].overtaken);
    if overtaken {
        return Some(Doubt {
            reason: "not_read",
            gap: None,
        });
    }
    let gap = |from, to, legs: Legs| {
        case.gaps
            .at_proxy(instance, from, to, legs)
            .map(|gap| Doubt {
                reason: "gap",
                gap: Some(gap),
            })
    };
    let to_client = |leg: Leg| matches!(leg, Leg::ServerToProxy(_) | Leg::ProxyToClient(_));
    let to_server = |leg: Leg| matches!(leg, Leg::ClientToProxy(_) | Leg::ProxyToServer(_));
    let (forth, back): (Legs, Legs) = match call.way {
        crate::call::Way::ToServer => (to_server, to_client),
        crate::call::Way::ToClient => (to_client, to_server),
    };
    match (&call.request, &call.response) {
        // An answer whose request, which went the other way, may have been missed.
        (None, Some(response)) => gap(BootNs(0), response.until, back),
        // A request whose forwarding may have been missed, or whose answer may have been.
        (Some(request), _) if matches!(request.hops, Hops::Missing | Hops::Changed) => {
            gap(request.at, case.end, forth).or_else(|| gap(request.at, case.end, back))
        }
        (Some(request), None) if call.kind() == CallKind::Request => {
            gap(request.at, case.end, back)
        }
        (Some(_), Some(response)) if matches!(response.hops, Hops::Missing | Hops::Changed) => {
            gap(response.at, case.end, back)
        }
        (Some(_) | None, _) => None,
    }
}

/// A gap because of which the entry that is least unlike a call can be that of another one.
fn unlike_by_loss(
    case: Case<'_>,
    call: &Call,
    instance: InstanceIx,
    likeness: Likeness,
) -> Option<usize> {
    match likeness {
        Likeness::Full | Likeness::Redacted => None,
        Likeness::IdAndMethod | Likeness::Id | Likeness::Method => {
            let from = call.at().0.saturating_sub(EARLY_NS.unsigned_abs());
            let to = call.until().0.saturating_add(LATE_NS.unsigned_abs());
            case.gaps
                .at_proxy(instance, BootNs(from), BootNs(to), |_| true)
        }
    }
}

/// A gap in what the proxy was seen to write into its log about the time of a call.
fn third_view_gap(case: Case<'_>, call: &Call, instance: InstanceIx) -> Option<usize> {
    let proxy = case.scene.roles.instance(instance).proxy;
    let from = BootNs(call.at().0.saturating_sub(EARLY_NS.unsigned_abs()));
    let to = BootNs(call.until().0.saturating_add(LATE_NS.unsigned_abs()));
    let mut own = case
        .scene
        .roles
        .instances()
        .filter(|(_, instance)| instance.proxy == proxy);
    own.find_map(|(writer, _)| case.gaps.in_files_of(writer, from, to))
}

struct Doubt {
    reason: &'static str,
    gap: Option<usize>,
}

impl Doubt {
    fn apply(&self, judgement: &mut Judgement) {
        judgement.undecide(self.reason, self.gap);
    }
}

fn changed_side(call: &Call) -> &'static str {
    let request_changed = call
        .request
        .as_ref()
        .is_some_and(|request| request.hops == Hops::Changed);
    match (request_changed, call.way) {
        (true, crate::call::Way::ToServer) | (false, crate::call::Way::ToClient) => {
            "proxy_to_server"
        }
        (true, crate::call::Way::ToClient) | (false, crate::call::Way::ToServer) => {
            "proxy_to_client"
        }
    }
}
