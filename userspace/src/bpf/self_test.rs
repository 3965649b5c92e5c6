//! Does the capture work here? A token through a pipe and a socket pair must come back, whole, at both ends.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use countersign_common::{Transfer, channel_kind, direction, kind, tag};
use zerocopy::FromBytes;

use super::{
    capture::{Capture, ProgramLedger},
    hook::Hook,
    load::{is_tracepoint, load},
    options::LoadOptions,
    tier::Tier,
};

/// Longest wait for the token to come out of the ring.
const DEADLINE: Duration = Duration::from_secs(2);
const RING_BYTES: u32 = 1 << 20;
/// How the error begins when programs work, but not always.
pub const SKIPPED: &str = "the kernel preempts the programs and then skips them elsewhere";

/// How long programs are made to run on top of one another.
const STRESS: Duration = Duration::from_millis(300);
/// Threads of the stress: more than there are processors on most machines, so that they preempt each other.
const STRESS_THREADS: usize = 16;

/// Loads the programs of a tier, tags this process, moves a random token and looks for it. The tag is taken away again.
/// With `stress`, many threads then move bytes at once, and no program may have been skipped; that the ring runs full then is nothing.
///
/// Returned are the programs that were skipped without taking transfers with them: those on system calls, where functions
/// carry the transfers. Ends, spliced bytes and files can be missed then.
///
/// # Errors
/// What does not work: loading, tagging, the ends at which the token was not captured, or programs on transfers that were skipped.
pub fn self_test(tier: Tier, hook: Hook, stress: bool) -> anyhow::Result<Vec<String>> {
    let options = LoadOptions {
        tier,
        hook,
        ring_bytes: RING_BYTES,
        ..LoadOptions::default()
    };
    let mut capture = load(&options)?;
    let pid = std::process::id();
    capture.tag_pid(pid, tag::TREE)?;
    let tested = move_token().and_then(|token| wait_for(&mut capture, &token));
    let stressed = if stress && tested.is_ok() {
        under_stress(&capture)
    } else {
        Ok(Vec::new())
    };
    let untagged = capture.tag_pid(pid, 0);
    tested?;
    untagged?;
    stressed
}

/// Programs are skipped where one of them was preempted on the same processor.
fn under_stress(capture: &Capture) -> anyhow::Result<Vec<String>> {
    let end = Instant::now() + STRESS;
    std::thread::scope(|scope| {
        for _ in 0..STRESS_THREADS {
            scope.spawn(move || {
                let Ok((mut reader, mut writer)) = std::io::pipe() else {
                    return;
                };
                let mut byte = [0];
                while Instant::now() < end {
                    if writer.write_all(&byte).is_err() || reader.read_exact(&mut byte).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let skipped = capture.ledger();
    let (others, carriers): (Vec<_>, Vec<_>) = skipped
        .iter()
        .filter(|line| line.recursion_misses > 0)
        .partition(|line| capture.tier() != Tier::Tracepoints && is_tracepoint(&line.name));
    ensure!(
        carriers.is_empty(),
        "{SKIPPED}: {}",
        listed(&carriers).join(", ")
    );
    Ok(listed(&others))
}

fn listed(lines: &[&ProgramLedger]) -> Vec<String> {
    let words = |line: &&ProgramLedger| format!("{} ({} times)", line.name, line.recursion_misses);
    lines.iter().map(words).collect()
}

fn move_token() -> anyhow::Result<[u8; 32]> {
    let mut token = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut token))
        .context("read /dev/urandom")?;
    let mut back = [0; 32];
    let (mut reader, mut writer) = std::io::pipe().context("make a pipe")?;
    writer
        .write_all(&token)
        .and_then(|()| reader.read_exact(&mut back))
        .context("use a pipe")?;
    let (mut left, mut right) = UnixStream::pair().context("make a socket pair")?;
    left.write_all(&token)
        .and_then(|()| right.read_exact(&mut back))
        .context("use a socket pair")?;
    Ok(token)
}

fn wait_for(capture: &mut Capture, token: &[u8]) -> anyhow::Result<()> {
    let ends = [
        (channel_kind::PIPE, direction::WRITE, "a pipe's writer"),
        (channel_kind::PIPE, direction::READ, "a pipe's reader"),
        (
            channel_kind::UNIX_STREAM,
            direction::WRITE,
            "a unix socket's writer",
        ),
        (
            channel_kind::UNIX_STREAM,
            direction::READ,
            "a unix socket's reader",
        ),
    ];
    let mut seen = [false; 4];
    let deadline = Instant::now() + DEADLINE;
    loop {
        capture.drain(|record| {
            let Ok((transfer, payload)) = Transfer::read_from_prefix(record) else {
                return;
            };
            if transfer.header.kind != kind::CHUNK || payload != token {
                return;
            }
            for (seen, (channel, end, _)) in seen.iter_mut().zip(ends) {
                *seen |= (transfer.channel.kind, transfer.direction) == (channel, end);
            }
        });
        if seen == [true; 4] {
            return Ok(());
        }
        if Instant::now() > deadline {
            break;
        }
        capture.wait(Duration::from_millis(5))?;
    }
    let missing: Vec<_> = ends
        .iter()
        .zip(seen)
        .filter(|(_, seen)| !seen)
        .map(|((_, _, name), _)| *name)
        .collect();
    ensure!(
        missing.is_empty(),
        "the programs run, but bytes were not captured at: {}",
        missing.join(", ")
    );
    Ok(())
}
