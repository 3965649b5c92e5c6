//! The kernel programs as built in.

/// The ELF object; empty when the kernel programs were not built before this binary.
pub fn object() -> &'static [u8] {
    static OBJECT: &[u8] =
        aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/countersign-ebpf.o"));
    OBJECT
}

/// The object, or what to do to have one.
///
/// # Errors
/// When the kernel programs are not built in.
pub fn require_object() -> anyhow::Result<&'static [u8]> {
    let bytes = object();
    anyhow::ensure!(
        !bytes.is_empty(),
        "kernel programs are not built in: run `cargo xtask build-ebpf`, then build again"
    );
    Ok(bytes)
}
