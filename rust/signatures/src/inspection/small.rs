//! `isdataat`, `bsize`, `entropy`, `base64_decode`.

use super::options::{Value, bounded, unquoted, words};
use super::{Context, Inspection, Names, Subject};
use crate::number::Comparison;
use crate::transform::{Base64Mode, decode_base64};

/// Suricata's bound of `isdataat`.
const MOST_DISTANCE: i64 = 65_535;
/// Most bytes that `base64_decode` decodes: Suricata's own limit.
const MOST_DECODED: usize = 65_535;
/// How close two entropies are that count as equal.
const EPSILON: f64 = 1e-5;

/// `isdataat`
#[derive(Clone, Copy, Debug)]
pub(super) struct IsDataAt {
    distance: Value,
    pub is_relative: bool,
    is_negated: bool,
}

impl IsDataAt {
    pub fn parse(text: &str, names: &Names) -> Result<IsDataAt, String> {
        let text = unquoted(text);
        let (is_negated, text) = match text.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let mut parts = text.split(',').map(str::trim);
        let distance = Value::parse(parts.next().unwrap_or_default(), names)?;
        if matches!(distance, Value::Number(number) if !(0..=MOST_DISTANCE).contains(&number)) {
            return Err("isdataat is out of bounds".into());
        }
        let mut is_relative = false;
        for part in parts {
            match part {
                "relative" => is_relative = true,
                "rawbytes" => {}
                other => return Err(format!("isdataat has no option {other:?}")),
            }
        }
        Ok(IsDataAt { distance, is_relative, is_negated })
    }

    /// Suricata counts a relative distance otherwise than an absolute one: `isdataat:32` wants 33 bytes, while
    /// `isdataat:32,relative` wants 32 behind the last match.
    pub fn matches(&self, subject: &Subject<'_>, at: usize, context: &Context<'_>) -> bool {
        let length = i64::try_from(subject.data.len()).unwrap_or(i64::MAX);
        let distance = self.distance.get(context.variables);
        let is_there = if self.is_relative {
            i64::try_from(at).unwrap_or(i64::MAX).saturating_add(distance) <= length
        } else {
            distance < length
        };
        if self.is_negated { !is_there && subject.is_complete } else { is_there }
    }

    pub fn is_independent(&self) -> bool {
        !self.is_relative && !self.distance.is_variable()
    }
}

/// `bsize`
#[derive(Clone, Copy, Debug)]
pub(super) enum Bsize {
    Range(Comparison),
    Variable(u8),
}

impl Bsize {
    pub fn parse(text: &str, names: &Names) -> Result<Bsize, String> {
        let text = text.trim();
        if text.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return match Value::parse(text, names)? {
                Value::Variable(slot) => Ok(Bsize::Variable(slot)),
                Value::Number(_) => Err("bsize needs a number".into()),
            };
        }
        let most = i64::MAX;
        let size = |text: &str| bounded(text, 0, most).map(|value| value as u64); // not negative
        if let Some((low, high)) = text.split_once("<>").or_else(|| text.split_once('-')) {
            let (low, is_negated) = low.strip_prefix('!').map_or((low, false), |low| (low, true));
            let (low, high) = (size(low)?, size(high)?);
            if low >= high || high - low < 2 {
                return Err("bsize's range is empty".into());
            }
            let range = if is_negated { Comparison::NotBetween(low, high) } else { Comparison::Between(low, high) };
            return Ok(Bsize::Range(range));
        }
        let split = text.find(|c: char| c.is_ascii_digit() || c == ' ').unwrap_or(text.len());
        let (operator, number) = text.split_at(split);
        let number = size(number)?;
        Ok(Bsize::Range(match operator {
            "" | "=" => Comparison::Equal(number),
            "!" | "!=" => Comparison::NotEqual(number),
            "<" => Comparison::Below(number),
            "<=" => Comparison::AtMost(number),
            ">" => Comparison::Above(number),
            ">=" => Comparison::AtLeast(number),
            other => return Err(format!("bsize has no operator {other:?}")),
        }))
    }

    pub fn matches(&self, subject: &Subject<'_>, context: &Context<'_>) -> bool {
        let size = subject.start.saturating_add(subject.data.len() as u64);
        let range = match *self {
            Bsize::Range(range) => range,
            Bsize::Variable(slot) => Comparison::Equal(Value::Variable(slot).bits(context.variables)),
        };
        // what is large enough stays so; all else is known at the end
        let is_final = subject.is_complete || matches!(range, Comparison::Above(_) | Comparison::AtLeast(_));
        is_final && range.matches(size)
    }

    /// Return the largest size that meets it, where there is one.
    pub fn most(&self) -> Option<u64> {
        match *self {
            Bsize::Range(Comparison::Equal(size) | Comparison::AtMost(size)) => Some(size),
            Bsize::Range(Comparison::Below(size) | Comparison::Between(_, size)) => Some(size.saturating_sub(1)),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Amount {
    Equal(f64),
    NotEqual(f64),
    Below(f64),
    AtMost(f64),
    Above(f64),
    AtLeast(f64),
    Between(f64, f64),
}

/// `entropy`
#[derive(Clone, Copy, Debug)]
pub(super) struct Entropy {
    /// 0: all.
    bytes: usize,
    offset: usize,
    amount: Amount,
}

impl Entropy {
    pub fn parse(text: &str) -> Result<Entropy, String> {
        let (mut bytes, mut offset, mut amount) = (0, 0, None);
        for part in unquoted(text).split(',').map(str::trim) {
            match words(part) {
                // not negative, and below 2^32
                ("bytes", value) => bytes = bounded(value, 0, i64::from(u32::MAX))? as usize,
                ("offset", value) => offset = bounded(value, 0, i64::from(u32::MAX))? as usize,
                ("value", value) => amount = Some(parse_amount(value)?),
                _ => match part.strip_prefix("value") {
                    Some(value) => amount = Some(parse_amount(value)?),
                    None => return Err(format!("entropy has no option {part:?}")),
                },
            }
        }
        Ok(Entropy { bytes, offset, amount: amount.ok_or("entropy needs a value")? })
    }

    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        let data = subject.data.get(self.offset..).unwrap_or_default();
        let data = if self.bytes == 0 { data } else { data.get(..self.bytes).unwrap_or(data) };
        if data.is_empty() {
            return false;
        }
        let entropy = shannon(data);
        match self.amount {
            Amount::Equal(value) => (entropy - value).abs() < EPSILON,
            Amount::NotEqual(value) => (entropy - value).abs() >= EPSILON,
            Amount::Below(value) => entropy < value,
            Amount::AtMost(value) => entropy <= value,
            Amount::Above(value) => entropy > value,
            Amount::AtLeast(value) => entropy >= value,
            Amount::Between(low, high) => low < entropy && entropy < high,
        }
    }
}

/// Return Shannon's entropy in bits for each byte.
fn shannon(data: &[u8]) -> f64 {
    let mut counts = [0u32; 256];
    data.iter().for_each(|byte| counts[usize::from(*byte)] = counts[usize::from(*byte)].saturating_add(1));
    let all = data.len() as f64;
    let shares = counts.iter().filter(|count| **count > 0).map(|count| f64::from(*count) / all);
    -shares.map(|share| share * share.log2()).sum::<f64>()
}

fn parse_amount(text: &str) -> Result<Amount, String> {
    let text = text.trim();
    let float = |text: &str| {
        let value = text.trim().parse::<f64>().ok().filter(|value| (0.0..=8.0).contains(value));
        value.ok_or_else(|| format!("{text:?} is no entropy"))
    };
    if let Some((low, high)) = text.split_once("<>").or_else(|| text.split_once('-')) {
        return Ok(Amount::Between(float(low)?, float(high)?));
    }
    let split = text.find(|c: char| c.is_ascii_digit() || c == ' ' || c == '.').unwrap_or(text.len());
    let (operator, value) = text.split_at(split);
    let value = float(value)?;
    Ok(match operator {
        "" | "=" | "==" => Amount::Equal(value),
        "!" | "!=" => Amount::NotEqual(value),
        "<" => Amount::Below(value),
        "<=" => Amount::AtMost(value),
        ">" => Amount::Above(value),
        ">=" => Amount::AtLeast(value),
        other => return Err(format!("entropy has no operator {other:?}")),
    })
}

/// `base64_decode`, and what `base64_data` looks for in its result.
#[derive(Debug)]
pub(super) struct Base64Decode {
    /// How many bytes are decoded; 0: all.
    bytes: usize,
    offset: usize,
    pub is_relative: bool,
    pub inspection: Option<Inspection>,
}

impl Base64Decode {
    pub fn parse(text: Option<&str>) -> Result<Base64Decode, String> {
        let mut decode = Base64Decode { bytes: 0, offset: 0, is_relative: false, inspection: None };
        let parts = text.map(unquoted).unwrap_or_default().split(',').map(str::trim);
        for part in parts.filter(|part| !part.is_empty()) {
            match words(part) {
                // not negative, and below 2^32
                ("bytes", value) => decode.bytes = bounded(value, 1, i64::from(u32::MAX))? as usize,
                ("offset", value) => decode.offset = bounded(value, 0, i64::from(u32::MAX))? as usize,
                ("relative", "") => decode.is_relative = true,
                _ => return Err(format!("base64_decode has no option {part:?}")),
            }
        }
        Ok(decode)
    }

    /// Return what was decoded; `None` where that is nothing.
    pub fn decode(&self, subject: &Subject<'_>, at: usize) -> Option<Vec<u8>> {
        let base = if self.is_relative { at } else { 0 };
        let data = subject.data.get(base.checked_add(self.offset)?..)?;
        let most = if self.bytes == 0 { MOST_DECODED } else { self.bytes.min(MOST_DECODED) };
        let mut decoded = Vec::new();
        decode_base64(data.get(..most).unwrap_or(data), Base64Mode::Rfc4648, &mut decoded);
        (!decoded.is_empty()).then_some(decoded)
    }
}
