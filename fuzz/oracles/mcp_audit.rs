//! What must hold for any bytes given to the log reader.

use countersign_core::proxylog::mcp_audit::Reader;
use countersign_core::proxylog::signature::{self, SignatureState};
use countersign_core::proxylog::{Key, LogItem};

/// Panics if a property does not hold.
pub(crate) fn check(bytes: &[u8]) {
    let whole = read(bytes, bytes.len().max(1));
    assert_eq!(whole, read(bytes, 7), "chunking changes nothing");
    let mut at = 0;
    for item in &whole {
        let line = match item {
            LogItem::Entry(entry) => entry.line,
            LogItem::Bad(bad) => bad.line,
        };
        assert_eq!(line.offset, at, "lines leave no gap");
        at += line.len + 1;
        if let LogItem::Entry(entry) = item {
            let key = Key::new(b"not the key".to_vec()).ok();
            let state = signature::verify(entry, key.as_ref(), entry.result.as_deref());
            assert!(matches!(
                state,
                SignatureState::Bad | SignatureState::Absent
            ));
        }
    }
    let ends = bytes.len() as u64 + u64::from(bytes.last().is_some_and(|byte| *byte != b'\n'));
    assert_eq!(at, ends);
}

fn read(bytes: &[u8], chunk: usize) -> Vec<LogItem> {
    let mut reader = Reader::new();
    let mut items = Vec::new();
    for piece in bytes.chunks(chunk) {
        reader.push(piece);
        items.extend(std::iter::from_fn(|| reader.poll()));
    }
    reader.finish();
    items.extend(std::iter::from_fn(|| reader.poll()));
    items
}
