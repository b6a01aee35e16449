//! Fields of a mail's header and the parameters in them (RFC 2045 section 5.1, RFC 2231).

use super::decode::hex;

/// Sections of one value that was cut into several (RFC 2231 section 3).
const MOST_SECTIONS: usize = 16;

/// A field.
#[derive(Clone, Debug)]
pub struct Field {
    /// In lower case.
    pub name: Box<[u8]>,
    /// Unfolded, without blanks at its ends.
    pub value: Box<[u8]>,
}

/// Return the value of a parameter, whole, whichever way it is written.
pub fn parameter(value: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let mut sections: Vec<(usize, Vec<u8>)> = Vec::new();
    for (key, content) in Parameters(skip_value(value)) {
        let Some(rest) =
            key.get(..name.len()).filter(|start| start.eq_ignore_ascii_case(name)).and(key.get(name.len()..))
        else {
            continue;
        };
        let (number, is_extended) = match rest {
            b"" => return Some(content),
            b"*" => (0, true),
            _ => {
                let Some(digits) = rest.strip_prefix(b"*") else { continue };
                let is_extended = digits.ends_with(b"*");
                let digits = digits.strip_suffix(b"*").unwrap_or(digits);
                match str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()) {
                    Some(number) => (number, is_extended),
                    None => continue,
                }
            }
        };
        if sections.len() < MOST_SECTIONS {
            let content = if is_extended { extended(&content, number == 0) } else { content };
            sections.push((number, content));
        }
    }
    sections.sort_by_key(|(number, _)| *number);
    let whole = sections.into_iter().flat_map(|(_, content)| content).collect::<Vec<u8>>();
    Some(whole).filter(|whole| !whole.is_empty())
}

/// `utf-8'en'a%20b`: the character set and the language are left out.
fn extended(content: &[u8], is_first: bool) -> Vec<u8> {
    let text = match is_first {
        true => content.splitn(3, |byte| *byte == b'\'').nth(2).unwrap_or(content),
        false => content,
    };
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text);
    while let [first, after @ ..] = rest {
        match (first, after.get(..2).and_then(hex)) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

/// Pass over what stands before the parameters.
fn skip_value(value: &[u8]) -> &[u8] {
    let end = value.iter().position(|byte| *byte == b';').unwrap_or(value.len());
    value.get(end..).unwrap_or_default()
}

/// Names and values behind semicolons.
struct Parameters<'d>(&'d [u8]);

impl<'d> Iterator for Parameters<'d> {
    type Item = (&'d [u8], Vec<u8>);

    fn next(&mut self) -> Option<(&'d [u8], Vec<u8>)> {
        loop {
            let begin = self.0.iter().position(|byte| !matches!(byte, b';' | b' ' | b'\t'))?;
            let rest = self.0.get(begin..)?;
            let end = rest.iter().position(|byte| matches!(byte, b'=' | b';')).unwrap_or(rest.len());
            let (name, after) = rest.split_at_checked(end)?;
            let Some(after) = after.strip_prefix(b"=") else {
                self.0 = after;
                continue;
            };
            let after = after.trim_ascii_start();
            let (value, after) = match after.strip_prefix(b"\"") {
                Some(quoted) => unquote(quoted),
                None => {
                    let end = after.iter().position(|byte| *byte == b';').unwrap_or(after.len());
                    let (value, after) = after.split_at_checked(end)?;
                    (value.trim_ascii().to_vec(), after)
                }
            };
            self.0 = after;
            return Some((name.trim_ascii(), value));
        }
    }
}

fn unquote(text: &[u8]) -> (Vec<u8>, &[u8]) {
    let (mut value, mut rest) = (Vec::new(), text);
    loop {
        rest = match rest {
            [] => return (value, rest),
            [b'"', after @ ..] => return (value, after),
            [b'\\', escaped @ (b'"' | b'\\'), after @ ..] => {
                value.push(*escaped);
                after
            }
            [byte, after @ ..] => {
                value.push(*byte);
                after
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_however_they_are_written() {
        let rows: [(&str, Option<&str>); 9] = [
            ("attachment; filename=\"a;b.txt\"", Some("a;b.txt")),
            ("attachment; x=1;FileName = plain.exe ; y", Some("plain.exe")),
            ("attachment; filename=\"open", Some("open")),
            ("attachment; filename=\"q\\\"q\"", Some("q\"q")),
            ("attachment; filename*=utf-8'en'a%20b%2e", Some("a b.")),
            ("attachment; filename*1=\"exe\"; filename*0=\"virus.\"", Some("virus.exe")),
            ("attachment; filename*0*=''%41; filename*1=B", Some("AB")),
            ("attachment; name=\"filename=x\"", None),
            ("filename=x", None),
        ];
        for (value, expected) in rows {
            let found = parameter(value.as_bytes(), b"filename");
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{value}");
        }
    }
}
