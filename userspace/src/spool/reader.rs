//! Reading a spool: every whole record, in order, and every piece that is missing or damaged.
//!
//! Owns the walk over segments with one bounded buffer. Damage is a value in the stream of items, never
//! an error that ends the reading: the records before and after it are still evidence.

use std::fs::File;
use std::io::{self, Read};

use super::{
    FRAME_HEAD_BYTES, HEADER_MAX_BYTES, HeaderError, MAGIC, RECORD_MAX_BYTES, SEGMENTS_MAX,
    SegmentHeader, checksum, segment_name, segment_number,
};
use crate::outdir::Dir;

/// Bytes asked of the file at a time.
const READ_BYTES: usize = 1024 * 1024;

/// A piece of the spool that yields no records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Number of the segment.
    pub segment: u32,
    /// Where in the segment's file, in bytes.
    pub offset: u64,
    /// Bytes skipped.
    pub bytes: u64,
    /// What is wrong.
    pub kind: DamageKind,
}

/// What can be wrong with a piece of a spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// The last frame of the last segment is incomplete: the writer was cut off. What reached the disk before is whole.
    TornTail,
    /// A frame's checksum or length is wrong, or a segment ends in mid-frame though another one follows.
    Corrupt,
    /// A segment's number is missing between others, or before the first.
    MissingSegment,
    /// The segment has no readable header or belongs to another capture.
    ForeignSegment,
}

/// Why a spool cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// No `*.spool` file.
    #[error("there is no spool segment in this directory")]
    NoSegments,
    /// More than [`SEGMENTS_MAX`] names.
    #[error("the directory has more than {SEGMENTS_MAX} segments: this is no spool")]
    TooManySegments,
    /// The first readable segment is of another version.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The system said no.
    #[error("cannot read the spool")]
    Io(#[from] io::Error),
}

/// One item of a spool.
#[derive(Debug, PartialEq, Eq)]
pub enum SpoolItem<'a> {
    /// A segment begins.
    Segment(&'a SegmentHeader),
    /// One record: a header and what follows it, as written.
    Record(&'a [u8]),
    /// Something is missing here.
    Damage(Damage),
}

/// Where to go on after an item was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Frame,
    Segment,
}

/// Iterates over the items of a spool. Memory: one buffer of at most twice [`RECORD_MAX_BYTES`].
#[derive(Debug)]
pub struct SpoolReader {
    dir: Dir,
    /// Segment numbers, highest first, so that the next one is popped.
    numbers: Vec<u32>,
    expected: u32,
    current: Option<Window>,
    header: Option<SegmentHeader>,
    next: Next,
}

impl SpoolReader {
    /// Opens the spool in a directory.
    ///
    /// # Errors
    /// [`SpoolError`] when there is none, or it is of another version.
    pub fn open(dir: Dir) -> Result<Self, SpoolError> {
        let mut numbers = Vec::new();
        for name in dir.file_names()? {
            if let Some(number) = name.to_str().and_then(segment_number) {
                if numbers.len() == SEGMENTS_MAX {
                    return Err(SpoolError::TooManySegments);
                }
                numbers.push(number);
            }
        }
        if numbers.is_empty() {
            return Err(SpoolError::NoSegments);
        }
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Self {
            dir,
            numbers,
            expected: 1,
            current: None,
            header: None,
            next: Next::Segment,
        })
    }

    /// The next item, or `None` at the end.
    ///
    /// # Errors
    /// When the file system fails, or a segment of this capture has another record layout.
    pub fn next_item(&mut self) -> Result<Option<SpoolItem<'_>>, SpoolError> {
        if self.next == Next::Frame {
            let last = self.numbers.is_empty();
            let Some(window) = &mut self.current else {
                return Ok(None);
            };
            match window.step(last)? {
                Step::Record(start, end) => {
                    // Re-borrowed here: the borrow above must end before the other arms change `self`.
                    return Ok(self
                        .current
                        .as_ref()
                        .map(|window| SpoolItem::Record(&window.buffer[start..end])));
                }
                Step::Damage(damage) => return Ok(Some(SpoolItem::Damage(damage))),
                Step::End => {}
            }
        }
        self.next_segment()
    }

    fn next_segment(&mut self) -> Result<Option<SpoolItem<'_>>, SpoolError> {
        self.current = None;
        self.next = Next::Segment;
        let Some(&number) = self.numbers.last() else {
            return Ok(None);
        };
        if number > self.expected {
            let damage = Damage {
                segment: self.expected,
                offset: 0,
                bytes: 0,
                kind: DamageKind::MissingSegment,
            };
            self.expected = number;
            return Ok(Some(SpoolItem::Damage(damage)));
        }
        self.numbers.pop();
        self.expected = number.saturating_add(1);
        let mut window = Window::new(self.dir.open_file(&segment_name(number))?, number);
        let length = window.file.metadata()?.len();
        let unusable = |kind| {
            Some(SpoolItem::Damage(Damage {
                segment: number,
                offset: 0,
                bytes: length,
                kind,
            }))
        };
        let Some(body) = window.header()? else {
            // A crash right after creating a segment leaves a short last one: nothing is lost in it.
            let torn = self.numbers.is_empty() && length < HEADER_MAX_BYTES as u64;
            return Ok(unusable(if torn {
                DamageKind::TornTail
            } else {
                DamageKind::ForeignSegment
            }));
        };
        let header = match SegmentHeader::parse(body) {
            Ok(header) => header,
            Err(error @ HeaderError::Abi { .. }) => return Err(error.into()),
            Err(HeaderError::Malformed(_)) => return Ok(unusable(DamageKind::ForeignSegment)),
        };
        if header.segment != number
            || self
                .header
                .as_ref()
                .is_some_and(|first| !header.continues(first))
        {
            return Ok(unusable(DamageKind::ForeignSegment));
        }
        self.current = Some(window);
        self.next = Next::Frame;
        Ok(Some(SpoolItem::Segment(self.header.insert(header))))
    }
}

enum Step {
    Record(usize, usize),
    Damage(Damage),
    End,
}

/// A segment seen through a sliding buffer.
#[derive(Debug)]
struct Window {
    file: File,
    number: u32,
    buffer: Vec<u8>,
    /// Start of the unread part of the buffer.
    start: usize,
    /// Offset in the file of the buffer's first byte.
    base: u64,
    at_end: bool,
}

impl Window {
    fn new(file: File, number: u32) -> Self {
        Self {
            file,
            number,
            buffer: Vec::new(),
            start: 0,
            base: 0,
            at_end: false,
        }
    }

    fn header(&mut self) -> io::Result<Option<&[u8]>> {
        self.fill(MAGIC.len())?;
        if !self.unread().starts_with(&MAGIC) {
            return Ok(None);
        }
        self.start += MAGIC.len();
        let Frame::Whole(length) = self.frame(0, HEADER_MAX_BYTES)? else {
            return Ok(None);
        };
        let body = self.start + FRAME_HEAD_BYTES;
        self.start = body + length;
        Ok(Some(&self.buffer[body..body + length]))
    }

    fn step(&mut self, last: bool) -> io::Result<Step> {
        match self.frame(0, RECORD_MAX_BYTES)? {
            Frame::Whole(length) => {
                let body = self.start + FRAME_HEAD_BYTES;
                self.start = body + length;
                Ok(Step::Record(body, body + length))
            }
            Frame::Nothing => Ok(Step::End),
            Frame::Short => {
                let kind = if last {
                    DamageKind::TornTail
                } else {
                    DamageKind::Corrupt
                };
                self.skip_rest(kind)
            }
            Frame::Bad(claimed) => self.skip_bad(claimed),
        }
    }

    /// Behind a bad frame: trusts its length only if a good frame (or the end) follows, else gives up the
    /// rest of the segment. One look ahead, so hostile content cannot make this quadratic.
    fn skip_bad(&mut self, claimed: Option<usize>) -> io::Result<Step> {
        if let Some(length) = claimed {
            let skip = FRAME_HEAD_BYTES + length;
            if matches!(
                self.frame(skip, RECORD_MAX_BYTES)?,
                Frame::Whole(_) | Frame::Nothing
            ) {
                let offset = self.base + self.start as u64;
                self.start += skip;
                return Ok(Step::Damage(Damage {
                    segment: self.number,
                    offset,
                    bytes: skip as u64,
                    kind: DamageKind::Corrupt,
                }));
            }
        }
        self.skip_rest(DamageKind::Corrupt)
    }

    fn skip_rest(&mut self, kind: DamageKind) -> io::Result<Step> {
        let offset = self.base + self.start as u64;
        let bytes = self.file.metadata()?.len().saturating_sub(offset);
        self.start = self.buffer.len();
        self.at_end = true;
        Ok(Step::Damage(Damage {
            segment: self.number,
            offset,
            bytes,
            kind,
        }))
    }

    /// Looks at the frame `ahead` bytes behind the current position.
    fn frame(&mut self, ahead: usize, limit: usize) -> io::Result<Frame> {
        self.fill(ahead + FRAME_HEAD_BYTES)?;
        let Some(rest) = self.unread().get(ahead..) else {
            return Ok(Frame::Short);
        };
        if rest.is_empty() {
            return Ok(Frame::Nothing);
        }
        let Some(([length, expected], _)) = head(rest) else {
            return Ok(Frame::Short);
        };
        let size = length as usize;
        if size == 0 || size > limit {
            return Ok(Frame::Bad(None));
        }
        self.fill(ahead + FRAME_HEAD_BYTES + size)?;
        let body_at = ahead + FRAME_HEAD_BYTES;
        let Some(body) = self.unread().get(body_at..body_at + size) else {
            return Ok(Frame::Short);
        };
        if checksum(length, body) == expected {
            Ok(Frame::Whole(size))
        } else {
            Ok(Frame::Bad(Some(size)))
        }
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Makes at least `wanted` unread bytes available, if the file has them.
    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        if self.at_end || self.unread().len() >= wanted {
            return Ok(());
        }
        self.buffer.drain(..self.start);
        self.base += self.start as u64;
        self.start = 0;
        while self.buffer.len() < wanted && !self.at_end {
            let before = self.buffer.len();
            let more = READ_BYTES.max(wanted - before);
            (&mut self.file)
                .take(more as u64)
                .read_to_end(&mut self.buffer)?;
            self.at_end = self.buffer.len() == before;
        }
        Ok(())
    }
}

/// The two numbers in front of a body, and what follows them.
fn head(bytes: &[u8]) -> Option<([u32; 2], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (expected, rest) = rest.split_first_chunk::<4>()?;
    Some((
        [u32::from_le_bytes(*length), u32::from_le_bytes(*expected)],
        rest,
    ))
}

enum Frame {
    /// A good frame with a body of this length.
    Whole(usize),
    /// A bad one; its length, if that is at least possible.
    Bad(Option<usize>),
    /// The file ends in it.
    Short,
    /// The file ends before it.
    Nothing,
}
