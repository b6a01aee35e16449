//! EtherNet/IP (ODVA volume 2, chapter 2) with CIP (volume 1): a request and its reply are one transaction.
//!
//! Read first: this file (pairing, tables for rules), then `message.rs` (encapsulation), `cip.rs`, `log.rs`.

use std::any::Any;

use crate::framed::{Dialect, Events, Frame, Framed, Unit, buffer, buffers, find, number, numbers};
use crate::{
    BufferInfo, COMPLETE, Custom, Json, KeywordInfo, NumberInfo, ParseError, Probe, Protocol, Reader, RecordInfo,
    Start, Transaction, Transactions, Transport, View, Way, Ways,
};

mod cip;
mod log;
mod message;
#[cfg(test)]
mod tests;

use message::{HEADER_BYTES, Identity, Message, command};

mod event {
    pub const TOO_MANY_TRANSACTIONS: u8 = 0;
    pub const INVALID_PDU: u8 = 1;
}

/// EtherNet/IP.
pub static PROTOCOL: Protocol = Protocol {
    name: "enip",
    aliases: &[],
    transports: &[Transport::Tcp, Transport::Udp],
    ports: &[44818],
    probe,
    parser: |_, transport| Box::new(Framed::new(Enip, transport)),
    buffers: &BUFFERS,
    numbers: &NUMBERS,
    keywords: &[KeywordInfo {
        keyword: "cip_service",
        aliases: &[],
        ways: Ways::Both,
        progress: COMPLETE,
        parse: parse_service,
    }],
    states: &[],
    records: &[RecordInfo { event_type: "enip", to_server: COMPLETE, to_client: COMPLETE, way: Way::ToServer }],
    events: &["too_many_transactions", "invalid_pdu"],
};

static BUFFERS: [BufferInfo; 2] = [buffer("enip.product_name"), buffers("enip.service_name")];

static NUMBERS: [NumberInfo; 18] = [
    NumberInfo { aliases: &["enip.command"], ..number("enip_command", 16, command::NAMES) },
    number("enip.status", 32, message::STATUS_NAMES),
    number("enip.protocol_version", 16, &[]),
    NumberInfo { aliases: &["cip.attribute"], ..numbers("enip.cip_attribute", 32, &[]) },
    NumberInfo { aliases: &["cip.instance"], ..numbers("enip.cip_instance", 32, &[]) },
    NumberInfo { aliases: &["cip.class"], ..numbers("enip.cip_class", 32, &[]) },
    NumberInfo { aliases: &["cip.status"], ..numbers("enip.cip_status", 8, &[]) },
    NumberInfo { aliases: &["cip.extendedstatus"], ..numbers("enip.cip_extendedstatus", 16, &[]) },
    number("enip.revision", 16, &[]),
    number("enip.identity_status", 16, &[]),
    number("enip.state", 8, &[]),
    number("enip.serial", 32, &[]),
    number("enip.product_code", 16, &[]),
    number("enip.device_type", 16, &[]),
    number("enip.vendor_id", 16, &[]),
    numbers("enip.capabilities", 16, &[]),
    numbers("cip.service", 8, cip::SERVICES),
    number("enip.session", 32, &[]),
];

fn probe(start: &Start<'_>) -> Probe {
    let Some(header) = start.data.get(..HEADER_BYTES) else {
        let is_possible =
            start.data.get(..2).is_none_or(|bytes| command::is_known(u16::from_le_bytes([bytes[0], bytes[1]])));
        return if is_possible && start.transport == Transport::Tcp { Probe::More } else { Probe::No };
    };
    let mut reader = Reader::new(header);
    let fields =
        (|| Some((reader.le16()?, reader.le16()?, reader.le32()?, reader.le32()?, reader.be64()?, reader.le32()?)))();
    let Some((code, length, session, status, _, options)) = fields else { return Probe::No };
    let is_header = command::is_known(code) && options == 0 && message::is_known_status(status);
    // elsewhere than on its port, a registration is the only sure beginning
    let is_sure = code == command::REGISTER_SESSION && length == 4 && session == 0 && status == 0;
    let is_whole = start.data.len() == HEADER_BYTES + usize::from(length);
    let fits = match start.transport {
        Transport::Udp => is_whole,
        Transport::Tcp => start.data.len() <= HEADER_BYTES + usize::from(length) || code != command::NOP,
    };
    if is_header && fits && (start.is_usual_port || (is_sure && is_whole)) { Probe::Yes } else { Probe::No }
}

struct Enip;

impl Dialect for Enip {
    type Unit = Exchange;
    const FLOODED: Option<u8> = Some(event::TOO_MANY_TRANSACTIONS);
    const RESUMES: bool = true;

    fn begins(&self, data: &[u8]) -> bool {
        Message::read(Way::ToServer, data).is_some_and(|message| message::is_known_status(message.status))
            && data.first_chunk().is_some_and(|code| command::is_known(u16::from_le_bytes(*code)))
    }

    fn frame(&mut self, _way: Way, data: &[u8]) -> Result<Frame, ParseError> {
        let length = data.get(2..4).and_then(|bytes| Reader::new(bytes).le16());
        let length = length.filter(|_| data.len() >= HEADER_BYTES);
        Ok(length.map_or(Frame::More, |length| Frame::Message(HEADER_BYTES as u64 + u64::from(length))))
    }

    fn read(&mut self, way: Way, bytes: &[u8], _: bool, units: &mut Transactions<Exchange>) -> Result<(), ParseError> {
        let Some(message) = Message::read(way, bytes) else {
            let is_on_stream = bytes.len() < HEADER_BYTES;
            return if is_on_stream { Ok(()) } else { Err(ParseError("no encapsulation header")) };
        };
        let mut problem = (!message.is_right).then_some(event::INVALID_PDU);
        if way == Way::ToClient {
            let key = message.key();
            let waits = |it: &Exchange| it.response.is_none() && it.request.as_ref().is_some_and(|is| is.key() == key);
            if let Some(exchange) = find(units, waits).and_then(|id| units.get_mut(id)) {
                problem.take().into_iter().for_each(|event| exchange.events.add(event));
                exchange.response = Some(message);
                return Ok(());
            }
        }
        let mut exchange = Exchange { request: None, response: None, is_closed: false, events: Events::default() };
        problem.into_iter().for_each(|event| exchange.events.add(event));
        exchange.is_closed = matches!(message.command, command::NOP | command::UNREGISTER_SESSION);
        match way {
            Way::ToServer => exchange.request = Some(message),
            Way::ToClient => exchange.response = Some(message),
        }
        units.push(exchange).map(|_| ()).ok_or(ParseError("too many requests"))
    }
}

struct Exchange {
    request: Option<Message>,
    response: Option<Message>,
    is_closed: bool,
    events: Events,
}

impl Exchange {
    fn side(&self, way: Way) -> Option<&Message> {
        match way {
            Way::ToServer => self.request.as_ref(),
            Way::ToClient => self.response.as_ref(),
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
        let is_over = self.is_closed || self.response.is_some() || (way == Way::ToServer && self.request.is_some());
        if is_over { COMPLETE } else { 0 }
    }

    fn buffer(&self, index: usize, way: Way, nth: usize) -> Option<View<'_>> {
        let message = self.side(way)?;
        let bytes = match index {
            0 if nth == 0 => &message.identity.as_ref()?.product_name,
            1 => &message.services.get(nth)?.name,
            _ => return None,
        };
        Some(View::whole(bytes))
    }

    fn number(&self, index: usize, way: Way, nth: usize) -> Option<u64> {
        let message = self.side(way)?;
        let cip =
            |get: fn(&cip::Item) -> &[u32]| message.cip.iter().flat_map(get).nth(nth).map(|value| u64::from(*value));
        match index {
            3 => cip(|item| &item.attributes),
            4 => cip(|item| &item.instances),
            5 => cip(|item| &item.classes),
            6 => message.cip.iter().filter_map(|item| item.status).nth(nth).map(u64::from),
            7 => message.cip.iter().filter_map(|item| item.extended).nth(nth).map(u64::from),
            15 => message.services.get(nth).map(|service| u64::from(service.capabilities)),
            16 => message.cip.get(nth).map(|item| u64::from(item.service)),
            _ if nth > 0 => None,
            0 => Some(u64::from(message.command)),
            1 => Some(u64::from(message.status)),
            2 => message.protocol_version().map(u64::from),
            17 => Some(u64::from(message.session)),
            _ => message.identity.as_ref().and_then(|identity| identity.number(index)),
        }
    }

    fn events(&self) -> &[u8] {
        self.events.list()
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        json.open("enip");
        for (name, message) in [("request", &self.request), ("response", &self.response)] {
            if let Some(message) = message {
                json.open(name);
                log::message(json, message);
                json.close();
            }
        }
        json.close();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Identity {
    /// Number `index` of [`NUMBERS`].
    fn number(&self, index: usize) -> Option<u64> {
        Some(match index {
            8 => u64::from(self.revision),
            9 => u64::from(self.status),
            10 => u64::from(self.state),
            11 => u64::from(self.serial),
            12 => u64::from(self.product_code),
            13 => u64::from(self.device_type),
            14 => u64::from(self.vendor_id),
            _ => return None,
        })
    }
}

/// `cip_service: SERVICE[,CLASS[,ATTRIBUTE]]`: all in one CIP item.
struct Service {
    service: u8,
    class: Option<u32>,
    attribute: Option<u32>,
}

fn parse_service(argument: &str) -> Result<Box<dyn Custom>, String> {
    let mut parts = argument.split(',').map(str::trim);
    let number = |text: &str| text.parse::<u32>().map_err(|_| format!("'{text}' is no number"));
    let name = parts.next().unwrap_or_default();
    let named = cip::SERVICES
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .and_then(|it| u32::try_from(it.1).ok());
    let service = named.map_or_else(|| number(name), Ok)?;
    let service = u8::try_from(service).map_err(|_| "a service is a number of 8 bits".to_owned())?;
    let class = parts.next().map(number).transpose()?;
    let attribute = parts.next().map(number).transpose()?;
    if parts.next().is_some() {
        return Err("cip_service has at most three values".to_owned());
    }
    Ok(Box::new(Service { service, class, attribute }))
}

impl Custom for Service {
    fn matches(&self, transaction: &dyn Transaction, way: Way) -> bool {
        let exchange = transaction.as_any().downcast_ref::<Exchange>();
        let is_it = |item: &cip::Item| {
            item.service == self.service
                && self.class.is_none_or(|class| item.classes.contains(&class))
                && self.attribute.is_none_or(|attribute| item.attributes.contains(&attribute))
        };
        exchange.and_then(|it| it.side(way)).is_some_and(|message| message.cip.iter().any(is_it))
    }
}
