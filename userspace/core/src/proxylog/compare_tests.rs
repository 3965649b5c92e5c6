#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use proptest::prelude::*;

use super::super::corpus::{corpus_file, entries, parse, vectors, wire};
use super::{Comparison, Difference, POINTER_MAX_BYTES, errors, optional, values};
use crate::proxylog::{Redaction, canonical};

fn compare(wire: &str, log: &str) -> Comparison {
    values(
        parse(wire.as_bytes()).root(),
        parse(log.as_bytes()).root(),
        &Redaction::default(),
    )
}

fn differs(pointer: &str, difference: Difference) -> Comparison {
    Comparison::Different {
        pointer: pointer.to_owned(),
        difference,
    }
}

#[test]
fn spelling_is_not_content() {
    for (wire, log) in [
        (
            r#"{"b":1,"a":[1.0,"é"]}"#,
            r#"{ "a":[1,"\u00e9"], "b":1e0 }"#,
        ),
        (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
        (r#""\ud800""#, r#""\uD800""#),
        ("9007199254740993", "9007199254740993.0"),
        ("1e400", "10e399"),
        ("[-0]", "[-0.0]"),
    ] {
        assert_eq!(compare(wire, log), Comparison::Equal, "{wire}");
    }
}

#[test]
fn what_go_rounds_or_replaces_is_neither_equal_nor_different() {
    for (wire, log, pointer) in [
        ("9007199254740993", "9007199254740992", ""),
        ("[1,0.1000000000000000055511151231257827]", "[1,0.1]", "/1"),
        ("[1e-400]", "[0]", "/0"),
        ("[-0]", "[0]", "/0"),
        (r#"{"a":"\ud800"}"#, "{\"a\":\"\u{fffd}\"}", "/a"),
    ] {
        let pointer = pointer.to_owned();
        assert_eq!(
            compare(wire, log),
            Comparison::Collapsed { pointer },
            "{wire}"
        );
    }
}

#[test]
fn what_only_a_part_of_a_value_lost_makes_the_rest_no_different() {
    let none = Redaction::none();
    for wire in [
        &b"[\"\x8c\",9007199254740993]"[..],
        b"[\"\x8c\",\"\\ud83d\"]",
        b"{\"\x8c\":1e400,\"\\ud83d\":-0}",
        b"{\"\x8c \\ud83d\":\"\\ud83d\"}",
        b"{\"\x8c\":1,\"\x8d\":2}",
    ] {
        let wire = parse(wire);
        for written in [
            canonical::exact(wire.root(), &none),
            canonical::canonicalise_any(wire.root(), &none),
        ] {
            let shown = String::from_utf8_lossy(&written).into_owned();
            let found = values(wire.root(), parse(&written).root(), &none);
            assert!(
                matches!(found, Comparison::Collapsed { .. }),
                "{shown}: {found:?}"
            );
        }
    }
    // Another number beside what was lost is another value.
    let wire = parse(b"[\"\x8c\",9007199254740993]");
    let log = parse("[\"\u{fffd}\",9007199254740995]".as_bytes());
    assert!(matches!(
        values(wire.root(), log.root(), &none),
        Comparison::Different { .. }
    ));
}

#[test]
fn the_collapse_goes_one_way() {
    for (wire, log) in [
        ("9007199254740992", "9007199254740993"),
        ("9007199254740993", "9007199254740994"),
        ("0.1", "0.1000000000000000055511151231257827"),
        ("\"\u{fffd}\"", r#""\ud800""#),
        (r#""\ud800""#, r#""\ud801""#),
        ("1e400", "1e401"),
    ] {
        assert_eq!(compare(wire, log), differs("", Difference::Value), "{wire}");
    }
}

#[test]
fn keys_that_go_takes_for_one_are_told_apart() {
    let (wire, log) = (r#"{"\ud800":1,"\ud801":2}"#, "{\"\u{fffd}\":2}");
    assert!(matches!(compare(wire, log), Comparison::Collapsed { .. }));
    assert_eq!(compare(wire, wire), Comparison::Equal);
    let spaced = r#"{ "\ud801" : 2, "\ud800":1 }"#;
    assert_eq!(compare(wire, spaced), Comparison::Equal);
    let edited = "{\"\u{fffd}\":1}";
    assert!(matches!(
        compare(wire, edited),
        Comparison::Different { .. }
    ));
}

#[test]
fn bytes_that_are_no_text_are_collapsed() {
    let wire: &[u8] = b"{\"a\":\"x\xff\"}";
    let same: &[u8] = b"{ \"a\":\"x\xff\"}";
    let log = "{\"a\":\"x\u{fffd}\"}";
    let of = |log: &[u8]| values(parse(wire).root(), parse(log).root(), &Redaction::none());
    assert_eq!(of(same), Comparison::Equal);
    assert!(matches!(of(log.as_bytes()), Comparison::Collapsed { .. }));
    let escape = br#"{"a":"\udcff"}"#;
    assert!(matches!(of(escape), Comparison::Different { .. }));
}

#[test]
fn the_first_difference_is_pointed_at() {
    use Difference::{Kind, Length, MissingInLog, MissingOnWire, Value};
    for (wire, log, pointer, difference) in [
        (
            r#"{"a":{"b":[1,2]}}"#,
            r#"{"a":{"b":[1,3]}}"#,
            "/a/b/1",
            Value,
        ),
        (
            r#"{"a":{"b":[1]}}"#,
            r#"{"a":{"b":[1,3]}}"#,
            "/a/b/1",
            Length,
        ),
        (r#"{"a/b~":1}"#, "{}", "/a~1b~0", MissingInLog),
        ("{}", r#"{"x":null}"#, "/x", MissingOnWire),
        (r#"{"a":1,"b":2}"#, r#"{"b":2,"c":3}"#, "/a", MissingInLog),
        ("1", r#""1""#, "", Kind),
        ("true", "false", "", Value),
        ("1e400", "1e401", "", Value),
        (r#"{"a":1,"a":2}"#, r#"{"a":1}"#, "/a", Value),
        (r#"{"n":1}"#, r#"{"N":1}"#, "/N", MissingOnWire),
    ] {
        assert_eq!(
            compare(wire, log),
            differs(pointer, difference),
            "{wire} {log}"
        );
    }
}

#[test]
fn redaction_excuses_only_redacted_values_under_redacted_keys() {
    let redacted = r#"{"a":"[REDACTED]"}"#;
    assert_eq!(
        compare(r#"{"a":1}"#, redacted),
        differs("/a", Difference::Kind)
    );
    assert_eq!(compare(redacted, redacted), Comparison::Equal);
    let logged = r#"{"myToken":"[REDACTED]","x":1}"#;
    assert_eq!(
        compare(r#"{"x":1,"myToken":{"k":[1]}}"#, logged),
        Comparison::EqualAfterRedaction
    );
    assert_eq!(
        compare(r#"{"x":2,"myToken":1}"#, logged),
        differs("/x", Difference::Value)
    );
    assert_eq!(
        compare(r#"{"x":1}"#, logged),
        differs("/myToken", Difference::MissingOnWire)
    );
}

#[test]
fn absent_and_null_are_the_same() {
    let (null, one) = (parse(b"null"), parse(b"1"));
    let redaction = Redaction::default();
    assert_eq!(
        optional(None, Some(null.root()), &redaction),
        Comparison::Equal
    );
    assert_eq!(
        optional(Some(one.root()), Some(null.root()), &redaction),
        differs("", Difference::MissingInLog)
    );
    assert_eq!(
        optional(None, Some(one.root()), &redaction),
        differs("", Difference::MissingOnWire)
    );
}

#[test]
fn errors_are_compared_by_what_proxies_keep() {
    let wire = parse(br#"{"code":-1,"message":"m","data":{"token":1},"extra":1}"#);
    let same = parse(br#"{"code":-1,"message":"m","data":{"token":"[REDACTED]"}}"#);
    let other = parse(br#"{"code":-1,"message":"m","data":{"token":2}}"#);
    let redaction = Redaction::default();
    assert_eq!(
        errors(Some(wire.root()), Some(same.root()), &redaction),
        Comparison::EqualAfterRedaction
    );
    assert_eq!(
        errors(Some(wire.root()), Some(other.root()), &redaction),
        differs("/data/token", Difference::Value)
    );
    assert_eq!(
        errors(Some(wire.root()), None, &redaction),
        differs("", Difference::MissingInLog)
    );
}

#[test]
fn every_vector_is_what_go_makes_of_its_wire() {
    let mut collapsed = 0;
    for vector in vectors() {
        let (wire, log) = (parse(&vector.wire_params), parse(&vector.signed_params));
        let outcome = values(wire.root(), log.root(), &Redaction::default());
        let shown = String::from_utf8_lossy(&vector.wire_params);
        match outcome {
            Comparison::Equal | Comparison::EqualAfterRedaction => {}
            Comparison::Collapsed { .. } => collapsed += 1,
            Comparison::Different { .. } => panic!("{shown}: {outcome:?}"),
        }
    }
    assert_eq!(
        collapsed, 29,
        "those with wide numbers or text that is no Unicode"
    );
}

#[test]
fn the_changed_result_that_still_verifies_is_found_by_value() {
    let messages = wire(corpus_file!("fs.wire.client.jsonl"));
    let differences = |log: &[u8]| -> Vec<String> {
        let mut found = Vec::new();
        for entry in entries(log) {
            let (Some(id), Some(result)) = (&entry.request_id, &entry.result) else {
                continue;
            };
            for (client, text) in &messages {
                let doc = parse(text);
                if *client
                    || doc
                        .root()
                        .get("id")
                        .is_none_or(|v| v.raw() != id.as_bytes())
                {
                    continue;
                }
                let logged = parse(result);
                let wire = doc.root().get("result");
                match optional(wire, Some(logged.root()), &Redaction::default()) {
                    Comparison::Equal | Comparison::EqualAfterRedaction => {}
                    Comparison::Collapsed { pointer } | Comparison::Different { pointer, .. } => {
                        found.push(format!("{id}{pointer}"));
                    }
                }
            }
        }
        found
    };
    assert!(differences(corpus_file!("fs.audit.jsonl")).is_empty());
    let tampered = differences(corpus_file!("tampered/result_changed_sigok.jsonl"));
    assert_eq!(tampered.len(), 1, "{tampered:?}");
    assert!(tampered[0].starts_with("6/"), "{tampered:?}");
}

#[test]
fn hostile_depth_and_keys_are_bounded() {
    let nested = |inner: &str| format!("{}{inner}{}", "[".repeat(200_000), "]".repeat(200_000));
    let Comparison::Different { pointer, .. } = compare(&nested("1"), &nested("2")) else {
        panic!("these differ");
    };
    assert!(pointer.len() <= POINTER_MAX_BYTES + '…'.len_utf8());
    let wide = |value: &str| format!("{{\"{}\":{value}}}", "k".repeat(1 << 20));
    let Comparison::Different { pointer, .. } = compare(&wide("1"), &wide("2")) else {
        panic!("these differ");
    };
    assert!(pointer.len() <= POINTER_MAX_BYTES + '…'.len_utf8());
}

proptest! {
    #[test]
    fn a_value_equals_its_pretty_print_and_differs_from_another(
        a in proptest::collection::btree_map("[a-d]{1,2}", 0..5i32, 0..6),
        b in proptest::collection::btree_map("[a-d]{1,2}", 0..5i32, 0..6),
    ) {
        let text = serde_json::to_string(&a).unwrap();
        prop_assert_eq!(
            compare(&text, &serde_json::to_string_pretty(&a).unwrap()),
            Comparison::Equal
        );
        let outcome = compare(&text, &serde_json::to_string(&b).unwrap());
        prop_assert_eq!(outcome == Comparison::Equal, a == b);
    }
}
