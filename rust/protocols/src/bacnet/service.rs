//! The parameters of services: clause 20.2 (tags), clause 21 (productions).

use super::message::{UNCONFIRMED, pdu};
use super::names;
use crate::framed::{cut, log_named, name_of};
use crate::{Json, Reader};

/// Constructed values in each other: more than any standard property has.
const MOST_NESTING: usize = 16;
/// Objects, properties and priorities of one message that are kept; an APDU of 1476 bytes names some 200 objects.
const MOST_KEPT: usize = 128;
/// Passwords of device control have at most 20 characters, names as many as the device likes.
const MOST_TEXT: usize = 256;

/// The object type of devices.
pub const DEVICE: u32 = 8;

/// What rules and logs want to know.
#[derive(Debug, Default)]
pub struct Content {
    pub objects: Vec<u32>,
    pub properties: Vec<u32>,
    pub priorities: Vec<u8>,
    pub error: Option<(u32, u32)>,
    /// Of ReinitializeDevice and DeviceCommunicationControl.
    pub state: Option<u32>,
    pub password: Option<Vec<u8>>,
    pub name: Option<Vec<u8>>,
    pub vendor: Option<u32>,
}

impl Content {
    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        let texts = [&self.password, &self.name].into_iter().flatten().map(Vec::capacity).sum::<usize>();
        4 * (self.objects.capacity() + self.properties.capacity()) + self.priorities.capacity() + texts
    }

    /// Write the members that are there. A password is never among them.
    pub fn log(&self, json: &mut Json) {
        if !self.objects.is_empty() {
            json.open_array("objects");
            for object in &self.objects {
                json.open_element();
                log_named(json, "type", names::OBJECT_TYPES, u64::from(object >> 22));
                json.number("instance", u64::from(object & 0x3f_ffff));
                json.close();
            }
            json.close_array();
        }
        if !self.properties.is_empty() {
            json.open_array("properties");
            for property in &self.properties {
                match name_of(names::PROPERTIES, u64::from(*property)) {
                    Some(name) => json.text_element(name),
                    None => json.text_element(property.to_string()),
                }
            }
            json.close_array();
        }
        if let Some(priority) = self.priorities.first() {
            json.number("priority", u64::from(*priority));
        }
        if let Some((class, code)) = self.error {
            json.number("error_class", u64::from(class));
            json.number("error_code", u64::from(code));
        }
        if let Some(state) = self.state {
            json.number("state", u64::from(state));
        }
        if let Some(name) = &self.name {
            json.text("object_name", name);
        }
        if let Some(vendor) = self.vendor {
            json.number("vendor_id", u64::from(vendor));
        }
    }
}

enum Kind<'a> {
    Opening,
    Closing,
    Value(&'a [u8]),
}

struct Tag<'a> {
    number: u8,
    is_context: bool,
    kind: Kind<'a>,
}

/// Read a tag with its content: 20.2.1.
fn read_tag<'a>(reader: &mut Reader<'a>) -> Option<Tag<'a>> {
    let first = reader.u8()?;
    let is_context = first & 8 != 0;
    let number = if first >> 4 == 15 { reader.u8()? } else { first >> 4 };
    let kind = match first & 7 {
        6 if is_context => Kind::Opening,
        7 if is_context => Kind::Closing,
        6 | 7 => return None,
        // an application-tagged boolean has its value where others have their length
        _ if !is_context && number == 1 => Kind::Value(&[]),
        5 => {
            let length = match reader.u8()? {
                254 => u32::from(reader.be16()?),
                255 => reader.be32()?,
                length => u32::from(length),
            };
            Kind::Value(reader.take(usize::try_from(length).ok()?)?)
        }
        length => Kind::Value(reader.take(usize::from(length))?),
    };
    Some(Tag { number, is_context, kind })
}

fn unsigned(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

/// What a value is, by the service and its place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Object,
    DeviceInstance,
    Property,
    Priority,
    State,
    Password,
    Name,
    Vendor,
    ErrorClass,
    ErrorCode,
    Nothing,
}

/// A value's place: which tags are open around it, its own tag, and the how manieth of the service's values it is.
struct Place {
    open: Option<u8>,
    depth: usize,
    tag: Option<u8>,
    application: Option<u8>,
    nth: usize,
}

fn role(kind: u8, service: u16, place: &Place) -> Role {
    if kind == pdu::ERROR {
        return match (place.application, place.nth) {
            (Some(9), 0) => Role::ErrorClass,
            (Some(9), 1) => Role::ErrorCode,
            _ => Role::Nothing,
        };
    }
    if place.application == Some(12) && place.depth == 0 {
        return Role::Object;
    }
    let is_ack = kind == pdu::COMPLEX_ACK;
    match (service, place.depth, place.open, place.tag) {
        // ReadProperty, AddListElement, RemoveListElement, WriteProperty, ReadRange
        (8 | 9 | 12 | 15 | 26, 0, _, Some(0)) => Role::Object,
        (8 | 9 | 12 | 15 | 26, 0, _, Some(1)) => Role::Property,
        (15, 0, _, Some(4)) => Role::Priority,
        // ReadPropertyMultiple, WritePropertyMultiple
        (14 | 16, 0, _, Some(0)) => Role::Object,
        (14, 1, Some(1), Some(2)) if is_ack => Role::Property,
        (14 | 16, 1, Some(1), Some(0)) if !is_ack => Role::Property,
        (16, 1, Some(1), Some(3)) => Role::Priority,
        // AcknowledgeAlarm, SubscribeCOV, SubscribeCOVProperty, GetEnrollmentSummary
        (0 | 5 | 28, 0, _, Some(1)) => Role::Object,
        (28, 1, Some(4), Some(0)) => Role::Property,
        // notifications of a changed value and of an event, both kinds
        (1 | 2 | 0x102 | 0x103, 0, _, Some(1 | 2)) => Role::Object,
        // CreateObject
        (10, 1, Some(0), Some(1)) => Role::Object,
        // DeviceCommunicationControl, ReinitializeDevice
        (17, 0, _, Some(1)) | (20, 0, _, Some(0)) => Role::State,
        (17, 0, _, Some(2)) | (20, 0, _, Some(1)) => Role::Password,
        // Who-Has, I-Have, Who-Is, I-Am
        (0x107, 0, _, Some(2)) => Role::Object,
        (0x107, 0, _, Some(3)) => Role::Name,
        (0x108, 0, _, Some(0 | 1)) => Role::DeviceInstance,
        (0x101, 0, _, None) if place.application == Some(7) => Role::Name,
        (UNCONFIRMED, 0, _, None) if place.nth == 3 => Role::Vendor,
        _ => Role::Nothing,
    }
}

fn text(bytes: &[u8]) -> Vec<u8> {
    cut(bytes.get(1..).unwrap_or_default(), MOST_TEXT) // the first byte names the character set
}

fn push<T>(list: &mut Vec<T>, value: T) {
    if list.len() < MOST_KEPT {
        list.push(value);
    }
}

impl Content {
    fn keep(&mut self, role: Role, bytes: &[u8]) {
        let value = unsigned(bytes);
        match role {
            Role::Object if bytes.len() == 4 => push(&mut self.objects, value),
            Role::DeviceInstance => push(&mut self.objects, DEVICE << 22 | value & 0x3f_ffff),
            Role::Property => push(&mut self.properties, value),
            Role::Priority => push(&mut self.priorities, u8::try_from(value).unwrap_or(u8::MAX)),
            Role::State => self.state = Some(value),
            Role::Password => self.password = Some(text(bytes)),
            Role::Name => self.name = Some(text(bytes)),
            Role::Vendor => self.vendor = Some(value),
            Role::ErrorClass => self.error = Some((value, 0)),
            Role::ErrorCode => self.error = self.error.map(|(class, _)| (class, value)),
            Role::Object | Role::Nothing => {}
        }
    }
}

/// Read a service's parameters; `None` where tags do not fit together.
pub fn read(kind: u8, service: u16, mut reader: Reader<'_>, content: &mut Content) -> Option<()> {
    let mut open = [0_u8; MOST_NESTING];
    let (mut depth, mut nth) = (0_usize, 0);
    while reader.left() > 0 {
        let tag = read_tag(&mut reader)?;
        match tag.kind {
            Kind::Opening => {
                *open.get_mut(depth)? = tag.number;
                depth += 1;
            }
            Kind::Closing => {
                depth = depth.checked_sub(1)?;
                if open.get(depth) != Some(&tag.number) {
                    return None;
                }
            }
            Kind::Value(bytes) => {
                let place = Place {
                    open: depth.checked_sub(1).and_then(|at| open.get(at)).copied(),
                    depth,
                    tag: tag.is_context.then_some(tag.number),
                    application: (!tag.is_context).then_some(tag.number),
                    nth,
                };
                content.keep(role(kind, service, &place), bytes);
                nth += 1;
            }
        }
    }
    (depth == 0).then_some(())
}
