//! BACnet/IP (ANSI/ASHRAE 135-2020, annex J and clauses 6 and 20): a confirmed request and what answers it are one
//! transaction.
//!
//! Read first: this file (tables for rules), then `message.rs` (layers), `service.rs` (objects and properties).

use crate::framed::{Dialect, Frame, Framed, buffer, number, numbers};
use crate::pair::{Pair, records, sort};
use crate::{BufferInfo, NumberInfo, ParseError, Probe, Protocol, RecordInfo, Start, Transactions, Transport, Way};

mod message;
mod names;
mod service;
#[cfg(test)]
mod tests;

use message::Message;

mod event {
    pub const FLOODED: u8 = 0;
    pub const MALFORMED: u8 = 1;
}

static BUFFERS: [BufferInfo; 3] = [buffer("bacnet.data"), buffer("bacnet.password"), buffer("bacnet.object_name")];

static NUMBERS: [NumberInfo; 16] = [
    number("bacnet.service", 16, names::SERVICES),
    number("bacnet.pdu_type", 8, names::PDU_TYPES),
    numbers("bacnet.object_type", 16, names::OBJECT_TYPES),
    numbers("bacnet.object_instance", 32, &[]),
    numbers("bacnet.property", 32, names::PROPERTIES),
    numbers("bacnet.priority", 8, &[]),
    numbers("bacnet.device_instance", 32, &[]),
    number("bacnet.source_network", 16, &[]),
    number("bacnet.destination_network", 16, &[]),
    number("bacnet.network_message", 8, names::NETWORK_MESSAGES),
    number("bacnet.bvlc_function", 8, names::BVLC_FUNCTIONS),
    number("bacnet.invoke_id", 8, &[]),
    number("bacnet.error_class", 32, &[]),
    number("bacnet.error_code", 32, &[]),
    number("bacnet.state", 32, &[]),
    number("bacnet.vendor_id", 16, &[]),
];

static RECORDS: [RecordInfo; 2] = records("bacnet");

/// BACnet/IP.
pub static PROTOCOL: Protocol = Protocol {
    name: "bacnet",
    aliases: &[],
    transports: &[Transport::Udp],
    ports: &[47808],
    probe,
    parser: |_, transport| Box::new(Framed::new(Bacnet, transport)),
    buffers: &BUFFERS,
    numbers: &NUMBERS,
    keywords: &[],
    states: &[],
    records: &RECORDS,
    events: &["flooded", "malformed"],
};

fn probe(start: &Start<'_>) -> Probe {
    let Some(message) = Message::read(start.data).filter(|message| message.is_right) else { return Probe::No };
    // a length that fits and a network layer of version 1 are evidence on any port; a bare BVLC message is not
    if start.is_usual_port || message.has_network_layer() { Probe::Yes } else { Probe::No }
}

struct Bacnet;

impl Dialect for Bacnet {
    type Unit = Pair<Message>;
    const FLOODED: Option<u8> = Some(event::FLOODED);

    fn frame(&mut self, _way: Way, _data: &[u8]) -> Result<Frame, ParseError> {
        Err(ParseError("BACnet/IP is a protocol of datagrams"))
    }

    fn read(
        &mut self,
        way: Way,
        bytes: &[u8],
        _is_cut: bool,
        units: &mut Transactions<Pair<Message>>,
    ) -> Result<(), ParseError> {
        let message = Message::read(bytes).ok_or(ParseError("not BACnet/IP"))?;
        let problem = (!message.is_right).then_some(event::MALFORMED);
        sort(units, way, message, problem)
    }
}
