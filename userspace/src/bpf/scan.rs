//! What `/proc` says of processes and who holds which channel: the start of an attached capture, and the search for holders
//! outside the tree.
//!
//! Everything here is a snapshot that is out of date when it is read; nothing here follows a path that a process controls
//! (`/proc/PID/fd/N` is asked for what it is, never opened).

use std::{
    collections::HashSet,
    fs, io,
    os::{linux::fs::MetadataExt as _, unix::fs::FileTypeExt as _},
    path::{Path, PathBuf},
};

use countersign_common::channel_kind;
use serde::Serialize;

/// Descriptors listed of one process. Stops a process with a million descriptors from making the scan endless; what is cut off
/// is said in [`ProcessScan::fds_complete`].
/// Each takes some sixty bytes in a record of at most four mebibytes.
const FDS_MAX: usize = 32_768;

/// One process as `/proc` shows it: the JSON of [`kind::PROCESS_SCAN`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessScan {
    /// Process id (thread-group id).
    pub pid: u32,
    /// The same; for readers that expect the kernel's name.
    pub tgid: u32,
    /// Parent's process id.
    pub ppid: u32,
    /// Start time in nanoseconds of `CLOCK_BOOTTIME`, cut to a clock tick: up to [`ProcessScan::tick_ns`] before the kernel's
    /// own value.
    pub start_boot_ns: u64,
    /// Length of a clock tick, nanoseconds.
    pub tick_ns: u64,
    /// Path of the executable as the kernel prints it; empty if it cannot be read.
    pub exe: String,
    /// Kernel `dev_t` of the executable; 0 if unknown.
    pub exe_dev: u32,
    /// Inode number of the executable; 0 if unknown.
    pub exe_inode: u64,
    /// Real uid.
    pub uid: u32,
    /// Path in the unified control group hierarchy.
    pub cgroup: String,
    /// Its descriptors that are pipes, FIFOs or sockets.
    pub fds: Vec<HeldFd>,
    /// The tag that it got because of this.
    pub tag: u32,
    /// Whether `fds` is all that there was: false when the list was cut or the directory could not be read.
    pub fds_complete: bool,
}

/// A descriptor that may be an end of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HeldFd {
    /// Descriptor number.
    pub fd: u32,
    /// One of [`channel_kind`]; sockets of every kind count as [`channel_kind::UNIX_STREAM`], which the inode then decides.
    pub kind: u8,
    /// Inode number.
    pub inode: u64,
    /// Kernel `dev_t`; 0 for sockets, as in the kernel's records.
    pub dev: u32,
    /// 1 readable, 2 writable.
    pub mode: u8,
}

/// Reads one process. `None` when it is gone.
///
/// # Errors
/// When `/proc` says something that cannot be read as the kernel's format.
pub fn process(pid: u32) -> io::Result<Option<ProcessScan>> {
    let root = PathBuf::from(format!("/proc/{pid}"));
    let stat = match fs::read(root.join("stat")) {
        Ok(stat) => stat,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some((parent, start_ticks)) = parse_stat(&stat) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("/proc/{pid}/stat is not as expected"),
        ));
    };
    let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    let exe = fs::metadata(root.join("exe")).ok();
    let (fds, fds_complete) = descriptors(&root);
    Ok(Some(ProcessScan {
        pid,
        tgid: pid,
        ppid: parent,
        start_boot_ns: start_ticks.saturating_mul(tick_ns),
        tick_ns,
        exe: fs::read_link(root.join("exe"))
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default(),
        exe_dev: exe
            .as_ref()
            .map_or(0, |exe| crate::device::kernel_dev(exe.st_dev())),
        exe_inode: exe.map_or(0, |exe| exe.st_ino()),
        uid: fs::metadata(&root).map_or(u32::MAX, |meta| meta.st_uid()),
        cgroup: cgroup(&fs::read(root.join("cgroup")).unwrap_or_default()),
        tag: 0,
        fds,
        fds_complete,
    }))
}

/// All processes but `except` that hold one of the pipes, FIFOs or sockets in `inodes`; each with only those descriptors.
///
/// Sockets are found by their own inode: pass those of both ends.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn holders<S: std::hash::BuildHasher>(
    inodes: &HashSet<(u32, u64), S>,
    except: &HashSet<u32, S>,
) -> io::Result<Vec<ProcessScan>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if except.contains(&pid) {
            continue;
        }
        let (mut fds, complete) = descriptors(&PathBuf::from(format!("/proc/{pid}")));
        fds.retain(|held| inodes.contains(&(held.dev, held.inode)));
        if fds.is_empty() {
            continue;
        }
        // A process that ended or changed since is left to the next sweep.
        if let Ok(Some(scan)) = process(pid) {
            found.push(ProcessScan {
                fds,
                fds_complete: complete,
                ..scan
            });
        }
    }
    Ok(found)
}

/// All descendants of a process by `/proc`, with itself, parents first. Best effort: a process that changes its parent meanwhile
/// (its parent ends) can be missed; tag, then look again until nothing new comes.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn descendants(root: u32) -> io::Result<Vec<u32>> {
    let mut parents = parents()?;
    parents.sort_unstable();
    let mut tree = vec![root];
    let mut seen = HashSet::from([root]);
    let mut next = 0;
    while let Some(parent) = tree.get(next).copied() {
        let first = parents.partition_point(|(ppid, _)| *ppid < parent);
        for (_, child) in parents[first..]
            .iter()
            .take_while(|(ppid, _)| *ppid == parent)
        {
            if seen.insert(*child) {
                tree.push(*child);
            }
        }
        next += 1;
    }
    Ok(tree)
}

/// Parent and id of every process.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn parents() -> io::Result<Vec<(u32, u32)>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        if let Some((ppid, _)) = parse_stat(&stat) {
            parents.push((ppid, pid));
        }
    }
    Ok(parents)
}

/// Whether a process has ended and only waits for its parent to ask how: it does nothing any more. A first thread that has ended
/// before the others looks the same but for their number.
pub fn is_zombie(pid: u32) -> bool {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    says_zombie(&stat)
}

/// When a process started, in ticks since boot; with its number it names one process. `None` when there is none.
pub(super) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&stat).map(|(_, start)| start)
}

/// Fields 3 and 20 of `proc_pid_stat(5)`.
fn says_zombie(stat: &[u8]) -> bool {
    let after_name = stat
        .iter()
        .rposition(|byte| *byte == b')')
        .and_then(|end| std::str::from_utf8(&stat[end + 1..]).ok());
    let mut fields = after_name.unwrap_or_default().split_ascii_whitespace();
    let state = fields.next();
    let threads = fields.nth(16).and_then(|threads| threads.parse().ok());
    matches!(state, Some("Z" | "X")) && threads.unwrap_or(2_u32) <= 1
}

/// Channel descriptors of a process, and whether that is all of them.
fn descriptors(root: &Path) -> (Vec<HeldFd>, bool) {
    let mut fds = Vec::new();
    let Ok(entries) = fs::read_dir(root.join("fd")) else {
        return (fds, false);
    };
    for (count, entry) in entries.enumerate() {
        let Ok(entry) = entry else {
            return (fds, false);
        };
        if count == FDS_MAX {
            return (fds, false);
        }
        let Some(fd) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // `stat` through the magic link: what the descriptor is, without opening it. Closed since: no longer held.
        let Ok(meta) = fs::metadata(entry.path()) else {
            continue;
        };
        let file_type = meta.file_type();
        let is_fifo = file_type.is_fifo();
        if !is_fifo && !file_type.is_socket() {
            continue;
        }
        let is_pipe = is_fifo
            && fs::read_link(entry.path())
                .is_ok_and(|path| path.as_os_str().as_encoded_bytes().starts_with(b"pipe:["));
        let access = fs::symlink_metadata(entry.path()).map_or(0, |link| link.st_mode());
        fds.push(HeldFd {
            fd,
            kind: match (is_fifo, is_pipe) {
                (true, true) => channel_kind::PIPE,
                (true, false) => channel_kind::FIFO,
                (false, _) => channel_kind::UNIX_STREAM,
            },
            inode: meta.st_ino(),
            dev: if is_fifo {
                crate::device::kernel_dev(meta.st_dev())
            } else {
                0
            },
            // The kernel shows the access mode as the owner's permissions of the link.
            mode: u8::from(access & 0o400 != 0) | u8::from(access & 0o200 != 0) << 1,
        });
    }
    (fds, true)
}

/// Parent and start time in ticks, fields 4 and 22 of `proc_pid_stat(5)`. The name in field 2 can hold anything, `)` too.
fn parse_stat(stat: &[u8]) -> Option<(u32, u64)> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let start_ticks = fields.nth(17)?.parse().ok()?;
    Some((parent, start_ticks))
}

/// The unified hierarchy's line of `/proc/PID/cgroup`.
fn cgroup(text: &[u8]) -> String {
    let line = text
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"0::"));
    String::from_utf8_lossy(line.unwrap_or_default()).into_owned()
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_name_cannot_fake_the_fields_after_it() {
        let stat = b"7 (a) S 1 2 3) R 42 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1";
        assert_eq!(parse_stat(stat), Some((42, 12345)));
        assert_eq!(parse_stat(b"7 (a"), None);
        assert_eq!(parse_stat(b"7 (a) R 1"), None);
    }

    #[test]
    fn a_zombie_has_no_thread_left() {
        let stat = |state, threads| {
            let stat =
                format!("7 (Z) {state} 42 1 1 0 -1 4 1 0 0 0 0 0 0 0 20 0 {threads} 0 12345 1");
            says_zombie(stat.as_bytes())
        };
        assert!(stat("Z", 1) && stat("X", 0));
        // Its first thread has ended, another runs.
        assert!(!stat("Z", 2));
        assert!(!stat("S", 1));
        assert!(!says_zombie(b"7 (Z) Z") && !says_zombie(b""));
    }

    #[test]
    fn a_child_is_a_zombie_from_its_end_until_it_is_waited_for() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        assert!(!is_zombie(pid));
        drop(child.stdin.take());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !is_zombie(pid) {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        child.wait().unwrap();
        assert!(!is_zombie(pid));
    }

    #[test]
    fn a_process_sees_its_own_pipe_with_its_modes() {
        let (reader, writer) = io::pipe().unwrap();
        let scan = process(std::process::id()).unwrap().unwrap();
        assert!(scan.fds_complete && scan.start_boot_ns > 0);
        let of = |fd: i32| {
            *scan
                .fds
                .iter()
                .find(|held| i32::try_from(held.fd) == Ok(fd))
                .unwrap()
        };
        let (read, write) = (of(reader.as_raw_fd()), of(writer.as_raw_fd()));
        assert_eq!(
            (read.kind, read.mode, write.mode),
            (channel_kind::PIPE, 1, 2)
        );
        assert_eq!((read.inode, read.dev), (write.inode, write.dev));
        let exe = fs::metadata(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(
            (scan.exe_inode, scan.exe_dev),
            (exe.st_ino(), crate::device::kernel_dev(exe.st_dev()))
        );
    }

    #[test]
    fn a_holder_of_a_pipe_is_found_unless_it_is_excepted() {
        let (reader, _writer) = io::pipe().unwrap();
        let me = std::process::id();
        let scan = process(me).unwrap().unwrap();
        let pipe = scan
            .fds
            .iter()
            .find(|held| i32::try_from(held.fd) == Ok(reader.as_raw_fd()))
            .unwrap();
        let inodes = HashSet::from([(pipe.dev, pipe.inode)]);
        let found = holders(&inodes, &HashSet::new()).unwrap();
        assert_eq!(
            found.iter().find(|scan| scan.pid == me).unwrap().fds.len(),
            2
        );
        assert!(
            !holders(&inodes, &HashSet::from([me]))
                .unwrap()
                .iter()
                .any(|scan| scan.pid == me)
        );
    }

    #[test]
    fn a_process_is_among_the_descendants_of_its_parent() {
        let me = std::process::id();
        let parent = process(me).unwrap().unwrap().ppid;
        let tree = descendants(parent).unwrap();
        assert!(tree.contains(&me) && tree[0] == parent);
    }
}
