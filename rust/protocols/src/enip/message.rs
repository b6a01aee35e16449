//! The encapsulation: ODVA volume 2, section 2-3.

use super::cip::{self, Item};
use crate::framed::cut;
use crate::{Reader, Way};

pub const HEADER_BYTES: usize = 24;
/// Items of a common packet format list: two for CIP, up to four with sockaddr items; section 2-6.1.
const MOST_ITEMS: u16 = 16;
/// Names are SHORT_STRINGs or of sixteen bytes.
const MOST_NAME: usize = 255;

pub mod command {
    pub const NOP: u16 = 0;
    pub const LIST_SERVICES: u16 = 0x04;
    pub const LIST_IDENTITY: u16 = 0x63;
    pub const LIST_INTERFACES: u16 = 0x64;
    pub const REGISTER_SESSION: u16 = 0x65;
    pub const UNREGISTER_SESSION: u16 = 0x66;
    pub const SEND_RR_DATA: u16 = 0x6f;
    pub const SEND_UNIT_DATA: u16 = 0x70;

    pub const NAMES: &[(&str, u64)] = &[
        ("nop", 0),
        ("list_services", 4),
        ("list_identity", 0x63),
        ("list_interfaces", 0x64),
        ("register_session", 0x65),
        ("unregister_session", 0x66),
        ("send_rr_data", 0x6f),
        ("send_unit_data", 0x70),
        ("indicate_status", 0x72),
        ("cancel", 0x73),
    ];

    /// Return whether the specification has such a command.
    pub fn is_known(command: u16) -> bool {
        NAMES.iter().any(|(_, value)| *value == u64::from(command))
    }
}

pub const STATUS_NAMES: &[(&str, u64)] = &[
    ("success", 0),
    ("invalid_cmd", 1),
    ("no_resources", 2),
    ("invalid_data", 3),
    ("invalid_session", 0x64),
    ("invalid_length", 0x65),
    ("unsupported_prot_rev", 0x69),
    ("encap_header_error", 0x6a),
];

/// Return whether the specification has such a status.
pub fn is_known_status(status: u32) -> bool {
    STATUS_NAMES.iter().any(|(_, value)| *value == u64::from(status))
}

#[derive(Debug)]
pub struct Identity {
    pub protocol_version: u16,
    pub vendor_id: u16,
    pub device_type: u16,
    pub product_code: u16,
    /// Major in the low byte, minor in the high one, as on the wire.
    pub revision: u16,
    pub status: u16,
    pub serial: u32,
    pub product_name: Vec<u8>,
    pub state: u8,
}

#[derive(Debug)]
pub struct Service {
    pub protocol_version: u16,
    pub capabilities: u16,
    pub name: Vec<u8>,
}

/// A message. Its lists are bounded here and in `cip.rs`.
#[derive(Debug)]
pub struct Message {
    pub command: u16,
    pub session: u32,
    pub status: u32,
    context: u64,
    /// Of REGISTER_SESSION: version and options.
    pub register: Option<(u16, u16)>,
    pub identity: Option<Identity>,
    pub services: Vec<Service>,
    pub cip: Vec<Item>,
    /// Connection and sequence number of connected data.
    pub connection: Option<u32>,
    pub sequence: Option<u16>,
    pub is_right: bool,
}

impl Message {
    /// Read a message; `None` where not even a header is there.
    pub fn read(way: Way, bytes: &[u8]) -> Option<Message> {
        let mut reader = Reader::new(bytes);
        let (command, length, session, status) = (reader.le16()?, reader.le16()?, reader.le32()?, reader.le32()?);
        let (context, _options) = (reader.be64()?, reader.le32()?);
        let mut message = Message {
            command,
            session,
            status,
            context,
            register: None,
            identity: None,
            services: Vec::new(),
            cip: Vec::new(),
            connection: None,
            sequence: None,
            is_right: true,
        };
        let mut body = Reader::new(reader.take(usize::from(length)).unwrap_or(reader.rest()));
        // an answer that refuses has no body
        if status == 0 || body.left() > 0 {
            message.is_right = body.left() == usize::from(length) && message.read_body(way, &mut body).is_some();
        }
        message.is_right &= command::is_known(command);
        Some(message)
    }

    /// What a response has in common with its request.
    pub fn key(&self) -> (u16, u64, Option<u16>) {
        // the context of connected data means nothing; its sequence number does
        (self.command, if self.sequence.is_some() { 0 } else { self.context }, self.sequence)
    }

    /// The protocol version, wherever the message tells one.
    pub fn protocol_version(&self) -> Option<u16> {
        let identity = self.identity.as_ref().map(|identity| identity.protocol_version);
        let service = self.services.first().map(|service| service.protocol_version);
        self.register.map(|(version, _)| version).or(identity).or(service)
    }

    fn read_body(&mut self, way: Way, body: &mut Reader<'_>) -> Option<()> {
        match (self.command, way) {
            (command::REGISTER_SESSION, _) => self.register = Some((body.le16()?, body.le16()?)),
            (command::SEND_RR_DATA | command::SEND_UNIT_DATA, _) => {
                body.le32()?; // interface handle
                body.le16()?; // timeout
                self.read_items(way, body)?;
            }
            (command::LIST_IDENTITY | command::LIST_SERVICES | command::LIST_INTERFACES, Way::ToClient) => {
                self.read_items(way, body)?;
            }
            _ => {}
        }
        Some(())
    }

    fn read_items(&mut self, way: Way, body: &mut Reader<'_>) -> Option<()> {
        let count = body.le16()?;
        for _ in 0..count.min(MOST_ITEMS) {
            let (kind, length) = (body.le16()?, body.le16()?);
            let mut item = Reader::new(body.take(usize::from(length))?);
            match kind {
                0x0c => self.identity = Some(read_identity(&mut item)?),
                0xa1 => self.connection = item.le32(),
                0xb1 => {
                    self.sequence = Some(item.le16()?);
                    cip::read(way, item.rest(), &mut self.cip)?;
                }
                0xb2 => cip::read(way, item.rest(), &mut self.cip)?,
                0x100 if length >= 4 => {
                    let (protocol_version, capabilities) = (item.le16()?, item.le16()?);
                    let name = item.rest().split(|byte| *byte == 0).next().unwrap_or_default();
                    self.services.push(Service { protocol_version, capabilities, name: cut(name, MOST_NAME) });
                }
                _ => {}
            }
        }
        (count <= MOST_ITEMS).then_some(())
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.identity.iter().map(|identity| identity.product_name.capacity()).sum::<usize>()
            + self.services.iter().map(|service| size_of::<Service>() + service.name.capacity()).sum::<usize>()
            + self.cip.iter().map(|item| size_of::<Item>() + item.heap_bytes()).sum::<usize>()
    }
}

fn read_identity(item: &mut Reader<'_>) -> Option<Identity> {
    let protocol_version = item.le16()?;
    item.take(16)?; // a socket address
    let (vendor_id, device_type, product_code) = (item.le16()?, item.le16()?, item.le16()?);
    let (revision, status, serial) = (item.be16()?, item.le16()?, item.le32()?);
    let length = usize::from(item.u8()?);
    let product_name = item.take(length)?.to_vec();
    let state = item.u8()?;
    Some(Identity {
        protocol_version,
        vendor_id,
        device_type,
        product_code,
        revision,
        status,
        serial,
        product_name,
        state,
    })
}
