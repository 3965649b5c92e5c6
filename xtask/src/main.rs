//! Workspace commands.

mod ebpf;

use std::path::Path;

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("find the workspace")?;
    match std::env::args().nth(1).as_deref() {
        Some("build-ebpf") => ebpf::build(root).map(drop),
        _ => anyhow::bail!("usage: cargo xtask build-ebpf"),
    }
}
