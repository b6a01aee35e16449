//! The parts of a mail: RFC 5322 (headers), RFC 2046 section 5.1 (multipart), RFC 2183 (attachments).

use super::decode::{Base64, Encoding, quoted_printable};
use super::event;
use crate::framed::Events;
use crate::{Body, BodyState, Way};

/// Multiparts in each other; mail programs make three.
const MOST_DEPTH: usize = 8;
/// RFC 2046: a boundary has at most 70 characters.
const MOST_BOUNDARY: usize = 70;
/// Attachments of one mail that are kept; what is beyond is passed over.
const MOST_FILES: usize = 32;
/// What rules can see of an attachment: Suricata's `content-inspect-window` for mails is 4 KiB, its size limit 100 KB.
const MOST_FILE: usize = 64 << 10;
/// All attachments' windows of a mail together: beyond, a window is small.
const MOST_ALL_FILES: usize = 256 << 10;
const SMALL_FILE: usize = 4 << 10;
/// Headers of a mail that are kept, and their bytes together.
const MOST_HEADERS: usize = 64;
const MOST_HEADER_BYTES: usize = 16 << 10;
/// Suricata's `header-value-depth` default.
const MOST_VALUE: usize = 2000;
/// Links of one mail that are kept, and how long one is.
const MOST_URLS: usize = 32;
const MOST_URL: usize = 512;

#[derive(Default)]
pub struct Mime {
    /// The mail's own headers: lower-case name and value.
    headers: Vec<(Vec<u8>, Vec<u8>)>,
    header_bytes: usize,
    boundaries: Vec<Vec<u8>>,
    part: Part,
    is_in_body: bool,
    is_first_part: bool,
    has_begun: bool,
    has_headers: bool,
    /// A header line that may go on in the next line.
    open_header: Vec<u8>,
    files: Vec<Body>,
    text: Option<Body>,
    urls: Vec<Vec<u8>>,
    /// Bytes of a chunk that are no line yet.
    held: Vec<u8>,
    is_in_long_line: bool,
    is_over: bool,
    decoded: Vec<u8>,
}

/// What the headers of the part at hand say.
#[derive(Default)]
struct Part {
    encoding: Encoding,
    name: Option<Vec<u8>>,
    boundary: Option<Vec<u8>>,
    is_attachment: bool,
    is_text: bool,
    has_type: bool,
    /// Its bytes go to the last of the files.
    has_file: bool,
    /// Between the parts of a multipart, or behind them.
    is_nothing: bool,
    base64: Base64,
}

impl Mime {
    /// Attachments.
    pub fn files(&self) -> &[Body] {
        &self.files
    }

    /// The text that is no attachment.
    pub fn text(&self) -> Option<&Body> {
        self.text.as_ref()
    }

    /// Whether the mail's own headers are all there.
    pub fn has_headers(&self) -> bool {
        self.has_headers
    }

    /// Links in the text.
    pub fn urls(&self) -> &[Vec<u8>] {
        &self.urls
    }

    /// The `nth` header of that name.
    pub fn header(&self, name: &str, nth: usize) -> Option<&[u8]> {
        let list = self.headers.iter().filter(|(known, _)| known == name.as_bytes());
        list.map(|(_, value)| value.as_slice()).nth(nth)
    }

    /// Read bytes that are not cut into lines.
    pub fn bytes(&mut self, bytes: &[u8], events: &mut Events) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.held.extend_from_slice(piece);
            let is_whole = piece.ends_with(b"\n");
            if is_whole || self.held.len() >= super::MOST_TEXT_LINE {
                let held = std::mem::take(&mut self.held);
                let line = held.strip_suffix(b"\n").unwrap_or(&held);
                self.line(line.strip_suffix(b"\r").unwrap_or(line), is_whole, events);
            }
        }
    }

    /// Read a line without its end, or a piece of one.
    pub fn line(&mut self, line: &[u8], is_whole: bool, events: &mut Events) {
        if self.is_over {
            return;
        }
        if !self.has_begun {
            (self.has_begun, self.is_first_part) = (true, true);
        }
        let is_continuation = std::mem::replace(&mut self.is_in_long_line, !is_whole);
        if !is_whole {
            events.add(event::MIME_LONG_LINE);
        }
        if !is_continuation && line.starts_with(b"--") && self.boundary(line, events) {
            return;
        }
        match (self.is_in_body, is_continuation) {
            (true, _) => self.body(line, is_whole, events),
            (false, false) => self.header_line(line, events),
            (false, true) => {}
        }
    }

    /// Look whether a line is one of the open multiparts' boundaries.
    fn boundary(&mut self, line: &[u8], events: &mut Events) -> bool {
        let line = line.trim_ascii_end();
        let fits = |boundary: &Vec<u8>| line.get(2..).and_then(|rest| rest.strip_prefix(boundary.as_slice()));
        let found = self.boundaries.iter().enumerate().rev().find_map(|(depth, it)| fits(it).map(|rest| (depth, rest)));
        let Some((depth, rest)) = found.filter(|(_, rest)| matches!(*rest, b"" | b"--")) else { return false };
        if !self.is_in_body {
            self.end_headers(events);
        }
        self.end_part(BodyState::Closed, events);
        let is_last = rest == b"--";
        // an outer boundary ends all inner multiparts
        self.boundaries.truncate(if is_last { depth } else { depth + 1 });
        self.part = Part { is_nothing: is_last, ..Part::default() };
        (self.is_in_body, self.is_first_part) = (is_last, false);
        true
    }

    fn header_line(&mut self, line: &[u8], events: &mut Events) {
        let is_folded = matches!(line.first(), Some(b' ' | b'\t'));
        if is_folded && !self.open_header.is_empty() {
            if self.open_header.len() + line.len() <= MOST_VALUE {
                self.open_header.push(b' ');
                self.open_header.extend_from_slice(line.trim_ascii());
            } else {
                events.add(event::MIME_LONG_HEADER_VALUE);
            }
            return;
        }
        self.end_header(events);
        if line.is_empty() {
            self.end_headers(events);
        } else if line.contains(&b':') {
            self.open_header = line.get(..MOST_VALUE).unwrap_or(line).to_vec();
        } else {
            events.add(event::MIME_MALFORMED_MSG);
        }
    }

    fn end_header(&mut self, events: &mut Events) {
        let line = std::mem::take(&mut self.open_header);
        let Some(at) = line.iter().position(|byte| *byte == b':') else { return };
        let (name, value) = line.split_at_checked(at).unwrap_or_default();
        let (name, value) = (name.trim_ascii().to_ascii_lowercase(), value.get(1..).unwrap_or_default().trim_ascii());
        match name.as_slice() {
            b"content-type" => self.content_type(value, events),
            b"content-transfer-encoding" => self.part.encoding = Encoding::parse(value),
            b"content-disposition" => {
                self.part.is_attachment |= value.get(..10).is_some_and(|kind| kind.eq_ignore_ascii_case(b"attachment"));
                let name = parameter(value, b"filename");
                self.part.name = name.or(self.part.name.take());
            }
            _ => {}
        }
        let bytes = name.len() + value.len();
        if self.is_first_part && self.headers.len() < MOST_HEADERS && self.header_bytes + bytes <= MOST_HEADER_BYTES {
            self.header_bytes += bytes;
            let value = value.to_vec();
            self.headers.push((name, value));
        }
    }

    fn content_type(&mut self, value: &[u8], events: &mut Events) {
        let lower = value.to_ascii_lowercase();
        self.part.has_type = true;
        self.part.is_text = lower.starts_with(b"text/");
        self.part.name = self.part.name.take().or(parameter(value, b"name"));
        if lower.starts_with(b"multipart/") {
            self.part.boundary = parameter(value, b"boundary").filter(|it| {
                if it.len() > MOST_BOUNDARY {
                    events.add(event::MIME_LONG_BOUNDARY);
                }
                !it.is_empty() && it.len() <= MOST_BOUNDARY
            });
        }
    }

    /// The headers are over: what is the body to be?
    fn end_headers(&mut self, events: &mut Events) {
        self.end_header(events);
        (self.is_in_body, self.has_headers) = (true, true);
        if let Some(boundary) = self.part.boundary.take() {
            if self.boundaries.len() < MOST_DEPTH {
                self.boundaries.push(boundary);
            } else {
                events.add(event::MIME_MALFORMED_MSG);
            }
            self.part.is_nothing = true; // a preamble
            return;
        }
        let is_file = self.part.is_attachment || self.part.name.is_some();
        if is_file && self.files.len() < MOST_FILES {
            let held: usize = self.files.iter().map(Body::heap_bytes).sum();
            let most = if held < MOST_ALL_FILES { MOST_FILE } else { SMALL_FILE };
            self.files.push(Body::new(self.part.name.as_deref().unwrap_or_default(), Way::ToServer, most));
            self.part.has_file = true;
        } else if is_file {
            self.part.is_nothing = true;
        }
        self.part.is_text |= !self.part.has_type;
    }

    fn body(&mut self, line: &[u8], is_whole: bool, events: &mut Events) {
        if self.part.is_nothing {
            return;
        }
        let mut decoded = std::mem::take(&mut self.decoded);
        decoded.clear();
        match self.part.encoding {
            Encoding::Plain => {
                decoded.extend_from_slice(line);
                decoded.extend_from_slice(if is_whole { b"\r\n" } else { b"" });
            }
            Encoding::Base64 if !self.part.base64.line(line, &mut decoded) => events.add(event::MIME_INVALID_BASE64),
            Encoding::QuotedPrintable if !quoted_printable(line, &mut decoded) => events.add(event::MIME_INVALID_QP),
            Encoding::Base64 | Encoding::QuotedPrintable => {}
        }
        self.append(&decoded);
        self.decoded = decoded;
    }

    fn append(&mut self, decoded: &[u8]) {
        if decoded.is_empty() {
            return;
        }
        if self.part.has_file {
            self.files.iter_mut().last().into_iter().for_each(|file| file.append(decoded));
        } else {
            if self.part.is_text {
                self.find_urls(decoded);
            }
            self.text.get_or_insert_with(|| Body::new(b"", Way::ToServer, MOST_FILE)).append(decoded);
        }
    }

    /// Links: from `http://` or `https://` to the first character that cannot be in one. Only within one line.
    fn find_urls(&mut self, text: &[u8]) {
        let mut rest = text;
        while self.urls.len() < MOST_URLS {
            let Some(at) = rest.windows(7).position(|part| part == b"http://" || part == b"https:/") else { return };
            rest = rest.get(at..).unwrap_or_default();
            let is_end = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\'' | b'<' | b'>');
            let end = rest.iter().position(is_end).unwrap_or(rest.len());
            let url = rest.get(..end.min(MOST_URL)).unwrap_or_default().to_vec();
            if !self.urls.contains(&url) {
                self.urls.push(url);
            }
            rest = rest.get(end..).unwrap_or_default();
        }
    }

    fn end_part(&mut self, state: BodyState, events: &mut Events) {
        let mut tail = Vec::new();
        if self.part.encoding == Encoding::Base64 && !self.part.base64.flush(&mut tail) {
            events.add(event::MIME_INVALID_BASE64);
        }
        if !self.part.is_nothing {
            self.append(&tail);
        }
        if self.part.has_file {
            self.files.iter_mut().last().into_iter().for_each(|file| file.close(state));
        }
    }

    /// Bytes are missing.
    pub fn gap(&mut self, bytes: u64) {
        let last = if self.part.has_file { self.files.last_mut() } else { self.text.as_mut() };
        if let Some(body) = last.filter(|_| self.is_in_body) {
            body.has_gaps = true;
            body.size = body.size.saturating_add(bytes);
        }
    }

    /// The mail is over.
    pub fn end(&mut self, is_whole: bool, events: &mut Events) {
        if self.is_over {
            return;
        }
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            self.line(&held, true, events);
        }
        if !self.is_in_body {
            self.end_headers(events);
        }
        let state = if is_whole { BodyState::Closed } else { BodyState::Truncated };
        self.end_part(state, events);
        self.files.iter_mut().chain(&mut self.text).for_each(|body| body.close(state));
        self.decoded = Vec::new();
        self.is_over = true;
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        let pair = size_of::<(Vec<u8>, Vec<u8>)>();
        let headers = self.headers.iter().map(|(name, value)| name.capacity() + value.capacity() + pair).sum::<usize>();
        let bodies =
            self.files.iter().chain(&self.text).map(|body| size_of::<Body>() + body.heap_bytes()).sum::<usize>();
        let urls = self.urls.iter().map(|url| url.capacity() + size_of::<Vec<u8>>()).sum::<usize>();
        let buffers = self.held.capacity() + self.decoded.capacity() + self.open_header.capacity();
        size_of::<Mime>() + headers + bodies + urls + buffers + self.boundaries.iter().map(Vec::capacity).sum::<usize>()
    }
}

/// The value of a parameter, with or without quotes; RFC 2231's `name*=` counts as well, as it is written.
fn parameter(value: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    value.split(|byte| *byte == b';').skip(1).find_map(|part| {
        let part = part.trim_ascii();
        let at = part.iter().position(|byte| *byte == b'=')?;
        let (key, text) = part.split_at_checked(at)?;
        let key = key.trim_ascii();
        let key = key.strip_suffix(b"*").unwrap_or(key);
        let text = text.get(1..)?.trim_ascii();
        let text = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(text);
        key.eq_ignore_ascii_case(name).then(|| text.to_vec())
    })
}
