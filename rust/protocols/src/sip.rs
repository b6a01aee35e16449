//! SIP (RFC 3261) in datagrams and in streams: who calls whom, with what.
//!
//! Promises: every request and every response is a transaction of its own; short names of fields count as long ones.
//! Leaves to others: what a body says (SDP), and the calls themselves.
//! Read first: [`Message`], in `sip/message.rs`.

mod message;
#[cfg(test)]
mod tests;

use crate::line::{begins, contains, first_line, may_become};
use crate::{
    BufferInfo, COMPLETE, ParseError, Parser, Probe, Protocol, RecordInfo, Settings, Start, Transaction, Transactions,
    Transport, Way, Ways,
};
use message::Message;

/// Messages that wait for a look.
const MOST_TRANSACTIONS: usize = 64;
/// Bytes of a message's head in a stream; datagrams have at most 64 KiB, of which heads are a fraction.
const MOST_HEAD: usize = 16 << 10;

mod buffer {
    pub const METHOD: usize = 0;
    pub const URI: usize = 1;
    pub const REQUEST_LINE: usize = 2;
    pub const STAT_CODE: usize = 3;
    pub const STAT_MSG: usize = 4;
    pub const RESPONSE_LINE: usize = 5;
    pub const PROTOCOL: usize = 6;
    /// Fields follow; see [`super::message::FIELDS`].
    pub const FIELDS: usize = 7;
}

mod event {
    pub const INCOMPLETE_DATA: u8 = 0;
    pub const INVALID_DATA: u8 = 1;
}

const fn one(keyword: &'static str, ways: Ways) -> BufferInfo {
    let progress = COMPLETE;
    BufferInfo { keyword, aliases: &[], modifiers: &[], ways, progress, is_multiple: false, is_growing: false }
}

const fn field(keyword: &'static str) -> BufferInfo {
    BufferInfo { is_multiple: true, ..one(keyword, Ways::Both) }
}

const fn record(way: Way) -> RecordInfo {
    RecordInfo { event_type: "sip", to_server: COMPLETE, to_client: COMPLETE, way }
}

/// SIP.
pub static PROTOCOL: Protocol = Protocol {
    name: "sip",
    aliases: &[],
    transports: &[Transport::Udp, Transport::Tcp],
    ports: &[5060],
    probe,
    parser: |_: &Settings, transport| Box::new(Sip::new(transport)),
    buffers: &[
        one("sip.method", Ways::ToServer),
        one("sip.uri", Ways::ToServer),
        one("sip.request_line", Ways::ToServer),
        one("sip.stat_code", Ways::ToClient),
        one("sip.stat_msg", Ways::ToClient),
        one("sip.response_line", Ways::ToClient),
        one("sip.protocol", Ways::Both),
        field("sip.from"),
        field("sip.to"),
        field("sip.via"),
        field("sip.user_agent"),
        field("sip.content_type"),
        field("sip.content_length"),
    ],
    numbers: &[],
    keywords: &[],
    states: &[],
    records: &[record(Way::ToServer), record(Way::ToClient)],
    events: &["incomplete_data", "invalid_data"],
};

/// RFC 3261 and its extensions.
static METHODS: &[&[u8]] = &[
    b"REGISTER ",
    b"INVITE ",
    b"ACK ",
    b"BYE ",
    b"CANCEL ",
    b"UPDATE ",
    b"REFER ",
    b"PRACK ",
    b"SUBSCRIBE ",
    b"NOTIFY ",
    b"PUBLISH ",
    b"MESSAGE ",
    b"INFO ",
    b"OPTIONS ",
];
static SCHEMES: &[&[u8]] = &[b"sip:", b"sips:", b"tel:"];

/// Other protocols share the methods: the address tells them apart.
fn probe(start: &Start<'_>) -> Probe {
    let data = start.data.trim_ascii_start();
    if begins(data, b"SIP/2.0 ") {
        return Probe::Yes;
    }
    let incomplete = if start.transport == Transport::Tcp { Probe::More } else { Probe::No };
    if may_become(data, b"SIP/2.0 ") {
        return incomplete;
    }
    let Some(method) = METHODS.iter().find(|method| begins(data, method) || may_become(data, method)) else {
        return Probe::No;
    };
    let target = data.get(method.len()..).unwrap_or_default();
    if SCHEMES.iter().any(|scheme| begins(target, scheme)) {
        return Probe::Yes;
    }
    match first_line(data) {
        (line, true) if contains(line, b" SIP/2.0") => Probe::Yes,
        (_, true) => Probe::No,
        _ if SCHEMES.iter().any(|scheme| may_become(target, scheme)) => incomplete,
        _ => Probe::No,
    }
}

struct Sip {
    transactions: Transactions<Message>,
    is_stream: bool,
    /// Bytes of a body that have not come yet, by way.
    bodies: [u64; 2],
}

impl Sip {
    fn new(transport: Transport) -> Sip {
        let is_stream = transport == Transport::Tcp;
        Sip { transactions: Transactions::new(MOST_TRANSACTIONS), is_stream, bodies: [0; 2] }
    }

    fn push(&mut self, message: Message) -> Result<(), ParseError> {
        self.transactions.push(message).map(|_| ()).ok_or(ParseError("too many messages"))
    }

    fn datagram(&mut self, way: Way, data: &[u8]) -> Result<(), ParseError> {
        let text = data.trim_ascii_start();
        // RFC 5626 section 3.5.1: line ends, and what phones send to keep a path open
        if text.len() <= 4 {
            return Ok(());
        }
        let message = match (Message::parse(way, text), message::head_end(text)) {
            (Some(message), Some(_)) => message,
            (Some(mut message), None) => {
                message.raise(event::INCOMPLETE_DATA);
                message
            }
            (None, _) => Message::broken(way, event::INVALID_DATA),
        };
        self.push(message)
    }

    /// Return how much was read.
    fn stream(&mut self, way: Way, data: &[u8]) -> Result<usize, ParseError> {
        let left = &mut self.bodies[way as usize];
        if *left > 0 {
            let used = usize::try_from(*left).unwrap_or(usize::MAX).min(data.len());
            *left -= used as u64;
            return Ok(used);
        }
        let blanks = data.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        if blanks > 0 {
            return Ok(blanks);
        }
        let Some(end) = message::head_end(data) else {
            return if data.len() > MOST_HEAD { Err(ParseError("the head of a message has no end")) } else { Ok(0) };
        };
        match Message::parse(way, data.get(..end).unwrap_or_default()) {
            Some(message) => {
                self.bodies[way as usize] = message.content_length();
                self.push(message)?;
            }
            None => self.push(Message::broken(way, event::INVALID_DATA))?,
        }
        Ok(end)
    }
}

impl Parser for Sip {
    fn parse(&mut self, way: Way, data: &[u8], _is_end: bool) -> Result<usize, ParseError> {
        if !self.is_stream {
            return self.datagram(way, data).map(|()| data.len());
        }
        let mut at = 0;
        while let Some(rest) = data.get(at..).filter(|rest| !rest.is_empty()) {
            match self.stream(way, rest)? {
                0 => break,
                used => at += used,
            }
        }
        Ok(at)
    }

    /// Inside a body nothing is lost.
    fn gap(&mut self, way: Way, bytes: u64) -> Result<(), ParseError> {
        let left = &mut self.bodies[way as usize];
        *left = left.checked_sub(bytes).ok_or(ParseError("bytes are missing"))?;
        Ok(())
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
        (first..end).filter_map(|id| self.transactions.get(id)).map(Message::heap_bytes).sum()
    }
}
