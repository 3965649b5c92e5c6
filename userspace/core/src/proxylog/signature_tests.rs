#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use super::super::corpus::{corpus_file, entries, key, vectors};
use super::super::entry::BadReason;
use super::super::{Key, KeyError, LogItem, corpus};
use super::{SignatureState, Signed, verify};

#[test]
fn the_worked_vector_is_signed_as_mcp_audit_signs_it() {
    let key = Key::new(b"0123456789abcdef".repeat(4)).unwrap();
    let params = br#"{"arguments":{"path":"/etc/shadow"},"name":"read_text_file"}"#;
    let signed = Signed {
        id: "01M7VX54YNCNCYV7JDEGH4FG4Q",
        timestamp: "2026-11-20T07:18:55.189522853Z",
        method: "tools/call",
        tool_name: Some("read_text_file"),
        params: Some(params),
    };
    assert_eq!(
        key.sign(&signed),
        "787fa00dd8113f4d1c229808ce41d35d1600128f680ef9944cd0127951cc5aca"
    );
}

#[test]
fn all_240_vectors_verify_from_disk_or_with_the_bytes_on_the_wire() {
    let (mut disk, mut wire) = (0, 0);
    for vector in vectors() {
        let entry = entries(&vector.line).remove(0);
        let shown = String::from_utf8_lossy(&vector.wire_params).into_owned();
        let alone = verify(&entry, Some(&key()), None);
        let paired = verify(&entry, Some(&key()), Some(&vector.wire_params));
        if *entry.params.as_deref().unwrap() == *vector.signed_params {
            assert_eq!(
                (alone, paired),
                (SignatureState::ValidDisk, SignatureState::ValidDisk)
            );
            disk += 1;
        } else {
            assert_eq!(
                (alone, paired),
                (SignatureState::Bad, SignatureState::ValidWire),
                "{shown}"
            );
            wire += 1;
        }
        assert_eq!(verify(&entry, None, None), SignatureState::NoKey);
        let other = Key::new(b"other".to_vec()).unwrap();
        assert_eq!(
            verify(&entry, Some(&other), Some(&vector.wire_params)),
            SignatureState::Bad,
            "{shown}"
        );
    }
    assert_eq!(disk + wire, 240);
    assert!(
        wire >= 4,
        "the corpus holds params that only the wire verifies, found {wire}"
    );
}

#[test]
fn every_entry_of_the_honest_redacted_logs_verifies_from_disk() {
    let logs = [
        (corpus_file!("fs.audit.jsonl"), 9),
        (corpus_file!("edge_redact.audit.jsonl"), 20),
        (corpus_file!("dupid.audit.jsonl"), 2),
        (corpus_file!("httpgz.audit.jsonl"), 1),
        (corpus_file!("kill_sync.audit.jsonl"), 3),
        (corpus_file!("ratelimit.audit.jsonl"), 4),
        (corpus_file!("rot.audit.jsonl"), 2),
        (corpus_file!("rot.audit.jsonl.20261120T072111Z.3"), 3),
        (corpus_file!("rot.audit.jsonl.20261120T072112Z"), 3),
        (corpus_file!("rot.audit.jsonl.20261120T072113Z"), 3),
        (corpus_file!("slow.audit.jsonl"), 2),
    ];
    for (log, wanted) in logs {
        let entries = entries(log);
        assert_eq!(entries.len(), wanted);
        for entry in entries {
            assert_eq!(
                verify(&entry, Some(&key()), None),
                SignatureState::ValidDisk,
                "{entry:?}"
            );
        }
    }
}

#[test]
fn without_redaction_three_of_twenty_need_the_wire() {
    let states: Vec<_> = entries(corpus_file!("edge_noredact.audit.jsonl"))
        .iter()
        .map(|entry| verify(entry, Some(&key()), None))
        .collect();
    let count = |wanted| states.iter().filter(|state| **state == wanted).count();
    assert_eq!(count(SignatureState::ValidDisk), 17);
    assert_eq!(count(SignatureState::Bad), 3);
}

#[test]
fn an_unsigned_log_is_absent_not_bad() {
    for entry in entries(corpus_file!("unsigned.audit.jsonl")) {
        assert_eq!(verify(&entry, Some(&key()), None), SignatureState::Absent);
    }
}

#[test]
fn each_tampered_log_shows_what_its_signatures_can_show() {
    use SignatureState::{Absent, Bad, ValidDisk};
    let cases = [
        (
            corpus_file!("tampered/duplicated_entry_sigok.jsonl"),
            vec![ValidDisk; 10],
        ),
        (
            corpus_file!("tampered/entry_deleted.jsonl"),
            vec![ValidDisk; 8],
        ),
        (
            corpus_file!("tampered/result_changed_sigok.jsonl"),
            vec![ValidDisk; 9],
        ),
        (
            corpus_file!("tampered/params_changed_badsig.jsonl"),
            (0..9)
                .map(|n| if n == 6 { Bad } else { ValidDisk })
                .collect(),
        ),
        (
            corpus_file!("tampered/signature_stripped.jsonl"),
            (0..9)
                .map(|n| if n == 3 { Absent } else { ValidDisk })
                .collect(),
        ),
    ];
    for (log, wanted) in cases {
        let states: Vec<_> = entries(log)
            .iter()
            .map(|entry| verify(entry, Some(&key()), None))
            .collect();
        assert_eq!(states, wanted);
    }
    let doubled = entries(corpus_file!("tampered/duplicated_entry_sigok.jsonl"));
    assert_eq!(doubled[3].line.sha256, doubled[4].line.sha256);
    let items = corpus::items(corpus_file!("tampered/torn_last_line.jsonl"));
    assert_eq!(items.len(), 9);
    let LogItem::Bad(bad) = &items[8] else {
        panic!("{:?}", items[8])
    };
    assert_eq!(bad.reason, BadReason::Torn);
}

#[test]
fn a_log_that_was_reserialised_is_recovered() {
    let mut recovered = 0;
    for vector in vectors().iter().filter(|vector| vector.redact) {
        let mut entry = entries(&vector.line).remove(0);
        let spelled = spell_as_python(&vector.signed_params);
        // Stored raw because Go could not read it: not in canonical form, so beyond recovery.
        let raw = vector
            .signed_params
            .windows(5)
            .any(|window| window == b"1e400");
        if spelled == vector.signed_params || raw {
            continue;
        }
        entry.params = Some(spelled.into());
        let state = verify(&entry, Some(&key()), None);
        assert_eq!(state, SignatureState::Recovered, "{:?}", entry.params);
        recovered += 1;
    }
    assert!(recovered > 50, "{recovered}");
}

/// White space after separators, and no HTML escapes.
fn spell_as_python(json: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(json)
        .replace("\\u003c", "<")
        .replace("\\u0026", "&");
    let mut out = String::new();
    let (mut in_string, mut escaped) = (false, false);
    for ch in text.chars() {
        in_string ^= ch == '"' && !escaped;
        escaped = ch == '\\' && !escaped;
        out.push(ch);
        if !in_string && matches!(ch, ':' | ',') {
            out.push(' ');
        }
    }
    out.into_bytes()
}

#[test]
fn the_wire_does_not_vouch_for_a_disk_that_says_something_else() {
    let vector = vectors().into_iter().find(|vector| {
        !vector.redact && vector.wire_params == br#"{"name":"t","arguments":{"b":1,"a":2}}"#
    });
    let vector = vector.unwrap();
    let mut entry = entries(&vector.line).remove(0);
    entry.params = Some(br#"{"name":"t","arguments":{"b":1,"a":3}}"#.to_vec().into());
    let state = verify(&entry, Some(&key()), Some(&vector.wire_params));
    assert_eq!(state, SignatureState::Bad);
}

#[test]
fn any_changed_signed_field_is_bad_and_so_is_a_broken_signature() {
    let entry = entries(corpus_file!("fs.audit.jsonl")).remove(3);
    let check = |entry| verify(&entry, Some(&key()), None);
    let mut changed = entry.clone();
    changed.timestamp.push('0');
    assert_eq!(check(changed), SignatureState::Bad);
    let mut changed = entry.clone();
    changed.tool_name = None;
    assert_eq!(check(changed), SignatureState::Bad);
    let mut changed = entry.clone();
    changed.params = None;
    assert_eq!(check(changed), SignatureState::Bad);
    let mut changed = entry.clone();
    changed.signature.make_ascii_uppercase();
    assert_eq!(check(changed), SignatureState::Bad);
    let mut changed = entry.clone();
    changed.signature.pop();
    assert_eq!(check(changed), SignatureState::Bad);
    let mut prefixed = entry.clone();
    prefixed.signature = format!("hmac-sha256:{}", entry.signature);
    assert_eq!(check(prefixed), SignatureState::ValidDisk);
}

#[test]
fn keys_are_bounded_and_never_shown() {
    assert_eq!(Key::new(Vec::new()).unwrap_err(), KeyError::Empty);
    assert_eq!(
        Key::from_file_content(b"\r\n".to_vec()).unwrap_err(),
        KeyError::Empty
    );
    assert_eq!(Key::new(vec![b'x'; 5000]).unwrap_err(), KeyError::TooLong);
    assert_eq!(format!("{:?}", key()), "Key(redacted)");
}
