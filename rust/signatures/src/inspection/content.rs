//! Contents: their text, where they may be, and how they are searched.

use memchr::{memchr, memchr2, memmem};

use super::Subject;
use super::options::Value;
use crate::prefilter::rarity;

/// A longer content is refused. Suricata counts in 16 bits; the longest of the public rule sets has 255 bytes.
const MOST_BYTES: usize = 8_192;

/// What is special about a content, as bits.
pub(super) mod flag {
    pub const NEGATED: u16 = 1;
    pub const NOCASE: u16 = 1 << 1;
    pub const OFFSET: u16 = 1 << 2;
    pub const DEPTH: u16 = 1 << 3;
    pub const DISTANCE: u16 = 1 << 4;
    pub const WITHIN: u16 = 1 << 5;
    pub const ENDS: u16 = 1 << 6;
    /// A later condition depends on where this one was found.
    pub const RELATIVE_NEXT: u16 = 1 << 7;
    /// `low` is a variable's slot.
    pub const LOW_VARIABLE: u16 = 1 << 8;
    /// `high` is a variable's slot.
    pub const HIGH_VARIABLE: u16 = 1 << 9;
    /// `fast_pattern:only`: the prefilter has seen it, where it is does not matter.
    pub const ONLY: u16 = 1 << 10;
}

/// A content. Its literal is kept with those of the others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content {
    pub at: u32,
    pub length: u16,
    pub flags: u16,
    /// `offset` or `distance`.
    pub low: i32,
    /// `depth` or `within`.
    pub high: i32,
    /// Index of its rarest byte.
    pub rare: u8,
}

impl Content {
    pub fn has(&self, flags: u16) -> bool {
        self.flags & flags != 0
    }

    pub fn is_negated(&self) -> bool {
        self.has(flag::NEGATED)
    }

    pub fn is_relative(&self) -> bool {
        self.has(flag::DISTANCE | flag::WITHIN)
    }

    /// Whether it is found or not regardless of what was found before.
    pub fn is_independent(&self) -> bool {
        !self.has(flag::DISTANCE | flag::WITHIN | flag::LOW_VARIABLE | flag::HIGH_VARIABLE)
    }

    pub fn has_place(&self) -> bool {
        self.has(flag::OFFSET | flag::DEPTH)
    }

    pub fn literal<'a>(&self, literals: &'a [u8]) -> &'a [u8] {
        let at = self.at as usize;
        literals.get(at..at + usize::from(self.length)).unwrap_or_default()
    }

    /// The fewest bytes that it can be in.
    pub fn least_bytes(&self) -> usize {
        let is_after = self.has(flag::OFFSET) && !self.has(flag::LOW_VARIABLE);
        let before = if is_after { usize::try_from(self.low).unwrap_or(0) } else { 0 };
        before + usize::from(self.length)
    }

    /// Return where it may begin and must have ended, for a previous match that ended at `at`.
    pub fn window(&self, at: usize, subject: &Subject<'_>, variables: &[u64]) -> Option<(usize, usize)> {
        let value = |raw: i32, variable: u16| {
            let raw = i64::from(raw);
            if self.has(variable) { Value::Variable(raw as u8).get(variables) } else { raw }
        };
        let low = value(self.low, flag::LOW_VARIABLE);
        let high = value(self.high, flag::HIGH_VARIABLE);
        let length = i64::try_from(subject.data.len()).ok()?;
        let base = if self.is_relative() { i64::try_from(at).ok()? } else { 0 };
        // nothing was found before: the beginning of the whole is meant
        let start = if base == 0 { i64::try_from(subject.start).unwrap_or(i64::MAX) } else { 0 };
        let from = base.saturating_add(low);
        let to = if self.has(flag::DEPTH | flag::WITHIN) {
            from.saturating_add(high).saturating_sub(start).min(length)
        } else {
            length
        };
        let from = from.saturating_sub(start).max(0);
        (from <= to).then_some((usize::try_from(from).ok()?, usize::try_from(to).ok()?))
    }

    /// Return where it is first found in the window.
    pub fn find(&self, (from, to): (usize, usize), subject: &Subject<'_>, literal: &[u8]) -> Option<usize> {
        let data = subject.data.get(from..to)?;
        if self.has(flag::ENDS) {
            if to < subject.data.len() || !subject.is_complete {
                return None;
            }
            let at = data.len().checked_sub(literal.len())?;
            return self.is_equal(data.get(at..)?, literal).then_some(from + at);
        }
        let found = if data.len() == literal.len() {
            self.is_equal(data, literal).then_some(0)
        } else if self.has(flag::NOCASE) {
            find_caseless(data, literal, usize::from(self.rare))
        } else {
            memmem::find(data, literal)
        };
        found.map(|found| from + found)
    }

    fn is_equal(&self, data: &[u8], literal: &[u8]) -> bool {
        if self.has(flag::NOCASE) { data.eq_ignore_ascii_case(literal) } else { data == literal }
    }
}

/// Find a lower-case literal, whatever the case of the data; `rare` is the index of its rarest byte.
fn find_caseless(data: &[u8], literal: &[u8], rare: usize) -> Option<usize> {
    let byte = *literal.get(rare)?;
    let last = data.len().checked_sub(literal.len())?;
    let mut at = 0;
    while at <= last {
        // where the rare byte would be if the literal began anywhere from here to its last place
        let places = data.get(at + rare..=last + rare)?;
        let upper = byte.to_ascii_uppercase();
        at += if upper == byte { memchr(byte, places) } else { memchr2(byte, upper, places) }?;
        if data.get(at..at + literal.len())?.eq_ignore_ascii_case(literal) {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// Return the index of the byte that is rarest in traffic.
pub(super) fn rarest(literal: &[u8]) -> u8 {
    let best = literal.iter().take(256).enumerate().max_by_key(|(_, byte)| rarity(**byte));
    best.map_or(0, |(index, _)| index as u8) // below 256
}

/// Read a content's value: `!"abc|0D 0A|"`. Returns whether it is negated, and its bytes.
pub(super) fn parse(value: &str) -> Result<(bool, Vec<u8>), String> {
    let value = value.trim();
    let (is_negated, value) = match value.strip_prefix('!') {
        Some(rest) => (true, rest.trim_start()),
        None => (false, value),
    };
    let text = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let text = text.ok_or("a content needs quotation marks")?.as_bytes();
    let bytes = parse_bytes(text)?;
    match bytes.len() {
        0 => Err("a content is empty".into()),
        length if length > MOST_BYTES => Err(format!("a content is longer than {MOST_BYTES} bytes")),
        _ => Ok((is_negated, bytes)),
    }
}

fn parse_bytes(text: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter().copied();
    while let Some(byte) = rest.next() {
        match byte {
            b'|' => parse_hex(&mut rest, &mut bytes)?,
            b'\\' => match rest.next() {
                Some(escaped @ (b'"' | b';' | b'\\' | b':')) => bytes.push(escaped),
                Some(other) => return Err(format!("{:?} cannot be escaped in a content", char::from(other))),
                None => return Err("a content ends in a backslash".into()),
            },
            b'"' => return Err("a quotation mark in a content is not escaped".into()),
            other => bytes.push(other),
        }
    }
    Ok(bytes)
}

/// Read a hexadecimal block to its closing bar. Digits come in pairs; spaces mean nothing, not even within a pair.
fn parse_hex(rest: &mut impl Iterator<Item = u8>, bytes: &mut Vec<u8>) -> Result<(), String> {
    let mut first: Option<u32> = None;
    for byte in rest {
        let digit = char::from(byte).to_digit(16);
        match (byte, digit, first) {
            (b'|', _, None) => return Ok(()),
            (b' ', ..) => {}
            (_, Some(digit), None) => first = Some(digit),
            (_, Some(digit), Some(high)) => {
                bytes.push((high << 4 | digit) as u8); // two digits fill it exactly
                first = None;
            }
            (b'|', ..) => return Err("a hexadecimal block is incomplete".into()),
            _ => return Err(format!("{:?} is no hexadecimal digit", char::from(byte))),
        }
    }
    Err("a hexadecimal block is not closed".into())
}
