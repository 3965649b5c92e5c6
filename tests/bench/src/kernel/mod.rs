//! What the capture costs: the same traffic bare, under programs that do nothing, beside a capture, inside one, and under other
//! tools.
//!
//! Owns the settings and their interleaving. Within a repetition every setting runs each test once, in an order that changes, and
//! each is compared with the bare run of that repetition: what the machine does otherwise hits all of them alike.

mod highest;
mod limits;
mod recorded;
mod report;
mod tools;
pub(crate) mod traffic;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf};
use countersign::bpf::choice::Choice;
use countersign::bpf::hook::Hook;
use countersign::bpf::tier::Tier;
use countersign::bpf::{load, options::LoadOptions};

use crate::say;
use limits::Limits;
use recorded::{Crowd, Losses, ProgramTime};
use traffic::{Sample, Test};

/// `BPF_PROG_TYPE_TRACING` (`include/uapi/linux/bpf.h`).
const PROGRAM_TYPE_TRACING: u32 = 26;

/// Longest wait for the machine to be at rest before a measurement.
const SETTLE_MAX: Duration = Duration::from_secs(1);
/// Time between two looks, and the shortest wait: the kernel frees programs and maps some milliseconds after their end.
const SETTLE_STEP: Duration = Duration::from_millis(20);
/// Pages under writeback that do not disturb.
const WRITEBACK_MAX_KIB: u64 = 1024;

/// What is measured and how often.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) empty: PathBuf,
    pub(crate) scratch: PathBuf,
    pub(crate) repetitions: usize,
    pub(crate) duration: Duration,
    pub(crate) only: Vec<String>,
    pub(crate) tests: Vec<Test>,
    pub(crate) tier: Option<Tier>,
    /// Time of each step of the search for the highest rate; none without.
    pub(crate) highest: Option<Duration>,
}

/// Who watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Setting {
    /// Nobody.
    Bare,
    /// Programs that do nothing, on the same hooks.
    Empty,
    /// The capture, of others.
    Untagged,
    /// The capture, of both ends, into a spool.
    Tagged,
    /// The same among a thousand other tagged tasks with a hundred channels.
    Crowd,
    /// `strace`.
    Strace,
    /// `bpftrace`, the first 64 bytes.
    Bpftrace,
}

impl Setting {
    const ALL: [Self; 7] = [
        Self::Bare,
        Self::Empty,
        Self::Untagged,
        Self::Tagged,
        Self::Crowd,
        Self::Strace,
        Self::Bpftrace,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Bare => "no BPF",
            Self::Empty => "empty",
            Self::Untagged => "untagged",
            Self::Tagged => "tagged",
            Self::Crowd => "crowd",
            Self::Strace => "strace",
            Self::Bpftrace => "bpftrace",
        }
    }

    /// The whole traffic runs under one start of the tool.
    fn is_tool(self) -> bool {
        matches!(self, Self::Strace | Self::Bpftrace)
    }
}

/// How transfers are captured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    tier: Tier,
    hook: Hook,
}

impl How {
    /// As a capture chooses it; once, since each try loads the programs.
    fn chosen(tier: Option<Tier>) -> Self {
        let choice = Choice::make(tier);
        Self {
            tier: choice.tier.or(tier).unwrap_or_default(),
            hook: choice.hook,
        }
    }
}

/// Everything that was measured.
#[derive(Debug, Default)]
struct Results {
    /// Nanoseconds per operation, by test (its place in the list), setting and repetition.
    times: BTreeMap<(usize, Setting), Vec<f64>>,
    losses: BTreeMap<(usize, Setting), Losses>,
    /// Bytes of spool over all repetitions.
    spooled: BTreeMap<usize, u64>,
    /// Time in programs, by test, from a run of its own: counting it costs.
    program_time: BTreeMap<usize, ProgramTime>,
    /// How transfers were captured.
    how: Option<How>,
    /// What the machine can do at most.
    limits: Option<Limits>,
    /// How fast both ends may go until something is lost.
    highest: Vec<highest::Highest>,
    /// Settings that could not run, and why.
    skipped: BTreeMap<Setting, String>,
}

/// Measures, and returns the tables.
pub(crate) fn run(plan: &Plan) -> anyhow::Result<String> {
    let tests = if plan.tests.is_empty() {
        traffic::all()
    } else {
        plan.tests.clone()
    };
    traffic::run_as_consumer()?;
    let mut results = Results::default();
    let mut settings: Vec<Setting> = Vec::new();
    for setting in Setting::ALL {
        let wanted = plan.only.is_empty() || plan.only.iter().any(|name| name == setting.name());
        if setting != Setting::Bare && !wanted {
            continue;
        }
        match tools::usable(setting) {
            Ok(()) => settings.push(setting),
            Err(why) => {
                say(&format!("{} is left out: {why:#}", setting.name()))?;
                results.skipped.insert(setting, format!("{why:#}"));
            }
        }
    }
    let others = other_tracing_programs()?;
    let how = How::chosen(plan.tier);
    say(&format!("tier {}, on {}", how.tier, how.hook.as_str()))?;
    results.how = Some(how);
    let mut bench = Bench {
        plan,
        how,
        empty: if settings.contains(&Setting::Empty) {
            Some(EmptyPrograms::load(&plan.empty)?)
        } else {
            None
        },
        crowd: if settings.contains(&Setting::Crowd) {
            Some(Crowd::start()?)
        } else {
            None
        },
    };
    for repetition in 0..plan.repetitions {
        say(&format!(
            "repetition {} of {}",
            repetition + 1,
            plan.repetitions
        ))?;
        bench.repeat(repetition, &tests, &settings, &mut results)?;
    }
    if settings.contains(&Setting::Tagged) {
        bench.time_programs(&tests, &mut results)?;
        settle()?;
        results.limits = Some(limits::measure(&plan.scratch)?);
        if let Some(step) = plan.highest {
            results.highest = highest::search(&plan.scratch, how, step)?;
        }
    }
    Ok(report::text(plan, &tests, &settings, &results, &others))
}

struct Bench<'a> {
    plan: &'a Plan,
    how: How,
    empty: Option<EmptyPrograms>,
    crowd: Option<Crowd>,
}

impl Bench<'_> {
    fn repeat(
        &mut self,
        repetition: usize,
        tests: &[Test],
        settings: &[Setting],
        results: &mut Results,
    ) -> anyhow::Result<()> {
        let (tools, mut own): (Vec<Setting>, Vec<Setting>) =
            settings.iter().partition(|setting| setting.is_tool());
        let first = repetition % own.len().max(1);
        own.rotate_left(first);
        for (at, test) in tests.iter().enumerate() {
            for setting in &own {
                settle()?;
                let sample = self
                    .measure(*setting, *test, at, results)
                    .with_context(|| format!("measure {test} with {}", setting.name()))?;
                results
                    .times
                    .entry((at, *setting))
                    .or_default()
                    .push(sample.ns_per_op());
            }
        }
        for tool in tools {
            let samples = tools::measure(tool, tests, self.plan)
                .with_context(|| format!("measure with {}", tool.name()))?;
            for (at, sample) in samples.iter().enumerate() {
                results
                    .times
                    .entry((at, tool))
                    .or_default()
                    .push(sample.ns_per_op());
            }
        }
        Ok(())
    }

    fn measure(
        &mut self,
        setting: Setting,
        test: Test,
        at: usize,
        results: &mut Results,
    ) -> anyhow::Result<Sample> {
        let (scratch, duration) = (&self.plan.scratch, self.plan.duration);
        let crowd = match setting {
            Setting::Bare | Setting::Strace | Setting::Bpftrace => {
                return unwatched(scratch, test, duration);
            }
            Setting::Empty => {
                let empty = self
                    .empty
                    .as_mut()
                    .context("the empty programs are loaded")?;
                let attached = empty.attach()?;
                let sample = unwatched(scratch, test, duration);
                empty.detach(attached)?;
                return sample;
            }
            Setting::Untagged => {
                let capture = load::load(&LoadOptions {
                    tier: self.how.tier,
                    hook: self.how.hook,
                    ..LoadOptions::default()
                })?;
                let sample = unwatched(scratch, test, duration);
                drop(capture);
                return sample;
            }
            Setting::Tagged => None,
            Setting::Crowd => self.crowd.as_mut(),
        };
        let recorded = recorded::measure(scratch, self.how, test, duration, crowd)?;
        *results.losses.entry((at, setting)).or_default() += recorded.losses;
        if setting == Setting::Tagged {
            *results.spooled.entry(at).or_default() += recorded.spool_bytes;
        }
        Ok(recorded.sample)
    }

    /// One more tagged run of each test while the kernel takes the time of programs.
    fn time_programs(&self, tests: &[Test], results: &mut Results) -> anyhow::Result<()> {
        const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
        let before = fs::read(SWITCH).with_context(|| format!("read {SWITCH}"))?;
        fs::write(SWITCH, "1").with_context(|| format!("write {SWITCH}"))?;
        let mut measured = Ok(());
        for (at, test) in tests.iter().enumerate() {
            match recorded::measure(
                &self.plan.scratch,
                self.how,
                *test,
                self.plan.duration,
                None,
            ) {
                Ok(recorded) => {
                    results.program_time.insert(at, recorded.time);
                }
                Err(error) => measured = Err(error),
            }
        }
        fs::write(SWITCH, before).with_context(|| format!("write {SWITCH}"))?;
        measured
    }
}

/// Waits until what an earlier setting left behind is written back and freed, at most [`SETTLE_MAX`].
fn settle() -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        std::thread::sleep(SETTLE_STEP);
        let memory = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
        let writing = memory
            .lines()
            .find_map(|line| {
                line.strip_prefix("Writeback:")?
                    .trim()
                    .strip_suffix(" kB")?
                    .parse()
                    .ok()
            })
            .unwrap_or(0_u64);
        if writing < WRITEBACK_MAX_KIB || started.elapsed() > SETTLE_MAX {
            return Ok(());
        }
    }
}

fn unwatched(scratch: &Path, test: Test, duration: Duration) -> anyhow::Result<Sample> {
    let folder = tempfile::tempdir_in(scratch)?;
    let result = folder.path().join("sample.json");
    let mut worker = start_worker(&[test], duration, &result)?;
    drop(worker.stdin.take());
    take_sample(worker, &result)
}

/// A worker that waits at its gate.
fn start_worker(tests: &[Test], duration: Duration, result: &Path) -> anyhow::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(worker_arguments(tests, duration, result))
        .stdin(Stdio::piped())
        .spawn()
        .context("start a worker")
}

fn worker_arguments(tests: &[Test], duration: Duration, result: &Path) -> Vec<String> {
    let mut arguments = vec![
        "worker".to_owned(),
        "--milliseconds".to_owned(),
        duration.as_millis().to_string(),
        "--result".to_owned(),
        result.display().to_string(),
    ];
    arguments.extend(tests.iter().map(Test::to_string));
    arguments
}

fn take_sample(mut worker: Child, result: &Path) -> anyhow::Result<Sample> {
    let status = worker.wait()?;
    anyhow::ensure!(status.success(), "the worker ended with {status}");
    take_samples(result)?
        .into_iter()
        .next()
        .context("the worker left no sample")
}

fn take_samples(result: &Path) -> anyhow::Result<Vec<Sample>> {
    let text = fs::read(result).with_context(|| format!("read {}", result.display()))?;
    serde_json::from_slice(&text).context("read the worker's samples")
}

/// Programs that do nothing on the hooks of tier T.
struct EmptyPrograms {
    ebpf: Ebpf,
}

impl EmptyPrograms {
    const HOOKS: [&str; 5] = [
        "sched_process_fork",
        "sched_process_exec",
        "sched_process_exit",
        "sys_exit",
        "sys_enter",
    ];

    fn load(object: &Path) -> anyhow::Result<Self> {
        let bytes = fs::read(object).with_context(|| format!("read {}", object.display()))?;
        let btf = Btf::from_sys_fs().context("read the kernel's btf")?;
        let mut ebpf =
            Ebpf::load(&bytes).context("read the empty programs (loading needs root)")?;
        for hook in Self::HOOKS {
            Self::program(&mut ebpf, hook)?
                .load(hook, &btf)
                .with_context(|| format!("load {hook}"))?;
        }
        Ok(Self { ebpf })
    }

    fn attach(&mut self) -> anyhow::Result<Vec<aya::programs::tp_btf::BtfTracePointLinkId>> {
        Self::HOOKS
            .iter()
            .map(|hook| {
                Self::program(&mut self.ebpf, hook)?
                    .attach()
                    .with_context(|| format!("attach to {hook}"))
            })
            .collect()
    }

    fn detach(
        &mut self,
        links: Vec<aya::programs::tp_btf::BtfTracePointLinkId>,
    ) -> anyhow::Result<()> {
        for (hook, link) in Self::HOOKS.iter().zip(links) {
            Self::program(&mut self.ebpf, hook)?
                .detach(link)
                .with_context(|| format!("detach from {hook}"))?;
        }
        Ok(())
    }

    fn program<'a>(ebpf: &'a mut Ebpf, hook: &str) -> anyhow::Result<&'a mut BtfTracePoint> {
        let program = ebpf
            .program_mut(hook)
            .with_context(|| format!("no empty program {hook}"))?;
        Ok(program.try_into()?)
    }
}

/// Names of tracing programs that are loaded although we have loaded none: they weigh on every setting.
fn other_tracing_programs() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for program in aya::programs::loaded_programs() {
        let program = program.context("list the loaded programs")?;
        if program.program_type() as u32 == PROGRAM_TYPE_TRACING {
            names.push(program.name_as_str().unwrap_or("?").to_owned());
        }
    }
    Ok(names)
}
