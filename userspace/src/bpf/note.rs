//! The note beside pinned programs: what a later process must know of them before it touches anything else.

use anyhow::Context;
use countersign_common::ABI_VERSION;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{hook::Hook, tier::Tier};

/// Which build and capture pinned objects belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Note {
    /// [`ABI_VERSION`] of the build that loaded the programs.
    pub abi_version: u32,
    /// How transfers are captured: 0 for tier T, 1 for K, 2 for F.
    pub tier: u16,
    /// How programs got onto tracepoints: 0 by the kernel's types, 1 as trace events.
    pub hook: u16,
    /// As in every record.
    pub generation: u64,
    /// ULID of the capture, in characters.
    pub capture: [u8; 26],
    /// Zero.
    pub reserved2: [u8; 6],
    /// SHA-256 of the structure offsets that the programs were loaded with.
    pub offsets_sha256: [u8; 32],
}

impl Note {
    /// The note of what this build loads.
    ///
    /// # Errors
    /// When the id is not one of 26 characters.
    pub fn new(
        (tier, hook): (Tier, Hook),
        generation: u64,
        capture: &str,
        offsets_sha256: [u8; 32],
    ) -> anyhow::Result<Self> {
        Ok(Self {
            abi_version: ABI_VERSION,
            tier: match tier {
                Tier::Tracepoints => 0,
                Tier::Kprobes => 1,
                Tier::Trampolines => 2,
            },
            hook: match hook {
                Hook::Typed => 0,
                Hook::Event => 1,
            },
            generation,
            capture: capture
                .as_bytes()
                .try_into()
                .context("the capture's id is not a ULID")?,
            reserved2: [0; 6],
            offsets_sha256,
        })
    }

    /// How transfers are captured.
    ///
    /// # Errors
    /// When it is none that this build knows.
    pub fn tier(&self) -> anyhow::Result<Tier> {
        Ok(match self.tier {
            0 => Tier::Tracepoints,
            1 => Tier::Kprobes,
            2 => Tier::Trampolines,
            other => anyhow::bail!("the pinned note names tier {other}, which this build lacks"),
        })
    }

    /// How programs got onto tracepoints.
    ///
    /// # Errors
    /// When it is no way that this build knows.
    pub fn hook(&self) -> anyhow::Result<Hook> {
        Ok(match self.hook {
            0 => Hook::Typed,
            1 => Hook::Event,
            other => anyhow::bail!("the pinned note names hook {other}, which this build lacks"),
        })
    }

    /// The capture's id.
    pub fn capture(&self) -> String {
        String::from_utf8_lossy(&self.capture).into_owned()
    }
}
