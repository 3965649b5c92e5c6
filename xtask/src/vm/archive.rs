//! An initial file system for a guest: a cpio archive in the "newc" format (`initramfs` buffer format of the kernel).
//!
//! Owns the format and what is already inside; knows nothing of what the guest needs.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, ensure};

/// File type bits of a mode (`inode(7)`).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTERS: u32 = 0o020_000;

/// An archive that is being written.
#[derive(Debug)]
pub(crate) struct Archive<W> {
    out: W,
    inside: BTreeSet<PathBuf>,
    next_inode: u32,
    written: usize,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            inside: BTreeSet::new(),
            next_inode: 1,
            written: 0,
        }
    }

    /// Whether there is something at `path` already.
    pub(crate) fn contains(&self, path: &Path) -> bool {
        self.inside.contains(path)
    }

    /// A directory and those above it.
    pub(crate) fn directory(&mut self, path: &Path) -> anyhow::Result<()> {
        self.parents(path)?;
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// A link that says `target`.
    pub(crate) fn link(&mut self, path: &Path, target: &Path) -> anyhow::Result<()> {
        self.parents(path)?;
        self.entry(path, LINK | 0o777, (0, 0), target.as_os_str().as_bytes())
    }

    /// A file with these bytes.
    pub(crate) fn file(&mut self, path: &Path, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
        self.parents(path)?;
        self.entry(path, REGULAR | (mode & 0o7777), (0, 0), bytes)
    }

    /// A character device.
    pub(crate) fn device(&mut self, path: &Path, major: u32, minor: u32) -> anyhow::Result<()> {
        self.parents(path)?;
        self.entry(path, CHARACTERS | 0o600, (major, minor), &[])
    }

    /// A file of this machine at the same place in the guest; links are followed.
    pub(crate) fn same(&mut self, path: &Path) -> anyhow::Result<()> {
        if self.contains(path) {
            return Ok(());
        }
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mode = fs::metadata(path)?.permissions().mode();
        self.file(path, mode, &bytes)
    }

    /// Ends the archive.
    pub(crate) fn end(mut self) -> anyhow::Result<W> {
        self.entry(Path::new("/TRAILER!!!"), 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &Path) -> anyhow::Result<()> {
        let plain = path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        ensure!(
            path.is_absolute() && plain,
            "{} is not a plain absolute path",
            path.display()
        );
        let above: Vec<_> = path.ancestors().skip(1).collect();
        for parent in above.into_iter().rev() {
            if parent != Path::new("/") && !self.contains(parent) {
                self.entry(parent, DIRECTORY | 0o755, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: &Path,
        mode: u32,
        node: (u32, u32),
        bytes: &[u8],
    ) -> anyhow::Result<()> {
        if !self.inside.insert(path.to_path_buf()) {
            return Ok(());
        }
        let name = path.strip_prefix("/").unwrap_or(path).as_os_str();
        let len = u32::try_from(bytes.len())
            .with_context(|| format!("{} is too large", path.display()))?;
        let inode = self.next_inode;
        self.next_inode += 1;
        let links = 1;
        // inode, mode, uid, gid, links, time, size, device of the file (2), device it is (2), length of the name, checksum
        let fields = [
            inode,
            mode,
            0,
            0,
            links,
            0,
            len,
            0,
            0,
            node.0,
            node.1,
            u32::try_from(name.len() + 1)?,
            0,
        ];
        let mut head = String::from("070701");
        for field in fields {
            use std::fmt::Write as _;
            write!(head, "{field:08x}")?;
        }
        self.bytes(head.as_bytes())?;
        self.bytes(name.as_bytes())?;
        self.bytes(&[0])?;
        self.align()?;
        self.bytes(bytes)?;
        self.align()
    }

    /// Names and contents are padded to four bytes.
    fn align(&mut self) -> anyhow::Result<()> {
        let padding = self.written.next_multiple_of(4) - self.written;
        self.bytes(&[0; 3][..padding])
    }

    fn bytes(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.written += bytes.len();
        self.out
            .write_all(bytes)
            .context("cannot write the archive")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_the_kernel_expects() -> anyhow::Result<()> {
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("/a/b"), 0o755, b"hello")?;
        archive.file(Path::new("/a/b"), 0o755, b"not twice")?;
        let bytes = archive.end()?;
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("07070100000001000041ed"), "{text}");
        assert!(text.contains("a/b\0\0\0hello\0\0\0"), "{text}");
        assert!(text.ends_with("TRAILER!!!\0\0\0\0"), "{text}");
        assert_eq!(bytes.len() % 4, 0);
        Ok(())
    }

    #[test]
    fn a_path_that_leads_out_is_refused() {
        let mut archive = Archive::new(Vec::new());
        assert!(archive.file(Path::new("/a/../b"), 0o644, b"").is_err());
        assert!(archive.file(Path::new("a"), 0o644, b"").is_err());
    }
}
