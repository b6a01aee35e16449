//! A message: its header, its questions and records, and the names in them, expanded into one buffer.

use super::event;
use super::rdata::{self, Data};
use crate::Reader;

/// RFC 1035 section 4.1.1.
pub const HEADER_BYTES: usize = 12;
/// Expanded names and texts of one message; compression could otherwise turn 64 KiB into megabytes.
const MOST_TEXT: usize = 128 << 10;
/// Questions and records of one message; a full answer over TCP with the shortest records has about four thousand.
const MOST_RECORDS: usize = 2048;
/// Labels and pointers of one name. RFC 1035 allows 127 labels in its 255 bytes; Suricata follows 255.
const MOST_LABELS: usize = 255;
/// A name longer than this is cut. RFC 1035 section 2.3.4 says 255; Suricata allows 1025 before it calls it too long.
const MOST_NAME: usize = 1025;
/// Names that were pointed at and are likely to be pointed at again: most answers point at the question only.
const MOST_REMEMBERED: usize = 8;

/// The fixed beginning.
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    pub id: u16,
    pub flags: u16,
    /// How many questions, answers, authorities and additionals are said to follow.
    pub counts: [u16; 4],
}

impl Header {
    /// Read it; `None` where it is cut off.
    pub fn read(data: &[u8]) -> Option<Header> {
        let mut reader = Reader::new(data);
        let (id, flags) = (reader.be16()?, reader.be16()?);
        Some(Header { id, flags, counts: [reader.be16()?, reader.be16()?, reader.be16()?, reader.be16()?] })
    }

    pub fn is_response(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    pub fn opcode(&self) -> u8 {
        (self.flags >> 11) as u8 & 0xf
    }

    pub fn rcode(&self) -> u8 {
        self.flags as u8 & 0xf
    }

    /// Return whether a message of `bytes` can hold what is announced: a question takes at least five bytes, a record
    /// eleven.
    pub fn is_plausible(&self, bytes: usize) -> bool {
        let records: usize = self.counts.iter().skip(1).map(|&count| usize::from(count)).sum();
        let least = usize::from(self.counts[0]) * 5 + records * 11;
        least > 0 && least <= bytes.saturating_sub(HEADER_BYTES)
    }
}

/// A stretch of [`Message::text`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    length: u32,
}

/// A question.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    pub name: Span,
    pub rrtype: u16,
    pub class: u16,
}

/// A record in one of the other sections.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub name: Span,
    pub rrtype: u16,
    pub ttl: u32,
    pub data: Data,
}

/// Everything that one message says.
#[derive(Debug, Default)]
pub struct Message {
    pub header: Header,
    pub queries: Vec<Query>,
    /// Answers, authorities and additionals, one behind the other.
    records: Vec<Record>,
    ends: [usize; 3],
    /// Names inside records' data.
    pub data_names: Vec<Span>,
    text: Vec<u8>,
    /// What was wrong, each once.
    pub events: Vec<u8>,
    /// Nothing follows the last record.
    pub is_exact: bool,
    remembered: [(u16, Span); MOST_REMEMBERED],
    remembered_count: usize,
}

impl Message {
    /// Read a message; `None` where header, questions or answers are not well-formed. Faults behind them are events.
    pub fn read(data: &[u8]) -> Option<Message> {
        let header = Header::read(data)?;
        let mut message = Message { header, ..Message::default() };
        let mut reader = Reader::new(data);
        reader.take(HEADER_BYTES)?;
        for _ in 0..header.counts[0] {
            let query = message.read_query(data, &mut reader)?;
            message.queries.push(query);
        }
        message.read_section(data, &mut reader, 0)?;
        let faults = [event::INVALID_AUTHORITIES, event::INVALID_ADDITIONALS];
        for (section, fault) in (1..).zip(faults) {
            if message.read_section(data, &mut reader, section).is_none() {
                message.note(fault);
                message.close_sections(section);
                break;
            }
        }
        message.is_exact = reader.left() == 0;
        message.shrink();
        Some(message)
    }

    fn read_query(&mut self, data: &[u8], reader: &mut Reader<'_>) -> Option<Query> {
        if self.queries.len() >= MOST_RECORDS {
            return None;
        }
        let name = self.read_name(data, reader)?;
        Some(Query { name, rrtype: reader.be16()?, class: reader.be16()? })
    }

    fn read_section(&mut self, data: &[u8], reader: &mut Reader<'_>, section: usize) -> Option<()> {
        let count = self.header.counts.get(section + 1).copied().unwrap_or_default();
        for _ in 0..count {
            self.read_record(data, reader)?;
        }
        self.close_sections(section);
        Some(())
    }

    fn close_sections(&mut self, from: usize) {
        for end in self.ends.iter_mut().skip(from) {
            *end = self.records.len();
        }
    }

    fn read_record(&mut self, data: &[u8], reader: &mut Reader<'_>) -> Option<()> {
        if self.records.len() >= MOST_RECORDS {
            return None;
        }
        let name = self.read_name(data, reader)?;
        let (rrtype, _class, ttl) = (reader.be16()?, reader.be16()?, reader.be32()?);
        let length = usize::from(reader.be16()?);
        let start = reader.position();
        let bytes = reader.take(length)?;
        if rrtype == rdata::TXT {
            return self.read_texts(bytes, name, ttl);
        }
        let read = rdata::read(self, data, start, bytes, rrtype)?;
        self.records.push(Record { name, rrtype, ttl, data: read });
        Some(())
    }

    /// Each string of a TXT record counts as a record, as Suricata has it.
    fn read_texts(&mut self, bytes: &[u8], name: Span, ttl: u32) -> Option<()> {
        let mut reader = Reader::new(bytes);
        while reader.left() > 0 {
            let length = usize::from(reader.u8()?);
            let text = self.keep(reader.take(length)?)?;
            if self.records.len() >= MOST_RECORDS {
                return None;
            }
            self.records.push(Record { name, rrtype: rdata::TXT, ttl, data: Data::Text(text) });
        }
        Some(())
    }

    /// Read a name at the reader's place and move behind it.
    pub fn read_name(&mut self, data: &[u8], reader: &mut Reader<'_>) -> Option<Span> {
        let (span, length) = self.expand(data, reader.position())?;
        reader.take(length)?;
        Some(span)
    }

    /// Expand the name at `start`; return it and how many bytes it takes there.
    fn expand(&mut self, data: &[u8], start: usize) -> Option<(Span, usize)> {
        let first = *data.get(start)?;
        if first & 0xc0 == 0xc0 {
            let target = pointer(data, start)?;
            if let Some((_, span)) = self.remembered.iter().take(self.remembered_count).find(|(at, _)| *at == target) {
                return Some((*span, 2));
            }
            let (span, _) = self.walk(data, usize::from(target))?;
            self.remember(target, span);
            return Some((span, 2));
        }
        let (span, length) = self.walk(data, start)?;
        if let Ok(at) = u16::try_from(start) {
            self.remember(at, span);
        }
        Some((span, length))
    }

    fn remember(&mut self, at: u16, span: Span) {
        if let Some(slot) = self.remembered.get_mut(self.remembered_count) {
            *slot = (at, span);
            self.remembered_count += 1;
        }
    }

    /// Follow labels and pointers. A loop ends at [`MOST_LABELS`]: what was read until then is the name.
    fn walk(&mut self, data: &[u8], start: usize) -> Option<(Span, usize)> {
        let begin = self.text.len();
        let (mut at, mut behind) = (start, None);
        let mut pointers = 0;
        for step in 0..=MOST_LABELS {
            let length = usize::from(*data.get(at)?);
            match length {
                0 => return Some((self.span_from(begin)?, behind.unwrap_or_else(|| at + 1 - start))),
                _ if step == MOST_LABELS => break,
                0x01..=0x3f => {
                    let label = data.get(at + 1..at + 1 + length)?;
                    self.append_label(begin, label)?;
                    at += 1 + length;
                }
                0xc0.. => {
                    behind = behind.or_else(|| Some(at + 2 - start));
                    at = usize::from(pointer(data, at)?);
                    pointers += 1;
                }
                _ => return None, // RFC 2671's and RFC 2673's other label types were withdrawn
            }
        }
        self.note(if pointers > 0 { event::INFINITE_LOOP } else { event::TOO_MANY_LABELS });
        Some((self.span_from(begin)?, behind?))
    }

    fn append_label(&mut self, begin: usize, label: &[u8]) -> Option<()> {
        let held = self.text.len().checked_sub(begin)?;
        if held + label.len() + 1 > MOST_NAME {
            self.note(event::NAME_TOO_LONG);
            return Some(());
        }
        if self.text.len() + label.len() + 1 > MOST_TEXT {
            return None;
        }
        if held > 0 {
            self.text.push(b'.');
        }
        self.text.extend_from_slice(label);
        Some(())
    }

    /// Keep bytes of a record's data.
    pub fn keep(&mut self, bytes: &[u8]) -> Option<Span> {
        if self.text.len() + bytes.len() > MOST_TEXT {
            return None;
        }
        let begin = self.text.len();
        self.text.extend_from_slice(bytes);
        self.span_from(begin)
    }

    fn span_from(&self, begin: usize) -> Option<Span> {
        let length = self.text.len().checked_sub(begin)?;
        Some(Span { start: u32::try_from(begin).ok()?, length: u32::try_from(length).ok()? })
    }

    fn note(&mut self, event: u8) {
        if !self.events.contains(&event) {
            self.events.push(event);
        }
    }

    /// Note an event that the parser found.
    pub fn add_event(&mut self, event: u8) {
        self.note(event);
    }

    fn shrink(&mut self) {
        self.queries.shrink_to_fit();
        self.records.shrink_to_fit();
        self.data_names.shrink_to_fit();
        self.text.shrink_to_fit();
    }

    /// Return the bytes of a name or text.
    pub fn text(&self, span: Span) -> &[u8] {
        let (start, length) = (span.start as usize, span.length as usize);
        self.text.get(start..start.saturating_add(length)).unwrap_or_default()
    }

    pub fn answers(&self) -> &[Record] {
        self.records.get(..self.ends[0]).unwrap_or_default()
    }

    pub fn authorities(&self) -> &[Record] {
        self.records.get(self.ends[0]..self.ends[1]).unwrap_or_default()
    }

    pub fn additionals(&self) -> &[Record] {
        self.records.get(self.ends[1]..self.ends[2]).unwrap_or_default()
    }

    /// Return name `nth` of all names in the message: of questions, of records, in records' data.
    pub fn any_name(&self, nth: usize) -> Option<Span> {
        let (queries, records) = (self.queries.len(), self.records.len());
        if nth < queries {
            self.queries.get(nth).map(|query| query.name)
        } else if nth - queries < records {
            self.records.get(nth - queries).map(|record| record.name)
        } else {
            self.data_names.get(nth - queries - records).copied()
        }
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.text.capacity()
            + self.queries.capacity() * size_of::<Query>()
            + self.records.capacity() * size_of::<Record>()
            + self.data_names.capacity() * size_of::<Span>()
            + self.events.capacity()
    }
}

fn pointer(data: &[u8], at: usize) -> Option<u16> {
    let high = data.get(at)?;
    let low = data.get(at.checked_add(1)?)?;
    Some(u16::from_be_bytes([high & 0x3f, *low]))
}
