//! A mail: its header, its parts, and what is attached.

use memchr::{memchr, memmem};

use super::decode::{Decoder, Encoding, Piece};
use super::event;
use super::field::{Field, parameter};
use crate::line::begins;
use crate::{Body, BodyState, Way};

/// Longer lines are taken in pieces; RFC 5322 section 2.1.1 allows 998 bytes, encoded attachments without breaks occur.
const MOST_LINE: usize = 4096;
/// RFC 5322 section 2.1.1.
const FAIR_LINE: usize = 998;
/// The reference's limits of a field's name and value (its `header-value-depth`).
const MOST_NAME: usize = 75;
const MOST_VALUE: usize = 2000;
/// Fields of the mail's own header that are kept; each relay adds one or two.
const MOST_FIELDS: usize = 128;
/// Multipart in multipart, and mails in mails. Deeper ones are not looked into.
const MOST_DEPTH: usize = 10;
/// RFC 2046 section 5.1.1 allows 70; the reference takes 254.
const MOST_BOUNDARY: usize = 254;
/// The reference's limit of a file's name.
const MOST_FILE_NAME: usize = 255;
/// Files of one mail that are told apart.
const MOST_FILES: usize = 32;
/// The default of `inspected-tracker.content-limit`: bytes of one file that are held for rules.
const MOST_FILE: usize = 100_000;
/// Bytes of all files of one mail; when they are used up, later ones have the least.
const FILES_BUDGET: usize = 256 << 10;
const LEAST_FILE: usize = 4096;
/// Addresses of the web in one mail.
const MOST_URLS: usize = 32;
const MOST_URL: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Body,
    /// Between the parts.
    Between,
}

/// What a part's header says about it.
#[derive(Debug, Default)]
struct Part {
    encoding: Encoding,
    kind: Vec<u8>,
    boundary: Option<Vec<u8>>,
    file_name: Option<Vec<u8>>,
}

/// A mail that arrives piece by piece.
#[derive(Debug)]
pub struct Mime {
    state: State,
    held: Vec<u8>,
    /// The beginning of the line at hand was taken before.
    is_inside_line: bool,
    field: Vec<u8>,
    is_field_cut: bool,
    part: Part,
    decoder: Decoder,
    boundaries: Vec<Vec<u8>>,
    mails: usize,
    is_top: bool,
    has_open_file: bool,
    is_over: bool,
    /// Bytes that came.
    pub size: u64,
    /// The mail's own header.
    pub fields: Vec<Field>,
    /// What is attached.
    pub files: Vec<Body>,
    /// Addresses of the web, without their schemes.
    pub urls: Vec<Box<[u8]>>,
    /// What was wrong.
    pub events: Vec<u8>,
}

impl Mime {
    pub fn new() -> Mime {
        Mime {
            state: State::Header,
            held: Vec::new(),
            is_inside_line: false,
            field: Vec::new(),
            is_field_cut: false,
            part: Part::default(),
            decoder: Decoder::default(),
            boundaries: Vec::new(),
            mails: 1,
            is_top: true,
            has_open_file: false,
            is_over: false,
            size: 0,
            fields: Vec::new(),
            files: Vec::new(),
            urls: Vec::new(),
            events: Vec::new(),
        }
    }

    /// The mail's own header is complete.
    pub fn has_header(&self) -> bool {
        !self.is_top
    }

    /// Return EVE's word for how far it is.
    pub fn status(&self) -> &'static str {
        match (self.is_over, self.state) {
            (true, _) => "PARSE_DONE",
            (false, State::Header) => "HEADER_STARTED",
            (false, _) => "BODY_STARTED",
        }
    }

    /// Return the first field of that name (in lower case).
    pub fn field(&self, name: &[u8]) -> Option<&[u8]> {
        self.fields.iter().find(|field| *field.name == *name).map(|field| &*field.value)
    }

    /// Return all fields of that name.
    pub fn all_fields<'m>(&'m self, name: &'m [u8]) -> impl Iterator<Item = &'m [u8]> {
        self.fields.iter().filter(move |field| *field.name == *name).map(|field| &*field.value)
    }

    /// Take a piece.
    pub fn feed(&mut self, data: &[u8]) {
        self.size = self.size.saturating_add(data.len() as u64);
        let mut rest = data;
        while !rest.is_empty() {
            let room = MOST_LINE - self.held.len().min(MOST_LINE - 1);
            let seen = rest.get(..rest.len().min(room)).unwrap_or_default();
            let end = memchr(b'\n', seen);
            let (line, after) = rest.split_at_checked(end.map_or(seen.len(), |end| end + 1)).unwrap_or((rest, &[]));
            rest = after;
            if self.held.is_empty() && end.is_some() {
                self.line(line);
                continue;
            }
            self.held.extend_from_slice(line);
            if end.is_some() || self.held.len() >= MOST_LINE {
                let held = std::mem::take(&mut self.held);
                self.line(&held);
                self.held = held;
                self.held.clear();
            }
        }
    }

    /// Bytes are missing here.
    pub fn gap(&mut self, bytes: u64) {
        self.held.clear();
        self.is_inside_line = true;
        if let Some(file) = self.files.last_mut().filter(|file| file.state == BodyState::Open) {
            file.has_gaps = true;
            file.size = file.size.saturating_add(bytes);
        }
    }

    /// The mail is over; `is_whole`: its end was seen.
    pub fn finish(&mut self, is_whole: bool) {
        if self.is_over {
            return;
        }
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            self.line(&held);
        }
        if self.state == State::Header {
            self.end_field();
            self.is_top = false;
        }
        self.end_part(if is_whole { BodyState::Closed } else { BodyState::Truncated });
        if is_whole && !self.boundaries.is_empty() {
            self.raise(event::MALFORMED_MIME);
        }
        self.boundaries = Vec::new();
        self.is_over = is_whole;
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        let fields = self.fields.iter().map(|field| field.name.len() + field.value.len() + size_of::<Field>());
        let texts = [&self.held, &self.field, &self.part.kind].map(Vec::capacity);
        fields.sum::<usize>()
            + texts.iter().sum::<usize>()
            + self.boundaries.iter().map(Vec::capacity).sum::<usize>()
            + self.files.iter().map(|file| file.heap_bytes() + size_of::<Body>()).sum::<usize>()
            + self.urls.iter().map(|url| url.len() + size_of::<Box<[u8]>>()).sum::<usize>()
    }

    fn raise(&mut self, event: u8) {
        if !self.events.contains(&event) {
            self.events.push(event);
        }
    }

    /// A line with its end, or a piece of one that is too long.
    fn line(&mut self, line: &[u8]) {
        let (text, line_end): (&[u8], Option<&'static [u8]>) = match line.strip_suffix(b"\n") {
            Some(text) => match text.strip_suffix(b"\r") {
                Some(text) => (text, Some(b"\r\n")),
                None => (text, Some(b"\n")),
            },
            None => (line, None),
        };
        let is_start = !std::mem::replace(&mut self.is_inside_line, line_end.is_none());
        if is_start && text.len() > FAIR_LINE {
            let is_encoded = self.state == State::Body && self.decoder.encoding() != Encoding::Plain;
            self.raise(if is_encoded { event::LONG_ENCODED_LINE } else { event::LONG_LINE });
        }
        if is_start && text.starts_with(b"--") && self.boundary(text) {
            return;
        }
        match self.state {
            State::Between => {}
            State::Header => self.header_line(text, is_start),
            State::Body => self.content(Piece { text, line_end }),
        }
    }

    /// Return whether the line is a boundary of this multipart or of one around it.
    fn boundary(&mut self, line: &[u8]) -> bool {
        let line = line.trim_ascii_end();
        let inner = line.strip_suffix(b"--").unwrap_or(line);
        let found = self.boundaries.iter().rposition(|boundary| boundary == line || boundary == inner);
        let Some(index) = found else { return false };
        let is_last = self.boundaries.get(index).is_some_and(|boundary| boundary != line);
        if self.state == State::Header {
            self.end_field();
        }
        self.end_part(BodyState::Closed);
        self.boundaries.truncate(if is_last { index } else { index + 1 });
        self.part = Part::default();
        self.state = if is_last { State::Between } else { State::Header };
        true
    }

    fn header_line(&mut self, text: &[u8], is_start: bool) {
        if !is_start {
            self.is_field_cut = true;
            return;
        }
        if text.is_empty() {
            self.end_field();
            self.end_header();
            return;
        }
        if !matches!(text.first(), Some(b' ' | b'\t')) {
            self.end_field();
        }
        let room = (MOST_NAME + MOST_VALUE + 2).saturating_sub(self.field.len());
        self.is_field_cut |= text.len() > room;
        self.field.extend_from_slice(text.get(..text.len().min(room)).unwrap_or_default());
    }

    fn end_field(&mut self) {
        let text = std::mem::take(&mut self.field);
        let is_cut = std::mem::take(&mut self.is_field_cut);
        if text.is_empty() {
            return;
        }
        let Some(colon) = memchr(b':', &text) else {
            self.raise(event::MALFORMED_MIME);
            return;
        };
        let (name, value) = text.split_at_checked(colon).unwrap_or_default();
        let (name, value) = (name.trim_ascii().to_ascii_lowercase(), value.get(1..).unwrap_or_default().trim_ascii());
        if name.len() > MOST_NAME {
            self.raise(event::LONG_NAME);
            return;
        }
        if is_cut || value.len() > MOST_VALUE {
            self.raise(event::LONG_VALUE);
        }
        let value = value.get(..value.len().min(MOST_VALUE)).unwrap_or_default();
        self.describe_part(&name, value);
        if self.is_top {
            let is_single = matches!(&*name, b"from" | b"to" | b"cc" | b"subject" | b"date" | b"message-id");
            if is_single && self.field(&name).is_some() {
                self.raise(event::DUPLICATE_FIELDS);
            }
            if self.fields.len() < MOST_FIELDS {
                self.fields.push(Field { name: name.into(), value: value.into() });
            }
        }
    }

    fn describe_part(&mut self, name: &[u8], value: &[u8]) {
        match name {
            b"content-transfer-encoding" => self.part.encoding = Encoding::named(value),
            b"content-type" => {
                let end = memchr(b';', value).unwrap_or(value.len());
                self.part.kind = value.get(..end).unwrap_or_default().trim_ascii().to_ascii_lowercase();
                self.part.boundary = parameter(value, b"boundary").filter(|boundary| !boundary.is_empty());
                if self.part.file_name.is_none() {
                    self.part.file_name = parameter(value, b"name");
                }
            }
            b"content-disposition" => {
                if let Some(name) = parameter(value, b"filename") {
                    self.part.file_name = Some(name);
                }
            }
            _ => {}
        }
    }

    fn end_header(&mut self) {
        self.is_top = false;
        self.state = State::Body;
        self.decoder = Decoder::new(self.part.encoding);
        let is_multipart = begins(&self.part.kind, b"multipart/");
        if let Some(boundary) = self.part.boundary.take().filter(|_| is_multipart) {
            if boundary.len() > MOST_BOUNDARY {
                self.raise(event::LONG_BOUNDARY);
            } else if self.boundaries.len() >= MOST_DEPTH {
                self.raise(event::MALFORMED_MIME);
            } else {
                self.boundaries.push([b"--", boundary.as_slice()].concat());
                self.state = State::Between;
            }
            return;
        }
        if let Some(name) = self.part.file_name.take().filter(|name| !name.is_empty()) {
            self.open_file(&name);
        } else if self.part.kind == b"message/rfc822" && self.mails < MOST_DEPTH {
            self.mails += 1;
            self.part = Part::default();
            self.state = State::Header;
        }
    }

    fn open_file(&mut self, name: &[u8]) {
        if name.len() > MOST_FILE_NAME {
            self.raise(event::LONG_FILE_NAME);
        }
        if self.files.len() >= MOST_FILES {
            return;
        }
        let held: usize = self.files.iter().map(Body::heap_bytes).sum();
        let most = FILES_BUDGET.saturating_sub(held).clamp(LEAST_FILE, MOST_FILE);
        let name = name.get(..name.len().min(MOST_FILE_NAME)).unwrap_or_default();
        self.files.push(Body::new(name, Way::ToServer, most));
        self.has_open_file = true;
    }

    fn content(&mut self, piece: Piece<'_>) {
        let mut out = Vec::with_capacity(piece.text.len() + 2);
        if !self.decoder.decode(piece, &mut out) {
            let is_base64 = self.decoder.encoding() == Encoding::Base64;
            self.raise(if is_base64 { event::INVALID_BASE64 } else { event::INVALID_QP });
        }
        self.put(&out);
    }

    fn put(&mut self, out: &[u8]) {
        if self.has_open_file {
            if let Some(file) = self.files.last_mut() {
                file.append(out);
            }
        } else if self.part.kind.is_empty() || begins(&self.part.kind, b"text/") {
            self.find_urls(out);
        }
    }

    fn end_part(&mut self, state: BodyState) {
        if self.state != State::Body {
            return;
        }
        let mut out = Vec::new();
        self.decoder.finish(&mut out);
        self.put(&out);
        if std::mem::take(&mut self.has_open_file)
            && let Some(file) = self.files.last_mut()
        {
            file.close(if file.has_gaps { BodyState::Truncated } else { state });
        }
    }

    /// Addresses within one line of decoded text.
    fn find_urls(&mut self, text: &[u8]) {
        let mut rest = text;
        while let Some(at) = memmem::find(rest, b"://").filter(|_| self.urls.len() < MOST_URLS) {
            let before = rest.get(..at).unwrap_or_default();
            rest = rest.get(at + 3..).unwrap_or_default();
            let end = rest.iter().position(|byte| !byte.is_ascii_graphic() || b"\"<>'`{}|\\^".contains(byte));
            let url = rest.get(..end.unwrap_or(rest.len()).min(MOST_URL)).unwrap_or_default();
            let is_web = before.last_chunk::<4>().is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"http"));
            if is_web && !url.is_empty() && !self.urls.iter().any(|known| **known == *url) {
                self.urls.push(url.into());
            }
        }
    }
}
