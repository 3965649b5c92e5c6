//! The settings of one command, from flags and an optional `countersign.toml`.
//!
//! Owns the merged form that the rest of the shell works with, its defaults and its limits. Does not
//! open logs or read keys. The flags of the command line describe one more `[[proxy]]` block.

mod file;
mod recorded;
mod units;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bpf::options::RING_BYTES_DEFAULT;
use crate::key::KeySource;

pub use file::ConfigFile;
pub use recorded::Recorded;
pub use units::{RING_BYTES_MAX, RING_BYTES_MIN, parse_bytes, parse_duration, parse_ring_bytes};

/// Most proxies in one configuration. Stops a generated file from opening descriptors without end.
pub const PROXIES_MAX: usize = 256;

/// How much of a payload goes into the evidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    /// With the values of sensitive keys replaced, as the proxy does it.
    #[default]
    Redacted,
    /// Length and keyed hash only.
    Hash,
    /// Everything, as seen.
    Full,
}

/// One audit proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Proxy {
    /// Its name in the evidence.
    pub name: String,
    /// Its log.
    pub log: PathBuf,
    /// Where its signing key comes from; without one, signatures are not checked.
    #[serde(skip)]
    pub key: Option<KeySource>,
    /// Its executable; only a process running this very file can be taken for the proxy.
    pub exe: Option<PathBuf>,
    /// What it forwards to, for the evidence.
    pub upstream: Option<String>,
    /// Words that make it redact a value, when not its built-in ones.
    pub redact_keys: Option<Vec<String>>,
}

/// A direct channel that the operator allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AllowDirect {
    /// Executable of the server that may be spoken to without a proxy.
    pub server_exe: PathBuf,
    /// Only these methods; `None`: all.
    pub methods: Option<Vec<String>>,
    /// Why, for the evidence.
    pub reason: String,
}

/// How to record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capture {
    /// Time that recording goes on after the agent's first process has ended.
    pub linger: Duration,
    /// The user that the agent runs as.
    pub user: Option<String>,
    /// Whether set-user-id programs keep their effect for the agent.
    pub allow_setuid: bool,
    /// Whether variables with keys stay in the agent's environment.
    pub pass_key: bool,
    /// How much of a payload goes into the evidence.
    pub payload: Payload,
    /// Most bytes of spool on disk.
    pub max_disk_bytes: Option<u64>,
    /// Size of the kernel's ring in bytes, a power of two.
    pub ring_bytes: u32,
    /// Whether the spool stays after pairing.
    pub keep_spool: bool,
}

/// Time that recording goes on by default: enough for a server to write its last answer, and for a proxy its log.
pub const LINGER_DEFAULT: Duration = Duration::from_secs(2);

/// Everything together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// The proxies, in the order given.
    pub proxies: Vec<Proxy>,
    /// Allowed direct channels.
    pub allow_direct: Vec<AllowDirect>,
    /// How to record.
    pub capture: Capture,
}

/// What the command line said; `None` and empty mean that it said nothing.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// `--proxy-log`.
    pub log: Option<PathBuf>,
    /// `--key-env`, `--key-file` or `--key-fd`.
    pub key: Option<KeySource>,
    /// `--proxy-exe`.
    pub exe: Option<PathBuf>,
    /// `--redact-key`.
    pub redact_keys: Vec<String>,
    /// `--linger`.
    pub linger: Option<Duration>,
    /// `--user`.
    pub user: Option<String>,
    /// `--allow-setuid`.
    pub allow_setuid: bool,
    /// `--pass-key`.
    pub pass_key: bool,
    /// `--payload`.
    pub payload: Option<Payload>,
    /// `--max-disk`.
    pub max_disk_bytes: Option<u64>,
    /// `--ring-size`.
    pub ring_bytes: Option<u32>,
    /// `--keep-spool`.
    pub keep_spool: bool,
}

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: check --config", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Anyone can change it.
    #[error("{}: every user can write to it, the agent too: run `chmod o-w` on it", .0.display())]
    WorldWritable(PathBuf),
    /// Far too long.
    #[error("{}: longer than {limit} bytes: this is no countersign.toml", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// Not TOML, or a key that is unknown, missing or of the wrong type.
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What and where.
        message: String,
    },
    /// A value that makes no sense.
    #[error("{}: {key}: {message}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key with its block.
        key: String,
        /// What is wrong and how to fix it.
        message: String,
    },
    /// `--key-*`, `--proxy-exe` or `--redact-key` without the log that they belong to.
    #[error(
        "{0} describes the proxy of --proxy-log: add --proxy-log, or move it to the configuration file"
    )]
    FlagWithoutLog(&'static str),
    /// A path that neither the spool's JSON nor the tables can hold.
    #[error("{}: the evidence names it, and only in UTF-8: rename it", .0.display())]
    NotUtf8(PathBuf),
    /// Two blocks with the same name or log.
    #[error("two proxies have the {what} {value}: each needs its own")]
    Duplicate {
        /// Name or log.
        what: &'static str,
        /// The value.
        value: String,
    },
}

impl Config {
    /// Merges flags and file; flags go first.
    ///
    /// # Errors
    /// [`ConfigError`], naming file, key and fix.
    pub fn load(flags: Flags) -> Result<Self, ConfigError> {
        let file = flags
            .file
            .as_deref()
            .map(ConfigFile::read)
            .transpose()?
            .unwrap_or_default();
        let mut proxies = file.proxies;
        if let Some(log) = flags.log {
            proxies.insert(
                0,
                Proxy {
                    name: "proxy".to_owned(),
                    log,
                    key: flags.key,
                    exe: flags.exe,
                    upstream: None,
                    redact_keys: (!flags.redact_keys.is_empty()).then_some(flags.redact_keys),
                },
            );
        } else if flags.key.is_some() {
            return Err(ConfigError::FlagWithoutLog(
                "--key-env, --key-file or --key-fd",
            ));
        } else if flags.exe.is_some() {
            return Err(ConfigError::FlagWithoutLog("--proxy-exe"));
        } else if !flags.redact_keys.is_empty() {
            return Err(ConfigError::FlagWithoutLog("--redact-key"));
        }
        refuse_duplicates(&proxies)?;
        for proxy in &proxies {
            refuse_non_utf8(&proxy.log)?;
            proxy.exe.as_deref().map_or(Ok(()), refuse_non_utf8)?;
        }
        let capture = file.capture;
        Ok(Self {
            proxies,
            allow_direct: file.allow_direct,
            capture: Capture {
                linger: flags.linger.or(capture.linger).unwrap_or(LINGER_DEFAULT),
                user: flags.user.or(capture.user),
                allow_setuid: flags.allow_setuid || capture.allow_setuid,
                pass_key: flags.pass_key || capture.pass_key,
                payload: flags.payload.or(capture.payload).unwrap_or_default(),
                max_disk_bytes: flags.max_disk_bytes.or(capture.max_disk_bytes),
                ring_bytes: flags
                    .ring_bytes
                    .or(capture.ring_bytes)
                    .unwrap_or(RING_BYTES_DEFAULT),
                keep_spool: flags.keep_spool || capture.keep_spool,
            },
        })
    }

    /// Names of environment variables that hold keys.
    pub fn key_variables(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .proxies
            .iter()
            .filter_map(|proxy| match &proxy.key {
                Some(KeySource::Env(name)) => Some(name.clone()),
                Some(KeySource::File(_) | KeySource::Fd(_)) | None => None,
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

fn refuse_non_utf8(path: &Path) -> Result<(), ConfigError> {
    match path.to_str() {
        Some(_) => Ok(()),
        None => Err(ConfigError::NotUtf8(path.to_owned())),
    }
}

fn refuse_duplicates(proxies: &[Proxy]) -> Result<(), ConfigError> {
    let mut names = std::collections::BTreeSet::new();
    let mut logs = std::collections::BTreeSet::<&Path>::new();
    for proxy in proxies {
        if !names.insert(&proxy.name) {
            return Err(ConfigError::Duplicate {
                what: "name",
                value: proxy.name.clone(),
            });
        }
        if !logs.insert(&proxy.log) {
            return Err(ConfigError::Duplicate {
                what: "log",
                value: proxy.log.display().to_string(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use super::*;

    #[test]
    fn flags_are_one_more_proxy_and_win_over_the_file() {
        let file = write(
            r#"
            [capture]
            linger = "5s"
            payload = "hash"
            [[proxy]]
            name = "files"
            log = "/var/log/a.jsonl"
            key_file = "/etc/a.key"
            "#,
        );
        let config = Config::load(Flags {
            file: Some(file.path().to_owned()),
            log: Some("b.jsonl".into()),
            key: Some(KeySource::Env("SECRET".into())),
            payload: Some(Payload::Full),
            ..Flags::default()
        })
        .unwrap();
        assert_eq!(
            config
                .proxies
                .iter()
                .map(|proxy| proxy.name.as_str())
                .collect::<Vec<_>>(),
            ["proxy", "files"]
        );
        assert_eq!(config.capture.linger, Duration::from_secs(5));
        assert_eq!(config.capture.payload, Payload::Full);
        assert_eq!(config.key_variables(), ["SECRET"]);
    }

    #[test]
    fn proxy_flags_without_a_log_are_refused() {
        let flags = Flags {
            exe: Some("/bin/x".into()),
            ..Flags::default()
        };
        assert!(
            Config::load(flags)
                .unwrap_err()
                .to_string()
                .contains("--proxy-log")
        );
    }

    #[test]
    fn the_same_log_twice_is_refused() {
        let file = write("[[proxy]]\nname='a'\nlog='/x'\n[[proxy]]\nname='b'\nlog='/x'\n");
        let flags = Flags {
            file: Some(file.path().to_owned()),
            ..Flags::default()
        };
        assert!(matches!(
            Config::load(flags),
            Err(ConfigError::Duplicate { what: "log", .. })
        ));
    }

    #[test]
    fn settings_never_serialise_a_key_source() {
        let flags = Flags {
            log: Some("x".into()),
            key: Some(KeySource::Env("TOPSECRET".into())),
            ..Flags::default()
        };
        let json = serde_json::to_string(&Config::load(flags).unwrap()).unwrap();
        assert!(!json.contains("TOPSECRET"));
    }

    fn write(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }
}
