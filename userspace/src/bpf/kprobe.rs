//! Kernel probes by way of tracefs: events of this process's own, each with the number of returns that it can await.
//!
//! The kernel's own default (`max(10, 2 * CPUs)`) loses returns as soon as more tasks than that wait inside of a function, which idle servers
//! do in a read. Only `kprobe_events` takes another number. An event outlives its maker, so its name says who that was, and what
//! dead ones have left is removed. A program is put on an event by a link: pinned, it holds the event, which the kernel then
//! refuses to remove, whoever made it and is dead since.

use std::{
    fmt, fs,
    fs::OpenOptions,
    io,
    io::Write,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;

use super::{pin::PinDir, scan, syscall};

/// Where tracefs is mounted, by itself or under debugfs.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// Group of the events.
const GROUP: &str = "countersign";
/// Returns awaited per function (`KRETPROBE_MAXACTIVE_MAX`): tasks beyond that which are in it at a time are missed, and counted.
const RETURNS_MAX: u32 = 4096;
/// Events of dead processes that are removed at most. Stops a long list from holding up the start.
const LEFTOVERS_MAX: usize = 1024;

const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
/// `BPF_LINK_CREATE`.
const BPF_LINK_CREATE: libc::c_int = 28;
/// `BPF_PERF_EVENT` of `enum bpf_attach_type`.
const BPF_PERF_EVENT: u32 = 41;
/// Longest wait for the kernel to let go of an event whose link is gone: it does so some milliseconds later.
const REMOVAL_MAX: Duration = Duration::from_secs(2);

/// The part of `union bpf_attr` that `BPF_LINK_CREATE` uses for a perf event.
#[repr(C)]
struct LinkAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    cookie: u64,
}

/// The part of `struct perf_event_attr` that is needed (`PERF_ATTR_SIZE_VER0`, `include/uapi/linux/perf_event.h`).
#[repr(C)]
#[derive(Default)]
struct EventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint: u32,
    config1: u64,
}

/// Which side of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Entry,
    Return,
}

/// Makes events.
#[derive(Debug)]
pub(super) struct Tracefs {
    root: PathBuf,
    owner: String,
}

impl Tracefs {
    /// Finds tracefs and removes what dead processes have left.
    pub(super) fn open() -> anyhow::Result<Self> {
        static LOADS: AtomicU32 = AtomicU32::new(0);
        let root = root().context(
                "no kprobe_events under /sys/kernel/tracing: the kernel has no kprobes, or tracefs is not \
                 mounted there (mount -t tracefs tracefs /sys/kernel/tracing)",
            )?;
        let pid = std::process::id();
        let start = scan::start_ticks(pid).context("read this process's own start time")?;
        let load = LOADS.fetch_add(1, Ordering::Relaxed);
        let tracefs = Self {
            root,
            owner: format!("{pid}_{start}_{load}"),
        };
        tracefs.remove_leftovers();
        Ok(tracefs)
    }

    /// Attaches a program to a function. `None` when the kernel has no such function, or several.
    pub(super) fn attach(
        &self,
        function: &str,
        side: Side,
        program: BorrowedFd<'_>,
    ) -> anyhow::Result<Option<KprobeEvent>> {
        let (prefix, letter) = match side {
            Side::Entry => ("p".to_owned(), 'e'),
            Side::Return => (format!("r{RETURNS_MAX}"), 'r'),
        };
        let name = format!("{function}_{letter}_{}", self.owner);
        match self.command(&format!("{prefix}:{GROUP}/{name} {function}")) {
            Ok(()) => {}
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(libc::EADDRNOTAVAIL)
                    // Linux 6.12 says of an unknown name what it says of any command that it does not understand.
                    || (error.raw_os_error() == Some(libc::EINVAL) && !is_listed(function)) =>
            {
                return Ok(None);
            }
            Err(error) => {
                return Err(error).with_context(|| format!("make a kprobe event for {function}"));
            }
        }
        // From here on dropping it removes it.
        let mut event = KprobeEvent {
            held: None,
            pinned: false,
            root: self.root.clone(),
            name,
            function: function.to_owned(),
            side,
        };
        event
            .open(program)
            .with_context(|| format!("attach to the kprobe event for {function}"))?;
        Ok(Some(event))
    }

    fn command(&self, line: &str) -> io::Result<()> {
        command(&self.root, line)
    }

    /// Best effort: an event that is in use is refused with `EBUSY`, and rightly.
    fn remove_leftovers(&self) {
        let events = fs::read_to_string(self.root.join("kprobe_events")).unwrap_or_default();
        for name in leftovers(&events, scan::start_ticks).take(LEFTOVERS_MAX) {
            let removed = self.command(&format!("-:{GROUP}/{name}"));
            tracing::debug!(name, ?removed, "a kprobe event of a dead process");
        }
    }
}

fn root() -> Option<PathBuf> {
    TRACEFS
        .iter()
        .map(PathBuf::from)
        .find(|root| root.join("kprobe_events").exists())
}

/// Removes those events of ours that are named, as soon as nobody holds them any more; other names are left alone.
pub(super) fn remove_events(names: &[String]) {
    let Some(root) = root() else { return };
    let until = Instant::now() + REMOVAL_MAX;
    for name in names.iter().filter(|name| parts_of(name).is_some()) {
        while let Err(error) = command(&root, &format!("-:{GROUP}/{name}")) {
            if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() >= until {
                tracing::debug!(name, %error, "a kprobe event stays behind");
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// An event's function, side and maker (process id, start in ticks).
fn parts_of(name: &str) -> Option<(&str, Side, u32, u64)> {
    let mut parts = name.rsplitn(5, '_');
    let _load: u32 = parts.next()?.parse().ok()?;
    let start: u64 = parts.next()?.parse().ok()?;
    let pid: u32 = parts.next()?.parse().ok()?;
    let side = match parts.next()? {
        "e" => Side::Entry,
        "r" => Side::Return,
        _ => return None,
    };
    Some((parts.next()?, side, pid, start))
}

/// Whether the kernel has a function of this name.
fn is_listed(function: &str) -> bool {
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    symbols
        .lines()
        .any(|line| line.split_whitespace().nth(2) == Some(function))
}

/// Appends: to open the list for anything else empties it.
fn command(root: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .append(true)
        .open(root.join("kprobe_events"))?;
    file.write_all(format!("{line}\n").as_bytes())
}

/// Names of events in our group whose maker is gone.
fn leftovers<'a>(
    events: &'a str,
    start_ticks: impl Fn(u32) -> Option<u64> + 'a,
) -> impl Iterator<Item = &'a str> {
    events.lines().filter_map(move |line| {
        let (_, rest) = line.split_once(':')?;
        let name = rest.split_whitespace().next()?;
        let name = name.strip_prefix(GROUP)?.strip_prefix('/')?;
        let (_function, _side, pid, start) = parts_of(name)?;
        (start_ticks(pid) != Some(start)).then_some(name)
    })
}

/// A program attached to one side of a function. Dropping it detaches the program and removes the event, unless it is pinned.
pub(super) struct KprobeEvent {
    /// The link, and the perf event that it holds too; nothing where another process has made them.
    held: Option<[OwnedFd; 2]>,
    pinned: bool,
    root: PathBuf,
    name: String,
    function: String,
    side: Side,
}

impl KprobeEvent {
    fn open(&mut self, program: BorrowedFd<'_>) -> anyhow::Result<()> {
        let id = self.root.join("events").join(GROUP).join(&self.name);
        let id = fs::read_to_string(id.join("id")).context("read the event's number")?;
        let attr = EventAttr {
            kind: PERF_TYPE_TRACEPOINT,
            size: u32::try_from(size_of::<EventAttr>())?,
            config: id.trim().parse().context("the event's number is not one")?,
            ..EventAttr::default()
        };
        // SAFETY: the kernel reads `attr`, which outlives the call; the descriptor is owned at once. The processor only says where
        // the event counts: its programs run on all.
        let descriptor = unsafe {
            let fd = libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attr,
                -1 as libc::c_int,
                0 as libc::c_int,
                -1 as libc::c_int,
                PERF_FLAG_FD_CLOEXEC,
            );
            let Ok(fd) = i32::try_from(fd) else {
                anyhow::bail!("perf_event_open gave no descriptor");
            };
            if fd < 0 {
                return Err(io::Error::last_os_error()).context("perf_event_open");
            }
            OwnedFd::from_raw_fd(fd)
        };
        let mut attr = LinkAttr {
            program: program.as_raw_fd().cast_unsigned(),
            target: descriptor.as_raw_fd().cast_unsigned(),
            attach_type: BPF_PERF_EVENT,
            flags: 0,
            cookie: 0,
        };
        // SAFETY: plain numbers.
        let link = unsafe { syscall::bpf(BPF_LINK_CREATE, &mut attr) }
            .context("put the program on the event")?;
        // SAFETY: a descriptor that the kernel has just made for us.
        let link = unsafe { OwnedFd::from_raw_fd(i32::try_from(link)?) };
        // SAFETY: plain numbers.
        if unsafe { libc::ioctl(descriptor.as_raw_fd(), PERF_EVENT_IOC_ENABLE, 0) } < 0 {
            return Err(io::Error::last_os_error()).context("enable the event");
        }
        self.held = Some([link, descriptor]);
        Ok(())
    }

    /// Keeps the program on the event when this process is gone.
    pub(super) fn pin(&mut self, dir: &PinDir) -> anyhow::Result<()> {
        let [link, _] = self.held.as_ref().context("another process has the link")?;
        dir.pin_event_link(&self.name, link)?;
        self.pinned = true;
        Ok(())
    }

    /// An event whose link another process has pinned under this name; `None`: it is no name of an event.
    pub(super) fn pinned(name: &str) -> Option<Self> {
        let (function, side, _, _) = parts_of(name)?;
        Some(Self {
            held: None,
            pinned: true,
            root: root()?,
            name: name.to_owned(),
            function: function.to_owned(),
            side,
        })
    }

    /// Lets go of what would keep the event alive without the pin.
    pub(super) fn let_go(&mut self) {
        self.held = None;
    }

    /// The function and its side.
    pub(super) fn place(&self) -> (&str, Side) {
        (&self.function, self.side)
    }

    /// What it is called in the ledger.
    pub(super) fn label(&self) -> String {
        match self.side {
            Side::Entry => format!("kprobe:{}", self.function),
            Side::Return => format!("kretprobe:{}", self.function),
        }
    }

    /// Hits and misses in what [`profile`] has read; `None` when it is not there.
    pub(super) fn counts(&self, profile: &str) -> Option<(u64, u64)> {
        profile.lines().find_map(|line| {
            let mut fields = line.split_whitespace();
            if fields.next() != Some(&self.name) {
                return None;
            }
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        })
    }

    /// What the kernel counted on every kprobe event.
    pub(super) fn profile(&self) -> io::Result<String> {
        fs::read_to_string(self.root.join("kprobe_profile"))
    }
}

impl Drop for KprobeEvent {
    fn drop(&mut self) {
        // An event that is in use cannot be removed.
        self.held = None;
        if !self.pinned
            && let Err(error) = command(&self.root, &format!("-:{GROUP}/{}", self.name))
        {
            tracing::debug!(name = self.name, %error, "a kprobe event stays behind");
        }
    }
}

impl fmt::Debug for KprobeEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use super::*;

    #[test]
    fn only_events_of_processes_that_are_gone_are_leftovers() {
        let events = "p:countersign/anon_pipe_read_e_7_100_0 anon_pipe_read\n\
                      r4096:countersign/anon_pipe_read_r_7_99_1 anon_pipe_read\n\
                      p:countersign/tty_read_e_8_100_0 tty_read\n\
                      p:countersign/of_someone_else tty_read\n\
                      p:kprobes/tty_read_e_8_100_0 tty_read\n\
                      nonsense\n";
        let alive = |pid| (pid == 7).then_some(100);
        let found: Vec<_> = leftovers(events, alive).collect();
        assert_eq!(found, ["anon_pipe_read_r_7_99_1", "tty_read_e_8_100_0"]);
    }

    #[test]
    fn hits_and_misses_are_those_of_the_event_with_that_very_name() {
        let event = KprobeEvent {
            held: None,
            pinned: true,
            root: PathBuf::from("/nonexistent"),
            name: "tty_read_r_7_99_1".to_owned(),
            function: "tty_read".to_owned(),
            side: Side::Return,
        };
        let profile = "  tty_read_r_7_99_11    5   6\n  tty_read_r_7_99_1    12   3\n";
        assert_eq!(event.counts(profile).unwrap(), (12, 3));
        assert_eq!(event.counts("tty_read_r_7_99_1 x"), None);
        assert_eq!(event.label(), "kretprobe:tty_read");
    }
}
