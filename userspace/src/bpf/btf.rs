//! A small reader of BTF (`Documentation/bpf/btf.rst`): structure members and where they lie.
//!
//! It knows only what the offsets need and trusts no length in its input: every access is bounds-checked, every walk
//! bounded.

use std::collections::HashMap;

use thiserror::Error;

const MAGIC: u16 = 0xeb9f;
/// Types that one file may hold. Stops a huge count from taking memory; kernels have some 150,000.
const TYPES_MAX: usize = 4_000_000;
/// Anonymous structures within one another. Stops a cycle.
const NESTING_MAX: u32 = 16;

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;
const KIND_MAX: u32 = 19;

/// Why BTF could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum BtfError {
    /// Not BTF, or of another byte order.
    #[error("not little-endian btf: magic {magic:#06x}")]
    Magic {
        /// What stands there.
        magic: u16,
    },
    /// A length or offset points outside.
    #[error("btf ends early at byte {at}")]
    Truncated {
        /// Where more was expected.
        at: usize,
    },
    /// A type of a kind that this reader cannot step over.
    #[error("unknown btf kind {kind} at byte {at}")]
    Kind {
        /// The kind.
        kind: u32,
        /// Where.
        at: usize,
    },
    /// More types than [`TYPES_MAX`].
    #[error("more than {TYPES_MAX} btf types")]
    TooMany,
    /// No such structure.
    #[error("the kernel has no `struct {name}` in its btf")]
    NoStruct {
        /// The structure.
        name: String,
    },
    /// No such enumerator.
    #[error("`enum {name}` has no `{enumerator}` in the kernel's btf")]
    NoEnumerator {
        /// The enumeration.
        name: String,
        /// The enumerator.
        enumerator: String,
    },
    /// No such member.
    #[error("`struct {name}` has no member `{member}` in the kernel's btf")]
    NoMember {
        /// The structure.
        name: String,
        /// The member.
        member: String,
    },
}

/// A BTF file with its types indexed.
#[derive(Debug)]
pub(crate) struct Btf<'a> {
    strings: &'a [u8],
    types: &'a [u8],
    /// Where each type starts in `types`; type ids count from 1.
    starts: Vec<u32>,
    structs: HashMap<&'a [u8], u32>,
    enums: HashMap<&'a [u8], u32>,
}

impl<'a> Btf<'a> {
    /// Indexes `bytes`.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let magic = u16::from_le_bytes(array(bytes, 0)?);
        if magic != MAGIC {
            return Err(BtfError::Magic { magic });
        }
        let header = word(bytes, 4)?;
        let types = section(bytes, header, word(bytes, 8)?, word(bytes, 12)?)?;
        let strings = section(bytes, header, word(bytes, 16)?, word(bytes, 20)?)?;
        let mut btf = Self {
            strings,
            types,
            starts: Vec::new(),
            structs: HashMap::new(),
            enums: HashMap::new(),
        };
        btf.index()?;
        Ok(btf)
    }

    /// Byte offset of `member` in `struct name`. `member` may be a path, `a.b`; anonymous structures and unions are looked
    /// through.
    pub(crate) fn offset(&self, name: &str, member: &str) -> Result<u32, BtfError> {
        Ok(self.bit_offset(name, member)? / 8)
    }

    /// [`Btf::offset`] in bits: for a member that is a bit field.
    pub(crate) fn bit_offset(&self, name: &str, member: &str) -> Result<u32, BtfError> {
        let mut id = *self
            .structs
            .get(name.as_bytes())
            .ok_or_else(|| BtfError::NoStruct {
                name: name.to_owned(),
            })?;
        let mut bits = 0_u32;
        for part in member.split('.') {
            let (offset, of_type) =
                self.member(id, part.as_bytes(), 0)?
                    .ok_or_else(|| BtfError::NoMember {
                        name: name.to_owned(),
                        member: member.to_owned(),
                    })?;
            bits = bits.saturating_add(offset);
            id = self.strip(of_type)?;
        }
        Ok(bits)
    }

    /// Number of arguments of a tracepoint; `None` when the kernel has none of that name.
    pub(crate) fn tracepoint_args(&self, tracepoint: &str) -> Result<Option<u32>, BtfError> {
        let wanted = format!("btf_trace_{tracepoint}");
        for start in &self.starts {
            let at = *start as usize;
            if kind_of(word(self.types, at + 4)?) != KIND_TYPEDEF
                || self.string(word(self.types, at)?) != wanted.as_bytes()
            {
                continue;
            }
            // A pointer to the prototype of what is called, whose first argument is the caller's own.
            let Some(pointer) = self.start(word(self.types, at + 8)?) else {
                return Ok(None);
            };
            let Some(prototype) = self.start(word(self.types, pointer + 8)?) else {
                return Ok(None);
            };
            let info = word(self.types, prototype + 4)?;
            return Ok(
                (kind_of(info) == KIND_FUNC_PROTO).then(|| (info & 0xffff).saturating_sub(1))
            );
        }
        Ok(None)
    }

    /// Size of `struct name` in bytes.
    pub(crate) fn size(&self, name: &str) -> Result<u32, BtfError> {
        let at = self.structs.get(name.as_bytes());
        let at = at.and_then(|id| self.start(*id));
        let at = at.ok_or_else(|| BtfError::NoStruct {
            name: name.to_owned(),
        })?;
        word(self.types, at + 8)
    }

    /// Value of an enumerator of `enum name`, of 32 bits.
    pub(crate) fn enumerator(&self, name: &str, enumerator: &str) -> Result<u32, BtfError> {
        let none = || BtfError::NoEnumerator {
            name: name.to_owned(),
            enumerator: enumerator.to_owned(),
        };
        let at = self.enums.get(name.as_bytes());
        let at = at.and_then(|id| self.start(*id)).ok_or_else(none)?;
        let count = (word(self.types, at + 4)? & 0xffff) as usize;
        for index in 0..count {
            let place = at + 12 + index * 8;
            if self.string(word(self.types, place)?) == enumerator.as_bytes() {
                return word(self.types, place + 4);
            }
        }
        Err(none())
    }

    fn index(&mut self) -> Result<(), BtfError> {
        let mut at = 0;
        while at < self.types.len() {
            if self.starts.len() >= TYPES_MAX {
                return Err(BtfError::TooMany);
            }
            let info = word(self.types, at + 4)?;
            let (kind, count) = (kind_of(info), (info & 0xffff) as usize);
            let tail = match kind {
                KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => count * 12,
                KIND_ENUM | KIND_FUNC_PROTO => count * 8,
                kind if kind <= KIND_MAX && kind != 0 => 0,
                kind => return Err(BtfError::Kind { kind, at }),
            };
            let start = u32::try_from(at).map_err(|_overflow| BtfError::TooMany)?;
            self.starts.push(start);
            if matches!(kind, KIND_STRUCT | KIND_ENUM) {
                let id = u32::try_from(self.starts.len()).map_err(|_overflow| BtfError::TooMany)?;
                let name = self.string(word(self.types, at)?);
                let names = if kind == KIND_STRUCT {
                    &mut self.structs
                } else {
                    &mut self.enums
                };
                if !name.is_empty() {
                    names.entry(name).or_insert(id);
                }
            }
            at += 12 + tail;
        }
        Ok(())
    }

    /// Bit offset and type of a member of structure `id`.
    fn member(&self, id: u32, name: &[u8], depth: u32) -> Result<Option<(u32, u32)>, BtfError> {
        if depth > NESTING_MAX {
            return Ok(None);
        }
        let Some(at) = self.start(id) else {
            return Ok(None);
        };
        let info = word(self.types, at + 4)?;
        if !matches!(kind_of(info), KIND_STRUCT | KIND_UNION) {
            return Ok(None);
        }
        let has_bitfields = info >> 31 == 1;
        for index in 0..(info & 0xffff) as usize {
            let place = at + 12 + index * 12;
            let raw = word(self.types, place + 8)?;
            let bits = if has_bitfields {
                raw & 0x00ff_ffff
            } else {
                raw
            };
            let of_type = word(self.types, place + 4)?;
            let found = self.string(word(self.types, place)?);
            if found == name {
                return Ok(Some((bits, of_type)));
            }
            if found.is_empty()
                && let Some((inner, of_type)) =
                    self.member(self.strip(of_type)?, name, depth + 1)?
            {
                return Ok(Some((bits.saturating_add(inner), of_type)));
            }
        }
        Ok(None)
    }

    /// Looks through typedefs and qualifiers.
    fn strip(&self, id: u32) -> Result<u32, BtfError> {
        let mut id = id;
        for _ in 0..NESTING_MAX {
            let Some(at) = self.start(id) else { break };
            match kind_of(word(self.types, at + 4)?) {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = word(self.types, at + 8)?;
                }
                _ => break,
            }
        }
        Ok(id)
    }

    fn start(&self, id: u32) -> Option<usize> {
        let index = usize::try_from(id).ok()?.checked_sub(1)?;
        self.starts.get(index).map(|start| *start as usize)
    }

    fn string(&self, at: u32) -> &'a [u8] {
        let rest = self.strings.get(at as usize..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

fn kind_of(info: u32) -> u32 {
    info >> 24 & 0x1f
}

fn section(bytes: &[u8], header: u32, offset: u32, len: u32) -> Result<&[u8], BtfError> {
    let start = header as usize + offset as usize;
    bytes
        .get(start..start + len as usize)
        .ok_or(BtfError::Truncated { at: start })
}

fn word(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], BtfError> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or(BtfError::Truncated { at })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use proptest::prelude::*;

    use super::*;

    /// `struct s { int a; union { int b; struct { int c; int d; }; }; }` and `enum s { a, b = 7 }`.
    fn sample() -> Vec<u8> {
        let strings = b"\0s\0a\0b\0c\0d\0int\0";
        let mut types = Vec::new();
        let mut push = |words: &[u32]| words.iter().for_each(|w| types.extend(w.to_le_bytes()));
        push(&[11, 1 << 24, 4, 32]);
        push(&[0, 4 << 24 | 2, 8, 7, 1, 0, 9, 1, 32]);
        push(&[0, 5 << 24 | 2, 8, 5, 1, 0, 0, 2, 0]);
        push(&[1, 4 << 24 | 2, 12, 3, 1, 0, 0, 3, 32]);
        push(&[1, 6 << 24 | 2, 4, 3, 0, 5, 7]);
        let mut file = Vec::new();
        file.extend(MAGIC.to_le_bytes());
        file.extend([1, 0]);
        for word in [24, 0, types.len(), types.len(), strings.len()] {
            file.extend(u32::try_from(word).unwrap().to_le_bytes());
        }
        file.extend(types);
        file.extend(strings);
        file
    }

    #[test]
    fn members_are_found_through_anonymous_structures() {
        let file = sample();
        let btf = Btf::parse(&file).unwrap();
        assert_eq!(btf.offset("s", "a"), Ok(0));
        assert_eq!(btf.offset("s", "b"), Ok(4));
        assert_eq!(btf.offset("s", "d"), Ok(8));
        assert!(matches!(
            btf.offset("s", "e"),
            Err(BtfError::NoMember { .. })
        ));
        assert!(matches!(
            btf.offset("t", "a"),
            Err(BtfError::NoStruct { .. })
        ));
    }

    #[test]
    fn enumerators_have_their_values_and_structures_their_size() {
        let file = sample();
        let btf = Btf::parse(&file).unwrap();
        assert_eq!(btf.enumerator("s", "b"), Ok(7));
        assert!(btf.enumerator("s", "c").is_err() && btf.enumerator("t", "a").is_err());
        assert_eq!(btf.size("s"), Ok(12));
        assert!(btf.size("t").is_err());
    }

    proptest! {
        #[test]
        fn no_input_makes_it_panic(mut at in 0_usize..230, byte: u8, cut in 0_usize..330) {
            let mut file = sample();
            at %= file.len();
            file[at] = byte;
            file.truncate(cut);
            if let Ok(btf) = Btf::parse(&file) {
                let _ = btf.offset("s", "d");
                let _ = btf.offset("s", "a.b.c");
                let _ = (btf.size("s"), btf.enumerator("s", "b"));
            }
        }
    }
}
