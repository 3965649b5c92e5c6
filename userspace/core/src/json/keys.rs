//! Finds keys of one object that are equal, or equal but for their case.

use std::borrow::Cow;

use super::{Leniency, Token, text};

/// Objects up to this size are compared pair by pair; larger ones are sorted, so that an object of a
/// million keys costs n log n.
const PAIRWISE_MAX: usize = 12;

/// Looks at the keys of an object whose members are `members`; `base` is their first tape index.
pub(super) fn inspect(bytes: &[u8], members: &[Token], base: usize) -> Leniency {
    let mut keys: [&[u8]; PAIRWISE_MAX] = [&[]; PAIRWISE_MAX];
    let mut count = 0;
    let mut at = 0;
    let mut found = Leniency::empty();
    while let Some(key) = members.get(at) {
        let raw = text::inner(bytes, key);
        if count == PAIRWISE_MAX || key.escaped || !raw.is_ascii() {
            return inspect_sorted(bytes, members, base);
        }
        for earlier in &keys[..count] {
            if earlier.len() == raw.len() && earlier.eq_ignore_ascii_case(raw) {
                found |= if *earlier == raw {
                    Leniency::DUPLICATE_KEYS
                } else {
                    Leniency::CASE_VARIANT_KEYS
                };
            }
        }
        keys[count] = raw;
        count += 1;
        at = members
            .get(at + 1)
            .map_or(usize::MAX, |value| value.next as usize - base);
    }
    found
}

/// A key folded, and exact.
type Spellings<'b> = (Cow<'b, [u8]>, Cow<'b, [u8]>);

fn inspect_sorted(bytes: &[u8], members: &[Token], base: usize) -> Leniency {
    let mut keys: Vec<Spellings<'_>> = Vec::new();
    let mut at = 0;
    while let Some(key) = members.get(at) {
        let raw = text::inner(bytes, key);
        let exact = text::decode(raw, key.escaped);
        let plain = !key.escaped && raw.iter().all(|b| b.is_ascii() && !b.is_ascii_uppercase());
        let folded = if plain {
            Cow::Borrowed(raw)
        } else {
            Cow::Owned(text::fold_key(&text::decode_lossy(raw, key.escaped)).into_bytes())
        };
        keys.push((folded, exact));
        at = members
            .get(at + 1)
            .map_or(usize::MAX, |value| value.next as usize - base);
    }
    keys.sort_unstable();
    let mut found = Leniency::empty();
    for pair in keys.windows(2) {
        if pair[0].0 == pair[1].0 {
            found |= if pair[0].1 == pair[1].1 {
                Leniency::DUPLICATE_KEYS
            } else {
                Leniency::CASE_VARIANT_KEYS
            };
        }
    }
    found
}
