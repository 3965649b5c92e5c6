//! Instances: which processes are proxies, and for how long.
//!
//! Owns the decision from the identity of what they execute, the log that they hold, and the kernel's mark where their execution
//! was missed.

use std::collections::{BTreeMap, BTreeSet};

use super::{Instance, InstanceIx, Life, ProxyIdentity, Roles, Strength};
use crate::channel::{ChannelKind, ChannelTable, StreamIx};
use crate::delivery::StreamFrames;
use crate::process::{FileId, Known, Process, ProcessIx, ProcessTable};
use crate::time::BootNs;

impl Roles {
    pub(super) fn find_instances(
        &mut self,
        proxies: &[ProxyIdentity],
        wrote: &BTreeMap<ProcessIx, BTreeSet<usize>>,
        processes: &ProcessTable,
        channels: &ChannelTable,
        streams: &BTreeMap<StreamIx, StreamFrames>,
    ) {
        let written = files_written(channels, streams);
        for (ix, process) in processes.iter() {
            // A process that became something else by another exec is no proxy any more, but was one: its streams count.
            let found = proxies.iter().enumerate().find_map(|(at, proxy)| {
                process
                    .executions
                    .iter()
                    .rev()
                    .filter(|execution| !execution.inherited)
                    .find_map(|execution| {
                        let own = proxy.own_exes.contains(&execution.exe);
                        (own || proxy.exes.contains(&execution.exe)).then_some((at, execution, own))
                    })
            });
            let Some((proxy, execution, own)) = found else {
                continue;
            };
            let files = files_of(ix, process, &written);
            // With several proxies of one executable, the log that it holds says which one it is.
            let holds = |(at, candidate): (usize, &ProxyIdentity)| {
                candidate.logs.iter().any(|log| files.contains(log))
                    || wrote.get(&ix).is_some_and(|logs| logs.contains(&at))
            };
            let holder = proxies.iter().enumerate().position(|(at, candidate)| {
                (candidate.exes.contains(&execution.exe)
                    || candidate.own_exes.contains(&execution.exe))
                    && holds((at, candidate))
            });
            let logs_known = proxies.iter().any(|candidate| !candidate.logs.is_empty());
            let strength = match (holder, own) {
                (Some(_), true) => Strength::Own,
                (Some(_), false) => Strength::Verified,
                (None, _) if logs_known && !files.is_empty() => continue,
                (None, _) => Strength::Claimed,
            };
            // What was found in `/proc` ran before it was looked at.
            let from = if process.known == Known::Forked {
                execution.at
            } else {
                BootNs(0)
            };
            let left = process
                .executions
                .iter()
                .find(|other| other.at > execution.at)
                .map(|other| other.at);
            let life = Life {
                instance: self.next(),
                from,
                to: left.unwrap_or(BootNs(u64::MAX)),
            };
            let instance = Instance {
                process: ix,
                proxy: holder.unwrap_or(proxy),
                strength,
                own,
                same_uid_as_parent: has_uid_of_parent(process, processes),
                from: execution.at,
                to: left.or(process.exit.map(|(at, _)| at)),
                from_birth: process.known == Known::Forked,
            };
            self.add(life, instance);
        }
        self.add_forked_workers(processes);
        self.add_tagged(proxies, processes, &written);
        self.add_forked_workers(processes);
    }

    /// A process whose execution was missed but whose operations the kernel marked as a proxy's: the mark is set by the identity
    /// of the executable alone.
    fn add_tagged(
        &mut self,
        proxies: &[ProxyIdentity],
        processes: &ProcessTable,
        written: &BTreeMap<ProcessIx, Vec<FileId>>,
    ) {
        // The kernel marks by a list of executables that the recording holds too. Where that is missing, the mark is all there is.
        let list_lost = proxies
            .iter()
            .all(|proxy| proxy.exes.is_empty() && proxy.own_exes.is_empty());
        for (ix, process) in processes.iter() {
            let Some((first, last)) = process
                .acted_as_proxy
                .filter(|_| !self.by_process.contains_key(&ix))
            else {
                continue;
            };
            // What it executed is known, and is no proxy that was configured.
            // Between its creation and its first exec a proxy's child still has the mark.
            if process
                .parent
                .is_some_and(|parent| self.by_process.contains_key(&parent))
            {
                continue;
            }
            let executed = process
                .executions
                .iter()
                .any(|execution| !execution.inherited && execution.at <= first);
            if proxies.is_empty() || (executed && !list_lost) {
                continue;
            }
            let files = files_of(ix, process, written);
            let holder = proxies
                .iter()
                .position(|proxy| proxy.logs.iter().any(|log| files.contains(log)));
            if holder.is_none()
                && !files.is_empty()
                && proxies.iter().any(|proxy| !proxy.logs.is_empty())
            {
                continue;
            }
            let left = process
                .executions
                .iter()
                .find(|execution| !execution.inherited && execution.at > last);
            let left = left.map(|execution| execution.at);
            let life = Life {
                instance: self.next(),
                from: first,
                to: left.unwrap_or(BootNs(u64::MAX)),
            };
            let instance = Instance {
                process: ix,
                proxy: holder.unwrap_or(0),
                strength: Strength::Claimed,
                own: false,
                same_uid_as_parent: has_uid_of_parent(process, processes),
                from: first,
                to: left.or(process.exit.map(|(at, _)| at)),
                from_birth: false,
            };
            self.add(life, instance);
        }
    }

    fn next(&self) -> InstanceIx {
        InstanceIx(self.instances.len())
    }

    fn add(&mut self, life: Life, instance: Instance) {
        self.by_process.insert(instance.process, life);
        self.instances.push(instance);
    }

    /// A child of a proxy that has executed nothing yet runs the proxy's program: what it writes is the proxy's writing.
    fn add_forked_workers(&mut self, processes: &ProcessTable) {
        for (ix, process) in processes.iter() {
            let runs_parents_program = process
                .executions
                .last()
                .is_some_and(|execution| execution.inherited);
            let instance = process.parent.and_then(|parent| self.instance_of(parent));
            if let Some(instance) = instance
                && runs_parents_program
                && !self.by_process.contains_key(&ix)
                && !(process.acted_unmarked && is_marked(process.parent, processes))
            {
                self.by_process.insert(
                    ix,
                    Life {
                        instance,
                        from: BootNs(0),
                        to: BootNs(u64::MAX),
                    },
                );
            }
        }
    }
}

/// Regular files that a process opened for writing or wrote as a proxy.
fn files_of(
    ix: ProcessIx,
    process: &Process,
    written: &BTreeMap<ProcessIx, Vec<FileId>>,
) -> Vec<FileId> {
    process
        .files_opened
        .iter()
        .chain(written.get(&ix).into_iter().flatten())
        .copied()
        .collect()
}

/// Whether the kernel marked what this process did as a proxy's doing: then its children have the mark until they execute.
fn is_marked(process: Option<ProcessIx>, processes: &ProcessTable) -> bool {
    process.is_some_and(|process| processes.process(process).acted_as_proxy.is_some())
}

fn has_uid_of_parent(process: &Process, processes: &ProcessTable) -> bool {
    let parent = process
        .parent
        .and_then(|parent| processes.process(parent).uid);
    process.uid.is_some() && process.uid == parent
}

fn files_written(
    channels: &ChannelTable,
    streams: &BTreeMap<StreamIx, StreamFrames>,
) -> BTreeMap<ProcessIx, Vec<FileId>> {
    let mut files: BTreeMap<ProcessIx, Vec<FileId>> = BTreeMap::new();
    for (stream, frames) in streams {
        let channel = channels.channel(stream.channel);
        if channel.kind != ChannelKind::File {
            continue;
        }
        let Some(key) = channel.ends[0] else { continue };
        for (process, _) in &frames.writers {
            files.entry(*process).or_default().push(FileId {
                dev: channel.dev,
                inode: key.inode,
            });
        }
    }
    files
}
