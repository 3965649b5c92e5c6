//! Tags of processes, written and read from user space: `bpf(2)` on the tag map with a pidfd as key.
//!
//! aya knows no task storage, so these are the raw calls. Each suspends the tracepoint programs of its CPU for the length
//! of the call: seed before the work starts, do not poll.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use anyhow::Context;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::syscall;

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;

/// Sets and reads tags. Clones share the map.
#[derive(Clone, Debug)]
pub struct Tagger {
    map: Arc<OwnedFd>,
}

impl Tagger {
    pub(super) fn new(map: OwnedFd) -> Self {
        Self { map: Arc::new(map) }
    }

    /// Sets the tag of the process behind `pidfd`. All its threads, present and future, have it from then on; children that it
    /// has already do not.
    ///
    /// # Errors
    /// When the process is gone or the kernel cannot store the tag.
    pub fn tag_process(&self, pidfd: BorrowedFd<'_>, bits: u32) -> anyhow::Result<()> {
        let mut bits = bits;
        element(BPF_MAP_UPDATE_ELEM, self.map.as_fd(), pidfd, &mut bits)
            .context("store the tag of a process")
    }

    /// Sets the tag of the process with this number, which must not be reusable meanwhile (a child not waited for).
    ///
    /// # Errors
    /// When there is no such process or the kernel cannot store the tag.
    pub fn tag_pid(&self, pid: u32, bits: u32) -> anyhow::Result<()> {
        self.tag_process(open(pid)?.as_fd(), bits)
    }

    /// The tag of a process; `None` when it never had one.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn tag_of(&self, pid: u32) -> anyhow::Result<Option<u32>> {
        let mut bits = 0;
        match element(
            BPF_MAP_LOOKUP_ELEM,
            self.map.as_fd(),
            open(pid)?.as_fd(),
            &mut bits,
        ) {
            Ok(()) => Ok(Some(bits)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("read the tag of a process"),
        }
    }
}

fn open(pid: u32) -> anyhow::Result<OwnedFd> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .with_context(|| format!("{pid} is not a process id"))?;
    pidfd_open(pid, PidfdFlags::empty()).with_context(|| {
        format!(
            "open process {}: it must exist and be no mere thread",
            pid.as_raw_pid()
        )
    })
}

fn element(
    command: libc::c_int,
    map: BorrowedFd<'_>,
    pidfd: BorrowedFd<'_>,
    value: &mut u32,
) -> io::Result<()> {
    let key = pidfd.as_raw_fd();
    // SAFETY: the map's key is a descriptor of a process, its value four bytes.
    unsafe { syscall::element(command, map, &key, value) }
}
