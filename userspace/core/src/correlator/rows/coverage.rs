//! Rows of coverage: what could not be seen, and what says that the rest could.

use super::Writer;
use crate::correlator::Note;
use crate::evidence;
use crate::role::Leg;
use crate::row::CoverageRow;
use crate::row::ids::CoverageId;

impl Writer<'_> {
    pub(super) fn coverage(&mut self) {
        let from = self.correlator.first.unwrap_or_default();
        let end = self.end();
        let whole = Note::new("capture", "whole", from);
        let row = CoverageRow {
            to_utc: self.utc(end),
            to_boot_ns: end,
            ..self.note_row(&whole, 0)
        };
        self.emit(row);
        let correlator = self.correlator;
        let limits = [
            ("malformed_records", correlator.malformed_records),
            ("unknown_records", correlator.unknown_records),
            ("channels_over_limit", correlator.channels.overflowed),
            ("processes_over_limit", correlator.processes.overflowed),
            ("attempts_over_limit", correlator.attempts.overflowed),
            ("attempts_unknown", correlator.attempts.unknown),
            ("notes_over_limit", correlator.notes_dropped),
            (
                "frames_over_limit",
                correlator
                    .streams
                    .values()
                    .map(|stream| stream.overflowed)
                    .sum(),
            ),
            (
                "gaps_over_limit",
                correlator
                    .streams
                    .values()
                    .map(|stream| stream.gaps_folded)
                    .sum(),
            ),
        ];
        for (name, count) in limits.into_iter().filter(|(_, count)| *count > 0) {
            let note = Note {
                count: Some(count),
                ..Note::loss(end, name, String::new(), 0)
            };
            let row = self.note_row(&note, 0);
            self.emit(row);
        }
        let lost = correlator.numbers.lost();
        if lost > 0 {
            let note = Note {
                lost_records: Some(lost),
                ..Note::loss(end, "records_not_arrived", String::new(), 0)
            };
            let row = self.note_row(&note, 0);
            self.emit(row);
        }
        if !correlator.clock.is_set() {
            let note = Note::loss(
                end,
                "clock",
                "the spool has no clock reading: times are of the boot clock".to_owned(),
                0,
            );
            let row = self.note_row(&note, 0);
            self.emit(row);
        }
        for (nth, note) in (1u64..).zip(&correlator.notes) {
            let row = self.note_row(note, nth);
            self.emit(row);
        }
        self.gap_rows();
        self.clock_row();
    }

    fn gap_rows(&mut self) {
        let derived = self.derived;
        for (ix, gap) in derived.gaps.all().iter().enumerate() {
            let own_doing = evidence::self_inflicted(&gap.gap, &derived.roles);
            // What counts is what is missing at the end of record of a stream that carries MCP, or of a proxy's log.
            let counts = gap.of_record
                && (derived.mcp.contains(&gap.stream) || matches!(gap.leg, Leg::ProxyFile(_)));
            // What nobody shows can be anything, whoever hid it.
            let weakens = (counts && !own_doing) || gap.unseen;
            let row = CoverageRow {
                coverage_id: self.gap_id(ix),
                weakens,
                ok: Some(false),
                reason: Some(gap.gap.reason.as_str()),
                lost_bytes: gap.gap.len,
                channel_id: Some(self.channel_id(gap.stream.channel)),
                stream: Some(self.stream_name(gap.stream)),
                end: Some(gap.end.as_str()),
                stream_offset: Some(gap.gap.position),
                process_id: gap.gap.process.map(|process| self.process_id(process)),
                self_inflicted: own_doing,
                from_utc: self.utc(gap.gap.since.max(self.correlator.first.unwrap_or_default())),
                from_boot_ns: gap.gap.since,
                to_utc: self.utc(gap.gap.until),
                to_boot_ns: gap.gap.until,
                ..self.note_row(&Note::new("gap", "gap", gap.gap.until), ix as u64)
            };
            self.emit(row);
        }
    }

    fn clock_row(&mut self) {
        let at = self.end();
        let offset = self.utc(at).0.wrapping_sub(at.0.cast_signed());
        let row = CoverageRow {
            clock_offset_ns: Some(offset),
            ..self.note_row(&Note::new("clock", "utc_less_boot", at), 0)
        };
        self.emit(row);
    }

    fn note_row(&self, note: &Note, nth: u64) -> CoverageRow {
        let utc = self.utc(note.at);
        CoverageRow {
            coverage_id: CoverageId::of(self.capture(), note.kind, note.name.as_bytes(), nth, utc),
            capture_id: self.capture(),
            kind: note.kind,
            name: Some(note.name.clone()),
            from_utc: self.utc(note.since.unwrap_or(note.at)),
            from_boot_ns: note.since.unwrap_or(note.at),
            to_utc: utc,
            to_boot_ns: note.at,
            weakens: note.weakens,
            ok: None,
            reason: None,
            detail: note.detail.clone().filter(|detail| !detail.is_empty()),
            run_count: note.count,
            miss_count: note.missed,
            lost_records: note.lost_records,
            lost_bytes: note.lost_bytes,
            channel_id: None,
            stream: None,
            end: None,
            stream_offset: None,
            process_id: None,
            self_inflicted: false,
            clock_offset_ns: None,
            clock_uncertainty_ns: None,
        }
    }
}
