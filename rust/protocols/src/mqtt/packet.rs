//! What an MQTT control packet says: MQTT 3.1.1 and 5.0, chapters 2 and 3.

use super::event;
use super::properties::{self, Property};
use crate::Reader;
use crate::framed::cut;

pub mod kind {
    pub const CONNECT: u8 = 1;
    pub const CONNACK: u8 = 2;
    pub const PUBLISH: u8 = 3;
    pub const PUBACK: u8 = 4;
    pub const PUBREC: u8 = 5;
    pub const PUBREL: u8 = 6;
    pub const PUBCOMP: u8 = 7;
    pub const SUBSCRIBE: u8 = 8;
    pub const SUBACK: u8 = 9;
    pub const UNSUBSCRIBE: u8 = 10;
    pub const UNSUBACK: u8 = 11;
    pub const DISCONNECT: u8 = 14;
    pub const AUTH: u8 = 15;
}

pub mod connect_flag {
    pub const USERNAME: u8 = 0x80;
    pub const PASSWORD: u8 = 0x40;
    pub const WILL_RETAIN: u8 = 0x20;
    pub const WILL: u8 = 0x04;
    pub const CLEAN: u8 = 0x02;
}

/// Topics of one SUBSCRIBE that are kept: Suricata's `subscribe-topic-match-limit` default.
const MOST_TOPICS: usize = 100;

#[derive(Default, Debug)]
pub struct Connect {
    pub protocol: Vec<u8>,
    pub version: u8,
    pub flags: u8,
    pub client: Vec<u8>,
    pub properties: Vec<Property>,
    pub will: Option<(Vec<Property>, Vec<u8>, Vec<u8>)>,
    pub username: Option<Vec<u8>>,
    pub password: Option<Vec<u8>>,
}

#[derive(Debug)]
pub enum Body {
    Connect(Box<Connect>),
    Connack {
        is_present: bool,
        code: u8,
        properties: Vec<Property>,
    },
    Publish {
        topic: Vec<u8>,
        message: Vec<u8>,
        properties: Vec<Property>,
    },
    /// PUBACK, PUBREC, PUBREL, PUBCOMP, DISCONNECT, AUTH.
    Reason {
        code: Option<u8>,
        properties: Vec<Property>,
    },
    Subscribe {
        topics: Vec<(Vec<u8>, u8)>,
        properties: Vec<Property>,
    },
    Codes {
        codes: Vec<u8>,
        properties: Vec<Property>,
    },
    Unsubscribe {
        topics: Vec<Vec<u8>>,
        properties: Vec<Property>,
    },
    Empty,
    Malformed,
}

#[derive(Debug)]
pub struct Packet {
    pub kind: u8,
    pub flags: u8,
    pub id: Option<u16>,
    pub body: Body,
}

/// Which transaction a packet belongs to.
pub struct Place {
    /// The type of packet that began it.
    pub wants: u8,
    /// It is over with this.
    pub is_last: bool,
    /// The event if there is none.
    pub missing: u8,
}

/// Return the protocol version that a CONNECT asks for.
pub fn version(mut body: Reader<'_>) -> Option<u8> {
    bytes(&mut body)?;
    body.u8()
}

fn bytes<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    let length = reader.be16()?;
    reader.take(usize::from(length))
}

impl Packet {
    /// Read a packet. `is_cut`: bytes at its end are missing.
    pub fn read(first: u8, mut body: Reader<'_>, version: u8, is_cut: bool) -> Packet {
        let mut packet = Packet { kind: first >> 4, flags: first & 0x0f, id: None, body: Body::Empty };
        let is_five = version == 5;
        let read = match packet.kind {
            kind::CONNECT => read_connect(body).map(|connect| Body::Connect(Box::new(connect))),
            kind::CONNACK => read_connack(body, is_five),
            kind::PUBLISH => packet.read_publish(body, is_five),
            kind::PUBACK..=kind::PUBCOMP => {
                packet.id = body.be16();
                packet.id.and_then(|_| read_reason(body, is_five))
            }
            kind::DISCONNECT | kind::AUTH => read_reason(body, is_five),
            kind::SUBSCRIBE..=kind::UNSUBACK => packet.read_topics(body, is_five),
            _ => Some(Body::Empty),
        };
        // a message's end may be missing; all else has to be there
        let is_readable = !is_cut || packet.kind == kind::PUBLISH;
        packet.body = read.filter(|_| is_readable).unwrap_or(Body::Malformed);
        packet
    }

    fn read_publish(&mut self, mut body: Reader<'_>, is_five: bool) -> Option<Body> {
        let topic = bytes(&mut body)?.to_vec();
        if self.qos() > 0 {
            self.id = Some(body.be16()?);
        }
        let properties = properties::read(&mut body, is_five)?;
        Some(Body::Publish { topic, message: body.rest().to_vec(), properties })
    }

    fn read_topics(&mut self, mut body: Reader<'_>, is_five: bool) -> Option<Body> {
        self.id = Some(body.be16()?);
        // before 5.0, UNSUBACK has nothing more, and none of the four has properties
        let properties = properties::read(&mut body, is_five)?;
        match self.kind {
            kind::SUBSCRIBE => {
                let mut topics = Vec::new();
                while body.left() > 0 {
                    let entry = (bytes(&mut body)?, body.u8()?);
                    if topics.len() < MOST_TOPICS {
                        topics.push((entry.0.to_vec(), entry.1));
                    }
                }
                Some(Body::Subscribe { topics, properties })
            }
            kind::UNSUBSCRIBE => {
                let mut topics = Vec::new();
                while body.left() > 0 {
                    let topic = bytes(&mut body)?;
                    if topics.len() < MOST_TOPICS {
                        topics.push(topic.to_vec());
                    }
                }
                Some(Body::Unsubscribe { topics, properties })
            }
            _ => Some(Body::Codes { codes: cut(body.rest(), MOST_TOPICS), properties }),
        }
    }

    /// The quality of service of the fixed header.
    pub fn qos(&self) -> u8 {
        self.flags >> 1 & 3
    }

    /// Which transaction this continues; `None` if it begins one.
    pub fn answers(&self) -> Option<Place> {
        let (wants, is_last, missing) = match self.kind {
            kind::CONNACK => (kind::CONNECT, true, event::MISSING_CONNECT),
            kind::PUBACK | kind::PUBCOMP => (kind::PUBLISH, true, event::MISSING_PUBLISH),
            kind::PUBREC | kind::PUBREL => (kind::PUBLISH, false, event::MISSING_PUBLISH),
            kind::SUBACK => (kind::SUBSCRIBE, true, event::MISSING_SUBSCRIBE),
            kind::UNSUBACK => (kind::UNSUBSCRIBE, true, event::MISSING_UNSUBSCRIBE),
            _ => return None,
        };
        Some(Place { wants, is_last, missing })
    }

    /// Whether an answer is due.
    pub fn waits(&self) -> bool {
        match self.kind {
            kind::CONNECT | kind::SUBSCRIBE | kind::UNSUBSCRIBE => true,
            kind::PUBLISH => self.qos() > 0,
            _ => false,
        }
    }

    /// The `nth` reason code, where the packet has any.
    pub fn reason(&self, nth: usize) -> Option<u8> {
        match &self.body {
            Body::Connack { code, .. } if nth == 0 => Some(*code),
            Body::Reason { code, .. } if nth == 0 => *code,
            Body::Codes { codes, .. } if self.kind == kind::UNSUBACK => codes.get(nth).copied(),
            _ => None,
        }
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        match &self.body {
            Body::Connect(connect) => {
                let texts = [&connect.protocol, &connect.client].into_iter().chain(&connect.username);
                let will = connect
                    .will
                    .iter()
                    .map(|will| properties::heap_bytes(&will.0) + will.1.capacity() + will.2.capacity());
                size_of::<Connect>()
                    + texts.chain(&connect.password).map(Vec::capacity).sum::<usize>()
                    + will.sum::<usize>()
                    + properties::heap_bytes(&connect.properties)
            }
            Body::Publish { topic, message, properties } => {
                topic.capacity() + message.capacity() + properties::heap_bytes(properties)
            }
            Body::Subscribe { topics, properties } => {
                topics.iter().map(|(topic, _)| topic.capacity() + size_of::<(Vec<u8>, u8)>()).sum::<usize>()
                    + properties::heap_bytes(properties)
            }
            Body::Unsubscribe { topics, properties } => {
                topics.iter().map(|topic| topic.capacity() + size_of::<Vec<u8>>()).sum::<usize>()
                    + properties::heap_bytes(properties)
            }
            Body::Codes { codes, properties } => codes.capacity() + properties::heap_bytes(properties),
            Body::Connack { properties, .. } | Body::Reason { properties, .. } => properties::heap_bytes(properties),
            Body::Empty | Body::Malformed => 0,
        }
    }
}

fn read_connect(mut body: Reader<'_>) -> Option<Connect> {
    let protocol = bytes(&mut body)?.to_vec();
    let (version, flags) = (body.u8()?, body.u8()?);
    body.be16()?; // keep alive
    let properties = properties::read(&mut body, version == 5)?;
    let mut connect = Connect { protocol, version, flags, properties, ..Connect::default() };
    connect.client = bytes(&mut body)?.to_vec();
    if flags & connect_flag::WILL != 0 {
        let properties = properties::read(&mut body, version == 5)?;
        connect.will = Some((properties, bytes(&mut body)?.to_vec(), bytes(&mut body)?.to_vec()));
    }
    if flags & connect_flag::USERNAME != 0 {
        connect.username = Some(bytes(&mut body)?.to_vec());
    }
    if flags & connect_flag::PASSWORD != 0 {
        connect.password = Some(bytes(&mut body)?.to_vec());
    }
    Some(connect)
}

fn read_connack(mut body: Reader<'_>, is_five: bool) -> Option<Body> {
    let (flags, code) = (body.u8()?, body.u8()?);
    Some(Body::Connack { is_present: flags & 1 != 0, code, properties: properties::read(&mut body, is_five)? })
}

/// A reason code and properties, both of which may be left out: MQTT 5.0 section 3.4.2.
fn read_reason(mut body: Reader<'_>, is_five: bool) -> Option<Body> {
    let code = if is_five { body.u8() } else { None };
    let properties = if body.left() > 0 { properties::read(&mut body, is_five)? } else { Vec::new() };
    Some(Body::Reason { code, properties })
}
