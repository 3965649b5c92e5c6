//! How an operation's records say whose it was, and the kernel's own copies of its bytes.

use countersign_common as abi;
use zerocopy::IntoBytes;

use super::{Scene, Shown, len32};

impl Shown {
    /// The flags of the operation's records.
    pub(super) fn bits(&self, by_proxy: bool) -> u16 {
        let mut flags = self.flags;
        if self.copied {
            flags |= abi::transfer_flags::KERNEL_COPY;
        }
        if by_proxy {
            flags |= abi::transfer_flags::BY_PROXY;
        }
        flags
    }
}

impl Scene {
    /// In two records, and with something behind it that the reader never got.
    pub(super) fn copy(&mut self, base: abi::Transfer, moved: &[u8]) {
        let half = moved.len() / 2;
        let mut offset = 0;
        for bytes in [&moved[..half], &moved[half..], b"never delivered"] {
            let mut copy = abi::Transfer {
                op_seq: 0,
                stream_before: 0,
                exit_ns: 0,
                returned: 0,
                offset,
                len: len32(bytes.len() as u64),
                ..base
            };
            copy.header = self.header(
                abi::kind::KERNEL_COPY,
                size_of::<abi::Transfer>() + bytes.len(),
            );
            self.emit(copy.as_bytes(), bytes);
            offset += bytes.len() as u64;
        }
    }
}
