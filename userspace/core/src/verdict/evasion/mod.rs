//! What an attempt to get round the witness is worth: a finding, doubt about a proxy, a key that is known.
//!
//! Owns the severities, and the rule what weakens what: only what clears somebody. A call that went past the proxy, or that the log
//! lacks, stays what it is, or an agent could buy doubt about its own deeds by tampering with its own proxy.

mod index;
mod note;
mod on_process;
mod otherwise;

use std::collections::{BTreeMap, BTreeSet};

use countersign_common::tag;

use crate::channel::ChannelTable;
use crate::evasion::{Attempt, Recorder};
use crate::process::{ProcessIx, ProcessTable};
use crate::role::{InstanceIx, ProxyIdentity, Roles};
use crate::time::BootNs;
use crate::verdict::KeyReach;
use index::Index;

/// Processes remembered as having read one secret. Stops an agent from making the question who has it long; the first tell
/// enough.
const READERS_MAX: usize = 16;

/// What an attempt means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The attempt, by index.
    pub attempt: usize,
    /// In one word.
    pub kind: &'static str,
    /// As in the table of findings.
    pub severity: &'static str,
    /// One sentence.
    pub message: &'static str,
    /// What it names, behind the sentence.
    pub detail: Option<String>,
    /// How many attempts it stands for; `None`: the attempt's own count.
    pub count: Option<u64>,
    /// What it takes from the rest.
    pub weakens: Option<&'static str>,
    /// The proxy instance concerned.
    pub instance: Option<InstanceIx>,
    /// The process concerned, where it is known.
    pub target: Option<ProcessIx>,
}

/// All that attempts mean.
#[derive(Debug, Default)]
pub struct Evasions {
    /// In the order of the attempts.
    pub findings: Vec<Finding>,
    /// From when on an instance's own doing may be another's.
    tampered: BTreeMap<InstanceIx, BootNs>,
    /// Who has read what an instance keeps secret.
    readers: BTreeMap<InstanceIx, BTreeSet<ProcessIx>>,
    /// Who has opened a key's file.
    key_readers: BTreeSet<ProcessIx>,
    /// Words for what lowers the trust in an instance.
    weaknesses: BTreeMap<InstanceIx, BTreeSet<&'static str>>,
}

/// What it takes to judge.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// All attempts.
    pub attempts: &'a [Attempt],
    /// All processes.
    pub processes: &'a ProcessTable,
    /// Who is a proxy.
    pub roles: &'a Roles,
    /// The configured proxies.
    pub proxies: &'a [ProxyIdentity],
    /// The processes that record.
    pub recorders: &'a [Recorder],
    /// All channels.
    pub channels: &'a ChannelTable,
}

/// A finding without what is the same for all.
type Said = (
    &'static str,
    &'static str,
    &'static str,
    Option<&'static str>,
);

const SIGNATURES: Option<&str> = Some("every signature of this proxy");
const CALLS: Option<&str> = Some("every call of this proxy from then on");
const ALL: Option<&str> = Some("everything from then on");

impl Evasions {
    /// Judges all attempts.
    pub fn of(scene: Scene<'_>) -> Self {
        let mut evasions = Self::default();
        let index = Index::of(scene);
        for (ix, from) in &index.under {
            evasions.tamper(*ix, *from, "system_calls_supervised");
        }
        for (ix, attempt) in scene.attempts.iter().enumerate() {
            evasions.judge(scene, &index, ix, attempt);
        }
        evasions.findings.extend(note::of(scene));
        evasions
    }

    /// Whether what an instance did up to a moment may be another's doing.
    pub fn tampered(&self, instance: InstanceIx, until: BootNs) -> bool {
        self.tampered
            .get(&instance)
            .is_some_and(|from| *from <= until)
    }

    /// Words for what lowers the trust in an instance.
    pub fn weaknesses(&self, instance: InstanceIx) -> impl Iterator<Item = &'static str> {
        self.weaknesses
            .get(&instance)
            .into_iter()
            .flatten()
            .copied()
    }

    /// Who has the key of an instance by what was seen; `None` when nothing was.
    pub fn key_reach(
        &self,
        instance: InstanceIx,
        roles: &Roles,
        processes: &ProcessTable,
    ) -> Option<KeyReach> {
        let of_instance = self.readers.get(&instance).into_iter().flatten();
        let mut readers = of_instance.chain(&self.key_readers).peekable();
        readers.peek()?;
        let holder = roles.instance(instance).process;
        Some(
            if readers.all(|reader| processes.descends_from(*reader, holder)) {
                KeyReach::Server
            } else {
                KeyReach::Agent
            },
        )
    }

    fn judge(&mut self, scene: Scene<'_>, index: &Index, ix: usize, attempt: &Attempt) {
        if note::is_one(attempt) {
            return;
        }
        let target = attempt
            .target
            .and_then(|target| scene.processes.known(target));
        let own = scene.roles.instance_at(attempt.actor, attempt.at);
        let instance = target
            .and_then(|target| scene.roles.instance_at(target, attempt.at))
            .filter(|instance| own != Some(*instance));
        let recorder = attempt
            .target
            .is_some_and(|target| scene.recorders.iter().any(|recorder| recorder.is(target)));
        let (said, concerned) = if recorder {
            (on_process::of_recorder(attempt), None)
        } else if let Some(instance) = instance {
            (self.of_proxy(scene, attempt, instance), Some(instance))
        } else if let Some(target) = attempt.target {
            let known = scene.processes.known(target);
            (self.of_other(scene, attempt, known), None)
        } else {
            self.of_none(index, attempt, own)
        };
        if let Some((kind, severity, message, weakens)) = said {
            // Somebody outside who holds an end, as the operator's shell does, may stop the recording, use `bpf` or become root: that is
            // told, and no accusation. What he does to a proxy, its log or its key is another matter.
            let of_machine = [
                "witness_touched",
                "root_gained",
                "capabilities_gained",
                "bpf_used",
            ];
            let outside = scene.processes.process(attempt.actor).tag & tag::TREE == 0;
            let severity = if of_machine.contains(&kind) && outside {
                "low"
            } else {
                severity
            };
            self.findings.push(Finding {
                attempt: ix,
                kind,
                severity,
                message,
                detail: None,
                count: None,
                weakens,
                instance: concerned,
                target,
            });
        }
    }

    fn tamper(&mut self, instance: InstanceIx, at: BootNs, how: &'static str) {
        let from = self.tampered.entry(instance).or_insert(at);
        *from = (*from).min(at);
        self.weak(instance, how);
    }

    fn weak(&mut self, instance: InstanceIx, how: &'static str) {
        self.weaknesses.entry(instance).or_default().insert(how);
    }

    fn read_by(&mut self, instance: InstanceIx, reader: ProcessIx) {
        add_reader(self.readers.entry(instance).or_default(), reader);
    }
}

fn add_reader(readers: &mut BTreeSet<ProcessIx>, reader: ProcessIx) {
    if readers.len() < READERS_MAX {
        readers.insert(reader);
    }
}
