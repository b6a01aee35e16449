//! From the text of a rule file to rules in pieces: header fields and options, still as text.

use std::borrow::Cow;

/// The longest rule: the longest in public sets have 8 KiB.
const MOST_RULE_BYTES: usize = 64 << 10;
/// More options than any public rule has (about 80), few enough to keep a hostile file cheap.
const MOST_OPTIONS: usize = 512;
/// Brackets within brackets in a header field.
const MOST_DEPTH: u32 = 16;

/// A rule as text.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Rule<'a> {
    pub action: &'a str,
    pub protocol: &'a str,
    pub source: &'a str,
    pub source_ports: &'a str,
    pub direction: &'a str,
    pub destination: &'a str,
    pub destination_ports: &'a str,
    pub options: Vec<(&'a str, Option<&'a str>)>,
}

/// One rule's text with its continuation lines joined, and the line on which it begins (from 1).
pub(crate) fn rule_lines(text: &[u8]) -> impl Iterator<Item = (u32, Cow<'_, str>)> {
    let mut lines = text.split(|byte| *byte == b'\n').zip(1u32..);
    std::iter::from_fn(move || {
        loop {
            let (line, number) = lines.next()?;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let line = if number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
            let line = line.trim_ascii_start();
            if line.is_empty() || line.starts_with(b"#") {
                continue; // a backslash does not continue a comment
            }
            let Some(first) = continued(line) else { return Some((number, decode(line))) };
            let mut joined = first.to_vec();
            for (line, _) in lines.by_ref() {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                joined.extend_from_slice(continued(line).unwrap_or(line));
                if continued(line).is_none() {
                    break;
                }
            }
            return Some((number, Cow::Owned(decode(&joined).into_owned())));
        }
    })
}

/// The line without the backslash at its end; `None` where there is none. Blanks behind it are forgiven.
fn continued(line: &[u8]) -> Option<&[u8]> {
    line.trim_ascii_end().strip_suffix(b"\\")
}

/// UTF-8, or else Latin-1. Contents are about bytes, so in Latin-1 a content's `\xe9` becomes `|e9|`.
fn decode(line: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(line) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(line.len());
    let (mut is_content, mut is_escaped) = (false, false);
    for byte in line {
        match byte {
            b'"' if is_content && !is_escaped => is_content = false,
            b'"' => is_content |= text.ends_with("content:") || text.ends_with("content:!"),
            _ => {}
        }
        is_escaped = *byte == b'\\' && !is_escaped;
        match byte {
            0x80.. if is_content => text.push_str(&format!("|{byte:02x}|")),
            _ => text.push(char::from(*byte)),
        }
    }
    Cow::Owned(text)
}

/// Take a rule apart.
pub(crate) fn parse_rule(text: &str) -> Result<Rule<'_>, String> {
    if text.len() > MOST_RULE_BYTES {
        return Err(format!("longer than {MOST_RULE_BYTES} bytes"));
    }
    if text.contains('\0') {
        return Err("a zero byte".to_owned());
    }
    let mut rest = text.trim();
    let mut rule = Rule {
        action: word(&mut rest)?,
        protocol: word(&mut rest)?,
        source: list(&mut rest)?,
        source_ports: list(&mut rest)?,
        direction: word(&mut rest)?,
        destination: list(&mut rest)?,
        destination_ports: list(&mut rest)?,
        options: Vec::new(),
    };
    let body = rest.trim_start().strip_prefix('(').ok_or("no options in parentheses")?;
    let body = body.trim_end().strip_suffix(')').ok_or("the options are not closed by a parenthesis")?;
    rule.options = parse_options(body)?;
    Ok(rule)
}

fn word<'a>(rest: &mut &'a str) -> Result<&'a str, String> {
    let text = rest.trim_start();
    let end = text.find(|c: char| c.is_ascii_whitespace()).unwrap_or(text.len());
    take(rest, text, end)
}

/// A word, or a list in brackets, in which blanks may stand.
fn list<'a>(rest: &mut &'a str) -> Result<&'a str, String> {
    let text = rest.trim_start();
    let mut depth = 0u32;
    for (at, character) in text.char_indices() {
        match character {
            '[' if depth >= MOST_DEPTH => return Err("too many brackets".to_owned()),
            '[' => depth = depth.saturating_add(1),
            ']' => depth = depth.checked_sub(1).ok_or("a bracket is closed that was not opened")?,
            '(' if depth == 0 => return take(rest, text, at),
            blank if blank.is_ascii_whitespace() && depth == 0 => return take(rest, text, at),
            _ => {}
        }
    }
    if depth > 0 { Err("a bracket is not closed".to_owned()) } else { take(rest, text, text.len()) }
}

fn take<'a>(rest: &mut &'a str, text: &'a str, end: usize) -> Result<&'a str, String> {
    match text.split_at_checked(end) {
        Some((head, tail)) if !head.is_empty() => {
            *rest = tail;
            Ok(head)
        }
        _ => Err("the header is incomplete".to_owned()),
    }
}

fn parse_options(body: &str) -> Result<Vec<(&str, Option<&str>)>, String> {
    let mut options = Vec::new();
    let mut rest = body.trim();
    while !rest.is_empty() {
        let end = option_end(rest).ok_or("the last option does not end with a semicolon")?;
        let (option, tail) = rest.split_at_checked(end).ok_or("a broken option")?;
        rest = tail.strip_prefix(';').unwrap_or(tail).trim_start();
        let (name, value) = match option.split_once(':') {
            Some((name, value)) => (name.trim(), Some(value.trim())),
            None => (option.trim(), None),
        };
        if name.is_empty() || name.contains(|c: char| c.is_ascii_whitespace()) {
            return Err(format!("an option without a proper name: {}", shortened(option)));
        }
        if value.is_some_and(str::is_empty) {
            return Err(format!("{name}: nothing follows the colon"));
        }
        if options.len() >= MOST_OPTIONS {
            return Err(format!("more than {MOST_OPTIONS} options"));
        }
        options.push((name, value));
    }
    Ok(options)
}

/// Where the next semicolon without a backslash before it is.
fn option_end(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    (0..bytes.len()).find(|at| {
        bytes.get(*at) == Some(&b';') && at.checked_sub(1).is_none_or(|before| bytes.get(before) != Some(&b'\\'))
    })
}

pub(crate) fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Return what is between the quotes; the text itself where there are none; an error where one is missing.
pub(crate) fn unquoted(text: &str) -> Result<&str, String> {
    match text.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').ok_or_else(|| "the closing quote is missing".to_owned()),
        None if text.ends_with('"') => Err("the opening quote is missing".to_owned()),
        None => Ok(text),
    }
}

/// Remove the backslash before `;`, `"`, `\` and `:`. Any other escape is refused, as is a bare quote.
pub(crate) fn unescaped(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some(escaped @ (';' | '"' | '\\' | ':')) => out.push(escaped),
                Some(other) => {
                    out.push('\\');
                    out.push(other);
                }
                None => return Err("a backslash at the end".to_owned()),
            },
            other => out.push(other),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_and_comments_left_out() {
        let text = b"\xef\xbb\xbf# a\n\nalert \\\n  tcp \\  \r\n any\r\n  #x\\\nb\nlast \\";
        let lines: Vec<(u32, String)> = rule_lines(text).map(|(line, text)| (line, text.into_owned())).collect();
        assert_eq!(lines, [(3, "alert   tcp  any".to_owned()), (7, "b".to_owned()), (8, "last ".to_owned())]);
    }

    #[test]
    fn bytes_that_are_no_utf8_are_latin1() {
        let lines: Vec<String> = rule_lines(b"caf\xe9\ncaf\xc3\xa9").map(|(_, text)| text.into_owned()).collect();
        assert_eq!(lines, ["café", "café"]);
        let rule =
            rule_lines(b"(msg:\"\xe9\"; content:\"a\\\"\xe9\"; x:\"\xe9\";)").next().map(|(_, text)| text.into_owned());
        assert_eq!(rule.as_deref(), Some("(msg:\"é\"; content:\"a\\\"|e9|\"; x:\"é\";)"));
    }

    #[test]
    fn a_rule_falls_into_its_pieces() {
        let text =
            r#"alert tcp [1.2.3.4, !5.6.7.8] any -> $HOME_NET [80, 81](msg:"a\;b; \"c\""; nocase ; x: y ;sid:1;)"#;
        let rule = parse_rule(text);
        let options = vec![("msg", Some(r#""a\;b"#)), (r#"\"c\"""#, None)];
        assert_eq!(rule.as_ref().map(|rule| rule.source), Ok("[1.2.3.4, !5.6.7.8]"));
        assert_eq!(rule.as_ref().map(|rule| rule.destination_ports), Ok("[80, 81]"));
        assert_eq!(rule.map(|rule| rule.options.into_iter().take(2).collect()), Ok(options));
    }

    #[test]
    fn broken_rules_are_refused() {
        let rows = [
            "",
            "alert",
            "alert tcp any any -> any any",
            "alert tcp any any -> any any (sid:1;",
            "alert tcp any any -> any any sid:1;)",
            "alert tcp any any -> any any (sid:1)",
            "alert tcp any any -> any any (sid:;)",
            "alert tcp any any -> any any (:1;)",
            "alert tcp any any -> any any (a b:1;)",
            "alert tcp [any any -> any any (sid:1;)",
            "alert tcp any] any -> any any (sid:1;)",
        ];
        for row in rows {
            assert!(parse_rule(row).is_err(), "{row}");
        }
        assert!(parse_rule(&format!("alert tcp {} any -> any any (sid:1;)", "[".repeat(99))).is_err());
    }

    #[test]
    fn quotes_and_escapes() {
        assert_eq!(unquoted("\"a\""), Ok("a"));
        assert!(unquoted("\"a").is_err() && unquoted("a\"").is_err());
        assert_eq!(unescaped(r#"a\;b\"c\\d\:e\x"#), Ok(r#"a;b"c\d:e\x"#.to_owned()));
        assert!(unescaped("a\\").is_err());
    }
}
