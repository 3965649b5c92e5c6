//! Programs, maps and links that stay in the kernel when the process that loaded them dies.
//!
//! Owns a directory per name in the BPF file system, what lies in it, and the note that says which build made it. A later
//! process that finds the note of its own layout opens what is there and loads nothing: records that came meanwhile wait in
//! the ring. Does not know what a record is.
//!
//! ```text
//! /sys/fs/bpf/countersign/NAME/       0700
//!   maps/NAME …  programs/NAME …  links/NAME …
//!   note                              an array map with one Note; made last, so a half-made directory has none
//! ```

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

use super::{ring::Ring, syscall};

/// Where the BPF file system is mounted, by convention.
const BPFFS: &str = "/sys/fs/bpf";
/// Our part of it.
const ROOT: &str = "/sys/fs/bpf/countersign";
/// `BPF_FS_MAGIC` (`include/uapi/linux/magic.h`).
const BPF_FS_MAGIC: libc::c_long = 0xcafe_4a11;
/// Longest name. Stops a path from growing past what the kernel takes.
const NAME_MAX: usize = 64;

/// Which build and capture pinned objects belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Note {
    /// [`ABI_VERSION`] of the build that loaded the programs.
    pub abi_version: u32,
    /// Zero.
    pub reserved: u32,
    /// As in every record.
    pub generation: u64,
    /// ULID of the capture, in characters.
    pub capture: [u8; 26],
    /// Zero.
    pub reserved2: [u8; 6],
    /// SHA-256 of the structure offsets that the programs were loaded with.
    pub offsets_sha256: [u8; 32],
}

impl Note {
    /// The note of what this build loads.
    ///
    /// # Errors
    /// When the id is not one of 26 characters.
    pub fn new(generation: u64, capture: &str, offsets_sha256: [u8; 32]) -> anyhow::Result<Self> {
        Ok(Self {
            abi_version: ABI_VERSION,
            reserved: 0,
            generation,
            capture: capture
                .as_bytes()
                .try_into()
                .context("the capture's id is not a ULID")?,
            reserved2: [0; 6],
            offsets_sha256,
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
        let path = self.path.join("note");
        if !path.exists() {
            return Ok(Found::Nothing);
        }
        let map = MapData::from_pin(&path)
            .with_context(|| format!("open the pinned note {}", path.display()))?;
        let map = aya::maps::Array::<_, [u8; size_of::<Note>()]>::try_from(
            aya::maps::Map::from_map_data(map)?,
        )?;
        let note = map.get(&0, 0).context("read the pinned note")?;
        let note = Note::read_from_bytes(&note)
            .map_err(|error| anyhow::anyhow!("the pinned note has another size: {error}"))?;
        Ok(if note.abi_version == ABI_VERSION {
            Found::Ours(note)
        } else {
            Found::Other(note)
        })
    }

    /// Makes the directory, mounting the file system if it is not. What a dead process left half-made is removed.
    ///
    /// # Errors
    /// When there is no BPF file system and none can be mounted, or a whole capture is pinned under the name.
    pub fn make(&self) -> anyhow::Result<()> {
        mount().with_context(|| format!("mount the bpf file system on {BPFFS}"))?;
        anyhow::ensure!(
            self.look()? == Found::Nothing,
            "a capture is pinned in {}",
            self.path.display()
        );
        self.remove()?;
        for path in [
            self.path.clone(),
            self.path.join("maps"),
            self.path.join("programs"),
            self.path.join("links"),
        ] {
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
        // The note first: without it the rest counts for nothing.
        match fs::remove_file(self.path.join("note")) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context("remove the pinned note"),
        }
        match fs::remove_dir_all(&self.path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).with_context(|| format!("remove {}", self.path.display())),
        }
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

    /// Says whose all this is. From here on it is a whole capture.
    ///
    /// # Errors
    /// When the note cannot be made.
    pub fn sign(&self, note: &Note) -> anyhow::Result<()> {
        let map = array_of_one(size_of::<Note>()).context("make the pinned note")?;
        set(&map, note).context("write the pinned note")?;
        pin(&map, &self.path.join("note")).context("pin the note")
    }

    /// A pinned map.
    ///
    /// # Errors
    /// When it is not there.
    pub fn map(&self, name: &str) -> anyhow::Result<MapData> {
        MapData::from_pin(self.path.join("maps").join(name))
            .with_context(|| format!("open the pinned map {name}"))
    }

    /// Bytes of records in the pinned rings that nobody has told the kernel to have.
    ///
    /// # Errors
    /// When the data ring is not there. Another build may have had no control ring.
    pub fn waiting_bytes(&self) -> anyhow::Result<u64> {
        let mut waiting = 0;
        for name in ["RING", "CONTROL"] {
            if name == "RING" || self.path.join("maps").join(name).exists() {
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

/// Mounts the BPF file system where it is not.
fn mount() -> io::Result<()> {
    // SAFETY: all zeroes is a value of it, and the call fills it.
    let mut facts: libc::statfs = unsafe { std::mem::zeroed() };
    let path = CString::new(BPFFS)?;
    // SAFETY: a path with its NUL and a structure of the right type.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut facts) } == 0 && facts.f_type == BPF_FS_MAGIC {
        return Ok(());
    }
    rustix::mount::mount(
        "bpf",
        BPFFS,
        "bpf",
        rustix::mount::MountFlags::NOSUID
            | rustix::mount::MountFlags::NODEV
            | rustix::mount::MountFlags::NOEXEC,
        Some(c"mode=0700"),
    )?;
    Ok(())
}

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
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

fn array_of_one(value_bytes: usize) -> io::Result<OwnedFd> {
    let mut attr: [u32; 5] = [
        BPF_MAP_TYPE_ARRAY,
        4,
        u32::try_from(value_bytes).map_err(io::Error::other)?,
        1,
        0,
    ];
    // SAFETY: plain numbers.
    owned(unsafe { syscall::bpf(BPF_MAP_CREATE, &mut attr) }?)
}

fn set(map: &OwnedFd, value: &Note) -> io::Result<()> {
    let mut value = *value;
    // SAFETY: an array's key is four bytes; its value was made of this size.
    unsafe { syscall::element(BPF_MAP_UPDATE_ELEM, map.as_fd(), &0_u32, &mut value) }
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
