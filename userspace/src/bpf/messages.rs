//! What the kernel programs say, through aya-log, to `tracing`: target `countersign::kernel`.
//!
//! For people only; nothing is decided by a message. What was lost is in counters and records.

use anyhow::Context;
use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};

/// The target under which messages appear. `tracing` wants a literal; the tests compare.
macro_rules! target {
    () => {
        "countersign::kernel"
    };
}

/// The messages of loaded programs.
pub(super) struct Messages {
    logger: EbpfLogger<Forward>,
}

impl Messages {
    /// Takes the map of messages out of loaded programs.
    pub(super) fn of(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let logger = EbpfLogger::init_with_logger(ebpf, Forward)
            .context("take the map of the kernel programs' messages")?;
        Ok(Self { logger })
    }

    /// Forwards what has come.
    pub(super) fn tell(&mut self) {
        self.logger.flush();
    }
}

/// The least severe level that somebody listens to, as aya-log numbers them; 0 for none. The verifier then removes the
/// rest from the programs.
pub(super) fn level() -> u8 {
    if tracing::enabled!(target: target!(), tracing::Level::WARN) {
        aya_log::Level::Warn.into()
    } else if tracing::enabled!(target: target!(), tracing::Level::ERROR) {
        aya_log::Level::Error.into()
    } else {
        0
    }
}

/// From one logging crate to the other.
#[derive(Clone, Copy, Debug)]
struct Forward;

impl Log for Forward {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args();
        match record.level() {
            Level::Error => tracing::error!(target: target!(), "{text}"),
            Level::Warn => tracing::warn!(target: target!(), "{text}"),
            Level::Info => tracing::info!(target: target!(), "{text}"),
            Level::Debug => tracing::debug!(target: target!(), "{text}"),
            Level::Trace => tracing::trace!(target: target!(), "{text}"),
        }
    }

    fn flush(&self) {}
}
