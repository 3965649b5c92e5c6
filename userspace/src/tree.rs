//! The recorded tree: which processes carry a tag, and which should and do not.
//!
//! Owns the comparison of tags with `/proc`. Tags follow fork in the kernel; where that failed (no memory for a tag, a
//! program that the kernel skipped), a child runs unseen until it is found here. Says what it found; writes no record.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use countersign_common::{Fork, RecordHeader, kind, tag};
use zerocopy::FromBytes;

use crate::bpf::scan::{self, ProcessScan};
use crate::bpf::tag::Tagger;
use crate::witness::ProxyExe;

/// Time between two comparisons with `/proc`.
const MEND_EVERY: Duration = Duration::from_secs(1);

/// How long a new child may be visible before its tag is: `/proc` shows it some microseconds before the kernel runs the
/// program that tags it.
const NEWBORN: Duration = Duration::from_millis(5);

/// Generations of untagged descendants followed in one comparison. Stops a fork storm from holding up the caller; the rest is
/// found by the next one.
const ROUNDS_MAX: usize = 16;

/// Fork records without a tag remembered between two looks. Stops a fork storm from filling memory; those beyond are found in
/// `/proc`.
const UNTAGGED_MAX: usize = 4096;

/// Processes that the kernel says it could not tag.
#[derive(Debug, Default)]
pub struct Untagged {
    pids: Mutex<Vec<u32>>,
}

/// A process of the tree that ran without a tag.
#[derive(Clone, Debug)]
pub struct Missed {
    /// Its id.
    pub pid: u32,
    /// How it was found: `fork_record`, `proc`, `joined`.
    pub how: &'static str,
    /// What `/proc` says of it.
    pub scan: Option<serde_json::Value>,
}

/// The tree.
#[derive(Debug)]
pub struct Tree {
    tagger: Tagger,
    proxy_exes: HashSet<(u32, u64)>,
    untagged: std::sync::Arc<Untagged>,
    mend_at: Instant,
    reconciled: u64,
}

impl Untagged {
    /// Looks at a record from the ring. Nearly all are not of interest and cost one comparison.
    pub fn look(&self, record: &[u8]) {
        if record.first_chunk() != Some(&kind::FORK.to_le_bytes())
            || record.len() < size_of::<RecordHeader>()
        {
            return;
        }
        let Ok((fork, _)) = Fork::read_from_prefix(record) else {
            return;
        };
        if fork.tag == 0 {
            let mut pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
            if pids.len() < UNTAGGED_MAX {
                pids.push(fork.child.tgid);
            }
        }
    }

    fn take(&self) -> Vec<u32> {
        std::mem::take(&mut *self.pids.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Tree {
    /// A tree of which nothing is known.
    pub fn new(
        tagger: Tagger,
        proxy_exes: &[ProxyExe],
        untagged: std::sync::Arc<Untagged>,
    ) -> Self {
        Self {
            tagger,
            proxy_exes: proxy_exes.iter().map(|exe| (exe.dev, exe.inode)).collect(),
            untagged,
            mend_at: Instant::now() + MEND_EVERY,
            reconciled: 0,
        }
    }

    /// Processes that were found untagged so far.
    pub fn reconciled(&self) -> u64 {
        self.reconciled
    }

    /// Counts one that was found elsewhere.
    pub fn count_missed(&mut self) {
        self.reconciled += 1;
    }

    /// Tags what should be tagged and is not. Cheap until a second has passed or the kernel has said that it failed.
    pub fn mend(&mut self) -> Vec<Missed> {
        let mut missed: Vec<Missed> = Vec::new();
        for pid in self.untagged.take() {
            missed.extend(self.adopt(pid, "fork_record"));
        }
        if Instant::now() >= self.mend_at {
            for _ in 0..ROUNDS_MAX {
                let found = self.untagged_children().unwrap_or_else(|error| {
                    tracing::warn!(%error, "the tree cannot be compared with /proc");
                    Vec::new()
                });
                if found.is_empty() {
                    break;
                }
                std::thread::sleep(NEWBORN);
                missed.extend(found.into_iter().filter_map(|pid| self.adopt(pid, "proc")));
            }
            self.mend_at = Instant::now() + MEND_EVERY;
        }
        self.reconciled += missed.len() as u64;
        missed
    }

    /// Tags a process of the tree with what it is. `None` when it is gone or has a tag by now.
    fn adopt(&self, pid: u32, how: &'static str) -> Option<Missed> {
        if self
            .tagger
            .tag_of(pid)
            .ok()?
            .is_some_and(|bits| bits & tag::TREE != 0)
        {
            return None;
        }
        let mut scan = scan::process(pid).ok().flatten();
        let bits = self.bits(scan.as_ref()) | self.agent_of_parent(scan.as_ref());
        self.tagger.tag_pid(pid, bits).ok()?;
        if let Some(scan) = &mut scan {
            scan.tag = bits;
        }
        let scan = scan.and_then(|scan| serde_json::to_value(scan).ok());
        Some(Missed { pid, how, scan })
    }

    /// The number of the agent that a process descends from, as its parent's tag has it; 0 when the parent is gone.
    fn agent_of_parent(&self, scan: Option<&ProcessScan>) -> u32 {
        let parent = scan.and_then(|scan| self.tagger.tag_of(scan.ppid).ok().flatten());
        parent.unwrap_or(0) & tag::of_agent(tag::AGENT_MAX)
    }

    /// The tag of a process of the tree: whether it runs a proxy's program shows from its executable.
    pub fn bits(&self, scan: Option<&ProcessScan>) -> u32 {
        let proxy =
            scan.is_some_and(|scan| self.proxy_exes.contains(&(scan.exe_dev, scan.exe_inode)));
        if proxy {
            tag::TREE | tag::PROXY
        } else {
            tag::TREE
        }
    }

    /// Tagged processes that live. One that has ended and that nobody asked how, as a container's first process often does not,
    /// lives no more.
    ///
    /// # Errors
    /// When `/proc` cannot be listed.
    pub fn members(&self) -> io::Result<Vec<u32>> {
        let all = scan::parents()?;
        Ok(all
            .into_iter()
            .map(|(_, pid)| pid)
            .filter(|pid| self.is_member(*pid) && !scan::is_zombie(*pid))
            .collect())
    }

    /// Children of tagged processes that have no tag.
    fn untagged_children(&self) -> io::Result<Vec<u32>> {
        let mut parents: HashMap<u32, bool> = HashMap::new();
        let mut found = Vec::new();
        for (parent, pid) in scan::parents()? {
            if *parents
                .entry(parent)
                .or_insert_with(|| self.is_member(parent))
                && !self.is_member(pid)
            {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// Whether a process has the tag. One that ends while it is looked at has not.
    pub fn is_member(&self, pid: u32) -> bool {
        matches!(self.tagger.tag_of(pid), Ok(Some(bits)) if bits & tag::TREE != 0)
    }
}
