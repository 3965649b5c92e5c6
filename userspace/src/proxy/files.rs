//! Opening the proxy's log and its key. Both paths may lie where an agent can write.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use countersign_core::proxylog::Key;
use countersign_core::proxylog::signature::KEY_MAX_BYTES;

/// Permission bits that let others than the owner write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Opens the log for appending, 0600 if new, and ends a torn last line.
pub(super) fn open_log(path: &Path) -> Result<File> {
    let shown = path.display();
    let log = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        // Neither a link planted by the agent nor, by blocking, a FIFO.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .with_context(|| {
            format!("cannot open log {shown}: it must be a regular file, not a link")
        })?;
    let metadata = log
        .metadata()
        .with_context(|| format!("cannot stat log {shown}"))?;
    ensure!(metadata.is_file(), "log {shown} is not a regular file");
    ensure!(
        metadata.uid() == rustix::process::geteuid().as_raw(),
        "log {shown} belongs to another user: remove it or choose another path"
    );
    ensure!(
        metadata.mode() & WRITABLE_BY_OTHERS == 0,
        "log {shown} is writable by others: chmod it to 0600"
    );
    let mut last = [b'\n'];
    if metadata.len() > 0 {
        log.read_exact_at(&mut last, metadata.len() - 1)
            .with_context(|| format!("cannot read log {shown}"))?;
    }
    if last != [b'\n'] {
        // An earlier run was killed in mid-line. What it left stays, as a bad line of its own.
        std::io::Write::write_all(&mut &log, b"\n")
            .with_context(|| format!("cannot write log {shown}"))?;
    }
    Ok(log)
}

/// Reads a key file.
pub(super) fn key_from_file(path: &Path) -> Result<Key> {
    let shown = path.display();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .with_context(|| format!("cannot open key file {shown}: it must be a regular file"))?;
    let metadata = file
        .metadata()
        .with_context(|| format!("cannot stat key file {shown}"))?;
    ensure!(metadata.is_file(), "key file {shown} is not a regular file");
    if metadata.mode() & 0o077 != 0 {
        tracing::warn!(path = %shown, "key file is open to others: chmod it to 0600");
    }
    key(file).with_context(|| format!("key file {shown}"))
}

/// Reads a key from an inherited descriptor and closes it, so that the server does not get it.
pub(super) fn key_from_fd(fd: RawFd) -> Result<Key> {
    ensure!(
        fd > 2,
        "--key-fd {fd}: standard input and output are the relay's"
    );
    let open = Path::new("/proc/self/fd").join(fd.to_string());
    if open.symlink_metadata().is_err() {
        bail!("--key-fd {fd}: no such descriptor; open it for the proxy, as in {fd}<FILE");
    }
    // SAFETY: the descriptor is open, and the operator handed it over to be read and closed here;
    // nothing else in this process knows of it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    key(file).with_context(|| format!("--key-fd {fd}"))
}

fn key(file: File) -> Result<Key> {
    let mut content = Vec::with_capacity(KEY_MAX_BYTES + 3);
    // One byte past a key of full length with its line end shows that there is more.
    file.take(KEY_MAX_BYTES as u64 + 3)
        .read_to_end(&mut content)
        .context("cannot read the key")?;
    Ok(Key::from_file_content(content)?)
}
