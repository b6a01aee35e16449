//! Protocols that are told by their fields.

use super::{decide, short};
use crate::{Probe, Reader, Start, Transport, Way};

/// A masked frame of text from the client, or one without a mask from the server, whose text is text.
pub fn websocket(start: &Start<'_>) -> Probe {
    if let Some(verdict) = short(start, 2) {
        return if matches!(start.data, [0x81, ..]) { verdict } else { Probe::No };
    }
    let mut reader = Reader::new(start.data);
    let (Some(0x81), Some(second)) = (reader.u8(), reader.u8()) else { return Probe::No };
    let is_masked = second & 0x80 != 0;
    if is_masked != (start.way == Way::ToServer) {
        return Probe::No;
    }
    let length = match second & 0x7f {
        126 => reader.be16().map(usize::from),
        127 => return Probe::No, // nobody begins with so much
        short => Some(usize::from(short)),
    };
    let (Some(length), mask) = (length, if is_masked { reader.array::<4>() } else { Some([0; 4]) }) else {
        return Probe::More;
    };
    let Some(mask) = mask else { return Probe::More };
    let is_text = |(index, byte): (usize, &u8)| matches!(byte ^ mask[index % 4], b' '..=b'~' | b'\t' | b'\r' | b'\n');
    // without a mask the shape is that of too many others: structured text is asked for
    let is_structured = is_masked || matches!(reader.rest().first(), Some(b'{' | b'['));
    let seen = reader.rest().get(..reader.left().min(length)).unwrap_or_default();
    match is_structured && seen.iter().enumerate().all(is_text) {
        false => Probe::No,
        true if seen.len() < length => Probe::More,
        true => decide(length >= 8),
    }
}

/// Read the length of a BER element (X.690 section 8.1.3), definite and of at most four bytes.
fn ber_length(reader: &mut Reader<'_>) -> Option<usize> {
    match reader.u8()? {
        short @ 0..=0x7f => Some(short.into()),
        0x81 => reader.u8().map(usize::from),
        0x82 => reader.be16().map(usize::from),
        0x83 => reader.be24().and_then(|length| usize::try_from(length).ok()),
        0x84 => reader.be32().and_then(|length| usize::try_from(length).ok()),
        _ => None,
    }
}

/// Operations of RFC 4511, by way: what a session may begin with.
fn is_ldap_operation(tag: u8, way: Way) -> bool {
    match way {
        Way::ToServer => matches!(tag, 0x60 | 0x42 | 0x63 | 0x66 | 0x68 | 0x4a | 0x6c | 0x6e | 0x77),
        Way::ToClient => matches!(tag, 0x61 | 0x64 | 0x65 | 0x67 | 0x69 | 0x6b | 0x6d | 0x6f | 0x73 | 0x78),
    }
}

/// A sequence of a message's number and an operation that fits into it.
pub fn ldap(start: &Start<'_>) -> Probe {
    if start.data.first() != Some(&0x30) {
        return Probe::No;
    }
    if let Some(verdict) = short(start, 7) {
        return verdict;
    }
    let parse = || {
        let mut reader = Reader::new(start.data);
        reader.u8()?;
        let length = ber_length(&mut reader)?;
        let begin = reader.position();
        let (tag, digits) = (reader.u8()?, reader.u8()?);
        let number = reader.take((1..=4).contains(&digits).then_some(digits.into())?)?;
        let operation = reader.u8()?;
        let inner = ber_length(&mut reader)?;
        let end = (reader.position() - begin).checked_add(inner)?;
        let is_whole = start.transport == Transport::Tcp || reader.left() >= inner;
        let is_bind = operation != 0x60 || reader.array::<2>()? == [2, 1];
        let fits = tag == 2 && number.first()? & 0x80 == 0 && end <= length && length < 1 << 24;
        Some(fits && is_whole && is_bind && is_ldap_operation(operation, start.way))
    };
    match parse() {
        Some(is_so) => decide(is_so),
        None if start.transport == Transport::Tcp && start.data.len() < 24 => Probe::More,
        None => Probe::No,
    }
}

/// An application tag with a sequence in it whose first number is Kerberos' version, 5.
pub fn krb5(start: &Start<'_>) -> Probe {
    let data = match start.transport {
        Transport::Udp => start.data,
        Transport::Tcp => {
            if let Some(verdict) = short(start, 5) {
                return verdict;
            }
            let Some((size, data)) = start.data.split_first_chunk::<4>() else { return Probe::No };
            // larger tickets than this do not occur, and a datagram's are below 64 KiB
            if !(32..1 << 20).contains(&u32::from_be_bytes(*size)) {
                return Probe::No;
            }
            data
        }
    };
    let tags: &[u8] = match start.way {
        Way::ToServer => &[0x6a, 0x6c, 0x6e],
        Way::ToClient => &[0x6b, 0x6d, 0x6f, 0x7e],
    };
    if !data.first().is_some_and(|tag| tags.contains(tag)) {
        return Probe::No;
    }
    let parse = || {
        let mut reader = Reader::new(data);
        let (_, outer) = (reader.u8()?, ber_length(&mut reader)?);
        let (sequence, inner) = (reader.u8()?, ber_length(&mut reader)?);
        let (tag, rest) = (reader.u8()?, reader.array::<4>()?);
        Some(sequence == 0x30 && inner < outer && matches!(tag, 0xa0 | 0xa1) && rest == [3, 2, 1, 5])
    };
    match parse() {
        Some(is_so) => decide(is_so),
        None if start.transport == Transport::Tcp && data.len() < 24 => Probe::More,
        None => Probe::No,
    }
}

/// X.224 in TPKT with what only RDP puts behind it ([MS-RDPBCGR] section 2.2.1.1): a cookie or a negotiation.
pub fn rdp(start: &Start<'_>) -> Probe {
    let Some(&[version, reserved, high, low, indicator, kind]) = start.data.first_chunk::<6>() else {
        return if start.data.starts_with(&[3]) && start.data.len() < 6 { Probe::More } else { Probe::No };
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let expected = if start.way == Way::ToServer { 0xe0 } else { 0xd0 };
    // TPKT's header is 4 bytes, and the indicator does not count itself
    let fits = length == usize::from(indicator) + 5;
    if (version, reserved) != (3, 0) || kind != expected || !fits || length < 11 {
        return Probe::No;
    }
    let Some(data) = start.data.get(11..length) else { return Probe::More };
    decide(match (start.way, data) {
        (Way::ToServer, []) | (Way::ToClient, []) => start.is_usual_port,
        (Way::ToServer, [1, _, 8, 0, ..]) => true,
        (Way::ToServer, text) => text.starts_with(b"Cookie: ") || text.starts_with(b"tsv://"),
        (Way::ToClient, [2 | 3, _, 8, 0, ..]) => true,
        _ => false,
    })
}

/// RFC 9000 section 17.2: connection ids; version 2 is RFC 9369.
const MOST_ID: u8 = 20;
/// RFC 9000 section 14.1: a client's first datagram is at least this long; some drafts' were a little shorter.
const LEAST_INITIAL: usize = 1000;

fn is_quic_version(version: u32) -> bool {
    let is_draft = (0xff00_0012..=0xff00_0022).contains(&version);
    let is_other = matches!(version >> 8, 0x00fa_ceb0) || matches!(version, 0x6b33_43cf | 0x709a_50c4);
    version == 1 || is_draft || is_other || is_google_version(version)
}

/// `Q043`, `T050`.
fn is_google_version(version: u32) -> bool {
    let [kind, a, b, c] = version.to_be_bytes();
    matches!(kind, b'Q' | b'T') && a == b'0' && b.is_ascii_digit() && c.is_ascii_digit()
}

/// A long header of a known version.
pub fn quic(start: &Start<'_>) -> Probe {
    match start.data.first() {
        Some(first) if first & 0x80 == 0 => decide(is_old_quic(start)),
        Some(first) => decide(is_long_header(start, *first).unwrap_or(false)),
        None => Probe::No,
    }
}

fn is_long_header(start: &Start<'_>, first: u8) -> Option<bool> {
    let mut reader = Reader::new(start.data.get(1..)?);
    let version = reader.be32()?;
    let is_answer = start.way == Way::ToClient;
    if is_google_version(version) {
        // Q044 to Q050 have both ids' lengths in one byte, or as today: the datagram's own length decides
        return Some(is_answer || (1200..=1500).contains(&start.data.len()));
    }
    let destination = reader.u8().filter(|length| *length <= MOST_ID)?;
    reader.take(destination.into())?;
    let source = reader.u8().filter(|length| *length <= MOST_ID)?;
    reader.take(source.into())?;
    // RFC 9000 section 7.2: a client's first id of its server has eight bytes or more
    let is_initial = is_answer || start.data.len() >= LEAST_INITIAL && destination >= 8;
    // RFC 9000 section 15: versions of this shape make the server say which ones it has
    let is_reserved = version & 0x0f0f_0f0f == 0x0a0a_0a0a && start.is_usual_port;
    Some(first & 0x40 != 0 && (is_quic_version(version) || is_reserved) && is_initial)
}

/// Google's public header up to Q043: flags with a version and an id of eight bytes.
fn is_old_quic(start: &Start<'_>) -> bool {
    let Some(&[flags, _, _, _, _, _, _, _, _, kind, a, b, c]) = start.data.first_chunk::<13>() else { return false };
    let version = u32::from_be_bytes([kind, a, b, c]);
    flags & 0x09 == 0x09 && kind == b'Q' && is_google_version(version) && start.is_usual_port
}

/// A header (RFC 7296 section 3.1) whose length is the datagram's.
pub fn ike(start: &Start<'_>) -> Probe {
    // RFC 3948 section 2.2: four zeros come before it on the port that ESP uses too
    let data = start.data.strip_prefix(&[0; 4]).filter(|_| start.is_usual_port).unwrap_or(start.data);
    let parse = || {
        let mut reader = Reader::new(data);
        let (initiator, _responder) = (reader.be64()?, reader.be64()?);
        let (payload, version, exchange, flags) = (reader.u8()?, reader.u8()?, reader.u8()?, reader.u8()?);
        let (_message, length) = (reader.be32()?, reader.be32()? as usize);
        let is_known = match version >> 4 {
            1 => matches!(exchange, 1 | 2 | 4 | 5 | 6 | 32 | 33) && payload <= 20 && flags & 0xf8 == 0,
            2 => matches!(exchange, 34..=38) && (payload == 0 || (33..=54).contains(&payload)) && flags & 0xc7 == 0,
            _ => false,
        };
        Some(initiator != 0 && is_known && length == data.len())
    };
    decide(parse().unwrap_or(false))
}
