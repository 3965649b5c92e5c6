//! Processes: incarnations, their tree, what they executed.
//!
//! Owns the table of every process that a record named. A process is (pid, start time): a later process with the same pid is
//! another row. It knows nothing of channels; roles are decided later, from effects.

use std::collections::HashMap;

use countersign_common as abi;

use crate::time::BootNs;

/// Processes kept; later ones share one overflow row. Stops a fork bomb from filling memory.
pub const PROCESSES_MAX: usize = 1 << 20;

/// Executables remembered per process. Stops an exec loop from filling memory.
pub const EXECS_MAX: usize = 64;

/// Ancestors walked when asking for descent. Stops a forged parent cycle.
const ANCESTORS_MAX: usize = 4096;

/// Index of a process in its [`ProcessTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessIx(pub u32);

/// What names one process of one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation {
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Start of the thread-group leader.
    pub start: BootNs,
}

/// Identity of an executable file: kernel device number and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// Kernel `dev_t`, `major << 20 | minor`.
    pub dev: u32,
    /// Inode number.
    pub inode: u64,
}

/// One program that a process executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    /// When.
    pub at: BootNs,
    /// Which file.
    pub exe: FileId,
    /// Name as given to the kernel.
    pub filename: Vec<u8>,
    /// First arguments, NUL-separated.
    pub args: Vec<u8>,
    /// Not its own doing: the program that its parent ran when it was forked.
    pub inherited: bool,
}

/// How a process became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Its creation was seen.
    Forked,
    /// It was found in `/proc`.
    Scanned,
    /// A record of another kind named it first.
    Used,
}

impl Known {
    /// Name as stored in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forked => "forked",
            Self::Scanned => "scanned",
            Self::Used => "used",
        }
    }
}

/// One process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its name for this boot.
    pub incarnation: Incarnation,
    /// By how much its start can be later than said, nanoseconds; 0 once a record of the kernel told it.
    pub tick_ns: u64,
    /// Who created it, when known.
    pub parent: Option<ProcessIx>,
    /// How it became known.
    pub known: Known,
    /// When it was first named by a record.
    pub first_seen: BootNs,
    /// Real uid, when a record told it.
    pub uid: Option<u32>,
    /// Effective uid.
    pub euid: Option<u32>,
    /// Real gid.
    pub gid: Option<u32>,
    /// Cgroup id.
    pub cgroup: Option<u64>,
    /// Id in its own pid namespace.
    pub ns_tgid: Option<u32>,
    /// Bits of [`abi::tag`] last reported.
    pub tag: u32,
    /// Programs executed, oldest first, at most [`EXECS_MAX`].
    pub executions: Vec<Execution>,
    /// End and wait status.
    pub exit: Option<(BootNs, u32)>,
    /// Regular files that it opened for writing while tagged as proxy.
    pub files_opened: Vec<FileId>,
    /// First and last operation that the kernel marked as a proxy's.
    pub acted_as_proxy: Option<(BootNs, BootNs)>,
    /// It did operations that the kernel did not mark so.
    pub acted_unmarked: bool,
}

/// All processes of a capture.
#[derive(Debug, Default)]
pub struct ProcessTable {
    processes: Vec<Process>,
    by_incarnation: HashMap<Incarnation, ProcessIx>,
    /// The latest process of each id.
    last_of: HashMap<u32, ProcessIx>,
    /// Processes that found no room.
    pub overflowed: u64,
}

impl ProcessTable {
    /// All processes in order of first mention.
    pub fn iter(&self) -> impl Iterator<Item = (ProcessIx, &Process)> {
        self.processes
            .iter()
            .enumerate()
            .map(|(ix, process)| (ix_of(ix), process))
    }

    /// The process at an index that this table gave out.
    pub fn process(&self, ix: ProcessIx) -> &Process {
        &self.processes[ix.0 as usize]
    }

    /// Finds a process by incarnation.
    pub fn find(&self, incarnation: Incarnation) -> Option<ProcessIx> {
        self.by_incarnation.get(&incarnation).copied()
    }

    /// Finds a process by incarnation, also one whose start was told by `/proc` only, cut to a clock tick.
    pub fn known(&self, incarnation: Incarnation) -> Option<ProcessIx> {
        self.find(incarnation).or_else(|| {
            let ix = self.last_of.get(&incarnation.tgid).copied()?;
            let row = self.process(ix);
            let late = incarnation.start.0.checked_sub(row.incarnation.start.0)?;
            (row.known == Known::Scanned && late < row.tick_ns).then_some(ix)
        })
    }

    /// A process and its ancestors, as far as known.
    pub fn ancestry(&self, process: ProcessIx) -> impl Iterator<Item = ProcessIx> {
        let parent = |ix: &ProcessIx| self.process(*ix).parent;
        std::iter::successors(Some(process), parent).take(ANCESTORS_MAX)
    }

    /// The row of a task's process, made when it is new.
    pub fn of_task(&mut self, task: &abi::Task, at: BootNs) -> ProcessIx {
        self.row(incarnation(task), Known::Used, at)
    }

    /// Takes a fork record.
    pub fn forked(&mut self, fork: &abi::Fork) {
        let at = BootNs(fork.header.boot_ns);
        let parent = self.of_task(&fork.parent, at);
        let child = self.row(incarnation(&fork.child), Known::Forked, at);
        let inherited = self
            .process(parent)
            .executions
            .last()
            .map(|execution| Execution {
                at,
                inherited: true,
                ..execution.clone()
            });
        let row = &mut self.processes[child.0 as usize];
        row.parent = (parent != child).then_some(parent);
        row.known = Known::Forked;
        row.uid = Some(fork.uid);
        row.gid = Some(fork.gid);
        row.cgroup = Some(fork.cgroup);
        row.ns_tgid = Some(fork.child_ns_tgid);
        row.tag = fork.tag;
        if row.executions.is_empty() {
            row.executions.extend(inherited);
        }
    }

    /// Takes an exec record.
    pub fn executed(&mut self, exec: &abi::Exec, filename: &[u8], args: &[u8]) {
        let at = BootNs(exec.header.boot_ns);
        let ix = self.of_task(&exec.task, at);
        let row = &mut self.processes[ix.0 as usize];
        row.uid = Some(exec.uid);
        row.euid = Some(exec.euid);
        row.gid = Some(exec.gid);
        row.cgroup = Some(exec.cgroup);
        row.ns_tgid = Some(exec.ns_tgid);
        row.tag = exec.tag;
        if row.executions.len() >= EXECS_MAX {
            row.executions.remove(0);
        }
        row.executions.push(Execution {
            at,
            exe: FileId {
                dev: exec.exe_dev,
                inode: exec.exe_inode,
            },
            filename: filename.to_vec(),
            args: args.to_vec(),
            inherited: false,
        });
    }

    /// Takes an exit record.
    pub fn exited(&mut self, exit: &abi::Exit) {
        let at = BootNs(exit.header.boot_ns);
        let ix = self.of_task(&exit.task, at);
        self.processes[ix.0 as usize].exit = Some((at, exit.exit_code));
    }

    /// Takes a proxy's opening of a file.
    pub fn opened_file(&mut self, open: &abi::FileOpen) {
        let ix = self.of_task(&open.task, BootNs(open.header.boot_ns));
        let files = &mut self.processes[ix.0 as usize].files_opened;
        let file = FileId {
            dev: open.dev,
            inode: open.inode,
        };
        if !files.contains(&file) && files.len() < EXECS_MAX {
            files.push(file);
        }
    }

    /// Notes whether the kernel took an operation of a process for a proxy's.
    pub fn acted(&mut self, ix: ProcessIx, at: BootNs, as_proxy: bool) {
        let row = &mut self.processes[ix.0 as usize];
        if !as_proxy {
            row.acted_unmarked = true;
            return;
        }
        let acted = row.acted_as_proxy.get_or_insert((at, at));
        acted.0 = acted.0.min(at);
        acted.1 = acted.1.max(at);
    }

    /// Takes a peer record.
    pub fn marked_peer(&mut self, peer: &abi::Peer) {
        let ix = self.of_task(&peer.task, BootNs(peer.header.boot_ns));
        let row = &mut self.processes[ix.0 as usize];
        row.tag |= peer.tag;
        row.uid = Some(peer.uid);
    }

    /// Takes what `/proc` said of a process, whose start is cut to a clock tick there. Facts that the kernel's own records gave
    /// are kept.
    pub fn scanned(
        &mut self,
        incarnation: Incarnation,
        at: BootNs,
        facts: ScannedFacts,
    ) -> ProcessIx {
        let known = self.last_of.get(&incarnation.tgid).copied().filter(|ix| {
            let start = self.process(*ix).incarnation.start.0;
            start.saturating_sub(incarnation.start.0) < facts.tick_ns.max(1)
                && start >= incarnation.start.0
        });
        let ix = known.unwrap_or_else(|| self.row(incarnation, Known::Scanned, at));
        // A parent that is no older than its child is a later process with the parent's id.
        let parent = facts
            .parent
            .and_then(|parent| self.last_of.get(&parent).copied())
            .filter(|parent| {
                *parent != ix
                    && self.process(*parent).incarnation.start <= self.process(ix).incarnation.start
            });
        let row = &mut self.processes[ix.0 as usize];
        if row.known == Known::Scanned {
            row.tick_ns = facts.tick_ns;
        }
        row.parent = row.parent.or(parent);
        row.tag |= facts.tag;
        row.uid = row.uid.or(facts.uid);
        if let Some(execution) = facts.execution
            && row.executions.is_empty()
        {
            row.executions.push(execution);
        }
        ix
    }

    /// Whether `process` is `ancestor` or was created by it or by a descendant of it.
    pub fn descends_from(&self, process: ProcessIx, ancestor: ProcessIx) -> bool {
        let mut at = process;
        for _ in 0..ANCESTORS_MAX {
            if at == ancestor {
                return true;
            }
            match self.process(at).parent {
                Some(parent) => at = parent,
                None => return false,
            }
        }
        false
    }

    fn row(&mut self, incarnation: Incarnation, known: Known, at: BootNs) -> ProcessIx {
        if let Some(ix) = self.by_incarnation.get(&incarnation) {
            return *ix;
        }
        // One that was found in `/proc`, whose start is known exactly only now.
        if let Some(ix) = self.last_of.get(&incarnation.tgid).copied() {
            let row = &mut self.processes[ix.0 as usize];
            let late = incarnation.start.0.checked_sub(row.incarnation.start.0);
            if row.known == Known::Scanned && late.is_some_and(|late| late < row.tick_ns) {
                row.incarnation = incarnation;
                row.tick_ns = 0;
                self.by_incarnation.insert(incarnation, ix);
                return ix;
            }
        }
        if self.processes.len() >= PROCESSES_MAX {
            self.overflowed += 1;
            return ix_of(self.processes.len() - 1);
        }
        let ix = ix_of(self.processes.len());
        self.by_incarnation.insert(incarnation, ix);
        self.last_of.insert(incarnation.tgid, ix);
        self.processes.push(Process {
            incarnation,
            tick_ns: 0,
            parent: None,
            known,
            first_seen: at,
            uid: None,
            euid: None,
            gid: None,
            cgroup: None,
            ns_tgid: None,
            tag: 0,
            executions: Vec::new(),
            exit: None,
            files_opened: Vec::new(),
            acted_as_proxy: None,
            acted_unmarked: false,
        });
        ix
    }
}

/// What a `/proc` scan adds to a process.
#[derive(Clone, Debug, Default)]
pub struct ScannedFacts {
    /// Real uid.
    pub uid: Option<u32>,
    /// Its program.
    pub execution: Option<Execution>,
    /// Its parent's id.
    pub parent: Option<u32>,
    /// Length of a clock tick, nanoseconds.
    pub tick_ns: u64,
    /// Bits of [`abi::tag`] that it got.
    pub tag: u32,
}

fn incarnation(task: &abi::Task) -> Incarnation {
    Incarnation {
        tgid: task.tgid,
        start: BootNs(task.start_boot_ns),
    }
}

fn ix_of(ix: usize) -> ProcessIx {
    ProcessIx(u32::try_from(ix).unwrap_or(u32::MAX))
}
