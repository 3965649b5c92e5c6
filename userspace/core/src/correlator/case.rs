//! From what was seen to judgements: the stages that need the whole capture, in their order.

use std::collections::BTreeSet;

use super::Correlator;
use crate::call::passage::{self, Oddity, Passages};
use crate::call::scene::Scene;
use crate::call::{Call, CallKind, PlacedIx, Route, exchange};
use crate::channel::StreamIx;
use crate::evidence::{self, Placed};
use crate::message;
use crate::pairing::assign::{self, Assignment, CallSide, StatementSide};
use crate::pairing::content::{self, Contents, WireContent};
use crate::pairing::statement::{self, Statement, ThirdView};
use crate::proxylog::Redaction;
use crate::role::{InstanceIx, Leg, Roles};
use crate::verdict::doubt::Gaps;
use crate::verdict::evasion::{self, Evasions};
use crate::verdict::receivers::Receivers;
use crate::verdict::{self, Case, Judgement, KeyReach, ProxyPolicy, judge, unpaired};

/// Everything that is derived from the stores.
#[derive(Debug)]
pub(super) struct Derived {
    pub(super) roles: Roles,
    pub(super) placed: Vec<Placed>,
    pub(super) passages: Passages,
    pub(super) calls: Vec<Call>,
    pub(super) statements: Vec<Statement>,
    pub(super) assignment: Assignment,
    pub(super) side_of_call: Vec<Option<usize>>,
    pub(super) gaps: Gaps,
    receivers: Receivers,
    pub(super) evasions: Evasions,
    key_reach: Vec<KeyReach>,
    /// Streams that carry MCP.
    pub(super) mcp: BTreeSet<StreamIx>,
}

impl Derived {
    pub(super) fn of(correlator: &Correlator, policies: &[ProxyPolicy]) -> Self {
        let identities: Vec<_> = correlator
            .settings
            .proxies
            .iter()
            .map(|proxy| proxy.identity.clone())
            .collect();
        let lines = statement::file_lines(&correlator.frames, &correlator.channels);
        let wrote = statement::writers_of_logs(&correlator.entries, &lines, &correlator.frames);
        let roles = Roles::decide(
            &identities,
            &wrote,
            &correlator.processes,
            &correlator.channels,
            &correlator.streams,
        );
        let placed = evidence::place(
            &correlator.frames,
            &correlator.streams,
            |stream| correlator.shift(stream),
            &roles,
        );
        let scene = Scene {
            frames: &correlator.frames,
            placed: &placed,
            streams: &correlator.streams,
            channels: &correlator.channels,
            roles: &roles,
        };
        let passages = passage::assemble(scene);
        let calls = exchange::pair(&passages, &roles);
        let seen_to = correlator
            .ended_in_order
            .then(|| correlator.clock.utc(correlator.end()).0);
        let statements = statement::statements(
            &correlator.entries,
            seen_to,
            &lines,
            &placed,
            &correlator.frames,
            &correlator.streams,
            &roles,
        );
        let mut contents = Contents::default();
        let (call_sides, call_of_side) =
            call_sides(correlator, scene, &calls, policies, &mut contents);
        let mut side_of_call = vec![None; calls.len()];
        for (side, call) in call_of_side.iter().enumerate() {
            side_of_call[*call] = Some(side);
        }
        let statement_sides = statement_sides(correlator, &statements, policies, &mut contents);
        let assignment = assign::assign(&call_sides, &statement_sides);
        let mut lost = correlator.open_tails();
        lost.extend(correlator.unnamed_losses());
        let gaps = Gaps::new(&correlator.streams, &correlator.channels, &roles, &lost);
        let receivers = Receivers::new(scene, &correlator.processes, &passages);
        let evasions = Evasions::of(evasion::Scene {
            attempts: correlator.attempts.all(),
            processes: &correlator.processes,
            roles: &roles,
            proxies: &identities,
            recorders: &correlator.recorders,
            channels: &correlator.channels,
        });
        let mut key_reach = verdict::key_reach(&correlator.processes, &roles, policies);
        for (ix, reach) in key_reach.iter_mut().enumerate() {
            let seen = evasions.key_reach(InstanceIx(ix), &roles, &correlator.processes);
            // Agents have it through others as well.
            *reach = seen.filter(|_| *reach != KeyReach::Agent).unwrap_or(*reach);
        }
        let mcp = mcp_streams(scene, &passages);
        Self {
            roles,
            placed,
            passages,
            calls,
            statements,
            assignment,
            side_of_call,
            gaps,
            receivers,
            evasions,
            key_reach,
            mcp,
        }
    }

    pub(super) fn case<'a>(
        &'a self,
        correlator: &'a Correlator,
        policies: &'a [ProxyPolicy],
    ) -> Case<'a> {
        Case {
            scene: Scene {
                frames: &correlator.frames,
                placed: &self.placed,
                streams: &correlator.streams,
                channels: &correlator.channels,
                roles: &self.roles,
            },
            processes: &correlator.processes,
            calls: &self.calls,
            entries: &correlator.entries,
            statements: &self.statements,
            assignment: &self.assignment,
            side_of_call: &self.side_of_call,
            gaps: &self.gaps,
            receivers: &self.receivers,
            evasions: &self.evasions,
            proxies: policies,
            key_reach: &self.key_reach,
            allow_direct: &correlator.settings.allow_direct,
            clock: &correlator.clock,
            end: correlator.end(),
            ended_in_order: correlator.ended_in_order,
        }
    }

    /// All judgements: one for each call, each entry without one, each gap of record on an MCP stream.
    pub(super) fn judgements(&self, case: Case<'_>) -> Vec<Judgement> {
        let mut judgements = judge::calls(case);
        let mut paired = vec![false; case.entries.len()];
        for entry in judgements.iter().filter_map(Judgement::entry) {
            paired[entry.0 as usize] = true;
        }
        judgements.extend(unpaired::entries(case, &paired));
        judgements.extend(unpaired::gaps(case, |stream| self.mcp.contains(&stream)));
        judgements
    }
}

/// Calls that a log can speak of: those through a proxy, and answers that passed it to requests that did not.
fn call_sides<'a>(
    correlator: &Correlator,
    scene: Scene<'_>,
    calls: &'a [Call],
    policies: &[ProxyPolicy],
    contents: &mut Contents,
) -> (Vec<CallSide<'a>>, Vec<usize>) {
    let mut sides = Vec::new();
    let mut call_of_side = Vec::new();
    for (ix, call) in calls.iter().enumerate() {
        let stand_in = match call.route {
            Route::Proxy(_) => None,
            Route::Foreign(_) => match &call.response {
                Some(response) if matches!(response.route, Route::Proxy(_)) => Some(Call {
                    route: response.route,
                    way: response.way,
                    request: None,
                    response: Some(response.clone()),
                    duplicate_in_flight: false,
                }),
                Some(_) | None => continue,
            },
            Route::ProxyOwn(_) | Route::Direct(..) => continue,
        };
        let Some(instance) = call.route.instance() else {
            continue;
        };
        let logged = stand_in.as_ref().unwrap_or(call);
        let mut side = call_side(correlator, scene, logged, instance, policies, contents);
        let request = logged.request.as_ref().and(call.request.as_ref());
        let subject = request.or(call.response.as_ref());
        side.id = subject.and_then(|passage| passage.message.id_text());
        if let Some(request) = request {
            side.method = request.message.method.as_deref().unwrap_or_default();
            side.tool_name = request.message.tool_name.as_deref().unwrap_or_default();
        }
        sides.push(side);
        call_of_side.push(ix);
    }
    (sides, call_of_side)
}

/// The side of an answer without a request; a request's own names are the caller's to fill in.
fn call_side<'a>(
    correlator: &Correlator,
    scene: Scene<'_>,
    call: &Call,
    instance: InstanceIx,
    policies: &[ProxyPolicy],
    contents: &mut Contents,
) -> CallSide<'a> {
    let proxy = scene.roles.instance(instance).proxy;
    let redaction = policies
        .get(proxy)
        .map_or(Redaction::usual(), |policy| &policy.redaction);
    let wire = WireContent::of(scene, call);
    // That no answer came can be logged as late as when the proxy ends.
    let unanswered = call.kind() == CallKind::Request && call.response.is_none();
    CallSide {
        proxy,
        instance,
        from: correlator.clock.utc(call.at()).0,
        to: correlator
            .clock
            .utc(if unanswered {
                correlator.end()
            } else {
                call.until()
            })
            .0,
        content: content::of_call(contents, call, &wire, redaction),
        id: None,
        method: crate::proxylog::own::UNMATCHED_RESPONSE,
        tool_name: "",
    }
}

fn statement_sides<'a>(
    correlator: &'a Correlator,
    statements: &'a [Statement],
    policies: &[ProxyPolicy],
    contents: &mut Contents,
) -> Vec<StatementSide<'a>> {
    statements
        .iter()
        .map(|statement| {
            let redaction = policies
                .get(statement.proxy)
                .map_or(Redaction::usual(), |policy| &policy.redaction);
            let said = statement.said(&correlator.entries);
            StatementSide {
                proxy: statement.proxy,
                instance: statement.written.as_ref().map(|written| written.instance),
                // A repetition can never stand for a call: the line that it repeats does.
                at: said
                    .filter(|_| statement.repeats.is_none())
                    .and_then(|entry| entry.utc_ns),
                content: said.map_or_else(content::nothing, |entry| {
                    content::of_entry(contents, entry, redaction)
                }),
                id: said.and_then(|entry| entry.request_id.as_deref()),
                method: said.map(|entry| entry.method.as_str()).unwrap_or_default(),
                tool_name: said
                    .and_then(|entry| entry.tool_name.as_deref())
                    .unwrap_or_default(),
                exact_only: statement.third_view == ThirdView::NotWritten,
            }
        })
        .collect()
}

fn mcp_streams(scene: Scene<'_>, passages: &Passages) -> BTreeSet<StreamIx> {
    let of = |ix: PlacedIx| scene.placed.get(ix.0 as usize);
    let mut mcp: BTreeSet<StreamIx> = passages
        .passages
        .iter()
        .filter(|passage| passage.message.is_mcp)
        .flat_map(|passage| [passage.sent, passage.received])
        .flatten()
        .filter_map(|sighting| of(sighting.placed).map(|placed| placed.stream))
        .collect();
    // A message that was made too long, or unreadable, on purpose still names itself at its beginning.
    let incomplete = passages.oddities.iter().filter_map(|oddity| match oddity {
        Oddity::Incomplete(ix) => of(*ix),
        Oddity::ReaderLies(_)
        | Oddity::WriterLies(_)
        | Oddity::ReaderDenies(_)
        | Oddity::Malformed(_)
        | Oddity::LineCut(_)
        | Oddity::McpLike(_)
        | Oddity::Wrapped(_)
        | Oddity::NotJsonRpc(_)
        | Oddity::Relayed(_) => None,
    });
    mcp.extend(incomplete.filter_map(|placed| {
        let frame = scene.frames.get(placed.record.0 as usize)?;
        message::begins_like_mcp(&frame.bytes).then_some(placed.stream)
    }));
    // On a leg of a proxy everything is, unless nothing that looks like JSON was ever seen there (its standard error).
    let legs = scene.streams.keys().filter(|stream| {
        let leg = scene.roles.leg(**stream);
        leg.instance().is_some() && !matches!(leg, Leg::ProxyFile(_))
    });
    let with_frames: BTreeSet<StreamIx> = scene.placed.iter().map(|placed| placed.stream).collect();
    mcp.extend(legs.filter(|stream| with_frames.contains(stream)));
    mcp
}
