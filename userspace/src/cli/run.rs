//! `countersign run`: start an agent, record it, pair, report.
//!
//! Owns the order of things: everything that can be refused is refused before the agent exists, and the
//! agent runs nothing before it is tagged.

use std::time::{Duration, Instant};

use serde_json::json;

use super::args::RunArgs;
use super::pair::{load_keys, pair_recording};
use super::tell;
use crate::config::Config;
use crate::confine::{self, Rights};
use crate::evidence::{Outcome, Setup};
use crate::exit::{Code, Failure, OrExit};
use crate::launch::{self, Agent, Command, End, Event, LaunchError, Signals};
use crate::outdir::{self, OutDir};
use crate::recording::{self, Recorded, Recording, TICK};
use crate::witness::{self, ProxyExe};

pub(super) fn run(args: RunArgs) -> Result<Code, Failure> {
    let tier = args.spool.tier;
    let (flags, evidence, agent_command) = args.split();
    let config = Config::load(flags).or_exit(Code::Config)?;
    if config.proxies.is_empty() {
        return Err(Failure::new(
            Code::Usage,
            "no proxy is named: add --proxy-log FILE, or --config FILE with a [[proxy]] block",
        ));
    }
    let keys = load_keys(&config)?;
    let proxy_exes = proxy_exes(&config)?;
    let logs = recording::open_logs(&config)?;
    let identity = launch::resolve_user(config.capture.user.as_deref()).or_exit(Code::Usage)?;
    witness::check_privileges()?;
    let reach = outdir::Agent {
        uid: identity.uid,
        groups: identity.groups.clone(),
    };
    let out = OutDir::create(&evidence.output, Some(&reach)).or_exit(Code::CantCreate)?;
    if identity.uid == 0 {
        tell("warning: the agent runs as root and could stop the recording or change the evidence");
    }

    let capture = recording::capture_id().or_exit(Code::Internal)?;
    let request = witness::Request {
        capture,
        proxy_exes,
        pin: None,
        ring_bytes: config.capture.ring_bytes,
        watched_files: crate::watched::files(&config, out.path()),
        tier,
    };
    let capture = witness::attach(&request)?;

    // From here on signals are read, not handled: they belong to the agent first.
    let signals = Signals::block().or_exit(Code::Internal)?;
    let mut recording = Recording::begin(&config, &out, &request, capture, logs)?;
    recording
        .note_identity(&request.proxy_exes)
        .or_exit(Code::Internal)?;
    let hidden_variables = if config.capture.pass_key {
        Vec::new()
    } else {
        config.key_variables()
    };
    let command = Command {
        argv: agent_command,
        identity,
        allow_setuid: config.capture.allow_setuid,
        hidden_variables,
    };
    let started = start(command, &signals, &mut recording);
    let mut agent = match started {
        Ok(agent) => agent,
        Err(failure) => {
            recording.finish(&json!({ "event": "end", "agent": "not started" }));
            return Err(failure);
        }
    };
    let end = watch(&mut agent, &signals, &mut recording)?;
    let survivors = linger(config.capture.linger, &signals, &mut recording);
    tell_end(end, &survivors);
    let recorded = recording
        .finish(&json!({ "event": "end", "agent": describe(end), "survivors": survivors }));
    // Kills the agent if the capture ended before it did: it must not go on unseen.
    drop(agent);
    tell_losses(&recorded);
    // Pairing may take long and can be repeated: from here on Ctrl-C ends this program.
    signals.release();

    let setup = Setup {
        config: &config,
        keys,
        out: &out,
        json: evidence.json,
    };
    let cut = recorded.log_bytes_lost > 0;
    let outcome = pair_unprivileged(&out, setup, cut).inspect_err(|_| {
        let dir = out.path().display();
        tell(&format!(
            "what was recorded is kept in {dir}; put right what the error says, then run \
             `countersign pair {dir} -o ANOTHER_DIRECTORY` with the same key"
        ));
    })?;
    if !config.capture.keep_spool
        && let Err(error) = recording::remove_spool(&out)
    {
        tell(&format!(
            "warning: the spool with full payloads could not be removed: {error}"
        ));
    }
    let could_not_see = outcome.could_not_see || recorded.incomplete() || !survivors.is_empty();
    Ok(Code::of_evidence(outcome.findings, could_not_see))
}

/// Pairs in a child without privileges: from here on bytes are parsed that the agent chose.
fn pair_unprivileged(out: &OutDir, setup: Setup<'_>, cut: bool) -> Result<Outcome, Failure> {
    // Where the copies of the logs are cut, the logs themselves are read: some other user's, perhaps.
    let rights = if cut { Rights::Read } else { Rights::None };
    let answer = confine::run(out.dir(), rights, || {
        pair_recording(setup, cut).map_err(|failure| (failure.code, failure.to_string()))
    });
    match answer {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err((code, message))) => Err(Failure::new(code, message)),
        Err(error) => Err(error).or_exit(Code::Internal),
    }
}

/// Executables to take for proxies: the configured ones and this program itself.
pub(super) fn proxy_exes(config: &Config) -> Result<Vec<ProxyExe>, Failure> {
    let own = std::env::current_exe()
        .and_then(|path| ProxyExe::identify(None, &path))
        .or_exit(Code::Io)?;
    let mut exes = vec![own];
    for (index, proxy) in config.proxies.iter().enumerate() {
        let Some(exe) = &proxy.exe else { continue };
        let found = ProxyExe::identify(Some(index), exe).map_err(|error| {
            Failure::new(
                Code::Config,
                format!(
                    "the executable {} of proxy {} cannot be used: {error}; check --proxy-exe",
                    exe.display(),
                    proxy.name
                ),
            )
        })?;
        exes.push(found);
    }
    Ok(exes)
}

fn start(command: Command, signals: &Signals, recording: &mut Recording) -> Result<Agent, Failure> {
    let blocked = command.fork(signals).map_err(launch_failure)?;
    let pid = blocked.pid();
    let Some(pidfd) = blocked.pidfd() else {
        return Err(Failure::new(
            Code::Internal,
            "the agent's process has no descriptor",
        ));
    };
    recording.tag(pid, pidfd).or_exit(Code::Internal)?;
    recording.note(
        countersign_common::kind::CAPTURE,
        &json!({ "event": "agent", "pid": pid }),
    );
    blocked.release().map_err(launch_failure)
}

fn launch_failure(error: LaunchError) -> Failure {
    let code = match &error {
        LaunchError::NoProgram | LaunchError::Nul => Code::Usage,
        LaunchError::NotFound { .. } => Code::AgentNotFound,
        LaunchError::NotExecutable { .. } => Code::AgentNotExecutable,
        LaunchError::Prepare { .. } => Code::NoPermission,
        LaunchError::Vanished | LaunchError::Io(_) => Code::Internal,
    };
    Failure {
        code,
        error: error.into(),
    }
}

/// Waits for the agent's end; `None` if the capture failed first.
fn watch(
    agent: &mut Agent,
    signals: &Signals,
    recording: &mut Recording,
) -> Result<Option<End>, Failure> {
    while recording.tick() {
        match agent.wait(signals, TICK).or_exit(Code::Internal)? {
            Event::Ended(end) => return Ok(Some(end)),
            Event::Signal(number) => {
                tell(&format!("signal {number} was passed on to the agent"));
            }
            Event::Timeout => {}
        }
    }
    agent.signal_group(rustix::process::Signal::KILL);
    Ok(None)
}

/// Goes on until the time is over, a signal comes, or nobody is left; returns who still lives.
fn linger(time: Duration, signals: &Signals, recording: &mut Recording) -> Vec<u32> {
    let until = Instant::now() + time;
    loop {
        let going = recording.tick();
        if Instant::now() >= until || signals.next_stopping().is_some() || !going {
            break;
        }
        std::thread::sleep(TICK);
    }
    recording.survivors().unwrap_or_else(|error| {
        tell(&format!(
            "warning: it is not known which of the agent's processes still live: {error:#}"
        ));
        Vec::new()
    })
}

fn describe(end: Option<End>) -> String {
    match end {
        None => "was stopped because the capture ended".to_owned(),
        Some(End::Exited(code)) => format!("exited with code {code}"),
        Some(End::Killed(signal)) => format!("was killed by signal {signal}"),
    }
}

fn tell_end(end: Option<End>, survivors: &[u32]) {
    tell(&format!("the agent {}", describe(end)));
    if !survivors.is_empty() {
        let list: Vec<_> = survivors.iter().take(16).map(u32::to_string).collect();
        let more = survivors.len().saturating_sub(list.len());
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        tell(&format!(
            "{} of its processes still run and are no longer watched: {}{more}; use a longer --linger",
            survivors.len(),
            list.join(", ")
        ));
    }
}

pub(super) fn tell_losses(recorded: &Recorded) {
    let spool = &recorded.spool;
    if spool.lost_something() {
        let why = spool.last_error.as_deref().unwrap_or("unknown reason");
        tell(&format!(
            "could not see: {} records ({} bytes) did not fit into the spool: {why}",
            spool.lost_records, spool.lost_bytes
        ));
    }
    if recorded.log_bytes_lost > 0 {
        tell(&format!(
            "could not see: {} bytes of proxy logs were not kept",
            recorded.log_bytes_lost
        ));
    }
    if recorded.ring.ring_dropped_records > 0 {
        tell(&format!(
            "could not see: {} records ({} bytes of payload) found the kernel's ring full",
            recorded.ring.ring_dropped_records, recorded.ring.ring_dropped_bytes
        ));
    }
    if recorded.reconciled > 0 {
        tell(&format!(
            "could not see: {} processes ran for a while without being watched",
            recorded.reconciled
        ));
    }
    if let Some(failed) = &recorded.failed {
        tell(&format!("could not see: the capture ended early: {failed}"));
    }
}
