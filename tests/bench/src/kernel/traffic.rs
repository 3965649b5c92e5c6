//! The traffic that is measured: round trips and one-way streams through pipes between two processes.
//!
//! Owns both ends, the CPUs they run on and the clock around them. Knows nothing of who watches. A worker
//! waits for one byte on its standard input, so that it can be tagged before it does anything; its counterpart inherits the tag.
//!
//! Both ends share one CPU, so that the time of an operation is all the work that it makes. Across CPUs the time to wake an idle
//! one, on a virtual machine tens of microseconds and erratic, hides everything else. The consumer of a capture has another CPU.
//!
//! A measurement is cut into slices, and the slice in the middle counts: a moment's disturbance does not, a lasting one does.

use std::fmt;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::num::NonZeroU64;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::{Deserialize, Serialize};

/// Where both ends run.
const TRAFFIC_CPU: usize = 0;
/// Where those run that watch from user space, if there is such a CPU.
const CONSUMER_CPU: usize = 1;
/// The highest priority of ordinary scheduling (setpriority(2)): what else the machine does should not count.
const PRIORITY: i32 = -20;

/// Time that a test runs before the clock counts.
const WARM_UP: Duration = Duration::from_millis(10);

/// Slices of one measurement; an odd number.
const SLICES: u32 = 5;

/// Messages up to this size are sent in batches between two looks at the clock, which would cost as much as they do.
const BATCH_UP_TO_BYTES: usize = 4096;
const BATCH: u64 = 64;

/// Bursts of a limited rate: what one of them sends goes without a pause.
const BURSTS_PER_SECOND: u64 = 1000;
/// Longest delay that is caught up with.
const LATE_MAX: Duration = Duration::from_millis(10);

/// What is sent how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Test {
    pub(crate) pattern: Pattern,
    /// Size of one message.
    pub(crate) bytes: usize,
    /// Messages a second; `None`: as fast as it goes.
    pub(crate) rate: Option<NonZeroU64>,
}

/// How messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Pattern {
    /// There and back, one at a time.
    RoundTrip,
    /// One way, as fast as the pipe takes them.
    OneWay,
    /// None: a system call that moves nothing.
    SystemCall,
}

/// One measurement.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) test: Test,
    /// Round trips, messages or calls in the middle slice.
    pub(crate) ops: u64,
    /// Time of them.
    pub(crate) ns: u64,
    /// Bytes that went through pipes, all slices and the warm-up included, counted once.
    pub(crate) moved: u64,
}

impl Sample {
    /// Nanoseconds of one operation.
    #[expect(
        clippy::cast_precision_loss,
        reason = "times of seconds, counts of millions"
    )]
    pub(crate) fn ns_per_op(&self) -> f64 {
        self.ns as f64 / self.ops as f64
    }
}

/// The tests of the table.
pub(crate) fn all() -> Vec<Test> {
    let of = |pattern, sizes: &[usize]| {
        sizes
            .iter()
            .map(|bytes| Test {
                pattern,
                bytes: *bytes,
                rate: None,
            })
            .collect::<Vec<_>>()
    };
    let sizes = [64, 1 << 10, 16 << 10, 256 << 10];
    [
        of(Pattern::RoundTrip, &sizes),
        of(Pattern::OneWay, &sizes),
        of(Pattern::SystemCall, &[0]),
    ]
    .concat()
}

/// Runs tests one after the other and writes the samples to a file as JSON.
pub(crate) fn worker(tests: &[Test], duration: Duration, result: &Path) -> anyhow::Result<()> {
    let mut gate = [0];
    // Nobody holds the gate of a worker that is not tagged: the end of the file opens it.
    io::stdin().read(&mut gate).context("wait at the gate")?;
    let mut samples = Vec::new();
    run_on(TRAFFIC_CPU)?;
    for test in tests {
        samples.push(match test.pattern {
            Pattern::RoundTrip => round_trip(*test, duration)?,
            Pattern::OneWay => one_way(*test, duration)?,
            Pattern::SystemCall => system_call(*test, duration)?,
        });
    }
    let text = serde_json::to_vec(&samples)?;
    fs::write(result, text).with_context(|| format!("write {}", result.display()))
}

/// Sends every message back.
pub(crate) fn echo(bytes: usize) -> anyhow::Result<()> {
    let mut buffer = vec![0; bytes];
    let (input, output) = (io::stdin(), io::stdout());
    while fill(&input, &mut buffer)? {
        drain(&output, &buffer)?;
    }
    Ok(())
}

/// Reads everything, one read per message if the pipe gives it, and says at the end how much it was.
pub(crate) fn sink(bytes: usize) -> anyhow::Result<()> {
    let mut buffer = vec![0; bytes];
    let input = io::stdin();
    let mut total: u64 = 0;
    io::stdout()
        .write_all(b"r")
        .and_then(|()| io::stdout().flush())?;
    loop {
        match rustix::io::read(&input, &mut buffer)? {
            0 => break,
            got => total += got as u64,
        }
    }
    io::stdout()
        .write_all(&total.to_le_bytes())
        .context("report the total")
}

/// Waits in reads of single bytes until the pipe is closed.
pub(crate) fn member() -> anyhow::Result<()> {
    let mut byte = [0];
    while rustix::io::read(io::stdin(), &mut byte)? == 1 {}
    Ok(())
}

fn round_trip(test: Test, duration: Duration) -> anyhow::Result<Sample> {
    let (mut child, input, output) = counterpart(&["echo".to_owned(), test.bytes.to_string()])?;
    let mut buffer = vec![b'x'; test.bytes];
    let mut trip = || -> anyhow::Result<()> {
        drain(&input, &buffer)?;
        anyhow::ensure!(fill(&output, &mut buffer)?, "the echo ended");
        Ok(())
    };
    let (middle, ops) = sliced(test, duration, &mut trip)?;
    drop(input);
    end(&mut child)?;
    Ok(Sample {
        moved: 2 * ops * test.bytes as u64,
        ..middle
    })
}

fn one_way(test: Test, duration: Duration) -> anyhow::Result<Sample> {
    let (mut child, input, mut output) = counterpart(&["sink".to_owned(), test.bytes.to_string()])?;
    output.read_exact(&mut [0]).context("wait for the sink")?;
    let buffer = vec![b'x'; test.bytes];
    let mut pace = test.rate.map(Pace::new);
    let (middle, ops) = sliced(test, duration, &mut || {
        if let Some(pace) = &mut pace {
            pace.wait();
        }
        drain(&input, &buffer)
    })?;
    drop(input);
    let mut total = [0; 8];
    output
        .read_exact(&mut total)
        .context("wait for the sink's total")?;
    end(&mut child)?;
    let moved = ops * test.bytes as u64;
    anyhow::ensure!(
        u64::from_le_bytes(total) == moved,
        "bytes were lost in the pipe itself"
    );
    Ok(Sample { moved, ..middle })
}

fn system_call(test: Test, duration: Duration) -> anyhow::Result<Sample> {
    let mut call = || {
        std::hint::black_box(rustix::process::getppid());
        Ok(())
    };
    Ok(sliced(test, duration, &mut call)?.0)
}

/// Warms up, then measures slice by slice; the one in the middle, and the operations of all.
fn sliced(
    test: Test,
    duration: Duration,
    step: &mut dyn FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<(Sample, u64)> {
    let mut all = repeat(test.bytes, WARM_UP, step)?.0;
    let mut slices = Vec::new();
    for _ in 0..SLICES {
        let (ops, ns) = repeat(test.bytes, duration / SLICES, step)?;
        all += ops;
        slices.push(Sample {
            test,
            ops,
            ns,
            moved: 0,
        });
    }
    slices.sort_by(|a, b| a.ns_per_op().total_cmp(&b.ns_per_op()));
    Ok((slices[slices.len() / 2], all))
}

/// Repeats `step` for about `duration`; how often, and the nanoseconds it took.
fn repeat(
    bytes: usize,
    duration: Duration,
    step: &mut dyn FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<(u64, u64)> {
    let batch = if bytes <= BATCH_UP_TO_BYTES { BATCH } else { 1 };
    let started = Instant::now();
    let mut ops = 0;
    while started.elapsed() < duration {
        for _ in 0..batch {
            step()?;
        }
        ops += batch;
    }
    Ok((ops, nanoseconds(started)))
}

/// Keeps messages to a rate, in [`BURSTS_PER_SECOND`]: what comes between two of them finds the reader done.
#[derive(Debug)]
struct Pace {
    rate: NonZeroU64,
    /// Messages of a burst.
    burst: u64,
    started: Instant,
    sent: u64,
}

impl Pace {
    fn new(rate: NonZeroU64) -> Self {
        Self {
            rate,
            burst: (rate.get() / BURSTS_PER_SECOND).max(1),
            started: Instant::now(),
            sent: 0,
        }
    }

    /// Waits until the next message is due.
    fn wait(&mut self) {
        if self.sent.is_multiple_of(self.burst) {
            let due = Duration::from_nanos(
                u64::try_from(u128::from(self.sent) * 1_000_000_000 / u128::from(self.rate.get()))
                    .unwrap_or(u64::MAX),
            );
            let now = self.started.elapsed();
            let late = now.saturating_sub(due);
            std::thread::sleep(due.saturating_sub(now));
            if late > LATE_MAX {
                // What the machine kept it from sending is not sent faster later.
                self.started = Instant::now();
                self.sent = 0;
            }
        }
        self.sent += 1;
    }
}

/// Moves this process, and what it starts, out of the way of the traffic and ahead of everybody else.
///
/// # Errors
/// Only root may take such a priority.
pub(crate) fn run_as_consumer() -> anyhow::Result<()> {
    // With one CPU it stays where it is.
    let _ = run_on(CONSUMER_CPU);
    rustix::process::setpriority_process(None, PRIORITY)
        .context("raise the priority (measuring needs root)")
}

fn run_on(cpu: usize) -> anyhow::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).with_context(|| format!("run on CPU {cpu}"))
}

fn nanoseconds(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn counterpart(arguments: &[String]) -> anyhow::Result<(Child, ChildStdin, ChildStdout)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the other end")?;
    let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        bail!("the other end has no pipes");
    };
    Ok((child, input, output))
}

fn end(child: &mut Child) -> anyhow::Result<()> {
    let status = child.wait()?;
    anyhow::ensure!(status.success(), "the other end ended with {status}");
    Ok(())
}

/// Reads until the buffer is full; `false` at the end of the file.
fn fill(from: impl std::os::fd::AsFd, buffer: &mut [u8]) -> anyhow::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::read(&from, &mut buffer[filled..])? {
            0 => return Ok(false),
            got => filled += got,
        }
    }
    Ok(true)
}

fn drain(to: impl std::os::fd::AsFd, mut bytes: &[u8]) -> anyhow::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::write(&to, bytes)?;
        bytes = &bytes[written..];
    }
    Ok(())
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pattern {
            Pattern::RoundTrip => write!(f, "round-trip:{}", self.bytes),
            Pattern::OneWay => match self.rate {
                None => write!(f, "one-way:{}", self.bytes),
                Some(rate) => write!(f, "one-way:{}@{rate}", self.bytes),
            },
            Pattern::SystemCall => write!(f, "system-call:0"),
        }
    }
}

impl FromStr for Test {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (pattern, bytes) = text
            .split_once(':')
            .context("a test is PATTERN:BYTES, and one-way:BYTES@RATE")?;
        let (bytes, rate) = match bytes.split_once('@') {
            None => (bytes, None),
            Some((bytes, rate)) => (
                bytes,
                Some(rate.parse().context("read the messages a second")?),
            ),
        };
        let pattern = match pattern {
            "round-trip" => Pattern::RoundTrip,
            "one-way" => Pattern::OneWay,
            "system-call" => Pattern::SystemCall,
            _ => bail!("a pattern is round-trip, one-way or system-call"),
        };
        Ok(Self {
            pattern,
            bytes: bytes.parse().context("read the size of a message")?,
            rate,
        })
    }
}
