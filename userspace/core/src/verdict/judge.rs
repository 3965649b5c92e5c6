//! Judgement of calls, in the order of the rules: undecided, allowed, bypassed, altered, blocked, matched, unlogged.

use crate::call::passage::ends;
use crate::call::{Call, CallKind, Hops, Passage, Route, Way, bytes_of};
use crate::channel::{Channel, ChannelKind, End, Got};
use crate::evidence::{Placed, Source};
use crate::pairing::assign::{EARLY_NS, LATE_NS, Likeness};
use crate::pairing::content::WireContent;
use crate::pairing::statement::{EntryIx, ThirdView};
use crate::proxylog::{SignatureState, signature};
use crate::role::{InstanceIx, Leg};
use crate::time::BootNs;
use crate::verdict::difference::content_difference;
use crate::verdict::{Case, Judgement, Subject, Verdict, Via, doubt};

/// An answer later than this is one that mcp-audit forgets to log, nanoseconds.
const LATE_ANSWER_NS: u64 = 30_000_000_000;

/// Error codes with which mcp-audit refuses: by policy, by rate.
const REFUSALS: [i64; 2] = [-32030, -32029];

/// Judges every call.
pub fn calls(case: Case<'_>) -> Vec<Judgement> {
    (0..case.calls.len()).map(|ix| judge(case, ix)).collect()
}

fn judge(case: Case<'_>, ix: usize) -> Judgement {
    let call = &case.calls[ix];
    let mut judgement = match call.route {
        Route::Proxy(instance) => proxied(case, ix, call, instance),
        Route::ProxyOwn(instance) => proxy_own(case, ix, call, instance),
        Route::Foreign(instance) => foreign(case, ix, call, instance),
        Route::Direct(..) => direct(case, ix, call),
    };
    if call.response.is_some() && call.request.is_some() {
        judgement.confidence.push("answered");
    } else if call.kind() == CallKind::Request {
        judgement.confidence.push("request_only");
    }
    judgement
}

/// Through the proxy: undecided, altered, blocked, matched or unlogged.
fn proxied(case: Case<'_>, ix: usize, call: &Call, instance: InstanceIx) -> Judgement {
    let subject = Subject::Call(ix);
    let proxy = case.scene.roles.instance(instance).proxy;
    let base = |verdict| {
        let mut judgement = Judgement::new(subject, verdict);
        judgement.via = Some(Via::Proxy);
        judgement.proxy = Some(proxy);
        judgement.hops = Some(hops(call));
        judgement
    };
    let side = case.side_of_call.get(ix).copied().flatten();
    let pair = side.and_then(|side| case.assignment.of_call[side]);
    if let Some(doubt) = doubt_of(case, call, instance) {
        let mut judgement = base(Verdict::Undecided);
        doubt.apply(&mut judgement);
        attach_entry(case, ix, pair.map(|pair| pair.with), &mut judgement);
        return judgement;
    }
    if let Some(gap) = pair.and_then(|pair| unlike_by_loss(case, call, instance, pair.likeness)) {
        let mut judgement = base(Verdict::Undecided);
        undecided(&mut judgement, "gap", Some(gap));
        attach_entry(case, ix, pair.map(|pair| pair.with), &mut judgement);
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
        attach_entry(case, ix, pair.map(|pair| pair.with), &mut judgement);
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
        && let Some(gap) = doubt::at_proxy(case.gaps, instance, call.at(), call.until(), |_| true)
    {
        undecided(&mut judgement, "gap", Some(gap));
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
    let wire = wire_content(case, call);
    let policy = case.policy_of(instance).map(|(_, policy)| policy);
    let redaction = policy
        .map(|policy| policy.redaction.clone())
        .unwrap_or_default();
    let state = signature::verify(
        entry,
        policy.and_then(|policy| policy.key.as_ref()),
        wire.params,
    );
    judgement.signature = Some(state);
    let difference = content_difference(call, entry, &wire, &redaction, &mut judgement.basis);
    let alter = |judgement: &mut Judgement, field, pointer: Option<String>, side| {
        judgement.verdict = Verdict::Altered;
        judgement.field = Some(field);
        judgement.pointer = pointer;
        judgement.side = Some(side);
    };
    let trouble = [call.request.as_ref(), call.response.as_ref()]
        .into_iter()
        .flatten()
        .find_map(|passage| passage.trouble.map(|trouble| (trouble, passage.way)));
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
    if let Some((field, pointer)) = difference {
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
        undecided(judgement, "gap", Some(gap));
        return;
    }
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
    match hops(call) {
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

/// Into the proxy's channel, past the proxy.
fn foreign(case: Case<'_>, ix: usize, call: &Call, instance: InstanceIx) -> Judgement {
    let mut judgement = Judgement::new(Subject::Call(ix), Verdict::Bypassed);
    judgement.proxy = Some(case.scene.roles.instance(instance).proxy);
    judgement.via = Some(Via::ForeignWriter);
    judgement.hops = Some(Hops::Single);
    let Some(passage) = call.subject() else {
        return judgement;
    };
    let Some(placed) = primary(case, passage) else {
        return judgement;
    };
    if let Some(gap) = doubt::in_stream(case.gaps, placed.stream, placed.until)
        && passage.route == Route::Foreign(instance)
        && placed.delivery.written.is_none()
    {
        // A write of the proxy that was not seen could be this one.
        undecided(&mut judgement, "gap", Some(gap));
    } else if placed.delivery.read.is_none() {
        undecided(&mut judgement, "not_read", None);
    } else if !passage.proved {
        undecided(&mut judgement, "order_ambiguous", None);
    }
    if let (Some(writer), _) = ends(case.scene, placed)
        && let Some(got) = how_it_got_there(case, placed, writer)
        && matches!(got, Got::PidfdGetfd | Got::ScmRights)
        && judgement.verdict == Verdict::Bypassed
    {
        judgement.via = Some(Via::HandedOver);
    }
    let statement = case
        .side_of_call
        .get(ix)
        .copied()
        .flatten()
        .and_then(|side| case.assignment.of_call[side]);
    attach_entry(case, ix, statement.map(|pair| pair.with), &mut judgement);
    judgement
}

/// Between two processes without a proxy.
fn direct(case: Case<'_>, ix: usize, call: &Call) -> Judgement {
    let mut judgement = Judgement::new(Subject::Call(ix), Verdict::Bypassed);
    let Some(passage) = call.subject() else {
        return judgement;
    };
    let Some(placed) = primary(case, passage) else {
        return judgement;
    };
    let (writer, reader) = ends(case.scene, placed);
    judgement.via = Some(via_of(case, placed));
    if !passage.message.is_mcp {
        judgement.verdict = Verdict::OutOfScope;
        judgement.reason = Some(if call.request.is_some() {
            "unknown_method"
        } else {
            "answer_without_request"
        });
        judgement.via = None;
        return judgement;
    }
    if passage.received.is_some() && placed.delivery.read.is_none() {
        judgement.confidence.push("reader_denies");
    } else if placed.delivery.read.is_none() {
        undecided(
            &mut judgement,
            if reader.is_none() {
                "peer_unmarked"
            } else {
                "not_read"
            },
            None,
        );
        return judgement;
    }
    if !passage.proved {
        undecided(&mut judgement, "order_ambiguous", None);
        return judgement;
    }
    // Whoever wrote it was not seen, because writing there was missed: it can have been the proxy.
    if placed.delivery.written.is_none()
        && let Some(gap) = doubt::at_writer(case.gaps, placed.stream, placed.until)
    {
        undecided(&mut judgement, "gap", Some(gap));
        return judgement;
    }
    let method = passage.message.method.as_deref().unwrap_or("");
    let allowed = case.allow_direct.iter().find(|rule| {
        rule.methods
            .as_ref()
            .is_none_or(|methods| methods.iter().any(|allowed| allowed == method))
            && [reader, writer].into_iter().flatten().any(|process| {
                let executions = &case.processes.process(process).executions;
                executions
                    .last()
                    .is_some_and(|execution| execution.exe == rule.server)
            })
    });
    if allowed.is_some() {
        judgement.verdict = Verdict::Allowed;
    }
    judgement
}

/// Made by the proxy itself.
fn proxy_own(case: Case<'_>, ix: usize, call: &Call, instance: InstanceIx) -> Judgement {
    let mut judgement = Judgement::new(Subject::Call(ix), Verdict::OutOfScope);
    judgement.proxy = Some(case.scene.roles.instance(instance).proxy);
    judgement.reason = Some("proxy_own");
    let housekeeping = match call.method() {
        Some("initialize" | "ping") | None => true,
        Some(method) => method.starts_with("notifications/"),
    };
    let unseen = doubt::at_proxy(case.gaps, instance, BootNs(0), call.until(), |leg| {
        !leg.proxy_writes()
    });
    if let Some(gap) = unseen {
        // What it read may not have been seen: then this is no invention.
        undecided(&mut judgement, "gap", Some(gap));
    } else if !housekeeping && !case.scene.roles.instance(instance).from_birth {
        // It may have read the request before the capture began.
        undecided(&mut judgement, "attached", None);
    } else if !housekeeping && !case.scene.roles.has_leg(incoming(call.way, instance)) {
        // It reads from something that is no channel: a file, a terminal, a network.
        undecided(&mut judgement, "leg_unseen", None);
    } else if !housekeeping {
        judgement.verdict = Verdict::Altered;
        judgement.reason = Some("made_by_the_proxy");
        judgement.field = Some("method");
        judgement.side = Some("proxy_to_server");
        judgement.hops = Some(Hops::Missing);
    }
    judgement
}

fn incoming(way: Way, instance: InstanceIx) -> Leg {
    match way {
        Way::ToServer => Leg::ClientToProxy(instance),
        Way::ToClient => Leg::ServerToProxy(instance),
    }
}

/// The first doubt about a proxied call.
/// Says of a leg whether it is meant.
type Legs = fn(Leg) -> bool;

fn doubt_of(case: Case<'_>, call: &Call, instance: InstanceIx) -> Option<Doubt> {
    let passages = [call.request.as_ref(), call.response.as_ref()];
    if passages.iter().flatten().any(|passage| !passage.proved) {
        return Some(Doubt {
            reason: "order_ambiguous",
            gap: None,
        });
    }
    // Written to the proxy, but not seen to be read by it.
    let unread = passages
        .iter()
        .flatten()
        .filter_map(|passage| primary(case, passage))
        .find(|placed| {
            placed.source == Source::WriterEnd
                && matches!(placed.leg, Leg::ClientToProxy(_) | Leg::ServerToProxy(_))
        });
    if let Some(placed) = unread {
        return Some(Doubt {
            reason: "not_read",
            gap: doubt::in_stream(case.gaps, placed.stream, case.end),
        });
    }
    let gap = |from, to, legs: Legs| {
        doubt::at_proxy(case.gaps, instance, from, to, legs).map(|gap| Doubt {
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
        // An answer whose request may have been missed.
        (None, Some(response)) => gap(BootNs(0), response.until, back_of(forth, back)),
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
            doubt::at_proxy(case.gaps, instance, BootNs(from), BootNs(to), |_| true)
        }
    }
}

/// A gap in what the proxy was seen to write into its log about the time of a call.
fn third_view_gap(case: Case<'_>, call: &Call, instance: InstanceIx) -> Option<usize> {
    let proxy = case.scene.roles.instance(instance).proxy;
    let from = BootNs(call.at().0.saturating_sub(EARLY_NS.unsigned_abs()));
    let to = BootNs(call.until().0.saturating_add(LATE_NS.unsigned_abs()));
    case.gaps.iter().position(|gap| {
        let Leg::ProxyFile(writer) = gap.leg else {
            return false;
        };
        gap.end == End::Writer
            && case.scene.roles.instance(writer).proxy == proxy
            && gap.gap.since <= to
            && gap.gap.until >= from
    })
}

/// A stray answer's own way is `forth`; what it answers went the other way.
fn back_of(_forth: fn(Leg) -> bool, back: fn(Leg) -> bool) -> fn(Leg) -> bool {
    back
}

struct Doubt {
    reason: &'static str,
    gap: Option<usize>,
}

impl Doubt {
    fn apply(&self, judgement: &mut Judgement) {
        undecided(judgement, self.reason, self.gap);
    }
}

fn undecided(judgement: &mut Judgement, reason: &'static str, gap: Option<usize>) {
    judgement.verdict = Verdict::Undecided;
    judgement.reason = Some(reason);
    judgement.gap = gap;
}

/// Gives the statement of a paired call its place in the verdict.
fn attach_entry(case: Case<'_>, ix: usize, statement: Option<usize>, judgement: &mut Judgement) {
    let Some(statement) = statement.and_then(|at| case.statements.get(at)) else {
        return;
    };
    judgement.third_view = Some(statement.third_view);
    if let Some(entry) = statement.on_disk {
        judgement.subject = Subject::CallAndEntry(ix, entry);
        let key = case
            .proxies
            .get(statement.proxy)
            .and_then(|policy| policy.key.as_ref());
        judgement.signature = Some(signature::verify(
            &case.entries[entry.0 as usize].entry,
            key,
            None,
        ));
    }
}

/// The bytes on the wire of a call's three values.
pub(crate) fn wire_content<'a>(case: Case<'a>, call: &'a Call) -> WireContent<'a> {
    let with_bytes = |passage: &'a Passage| {
        let sighting = passage.primary()?;
        Some((
            passage,
            bytes_of(case.scene.placed, case.scene.frames, sighting)?,
        ))
    };
    WireContent::of(
        call.request.as_ref().and_then(with_bytes),
        call.response.as_ref().and_then(with_bytes),
    )
}

fn primary<'a>(case: Case<'a>, passage: &Passage) -> Option<&'a Placed> {
    passage
        .primary()
        .and_then(|sighting| case.scene.placed.get(sighting.placed.0 as usize))
}

/// The worst that the legs of request and answer tell.
fn hops(call: &Call) -> Hops {
    let each = [call.request.as_ref(), call.response.as_ref()]
        .into_iter()
        .flatten();
    let all: Vec<Hops> = each.map(|passage| passage.hops).collect();
    for worst in [Hops::Changed, Hops::Missing, Hops::Equal] {
        if all.contains(&worst) {
            return worst;
        }
    }
    Hops::Single
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

fn via_of(case: Case<'_>, placed: &Placed) -> Via {
    let (writer, reader) = ends(case.scene, placed);
    let channel = case.scene.channels.channel(placed.stream.channel);
    let got: Vec<Got> = [writer, reader]
        .into_iter()
        .flatten()
        .filter_map(|process| holder_got(channel, process))
        .collect();
    if got
        .iter()
        .any(|got| matches!(got, Got::ScmRights | Got::PidfdGetfd))
    {
        return Via::HandedOver;
    }
    if channel.kind == ChannelKind::Fifo
        || got
            .iter()
            .any(|got| matches!(got, Got::Connected | Got::Accepted | Got::Opened))
    {
        return Via::DirectConnect;
    }
    Via::OwnServer
}

fn how_it_got_there(
    case: Case<'_>,
    placed: &Placed,
    process: crate::process::ProcessIx,
) -> Option<Got> {
    holder_got(case.scene.channels.channel(placed.stream.channel), process)
}

fn holder_got(channel: &Channel, process: crate::process::ProcessIx) -> Option<Got> {
    channel
        .holders
        .iter()
        .find(|holder| holder.process == process)
        .map(|holder| holder.got)
}
