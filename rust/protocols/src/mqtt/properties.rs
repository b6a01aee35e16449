//! Properties of MQTT 5.0: section 2.2.2.

use crate::{Json, Reader};

/// Properties of one packet that are kept; a packet of the specification has at most some twenty, user properties aside.
const MOST_PROPERTIES: usize = 64;

#[derive(Debug)]
pub enum Property {
    Number(&'static str, u32),
    Bytes(&'static str, Vec<u8>),
    Pair(Vec<u8>, Vec<u8>),
}

#[derive(Clone, Copy)]
enum Shape {
    Byte,
    Two,
    Four,
    Variable,
    Bytes,
    Pair,
}

fn shape(id: u8) -> Option<(&'static str, Shape)> {
    Some(match id {
        1 => ("payload_format_indicator", Shape::Byte),
        2 => ("message_expiry_interval", Shape::Four),
        3 => ("content_type", Shape::Bytes),
        8 => ("response_topic", Shape::Bytes),
        9 => ("correlation_data", Shape::Bytes),
        11 => ("subscription_identifier", Shape::Variable),
        17 => ("session_expiry_interval", Shape::Four),
        18 => ("assigned_client_identifier", Shape::Bytes),
        19 => ("server_keep_alive", Shape::Two),
        21 => ("authentication_method", Shape::Bytes),
        22 => ("authentication_data", Shape::Bytes),
        23 => ("request_problem_information", Shape::Byte),
        24 => ("will_delay_interval", Shape::Four),
        25 => ("request_response_information", Shape::Byte),
        26 => ("response_information", Shape::Bytes),
        28 => ("server_reference", Shape::Bytes),
        31 => ("reason_string", Shape::Bytes),
        33 => ("receive_maximum", Shape::Two),
        34 => ("topic_alias_maximum", Shape::Two),
        35 => ("topic_alias", Shape::Two),
        36 => ("maximum_qos", Shape::Byte),
        37 => ("retain_available", Shape::Byte),
        38 => ("user_property", Shape::Pair),
        39 => ("maximum_packet_size", Shape::Four),
        40 => ("wildcard_subscription_available", Shape::Byte),
        41 => ("subscription_identifiers_available", Shape::Byte),
        42 => ("shared_subscription_available", Shape::Byte),
        _ => return None,
    })
}

fn variable(reader: &mut Reader<'_>) -> Option<u32> {
    let mut value = 0;
    for index in 0..4 {
        let byte = reader.u8()?;
        value |= u32::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn bytes(reader: &mut Reader<'_>) -> Option<Vec<u8>> {
    let length = reader.be16()?;
    reader.take(usize::from(length)).map(<[u8]>::to_vec)
}

/// Read a list of properties; before version 5, there is none.
pub fn read(reader: &mut Reader<'_>, is_five: bool) -> Option<Vec<Property>> {
    let mut list = Vec::new();
    if !is_five {
        return Some(list);
    }
    let length = variable(reader)?;
    let mut inner = Reader::new(reader.take(usize::try_from(length).ok()?)?);
    while inner.left() > 0 {
        let (name, shape) = shape(inner.u8()?)?;
        let property = match shape {
            Shape::Byte => Property::Number(name, u32::from(inner.u8()?)),
            Shape::Two => Property::Number(name, u32::from(inner.be16()?)),
            Shape::Four => Property::Number(name, inner.be32()?),
            Shape::Variable => Property::Number(name, variable(&mut inner)?),
            Shape::Bytes => Property::Bytes(name, bytes(&mut inner)?),
            Shape::Pair => Property::Pair(bytes(&mut inner)?, bytes(&mut inner)?),
        };
        if list.len() < MOST_PROPERTIES {
            list.push(property);
        }
    }
    Some(list)
}

/// Write them as an object, if there are any. A user property is a member by its own name.
pub fn log(json: &mut Json, properties: &[Property]) {
    if properties.is_empty() {
        return;
    }
    json.open("properties");
    for property in properties {
        match property {
            Property::Number(name, value) => json.number(name, u64::from(*value)),
            Property::Bytes(name, value) => json.text(name, value),
            Property::Pair(name, value) => json.text(&String::from_utf8_lossy(name), value),
        }
    }
    json.close();
}

/// Bytes on the heap.
pub fn heap_bytes(properties: &[Property]) -> usize {
    let of_one = |property: &Property| match property {
        Property::Number(..) => 0,
        Property::Bytes(_, value) => value.capacity(),
        Property::Pair(name, value) => name.capacity() + value.capacity(),
    };
    properties.iter().map(|property| size_of::<Property>() + of_one(property)).sum()
}
