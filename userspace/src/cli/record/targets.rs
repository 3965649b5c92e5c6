//! From what the operator names to process ids.
//!
//! Owns the look-up in the cgroup file system. A unit or container is its control group; the search
//! goes by directory name, because the names of slices and runtimes differ between systems.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::cli::Targets;
use crate::exit::{Code, Failure};

/// Most rounds of listing and tagging.
pub(super) const ROUNDS_MAX: usize = 64;

/// Where version 2 of the cgroup file system is mounted: alone, or beside version 1.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// Most directories visited in one search. Stops a container with very many nested groups from stalling the start.
const GROUPS_MAX: usize = 100_000;

/// Shortest container id that is searched for; a shorter one would fit by chance.
const CONTAINER_ID_MIN: usize = 12;

/// Process ids of everything that is named, alive now.
pub(super) fn find(targets: &Targets) -> Result<BTreeSet<u32>, Failure> {
    let mut found = BTreeSet::new();
    for pid in &targets.pid {
        if !Path::new(&format!("/proc/{pid}/status")).exists() {
            return Err(missing(format!("there is no process {pid}: check --pid")));
        }
        found.insert(*pid);
    }
    for group in &targets.cgroup {
        let below = group.strip_prefix("/").unwrap_or(group);
        let path = ROOTS
            .iter()
            .map(|root| Path::new(root).join(below))
            .find(|path| path.join("cgroup.procs").exists());
        let path = path.ok_or_else(|| {
            missing(format!(
                "there is no control group {}: check --cgroup",
                group.display()
            ))
        })?;
        add(&path, &mut found);
    }
    for unit in &targets.unit {
        let name = if unit.contains('.') {
            unit.clone()
        } else {
            format!("{unit}.service")
        };
        let path = search(|directory| directory == name);
        let path = path.ok_or_else(|| {
            missing(format!(
                "no control group of the unit {name} exists: is it running?"
            ))
        })?;
        add(&path, &mut found);
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
        let path = path.ok_or_else(|| {
            missing(format!(
                "no control group of the container {id} exists: is it running?"
            ))
        })?;
        add(&path, &mut found);
    }
    if found.is_empty() {
        return Err(missing(
            "the control group has no processes: is it running?".to_owned(),
        ));
    }
    Ok(found)
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
