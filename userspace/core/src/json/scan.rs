//! The scanner: bytes to tape, one pass, no recursion.

use smallvec::SmallVec;

use super::{Document, Error, Kind, Leniency, Limits, Token, keys, text};

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Numbers shorter than this, without an exponent, are inside the range of a float64.
const FLOAT_SAFE_DIGITS: usize = 300;

pub(super) fn parse(bytes: &[u8], limits: Limits) -> Result<Document<'_>, Error> {
    let limit = limits.max_bytes.min(u32::MAX as usize - 1);
    if bytes.len() > limit {
        return Err(Error::TooLong {
            len: bytes.len(),
            limit,
        });
    }
    let mut scanner = Scanner {
        bytes,
        position: 0,
        tape: Vec::with_capacity((bytes.len() / 8).clamp(8, 1024)),
        open: SmallVec::new(),
        limits,
        leniency: Leniency::empty(),
        utf8: true,
    };
    scanner.survey();
    scanner.document()?;
    Ok(Document {
        bytes,
        tape: scanner.tape,
        leniency: scanner.leniency,
    })
}

/// How many bytes before the end of a cut text the scanner may have stopped at: half a literal or escape.
const CUT_TOKEN_MAX_BYTES: usize = 12;

pub(super) fn parse_first(bytes: &[u8], limits: Limits) -> Result<(Document<'_>, usize), Error> {
    let limit = limits.max_bytes.min(u32::MAX as usize - 1);
    let mut scanner = Scanner::unsurveyed(&bytes[..bytes.len().min(limit)], limits);
    scanner.skip_space();
    scanner.root()?;
    let end = scanner.position;
    Ok((scanner.into_document(), end))
}

pub(super) fn parse_head(bytes: &[u8], limits: Limits) -> Option<Document<'_>> {
    let bytes = &bytes[..bytes.len().min(limits.max_bytes).min(u32::MAX as usize - 1)];
    let mut scanner = Scanner::unsurveyed(bytes, limits);
    scanner.skip_space();
    if let Err(Error::Malformed { .. }) = scanner.root()
        && bytes.len().saturating_sub(scanner.position) > CUT_TOKEN_MAX_BYTES
    {
        return None;
    }
    let (end, next) = (index(scanner.position), index(scanner.tape.len()));
    while let Some(top) = scanner.open.pop() {
        let token = &mut scanner.tape[top as usize];
        (token.end, token.next) = (end, next);
    }
    (!scanner.tape.is_empty()).then(|| scanner.into_document())
}

struct Scanner<'a> {
    bytes: &'a [u8],
    position: usize,
    tape: Vec<Token>,
    /// Tape indexes of the containers that are open.
    open: SmallVec<[u32; 32]>,
    limits: Limits,
    leniency: Leniency,
    /// The whole text is UTF-8, so no string needs a check of its own.
    utf8: bool,
}

impl<'a> Scanner<'a> {
    /// One that checks each string by itself: where texts follow each other, each look at all of the rest would be one too many.
    fn unsurveyed(bytes: &'a [u8], limits: Limits) -> Self {
        Self {
            bytes,
            position: 0,
            tape: Vec::with_capacity(4),
            open: SmallVec::new(),
            limits,
            leniency: Leniency::empty(),
            utf8: false,
        }
    }

    fn into_document(self) -> Document<'a> {
        Document {
            bytes: self.bytes,
            tape: self.tape,
            leniency: self.leniency,
        }
    }

    /// What one look at the whole text tells cheaper than one at each string.
    fn survey(&mut self) {
        if self.bytes.is_ascii() {
            return;
        }
        self.utf8 = std::str::from_utf8(self.bytes).is_ok();
        if memchr::memmem::find(self.bytes, b"\xe2\x80\xa8").is_some()
            || memchr::memmem::find(self.bytes, b"\xe2\x80\xa9").is_some()
        {
            self.leniency |= Leniency::RAW_LINE_SEPARATOR;
        }
    }

    fn document(&mut self) -> Result<(), Error> {
        if self.bytes.starts_with(BOM) {
            self.position = BOM.len();
            self.leniency |= Leniency::BOM;
        }
        let start = self.position;
        self.skip_space();
        if self.position != start {
            self.leniency |= Leniency::SURROUNDING_SPACE;
        }
        self.root()?;
        let end = self.position;
        self.skip_space();
        if self.position != end {
            self.leniency |= Leniency::SURROUNDING_SPACE;
        }
        if self.position != self.bytes.len() {
            return Err(self.malformed("end of text"));
        }
        Ok(())
    }

    /// Reads one value with all that it holds.
    fn root(&mut self) -> Result<(), Error> {
        loop {
            // A container that opened wants its first member; anything else is complete.
            if self.value()? {
                continue;
            }
            if !self.after_value()? {
                return Ok(());
            }
        }
    }

    /// Reads one value, or the opening of a container. True: a member's value comes next.
    fn value(&mut self) -> Result<bool, Error> {
        match self.peek() {
            Some(b'"') => self.string().map(|()| false),
            Some(b'{') => {
                self.open_container(Kind::Object)?;
                if self.peek() == Some(b'}') {
                    self.close_container();
                    return Ok(false);
                }
                self.key()?;
                Ok(true)
            }
            Some(b'[') => {
                self.open_container(Kind::Array)?;
                if self.peek() == Some(b']') {
                    self.close_container();
                    return Ok(false);
                }
                Ok(true)
            }
            Some(b'-' | b'0'..=b'9') => self.number().map(|()| false),
            Some(b't') => self.word(b"true", Kind::Bool, Leniency::empty()),
            Some(b'f') => self.word(b"false", Kind::Bool, Leniency::empty()),
            Some(b'n') => self.word(b"null", Kind::Null, Leniency::empty()),
            Some(b'N') => self.word(b"NaN", Kind::Number, Leniency::NON_FINITE),
            Some(b'I') => self.word(b"Infinity", Kind::Number, Leniency::NON_FINITE),
            _ => Err(self.malformed("a value")),
        }
    }

    /// Closes what ends here. True: another value follows in the innermost open container.
    fn after_value(&mut self) -> Result<bool, Error> {
        loop {
            let Some(&top) = self.open.last() else {
                return Ok(false);
            };
            let object = self.tape[top as usize].kind == Kind::Object;
            self.skip_space();
            match self.peek() {
                Some(b',') => {
                    self.position += 1;
                    self.skip_space();
                    if object {
                        self.key()?;
                    }
                    return Ok(true);
                }
                Some(b'}') if object => self.close_container(),
                Some(b']') if !object => self.close_container(),
                _ if object => return Err(self.malformed("`,` or `}`")),
                _ => return Err(self.malformed("`,` or `]`")),
            }
        }
    }

    fn key(&mut self) -> Result<(), Error> {
        if self.peek() != Some(b'"') {
            return Err(self.malformed("a key"));
        }
        self.string()?;
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(self.malformed("`:`"));
        }
        self.position += 1;
        self.skip_space();
        Ok(())
    }

    fn string(&mut self) -> Result<(), Error> {
        let start = self.position;
        let mut at = start + 1;
        let mut escaped = false;
        let mut leniency = Leniency::empty();
        loop {
            let rest = self.bytes.get(at..).unwrap_or_default();
            let Some(found) = memchr::memchr2(b'"', b'\\', rest) else {
                self.position = self.bytes.len();
                return Err(self.malformed("`\"`"));
            };
            at += found;
            if self.bytes[at] == b'"' {
                break;
            }
            escaped = true;
            let (len, lone) = self.escape(at)?;
            if lone {
                leniency |= Leniency::LONE_SURROGATE;
            }
            at += len;
        }
        let inner = &self.bytes[start + 1..at];
        if text::has_control(inner) {
            leniency |= Leniency::CONTROL_IN_STRING;
        }
        if !self.utf8 && std::str::from_utf8(inner).is_err() {
            leniency |= Leniency::INVALID_UTF8;
        }
        self.position = at + 1;
        self.push(Kind::String, start, escaped, leniency)
    }

    /// Length of the escape at `at`, and whether it is half of a surrogate pair without the other.
    fn escape(&mut self, at: usize) -> Result<(usize, bool), Error> {
        match self.bytes.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok((2, false)),
            Some(b'u') => {
                let rest = &self.bytes[at..];
                let Some((len, unit)) = text::unicode_escape(rest) else {
                    self.position = at;
                    return Err(self.malformed("four hex digits after `\\u`"));
                };
                Ok((len, unit.is_none()))
            }
            _ => {
                self.position = at;
                Err(self.malformed("an escape"))
            }
        }
    }

    fn number(&mut self) -> Result<(), Error> {
        let start = self.position;
        let mut exponent = false;
        if self.peek() == Some(b'-') {
            self.position += 1;
            if self.peek() == Some(b'I') {
                self.literal(b"Infinity")?;
                return self.push(Kind::Number, start, false, Leniency::NON_FINITE);
            }
        }
        if self.peek() == Some(b'0') {
            self.position += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.position += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            exponent = true;
            self.position += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.position += 1;
            }
            self.digits()?;
        }
        let mut leniency = Leniency::empty();
        let raw = &self.bytes[start..self.position];
        if (exponent || raw.len() > FLOAT_SAFE_DIGITS)
            && text::number(raw).is_none_or(f64::is_infinite)
        {
            leniency = Leniency::FLOAT_OVERFLOW;
        }
        self.push(Kind::Number, start, false, leniency)
    }

    fn digits(&mut self) -> Result<(), Error> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 {
            return Err(self.malformed("a digit"));
        }
        self.position += count;
        Ok(())
    }

    fn word(&mut self, word: &[u8], kind: Kind, leniency: Leniency) -> Result<bool, Error> {
        let start = self.position;
        self.literal(word)?;
        self.push(kind, start, false, leniency)?;
        Ok(false)
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), Error> {
        if !self.bytes[self.position..].starts_with(word) {
            return Err(self.malformed("a value"));
        }
        self.position += word.len();
        Ok(())
    }

    fn open_container(&mut self, kind: Kind) -> Result<(), Error> {
        if self.open.len() >= self.limits.max_depth {
            return Err(Error::TooDeep {
                offset: self.position,
                limit: self.limits.max_depth,
            });
        }
        let start = self.position;
        self.open.push(index(self.tape.len()));
        self.position += 1;
        self.push(kind, start, false, Leniency::empty())?;
        self.skip_space();
        Ok(())
    }

    fn close_container(&mut self) {
        self.position += 1;
        let Some(top) = self.open.pop() else {
            return;
        };
        let top = top as usize;
        let next = self.tape.len();
        let leniency = if self.tape[top].kind == Kind::Object {
            keys::inspect(self.bytes, &self.tape[top + 1..], top + 1)
        } else {
            Leniency::empty()
        };
        let token = &mut self.tape[top];
        token.end = index(self.position);
        token.next = index(next);
        token.leniency |= leniency;
        self.leniency |= leniency;
    }

    /// Appends a token that spans from `start` to the position.
    fn push(
        &mut self,
        kind: Kind,
        start: usize,
        escaped: bool,
        leniency: Leniency,
    ) -> Result<(), Error> {
        if self.tape.len() >= self.limits.max_tokens {
            return Err(Error::TooManyTokens {
                offset: start,
                limit: self.limits.max_tokens,
            });
        }
        self.leniency |= leniency;
        self.tape.push(Token {
            start: index(start),
            end: index(self.position),
            next: index(self.tape.len() + 1),
            kind,
            escaped,
            leniency,
        });
        Ok(())
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.position += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.position).copied()
    }

    fn malformed(&self, expected: &'static str) -> Error {
        Error::Malformed {
            offset: self.position,
            expected,
        }
    }
}

/// Offsets and tape indexes fit: the text is shorter than `u32::MAX` and no token is empty.
fn index(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
