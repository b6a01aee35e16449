//! Modbus/TCP (MODBUS Messaging on TCP/IP V1.0b): a request and its response are one transaction.
//!
//! Read first: this file (framing, pairing), then `message.rs` (what a message says), `keyword.rs` (the rule keyword).

use std::any::Any;

use crate::framed::{Dialect, Events, Frame, Framed, Unit, find};
use crate::{
    COMPLETE, Json, KeywordInfo, ParseError, Probe, Protocol, Reader, RecordInfo, Start, Transaction, Transactions,
    Transport, View, Way, Ways,
};

mod keyword;
mod message;
#[cfg(test)]
mod tests;

use message::{Message, error};

/// Bytes before those that the length field counts.
const HEADER_BYTES: u64 = 6;
/// Unit and function: no message is shorter.
const LEAST_LENGTH: u16 = 2;
/// MODBUS Application Protocol V1.1b3 section 4.1: a PDU of 253 bytes, and the unit.
const MOST_LENGTH: u16 = 254;
/// What is read of a message whose length field lies.
const MOST_READ: usize = HEADER_BYTES as usize + MOST_LENGTH as usize;

mod event {
    pub const INVALID_PROTOCOL_ID: u8 = 0;
    pub const UNSOLICITED_RESPONSE: u8 = 1;
    pub const INVALID_LENGTH: u8 = 2;
    pub const INVALID_FUNCTION_CODE: u8 = 4;
    pub const INVALID_VALUE: u8 = 5;
    pub const INVALID_EXCEPTION_CODE: u8 = 6;
    pub const VALUE_MISMATCH: u8 = 7;
    pub const FLOODED: u8 = 8;
}

/// Modbus.
pub static PROTOCOL: Protocol = Protocol {
    name: "modbus",
    aliases: &[],
    transports: &[Transport::Tcp],
    ports: &[502],
    probe,
    parser: |_, transport| Box::new(Framed::new(Modbus, transport)),
    buffers: &[],
    numbers: &[],
    keywords: &[KeywordInfo {
        keyword: "modbus",
        aliases: &[],
        ways: Ways::ToServer,
        progress: COMPLETE,
        parse: keyword::parse,
    }],
    states: &[],
    records: &[RecordInfo { event_type: "modbus", to_server: COMPLETE, to_client: COMPLETE, way: Way::ToServer }],
    events: &[
        "invalid_protocol_id",
        "unsolicited_response",
        "invalid_length",
        "invalid_unit_identifier",
        "invalid_function_code",
        "invalid_value",
        "invalid_exception_code",
        "value_mismatch",
        "flooded",
    ],
};

fn probe(start: &Start<'_>) -> Probe {
    let mut reader = Reader::new(start.data);
    let header = (|| Some((reader.be16()?, reader.be16()?, reader.be16()?, reader.u8()?, reader.u8()?)))();
    let Some((_, protocol, length, _, function)) = header else { return Probe::More };
    let is_header = protocol == 0 && (LEAST_LENGTH..=MOST_LENGTH).contains(&length) && function != 0;
    // zeros and a small length are in many protocols: without the port, this is no evidence
    match is_header && start.is_usual_port {
        true if function >= message::EXCEPTION && start.way == Way::ToServer => Probe::YesReversed,
        true => Probe::Yes,
        false => Probe::No,
    }
}

struct Modbus;

impl Dialect for Modbus {
    type Unit = Exchange;
    const FLOODED: Option<u8> = Some(event::FLOODED);
    const RESUMES: bool = true;

    fn begins(&self, data: &[u8]) -> bool {
        // the unit may be split off; zeros and a small length may not
        matches!(data, [_, _, 0, 0, 0, length, ..] if (LEAST_LENGTH..=MOST_LENGTH).contains(&u16::from(*length)))
    }

    fn frame(&mut self, _way: Way, data: &[u8]) -> Result<Frame, ParseError> {
        let length = data.get(4..6).and_then(|bytes| Reader::new(bytes).be16());
        Ok(length.map_or(Frame::More, |length| Frame::Message(HEADER_BYTES + u64::from(length))))
    }

    fn read(
        &mut self,
        way: Way,
        bytes: &[u8],
        _is_cut: bool,
        units: &mut Transactions<Exchange>,
    ) -> Result<(), ParseError> {
        let bytes = bytes.get(..MOST_READ).unwrap_or(bytes);
        let message = Message::read(way, bytes).ok_or(ParseError("no Modbus header"))?;
        let number = units.range().1.saturating_add(1);
        match way {
            Way::ToServer => {
                units.push(Exchange::new(number, way, message)).ok_or(ParseError("too many requests"))?;
            }
            Way::ToClient => {
                let waits = |exchange: &Exchange| {
                    exchange.response.is_none()
                        && exchange.request.as_ref().is_some_and(|request| request.id == message.id)
                };
                let found = find(units, waits);
                match found.and_then(|id| units.get_mut(id)) {
                    Some(exchange) => exchange.answer(message),
                    None => {
                        let mut exchange = Exchange::new(number, way, message);
                        exchange.events.add(event::UNSOLICITED_RESPONSE);
                        units.push(exchange).ok_or(ParseError("too many responses"))?;
                    }
                }
            }
        }
        Ok(())
    }
}

struct Exchange {
    /// Which of the flow it is, from 1.
    number: u64,
    request: Option<Message>,
    response: Option<Message>,
    is_closed: bool,
    events: Events,
}

impl Exchange {
    fn new(number: u64, way: Way, message: Message) -> Exchange {
        let mut exchange =
            Exchange { number, request: None, response: None, is_closed: false, events: Events::default() };
        exchange.notice(&message);
        match way {
            Way::ToServer => exchange.request = Some(message),
            Way::ToClient => exchange.response = Some(message),
        }
        exchange
    }

    fn answer(&mut self, message: Message) {
        self.notice(&message);
        if self.request.as_ref().is_some_and(|request| !request.fits(&message)) {
            self.events.add(event::VALUE_MISMATCH);
        }
        self.response = Some(message);
    }

    fn notice(&mut self, message: &Message) {
        let list = [
            (error::PROTOCOL, event::INVALID_PROTOCOL_ID),
            (error::LENGTH, event::INVALID_LENGTH),
            (error::FUNCTION, event::INVALID_FUNCTION_CODE),
            (error::VALUE, event::INVALID_VALUE),
            (error::EXCEPTION, event::INVALID_EXCEPTION_CODE),
        ];
        for (_, event) in list.iter().filter(|(flag, _)| message.errors & flag != 0) {
            self.events.add(*event);
        }
    }
}

impl Unit for Exchange {
    fn close(&mut self) {
        self.is_closed = true;
    }

    fn note(&mut self, event: u8) {
        self.events.add(event);
    }

    fn heap_bytes(&self) -> usize {
        [&self.request, &self.response].into_iter().flatten().map(Message::heap_bytes).sum()
    }
}

impl Transaction for Exchange {
    fn progress(&self, way: Way) -> u8 {
        // a response without a request has nothing to wait for to the server
        let is_over = self.is_closed || self.response.is_some() || (way == Way::ToServer && self.request.is_some());
        if is_over { COMPLETE } else { 0 }
    }

    fn buffer(&self, _index: usize, _way: Way, _nth: usize) -> Option<View<'_>> {
        None
    }

    fn events(&self) -> &[u8] {
        self.events.list()
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        json.open("modbus");
        json.number("id", self.number);
        for (name, message) in [("request", &self.request), ("response", &self.response)] {
            if let Some(message) = message {
                json.open(name);
                message.log(json);
                json.close();
            }
        }
        json.close();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
