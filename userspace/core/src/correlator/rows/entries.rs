//! Rows of entries: the proxy's view, bad lines included.

use super::Writer;
use crate::hex::hex;
use crate::json::{Document, Limits};
use crate::pairing::LogBad;
use crate::pairing::statement::{EntryIx, Statement, ThirdView};
use crate::proxylog::{BadReason, Direction};
use crate::row::ids::EntryId;
use crate::row::{EntryRow, UtcNs};
use crate::verdict::{Verdict, signature_str};

impl Writer<'_> {
    pub(super) fn entries(&mut self) {
        let derived = self.derived;
        let mut state_of: Vec<(Option<&'static str>, bool)> =
            vec![(None, true); self.correlator.entries.len()];
        for judgement in self.judgements {
            if let Some(entry) = judgement.entry() {
                state_of[entry.0 as usize] = (
                    judgement.signature.map(signature_str),
                    judgement.verdict != Verdict::Outside,
                );
            }
        }
        for statement in &derived.statements {
            if let Some(ix) = statement.on_disk {
                let row = self.entry_row(ix, statement, state_of[ix.0 as usize]);
                self.emit(row);
            }
        }
        for bad in &self.correlator.bad_lines {
            let row = self.bad_row(bad);
            self.emit(row);
        }
    }

    fn entry_row(
        &self,
        ix: EntryIx,
        statement: &Statement,
        (signature_state, covered): (Option<&'static str>, bool),
    ) -> EntryRow {
        let log = &self.correlator.entries[ix.0 as usize];
        let entry = &log.entry;
        let file = self.correlator.files.get(log.file.0 as usize);
        let written = statement.written.as_ref();
        let proxy = Some(log.proxy);
        EntryRow {
            entry_id: self.entry_id(ix),
            capture_id: self.capture(),
            proxy_name: self.proxy_name(log.proxy).unwrap_or("").to_owned(),
            proxy_process_id: written.map(|written| {
                self.process_id(self.derived.roles.instance(written.instance).process)
            }),
            format: "mcp_audit",
            file: file.map(|file| file.name.clone()).unwrap_or_default(),
            file_dev: file.map(|file| u64::from(file.dev)),
            file_inode: file.map(|file| file.inode),
            line_number: entry.line.number,
            byte_offset: entry.line.offset,
            byte_len: entry.line.len,
            line_sha256: hex(&entry.line.sha256),
            observed_utc: self.entry_observed(),
            observed_boot_ns: None,
            written_utc: written.map(|written| self.utc(written.at)),
            written_boot_ns: written.map(|written| written.at),
            state: "ok",
            leniency: super::leniency_words(entry.leniency),
            log_id: Some(entry.id.clone()),
            timestamp: Some(entry.timestamp.clone()),
            timestamp_utc: entry.utc_ns.map(UtcNs),
            direction: Some(match entry.direction {
                Direction::ClientToServer => "client_to_server",
                Direction::ServerToClient => "server_to_client",
            }),
            transport: Some(entry.transport.clone()),
            method: Some(entry.method.clone()),
            request_id: entry.request_id.clone(),
            tool_name: entry.tool_name.clone(),
            params: self.privacy.text(entry.params.as_deref(), proxy),
            result: self.privacy.text(entry.result.as_deref(), proxy),
            error: self.privacy.text(entry.error.as_deref(), proxy),
            error_code: entry.error.as_deref().and_then(error_code),
            duration_ms: entry.duration_ms,
            client_id: Some(entry.client_id.clone()),
            server_id: Some(entry.server_id.clone()),
            signature: Some(entry.signature.clone()),
            signature_state: signature_state.unwrap_or("not_checked"),
            duplicate_of: statement.repeats.map(|first| self.entry_id(first)),
            third_view: statement.third_view.as_str(),
            covered,
        }
    }

    fn bad_row(&self, bad: &LogBad) -> EntryRow {
        let file = self.correlator.files.get(bad.file.0 as usize);
        let proxy_name = self.proxy_name(bad.proxy).unwrap_or("").to_owned();
        let line = bad.bad.line;
        let entry_id = EntryId::of(
            self.capture(),
            &proxy_name,
            format!("bad {}", bad.file.0).as_bytes(),
            line.offset,
            self.entry_observed(),
        );
        EntryRow {
            entry_id,
            capture_id: self.capture(),
            proxy_name,
            proxy_process_id: None,
            format: "mcp_audit",
            file: file.map(|file| file.name.clone()).unwrap_or_default(),
            file_dev: file.map(|file| u64::from(file.dev)),
            file_inode: file.map(|file| file.inode),
            line_number: line.number,
            byte_offset: line.offset,
            byte_len: line.len,
            line_sha256: hex(&line.sha256),
            observed_utc: self.entry_observed(),
            observed_boot_ns: None,
            written_utc: None,
            written_boot_ns: None,
            state: bad_word(bad.bad.reason),
            leniency: Vec::new(),
            log_id: None,
            timestamp: None,
            timestamp_utc: None,
            direction: None,
            transport: None,
            method: None,
            request_id: None,
            tool_name: None,
            params: None,
            result: None,
            error: None,
            error_code: None,
            duration_ms: None,
            client_id: None,
            server_id: None,
            signature: None,
            signature_state: "not_checked",
            duplicate_of: None,
            third_view: ThirdView::Unknown.as_str(),
            covered: true,
        }
    }
}

/// Name of a bad line's state as stored in the evidence.
pub(super) fn bad_word(reason: BadReason) -> &'static str {
    match reason {
        BadReason::Torn => "torn",
        BadReason::TooLong => "oversized",
        BadReason::Blank | BadReason::Json(_) => "not_json",
        BadReason::NotAnObject | BadReason::Missing(_) | BadReason::Unusable(_) => "not_an_entry",
    }
}

fn error_code(error: &[u8]) -> Option<i64> {
    Document::parse(error, Limits::default())
        .ok()?
        .root()
        .get("code")?
        .as_i64()
}
