//! From what the operator names to process ids.
//!
//! Owns the look-up in the cgroup file system. A unit or container is its control group; the search
//! goes by directory name, because the names of slices and runtimes differ between systems.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::bpf::scan::descendants;
use crate::cli::Targets;
use crate::exit::{Code, Failure};
use crate::outdir::Agent;

/// Where version 2 of the cgroup file system is mounted: alone, or beside version 1.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// Most directories visited in one search. Stops a container with very many nested groups from stalling the start.
const GROUPS_MAX: usize = 100_000;

/// Shortest container id that is searched for; a shorter one would fit by chance.
const CONTAINER_ID_MIN: usize = 12;

/// What the operator named, found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pids: Vec<u32>,
    groups: Vec<PathBuf>,
}

impl Found {
    /// Processes that are named or in a named group now.
    pub(super) fn processes(&self) -> BTreeSet<u32> {
        let mut found: BTreeSet<u32> = self.pids.iter().copied().collect();
        for group in &self.groups {
            add(group, &mut found);
        }
        found
    }

    /// The agents: processes of each name and of each group that was given.
    pub(super) fn agents(&self) -> Vec<BTreeSet<u32>> {
        let named = self.pids.iter().map(|pid| BTreeSet::from([*pid]));
        let groups = self.groups.iter().map(|group| {
            let mut found = BTreeSet::new();
            add(group, &mut found);
            found
        });
        named.chain(groups).collect()
    }

    /// Whether others can join what was named by another way than fork.
    pub(super) fn has_groups(&self) -> bool {
        !self.groups.is_empty()
    }

    /// The users that all these and their descendants run as: real, effective and saved, with their groups.
    pub(super) fn users(&self) -> BTreeSet<Agent> {
        self.processes()
            .into_iter()
            .flat_map(|pid| descendants(pid).unwrap_or_default())
            .flat_map(|pid| {
                users_of(&String::from_utf8_lossy(
                    &std::fs::read(format!("/proc/{pid}/status")).unwrap_or_default(),
                ))
            })
            .collect()
    }
}

/// Finds everything that is named; at least one process of it must live.
pub(super) fn find(targets: &Targets) -> Result<Found, Failure> {
    let mut groups = Vec::new();
    for pid in &targets.pid {
        if !Path::new(&format!("/proc/{pid}/status")).exists() {
            return Err(missing(format!("there is no process {pid}: check --pid")));
        }
        if *pid == std::process::id() {
            return Err(Failure::new(
                Code::Usage,
                "this process cannot record itself: check --pid",
            ));
        }
    }
    for group in &targets.cgroup {
        let below = group.strip_prefix("/").unwrap_or(group);
        let path = ROOTS
            .iter()
            .map(|root| Path::new(root).join(below))
            .find(|path| path.join("cgroup.procs").exists());
        groups.push(path.ok_or_else(|| {
            missing(format!(
                "there is no control group {}: check --cgroup",
                group.display()
            ))
        })?);
    }
    for unit in &targets.unit {
        let name = if unit.contains('.') {
            unit.clone()
        } else {
            format!("{unit}.service")
        };
        let path = search(|directory| directory == name);
        groups.push(path.ok_or_else(|| {
            missing(format!(
                "no control group of the unit {name} exists: is it running?"
            ))
        })?);
    }
    for id in &targets.container {
        if id.len() < CONTAINER_ID_MIN || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Failure::new(
                Code::Usage,
                format!(
                    "{id:?} is no container id: give at least {CONTAINER_ID_MIN} hex digits to --container"
                ),
            ));
        }
        let path = search(|directory| directory.contains(id.as_str()));
        groups.push(path.ok_or_else(|| {
            missing(format!(
                "no control group of the container {id} exists: is it running?"
            ))
        })?);
    }
    let found = Found {
        pids: targets.pid.clone(),
        groups,
    };
    if found.processes().is_empty() {
        return Err(missing(
            "the control group has no processes: is it running?".to_owned(),
        ));
    }
    Ok(found)
}

/// Finds which of the named groups still exist, for a recording that goes on. Named processes have their tags, if they still live;
/// their numbers may be others' by now.
pub(super) fn find_what_is_left(targets: &Targets) -> Result<Found, Failure> {
    let none = || Targets {
        pid: Vec::new(),
        cgroup: Vec::new(),
        unit: Vec::new(),
        container: Vec::new(),
    };
    let cgroups = targets.cgroup.iter().map(|group| Targets {
        cgroup: vec![group.clone()],
        ..none()
    });
    let units = targets.unit.iter().map(|unit| Targets {
        unit: vec![unit.clone()],
        ..none()
    });
    let containers = targets.container.iter().map(|id| Targets {
        container: vec![id.clone()],
        ..none()
    });
    let mut groups = Vec::new();
    for one in cgroups.chain(units).chain(containers) {
        match find(&one) {
            Ok(found) => groups.extend(found.groups),
            Err(failure) if failure.code == Code::NoInput => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(Found {
        pids: Vec::new(),
        groups,
    })
}

/// Users of a process by `/proc/PID/status`: each of its uids with all its groups.
fn users_of(status: &str) -> Vec<Agent> {
    let numbers = |name: &str| -> Vec<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default()
            .split_ascii_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect()
    };
    let mut groups = numbers("Groups:");
    groups.extend(numbers("Gid:"));
    groups.sort_unstable();
    groups.dedup();
    numbers("Uid:")
        .into_iter()
        .map(|uid| Agent {
            uid,
            groups: groups.clone(),
        })
        .collect()
}

fn missing(message: String) -> Failure {
    Failure::new(Code::NoInput, message)
}

/// Adds the processes of a group and of all groups below it.
fn add(group: &Path, found: &mut BTreeSet<u32>) {
    walk(group, |directory| {
        let list = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        // 0 stands for processes outside our pid namespace.
        found.extend(
            list.lines()
                .filter_map(|line| line.parse::<u32>().ok())
                .filter(|pid| *pid != 0),
        );
        false
    });
}

fn search(fits: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let root = ROOTS
        .iter()
        .map(Path::new)
        .find(|root| root.join("cgroup.procs").exists())?;
    let mut hit = None;
    walk(root, |directory| {
        let found = directory
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(&fits);
        if found {
            hit = Some(directory.to_owned());
        }
        found
    });
    hit
}

/// Visits a directory and those below it until `visit` says to stop.
fn walk(start: &Path, mut visit: impl FnMut(&Path) -> bool) {
    let mut queue = vec![start.to_owned()];
    let mut visited = 0;
    while let Some(directory) = queue.pop() {
        visited += 1;
        if visited > GROUPS_MAX || visit(&directory) {
            return;
        }
        let entries = std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten();
        queue.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_uid_of_a_process_counts_with_all_its_groups() {
        let status = "Name:\tx\nUid:\t7\t0\t7\t7\nGid:\t9\t9\t8\t9\nGroups:\t8 5 \n";
        let users = users_of(status);
        assert_eq!(
            users.iter().map(|user| user.uid).collect::<BTreeSet<_>>(),
            [0, 7].into()
        );
        assert!(users.iter().all(|user| user.groups == [5, 8, 9]));
    }
}
