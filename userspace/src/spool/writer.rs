//! Writing a spool: never stops, never blocks the ring for long, and says what it had to give up.
//!
//! Owns the open segment, its buffer and the disk budget. When the disk is full, failing or over its
//! budget, the writer is *starved*: records with payload are dropped and counted, the small ones that
//! say who did what stay in memory and are written, after a loss record, once there is room again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::loss::{Loss, has_payload};
use super::syncer::Syncer;
use super::{
    MAGIC, RECORD_MAX_BYTES, Resumed, SEGMENT_BYTES, SegmentHeader, frames, push_frame,
    segment_name,
};
use crate::clock::Moment;
use crate::outdir::Dir;

/// Bytes gathered before they go to the file.
const BUFFER_BYTES: usize = 1024 * 1024;

/// Blocks of this size and more are not gathered first.
const DIRECT_BYTES: usize = 128 * 1024;

/// Most bytes of small records kept in memory while starved. Stops a fork storm on a full disk from
/// taking all memory; beyond it these are dropped and counted too.
const STARVED_MAX_BYTES: usize = 16 * 1024 * 1024;

/// Disk space kept back for the end of a starved recording: who did what last, the kernel's totals and what was lost. Part of
/// the budget.
const RESERVE_BYTES: u64 = 1024 * 1024;

/// The file that holds it.
const RESERVE: &str = "reserve";

/// Time between two attempts to write while starved.
const RETRY_EVERY: Duration = Duration::from_millis(250);

/// Size limits of a spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size at which a segment is closed, in bytes.
    pub segment_bytes: u64,
    /// Most bytes of all segments together; `None`: as much as the disk takes.
    pub max_disk_bytes: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            segment_bytes: SEGMENT_BYTES,
            max_disk_bytes: None,
        }
    }
}

/// What a writer did and what it could not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpoolStats {
    /// Segments begun.
    pub segments: u32,
    /// Paired segments removed to stay within the budget.
    pub segments_removed: u32,
    /// Records written or waiting to be.
    pub records: u64,
    /// Bytes of segments on disk.
    pub disk_bytes: u64,
    /// Records given up for lack of space.
    pub lost_records: u64,
    /// Their bytes, headers included.
    pub lost_bytes: u64,
    /// Of these, records without payload (who did what): the worse loss.
    pub lost_small_records: u64,
    /// Times that the writer became starved.
    pub starved: u32,
    /// Something that the file system had accepted may not be on the medium (`fsync` failed).
    pub not_durable: bool,
    /// The last reason, as the system words it.
    pub last_error: Option<String>,
}

impl SpoolStats {
    /// Whether anything is missing from the spool.
    pub fn lost_something(&self) -> bool {
        self.lost_records > 0 || self.not_durable
    }
}

#[derive(Debug)]
struct Starved {
    loss: Loss,
    retry_at: Instant,
}

#[derive(Debug)]
struct Segment {
    file: File,
    number: u32,
    /// Length of the file up to the last whole frame.
    committed: u64,
}

/// Appends records to a spool directory.
#[derive(Debug)]
pub struct SpoolWriter {
    dir: Dir,
    identity: SegmentHeader,
    limits: Limits,
    segment: Option<Segment>,
    next_number: u32,
    buffer: Vec<u8>,
    /// Closed segments that are on disk, with size and whether they are paired.
    closed: BTreeMap<u32, (u64, bool)>,
    starved: Option<Starved>,
    reserved: bool,
    stats: SpoolStats,
    syncer: Syncer,
}

impl SpoolWriter {
    /// Begins a spool in an empty directory that this process made.
    ///
    /// # Errors
    /// When the first segment cannot be created or written: better known before the agent starts.
    pub fn create(dir: Dir, identity: SegmentHeader, limits: Limits) -> io::Result<Self> {
        let mut writer = Self {
            dir,
            identity,
            limits,
            segment: None,
            next_number: 1,
            buffer: Vec::with_capacity(2 * BUFFER_BYTES),
            closed: BTreeMap::new(),
            starved: None,
            reserved: false,
            stats: SpoolStats::default(),
            syncer: Syncer::start(),
        };
        writer.open_segment()?;
        writer.reserve()?;
        Ok(writer)
    }

    /// Goes on with a spool whose writer died, in a segment of its own. Where the disk has no room for that it begins starved: the
    /// recording goes on, and what cannot be written is told once there is room.
    ///
    /// # Errors
    /// When what the dead writer kept for its end cannot be removed.
    pub fn resume(dir: Dir, resumed: &Resumed, limits: Limits) -> io::Result<Self> {
        match dir.remove_file(RESERVE) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let disk_bytes = resumed.segments.iter().map(|(_, bytes)| bytes).sum();
        let mut writer = Self {
            dir,
            identity: resumed.identity.clone(),
            limits,
            segment: None,
            next_number: resumed.next_number,
            buffer: Vec::with_capacity(2 * BUFFER_BYTES),
            closed: resumed
                .segments
                .iter()
                .map(|(number, bytes)| (*number, (*bytes, false)))
                .collect(),
            starved: None,
            reserved: false,
            stats: SpoolStats {
                disk_bytes,
                ..SpoolStats::default()
            },
            syncer: Syncer::start(),
        };
        if let Err(error) = writer.open_segment() {
            writer.starve(&error);
        } else if let Err(error) = writer.reserve() {
            tracing::warn!(%error, "no disk space can be kept back for the end of the recording");
            writer.release_reserve();
        }
        Ok(writer)
    }

    /// Appends one record (a [`RecordHeader`] and what follows it). Never fails: what cannot be written is
    /// counted in [`SpoolWriter::stats`] and reported in the spool itself as a [`countersign_common::kind::LOSS`] record.
    pub fn record(&mut self, record: &[u8]) {
        if self.starved.is_some() {
            self.record_starved(record);
            return;
        }
        self.append(record);
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush();
        }
    }

    /// Appends whole frames: a large block goes to the file as it is.
    pub(super) fn block(&mut self, block: &[u8], records: u64) {
        if self.starved.is_none() && block.len() >= DIRECT_BYTES {
            self.flush();
            if self.starved.is_none() {
                match self.write(block) {
                    Ok(()) => {
                        self.stats.records += records;
                        return;
                    }
                    Err(error) => self.starve(&error),
                }
            }
        }
        for record in frames(block) {
            self.record(record);
        }
    }

    /// Says in the spool that records were given up.
    pub(super) fn loss(&mut self, loss: &Loss) {
        match loss.to_record(self.identity.generation) {
            Ok(record) => self.append(&record),
            // The statistics have it all the same.
            Err(error) => tracing::warn!(%error, "a loss could not be written into the spool"),
        }
    }

    /// Hands everything buffered to the file system, so that a crash of this process loses none of it.
    pub fn flush(&mut self) {
        if let Some(starved) = &self.starved
            && Instant::now() < starved.retry_at
        {
            return;
        }
        match self.write_buffer() {
            Ok(()) => self.recovered(),
            Err(error) => self.starve(&error),
        }
    }

    /// Whether the disk takes nothing at the moment: small records wait in memory, payload is dropped.
    pub fn is_starved(&self) -> bool {
        self.starved.is_some()
    }

    /// Tells that everything in this segment is paired and it may be removed for the disk budget.
    pub fn mark_paired(&mut self, segment: u32) {
        if let Some((_, paired)) = self.closed.get_mut(&segment) {
            *paired = true;
        }
    }

    /// Numbers of the closed segments on disk, oldest first.
    pub fn closed_segments(&self) -> impl Iterator<Item = u32> + '_ {
        self.closed.keys().copied()
    }

    /// What was written and lost so far.
    pub fn stats(&self) -> &SpoolStats {
        &self.stats
    }

    /// Writes what is left, makes all segments durable and closes them.
    pub fn finish(mut self) -> SpoolStats {
        if let Some(starved) = &mut self.starved {
            starved.retry_at = Instant::now();
        }
        self.flush();
        // Again: coming back from starvation leaves a loss record in the buffer.
        self.flush();
        self.release_reserve();
        if self.starved.is_some() {
            self.finish_starved();
        }
        if let Some(segment) = self.segment.take() {
            self.syncer.sync(segment.file);
        }
        if let Some(error) = self.syncer.finish() {
            self.stats.last_error = Some(error.to_string());
            self.stats.not_durable = true;
        }
        if let Err(error) = rustix::fs::fsync(self.dir.as_fd()) {
            tracing::warn!(%error, "the spool directory could not be made durable");
        }
        self.stats
    }

    /// Takes disk space for the end, unless the budget is too small to do anything else with it.
    fn reserve(&mut self) -> io::Result<()> {
        if self
            .limits
            .max_disk_bytes
            .is_some_and(|budget| budget < 2 * RESERVE_BYTES)
        {
            return Ok(());
        }
        let file = self.dir.create_file(RESERVE)?;
        self.stats.disk_bytes += RESERVE_BYTES;
        self.reserved = true;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES).or_else(
            |error| match error {
                // A file system that cannot promise space: then the end is as sure as the rest.
                rustix::io::Errno::OPNOTSUPP => Ok(()),
                other => Err(other.into()),
            },
        )
    }

    fn release_reserve(&mut self) {
        if std::mem::take(&mut self.reserved) {
            self.stats.disk_bytes = self.stats.disk_bytes.saturating_sub(RESERVE_BYTES);
            if let Err(error) = self.dir.remove_file(RESERVE) {
                tracing::warn!(%error, "the spool's reserve could not be removed");
            }
        }
    }

    /// Writes of what a starved writer holds what fits into the reserve: the loss, and the last records without payload, among
    /// them the totals and the end. The rest is lost.
    fn finish_starved(&mut self) {
        let held = std::mem::take(&mut self.buffer);
        let mut kept: Vec<&[u8]> = Vec::new();
        let mut loss = self
            .starved
            .take()
            .map(|starved| starved.loss)
            .unwrap_or_default();
        let mut left = RESERVE_BYTES / 2;
        for record in frames(&held).collect::<Vec<_>>().into_iter().rev() {
            let needed = record.len() as u64 + super::FRAME_HEAD_BYTES as u64;
            if has_payload(record) || needed > left {
                left = if has_payload(record) { left } else { 0 };
                loss.add(record);
                self.stats.records = self.stats.records.saturating_sub(1);
                self.stats.lost_records += 1;
                self.stats.lost_bytes += record.len() as u64;
                self.stats.lost_small_records += u64::from(!has_payload(record));
            } else {
                left -= needed;
                kept.push(record);
            }
        }
        self.loss(&loss);
        for record in kept.into_iter().rev() {
            push_frame(&mut self.buffer, record, RECORD_MAX_BYTES);
        }
        if let Err(error) = self.write_buffer() {
            tracing::warn!(%error, "the end of the spool could not be written");
            let (records, bytes) = frames(&self.buffer).fold((0, 0), |(records, bytes), record| {
                (records + 1, bytes + record.len() as u64)
            });
            self.stats.lost_records += records;
            self.stats.lost_small_records += records;
            self.stats.lost_bytes += bytes;
        }
    }

    fn append(&mut self, record: &[u8]) {
        if push_frame(&mut self.buffer, record, RECORD_MAX_BYTES) {
            self.stats.records += 1;
        } else {
            self.stats.lost_records += 1;
            self.stats.lost_bytes += record.len() as u64;
            tracing::warn!(
                bytes = record.len(),
                "a record is empty or too long for the spool"
            );
        }
    }

    fn record_starved(&mut self, record: &[u8]) {
        let small = !has_payload(record);
        if small && self.buffer.len() + record.len() <= STARVED_MAX_BYTES {
            self.append(record);
        } else {
            self.stats.lost_records += 1;
            self.stats.lost_bytes += record.len() as u64;
            self.stats.lost_small_records += u64::from(small);
            if let Some(starved) = &mut self.starved {
                starved.loss.add(record);
            }
        }
        self.flush();
    }

    fn starve(&mut self, error: &io::Error) {
        let retry_at = Instant::now() + RETRY_EVERY;
        if let Some(starved) = &mut self.starved {
            starved.retry_at = retry_at;
            return;
        }
        tracing::warn!(%error, "the spool cannot be written; payload is dropped until it can");
        self.stats.starved += 1;
        self.stats.last_error = Some(error.to_string());
        self.starved = Some(Starved {
            loss: Loss::new("spool", error.to_string()),
            retry_at,
        });
    }

    fn recovered(&mut self) {
        let Some(Starved { loss, .. }) = self.starved.take() else {
            return;
        };
        tracing::info!(
            records = loss.records,
            bytes = loss.bytes,
            "the spool can be written again"
        );
        if loss.records > 0 {
            self.loss(&loss);
        }
    }

    /// Writes the buffer. On failure it is kept.
    fn write_buffer(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let written = self.write(&buffer);
        if written.is_ok() {
            buffer.clear();
            buffer.shrink_to(2 * BUFFER_BYTES);
        }
        self.buffer = buffer;
        written
    }

    /// Writes whole frames. On failure the file ends at its last whole frame.
    fn write(&mut self, frames: &[u8]) -> io::Result<()> {
        if self
            .segment
            .as_ref()
            .is_some_and(|segment| segment.committed >= self.limits.segment_bytes)
        {
            self.close_segment();
        }
        if self.segment.is_none() {
            self.open_segment()?;
        }
        let length = frames.len() as u64;
        self.make_room(length)?;
        let Some(segment) = &mut self.segment else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if let Err(error) = segment.file.write_all(frames) {
            rewind(segment);
            return Err(error);
        }
        segment.committed += length;
        self.stats.disk_bytes += length;
        Ok(())
    }

    fn open_segment(&mut self) -> io::Result<()> {
        let now = Moment::now();
        let header = SegmentHeader {
            segment: self.next_number,
            created_boot_ns: now.boot_ns,
            created_utc_ns: now.utc_ns,
            ..self.identity.clone()
        };
        let mut start = MAGIC.to_vec();
        push_frame(
            &mut start,
            &serde_json::to_vec(&header)?,
            super::HEADER_MAX_BYTES,
        );
        let length = start.len() as u64;
        self.make_room(length)?;
        let name = segment_name(self.next_number);
        let mut file = self.dir.create_file(&name)?;
        if let Err(error) = file.write_all(&start) {
            // Nothing of it is of use; the next attempt takes the same number.
            self.dir.remove_file(&name)?;
            return Err(error);
        }
        self.segment = Some(Segment {
            file,
            number: self.next_number,
            committed: length,
        });
        self.next_number += 1;
        self.stats.segments += 1;
        self.stats.disk_bytes += length;
        Ok(())
    }

    fn close_segment(&mut self) {
        if let Some(Segment {
            file,
            number,
            committed,
        }) = self.segment.take()
        {
            self.closed.insert(number, (committed, false));
            self.syncer.sync(file);
        }
    }

    /// Removes the oldest paired segments until `length` more bytes fit into the budget.
    fn make_room(&mut self, length: u64) -> io::Result<()> {
        let Some(budget) = self.limits.max_disk_bytes else {
            return Ok(());
        };
        while self.stats.disk_bytes.saturating_add(length) > budget {
            let oldest = self
                .closed
                .iter()
                .find(|(_, (_, paired))| *paired)
                .map(|(number, _)| *number);
            let Some(number) = oldest else {
                return Err(io::Error::other(format!(
                    "the disk budget of {budget} bytes is used up: raise --max-disk"
                )));
            };
            self.dir.remove_file(&segment_name(number))?;
            if let Some((bytes, _)) = self.closed.remove(&number) {
                self.stats.disk_bytes -= bytes;
            }
            self.stats.segments_removed += 1;
        }
        Ok(())
    }
}

/// Cuts a half-written frame off, so that later ones stay readable.
fn rewind(segment: &mut Segment) {
    use std::io::Seek;
    let cut = segment
        .file
        .set_len(segment.committed)
        .and_then(|()| segment.file.seek(io::SeekFrom::Start(segment.committed)));
    if let Err(error) = cut {
        tracing::warn!(%error, segment = segment.number, "a half-written record could not be cut off");
    }
}
