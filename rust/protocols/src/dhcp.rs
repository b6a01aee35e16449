//! DHCP (RFC 2131, RFC 2132): which address went to which hardware, and for how long.
//!
//! Promises: each datagram is a transaction; what is not well-formed is an event, not an error.
//! Leaves to others: matching requests with replies (`id` in the records does it).
//! Read first: [`Message`].

mod log;
#[cfg(test)]
mod tests;

use std::any::Any;

use crate::{
    COMPLETE, Json, NumberInfo, ParseError, Parser, Probe, Protocol, Reader, RecordInfo, Settings, Start, Transaction,
    Transactions, Transport, View, Way, Ways,
};

/// Messages that wait to be looked at.
const MOST_TRANSACTIONS: usize = 64;
/// RFC 2131 section 2: fixed fields, names and the cookie in front of the options.
const HEADER_BYTES: usize = 240;
const COOKIE: u32 = 0x6382_5363;
/// Options of one message; there are 254 codes.
const MOST_OPTIONS: usize = 256;
/// A datagram's options are kept up to this length; ordinary ones have 300 bytes.
const MOST_KEPT: usize = 4096;

/// Codes of options (RFC 2132).
mod option {
    pub const PAD: u8 = 0;
    pub const LEASE: u8 = 51;
    pub const TYPE: u8 = 53;
    pub const RENEWAL: u8 = 58;
    pub const REBINDING: u8 = 59;
    pub const END: u8 = 255;
}

mod event {
    pub const TRUNCATED_OPTIONS: u8 = 0;
    pub const MALFORMED_OPTIONS: u8 = 1;
}

const fn seconds(keyword: &'static str) -> NumberInfo {
    let (ways, progress) = (Ways::Both, COMPLETE);
    NumberInfo { keyword, aliases: &[], ways, progress, bits: 64, names: &[], is_multiple: false }
}

const fn record(way: Way) -> RecordInfo {
    RecordInfo { event_type: "dhcp", to_server: COMPLETE, to_client: COMPLETE, way }
}

/// DHCP.
pub static PROTOCOL: Protocol = Protocol {
    name: "dhcp",
    aliases: &[],
    transports: &[Transport::Udp],
    ports: &[67, 68],
    probe,
    parser: |settings: &Settings, _| {
        let is_extended = settings.flag("outputs.eve-log.types.dhcp.extended", false);
        Box::new(Dhcp { transactions: Transactions::new(MOST_TRANSACTIONS), is_extended })
    },
    buffers: &[],
    numbers: &[seconds("dhcp.leasetime"), seconds("dhcp.rebinding_time"), seconds("dhcp.renewal_time")],
    keywords: &[],
    states: &[],
    records: &[record(Way::ToServer), record(Way::ToClient)],
    events: &["truncated_options", "malformed_options"],
};

/// The cookie is proof enough on any port.
fn probe(start: &Start<'_>) -> Probe {
    let is_operation = matches!(start.data.first(), Some(1 | 2));
    let cookie = start.data.get(HEADER_BYTES - 4..HEADER_BYTES);
    if is_operation && cookie == Some(&COOKIE.to_be_bytes()[..]) { Probe::Yes } else { Probe::No }
}

struct Dhcp {
    transactions: Transactions<Message>,
    is_extended: bool,
}

/// One datagram.
struct Message {
    way: Way,
    is_request: bool,
    id: u32,
    /// The client's, the assigned one, the next server's, the relay's.
    addresses: [[u8; 4]; 4],
    hardware: [u8; 16],
    hardware_length: usize,
    /// Code and place in `data`.
    options: Vec<(u8, std::ops::Range<usize>)>,
    data: Box<[u8]>,
    events: Vec<u8>,
    is_extended: bool,
}

impl Message {
    fn read(way: Way, data: &[u8], is_extended: bool) -> Option<Message> {
        let mut reader = Reader::new(data);
        let (operation, _kind, length, _hops) = (reader.u8()?, reader.u8()?, reader.u8()?, reader.u8()?);
        let id = reader.be32()?;
        reader.take(4)?; // seconds and flags
        let addresses = [reader.array()?, reader.array()?, reader.array()?, reader.array()?];
        let hardware = reader.array()?;
        reader.take(64 + 128)?; // names of server and boot file
        if reader.be32()? != COOKIE {
            return None;
        }
        let data = reader.rest();
        let data = data.get(..data.len().min(MOST_KEPT)).unwrap_or_default();
        let mut message = Message {
            way,
            is_request: operation == 1,
            id,
            addresses,
            hardware,
            hardware_length: usize::from(length).min(16),
            options: Vec::new(),
            data: data.into(),
            events: Vec::new(),
            is_extended,
        };
        message.read_options();
        Some(message)
    }

    fn read_options(&mut self) {
        let mut reader = Reader::new(&self.data);
        for _ in 0..MOST_OPTIONS {
            match reader.u8() {
                Some(option::PAD) => {}
                Some(option::END) => return,
                Some(code) => {
                    let Some(length) = reader.u8() else { return self.events.push(event::TRUNCATED_OPTIONS) };
                    let start = reader.position();
                    if reader.take(length.into()).is_none() {
                        return self.events.push(event::TRUNCATED_OPTIONS);
                    }
                    if length == 0 && code == option::TYPE {
                        self.events.push(event::MALFORMED_OPTIONS);
                    }
                    self.options.push((code, start..reader.position()));
                }
                None => return self.events.push(event::TRUNCATED_OPTIONS),
            }
        }
    }

    fn option(&self, code: u8) -> Option<&[u8]> {
        let (_, range) = self.options.iter().find(|(other, _)| *other == code)?;
        self.data.get(range.clone())
    }

    /// An option that is a number of seconds.
    fn seconds(&self, code: u8) -> Option<u32> {
        self.option(code).and_then(|data| <[u8; 4]>::try_from(data).ok()).map(u32::from_be_bytes)
    }
}

impl Parser for Dhcp {
    fn parse(&mut self, way: Way, data: &[u8], _is_end: bool) -> Result<usize, ParseError> {
        if let Some(message) = Message::read(way, data, self.is_extended) {
            self.transactions.push(message).ok_or(ParseError("too many messages"))?;
        }
        Ok(data.len())
    }

    fn range(&self) -> (u64, u64) {
        self.transactions.range()
    }

    fn transaction(&self, id: u64) -> Option<&dyn Transaction> {
        self.transactions.get(id).map(|message| message as _)
    }

    fn remove(&mut self, id: u64) {
        self.transactions.remove(id);
    }

    fn finish(&mut self) {}

    fn heap_bytes(&self) -> usize {
        let (first, end) = self.transactions.range();
        let messages = (first..end).filter_map(|id| self.transactions.get(id));
        let of = |message: &Message| {
            size_of::<Message>()
                + message.data.len()
                + message.options.capacity() * size_of::<(u8, std::ops::Range<usize>)>()
        };
        messages.map(of).sum()
    }
}

impl Transaction for Message {
    fn progress(&self, _way: Way) -> u8 {
        COMPLETE
    }

    fn buffer(&self, _index: usize, _way: Way, _nth: usize) -> Option<View<'_>> {
        None
    }

    fn number(&self, index: usize, way: Way, nth: usize) -> Option<u64> {
        let codes = [option::LEASE, option::REBINDING, option::RENEWAL];
        let code = codes.get(index).filter(|_| way == self.way && nth == 0)?;
        self.seconds(*code).map(u64::from)
    }

    fn events(&self) -> &[u8] {
        &self.events
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        log::write(self, json);
    }

    /// Without `extended`, only what maps an address to hardware: the acknowledgement.
    fn is_logged(&self, record: usize) -> bool {
        let is_acknowledgement = self.option(option::TYPE) == Some(&[log::ACKNOWLEDGEMENT]);
        record == self.way as usize && (self.is_extended || is_acknowledgement)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
