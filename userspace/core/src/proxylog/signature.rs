//! mcp-audit's entry signature: HMAC-SHA256 over id, timestamp, method, tool name and params, with
//! nothing between them.
//!
//! Owns: the key, signing, and naming which bytes a signature holds for.
//! Does not own: what it proves. It covers neither result nor direction nor request id, and text can
//! move across its unmarked field boundaries: content must be compared with the wire all the same.

use std::fmt;
use std::hint::black_box;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::Entry;
use super::canonical;
use super::compare;
use crate::json::{Document, Limits};

/// Longest key, bytes. A key file of more is a mistake.
pub const KEY_MAX_BYTES: usize = 4096;

/// A signing key: the secret's bytes as given, no decoding.
#[derive(Clone)]
pub struct Key {
    secret: Vec<u8>,
}

/// Why bytes are no key. Never holds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// An empty key signs nothing.
    #[error("the key is empty")]
    Empty,
    /// Over [`KEY_MAX_BYTES`].
    #[error("the key is longer than {KEY_MAX_BYTES} bytes")]
    TooLong,
}

impl Key {
    /// A key of exactly these bytes.
    ///
    /// # Errors
    /// [`KeyError`] if empty or too long.
    pub fn new(secret: Vec<u8>) -> Result<Self, KeyError> {
        let key = Self { secret };
        match key.secret.len() {
            0 => Err(KeyError::Empty),
            len if len > KEY_MAX_BYTES => Err(KeyError::TooLong),
            _ => Ok(key),
        }
    }

    /// The content of a key file: as given, without one line end at its end.
    ///
    /// # Errors
    /// [`KeyError`] if empty or too long.
    pub fn from_file_content(mut content: Vec<u8>) -> Result<Self, KeyError> {
        if content.last() == Some(&b'\n') {
            content.pop();
            if content.last() == Some(&b'\r') {
                content.pop();
            }
        }
        Self::new(content)
    }

    /// The signature of an entry with these fields, 64 lower-case hex digits. `params` are the bytes
    /// that will stand on disk.
    pub fn sign(&self, signed: &Signed<'_>) -> String {
        let tag = self.mac(signed).finalize().into_bytes();
        tag.iter().fold(String::with_capacity(64), |mut hex, byte| {
            hex.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
            hex.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
            hex
        })
    }

    fn mac(&self, signed: &Signed<'_>) -> Hmac<Sha256> {
        // HMAC takes keys of any length.
        #[expect(
            clippy::expect_used,
            reason = "hmac's new_from_slice has no failing path"
        )]
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("any key length");
        mac.update(signed.id.as_bytes());
        mac.update(signed.timestamp.as_bytes());
        mac.update(signed.method.as_bytes());
        mac.update(signed.tool_name.unwrap_or_default().as_bytes());
        mac.update(signed.params.unwrap_or_default());
        mac
    }

    /// Compares in constant time.
    fn holds(&self, signed: &Signed<'_>, tag: &[u8; 32]) -> bool {
        self.mac(signed).verify_slice(tag).is_ok()
    }
}

impl Drop for Key {
    /// Best effort: copies that the allocator or the HMAC made are not reached.
    fn drop(&mut self) {
        self.secret.fill(0);
        black_box(&self.secret);
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(redacted)")
    }
}

/// The fields that a signature covers, decoded.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// The entry's id.
    pub id: &'a str,
    /// The timestamp as written.
    pub timestamp: &'a str,
    /// The method.
    pub method: &'a str,
    /// The tool, for `tools/call`.
    pub tool_name: Option<&'a str>,
    /// Bytes of the params.
    pub params: Option<&'a [u8]>,
}

/// What an entry's signature holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SignatureState {
    /// The bytes on disk.
    ValidDisk,
    /// The params as seen on the wire, of which the disk has the same text compacted: an mcp-audit
    /// with redaction off.
    ValidWire,
    /// The same values in another spelling than the disk has: the log went through a JSON
    /// re-serialiser after signing.
    Recovered,
    /// Nothing that this entry says.
    Bad,
    /// There is no signature.
    Absent,
    /// There is one, and no key to check it.
    NoKey,
}

/// Checks an entry's signature. `wire_params` are the exact bytes of the params seen on the wire, if
/// the entry is paired with a call.
///
/// The wire's bytes count only when the disk holds the same values: a signature that holds for the
/// wire while the disk says something else is [`SignatureState::Bad`].
pub fn verify(entry: &Entry, key: Option<&Key>, wire_params: Option<&[u8]>) -> SignatureState {
    if entry.signature.is_empty() {
        return SignatureState::Absent;
    }
    let Some(key) = key else {
        return SignatureState::NoKey;
    };
    let hex = entry
        .signature
        .strip_prefix("hmac-sha256:")
        .unwrap_or(&entry.signature);
    let Some(tag) = decode_hex(hex) else {
        return SignatureState::Bad;
    };
    let disk = Signed {
        id: &entry.id,
        timestamp: &entry.timestamp,
        method: &entry.method,
        tool_name: entry.tool_name.as_deref(),
        params: entry.params.as_deref(),
    };
    if key.holds(&disk, &tag) {
        return SignatureState::ValidDisk;
    }
    let Some(on_disk) = entry.params.as_deref() else {
        return SignatureState::Bad;
    };
    if let Some(wire) = wire_params
        && key.holds(
            &Signed {
                params: Some(wire),
                ..disk
            },
            &tag,
        )
    {
        if canonical::compact(wire) == *on_disk {
            return SignatureState::ValidWire;
        }
        return if same_values(wire, on_disk) {
            SignatureState::Recovered
        } else {
            SignatureState::Bad
        };
    }
    // The disk's params are already redacted; redacting "[REDACTED]" again would change nothing.
    let recovered = Document::parse(on_disk, Limits::default())
        .ok()
        .and_then(|doc| canonical::canonicalise(doc.root(), &canonical::Redaction::none()).ok());
    match recovered {
        Some(canonical)
            if key.holds(
                &Signed {
                    params: Some(&canonical),
                    ..disk
                },
                &tag,
            ) =>
        {
            SignatureState::Recovered
        }
        Some(_) | None => SignatureState::Bad,
    }
}

fn same_values(wire: &[u8], disk: &[u8]) -> bool {
    let (Ok(wire), Ok(disk)) = (
        Document::parse(wire, Limits::default()),
        Document::parse(disk, Limits::default()),
    ) else {
        return false;
    };
    // What the re-serialiser rounded is for the comparison of contents to tell; the signature holds for the wire.
    match compare::values(wire.root(), disk.root(), &canonical::Redaction::none()) {
        compare::Comparison::Equal | compare::Comparison::Collapsed { .. } => true,
        compare::Comparison::EqualAfterRedaction | compare::Comparison::Different { .. } => false,
    }
}

fn decode_hex(hex: &str) -> Option<[u8; 32]> {
    let bytes = hex.as_bytes();
    if bytes.len() != 64 {
        return None;
    }
    let mut tag = [0; 32];
    for (byte, pair) in tag.iter_mut().zip(bytes.chunks_exact(2)) {
        *byte = (nibble(pair[0])? << 4) | nibble(pair[1])?;
    }
    Some(tag)
}

/// Lower case only: the program writes no other.
fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
#[path = "signature_tests.rs"]
mod tests;
