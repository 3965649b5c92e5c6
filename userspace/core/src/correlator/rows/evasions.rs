//! Rows of findings about attempts to get round the witness.

use super::Writer;
use crate::channel::{ChannelIx, ChannelKind, Got, Holder, StreamIx};
use crate::role::{InstanceIx, Leg};
use crate::row::FindingRow;
use crate::row::ids::FindingId;
use crate::verdict::evasion::Finding;

/// Findings of attempts that get a row each. Stops an agent from burying the rest; how many there were is in the coverage.
const ROWS_MAX: usize = 20_000;

impl Writer<'_> {
    pub(super) fn evasions(&mut self) {
        let derived = self.derived;
        // What matters most comes first where not all find room.
        let mut findings: Vec<&Finding> = derived.evasions.findings.iter().collect();
        findings.sort_by_key(|finding| rank(finding.severity));
        for finding in findings.into_iter().take(ROWS_MAX) {
            let row = self.evasion_row(finding);
            self.emit(row);
        }
        for row in self.handed_over() {
            self.emit(row);
        }
    }

    /// Ends of a proxy's channels in hands that nobody gave them to by forking.
    fn handed_over(&self) -> Vec<FindingRow> {
        let mut rows = Vec::new();
        for (ix, channel) in self.correlator.channels.iter() {
            let leg = [0, 1].into_iter().find_map(|from_end| {
                let stream = StreamIx {
                    channel: ix,
                    from_end,
                };
                let leg = self.derived.roles.leg(stream);
                leg.instance().filter(|_| !matches!(leg, Leg::ProxyFile(_)))
            });
            let Some(instance) = leg else { continue };
            for holder in &channel.holders {
                let foreign = match holder.got {
                    Got::ScmRights | Got::PidfdGetfd => true,
                    // A FIFO is opened by whoever uses it; a pipe only through another's descriptor.
                    Got::Opened => channel.kind == ChannelKind::Pipe,
                    Got::Created | Got::Connected | Got::Accepted | Got::Used | Got::Scanned => {
                        false
                    }
                };
                let own = self.derived.roles.instance_of(holder.process) == Some(instance);
                if foreign && !own && rows.len() < ROWS_MAX {
                    rows.push(self.handed_over_row(ix, instance, holder));
                }
            }
        }
        rows
    }

    fn handed_over_row(
        &self,
        channel: ChannelIx,
        proxy: InstanceIx,
        holder: &Holder,
    ) -> FindingRow {
        const KIND: &str = "end_handed_over";
        let utc = self.utc(holder.first);
        let subject = format!("{}:{}:{}", channel.0, holder.process.0, holder.end);
        let proxy = self.derived.roles.instance(proxy).proxy;
        FindingRow {
            finding_id: FindingId::of(self.capture(), KIND, subject.as_bytes(), 0, utc),
            capture_id: self.capture(),
            found_utc: utc,
            found_boot_ns: Some(holder.first),
            severity: "medium",
            kind: KIND,
            message: "a process came by an end of a proxy's channel through a message, out of another process, or by opening another's descriptor"
                .to_owned(),
            weakens: None,
            verdict_id: None,
            call_id: None,
            entry_id: None,
            process_id: Some(self.process_id(holder.process)),
            target_process_id: None,
            target_pid: None,
            target_start_boot_ns: None,
            channel_id: Some(self.channel_id(channel)),
            coverage_id: None,
            proxy_name: self.proxy_name(proxy).map(str::to_owned),
            count: 1,
        }
    }

    fn evasion_row(&self, finding: &Finding) -> FindingRow {
        let attempt = &self.correlator.attempts.all()[finding.attempt];
        let utc = self.utc(attempt.at);
        let subject = format!("attempt {}", finding.attempt);
        let proxy = finding
            .instance
            .map(|instance| self.derived.roles.instance(instance).proxy);
        FindingRow {
            finding_id: FindingId::of(
                self.capture(),
                finding.kind,
                subject.as_bytes(),
                finding.attempt as u64,
                utc,
            ),
            capture_id: self.capture(),
            found_utc: utc,
            found_boot_ns: Some(attempt.at),
            severity: finding.severity,
            kind: finding.kind,
            message: match &finding.detail {
                Some(detail) => format!("{}: {detail}", finding.message),
                None => finding.message.to_owned(),
            },
            weakens: finding.weakens.map(str::to_owned),
            verdict_id: None,
            call_id: None,
            entry_id: None,
            process_id: Some(self.process_id(attempt.actor)),
            target_process_id: finding.target.map(|target| self.process_id(target)),
            target_pid: attempt.target.map(|target| target.tgid),
            target_start_boot_ns: attempt.target.map(|target| target.start),
            channel_id: None,
            coverage_id: None,
            proxy_name: proxy
                .and_then(|proxy| self.proxy_name(proxy))
                .map(str::to_owned),
            count: finding.count.unwrap_or(attempt.count),
        }
    }
}

fn rank(severity: &str) -> u8 {
    match severity {
        "high" | "critical" => 0,
        "medium" => 1,
        "low" => 2,
        _ => 3,
    }
}
