//! What must hold for any bytes given to the JSON scanner.

use countersign_core::json::{Document, Limits, Value};
use countersign_core::proxylog::canonical::{canonicalise_any, compact, exact};
use countersign_core::proxylog::{Comparison, Redaction, compare};

/// Panics if a property does not hold.
pub(crate) fn check(bytes: &[u8]) {
    let Ok(doc) = Document::parse(bytes, Limits::default()) else {
        // Only what serde_json refuses too may be refused.
        assert!(serde_json::from_slice::<&serde_json::value::RawValue>(bytes).is_err());
        return;
    };
    spans_nest(doc.root());
    let none = Redaction::none();
    let canonical = canonicalise_any(doc.root(), &none);
    let again = parse(&canonical);
    assert_eq!(
        canonicalise_any(again.root(), &none),
        canonical,
        "canonical is a fixed point"
    );
    assert!(matches!(
        compare::values(doc.root(), again.root(), &none),
        Comparison::Equal | Comparison::Collapsed { .. }
    ));
    let exact = exact(doc.root(), &none);
    let exact = parse(&exact);
    assert!(matches!(
        compare::values(doc.root(), exact.root(), &none),
        Comparison::Equal | Comparison::Collapsed { .. }
    ));
    let compacted = compact(doc.root().raw());
    let compacted = parse(&compacted);
    assert_eq!(
        compare::values(doc.root(), compacted.root(), &none),
        Comparison::Equal
    );
    assert_eq!(canonicalise_any(compacted.root(), &none), canonical);
}

fn parse(bytes: &[u8]) -> Document<'_> {
    match Document::parse(bytes, Limits::default()) {
        Ok(doc) => doc,
        Err(error) => panic!("{error}: {}", String::from_utf8_lossy(bytes)),
    }
}

/// Children lie inside their parents, in order, and every string decodes.
fn spans_nest(root: Value<'_>) {
    let mut open = vec![root];
    while let Some(value) = open.pop() {
        let span = value.span();
        assert!(!span.is_empty());
        let mut at = span.start + 1;
        let entries = value.entries().flat_map(|(key, value)| [key, value]);
        for child in value.elements().chain(entries) {
            assert!(child.span().start >= at && child.span().end < span.end);
            at = child.span().end;
            open.push(child);
        }
        assert!(value.as_str_lossy().len() <= 3 * span.len());
        assert!(
            value
                .as_str_bytes()
                .is_none_or(|text| text.len() < span.len())
        );
        assert!(value.leniency_within().contains(value.leniency()));
    }
}
