//! Files whose opening by a watched process is told: signing keys, logs that are there already, and the output.
//!
//! A file is known by device and inode, as it is when the capture begins; what a proxy opens for writing later is added by the
//! kernel programs. A file that is not there yet is not watched here.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use countersign_common::evasion::file_class;

use crate::bpf::options::WatchedId;
use crate::config::Config;
use crate::device::kernel_dev;
use crate::key::KeySource;

/// The files of a configuration and the output directory.
pub(crate) fn files(config: &Config, output: &Path) -> Vec<WatchedId> {
    let mut paths = vec![(output, file_class::OWN)];
    for proxy in &config.proxies {
        paths.push((&proxy.log, file_class::WRITTEN_BY_PROXY));
        if let Some(KeySource::File(path)) = &proxy.key {
            paths.push((path, file_class::KEY));
        }
    }
    paths
        .into_iter()
        .filter_map(|(path, class)| {
            let file = std::fs::metadata(path).ok()?;
            Some(WatchedId {
                dev: kernel_dev(file.dev()),
                inode: file.ino(),
                class,
            })
        })
        .collect()
}
