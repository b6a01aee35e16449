//! The layers of a BACnet/IP message: BVLL (annex J), network (clause 6), application (clause 20).

use super::names;
use super::service::{self, Content};
use crate::framed::{cut, log_named};
use crate::pair::Said;
use crate::{Json, Reader};

/// The largest APDU (1476), an NPDU with both addresses, and the BVLL of a forwarded message: J.2.
const MOST_MESSAGE: usize = 1600;
/// Unconfirmed services count from here in `bacnet.service`, as both kinds number theirs from 0.
pub const UNCONFIRMED: u16 = 0x100;

pub mod pdu {
    pub const CONFIRMED: u8 = 0;
    pub const UNCONFIRMED: u8 = 1;
    pub const SIMPLE_ACK: u8 = 2;
    pub const COMPLEX_ACK: u8 = 3;
    pub const SEGMENT_ACK: u8 = 4;
    pub const ERROR: u8 = 5;
    pub const REJECT: u8 = 6;
    pub const ABORT: u8 = 7;
}

#[derive(Debug, Default)]
struct Network {
    destination: Option<u16>,
    source: Option<u16>,
    message: Option<u8>,
}

#[derive(Debug, Default)]
struct Apdu {
    kind: u8,
    is_segmented: bool,
    invoke: Option<u8>,
    service: Option<u16>,
    /// Of a reject or an abort.
    reason: Option<u8>,
    content: Content,
    data: Vec<u8>,
}

#[derive(Debug)]
pub struct Message {
    function: u8,
    network: Option<Network>,
    apdu: Option<Apdu>,
    pub is_right: bool,
}

impl Message {
    /// Read a datagram; `None` where it does not begin as BACnet/IP.
    pub fn read(data: &[u8]) -> Option<Message> {
        let mut reader = Reader::new(data);
        let (kind, function, length) = (reader.u8()?, reader.u8()?, usize::from(reader.be16()?));
        if kind != 0x81 {
            return None;
        }
        let mut message = Message { function, network: None, apdu: None, is_right: true };
        let read = match function {
            0x09..=0x0b => message.read_network(&mut reader),
            0x04 => reader.take(6).and_then(|_| message.read_network(&mut reader)),
            0x00..=0x0c => Some(()),
            _ => None,
        };
        message.is_right = length == data.len() && length <= MOST_MESSAGE && read.is_some();
        Some(message)
    }

    /// Whether there is more than a BVLC function.
    pub fn has_network_layer(&self) -> bool {
        self.network.is_some()
    }

    fn read_network(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let (version, control) = (reader.u8()?, reader.u8()?);
        if version != 1 || control & 0x50 != 0 {
            return None;
        }
        let network = self.network.insert(Network::default());
        for (bit, slot) in [(0x20, &mut network.destination), (0x08, &mut network.source)] {
            if control & bit != 0 {
                *slot = Some(reader.be16()?);
                let length = usize::from(reader.u8()?);
                reader.take(length)?;
            }
        }
        if control & 0x20 != 0 {
            reader.u8()?; // hop count
        }
        if control & 0x80 != 0 {
            network.message = Some(reader.u8()?);
            return Some(());
        }
        let mut apdu = Apdu { data: cut(reader.rest(), MOST_MESSAGE), ..Apdu::default() };
        let read = apdu.read(*reader);
        self.apdu = Some(apdu);
        read
    }
}

impl Apdu {
    fn read(&mut self, mut reader: Reader<'_>) -> Option<()> {
        let first = reader.u8()?;
        self.kind = first >> 4;
        self.is_segmented = matches!(self.kind, pdu::CONFIRMED | pdu::COMPLEX_ACK) && first & 8 != 0;
        if self.kind == pdu::CONFIRMED {
            reader.u8()?; // what sizes the sender accepts
        }
        if self.kind != pdu::UNCONFIRMED {
            self.invoke = Some(reader.u8()?);
        }
        let sequence = if self.is_segmented { Some((reader.u8()?, reader.u8()?).0) } else { None };
        match self.kind {
            pdu::CONFIRMED | pdu::SIMPLE_ACK | pdu::COMPLEX_ACK | pdu::ERROR => {
                self.service = Some(u16::from(reader.u8()?));
            }
            pdu::UNCONFIRMED => self.service = Some(UNCONFIRMED + u16::from(reader.u8()?)),
            pdu::REJECT | pdu::ABORT => self.reason = Some(reader.u8()?),
            pdu::SEGMENT_ACK => return reader.take(2).map(|_| ()),
            _ => return None,
        }
        let service = self.service?;
        // a later segment begins anywhere; a first one ends anywhere
        match (sequence, self.kind) {
            (Some(1..), _) => Some(()),
            (Some(0), kind) => {
                let _ = service::read(kind, service, reader, &mut self.content);
                Some(())
            }
            (None, kind) => service::read(kind, service, reader, &mut self.content),
        }
        .or((self.kind == pdu::SIMPLE_ACK).then_some(()))
    }
}

impl Said for Message {
    const NAME: &'static str = "bacnet";
    const IS_PAIRED: bool = true;

    fn waits(&self) -> bool {
        self.apdu.as_ref().is_some_and(|apdu| apdu.kind == pdu::CONFIRMED && !apdu.is_segmented)
    }

    fn is_answer(&self) -> bool {
        let kind = self.apdu.as_ref().map(|apdu| apdu.kind);
        matches!(kind, Some(pdu::SIMPLE_ACK | pdu::COMPLEX_ACK | pdu::ERROR | pdu::REJECT | pdu::ABORT))
    }

    fn answers(&self, request: &Message) -> bool {
        match (&self.apdu, &request.apdu) {
            (Some(answer), Some(request)) => {
                answer.invoke == request.invoke && answer.service.is_none_or(|service| request.service == Some(service))
            }
            _ => false,
        }
    }

    fn buffer(&self, index: usize, nth: usize) -> Option<&[u8]> {
        let apdu = self.apdu.as_ref().filter(|_| nth == 0)?;
        match index {
            0 => Some(&apdu.data),
            1 => apdu.content.password.as_deref(),
            2 => apdu.content.name.as_deref(),
            _ => None,
        }
    }

    fn number(&self, index: usize, nth: usize) -> Option<u64> {
        let apdu = self.apdu.as_ref();
        let content = apdu.map(|apdu| &apdu.content);
        let network = self.network.as_ref();
        let single = match index {
            2 => return content?.objects.get(nth).map(|object| u64::from(object >> 22)),
            3 => return content?.objects.get(nth).map(|object| u64::from(object & 0x3f_ffff)),
            4 => return content?.properties.get(nth).map(|property| u64::from(*property)),
            5 => return content?.priorities.get(nth).map(|priority| u64::from(*priority)),
            6 => {
                let devices = content?.objects.iter().filter(|object| *object >> 22 == service::DEVICE);
                return devices.map(|object| u64::from(object & 0x3f_ffff)).nth(nth);
            }
            0 => apdu?.service.map(u64::from),
            1 => apdu.map(|apdu| u64::from(apdu.kind)),
            7 => network?.source.map(u64::from),
            8 => network?.destination.map(u64::from),
            9 => network?.message.map(u64::from),
            10 => Some(u64::from(self.function)),
            11 => apdu?.invoke.map(u64::from),
            12 => content?.error.map(|error| u64::from(error.0)),
            13 => content?.error.map(|error| u64::from(error.1)),
            14 => content?.state.map(u64::from),
            15 => content?.vendor.map(u64::from),
            _ => None,
        };
        single.filter(|_| nth == 0)
    }

    fn log(&self, json: &mut Json) {
        log_named(json, "bvlc_function", names::BVLC_FUNCTIONS, u64::from(self.function));
        if let Some(network) = &self.network {
            let numbers = [("source_network", network.source), ("destination_network", network.destination)];
            for (name, value) in numbers {
                if let Some(value) = value {
                    json.number(name, u64::from(value));
                }
            }
            if let Some(message) = network.message {
                log_named(json, "network_message", names::NETWORK_MESSAGES, u64::from(message));
            }
        }
        if let Some(apdu) = &self.apdu {
            log_named(json, "pdu_type", names::PDU_TYPES, u64::from(apdu.kind));
            if apdu.is_segmented {
                json.flag("segmented", true);
            }
            for (name, value) in [("invoke_id", apdu.invoke), ("reason", apdu.reason)] {
                if let Some(value) = value {
                    json.number(name, u64::from(value));
                }
            }
            if let Some(service) = apdu.service {
                log_named(json, "service", names::SERVICES, u64::from(service));
            }
            apdu.content.log(json);
        }
    }

    fn heap_bytes(&self) -> usize {
        self.apdu.as_ref().map_or(0, |apdu| apdu.data.capacity() + apdu.content.heap_bytes())
    }
}
