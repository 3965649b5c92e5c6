//! Directories that take evidence: the guarded output directory, and a plain one.
//!
//! [`PrivateDir`] resolves paths as the operating system does, so it must not be used where an agent could place a symbolic
//! link; a capture writes to an [`OutDir`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::{EvidenceDir, TempFile};
use crate::outdir::{self, OutDir};

impl EvidenceDir for Arc<OutDir> {
    fn create_temp(&self, path: &str) -> Result<Box<dyn TempFile>> {
        let file = self
            .temp_file(Path::new(path))
            .with_context(|| format!("cannot create {}", self.path().join(path).display()))?;
        Ok(Box::new(file))
    }
}

impl TempFile for outdir::TempFile {
    fn commit(self: Box<Self>) -> Result<()> {
        outdir::TempFile::commit(*self).context("cannot finish a file of evidence")
    }
}

/// A folder that only its owner can write to.
#[derive(Clone, Debug)]
pub struct PrivateDir(
    /// Path of the folder.
    pub PathBuf,
);

impl EvidenceDir for PrivateDir {
    fn create_temp(&self, path: &str) -> Result<Box<dyn TempFile>> {
        let path = self.0.join(path);
        if path.exists() {
            bail!(
                "{} exists already: choose an empty output directory",
                path.display()
            );
        }
        let folder = path.parent().context("a file of evidence needs a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut temp = path.clone().into_os_string();
        temp.push(".tmp");
        let temp = PathBuf::from(temp);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temp)
            .with_context(|| format!("cannot create {}", temp.display()))?;
        Ok(Box::new(PrivateFile {
            file,
            temp: Some(temp),
            path,
        }))
    }
}

struct PrivateFile {
    file: File,
    /// Name until the commit; none after it.
    temp: Option<PathBuf>,
    path: PathBuf,
}

impl Write for PrivateFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl TempFile for PrivateFile {
    fn commit(mut self: Box<Self>) -> Result<()> {
        self.file
            .sync_all()
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        if let Some(temp) = self.temp.take() {
            fs::rename(&temp, &self.path).with_context(|| {
                format!(
                    "cannot rename {} to {}",
                    temp.display(),
                    self.path.display()
                )
            })?;
        }
        Ok(())
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        if let Some(temp) = self.temp.take()
            && let Err(error) = fs::remove_file(&temp)
        {
            tracing::warn!(path = %temp.display(), %error, "an unfinished file stays behind");
        }
    }
}
