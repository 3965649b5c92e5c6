//! Rows: everything that was derived, as the tables of the evidence.
//!
//! Owns the mapping onto rows and the rules of privacy: what of a payload may leave the core. One file per group of tables.

mod calls;
mod coverage;
mod entries;
mod evasions;
mod findings;
mod frames;
mod hosts;
mod privacy;
mod rewritten;
mod verdicts;

use std::cell::OnceCell;
use std::collections::BTreeMap;

use super::Correlator;
use super::case::Derived;
use crate::call::{Call, Passage, PlacedIx};
use crate::channel::{ChannelIx, End, StreamIx};
use crate::frame::{FrameFlags, FrameIx};
use crate::pairing::LogEntry;
use crate::pairing::statement::EntryIx;
use crate::process::ProcessIx;
use crate::role::Leg;
use crate::row::Row;
use crate::row::ids::{
    CallId, CaptureId, ChannelId, CoverageId, EntryId, FrameId, ProcessId, VerdictId,
};
use crate::time::{BootNs, UtcNs};
use crate::verdict::{Case, Judgement, ProxyPolicy, Subject};

pub use privacy::PayloadMode;

/// Ids by index. Each is a hash, and each is asked for many times.
#[derive(Default)]
struct Ids {
    processes: Vec<ProcessId>,
    channels: Vec<ChannelId>,
    /// Made when asked for: the lines of log files are frames too, and seldom named.
    frames: Vec<OnceCell<FrameId>>,
    entries: Vec<EntryId>,
    calls: Vec<Option<CallId>>,
}

/// Bytes missing, and in how many gaps.
type GapSums = BTreeMap<ChannelIx, (u64, u64)>;

/// What all row writers share.
struct Writer<'a> {
    correlator: &'a Correlator,
    derived: &'a Derived,
    case: Case<'a>,
    judgements: &'a [Judgement],
    privacy: privacy::Privacy<'a>,
    /// By placed delivery: the messages that it carries, with their passages.
    carried: Carried<'a>,
    ids: Ids,
    gaps_of: GapSums,
    out: &'a mut dyn FnMut(Row),
}

/// Writes all rows.
pub(super) fn write(mut correlator: Correlator, out: &mut dyn FnMut(Row)) {
    let policies: Vec<ProxyPolicy> = correlator
        .settings
        .proxies
        .iter_mut()
        .map(|proxy| std::mem::take(&mut proxy.policy))
        .collect();
    let derived = Derived::of(&correlator, &policies);
    let case = derived.case(&correlator, &policies);
    let judgements = derived.judgements(case);
    if cfg!(debug_assertions) {
        let held =
            crate::invariants::check(case, &judgements, |stream| derived.mcp.contains(&stream));
        assert_eq!(held, Ok(()), "one verdict for each call, entry and gap");
    }
    let mut writer = Writer {
        correlator: &correlator,
        derived: &derived,
        case,
        judgements: &judgements,
        privacy: privacy::Privacy::new(&correlator.settings, &policies),
        carried: Carried::of(&derived),
        ids: Ids::default(),
        gaps_of: gap_sums(&derived),
        out,
    };
    writer.make_ids();
    writer.processes();
    writer.channels();
    writer.frames();
    writer.entries();
    writer.calls();
    writer.verdicts();
    writer.coverage();
}

impl Writer<'_> {
    fn capture(&self) -> CaptureId {
        self.correlator.settings.capture
    }

    fn utc(&self, at: BootNs) -> UtcNs {
        self.correlator.clock.utc(at)
    }

    fn emit(&mut self, row: impl Into<Row>) {
        (self.out)(row.into());
    }

    fn process_id(&self, ix: ProcessIx) -> ProcessId {
        self.ids.processes[ix.0 as usize]
    }

    fn channel_id(&self, ix: ChannelIx) -> ChannelId {
        self.ids.channels[ix.0 as usize]
    }

    fn frame_id(&self, ix: FrameIx) -> FrameId {
        *self.ids.frames[ix.0 as usize].get_or_init(|| self.make_frame_id(ix))
    }

    /// Frames name their channel, so its id comes first.
    fn make_ids(&mut self) {
        let correlator = self.correlator;
        let processes = correlator
            .processes
            .iter()
            .map(|(ix, _)| self.make_process_id(ix));
        self.ids.processes = processes.collect();
        let channels = correlator
            .channels
            .iter()
            .map(|(ix, _)| self.make_channel_id(ix));
        self.ids.channels = channels.collect();
        self.ids.frames = vec![OnceCell::new(); correlator.frames.len()];
        let entries = &correlator.entries;
        self.ids.entries = entries
            .iter()
            .map(|entry| self.make_entry_id(entry))
            .collect();
        let calls = &self.derived.calls;
        self.ids.calls = calls.iter().map(|call| self.make_call_id(call)).collect();
    }

    fn make_process_id(&self, ix: ProcessIx) -> ProcessId {
        let process = self.correlator.processes.process(ix);
        let start = process.incarnation.start;
        ProcessId::of(
            self.capture(),
            process.incarnation.tgid,
            start.0,
            self.utc(start),
        )
    }

    fn make_channel_id(&self, ix: ChannelIx) -> ChannelId {
        let channel = self.correlator.channels.channel(ix);
        let mut identity = vec![u64::from(channel.dev)];
        for key in channel.ends.iter().flatten() {
            identity.extend([key.object, key.inode]);
        }
        ChannelId::of(self.capture(), &identity, self.utc(channel.first_seen))
    }

    fn stream_name(&self, stream: StreamIx) -> &'static str {
        let channel = self.correlator.channels.channel(stream.channel);
        match (channel.kind.is_two_way(), stream.from_end) {
            (true, 0) => "a_to_b",
            (true, _) => "b_to_a",
            (false, _) => "only",
        }
    }

    fn make_frame_id(&self, ix: FrameIx) -> FrameId {
        let frame = &self.correlator.frames[ix.0 as usize];
        // A value begins where its first line does.
        let end = match (frame.end, frame.flags.contains(FrameFlags::SPANS_LINES)) {
            (end, false) => end.as_str(),
            (End::Writer, true) => "writer value",
            (End::Reader, true) => "reader value",
        };
        FrameId::of(
            self.capture(),
            self.channel_id(frame.stream.channel),
            self.stream_name(frame.stream),
            end,
            frame.position,
            self.utc(frame.first_exit),
        )
    }

    fn record_of(&self, placed: PlacedIx) -> FrameIx {
        self.derived.placed[placed.0 as usize].record
    }

    fn call_id(&self, ix: usize) -> Option<CallId> {
        self.ids.calls[ix]
    }

    fn entry_id(&self, ix: EntryIx) -> EntryId {
        self.ids.entries[ix.0 as usize]
    }

    fn make_call_id(&self, call: &Call) -> Option<CallId> {
        let passage = call.subject()?;
        let sighting = passage.primary()?;
        let frame = self.frame_id(self.record_of(sighting.placed));
        Some(CallId::of(
            self.capture(),
            frame,
            sighting.element,
            self.utc(passage.at),
        ))
    }

    fn make_entry_id(&self, entry: &LogEntry) -> EntryId {
        let file = self.correlator.files.get(entry.file.0 as usize);
        let name = file.map_or("", |file| file.name.as_str());
        EntryId::of(
            self.capture(),
            self.proxy_name(entry.proxy).unwrap_or(""),
            format!("{}:{}", entry.file.0, basename(name)).as_bytes(),
            entry.entry.line.offset,
            self.entry_observed(),
        )
    }

    /// Entries are read when the capture is paired: the last clock reading of the spool, so that a replay says the same.
    fn entry_observed(&self) -> UtcNs {
        if self.correlator.observed == UtcNs(0) {
            self.utc(self.correlator.now)
        } else {
            self.correlator.observed
        }
    }

    fn gap_id(&self, ix: usize) -> CoverageId {
        let gap = &self.derived.gaps.all()[ix];
        let subject = format!(
            "{}:{}:{}",
            gap.stream.channel.0,
            gap.stream.from_end,
            gap.end.as_str()
        );
        CoverageId::of(
            self.capture(),
            "gap",
            subject.as_bytes(),
            ix as u64,
            self.utc(gap.gap.until),
        )
    }

    /// The subject's id and time: what the verdict's id is made of.
    fn subject_key(&self, judgement: &Judgement) -> Option<(ulid::Ulid, UtcNs, Option<BootNs>)> {
        match judgement.subject {
            Subject::Call(ix) | Subject::CallAndEntry(ix, _) => {
                let call = &self.derived.calls[ix];
                let at = call.at();
                Some((self.call_id(ix)?.as_ulid(), self.utc(at), Some(at)))
            }
            Subject::Entry(ix) => Some((self.entry_id(ix).as_ulid(), self.entry_observed(), None)),
            Subject::Gap(ix) => {
                let gap = &self.derived.gaps.all()[ix].gap;
                Some((
                    self.gap_id(ix).as_ulid(),
                    self.utc(gap.until),
                    Some(gap.until),
                ))
            }
        }
    }

    fn verdict_id(&self, judgement: &Judgement) -> Option<VerdictId> {
        let (subject, at, _) = self.subject_key(judgement)?;
        Some(VerdictId::of(self.capture(), subject, at))
    }

    fn proxy_name(&self, proxy: usize) -> Option<&str> {
        self.correlator
            .settings
            .proxies
            .get(proxy)
            .map(|proxy| proxy.name.as_str())
    }

    fn proxy_name_of_leg(&self, leg: Leg) -> Option<String> {
        let instance = leg.instance()?;
        self.proxy_name(self.derived.roles.instance(instance).proxy)
            .map(str::to_owned)
    }

    fn hop_name(&self, placed: PlacedIx) -> &'static str {
        match self.derived.placed[placed.0 as usize].leg {
            Leg::ClientToProxy(_) => "client_to_proxy",
            Leg::ProxyToServer(_) => "proxy_to_server",
            Leg::ServerToProxy(_) => "server_to_proxy",
            Leg::ProxyToClient(_) => "proxy_to_client",
            Leg::ProxyFile(_) => "unknown",
            Leg::Direct => {
                let carried = self.carried.by(placed);
                let answers = |passage: &&Passage| passage.message.kind.is_response();
                if !carried.is_empty() && carried.iter().all(answers) {
                    "direct_response"
                } else {
                    "direct_request"
                }
            }
        }
    }
}

fn gap_sums(derived: &Derived) -> GapSums {
    let mut sums = GapSums::new();
    for gap in derived.gaps.all() {
        let (bytes, count) = sums.entry(gap.stream.channel).or_default();
        *bytes = bytes.saturating_add(gap.gap.len.unwrap_or(0));
        *count += 1;
    }
    sums
}

/// The messages that each delivery carries, with their passages.
struct Carried<'a> {
    /// By placed delivery: where its passages end in the list. They begin where those of the one before end.
    ends: Vec<usize>,
    passages: Vec<&'a Passage>,
}

impl<'a> Carried<'a> {
    fn of(derived: &'a Derived) -> Self {
        let sightings = || {
            derived.passages.passages.iter().flat_map(|passage| {
                let sightings = [passage.sent, passage.received].into_iter().flatten();
                sightings.map(move |sighting| (sighting.placed.0 as usize, &**passage))
            })
        };
        let mut ends = vec![0; derived.placed.len()];
        for (placed, _) in sightings() {
            ends[placed] += 1;
        }
        let mut sum = 0;
        for end in &mut ends {
            // For now where it begins; filling moves it to its end.
            sum += std::mem::replace(end, sum);
        }
        let mut passages = Vec::new();
        if let Some((_, any)) = sightings().next() {
            passages.resize(sum, any);
        }
        for (placed, passage) in sightings() {
            passages[ends[placed]] = passage;
            ends[placed] += 1;
        }
        Self { ends, passages }
    }

    fn by(&self, placed: PlacedIx) -> &[&'a Passage] {
        let at = placed.0 as usize;
        let begin = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.passages[begin..self.ends[at]]
    }
}

fn basename(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Words for what strict JSON forbids.
fn leniency_words(leniency: crate::json::Leniency) -> Vec<&'static str> {
    use crate::json::Leniency as L;
    [
        (L::NON_FINITE, "not_a_number"),
        (L::FLOAT_OVERFLOW, "float_overflow"),
        (L::LONE_SURROGATE, "lone_surrogate"),
        (L::INVALID_UTF8, "invalid_utf8"),
        (L::RAW_LINE_SEPARATOR, "line_separator"),
        (L::CONTROL_IN_STRING, "control_character"),
        (L::DUPLICATE_KEYS, "duplicate_key"),
        (L::CASE_VARIANT_KEYS, "case_variant_key"),
        (L::BOM, "byte_order_mark"),
    ]
    .into_iter()
    .filter(|(flag, _)| leniency.contains(*flag))
    .map(|(_, word)| word)
    .collect()
}
