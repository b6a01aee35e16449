//! MQTT 3.1, 3.1.1 and 5.0: a request and the packets that answer it are one transaction.
//!
//! Read first: this file (pairing), then `packet.rs` (what a packet says), `keywords.rs` (tables for rules), `log.rs`.

use crate::framed::{Dialect, Events, Frame, Framed, Unit, find};
use crate::{COMPLETE, ParseError, Probe, Protocol, Reader, RecordInfo, Start, Transactions, Transport, Way};

mod keywords;
mod log;
mod packet;
mod properties;
#[cfg(test)]
mod tests;

use packet::{Body, Packet, kind};

/// A remaining length has at most four bytes: MQTT 5.0 section 1.5.5.
const MOST_LENGTH_BYTES: usize = 4;

mod event {
    pub const MISSING_CONNECT: u8 = 0;
    pub const MISSING_PUBLISH: u8 = 1;
    pub const MISSING_SUBSCRIBE: u8 = 2;
    pub const MISSING_UNSUBSCRIBE: u8 = 3;
    pub const DOUBLE_CONNECT: u8 = 4;
    pub const UNINTRODUCED_MESSAGE: u8 = 5;
    pub const INVALID_QOS_LEVEL: u8 = 6;
    pub const MISSING_MSG_ID: u8 = 7;
    pub const UNASSIGNED_MSG_TYPE: u8 = 8;
    pub const TOO_MANY_TRANSACTIONS: u8 = 9;
    pub const MALFORMED_TRAFFIC: u8 = 10;
}

/// MQTT.
pub static PROTOCOL: Protocol = Protocol {
    name: "mqtt",
    aliases: &[],
    transports: &[Transport::Tcp],
    ports: &[1883],
    probe,
    parser: |_, transport| Box::new(Framed::new(Mqtt { version: 0, is_connected: false }, transport)),
    buffers: &keywords::BUFFERS,
    numbers: &keywords::NUMBERS,
    keywords: &keywords::KEYWORDS,
    states: &[],
    records: &[RecordInfo { event_type: "mqtt", to_server: COMPLETE, to_client: COMPLETE, way: Way::ToServer }],
    events: &[
        "missing_connect",
        "missing_publish",
        "missing_subscribe",
        "missing_unsubscribe",
        "double_connect",
        "unintroduced_message",
        "invalid_qos_level",
        "missing_msg_id",
        "unassigned_msg_type",
        "too_many_transactions",
        "malformed_traffic",
    ],
};

/// Read the fixed header: the length of it and of what follows.
fn header(data: &[u8]) -> Result<Option<(usize, u64)>, ParseError> {
    let mut length = 0_u64;
    for index in 0..MOST_LENGTH_BYTES {
        let Some(byte) = data.get(index + 1) else { return Ok(None) };
        length |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((index + 2, length)));
        }
    }
    Err(ParseError("MQTT: a length of more than four bytes"))
}

fn probe(start: &Start<'_>) -> Probe {
    let Some(&first) = start.data.first() else { return Probe::More };
    let body = match header(start.data) {
        Err(_) => return Probe::No,
        Ok(None) if first == kind::CONNECT << 4 || first == kind::CONNACK << 4 => return Probe::More,
        Ok(None) => return Probe::No,
        Ok(Some((at, _))) => start.data.get(at..).unwrap_or_default(),
    };
    // a client's first packet is CONNECT, and that names its protocol
    let names: [&[u8]; 2] = [b"\0\x04MQTT", b"\0\x06MQIsdp"];
    if first == kind::CONNECT << 4 {
        let is_so = |name: &&[u8]| body.starts_with(name) || name.starts_with(body);
        return match names.iter().find(|name| is_so(name)) {
            Some(name) if body.len() < name.len() => Probe::More,
            Some(_) if start.way == Way::ToClient => Probe::YesReversed,
            Some(_) => Probe::Yes,
            None => Probe::No,
        };
    }
    let is_accepted = first == kind::CONNACK << 4 && start.data.get(1).is_some_and(|length| (2..64).contains(length));
    match is_accepted && start.is_usual_port {
        true if start.way == Way::ToServer => Probe::YesReversed,
        true => Probe::Yes,
        false => Probe::No,
    }
}

struct Mqtt {
    version: u8,
    is_connected: bool,
}

impl Dialect for Mqtt {
    type Unit = Exchange;
    const FLOODED: Option<u8> = Some(event::TOO_MANY_TRANSACTIONS);

    fn frame(&mut self, _way: Way, data: &[u8]) -> Result<Frame, ParseError> {
        Ok(header(data)?.map_or(Frame::More, |(header, length)| Frame::Message(header as u64 + length)))
    }

    fn read(
        &mut self,
        way: Way,
        bytes: &[u8],
        is_cut: bool,
        units: &mut Transactions<Exchange>,
    ) -> Result<(), ParseError> {
        let Some((at, _)) = header(bytes)? else { return Ok(()) };
        let (first, body) =
            (bytes.first().copied().unwrap_or_default(), Reader::new(bytes.get(at..).unwrap_or_default()));
        if let (kind::CONNECT, Some(version)) = (first >> 4, packet::version(body)) {
            self.version = version;
        }
        let packet = Packet::read(first, body, self.version, is_cut);
        self.sort(way, packet, units).ok_or(ParseError("too many transactions"))
    }
}

impl Mqtt {
    /// Put a packet where it belongs; `None` where there is no place.
    fn sort(&mut self, way: Way, packet: Packet, units: &mut Transactions<Exchange>) -> Option<()> {
        let mut problem = match (&packet.body, packet.qos()) {
            (Body::Malformed, _) => Some(event::MALFORMED_TRAFFIC),
            (_, 3) => Some(event::INVALID_QOS_LEVEL),
            _ if packet.kind == 0 => Some(event::UNASSIGNED_MSG_TYPE),
            _ => None,
        };
        let is_greeting = matches!(packet.kind, kind::CONNECT | kind::CONNACK | kind::AUTH);
        if packet.kind == kind::CONNECT && self.is_connected {
            problem = problem.or(Some(event::DOUBLE_CONNECT));
        } else if !self.is_connected && !is_greeting {
            problem = problem.or(Some(event::UNINTRODUCED_MESSAGE));
        }
        if packet.kind == kind::CONNACK {
            self.is_connected = true;
        }
        if problem.is_none()
            && let Some(place) = packet.answers()
        {
            let found = find(units, |exchange| exchange.waits_for(place.wants, packet.id));
            if let Some(exchange) = found.and_then(|id| units.get_mut(id)) {
                exchange.is_complete |= place.is_last;
                // a peer that repeats itself forever must not make a transaction grow forever
                if exchange.packets.len() < MOST_PACKETS {
                    exchange.packets.push(packet);
                }
                return Some(());
            }
            problem = Some(place.missing);
        }
        let waits = packet.waits();
        if problem.is_none() && waits && packet.id.is_none() && packet.kind != kind::CONNECT {
            problem = Some(event::MISSING_MSG_ID);
        }
        let mut events = Events::default();
        problem.into_iter().for_each(|event| events.add(event));
        let is_complete = problem.is_some() || !waits;
        units.push(Exchange { way, version: self.version, is_complete, packets: vec![packet], events }).map(|_| ())
    }
}

/// Packets of one transaction: PUBLISH with QoS 2 has four; repetitions are not kept.
const MOST_PACKETS: usize = 8;

struct Exchange {
    /// Who began.
    way: Way,
    version: u8,
    is_complete: bool,
    packets: Vec<Packet>,
    events: Events,
}

impl Exchange {
    fn waits_for(&self, wanted: u8, id: Option<u16>) -> bool {
        !self.is_complete
            && self
                .packets
                .first()
                .is_some_and(|first| first.kind == wanted && (wanted == kind::CONNECT || first.id == id))
    }
}

impl Unit for Exchange {
    fn close(&mut self) {
        self.is_complete = true;
    }

    fn note(&mut self, event: u8) {
        self.events.add(event);
    }

    fn heap_bytes(&self) -> usize {
        self.packets.capacity() * size_of::<Packet>() + self.packets.iter().map(Packet::heap_bytes).sum::<usize>()
    }
}
