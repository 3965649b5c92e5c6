//! What a capture is loaded with, and the tables that the programs are told of it by.

use anyhow::Context;
use aya::{Ebpf, maps::HashMap};
use countersign_common::load::{ExeKey, WatchedFile};
use zerocopy::IntoBytes;

use super::{hook::Hook, pin::PinDir, tier::Tier};

/// Default size of the data ring, in bytes. A longer one makes each record of the watched dearer, since its memory has left the
/// caches when they come round to it; what must wait longer waits behind the consumer ([`crate::spool::BACKLOG_MAX_BYTES`]).
pub const RING_BYTES_DEFAULT: u32 = 64 << 20;

/// Default size of the control ring, in bytes: some twenty thousand executions or a hundred thousand other records.
pub const CONTROL_BYTES_DEFAULT: u32 = 16 << 20;

/// What a capture is loaded with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Size of the data ring in bytes; rounded up to a power of two of pages.
    pub ring_bytes: u32,
    /// Size of the control ring in bytes; rounded in the same way.
    pub control_bytes: u32,
    /// Which load this is: copied into every record's header.
    pub generation: u64,
    /// How transfers are captured. This tier or none: the choice is made elsewhere.
    pub tier: Tier,
    /// How programs get onto tracepoints. Chosen elsewhere, too.
    pub hook: Hook,
    /// Executables of proxies: kernel `dev_t` (`major << 20 | minor`) and inode number.
    pub proxy_exes: Vec<(u32, u64)>,
    /// Where programs, maps and links are pinned so that they outlive this process, with the ULID of the capture.
    pub pin: Option<(PinDir, String)>,
    /// Files whose opening is an attempt to get round the witness.
    pub watched_files: Vec<WatchedId>,
}

/// A file that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedId {
    /// Kernel `dev_t`.
    pub dev: u32,
    /// Inode number.
    pub inode: u64,
    /// One of [`file_class`](countersign_common::evasion::file_class).
    pub class: u32,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            ring_bytes: RING_BYTES_DEFAULT,
            control_bytes: CONTROL_BYTES_DEFAULT,
            generation: 1,
            tier: Tier::default(),
            hook: Hook::default(),
            proxy_exes: Vec::new(),
            pin: None,
            watched_files: Vec::new(),
        }
    }
}

/// Tells the programs which executables are proxies'.
pub(super) fn add_proxies(ebpf: &mut Ebpf, exes: &[(u32, u64)]) -> anyhow::Result<()> {
    let proxies = ebpf
        .map_mut("PROXY_EXES")
        .context("the object has no map PROXY_EXES")?;
    let mut proxies: HashMap<_, [u8; size_of::<ExeKey>()], u32> = proxies.try_into()?;
    for (dev, inode) in exes {
        let key = ExeKey {
            inode: *inode,
            dev: *dev,
            reserved: 0,
        };
        proxies
            .insert(as_array(&key)?, 1, 0)
            .context("add a proxy's executable")?;
    }
    Ok(())
}

/// Tells the programs which files matter before any process is watched.
pub(super) fn watch_files(ebpf: &mut Ebpf, files: &[WatchedId]) -> anyhow::Result<()> {
    let map = ebpf
        .map_mut("WATCHED_FILES")
        .context("the object has no map WATCHED_FILES")?;
    let mut map: HashMap<_, [u8; size_of::<ExeKey>()], [u8; size_of::<WatchedFile>()]> =
        map.try_into()?;
    for file in files {
        let key = ExeKey {
            inode: file.inode,
            dev: file.dev,
            reserved: 0,
        };
        let value = WatchedFile {
            class: file.class,
            links: 0,
            object: 0,
            entry: 0,
            place: 0,
            size: 0,
        };
        map.insert(
            as_array::<_, { size_of::<ExeKey>() }>(&key)?,
            as_array::<_, { size_of::<WatchedFile>() }>(&value)?,
            0,
        )
        .context("watch a file")?;
    }
    Ok(())
}

fn as_array<T: IntoBytes + zerocopy::Immutable, const N: usize>(
    value: &T,
) -> anyhow::Result<[u8; N]> {
    value
        .as_bytes()
        .try_into()
        .context("a key has another size")
}
