//! How programs get onto tracepoints: by the kernel's types, or as trace events by way of perf.
//!
//! From Linux 7.0 on the first ones can be preempted, and the kernel then skips them for other tasks: each program has one mark per CPU that says that it
//! is running, and the preempted task keeps it. The second ones run with preemption off, which the kernel's side of perf sees to. They cost a little more,
//! because the kernel writes a record of each event first, and need tracefs. So they are taken only where the first ones were seen being
//! skipped; verifiers before that time have not been asked about all of them.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, ProgramFd, TracePoint, links::FdLink},
};
use countersign_common::load::Offsets;

use super::{offsets::missing_for_events, verify::Wanted};

/// A way onto tracepoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub enum Hook {
    /// By the kernel's types (`tp_btf`).
    #[default]
    #[serde(rename = "tracepoints")]
    Typed,
    /// As trace events, by way of perf.
    #[serde(rename = "events")]
    Event,
}

/// Programs that have no second form: they run in interrupts, where a program by way of perf would be skipped whenever the interrupted task is in one.
const TYPED_ONLY: [&str; 2] = ["inet_sock_set_state", "signal_generate"];

impl Hook {
    /// Its name, as in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Typed => "tracepoints",
            Self::Event => "events",
        }
    }

    /// Room for tasks between fork and their first step. A process that makes more than that at a time and keeps them from running leaves the
    /// rest to user space, counted.
    pub(super) fn forked_max(self) -> u32 {
        const FORKED_MAX: u32 = 32_768;
        match self {
            // Programs that are given the child itself leave nothing for it.
            Self::Typed => 1,
            Self::Event => FORKED_MAX,
        }
    }

    /// # Errors
    /// When the kernel's types lack what programs on trace events read.
    pub(super) fn check(self, offsets: &Offsets) -> anyhow::Result<()> {
        match missing_for_events(offsets) {
            Some(member) if self == Self::Event => {
                anyhow::bail!("the kernel's btf has no {member}")
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A program and its tracepoint, to be loaded ahead.
    pub(super) fn wanted(self, name: &'static str, tracepoint: &'static str) -> Wanted {
        if self.has(name) {
            Wanted::Event(event_name(name))
        } else {
            Wanted::Typed(name, tracepoint)
        }
    }

    /// Loads a program unless it is, for itself or for another to go on with.
    pub(super) fn load(
        self,
        ebpf: &mut Ebpf,
        btf: &Btf,
        name: &str,
        tracepoint: &str,
    ) -> anyhow::Result<ProgramFd> {
        let cannot = || format!("load the program {name} for {tracepoint}");
        let fd = if self.has(name) {
            let program = event_program(ebpf, name)?;
            if program.fd().is_err() {
                program.load().with_context(cannot)?;
            }
            program.fd()
        } else {
            let program = typed_program(ebpf, name)?;
            if program.fd().is_err() {
                program.load(tracepoint, btf).with_context(cannot)?;
            }
            program.fd()
        };
        Ok(fd?.try_clone()?)
    }

    /// Loads and attaches a program: what keeps it loaded, and its link if that is `wanted`.
    pub(super) fn attach(
        self,
        ebpf: &mut Ebpf,
        btf: &Btf,
        name: &str,
        tracepoint: &str,
        wanted: bool,
    ) -> anyhow::Result<(OwnedFd, Option<FdLink>)> {
        let fd = self.load(ebpf, btf, name, tracepoint)?;
        let fd = fd.as_fd().try_clone_to_owned()?;
        let cannot = || format!("attach to {tracepoint}");
        let link = if self.has(name) {
            let program = event_program(ebpf, name)?;
            let link = program
                .attach(group_of(tracepoint), tracepoint)
                .with_context(cannot)?;
            if !wanted {
                return Ok((fd, None));
            }
            FdLink::try_from(program.take_link(link)?)?
        } else {
            let program = typed_program(ebpf, name)?;
            let link = program.attach().with_context(cannot)?;
            if !wanted {
                return Ok((fd, None));
            }
            FdLink::from(program.take_link(link)?)
        };
        Ok((fd, Some(link)))
    }

    /// Whether a program has its second form here.
    fn has(self, name: &str) -> bool {
        self == Self::Event && !TYPED_ONLY.contains(&name)
    }
}

fn event_name(name: &str) -> String {
    format!("e_{name}")
}

fn event_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut TracePoint> {
    let name = event_name(name);
    let program = ebpf.program_mut(&name);
    Ok(program
        .with_context(|| format!("the object has no program {name}"))?
        .try_into()?)
}

fn typed_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut BtfTracePoint> {
    let program = ebpf.program_mut(name);
    Ok(program
        .with_context(|| format!("the object has no program {name}"))?
        .try_into()?)
}

/// The group of a trace event.
fn group_of(event: &str) -> &'static str {
    match event.split('_').next() {
        Some("sys") => "raw_syscalls",
        Some("sched") => "sched",
        Some("skb") => "skb",
        _ => "io_uring",
    }
}
