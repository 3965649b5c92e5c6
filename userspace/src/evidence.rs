//! From a spool and logs to evidence.
//!
//! Owns the contract between the commands and the correlator with its sinks, and the order of feeding: all
//! records, then each proxy's log, then the end. Does not correlate.

mod engine;

use crate::config::Config;
use crate::exit::{Code, Failure, OrExit};
use crate::key::KeyBytes;
use crate::outdir::OutDir;
use crate::source::proxylog::LogEvent;
use crate::spool::{Damage, SegmentHeader, SpoolItem, SpoolReader};

/// What a finished pairing says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Outcome {
    /// At least one finding.
    pub findings: bool,
    /// Something was not seen or not decided.
    pub could_not_see: bool,
}

/// Takes everything that was recorded and writes the evidence.
pub trait Correlator {
    /// A segment begins.
    ///
    /// # Errors
    /// When evidence cannot be written.
    fn segment(&mut self, header: &SegmentHeader) -> anyhow::Result<()>;

    /// One raw record.
    ///
    /// # Errors
    /// When evidence cannot be written. A malformed record is no error: it is a finding.
    fn record(&mut self, record: &[u8]) -> anyhow::Result<()>;

    /// A piece of the spool is missing.
    ///
    /// # Errors
    /// When evidence cannot be written.
    fn damage(&mut self, damage: Damage) -> anyhow::Result<()>;

    /// The copy of a log that was kept with the spool is not what was written.
    fn kept_log_damaged(&mut self, detail: String);

    /// Something about the log of the proxy with this index in the configuration.
    ///
    /// # Errors
    /// When evidence cannot be written.
    fn log(&mut self, proxy: usize, event: LogEvent<'_>) -> anyhow::Result<()>;

    /// Everything was fed: decides what is left, completes the evidence and prints the summary.
    ///
    /// # Errors
    /// When evidence cannot be written.
    fn finish(self: Box<Self>) -> anyhow::Result<Outcome>;
}

/// What a correlator is made from.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The settings.
    pub config: &'a Config,
    /// One key per proxy of the configuration, where there is one.
    pub keys: Vec<Option<KeyBytes>>,
    /// Where the evidence goes.
    pub out: &'a OutDir,
    /// JSON lines instead of the table.
    pub json: bool,
}

/// Makes the correlator with its sinks.
///
/// # Errors
/// When a key is unusable or no descriptor is left.
pub fn correlator(setup: Setup<'_>) -> Result<Box<dyn Correlator>, Failure> {
    tracing::debug!(proxies = setup.keys.len(), out = %setup.out.path().display(), "pairing");
    Ok(Box::new(engine::Engine::new(setup)?))
}

/// Feeds a whole spool.
///
/// # Errors
/// When the spool cannot be read, has nothing that can be, or evidence cannot be written.
pub fn feed_spool(
    spool: &mut SpoolReader,
    correlator: &mut dyn Correlator,
) -> Result<Fed, Failure> {
    let mut fed = Fed::default();
    while let Some(item) = spool.next_item().or_exit(Code::Data)? {
        match item {
            SpoolItem::Segment(header) => {
                fed.segments += 1;
                correlator.segment(header)
            }
            SpoolItem::Record(record) => {
                fed.records += 1;
                fed.bytes += record.len() as u64;
                correlator.record(record)
            }
            SpoolItem::Damage(damage) => {
                fed.damaged += 1;
                correlator.damage(damage)
            }
        }
        .or_exit(Code::Io)?;
    }
    if fed.segments == 0 {
        return Err(Failure::new(
            Code::Data,
            "no segment of the spool has a readable header, so nothing in it can be read: restore \
             one *.spool file of the recording, or record again",
        ));
    }
    Ok(fed)
}

/// What a spool held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fed {
    /// Segments of the capture.
    pub segments: u64,
    /// Whole records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Damaged or missing pieces.
    pub damaged: u64,
}
