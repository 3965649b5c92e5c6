//! What the running kernel must be able to do, told by its own types rather than by its version: distributions bring features
//! back to older kernels.

use std::fs;
use std::io;

use memchr::memmem;

use super::btf::Btf;

/// Where the kernel keeps its BTF.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Something that the kernel programs use. The kernel's types have the name exactly if it is there.
struct Feature {
    /// An enumerator of `enum bpf_func_id`.
    name: &'static str,
    /// In an operator's words.
    what: &'static str,
}

/// The helpers that not every kernel with ring buffers and BTF has, the one that came last first.
const FEATURES: [Feature; 4] = [
    Feature {
        name: "BPF_FUNC_loop",
        what: "bounded loops in kernel programs (bpf_loop)",
    },
    Feature {
        name: "BPF_FUNC_get_current_task_btf",
        what: "typed pointers to the running task (bpf_get_current_task_btf)",
    },
    Feature {
        name: "BPF_FUNC_task_storage_get",
        what: "storage of kernel programs in a task (bpf_task_storage_get)",
    },
    Feature {
        name: "BPF_FUNC_ringbuf_reserve",
        what: "the ring buffer of kernel programs (bpf_ringbuf_reserve)",
    },
];

/// What the running kernel lacks of that, in an operator's words; empty if nothing.
///
/// # Errors
/// When the kernel's types cannot be read, or are none.
pub fn missing() -> io::Result<Vec<&'static str>> {
    let types = fs::read(VMLINUX)?;
    if let Err(error) = Btf::parse(&types) {
        return Err(io::Error::other(format!(
            "the kernel types in {VMLINUX} cannot be used: mount the kernel's own sysfs on /sys: {error}"
        )));
    }
    Ok(missing_in(&types))
}

/// Names in BTF end with a zero, and another's zero stands before.
fn missing_in(types: &[u8]) -> Vec<&'static str> {
    let lacks = |feature: &&Feature| {
        let mut name = vec![0];
        name.extend(feature.name.as_bytes());
        name.push(0);
        memmem::find(types, &name).is_none()
    };
    FEATURES
        .iter()
        .filter(lacks)
        .map(|feature| feature.what)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_loops_is_told_apart_from_one_with_a_helper_of_a_longer_name() {
        let types = b"\0BPF_FUNC_loop_something\0BPF_FUNC_get_current_task_btf\0BPF_FUNC_task_storage_get\0BPF_FUNC_ringbuf_reserve\0";
        assert_eq!(
            missing_in(types),
            ["bounded loops in kernel programs (bpf_loop)"]
        );
    }

    #[test]
    fn a_kernel_with_all_of_them_lacks_nothing() {
        let types: Vec<u8> = FEATURES
            .iter()
            .flat_map(|feature| [b"\0", feature.name.as_bytes(), b"\0"].concat())
            .collect();
        assert!(missing_in(&types).is_empty());
    }
}
