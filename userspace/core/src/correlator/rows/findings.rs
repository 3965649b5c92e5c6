//! Rows of findings: what verdicts, odd lines, logs and keys tell apart from single calls.

use std::collections::BTreeSet;

use super::Writer;
use super::entries::bad_word;
use crate::call::passage::Oddity;
use crate::call::scene::ends;
use crate::call::{PlacedIx, Route};
use crate::channel::End;
use crate::frame::{FrameFlags, FrameIx, line};
use crate::pairing::statement::EntryIx;
use crate::process::ProcessIx;
use crate::proxylog::SignatureState;
use crate::role::Leg;
use crate::row::ids::{ChannelId, FindingId, ProcessId, VerdictId};
use crate::row::{FindingRow, UtcNs};
use crate::time::BootNs;
use crate::verdict::doubt::PlacedGap;
use crate::verdict::{Judgement, KeyReach, Verdict};

/// Findings of one kind that get a row each; further ones are counted in the last. Stops an agent from burying the rest.
const FINDINGS_PER_KIND_MAX: usize = 10_000;

/// A finding without what is the same for all.
pub(super) struct Finding {
    pub(super) kind: &'static str,
    pub(super) severity: &'static str,
    pub(super) message: String,
    pub(super) weakens: Option<&'static str>,
    pub(super) utc: UtcNs,
    pub(super) boot: Option<BootNs>,
    pub(super) subject: Vec<u8>,
    /// The judgement behind it, by index, with its id.
    pub(super) verdict: Option<(usize, VerdictId)>,
    pub(super) process: Option<ProcessId>,
    pub(super) channel: Option<ChannelId>,
    pub(super) proxy: Option<String>,
}

impl Writer<'_> {
    pub(super) fn findings(&mut self) {
        let mut findings = Vec::new();
        for (ix, judgement) in self.judgements.iter().enumerate() {
            findings.extend(self.of_judgement(ix, judgement));
        }
        let answering = self.answering();
        for oddity in &self.derived.passages.oddities {
            findings.extend(self.of_oddity(oddity, &answering));
        }
        findings.extend(self.of_foreign_bytes());
        findings.extend(self.of_rewritten());
        findings.extend(self.of_logs());
        findings.extend(self.of_keys());
        let mut counts: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
        for (nth, finding) in (0u64..).zip(findings) {
            let count = counts.entry(finding.kind).or_default();
            *count += 1;
            if *count <= FINDINGS_PER_KIND_MAX {
                let row = self.finding_row(finding, nth);
                self.emit(row);
            }
        }
    }

    fn of_judgement(&self, ix: usize, judgement: &Judgement) -> Option<Finding> {
        let (severity, what) = match judgement.verdict {
            Verdict::Bypassed => ("critical", "a call reached its receiver past the proxy"),
            Verdict::Altered => (
                "high",
                "log, signature and wire tell different stories of a call",
            ),
            Verdict::Forged => ("critical", "the log has an entry that is not the proxy's"),
            Verdict::Replayed => ("high", "the log has an entry that repeats an earlier one"),
            Verdict::Unobserved => ("medium", "the log has an entry of a call that was not seen"),
            Verdict::Unlogged if judgement.expected.is_some() => (
                "medium",
                "a call went through the proxy and the log does not have it, as this proxy is known to do",
            ),
            Verdict::Unlogged => (
                "high",
                "a call went through the proxy and the log does not have it",
            ),
            Verdict::Undecided
            | Verdict::Allowed
            | Verdict::Blocked
            | Verdict::Matched
            | Verdict::Outside
            | Verdict::OutOfScope => return self.of_lesser(ix, judgement),
        };
        let (_, utc, boot) = self.subject_key(judgement)?;
        let call = judgement.call().map(|ix| &self.derived.calls[ix]);
        let verdict = self.verdict_id(judgement)?;
        Some(Finding {
            kind: judgement.verdict.as_str(),
            severity,
            message: what.to_owned(),
            weakens: None,
            utc,
            boot,
            subject: verdict.to_string().into_bytes(),
            verdict: Some((ix, verdict)),
            process: call
                .and_then(|call| call.subject())
                .and_then(|passage| self.parties(passage).0),
            channel: None,
            proxy: judgement
                .proxy
                .and_then(|proxy| self.proxy_name(proxy))
                .map(str::to_owned),
        })
    }

    /// What is to be looked at of a call that no verdict accuses.
    fn of_lesser(&self, ix: usize, judgement: &Judgement) -> Option<Finding> {
        let (kind, severity, message, weakens) = if judgement.signature
            == Some(SignatureState::Recovered)
        {
            // Even where it tells the truth.
            (
                "log_reserialised",
                "medium",
                "an entry's bytes are not the proxy's, though its values are",
                "what no signature covers in this log",
            )
        } else {
            match judgement
                .reason
                .filter(|_| judgement.verdict == Verdict::Undecided)
            {
                Some("transcript") => (
                    "transcript",
                    // People print what was said all the time, and the verdict says already that it is not known.
                    "low",
                    "a copy of a call that went through the proxy was sent past it with its answer, or a line of the proxy's log, as by printing them; whether the receiver executed it again is not known",
                    "what is said of this call's copy",
                ),
                Some("framing") => (
                    "mcp_like",
                    "medium",
                    "a message past the proxy, in a framing that readers of lines do not read",
                    "what is said of calls on this channel",
                ),
                Some("method_unseen") => (
                    "message_cut",
                    "medium",
                    "a message past the proxy that was sent so that its method could not be read",
                    "what is said of calls on this channel",
                ),
                Some(_) | None => return None,
            }
        };
        let (_, utc, boot) = self.subject_key(judgement)?;
        let verdict = self.verdict_id(judgement)?;
        Some(Finding {
            kind,
            severity,
            message: message.to_owned(),
            weakens: Some(weakens),
            utc,
            boot,
            subject: verdict.to_string().into_bytes(),
            verdict: Some((ix, verdict)),
            process: None,
            channel: None,
            proxy: judgement
                .proxy
                .and_then(|proxy| self.proxy_name(proxy))
                .map(str::to_owned),
        })
    }

    /// Processes that were seen to answer somebody past a proxy: what they are sent in another framing is likely meant for them.
    fn answering(&self) -> BTreeSet<ProcessIx> {
        let passages = self.derived.passages.passages.iter();
        passages
            .filter(|passage| {
                matches!(passage.route, Route::Direct(..)) && passage.message.kind.is_response()
            })
            .filter_map(|passage| {
                let placed = passage.primary()?.placed;
                ends(self.case.scene, &self.derived.placed[placed.0 as usize]).0
            })
            .collect()
    }

    fn of_oddity(&self, oddity: &Oddity, answering: &BTreeSet<ProcessIx>) -> Option<Finding> {
        let (kind, severity, message, weakens, ix) = match oddity {
            Oddity::ReaderLies(ix) => (
                "evidence_denied",
                "high",
                "a reader shows bytes that nobody wrote: it changed its memory after the read",
                Some("what this process's own end shows"),
                ix,
            ),
            Oddity::WriterLies(ix) => (
                "writer_reader_mismatch",
                "high",
                "a writer's memory shows a message that was another one in the channel: it changed its buffer around the write; what was read is believed",
                Some("what this process's own end shows"),
                ix,
            ),
            Oddity::ReaderDenies(ix) => (
                "evidence_denied",
                "high",
                "a reader took a message out of its channel and does not show it",
                Some("what the reader's own end shows"),
                ix,
            ),
            Oddity::Malformed(ix) => (
                "not_mcp",
                // An honest server's `[info] …` begins like JSON too.
                if self.speaks_of_json_rpc(*ix) {
                    "medium"
                } else {
                    "low"
                },
                "a line begins like JSON and is none, but some servers may execute it",
                Some("what is said of calls on this channel"),
                ix,
            ),
            Oddity::LineCut(ix) => (
                "line_cut",
                self.severity_of_cut(*ix, answering),
                "a stream ended within a line, which is no whole message",
                None,
                ix,
            ),
            Oddity::McpLike(ix) => {
                // Programs print what they got and what they find in files; whoever answers is spoken to.
                let placed = &self.derived.placed[ix.0 as usize];
                // A connection that begins like HTTP or TLS can hold whole calls.
                let frame = &self.correlator.frames[placed.record.0 as usize];
                let spoken_to = placed.leg != Leg::Direct
                    || (frame.flags.contains(FrameFlags::DISGUISED)
                        && !self.derived.roles.is_log(placed.stream))
                    || self.undecoded(placed.stream.channel).is_some()
                    || (!self.derived.roles.is_log(placed.stream)
                        && ends(self.case.scene, placed)
                            .1
                            .is_some_and(|reader| answering.contains(&reader)));
                (
                    "mcp_like",
                    if spoken_to { "medium" } else { "low" },
                    "text that speaks of JSON-RPC, in a framing that is not read",
                    Some("what is said of calls on this channel"),
                    ix,
                )
            }
            Oddity::Wrapped(ix) => (
                "mcp_like",
                if self
                    .derived
                    .roles
                    .is_log(self.derived.placed[ix.0 as usize].stream)
                {
                    "low"
                } else {
                    "medium"
                },
                "a JSON-RPC message inside another JSON value: a server can be made to take it out",
                Some("what is said of calls on this channel"),
                ix,
            ),
            Oddity::NotJsonRpc(ix) => (
                "not_mcp",
                if self.derived.placed[ix.0 as usize].leg.is_to_server() {
                    "medium"
                } else {
                    "low"
                },
                "a line on an MCP stream that is no JSON-RPC message",
                None,
                ix,
            ),
            Oddity::Incomplete(ix) if self.denied(*ix) => (
                "evidence_denied",
                "high",
                "a message on a private channel was moved so that it could not be read whole",
                Some("what this process's own end shows"),
                ix,
            ),
            Oddity::Incomplete(_) | Oddity::Relayed(_) => return None,
        };
        let placed = &self.derived.placed[ix.0 as usize];
        if !self.derived.mcp.contains(&placed.stream) && !self.speaks_for_itself(oddity) {
            return None;
        }
        Some(self.at_delivery(*ix, kind, severity, message, weakens))
    }

    /// Whether it is worth telling on a stream that nothing else shows to carry MCP.
    fn speaks_for_itself(&self, oddity: &Oddity) -> bool {
        match oddity {
            Oddity::McpLike(_) | Oddity::Wrapped(_) => true,
            Oddity::Malformed(ix) | Oddity::LineCut(ix) => self.speaks_of_json_rpc(*ix),
            Oddity::ReaderLies(_)
            | Oddity::WriterLies(_)
            | Oddity::ReaderDenies(_)
            | Oddity::NotJsonRpc(_)
            | Oddity::Incomplete(_)
            | Oddity::Relayed(_) => false,
        }
    }

    /// What is missing of a direct message at its reader is missing by the reader's own doing.
    fn denied(&self, ix: PlacedIx) -> bool {
        let placed = &self.derived.placed[ix.0 as usize];
        let frame = &self.correlator.frames[placed.record.0 as usize];
        placed.leg == Leg::Direct
            && frame.end == End::Reader
            && self
                .derived
                .gaps
                .own_doing(placed.stream, frame.first_enter, frame.last_exit)
                .is_some()
    }

    /// Whoever is spoken to past a proxy may take a cut message for whole.
    fn severity_of_cut(&self, ix: PlacedIx, answering: &BTreeSet<ProcessIx>) -> &'static str {
        let placed = &self.derived.placed[ix.0 as usize];
        let past = placed.leg == Leg::Direct && !self.derived.roles.is_log(placed.stream);
        let reader = ends(self.case.scene, placed).1;
        let heard = reader.is_none_or(|reader| answering.contains(&reader));
        let spoken = past && heard && self.speaks_of_json_rpc(ix);
        if spoken { "medium" } else { "low" }
    }

    fn speaks_of_json_rpc(&self, ix: PlacedIx) -> bool {
        let record = self.derived.placed[ix.0 as usize].record;
        let bytes = &self.correlator.frames[record.0 as usize].bytes;
        line::speaks_of_json_rpc(bytes)
    }

    fn at_delivery(
        &self,
        ix: PlacedIx,
        kind: &'static str,
        severity: &'static str,
        message: &str,
        weakens: Option<&'static str>,
    ) -> Finding {
        let placed = &self.derived.placed[ix.0 as usize];
        let record: FrameIx = placed.record;
        let frame = &self.correlator.frames[record.0 as usize];
        Finding {
            kind,
            severity,
            message: message.to_owned(),
            weakens,
            utc: self.utc(placed.at),
            boot: Some(placed.at),
            subject: self.frame_id(record).to_string().into_bytes(),
            verdict: None,
            process: frame.by.first().map(|process| self.process_id(*process)),
            channel: Some(self.channel_id(placed.stream.channel)),
            proxy: self.proxy_name_of_leg(placed.leg),
        }
    }

    /// Bytes that somebody else put into a proxy's channel to its server, in a way in which they could not be read. What could be
    /// read is judged as a call.
    fn of_foreign_bytes(&self) -> Vec<Finding> {
        let foreign = |gap: &&PlacedGap| {
            let writer = gap.gap.process;
            let by_other = writer
                .is_some_and(|writer| self.derived.roles.instance_of(writer) != gap.leg.instance());
            gap.end == End::Writer && matches!(gap.leg, Leg::ProxyToServer(_)) && by_other
        };
        let gaps = self.derived.gaps.all().iter().filter(foreign);
        gaps.map(|gap| Finding {
            kind: "foreign_bytes",
            severity: "high",
            message: "a process that is not the proxy put bytes into the proxy's channel to its server, in a way in which they cannot be read"
                .to_owned(),
            weakens: Some("what is said of calls on this channel"),
            utc: self.utc(gap.gap.until),
            boot: Some(gap.gap.until),
            subject: format!("foreign {}:{}", gap.stream.channel.0, gap.gap.position).into_bytes(),
            verdict: None,
            process: gap.gap.process.map(|process| self.process_id(process)),
            channel: Some(self.channel_id(gap.stream.channel)),
            proxy: self.proxy_name_of_leg(gap.leg),
        })
        .collect()
    }

    /// Lines that are no entries, files that others can write, written lines that are gone without a call.
    fn of_logs(&self) -> Vec<Finding> {
        let observed = self.entry_observed();
        let plain = |kind, severity, message: String, proxy: usize, subject: String| Finding {
            kind,
            severity,
            message,
            weakens: None,
            utc: observed,
            boot: None,
            subject: subject.into_bytes(),
            verdict: None,
            process: None,
            channel: None,
            proxy: self.proxy_name(proxy).map(str::to_owned),
        };
        let bad = self.correlator.bad_lines.iter().map(|bad| {
            let line = bad.bad.line;
            plain(
                "log_line_unreadable",
                "medium",
                format!(
                    "line {} of the log is {}: {}",
                    line.number,
                    bad_word(bad.bad.reason).replace('_', " "),
                    bad.bad.reason
                ),
                bad.proxy,
                format!("{}:{}", bad.file.0, line.offset),
            )
        });
        let incidents = self
            .correlator
            .incidents
            .iter()
            .enumerate()
            .map(|(nth, incident)| {
                plain(
                    incident.kind,
                    incident.severity.as_str(),
                    incident.message.clone(),
                    incident.proxy,
                    format!("incident {nth}"),
                )
            });
        let writable = self
            .correlator
            .files
            .iter()
            .filter(|file| file.world_writable)
            .map(|file| {
                plain(
                    "log_writable_by_all",
                    "medium",
                    "every user can write to the log file".to_owned(),
                    file.proxy,
                    format!("writable {}", super::basename(&file.name)),
                )
            });
        let sides = &self.derived.assignment.of_statement;
        let gone = self.derived.statements.iter().enumerate().filter_map(|(ix, statement)| {
            let unpaired = sides.get(ix).is_none_or(Option::is_none);
            (statement.on_disk.is_none() && unpaired).then(|| {
                plain(
                    "line_deleted",
                    "high",
                    "the proxy wrote a line that the log does not have, about something that was not seen".to_owned(),
                    statement.proxy,
                    format!("gone {ix}"),
                )
            })
        });
        bad.chain(incidents).chain(writable).chain(gone).collect()
    }

    /// One row per proxy instance whose key others could have read.
    fn of_keys(&self) -> Vec<Finding> {
        let mut reached: std::collections::BTreeMap<usize, KeyReach> =
            std::collections::BTreeMap::new();
        for judgement in self.judgements {
            if let (Some(proxy), Some(reach)) = (judgement.proxy, judgement.key_reach)
                && matches!(reach, KeyReach::Agent | KeyReach::Server)
            {
                reached.entry(proxy).or_insert(reach);
            }
        }
        reached
            .into_iter()
            .map(|(proxy, reach)| Finding {
                kind: "key_in_reach",
                // The third view does not rest on the key; a key in reach alone is no bad deed.
                severity: "low",
                message: format!("the {} could have read the signing key", reach.as_str()),
                weakens: Some("every signature of this proxy"),
                utc: self.entry_observed(),
                boot: None,
                subject: format!("key {proxy}").into_bytes(),
                verdict: None,
                process: None,
                channel: None,
                proxy: self.proxy_name(proxy).map(str::to_owned),
            })
            .collect()
    }

    fn finding_row(&self, finding: Finding, nth: u64) -> FindingRow {
        let judgement = finding.verdict.and_then(|(ix, _)| self.judgements.get(ix));
        let entry: Option<EntryIx> = judgement.and_then(Judgement::entry);
        FindingRow {
            finding_id: FindingId::of(
                self.capture(),
                finding.kind,
                &finding.subject,
                nth,
                finding.utc,
            ),
            capture_id: self.capture(),
            found_utc: finding.utc,
            found_boot_ns: finding.boot,
            severity: finding.severity,
            kind: finding.kind,
            message: finding.message,
            weakens: finding.weakens.map(str::to_owned),
            verdict_id: finding.verdict.map(|(_, id)| id),
            call_id: judgement
                .and_then(Judgement::call)
                .and_then(|ix| self.call_id(ix)),
            entry_id: entry.map(|ix| self.entry_id(ix)),
            process_id: finding.process,
            target_process_id: None,
            target_pid: None,
            target_start_boot_ns: None,
            channel_id: finding.channel,
            coverage_id: None,
            proxy_name: finding.proxy,
            count: 1,
        }
    }
}
