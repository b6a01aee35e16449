//! `byte_test`, `byte_jump`, `byte_extract`, `byte_math`: numbers in the bytes.

use super::options::{Value, bounded, number, words};
use super::{Context, Names, Subject};

/// Most digits of a number in text: 64 bits in octal with a leading zero.
const MOST_DIGITS: i64 = 23;
/// Most bytes of a binary number.
const MOST_BINARY: i64 = 8;
/// Offsets of either sign: Suricata's bounds.
const MOST_OFFSET: i64 = 65_535;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    Big,
    Little,
    /// As the DCERPC packet says.
    Dce,
}

/// Where a number is and how it is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number {
    count: Value,
    offset: Value,
    pub is_relative: bool,
    order: Order,
    /// The base of a number in text; 0: as `0x` and `0` in front of it say.
    text: Option<u32>,
    /// All bits set where there is none.
    mask: u64,
}

/// A number that was read: its value, where it begins, and how many bytes it took.
struct Read {
    value: u64,
    at: usize,
    taken: usize,
}

impl Number {
    fn new(count: Value, offset: Value) -> Number {
        Number { count, offset, is_relative: false, order: Order::Big, text: None, mask: u64::MAX }
    }

    /// Read an option that is the same for all; false where it is none.
    fn option(&mut self, name: &str, value: &str) -> Result<bool, String> {
        match (name, value) {
            ("relative", "") => self.is_relative = true,
            ("big", "") | ("endian", "big") => self.order = Order::Big,
            ("little", "") | ("endian", "little") => self.order = Order::Little,
            ("dce", "") | ("endian", "dce") => self.order = Order::Dce,
            ("string", "") => self.text = self.text.or(Some(0)),
            ("hex", "") | ("string", "hex") => self.text = Some(16),
            ("dec", "") | ("string", "dec") => self.text = Some(10),
            ("oct", "") | ("string", "oct") => self.text = Some(8),
            ("bitmask", mask) => self.mask = number(mask)? as u64,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn check(&self, least: i64) -> Result<(), String> {
        let most = if self.text.is_some() { MOST_DIGITS } else { MOST_BINARY };
        if let Value::Number(count) = self.count
            && !(least..=most).contains(&count)
        {
            return Err(format!("a number of {count} bytes cannot be read"));
        }
        match self.offset {
            Value::Number(offset) if offset.abs() > i64::from(i32::MAX) => Err("the offset is too big".into()),
            _ => Ok(()),
        }
    }

    /// Read it; `None` where it is not wholly within the data, or is no number.
    fn read(&self, data: &[u8], at: usize, context: &Context<'_>) -> Option<Read> {
        let base = if self.is_relative { at } else { 0 };
        let from = i64::try_from(base).ok()?.checked_add(self.offset.get(context.variables))?;
        let from = usize::try_from(from).ok()?;
        let count = usize::try_from(self.count.get(context.variables)).ok()?;
        if count == 0 {
            // nothing is read: only what is said beside it counts
            return (from <= data.len()).then_some(Read { value: 0, at: from, taken: 0 });
        }
        let bytes = data.get(from..from.checked_add(count)?)?;
        let (value, taken) = match self.text {
            Some(base) => digits(bytes, base)?,
            None if bytes.len() > MOST_BINARY as usize => return None,
            None => {
                let is_little = self.order == Order::Little || self.order == Order::Dce && context.is_dce_little;
                let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
                let value = if is_little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) };
                (value, count)
            }
        };
        Some(Read { value: self.masked(value), at: from, taken })
    }

    fn masked(&self, value: u64) -> u64 {
        (value & self.mask).checked_shr(self.mask.trailing_zeros()).unwrap_or(0)
    }

    /// Whether it is the same whatever was found before.
    pub fn is_independent(&self) -> bool {
        !self.is_relative && !self.count.is_variable() && !self.offset.is_variable()
    }
}

/// Read a number in text as C's `strtoull` does: white space, a sign, a prefix, digits; what follows is left.
fn digits(bytes: &[u8], base: u32) -> Option<(u64, usize)> {
    let bytes = bytes.get(..bytes.len().min(MOST_DIGITS as usize))?;
    let mut at = bytes.iter().take_while(|byte| matches!(byte, b' ' | 9..=13)).count();
    let is_negative = bytes.get(at) == Some(&b'-');
    at += usize::from(matches!(bytes.get(at), Some(b'-' | b'+')));
    let rest = bytes.get(at..)?;
    let has_prefix = matches!(rest, [b'0', b'x' | b'X', digit, ..] if digit.is_ascii_hexdigit());
    let (base, skip) = match base {
        0 | 16 if has_prefix => (16, 2),
        0 if rest.first() == Some(&b'0') => (8, 0),
        0 => (10, 0),
        other => (other, 0),
    };
    at += skip;
    let (mut value, start) = (0u64, at);
    while let Some(digit) = bytes.get(at).and_then(|byte| char::from(*byte).to_digit(base)) {
        value = value.checked_mul(u64::from(base))?.checked_add(u64::from(digit))?;
        at += 1;
    }
    let value = if is_negative { value.wrapping_neg() } else { value };
    (at > start).then_some((value, at))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Test {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    And,
    Xor,
}

/// `byte_test`
#[derive(Debug)]
pub(super) struct ByteTest {
    number: Number,
    test: Test,
    is_negated: bool,
    value: Value,
}

impl ByteTest {
    pub fn parse(text: &str, names: &Names) -> Result<ByteTest, String> {
        let mut parts = text.split(',').map(str::trim);
        let (Some(count), Some(test), Some(value), Some(offset)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("byte_test needs bytes, operator, value and offset".into());
        };
        let (is_negated, test) = match test.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, test),
        };
        let test = match test {
            "<" => Test::Less,
            "<=" => Test::LessOrEqual,
            ">" => Test::Greater,
            ">=" => Test::GreaterOrEqual,
            "=" | "==" => Test::Equal,
            "" if is_negated => Test::Equal,
            "&" => Test::And,
            "^" => Test::Xor,
            other => return Err(format!("byte_test has no operator {other:?}")),
        };
        let (count, value) = (Value::parse(count, names)?, Value::parse(value, names)?);
        let mut number = Number::new(count, Value::parse(offset, names)?);
        for part in parts {
            let (name, value) = words(part);
            if !number.option(name, value)? {
                return Err(format!("byte_test has no option {part:?}"));
            }
        }
        number.check(1)?;
        Ok(ByteTest { number, test, is_negated, value })
    }

    pub fn matches(&self, subject: &Subject<'_>, at: usize, context: &Context<'_>) -> bool {
        let Some(read) = self.number.read(subject.data, at, context) else { return false };
        if read.taken == 0 {
            return false;
        }
        let (value, other) = (read.value, self.value.bits(context.variables));
        let is_so = match self.test {
            Test::Less => value < other,
            Test::LessOrEqual => value <= other,
            Test::Greater => value > other,
            Test::GreaterOrEqual => value >= other,
            Test::Equal => value == other,
            Test::And => value & other != 0,
            Test::Xor => value ^ other != 0,
        };
        is_so != self.is_negated
    }

    pub fn is_relative(&self) -> bool {
        self.number.is_relative
    }

    pub fn is_independent(&self) -> bool {
        self.number.is_independent() && !self.value.is_variable()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Origin {
    Number,
    Begin,
    End,
}

/// `byte_jump`
#[derive(Debug)]
pub(super) struct ByteJump {
    number: Number,
    multiplier: u32,
    is_aligned: bool,
    post_offset: i32,
    origin: Origin,
}

impl ByteJump {
    pub fn parse(text: &str, names: &Names) -> Result<ByteJump, String> {
        let mut parts = text.split(',').map(str::trim);
        let (Some(count), Some(offset)) = (parts.next(), parts.next()) else {
            return Err("byte_jump needs bytes and offset".into());
        };
        let number = Number::new(Value::parse(count, names)?, Value::parse(offset, names)?);
        let origin = Origin::Number;
        let mut jump = ByteJump { number, multiplier: 1, is_aligned: false, post_offset: 0, origin };
        for part in parts {
            let (name, value) = words(part);
            match name {
                "align" => jump.is_aligned = true,
                "from_beginning" => jump.origin = Origin::Begin,
                "from_end" => jump.origin = Origin::End,
                // the bounds are Suricata's; they make the casts exact
                "multiplier" => jump.multiplier = bounded(value, 1, 65_535)? as u32,
                "post_offset" => jump.post_offset = bounded(value, -MOST_OFFSET, MOST_OFFSET)? as i32,
                _ if jump.number.option(name, value)? => {}
                _ => return Err(format!("byte_jump has no option {part:?}")),
            }
        }
        jump.number.check(0)?;
        Ok(jump)
    }

    /// Return where the jump leads; `None` where that is not within the data.
    pub fn target(&self, subject: &Subject<'_>, at: usize, context: &Context<'_>) -> Option<usize> {
        let read = self.number.read(subject.data, at, context)?;
        let mut value = i128::from(read.value) * i128::from(self.multiplier);
        if self.is_aligned {
            value = (value + 3) / 4 * 4;
        }
        value += i128::from(self.post_offset);
        let base = match self.origin {
            Origin::Begin => 0,
            Origin::End => subject.data.len(),
            Origin::Number => read.at + read.taken,
        };
        let target = usize::try_from(i128::try_from(base).ok()? + value).ok()?;
        (target < subject.data.len()).then_some(target)
    }

    pub fn is_relative(&self) -> bool {
        self.number.is_relative
    }
}

/// `byte_extract`
#[derive(Debug)]
pub(super) struct ByteExtract {
    number: Number,
    multiplier: u32,
    /// 1, 2 or 4.
    align: u64,
    slot: u8,
}

impl ByteExtract {
    pub fn parse(text: &str, names: &mut Names) -> Result<ByteExtract, String> {
        let mut parts = text.split(',').map(str::trim);
        let (Some(count), Some(offset), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            return Err("byte_extract needs bytes, offset and a name".into());
        };
        let count = Value::Number(number(count)?);
        let number = Number::new(count, Value::Number(bounded(offset, -MOST_OFFSET, MOST_OFFSET)?));
        let mut extract = ByteExtract { number, multiplier: 1, align: 1, slot: names.set(name)? };
        for part in parts {
            let (name, value) = words(part);
            match name {
                "multiplier" => extract.multiplier = bounded(value, 1, 65_535)? as u32,
                "align" if matches!(value, "2" | "4") => extract.align = if value == "2" { 2 } else { 4 },
                "bitmask" => return Err("byte_extract has no bitmask".into()),
                _ if extract.number.option(name, value)? => {}
                _ => return Err(format!("byte_extract has no option {part:?}")),
            }
        }
        if extract.number.text == Some(0) {
            extract.number.text = Some(10);
        }
        extract.number.check(1)?;
        Ok(extract)
    }

    /// Keep the number and return where it ends.
    pub fn apply(&self, subject: &Subject<'_>, at: usize, context: &mut Context<'_>) -> Option<usize> {
        let read = self.number.read(subject.data, at, context)?;
        let value = read.value.wrapping_mul(u64::from(self.multiplier));
        store(context, self.slot, value.checked_next_multiple_of(self.align).unwrap_or(0));
        Some(read.at + read.taken)
    }

    pub fn is_relative(&self) -> bool {
        self.number.is_relative
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    ShiftLeft,
    ShiftRight,
}

/// `byte_math`
#[derive(Debug)]
pub(super) struct ByteMath {
    number: Number,
    operator: Operator,
    value: Value,
    /// Applied to the result.
    mask: u64,
    slot: u8,
}

impl ByteMath {
    pub fn parse(text: &str, names: &mut Names) -> Result<ByteMath, String> {
        let (mut count, mut offset, mut operator, mut rvalue, mut result) = (None, None, None, None, None);
        let mut number = Number::new(Value::Number(0), Value::Number(0));
        for part in text.split(',').map(str::trim) {
            let (name, value) = words(part);
            match name {
                "bytes" => count = Some(Value::parse(value, names)?),
                "offset" => offset = Some(Value::parse(value, names)?),
                "rvalue" => rvalue = Some(Value::parse(value, names)?),
                "oper" => operator = Some(parse_operator(value)?),
                "result" => result = Some(value),
                _ if number.option(name, value)? => {}
                _ => return Err(format!("byte_math has no option {part:?}")),
            }
        }
        let (Some(count), Some(offset), Some(operator), Some(value), Some(result)) =
            (count, offset, operator, rvalue, result)
        else {
            return Err("byte_math needs bytes, offset, oper, rvalue and result".into());
        };
        let mask = std::mem::replace(&mut number.mask, u64::MAX);
        (number.count, number.offset) = (count, offset);
        if number.text == Some(0) {
            number.text = Some(10);
        }
        number.check(1)?;
        Ok(ByteMath { number, operator, value, mask, slot: names.set(result)? })
    }

    /// Keep the result and return where the number ends; `None` where there is none.
    pub fn apply(&self, subject: &Subject<'_>, at: usize, context: &mut Context<'_>) -> Option<usize> {
        let read = self.number.read(subject.data, at, context)?;
        if read.taken == 0 {
            return None;
        }
        let other = self.value.bits(context.variables);
        let shift = u32::try_from(other).unwrap_or(u32::MAX);
        let value = match self.operator {
            Operator::Add => read.value.wrapping_add(other),
            Operator::Subtract => read.value.wrapping_sub(other),
            Operator::Multiply => read.value.wrapping_mul(other),
            Operator::Divide => read.value.checked_div(other)?,
            Operator::ShiftLeft => read.value.checked_shl(shift).unwrap_or(0),
            Operator::ShiftRight => read.value.checked_shr(shift).unwrap_or(0),
        };
        store(context, self.slot, (value & self.mask).checked_shr(self.mask.trailing_zeros()).unwrap_or(0));
        Some(read.at + read.taken)
    }

    pub fn is_relative(&self) -> bool {
        self.number.is_relative
    }
}

fn parse_operator(text: &str) -> Result<Operator, String> {
    Ok(match text {
        "+" => Operator::Add,
        "-" => Operator::Subtract,
        "*" => Operator::Multiply,
        "/" => Operator::Divide,
        "<<" => Operator::ShiftLeft,
        ">>" => Operator::ShiftRight,
        other => return Err(format!("byte_math has no operator {other:?}")),
    })
}

fn store(context: &mut Context<'_>, slot: u8, value: u64) {
    let slot = usize::from(slot); // at most MOST_VARIABLES, so this grows once
    if context.variables.len() <= slot {
        context.variables.resize(slot + 1, 0);
    }
    context.variables[slot] = value;
}
