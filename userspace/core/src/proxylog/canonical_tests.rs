#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use proptest::prelude::*;

use super::super::corpus::{corpus_file, entries, key, parse, vectors, wire};
use super::super::draft::Draft;
use super::{NotCanonical, Redaction, canonicalise, canonicalise_any, compact};

#[test]
fn the_exact_form_rounds_nothing() {
    for (text, exact_form) in [
        (
            r#"{"b":9007199254740993,"a":1.0}"#,
            r#"{"a":1,"b":9007199254740993}"#,
        ),
        ("[1e400,1e2,-0,1e-400]", "[1e400,100,-0,1e-400]"),
        (r#"["a\ud800b\udfff<"]"#, r#"["a\ud800b\udfff\u003c"]"#),
        (r#"{"\ud800":1,"\ud801":2}"#, r#"{"\ud800":1,"\ud801":2}"#),
        (r#"{"token":9007199254740993}"#, r#"{"token":"[REDACTED]"}"#),
    ] {
        let document = parse(text.as_bytes());
        let written = super::exact(document.root(), &Redaction::default());
        assert_eq!(String::from_utf8(written).unwrap(), exact_form);
    }
}

#[test]
fn every_redacted_vector_is_canonicalised_as_go_did() {
    let redaction = Redaction::default();
    let mut raw = 0;
    for vector in vectors().iter().filter(|vector| vector.redact) {
        let doc = parse(&vector.wire_params);
        let ours = canonicalise(doc.root(), &redaction).unwrap_or_else(|_| {
            raw += 1;
            vector.wire_params.clone()
        });
        assert_eq!(
            String::from_utf8_lossy(&ours),
            String::from_utf8_lossy(&vector.signed_params),
            "{}",
            String::from_utf8_lossy(&vector.wire_params)
        );
    }
    assert_eq!(raw, 3, "the vectors with 1e400");
}

#[test]
fn every_vector_is_written_as_the_same_line() {
    for vector in vectors() {
        let entry = entries(&vector.line).remove(0);
        let line = Draft {
            id: &entry.id,
            timestamp: &entry.timestamp,
            direction: entry.direction,
            transport: &entry.transport,
            method: &entry.method,
            request_id: entry.request_id.as_deref().unwrap_or_default(),
            tool_name: entry.tool_name.as_deref().unwrap_or_default(),
            params: Some(&vector.signed_params),
            result: entry.result.as_deref(),
            error: entry.error.as_deref(),
            duration_ms: entry.duration_ms.unwrap(),
            client_id: &entry.client_id,
            server_id: &entry.server_id,
        }
        .line(Some(&key()));
        assert_eq!(
            String::from_utf8_lossy(&line),
            String::from_utf8_lossy(&vector.line)
        );
    }
}

#[test]
fn the_recorded_session_canonicalises_to_what_its_log_holds() {
    let messages = wire(corpus_file!("fs.wire.client.jsonl"));
    let redaction = Redaction::default();
    let mut compared = 0;
    for entry in entries(corpus_file!("fs.audit.jsonl")) {
        let Some(id) = &entry.request_id else {
            continue;
        };
        for (client, text) in &messages {
            let doc = parse(text);
            let same_id = doc
                .root()
                .get("id")
                .is_some_and(|wire| wire.raw() == id.as_bytes());
            let (member, logged) = if *client {
                ("params", &entry.params)
            } else {
                ("result", &entry.result)
            };
            let (true, Some(value), Some(logged)) = (same_id, doc.root().get(member), logged)
            else {
                continue;
            };
            assert_eq!(*canonicalise(value, &redaction).unwrap(), **logged);
            compared += 1;
        }
    }
    assert!(compared >= 14, "{compared}");
}

#[test]
fn go_spells_numbers_so() {
    let cases = [
        ("9007199254740993", "9007199254740992"),
        ("1.0", "1"),
        ("1e2", "100"),
        ("-0.0", "-0"),
        ("1e-6", "0.000001"),
        ("1e-7", "1e-7"),
        ("1.5E-10", "1.5e-10"),
        ("999999999999999999999", "1e+21"),
        ("1e20", "100000000000000000000"),
        ("5e-324", "5e-324"),
        ("1e-400", "0"),
    ];
    for (text, wanted) in cases {
        let doc = parse(text.as_bytes());
        let ours = canonicalise(doc.root(), &Redaction::none()).unwrap();
        assert_eq!(String::from_utf8(ours).unwrap(), wanted);
    }
}

#[test]
fn what_go_refuses_is_named_and_still_redacted_by_the_any_form() {
    let redaction = Redaction::default();
    let cases: [(&[u8], NotCanonical, &[u8]); 3] = [
        (
            br#"{"token":"t","n":NaN}"#,
            NotCanonical::NotStrict,
            br#"{"n":NaN,"token":"[REDACTED]"}"#,
        ),
        (b"[ 1e400 ]", NotCanonical::NumberRange, b"[1e400]"),
        (b"\"\t\"", NotCanonical::NotStrict, br#""\t""#),
    ];
    for (text, error, any) in cases {
        let doc = parse(text);
        assert_eq!(canonicalise(doc.root(), &redaction), Err(error));
        assert_eq!(canonicalise_any(doc.root(), &redaction), any);
    }
    let deep = [vec![b'['; 10_001], vec![b']'; 10_001]].concat();
    let doc = parse(&deep);
    assert_eq!(
        canonicalise(doc.root(), &redaction),
        Err(NotCanonical::TooDeep)
    );
    assert_eq!(canonicalise_any(doc.root(), &redaction), deep);
    let doc = parse(&deep[1..deep.len() - 1]);
    assert!(canonicalise(doc.root(), &redaction).is_ok());
}

#[test]
fn redaction_looks_at_lower_case_as_go_makes_it() {
    let redaction = Redaction::default();
    for key in [
        "maxTokens",
        "progressToken",
        "to\u{212a}en",
        "author\u{130}zation",
        "API_KEY",
    ] {
        assert!(redaction.hits(key), "{key}");
    }
    for key in ["apiKey", "\u{17f}ecret", "tok en", ""] {
        assert!(!redaction.hits(key), "{key}");
    }
    assert!(!Redaction::new(["", "x"]).hits("abc"));
    assert!(Redaction::new(["X-Key"]).hits("my-x-key"));
}

proptest! {
    #[test]
    fn canonical_text_is_its_own_canonical_form(
        text in proptest::collection::btree_map("[a-c<\u{e9}\u{2028}\"]{0,3}", any::<f64>(), 0..8)
    ) {
        let text = serde_json::to_vec(&text).unwrap();
        let doc = parse(&text);
        let once = canonicalise(doc.root(), &Redaction::default()).unwrap();
        let again = parse(&once);
        prop_assert_eq!(&canonicalise(again.root(), &Redaction::default()).unwrap(), &once);
        prop_assert_eq!(compact(&once), once);
    }

    #[test]
    fn compacting_keeps_the_value(text in "[ \\[\\]{}:,\"\\\\<a1\n\u{2028}]{0,20}") {
        use crate::json::{Document, Limits};
        if let Ok(doc) = Document::parse(text.as_bytes(), Limits::default()) {
            let compacted = compact(text.as_bytes());
            let again = parse(&compacted);
            let none = Redaction::none();
            prop_assert_eq!(
                canonicalise_any(again.root(), &none),
                canonicalise_any(doc.root(), &none)
            );
        }
    }
}
