//! Statements: what the proxy's log says now, joined with what the proxy was seen to write into it.
//!
//! Owns the third view. A line that the proxy wrote and that stands in the log is one statement; a written line that is gone
//! or changed is a statement that proves it; an entry that no proxy was seen to write is a statement without a writing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ahash::AHashMap;
use sha2::{Digest, Sha256};

use crate::channel::StreamIx;
use crate::channel::{ChannelKind, ChannelTable, End};
use crate::delivery::StreamFrames;
use crate::evidence::Placed;
use crate::frame::{Frame, FrameIx};
use crate::pairing::{FileIx, LogEntry};
use crate::process::ProcessIx;
use crate::proxylog::mcp_audit::Reader;
use crate::proxylog::{Entry, LogItem};
use crate::role::{InstanceIx, Leg, Roles};
use crate::time::BootNs;

/// Index of an entry among all entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryIx(pub u32);

/// How an entry on disk relates to the proxy's own writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThirdView {
    /// A proxy was seen to write exactly this line.
    SeenWritten,
    /// A proxy wrote another line with this id.
    Changed,
    /// Everything that the proxy wrote was seen, and this was not among it.
    NotWritten,
    /// The proxy's writing was not seen, or not completely.
    Unknown,
}

impl ThirdView {
    /// Name as stored in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SeenWritten => "seen_written",
            Self::Changed => "changed",
            Self::NotWritten => "not_written",
            Self::Unknown => "unknown",
        }
    }
}

/// A line that a proxy wrote.
#[derive(Clone, Debug)]
pub struct Written {
    /// Who.
    pub instance: InstanceIx,
    /// When.
    pub at: BootNs,
    /// What it says; `None` if the log has exactly this line.
    pub entry: Option<Box<Entry>>,
    /// Its bytes.
    frame: FrameIx,
    sha256: [u8; 32],
}

/// One statement: on disk, as written, or both.
#[derive(Clone, Debug)]
pub struct Statement {
    /// Index of the configured proxy.
    pub proxy: usize,
    /// The entry on disk.
    pub on_disk: Option<EntryIx>,
    /// The line as written.
    pub written: Option<Written>,
    /// How the two relate.
    pub third_view: ThirdView,
    /// An earlier entry has the same id or is the same line.
    pub repeats: Option<EntryIx>,
    /// It stands behind a line that a proxy was seen to write, whatever time it claims.
    pub after_seen: bool,
}

impl Statement {
    /// What the proxy said: as written if that was seen, else as it stands on disk.
    pub fn said<'a>(&'a self, entries: &'a [LogEntry]) -> Option<&'a Entry> {
        let written = self.written.as_ref();
        match written.and_then(|written| written.entry.as_deref()) {
            Some(entry) => Some(entry),
            None => self.on_disk.map(|ix| &entries[ix.0 as usize].entry),
        }
    }
}

/// The SHA-256 of every line that was written into a regular file, by frame.
pub type FileLines = AHashMap<FrameIx, [u8; 32]>;

/// Hashes the lines that were written into regular files.
pub fn file_lines(frames: &[Frame], channels: &ChannelTable) -> FileLines {
    frames
        .iter()
        .zip(0u32..)
        .filter(|(frame, _)| {
            let into_file = channels.channel(frame.stream.channel).kind == ChannelKind::File;
            into_file && !frame.bytes.is_empty()
        })
        .map(|(frame, ix)| (FrameIx(ix), Sha256::digest(frame.bytes.as_slice()).into()))
        .collect()
}

/// Joins the log with the third view. `seen_to` is the last moment up to which everything that a proxy wrote was seen, UTC
/// nanoseconds; `None` when the capture has no end in order, and what is missing from it cannot be told.
pub fn statements(
    entries: &[LogEntry],
    seen_to: Option<i64>,
    lines: &FileLines,
    placed: &[Placed],
    frames: &[Frame],
    streams: &BTreeMap<StreamIx, StreamFrames>,
    roles: &Roles,
) -> Vec<Statement> {
    let mut written = written_lines(lines, placed, frames, roles);
    let mut by_line: AHashMap<[u8; 32], VecDeque<usize>> = AHashMap::new();
    for (ix, line) in written.iter().enumerate() {
        by_line.entry(line.sha256).or_default().push_back(ix);
    }
    let mut used = vec![false; written.len()];
    let repeats = repeats(entries);
    let exact: Vec<Option<usize>> = entries
        .iter()
        .map(|entry| {
            let ix = by_line.get_mut(&entry.entry.line.sha256)?.pop_front()?;
            used[ix] = true;
            Some(ix)
        })
        .collect();
    // What stands in the log need not be read again; of the rest, what is no entry is nothing that the proxy said.
    for (line, used) in written.iter_mut().zip(&used) {
        if !used {
            line.entry = read_line(&frames[line.frame.0 as usize].bytes, line.sha256);
        }
    }
    let mut by_id: AHashMap<&str, VecDeque<usize>> = AHashMap::new();
    for (ix, line) in written.iter().enumerate() {
        if let Some(entry) = &line.entry {
            by_id.entry(&entry.id).or_default().push_back(ix);
        }
    }
    let complete = complete_third_view(entries, &written, &exact, streams, roles);
    let mut out: Vec<Statement> = Vec::with_capacity(entries.len());
    let mut seen_in: BTreeSet<FileIx> = BTreeSet::new();
    for ((entry, repeat), (exact, ix)) in entries.iter().zip(repeats).zip(exact.iter().zip(0u32..))
    {
        let same_id = exact.is_none().then(|| {
            let candidates = by_id.get(entry.entry.id.as_str())?;
            candidates.iter().copied().find(|at| !used[*at])
        });
        let same_id = same_id.flatten().filter(|_| repeat.is_none());
        if let Some(at) = same_id {
            used[at] = true;
        }
        let after_seen = seen_in.contains(&entry.file);
        if exact.is_some() {
            seen_in.insert(entry.file);
        }
        let third_view = match (exact, same_id) {
            (Some(_), _) => ThirdView::SeenWritten,
            (None, Some(_)) => ThirdView::Changed,
            (None, None)
                if complete.contains(&entry.proxy)
                    && seen_to
                        .zip(entry.entry.utc_ns)
                        .is_some_and(|(seen, at)| at <= seen) =>
            {
                ThirdView::NotWritten
            }
            (None, None) => ThirdView::Unknown,
        };
        out.push(Statement {
            proxy: entry.proxy,
            on_disk: Some(EntryIx(ix)),
            written: exact.or(same_id).map(|at| written[at].clone()),
            third_view,
            // A line that the proxy was seen to write as often as it stands there is no repetition by others.
            repeats: repeat.filter(|_| exact.is_none()),
            after_seen,
        });
    }
    let unused = written.iter().zip(&used).filter(|(_, used)| !**used);
    for (line, _) in unused.filter(|(line, _)| line.entry.is_some()) {
        out.push(Statement {
            proxy: roles.instance(line.instance).proxy,
            on_disk: None,
            written: Some(line.clone()),
            third_view: ThirdView::SeenWritten,
            repeats: None,
            after_seen: false,
        });
    }
    out
}

/// Which processes wrote lines, into any file, that stand in which proxy's log.
pub fn writers_of_logs(
    entries: &[LogEntry],
    lines: &FileLines,
    frames: &[Frame],
) -> BTreeMap<ProcessIx, BTreeSet<usize>> {
    let mut proxies: AHashMap<[u8; 32], usize> = AHashMap::new();
    for entry in entries {
        proxies.insert(entry.entry.line.sha256, entry.proxy);
    }
    let mut out: BTreeMap<ProcessIx, BTreeSet<usize>> = BTreeMap::new();
    for (frame, line) in lines {
        if let Some(proxy) = proxies.get(line) {
            for process in &frames[frame.0 as usize].by {
                out.entry(*process).or_default().insert(*proxy);
            }
        }
    }
    out
}

/// Every line of a proxy's files, unread.
fn written_lines(
    lines: &FileLines,
    placed: &[Placed],
    frames: &[Frame],
    roles: &Roles,
) -> Vec<Written> {
    placed
        .iter()
        .filter_map(|placed| {
            let Leg::ProxyFile(_) = placed.leg else {
                return None;
            };
            let frame = frames.get(placed.record.0 as usize)?;
            if !frame.is_whole() {
                return None;
            }
            let sha256 = *lines.get(&placed.record)?;
            // Several instances can share a file; whose line it is, its own writer says.
            let instance = roles.instance_at(*frame.by.first()?, frame.first_exit)?;
            if frame
                .by
                .iter()
                .any(|process| roles.instance_at(*process, frame.last_exit) != Some(instance))
            {
                return None;
            }
            Some(Written {
                instance,
                at: placed.until,
                entry: None,
                frame: placed.record,
                sha256,
            })
        })
        .collect()
}

fn read_line(line: &[u8], sha256: [u8; 32]) -> Option<Box<Entry>> {
    let mut reader = Reader::new();
    reader.push(line);
    reader.push(b"\n");
    reader.finish();
    match reader.poll()? {
        LogItem::Entry(mut entry) => {
            entry.line.sha256 = sha256;
            Some(entry)
        }
        LogItem::Bad(_) => None,
    }
}

/// For each entry the earlier one that it repeats, by id or by its whole line.
fn repeats(entries: &[LogEntry]) -> Vec<Option<EntryIx>> {
    let mut ids: AHashMap<(usize, &str), EntryIx> = AHashMap::new();
    let mut lines: AHashMap<(usize, [u8; 32]), EntryIx> = AHashMap::new();
    entries
        .iter()
        .zip(0u32..)
        .map(|(entry, ix)| {
            let ix = EntryIx(ix);
            let by_id = *ids.entry((entry.proxy, &entry.entry.id)).or_insert(ix);
            let by_line = *lines
                .entry((entry.proxy, entry.entry.line.sha256))
                .or_insert(ix);
            [by_id, by_line].into_iter().find(|first| *first != ix)
        })
        .collect()
}

/// The proxies all of whose instances' writing was seen from birth without a gap, and demonstrably so: at least one line on
/// disk is one that was seen written.
fn complete_third_view(
    entries: &[LogEntry],
    written: &[Written],
    exact: &[Option<usize>],
    streams: &BTreeMap<StreamIx, StreamFrames>,
    roles: &Roles,
) -> Vec<usize> {
    let mut seen: Vec<usize> = Vec::new();
    for (entry, exact) in entries.iter().zip(exact) {
        let Some(line) = exact.and_then(|at| written.get(at)) else {
            continue;
        };
        if roles.instance(line.instance).proxy == entry.proxy && !seen.contains(&entry.proxy) {
            seen.push(entry.proxy);
        }
    }
    let gap_free = |instance: InstanceIx| {
        streams.iter().all(|(stream, frames)| {
            let writes_here = matches!(roles.leg(*stream), Leg::ProxyFile(_))
                && frames
                    .writers
                    .iter()
                    .any(|(process, _)| roles.instance_of(*process) == Some(instance));
            !writes_here || !frames.gaps.iter().any(|(end, _)| *end == End::Writer)
        })
    };
    seen.retain(|proxy| {
        roles
            .instances()
            .filter(|(_, instance)| instance.proxy == *proxy)
            .all(|(ix, instance)| instance.from_birth && gap_free(ix))
    });
    seen
}
