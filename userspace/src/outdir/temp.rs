//! A file that is either complete or not there.
//!
//! Owns the temporary name, the flush to disk and the rename. An uncommitted file is removed when dropped.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::Path;

use super::Dir;

/// A file being written under a temporary name beside its final one.
#[derive(Debug)]
pub struct TempFile {
    dir: Dir,
    file: File,
    temporary: String,
    name: String,
    committed: bool,
}

impl TempFile {
    pub(super) fn create(root: &Dir, path: &Path) -> io::Result<Self> {
        let invalid = || {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is no file name", path.display()),
            )
        };
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(invalid)?
            .to_owned();
        let dir = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => root.ensure_dir(parent)?,
            _ => root.try_clone()?,
        };
        let temporary = format!(".{name}.partial");
        let file = dir.create_file(&temporary)?;
        Ok(Self {
            dir,
            file,
            temporary,
            name,
            committed: false,
        })
    }

    /// Makes the content durable and gives the file its name.
    ///
    /// # Errors
    /// When the file system fails or the name is taken; the file is then removed.
    pub fn commit(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        self.dir.rename(&self.temporary, &self.name)?;
        self.committed = true;
        self.dir.sync()
    }
}

impl Write for TempFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.file.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for TempFile {
    fn seek(&mut self, position: io::SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = self.dir.remove_file(&self.temporary)
        {
            tracing::warn!(%error, name = self.temporary, "a partial file could not be removed");
        }
    }
}
