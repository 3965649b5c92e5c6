//! From processes that run to a watched tree.
//!
//! Owns the order of things that makes an attached capture sound: tag, then look, then look again until nothing new comes;
//! then find who else holds the ends of the tree's channels. What moved before a process was tagged was not seen, and the
//! evidence says so by the time of its scan.

use std::collections::{BTreeSet, HashSet};
use std::os::fd::{AsFd, OwnedFd};

use countersign_common::{kind, tag};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::json;

use super::targets::Found;
use crate::bpf::inet_peers::inet_peers;
use crate::bpf::scan::{self, ProcessScan};
use crate::bpf::unix_peers::unix_peers;
use crate::cli::tell;
use crate::exit::{Code, Failure, OrExit};
use crate::recording::Recording;
use crate::tree::Missed;

/// Most rounds of listing and tagging. Stops an agent whose processes come and go without end from putting off the recording.
const ROUNDS_MAX: usize = 16;

/// Times that a tag is corrected because the process executed another program meanwhile.
const EXECS_MAX: usize = 8;

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attached {
    /// Processes of the tree.
    pub(super) processes: usize,
    /// Processes outside that hold an end of one of its channels.
    pub(super) peers: usize,
}

/// Tags what was found and all that descends from it, and again what appeared meanwhile, until nothing new does. What is
/// forked by a tagged process has the tag from birth.
pub(super) fn attach(found: &Found, recording: &Recording) -> Result<Attached, Failure> {
    let mut seen = BTreeSet::new();
    let mut inodes = HashSet::new();
    let mut rounds = 0;
    loop {
        let new: Vec<(u32, u32)> = tree_of(found)?
            .into_iter()
            // What was forked by one that has its tag already is recorded from birth.
            .filter(|(pid, _)| !seen.contains(pid) && !recording.tree().is_member(*pid))
            .collect();
        if new.is_empty() {
            break;
        }
        rounds += 1;
        if rounds > ROUNDS_MAX {
            // Those that are missed now are found by the next look at the tree or its groups, and declared.
            tell(
                "could not see: processes came faster than they could be tagged; each one missed will be named",
            );
            let body = json!({ "what": "attach_unsettled", "rounds": ROUNDS_MAX });
            recording.note(kind::LOSS, &body);
            break;
        }
        for (pid, agent) in new {
            seen.insert(pid);
            if let Some(scan) = adopt(pid, agent, recording)? {
                inodes.extend(scan.fds.iter().map(|held| (held.dev, held.inode)));
                note(recording, &scan);
            }
        }
    }
    let peers = mark_peers(inodes, &seen, recording)?;
    recording.note(
        kind::CAPTURE,
        &json!({ "event": "attached", "processes": seen, "peers": peers }),
    );
    Ok(Attached {
        processes: seen.len(),
        peers,
    })
}

/// Tags what has come into the named groups by another way than fork since.
pub(super) fn join(found: &Found, recording: &mut Recording) -> Result<(), Failure> {
    for (pid, agent) in roots(found) {
        if recording.tree().is_member(pid) || pid == std::process::id() {
            continue;
        }
        if let Some(scan) = adopt(pid, agent, recording)? {
            let scan = serde_json::to_value(&scan).ok();
            recording.note_missed(&Missed {
                pid,
                how: "joined",
                scan,
            });
        }
    }
    Ok(())
}

/// Processes that are named or in a named group now, each with the number of its agent: its place among what was named.
fn roots(found: &Found) -> Vec<(u32, u32)> {
    let agents = found.agents().into_iter().zip(0_u32..);
    agents
        .flat_map(|(pids, place)| {
            let number = 1 + place % tag::AGENT_MAX;
            pids.into_iter().map(move |pid| (pid, number))
        })
        .collect()
}

/// What was found and its descendants, parents first, without this process, each with the number of its agent.
fn tree_of(found: &Found) -> Result<Vec<(u32, u32)>, Failure> {
    let mut all = Vec::new();
    let mut known = HashSet::from([std::process::id()]);
    for (root, agent) in roots(found) {
        for pid in scan::descendants(root).or_exit(Code::Internal)? {
            if known.insert(pid) {
                all.push((pid, agent));
            }
        }
    }
    Ok(all)
}

/// Tags a process with what it is and looks at it afterwards. `None`: it is gone.
fn adopt(pid: u32, agent: u32, recording: &Recording) -> Result<Option<ProcessScan>, Failure> {
    let Some(handle) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    let Ok(pidfd) = pidfd_open(handle, PidfdFlags::empty()) else {
        return Ok(None);
    };
    let look = || scan::process(pid).or_exit(Code::Internal);
    let mut before = look()?;
    for _ in 0..EXECS_MAX {
        let bits = recording.tree().bits(before.as_ref()) | tag::of_agent(agent);
        let known = recording.tagger().tag_of(pid).ok().flatten().unwrap_or(0);
        if known & bits != bits
            && let Err(error) = recording.tagger().tag_process(pidfd.as_fd(), bits)
        {
            if has_ended(&pidfd) {
                return Ok(None);
            }
            return Err(error).or_exit(Code::Internal);
        }
        let Some(mut after) = look()? else {
            return Ok(None);
        };
        if recording.tree().bits(Some(&after)) | tag::of_agent(agent) == bits {
            if !recording.tree().is_member(pid) {
                // It has ended, or the tag did not stick: then it must not be taken for watched.
                if has_ended(&pidfd) {
                    return Ok(None);
                }
                return Err(Failure::new(
                    Code::Internal,
                    format!("the tag of process {pid} could not be read back"),
                ));
            }
            after.tag = bits;
            return Ok(Some(after));
        }
        before = Some(after);
    }
    Err(Failure::new(
        Code::Unavailable,
        format!("process {pid} executes programs faster than it can be tagged"),
    ))
}

/// Whether the very process has ended, whoever has its number now. What has ended needs no tag.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Marks processes outside the tree that hold an end of one of its channels.
fn mark_peers(
    mut inodes: HashSet<(u32, u64)>,
    tree: &BTreeSet<u32>,
    recording: &Recording,
) -> Result<usize, Failure> {
    // Sockets have no device number in the kernel's records.
    let sockets: Vec<u64> = inodes
        .iter()
        .filter_map(|(dev, inode)| (*dev == 0).then_some(*inode))
        .collect();
    for peers in [unix_peers(), inet_peers()] {
        match peers {
            Ok(peers) => {
                let others = sockets.iter().filter_map(|inode| peers.get(inode));
                inodes.extend(others.map(|peer| (0, *peer)));
            }
            Err(error) => {
                tracing::warn!(%error, "the peers of sockets cannot be listed");
                let body = json!({ "what": "scan_failed", "cause": error.to_string() });
                recording.note(kind::LOSS, &body);
            }
        }
    }
    let mut except: HashSet<u32> = tree.iter().copied().collect();
    except.insert(std::process::id());
    let mut marked = 0;
    for mut scan in scan::holders(&inodes, &except).or_exit(Code::Internal)? {
        let known = recording
            .tagger()
            .tag_of(scan.pid)
            .ok()
            .flatten()
            .unwrap_or(0);
        if known & (tag::TREE | tag::PEER) != 0 {
            continue;
        }
        // Gone since: no longer a holder.
        if recording.tagger().tag_pid(scan.pid, tag::PEER).is_ok() {
            scan.tag = tag::PEER;
            note(recording, &scan);
            marked += 1;
        }
    }
    Ok(marked)
}

fn note(recording: &Recording, scan: &ProcessScan) {
    if !scan.fds_complete {
        let body = json!({ "what": "scan_incomplete", "pid": scan.pid });
        recording.note(kind::LOSS, &body);
    }
    match serde_json::to_value(scan) {
        Ok(scan) => recording.note(kind::PROCESS_SCAN, &scan),
        Err(error) => tracing::warn!(%error, "a scan could not be written into the spool"),
    }
}
