//! Programs, maps and links that stay in the kernel when the process that loaded them dies.
//!
//! Owns a directory per name in the BPF file system, what lies in it, and the note that says which build made it. A later
//! process that finds the note of its own layout opens what is there and loads nothing: records that came meanwhile wait in
//! the ring. Does not know what a record is. Whose turn it is to use a directory is [`super::claim`]'s.
//!
//! ```text
//! /sys/fs/bpf/countersign/NAME/       0700
//!   maps/NAME …  programs/NAME …  links/NAME …
//!   asked                             an array map with one text: what was to be recorded
//!   note                              an array map with one Note; made last, so a half-made directory has none
//! ```
//!
//! A link on a kprobe event has the event's name: with the link goes the event, which tracefs would keep for ever.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::DirBuilderExt},
    },
    path::{Path, PathBuf},
};

use anyhow::Context;
use aya::{Ebpf, maps::MapData, programs::links::FdLink};
use countersign_common::ABI_VERSION;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{hook::Hook, kprobe, ring::Ring, syscall, tier::Tier};

/// Our part of the BPF file system.
pub(super) const ROOT: &str = "/sys/fs/bpf/countersign";
/// Longest name. Stops a path from growing past what the kernel takes.
const NAME_MAX: usize = 64;
/// Longest text of what was asked for. Stops a command line from asking the kernel for a map of any size.
const ASKED_MAX_BYTES: usize = 64 * 1024;
/// What lies in a directory of ours.
pub(super) const CONTENTS: [&str; 5] = ["maps", "programs", "links", ASKED, NOTE];
const ASKED: &str = "asked";
const NOTE: &str = "note";

/// Which build and capture pinned objects belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Note {
    /// [`ABI_VERSION`] of the build that loaded the programs.
    pub abi_version: u32,
    /// How transfers are captured: 0 for tier T, 1 for K, 2 for F.
    pub tier: u32,
    /// As in every record.
    pub generation: u64,
    /// ULID of the capture, in characters.
    pub capture: [u8; 26],
    /// How the programs are on tracepoints: 0 by the kernel's types, 1 as trace events.
    pub hook: u8,
    /// Zero.
    pub reserved2: [u8; 5],
    /// SHA-256 of the structure offsets that the programs were loaded with.
    pub offsets_sha256: [u8; 32],
}

impl Note {
    /// The note of what this build loads.
    ///
    /// # Errors
    /// When the id is not one of 26 characters.
    pub fn new(
        tier: Tier,
        generation: u64,
        capture: &str,
        offsets_sha256: [u8; 32],
    ) -> anyhow::Result<Self> {
        Ok(Self {
            abi_version: ABI_VERSION,
            tier: match tier {
                Tier::Tracepoints => 0,
                Tier::Kprobes => 1,
                Tier::Trampolines => 2,
            },
            generation,
            capture: capture
                .as_bytes()
                .try_into()
                .context("the capture's id is not a ULID")?,
            hook: 0,
            reserved2: [0; 5],
            offsets_sha256,
        })
    }

    /// How transfers are captured.
    ///
    /// # Errors
    /// When it is none that this build knows.
    pub fn tier(&self) -> anyhow::Result<Tier> {
        Ok(match self.tier {
            0 => Tier::Tracepoints,
            1 => Tier::Kprobes,
            2 => Tier::Trampolines,
            other => anyhow::bail!("the pinned note names tier {other}, which this build lacks"),
        })
    }

    /// The same for programs on tracepoints that are there in this way.
    #[must_use]
    pub fn on(mut self, hook: Hook) -> Self {
        self.hook = match hook {
            Hook::Typed => 0,
            Hook::Event => 1,
        };
        self
    }

    /// How the programs are on tracepoints.
    ///
    /// # Errors
    /// When it is a way that this build does not know.
    pub fn hook(&self) -> anyhow::Result<Hook> {
        Ok(match self.hook {
            0 => Hook::Typed,
            1 => Hook::Event,
            other => anyhow::bail!("the pinned note names hook {other}, which this build lacks"),
        })
    }

    /// The capture's id.
    pub fn capture(&self) -> String {
        String::from_utf8_lossy(&self.capture).into_owned()
    }
}

/// What is pinned under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing, or what a process that died while pinning left behind.
    Nothing,
    /// A capture that this build can go on with.
    Ours(Note),
    /// A capture of a build with another record layout: its ring can be emptied, not understood.
    Other(Note),
}

/// How much waits in a ring, whoever reads it.
#[derive(Debug)]
pub struct Waiting(Ring);

impl Waiting {
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.0.bytes()
    }

    /// How far the kernel has written, in bytes since the ring was made.
    pub fn produced(&self) -> u64 {
        self.0.produced()
    }

    /// How far room was given back to the kernel.
    pub fn released(&self) -> u64 {
        self.0.released()
    }

    /// Bytes in between.
    pub fn bytes(&self) -> u64 {
        self.produced().saturating_sub(self.released())
    }
}

/// A directory of pinned objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDir {
    path: PathBuf,
}

impl PinDir {
    /// The directory for a name; nothing is made yet.
    ///
    /// # Errors
    /// When the name could lead elsewhere.
    pub fn named(name: &str) -> anyhow::Result<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        anyhow::ensure!(
            !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(plain),
            "{name:?} is no name for pinned programs: use up to {NAME_MAX} letters, digits, - and _"
        );
        Ok(Self {
            path: Path::new(ROOT).join(name),
        })
    }

    /// Names under which something is pinned.
    pub fn all() -> Vec<String> {
        let Ok(entries) = fs::read_dir(ROOT) else {
            return Vec::new();
        };
        let mut names: Vec<_> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is there.
    ///
    /// # Errors
    /// When the note is there and cannot be read.
    pub fn look(&self) -> anyhow::Result<Found> {
        let path = self.path.join(NOTE);
        if !path.exists() {
            return Ok(Found::Nothing);
        }
        let note = value_of(&path).context("read the pinned note")?;
        let note = Note::read_from_bytes(&note)
            .map_err(|error| anyhow::anyhow!("the pinned note has another size: {error}"))?;
        Ok(if note.abi_version == ABI_VERSION {
            Found::Ours(note)
        } else {
            Found::Other(note)
        })
    }

    /// Makes what goes into the directory, which is [claimed](PinDir::claim). What a dead process left half-made is removed.
    ///
    /// # Errors
    /// When a whole capture is pinned under the name, or the file system refuses.
    pub fn make(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.look()? == Found::Nothing,
            "a capture is pinned in {}",
            self.path.display()
        );
        self.empty()?;
        for path in ["maps", "programs", "links"].map(|name| self.path.join(name)) {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .with_context(|| format!("make {}", path.display()))?;
        }
        Ok(())
    }

    /// Removes everything under the name. The kernel lets go of what nobody else holds: programs stop.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove(&self) -> anyhow::Result<()> {
        self.empty()?;
        match fs::remove_dir(&self.path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).with_context(|| format!("remove {}", self.path.display())),
        }
    }

    /// Removes what lies in the directory, and the kprobe events of its links.
    fn empty(&self) -> anyhow::Result<()> {
        let events = self.links().unwrap_or_default();
        // The note first: without it the rest counts for nothing.
        for name in [NOTE, ASKED] {
            match fs::remove_file(self.path.join(name)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("remove the pinned {name}"));
                }
            }
        }
        // Links before what they hold, so that nothing runs half of a capture for longer than it must.
        for name in ["links", "programs", "maps"] {
            match fs::remove_dir_all(self.path.join(name)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("remove the pinned {name}"));
                }
            }
        }
        kprobe::remove_events(&events);
        Ok(())
    }

    /// Pins all maps of loaded programs whose names are given.
    ///
    /// # Errors
    /// When one is missing or cannot be pinned.
    pub fn pin_maps(&self, ebpf: &Ebpf, names: &[&str]) -> anyhow::Result<()> {
        for name in names {
            ebpf.map(name)
                .with_context(|| format!("the object has no map {name}"))?
                .pin(self.path.join("maps").join(name))
                .with_context(|| format!("pin the map {name}"))?;
        }
        Ok(())
    }

    /// Pins a loaded program. Its link is pinned by [`PinDir::pin_link`].
    ///
    /// # Errors
    /// When it cannot be.
    pub fn pin_program(&self, name: &str, program: impl AsFd) -> anyhow::Result<()> {
        pin(program, &self.path.join("programs").join(name))
            .with_context(|| format!("pin the program {name}"))
    }

    /// Pins a link, so that its program stays attached.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn pin_link(&self, name: &str, link: FdLink) -> anyhow::Result<()> {
        link.pin(self.path.join("links").join(name))
            .with_context(|| format!("pin the link of {name}"))?;
        Ok(())
    }

    /// Pins the link of a program on a kprobe event, under the event's name.
    ///
    /// # Errors
    /// When it cannot be.
    pub(super) fn pin_event_link(&self, event: &str, link: impl AsFd) -> anyhow::Result<()> {
        pin(link, &self.path.join("links").join(event))
            .with_context(|| format!("pin the link on the event {event}"))
    }

    /// Names of the pinned links: of tracepoints, of functions after `fentry:` or `fexit:`, of kprobe events.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn links(&self) -> io::Result<Vec<String>> {
        fs::read_dir(self.path.join("links"))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    /// Keeps what was asked to be recorded, in words that a later process compares with its own.
    ///
    /// # Errors
    /// When it is too long or cannot be pinned.
    pub fn keep_asked(&self, asked: &str) -> anyhow::Result<()> {
        anyhow::ensure!(
            !asked.is_empty() && asked.len() <= ASKED_MAX_BYTES,
            "what is to be recorded takes {} bytes to say; {ASKED_MAX_BYTES} can be pinned",
            asked.len()
        );
        pin_value(asked.as_bytes(), &self.path.join(ASKED)).context("pin what was asked for")
    }

    /// What [`PinDir::keep_asked`] kept.
    ///
    /// # Errors
    /// When there is nothing of it, or it is no text.
    pub fn asked(&self) -> anyhow::Result<String> {
        let asked = value_of(&self.path.join(ASKED)).context("read what was asked for")?;
        String::from_utf8(asked).context("read what was asked for")
    }

    /// Says whose all this is. From here on it is a whole capture.
    ///
    /// # Errors
    /// When the note cannot be made.
    pub fn sign(&self, note: &Note) -> anyhow::Result<()> {
        pin_value(note.as_bytes(), &self.path.join(NOTE)).context("pin the note")
    }

    /// A pinned map.
    ///
    /// # Errors
    /// When it is not there.
    pub fn map(&self, name: &str) -> anyhow::Result<MapData> {
        MapData::from_pin(self.path.join("maps").join(name))
            .with_context(|| format!("open the pinned map {name}"))
    }

    /// A view of how much waits in the pinned data ring.
    ///
    /// # Errors
    /// When it is not there.
    pub fn waiting(&self) -> anyhow::Result<Waiting> {
        Ok(Waiting(Ring::open(self.map("RING")?)?))
    }

    /// Bytes of records in the pinned rings that nobody has told the kernel to have.
    ///
    /// # Errors
    /// When the data ring of a whole capture is not there. Another build may have had no control ring.
    pub fn waiting_bytes(&self) -> anyhow::Result<u64> {
        let whole = self.path.join(NOTE).exists();
        let mut waiting = 0;
        for name in ["RING", "CONTROL"] {
            if (whole && name == "RING") || self.path.join("maps").join(name).exists() {
                let ring = Ring::open(self.map(name)?)?;
                waiting += ring.produced().wrapping_sub(ring.released());
            }
        }
        Ok(waiting)
    }

    /// The pinned programs, by name.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn programs(&self) -> anyhow::Result<Vec<(String, OwnedFd)>> {
        let path = self.path.join("programs");
        let mut programs = Vec::new();
        for entry in fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let fd =
                get(&entry.path()).with_context(|| format!("open the pinned program {name}"))?;
            programs.push((name, fd));
        }
        programs.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(programs)
    }
}

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_MAP_TYPE_ARRAY: u32 = 2;

/// `BPF_OBJ_PIN`, `BPF_OBJ_GET`.
#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

fn pin(object: impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr {
        path: path.as_ptr() as u64,
        fd: object.as_fd().as_raw_fd().cast_unsigned(),
        flags: 0,
    };
    // SAFETY: the path lives until the call returns.
    unsafe { syscall::bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: as above.
    owned(unsafe { syscall::bpf(BPF_OBJ_GET, &mut attr) }?)
}

/// Pins an array map of one value.
fn pin_value(value: &[u8], path: &Path) -> io::Result<()> {
    let mut attr: [u32; 5] = [
        BPF_MAP_TYPE_ARRAY,
        4,
        u32::try_from(value.len()).map_err(io::Error::other)?,
        1,
        0,
    ];
    // SAFETY: plain numbers.
    let map = owned(unsafe { syscall::bpf(BPF_MAP_CREATE, &mut attr) }?)?;
    // SAFETY: an array's key is four bytes; its value was made of this size and is only read.
    unsafe { syscall::update(map.as_fd(), &0_u32, value.as_ptr()) }?;
    pin(&map, path)
}

/// The value in such a map.
fn value_of(path: &Path) -> anyhow::Result<Vec<u8>> {
    let map = MapData::from_pin(path).with_context(|| format!("open {}", path.display()))?;
    let info = map.info()?;
    let bytes = info.value_size() as usize;
    anyhow::ensure!(
        info.key_size() == 4 && bytes <= ASKED_MAX_BYTES,
        "{} is no map of ours",
        path.display()
    );
    // What the kernel copies out is rounded up to words.
    let mut value = vec![0; bytes.next_multiple_of(8)];
    // SAFETY: the key's size was just checked; the value's is that of the map.
    unsafe { syscall::look_up(map.fd().as_fd(), &0_u32, value.as_mut_ptr()) }
        .with_context(|| format!("read {}", path.display()))?;
    value.truncate(bytes);
    Ok(value)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use super::*;

    #[test]
    fn a_name_leads_nowhere_else() {
        for name in ["", ".", "..", "a/b", "a.b", "ä", &"x".repeat(65)] {
            assert!(PinDir::named(name).is_err(), "{name}");
        }
        assert_eq!(
            PinDir::named("agents-1").unwrap().path(),
            Path::new("/sys/fs/bpf/countersign/agents-1")
        );
    }
}
