//! The part that parsers of framed messages share: cutting a stream into messages, and how many transactions may wait.
//!
//! Promises: every byte is read once; a message longer than what is held is shown by its head, and the rest is passed
//! over; the list of transactions is bounded. Leaves to each protocol: what a message says ([`Dialect::read`]).

use crate::{
    BufferInfo, COMPLETE, Json, NumberInfo, ParseError, Parser, Transaction, Transactions, Transport, Way, Ways,
};

/// Transactions that may wait for their answers (or for being looked at) in one flow: as many as Suricata's
/// `request-flood` default for Modbus and DNP3.
pub(crate) const MOST_UNITS: usize = 500;

/// Bytes that the transactions of one flow may hold: some twenty of the longest messages.
pub(crate) const MOST_BYTES: usize = 1 << 20;

/// The longest head of a message that is held: below [`crate::MOST_HELD`], above every message length of the
/// protocols here except MQTT's and OPC UA's.
pub(crate) const MOST_HEAD: usize = 48 << 10;

/// What stands at the front of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Frame {
    /// Not enough bytes to say.
    More,
    /// A message of that many bytes.
    Message(u64),
}

/// What a protocol of framed messages has to do itself.
pub(crate) trait Dialect: Send + 'static {
    /// Its transactions.
    type Unit: Unit;
    /// The event that says that too many requests were without an answer.
    const FLOODED: Option<u8>;
    /// Reading may go on after a gap, at bytes that [`Dialect::begins`] takes for the beginning of a message.
    const RESUMES: bool = false;

    /// Say how long the message in front is. Never 0.
    fn frame(&mut self, way: Way, data: &[u8]) -> Result<Frame, ParseError>;

    /// Read a message (`is_cut`: only its head).
    fn read(
        &mut self,
        way: Way,
        message: &[u8],
        is_cut: bool,
        units: &mut Transactions<Self::Unit>,
    ) -> Result<(), ParseError>;

    /// Return whether a message may begin here; only asked after a gap. Segments of these protocols mostly begin one.
    fn begins(&self, _data: &[u8]) -> bool {
        true
    }

    /// Bytes are missing: forget what is half read.
    fn lose(&mut self, _way: Way) {}

    /// Bytes on the heap besides the transactions.
    fn heap_bytes(&self) -> usize {
        0
    }
}

/// A transaction of a framed protocol.
pub(crate) trait Unit: Transaction {
    /// Nothing more will come.
    fn close(&mut self);
    /// An event was noticed.
    fn note(&mut self, event: u8);
    /// Bytes on the heap.
    fn heap_bytes(&self) -> usize;
}

/// The parser of one flow of a framed protocol.
pub(crate) struct Framed<D: Dialect> {
    dialect: D,
    units: Transactions<D::Unit>,
    transport: Transport,
    passing_over: [u64; 2],
    is_lost: [bool; 2],
    /// Bytes that the transactions hold at most; an exact sum is only made when it comes near the limit.
    held: usize,
}

impl<D: Dialect> Framed<D> {
    /// Begin.
    pub(crate) fn new(dialect: D, transport: Transport) -> Framed<D> {
        Framed {
            dialect,
            units: Transactions::new(MOST_UNITS),
            transport,
            passing_over: [0; 2],
            is_lost: [false; 2],
            held: 0,
        }
    }

    /// Make place for one more transaction. False: what is held is complete and waits to be looked at: reading pauses.
    fn make_place(&mut self) -> bool {
        if self.units.len() < MOST_UNITS && self.held < MOST_BYTES {
            return true;
        }
        self.held = self.heap_bytes();
        while self.units.len() >= MOST_UNITS || self.held >= MOST_BYTES {
            let first = self.units.range().0;
            let Some(oldest) = self.units.get(first) else { return true };
            if Way::BOTH.iter().all(|way| oldest.progress(*way) == COMPLETE) {
                return false;
            }
            // nobody answers: the oldest request is given up, so that later ones are not hidden behind it
            self.held = self.held.saturating_sub(oldest.heap_bytes() + size_of::<D::Unit>());
            self.units.remove(first);
            if let (Some(event), Some(last)) = (D::FLOODED, self.units.last_mut()) {
                last.note(event);
            }
        }
        true
    }

    fn pass_over(&mut self, way: Way, available: u64) -> u64 {
        let Some(left) = self.passing_over.get_mut(way as usize) else { return 0 };
        let now = available.min(*left);
        *left -= now;
        now
    }

    fn message(&mut self, way: Way, rest: &[u8]) -> Result<usize, ParseError> {
        if let Some(is_lost) = self.is_lost.get_mut(way as usize).filter(|is_lost| **is_lost) {
            if !self.dialect.begins(rest) {
                return Ok(rest.len());
            }
            *is_lost = false;
        }
        let Frame::Message(length) = self.dialect.frame(way, rest)? else { return Ok(0) };
        let head = usize::try_from(length).unwrap_or(usize::MAX).clamp(1, MOST_HEAD);
        let Some(message) = rest.get(..head) else { return Ok(0) };
        if !self.make_place() {
            return Ok(0);
        }
        let behind = length.saturating_sub(head as u64);
        // what a message leaves behind is at most a few times its length: lists of small records
        self.held = self.held.saturating_add(4 * head + size_of::<D::Unit>());
        self.dialect.read(way, message, behind > 0, &mut self.units)?;
        if let Some(left) = self.passing_over.get_mut(way as usize) {
            *left = behind;
        }
        Ok(head)
    }
}

impl<D: Dialect> Parser for Framed<D> {
    fn parse(&mut self, way: Way, data: &[u8], _is_end: bool) -> Result<usize, ParseError> {
        if self.transport == Transport::Udp {
            if !self.make_place() {
                return Err(ParseError("too many messages wait"));
            }
            self.held = self.held.saturating_add(4 * data.len() + size_of::<D::Unit>());
            return self.dialect.read(way, data, false, &mut self.units).map(|()| data.len());
        }
        let mut at = usize::try_from(self.pass_over(way, data.len() as u64)).unwrap_or(data.len());
        while let Some(rest) = data.get(at..).filter(|rest| !rest.is_empty()) {
            let read = self.message(way, rest)?;
            if read == 0 {
                break;
            }
            at += read;
            at += usize::try_from(self.pass_over(way, (data.len() - at) as u64)).unwrap_or(0);
        }
        Ok(at)
    }

    fn gap(&mut self, way: Way, bytes: u64) -> Result<(), ParseError> {
        if self.pass_over(way, bytes) == bytes {
            return Ok(());
        }
        let is_lost =
            self.is_lost.get_mut(way as usize).filter(|_| D::RESUMES).ok_or(ParseError("bytes are missing"))?;
        *is_lost = true;
        self.dialect.lose(way);
        Ok(())
    }

    fn range(&self) -> (u64, u64) {
        self.units.range()
    }

    fn transaction(&self, id: u64) -> Option<&dyn Transaction> {
        self.units.get(id).map(|unit| unit as _)
    }

    fn remove(&mut self, id: u64) {
        self.units.remove(id);
    }

    fn finish(&mut self) {
        self.units.iter_mut().for_each(|(_, unit)| unit.close());
    }

    fn heap_bytes(&self) -> usize {
        let (first, end) = self.units.range();
        let units =
            (first..end).filter_map(|id| self.units.get(id)).map(|unit| size_of::<D::Unit>() + unit.heap_bytes());
        units.sum::<usize>() + self.dialect.heap_bytes()
    }
}

/// A list of events: each once, in the order in which they were noticed.
#[derive(Default, Debug)]
pub(crate) struct Events(Vec<u8>);

impl Events {
    /// Add one.
    pub(crate) fn add(&mut self, event: u8) {
        if !self.0.contains(&event) {
            self.0.push(event);
        }
    }

    /// All of them.
    pub(crate) fn list(&self) -> &[u8] {
        &self.0
    }
}

/// Text or bytes from the wire, not more than `most` of them.
pub(crate) fn cut(bytes: &[u8], most: usize) -> Vec<u8> {
    bytes.get(..most).unwrap_or(bytes).to_vec()
}

/// A number that exists in both ways, once, and needs no waiting.
pub(crate) const fn number(keyword: &'static str, bits: u8, names: &'static [(&'static str, u64)]) -> NumberInfo {
    NumberInfo { keyword, aliases: &[], ways: Ways::Both, progress: COMPLETE, bits, names, is_multiple: false }
}

/// A number that exists in both ways, several times, and needs no waiting.
pub(crate) const fn numbers(keyword: &'static str, bits: u8, names: &'static [(&'static str, u64)]) -> NumberInfo {
    NumberInfo { is_multiple: true, ..number(keyword, bits, names) }
}

/// A buffer that exists in both ways, once, and needs no waiting.
pub(crate) const fn buffer(keyword: &'static str) -> BufferInfo {
    BufferInfo {
        keyword,
        aliases: &[],
        modifiers: &[],
        ways: Ways::Both,
        progress: COMPLETE,
        is_multiple: false,
        is_growing: false,
    }
}

/// A buffer that exists in both ways, several times, and needs no waiting.
pub(crate) const fn buffers(keyword: &'static str) -> BufferInfo {
    BufferInfo { is_multiple: true, ..buffer(keyword) }
}

/// Return the name of a value in a table of names.
pub(crate) fn name_of(names: &'static [(&'static str, u64)], value: u64) -> Option<&'static str> {
    names.iter().find(|(_, number)| *number == value).map(|(name, _)| *name)
}

/// Write a value as `key` by its name, or as a number where it has none.
pub(crate) fn log_named(json: &mut Json, key: &str, names: &'static [(&'static str, u64)], value: u64) {
    match name_of(names, value) {
        Some(name) => json.text(key, name),
        None => json.text(key, format!("unknown-{value}")),
    }
}

/// Return the id of the oldest transaction that is so.
pub(crate) fn find<U>(units: &mut Transactions<U>, is_so: impl Fn(&U) -> bool) -> Option<u64> {
    units.iter_mut().find(|(_, unit)| is_so(unit)).map(|(id, _)| id)
}
