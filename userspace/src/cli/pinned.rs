//! Captures that are pinned in the kernel: found, gone on with, emptied, removed.
//!
//! Owns what a command does about what lies under a name. What is pinned is [`crate::bpf::pin`]'s.

use super::args::UnpinArgs;
use super::tell;
use crate::bpf::pin::{Found, Note, PinDir};
use crate::exit::{Code, Failure, OrExit};
use crate::witness;

/// Whether a capture is, or is to be, pinned.
#[derive(Clone, Debug)]
pub(super) enum Pinned {
    /// It is not.
    No,
    /// It is to be.
    New(PinDir),
    /// A process before this one left it.
    Left(PinDir, Note),
}

impl Pinned {
    /// Where.
    pub(super) fn dir(&self) -> Option<&PinDir> {
        match self {
            Self::No => None,
            Self::New(dir) | Self::Left(dir, _) => Some(dir),
        }
    }
}

/// Looks at what lies under a name.
///
/// # Errors
/// When the name is none, or what lies there is of a build with another record layout.
pub(super) fn look(name: Option<&str>) -> Result<Pinned, Failure> {
    let Some(name) = name else {
        return Ok(Pinned::No);
    };
    let dir = PinDir::named(name).or_exit(Code::Usage)?;
    match dir.look().or_exit(Code::Unavailable)? {
        Found::Nothing => Ok(Pinned::New(dir)),
        Found::Ours(note) => {
            tell(&format!(
                "going on with capture {}, which an earlier process left pinned in {}",
                note.capture(),
                dir.path().display()
            ));
            Ok(Pinned::Left(dir, note))
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

/// `countersign unpin`.
pub(super) fn unpin(args: &UnpinArgs) -> Result<Code, Failure> {
    witness::check_privileges()?;
    let dir = PinDir::named(&args.name).or_exit(Code::Usage)?;
    let found = dir.look().or_exit(Code::Unavailable)?;
    if !dir.path().exists() {
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
    }
    let waiting = dir.waiting_bytes();
    dir.remove().or_exit(Code::Io)?;
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
