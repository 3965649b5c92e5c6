//! `countersign record`: record what runs already, until told to stop.
//!
//! Owns finding the processes that the operator names. Pairing is left to `countersign pair`.

use std::os::fd::AsFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::json;

use super::args::RecordArgs;
use super::run::{proxy_exes, tell_losses};
use super::tell;
use crate::config::Config;
use crate::exit::{Code, Failure, OrExit};
use crate::launch::Signals;
use crate::outdir::OutDir;
use crate::recording::{self, Recording, TICK};
use crate::witness;

mod targets;

pub(super) fn record(args: RecordArgs) -> Result<Code, Failure> {
    let (flags, evidence, targets) = args.split();
    let config = Config::load(flags).or_exit(Code::Config)?;
    let proxy_exes = proxy_exes(&config)?;
    let logs = recording::open_logs(&config)?;
    targets::find(&targets)?;
    witness::check_privileges()?;
    let out = OutDir::create(&evidence.output, None).or_exit(Code::CantCreate)?;
    let capture = recording::capture_id().or_exit(Code::Internal)?;
    let witness = witness::attach(&witness::Request {
        capture: capture.clone(),
        proxy_exes: proxy_exes.clone(),
    })?;
    let signals = Signals::block().or_exit(Code::Internal)?;
    let mut recording = Recording::begin(&config, &out, &capture, witness, logs)?;
    recording
        .note_identity(&proxy_exes)
        .or_exit(Code::Internal)?;
    let tagged = tag_all(&targets, &mut recording)?;
    tell(&format!(
        "recording {tagged} processes and what they start, until interrupted"
    ));
    while signals.next().is_none() && recording.tick() {
        std::thread::sleep(TICK);
    }
    let recorded = recording.finish(&json!({ "event": "end" }));
    tell_losses(&recorded);
    tell(&format!(
        "recorded {} records into {}",
        recorded.spool.records,
        out.path().display()
    ));
    Ok(Code::of_evidence(false, recorded.incomplete()))
}

/// Tags the targets, and again those that appeared meanwhile, until no new one does.
fn tag_all(targets: &super::Targets, recording: &mut Recording) -> Result<usize, Failure> {
    let mut tagged = std::collections::BTreeSet::new();
    for _ in 0..targets::ROUNDS_MAX {
        let new: Vec<u32> = targets::find(targets)?
            .into_iter()
            .filter(|pid| !tagged.contains(pid))
            .collect();
        if new.is_empty() {
            return Ok(tagged.len());
        }
        for pid in new {
            tagged.insert(pid);
            let Some(handle) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
                continue;
            };
            // Gone since it was listed: nothing to record.
            let Ok(pidfd) = pidfd_open(handle, PidfdFlags::empty()) else {
                continue;
            };
            recording
                .witness()
                .tag(pid, pidfd.as_fd())
                .or_exit(Code::Internal)?;
            recording.note(
                countersign_common::kind::CAPTURE,
                &json!({ "event": "attached", "pid": pid }),
            );
        }
    }
    Err(Failure::new(
        Code::Unavailable,
        "processes appear faster than they can be tagged: name fewer, or stop the fork storm",
    ))
}
