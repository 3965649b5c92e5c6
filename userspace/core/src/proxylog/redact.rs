//! A text with the values of sensitive keys replaced, and otherwise as it came.
//!
//! Owns the replacing. Spelling, order and repeated keys are evidence, so nothing else changes; the form in which a proxy would
//! log the same value is [`canonical`](super::canonical)'s.

use super::canonical::{REDACTED, Redaction};
use crate::json::{Document, Elements, Entries, Kind, Value};

/// A container that is being walked. A stack of these stands in for recursion, which hostile nesting would overflow.
enum Open<'d> {
    Array(Elements<'d>),
    Object(Entries<'d>),
}

/// The document's text, every value of a sensitive key replaced; `None` if it has none.
pub fn replaced(document: &Document<'_>, redaction: &Redaction) -> Option<Vec<u8>> {
    let text = document.bytes();
    let mut out = Vec::new();
    let mut copied = 0;
    let mut open: Vec<Open<'_>> = Vec::new();
    open.extend(opened(document.root()));
    while let Some(container) = open.last_mut() {
        let next = match container {
            Open::Array(elements) => elements.next().map(|value| (value, false)),
            Open::Object(entries) => entries
                .next()
                .map(|(key, value)| (value, redaction.hits(&key.as_str_lossy()))),
        };
        match next {
            None => {
                open.pop();
            }
            Some((value, false)) => open.extend(opened(value)),
            Some((value, true)) => {
                let span = value.span();
                out.extend_from_slice(text.get(copied..span.start).unwrap_or_default());
                out.push(b'"');
                out.extend_from_slice(REDACTED.as_bytes());
                out.push(b'"');
                copied = span.end;
            }
        }
    }
    if copied == 0 {
        return None;
    }
    out.extend_from_slice(text.get(copied..).unwrap_or_default());
    Some(out)
}

fn opened(value: Value<'_>) -> Option<Open<'_>> {
    match value.kind() {
        Kind::Array => Some(Open::Array(value.elements())),
        Kind::Object => Some(Open::Object(value.entries())),
        Kind::Null | Kind::Bool | Kind::Number | Kind::String => None,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]
    use super::*;
    use crate::json::Limits;

    #[test]
    fn only_the_values_of_sensitive_keys_change() {
        let text =
            br#" {"b" : [1.0, {"API_KEY":{"x":[1]},"n":1e2}],"a":1,"a":2, "\u0074oken":null} "#;
        let document = Document::parse(text, Limits::default()).unwrap();
        let out = replaced(&document, &Redaction::default()).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#" {"b" : [1.0, {"API_KEY":"[REDACTED]","n":1e2}],"a":1,"a":2, "\u0074oken":"[REDACTED]"} "#
        );
        assert_eq!(replaced(&document, &Redaction::none()), None);
    }

    #[test]
    fn what_nests_a_hundred_thousand_deep_is_redacted_too() {
        let deep = 100_000;
        let text = [
            "[".repeat(deep).as_str(),
            r#"{"secret":"s"}"#,
            "]".repeat(deep).as_str(),
        ]
        .concat();
        let document = Document::parse(text.as_bytes(), Limits::default()).unwrap();
        let out = replaced(&document, &Redaction::default()).unwrap();
        assert!(memchr::memmem::find(&out, br#"{"secret":"[REDACTED]"}"#).is_some());
    }
}
