//! Rows of findings about attempts to get round the witness.

use super::Writer;
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
            message: finding.message.to_owned(),
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
            count: attempt.count,
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
