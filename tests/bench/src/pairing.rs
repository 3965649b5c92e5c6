//! Pairing: many exchanges at once, all in the memory of one correlation.
//!
//! Owns the question how time and memory grow with the number of exchanges. Records are made while they are fed, so that only the
//! correlator's memory counts; making them is measured apart and taken off. Each size runs in a process of its own.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use countersign_core::correlator::Correlator;
use countersign_core::proxylog::mcp_audit::Reader;
use serde::{Deserialize, Serialize};

use crate::exchanges::Exchanges;
use crate::feed::Verdicts;
use crate::table::{Table, line, short};
use crate::{memory, say};

/// Size of requests and answers.
const MESSAGE_BYTES: usize = 200;

/// What one exchange is known to need at most; a run that would not fit is left out rather than killed.
const EXCHANGE_MEMORY_BYTES: u64 = 12 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    exchanges: u64,
    feed_ns: u64,
    finish_ns: u64,
    rows: u64,
    peak_bytes: u64,
}

/// Measures each number of exchanges, and returns the table.
pub(crate) fn run(numbers: &[u64]) -> anyhow::Result<String> {
    let mut text = String::new();
    line(
        &mut text,
        format_args!(
            "Requests and answers of {MESSAGE_BYTES} B, each seen at both ends of both hops, one signed entry each, all `matched`. *Feed* takes \
         records and log lines, *finish* ties, pairs, judges and makes the rows, which are discarded.\n"
        ),
    );
    let mut table = Table::new([
        "exchanges",
        "feed, µs each",
        "finish, µs each",
        "together, µs each",
        "rows",
        "peak RSS",
        "RSS each",
    ]);
    for exchanges in numbers {
        say(&format!("{exchanges} exchanges"))?;
        let (needed, available) = (
            exchanges * EXCHANGE_MEMORY_BYTES,
            memory::available_bytes()?,
        );
        if needed > available {
            line(
                &mut text,
                format_args!(
                    "{exchanges} exchanges were left out: they may need {} MiB, {} MiB are free.\n",
                    needed >> 20,
                    available >> 20
                ),
            );
            continue;
        }
        let measured =
            in_a_process(*exchanges).with_context(|| format!("measure {exchanges} exchanges"))?;
        let each = |total: u64| per(total, *exchanges);
        table.row([
            exchanges.to_string(),
            short(each(measured.feed_ns) / 1e3),
            short(each(measured.finish_ns) / 1e3),
            short(each(measured.feed_ns + measured.finish_ns) / 1e3),
            measured.rows.to_string(),
            format!("{} MiB", measured.peak_bytes >> 20),
            format!("{} B", short(each(measured.peak_bytes))),
        ]);
    }
    text.push_str(&table.to_string());
    Ok(text)
}

/// Measures in this process; JSON.
pub(crate) fn measure(exchanges: u64) -> anyhow::Result<String> {
    let making = make(exchanges)?;
    let mut source = Exchanges::new(MESSAGE_BYTES)?;
    let mut core = Correlator::new(Exchanges::settings()?);
    let mut reader = Reader::new();
    let started = Instant::now();
    let file = core.handle_log_file(Exchanges::log_file());
    source.begin(&mut |record| core.handle_record(record));
    for number in 0..exchanges {
        let lines = source.exchange(number, &mut |record| core.handle_record(record));
        reader.push(&lines.log);
        while let Some(item) = reader.poll() {
            core.handle_entry(file, item);
        }
    }
    source.end(&mut |record| core.handle_record(record));
    let fed = started.elapsed();
    let started = Instant::now();
    let mut verdicts = Verdicts::default();
    let mut rows = 0;
    core.finish(&mut |row| {
        verdicts.observe(&row);
        rows += 1;
    });
    let finished = started.elapsed();
    verdicts.all_matched(exchanges)?;
    let measured = Measured {
        exchanges,
        feed_ns: nanoseconds(fed.saturating_sub(making)),
        finish_ns: nanoseconds(finished),
        rows,
        peak_bytes: memory::peak_bytes()?,
    };
    Ok(serde_json::to_string(&measured)?)
}

/// Time to make the records alone.
fn make(exchanges: u64) -> anyhow::Result<Duration> {
    let mut source = Exchanges::new(MESSAGE_BYTES)?;
    let started = Instant::now();
    for number in 0..exchanges {
        std::hint::black_box(source.exchange(number, &mut |record| {
            std::hint::black_box(record);
        }));
    }
    Ok(started.elapsed())
}

fn in_a_process(exchanges: u64) -> anyhow::Result<Measured> {
    let output = Command::new(std::env::current_exe()?)
        .args(["measure-pairing", &exchanges.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    anyhow::ensure!(
        output.status.success(),
        "the measuring process ended with {}",
        output.status
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "a quotient with three digits")]
fn per(total: u64, number: u64) -> f64 {
    total as f64 / number.max(1) as f64
}
