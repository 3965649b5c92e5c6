//! Having the kernel verify programs, several at once.
//!
//! The verifier takes most of the time of a start, and it serves one system call on one processor. Those that are privileged
//! it does not queue.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::Context;
use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, KProbe, Program, TracePoint},
};

/// Most threads that verify at once. The largest programs take half of the time, so that more would wait for them.
const THREADS_MAX: usize = 4;

/// A program to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Its name and that of its tracepoint, for the kernel's types.
    Typed(&'static str, &'static str),
    /// Its name, on a trace event.
    Event(String),
    /// Its name, on the entry or return of functions.
    Kprobe(&'static str),
}

impl Wanted {
    fn name(&self) -> &str {
        match self {
            Self::Typed(name, _) | Self::Kprobe(name) => name,
            Self::Event(name) => name,
        }
    }

    fn load(&self, program: &mut Program, btf: &Btf) -> anyhow::Result<()> {
        match self {
            Self::Typed(_, tracepoint) => {
                let program: &mut BtfTracePoint = program.try_into()?;
                program.load(tracepoint, btf)?;
            }
            Self::Event(_) => {
                let program: &mut TracePoint = program.try_into()?;
                program.load()?;
            }
            Self::Kprobe(_) => {
                let program: &mut KProbe = program.try_into()?;
                program.load()?;
            }
        }
        Ok(())
    }
}

/// Loads programs, the first ones first. None is attached.
///
/// # Errors
/// When the object has no such program, or the kernel refuses one: then with its name and the verifier's words.
pub(super) fn verify(ebpf: &mut Ebpf, btf: &Btf, wanted: &[Wanted]) -> anyhow::Result<()> {
    let mut found: Vec<Option<&mut Program>> = wanted.iter().map(|_| None).collect();
    for (name, program) in ebpf.programs_mut() {
        if let Some(place) = wanted.iter().position(|wanted| wanted.name() == name)
            && let Some(slot) = found.get_mut(place)
        {
            *slot = Some(program);
        }
    }
    let mut jobs = Vec::with_capacity(wanted.len());
    for (wanted, program) in wanted.iter().zip(found) {
        let program =
            program.with_context(|| format!("the object has no program {}", wanted.name()))?;
        jobs.push((wanted, program));
    }
    let threads = thread::available_parallelism().map_or(1, |number| number.get().min(THREADS_MAX));
    let jobs = Mutex::new(jobs.into_iter());
    let refused = AtomicBool::new(false);
    let work = || -> anyhow::Result<()> {
        while !refused.load(Ordering::Relaxed) {
            // A thread that panicked has taken its job out already.
            let job = match jobs.lock() {
                Ok(mut jobs) => jobs.next(),
                Err(poisoned) => poisoned.into_inner().next(),
            };
            let Some((wanted, program)) = job else {
                break;
            };
            let loaded = wanted.load(program, btf);
            if loaded.is_err() {
                refused.store(true, Ordering::Relaxed);
            }
            loaded.with_context(|| format!("load the program {}", wanted.name()))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut result = work();
        for other in others {
            let theirs = other
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("a thread that loads programs panicked")));
            result = result.and(theirs);
        }
        result
    })
}
