//! The core's speed: from a spool on disk and a log in memory to rows, on one core.
//!
//! Owns the comparison with two things that everybody knows: copying the same bytes, and `serde_json` parsing the same lines. Each
//! measurement runs in a process of its own, so that none finds the memory of another.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use countersign::outdir::{Dir, OutDir};
use countersign::sink::RowSink;
use countersign::sink::parquet::ParquetSink;
use countersign::spool::{Limits, SegmentHeader, SpoolItem, SpoolReader, SpoolWriter};
use countersign_core::correlator::Correlator;
use countersign_core::proxylog::mcp_audit::Reader;
use countersign_core::record::{Record, parse};
use serde::{Deserialize, Serialize};

use crate::exchanges::Exchanges;
use crate::feed::Verdicts;
use crate::table::{Spread, Table, line, short, size};
use crate::{memory, say};

/// Sizes of requests and answers, and how many exchanges make a spool of some hundred megabytes.
const SIZES: [(usize, u64); 3] = [(200, 50_000), (4 << 10, 5_000), (1 << 20, 24)];
/// Each exchange is a request and an answer, and each of these passes two hops: client to proxy, proxy to server, and back.
const MESSAGES: u64 = 4;

/// What is done with a spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// Make it.
    Prepare,
    /// Correlate, rows discarded.
    Rows,
    /// Correlate, rows into Parquet.
    Parquet,
    /// Copy its records.
    Memcpy,
    /// Parse the lines in it with `serde_json`.
    SerdeJson,
}

/// One measurement.
#[derive(Debug, Args)]
pub(crate) struct Measurement {
    #[arg(value_enum)]
    work: Work,
    folder: PathBuf,
    message_bytes: usize,
    exchanges: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    ns: u64,
    /// Bytes of records, or of lines for `serde_json`.
    bytes: u64,
    peak_bytes: u64,
}

/// Measures all sizes, and returns the table.
pub(crate) fn run(scratch: &Path, repetitions: usize) -> anyhow::Result<String> {
    let mut text = String::new();
    line(
        &mut text,
        format_args!(
            "One core, median of {repetitions} interleaved repetitions. An exchange is a request and an answer of the size given, each seen at \
         both ends of both hops, and one signed entry of the log, which is read and written in full; every call is `matched`. A message is counted once on each hop: four an exchange. Bytes are those \
         of the records in the spool; `serde_json` parses the same lines into its `Value`, and its bytes are those of the lines.\n"
        ),
    );
    let mut table = Table::new([
        "message",
        "spool",
        "spool → rows",
        "",
        "peak RSS",
        "spool → Parquet",
        "",
        "memcpy",
        "serde_json",
        "time, rows ÷ serde_json",
    ]);
    for (message_bytes, exchanges) in SIZES {
        let folder = tempfile::tempdir_in(scratch).context("make a folder for the spool")?;
        let measure = |work: Work| {
            let measured = in_a_process(work, folder.path(), message_bytes, exchanges);
            measured.with_context(|| format!("{work:?} messages of {message_bytes} bytes"))
        };
        say(&format!("messages of {}", size(message_bytes)))?;
        measure(Work::Prepare)?;
        let works = [Work::Rows, Work::Parquet, Work::Memcpy, Work::SerdeJson];
        let mut runs: [Vec<Measured>; 4] = Default::default();
        for _ in 0..repetitions {
            for (runs, work) in runs.iter_mut().zip(works) {
                runs.push(measure(work)?);
            }
        }
        let [rows, parquet, memcpy, serde] = &runs;
        let slower = Spread::of(
            rows.iter()
                .zip(serde)
                .map(|(rows, serde)| ratio(rows.ns, serde.ns)),
        );
        table.row([
            size(message_bytes),
            format!("{} MB", rows.first().map_or(0, |run| run.bytes / 1_000_000)),
            megabytes(rows),
            messages(rows, exchanges),
            format!(
                "{} MiB",
                rows.iter()
                    .map(|run| run.peak_bytes >> 20)
                    .max()
                    .unwrap_or(0)
            ),
            megabytes(parquet),
            messages(parquet, exchanges),
            megabytes(memcpy),
            megabytes(serde),
            slower.map(|spread| spread.to_string()).unwrap_or_default(),
        ]);
    }
    text.push_str(&table.to_string());
    Ok(text)
}

impl Measurement {
    /// Measures in this process; JSON.
    pub(crate) fn run(self) -> anyhow::Result<String> {
        let measured = match self.work {
            Work::Prepare => self.prepare()?,
            Work::Rows => self.correlate(None)?,
            Work::Parquet => {
                let out = tempfile::tempdir_in(&self.folder)?;
                let out = OutDir::create(&out.path().join("evidence"), None)?;
                let capture = Exchanges::settings()?.capture;
                let sink = ParquetSink::new(Box::new(std::sync::Arc::new(out)), capture, "host");
                self.correlate(Some(Box::new(sink)))?
            }
            Work::Memcpy => self.memcpy()?,
            Work::SerdeJson => self.serde_json()?,
        };
        Ok(serde_json::to_string(&measured)?)
    }

    fn prepare(&self) -> anyhow::Result<Measured> {
        let out = OutDir::create(&self.folder.join("spool"), None)?;
        let capture = Exchanges::settings()?.capture.to_string();
        let header = SegmentHeader::of_this_machine(capture, 1, "0".repeat(64))?;
        let mut spool = SpoolWriter::create(out.dir().try_clone()?, header, Limits::default())?;
        let mut source = Exchanges::new(self.message_bytes)?;
        let mut log = Vec::new();
        source.begin(&mut |record| spool.record(record));
        for number in 0..self.exchanges {
            log.extend(
                source
                    .exchange(number, &mut |record| spool.record(record))
                    .log,
            );
        }
        source.end(&mut |record| spool.record(record));
        let stats = spool.finish();
        anyhow::ensure!(!stats.lost_something(), "the spool lost records: {stats:?}");
        std::fs::write(self.folder.join("audit.jsonl"), log).context("write the log")?;
        Ok(Measured {
            ns: 0,
            bytes: stats.disk_bytes,
            peak_bytes: memory::peak_bytes()?,
        })
    }

    fn correlate(&self, mut sink: Option<Box<dyn RowSink>>) -> anyhow::Result<Measured> {
        let log = std::fs::read(self.folder.join("audit.jsonl")).context("read the log")?;
        let mut spool = self.spool()?;
        let mut core = Correlator::new(Exchanges::settings()?);
        let mut bytes = 0;
        let started = Instant::now();
        while let Some(item) = spool.next_item()? {
            match item {
                SpoolItem::Record(record) => {
                    bytes += record.len() as u64;
                    core.handle_record(record);
                }
                SpoolItem::Segment(_) => {}
                SpoolItem::Damage(damage) => anyhow::bail!("the spool is damaged: {damage:?}"),
            }
        }
        let file = core.handle_log_file(Exchanges::log_file());
        let mut reader = Reader::new();
        reader.push(&log);
        reader.finish();
        while let Some(item) = reader.poll() {
            core.handle_entry(file, item);
        }
        let mut verdicts = Verdicts::default();
        let mut written = Ok(());
        core.finish(&mut |row| {
            verdicts.observe(&row);
            if let (Some(sink), Ok(())) = (&mut sink, &written) {
                written = sink.row(row.as_table_row());
            }
        });
        written?;
        if let Some(sink) = sink {
            sink.finish()?;
        }
        let ns = nanoseconds(started);
        verdicts.all_matched(self.exchanges)?;
        Ok(Measured {
            ns,
            bytes,
            peak_bytes: memory::peak_bytes()?,
        })
    }

    fn memcpy(&self) -> anyhow::Result<Measured> {
        let mut from = Vec::new();
        self.records(|record| from.extend_from_slice(record))?;
        // Its pages are there before the clock runs.
        let mut to = vec![1_u8; from.len()];
        let started = Instant::now();
        to.copy_from_slice(std::hint::black_box(&from));
        let ns = nanoseconds(started);
        std::hint::black_box(&to);
        Ok(Measured {
            ns,
            bytes: from.len() as u64,
            peak_bytes: memory::peak_bytes()?,
        })
    }

    /// The bytes of transfers are put together by stream and end, as the lines that they are.
    fn serde_json(&self) -> anyhow::Result<Measured> {
        let mut streams: std::collections::BTreeMap<(u64, u8), Vec<u8>> =
            std::collections::BTreeMap::new();
        let mut unreadable = Ok(());
        self.records(|record| match parse(record) {
            Ok(Record::Chunk(transfer, _, data)) => {
                streams
                    .entry((transfer.channel.object, transfer.direction))
                    .or_default()
                    .extend_from_slice(data);
            }
            Ok(_) => {}
            Err(error) => unreadable = Err(error),
        })?;
        unreadable?;
        let (mut bytes, mut failed) = (0, 0_u64);
        let started = Instant::now();
        for text in streams.values() {
            for line in text
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty())
            {
                bytes += line.len() as u64;
                match serde_json::from_slice::<serde_json::Value>(line) {
                    Ok(value) => drop(std::hint::black_box(value)),
                    // What the limit on untrusted writers has cut.
                    Err(_) => failed += 1,
                }
            }
        }
        let ns = nanoseconds(started);
        anyhow::ensure!(
            failed == 0 || self.message_bytes > 256 << 10,
            "{failed} lines are no json"
        );
        Ok(Measured {
            ns,
            bytes,
            peak_bytes: memory::peak_bytes()?,
        })
    }

    fn records(&self, mut take: impl FnMut(&[u8])) -> anyhow::Result<()> {
        let mut spool = self.spool()?;
        while let Some(item) = spool.next_item()? {
            if let SpoolItem::Record(record) = item {
                take(record);
            }
        }
        Ok(())
    }

    fn spool(&self) -> anyhow::Result<SpoolReader> {
        Ok(SpoolReader::open(Dir::open_named(
            &self.folder.join("spool"),
        )?)?)
    }
}

fn in_a_process(
    work: Work,
    folder: &Path,
    message_bytes: usize,
    exchanges: u64,
) -> anyhow::Result<Measured> {
    let name = work.to_possible_value().context("every work has a name")?;
    let output = Command::new(std::env::current_exe()?)
        .args(["measure-core", name.get_name()])
        .arg(folder)
        .args([message_bytes.to_string(), exchanges.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    anyhow::ensure!(
        output.status.success(),
        "the measuring process ended with {}",
        output.status
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn megabytes(runs: &[Measured]) -> String {
    let speeds = runs.iter().map(|run| ratio(run.bytes, run.ns) * 1e3);
    Spread::of(speeds).map_or_else(String::new, |speed| format!("{} MB/s", short(speed.median)))
}

fn messages(runs: &[Measured], exchanges: u64) -> String {
    let speeds = runs
        .iter()
        .map(|run| ratio(exchanges * MESSAGES, run.ns) * 1e9);
    Spread::of(speeds).map_or_else(String::new, |speed| {
        format!("{} messages/s", short(speed.median))
    })
}

fn nanoseconds(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "a quotient with three digits")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b.max(1) as f64
}
