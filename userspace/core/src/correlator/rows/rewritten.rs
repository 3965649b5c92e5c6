//! Findings against readers whose memory contradicts the kernel's own copy.

use super::Writer;
use super::findings::Finding;

impl Writer<'_> {
    /// Readers whose memory told something else than what the kernel gave them.
    pub(super) fn of_rewritten(&self) -> Vec<Finding> {
        let differences = self.correlator.copies.differences.iter();
        differences
            .map(|difference| Finding {
                kind: "evidence_denied",
                severity: "high",
                message: "a reader's memory held something else when it returned than the kernel had copied there, or was gone: a thread of it rewrote or unmapped it meanwhile; what the kernel copied is believed"
                    .to_owned(),
                weakens: None,
                utc: self.utc(difference.at),
                boot: Some(difference.at),
                subject: format!("rewritten {}:{}", difference.channel.0, difference.position)
                    .into_bytes(),
                verdict: None,
                process: Some(self.process_id(difference.process)),
                channel: Some(self.channel_id(difference.channel)),
                proxy: None,
            })
            .collect()
    }
}
