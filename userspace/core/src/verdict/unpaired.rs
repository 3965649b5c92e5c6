//! Judgement of entries that no call stands behind, and of gaps: replayed, undecided, forged, unobserved, outside.

use crate::pairing::statement::{EntryIx, Statement, ThirdView};
use crate::proxylog::{Entry, SignatureState, own, signature};
use crate::role::{InstanceIx, Leg};
use crate::time::BootNs;
use crate::verdict::{Case, Judgement, Subject, Verdict};

/// Slack around an instance's life when asking whether it was covered at a time, nanoseconds: what the clocks' readings can be
/// off. More would take entries from after the capture for entries of it.
const COVER_SLACK_NS: i64 = 1_000_000;

/// By how much the beginning of a call can be earlier than its entry makes it, nanoseconds: durations are logged in whole
/// milliseconds, and the time is taken some milliseconds after the answer.
const ATTACH_SLACK_NS: i64 = 10_000_000;

/// Slack around an entry's time when looking for a gap that can hide its call, nanoseconds.
const GAP_SLACK_NS: i64 = 1_000_000_000;

/// Judges every entry whose index `paired` does not hold.
pub fn entries(case: Case<'_>, paired: &[bool]) -> Vec<Judgement> {
    case.statements
        .iter()
        .filter_map(|statement| {
            let entry = statement.on_disk?;
            (!paired.get(entry.0 as usize).copied().unwrap_or(false))
                .then(|| judge(case, statement, entry))
        })
        .collect()
}

/// Judges every gap that is one of record on an MCP stream.
pub fn gaps(
    case: Case<'_>,
    carries_mcp: impl Fn(crate::channel::StreamIx) -> bool,
) -> Vec<Judgement> {
    case.gaps
        .all()
        .iter()
        .enumerate()
        .filter(|(_, gap)| {
            gap.of_record && !matches!(gap.leg, Leg::ProxyFile(_)) && carries_mcp(gap.stream)
        })
        .map(|(ix, gap)| {
            let mut judgement = Judgement::new(Subject::Gap(ix), Verdict::Undecided);
            judgement.reason = Some(gap.gap.reason.as_str());
            judgement.gap = Some(ix);
            judgement.proxy = gap
                .leg
                .instance()
                .map(|instance| case.scene.roles.instance(instance).proxy);
            judgement
        })
        .collect()
}

fn judge(case: Case<'_>, statement: &Statement, ix: EntryIx) -> Judgement {
    let entry = &case.entries[ix.0 as usize].entry;
    let key = case
        .proxies
        .get(statement.proxy)
        .and_then(|policy| policy.key.as_ref());
    let state = signature::verify(entry, key, None);
    let mut judgement = Judgement::new(Subject::Entry(ix), Verdict::Unobserved);
    judgement.proxy = Some(statement.proxy);
    judgement.signature = Some(state);
    judgement.third_view = Some(statement.third_view);
    if statement.repeats.is_some() {
        judgement.verdict = Verdict::Replayed;
        return judgement;
    }
    let instances = covering(case, statement, entry);
    let is_good = matches!(
        state,
        SignatureState::ValidDisk | SignatureState::ValidWire | SignatureState::Recovered
    );
    let beyond = is_good && after_end(case, statement, entry);
    if beyond || (instances.is_empty() && statement.third_view != ThirdView::SeenWritten) {
        judgement.verdict = Verdict::Outside;
        return judgement;
    }
    if began_before_attaching(case, &instances, entry) {
        let seen = statement.third_view == ThirdView::SeenWritten;
        judgement.verdict = if seen {
            Verdict::Undecided
        } else {
            Verdict::Outside
        };
        judgement.reason = seen.then_some("attached");
        return judgement;
    }
    if let Some(gap) = instances
        .iter()
        .find_map(|(instance, from, to)| case.gaps.at_proxy(*instance, *from, *to, |_| true))
    {
        judgement.verdict = Verdict::Undecided;
        judgement.reason = Some("gap");
        judgement.gap = Some(gap);
        return judgement;
    }
    judgement.key_reach = instances
        .first()
        .map(|(instance, ..)| case.key_reach(*instance));
    let bad = match state {
        SignatureState::Bad => Some("signature_bad"),
        SignatureState::Absent if key.is_some() => Some("signature_absent"),
        SignatureState::Absent
        | SignatureState::ValidDisk
        | SignatureState::ValidWire
        | SignatureState::Recovered
        | SignatureState::NoKey => None,
    };
    if bad.is_some() {
        judgement.verdict = Verdict::Forged;
        judgement.reason = bad;
    } else if statement.third_view == ThirdView::NotWritten {
        judgement.verdict = Verdict::Forged;
        judgement.reason = Some("never_written");
    } else if is_own_fact(entry) && statement.third_view == ThirdView::SeenWritten {
        // Countersign's own proxy tells of bytes that were no message; there is no call to it.
        judgement.verdict = Verdict::OutOfScope;
        judgement.reason = Some("proxy_own");
    } else if !case.ended_in_order {
        // What was lost with the rest of the recording may be its call.
        judgement.verdict = Verdict::Undecided;
        judgement.reason = Some("after_end");
    }
    judgement
}

/// Whether an entry is of a time after the capture, by a proxy that went on.
fn after_end(case: Case<'_>, statement: &Statement, entry: &Entry) -> bool {
    let end = case.clock.utc(case.end).0.saturating_add(COVER_SLACK_NS);
    let mut instances = case.scene.roles.instances().map(|(_, instance)| instance);
    statement.third_view == ThirdView::Unknown
        && entry.utc_ns.is_some_and(|at| at > end)
        && instances.any(|instance| instance.proxy == statement.proxy && instance.to.is_none())
}

/// Instances of the proxy that lived when the entry claims to have been written, with the time in which its call can lie. An
/// entry that cannot say when, or that stands behind what the proxy was seen to write, is not excused by the time it claims.
fn covering(
    case: Case<'_>,
    statement: &Statement,
    entry: &Entry,
) -> Vec<(InstanceIx, BootNs, BootNs)> {
    let proxy = statement.proxy;
    let claimed = entry
        .utc_ns
        .map(|at| living(case, proxy, entry, at))
        .unwrap_or_default();
    let written = statement
        .written
        .as_ref()
        .filter(|_| statement.third_view == ThirdView::SeenWritten);
    if let (true, Some(at), Some(written)) = (claimed.is_empty(), entry.utc_ns, written) {
        // Stamped a moment before its proxy was watched, and written after.
        let from = entry.request_utc_ns().unwrap_or(at);
        let from = boot_of(case, from.saturating_sub(GAP_SLACK_NS));
        let to = boot_of(case, at.saturating_add(GAP_SLACK_NS));
        return vec![(written.instance, from, to)];
    }
    if !claimed.is_empty() || (entry.utc_ns.is_some() && !statement.after_seen) {
        return claimed;
    }
    let instances = case
        .scene
        .roles
        .instances()
        .filter(|(_, instance)| instance.proxy == proxy);
    instances
        .map(|(ix, instance)| (ix, instance.from, instance.to.unwrap_or(case.end)))
        .collect()
}

fn living(
    case: Case<'_>,
    proxy: usize,
    entry: &Entry,
    at: i64,
) -> Vec<(InstanceIx, BootNs, BootNs)> {
    let from = entry
        .request_utc_ns()
        .unwrap_or(at)
        .saturating_sub(GAP_SLACK_NS);
    let to = at.saturating_add(GAP_SLACK_NS);
    case.scene
        .roles
        .instances()
        .filter(|(_, instance)| instance.proxy == proxy)
        .filter(|(_, instance)| {
            let born = case.clock.utc(instance.from).0;
            let died = case.clock.utc(instance.to.unwrap_or(case.end)).0;
            at.saturating_sub(COVER_SLACK_NS) <= died && at.saturating_add(COVER_SLACK_NS) >= born
        })
        .map(|(ix, _)| (ix, boot_of(case, from), boot_of(case, to)))
        .collect()
}

/// Whether the call that an entry tells of began before its proxy was watched, which then ran already.
fn began_before_attaching(
    case: Case<'_>,
    instances: &[(InstanceIx, BootNs, BootNs)],
    entry: &Entry,
) -> bool {
    let Some(began) = entry.request_utc_ns().or(entry.utc_ns) else {
        return false;
    };
    let before = |ix: InstanceIx| {
        let instance = case.scene.roles.instance(ix);
        !instance.from_birth
            && began.saturating_sub(ATTACH_SLACK_NS) <= case.clock.utc(instance.from).0
    };
    !instances.is_empty() && instances.iter().all(|(ix, ..)| before(*ix))
}

/// The boot-clock moment of a UTC one, near the capture: through the offset that held at its end.
fn boot_of(case: Case<'_>, utc: i64) -> BootNs {
    let offset = case
        .clock
        .utc(case.end)
        .0
        .wrapping_sub(case.end.0.cast_signed());
    BootNs(u64::try_from(utc.saturating_sub(offset)).unwrap_or(0))
}

fn is_own_fact(entry: &Entry) -> bool {
    [
        own::UNPARSEABLE,
        own::NOT_A_MESSAGE,
        own::OVERSIZED,
        own::DROPPED,
    ]
    .contains(&entry.method.as_str())
}
