//! `countersign record`: record what runs already, until told to stop.
//!
//! Owns finding the processes that the operator names. Pairing is left to `countersign pair`.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::args::RecordArgs;
use super::pinned::{self, Pinned};
use super::run::{proxy_exes, tell_losses};
use super::tell;
use crate::config::Config;
use crate::exit::{Code, Failure, OrExit};
use crate::launch::Signals;
use crate::outdir::OutDir;
use crate::recording::{self, Recording, TICK};
use crate::witness;

mod attach;
mod targets;

/// Time between two looks at who has joined or left.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) fn record(args: RecordArgs) -> Result<Code, Failure> {
    let tier = args.spool.tier;
    let (flags, evidence, targets, pin) = args.split();
    let config = Config::load(flags).or_exit(Code::Config)?;
    let proxy_exes = proxy_exes(&config)?;
    let logs = recording::open_logs(&config)?;
    witness::check_privileges()?;
    let asked = pinned::asked(&targets);
    let pinned = pinned::look(pin.as_deref(), &asked, tier)?;
    let found = match &pinned {
        // Of those who were named, some may have ended; whoever is watched has its tag.
        Pinned::Left(..) => targets::find_what_is_left(&targets)?,
        Pinned::No | Pinned::New(..) => targets::find(&targets)?,
    };
    let users = found.users();
    let out = match &pinned {
        Pinned::Left(..) => OutDir::resume(&evidence.output, &users),
        Pinned::No | Pinned::New(..) => OutDir::create(&evidence.output, &users),
    }
    .or_exit(Code::CantCreate)?;
    if users.iter().any(|user| user.uid == 0) {
        tell(
            "warning: a recorded process runs as root and could stop the recording or change the evidence",
        );
    }
    let capture = match &pinned {
        Pinned::Left(_, note, _) => note.capture(),
        Pinned::No | Pinned::New(..) => recording::capture_id().or_exit(Code::Internal)?,
    };
    let request = witness::Request {
        capture,
        proxy_exes,
        pin: pinned.dir().cloned().map(|dir| (dir, asked)),
        tier,
        ring_bytes: config.capture.ring_bytes,
        watched_files: crate::watched::files(&config, out.path()),
    };
    let (signals, mut recording) = match &pinned {
        Pinned::Left(dir, note, _) => {
            let capture = witness::go_on(dir, note)?;
            let signals = Signals::block().or_exit(Code::Internal)?;
            let recording = Recording::resume(&config, &out, &request, capture, logs)?;
            (signals, recording)
        }
        Pinned::No | Pinned::New(..) => {
            let capture = witness::attach(&request)?;
            let signals = Signals::block().or_exit(Code::Internal)?;
            let recording = Recording::begin(&config, &out, &request, capture, logs)?;
            recording
                .note_identity(&request.proxy_exes)
                .or_exit(Code::Internal)?;
            (signals, recording)
        }
    };
    let attached = match attach::attach(&found, &recording) {
        Ok(attached) => attached,
        Err(failure) => {
            recording.finish(&json!({ "event": "end", "attached": false }));
            return Err(failure);
        }
    };
    if let Err(failure) = recording.settle() {
        recording.finish(&json!({ "event": "end", "attached": false }));
        return Err(failure);
    }
    let processes = match &pinned {
        Pinned::Left(..) => recording.survivors().or_exit(Code::Internal)?.len(),
        Pinned::No | Pinned::New(..) => attached.processes,
    };
    tell(&format!(
        "recording {processes} processes and what they start, until interrupted; {} others hold an end of their channels",
        attached.peers
    ));
    let followed = follow(&found, &signals, &mut recording);
    // Without an end in the records, what a later pairing cannot have seen is no accusation.
    let end = if followed.is_ok() { "end" } else { "failed" };
    let recorded = recording.finish(&json!({ "event": end }));
    tell_losses(&recorded);
    tell(&format!(
        "recorded {} records into {}",
        recorded.spool.records,
        out.path().display()
    ));
    followed?;
    tell(&how_to_pair(&config, out.path()));
    Ok(Code::of_evidence(false, recorded.incomplete()))
}

/// The way on. Without a proxy in the recording there is no copy of a log in it.
fn how_to_pair(config: &Config, out: &Path) -> String {
    let log = if config.proxies.is_empty() {
        " --proxy-log LOG"
    } else {
        ""
    };
    format!(
        "nothing is judged yet: run `countersign pair {}{log} --key-file KEY -o ANOTHER_DIRECTORY`",
        out.display()
    )
}

/// Goes on until a signal comes, the capture fails, or nobody is left who could act or join.
fn follow(
    found: &targets::Found,
    signals: &Signals,
    recording: &mut Recording,
) -> Result<(), Failure> {
    let mut look_at = Instant::now() + LOOK_EVERY;
    while signals.next_stopping().is_none() && recording.tick() {
        if Instant::now() >= look_at {
            look_at = Instant::now() + LOOK_EVERY;
            if found.has_groups() {
                attach::join(found, recording)?;
            } else if recording.survivors().or_exit(Code::Internal)?.is_empty() {
                tell("all recorded processes have ended");
                break;
            }
        }
        std::thread::sleep(TICK);
    }
    Ok(())
}
