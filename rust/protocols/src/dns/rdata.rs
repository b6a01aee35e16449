//! The data of records whose types are told apart.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::message::{Message, Span};
use crate::Reader;

pub const TXT: u16 = 16;
/// RFC 6891: the pseudo record of EDNS.
pub const OPT: u16 = 41;

/// What a record holds.
#[derive(Clone, Copy, Debug)]
pub enum Data {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
    /// CNAME, PTR, MX, NS, DNAME: another name.
    Name(Span),
    /// TXT and NULL.
    Text(Span),
    Soa(Soa),
    Srv {
        priority: u16,
        weight: u16,
        port: u16,
        target: Span,
    },
    Sshfp {
        algorithm: u8,
        kind: u8,
        fingerprint: Span,
    },
    /// Options of EDNS, as they came.
    Options(Span),
    /// Any other type.
    Unknown,
}

/// RFC 1035 section 3.3.13.
#[derive(Clone, Copy, Debug)]
pub struct Soa {
    pub primary: Span,
    pub mailbox: Span,
    /// serial, refresh, retry, expire, minimum.
    pub numbers: [u32; 5],
}

/// Read the data of a record of type `rrtype`: `bytes`, which begin at `start` of the message.
pub fn read(message: &mut Message, data: &[u8], start: usize, bytes: &[u8], rrtype: u16) -> Option<Data> {
    // names may point backwards into the message, so they are read from there, never beyond this record's end
    let upto = data.get(..start.checked_add(bytes.len())?)?;
    let mut reader = Reader::new(upto);
    reader.take(start)?;
    if bytes.is_empty() {
        return Some(Data::Unknown); // RFC 2136 deletes with empty records
    }
    Some(match rrtype {
        1 if bytes.len() == 4 => Data::V4(reader.array::<4>()?.into()),
        28 if bytes.len() == 16 => Data::V6(reader.array::<16>()?.into()),
        2 | 5 | 12 | 39 => Data::Name(name(message, upto, &mut reader)?),
        15 => {
            reader.be16()?;
            Data::Name(name(message, upto, &mut reader)?)
        }
        6 => Data::Soa(soa(message, upto, &mut reader)?),
        10 => Data::Text(message.keep(bytes)?),
        33 => {
            let (priority, weight, port) = (reader.be16()?, reader.be16()?, reader.be16()?);
            Data::Srv { priority, weight, port, target: message.read_name(upto, &mut reader)? }
        }
        44 => {
            let (algorithm, kind) = (reader.u8()?, reader.u8()?);
            Data::Sshfp { algorithm, kind, fingerprint: message.keep(reader.rest())? }
        }
        OPT => Data::Options(message.keep(bytes)?),
        _ => Data::Unknown,
    })
}

fn name(message: &mut Message, data: &[u8], reader: &mut Reader<'_>) -> Option<Span> {
    let name = message.read_name(data, reader)?;
    message.data_names.push(name);
    Some(name)
}

fn soa(message: &mut Message, data: &[u8], reader: &mut Reader<'_>) -> Option<Soa> {
    let primary = name(message, data, reader)?;
    let mailbox = message.read_name(data, reader)?;
    let mut numbers = [0; 5];
    for number in &mut numbers {
        *number = reader.be32()?;
    }
    Some(Soa { primary, mailbox, numbers })
}
