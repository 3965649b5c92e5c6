//! Device numbers: user space and the kernel write them differently, and records hold the kernel's.

/// The kernel's own form of a device number from that of `stat(2)`: `MKDEV` in `include/linux/kdev_t.h`, 12 bits of major and 20 of
/// minor.
pub fn kernel_dev(dev: u64) -> u32 {
    (rustix::fs::major(dev) << 20) | (rustix::fs::minor(dev) & 0x000f_ffff)
}
