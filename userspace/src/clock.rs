//! Readings of the kernel's clocks.
//!
//! Owns the only calls to `clock_gettime` in the shell. Kernel records carry `CLOCK_BOOTTIME`;
//! evidence carries UTC beside it, so both are always read together.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// One moment on both clocks, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// `CLOCK_BOOTTIME`: since boot, suspend included.
    pub boot_ns: u64,
    /// `CLOCK_REALTIME`: UTC since 1970.
    pub utc_ns: i64,
}

impl Moment {
    /// Reads both clocks, one right after the other.
    pub fn now() -> Self {
        let boot = clock_gettime(ClockId::Boottime);
        let utc = clock_gettime(ClockId::Realtime);
        Self {
            boot_ns: u64::try_from(nanoseconds(boot)).unwrap_or(0),
            utc_ns: nanoseconds(utc),
        }
    }
}

fn nanoseconds(time: Timespec) -> i64 {
    time.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_move_forward() {
        let first = Moment::now();
        let second = Moment::now();
        assert!(first.boot_ns > 0 && first.boot_ns <= second.boot_ns);
        assert!(first.utc_ns > 1_600_000_000_000_000_000);
    }
}
