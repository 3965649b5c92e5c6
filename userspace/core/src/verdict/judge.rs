//! Judgement of calls, in the order of the rules: undecided, allowed, bypassed, altered, blocked, matched, unlogged.

use crate::call::scene::ends;
use crate::call::tail;
use crate::call::{Call, CallKind, Hops, Route, Way};
use crate::channel::{Channel, ChannelKind, Got};
use crate::evidence::Placed;
use crate::message::Form;
use crate::role::{InstanceIx, Leg};
use crate::time::BootNs;
use crate::verdict::transcript::Transcripts;
use crate::verdict::{Case, Judgement, Subject, Verdict, Via, proxied};

/// Judges every call.
pub fn calls(case: Case<'_>) -> Vec<Judgement> {
    let transcripts = Transcripts::of(case);
    (0..case.calls.len())
        .map(|ix| judge(case, ix, &transcripts))
        .collect()
}

fn judge(case: Case<'_>, ix: usize, transcripts: &Transcripts) -> Judgement {
    let call = &case.calls[ix];
    let mut judgement = match call.route {
        Route::Proxy(instance) => {
            let mut judgement = proxied::proxied(case, ix, call, instance);
            if case.evasions.tampered(instance, call.until()) {
                tampered(&mut judgement);
            }
            judgement
        }
        Route::ProxyOwn(instance) => proxy_own(case, ix, call, instance),
        Route::Foreign(instance) => foreign(case, ix, call, instance),
        Route::Direct(..) => direct(case, ix, call),
    };
    if judgement.verdict == Verdict::Bypassed && transcripts.has(ix) {
        judgement.undecide("transcript", None);
    }
    if call.response.is_some() && call.request.is_some() {
        judgement.confidence.push("answered");
    } else if call.kind() == CallKind::Request {
        judgement.confidence.push("request_only");
    }
    judgement
}

/// Through a proxy whose doing may have been another's. What clears somebody rests on its own end and on its log, and does not
/// stand; what accuses does, or an agent could buy doubt by tampering with its own proxy.
fn tampered(judgement: &mut Judgement) {
    if matches!(judgement.verdict, Verdict::Matched | Verdict::Blocked) {
        judgement.undecide("proxy_tampered", None);
    } else {
        judgement.confidence.push("proxy_tampered");
    }
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
    let Some(placed) = case.placed(passage) else {
        return judgement;
    };
    if let Some(reason) = unsure_of(call, passage.message.form) {
        let lost = (reason == "gap").then(|| case.gaps.in_stream(placed.stream, case.end));
        judgement.undecide(reason, lost.flatten());
    } else if let Some(gap) = case.gaps.in_stream(placed.stream, placed.until)
        && passage.route == Route::Foreign(instance)
        && placed.delivery.written.is_none()
    {
        // A write of the proxy that was not seen could be this one.
        judgement.undecide("gap", Some(gap));
    } else if placed.delivery.read.is_none() {
        judgement.undecide("not_read", None);
    } else if !case.ended_in_order
        && placed.delivery.written.is_none()
        && case.scene.roles.instance(instance).to.is_none()
        && tail::lies_behind(
            case.scene,
            placed,
            &case.scene.frames[placed.record.0 as usize],
        )
    {
        // A write of the proxy is in the rest of the recording, if anywhere.
        judgement.undecide("after_end", None);
    } else if !passage.proved && passage.message.form != Form::Cut {
        judgement.undecide("order_ambiguous", None);
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
    case.attach_entry(ix, statement.map(|pair| pair.with), &mut judgement);
    judgement
}

/// Between two processes without a proxy.
fn direct(case: Case<'_>, ix: usize, call: &Call) -> Judgement {
    let mut judgement = Judgement::new(Subject::Call(ix), Verdict::Bypassed);
    let Some(passage) = call.subject() else {
        return judgement;
    };
    let Some(placed) = case.placed(passage) else {
        return judgement;
    };
    let (writer, reader) = ends(case.scene, placed);
    judgement.via = Some(via_of(case, placed));
    // An answer of which the rest is missing may have a method there.
    let nameless = passage.message.form == Form::Cut && call.request.is_none();
    if !passage.message.is_mcp && !nameless {
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
        judgement.undecide(
            if reader.is_none() {
                "peer_unmarked"
            } else {
                "not_read"
            },
            None,
        );
        return judgement;
    }
    if !passage.proved && !matches!(passage.message.form, Form::Cut | Form::Lost) {
        judgement.undecide("order_ambiguous", None);
        return judgement;
    }
    // Whoever wrote it was not seen, because writing there was missed: it can have been the proxy.
    if placed.delivery.written.is_none()
        && let Some(gap) = case.gaps.at_writer(placed.stream, placed.until)
    {
        judgement.undecide("gap", Some(gap));
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
    } else if let Some(reason) = unsure_of(call, passage.message.form) {
        let lost = (reason == "gap").then(|| case.gaps.in_stream(placed.stream, case.end));
        judgement.undecide(reason, lost.flatten());
    }
    judgement
}

/// Why it is not known that a receiver executed what it got, or what that was.
///
/// A value that is no line is a message to a decoder of streams only; an answer shows that the receiver is one.
fn unsure_of(call: &Call, form: Form) -> Option<&'static str> {
    let answered = call.request.is_some() && call.response.is_some();
    match form {
        Form::Line => None,
        Form::Reframed => (!answered).then_some("framing"),
        Form::Cut => call.method().is_none().then_some("method_unseen"),
        Form::Lost => Some("gap"),
    }
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
    let unseen = case
        .gaps
        .at_proxy(instance, BootNs(0), call.until(), |leg| !leg.proxy_writes());
    if let Some(gap) = unseen {
        // What it read may not have been seen: then this is no invention.
        judgement.undecide("gap", Some(gap));
    } else if !housekeeping && !case.scene.roles.instance(instance).from_birth {
        // It may have read the request before the capture began.
        judgement.undecide("attached", None);
    } else if !housekeeping && !case.scene.roles.has_leg(incoming(call.way, instance)) {
        // It reads from something that is no channel: a file, a terminal, a network.
        judgement.undecide("leg_unseen", None);
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
