//! `countersign pair`: evidence from a spool and logs, offline.
//!
//! Owns where the logs come from: the files that are named, or the copies that were kept with the spool.

use std::path::Path;

use super::args::PairArgs;
use super::tell;
use crate::config::Config;
use crate::evidence::{self, Correlator, Fed, Outcome, Setup};
use crate::exit::{Code, Failure, OrExit};
use crate::key::KeyBytes;
use crate::outdir::{Dir, OutDir};
use crate::recording::SPOOL;
use crate::source::keptlog;
use crate::source::proxylog::{Follower, LogError};
use crate::spool::SpoolReader;

pub(super) fn pair(args: PairArgs) -> Result<Code, Failure> {
    let (flags, evidence_flags, path) = args.split();
    let config = Config::load(flags).or_exit(Code::Config)?;
    let keys = load_keys(&config)?;
    let (dir, mut spool) = open_spool(&path)?;
    let logs = open_offline_logs(&config)?;
    let out = OutDir::create(&evidence_flags.output, None).or_exit(Code::CantCreate)?;
    let setup = Setup {
        config: &config,
        keys,
        out: &out,
        json: evidence_flags.json,
    };
    let mut correlator = evidence::correlator(setup)?;
    let fed = evidence::feed_spool(&mut spool, &mut *correlator)?;
    tell_damage(fed);
    if logs.is_empty() {
        feed_kept(&dir, &mut *correlator)?;
    } else {
        feed_files(logs, &mut *correlator)?;
    }
    let outcome = correlator.finish().or_exit(Code::Io)?;
    Ok(Code::of_evidence(
        outcome.findings,
        outcome.could_not_see || fed.damaged > 0,
    ))
}

/// Pairs what was just recorded into the same output directory.
pub(super) fn pair_recording(setup: Setup<'_>) -> Result<Outcome, Failure> {
    let dir = setup.out.dir().open_dir(SPOOL.as_ref()).or_exit(Code::Io)?;
    let mut spool = SpoolReader::open(dir.try_clone().or_exit(Code::Io)?).or_exit(Code::Data)?;
    let mut correlator = evidence::correlator(setup)?;
    let fed = evidence::feed_spool(&mut spool, &mut *correlator)?;
    tell_damage(fed);
    feed_kept(&dir, &mut *correlator)?;
    let outcome = correlator.finish().or_exit(Code::Io)?;
    Ok(Outcome {
        could_not_see: outcome.could_not_see || fed.damaged > 0,
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
            error: error.context(format!("{} is no usable spool", path.display())),
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
        let mut sink = |event: crate::source::proxylog::LogEvent<'_>| {
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

fn feed_kept(dir: &Dir, correlator: &mut dyn Correlator) -> Result<(), Failure> {
    let found = keptlog::replay(dir, &mut |proxy, event| {
        correlator.log(proxy, event).map_err(std::io::Error::other)
    })
    .or_exit(Code::Io)?;
    if found {
        Ok(())
    } else {
        Err(Failure::new(
            Code::Usage,
            "the spool has no copy of a log: add --proxy-log FILE",
        ))
    }
}

fn tell_damage(fed: Fed) {
    if fed.damaged > 0 {
        tell(&format!(
            "could not see: {} pieces of the spool are damaged or missing",
            fed.damaged
        ));
    }
}
