//! An [`EvidenceDir`] for folders that nobody else can write to.
//!
//! It resolves paths as the operating system does, so it must not be used where an agent could place a symbolic link.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::{EvidenceDir, TempFile};

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
