//! The header of a spool segment: which capture, machine and kernel the records come from.
//!
//! Owns its JSON form and the checks that make a segment readable by this build. Unknown members are
//! ignored, so that a later build may add some without a new version.

use serde::{Deserialize, Serialize};

use crate::clock::Moment;

/// What every segment says about itself. Repeated in each, so that one segment alone can be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentHeader {
    /// Layout version of the records, [`countersign_common::ABI_VERSION`].
    pub abi_version: u32,
    /// Machine architecture as `uname -m` says it.
    pub arch: String,
    /// Kernel release as `uname -r` says it.
    pub kernel_release: String,
    /// SHA-256 in hex of the structure offsets that the kernel programs ran with.
    pub offsets_sha256: String,
    /// The kernel's id of this boot; boot-clock times are comparable within one only.
    pub boot_id: String,
    /// Host name.
    pub host: String,
    /// ULID of the capture.
    pub capture: String,
    /// Generation of the loaded programs, as in every record's header.
    pub generation: u64,
    /// Number of this segment in the capture, from 1.
    pub segment: u32,
    /// When the segment was begun, `CLOCK_BOOTTIME` nanoseconds.
    pub created_boot_ns: u64,
    /// When the segment was begun, UTC nanoseconds.
    pub created_utc_ns: i64,
}

/// Why a segment header cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Not the JSON object that it should be.
    #[error("the segment header is malformed")]
    Malformed(#[from] serde_json::Error),
    /// Written with another record layout.
    #[error(
        "the spool has record layout {found}, this build reads {expected}: use the countersign that wrote it"
    )]
    Abi {
        /// Layout of the segment.
        found: u32,
        /// Layout of this build.
        expected: u32,
    },
}

impl SegmentHeader {
    /// The header of the first segment of a capture made here and now.
    ///
    /// # Errors
    /// When the boot id cannot be read from `/proc`.
    pub fn of_this_machine(
        capture: String,
        generation: u64,
        offsets_sha256: String,
    ) -> std::io::Result<Self> {
        let now = Moment::now();
        Ok(Self {
            abi_version: countersign_common::ABI_VERSION,
            arch: machine(),
            kernel_release: kernel_release(),
            offsets_sha256,
            boot_id: boot_id()?,
            host: host_name(),
            capture,
            generation,
            segment: 1,
            created_boot_ns: now.boot_ns,
            created_utc_ns: now.utc_ns,
        })
    }

    /// Reads a header from a frame's body.
    ///
    /// # Errors
    /// [`HeaderError`] if it is malformed or of another record layout.
    pub fn parse(body: &[u8]) -> Result<Self, HeaderError> {
        // The version first: with another one, the rest may legitimately look different.
        #[derive(Deserialize)]
        struct Version {
            abi_version: u32,
        }
        let Version { abi_version } = serde_json::from_slice(body)?;
        let readable = countersign_common::ABI_VERSION_OLDEST..=countersign_common::ABI_VERSION;
        if !readable.contains(&abi_version) {
            return Err(HeaderError::Abi {
                found: abi_version,
                expected: countersign_common::ABI_VERSION,
            });
        }
        Ok(serde_json::from_slice(body)?)
    }

    /// Whether another segment belongs to the same capture under the same kernel.
    pub fn continues(&self, earlier: &Self) -> bool {
        self.capture == earlier.capture
            && self.boot_id == earlier.boot_id
            && self.generation == earlier.generation
            && self.offsets_sha256 == earlier.offsets_sha256
    }
}

/// The kernel's random id of this boot.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Kernel release, `uname -r`.
pub fn kernel_release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// Machine architecture, `uname -m`.
pub fn machine() -> String {
    rustix::system::uname()
        .machine()
        .to_string_lossy()
        .into_owned()
}

/// Host name, `uname -n`.
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use super::*;

    #[test]
    fn a_header_survives_a_round_trip() {
        let header = SegmentHeader::of_this_machine("01J".into(), 3, "ab".into()).unwrap();
        let json = serde_json::to_vec(&header).unwrap();
        assert_eq!(SegmentHeader::parse(&json).unwrap(), header);
    }

    #[test]
    fn another_record_layout_is_refused_whatever_else_the_header_holds() {
        let error = SegmentHeader::parse(br#"{"abi_version":999,"new":{}}"#).unwrap_err();
        assert!(matches!(error, HeaderError::Abi { found: 999, .. }));
    }

    #[test]
    fn garbage_is_malformed() {
        for garbage in [&b""[..], b"{", b"[]", b"\xff", b"{\"abi_version\":2}"] {
            assert!(matches!(
                SegmentHeader::parse(garbage),
                Err(HeaderError::Malformed(_))
            ));
        }
    }
}
