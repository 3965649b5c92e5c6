//! What must hold for any bytes taken for a message.

use countersign_core::message;

/// Panics if a property does not hold.
pub(crate) fn check(bytes: &[u8]) {
    let _ = message::begins_like_mcp(bytes);
    let _ = message::head(bytes);
    if let Ok(parsed) = message::parse_stream(bytes) {
        for message in &parsed.messages {
            assert!(
                bytes.get(message.span.clone()).is_some(),
                "the span lies in the text"
            );
        }
    }
    let Ok(parsed) = message::parse(bytes) else {
        return;
    };
    assert!(parsed.batch || parsed.messages.len() == 1);
    for (nth, message) in parsed.messages.iter().enumerate() {
        assert_eq!(message.element as usize, nth);
        let whole = bytes
            .get(message.span.clone())
            .expect("the span lies in the text");
        for part in [&message.params, &message.result, &message.error]
            .into_iter()
            .flatten()
        {
            assert!(message.span.start <= part.start && part.end <= message.span.end);
        }
        // A message says the same where it stands alone.
        let alone = message::parse(whole).expect("an element is json");
        if !alone.batch {
            assert_eq!(alone.messages[0].kind, message.kind);
            assert_eq!(alone.messages[0].id_text(), message.id_text());
            assert_eq!(alone.messages[0].method, message.method);
        }
    }
}
