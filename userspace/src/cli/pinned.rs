//! Captures that are pinned in the kernel: found, gone on with, emptied, removed.
//!
//! Owns what a command does about what lies under a name. What is pinned is [`crate::bpf::pin`]'s.

use super::args::{Targets, UnpinArgs};
use super::tell;
use crate::bpf::claim::Claim;
use crate::bpf::pin::{Found, Note, PinDir};
use crate::bpf::tier::Tier;
use crate::exit::{Code, Failure, OrExit};
use crate::witness;

/// Whether a capture is, or is to be, pinned. The name is this process's as long as the claim lives.
#[derive(Debug)]
pub(super) enum Pinned {
    /// It is not.
    No,
    /// It is to be.
    New(
        PinDir,
        #[expect(dead_code, reason = "held, never looked at")] Claim,
    ),
    /// A process before this one left it.
    Left(
        PinDir,
        Note,
        #[expect(dead_code, reason = "held, never looked at")] Claim,
    ),
}

impl Pinned {
    /// Where.
    pub(super) fn dir(&self) -> Option<&PinDir> {
        match self {
            Self::No => None,
            Self::New(dir, _) | Self::Left(dir, _, _) => Some(dir),
        }
    }
}

/// Looks at what lies under a name, for a recording of what is `asked` with a tier.
///
/// # Errors
/// When the name is none, somebody else's or in use, or what lies there is of a build with another record layout, of another
/// tier, or was asked to record something else: who is watched is settled when the programs are loaded, and a recording that
/// silently leaves somebody out, or brings him in half-way, would claim more than it saw.
pub(super) fn look(name: Option<&str>, asked: &str, tier: Option<Tier>) -> Result<Pinned, Failure> {
    let Some(name) = name else {
        return Ok(Pinned::No);
    };
    let dir = PinDir::named(name).or_exit(Code::Usage)?;
    let claim = dir.claim().or_exit(Code::Unavailable)?;
    match dir.look().or_exit(Code::Unavailable)? {
        Found::Nothing => Ok(Pinned::New(dir, claim)),
        Found::Ours(note) => {
            let had = dir.asked().or_exit(Code::Unavailable)?;
            let way_out = format!(
                "repeat the first command to go on, or give that capture up with `countersign unpin {name}`"
            );
            if had != asked {
                return Err(Failure::new(
                    Code::Usage,
                    format!(
                        "the programs pinned in {} were asked to record {had}, this command asks for {asked}: {way_out}",
                        dir.path().display()
                    ),
                ));
            }
            let has = note.tier().or_exit(Code::Unavailable)?;
            if let Some(tier) = tier.filter(|tier| *tier != has) {
                return Err(Failure::new(
                    Code::Usage,
                    format!(
                        "the programs pinned in {} are of tier {has}, this command asks for tier {tier}: {way_out}",
                        dir.path().display()
                    ),
                ));
            }
            tell(&format!(
                "going on with capture {}, which an earlier process left pinned in {}",
                note.capture(),
                dir.path().display()
            ));
            Ok(Pinned::Left(dir, note, claim))
        }
        Found::Other(note) => Err(Failure::new(
            Code::Unavailable,
            format!(
                "the programs pinned in {} have record layout {}, this build has {}: go on with the build that pinned \
                 them, or give up what waits in their ring with `countersign unpin {name}`",
                dir.path().display(),
                note.abi_version,
                countersign_common::ABI_VERSION
            ),
        )),
    }
}

/// What a command line asks to be recorded, the same for the same targets in any order.
pub(super) fn asked(targets: &Targets) -> String {
    let pids = targets.pid.iter().map(|pid| format!("--pid {pid}"));
    let groups = targets.cgroup.iter().map(|path| {
        let path = path.strip_prefix("/").unwrap_or(path);
        let path = path.as_os_str().as_encoded_bytes().escape_ascii();
        format!("--cgroup \"{path}\"")
    });
    let units = targets.unit.iter().map(|unit| format!("--unit {unit:?}"));
    let containers = targets
        .container
        .iter()
        .map(|id| format!("--container {id:?}"));
    let mut all: Vec<String> = pids.chain(groups).chain(units).chain(containers).collect();
    all.sort();
    all.dedup();
    all.join(" ")
}

/// `countersign unpin`.
pub(super) fn unpin(args: &UnpinArgs) -> Result<Code, Failure> {
    witness::check_privileges()?;
    let dir = PinDir::named(&args.name).or_exit(Code::Usage)?;
    let claim = dir.claim_what_is_there().or_exit(Code::Unavailable)?;
    let Some(claim) = claim else {
        let names = PinDir::all();
        let known = if names.is_empty() {
            "nothing is pinned".to_owned()
        } else {
            format!("pinned are: {}", names.join(", "))
        };
        return Err(Failure::new(
            Code::NoInput,
            format!("nothing is pinned as {:?} ({known})", args.name),
        ));
    };
    let found = dir.look().or_exit(Code::Unavailable)?;
    let waiting = dir.waiting_bytes();
    dir.remove().or_exit(Code::Io)?;
    drop(claim);
    let whose = match found {
        Found::Ours(note) | Found::Other(note) => format!("capture {}", note.capture()),
        Found::Nothing => "what a process that died while pinning left".to_owned(),
    };
    tell(&format!("removed {whose} from the kernel"));
    match waiting {
        Ok(0) => Ok(Code::Clean),
        Ok(bytes) => {
            tell(&format!(
                "could not see: {bytes} bytes of records waited in its ring and are given up"
            ));
            Ok(Code::CouldNotSee)
        }
        Err(error) => {
            tell(&format!(
                "could not see: what waited in its ring is not known ({error:#})"
            ));
            Ok(Code::CouldNotSee)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_targets_in_another_order_are_the_same_question() {
        let targets = |pid: &[u32], cgroup: &[&str]| Targets {
            pid: pid.to_vec(),
            cgroup: cgroup.iter().map(Into::into).collect(),
            unit: vec!["a b".to_owned()],
            container: Vec::new(),
        };
        let one = asked(&targets(&[7, 8, 7], &["/agents"]));
        assert_eq!(one, asked(&targets(&[8, 7], &["agents"])));
        assert_eq!(one, r#"--cgroup "agents" --pid 7 --pid 8 --unit "a b""#);
        assert_ne!(one, asked(&targets(&[78], &["agents"])));
    }
}
