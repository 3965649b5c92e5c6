//! What a dishonest keeper of the log does to it: edits one line, deletes one, invents one.
//!
//! Pure: takes the text of the log and the markers of the calls, gives the new text and what was done to which. Lines are
//! changed as text, so that every other byte stays as the proxy wrote it.

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::seed::Seed;

/// Keeps the draws apart from those of the demo agent, which has the same seed.
const TAMPER_SALT: u64 = 0x7461_6d70_6572_6564;

/// The tampered log and what was done to it.
#[derive(Debug)]
pub(crate) struct Tampered {
    /// The new text of the log.
    pub(crate) log: String,
    /// Marker of the call whose line has other parameters now.
    pub(crate) edited: String,
    /// Marker of the call whose line is gone.
    pub(crate) deleted: String,
    /// Marker of the call that never was.
    pub(crate) invented: String,
    /// The request id on the invented line.
    pub(crate) invented_id: String,
}

/// Tampers with `log` as `seed` says. `markers` are the calls that the log holds.
///
/// # Errors
/// The log does not hold one line for each of the chosen calls, or its lines are not those of the audit proxy.
pub(crate) fn tamper(seed: u64, log: &str, markers: &[String]) -> anyhow::Result<Tampered> {
    ensure!(
        markers.len() >= 3,
        "three logged calls are needed, there are {}",
        markers.len()
    );
    let mut draw = Seed::new(seed ^ TAMPER_SALT);
    let mut left: Vec<&String> = markers.iter().collect();
    let mut pick = || left.swap_remove(draw.below(left.len())).clone();
    let (edited, deleted, donor) = (pick(), pick(), pick());
    let invented_id = (100_000 + draw.below(100_000)).to_string();
    let invented = format!("m{seed}-00-{:08x}", draw.next() >> 32);
    for marker in [&edited, &deleted, &donor] {
        let lines = log
            .lines()
            .filter(|line| line.contains(marker.as_str()))
            .count();
        ensure!(
            lines == 1,
            "the log has {lines} lines for {marker}, not one"
        );
    }
    let mut tampered = String::with_capacity(log.len() + log.len() / 8);
    for line in log.split_inclusive('\n') {
        if line.contains(&deleted) {
            continue;
        }
        if line.contains(&edited) {
            tampered.push_str(&edit(line, &edited)?);
        } else {
            tampered.push_str(line);
        }
        if line.contains(&donor) {
            tampered.push_str(&invent(line, (&donor, &invented), &invented_id, &mut draw)?);
        }
    }
    Ok(Tampered {
        log: tampered,
        edited,
        deleted,
        invented,
        invented_id,
    })
}

/// Makes the parameters say something else. The marker stays, so that the check knows which call it was.
fn edit(line: &str, marker: &str) -> anyhow::Result<String> {
    let entry: Value = serde_json::from_str(line).context("a line of the log is not JSON")?;
    let path = entry
        .pointer("/params/arguments/path")
        .and_then(Value::as_str)
        .context("a line has no path")?;
    // Only the parameters: the same path may occur in the result.
    let at = line
        .find(r#""params":"#)
        .context("a line has no parameters")?;
    let (head, params) = line.split_at(at);
    let innocent = format!("{path}.innocent");
    let changed = params.replacen(&format!("\"{path}\""), &format!("\"{innocent}\""), 1);
    ensure!(
        changed != params && changed.contains(marker),
        "the path of {marker} is not spelt as expected"
    );
    Ok(format!("{head}{changed}"))
}

/// A plausible line for a call that never was: a copy of `line` with its own id, time, request id, marker and a signature
/// of the right shape.
fn invent(
    line: &str,
    (donor, invented): (&str, &str),
    request: &str,
    draw: &mut Seed,
) -> anyhow::Result<String> {
    let entry: Value = serde_json::from_str(line).context("a line of the log is not JSON")?;
    let text = |key: &str| {
        entry
            .get(key)
            .and_then(Value::as_str)
            .with_context(|| format!("a line has no {key}"))
    };
    let id = text("id")?;
    let timestamp = text("timestamp")?;
    // The first ten characters of a ULID are its time; the rest is random.
    let new_id = format!(
        "{}{:016X}",
        id.get(..10).context("an id is not a ULID")?,
        draw.next()
    );
    let new_id = new_id.get(..26).context("an id is not a ULID")?;
    let [a, b, c, d] = [draw.next(), draw.next(), draw.next(), draw.next()];
    let signature = format!("{a:016x}{b:016x}{c:016x}{d:016x}");
    let mut new = line.replace(donor, invented);
    for (key, from, to) in [
        ("id", id, new_id),
        ("timestamp", timestamp, &later(timestamp, draw)?),
        ("request_id", text("request_id")?, request),
        ("signature", text("signature")?, &signature),
    ] {
        let (old_field, new_field) = (
            format!("\"{key}\":\"{from}\""),
            format!("\"{key}\":\"{to}\""),
        );
        if new.matches(&old_field).count() != 1 {
            bail!("{key} is not spelt as expected");
        }
        new = new.replace(&old_field, &new_field);
    }
    Ok(new)
}

/// Another time within the same millisecond.
fn later(timestamp: &str, draw: &mut Seed) -> anyhow::Result<String> {
    let seconds = timestamp
        .strip_suffix('Z')
        .context("a time is not in UTC")?;
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let millis: String = fraction.chars().chain("000".chars()).take(3).collect();
    // The proxy strips trailing zeros, so the last digit is not one.
    let rest = draw.below(99_999) * 10 + 1 + draw.below(9);
    Ok(format!("{whole}.{millis}{rest:06}Z"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use serde_json::Value;

    use super::tamper;

    #[test]
    fn every_seed_edits_one_line_deletes_one_and_invents_one() {
        let markers: Vec<String> = (0..9).map(|n| format!("m1-{n:02}-deadbeef")).collect();
        let log: String = markers
            .iter()
            .enumerate()
            .map(|(n, marker)| line(n, marker))
            .collect();
        for seed in 0..300 {
            let tampered = tamper(seed, &log, &markers).unwrap();
            let lines: Vec<&str> = tampered.log.lines().collect();
            assert_eq!(lines.len(), 9);
            let untouched = lines
                .iter()
                .filter(|line| log.contains(&format!("{line}\n")))
                .count();
            assert_eq!(untouched, 7, "seed {seed}");
            assert!(!tampered.log.contains(&tampered.deleted));
            let find = |marker: &str| {
                let found: Vec<&&str> = lines.iter().filter(|line| line.contains(marker)).collect();
                assert_eq!(found.len(), 1);
                serde_json::from_str::<Value>(found[0]).unwrap()
            };
            let edited = find(&tampered.edited);
            assert!(
                edited["params"]["arguments"]["path"]
                    .as_str()
                    .unwrap()
                    .ends_with(".innocent")
            );
            assert!(!edited["result"].to_string().contains(".innocent"));
            let invented = find(&tampered.invented);
            assert_eq!(invented["signature"].as_str().unwrap().len(), 64);
            assert_eq!(invented["id"].as_str().unwrap().len(), 26);
            assert!(
                invented["timestamp"]
                    .as_str()
                    .unwrap()
                    .starts_with("2026-11-20T07:18:55.189")
            );
        }
    }

    #[test]
    fn a_log_without_the_calls_is_refused() {
        let markers: Vec<String> = (0..3).map(|n| format!("m1-{n:02}-deadbeef")).collect();
        assert!(tamper(1, "", &markers).is_err());
        assert!(tamper(1, &line(1, &markers[0]), &markers[..1]).is_err());
    }

    fn line(n: usize, marker: &str) -> String {
        format!(
            "{{\"id\":\"01M7VX54YNCNCYV7JDEGH4FG{n:02}\",\"timestamp\":\"2026-11-20T07:18:55.1895228{n:02}Z\",\
             \"direction\":\"server\u{2192}client\",\"transport\":\"stdio\",\"method\":\"tools/call\",\"request_id\":\"{n}\",\
             \"tool_name\":\"read_text_file\",\"params\":{{\"arguments\":{{\"path\":\"/s/{marker}/notes.txt\"}},\
             \"name\":\"read_text_file\"}},\"result\":{{\"text\":\"/s/{marker}/notes.txt\"}},\"duration_ms\":{n},\
             \"client_id\":\"c\",\"server_id\":\"s\",\"signature\":\"{n:064x}\"}}\n"
        )
    }
}
