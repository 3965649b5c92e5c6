//! Signing keys of proxies: where they come from and how they are held.
//!
//! Owns reading a key from the environment, a file or a descriptor. Does not verify signatures. A key
//! is never printed: its `Debug` form is a placeholder, and its bytes are overwritten when dropped
//! (best effort; copies that the allocator or the kernel made are out of reach).
//!
//! A key is taken as the bytes given, without hex or base64 decoding. From a file or descriptor one
//! line end (`\n` or `\r\n`) at the end is removed, because editors add it and the proxies' own keys
//! do not have it; from the environment nothing is removed.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longest key in bytes. Stops `--key-file` pointing at something endless or plainly not a key.
pub const KEY_MAX_BYTES: usize = 4096;

/// Where a key is read from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeySource {
    /// An environment variable of Countersign's own process.
    Env(String),
    /// A file that others cannot read.
    File(PathBuf),
    /// A descriptor inherited from the parent; read to its end and closed.
    Fd(RawFd),
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The environment variable does not exist.
    #[error("the environment variable {0} with the key is not set: export it, or use --key-file")]
    EnvMissing(String),
    /// Nothing is left after removing the line end.
    #[error(
        "the key from {0} is empty, and an empty key verifies nothing: put the proxy's own key there"
    )]
    Empty(String),
    /// Over [`KEY_MAX_BYTES`].
    #[error(
        "the key from {0} is longer than {KEY_MAX_BYTES} bytes, so it is none: name the file that the proxy reads"
    )]
    TooLong(String),
    /// Anyone on the machine can read or write it.
    #[error(
        "the key file {} is open to every user (mode {mode:04o}): run `chmod 600` on it and change \
         the key, it may be known", path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A directory, FIFO, socket or device.
    #[error("the key file {} is not a regular file: use --key-fd to pass a key by descriptor", .0.display())]
    NotRegular(PathBuf),
    /// There is no such file.
    #[error("there is no key file {}: check --key-file, or key_file in the configuration", .0.display())]
    FileMissing(PathBuf),
    /// Nothing is open under that number.
    #[error(
        "no descriptor {0} was passed: open it when calling, as in `--key-fd {0} {0}<audit.key`, or use --key-file"
    )]
    FdClosed(RawFd),
    /// Opening or reading failed.
    #[error("cannot read the key from {origin}: it must be there and readable for this process")]
    Io {
        /// Where from.
        origin: String,
        /// The system's reason.
        source: io::Error,
    },
}

/// A key in memory.
pub struct KeyBytes(Vec<u8>);

impl KeyBytes {
    /// The key, as the proxy uses it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyBytes(redacted)")
    }
}

impl Drop for KeyBytes {
    fn drop(&mut self) {
        self.0.fill(0);
        // Keeps the compiler from dropping a store to memory that is about to be freed.
        std::hint::black_box(&self.0);
    }
}

impl KeySource {
    /// Reads the key.
    ///
    /// # Errors
    /// [`KeyError`] when it is missing, empty, too long or open to others.
    pub fn load(&self) -> Result<KeyBytes, KeyError> {
        let key = match self {
            Self::Env(name) => std::env::var_os(name)
                .map(|value| KeyBytes(value.into_vec()))
                .ok_or_else(|| KeyError::EnvMissing(name.clone()))?,
            Self::File(path) => read_all(open_key_file(path)?, self.origin())?,
            Self::Fd(number) => {
                if *number < 0 || rustix::io::fcntl_getfd(borrow(*number)).is_err() {
                    return Err(KeyError::FdClosed(*number));
                }
                // SAFETY: the descriptor is open (checked above) and was handed to this process for
                // this purpose by the command line; nothing else in it uses that number.
                let owned = unsafe { OwnedFd::from_raw_fd(*number) };
                read_all(File::from(owned), self.origin())?
            }
        };
        if key.0.is_empty() {
            return Err(KeyError::Empty(self.origin()));
        }
        if key.0.len() > KEY_MAX_BYTES {
            return Err(KeyError::TooLong(self.origin()));
        }
        Ok(key)
    }

    /// How messages name this source.
    pub fn origin(&self) -> String {
        match self {
            Self::Env(name) => format!("the environment variable {name}"),
            Self::File(path) => path.display().to_string(),
            Self::Fd(number) => format!("descriptor {number}"),
        }
    }
}

fn borrow(number: RawFd) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: used for one `fcntl(F_GETFD)`, which reports a closed descriptor instead of misusing it;
    // the caller excludes -1.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(number) }
}

fn open_key_file(path: &Path) -> Result<File, KeyError> {
    let io_error = |source: io::Error| {
        if source.kind() == io::ErrorKind::NotFound {
            return KeyError::FileMissing(path.to_owned());
        }
        KeyError::Io {
            origin: path.display().to_string(),
            source,
        }
    };
    // Non-blocking, so that a FIFO in its place cannot hang the start.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(io_error)?;
    let metadata = file.metadata().map_err(io_error)?;
    if !metadata.is_file() {
        return Err(KeyError::NotRegular(path.to_owned()));
    }
    if metadata.mode() & 0o006 != 0 {
        return Err(KeyError::Exposed {
            path: path.to_owned(),
            mode: metadata.mode() & 0o7777,
        });
    }
    Ok(file)
}

fn read_all(file: File, origin: String) -> Result<KeyBytes, KeyError> {
    // Two bytes for a line end and one to notice that there is more. Allocated once: growing would leave
    // copies of the key behind.
    let limit = KEY_MAX_BYTES + 3;
    let mut key = KeyBytes(Vec::with_capacity(limit));
    file.take(limit as u64)
        .read_to_end(&mut key.0)
        .map_err(|source| KeyError::Io { origin, source })?;
    if key.0.last() == Some(&b'\n') {
        key.0.pop();
        if key.0.last() == Some(&b'\r') {
            key.0.pop();
        }
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::unwrap_in_result,
        reason = "tests panic on purpose"
    )]

    use std::os::fd::IntoRawFd;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_line_end_is_removed_from_a_file_and_nothing_else() {
        for (content, expected) in [
            ("k\n", "k"),
            ("k\r\n", "k"),
            ("k", "k"),
            (" k \n\n", " k \n"),
            ("k\r", "k\r"),
        ] {
            assert_eq!(
                load_file(content.as_bytes(), 0o600).unwrap().as_bytes(),
                expected.as_bytes()
            );
        }
    }

    #[test]
    fn a_key_that_everyone_can_read_is_refused_with_the_fix() {
        let error = load_file(b"k", 0o644).unwrap_err();
        assert!(matches!(error, KeyError::Exposed { mode: 0o644, .. }));
        assert!(error.to_string().contains("chmod 600"));
    }

    #[test]
    fn empty_and_oversized_keys_are_refused() {
        assert!(matches!(load_file(b"\n", 0o600), Err(KeyError::Empty(_))));
        assert!(load_file(&[b'x'; KEY_MAX_BYTES], 0o600).is_ok());
        assert!(matches!(
            load_file(&[b'x'; KEY_MAX_BYTES + 1], 0o600),
            Err(KeyError::TooLong(_))
        ));
        assert!(matches!(
            load_file(&vec![b'x'; 1 << 20], 0o600),
            Err(KeyError::TooLong(_))
        ));
    }

    #[test]
    fn a_directory_is_no_key_file() {
        let directory = tempfile::tempdir().unwrap();
        let source = KeySource::File(directory.path().to_owned());
        assert!(matches!(source.load(), Err(KeyError::NotRegular(_))));
    }

    #[test]
    fn a_key_comes_from_a_descriptor_once() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, b"secret\n").unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let source = KeySource::Fd(file.into_raw_fd());
        assert_eq!(source.load().unwrap().as_bytes(), b"secret");
        assert!(matches!(
            KeySource::Fd(1_000_000).load(),
            Err(KeyError::FdClosed(1_000_000))
        ));
        assert!(matches!(
            KeySource::Fd(-1).load(),
            Err(KeyError::FdClosed(-1))
        ));
    }

    #[test]
    fn a_missing_variable_is_named() {
        let source = KeySource::Env("COUNTERSIGN_TEST_NO_SUCH_VARIABLE".into());
        assert!(
            source
                .load()
                .unwrap_err()
                .to_string()
                .contains("COUNTERSIGN_TEST_NO_SUCH_VARIABLE")
        );
    }

    #[test]
    fn a_key_is_never_printed() {
        let key = load_file(b"hunter2", 0o600).unwrap();
        assert!(!format!("{key:?}").contains("hunter2"));
    }

    fn load_file(content: &[u8], mode: u32) -> Result<KeyBytes, KeyError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        KeySource::File(file.path().to_owned()).load()
    }
}
