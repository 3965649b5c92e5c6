//! Cuts one direction's bytes into lines, for the log only: what is forwarded is never touched.

use sha2::{Digest, Sha256};

/// Longest line that is logged with its content, bytes. A peer that never ends a line must not grow
/// the proxy; longer lines are logged by length and hash.
pub(super) const LINE_MAX_BYTES: usize = 64 << 20;

/// Buffers above this are given back after their line.
const BUFFER_KEEP_BYTES: usize = 1 << 20;

/// One line without its `\n`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Whole(&'a [u8]),
    Oversized { len: u64, sha256: [u8; 32] },
}

#[derive(Debug)]
pub(super) struct Lines {
    partial: Vec<u8>,
    oversized: Option<(Sha256, u64)>,
    limit: usize,
}

impl Lines {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            partial: Vec::new(),
            oversized: None,
            limit,
        }
    }

    /// Takes the next bytes and calls `each` for every line that they complete.
    pub(super) fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(Line<'_>)) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (head, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            if self.partial.is_empty() && self.oversized.is_none() && head.len() <= self.limit {
                each(Line::Whole(head));
            } else {
                self.hold(head);
                self.complete(&mut each);
            }
        }
        self.hold(bytes);
    }

    /// The stream ended: what is held is its last line.
    pub(super) fn finish(&mut self, mut each: impl FnMut(Line<'_>)) {
        if !self.partial.is_empty() || self.oversized.is_some() {
            self.complete(&mut each);
        }
    }

    fn complete(&mut self, each: &mut impl FnMut(Line<'_>)) {
        match self.oversized.take() {
            Some((hash, len)) => each(Line::Oversized {
                len,
                sha256: hash.finalize().into(),
            }),
            None => each(Line::Whole(&self.partial)),
        }
        self.partial.clear();
        self.partial.shrink_to(BUFFER_KEEP_BYTES);
    }

    fn hold(&mut self, bytes: &[u8]) {
        if self.oversized.is_none() {
            if self.partial.len() + bytes.len() <= self.limit {
                self.partial.extend_from_slice(bytes);
                return;
            }
            self.oversized = Some((
                Sha256::new_with_prefix(&self.partial),
                self.partial.len() as u64,
            ));
            self.partial = Vec::new();
        }
        if let Some((hash, len)) = &mut self.oversized {
            hash.update(bytes);
            *len += bytes.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    use super::{Line, Lines};

    const LIMIT: usize = 8;

    proptest! {
        #[test]
        fn any_chunking_gives_the_lines_that_splitting_gives(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..120),
            chunk in 1usize..20,
        ) {
            let mut lines = Lines::new(LIMIT);
            let mut seen = Vec::new();
            for piece in bytes.chunks(chunk) {
                lines.push(piece, |line| seen.push(owned(&line)));
            }
            lines.finish(|line| seen.push(owned(&line)));
            let mut wanted: Vec<_> = bytes.split(|byte| *byte == b'\n').map(expected).collect();
            if bytes.last().is_none_or(|byte| *byte == b'\n') {
                wanted.pop();
            }
            prop_assert_eq!(seen, wanted);
        }
    }

    fn owned(line: &Line<'_>) -> Result<Vec<u8>, (u64, [u8; 32])> {
        match line {
            Line::Whole(bytes) => Ok(bytes.to_vec()),
            Line::Oversized { len, sha256 } => Err((*len, *sha256)),
        }
    }

    fn expected(line: &[u8]) -> Result<Vec<u8>, (u64, [u8; 32])> {
        if line.len() <= LIMIT {
            Ok(line.to_vec())
        } else {
            Err((line.len() as u64, Sha256::digest(line).into()))
        }
    }
}
