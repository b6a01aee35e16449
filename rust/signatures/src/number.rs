//! Integers in rules: `5`, `>5`, `!5`, `5-10`, `&0x80=0x80`, and which of several integers have to be so.

/// What an integer must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// Exactly this.
    Equal(u64),
    /// Anything else.
    NotEqual(u64),
    /// Below.
    Below(u64),
    /// At most.
    AtMost(u64),
    /// Above.
    Above(u64),
    /// At least.
    AtLeast(u64),
    /// Between, the ends excluded.
    Between(u64, u64),
    /// Not between: at an end or beyond it.
    NotBetween(u64, u64),
    /// Some of these bits are set (or, negated, none).
    Mask(u64, bool),
    /// These bits (first) are together this value (second), or, if not wanted (third), are not.
    MaskEqual(u64, u64, bool),
}

impl Comparison {
    /// Return whether `value` is so.
    #[inline]
    pub fn matches(self, value: u64) -> bool {
        match self {
            Comparison::Equal(other) => value == other,
            Comparison::NotEqual(other) => value != other,
            Comparison::Below(other) => value < other,
            Comparison::AtMost(other) => value <= other,
            Comparison::Above(other) => value > other,
            Comparison::AtLeast(other) => value >= other,
            Comparison::Between(low, high) => low < value && value < high,
            Comparison::NotBetween(low, high) => value <= low || value >= high,
            Comparison::Mask(bits, wanted) => (value & bits != 0) == wanted,
            Comparison::MaskEqual(bits, other, wanted) => (value & bits == other) == wanted,
        }
    }

    /// Read one of a number of `bits` width (8, 16, 32, 64); `names` may stand for values. What can never match is
    /// refused, as is what does not fit.
    pub fn parse(text: &str, bits: u8, names: &[(&str, u64)]) -> Result<Comparison, String> {
        let reader = Syntax { most: most(bits), names };
        let text = text.trim();
        let (is_negated, rest) = match text.strip_prefix('!') {
            Some(rest) if !rest.starts_with('=') => (true, rest.trim_start()),
            _ => (false, text),
        };
        let comparison = reader.parse(rest)?;
        if is_negated { negate(comparison).ok_or_else(|| format!("{text} cannot be negated")) } else { Ok(comparison) }
    }
}

fn most(bits: u8) -> u64 {
    1u64.checked_shl(u32::from(bits)).map_or(u64::MAX, |above| above.saturating_sub(1))
}

fn negate(comparison: Comparison) -> Option<Comparison> {
    Some(match comparison {
        Comparison::Equal(value) => Comparison::NotEqual(value),
        Comparison::Between(low, high) => Comparison::NotBetween(low, high),
        Comparison::Mask(bits, wanted) => Comparison::Mask(bits, !wanted),
        Comparison::MaskEqual(bits, value, wanted) => Comparison::MaskEqual(bits, value, !wanted),
        _ => return None,
    })
}

/// Makes a comparison with a value.
type Make = fn(u64) -> Comparison;

struct Syntax<'a> {
    most: u64,
    names: &'a [(&'a str, u64)],
}

impl Syntax<'_> {
    fn parse(&self, text: &str) -> Result<Comparison, String> {
        if let Some(mask) = text.strip_prefix('&') {
            return self.mask(mask);
        }
        let operators: [(&str, Make); 6] = [
            ("!=", Comparison::NotEqual),
            (">=", Comparison::AtLeast),
            ("<=", Comparison::AtMost),
            (">", Comparison::Above),
            ("<", Comparison::Below),
            ("=", Comparison::Equal),
        ];
        for (operator, make) in operators {
            if let Some(value) = text.strip_prefix(operator) {
                return self.checked(make(self.value(value)?));
            }
        }
        match text.split_once("<>").or_else(|| text.split_once('-')) {
            Some((low, high)) if self.named(text).is_none() => self.range(low, high),
            _ if text.contains(',') => self.flags(text),
            _ => Ok(Comparison::Equal(self.value(text)?)),
        }
    }

    fn checked(&self, comparison: Comparison) -> Result<Comparison, String> {
        let is_void = match comparison {
            Comparison::Below(value) => value == 0,
            Comparison::Above(value) => value >= self.most,
            _ => false,
        };
        if is_void { Err("no number is like that".to_owned()) } else { Ok(comparison) }
    }

    fn range(&self, low: &str, high: &str) -> Result<Comparison, String> {
        let (low, high) = (self.value(low)?, self.value(high)?);
        // the ends do not belong to it, so 4-5 holds nothing
        if high.saturating_sub(low) < 2 {
            return Err(format!("no number is between {low} and {high}"));
        }
        Ok(Comparison::Between(low, high))
    }

    fn mask(&self, text: &str) -> Result<Comparison, String> {
        let (mask, value, wanted) = match (text.split_once("!="), text.split_once('=')) {
            (Some((mask, value)), _) => (mask, value, false),
            (None, Some((mask, value))) => (mask, value, true),
            (None, None) => return Ok(Comparison::Mask(self.value(text)?, true)),
        };
        let (mask, value) = (self.value(mask)?, self.value(value)?);
        if value & !mask != 0 {
            return Err("the value has bits outside of the mask".to_owned());
        }
        Ok(Comparison::MaskEqual(mask, value, wanted))
    }

    /// `fin,!comp`: names of bits.
    fn flags(&self, text: &str) -> Result<Comparison, String> {
        let (mut mask, mut wanted) = (0, 0);
        for part in text.split(',') {
            let part = part.trim();
            let (is_negated, name) = part.strip_prefix('!').map_or((false, part), |name| (true, name));
            let bits = self.named(name).ok_or_else(|| format!("unknown name {name}"))?;
            mask |= bits;
            wanted |= if is_negated { 0 } else { bits };
        }
        Ok(Comparison::MaskEqual(mask, wanted, true))
    }

    fn named(&self, text: &str) -> Option<u64> {
        self.names.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, value)| *value)
    }

    fn value(&self, text: &str) -> Result<u64, String> {
        let text = text.trim();
        let value = match self.named(text) {
            Some(value) => value,
            None => parse_integer(text).ok_or_else(|| format!("{text} is no number"))?,
        };
        if value > self.most { Err(format!("{value} is more than {}", self.most)) } else { Ok(value) }
    }
}

/// Read `100`, `0x64`, `2kb`, `1 MiB`. Signs are refused.
pub(crate) fn parse_integer(text: &str) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return if digits.starts_with('+') { None } else { u64::from_str_radix(digits, 16).ok() };
    }
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end)?;
    let unit = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" => 1,
        "kb" | "kib" => 1 << 10,
        "mb" | "mib" => 1 << 20,
        "gb" | "gib" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// Which of several integers have to be as compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Choice {
    /// At least one.
    #[default]
    Any,
    /// At least one, or there is none at all.
    AnyOrAbsent,
    /// All, and there is one.
    All,
    /// All; none at all is fine too.
    AllOrAbsent,
    /// This one, from the front or (negative) from the back.
    At(i32),
    /// As `At`; a place beyond the end is fine too.
    AtOrBeyond(i32),
    /// So many are.
    Times(Comparison),
    /// So many there are, whatever they are.
    Count(Comparison),
}

impl Choice {
    /// Split `operation and value[,index]`. `None`, and the text as it was, where no index is there.
    pub fn parse(text: &str) -> Result<(Choice, &str), String> {
        if let Some(count) = text.trim().strip_prefix("count") {
            return Ok((Choice::Count(Comparison::parse(count, 32, &[])?), ""));
        }
        let Some((value, index)) = text.rsplit_once(',') else { return Ok((Choice::Any, text)) };
        let index = index.trim();
        let choice = match index {
            "any" => Choice::Any,
            "or_absent" => Choice::AnyOrAbsent,
            "all" => Choice::All,
            "all_or_absent" => Choice::AllOrAbsent,
            _ => match (index.parse::<i32>(), index.strip_prefix("oob_or"), index.strip_prefix("nb")) {
                (Ok(place), ..) => Choice::At(place),
                (_, Some(place), _) => Choice::AtOrBeyond(place.trim().parse().map_err(|_| "no place".to_owned())?),
                (_, _, Some(times)) => Choice::Times(Comparison::parse(times, 32, &[])?),
                _ => return Ok((Choice::Any, text)), // a list of names of bits
            },
        };
        Ok((choice, value))
    }

    /// Return whether `values` are as they have to be.
    pub fn matches(self, range: Comparison, mut values: impl Iterator<Item = u64>) -> bool {
        match self {
            Choice::Any => values.any(|value| range.matches(value)),
            Choice::AllOrAbsent => values.all(|value| range.matches(value)),
            Choice::Times(times) => times.matches(values.filter(|value| range.matches(*value)).count() as u64),
            Choice::Count(count) => count.matches(values.count() as u64),
            Choice::AnyOrAbsent | Choice::All => {
                let (mut all, mut hits) = (0u64, 0u64);
                for value in values {
                    all = all.saturating_add(1);
                    hits = hits.saturating_add(u64::from(range.matches(value)));
                }
                if self == Choice::All { all > 0 && hits == all } else { all == 0 || hits > 0 }
            }
            Choice::At(place) => nth(values, place).is_some_and(|value| range.matches(value)),
            Choice::AtOrBeyond(place) => nth(values, place).is_none_or(|value| range.matches(value)),
        }
    }
}

fn nth(mut values: impl Iterator<Item = u64>, place: i32) -> Option<u64> {
    if let Ok(place) = usize::try_from(place) {
        return values.nth(place);
    }
    let values: Vec<u64> = values.collect();
    values.len().checked_sub(place.unsigned_abs() as usize).and_then(|place| values.get(place).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_means_what_it_says() {
        // text, what matches, what does not
        let rows: &[(&str, &[u64], &[u64])] = &[
            ("5", &[5], &[4, 6]),
            ("=0x13", &[19], &[13]),
            ("!0x14", &[19], &[20]),
            ("!=20", &[19], &[20]),
            (">21", &[22], &[21]),
            (">=21", &[21], &[20]),
            ("<22", &[21], &[22]),
            ("<= 22", &[22], &[23]),
            ("19-22", &[20, 21], &[19, 22]),
            ("19<>22", &[20, 21], &[19, 22]),
            ("!19-22", &[19, 22], &[20]),
            ("&0xc0=0x80", &[0x81], &[0xc0, 1]),
            ("&0xc0!=0", &[0x40], &[1]),
            ("!&0xc0=0x80", &[0xc0], &[0x80]),
            ("&0x80", &[0x80, 0xff], &[0x7f]),
            ("!&0x80", &[0x7f], &[0x80]),
            ("text", &[1], &[2]),
            ("!text", &[2], &[1]),
            ("text,!fin", &[1, 5], &[3, 2]),
            ("1kb", &[1024], &[1]),
        ];
        for (text, hits, misses) in rows {
            let comparison = Comparison::parse(text, 32, &[("text", 1), ("fin", 2)]);
            for (values, wanted) in [(hits, true), (misses, false)] {
                for value in *values {
                    assert_eq!(comparison.as_ref().map(|it| it.matches(*value)), Ok(wanted), "{text} {value}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_match_or_be_read_is_refused() {
        for text in ["", "a", "-5", "256", "<0", ">255", "4-5", "9-3", "!>5", "&0xc0=2", "1-", "5 6", "0x", "+5"] {
            assert!(Comparison::parse(text, 8, &[]).is_err(), "{text}");
        }
    }

    #[test]
    fn an_index_chooses_among_several() {
        let rows: &[(&str, &[u64], bool)] = &[
            ("1", &[0, 1], true),
            ("1,any", &[], false),
            ("1,or_absent", &[], true),
            ("1,all", &[1, 1], true),
            ("1,all", &[], false),
            ("1,all_or_absent", &[], true),
            ("1,0", &[1, 0], true),
            ("1,-1", &[1, 0], false),
            ("1,oob_or 5", &[0], true),
            ("1,nb>1", &[1, 1], true),
            ("count >2", &[0, 0, 0], true),
            ("count 0", &[0], false),
        ];
        for (text, values, wanted) in rows {
            let matched = Choice::parse(text).and_then(|(choice, value)| {
                let range = if value.is_empty() { Comparison::AtLeast(0) } else { Comparison::parse(value, 32, &[])? };
                Ok(choice.matches(range, values.iter().copied()))
            });
            assert_eq!(matched, Ok(*wanted), "{text}");
        }
    }
}
