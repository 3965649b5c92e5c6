//! Privacy: what of a payload may stand in a row.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::correlator::Settings;
use crate::hex::hex;
use crate::json::{Document, Limits};
use crate::proxylog::canonical::{self, Redaction};
use crate::row::{PayloadBytes, PayloadText};
use crate::verdict::ProxyPolicy;

/// How much of payloads goes into rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PayloadMode {
    /// With the values of sensitive keys replaced, as the proxy does it.
    #[default]
    Redacted,
    /// Length and keyed hash only.
    Hash,
    /// Everything, as seen.
    Full,
}

impl PayloadMode {
    /// Name as stored in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redacted => "redacted",
            Self::Hash => "hash",
            Self::Full => "full",
        }
    }
}

/// The rules of one correlation.
#[derive(Debug)]
pub(super) struct Privacy<'a> {
    pub(super) mode: PayloadMode,
    hash_key: &'a [u8],
    policies: &'a [ProxyPolicy],
    fallback: Redaction,
}

impl<'a> Privacy<'a> {
    pub(super) fn new(settings: &'a Settings, policies: &'a [ProxyPolicy]) -> Self {
        Self {
            mode: settings.payload,
            hash_key: &settings.hash_key,
            policies,
            fallback: Redaction::default(),
        }
    }

    /// A JSON value as text.
    pub(super) fn text(&self, raw: Option<&[u8]>, proxy: Option<usize>) -> Option<PayloadText> {
        let raw = raw?;
        match self.mode {
            PayloadMode::Hash => None,
            PayloadMode::Full => Some(PayloadText(String::from_utf8_lossy(raw).into_owned())),
            PayloadMode::Redacted => {
                let text = self.redacted(raw, proxy)?;
                Some(PayloadText(String::from_utf8_lossy(&text).into_owned()))
            }
        }
    }

    /// A frame's bytes.
    pub(super) fn bytes(&self, raw: &[u8], proxy: Option<usize>) -> Option<PayloadBytes> {
        match self.mode {
            PayloadMode::Hash => None,
            PayloadMode::Full => Some(PayloadBytes(raw.to_vec())),
            PayloadMode::Redacted => self.redacted(raw, proxy).map(PayloadBytes),
        }
    }

    /// Hash of the bytes: plain where they are stored in full, else keyed.
    pub(super) fn hash(&self, raw: &[u8]) -> Option<String> {
        if self.mode == PayloadMode::Full {
            return Some(hex(&Sha256::digest(raw)));
        }
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(self.hash_key).ok()?;
        mac.update(raw);
        Some(hex(&mac.finalize().into_bytes()))
    }

    /// Arguments and other text that has no keys to redact by.
    pub(super) fn plain(&self, text: &[u8]) -> Option<PayloadText> {
        (self.mode == PayloadMode::Full)
            .then(|| PayloadText(String::from_utf8_lossy(text).into_owned()))
    }

    fn redacted(&self, raw: &[u8], proxy: Option<usize>) -> Option<Vec<u8>> {
        let redaction = proxy
            .and_then(|proxy| self.policies.get(proxy))
            .map_or(&self.fallback, |policy| &policy.redaction);
        let document = Document::parse(raw, Limits::default()).ok()?;
        Some(canonical::canonicalise_any(document.root(), redaction))
    }
}
