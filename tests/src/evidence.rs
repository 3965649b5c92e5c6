//! A small capture as rows of every table: an agent, a proxy, its server, and a server of the agent's own.
//!
//! Three calls and three entries over midnight: two calls are matched, one went to the agent's own server, one entry is an
//! invention. Method, tool and payload hold what a hostile agent would put there.

use countersign_core::row::ids::{
    CallId, CaptureId, ChannelId, CoverageId, EntryId, FindingId, FrameId, ProcessId, VerdictId,
};
use countersign_core::row::{
    BootNs, CallRow, ChannelEndRow, ChannelRow, CoverageRow, EntryRow, FindingRow, FrameRow,
    PayloadBytes, PayloadText, ProcessRow, Row, SightingRow, UtcNs, VerdictRow,
};

/// Host name of the capture.
pub const HOST: &str = "build-7";

/// A tool's name that would clear a terminal.
pub const HOSTILE_TOOL: &str = "read\u{1b}[2J\u{9b}31m_file\u{202e}";

/// 2026-11-20T23:59:59.000000001Z: the second call comes after midnight.
const START: UtcNs = UtcNs(1_795_219_199_000_000_001);
const BOOT_START_NS: u64 = 5_000_000_000_000;
const SECOND_NS: i64 = 1_000_000_000;

/// The capture's id.
pub fn capture() -> CaptureId {
    CaptureId::new(START, b"boot", HOST.as_bytes(), 0)
}

/// All rows, verdicts last.
pub fn rows() -> Vec<Row> {
    let matched_first = Call {
        seconds: 0,
        tool: "read_file",
        via: "proxy",
    };
    let matched_second = Call {
        seconds: 2,
        tool: "write_file",
        via: "proxy",
    };
    let bypassed = Call {
        seconds: 3,
        tool: HOSTILE_TOOL,
        via: "own_server",
    };
    let mut rows = vec![
        process(100, "agent", "/usr/bin/agent"),
        process(101, "proxy", "/usr/bin/countersign"),
        process(102, "server", "/usr/bin/node"),
        process(103, "server", "/usr/bin/node"),
        channel("client_proxy", 1),
        channel("direct", 2),
        channel_end(1, 100, "write"),
        channel_end(1, 101, "read"),
        channel_end(2, 100, "write"),
        coverage("capture", None, None),
        coverage("gap", Some("ring_full"), Some(4096)),
        key_in_reach(),
    ];
    for call in [&matched_first, &matched_second, &bypassed] {
        rows.extend(call.rows());
    }
    for call in [&matched_first, &matched_second] {
        rows.push(entry(call.at(), "valid_disk", Some(call.tool)));
        rows.push(verdict(
            "call_and_entry",
            "matched",
            Some(call),
            Some(call.at()),
        ));
    }
    rows.push(verdict("call", "bypassed", Some(&bypassed), None));
    let forged = UtcNs(START.0 + 4 * SECOND_NS);
    rows.push(entry(forged, "bad", Some("delete_file")));
    rows.push(verdict("entry", "forged", None, Some(forged)));
    rows
}

struct Call {
    seconds: i64,
    tool: &'static str,
    via: &'static str,
}

impl Call {
    fn at(&self) -> UtcNs {
        UtcNs(START.0 + self.seconds * SECOND_NS)
    }

    fn channel(&self) -> ChannelId {
        channel_id(if self.via == "proxy" { 1 } else { 2 })
    }

    fn frame_id(&self) -> FrameId {
        FrameId::of(
            capture(),
            self.channel(),
            "only",
            "reader",
            self.seconds.unsigned_abs(),
            self.at(),
        )
    }

    fn call_id(&self) -> CallId {
        CallId::of(capture(), self.frame_id(), 0, self.at())
    }

    fn rows(&self) -> [Row; 3] {
        [
            self.frame().into(),
            self.call().into(),
            self.sighting().into(),
        ]
    }

    fn frame(&self) -> FrameRow {
        // Not UTF-8, as real servers accept it inside strings.
        let mut payload = br#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"#.to_vec();
        payload.extend_from_slice(b"\"x\":\"\xff\xfe\"}}");
        FrameRow {
            frame_id: self.frame_id(),
            capture_id: capture(),
            channel_id: self.channel(),
            stream: "only",
            hop: if self.via == "proxy" {
                "client_to_proxy"
            } else {
                "direct_request"
            },
            end: "reader",
            evidence_source: if self.via == "proxy" {
                "proxy_end"
            } else {
                "reader_end"
            },
            untrusted_end: self.via != "proxy",
            writer_process_id: Some(process_id(100)),
            reader_process_id: Some(process_id(if self.via == "proxy" { 101 } else { 103 })),
            several_writers: false,
            first_byte_utc: self.at(),
            first_byte_boot_ns: boot(self.at()),
            last_byte_utc: self.at(),
            last_byte_boot_ns: boot(self.at()),
            stream_offset: self.seconds.unsigned_abs(),
            byte_len: payload.len() as u64 + 1,
            framing: "line",
            complete: true,
            gap_bytes: 0,
            gap_reason: None,
            after_gap: false,
            unterminated: false,
            leniency: vec!["invalid_utf8"],
            kind: "request",
            element_count: 1,
            jsonrpc_id: Some("7".into()),
            method: Some("tools/call".into()),
            tool_name: Some(self.tool.into()),
            out_of_scope: None,
            payload_mode: "full",
            payload: Some(PayloadBytes(payload.into())),
            payload_hash: Some("00".repeat(32).into()),
        }
    }

    fn call(&self) -> CallRow {
        CallRow {
            call_id: self.call_id(),
            capture_id: capture(),
            kind: "request",
            direction: "client_to_server",
            via: self.via,
            proxy_name: (self.via == "proxy").then(|| "fs".into()),
            channel_id: self.channel(),
            sender_process_id: Some(process_id(100)),
            receiver_process_id: Some(process_id(if self.via == "proxy" { 102 } else { 103 })),
            request_frame_id: Some(self.frame_id()),
            request_element: 0,
            response_frame_id: None,
            response_element: None,
            method: Some("tools/call".into()),
            tool_name: Some(self.tool.into()),
            jsonrpc_id: Some("7".into()),
            params: Some(PayloadText(r#"{"path":"/etc/hosts"}"#.into())),
            result: None,
            error: None,
            error_code: None,
            answered: false,
            sent_utc: self.at(),
            sent_boot_ns: boot(self.at()),
            answered_utc: None,
            answered_boot_ns: None,
            duration_ns: None,
            out_of_scope: None,
            allowed_by: None,
        }
    }

    fn sighting(&self) -> SightingRow {
        SightingRow {
            verdict_id: VerdictId::of(capture(), self.call_id().as_ulid(), self.at()),
            capture_id: capture(),
            subject_utc: self.at(),
            call_id: Some(self.call_id()),
            frame_id: self.frame_id(),
            element: 0,
            hop: if self.via == "proxy" {
                "client_to_proxy"
            } else {
                "direct_request"
            },
            end: "reader",
            role: "request",
            of_record: true,
            content: None,
        }
    }
}

fn entry_id(at: UtcNs) -> EntryId {
    EntryId::of(capture(), "fs", b"audit.jsonl", at.0.unsigned_abs(), at)
}

fn entry(at: UtcNs, signature_state: &'static str, tool: Option<&str>) -> Row {
    EntryRow {
        entry_id: entry_id(at),
        capture_id: capture(),
        proxy_name: "fs".into(),
        proxy_process_id: Some(process_id(101)),
        format: "mcp_audit",
        file: "audit.jsonl".into(),
        file_dev: Some(1),
        // Past the signed range, as some file systems number.
        file_inode: Some(u64::MAX),
        line_number: 1,
        byte_offset: 0,
        byte_len: 200,
        line_sha256: "11".repeat(32),
        observed_utc: at,
        observed_boot_ns: None,
        written_utc: None,
        written_boot_ns: None,
        state: "ok",
        leniency: Vec::new(),
        log_id: Some(entry_id(at).to_string()),
        timestamp: Some(at.rfc3339()),
        timestamp_utc: Some(at),
        direction: Some("server_to_client"),
        transport: Some("stdio".into()),
        method: Some("tools/call".into()),
        request_id: Some("7".into()),
        tool_name: tool.map(str::to_owned),
        params: Some(PayloadText(r#"{"path":"/etc/hosts"}"#.into())),
        result: None,
        error: None,
        error_code: Some(-32_000),
        duration_ms: Some(3),
        client_id: Some("client".into()),
        server_id: Some("server".into()),
        signature: Some("22".repeat(32)),
        signature_state,
        duplicate_of: None,
        third_view: "seen_written",
        covered: true,
    }
    .into()
}

fn verdict(
    subject: &'static str,
    verdict: &'static str,
    call: Option<&Call>,
    entry: Option<UtcNs>,
) -> Row {
    let at = call.map(Call::at).or(entry).unwrap_or(START);
    let call_id = call.map(Call::call_id);
    let entry_id = entry.map(entry_id);
    let id = call_id
        .map(CallId::as_ulid)
        .or(entry_id.map(EntryId::as_ulid))
        .unwrap_or_default();
    VerdictRow {
        verdict_id: VerdictId::of(capture(), id, at),
        capture_id: capture(),
        subject,
        subject_utc: at,
        subject_boot_ns: Some(boot(at)),
        call_id,
        entry_id,
        coverage_id: None,
        verdict,
        reason: None,
        via: call.map(|call| call.via).filter(|via| *via != "proxy"),
        signature: entry.map(|_| {
            if verdict == "forged" {
                "bad"
            } else {
                "valid_disk"
            }
        }),
        key_reach: entry.map(|_| "agent"),
        hops: None,
        basis: vec!["method", "params"],
        field: (verdict == "forged").then_some("signature"),
        pointer: None,
        side: (verdict == "forged").then_some("log"),
        expected: None,
        agent_controllable: None,
        interchangeable: false,
        group_size: 1,
        candidates: Vec::new(),
        untrusted_end: verdict == "bypassed",
        confidence: vec!["request_only"],
        proxy_name: entry.map(|_| "fs".into()),
        process_id: call.map(|_| process_id(100)),
        method: Some("tools/call".into()),
        tool_name: call.map_or(Some("delete_file".into()), |call| Some(call.tool.into())),
        request_id: Some("7".into()),
    }
    .into()
}

fn process_id(pid: u32) -> ProcessId {
    ProcessId::of(capture(), pid, BOOT_START_NS, START)
}

fn process(pid: u32, role: &'static str, exe: &str) -> Row {
    ProcessRow {
        process_id: process_id(pid),
        capture_id: capture(),
        exec_seq: 0,
        pid,
        ns_pid: Some(pid),
        parent_pid: Some(100),
        parent_process_id: None,
        root_process_id: Some(process_id(100)),
        uid: 1000,
        euid: Some(1000),
        gid: None,
        cgroup: Some(4242),
        exe_path: Some(exe.into()),
        exe_dev: Some(1),
        exe_inode: Some(u64::from(pid)),
        exe_sha256: None,
        args: Some(PayloadText("--stdio".into())),
        args_truncated: false,
        role,
        role_strength: "derived",
        role_weaknesses: Vec::new(),
        proxy_name: None,
        how_tagged: "fork",
        first_seen_utc: START,
        first_seen_boot_ns: boot(START),
        start_boot_ns: boot(START),
        start_utc: START,
        end_utc: None,
        end_boot_ns: None,
        end: "alive",
        exit_code: None,
        exit_signal: None,
    }
    .into()
}

fn channel_id(inode: u64) -> ChannelId {
    ChannelId::of(capture(), &[inode], START)
}

fn channel(role: &'static str, inode: u64) -> Row {
    ChannelRow {
        channel_id: channel_id(inode),
        capture_id: capture(),
        kind: "pipe",
        dev: 14,
        a_inode: inode,
        b_inode: None,
        a_address: None,
        b_address: None,
        undecoded: None,
        role,
        proxy_name: None,
        start: "created",
        allowed_by: None,
        first_seen_utc: START,
        first_seen_boot_ns: boot(START),
        last_seen_utc: START,
        last_seen_boot_ns: boot(START),
        a_to_b_write_ops: 3,
        a_to_b_written_bytes: 300,
        a_to_b_read_ops: 2,
        a_to_b_read_bytes: 200,
        a_to_b_queued_bytes: Some(0),
        a_to_b_residue_bytes: Some(100),
        b_to_a_write_ops: 0,
        b_to_a_written_bytes: 0,
        b_to_a_read_ops: 0,
        b_to_a_read_bytes: 0,
        b_to_a_queued_bytes: None,
        b_to_a_residue_bytes: None,
        captured_bytes: 500,
        gap_bytes: 0,
        gap_count: 0,
        frame_count: 3,
        mcp_frame_count: 3,
    }
    .into()
}

fn channel_end(inode: u64, pid: u32, mode: &'static str) -> Row {
    ChannelEndRow {
        channel_id: channel_id(inode),
        capture_id: capture(),
        process_id: process_id(pid),
        mode,
        socket_end: None,
        how: "inherited",
        from_process_id: Some(process_id(100)),
        first_utc: START,
        first_boot_ns: boot(START),
        last_utc: START,
        last_boot_ns: boot(START),
        write_ops: 3,
        written_bytes: 300,
        read_ops: 0,
        read_bytes: 0,
    }
    .into()
}

fn coverage(kind: &'static str, reason: Option<&'static str>, lost_bytes: Option<u64>) -> Row {
    let end = UtcNs(START.0 + 10 * SECOND_NS);
    CoverageRow {
        coverage_id: CoverageId::of(capture(), kind, b"", 0, START),
        capture_id: capture(),
        kind,
        name: None,
        from_utc: START,
        from_boot_ns: boot(START),
        to_utc: end,
        to_boot_ns: boot(end),
        weakens: reason.is_some(),
        ok: None,
        reason,
        detail: None,
        run_count: None,
        miss_count: None,
        lost_records: None,
        lost_bytes,
        channel_id: reason.map(|_| channel_id(1)),
        stream: reason.map(|_| "only"),
        end: reason.map(|_| "reader"),
        stream_offset: reason.map(|_| 0),
        process_id: None,
        self_inflicted: false,
        clock_offset_ns: Some(-1),
        clock_uncertainty_ns: Some(50),
    }
    .into()
}

fn key_in_reach() -> Row {
    FindingRow {
        finding_id: FindingId::of(capture(), "key_in_reach", b"fs", 0, START),
        capture_id: capture(),
        found_utc: START,
        found_boot_ns: None,
        severity: "high",
        kind: "key_in_reach",
        message: "the agent's user can read the key file of the proxy fs".into(),
        weakens: Some("every good signature of this proxy".into()),
        verdict_id: None,
        call_id: None,
        entry_id: None,
        process_id: Some(process_id(100)),
        target_process_id: None,
        target_pid: None,
        target_start_boot_ns: None,
        channel_id: None,
        coverage_id: None,
        proxy_name: Some("fs".into()),
        count: 1,
    }
    .into()
}

fn boot(at: UtcNs) -> BootNs {
    BootNs(BOOT_START_NS + (at.0 - START.0).unsigned_abs())
}
