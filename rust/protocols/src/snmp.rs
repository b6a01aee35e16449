//! SNMP in its versions 1 (RFC 1157), 2c (RFC 3416) and 3 (RFC 3412): who asks, with which community or user, for what.
//!
//! Promises: each datagram is a transaction; no more of an encrypted one is shown than stands outside the encryption.
//! Leaves to others: values of variables; only their names are kept.
//! Read first: [`Message::read`].

#[cfg(test)]
mod tests;

use std::any::Any;

use crate::tls::der::{self, Der};
use crate::{
    BufferInfo, COMPLETE, Json, NumberInfo, ParseError, Parser, Probe, Protocol, RecordInfo, Settings, Start,
    Transaction, Transactions, Transport, View, Way, Ways,
};

/// Messages that wait to be looked at.
const MOST_TRANSACTIONS: usize = 64;
/// Names of variables that are kept; a bulk answer fits a datagram with about a hundred.
const MOST_VARIABLES: usize = 128;
/// Bytes of one name; RFC 3416 allows 128 numbers.
const MOST_NAME: usize = 256;
/// RFC 3411 section 5: the user-based security model.
const USM: u64 = 3;

mod buffer {
    pub const COMMUNITY: usize = 0;
    pub const USM: usize = 1;
}

mod number {
    pub const VERSION: usize = 0;
    pub const PDU_TYPE: usize = 1;
}

mod event {
    pub const MALFORMED_DATA: u8 = 0;
    pub const UNKNOWN_SECURITY_MODEL: u8 = 1;
    pub const VERSION_MISMATCH: u8 = 2;
}

const PDU_TYPES: &[(&str, u64)] = &[
    ("get_request", 0),
    ("get_next_request", 1),
    ("response", 2),
    ("set_request", 3),
    ("trap_v1", 4),
    ("get_bulk_request", 5),
    ("inform_request", 6),
    ("trap_v2", 7),
    ("report", 8),
];

const fn text(keyword: &'static str) -> BufferInfo {
    let (ways, progress) = (Ways::Both, COMPLETE);
    BufferInfo { keyword, aliases: &[], modifiers: &[], ways, progress, is_multiple: false, is_growing: false }
}

const fn integer(keyword: &'static str, names: &'static [(&'static str, u64)]) -> NumberInfo {
    let (ways, progress) = (Ways::Both, COMPLETE);
    NumberInfo { keyword, aliases: &[], ways, progress, bits: 32, names, is_multiple: false }
}

const fn record(way: Way) -> RecordInfo {
    RecordInfo { event_type: "snmp", to_server: COMPLETE, to_client: COMPLETE, way }
}

/// SNMP.
pub static PROTOCOL: Protocol = Protocol {
    name: "snmp",
    aliases: &[],
    transports: &[Transport::Udp],
    ports: &[161, 162],
    probe,
    parser: |_: &Settings, _| Box::new(Snmp { transactions: Transactions::new(MOST_TRANSACTIONS), version: None }),
    buffers: &[text("snmp.community"), text("snmp.usm")],
    numbers: &[integer("snmp.version", &[]), integer("snmp.pdu_type", PDU_TYPES)],
    keywords: &[],
    states: &[],
    records: &[record(Way::ToServer), record(Way::ToClient)],
    events: &["malformed_data", "unknown_security_model", "version_mismatch"],
};

/// One sequence that fills the datagram and begins with a version that exists.
fn probe(start: &Start<'_>) -> Probe {
    let mut outer = Der::new(start.data);
    let version = outer.expect(der::SEQUENCE).and_then(|body| Der::new(body).expect(der::INTEGER)).and_then(integer_of);
    if start.is_usual_port && matches!(version, Some(0 | 1 | 3)) { Probe::Yes } else { Probe::No }
}

struct Snmp {
    transactions: Transactions<Message>,
    /// The flow's first version.
    version: Option<u64>,
}

/// One datagram.
#[derive(Default)]
struct Message {
    way: Option<Way>,
    version: u64,
    community: Option<Box<[u8]>>,
    user: Option<Box<[u8]>>,
    is_encrypted: bool,
    pdu_type: Option<u64>,
    error: u64,
    /// RFC 1157 section 4.1.6: kind, enterprise, the agent's address.
    trap: Option<(u64, String, Option<[u8; 4]>)>,
    variables: Vec<String>,
    events: Vec<u8>,
}

impl Message {
    fn read(data: &[u8]) -> Message {
        let mut message = Message::default();
        if message.read_whole(data).is_none() {
            message.events.push(event::MALFORMED_DATA);
        }
        message
    }

    fn read_whole(&mut self, data: &[u8]) -> Option<()> {
        let mut body = Der::new(Der::new(data).expect(der::SEQUENCE)?);
        let version = body.expect(der::INTEGER).and_then(integer_of)?;
        self.version = version.checked_add(u64::from(version < 3))?; // 0 means 1, 1 means 2c, 3 means 3
        if version >= 3 {
            return self.read_v3(&mut body);
        }
        self.community = Some(body.expect(der::OCTET_STRING)?.into());
        self.read_pdu(&mut body)
    }

    /// RFC 3412 section 6: header, security parameters, and a scoped PDU in the clear or not.
    fn read_v3(&mut self, body: &mut Der<'_>) -> Option<()> {
        let mut header = Der::new(body.expect(der::SEQUENCE)?);
        header.expect(der::INTEGER)?; // id
        header.expect(der::INTEGER)?; // largest size
        header.expect(der::OCTET_STRING)?; // flags
        let model = header.expect(der::INTEGER).and_then(integer_of)?;
        let security = body.expect(der::OCTET_STRING)?;
        if model == USM {
            let mut parameters = Der::new(Der::new(security).expect(der::SEQUENCE)?);
            parameters.expect(der::OCTET_STRING)?; // engine
            parameters.expect(der::INTEGER)?; // its boots
            parameters.expect(der::INTEGER)?; // its time
            self.user = Some(parameters.expect(der::OCTET_STRING)?.into());
        } else {
            self.events.push(event::UNKNOWN_SECURITY_MODEL);
        }
        if body.tag()? == der::OCTET_STRING {
            self.is_encrypted = true;
            return Some(());
        }
        let mut scoped = Der::new(body.expect(der::SEQUENCE)?);
        scoped.expect(der::OCTET_STRING)?; // engine of the context
        scoped.expect(der::OCTET_STRING)?; // name of the context
        self.read_pdu(&mut scoped)
    }

    fn read_pdu(&mut self, body: &mut Der<'_>) -> Option<()> {
        let (tag, pdu) = body.next()?;
        let kind = u64::from(tag).checked_sub(0xa0).filter(|kind| *kind <= 8)?;
        self.pdu_type = Some(kind);
        let mut pdu = Der::new(pdu);
        if kind == 4 {
            let enterprise = pdu.expect(der::OID)?;
            let address = pdu.next().and_then(|(_, address)| <[u8; 4]>::try_from(address).ok());
            let trap = pdu.expect(der::INTEGER).and_then(integer_of)?;
            self.trap = Some((trap, name_of(enterprise), address));
            pdu.next()?; // the specific code
            pdu.next()?; // the agent's time
        } else {
            pdu.expect(der::INTEGER)?; // id
            let error = pdu.expect(der::INTEGER).and_then(integer_of)?;
            self.error = if kind == 5 { 0 } else { error }; // in bulk requests it is no error
            pdu.expect(der::INTEGER)?;
        }
        let mut variables = Der::new(pdu.expect(der::SEQUENCE)?);
        while variables.tag().is_some() && self.variables.len() < MOST_VARIABLES {
            let name = Der::new(variables.expect(der::SEQUENCE)?).expect(der::OID)?;
            self.variables.push(name_of(name));
        }
        Some(())
    }

    fn heap_bytes(&self) -> usize {
        let texts = [&self.community, &self.user].into_iter().flatten().map(|text| text.len()).sum::<usize>();
        let trap = self.trap.as_ref().map_or(0, |(_, name, _)| name.capacity());
        texts + trap + self.variables.iter().map(|name| name.capacity() + size_of::<String>()).sum::<usize>()
    }
}

/// Read an unsigned integer of up to eight bytes; a negative one counts as large.
fn integer_of(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || bytes.len() > 9 {
        return None;
    }
    Some(bytes.iter().fold(0, |value: u64, byte| value.wrapping_shl(8) | u64::from(*byte)))
}

fn name_of(oid: &[u8]) -> String {
    der::dotted(oid.get(..oid.len().min(MOST_NAME)).unwrap_or_default())
}

impl Parser for Snmp {
    fn parse(&mut self, way: Way, data: &[u8], _is_end: bool) -> Result<usize, ParseError> {
        let mut message = Message::read(data);
        message.way = Some(way);
        if *self.version.get_or_insert(message.version) != message.version && message.version != 0 {
            message.events.push(event::VERSION_MISMATCH);
        }
        self.transactions.push(message).ok_or(ParseError("too many messages"))?;
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
        messages.map(|message| size_of::<Message>() + message.heap_bytes()).sum()
    }
}

impl Transaction for Message {
    fn progress(&self, _way: Way) -> u8 {
        COMPLETE
    }

    fn buffer(&self, index: usize, way: Way, nth: usize) -> Option<View<'_>> {
        if self.way != Some(way) || nth > 0 {
            return None;
        }
        match index {
            buffer::COMMUNITY => self.community.as_deref().map(View::whole),
            buffer::USM => self.user.as_deref().map(View::whole),
            _ => None,
        }
    }

    fn number(&self, index: usize, way: Way, nth: usize) -> Option<u64> {
        match index {
            _ if self.way != Some(way) || nth > 0 => None,
            number::VERSION => Some(self.version).filter(|&version| version > 0),
            number::PDU_TYPE => self.pdu_type,
            _ => None,
        }
    }

    fn events(&self) -> &[u8] {
        &self.events
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        json.open("snmp");
        json.number("version", self.version);
        let names = || PDU_TYPES.iter().find(|(_, kind)| Some(*kind) == self.pdu_type);
        match (self.is_encrypted, names()) {
            (true, _) => json.plain("pdu_type", "encrypted"),
            (false, Some((name, _))) => json.plain("pdu_type", name),
            (false, None) => {}
        }
        if self.error != 0 {
            json.plain("error", error_name(self.error));
        }
        if let Some((kind, enterprise, address)) = &self.trap {
            json.plain("trap_type", trap_name(*kind));
            json.plain("trap_oid", enterprise);
            if let Some(address) = address {
                json.plain("trap_address", std::net::Ipv4Addr::from(*address));
            }
        }
        if !self.variables.is_empty() {
            json.open_array("vars");
            self.variables.iter().for_each(|name| json.text_element(name));
            json.close_array();
        }
        for (name, value) in [("community", &self.community), ("usm", &self.user)] {
            if let Some(value) = value {
                json.text(name, value);
            }
        }
        json.close();
    }

    fn is_logged(&self, record: usize) -> bool {
        self.version > 0 && self.way.is_some_and(|way| record == way as usize)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// RFC 3416 section 3.
fn error_name(error: u64) -> String {
    const NAMES: [&str; 19] = [
        "NoError",
        "TooBig",
        "NoSuchName",
        "BadValue",
        "ReadOnly",
        "GenErr",
        "NoAccess",
        "WrongType",
        "WrongLength",
        "WrongEncoding",
        "WrongValue",
        "NoCreation",
        "InconsistentValue",
        "ResourceUnavailable",
        "CommitFailed",
        "UndoFailed",
        "AuthorizationError",
        "NotWritable",
        "InconsistentName",
    ];
    let name = usize::try_from(error).ok().and_then(|index| NAMES.get(index));
    name.map_or_else(|| error.to_string(), |name| (*name).to_owned())
}

/// RFC 1157 section 4.1.6.
fn trap_name(kind: u64) -> String {
    const NAMES: [&str; 7] = [
        "coldStart",
        "warmStart",
        "linkDown",
        "linkUp",
        "authenticationFailure",
        "egpNeighborLoss",
        "enterpriseSpecific",
    ];
    let name = usize::try_from(kind).ok().and_then(|index| NAMES.get(index));
    name.map_or_else(|| kind.to_string(), |name| (*name).to_owned())
}
