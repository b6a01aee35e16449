//! One way of a flow: the header and the body of the message at hand, whichever way it goes.

use super::chunked::{Chunks, Piece};
use super::coding::{Decoder, parse_codings};
use super::config::Config;
use super::event::Event;
use super::header::{Flaw, Kind, is_field, kind};
use super::line::{Ending, Line, next_line, trim};
use super::multipart::{Multipart, Part};
use super::transaction::{HttpTransaction, progress};
use crate::{ParseError, Way};

/// As the reference library: a field is not put together from more than this.
const MOST_FOLDED: usize = 10 << 10;

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes are left.
    Length(u64),
    /// Chunks tell.
    Chunked(Chunks),
    /// Up to the end of the flow.
    Rest,
}

/// What became of the bytes at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// More of them are needed.
    More,
    /// So many were read.
    Read(usize),
    /// So many were read, and that part of the message is over.
    Done(usize),
}

/// What is known about the message at hand besides its transaction.
pub struct Side {
    /// Which way it goes.
    pub way: Way,
    /// How the body is delimited.
    pub framing: Framing,
    /// Bytes at the front that hold no line end.
    pub scanned: usize,
    pending: Option<Vec<u8>>,
    /// The line before ended in a lone carriage return.
    is_after_return: bool,
    decoder: Option<Box<Decoder>>,
    multipart: Option<Box<Multipart>>,
    is_file: bool,
}

impl Side {
    /// Begin.
    pub fn new(way: Way) -> Side {
        let framing = Framing::Length(0);
        Side {
            way,
            framing,
            scanned: 0,
            pending: None,
            is_after_return: false,
            decoder: None,
            multipart: None,
            is_file: false,
        }
    }

    /// Return the first line of `data`, if it is complete.
    pub fn next_line<'a>(&mut self, data: &'a [u8], is_end: bool) -> Option<Line<'a>> {
        let ending = match self.way {
            Way::ToServer => Ending::Feed,
            Way::ToClient => Ending::FeedOrReturn,
        };
        next_line(data, &mut self.scanned, ending, is_end)
    }

    /// A line is too long.
    pub fn too_long(&self, transaction: &mut HttpTransaction) -> ParseError {
        transaction.raise(Event::of(self.way, Event::RequestTooLong, Event::ResponseTooLong));
        ParseError("a line is too long")
    }

    /// Read a line of a header or trailer.
    pub fn header(
        &mut self,
        transaction: &mut HttpTransaction,
        data: &[u8],
        is_end: bool,
        config: &Config,
    ) -> Result<Step, ParseError> {
        let Some(line) = self.next_line(data, is_end) else {
            let is_too_long = data.len() > config.field_limit;
            return if is_too_long { Err(self.too_long(transaction)) } else { Ok(Step::More) };
        };
        if line.bytes > config.field_limit {
            return Err(self.too_long(transaction));
        }
        let rest = data.get(line.bytes..).unwrap_or_default();
        let kind = kind(line.text, line.has_feed, rest, is_end);
        if kind == Kind::Unknown {
            return Ok(Step::More);
        }
        transaction.headers[self.way as usize].add_raw(data.get(..line.bytes).unwrap_or_default());
        let is_after_return = std::mem::replace(&mut self.is_after_return, !line.has_feed);
        match kind {
            Kind::Field if is_after_return && self.is_continued(line.text) => self.append(line.text),
            Kind::Field => {
                self.flush(transaction);
                self.pending = Some(line.text.to_vec());
            }
            Kind::Fold => self.fold(transaction, line.text),
            Kind::End => {
                self.flush(transaction);
                return Ok(Step::Done(line.bytes));
            }
            Kind::Nothing | Kind::Unknown => {}
        }
        Ok(Step::Read(line.bytes))
    }

    /// A line that begins with a blank goes on with the field before, unless it is a whole field and HTTP/1.1, where
    /// browsers read it as one.
    fn fold(&mut self, transaction: &mut HttpTransaction, text: &[u8]) {
        let is_new = self.way == Way::ToClient
            && transaction.status.protocol().eq_ignore_ascii_case(b"HTTP/1.1")
            && is_field(trim(text));
        if self.pending.is_some() && !is_new {
            return self.append(text);
        }
        transaction.raise(Event::of(self.way, Event::RequestFolding, Event::ResponseFolding));
        self.flush(transaction);
        self.pending = Some(trim(text).to_vec());
    }

    /// Return whether a lone carriage return was white space inside a field: what follows it is no field without what
    /// came before, or the other way round.
    fn is_continued(&self, text: &[u8]) -> bool {
        let has_colon = self.pending.as_ref().map(|pending| pending.contains(&b':'));
        has_colon.is_some() && text.first() == Some(&b':') || has_colon == Some(true) && !text.contains(&b':')
    }

    fn append(&mut self, text: &[u8]) {
        if let Some(pending) = &mut self.pending {
            let room = MOST_FOLDED.saturating_sub(pending.len()).min(text.len());
            pending.extend_from_slice(text.get(..room).unwrap_or_default());
        }
    }

    /// The field before is complete.
    pub fn flush(&mut self, transaction: &mut HttpTransaction) {
        let Some(line) = self.pending.take() else { return };
        let Err(flaw) = transaction.headers[self.way as usize].add(&line) else { return };
        let of = |request, response| Event::of(self.way, request, response);
        transaction.raise(match flaw {
            Flaw::ColonMissing => of(Event::RequestColonMissing, Event::ResponseColonMissing),
            Flaw::NameInvalid => of(Event::RequestHeaderInvalid, Event::ResponseHeaderInvalid),
            Flaw::Repeated => of(Event::RequestRepetition, Event::ResponseRepetition),
            Flaw::DifferentLength => of(Event::RequestDuplicateLength, Event::ResponseDuplicateLength),
            Flaw::TooMany => of(Event::RequestTooManyHeaders, Event::ResponseTooManyHeaders),
        });
    }

    /// A body begins: find out what has to be undone.
    pub fn begin_body(&mut self, transaction: &mut HttpTransaction, framing: Framing, is_file: bool, config: &Config) {
        let header = &transaction.headers[self.way as usize];
        let asked = header.get(b"content-encoding").unwrap_or_default();
        let asked = parse_codings(asked, config.layers[self.way as usize], config.is_lzma_on);
        let kind = header.get(b"content-type").unwrap_or_default();
        self.multipart = if is_file && self.way == Way::ToServer { Multipart::new(kind).map(Box::new) } else { None };
        self.is_file = is_file && self.multipart.is_none();
        self.framing = framing;
        if asked.is_too_many {
            transaction.raise(Event::TooManyLayers);
        }
        if asked.is_abnormal {
            transaction.raise(Event::AbnormalEncoding);
        }
        let has_codings = !asked.codings.is_empty();
        self.decoder = has_codings.then(|| Box::new(Decoder::new(&asked.codings, config.bomb_limit)));
    }

    /// Read some of a body.
    pub fn body(&mut self, transaction: &mut HttpTransaction, data: &[u8], is_end: bool, config: &Config) -> Step {
        match &mut self.framing {
            Framing::Length(0) => Step::Done(0),
            Framing::Length(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(data.len());
                if count == 0 {
                    return Step::More;
                }
                *left = left.saturating_sub(count as u64);
                self.content(transaction, data.get(..count).unwrap_or_default(), config);
                Step::Read(count)
            }
            Framing::Rest if data.is_empty() => Step::More,
            Framing::Rest => {
                self.content(transaction, data, config);
                Step::Read(data.len())
            }
            Framing::Chunked(chunks) => {
                let piece = chunks.next(data, is_end);
                self.chunk(transaction, piece, data, config)
            }
        }
    }

    fn chunk(&mut self, transaction: &mut HttpTransaction, piece: Piece, data: &[u8], config: &Config) -> Step {
        let message_bytes = &mut transaction.message_bytes[self.way as usize];
        match piece {
            Piece::More => Step::More,
            Piece::Framing { bytes, has_extension } => {
                *message_bytes += bytes as u64;
                if has_extension {
                    let event = Event::of(self.way, Event::RequestChunkExtension, Event::ResponseChunkExtension);
                    transaction.raise(event);
                }
                Step::Read(bytes)
            }
            Piece::Content(count) => {
                self.content(transaction, data.get(..count).unwrap_or_default(), config);
                Step::Read(count)
            }
            Piece::Last(bytes) => {
                *message_bytes += bytes as u64;
                Step::Done(bytes)
            }
            Piece::Invalid => {
                transaction.raise(Event::of(self.way, Event::RequestChunkLength, Event::ResponseChunkLength));
                self.framing = Framing::Rest;
                Step::Read(0)
            }
        }
    }

    /// Take bytes of the body as they came.
    pub fn content(&mut self, transaction: &mut HttpTransaction, data: &[u8], config: &Config) {
        transaction.message_bytes[self.way as usize] += data.len() as u64;
        self.decode(transaction, data, false, config);
    }

    /// Nothing more of the body will come.
    pub fn end_body(&mut self, transaction: &mut HttpTransaction, config: &Config) {
        self.decode(transaction, &[], true, config);
        if let Some(mut multipart) = self.multipart.take() {
            multipart.end(&mut |part| take_part(transaction, part, config));
        }
        self.decoder = None;
    }

    fn decode(&mut self, transaction: &mut HttpTransaction, data: &[u8], is_end: bool, config: &Config) {
        let name = (self.is_file && !transaction.has_body(self.way)).then(|| transaction.file_name(self.way));
        let (way, multipart) = (self.way, &mut self.multipart);
        let mut sink = |data: &[u8]| {
            let taken = transaction.append(way, data, name.as_deref(), config);
            if let Some(multipart) = multipart {
                let data = data.get(..taken).unwrap_or_default();
                multipart.feed(data, &mut |part| take_part(transaction, part, config));
            }
            !transaction.is_full(way)
        };
        let Some(decoder) = &mut self.decoder else {
            if !data.is_empty() {
                sink(data);
            }
            return;
        };
        decoder.push(data, is_end, &mut sink);
        let trouble = &decoder.trouble;
        let flaws = [
            (trouble.has_failed.get(), Event::DecompressionFailed),
            (trouble.is_bomb, Event::Bomb),
            (trouble.is_over_memory.get(), Event::LzmaLimit),
        ];
        flaws.iter().filter(|flaw| flaw.0).for_each(|flaw| transaction.raise(flaw.1));
    }

    /// Bytes of the body are missing; return whether it can go on.
    pub fn gap(&mut self, transaction: &mut HttpTransaction, bytes: u64) -> bool {
        match &mut self.framing {
            Framing::Length(left) | Framing::Chunked(Chunks::Data(left)) if *left > bytes => *left -= bytes,
            Framing::Length(left) if *left == bytes => *left = 0,
            Framing::Chunked(chunks @ Chunks::Data(_)) if *chunks == Chunks::Data(bytes) => *chunks = Chunks::End,
            Framing::Rest => {}
            _ => return false,
        }
        transaction.skip(self.way, bytes);
        let message_bytes = &mut transaction.message_bytes[self.way as usize];
        *message_bytes = message_bytes.saturating_add(bytes);
        if self.decoder.is_some() {
            transaction.complete_body(self.way); // what follows cannot be made sense of
        }
        self.multipart = None;
        true
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.pending.as_ref().map_or(0, Vec::capacity)
            + self.decoder.as_ref().map_or(0, |decoder| decoder.heap_bytes())
            + self.multipart.as_ref().map_or(0, |multipart| multipart.heap_bytes())
    }

    /// The trailer begins.
    pub fn begin_trailer(&mut self, transaction: &mut HttpTransaction, config: &Config) {
        self.end_body(transaction, config);
        transaction.advance(self.way, progress::TRAILER);
    }
}

fn take_part(transaction: &mut HttpTransaction, part: Part<'_>, config: &Config) {
    match part {
        Part::Begin(name) => transaction.begin_part(name, config.most_held(Way::ToServer)),
        Part::Data(data) => transaction.part_data(data),
        Part::End => transaction.end_part(),
        Part::Flaw(event) => transaction.raise(event),
    }
}
