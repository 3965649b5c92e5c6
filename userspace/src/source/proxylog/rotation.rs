//! Names of rotated logs.
//!
//! Owns the patterns: mcp-audit appends `.YYYYMMDDThhmmssZ`, and `.1`, `.2` … behind it on a collision.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Most names kept of one directory listing. Stops a directory full of fitting names from taking all memory.
const NAMES_MAX: usize = 4096;

/// Rotated files of the log `base` in `dir`, oldest first. Empty if the directory cannot be read.
pub(super) fn files(dir: Option<&OwnedFd>, base: &OsStr) -> Vec<OsString> {
    let Some(mut entries) = dir.and_then(|dir| rustix::fs::Dir::read_from(dir).ok()) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    while let Some(Ok(entry)) = entries.read() {
        let name = entry.file_name().to_bytes();
        if let Some(age) = suffix(name, base.as_bytes()) {
            found.push((age, OsString::from_vec(name.to_vec())));
        }
        if found.len() == NAMES_MAX {
            break;
        }
    }
    found.sort();
    found.into_iter().map(|(_, name)| name).collect()
}

/// The sort key of a rotated file's name, or `None` if it is not one.
fn suffix(name: &[u8], base: &[u8]) -> Option<([u8; 16], u64)> {
    let rest = name.strip_prefix(base)?.strip_prefix(b".")?;
    let (stamp, rest) = rest.split_first_chunk::<16>()?;
    let shape = stamp.iter().enumerate().all(|(index, byte)| match index {
        8 => *byte == b'T',
        15 => *byte == b'Z',
        _ => byte.is_ascii_digit(),
    });
    if !shape {
        return None;
    }
    let collision = match rest {
        [] => 0,
        [b'.', digits @ ..] if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
            std::str::from_utf8(digits).ok()?.parse().ok()?
        }
        _ => return None,
    };
    Some((*stamp, collision))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_programs_own_suffixes_count() {
        let base = b"audit.jsonl";
        assert!(suffix(b"audit.jsonl.20261120T071855Z", base).is_some());
        assert!(suffix(b"audit.jsonl.20261120T071855Z.12", base).is_some());
        for other in [
            &b"audit.jsonl"[..],
            b"audit.jsonl.",
            b"audit.jsonl.1",
            b"audit.jsonl.20261120T071855",
            b"audit.jsonl.20261120T071855Z.",
            b"audit.jsonl.20261120T071855Z.x",
            b"audit.jsonl.20261120T071855Z.99999999999999999999999",
            b"other.jsonl.20261120T071855Z",
        ] {
            assert_eq!(suffix(other, base), None);
        }
    }

    #[test]
    fn collisions_sort_by_number_and_after_the_first() {
        let key = |name: &[u8]| suffix(name, b"a");
        assert!(key(b"a.20261120T071855Z") < key(b"a.20261120T071855Z.2"));
        assert!(key(b"a.20261120T071855Z.2") < key(b"a.20261120T071855Z.10"));
        assert!(key(b"a.20261120T071855Z.10") < key(b"a.20261120T071856Z"));
    }
}
