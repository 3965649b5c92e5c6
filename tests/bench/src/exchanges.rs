//! A capture that never happened: an agent, the proxy and a server, and any number of exchanges of any size between them.
//!
//! Owns records as the kernel would make them (both ends of four pipes, the proxy's log file, the limits per operation) and the
//! lines that the proxy would log, signed. What comes out is what a faultless run leaves, so every call of it must be matched.

use anyhow::Context as _;
use countersign_common::{
    CHUNK_MAX_BYTES, ChannelEnd, ChannelId, Exec, FileOpen, Fork, PROXY_OP_MAX_BYTES,
    READER_OP_MAX_BYTES, RecordHeader, Task, Transfer, WRITER_OP_MAX_BYTES, channel_kind,
    direction, end_how, gap, kind, tag, transfer_flags,
};
use countersign_core::correlator::{LogFile, PayloadMode, Proxy, Settings};
use countersign_core::process::FileId;
use countersign_core::proxylog::{Direction, Draft, Key, Redaction, timestamp};
use countersign_core::role::ProxyIdentity;
use countersign_core::row::ids::CaptureId;
use countersign_core::time::UtcNs;
use countersign_core::verdict::ProxyPolicy;
use zerocopy::{FromZeros as _, IntoBytes as _};

/// Boot and wall clock at the beginning.
const START_BOOT_NS: u64 = 1_000_000_000_000;
const START_UTC_NS: i64 = 1_790_000_000_000_000_000;
/// From one exchange to the next.
const EXCHANGE_NS: u64 = 200_000;
/// Bytes that a pipe holds: a read gives no more (pipe(7)).
const PIPE_BYTES: usize = 64 << 10;

const DEV: u32 = 0x0080_0001;
const PROXY_INODE: u64 = 7001;
const LOG_INODE: u64 = 7002;
const SECRET: &[u8] = b"countersign-benchmark-key-of-32b";

const AGENT: Task = Task {
    tgid: 100,
    tid: 100,
    start_boot_ns: 900,
};
const PROXY: Task = Task {
    tgid: 101,
    tid: 101,
    start_boot_ns: 901,
};
const SERVER: Task = Task {
    tgid: 102,
    tid: 102,
    start_boot_ns: 902,
};

/// Makes the records and the log.
#[derive(Debug)]
pub(crate) struct Exchanges {
    message_bytes: usize,
    key: Key,
    channels: [Channel; 5],
    boot_ns: u64,
    cpu_seq: u64,
    record: Vec<u8>,
}

/// Places in [`Exchanges::channels`].
#[derive(Clone, Copy, Debug)]
enum Way {
    ToProxy = 0,
    ToServer = 1,
    FromServer = 2,
    FromProxy = 3,
    Log = 4,
}

#[derive(Clone, Copy, Debug)]
struct Channel {
    id: ChannelId,
    /// Operations and bytes so far, by direction.
    ops: [u64; 2],
    bytes: [u64; 2],
}

/// One exchange as it went over the wire, and as it was logged.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) request: Vec<u8>,
    pub(crate) answer: Vec<u8>,
    pub(crate) log: Vec<u8>,
}

impl Exchanges {
    /// With requests and answers of this many bytes, line ends included.
    pub(crate) fn new(message_bytes: usize) -> anyhow::Result<Self> {
        let channel = |inode: u64, channel_kind: u8| {
            let mut id = ChannelId::new_zeroed();
            id.object = 0xffff_8880_0000_0000 + inode * 0x400;
            id.inode = inode;
            id.epoch = START_BOOT_NS;
            id.dev = DEV;
            id.kind = channel_kind;
            Channel {
                id,
                ops: [0; 2],
                bytes: [0; 2],
            }
        };
        let pipe = |inode| channel(inode, channel_kind::PIPE);
        Ok(Self {
            message_bytes,
            key: Key::new(SECRET.to_vec()).context("make the signing key")?,
            channels: [
                pipe(501),
                pipe(502),
                pipe(503),
                pipe(504),
                channel(LOG_INODE, channel_kind::FILE),
            ],
            boot_ns: START_BOOT_NS,
            cpu_seq: 0,
            record: Vec::new(),
        })
    }

    /// What the correlator must be told.
    pub(crate) fn settings() -> anyhow::Result<Settings> {
        let identity = ProxyIdentity {
            exes: vec![FileId {
                dev: DEV,
                inode: PROXY_INODE,
            }],
            own_exes: Vec::new(),
            logs: Vec::new(),
        };
        let key = Key::new(SECRET.to_vec()).context("make the signing key")?;
        let policy = ProxyPolicy {
            key: Some(key),
            redaction: Redaction::default(),
            ..ProxyPolicy::default()
        };
        Ok(Settings {
            capture: CaptureId::new(UtcNs(START_UTC_NS), b"boot", b"host", 0),
            payload: PayloadMode::Redacted,
            hash_key: b"key of the hashes".to_vec(),
            proxies: vec![Proxy {
                name: "proxy".to_owned(),
                identity,
                policy,
            }],
            retained_bytes_max: 64 << 30,
            allow_direct: Vec::new(),
        })
    }

    /// The log as a file.
    pub(crate) fn log_file() -> LogFile {
        LogFile {
            proxy: 0,
            name: "audit.jsonl".to_owned(),
            dev: DEV,
            inode: LOG_INODE,
            uid: 0,
            world_writable: false,
        }
    }

    /// The records before the first exchange: clocks, processes, channels.
    pub(crate) fn begin(&mut self, out: &mut dyn FnMut(&[u8])) {
        self.clock(out);
        self.exec(out, AGENT, 7000, tag::TREE);
        for way in [Way::ToProxy, Way::FromProxy] {
            self.created(out, AGENT, way);
        }
        self.fork(out, AGENT, PROXY, tag::TREE);
        self.exec(out, PROXY, PROXY_INODE, tag::TREE | tag::PROXY);
        let mut open = FileOpen::new_zeroed();
        open.header = self.header(kind::FILE_OPEN, size_of::<FileOpen>());
        (open.task, open.inode, open.dev, open.flags) = (PROXY, LOG_INODE, DEV, 0o2101);
        out(open.as_bytes());
        for way in [Way::ToServer, Way::FromServer] {
            self.created(out, PROXY, way);
        }
        self.fork(out, PROXY, SERVER, tag::TREE | tag::PROXY);
        self.exec(out, SERVER, 7003, tag::TREE);
    }

    /// The records of exchange `number`, and its lines.
    pub(crate) fn exchange(&mut self, number: u64, out: &mut dyn FnMut(&[u8])) -> Lines {
        self.boot_ns = START_BOOT_NS + (number + 1) * EXCHANGE_NS;
        let lines = self.lines(number);
        self.written(out, AGENT, Way::ToProxy, &lines.request);
        self.read(out, PROXY, Way::ToProxy, &lines.request);
        self.written(out, PROXY, Way::ToServer, &lines.request);
        self.read(out, SERVER, Way::ToServer, &lines.request);
        self.written(out, SERVER, Way::FromServer, &lines.answer);
        self.read(out, PROXY, Way::FromServer, &lines.answer);
        self.written(out, PROXY, Way::Log, &lines.log);
        self.written(out, PROXY, Way::FromProxy, &lines.answer);
        self.read(out, AGENT, Way::FromProxy, &lines.answer);
        lines
    }

    /// The record after the last exchange.
    pub(crate) fn end(&mut self, out: &mut dyn FnMut(&[u8])) {
        self.boot_ns += EXCHANGE_NS;
        self.clock(out);
    }

    fn lines(&self, number: u64) -> Lines {
        // Members in the order in which the log has them, so that what is logged is what was sent.
        let padded = |head: String, tail: &str| {
            let room = self.message_bytes.saturating_sub(head.len() + tail.len());
            let words = "the quick brown fox jumps over the lazy dog "
                .bytes()
                .cycle();
            let mut text = head.into_bytes();
            text.extend(words.take(room));
            text.extend_from_slice(tail.as_bytes());
            text
        };
        let request_head =
            format!("{{\"jsonrpc\":\"2.0\",\"id\":{number},\"method\":\"tools/call\",\"params\":");
        let params_head = format!("{{\"arguments\":{{\"text\":\"{number}: ");
        let request = padded(
            format!("{request_head}{params_head}"),
            "\"},\"name\":\"echo\"}}\n",
        );
        let params = &request[request_head.len()..request.len() - 2];
        let answer_head = format!("{{\"jsonrpc\":\"2.0\",\"id\":{number},\"result\":");
        let result_head = format!("{{\"content\":[{{\"text\":\"{number}: ");
        let answer = padded(
            format!("{answer_head}{result_head}"),
            "\",\"type\":\"text\"}]}}\n",
        );
        let result = &answer[answer_head.len()..answer.len() - 2];
        let since_start = self.boot_ns - START_BOOT_NS + EXCHANGE_NS / 2;
        let utc_ns = START_UTC_NS + since_start.cast_signed();
        let id = ulid::Ulid::from_parts(utc_ns.unsigned_abs() / 1_000_000, u128::from(number))
            .to_string();
        let log = Draft {
            id: &id,
            timestamp: &timestamp::format(utc_ns),
            direction: Direction::ServerToClient,
            transport: "stdio",
            method: "tools/call",
            request_id: &number.to_string(),
            tool_name: "echo",
            params: Some(params),
            result: Some(result),
            error: None,
            duration_ms: 0,
            client_id: "client",
            server_id: "server",
        }
        .line(Some(&self.key));
        Lines {
            request,
            answer,
            log,
        }
    }

    fn written(&mut self, out: &mut dyn FnMut(&[u8]), who: Task, way: Way, line: &[u8]) {
        self.op(out, who, way, direction::WRITE, line);
    }

    /// Reads of at most what a pipe holds.
    fn read(&mut self, out: &mut dyn FnMut(&[u8]), who: Task, way: Way, line: &[u8]) {
        for part in line.chunks(PIPE_BYTES) {
            self.op(out, who, way, direction::READ, part);
        }
    }

    /// One operation in chunks, up to the limit for who did it; then a gap.
    fn op(
        &mut self,
        out: &mut dyn FnMut(&[u8]),
        who: Task,
        way: Way,
        op_direction: u8,
        bytes: &[u8],
    ) {
        let by_proxy = who == PROXY;
        let limit = match (by_proxy, op_direction) {
            (true, _) => PROXY_OP_MAX_BYTES,
            (false, direction::READ) => READER_OP_MAX_BYTES,
            (false, _) => WRITER_OP_MAX_BYTES,
        };
        let captured = bytes
            .len()
            .min(usize::try_from(limit).unwrap_or(usize::MAX));
        let side = usize::from(op_direction);
        let channel = self.channels[way as usize];
        let mut transfer = Transfer::new_zeroed();
        transfer.task = who;
        transfer.channel = channel.id;
        transfer.op_seq = channel.ops[side];
        transfer.stream_before = channel.bytes[side];
        transfer.enter_ns = self.tick();
        transfer.exit_ns = self.tick();
        transfer.returned = bytes.len() as u64;
        transfer.syscall = u16::from(op_direction);
        transfer.flags = if by_proxy {
            transfer_flags::BY_PROXY
        } else {
            0
        };
        transfer.direction = op_direction;
        for part in bytes[..captured].chunks(CHUNK_MAX_BYTES) {
            transfer.header = self.header(kind::CHUNK, size_of::<Transfer>() + part.len());
            transfer.len = u32::try_from(part.len()).unwrap_or(u32::MAX);
            let mut record = std::mem::take(&mut self.record);
            record.clear();
            record.extend_from_slice(transfer.as_bytes());
            record.extend_from_slice(part);
            out(&record);
            self.record = record;
            transfer.offset += part.len() as u64;
        }
        if captured < bytes.len() {
            transfer.header = self.header(kind::GAP, size_of::<Transfer>());
            transfer.len = u32::try_from(bytes.len() - captured).unwrap_or(u32::MAX);
            transfer.reason = gap::LIMIT;
            out(transfer.as_bytes());
        }
        let channel = &mut self.channels[way as usize];
        channel.ops[side] += 1;
        channel.bytes[side] += bytes.len() as u64;
    }

    fn created(&mut self, out: &mut dyn FnMut(&[u8]), who: Task, way: Way) {
        for mode in [1, 2] {
            let mut end = ChannelEnd::new_zeroed();
            end.header = self.header(kind::CHANNEL_END, size_of::<ChannelEnd>());
            end.task = who;
            end.channel = self.channels[way as usize].id;
            end.mode = mode;
            end.how = end_how::CREATED;
            end.fd = 3;
            out(end.as_bytes());
        }
    }

    fn fork(&mut self, out: &mut dyn FnMut(&[u8]), parent: Task, child: Task, bits: u32) {
        let mut fork = Fork::new_zeroed();
        fork.header = self.header(kind::FORK, size_of::<Fork>());
        (fork.parent, fork.child, fork.child_ns_tgid, fork.tag) = (parent, child, child.tgid, bits);
        out(fork.as_bytes());
    }

    fn exec(&mut self, out: &mut dyn FnMut(&[u8]), who: Task, inode: u64, bits: u32) {
        const NAME: &[u8] = b"/usr/bin/program";
        let mut exec = Exec::new_zeroed();
        exec.header = self.header(kind::EXEC, size_of::<Exec>() + 2 * NAME.len());
        (
            exec.task,
            exec.exe_inode,
            exec.exe_dev,
            exec.tag,
            exec.ns_tgid,
        ) = (who, inode, DEV, bits, who.tgid);
        (exec.filename_len, exec.args_len) = (16, 16);
        out(&[exec.as_bytes(), NAME, NAME].concat());
    }

    fn clock(&mut self, out: &mut dyn FnMut(&[u8])) {
        let boot_ns = self.tick();
        let utc_ns = START_UTC_NS + (boot_ns - START_BOOT_NS).cast_signed();
        let json = format!("{{\"boot_ns\":{boot_ns},\"utc_ns\":{utc_ns}}}");
        let mut header = self.header(kind::CLOCK, size_of::<RecordHeader>() + json.len());
        (header.cpu, header.cpu_seq) = (RecordHeader::USER_CPU, 0);
        out(&[header.as_bytes(), json.as_bytes()].concat());
    }

    fn header(&mut self, record_kind: u16, size: usize) -> RecordHeader {
        let boot_ns = self.tick();
        self.cpu_seq += 1;
        RecordHeader {
            kind: record_kind,
            cpu: 0,
            size: u32::try_from(size).unwrap_or(u32::MAX),
            cpu_seq: self.cpu_seq - 1,
            boot_ns,
            generation: 1,
        }
    }

    fn tick(&mut self) -> u64 {
        self.boot_ns += 100;
        self.boot_ns
    }
}
