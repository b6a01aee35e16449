//! The two ways of a flow, and which response belongs to which request.

use super::config::Config;
use super::event::Event;
use super::first_line::{RequestLine, StatusLine, is_content, is_no_request, version};
use super::header::{is_field, number};
use super::line::{Ending, next_line, trim};
use super::side::{Framing, Side, Step};
use super::transaction::{HttpTransaction, progress};
use crate::{BodyState, COMPLETE, ParseError, Parser, Settings, Transaction, Transactions, Way};

/// The default of `http.max-tx`: pipelined requests without a response.
const MOST_TRANSACTIONS: usize = 512;
/// The first line of a response that shows no end by now is content.
const MOST_CONTENT_LINE: usize = 4096;

/// Where in a message a way is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    FirstLine,
    Header,
    Body,
    Trailer,
    /// The message is complete, but what follows may still be part of it.
    Tail,
    /// Waiting for the answer to CONNECT.
    Connect,
    /// No longer HTTP.
    Tunnel,
}

/// The parser of one flow.
pub struct Http {
    config: Config,
    transactions: Transactions<HttpTransaction>,
    states: [State; 2],
    sides: [Side; 2],
    /// The transactions at hand, by way.
    ids: [u64; 2],
    /// Where no transaction is at hand, this one is changed instead, and nobody sees it.
    nobody: Box<HttpTransaction>,
    upgrade: Option<&'static str>,
    has_continued: bool,
}

impl Http {
    /// Begin.
    pub fn new(settings: &Settings) -> Http {
        let config = Config::new(settings);
        Http {
            nobody: Box::new(HttpTransaction::new(RequestLine::default(), &config)),
            config,
            transactions: Transactions::new(MOST_TRANSACTIONS),
            states: [State::FirstLine; 2],
            sides: [Side::new(Way::ToServer), Side::new(Way::ToClient)],
            ids: [0; 2],
            upgrade: None,
            has_continued: false,
        }
    }

    /// Do the next thing with `data`.
    fn step(&mut self, way: Way, data: &[u8], is_end: bool) -> Result<Step, ParseError> {
        let state = self.states[way as usize];
        match (state, way) {
            (State::Tunnel, _) if self.upgrade.is_some() => return Ok(Step::More),
            (State::Tunnel, _) => return Ok(if data.is_empty() { Step::More } else { Step::Read(data.len()) }),
            (State::Connect, _) => return Ok(Step::More),
            (State::FirstLine, Way::ToServer) => return self.request_line(data, is_end),
            (State::FirstLine, Way::ToClient) => return self.status_line(data, is_end),
            _ => {}
        }
        let side = &mut self.sides[way as usize];
        let transaction = self.transactions.get_mut(self.ids[way as usize]).unwrap_or(&mut self.nobody);
        match state {
            State::Header => match side.header(transaction, data, is_end, &self.config)? {
                Step::Done(count) => {
                    match way {
                        Way::ToServer => self.end_request_header(),
                        Way::ToClient => self.end_response_header(),
                    }
                    Ok(Step::Read(count))
                }
                step => Ok(step),
            },
            State::Body => match side.body(transaction, data, is_end, &self.config) {
                Step::Done(count) => {
                    let is_chunked = matches!(side.framing, Framing::Chunked(_));
                    if is_chunked {
                        side.begin_trailer(transaction, &self.config);
                    }
                    self.states[way as usize] = if is_chunked { State::Trailer } else { State::Tail };
                    Ok(Step::Read(count))
                }
                step => Ok(step),
            },
            State::Trailer => match side.header(transaction, data, is_end, &self.config)? {
                Step::Done(count) => {
                    self.states[way as usize] = State::Tail;
                    Ok(Step::Read(count))
                }
                step => Ok(step),
            },
            _ => Ok(self.tail(way, data)),
        }
    }

    /// Behind a message: what is no beginning of another belongs to it, as some browsers see it.
    fn tail(&mut self, way: Way, data: &[u8]) -> Step {
        let is_rest = match way {
            Way::ToServer => is_no_request(data),
            Way::ToClient => is_content(data),
        };
        let transaction = self.transactions.get_mut(self.ids[way as usize]).unwrap_or(&mut self.nobody);
        let is_tunnel = way == Way::ToServer && transaction.line.method() == b"CONNECT";
        if data.is_empty() && way == Way::ToClient && transaction.headers[1].is_length_ambiguous() {
            return Step::More; // it may not have been all
        }
        if is_tunnel || data.is_empty() || trim(data).is_empty() || is_rest != Some(true) {
            self.complete(way, BodyState::Closed);
            return Step::Read(0);
        }
        let transaction = self.transactions.get_mut(self.ids[way as usize]).unwrap_or(&mut self.nobody);
        if way == Way::ToServer {
            transaction.raise(Event::UnexpectedBody);
        }
        self.sides[way as usize].content(transaction, data, &self.config);
        Step::Read(data.len())
    }

    /// The message at hand is over, and with it that way of its transaction.
    fn complete(&mut self, way: Way, state: BodyState) {
        let side = &mut self.sides[way as usize];
        let transaction = self.transactions.get_mut(self.ids[way as usize]).unwrap_or(&mut self.nobody);
        side.flush(transaction);
        side.end_body(transaction, &self.config);
        transaction.complete(way, state);
        self.states[way as usize] = State::FirstLine;
        match way {
            Way::ToServer if transaction.line.method() == b"CONNECT" && self.ids[0] >= self.ids[1] => {
                self.states[0] = State::Connect;
            }
            Way::ToServer => {}
            Way::ToClient => {
                self.ids[1] += 1;
                self.has_continued = false;
            }
        }
    }

    fn request_line(&mut self, data: &[u8], is_end: bool) -> Result<Step, ParseError> {
        let side = &mut self.sides[0];
        let Some(line) = side.next_line(data, is_end) else {
            return self.check_length(Way::ToServer, data.len());
        };
        if trim(line.text).is_empty() {
            return Ok(Step::Read(line.bytes));
        }
        self.check_length(Way::ToServer, line.bytes)?;
        let mut events = Vec::new();
        if is_end && data.get(line.bytes.saturating_sub(1)) != Some(&b'\n') {
            events.push(Event::LineIncomplete);
        }
        let parsed = RequestLine::parse(line.text, &mut events);
        let mut transaction = HttpTransaction::new(parsed, &self.config);
        events.into_iter().for_each(|event| transaction.raise(event));
        self.states[0] = State::Header;
        if transaction.line.protocol().is_empty() {
            // HTTP/0.9 has no header: where there is one, the protocol was forgotten
            let rest = data.get(line.bytes..).unwrap_or_default();
            if next_line(rest, &mut 0, Ending::Feed, true).is_some_and(|next| is_field(next.text)) {
                transaction.raise(Event::ProtocolMissing);
            } else {
                transaction.advance(Way::ToServer, progress::HEADERS);
                self.states[0] = State::Tail;
                self.sides[0].begin_body(&mut transaction, Framing::Length(0), false, &self.config);
            }
        }
        self.ids[0] = self.transactions.push(transaction).ok_or(ParseError("too many requests without a response"))?;
        Ok(Step::Read(line.bytes))
    }

    fn check_length(&mut self, way: Way, bytes: usize) -> Result<Step, ParseError> {
        if bytes <= self.config.field_limit {
            return Ok(Step::More);
        }
        // an event needs a transaction to be in
        let last = self.transactions.last_mut();
        Err(self.sides[way as usize].too_long(last.unwrap_or(&mut self.nobody)))
    }

    fn end_request_header(&mut self) {
        let transaction = self.transactions.get_mut(self.ids[0]).unwrap_or(&mut self.nobody);
        transaction.find_host();
        transaction.advance(Way::ToServer, progress::HEADERS);
        let header = &transaction.headers[0];
        let length = header.get(b"content-length");
        let coding = header.get(b"transfer-encoding");
        let is_known = |value: &[u8]| {
            let word = value.split(|byte| *byte == b' ').next().unwrap_or_default();
            [&b"basic"[..], b"digest", b"bearer"].iter().any(|known| word.eq_ignore_ascii_case(known))
        };
        let mut events = Vec::new();
        if header.get(b"authorization").is_some_and(|value| !is_known(value)) {
            events.push(Event::AuthUnrecognised);
        }
        let framing = match (coding, length.map(number)) {
            (Some(coding), _) if has_chunked(coding) => Framing::Chunked(super::chunked::Chunks::Length),
            (Some(_), _) => {
                events.push(Event::RequestTransferEncoding);
                Framing::Length(length.and_then(number).unwrap_or(0))
            }
            (None, Some(Some(length))) => Framing::Length(length),
            (None, Some(None)) => {
                events.push(Event::RequestContentLength);
                Framing::Length(0)
            }
            (None, None) => Framing::Length(0),
        };
        events.into_iter().for_each(|event| transaction.raise(event));
        let is_file = matches!(transaction.line.method(), b"POST" | b"PUT");
        self.sides[0].begin_body(transaction, framing, is_file, &self.config);
        self.states[0] = State::Body;
    }

    /// Return the transaction that a response belongs to; one is made up where its request was not seen.
    fn answered(&mut self) -> Result<&mut HttpTransaction, ParseError> {
        let (first, behind) = self.transactions.range();
        self.ids[1] = self.ids[1].max(first);
        if self.ids[1] >= behind {
            let mut transaction = HttpTransaction::new(RequestLine::unseen(), &self.config);
            transaction.raise(Event::NoRequest);
            transaction.complete(Way::ToServer, BodyState::Closed);
            self.ids[1] = self.transactions.push(transaction).ok_or(ParseError("too many responses"))?;
        }
        let transaction = self.transactions.get_mut(self.ids[1]).unwrap_or(&mut self.nobody);
        transaction.advance(Way::ToClient, progress::STARTED);
        Ok(transaction)
    }

    fn status_line(&mut self, data: &[u8], is_end: bool) -> Result<Step, ParseError> {
        let side = &mut self.sides[1];
        let line = side.next_line(data, is_end);
        let is_content = is_content(data);
        let Some(line) = line else {
            if is_content == Some(true) && data.len() > MOST_CONTENT_LINE {
                return self.begin_content();
            }
            return self.check_length(Way::ToClient, data.len());
        };
        if trim(line.text).is_empty() {
            return Ok(Step::Read(line.bytes));
        }
        if is_content != Some(false) {
            let next = data.get(line.bytes..).unwrap_or_default();
            let is_junk = next.get(..4).is_some_and(|next| next.eq_ignore_ascii_case(b"HTTP"));
            return if is_junk { Ok(Step::Read(line.bytes)) } else { self.begin_content() };
        }
        self.check_length(Way::ToClient, line.bytes)?;
        let mut events = Vec::new();
        let parsed = StatusLine::parse(line.text, &mut events);
        let transaction = self.answered()?;
        events.into_iter().for_each(|event| transaction.raise(event));
        transaction.forget_response(); // of a 100 before this one
        transaction.status = parsed;
        transaction.advance(Way::ToClient, progress::LINE);
        self.states[1] = State::Header;
        Ok(Step::Read(line.bytes))
    }

    /// A response without a header: HTTP/0.9.
    fn begin_content(&mut self) -> Result<Step, ParseError> {
        self.answered()?;
        let transaction = self.transactions.get_mut(self.ids[1]).unwrap_or(&mut self.nobody);
        transaction.advance(Way::ToClient, progress::HEADERS);
        let is_file = !transaction.status.text.is_empty(); // content right behind a 100
        self.sides[1].begin_body(transaction, Framing::Rest, is_file, &self.config);
        self.states[1] = State::Body;
        Ok(Step::Read(0))
    }

    fn end_response_header(&mut self) {
        let transaction = self.transactions.get_mut(self.ids[1]).unwrap_or(&mut self.nobody);
        let code = transaction.status.code().unwrap_or(0);
        let header = &transaction.headers[1];
        let is_framed = header.get(b"content-length").is_some() || header.get(b"transfer-encoding").is_some();
        let upgrade = header.get(b"upgrade").map(<[u8]>::to_ascii_lowercase);
        let is_connect = transaction.line.method() == b"CONNECT";
        if code == 100 && !is_framed {
            if self.has_continued {
                transaction.raise(Event::SecondContinue);
            }
            self.has_continued = true;
            self.states[1] = State::FirstLine;
            return;
        }
        transaction.advance(Way::ToClient, progress::HEADERS);
        if is_connect && (200..300).contains(&code) || code == 101 && upgrade.is_some() {
            self.complete(Way::ToClient, BodyState::Closed);
            self.states = [State::Tunnel; 2];
            self.upgrade = protocol_behind(if is_connect { None } else { upgrade.as_deref() });
            return;
        }
        if is_connect && self.states[0] == State::Connect {
            self.states[0] = State::FirstLine; // refused: it stays HTTP
        }
        if code == 206 && transaction.headers[1].get(b"content-range").is_some_and(|range| !is_range(range)) {
            transaction.raise(Event::RangeInvalid);
        }
        let is_head = transaction.line.method() == b"HEAD";
        let is_bare = matches!(code, 100..=199 | 204 | 304) && !is_framed;
        let framing = if is_head || is_bare { Framing::Length(0) } else { response_framing(transaction) };
        self.sides[1].begin_body(transaction, framing, true, &self.config);
        self.states[1] = State::Body;
    }

    /// Nothing more will come that way.
    fn end(&mut self, way: Way, is_orderly: bool) {
        let is_in_body = self.states[way as usize] == State::Body;
        let is_rest = is_in_body && self.sides[way as usize].framing == Framing::Rest;
        let state = if is_orderly && (is_rest || !is_in_body) { BodyState::Closed } else { BodyState::Truncated };
        match self.states[way as usize] {
            State::FirstLine | State::Connect | State::Tunnel => {}
            State::Header => {
                let transaction = self.transactions.get_mut(self.ids[way as usize]).unwrap_or(&mut self.nobody);
                self.sides[way as usize].flush(transaction);
                if way == Way::ToServer {
                    transaction.find_host();
                }
                transaction.advance(way, progress::HEADERS);
                self.complete(way, state);
            }
            State::Body | State::Trailer | State::Tail => self.complete(way, state),
        }
    }
}

/// Return whether a text is a range of bytes (RFC 9110 section 14.4).
fn is_range(text: &[u8]) -> bool {
    let text = text.get(..6).filter(|unit| unit.eq_ignore_ascii_case(b"bytes ")).and_then(|_| text.get(6..));
    let mut parts = text.unwrap_or_default().split(|byte| matches!(byte, b'-' | b'/'));
    let mut next = || parts.next().map(trim).filter(|part| !part.is_empty() && part.iter().all(u8::is_ascii_digit));
    let ends = next().and_then(number).zip(next().and_then(number));
    ends.is_some_and(|(start, end)| start <= end)
}

/// Return whether a `Transfer-Encoding` names chunks somewhere. NULs in it are passed over, as browsers do.
fn has_chunked(value: &[u8]) -> bool {
    let value: Vec<u8> = value.iter().filter(|byte| **byte != 0).map(u8::to_ascii_lowercase).collect();
    memchr::memmem::find(&value, b"chunked").is_some()
}

fn response_framing(transaction: &mut HttpTransaction) -> Framing {
    let header = &transaction.headers[1];
    let coding = header.get(b"transfer-encoding").map(<[u8]>::to_vec);
    let length = header.get(b"content-length").map(number);
    let is_ranges = header.get(b"content-type").is_some_and(|kind| {
        kind.get(..b"multipart/byteranges".len()).is_some_and(|kind| kind.eq_ignore_ascii_case(b"multipart/byteranges"))
    });
    if is_ranges {
        transaction.raise(Event::ByteRanges);
    }
    if let Some(coding) = coding {
        if has_chunked(&coding) {
            if !coding.eq_ignore_ascii_case(b"chunked") {
                transaction.raise(Event::AbnormalTransfer);
            }
            if matches!(version(transaction.status.protocol()), Some((1, 0) | (0, _))) {
                transaction.raise(Event::ChunkedOldProtocol);
            }
            return Framing::Chunked(super::chunked::Chunks::Length);
        }
        transaction.raise(Event::ResponseTransferEncoding);
    }
    match length {
        Some(Some(length)) => Framing::Length(length),
        Some(None) => {
            transaction.raise(Event::ResponseContentLength);
            Framing::Rest
        }
        None => Framing::Rest,
    }
}

/// Return what follows an upgrade; an empty name where only a look at it can tell.
fn protocol_behind(upgrade: Option<&[u8]>) -> Option<&'static str> {
    match upgrade {
        None => Some(""),
        Some(b"websocket") => Some("websocket"),
        Some(b"h2c") => Some("http2"),
        Some(_) => None,
    }
}

impl Parser for Http {
    fn parse(&mut self, way: Way, data: &[u8], is_end: bool) -> Result<usize, ParseError> {
        let mut at = 0;
        loop {
            let rest = data.get(at..).unwrap_or_default();
            let before = self.states[way as usize];
            match self.step(way, rest, is_end)? {
                Step::More => break,
                // every step reads something or goes on to another state
                Step::Read(0) | Step::Done(0) if self.states[way as usize] == before && !is_fallback(self, way) => {
                    break;
                }
                Step::Read(count) | Step::Done(count) => {
                    at += count;
                    self.sides[way as usize].scanned = 0;
                }
            }
        }
        if is_end {
            self.end(way, true);
        }
        Ok(at)
    }

    fn gap(&mut self, way: Way, bytes: u64) -> Result<(), ParseError> {
        self.sides[way as usize].scanned = 0;
        let transaction = self.transactions.get_mut(self.ids[way as usize]).unwrap_or(&mut self.nobody);
        match self.states[way as usize] {
            State::Body if self.sides[way as usize].gap(transaction, bytes) => Ok(()),
            State::Tunnel => Ok(()),
            _ => Err(ParseError("bytes are missing outside a body")),
        }
    }

    fn range(&self) -> (u64, u64) {
        self.transactions.range()
    }

    fn transaction(&self, id: u64) -> Option<&dyn Transaction> {
        self.transactions.get(id).map(|transaction| transaction as _)
    }

    fn remove(&mut self, id: u64) {
        self.transactions.remove(id);
    }

    fn finish(&mut self) {
        for way in Way::BOTH {
            self.end(way, false);
            for (_, transaction) in self.transactions.iter_mut() {
                if transaction.progress(way) != COMPLETE {
                    transaction.complete(way, BodyState::Truncated);
                }
            }
        }
    }

    fn heap_bytes(&self) -> usize {
        let (first, behind) = self.transactions.range();
        let held = (first..behind).filter_map(|id| self.transactions.get(id));
        held.map(|transaction| transaction.heap_bytes() + size_of::<HttpTransaction>()).sum::<usize>()
            + self.sides.iter().map(Side::heap_bytes).sum::<usize>()
            + self.nobody.heap_bytes()
            + size_of::<HttpTransaction>()
    }

    fn upgraded(&mut self) -> Option<&'static str> {
        self.upgrade.take()
    }

    fn is_opaque(&self) -> bool {
        self.states == [State::Tunnel; 2] && self.upgrade.is_none()
    }
}

/// What was said to be chunked turned out not to be: the same bytes are looked at again.
fn is_fallback(parser: &Http, way: Way) -> bool {
    parser.sides[way as usize].framing == Framing::Rest
}
