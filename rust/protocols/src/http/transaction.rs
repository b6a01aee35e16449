//! A request and its response.

use std::any::Any;

use super::config::Config;
use super::event::Event;
use super::first_line::{RequestLine, StatusLine};
use super::header::Header;
use super::keyword::{self, Buffer};
use super::uri::{Normal, parse_uri, split_port};
use crate::{Body, BodyState, COMPLETE, Json, Transaction, View, Way};

/// How far a way is, below [`COMPLETE`].
pub mod progress {
    #![allow(missing_docs)]
    pub const STARTED: u8 = 1;
    pub const LINE: u8 = 2;
    pub const HEADERS: u8 = 3;
    pub const BODY: u8 = 4;
    pub const TRAILER: u8 = 5;
}

/// Files in one transaction that are told apart; the parts of a form.
const MOST_FILES: usize = 32;
/// The reference's limit of a file's name.
const MOST_NAME: usize = 4096;

/// Where a body is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// Nothing of it came.
    Nowhere,
    /// It is a file.
    File(usize),
    /// It is none.
    Own,
}

/// A request and its response.
pub struct HttpTransaction {
    pub(super) line: RequestLine,
    pub(super) status: StatusLine,
    pub(super) uri: Normal,
    /// In lower case, without port.
    pub(super) host: Vec<u8>,
    uri_host: Option<Vec<u8>>,
    pub(super) port: Option<u16>,
    pub(super) headers: [Header; 2],
    /// Bytes of the bodies as they came.
    pub(super) message_bytes: [u64; 2],
    pub(super) dumps_headers: [bool; 2],
    progress: [u8; 2],
    places: [Place; 2],
    bodies: [Option<Body>; 2],
    files: Vec<Body>,
    part: Option<usize>,
    events: Vec<u8>,
}

impl HttpTransaction {
    pub(super) fn new(line: RequestLine, config: &Config) -> HttpTransaction {
        let is_connect = line.method() == b"CONNECT";
        let parts = parse_uri(line.uri(), is_connect);
        let uri = super::uri::normalise_uri(&parts, &config.uri);
        let uri_host = parts.host.map(<[u8]>::to_vec);
        let uri_port = parts.port.map(<[u8]>::to_vec);
        let mut transaction = HttpTransaction {
            line,
            status: StatusLine::default(),
            uri,
            host: uri_host.as_deref().map(normalise_host).unwrap_or_default(),
            uri_host,
            port: None,
            headers: [Header::default(), Header::default()],
            message_bytes: [0; 2],
            dumps_headers: config.dumps_headers,
            progress: [progress::LINE, 0],
            places: [Place::Nowhere; 2],
            bodies: [None, None],
            files: Vec::new(),
            part: None,
            events: Vec::new(),
        };
        if transaction.uri.is_double_encoded {
            transaction.raise(Event::DoubleEncoded);
        }
        if !transaction.host.is_empty() && !is_host(&transaction.host) {
            transaction.raise(Event::UriHostInvalid);
        }
        transaction.port = transaction.parse_port(uri_port.as_deref(), Event::InvalidServerPort);
        transaction
    }

    /// Return the value of a request's field, whatever the case of its name.
    pub fn request_header(&self, name: &[u8]) -> Option<&[u8]> {
        self.headers[0].get(name)
    }

    /// Return the value of a response's field, whatever the case of its name.
    pub fn response_header(&self, name: &[u8]) -> Option<&[u8]> {
        self.headers[1].get(name)
    }

    pub(super) fn raise(&mut self, event: Event) {
        if !self.events.contains(&(event as u8)) {
            self.events.push(event as u8);
        }
    }

    /// Progress never goes back.
    pub(super) fn advance(&mut self, way: Way, progress: u8) {
        let current = &mut self.progress[way as usize];
        *current = progress.max(*current);
    }

    fn parse_port(&mut self, text: Option<&[u8]>, event: Event) -> Option<u16> {
        let text = text?;
        let number = str::from_utf8(text).ok().and_then(|text| text.trim().parse::<u16>().ok());
        if number.is_none_or(|number| number == 0) {
            self.raise(event);
        }
        number.filter(|number| *number > 0)
    }

    /// The request's header is complete: find out whom it is for.
    pub(super) fn find_host(&mut self) {
        let Some(value) = self.headers[0].get(b"host").map(<[u8]>::to_vec) else {
            if matches!(super::first_line::version(self.line.protocol()), Some((1, 1..))) {
                self.raise(Event::HostMissing);
            }
            return;
        };
        let (host, port) = split_port(&value);
        let host = normalise_host(host);
        if !is_host(&host) {
            self.raise(Event::HeaderHostInvalid);
        }
        let port = self.parse_port(port, Event::InvalidAuthorityPort);
        if self.uri_host.is_none() {
            (self.host, self.port) = (host, port);
        } else if host != self.host || port.is_some() && self.port.is_some() && port != self.port {
            self.raise(Event::HostAmbiguous);
        }
    }

    /// Append content, after all decoding. `None` as name: it is no file.
    pub(super) fn append(&mut self, way: Way, data: &[u8], name: Option<&[u8]>, config: &Config) -> usize {
        let limit = config.body_limits[way as usize];
        if self.places[way as usize] == Place::Nowhere {
            self.open(way, name, config.most_held(way));
        }
        let Some(body) = self.body_mut(way) else { return 0 };
        if body.state != BodyState::Open {
            return 0;
        }
        let room = if limit == 0 { u64::MAX } else { limit.saturating_sub(body.size) };
        let count = usize::try_from(room).unwrap_or(usize::MAX).min(data.len());
        body.append(data.get(..count).unwrap_or_default());
        if count < data.len() {
            body.close(BodyState::Truncated);
        }
        self.advance(way, progress::BODY);
        count
    }

    fn open(&mut self, way: Way, name: Option<&[u8]>, most: usize) {
        let body = Body::new(name.unwrap_or_default(), way, most);
        let has_room = self.files.len() < MOST_FILES;
        self.places[way as usize] = match name {
            Some(_) if has_room => {
                self.files.push(body);
                Place::File(self.files.len() - 1)
            }
            _ => {
                self.bodies[way as usize] = Some(body);
                Place::Own
            }
        };
    }

    fn body_mut(&mut self, way: Way) -> Option<&mut Body> {
        match self.places[way as usize] {
            Place::Nowhere => None,
            Place::File(index) => self.files.get_mut(index),
            Place::Own => self.bodies[way as usize].as_mut(),
        }
    }

    fn body(&self, way: Way) -> Option<&Body> {
        match self.places[way as usize] {
            Place::Nowhere => None,
            Place::File(index) => self.files.get(index),
            Place::Own => self.bodies[way as usize].as_ref(),
        }
    }

    /// Some of a body came.
    pub(super) fn has_body(&self, way: Way) -> bool {
        self.places[way as usize] != Place::Nowhere
    }

    /// Nothing more of this body is wanted.
    pub(super) fn is_full(&self, way: Way) -> bool {
        self.body(way).is_some_and(|body| body.state != BodyState::Open)
    }

    /// `bytes` of this body are missing.
    pub(super) fn skip(&mut self, way: Way, bytes: u64) {
        if let Some(body) = self.body_mut(way) {
            body.has_gaps = true;
            body.size = body.size.saturating_add(bytes);
        }
    }

    /// What follows of this body is not looked at.
    pub(super) fn complete_body(&mut self, way: Way) {
        if let Some(body) = self.body_mut(way) {
            body.close(BodyState::Truncated);
        }
    }

    /// A file begins in a form.
    pub(super) fn begin_part(&mut self, name: &[u8], most: usize) {
        self.part = None;
        if self.files.len() < MOST_FILES {
            self.files.push(Body::new(&self.cut_name(name), Way::ToServer, most));
            self.part = Some(self.files.len() - 1);
        }
        if name.len() > MOST_NAME {
            self.raise(Event::FileNameTooLong);
        }
    }

    pub(super) fn part_data(&mut self, data: &[u8]) {
        if let Some(file) = self.part.and_then(|index| self.files.get_mut(index)) {
            file.append(data);
        }
    }

    pub(super) fn end_part(&mut self) {
        if let Some(file) = self.part.take().and_then(|index| self.files.get_mut(index)) {
            file.close(BodyState::Closed);
        }
    }

    fn cut_name(&self, name: &[u8]) -> Vec<u8> {
        name.get(..name.len().min(MOST_NAME)).unwrap_or_default().to_vec()
    }

    /// The name of the file that a body of that way is: what the server calls it, else the path of the request.
    pub(super) fn file_name(&self, way: Way) -> Vec<u8> {
        let disposition = match way {
            Way::ToServer => None,
            Way::ToClient => self.headers[1].get(b"content-disposition"),
        };
        let named = disposition.and_then(|value| super::multipart::parameter(value, b"filename"));
        self.cut_name(named.filter(|name| !name.is_empty()).unwrap_or(&self.uri.path))
    }

    /// This way is over; its body is `state` if nothing else was known about it before.
    pub(super) fn complete(&mut self, way: Way, state: BodyState) {
        let close = |body: &mut Body| {
            let state = if body.has_gaps { BodyState::Truncated } else { state };
            body.close(state);
        };
        self.bodies[way as usize].as_mut().map(close);
        for file in self.files.iter_mut().filter(|file| file.way == way) {
            // a part of a form that has not ended by the end of the form is not all there
            let is_part = way == Way::ToServer && self.places[0] == Place::Own;
            if is_part { file.close(BodyState::Truncated) } else { close(file) }
        }
        self.progress[way as usize] = COMPLETE;
    }

    /// Forget a response's header: another one follows (100).
    pub(super) fn forget_response(&mut self) {
        self.status = StatusLine::default();
        self.headers[1] = Header::default();
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let bodies = self.files.iter().chain(self.bodies.iter().flatten()).map(Body::heap_bytes);
        let texts = [&self.line.text, &self.status.text, &self.uri.text, &self.uri.path, &self.host, &self.events];
        bodies.sum::<usize>()
            + texts.iter().map(|text| text.capacity()).sum::<usize>()
            + self.headers.iter().map(Header::heap_bytes).sum::<usize>()
            + self.files.capacity() * size_of::<Body>()
    }

    fn file(&self, way: Way, nth: usize) -> Option<&Body> {
        self.files.iter().filter(|file| file.way == way).nth(nth)
    }

    fn text(&self, buffer: Buffer, way: Way, nth: usize) -> Option<&[u8]> {
        let header = &self.headers[way as usize];
        let has_head = self.progress[way as usize] >= progress::HEADERS;
        if buffer.is_of_header() && (!has_head || header.fields().is_empty()) {
            return None;
        }
        let is_request = way == Way::ToServer;
        if is_request && self.line.method().is_empty() && matches!(buffer, Buffer::RequestLine | Buffer::Start) {
            return None; // the request was not seen
        }
        let first_line = if is_request { self.line.text.as_slice() } else { &self.status.text };
        Some(match buffer {
            Buffer::Uri => &self.uri.text,
            Buffer::RawUri => self.line.uri(),
            Buffer::Method => self.line.method(),
            Buffer::Protocol if is_request => self.line.protocol(),
            Buffer::Protocol => self.status.protocol(),
            Buffer::Host => &self.host,
            Buffer::RawHost => self.uri_host.as_deref().or_else(|| header.get(b"host"))?,
            Buffer::Cookie => header.get(if is_request { b"cookie" } else { b"set-cookie" })?,
            Buffer::Header => header.lines(if is_request { b"cookie" } else { b"set-cookie" }),
            Buffer::RawHeader => header.raw(),
            Buffer::HeaderNames => header.names(),
            Buffer::Start => header.start(first_line),
            Buffer::RequestHeader | Buffer::ResponseHeader => header.fields().get(nth)?.text(),
            Buffer::RequestLine | Buffer::ResponseLine => first_line,
            Buffer::StatusCode => self.status.status(),
            Buffer::StatusMessage => self.status.message(),
            Buffer::FileName => &self.file(way, nth)?.name,
            other => header.get(other.field()?)?,
        })
    }
}

impl Transaction for HttpTransaction {
    fn progress(&self, way: Way) -> u8 {
        self.progress[way as usize]
    }

    fn buffer(&self, index: usize, way: Way, nth: usize) -> Option<View<'_>> {
        let info = keyword::BUFFERS.get(index)?;
        if !info.ways.contains(way) || nth > 0 && !info.is_multiple {
            return None;
        }
        match *keyword::KINDS.get(index)? {
            Buffer::RequestBody | Buffer::ResponseBody => self.body(way).map(Body::view),
            Buffer::FileData if way == Way::ToClient => self.body(way).filter(|_| nth == 0).map(Body::view),
            Buffer::FileData => self.file(way, nth).map(Body::view),
            // a header without a value is an empty buffer; what else is empty was not there
            buffer => {
                self.text(buffer, way, nth).filter(|text| !text.is_empty() || buffer.field().is_some()).map(View::whole)
            }
        }
    }

    fn events(&self) -> &[u8] {
        &self.events
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        super::log::write(self, json);
    }

    fn files(&self) -> &[Body] {
        &self.files
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// As the reference library: lower case, without dots at the end.
fn normalise_host(host: &[u8]) -> Vec<u8> {
    let mut host = super::line::trim(host).to_ascii_lowercase();
    while host.last() == Some(&b'.') {
        host.pop();
    }
    host
}

/// Return whether a text may be a host's name or address.
fn is_host(host: &[u8]) -> bool {
    if let Some(address) = host.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")) {
        return str::from_utf8(address).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok());
    }
    let is_label = |label: &[u8]| {
        (1..=63).contains(&label.len()) && label.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
    };
    host.len() <= 255 && host.split(|byte| *byte == b'.').all(is_label)
}
