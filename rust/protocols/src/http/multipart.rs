//! Files in `multipart/form-data` requests (RFC 7578), and the parameters that name them.

use memchr::{memchr, memmem};

use super::event::Event;
use super::line::{is_space, trim};

/// RFC 2046 section 5.1.1 allows 70; some clients do not care.
const MOST_BOUNDARY: usize = 200;
/// Three fields, one of them with a file's name.
const MOST_PART_HEADER: usize = 8 << 10;

/// What happens in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// A file of that name begins.
    Begin(&'a [u8]),
    /// Some of its content.
    Data(&'a [u8]),
    /// It is all there.
    End,
    /// Something was wrong.
    Flaw(Event),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Before,
    Boundary,
    Header,
    Data { is_file: bool, is_empty: bool },
    Over,
}

/// A body of several parts that arrives piece by piece.
pub struct Multipart {
    boundary: Vec<u8>,
    held: Vec<u8>,
    state: State,
}

impl Multipart {
    /// Begin, if that is what the content type says.
    pub fn new(content_type: &[u8]) -> Option<Multipart> {
        let kind = content_type.get(..b"multipart/form-data".len())?;
        if !kind.eq_ignore_ascii_case(b"multipart/form-data") {
            return None;
        }
        let boundary = parameter(content_type, b"boundary")?;
        if boundary.is_empty() || boundary.len() > MOST_BOUNDARY {
            return None;
        }
        Some(Multipart { boundary: [b"--", boundary].concat(), held: Vec::new(), state: State::Before })
    }

    /// Take a piece.
    pub fn feed(&mut self, data: &[u8], sink: &mut dyn FnMut(Part<'_>)) {
        if self.state == State::Over {
            return;
        }
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(data);
        let mut at = 0;
        while let Some(count) = self.step(held.get(at..).unwrap_or_default(), sink) {
            at += count;
        }
        if self.state != State::Over {
            held.drain(..at.min(held.len()));
            self.held = held;
        }
    }

    /// Nothing more will come.
    pub fn end(&mut self, sink: &mut dyn FnMut(Part<'_>)) {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Data { is_file: true, .. } if !held.is_empty() => sink(Part::Data(&held)),
            State::Before => sink(Part::Flaw(Event::MultipartError)),
            _ => {}
        }
        self.state = State::Over;
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.boundary.capacity() + self.held.capacity()
    }

    /// Read some of `rest` and return how much; `None` where more is needed.
    fn step(&mut self, rest: &[u8], sink: &mut dyn FnMut(Part<'_>)) -> Option<usize> {
        match self.state {
            State::Over => None,
            State::Before => match memmem::find(rest, &self.boundary) {
                Some(found) => {
                    self.state = State::Boundary;
                    Some(found + self.boundary.len())
                }
                None => Some(rest.len().saturating_sub(self.boundary.len())).filter(|count| *count > 0),
            },
            State::Boundary => {
                if rest.starts_with(b"--") {
                    self.state = State::Over;
                    return None;
                }
                let end = memchr(b'\n', rest)?;
                self.state = State::Header;
                Some(end + 1)
            }
            State::Header => self.header(rest, sink),
            State::Data { is_file, is_empty } => self.data(rest, is_file, is_empty, sink),
        }
    }

    fn header(&mut self, rest: &[u8], sink: &mut dyn FnMut(Part<'_>)) -> Option<usize> {
        let Some((end, bytes)) = blank_line(rest) else {
            if rest.len() > MOST_PART_HEADER {
                sink(Part::Flaw(Event::MultipartHeader));
                self.state = State::Over;
            }
            return None;
        };
        let lines = rest.get(..end).unwrap_or_default().split(|byte| *byte == b'\n');
        let mut name = None;
        let mut has_disposition = false;
        for line in lines.map(trim).filter(|line| !line.is_empty()) {
            let colon = memchr(b':', line).unwrap_or(line.len());
            let (field, value) = line.split_at(colon);
            if trim(field).eq_ignore_ascii_case(b"content-disposition") {
                has_disposition = true;
                name = parameter(value, b"filename");
            }
        }
        if !has_disposition {
            sink(Part::Flaw(Event::MultipartHeader));
        }
        let name = name.filter(|name| !name.is_empty());
        if let Some(name) = name {
            sink(Part::Begin(name));
        }
        self.state = State::Data { is_file: name.is_some(), is_empty: true };
        Some(bytes)
    }

    fn data(&mut self, rest: &[u8], is_file: bool, is_empty: bool, sink: &mut dyn FnMut(Part<'_>)) -> Option<usize> {
        let Some(found) = memmem::find(rest, &self.boundary) else {
            // the boundary with its line end may be at the end, incomplete
            let count = rest.len().checked_sub(self.boundary.len() + 2).filter(|count| *count > 0)?;
            if is_file {
                sink(Part::Data(rest.get(..count).unwrap_or_default()));
            }
            self.state = State::Data { is_file, is_empty: false };
            return Some(count);
        };
        let mut content = rest.get(..found).unwrap_or_default();
        content = content.strip_suffix(b"\n").unwrap_or(content);
        content = content.strip_suffix(b"\r").unwrap_or(content);
        if is_file {
            match content.is_empty() {
                true if is_empty => sink(Part::Flaw(Event::MultipartNoData)),
                true => {}
                false => sink(Part::Data(content)),
            }
            sink(Part::End);
        }
        self.state = State::Boundary;
        Some(found + self.boundary.len())
    }
}

/// Return where the header of a part ends, and where its content begins.
fn blank_line(text: &[u8]) -> Option<(usize, usize)> {
    let mut at = 0;
    while let Some(end) = memchr(b'\n', text.get(at..)?) {
        if trim(text.get(at..at + end)?).is_empty() {
            return Some((at, at + end + 1));
        }
        at += end + 1;
    }
    None
}

/// Return the value of a parameter: `; name=value` or `; name="value"`.
pub fn parameter<'a>(text: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut rest = text;
    loop {
        rest = rest.get(memchr(b';', rest)? + 1..)?;
        let equals = memchr(b'=', rest)?;
        // a name does not reach over a semicolon: look again behind it
        if memchr(b';', rest.get(..equals)?).is_some() {
            continue;
        }
        let value = rest.get(equals + 1..)?;
        let blanks = value.iter().take_while(|byte| is_space(**byte)).count();
        let value = value.get(blanks..)?;
        let (value, after) = match value.strip_prefix(b"\"") {
            Some(quoted) => {
                let end = memchr(b'"', quoted).unwrap_or(quoted.len());
                (quoted.get(..end)?, quoted.get(end..)?)
            }
            None => {
                let end = memchr(b';', value).unwrap_or(value.len());
                (trim(value.get(..end)?), value.get(end..)?)
            }
        };
        if trim(rest.get(..equals)?).eq_ignore_ascii_case(name) {
            return Some(value);
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pieces: &[&[u8]]) -> Vec<String> {
        let Some(mut multipart) = Multipart::new(b"multipart/form-data; boundary=\"XX\"") else { return Vec::new() };
        let (mut seen, mut content) = (Vec::new(), Vec::new());
        let mut sink = |part: Part<'_>| match part {
            Part::Data(data) => content.extend_from_slice(data),
            Part::End => seen.push(String::from_utf8_lossy(&std::mem::take(&mut content)).into_owned()),
            Part::Begin(name) => seen.push(String::from_utf8_lossy(name).into_owned()),
            Part::Flaw(event) => seen.push(format!("{event:?}")),
        };
        pieces.iter().for_each(|piece| multipart.feed(piece, &mut sink));
        multipart.end(&mut sink);
        seen
    }

    const BODY: &[u8] = b"preamble\r\n--XX\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nfield\r\n--XX\r\n\
        Content-Disposition: form-data; name=\"f\"; filename=\"a;b.txt\"\r\nContent-Type: text/plain\r\n\r\n\
        one\r\n--X two\r\n--XX\r\nContent-Disposition: form-data; filename=b\r\n\r\n\r\n--XX--\r\n";

    #[test]
    fn files_are_found_however_the_body_is_cut() {
        let expected = ["a;b.txt", "one\r\n--X two", "b", "MultipartNoData", ""];
        assert_eq!(run(&[BODY]), expected);
        for at in 0..BODY.len() {
            assert_eq!(run(&[&BODY[..at], &BODY[at..]]), expected, "{at}");
        }
        let bytes: Vec<&[u8]> = BODY.chunks(1).collect();
        assert_eq!(run(&bytes), expected);
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(run(&[b"no boundary"]), ["MultipartError"]);
        assert_eq!(run(&[b"--XX\r\nFoo: bar\r\n\r\nx\r\n--XX--"]), ["MultipartHeader"]);
        assert_eq!(run(&[b"--XX\r\n", &[b'a'; MOST_PART_HEADER + 1]]), ["MultipartHeader"]);
    }

    #[test]
    fn parameters_are_found() {
        let rows: [(&[u8], Option<&[u8]>); 5] = [
            (b"attachment; filename=\"eicar.txt\"", Some(b"eicar.txt")),
            (b"attachment;x;FileName = a b ", Some(b"a b")),
            (b"attachment; filename=\"open", Some(b"open")),
            (b"attachment; name=\"a; filename=b\"", None),
            (b"filename=a", None),
        ];
        for (text, expected) in rows {
            assert_eq!(parameter(text, b"filename"), expected, "{text:?}");
        }
    }
}
