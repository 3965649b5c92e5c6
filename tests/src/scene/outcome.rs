//! What the core says of a scene.

use countersign_core::correlator::{
    Correlator, LogFile, PayloadMode, Proxy, RETAINED_BYTES_MAX, Settings,
};
use countersign_core::process::FileId;
use countersign_core::proxylog::mcp_audit::Reader;
use countersign_core::proxylog::{Key, Redaction};
use countersign_core::role::ProxyIdentity;
use countersign_core::row::ids::CaptureId;
use countersign_core::row::{CallRow, CoverageRow, EntryRow, FindingRow, Row, VerdictRow};
use countersign_core::verdict::{AllowDirect, ProxyPolicy};

use super::session::{Log, key};
use super::{DISK, START, Scene, program};

/// Where a log lies.
#[derive(Clone, Copy, Debug)]
pub struct LogName {
    /// Device.
    pub dev: u32,
    /// Inode.
    pub inode: u64,
}

/// How records and logs are judged.
#[derive(Debug)]
pub struct Play {
    /// All records.
    pub records: Vec<Vec<u8>>,
    /// Content of each log file, with its place; all of one proxy.
    pub logs: Vec<(LogName, Vec<u8>)>,
    /// What the proxy redacts.
    pub redaction: Redaction,
    /// Key of the log's signatures.
    pub key: Option<Key>,
    /// What is stored of payloads.
    pub payload: PayloadMode,
    /// Allowed direct channels.
    pub allow_direct: Vec<AllowDirect>,
    /// The proxies' executables are not known: the record that lists them is damaged.
    pub exes_lost: bool,
    /// The spool's reader says that something of it is gone.
    pub lost_from_spool: bool,
}

impl Play {
    /// A scene with its logs, one proxy, whose key is known.
    pub fn new(scene: Scene, logs: &[&Log]) -> Self {
        let files = logs.iter().map(|log| {
            let (dev, inode) = scene.file_id(log.file);
            (LogName { dev, inode }, log.disk.concat())
        });
        Self {
            logs: files.collect(),
            redaction: logs
                .first()
                .map(|log| log.redaction.clone())
                .unwrap_or_default(),
            records: scene.into_records(),
            key: Some(key()),
            payload: PayloadMode::Redacted,
            allow_direct: Vec::new(),
            exes_lost: false,
            lost_from_spool: false,
        }
    }

    /// A capture without a log.
    pub fn of_records(records: Vec<Vec<u8>>) -> Self {
        Self {
            records,
            ..Self::new(Scene::new(), &[])
        }
    }

    /// A rule that lets anybody speak to a server directly.
    #[must_use]
    pub fn allowing(mut self, exe: u64, methods: Option<&[&str]>) -> Self {
        self.allow_direct.push(AllowDirect {
            server: FileId {
                dev: DISK,
                inode: exe,
            },
            methods: methods
                .map(|methods| methods.iter().map(|method| (*method).to_owned()).collect()),
            reason: "a test allows it".to_owned(),
        });
        self
    }

    /// Runs the core.
    pub fn run(self) -> Outcome {
        let mut core = Correlator::new(Settings {
            capture: CaptureId::new(START, b"boot", b"host", 0),
            payload: self.payload,
            hash_key: b"hash key".to_vec(),
            proxies: vec![Proxy {
                name: "proxy".to_owned(),
                identity: ProxyIdentity {
                    exes: if self.exes_lost {
                        Vec::new()
                    } else {
                        vec![FileId {
                            dev: DISK,
                            inode: program::PROXY,
                        }]
                    },
                    own_exes: Vec::new(),
                    logs: Vec::new(),
                },
                policy: ProxyPolicy {
                    key: self.key,
                    redaction: self.redaction,
                    key_readable_by_agent: false,
                },
            }],
            retained_bytes_max: RETAINED_BYTES_MAX,
            allow_direct: self.allow_direct,
        });
        for record in &self.records {
            core.handle_record(record);
        }
        if self.lost_from_spool {
            core.handle_loss("spool", "a frame is damaged".to_owned(), 0);
        }
        for (at, content) in &self.logs {
            let file = core.handle_log_file(LogFile {
                proxy: 0,
                name: "/log/audit.jsonl".to_owned(),
                dev: at.dev,
                inode: at.inode,
                uid: 0,
                world_writable: false,
            });
            let mut reader = Reader::new();
            reader.push(content);
            reader.finish();
            while let Some(item) = reader.poll() {
                core.handle_entry(file, item);
            }
        }
        let mut rows = Vec::new();
        core.finish(&mut |row| rows.push(row));
        Outcome { rows }
    }
}

/// All rows.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    /// In the order in which the core gave them.
    pub rows: Vec<Row>,
}

impl Outcome {
    /// All verdict rows.
    pub fn verdicts(&self) -> impl Iterator<Item = &VerdictRow> {
        self.rows.iter().filter_map(|row| {
            if let Row::Verdict(row) = row {
                Some(row.as_ref())
            } else {
                None
            }
        })
    }

    /// All calls.
    pub fn calls(&self) -> impl Iterator<Item = &CallRow> {
        self.rows.iter().filter_map(|row| {
            if let Row::Call(row) = row {
                Some(row.as_ref())
            } else {
                None
            }
        })
    }

    /// All entries.
    pub fn entries(&self) -> impl Iterator<Item = &EntryRow> {
        self.rows.iter().filter_map(|row| {
            if let Row::Entry(row) = row {
                Some(row.as_ref())
            } else {
                None
            }
        })
    }

    /// All findings.
    pub fn findings(&self) -> impl Iterator<Item = &FindingRow> {
        self.rows.iter().filter_map(|row| {
            if let Row::Finding(row) = row {
                Some(row.as_ref())
            } else {
                None
            }
        })
    }

    /// All statements about coverage.
    pub fn coverage(&self) -> impl Iterator<Item = &CoverageRow> {
        self.rows.iter().filter_map(|row| {
            if let Row::Coverage(row) = row {
                Some(row.as_ref())
            } else {
                None
            }
        })
    }

    /// Number of findings of a kind.
    pub fn found(&self, kind: &str) -> usize {
        self.findings()
            .filter(|finding| finding.kind == kind)
            .count()
    }

    /// How many frames were refuted; none of them has its bytes.
    pub fn refuted(&self) -> usize {
        let frames = self.rows.iter().filter_map(|row| {
            if let Row::Frame(row) = row {
                Some(row)
            } else {
                None
            }
        });
        frames
            .filter(|frame| frame.kind == "refuted")
            .inspect(|frame| assert!(frame.payload.is_none(), "{frame:?}"))
            .count()
    }

    /// Every verdict as `verdict/via:reason@field method id`, sorted; parts that are not there are left out. `entry` and `gap`
    /// stand before those whose subject is no call.
    pub fn told(&self) -> Vec<String> {
        let mut told: Vec<String> = self.verdicts().map(tell).collect();
        told.sort_unstable();
        told
    }
}

fn tell(row: &VerdictRow) -> String {
    let mut text = match row.subject {
        "entry" => "entry ",
        "gap" => "gap ",
        _ => "",
    }
    .to_owned();
    text.push_str(row.verdict);
    for (mark, part) in [
        ("/", row.via),
        (":", row.reason),
        ("@", row.field),
        ("~", row.expected),
    ] {
        if let Some(part) = part {
            text.push_str(mark);
            text.push_str(part);
        }
    }
    for part in [&row.method, &row.tool_name, &row.request_id]
        .into_iter()
        .flatten()
    {
        text.push(' ');
        text.push_str(part);
    }
    text
}
