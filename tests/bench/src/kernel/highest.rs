//! The highest rate at which nothing is lost: one-way streams with both ends watched and the real consumer, faster and slower until
//! the rate is found.
//!
//! Owns the search. It halves between the highest rate that lost nothing and the lowest that did; each step is a recording of its
//! own, longer than the buffers last.

use std::num::NonZeroU64;
use std::path::Path;
use std::time::Duration;

use crate::say;
use crate::table::{Table, line, size};

use super::recorded::{self, Recorded};
use super::traffic::{Pattern, Test};
use super::{How, settle};

/// Sizes of the messages.
const SIZES: [usize; 3] = [64, 1 << 10, 64 << 10];
/// Steps of the search after the first, which goes as fast as it can.
const STEPS: u32 = 6;

/// What was found for one size.
#[derive(Debug)]
pub(super) struct Highest {
    bytes: usize,
    /// The fastest recording without a loss, with its messages per second.
    best: Option<(u64, Recorded)>,
    /// The slowest that lost something.
    lost: Option<u64>,
}

/// Searches for each size; every step takes `duration`.
pub(super) fn search(scratch: &Path, how: How, duration: Duration) -> anyhow::Result<Vec<Highest>> {
    SIZES
        .iter()
        .map(|bytes| search_one(scratch, how, duration, *bytes))
        .collect()
}

fn search_one(
    scratch: &Path,
    how: How,
    duration: Duration,
    bytes: usize,
) -> anyhow::Result<Highest> {
    let mut found = Highest {
        bytes,
        best: None,
        lost: None,
    };
    let mut rate = None;
    for _ in 0..=STEPS {
        settle()?;
        let test = Test {
            pattern: Pattern::OneWay,
            bytes,
            rate,
        };
        let recorded = recorded::measure(scratch, how, test, duration, None)?;
        let reached = per_second(&recorded);
        let lossless = !recorded.losses.any();
        say(&format!(
            "{test}: {reached} messages/s, {}",
            if lossless { "nothing lost" } else { "losses" }
        ))?;
        if lossless {
            let best = found.best.as_ref().map_or(0, |(best, _)| *best);
            if reached > best {
                found.best = Some((reached, recorded));
            }
            if rate.is_none() {
                // Nothing goes faster.
                break;
            }
        } else {
            // What was asked for: what was reached meanwhile may have been less.
            let lost = rate.map_or(reached, NonZeroU64::get);
            found.lost = Some(found.lost.map_or(lost, |before| before.min(lost)));
        }
        let best = found.best.as_ref().map_or(0, |(best, _)| *best);
        rate = NonZeroU64::new(u64::midpoint(best, found.lost.unwrap_or(best)));
    }
    Ok(found)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "messages of a second"
)]
fn per_second(recorded: &Recorded) -> u64 {
    (1e9 / recorded.sample.ns_per_op()) as u64
}

/// The table.
pub(super) fn text(text: &mut String, found: &[Highest], duration: Duration) {
    line(
        text,
        format_args!(
            "Highest rate without loss: one way, both ends watched, whole payloads, the consumer writing the spool to disk; \
             {} steps of {} ms, halving between what lost nothing and what did. *Kept* is payload in the spool by the time from the first \
             message until the spool was closed: what was left in the buffers when the traffic ended is written then.\n",
            STEPS,
            duration.as_millis(),
        ),
    );
    let mut table = Table::new([
        "messages",
        "messages/s",
        "records/s, both ends",
        "payload, both ends, MB/s",
        "kept, MB/s",
        "first loss at, messages/s",
    ]);
    for highest in found {
        let lost = highest.lost.map_or_else(
            || "none: no faster traffic on one CPU".to_owned(),
            |lost| lost.to_string(),
        );
        let Some((rate, recorded)) = &highest.best else {
            table.row([
                size(highest.bytes),
                "–".to_owned(),
                "–".to_owned(),
                "–".to_owned(),
                "–".to_owned(),
                lost,
            ]);
            continue;
        };
        let messages = (recorded.sample.moved / highest.bytes as u64).max(1);
        let kept = u128::from(2 * recorded.sample.moved) / recorded.until_closed.as_micros().max(1);
        table.row([
            size(highest.bytes),
            rate.to_string(),
            (u128::from(*rate) * u128::from(recorded.records) / u128::from(messages)).to_string(),
            (2 * rate * highest.bytes as u64 / 1_000_000).to_string(),
            kept.to_string(),
            lost,
        ]);
    }
    text.push_str(&table.to_string());
    text.push('\n');
}
