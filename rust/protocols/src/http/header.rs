//! The header of a message: its fields, and the texts that rules see of them.

use std::cell::OnceCell;

use memchr::memchr;

use super::line::{is_fold, is_space, trim, trim_end};

/// The default of `http.headers-limit`.
const MOST_FIELDS: usize = 1024;
/// As the reference library: a field's further repetitions add nothing.
const MOST_REPETITIONS: u16 = 64;
/// Bytes of one message's header that are kept: seven times the usual limit of one line. What follows is not seen.
const MOST_BYTES: usize = 128 << 10;

/// One field: repeated ones are one, with their values joined by a comma.
#[derive(Debug)]
pub struct Field {
    text: Vec<u8>,
    name_bytes: usize,
    repetitions: u16,
}

impl Field {
    /// The name as written.
    pub fn name(&self) -> &[u8] {
        self.text.get(..self.name_bytes).unwrap_or_default()
    }

    /// The value without white space around it.
    pub fn value(&self) -> &[u8] {
        self.text.get(self.name_bytes + 2..).unwrap_or_default()
    }

    /// `Name: value`.
    pub fn text(&self) -> &[u8] {
        &self.text
    }
}

/// What was wrong with a field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Flaw {
    ColonMissing,
    NameInvalid,
    Repeated,
    DifferentLength,
    TooMany,
}

/// Fields in the order of their first occurrence.
#[derive(Debug, Default)]
pub struct Header {
    fields: Vec<Field>,
    raw: Vec<u8>,
    bytes: usize,
    is_length_ambiguous: bool,
    lines: OnceCell<Vec<u8>>,
    names: OnceCell<Vec<u8>>,
    start: OnceCell<Vec<u8>>,
}

/// Return whether a name means the same as `key`: case does not matter, nor does what is not allowed in names, since
/// browsers differ in whether they see `Content-Encoding` in `Content\0-Encoding`.
fn is_name(name: &[u8], key: &[u8]) -> bool {
    if name.eq_ignore_ascii_case(key) {
        return true;
    }
    let letters = || name.iter().filter(|byte| is_token(**byte));
    name.len() > key.len()
        && letters().count() == key.len()
        && letters().zip(key).all(|(a, b)| a.eq_ignore_ascii_case(b))
}

/// Return whether a byte may be part of a name (RFC 9110 section 5.6.2).
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Return whether a line can be nothing but a field: `Name: …`.
pub fn is_field(line: &[u8]) -> bool {
    memchr(b':', line).is_some_and(|at| at > 0 && line.iter().take(at).all(|byte| is_token(*byte)))
}

impl Header {
    /// Keep the bytes of a line as they came.
    pub fn add_raw(&mut self, bytes: &[u8]) {
        let room = MOST_BYTES.saturating_sub(self.raw.len());
        self.raw.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
    }

    /// Take a line (folded ones already put together) as a field.
    pub fn add(&mut self, line: &[u8]) -> Result<(), Flaw> {
        let colon = memchr(b':', line);
        let name = trim_end(line.get(..colon.unwrap_or(0)).unwrap_or_default());
        let value = trim(line.get(colon.map_or(0, |at| at + 1)..).unwrap_or_default());
        if colon.is_none() && trim(line).is_empty() {
            return Ok(());
        }
        self.insert(name, value)?;
        match colon {
            None => Err(Flaw::ColonMissing),
            Some(at) if name.is_empty() || !line.iter().take(at).all(|byte| is_token(*byte)) => Err(Flaw::NameInvalid),
            Some(_) => Ok(()),
        }
    }

    fn insert(&mut self, name: &[u8], value: &[u8]) -> Result<(), Flaw> {
        self.bytes += name.len() + value.len() + 2;
        if self.bytes > MOST_BYTES {
            return Err(Flaw::TooMany);
        }
        (self.lines, self.names, self.start) = Default::default();
        let same = self.fields.iter_mut().find(|field| is_name(name, field.name()));
        let Some(field) = same else {
            if self.fields.len() >= MOST_FIELDS {
                return Err(Flaw::TooMany);
            }
            let text = [name, b": ", value].concat();
            self.fields.push(Field { text, name_bytes: name.len(), repetitions: 0 });
            return Ok(());
        };
        field.repetitions = field.repetitions.saturating_add(1);
        if is_name(name, b"content-length") {
            // the first one counts, and a list of numbers is no length
            let is_same = number(field.value()) == number(value);
            self.is_length_ambiguous |= !is_same;
            return if is_same { Ok(()) } else { Err(Flaw::DifferentLength) };
        }
        if field.repetitions > MOST_REPETITIONS {
            return Err(Flaw::Repeated);
        }
        field.text.extend_from_slice(b", ");
        field.text.extend_from_slice(value);
        Ok(())
    }

    /// Return a field's value; `key` in lower case.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.fields.iter().find(|field| is_name(field.name(), key)).map(Field::value)
    }

    /// Return whether others may read another `Content-Length` in it than the first number.
    pub fn is_length_ambiguous(&self) -> bool {
        let is_odd = |value: &[u8]| !value.iter().all(u8::is_ascii_digit);
        self.is_length_ambiguous || self.get(b"content-length").is_some_and(is_odd)
    }

    /// All fields.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// As it came, the empty line included.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// `Name: value` and a line end for each field but `without`.
    pub fn lines(&self, without: &[u8]) -> &[u8] {
        self.lines.get_or_init(|| {
            let fields = self.fields.iter().filter(|field| !field.name().eq_ignore_ascii_case(without));
            fields.flat_map(|field| [field.text(), b"\r\n"]).flatten().copied().collect()
        })
    }

    /// An empty line, the names one by line, an empty line.
    pub fn names(&self) -> &[u8] {
        self.names.get_or_init(|| {
            let mut names = b"\r\n".to_vec();
            for field in &self.fields {
                names.extend_from_slice(field.name());
                names.extend_from_slice(b"\r\n");
            }
            names.extend_from_slice(b"\r\n");
            names
        })
    }

    /// The first line, all fields, an empty line.
    pub fn start(&self, line: &[u8]) -> &[u8] {
        self.start.get_or_init(|| {
            let mut start = [line, b"\r\n"].concat();
            for field in &self.fields {
                start.extend_from_slice(field.text());
                start.extend_from_slice(b"\r\n");
            }
            start.extend_from_slice(b"\r\n");
            start
        })
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        let made = [&self.lines, &self.names, &self.start].map(|cell| cell.get().map_or(0, Vec::capacity));
        let fields = self.fields.iter().map(|field| field.text.capacity()).sum::<usize>();
        self.raw.capacity() + self.fields.capacity() * size_of::<Field>() + fields + made.iter().sum::<usize>()
    }
}

/// Return the first number in a text, whatever is around it: `34( 68)` is 34.
pub fn number(text: &[u8]) -> Option<u64> {
    let digits = text.iter().skip_while(|byte| !byte.is_ascii_digit()).take_while(|byte| byte.is_ascii_digit());
    let mut value = None;
    for digit in digits {
        value = Some(value.unwrap_or(0_u64).checked_mul(10)?.checked_add(u64::from(digit - b'0'))?);
    }
    value
}

/// What to do with a line of a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A field begins.
    Field,
    /// It belongs to the line before.
    Fold,
    /// It says nothing.
    Nothing,
    /// The header is over.
    End,
    /// More must be seen to say.
    Unknown,
}

/// A line this long behind an empty fold is no field: no need to wait for its end.
const LONG: usize = 1024;

/// Return what a line is; `rest` is what follows. A line of blanks is an empty fold if the header goes on behind it;
/// some browsers take it for the end if it does not.
pub fn kind(text: &[u8], has_feed: bool, rest: &[u8], is_end: bool) -> Kind {
    let is_blank = text.iter().all(|byte| is_fold(*byte));
    match text.first() {
        None if has_feed => Kind::End,
        _ if is_blank && !has_feed => Kind::Nothing,
        Some(_) if is_blank => {
            let next = memchr(b'\n', rest).and_then(|at| rest.get(..at));
            match next {
                Some(next) => kind_after_blank(next),
                None if is_end || rest.len() > LONG => Kind::End,
                None => Kind::Unknown,
            }
        }
        Some(first) if is_fold(*first) => Kind::Fold,
        _ => Kind::Field,
    }
}

fn kind_after_blank(next: &[u8]) -> Kind {
    let goes_on = trim(next).is_empty() || is_field(next) || next.first().is_some_and(|byte| is_space(*byte));
    if goes_on { Kind::Nothing } else { Kind::End }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_fields_are_joined_and_the_first_length_counts() {
        let mut header = Header::default();
        for line in ["Host: a", "X: 1", "x:2 ", "Content-Length: 5"] {
            assert_eq!(header.add(line.as_bytes()), Ok(()));
        }
        assert_eq!(header.add(b"content-length: 6"), Err(Flaw::DifferentLength));
        assert_eq!(header.add(b"nothing"), Err(Flaw::ColonMissing));
        assert_eq!(header.add(b"Bad Name: v"), Err(Flaw::NameInvalid));
        assert_eq!(header.get(b"x"), Some(&b"1, 2"[..]));
        assert_eq!(header.get(b"content-length"), Some(&b"5"[..]));
        assert_eq!(header.names(), b"\r\nHost\r\nX\r\nContent-Length\r\n\r\nBad Name\r\n\r\n");
        assert!(header.lines(b"host").starts_with(b"X: 1, 2\r\nContent-Length: 5\r\n"));
        assert!(header.start(b"GET / HTTP/1.0").starts_with(b"GET / HTTP/1.0\r\nHost: a\r\n"));
    }

    #[test]
    fn names_mean_the_same_with_what_does_not_belong_in_them() {
        let mut header = Header::default();
        let _ = header.add(b"Content\0-Encoding\x0c :gzip");
        assert_eq!(header.get(b"content-encoding"), Some(&b"gzip"[..]));
        assert_eq!(header.get(b"content-encodin"), None);
    }

    #[test]
    fn a_line_of_blanks_ends_the_header_only_if_no_field_follows() {
        let rows: [(&[u8], bool, &[u8], Kind); 9] = [
            (b"", true, b"", Kind::End),
            (b"", false, b"", Kind::Nothing),
            (b" ", true, b"Connection: close\r\n", Kind::Nothing),
            (b" ", true, b"\n4\r\n", Kind::Nothing),
            (b"\t", true, b"4\r\nX5O!\r\n", Kind::End),
            (b" ", true, b" chunked\r\n", Kind::Nothing),
            (b" ", true, b"4", Kind::Unknown),
            (b" chunked", true, b"", Kind::Fold),
            (b"a: b", true, b"", Kind::Field),
        ];
        for (text, has_feed, rest, expected) in rows {
            assert_eq!(kind(text, has_feed, rest, false), expected, "{text:?} {rest:?}");
        }
    }

    #[test]
    fn what_is_held_is_bounded() {
        let mut header = Header::default();
        for index in 0..20_000 {
            let line = format!("name-{index}: {}", "v".repeat(300));
            header.add_raw(line.as_bytes());
            let _ = header.add(line.as_bytes());
        }
        assert!(header.heap_bytes() < 4 * MOST_BYTES, "{}", header.heap_bytes());
        assert_eq!(header.add(b"one: more"), Err(Flaw::TooMany));
    }

    #[test]
    fn numbers_are_found_in_what_is_around_them() {
        let rows: [(&str, Option<u64>); 6] = [
            ("34( 68)", Some(34)),
            ("(68) 34", Some(68)),
            ("34 68", Some(34)),
            ("", None),
            ("x", None),
            ("99999999999999999999", None),
        ];
        for (text, expected) in rows {
            assert_eq!(number(text.as_bytes()), expected, "{text}");
        }
    }
}
