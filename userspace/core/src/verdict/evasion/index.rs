//! What is looked up for each attempt, found once.

use std::collections::BTreeMap;

use super::{Said, Scene};
use crate::evasion::{Attempt, What};
use crate::process::{FileId, ProcessIx};
use crate::role::InstanceIx;
use crate::time::BootNs;

/// What is looked up for each attempt, made once: an agent can make many.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// By object: a process of a proxy or behind it has mapped it, another has, somebody can write it.
    shared: BTreeMap<(bool, FileId), [bool; 3]>,
    /// By log: an instance of its proxy.
    pub(super) logs: BTreeMap<FileId, InstanceIx>,
    /// By who asked for a supervisor: an instance that inherited it.
    pub(super) supervised: BTreeMap<ProcessIx, InstanceIx>,
    /// Instances under a supervisor, and from when on.
    pub(super) under: BTreeMap<InstanceIx, BootNs>,
}

impl Index {
    pub(super) fn of(scene: Scene<'_>) -> Self {
        let mut index = Self::default();
        let mut asked: BTreeMap<ProcessIx, BootNs> = BTreeMap::new();
        for attempt in scene.attempts {
            if let Some((object, writable)) = shared_object(attempt) {
                let inside = is_of_proxy(scene, attempt.actor);
                let users = index.shared.entry(object).or_default();
                users[0] |= inside;
                users[1] |= !inside;
                users[2] |= writable;
            }
            if let (What::Supervisor, Some(at)) = (attempt.what, attempt.succeeded) {
                let first = asked.entry(attempt.actor).or_insert(at);
                *first = (*first).min(at);
            }
        }
        for (ix, instance) in scene.roles.instances() {
            for log in scene
                .proxies
                .get(instance.proxy)
                .into_iter()
                .flat_map(|proxy| &proxy.logs)
            {
                index.logs.entry(*log).or_insert(ix);
            }
            index.find_supervisors(scene, &asked, ix);
        }
        index
    }

    /// Whoever asks for a supervisor has it for itself and for what it makes later.
    fn find_supervisors(
        &mut self,
        scene: Scene<'_>,
        asked: &BTreeMap<ProcessIx, BootNs>,
        ix: InstanceIx,
    ) {
        if asked.is_empty() {
            return;
        }
        let instance = scene.roles.instance(ix);
        let born = scene.processes.process(instance.process).incarnation.start;
        for process in scene.processes.ancestry(instance.process) {
            let Some(at) = asked.get(&process).copied() else {
                continue;
            };
            let itself = process == instance.process;
            if itself || born >= at {
                self.supervised.entry(process).or_insert(ix);
                let from = self.under.entry(ix).or_insert(BootNs(u64::MAX));
                *from = (*from).min(at.max(instance.from));
            }
        }
    }

    /// Something is to be told when one user is of a proxy or its servers, and another is not.
    pub(super) fn shared(&self, attempt: &Attempt) -> Option<Said> {
        let (object, _) = shared_object(attempt)?;
        (*self.shared.get(&object)? == [true; 3]).then_some((
            "memory_shared",
            "medium",
            "a process outside the proxy and one behind it share memory: what they say there passes no channel",
            Some("that calls went through the proxy alone"),
        ))
    }
}

/// A System V segment or a file, and whether it can be written.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "of a list this long, only what is told is named"
)]
fn shared_object(attempt: &Attempt) -> Option<((bool, FileId), bool)> {
    let file = attempt.file?;
    match attempt.what {
        What::Share { writable } => Some(((false, file), writable)),
        What::ShareSegment { writable } => Some(((true, file), writable)),
        _ => None,
    }
}

/// Whether a process is a proxy or was started by one.
fn is_of_proxy(scene: Scene<'_>, process: ProcessIx) -> bool {
    let mut ancestry = scene.processes.ancestry(process);
    ancestry.any(|process| scene.roles.instance_of(process).is_some())
}
