//! A request or a response.

use std::any::Any;

use memchr::{memchr, memmem};

use super::buffer;
use crate::{COMPLETE, Json, Transaction, View, Way};

/// Fields that rules can ask for; nothing else is kept.
pub static FIELDS: &[&[u8]] = &[b"from", b"to", b"via", b"user-agent", b"content-type", b"content-length"];
/// Their short names (RFC 3261 section 7.3.3).
static SHORT: &[&[u8]] = &[b"f", b"t", b"v", b"", b"c", b"l"];
/// Fields that are kept; each proxy adds a Via.
const MOST_FIELDS: usize = 64;
/// Bytes of a line that are kept.
const MOST_LINE: usize = 4096;

/// The first line, taken apart.
#[derive(Debug, Default)]
struct First {
    is_request: bool,
    line: Vec<u8>,
    protocol: Vec<u8>,
    /// The method, or the code.
    word: Vec<u8>,
    /// The address, or the reason.
    rest: Vec<u8>,
}

/// A request or a response.
#[derive(Debug)]
pub struct Message {
    way: Way,
    first: Option<First>,
    fields: Vec<(u8, Vec<u8>)>,
    /// The last line of the head is the beginning of a field that is kept.
    is_kept: bool,
    events: Vec<u8>,
}

/// Return where a head ends: behind its empty line.
pub fn head_end(data: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(end) = memchr(b'\n', data.get(at..)?) {
        let line = data.get(at..at + end)?;
        at += end + 1;
        if line.is_empty() || line == b"\r" {
            return Some(at);
        }
    }
    None
}

impl Message {
    /// Read one whose first line is well-formed.
    pub fn parse(way: Way, data: &[u8]) -> Option<Message> {
        let head = data.get(..head_end(data).unwrap_or(data.len()))?;
        let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let first = First::parse(lines.next()?)?;
        let mut message = Message { way, first: Some(first), fields: Vec::new(), is_kept: false, events: Vec::new() };
        lines.for_each(|line| message.add_line(line));
        Some(message)
    }

    /// Something that is none.
    pub fn broken(way: Way, event: u8) -> Message {
        Message { way, first: None, fields: Vec::new(), is_kept: false, events: vec![event] }
    }

    pub fn raise(&mut self, event: u8) {
        self.events.push(event);
    }

    fn add_line(&mut self, line: &[u8]) {
        let line = line.get(..line.len().min(MOST_LINE)).unwrap_or_default();
        if let Some(b' ' | b'\t') = line.first() {
            self.fold(line.trim_ascii());
            return;
        }
        self.is_kept = false;
        let Some(colon) = memchr(b':', line) else { return };
        let (name, value) = line.split_at_checked(colon).unwrap_or_default();
        let name = name.trim_ascii();
        let is_named =
            |names: &[&[u8]]| names.iter().position(|known| !known.is_empty() && name.eq_ignore_ascii_case(known));
        let Some(index) = is_named(FIELDS).or_else(|| is_named(SHORT)) else { return };
        if self.fields.len() < MOST_FIELDS {
            self.fields.push((index as u8, value.get(1..).unwrap_or_default().trim_ascii().to_vec()));
            self.is_kept = true;
        }
    }

    /// The field before goes on (RFC 3261 section 7.3.1).
    fn fold(&mut self, text: &[u8]) {
        if let Some((_, value)) = self.fields.last_mut().filter(|_| self.is_kept)
            && value.len() + text.len() < MOST_LINE
        {
            value.push(b' ');
            value.extend_from_slice(text);
        }
    }

    fn field(&self, index: usize, nth: usize) -> Option<&[u8]> {
        self.fields.iter().filter(|(which, _)| usize::from(*which) == index).nth(nth).map(|(_, value)| value.as_slice())
    }

    /// Return how long the body says it is.
    pub fn content_length(&self) -> u64 {
        let index = FIELDS.iter().position(|name| *name == b"content-length").unwrap_or(FIELDS.len());
        let text = self.field(index, 0).and_then(|text| str::from_utf8(text).ok());
        text.and_then(|text| text.parse::<u32>().ok()).map_or(0, u64::from)
    }

    pub fn heap_bytes(&self) -> usize {
        let first = self.first.as_ref().map_or(0, |first| first.line.len() * 2);
        let fields = self.fields.iter().map(|(_, value)| value.capacity() + size_of::<(u8, Vec<u8>)>());
        size_of::<Message>() + first + fields.sum::<usize>() + self.events.capacity()
    }
}

impl First {
    fn parse(line: &[u8]) -> Option<First> {
        let line = line.get(..line.len().min(MOST_LINE))?;
        if line.starts_with(b"SIP/") {
            let mut words = line.splitn(3, |byte| *byte == b' ');
            let (protocol, code) = (words.next()?, words.next()?);
            if code.len() != 3 || !code.iter().all(u8::is_ascii_digit) {
                return None;
            }
            return Some(First::new(false, line, protocol, code, words.next().unwrap_or_default()));
        }
        let space = memchr(b' ', line)?;
        let last = memmem::rfind(line, b" SIP/")?;
        let (method, uri) = (line.get(..space)?, line.get(space + 1..last)?);
        let is_method = !method.is_empty()
            && method.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._!%*+`'~".contains(byte));
        is_method.then(|| First::new(true, line, line.get(last + 1..).unwrap_or_default().trim_ascii(), method, uri))
    }

    fn new(is_request: bool, line: &[u8], protocol: &[u8], word: &[u8], rest: &[u8]) -> First {
        let [line, protocol, word, rest] = [line, protocol, word, rest].map(<[u8]>::to_vec);
        First { is_request, line, protocol, word, rest }
    }
}

impl Transaction for Message {
    fn progress(&self, _way: Way) -> u8 {
        COMPLETE
    }

    /// Phones call each other both ways: a request from the server's side has a request's buffers all the same.
    fn buffer(&self, index: usize, way: Way, nth: usize) -> Option<View<'_>> {
        let first = self.first.as_ref()?;
        let text = match index {
            buffer::METHOD | buffer::URI | buffer::REQUEST_LINE if !first.is_request || way != Way::ToServer => None,
            buffer::STAT_CODE | buffer::STAT_MSG | buffer::RESPONSE_LINE
                if first.is_request || way != Way::ToClient =>
            {
                None
            }
            buffer::METHOD | buffer::STAT_CODE => Some(first.word.as_slice()),
            buffer::URI | buffer::STAT_MSG => Some(first.rest.as_slice()),
            buffer::REQUEST_LINE | buffer::RESPONSE_LINE => Some(first.line.as_slice()),
            _ if way != self.way => None,
            buffer::PROTOCOL => Some(first.protocol.as_slice()),
            _ => return self.field(index.checked_sub(buffer::FIELDS)?, nth).map(View::whole),
        };
        text.filter(|text| nth == 0 && !text.is_empty()).map(View::whole)
    }

    fn events(&self) -> &[u8] {
        &self.events
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        json.open("sip");
        if let Some(first) = &self.first {
            let names =
                if first.is_request { ["method", "uri", "request_line"] } else { ["code", "reason", "response_line"] };
            json.text(names[0], &first.word);
            json.text(names[1], &first.rest);
            json.text("version", &first.protocol);
            json.text(names[2], &first.line);
        }
        json.close();
    }

    fn is_logged(&self, record: usize) -> bool {
        self.first.is_some() && record == self.way as usize
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
