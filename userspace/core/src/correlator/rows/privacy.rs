//! Privacy: what of a payload may stand in a row.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::correlator::Settings;
use crate::hex::hex;
use crate::json::{Document, Limits};
use crate::proxylog::canonical::{self, Redaction};
use crate::proxylog::redact;
use crate::row::{PayloadBytes, PayloadText};
use crate::verdict::ProxyPolicy;

/// Texts remembered with what was made of them: the ends of some messages that are on their way at once.
const RECENT_MAX: usize = 32;

/// Bytes of payloads remembered, beyond one of any length.
const RECENT_BYTES_MAX: usize = 4 << 20;

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
    /// Keyed, nothing taken yet.
    mac: Option<Hmac<Sha256>>,
    policies: &'a [ProxyPolicy],
    recent: RefCell<Recent>,
}

/// What was made of the texts that came last: all ends that a message passes share its bytes, and come close together.
#[derive(Debug, Default)]
struct Recent {
    hashes: VecDeque<(Arc<Vec<u8>>, Arc<str>)>,
    payloads: VecDeque<Payload>,
    payload_bytes: usize,
}

impl<'a> Privacy<'a> {
    pub(super) fn new(settings: &'a Settings, policies: &'a [ProxyPolicy]) -> Self {
        Self {
            mode: settings.payload,
            mac: <Hmac<Sha256> as KeyInit>::new_from_slice(&settings.hash_key).ok(),
            policies,
            recent: RefCell::default(),
        }
    }

    /// A JSON value as text, in the proxy's own spelling so that both views can be compared.
    pub(super) fn text(&self, raw: Option<&[u8]>, proxy: Option<usize>) -> Option<PayloadText> {
        let raw = raw?;
        match self.mode {
            PayloadMode::Hash => None,
            PayloadMode::Full => Some(PayloadText(String::from_utf8_lossy(raw).into_owned())),
            PayloadMode::Redacted => {
                let document = Document::parse(raw, Limits::default()).ok()?;
                let text = canonical::exact(document.root(), self.redaction(proxy));
                Some(PayloadText(String::from_utf8_lossy(&text).into_owned()))
            }
        }
    }

    /// A frame's bytes.
    pub(super) fn bytes(&self, raw: &Arc<Vec<u8>>, proxy: Option<usize>) -> Option<PayloadBytes> {
        match self.mode {
            PayloadMode::Hash => None,
            PayloadMode::Full => Some(PayloadBytes(Arc::clone(raw))),
            PayloadMode::Redacted => {
                let mut recent = self.recent.borrow_mut();
                let made = recent.payloads.iter().rev();
                let mut made = made.filter(|made| Arc::ptr_eq(&made.0, raw) && made.1 == proxy);
                if let Some((_, _, payload)) = made.next() {
                    return payload.clone().map(PayloadBytes);
                }
                let document = Document::parse(raw, Limits::default()).ok();
                let redaction = self.redaction(proxy);
                let payload = document.map(|document| {
                    redact::replaced(&document, redaction).map_or_else(|| Arc::clone(raw), Arc::new)
                });
                recent.keep_payload(Arc::clone(raw), proxy, payload.clone());
                payload.map(PayloadBytes)
            }
        }
    }

    /// Hash of the bytes: plain where they are stored in full, else keyed.
    pub(super) fn hash(&self, raw: &Arc<Vec<u8>>) -> Option<Arc<str>> {
        let mut recent = self.recent.borrow_mut();
        let mut made = recent.hashes.iter().rev();
        if let Some((_, hash)) = made.find(|made| Arc::ptr_eq(&made.0, raw)) {
            return Some(Arc::clone(hash));
        }
        let hash = if self.mode == PayloadMode::Full {
            hex(&Sha256::digest(raw.as_slice()))
        } else {
            let mut mac = self.mac.clone()?;
            mac.update(raw);
            hex(&mac.finalize().into_bytes())
        };
        if recent.hashes.len() >= RECENT_MAX {
            recent.hashes.pop_front();
        }
        let hash: Arc<str> = hash.into();
        recent
            .hashes
            .push_back((Arc::clone(raw), Arc::clone(&hash)));
        Some(hash)
    }

    /// Arguments and other text that has no keys to redact by.
    pub(super) fn plain(&self, text: &[u8]) -> Option<PayloadText> {
        (self.mode == PayloadMode::Full)
            .then(|| PayloadText(String::from_utf8_lossy(text).into_owned()))
    }

    fn redaction(&self, proxy: Option<usize>) -> &Redaction {
        proxy
            .and_then(|proxy| self.policies.get(proxy))
            .map_or(Redaction::usual(), |policy| &policy.redaction)
    }
}

/// A text, the proxy by whose rules it was redacted, and what that gave.
type Payload = (Arc<Vec<u8>>, Option<usize>, Option<Arc<Vec<u8>>>);

impl Recent {
    fn keep_payload(
        &mut self,
        raw: Arc<Vec<u8>>,
        proxy: Option<usize>,
        payload: Option<Arc<Vec<u8>>>,
    ) {
        let len = |payload: &Option<Arc<Vec<u8>>>| payload.as_ref().map_or(0, |text| text.len());
        self.payload_bytes += len(&payload);
        self.payloads.push_back((raw, proxy, payload));
        while self.payloads.len() > 1
            && (self.payloads.len() > RECENT_MAX || self.payload_bytes > RECENT_BYTES_MAX)
        {
            if let Some((_, _, oldest)) = self.payloads.pop_front() {
                self.payload_bytes -= len(&oldest);
            }
        }
    }
}
