//! `countersign.toml`.
//!
//! Owns the file's shape and the messages about mistakes in it. Relative paths are relative to the
//! file's directory, so that a configuration means the same wherever the command is run.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::{
    AllowDirect, ConfigError, PROXIES_MAX, Payload, Proxy, parse_bytes, parse_duration,
    parse_ring_bytes,
};
use crate::key::KeySource;

/// Longest configuration in bytes. Stops `--config` pointing at a log or a device.
const FILE_MAX_BYTES: usize = 1 << 20;

/// A configuration file, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigFile {
    /// The `[[proxy]]` blocks.
    pub proxies: Vec<Proxy>,
    /// The `[[allow_direct]]` blocks.
    pub allow_direct: Vec<AllowDirect>,
    /// The `[capture]` block.
    pub capture: FileCapture,
}

/// The `[capture]` block; `None` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileCapture {
    /// `linger`, such as `"2s"`.
    pub linger: Option<Duration>,
    /// `user`.
    pub user: Option<String>,
    /// `allow_setuid`.
    pub allow_setuid: bool,
    /// `pass_key`.
    pub pass_key: bool,
    /// `payload`.
    pub payload: Option<Payload>,
    /// `max_disk`, such as `"10GiB"`.
    pub max_disk_bytes: Option<u64>,
    /// `ring_size`, such as `"256MiB"`.
    pub ring_bytes: Option<u32>,
    /// `keep_spool`.
    pub keep_spool: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    proxy: Vec<RawProxy>,
    #[serde(default)]
    allow_direct: Vec<RawAllow>,
    #[serde(default)]
    capture: RawCapture,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProxy {
    name: String,
    log: PathBuf,
    key_env: Option<String>,
    key_file: Option<PathBuf>,
    exe: Option<PathBuf>,
    upstream: Option<String>,
    redact_keys: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAllow {
    server_exe: PathBuf,
    methods: Option<Vec<String>>,
    reason: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCapture {
    linger: Option<String>,
    user: Option<String>,
    allow_setuid: bool,
    pass_key: bool,
    payload: Option<RawPayload>,
    max_disk: Option<String>,
    ring_size: Option<String>,
    keep_spool: bool,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawPayload {
    Redacted,
    Hash,
    Full,
}

impl ConfigFile {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file and the key or line.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let io_error = |source| ConfigError::Io {
            path: path.to_owned(),
            source,
        };
        let file = std::fs::File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(io_error)?;
        let metadata = file.metadata().map_err(io_error)?;
        if metadata.is_file() && metadata.mode() & 0o002 != 0 {
            return Err(ConfigError::WorldWritable(path.to_owned()));
        }
        let mut text = String::new();
        file.take(FILE_MAX_BYTES as u64 + 1)
            .read_to_string(&mut text)
            .map_err(io_error)?;
        if text.len() > FILE_MAX_BYTES {
            return Err(ConfigError::TooLong {
                path: path.to_owned(),
                limit: FILE_MAX_BYTES,
            });
        }
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            line: error.span().map_or(1, |span| line_of(text, span.start)),
            message: error.message().trim().replace('\n', ", "),
        })?;
        let check = Check {
            path,
            base: path.parent().unwrap_or(Path::new("")),
        };
        if raw.proxy.len() > PROXIES_MAX {
            return Err(check.error(
                "[[proxy]]",
                format!("more than {PROXIES_MAX} blocks: split the file"),
            ));
        }
        Ok(Self {
            proxies: raw
                .proxy
                .into_iter()
                .map(|proxy| check.proxy(proxy))
                .collect::<Result<_, _>>()?,
            allow_direct: raw
                .allow_direct
                .into_iter()
                .map(|allow| check.allow(allow))
                .collect::<Result<_, _>>()?,
            capture: check.capture(raw.capture)?,
        })
    }
}

struct Check<'a> {
    path: &'a Path,
    base: &'a Path,
}

impl Check<'_> {
    fn proxy(&self, raw: RawProxy) -> Result<Proxy, ConfigError> {
        let block = |key: &str| format!("[[proxy]] {}: {key}", raw.name.escape_debug());
        if raw.name.is_empty() || raw.name.chars().any(char::is_control) {
            return Err(self.error(&block("name"), "must be some printable text".into()));
        }
        if raw.log.as_os_str().is_empty() {
            return Err(self.error(&block("log"), "must be the path of the proxy's log".into()));
        }
        let key = match (raw.key_env, raw.key_file) {
            (Some(_), Some(_)) => {
                return Err(self.error(
                    &block("key_env"),
                    "key_file is there too: keep one of them".into(),
                ));
            }
            (Some(name), None) if name.is_empty() || name.contains(['=', '\0']) => {
                return Err(self.error(
                    &block("key_env"),
                    "must be the name of an environment variable".into(),
                ));
            }
            (Some(name), None) => Some(KeySource::Env(name)),
            (None, Some(file)) => Some(KeySource::File(self.base.join(file))),
            (None, None) => None,
        };
        if raw.redact_keys.iter().flatten().any(String::is_empty) {
            return Err(self.error(
                &block("redact_keys"),
                "an empty word would redact everything: remove it".into(),
            ));
        }
        Ok(Proxy {
            log: self.base.join(raw.log),
            key,
            exe: raw.exe.map(|exe| self.base.join(exe)),
            upstream: raw.upstream,
            redact_keys: raw.redact_keys,
            name: raw.name,
        })
    }

    fn allow(&self, raw: RawAllow) -> Result<AllowDirect, ConfigError> {
        if raw.reason.trim().is_empty() {
            return Err(self.error(
                "[[allow_direct]] reason",
                "must say why, the evidence repeats it".into(),
            ));
        }
        if !raw.server_exe.is_absolute() {
            return Err(self.error(
                "[[allow_direct]] server_exe",
                "must be an absolute path: a rule that depends on a directory allows too much"
                    .into(),
            ));
        }
        Ok(AllowDirect {
            server_exe: raw.server_exe,
            methods: raw.methods,
            reason: raw.reason,
        })
    }

    fn capture(&self, raw: RawCapture) -> Result<FileCapture, ConfigError> {
        let linger = raw.linger.as_deref().map(parse_duration).transpose();
        let max_disk = raw.max_disk.as_deref().map(parse_bytes).transpose();
        let ring_size = raw.ring_size.as_deref().map(parse_ring_bytes).transpose();
        Ok(FileCapture {
            linger: linger.map_err(|message| self.error("[capture] linger", message))?,
            user: raw.user,
            allow_setuid: raw.allow_setuid,
            pass_key: raw.pass_key,
            payload: raw.payload.map(|payload| match payload {
                RawPayload::Redacted => Payload::Redacted,
                RawPayload::Hash => Payload::Hash,
                RawPayload::Full => Payload::Full,
            }),
            max_disk_bytes: max_disk
                .map_err(|message| self.error("[capture] max_disk", message))?,
            ring_bytes: ring_size.map_err(|message| self.error("[capture] ring_size", message))?,
            keep_spool: raw.keep_spool,
        })
    }

    fn error(&self, key: &str, message: String) -> ConfigError {
        ConfigError::Value {
            path: self.path.to_owned(),
            key: key.to_owned(),
            message,
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use super::*;

    #[test]
    fn a_full_file_is_understood() {
        let file = parse(
            r#"
            [[proxy]]
            name = "files"
            log = "audit.jsonl"
            key_env = "AUDIT_SECRET"
            exe = "/usr/local/bin/mcp-audit"
            upstream = "npx server-filesystem"
            redact_keys = ["password"]
            [[allow_direct]]
            server_exe = "/usr/bin/clock"
            methods = ["tools/call"]
            reason = "no secrets in the time of day"
            [capture]
            linger = "500ms"
            user = "build"
            payload = "full"
            max_disk = "10GiB"
            ring_size = "100MiB"
            keep_spool = true
            "#,
        )
        .unwrap();
        assert_eq!(file.proxies[0].log, Path::new("/etc/cs/audit.jsonl"));
        assert_eq!(file.capture.linger, Some(Duration::from_millis(500)));
        assert_eq!(file.capture.max_disk_bytes, Some(10 << 30));
        assert_eq!(file.capture.ring_bytes, Some(128 << 20));
        assert_eq!(file.allow_direct.len(), 1);
    }

    #[test]
    fn mistakes_name_file_line_and_key() {
        for (text, needles) in [
            (
                "[[proxy]]\nname='a'\nlogg='x'\n",
                &["/etc/cs/c.toml:3", "logg"][..],
            ),
            ("[[proxy]]\nname='a'\n", &["missing field", "log"]),
            ("[capture]\nlinger='soon'\n", &["[capture] linger", "2s"]),
            ("[capture]\nlinger=2\n", &[":2:", "string"]),
            ("[capture]\npayload='all'\n", &["redacted"]),
            (
                "[[proxy]]\nname='a'\nlog='x'\nkey_env='A'\nkey_file='b'\n",
                &["keep one"],
            ),
            (
                "[[proxy]]\nname='a'\nlog='x'\nredact_keys=['']\n",
                &["redact_keys"],
            ),
            (
                "[[allow_direct]]\nserver_exe='clock'\nreason='x'\n",
                &["absolute"],
            ),
            (
                "[[allow_direct]]\nserver_exe='/c'\nreason=' '\n",
                &["reason"],
            ),
            ("not toml", &[":1:"]),
        ] {
            let message = parse(text).unwrap_err().to_string();
            for needle in needles {
                assert!(message.contains(needle), "{message:?} lacks {needle:?}");
            }
        }
    }

    fn parse(text: &str) -> Result<ConfigFile, ConfigError> {
        ConfigFile::parse(text, Path::new("/etc/cs/c.toml"))
    }
}
