//! A process without privileges for the parsing of hostile bytes.
//!
//! Records, logs and messages come from those who are watched. Whoever reads them needs no rights beyond reading the spool and
//! writing the evidence, so what reads them runs in a child that has none: a uid that nobody else has, no capabilities, no new
//! privileges, and a list of the system calls that reading, computing and writing files take. A defect in a parser then costs
//! the evidence of one recording, not the machine.
//!
//! Owns the child, its confinement, and handing directories over to it and back. Does not know what it computes.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::outdir::Dir;

/// Added to the id of this process for the child's uid and gid: a range that distributions leave alone (below 2^31, above the
/// ids of systemd's containers), so that no account and no other process has it.
const ID_BASE: u32 = 0x7100_0000;

/// Most bytes of the child's answer. Stops one that was taken over from filling our memory.
const ANSWER_MAX_BYTES: u64 = 64 * 1024;

/// Deepest directory that is handed over: what this program makes has four levels.
const DEPTH_MAX: u32 = 8;

/// Why the child gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// It did not come to its end.
    #[error(
        "the unprivileged process that reads the records {0}; what was recorded is kept, and `countersign pair` can try again"
    )]
    Died(String),
    /// It could not be made or heard.
    #[error("the unprivileged process that reads the records failed")]
    Io(#[from] io::Error),
    /// It could not be confined.
    #[error(transparent)]
    Confinement(#[from] anyhow::Error),
}

/// What the child may do beyond its own directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Nothing.
    None,
    /// Read any file (`CAP_DAC_READ_SEARCH`): for logs that must be read where they lie.
    Read,
}

/// Runs `body` in an unprivileged child and returns its answer. The child owns what lies in `dir` meanwhile; afterwards all of it
/// is this process's again, what the child made included. Without root, the child keeps this process's uid.
///
/// Call it without other threads: the child is a copy of this one alone.
///
/// # Errors
/// [`ConfineError`].
pub fn run<T: Serialize + DeserializeOwned>(
    dir: &Dir,
    rights: Rights,
    body: impl FnOnce() -> T,
) -> Result<T, ConfineError> {
    let root = rustix::process::geteuid().is_root();
    let id = ID_BASE + std::process::id();
    // Before the fork: it allocates, and what cannot be had should be known to the parent.
    let filter = filter()?;
    let (answer, theirs) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    if root {
        own(dir, id, 0)?;
    }
    let _ = io::stdout().flush();
    // SAFETY: without other threads, the child can go on as this process could.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(io::Error::last_os_error().into());
    }
    if child == 0 {
        drop(answer);
        child_main(root.then_some((id, rights)), &filter, theirs, body);
    }
    drop(theirs);
    let mut bytes = Vec::new();
    let read = std::fs::File::from(answer)
        .take(ANSWER_MAX_BYTES)
        .read_to_end(&mut bytes);
    let status = wait(child)?;
    if root {
        own(dir, 0, 0)?;
    }
    read?;
    if status.exit_status() == Some(0) {
        return serde_json::from_slice(&bytes)
            .context("understand the unprivileged process")
            .map_err(Into::into);
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Err(ConfineError::Died(match status.terminating_signal() {
        Some(signal) => format!("was killed by signal {signal}"),
        None if text.is_empty() => "ended by itself".to_owned(),
        None => format!("could not be confined: {text}"),
    }))
}

/// Whether this process may give a child an identity of its own: root, and not one that a container made of some user.
pub fn can_give_up_identity() -> bool {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::CHOWN;
    let id = u64::from(ID_BASE) + u64::from(std::process::id());
    rustix::process::geteuid().is_root()
        && rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
        && ["/proc/self/uid_map", "/proc/self/gid_map"]
            .into_iter()
            .all(|map| std::fs::read_to_string(map).is_ok_and(|map| maps(&map, id)))
}

/// Whether an id of this namespace has one outside (`user_namespaces(7)`).
fn maps(map: &str, id: u64) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        id.checked_sub(first).is_some_and(|place| place < count)
    })
}

/// Gives up, for good, new privileges and the system calls that reading records does not need; nothing else. For a command that
/// its user may run without privileges anyway.
///
/// # Errors
/// When the kernel refuses.
pub fn filter_here() -> anyhow::Result<()> {
    rustix::thread::set_no_new_privs(true).context("give up new privileges")?;
    seccompiler::apply_filter(&filter()?).context("install the system call filter")
}

fn wait(child: libc::pid_t) -> io::Result<WaitStatus> {
    let pid = Pid::from_raw(child).ok_or(io::ErrorKind::InvalidInput)?;
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(status),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The child from its first instruction to its end.
fn child_main<T: Serialize>(
    id: Option<(u32, Rights)>,
    filter: &BpfProgram,
    answer: OwnedFd,
    body: impl FnOnce() -> T,
) -> ! {
    let mut answer = std::fs::File::from(answer);
    let code = match confine(id, filter) {
        Ok(()) => {
            let result = serde_json::to_vec(&body())
                .map_err(io::Error::from)
                .and_then(|bytes| answer.write_all(&bytes));
            let _ = io::stdout().flush();
            i32::from(result.is_err())
        }
        Err(error) => {
            let _ = write!(answer, "{error:#}");
            1
        }
    };
    // SAFETY: ends this process at once; what its copy of the parent's objects would do when dropped is the parent's to do.
    unsafe { libc::_exit(code) }
}

/// Gives up everything that reading the records does not need.
fn confine(id: Option<(u32, Rights)>, filter: &BpfProgram) -> anyhow::Result<()> {
    // Nobody looks into it, and it dies with its parent.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .context("forbid dumps")?;
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("die with the parent")?;
    if let Some((id, rights)) = id {
        let kept = match rights {
            Rights::None => CapabilitySet::empty(),
            Rights::Read => CapabilitySet::DAC_READ_SEARCH,
        };
        rustix::thread::set_keep_capabilities(!kept.is_empty()).context("keep capabilities")?;
        rustix::thread::set_thread_groups(&[]).context("give up the groups")?;
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        rustix::thread::set_thread_res_gid(gid, gid, gid).context("give up the gid")?;
        // From root to another uid: the kernel clears the effective capabilities with it (capabilities(7)).
        rustix::thread::set_thread_res_uid(uid, uid, uid).context("give up the uid")?;
        let sets = CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, sets).context("give up the capabilities")?;
        let left = rustix::thread::capabilities(None).context("read the capabilities")?;
        anyhow::ensure!(left == sets, "capabilities are left: {:?}", left.permitted);
        // A change of uid takes the death signal away.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .context("die with the parent")?;
    }
    rustix::thread::set_no_new_privs(true).context("give up new privileges")?;
    seccompiler::apply_filter(filter).context("install the system call filter")
}

/// The system calls of reading, computing and writing files; any other fails with `EPERM`.
fn filter() -> anyhow::Result<BpfProgram> {
    const ALLOWED: &[libc::c_long] = &[
        // Files.
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_lseek,
        libc::SYS_openat,
        libc::SYS_openat2,
        // The older forms, which exist on some architectures only.
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_stat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_lstat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_readlink,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_access,
        libc::SYS_faccessat,
        libc::SYS_close,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_fstatfs,
        libc::SYS_statfs,
        libc::SYS_getdents64,
        libc::SYS_ftruncate,
        libc::SYS_fallocate,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_mkdirat,
        libc::SYS_unlinkat,
        libc::SYS_renameat2,
        libc::SYS_linkat,
        libc::SYS_readlinkat,
        libc::SYS_fchmod,
        libc::SYS_fcntl,
        libc::SYS_dup,
        libc::SYS_dup3,
        libc::SYS_copy_file_range,
        libc::SYS_fadvise64,
        libc::SYS_getcwd,
        // Memory.
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_brk,
        // Itself and time.
        libc::SYS_futex,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_geteuid,
        libc::SYS_getuid,
        libc::SYS_uname,
        libc::SYS_sysinfo,
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_gettimeofday,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_restart_syscall,
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_tgkill,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_rseq,
        libc::SYS_set_robust_list,
    ];
    let mut rules: BTreeMap<i64, Vec<_>> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // Whether a descriptor is a terminal, and how wide; never what puts input into it.
    let questions = [libc::TCGETS, libc::TIOCGWINSZ].map(|request| {
        SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    });
    rules.insert(
        libc::SYS_ioctl,
        questions
            .into_iter()
            .collect::<Result<_, _>>()
            .context("make the system call filter")?,
    );
    let refused = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let machine = std::env::consts::ARCH
        .try_into()
        .context("no system call filter for this architecture")?;
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, machine)
        .context("make the system call filter")?;
    filter
        .try_into()
        .context("translate the system call filter")
}

/// Makes a directory and all in it belong to `id`. Links are not followed and other things than files and directories left alone.
fn own(dir: &Dir, id: u32, depth: u32) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other("the directory is deeper than ours are"));
    }
    let (uid, gid) = (Some(Uid::from_raw(id)), Some(Gid::from_raw(id)));
    rustix::fs::fchown(dir.as_fd(), uid, gid)?;
    for name in dir.file_names()? {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry = rustix::fs::openat(dir.as_fd(), &name, flags, Mode::empty())?;
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&entry)?.st_mode);
        if kind.is_dir() {
            own(&dir.open_dir(name.as_ref())?, id, depth + 1)?;
        } else if kind.is_file() {
            rustix::fs::chownat(&entry, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_mapped_when_a_line_has_it() {
        assert!(maps("         0          0 4294967295\n", 0x7100_0001));
        assert!(!maps("0 1000 1\n1 100000 65536\n", 0x7100_0001));
        assert!(maps("0 1000 1\n1895825408 100000 65536\n", 0x7100_0001));
        assert!(!maps("0 nonsense\n", 0));
    }
}
