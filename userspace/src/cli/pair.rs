//! `countersign pair`: evidence from a spool and logs, offline.
//!
//! Owns where the logs come from: the files that are named, or the copies that were kept with the spool, with the settings of
//! the recording.

use std::path::Path;

use super::args::PairArgs;
use super::tell;
use crate::config::{Config, Flags, Recorded};
use crate::confine::{self, Rights};
use crate::evidence::{self, Correlator, Fed, Outcome, Setup};
use crate::exit::{Code, Failure, OrExit};
use crate::key::KeyBytes;
use crate::outdir::{Dir, OutDir};
use crate::recording::SPOOL;
use crate::source::keptlog;
use crate::source::proxylog::{Follower, LogError, LogEvent};
use crate::spool::SpoolReader;

pub(super) fn pair(args: PairArgs) -> Result<Code, Failure> {
    let (flags, evidence_flags, path) = args.split();
    let (dir, spool) = open_spool(&path)?;
    // Of the records, this reads what the recorder noted of itself, and of the others no more than their lengths.
    let Settings { config, from_spool } = settings(flags, &dir)?;
    let keys = load_keys(&config)?;
    let logs = if from_spool {
        Vec::new()
    } else {
        open_offline_logs(&config)?
    };
    let out = OutDir::create(&evidence_flags.output, None).or_exit(Code::CantCreate)?;
    let setup = Setup {
        config: &config,
        keys,
        out: &out,
        json: evidence_flags.json,
    };
    let pair = move || pair_spool(&dir, spool, logs, from_spool, setup);
    if !confine::can_give_up_identity() {
        // Its user's own rights are all that there are.
        confine::filter_here().or_exit(Code::Internal)?;
        return pair();
    }
    // The spool and the logs are root's, and only read.
    let answer = confine::run(out.dir(), Rights::Read, || {
        pair().map_err(|failure| (failure.code, failure.to_string()))
    });
    match answer {
        Ok(Ok(code)) => Ok(code),
        Ok(Err((code, message))) => Err(Failure::new(code, message)),
        Err(error) => Err(error).or_exit(Code::Internal),
    }
}

/// Pairs, once what bytes of the watched can do to this process is as little as can be.
fn pair_spool(
    dir: &Dir,
    mut spool: SpoolReader,
    logs: Vec<Follower>,
    from_spool: bool,
    setup: Setup<'_>,
) -> Result<Code, Failure> {
    let config = setup.config;
    let mut correlator = evidence::correlator(setup)?;
    let fed = evidence::feed_spool(&mut spool, &mut *correlator)?;
    tell_damage(fed);
    let all_seen = if from_spool {
        feed_recorded(dir, config, false, &mut *correlator)?
    } else {
        let all_seen = check_kept(dir, &mut *correlator)?;
        feed_files(logs, &mut *correlator)?;
        all_seen
    };
    let outcome = correlator.finish().or_exit(Code::Io)?;
    Ok(Code::of_evidence(
        outcome.findings,
        outcome.could_not_see || fed.damaged > 0 || !all_seen,
    ))
}

/// The settings of one pairing.
struct Settings {
    config: Config,
    /// No proxy was named: they are those of the recording, and so are their logs.
    from_spool: bool,
}

/// What the command line says, or else what the recording was made with.
fn settings(mut flags: Flags, spool: &Dir) -> Result<Settings, Failure> {
    if flags.log.is_some() || flags.file.is_some() {
        let config = Config::load(flags).or_exit(Code::Config)?;
        if !config.proxies.is_empty() {
            return Ok(Settings {
                config,
                from_spool: false,
            });
        }
        return Err(no_proxy("the configuration has no [[proxy]] block"));
    }
    let recorded = SpoolReader::open(spool.try_clone().or_exit(Code::Io)?)
        .and_then(|mut spool| Recorded::find(&mut spool))
        .or_exit(Code::Data)?
        .unwrap_or_default();
    let (key, exe) = (flags.key.take(), flags.exe.take());
    let redact_keys = std::mem::take(&mut flags.redact_keys);
    let payload = flags.payload;
    let mut config = Config::load(flags).or_exit(Code::Config)?;
    config.proxies = recorded.proxies;
    config.allow_direct = recorded.allow_direct;
    config.capture.payload = payload.unwrap_or(recorded.payload);
    let described = key.is_some() || exe.is_some() || !redact_keys.is_empty();
    match config.proxies.as_mut_slice() {
        [] => return Err(no_proxy("the recording was made without one")),
        [one] => {
            one.key = key;
            one.exe = exe;
            if !redact_keys.is_empty() {
                one.redact_keys = Some(redact_keys);
            }
        }
        several if described => {
            return Err(Failure::new(
                Code::Usage,
                format!(
                    "the recording has {} proxies, and the flags do not say which they describe: use --config FILE with \
                     a [[proxy]] block for each",
                    several.len()
                ),
            ));
        }
        _ => {}
    }
    Ok(Settings {
        config,
        from_spool: true,
    })
}

fn no_proxy(why: &str) -> Failure {
    Failure::new(
        Code::Usage,
        format!(
            "no proxy log is named and {why}, so every call would be `bypassed`: add --proxy-log FILE, or --config FILE \
             with a [[proxy]] block"
        ),
    )
}

/// Pairs what was just recorded into the same output directory. `cut`: the copies of the logs are known to lack something.
pub(super) fn pair_recording(setup: Setup<'_>, cut: bool) -> Result<Outcome, Failure> {
    let config = setup.config;
    let dir = setup.out.dir().open_dir(SPOOL.as_ref()).or_exit(Code::Io)?;
    let mut spool = SpoolReader::open(dir.try_clone().or_exit(Code::Io)?).or_exit(Code::Data)?;
    let mut correlator = evidence::correlator(setup)?;
    let fed = evidence::feed_spool(&mut spool, &mut *correlator)?;
    tell_damage(fed);
    let all_seen = feed_recorded(&dir, config, cut, &mut *correlator)?;
    let outcome = correlator.finish().or_exit(Code::Io)?;
    Ok(Outcome {
        could_not_see: outcome.could_not_see || fed.damaged > 0 || !all_seen,
        ..outcome
    })
}

/// Reads the key of every proxy.
pub(super) fn load_keys(config: &Config) -> Result<Vec<Option<KeyBytes>>, Failure> {
    config
        .proxies
        .iter()
        .map(|proxy| {
            proxy
                .key
                .as_ref()
                .map(crate::key::KeySource::load)
                .transpose()
        })
        .collect::<Result<_, _>>()
        .or_exit(Code::Config)
}

/// Opens a spool by its own directory or the output directory around it.
fn open_spool(path: &Path) -> Result<(Dir, SpoolReader), Failure> {
    let open = || -> anyhow::Result<(Dir, SpoolReader)> {
        let named = Dir::open_named(path)?;
        let dir = named.open_dir(SPOOL.as_ref()).unwrap_or(named);
        let reader = SpoolReader::open(dir.try_clone()?)?;
        Ok((dir, reader))
    };
    open().map_err(|error| {
        let code = if error.downcast_ref::<std::io::Error>().is_some() {
            Code::NoInput
        } else {
            Code::Data
        };
        Failure {
            code,
            error: error.context(format!(
                "{} is no usable spool: name the directory that holds 00000001.spool, or the one around it; \
                 `run` keeps it with --keep-spool only",
                path.display()
            )),
        }
    })
}

fn open_offline_logs(config: &Config) -> Result<Vec<Follower>, Failure> {
    let open = |path: &Path| match Follower::new(path) {
        // Nothing will make it appear: without it every call would be called unlogged.
        Ok(_) if !path.exists() => Err(LogError::Missing(path.to_owned())),
        other => other,
    };
    config
        .proxies
        .iter()
        .map(|proxy| open(&proxy.log))
        .collect::<Result<_, _>>()
        .or_exit(Code::NoInput)
}

fn feed_files(logs: Vec<Follower>, correlator: &mut dyn Correlator) -> Result<(), Failure> {
    for (index, mut log) in logs.into_iter().enumerate() {
        let mut result = Ok(());
        let mut sink = |event: LogEvent<'_>| {
            if result.is_ok() {
                result = correlator.log(index, event);
            }
        };
        log.read_rotated(&mut sink);
        log.finish(&mut sink);
        result.or_exit(Code::Io)?;
    }
    Ok(())
}

/// Feeds the logs of a recording from the copies that were kept of them, or from where they lay if a full disk cut the copies;
/// whether all was kept.
fn feed_recorded(
    dir: &Dir,
    config: &Config,
    cut: bool,
    correlator: &mut dyn Correlator,
) -> Result<bool, Failure> {
    if !cut && !keptlog::was_cut(dir).or_exit(Code::Io)? {
        return feed_kept(dir, correlator);
    }
    tell(
        "could not see: the copies of the proxy's logs could not be kept to their end, so the logs themselves are read: what \
         was changed in them since it was recorded is not noticed",
    );
    let logs = open_offline_logs(config)?;
    keptlog::replay(dir, &mut |proxy, event| match event {
        // The logs have these themselves.
        LogEvent::Opened { .. } | LogEvent::Bytes { .. } | LogEvent::Missing => Ok(()),
        LogEvent::Truncated { .. }
        | LogEvent::Rewritten { .. }
        | LogEvent::Rotated { .. }
        | LogEvent::Removed { .. }
        | LogEvent::Refused { .. }
        | LogEvent::Unreadable { .. }
        | LogEvent::TooMany => correlator.log(proxy, event).map_err(std::io::Error::other),
    })
    .or_exit(Code::Io)?;
    feed_files(logs, correlator)?;
    Ok(false)
}

/// Feeds the copies that were kept with the spool; whether they were kept to the end. A copy that is damaged is not used: what is
/// wrong with it would be held against the proxy.
fn feed_kept(dir: &Dir, correlator: &mut dyn Correlator) -> Result<bool, Failure> {
    let replayed = keptlog::replay(dir, &mut |proxy, event| {
        correlator.log(proxy, event).map_err(std::io::Error::other)
    })
    .or_exit(Code::Io)?;
    if !replayed.found {
        return Err(Failure::new(
            Code::Usage,
            "the spool has no copy of a log: add --proxy-log FILE",
        ));
    }
    if let Some(trouble) = replayed.trouble {
        return Err(Failure::new(
            Code::Data,
            format!(
                "the copy of the proxy's log that was kept with the spool cannot be used: {trouble}; add --proxy-log FILE \
                 to pair with the log itself"
            ),
        ));
    }
    if !replayed.sealed {
        tell(
            "could not see: the copies of the proxy's logs have no end, as when a recording is killed",
        );
    }
    Ok(replayed.sealed)
}

/// Says in the evidence when the copies in the spool, which are not used, are damaged: nothing else would. Whether they were kept
/// to the end: a log that is named instead cannot be held against them then.
fn check_kept(dir: &Dir, correlator: &mut dyn Correlator) -> Result<bool, Failure> {
    let replayed = keptlog::replay(dir, &mut |_, _| Ok(())).or_exit(Code::Io)?;
    if let Some(trouble) = replayed.trouble {
        let detail =
            format!("the copy of the log that was kept with the spool is damaged: {trouble}");
        tell(&detail);
        correlator.kept_log_damaged(detail);
    }
    if let Some(cut) = &replayed.cut {
        tell(&format!(
            "could not see: of the copies of the proxy's logs, {cut}, so what was changed in the logs since is not noticed"
        ));
    }
    Ok(replayed.cut.is_none())
}

fn tell_damage(fed: Fed) {
    if fed.damaged > 0 {
        tell(&format!(
            "could not see: {} pieces of the spool are damaged or missing",
            fed.damaged
        ));
    }
}
