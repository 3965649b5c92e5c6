//! The tables of the kernel benchmark, and its aims.

use std::collections::BTreeMap;

use countersign::bpf::options::RING_BYTES_DEFAULT;
use countersign::spool::BACKLOG_MAX_BYTES;

use crate::table::{Spread, Table, line, short, size};

use super::traffic::{Pattern, Test};
use super::{Plan, Results, Setting, highest};

/// Untagged tasks, against a program that does nothing.
const UNTAGGED_MAX: f64 = 1.05;
/// Both ends tagged, round trips of 1 KiB.
const ROUND_TRIP_MAX: f64 = 1.6;
/// Both ends tagged, one way, 64 B.
const ONE_WAY_MAX: f64 = 3.0;

pub(super) fn text(
    plan: &Plan,
    tests: &[Test],
    settings: &[Setting],
    results: &Results,
    others: &[String],
) -> String {
    let mut text = String::new();
    line(
        &mut text,
        format_args!(
            "Time per operation as a ratio to the bare run of the same repetition: **median** (min–max) of {} interleaved repetitions of {} ms. \
         *Tagged* is both ends, whole payloads, with the consumer writing the spool to disk; *crowd* the same among 1,000 tagged tasks with \
         100 channels; *strace* is `-f -e trace=read,write -o /dev/null`; *bpftrace* prints the first 64 B.\n",
            plan.repetitions,
            plan.duration.as_millis(),
        ),
    );
    if let Some(how) = results.how {
        line(
            &mut text,
            format_args!("The capture is of tier {}.\n", how.tier),
        );
    }
    if !others.is_empty() {
        line(
            &mut text,
            format_args!(
                "**Not clean**: other tracing programs were loaded: {}.\n",
                others.join(", ")
            ),
        );
    }
    for (setting, why) in &results.skipped {
        line(
            &mut text,
            format_args!("{} was left out: {why}\n", setting.name()),
        );
    }
    text.push_str(&ratios(tests, settings, results).to_string());
    text.push('\n');
    losses(&mut text, tests, settings, results);
    if let Some(step) = plan.highest
        && !results.highest.is_empty()
    {
        highest::text(&mut text, &results.highest, step);
    }
    aims(&mut text, tests, results);
    program_times(&mut text, tests, results);
    text
}

fn ratios(tests: &[Test], settings: &[Setting], results: &Results) -> Table {
    let watched: Vec<Setting> = settings
        .iter()
        .copied()
        .filter(|setting| *setting != Setting::Bare)
        .collect();
    let both = watched.contains(&Setting::Empty) && watched.contains(&Setting::Untagged);
    let mut headings = vec![String::new(), "no BPF, µs".to_owned()];
    headings.extend(watched.iter().map(|setting| setting.name().to_owned()));
    if both {
        headings.push("untagged ÷ empty".to_owned());
    }
    let mut table = Table::new(headings);
    for (at, test) in tests.iter().enumerate() {
        let bare = spread(results, at, Setting::Bare, None).map(|time| {
            format!(
                "{} ({}–{})",
                short(time.median / 1e3),
                short(time.min / 1e3),
                short(time.max / 1e3)
            )
        });
        let mut cells = vec![name(*test), bare.unwrap_or_default()];
        for setting in &watched {
            cells.push(shown(spread(results, at, *setting, Some(Setting::Bare))));
        }
        if both {
            cells.push(shown(spread(
                results,
                at,
                Setting::Untagged,
                Some(Setting::Empty),
            )));
        }
        table.row(cells);
    }
    table
}

fn losses(text: &mut String, tests: &[Test], settings: &[Setting], results: &Results) {
    let mut table = Table::new([
        "losses over all repetitions",
        "",
        "payload, both ends, MB/s",
        "ring drops",
        "waited in vain",
        "bytes missing",
        "of them untold",
        "records unexplained",
        "programs skipped",
    ]);
    let mut lossless = Vec::new();
    let mut some = false;
    for setting in settings
        .iter()
        .filter(|setting| matches!(setting, Setting::Tagged | Setting::Crowd))
    {
        for (at, test) in tests.iter().enumerate() {
            let losses = results
                .losses
                .get(&(at, *setting))
                .copied()
                .unwrap_or_default();
            if !losses.any() {
                lossless.push(format!("{} {}", setting.name(), name(*test)));
                continue;
            }
            some = true;
            table.row([
                setting.name().to_owned(),
                name(*test),
                offered(*test, spread(results, at, *setting, None)),
                losses.ring_dropped.to_string(),
                losses.backlog_dropped.to_string(),
                losses.missing_bytes.to_string(),
                losses.untold_bytes.to_string(),
                losses.unexplained.to_string(),
                losses.skipped.to_string(),
            ]);
        }
    }
    if !lossless.is_empty() {
        line(
            text,
            format_args!(
                "Nothing lost, every byte of both ends in the spool: {}.\n",
                lossless.join("; ")
            ),
        );
    }
    if some {
        text.push_str(&table.to_string());
        text.push('\n');
        if let Some(limits) = &results.limits {
            line(
                text,
                format_args!(
                    "*Ring drops* found the {} MiB between kernel and consumer full, those that *waited in vain* the {} MiB between consumer \
                     and disk. What is *untold* is in no counter and in no record of a loss: it must be 0. The traffic never \
                     pauses for its witness, and beyond these buffers nothing can keep more than the machine does: on one core it \
                     copies {} MB/s in memory, and the disk of the spools takes {} MB/s until they are durable.\n",
                    RING_BYTES_DEFAULT >> 20,
                    BACKLOG_MAX_BYTES >> 20,
                    limits.memcpy,
                    limits.disk,
                ),
            );
        }
    }
}

/// Payload that both ends move in a second.
#[expect(clippy::cast_precision_loss, reason = "sizes of messages")]
fn offered(test: Test, time: Option<Spread>) -> String {
    let ends = match test.pattern {
        Pattern::RoundTrip => 4.0,
        Pattern::OneWay => 2.0,
        Pattern::SystemCall => 0.0,
    };
    time.map_or_else(String::new, |ns| {
        format!("{:.0}", ends * test.bytes as f64 / ns.median * 1e3)
    })
}

fn aims(text: &mut String, tests: &[Test], results: &Results) {
    let mut table = Table::new(["aim", "measured", ""]);
    let mut row = |aim: String, measured: Option<Spread>, limit: f64| {
        if let Some(measured) = measured {
            let met = if measured.median <= limit {
                "met"
            } else {
                "**missed**"
            };
            table.row([aim, measured.to_string(), met.to_owned()]);
        }
    };
    for (at, test) in tests.iter().enumerate() {
        let measured = spread(results, at, Setting::Untagged, Some(Setting::Empty));
        row(
            format!("untagged ≤ {UNTAGGED_MAX} × empty, {}", name(*test)),
            measured,
            UNTAGGED_MAX,
        );
        let measured = spread(results, at, Setting::Tagged, Some(Setting::Bare));
        match (test.pattern, test.bytes) {
            (Pattern::RoundTrip, 1024) => {
                row(
                    format!("tagged ≤ {ROUND_TRIP_MAX} × no BPF, {}", name(*test)),
                    measured,
                    ROUND_TRIP_MAX,
                );
            }
            (Pattern::OneWay, 64) => {
                row(
                    format!("tagged ≤ {ONE_WAY_MAX} × no BPF, {}", name(*test)),
                    measured,
                    ONE_WAY_MAX,
                );
            }
            (Pattern::RoundTrip | Pattern::OneWay | Pattern::SystemCall, _) => {}
        }
    }
    text.push_str(&table.to_string());
    text.push('\n');
}

fn program_times(text: &mut String, tests: &[Test], results: &Results) {
    if results.program_time.is_empty() {
        return;
    }
    let mut table = Table::new([
        "time in programs, tagged",
        "sys_enter, ns a run",
        "sys_exit, ns a run",
    ]);
    for (at, test) in tests.iter().enumerate() {
        let time = results.program_time.get(&at).cloned().unwrap_or_default();
        table.row([
            name(*test),
            of_program(&time.programs, "sys_enter"),
            of_program(&time.programs, "sys_exit"),
        ]);
    }
    text.push_str(&table.to_string());
}

#[expect(clippy::cast_precision_loss, reason = "a quotient with three digits")]
fn of_program(programs: &BTreeMap<String, (u64, u64)>, program: &str) -> String {
    let (runs, ns) = programs.get(program).copied().unwrap_or_default();
    short(ns as f64 / runs.max(1) as f64)
}

/// Ratios repetition by repetition, or times where there is nothing to compare with.
fn spread(results: &Results, at: usize, setting: Setting, base: Option<Setting>) -> Option<Spread> {
    let times = results.times.get(&(at, setting))?;
    match base {
        None => Spread::of(times.iter().copied()),
        Some(base) => {
            let base = results.times.get(&(at, base))?;
            Spread::of(times.iter().zip(base).map(|(time, base)| time / base))
        }
    }
}

fn shown(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "–".to_owned(), |spread| spread.to_string())
}

fn name(test: Test) -> String {
    match test.pattern {
        Pattern::RoundTrip => format!("round trip {}", size(test.bytes)),
        Pattern::OneWay => format!("one way {}", size(test.bytes)),
        Pattern::SystemCall => "getppid".to_owned(),
    }
}
