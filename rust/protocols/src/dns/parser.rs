//! From datagrams or from a stream of length-prefixed messages to transactions.

use super::message::{Header, Message};
use super::transaction::{Entry, Style, logged_types};
use super::{Kind, event, types};
use crate::{ParseError, Parser, Settings, Transaction, Transactions, Transport, Way};

/// Messages of one flow that wait to be looked at; they are taken away after every packet, so only a burst within one
/// segment counts.
const MOST_TRANSACTIONS: usize = 1024;
/// Their bytes on the heap altogether: a handful of the largest messages.
const MOST_BYTES: usize = 1 << 20;

/// The parser of a flow.
pub struct Dns {
    kind: Kind,
    transport: Transport,
    style: Style,
    logged_types: Vec<u16>,
    transactions: Transactions<Entry>,
    heap: usize,
    /// By way: bytes are missing, so the next ones may begin anywhere.
    is_lost: [bool; 2],
}

impl Dns {
    pub fn new(kind: Kind, settings: &Settings, transport: Transport) -> Dns {
        let transactions = Transactions::new(MOST_TRANSACTIONS);
        let logged_types = if kind == Kind::Dns { logged_types(settings) } else { Vec::new() };
        let style = Style::new(kind, settings);
        Dns { kind, transport, style, logged_types, transactions, heap: 0, is_lost: [false; 2] }
    }

    fn take(&mut self, way: Way, data: &[u8]) -> Result<(), ParseError> {
        let entry = match self.read(way, data) {
            Ok(message) => Entry::new(way, message, self.style, &self.logged_types),
            Err(event) => Entry::broken(way, event, self.style),
        };
        self.heap += entry.heap_bytes();
        if self.heap > MOST_BYTES {
            return Err(ParseError("too much is held"));
        }
        let id = self.transactions.push(entry).ok_or(ParseError("too many messages"))?;
        if let Some(entry) = self.transactions.get_mut(id) {
            entry.id = id;
        }
        Ok(())
    }

    /// Read a message, or say what is wrong with it as a whole.
    fn read(&self, way: Way, data: &[u8]) -> Result<Message, u8> {
        let header = Header::read(data).ok_or(event::MALFORMED_DATA)?;
        if self.kind == Kind::Dns {
            match (way, header.is_response()) {
                (Way::ToServer, true) => return Err(event::NOT_REQUEST),
                (Way::ToClient, false) => return Err(event::NOT_RESPONSE),
                _ => {}
            }
        }
        let mut message = Message::read(data).ok_or(event::MALFORMED_DATA)?;
        if header.flags & 0x40 != 0 {
            message.add_event(event::Z_FLAG_SET);
        }
        if header.opcode() >= types::FIRST_UNKNOWN_OPCODE {
            message.add_event(event::INVALID_OPCODE);
        }
        Ok(message)
    }

    /// After a gap, go on where a message seems to begin; until then nothing is read.
    fn is_found(&mut self, way: Way, data: &[u8]) -> bool {
        let lost = &mut self.is_lost[way as usize];
        if *lost {
            let header = data.get(2..).and_then(Header::read);
            let length = data.first_chunk::<2>().map_or(0, |length| usize::from(u16::from_be_bytes(*length)));
            let is_response = way == Way::ToClient;
            *lost = !header.is_some_and(|header| header.is_response() == is_response && header.is_plausible(length));
        }
        !*lost
    }
}

impl Parser for Dns {
    fn parse(&mut self, way: Way, data: &[u8], _is_end: bool) -> Result<usize, ParseError> {
        if self.transport == Transport::Udp {
            self.take(way, data)?;
            return Ok(data.len());
        }
        if !data.is_empty() && !self.is_found(way, data) {
            return Ok(data.len());
        }
        let mut rest = data;
        while let Some((length, behind)) = rest.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            let Some(message) = behind.get(..length) else { break };
            // an empty message is what some peers send to keep the connection
            if length > 0 {
                self.take(way, message)?;
            }
            rest = behind.get(length..).unwrap_or_default();
        }
        Ok(data.len() - rest.len())
    }

    fn gap(&mut self, way: Way, _bytes: u64) -> Result<(), ParseError> {
        self.is_lost[way as usize] = true;
        Ok(())
    }

    fn range(&self) -> (u64, u64) {
        self.transactions.range()
    }

    fn transaction(&self, id: u64) -> Option<&dyn Transaction> {
        self.transactions.get(id).map(|entry| entry as _)
    }

    fn remove(&mut self, id: u64) {
        if let Some(entry) = self.transactions.get(id) {
            self.heap = self.heap.saturating_sub(entry.heap_bytes());
        }
        self.transactions.remove(id);
    }

    fn finish(&mut self) {}

    fn heap_bytes(&self) -> usize {
        self.heap + self.transactions.len() * size_of::<Entry>() + self.logged_types.capacity() * 2
    }
}
