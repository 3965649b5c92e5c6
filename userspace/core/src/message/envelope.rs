//! Messages inside other values: servers can be made to take them out, proxies are not.

use crate::json::{Document, Kind, Limits, Value};

/// Whether a text is JSON that holds an object with `jsonrpc` and `method` below its outermost messages: in an envelope, or in a
/// batch of batches.
pub fn wraps_message(text: &[u8]) -> bool {
    let Ok(document) = Document::parse(text, Limits::default()) else {
        return false;
    };
    let root = document.root();
    let mut open = Vec::new();
    // What stands at the top, alone or in a batch, is no envelope's.
    for element in root.elements() {
        match element.kind() {
            Kind::Object => push_containers(element, &mut open),
            Kind::Array => open.push(element),
            Kind::Null | Kind::Bool | Kind::Number | Kind::String => {}
        }
    }
    if root.kind() == Kind::Object {
        push_containers(root, &mut open);
    }
    while let Some(value) = open.pop() {
        if value.get("jsonrpc").is_some() && value.get("method").is_some() {
            return true;
        }
        push_containers(value, &mut open);
    }
    false
}

fn push_containers<'d>(value: Value<'d>, into: &mut Vec<Value<'d>>) {
    let members = value.entries().map(|(_, value)| value);
    let all = members.chain(value.elements());
    into.extend(all.filter(|value| matches!(value.kind(), Kind::Object | Kind::Array)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_in_an_envelope_is_found_and_one_at_the_top_is_none() {
        for wrapped in [
            r#"{"type":"x","payload":[{"id":1,"jsonrpc":"2.0","method":"tools/call"}]}"#,
            r#"[[{"jsonrpc":"2.0","\u006dethod":"tools/call"}]]"#,
        ] {
            assert!(wraps_message(wrapped.as_bytes()), "{wrapped}");
        }
        for plain in [
            r#"[{"jsonrpc":"2.0","method":"ping"},{"x":1}]"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"message":"{\"jsonrpc\":\"2.0\",\"method\":\"ping\"}"}"#,
        ] {
            assert!(!wraps_message(plain.as_bytes()), "{plain}");
        }
    }
}
