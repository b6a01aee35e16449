//! What a backslash means, and what stands in brackets.

use super::set::Set;
use super::syntax::{Assertion, Parser};

/// What a backslash and what follows it mean.
pub(super) enum Escape {
    Byte(u8),
    Set(Set),
    Assert(Assertion),
    Keep,
    /// `\R`
    Newline,
    Back(u16),
    Named(String),
    /// `\Q`
    Quote,
    /// `\E` alone
    Nothing,
}

impl Parser<'_> {
    /// Read what follows a backslash; in a class some letters mean something else.
    pub fn escape(&mut self, in_class: bool) -> Result<Escape, String> {
        let byte = self.next().ok_or("a backslash at the end")?;
        let set = |ranges: &[(u8, u8)], is_inverted: bool| {
            let set = Set::of(ranges);
            Ok(Escape::Set(if is_inverted { set.inverted() } else { set }))
        };
        match byte {
            b'd' | b'D' => set(Set::DIGIT, byte == b'D'),
            b's' | b'S' => set(Set::SPACE, byte == b'S'),
            b'w' | b'W' => set(Set::WORD, byte == b'W'),
            b'h' | b'H' => set(Set::HORIZONTAL, byte == b'H'),
            b'v' | b'V' => set(Set::VERTICAL, byte == b'V'),
            b'a' => Ok(Escape::Byte(7)),
            b'e' => Ok(Escape::Byte(27)),
            b'f' => Ok(Escape::Byte(12)),
            b'n' => Ok(Escape::Byte(b'\n')),
            b'r' => Ok(Escape::Byte(b'\r')),
            b't' => Ok(Escape::Byte(b'\t')),
            b'c' => {
                let control = self.next().filter(|byte| byte.is_ascii_graphic()).ok_or("\\c without a character")?;
                Ok(Escape::Byte(control.to_ascii_uppercase() ^ 64))
            }
            b'x' => self.hexadecimal(),
            b'o' if self.eat(b"{") => {
                let digits = self.until(b'}')?;
                u8::from_str_radix(&digits, 8).map(Escape::Byte).map_err(|_| "\\o{…} is no byte".into())
            }
            b'0'..=b'9' => self.digits(byte, in_class),
            b'E' => Ok(Escape::Nothing),
            b'b' if in_class => Ok(Escape::Byte(8)),
            b'Q' => Ok(Escape::Quote),
            _ if in_class => self.unknown(byte),
            b'b' => Ok(Escape::Assert(Assertion::Boundary)),
            b'B' => Ok(Escape::Assert(Assertion::NoBoundary)),
            b'A' => Ok(Escape::Assert(Assertion::Start)),
            b'z' => Ok(Escape::Assert(Assertion::End)),
            b'Z' => Ok(Escape::Assert(Assertion::EndOrNewline)),
            b'G' => Ok(Escape::Assert(Assertion::SearchStart)),
            b'K' => Ok(Escape::Keep),
            b'R' => Ok(Escape::Newline),
            b'N' => set(&[(b'\n', b'\n')], true),
            b'C' => set(&[(0, 255)], false),
            b'g' | b'k' => self.reference(byte),
            other => self.unknown(other),
        }
    }

    /// PCRE2 refuses letters that mean nothing, so a rule that has one never ran.
    fn unknown(&self, byte: u8) -> Result<Escape, String> {
        if byte.is_ascii_alphabetic() {
            return Err(format!("\\{} means nothing", char::from(byte)));
        }
        Ok(Escape::Byte(byte))
    }

    fn hexadecimal(&mut self) -> Result<Escape, String> {
        if self.eat(b"{") {
            let digits = self.until(b'}')?;
            return u8::from_str_radix(digits.trim(), 16).map(Escape::Byte).map_err(|_| "\\x{…} is no byte".into());
        }
        let mut value = 0u8;
        for _ in 0..2 {
            let Some(digit) = self.peek().and_then(|byte| char::from(byte).to_digit(16)) else { break };
            self.at += 1;
            value = value << 4 | digit as u8; // two digits fill it exactly
        }
        Ok(Escape::Byte(value))
    }

    /// `\1` refers back, `\012` is octal, `\12` is one of them by how many groups there are.
    fn digits(&mut self, first: u8, in_class: bool) -> Result<Escape, String> {
        let start = self.at - 1;
        if first != b'0' && !in_class {
            self.at = start;
            let number = self.number().unwrap_or(0);
            if number < 10 || number <= u32::from(self.groups) {
                return Ok(Escape::Back(number as u16)); // groups are counted in 16 bits
            }
        }
        self.at = start;
        if first > b'7' {
            self.at += 1;
            return Ok(Escape::Byte(first));
        }
        let mut value = 0u32;
        while let (Some(digit @ b'0'..=b'7'), true) = (self.peek(), self.at < start + 3) {
            self.at += 1;
            value = value * 8 + u32::from(digit - b'0');
        }
        u8::try_from(value).map(Escape::Byte).map_err(|_| "an octal escape above 255".into())
    }

    /// `\g1`, `\g{-1}`, `\g{name}`, `\k<name>`, `\k{name}`, `\k'name'`.
    fn reference(&mut self, kind: u8) -> Result<Escape, String> {
        let name = match self.peek() {
            Some(b'{') => self.delimited(b'}')?,
            Some(b'<') if kind == b'k' => self.delimited(b'>')?,
            Some(b'\'') if kind == b'k' => self.delimited(b'\'')?,
            Some(b'-' | b'0'..=b'9') if kind == b'g' => {
                let sign = if self.eat(b"-") { "-" } else { "" };
                format!("{sign}{}", self.number().unwrap_or(0))
            }
            _ => return Err("a reference without a group".into()),
        };
        let Ok(number) = name.parse::<i32>() else { return Ok(Escape::Named(name)) };
        let group = if number < 0 { i32::from(self.groups).saturating_add(number).saturating_add(1) } else { number };
        let group = u16::try_from(group).ok().filter(|group| *group > 0);
        group.map(Escape::Back).ok_or_else(|| "a reference to no group".into())
    }

    fn delimited(&mut self, end: u8) -> Result<String, String> {
        self.at += 1;
        self.until(end)
    }

    /// Read a class; its `[` is read.
    pub fn class(&mut self) -> Result<Set, String> {
        let is_inverted = self.eat(b"^");
        let mut set = Set::default();
        let mut is_first = true;
        let mut quoted = false;
        loop {
            if quoted && self.eat(b"\\E") {
                quoted = false;
                continue;
            }
            let byte = self.next().ok_or("a class is not closed")?;
            if byte == b']' && !is_first && !quoted {
                break;
            }
            is_first = false;
            let item = match byte {
                _ if quoted => Escape::Byte(byte),
                b'[' if matches!(self.peek(), Some(b':')) => match self.posix()? {
                    Some(posix) => Escape::Set(posix),
                    None => Escape::Byte(byte),
                },
                b'\\' => self.escape(true)?,
                other => Escape::Byte(other),
            };
            match item {
                Escape::Byte(byte) => self.range(&mut set, byte)?,
                Escape::Set(other) => set.add_all(&other),
                Escape::Quote => quoted = true,
                _ => {}
            }
        }
        let set = if self.flags.caseless { set.caseless() } else { set };
        Ok(if is_inverted { set.inverted() } else { set })
    }

    /// Add `low`, or a range that begins with it.
    fn range(&mut self, set: &mut Set, low: u8) -> Result<(), String> {
        let before = self.at;
        if self.eat(b"-") && self.peek().is_some_and(|byte| byte != b']') {
            let high = match self.next() {
                Some(b'\\') => match self.escape(true)? {
                    Escape::Byte(high) => Some(high),
                    _ => None,
                },
                Some(b'[') if self.peek() == Some(b':') => None,
                other => other,
            };
            if let Some(high) = high {
                if high < low {
                    return Err("a range in a class is in the wrong order".into());
                }
                set.add_range(low, high);
                return Ok(());
            }
        }
        // `[a-\d]`: the hyphen stands for itself, and what follows is read again
        self.at = before;
        set.add(low);
        Ok(())
    }

    /// `[:alpha:]`; its `[` is read. `None` where it is none, as in `[[:]`.
    fn posix(&mut self) -> Result<Option<Set>, String> {
        let rest = self.pattern.get(self.at + 1..).unwrap_or_default();
        let Some(length) = rest.windows(2).position(|pair| pair == b":]") else { return Ok(None) };
        let name = &rest[..length];
        if !name.iter().all(|byte| byte.is_ascii_lowercase() || *byte == b'^') {
            return Ok(None);
        }
        self.at += length + 3;
        let (is_inverted, name) = match name.strip_prefix(b"^") {
            Some(name) => (true, name),
            None => (false, name),
        };
        let test: fn(&u8) -> bool = match name {
            b"alpha" => u8::is_ascii_alphabetic,
            b"lower" => u8::is_ascii_lowercase,
            b"upper" => u8::is_ascii_uppercase,
            b"alnum" => u8::is_ascii_alphanumeric,
            b"ascii" => u8::is_ascii,
            b"blank" => |byte| matches!(byte, b' ' | b'\t'),
            b"cntrl" => u8::is_ascii_control,
            b"digit" => u8::is_ascii_digit,
            b"graph" => u8::is_ascii_graphic,
            b"print" => |byte| matches!(byte, b' '..=b'~'),
            b"punct" => u8::is_ascii_punctuation,
            b"space" => |byte| matches!(byte, 9..=13 | b' '),
            b"word" => |byte| byte.is_ascii_alphanumeric() || *byte == b'_',
            b"xdigit" => u8::is_ascii_hexdigit,
            _ => return Err("an unknown class of characters".into()),
        };
        let mut set = Set::default();
        (0..=u8::MAX).filter(test).for_each(|byte| set.add(byte));
        Ok(Some(if is_inverted { set.inverted() } else { set }))
    }
}
