//! From options to an [`Inspection`].

use super::bytes::{ByteExtract, ByteJump, ByteMath, ByteTest};
use super::content::{self, Content, flag};
use super::options::{Value, bounded};
use super::small::{Base64Decode, Bsize, Entropy, IsDataAt};
use super::{Absence, Condition, Inspection, Lookup, Names};
use crate::pcre::Pcre;

/// Most conditions on one buffer: matching recurses as deep. Public rules have 40 at most.
const MOST_CONDITIONS: usize = 200;
/// Suricata's bounds of `distance` and `within`.
const MOST_DISTANCE: i64 = 1_048_576;
/// Suricata's bounds of `offset` and `depth`.
const MOST_OFFSET: i64 = 65_535;

/// A content before it is packed.
#[derive(Debug, Default)]
struct Draft {
    bytes: Vec<u8>,
    flags: u16,
    low: i32,
    high: i32,
    /// `fast_pattern`: the part of it, the whole where that is 0 bytes long.
    chosen: Option<(u16, u16)>,
}

/// One condition before it is packed: what [`Builder::take_last`] gives to another buffer's builder.
#[derive(Debug)]
pub struct Piece(Part);

#[derive(Debug)]
enum Part {
    Content(Draft),
    Other(Condition),
}

/// Reads the options of one buffer.
#[derive(Debug, Default)]
pub struct Builder {
    parts: Vec<Part>,
    absence: Absence,
    /// What follows `base64_data` is about what was decoded.
    decoded: Option<Box<Builder>>,
    is_in_decoded: bool,
}

const NAMES: &[&str] = &[
    "content",
    "nocase",
    "depth",
    "offset",
    "distance",
    "within",
    "startswith",
    "endswith",
    "rawbytes",
    "fast_pattern",
    "isdataat",
    "byte_test",
    "byte_jump",
    "byte_extract",
    "byte_math",
    "bsize",
    "pcre",
    "base64_decode",
    "base64_data",
    "entropy",
    "absent",
    "lua",
    "luajit",
];

impl Builder {
    /// Return whether `name` is an option that [`Builder::option`] reads.
    pub fn knows(name: &str) -> bool {
        NAMES.contains(&name)
    }

    /// Read one option: `content`, a modifier of the latest content, `pcre`, `byte_test`, … After an error the
    /// builder is of no use.
    pub fn option(&mut self, name: &str, value: Option<&str>, names: &mut Names) -> Result<(), String> {
        if self.is_in_decoded
            && name != "base64_decode"
            && let Some(decoded) = &mut self.decoded
        {
            return decoded.option(name, value, names);
        }
        let needed = || value.ok_or_else(|| format!("{name} needs a value"));
        let condition = match name {
            "content" => {
                let (is_negated, bytes) = content::parse(needed()?)?;
                let flags = if is_negated { flag::NEGATED } else { 0 };
                return self.push(Part::Content(Draft { bytes, flags, ..Draft::default() }));
            }
            "isdataat" => Condition::IsDataAt(Box::new(IsDataAt::parse(needed()?, names)?)),
            "bsize" => Condition::Bsize(Box::new(Bsize::parse(needed()?, names)?)),
            "pcre" => Condition::Pcre(Box::new(Pcre::parse(needed()?)?)),
            "byte_test" => Condition::ByteTest(Box::new(ByteTest::parse(needed()?, names)?)),
            "byte_jump" => Condition::ByteJump(Box::new(ByteJump::parse(needed()?, names)?)),
            "byte_extract" => Condition::ByteExtract(Box::new(ByteExtract::parse(needed()?, names)?)),
            "byte_math" => Condition::ByteMath(Box::new(ByteMath::parse(needed()?, names)?)),
            "entropy" => Condition::Entropy(Box::new(Entropy::parse(needed()?)?)),
            "base64_decode" => Condition::Base64(Box::new(Base64Decode::parse(value)?)),
            "base64_data" => return self.begin_decoded(),
            "absent" => return self.absent(value),
            "lua" | "luajit" => return Err("scripts are not supported".into()),
            _ => return self.modifier(name, value, names),
        };
        self.push(Part::Other(condition))
    }

    /// Add a condition that is kept elsewhere.
    pub fn lookup(&mut self, lookup: Box<dyn Lookup>) -> Result<(), String> {
        self.push(Part::Other(Condition::Lookup(Box::new(lookup))))
    }

    /// Take the latest content or pcre away: an old-style modifier (`http_uri`) moves it to another buffer.
    pub fn take_last(&mut self) -> Option<Piece> {
        let is_movable = matches!(self.parts.last(), Some(Part::Content(_) | Part::Other(Condition::Pcre(_))));
        if is_movable { self.parts.pop().map(Piece) } else { None }
    }

    /// Add what [`Builder::take_last`] gave; modifiers that follow belong to it.
    pub fn put(&mut self, piece: Piece) -> Result<(), String> {
        self.push(piece.0)
    }

    /// The buffer's keyword is there again: what follows is no longer about what was decoded.
    pub fn resume(&mut self) {
        self.is_in_decoded = false;
    }

    /// Return whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.absence == Absence::Unsaid
    }

    /// Return the whole, or what is wrong with it.
    pub fn finish(mut self) -> Result<Inspection, String> {
        if self.absence == Absence::Must && !self.parts.is_empty() {
            return Err("absent allows no other condition on its buffer".into());
        }
        self.link();
        self.check()?;
        if let Some(decoded) = self.decoded.take() {
            let inner = decoded.finish()?;
            let decode = self.parts.iter_mut().rev().find_map(|part| match part {
                Part::Other(Condition::Base64(decode)) => Some(decode),
                _ => None,
            });
            decode.ok_or("base64_data needs base64_decode before it")?.inspection = Some(inner);
        }
        self.pack()
    }

    fn push(&mut self, part: Part) -> Result<(), String> {
        if self.parts.len() >= MOST_CONDITIONS {
            return Err(format!("more than {MOST_CONDITIONS} conditions on a buffer"));
        }
        self.parts.push(part);
        Ok(())
    }

    fn begin_decoded(&mut self) -> Result<(), String> {
        if !self.parts.iter().any(|part| matches!(part, Part::Other(Condition::Base64(_)))) {
            return Err("base64_data needs base64_decode before it".into());
        }
        self.decoded.get_or_insert_default();
        self.is_in_decoded = true;
        Ok(())
    }

    fn absent(&mut self, value: Option<&str>) -> Result<(), String> {
        if self.absence != Absence::Unsaid {
            return Err("absent is there twice".into());
        }
        self.absence = match value.map(str::trim) {
            None | Some("") => Absence::Must,
            Some("or_else") => Absence::May,
            Some(other) => return Err(format!("absent has no option {other:?}")),
        };
        Ok(())
    }

    fn modifier(&mut self, name: &str, value: Option<&str>, names: &Names) -> Result<(), String> {
        let last = self.parts.iter_mut().rev().find_map(|part| match part {
            Part::Content(draft) => Some(draft),
            Part::Other(_) => None,
        });
        let draft = last.ok_or_else(|| format!("{name} needs a content before it"))?;
        let needed = || value.ok_or_else(|| format!("{name} needs a value"));
        match name {
            "nocase" => {
                draft.flags |= flag::NOCASE;
                draft.bytes.make_ascii_lowercase();
            }
            "rawbytes" => {}
            "offset" => draft.place(flag::OFFSET, Value::parse(needed()?, names)?)?,
            "depth" => draft.place(flag::DEPTH, Value::parse(needed()?, names)?)?,
            "distance" => draft.place(flag::DISTANCE, Value::parse(needed()?, names)?)?,
            "within" => draft.place(flag::WITHIN, Value::parse(needed()?, names)?)?,
            "startswith" => {
                if draft.flags & (flag::OFFSET | flag::DEPTH | flag::DISTANCE | flag::WITHIN) != 0 {
                    return Err("startswith cannot be combined with another place".into());
                }
                let length = i64::try_from(draft.bytes.len()).unwrap_or(i64::MAX);
                draft.place(flag::DEPTH, Value::Number(length))?;
                draft.flags |= flag::OFFSET;
            }
            "endswith" => {
                if draft.flags & flag::ENDS != 0 {
                    return Err("endswith is there twice".into());
                }
                draft.flags |= flag::ENDS;
            }
            "fast_pattern" => draft.choose(value)?,
            other => return Err(format!("{other} is no option of a buffer")),
        }
        Ok(())
    }

    /// Mark what a later condition depends on.
    fn link(&mut self) {
        let mut last: Option<usize> = None;
        for index in 0..self.parts.len() {
            let (is_relative, is_anchor) = match &self.parts[index] {
                Part::Content(draft) => (draft.flags & (flag::DISTANCE | flag::WITHIN) != 0, true),
                Part::Other(Condition::Pcre(pcre)) => (pcre.is_relative, true),
                Part::Other(Condition::IsDataAt(test)) => (test.is_relative, false),
                Part::Other(Condition::ByteTest(test)) => (test.is_relative(), false),
                Part::Other(Condition::ByteJump(jump)) => (jump.is_relative(), false),
                Part::Other(Condition::ByteExtract(extract)) => (extract.is_relative(), false),
                Part::Other(Condition::ByteMath(math)) => (math.is_relative(), false),
                Part::Other(Condition::Base64(decode)) => (decode.is_relative, false),
                Part::Other(_) => (false, false),
            };
            if let (true, Some(part)) = (is_relative, last.and_then(|last| self.parts.get_mut(last))) {
                match part {
                    Part::Content(draft) => draft.flags |= flag::RELATIVE_NEXT,
                    Part::Other(Condition::Pcre(pcre)) => pcre.has_relative_next = true,
                    Part::Other(_) => {}
                }
            }
            if is_anchor {
                last = Some(index);
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        let drafts = || {
            self.parts.iter().filter_map(|part| match part {
                Part::Content(draft) => Some(draft),
                Part::Other(_) => None,
            })
        };
        drafts().try_for_each(Draft::check)?;
        if drafts().filter(|draft| draft.chosen.is_some()).count() > 1 {
            return Err("fast_pattern is there twice".into());
        }
        let sizes = self.parts.iter().filter_map(|part| match part {
            Part::Other(Condition::Bsize(bsize)) => bsize.most(),
            _ => None,
        });
        let Some(most) = sizes.min() else { return Ok(()) };
        let needed = drafts().filter(|draft| draft.flags & flag::NEGATED == 0).map(Draft::least_bytes).max();
        if needed.is_some_and(|needed| needed > most) {
            return Err("a content is longer than bsize allows".into());
        }
        Ok(())
    }

    fn pack(self) -> Result<Inspection, String> {
        let mut literals = Vec::new();
        let mut conditions = Vec::with_capacity(self.parts.len());
        let mut chosen = None;
        for part in self.parts {
            let draft = match part {
                Part::Other(condition) => {
                    conditions.push(condition);
                    continue;
                }
                Part::Content(draft) => draft,
            };
            let length = u16::try_from(draft.bytes.len()).map_err(|_| "a content is too long")?;
            if let Some((from, count)) = draft.chosen {
                let count = if count == 0 { length } else { count };
                // MOST_CONDITIONS fit
                chosen = Some((conditions.len() as u16, from, count));
            }
            conditions.push(Condition::Content(Content {
                at: u32::try_from(literals.len()).map_err(|_| "contents are too long")?,
                length,
                flags: draft.flags,
                low: draft.low,
                high: draft.high,
                rare: content::rarest(&draft.bytes),
            }));
            literals.extend_from_slice(&draft.bytes);
        }
        let (conditions, literals) = (conditions.into_boxed_slice(), literals.into_boxed_slice());
        Ok(Inspection { conditions, literals, chosen, absence: self.absence })
    }
}

impl Draft {
    fn place(&mut self, which: u16, value: Value) -> Result<(), String> {
        if self.flags & which != 0 {
            return Err("a place is said twice for one content".into());
        }
        let is_absolute = which & (flag::OFFSET | flag::DEPTH) != 0;
        let others = if is_absolute { flag::DISTANCE | flag::WITHIN } else { flag::OFFSET | flag::DEPTH };
        if self.flags & others != 0 {
            return Err("distance and within cannot be combined with offset and depth".into());
        }
        let is_low = which & (flag::OFFSET | flag::DISTANCE) != 0;
        let variable = if is_low { flag::LOW_VARIABLE } else { flag::HIGH_VARIABLE };
        let number = match value {
            Value::Variable(slot) => {
                self.flags |= variable;
                i32::from(slot)
            }
            Value::Number(number) => {
                let (low, high) = match which {
                    flag::DISTANCE | flag::WITHIN => (-MOST_DISTANCE, MOST_DISTANCE),
                    flag::DEPTH => (1, MOST_OFFSET),
                    _ => (0, MOST_OFFSET),
                };
                bounded(&number.to_string(), low, high)? as i32 // within the bounds, it fits
            }
        };
        self.flags |= which;
        *(if is_low { &mut self.low } else { &mut self.high }) = number;
        Ok(())
    }

    fn choose(&mut self, value: Option<&str>) -> Result<(), String> {
        if self.chosen.is_some() {
            return Err("fast_pattern is there twice".into());
        }
        self.chosen = Some((0, 0));
        match value.map(str::trim) {
            None | Some("") => {}
            Some("only") => self.flags |= flag::ONLY,
            Some(part) => {
                let (from, count) = part.split_once(',').ok_or("fast_pattern needs offset and length")?;
                let most = i64::try_from(self.bytes.len()).unwrap_or(0);
                let from = bounded(from, 0, most)?;
                let count = bounded(count, 1, most - from)?;
                self.chosen = Some((from as u16, count as u16)); // a content's length fits
            }
        }
        Ok(())
    }

    fn least_bytes(&self) -> u64 {
        let is_after = self.flags & flag::OFFSET != 0 && self.flags & flag::LOW_VARIABLE == 0;
        self.bytes.len() as u64 + if is_after { u64::try_from(self.low).unwrap_or(0) } else { 0 }
    }

    fn check(&self) -> Result<(), String> {
        let has = |flags: u16| self.flags & flags != 0;
        if has(flag::DEPTH | flag::WITHIN) && !has(flag::HIGH_VARIABLE) {
            let room = usize::try_from(self.high).unwrap_or(0);
            if room < self.bytes.len() {
                return Err("depth or within is less than the content's length".into());
            }
        }
        let places = flag::DISTANCE | flag::WITHIN | flag::OFFSET | flag::DEPTH;
        if has(flag::ONLY) && (has(places) || has(flag::NEGATED)) {
            return Err("fast_pattern:only allows no place and no negation".into());
        }
        if self.chosen.is_some() && has(flag::NEGATED) && has(places | flag::ENDS) {
            return Err("a negated content with a place cannot be the fast_pattern".into());
        }
        Ok(())
    }
}
