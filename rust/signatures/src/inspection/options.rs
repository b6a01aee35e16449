//! Reading the values of options.

use super::Names;

/// A number, or a variable that holds one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Value {
    Number(i64),
    Variable(u8),
}

impl Value {
    /// Read a number, or the name of a variable.
    pub fn parse(text: &str, names: &Names) -> Result<Value, String> {
        let text = text.trim();
        if text.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+') {
            return number(text).map(Value::Number);
        }
        names.get(text).map(Value::Variable)
    }

    /// Return what it stands for. Variables are unsigned 64-bit values; one that is beyond all buffers stays so.
    pub fn get(self, variables: &[u64]) -> i64 {
        match self {
            Value::Number(number) => number,
            Value::Variable(slot) => i64::try_from(raw(variables, slot)).unwrap_or(i64::MAX),
        }
    }

    /// Return what it stands for in arithmetic modulo 2^64.
    pub fn bits(self, variables: &[u64]) -> u64 {
        match self {
            Value::Number(number) => number as u64,
            Value::Variable(slot) => raw(variables, slot),
        }
    }

    pub fn is_variable(self) -> bool {
        matches!(self, Value::Variable(_))
    }
}

fn raw(variables: &[u64], slot: u8) -> u64 {
    variables.get(usize::from(slot)).copied().unwrap_or(0)
}

/// Read a decimal number, or one in hexadecimal digits after `0x`. Up to 64 bits: the upper half becomes negative.
pub(super) fn number(text: &str) -> Result<i64, String> {
    let text = text.trim();
    let wrong = || format!("{text:?} is no number");
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(digits, 16).map(|value| value as i64).map_err(|_| wrong());
    }
    text.parse().or_else(|_| text.parse::<u64>().map(|value| value as i64)).map_err(|_| wrong())
}

/// Read a number within bounds.
pub(super) fn bounded(text: &str, low: i64, high: i64) -> Result<i64, String> {
    let value = number(text)?;
    if (low..=high).contains(&value) { Ok(value) } else { Err(format!("{value} is not within {low} and {high}")) }
}

/// Return the value without quotation marks, which some options may have.
pub(super) fn unquoted(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

/// Split at the first white space.
pub(super) fn words(text: &str) -> (&str, &str) {
    let text = text.trim();
    let (first, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (first, rest.trim())
}
