//! Opening the proxy's log. Its path may lie where an agent can write.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

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
            format!(
                "cannot open log {shown}: its directory must exist, and it must be a regular file, not a link; check --log"
            )
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
