//! Embeds the kernel programs when `cargo xtask build-ebpf` has built them; without them everything but the capture
//! commands works, and no eBPF tool is needed to build.

use std::{env, fs, io, path::Path};

fn main() -> io::Result<()> {
    let variable = |name| env::var(name).map_err(io::Error::other);
    let folder = Path::new(&variable("CARGO_MANIFEST_DIR")?).join("../target/bpf");
    // Watch the folder: Cargo takes a missing file for a changed one and would rebuild every time.
    if fs::create_dir_all(&folder).is_ok() {
        println!("cargo::rerun-if-changed={}", folder.display());
    }
    let object = fs::read(folder.join("countersign-ebpf.o")).unwrap_or_default();
    fs::write(Path::new(&variable("OUT_DIR")?).join("countersign-ebpf.o"), object)
}
