#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use proptest::prelude::*;

use super::{Document, Error, Kind, Leniency, Limits, Value};

fn parse(text: &[u8]) -> Document<'_> {
    Document::parse(text, Limits::default()).unwrap()
}

#[test]
fn spans_are_exact_and_the_last_duplicate_wins() {
    let text = br#" {"a": [1, 2.50e1 ,"x"], "b":{ }, "a":  "z\u0041" } "#;
    let doc = parse(text);
    let root = doc.root();
    assert_eq!(root.len(), 3);
    assert_eq!(root.get("a").unwrap().raw(), br#""z\u0041""#);
    assert_eq!(root.get("a").unwrap().as_str_lossy(), "zA");
    assert_eq!(root.get("b").unwrap().raw(), b"{ }");
    assert!(root.get("b").unwrap().is_empty());
    let first = root.get_all("a").next().unwrap();
    let raw: Vec<_> = first.elements().map(|v| v.raw()).collect();
    assert_eq!(raw, [&b"1"[..], b"2.50e1", br#""x""#]);
    assert_eq!(
        doc.leniency(),
        Leniency::DUPLICATE_KEYS | Leniency::SURROUNDING_SPACE
    );
    assert_eq!(root.leniency(), Leniency::DUPLICATE_KEYS);
}

#[test]
fn every_departure_is_parsed_and_flagged() {
    let cases: [(&[u8], Leniency); 16] = [
        (b"NaN", Leniency::NON_FINITE),
        (b"[Infinity,-Infinity]", Leniency::NON_FINITE),
        (b"1e99999", Leniency::FLOAT_OVERFLOW),
        (b"1e308", Leniency::empty()),
        (br#""\ud800""#, Leniency::LONE_SURROGATE),
        (br#""\udc00\ud800""#, Leniency::LONE_SURROGATE),
        (br#""\ud83d\ude00""#, Leniency::empty()),
        (b"\"\xff\"", Leniency::INVALID_UTF8),
        ("\"\u{2028}\"".as_bytes(), Leniency::RAW_LINE_SEPARATOR),
        (b"\"a\tb\"", Leniency::CONTROL_IN_STRING),
        (br#"{"a":1,"a":2}"#, Leniency::DUPLICATE_KEYS),
        (br#"{"a":1,"\u0061":2}"#, Leniency::DUPLICATE_KEYS),
        (br#"{"name":1,"NAME":2}"#, Leniency::CASE_VARIANT_KEYS),
        (
            "{\"params\":1,\"param\u{17f}\":2}".as_bytes(),
            Leniency::CASE_VARIANT_KEYS,
        ),
        (b"\xef\xbb\xbf1", Leniency::BOM),
        (b"1\r\n", Leniency::SURROUNDING_SPACE),
    ];
    for (text, wanted) in cases {
        assert_eq!(
            parse(text).leniency(),
            wanted,
            "{}",
            String::from_utf8_lossy(text)
        );
    }
}

#[test]
fn duplicates_are_found_in_large_objects() {
    let members: Vec<_> = (0..1000).map(|n| format!("\"k{n}\":{n}")).collect();
    let plain = format!("{{{}}}", members.join(","));
    assert_eq!(parse(plain.as_bytes()).leniency(), Leniency::empty());
    let doubled = format!("{{{},\"k7\":0}}", members.join(","));
    assert_eq!(
        parse(doubled.as_bytes()).leniency(),
        Leniency::DUPLICATE_KEYS
    );
    let cased = format!("{{{},\"K7\":[{{}}]}}", members.join(","));
    assert_eq!(
        parse(cased.as_bytes()).leniency(),
        Leniency::CASE_VARIANT_KEYS
    );
}

#[test]
fn malformed_text_is_an_error_with_its_offset() {
    let cases: [(&[u8], usize); 18] = [
        (b"", 0),
        (b"{", 1),
        (b"[1,]", 3),
        (b"{\"a\"}", 4),
        (b"{a:1}", 1),
        (b"01", 1),
        (b"1.", 2),
        (b"-", 1),
        (b"-NaN", 1),
        (b"nul", 0),
        (b"\"a", 2),
        (b"\"\\x\"", 1),
        (b"\"\\u12g4\"", 1),
        (b"\"\\", 1),
        (b"{} {}", 3),
        (b"[1}", 2),
        (b"\xff", 0),
        (b"{\"a\":1,}", 7),
    ];
    for (text, wanted) in cases {
        match Document::parse(text, Limits::default()) {
            Err(Error::Malformed { offset, .. }) => {
                assert_eq!(offset, wanted, "{}", String::from_utf8_lossy(text));
            }
            other => panic!("{}: {other:?}", String::from_utf8_lossy(text)),
        }
    }
}

#[test]
fn limits_are_errors_of_their_own() {
    let deep = vec![b'['; 2_000_000];
    assert!(matches!(
        Document::parse(&deep, Limits::default()),
        Err(Error::TooDeep {
            offset: 1_000_000,
            ..
        })
    ));
    let limits = Limits {
        max_tokens: 3,
        ..Limits::default()
    };
    assert!(Document::parse(b"[1,2]", limits).is_ok());
    assert!(matches!(
        Document::parse(b"[1,2,3]", limits),
        Err(Error::TooManyTokens { offset: 5, .. })
    ));
    let limits = Limits {
        max_bytes: 2,
        ..Limits::default()
    };
    assert!(matches!(
        Document::parse(b"[ ]", limits),
        Err(Error::TooLong { len: 3, limit: 2 })
    ));
}

#[test]
fn nesting_far_beyond_a_call_stack_is_read() {
    let mut text = vec![b'['; 500_000];
    text.extend(vec![b']'; 500_000]);
    assert_eq!(parse(&text).root().len(), 1);
}

#[test]
fn decoding_keeps_lone_surrogates_apart_in_bytes_and_merges_them_in_text() {
    let doc = parse(b"\"\\ud800x\\udfff\xed\xa0\x80\"");
    let root = doc.root();
    assert_eq!(
        *root.as_str_bytes().unwrap(),
        *b"\xed\xa0\x80x\xed\xbf\xbf\xed\xa0\x80"
    );
    assert_eq!(
        root.as_str_lossy(),
        "\u{fffd}x\u{fffd}\u{fffd}\u{fffd}\u{fffd}"
    );
}

#[test]
fn go_takes_case_variants_for_the_key() {
    let doc = parse(br#"{"name":"evil","NAME":"safe"}"#);
    assert!(doc.root().get("name").unwrap().is_str("evil"));
    let folded: Vec<_> = doc
        .root()
        .get_folded("name")
        .map(|(_, v)| v.as_str_lossy())
        .collect();
    assert_eq!(folded, ["evil", "safe"]);
}

proptest! {
    #[test]
    fn what_serde_json_reads_is_read_the_same(value in any_json(), pretty: bool) {
        let text = if pretty {
            serde_json::to_string_pretty(&value).unwrap()
        } else {
            serde_json::to_string(&value).unwrap()
        };
        // serde_json's own reading of the text: its floats do not survive the way through text.
        let theirs: serde_json::Value = serde_json::from_str(&text).unwrap();
        let doc = parse(text.as_bytes());
        prop_assert_eq!(to_serde(doc.root()), theirs);
    }

    #[test]
    fn text_near_json_is_read_whenever_serde_json_reads_it(
        text in r#"[\[\]{}:,"\\ue0-9.+\-trufalsn \n]{0,24}"#
    ) {
        let ours = Document::parse(text.as_bytes(), Limits::default());
        if let Ok(theirs) = serde_json::from_str::<serde_json::Value>(&text) {
            prop_assert_eq!(to_serde(ours.unwrap().root()), theirs);
        }
    }

    #[test]
    fn no_bytes_panic_and_all_spans_hold(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = Document::parse(&bytes, Limits::default());
        let mut quoted = vec![b'"'];
        quoted.extend(bytes);
        quoted.push(b'"');
        if let Ok(doc) = Document::parse(&quoted, Limits::default()) {
            let _ = doc.root().as_str_bytes();
            let _ = doc.root().as_str_lossy();
        }
    }
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value as Json;
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        any::<String>().prop_map(Json::from),
        r#"[\x00-\x20"\\/]{0,12}"#.prop_map(Json::from),
    ];
    leaf.prop_recursive(5, 64, 16, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..16).prop_map(Json::from),
            proptest::collection::btree_map(any::<String>(), inner, 0..16)
                .prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

fn to_serde(value: Value<'_>) -> serde_json::Value {
    match value.kind() {
        Kind::Null => serde_json::Value::Null,
        Kind::Bool => value.as_bool().unwrap().into(),
        // The number's own text, so that what is compared is the span and not our arithmetic.
        Kind::Number => serde_json::from_str(value.as_number().unwrap()).unwrap(),
        Kind::String => value.as_str_lossy().into_owned().into(),
        Kind::Array => value.elements().map(to_serde).collect(),
        Kind::Object => serde_json::Value::Object(
            value
                .entries()
                .map(|(k, v)| (k.as_str_lossy().into_owned(), to_serde(v)))
                .collect(),
        ),
    }
}
