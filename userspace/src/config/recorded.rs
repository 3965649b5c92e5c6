//! The settings that a recording was made with, as its spool has them.
//!
//! Owns finding them and their JSON. They hold no keys: where those came from is never written down.

use std::path::PathBuf;

use countersign_common::{RecordHeader, kind};
use serde::Deserialize;
use zerocopy::FromBytes;

use super::{AllowDirect, PROXIES_MAX, Payload, Proxy};
use crate::spool::{SpoolError, SpoolItem, SpoolReader};

/// Records in which the settings are looked for: they are among the first. Stops a large spool without them from being read twice.
const LOOK_MAX: usize = 4096;

/// What a later pairing needs of a recording's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Its proxies, without keys and executables: the latter are in the records by device and inode.
    pub proxies: Vec<Proxy>,
    /// Its allowed direct channels.
    pub allow_direct: Vec<AllowDirect>,
    /// How much of each payload was to go into the evidence.
    pub payload: Payload,
}

#[derive(Deserialize)]
struct Note {
    event: String,
    settings: Settings,
}

#[derive(Deserialize)]
struct Settings {
    #[serde(default)]
    proxies: Vec<RecordedProxy>,
    #[serde(default)]
    allow_direct: Vec<RecordedAllow>,
    capture: RecordedCapture,
}

#[derive(Deserialize)]
struct RecordedProxy {
    name: String,
    log: PathBuf,
    upstream: Option<String>,
    redact_keys: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RecordedAllow {
    server_exe: PathBuf,
    methods: Option<Vec<String>>,
    reason: String,
}

#[derive(Deserialize)]
struct RecordedCapture {
    payload: Payload,
}

impl Recorded {
    /// Looks for the settings at the start of a spool; `None` where there are none.
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub fn find(spool: &mut SpoolReader) -> Result<Option<Self>, SpoolError> {
        for _ in 0..LOOK_MAX {
            match spool.next_item()? {
                None => break,
                Some(SpoolItem::Record(record)) => {
                    if let Some(found) = Self::of_record(record) {
                        return Ok(Some(found));
                    }
                }
                Some(SpoolItem::Segment(_) | SpoolItem::Damage(_)) => {}
            }
        }
        Ok(None)
    }

    fn of_record(record: &[u8]) -> Option<Self> {
        let (header, json) = RecordHeader::read_from_prefix(record).ok()?;
        if header.kind != kind::CAPTURE {
            return None;
        }
        let Note { event, settings } = serde_json::from_slice(json).ok()?;
        (event == "start" && settings.proxies.len() <= PROXIES_MAX).then(|| settings.into())
    }
}

impl From<Settings> for Recorded {
    fn from(settings: Settings) -> Self {
        let proxies = settings.proxies.into_iter().map(|proxy| Proxy {
            name: proxy.name,
            log: proxy.log,
            key: None,
            exe: None,
            upstream: proxy.upstream,
            redact_keys: proxy.redact_keys,
        });
        let allow_direct = settings.allow_direct.into_iter().map(|allow| AllowDirect {
            server_exe: allow.server_exe,
            methods: allow.methods,
            reason: allow.reason,
        });
        Self {
            proxies: proxies.collect(),
            allow_direct: allow_direct.collect(),
            payload: settings.capture.payload,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use serde_json::json;

    use super::*;
    use crate::config::{Config, Flags};
    use crate::key::KeySource;
    use crate::source::user_record::user_record;

    #[test]
    fn the_settings_of_a_recording_come_back_without_key_and_executable() {
        let config = Config::load(Flags {
            log: Some("a.jsonl".into()),
            key: Some(KeySource::Env("HOME".into())),
            exe: Some("/bin/sh".into()),
            redact_keys: vec!["pin".to_owned()],
            payload: Some(Payload::Hash),
            ..Flags::default()
        })
        .unwrap();
        let note = json!({ "event": "start", "version": "1", "settings": config });
        let record = user_record(kind::CAPTURE, 1, &note).unwrap();
        let recorded = Recorded::of_record(&record).unwrap();
        assert_eq!(recorded.payload, Payload::Hash);
        assert_eq!(
            recorded.proxies,
            [Proxy {
                key: None,
                exe: None,
                ..config.proxies[0].clone()
            }]
        );
    }

    #[test]
    fn what_is_no_start_has_no_settings() {
        for note in [
            json!({ "event": "end" }),
            json!({ "event": "start", "settings": 3 }),
            json!([]),
        ] {
            let record = user_record(kind::CAPTURE, 1, &note).unwrap();
            assert_eq!(Recorded::of_record(&record), None);
        }
        assert_eq!(Recorded::of_record(b"short"), None);
    }
}
