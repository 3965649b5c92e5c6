//! Going on with copies whose writer died.
//!
//! The logs are read again from their beginning, into copies of their own: what the dead writer had not read yet, or read and
//! not written down, is in them. Owns comparing both in the end, so that a log that was changed meanwhile is found out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};

use super::{Copy, EVENTS, KEPT_LOGS, Kept, KeptLogWriter, Line, copy_name};
use crate::outdir::Dir;

/// Bytes compared at a time.
const STEP_BYTES: usize = 256 * 1024;

impl KeptLogWriter {
    /// Goes on in the spool's directory. A half-written last line of `events.jsonl` is cut off.
    ///
    /// # Errors
    /// When the copies cannot be read.
    pub fn resume(spool: &Dir) -> io::Result<Self> {
        let dir = spool.open_dir(KEPT_LOGS.as_ref())?;
        let mut events_crc = crc32fast::Hasher::new();
        let mut whole = 0_u64;
        let mut earlier = BTreeMap::new();
        let mut first_file = 0;
        let mut copies = BTreeMap::new();
        let mut reader = BufReader::new(dir.open_file(EVENTS)?);
        let mut line = Vec::new();
        loop {
            line.clear();
            // A line of ours is short; whatever else stands there ends the reading and is cut off.
            (&mut reader).take(64 * 1024).read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                break;
            }
            events_crc.update(&line);
            whole += line.len() as u64;
            let Ok(Line { proxy, event }) = serde_json::from_slice::<Line>(&line) else {
                continue;
            };
            if let Kept::Opened { file, facts, .. } = event {
                earlier.insert((proxy, facts.kernel_dev, facts.inode), file);
                first_file = first_file.max(file + 1);
                if let Some(copy) = reopen(&dir, proxy, file)? {
                    copies.insert((proxy, file), copy);
                }
            }
        }
        dir.truncate_file(EVENTS, whole)?;
        let mut events = dir.append_file(EVENTS)?;
        events.seek(io::SeekFrom::End(0))?;
        Ok(Self {
            dir,
            events,
            events_crc,
            events_lost: 0,
            events_bytes: whole,
            events_reserved: 0,
            copies,
            lost_bytes: 0,
            first_file,
            earlier,
        })
    }

    /// (kernel device, inode) of the files of a proxy's log that an earlier writer copied.
    pub fn earlier_files(&self, proxy: usize) -> Vec<(u32, u64)> {
        self.earlier
            .keys()
            .filter(|(of, _, _)| *of == proxy)
            .map(|(_, dev, inode)| (*dev, *inode))
            .collect()
    }

    /// Holds the earlier writer's copies against those that this one made of the same files: what was there must still be.
    pub(super) fn compare_with_earlier(&mut self) {
        let mut changed = Vec::new();
        for ((proxy, _, _), old) in &self.earlier {
            let name = copy_name(*proxy, *old);
            // The same file again, or nothing: a log that is gone altogether is told of by its follower.
            let again = self
                .copies
                .keys()
                .filter(|(of, file)| of == proxy && *file >= self.first_file)
                .map(|(of, file)| copy_name(*of, *file));
            let held = again
                .map(|new| begins_with(&self.dir, &new, &name))
                .collect::<io::Result<Vec<_>>>();
            match held {
                Ok(held) if held.iter().any(|same| *same) || held.is_empty() => {}
                Ok(_) => changed.push((*proxy, *old)),
                Err(error) => {
                    tracing::warn!(%error, "the copies of a proxy log cannot be compared");
                    self.lost_bytes += 1;
                }
            }
        }
        for (proxy, file) in changed {
            self.line(proxy, Kept::Rewritten { file });
        }
    }
}

/// A copy as it was left, to be sealed as it is. `None`: no byte was ever written.
fn reopen(dir: &Dir, proxy: usize, file: u64) -> io::Result<Option<Copy>> {
    let mut copy = match dir.append_file(&copy_name(proxy, file)) {
        Ok(copy) => copy,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut crc = crc32fast::Hasher::new();
    let mut buffer = vec![0; STEP_BYTES];
    let mut written = 0;
    loop {
        let length = copy.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        crc.update(&buffer[..length]);
        written += length as u64;
    }
    Ok(Some(Copy {
        file: Some(copy),
        written,
        crc,
        broken: false,
    }))
}

fn begins_with(dir: &Dir, long: &str, short: &str) -> io::Result<bool> {
    let (Some(mut long), Some(mut short)) = (open(dir, long)?, open(dir, short)?) else {
        // Nothing was copied, so nothing can have changed.
        return Ok(true);
    };
    let mut expected = vec![0; STEP_BYTES];
    let mut found = vec![0; STEP_BYTES];
    loop {
        let length = short.read(&mut expected)?;
        if length == 0 {
            return Ok(true);
        }
        match long.read_exact(&mut found[..length]) {
            Ok(()) if found[..length] == expected[..length] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

fn open(dir: &Dir, name: &str) -> io::Result<Option<File>> {
    match dir.open_file(name) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
