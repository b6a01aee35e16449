//! One IP packet to its transport payload, as strictly as its receiver would read it, or more so.
//!
//! Sources: RFC 791, RFC 8200, RFC 9293 section 3.1, RFC 768, RFC 1071 (checksum). A packet that a receiver would throw
//! away must not be believed either: its bytes would count as passed.

use crate::decode::{Address, flags, protocol};

/// RFC 8200 section 4.1 lists seven extension headers, of which one may occur twice.
const MAX_EXTENSION_HEADERS: usize = 8;

/// Why a packet is dropped before any rule is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// Cut short, lengths that disagree, a header that is none.
    Header,
    /// A fragment: connection tracking puts them together before us, so this one went around it.
    Fragment,
    /// A checksum that its receiver would reject.
    Checksum,
    /// Neither TCP nor UDP.
    Protocol,
}

/// Where a packet comes from and goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
}

/// The parts of a TCP header that are judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    pub payload: &'a [u8],
}

impl Segment<'_> {
    pub fn has(&self, bits: u8) -> bool {
        self.flags & bits != 0
    }
}

/// What a packet carries.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Carried<'a> {
    Segment(Segment<'a>),
    Datagram(&'a [u8]),
}

/// Read one packet. `is_checksum_pending`: the kernel vouches for the transport checksum, which is not filled in.
pub(crate) fn parse_packet(data: &[u8], is_checksum_pending: bool) -> Result<(Ends, Carried<'_>), Unfit> {
    let (source, destination, number, body) = match data.first().map(|byte| byte >> 4) {
        Some(4) => parse_ipv4(data)?,
        Some(6) => parse_ipv6(data)?,
        _ => return Err(Unfit::Header),
    };
    let pseudo = pseudo_sum(source, destination, number, body.len());
    let is_whole = is_checksum_pending || fold(sum(pseudo, body)) == 0xffff;
    let head = body.first_chunk::<8>().ok_or(Unfit::Header)?;
    let ends = Ends {
        source,
        destination,
        source_port: be16(head[0], head[1]),
        destination_port: be16(head[2], head[3]),
        protocol: number,
    };
    match number {
        protocol::TCP if is_whole => Ok((ends, Carried::Segment(parse_tcp(body)?))),
        protocol::UDP => Ok((ends, Carried::Datagram(parse_udp(body, source, destination, is_checksum_pending)?))),
        protocol::TCP => Err(Unfit::Checksum),
        _ => Err(Unfit::Protocol),
    }
}

type Layer<'a> = (Address, Address, u8, &'a [u8]);

fn parse_ipv4(data: &[u8]) -> Result<Layer<'_>, Unfit> {
    let head = data.first_chunk::<20>().ok_or(Unfit::Header)?;
    let header_bytes = usize::from(head[0] & 15) * 4;
    let total_bytes = usize::from(be16(head[2], head[3]));
    if header_bytes < 20 || total_bytes < header_bytes || total_bytes > data.len() {
        return Err(Unfit::Header);
    }
    if be16(head[6], head[7]) & 0x3fff != 0 {
        return Err(Unfit::Fragment); // more fragments, or an offset
    }
    if fold(sum(0, &data[..header_bytes])) != 0xffff {
        return Err(Unfit::Checksum);
    }
    let source = Address::from_v4(u32::from_be_bytes([head[12], head[13], head[14], head[15]]));
    let destination = Address::from_v4(u32::from_be_bytes([head[16], head[17], head[18], head[19]]));
    Ok((source, destination, head[9], &data[header_bytes..total_bytes]))
}

fn parse_ipv6(data: &[u8]) -> Result<Layer<'_>, Unfit> {
    let head = data.first_chunk::<40>().ok_or(Unfit::Header)?;
    let payload_bytes = usize::from(be16(head[4], head[5]));
    let mut rest = data.get(40..40 + payload_bytes).ok_or(Unfit::Header)?; // a jumbogram says 0 and has no port either
    let address = |at: usize| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&head[at..at + 16]);
        Address(u128::from_be_bytes(bytes))
    };
    let (source, destination) = (address(8), address(24));
    if source.is_v4() || destination.is_v4() {
        return Err(Unfit::Header); // would pass for an IPv4 flow
    }
    let mut next = head[6];
    for _ in 0..=MAX_EXTENSION_HEADERS {
        match next {
            0 | 43 | 60 => {
                let extension = rest.first_chunk::<2>().ok_or(Unfit::Header)?;
                next = extension[0];
                rest = rest.get(usize::from(extension[1]) * 8 + 8..).ok_or(Unfit::Header)?;
            }
            44 => return Err(Unfit::Fragment),
            number => return Ok((source, destination, number, rest)),
        }
    }
    Err(Unfit::Header)
}

fn parse_tcp(body: &[u8]) -> Result<Segment<'_>, Unfit> {
    let head = body.first_chunk::<20>().ok_or(Unfit::Header)?;
    let header_bytes = usize::from(head[12] >> 4) * 4;
    if header_bytes < 20 || header_bytes > body.len() {
        return Err(Unfit::Header);
    }
    Ok(Segment {
        sequence: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
        acknowledgement: u32::from_be_bytes([head[8], head[9], head[10], head[11]]),
        flags: head[13],
        payload: &body[header_bytes..],
    })
}

/// The receiver believes UDP's own length, which may be less than IP carries.
fn parse_udp(body: &[u8], source: Address, destination: Address, is_pending: bool) -> Result<&[u8], Unfit> {
    let head = body.first_chunk::<8>().ok_or(Unfit::Header)?;
    let length = usize::from(be16(head[4], head[5]));
    let datagram = body.get(..length).filter(|_| length >= 8).ok_or(Unfit::Header)?;
    let is_absent = head[6] == 0 && head[7] == 0;
    let is_right = if is_absent {
        source.is_v4() // RFC 8200 section 8.1: never absent in IPv6
    } else {
        fold(sum(pseudo_sum(source, destination, protocol::UDP, length), datagram)) == 0xffff
    };
    if is_pending || is_right { Ok(&datagram[8..]) } else { Err(Unfit::Checksum) }
}

/// Return a reset that closes one end of a connection: a whole IP packet with its checksums.
///
/// `ends.source` is who seems to send it. `acknowledgement` is for a peer that waits for an answer to its SYN.
pub(crate) fn encode_reset(ends: &Ends, sequence: u32, acknowledgement: Option<u32>) -> Vec<u8> {
    let mut tcp = [0_u8; 20];
    tcp[0..2].copy_from_slice(&ends.source_port.to_be_bytes());
    tcp[2..4].copy_from_slice(&ends.destination_port.to_be_bytes());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&acknowledgement.unwrap_or(0).to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = flags::RST | if acknowledgement.is_some() { flags::ACK } else { 0 };
    let checksum = !fold(sum(pseudo_sum(ends.source, ends.destination, protocol::TCP, tcp.len()), &tcp));
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    let mut packet = encode_ip_header(ends, tcp.len() as u16);
    packet.extend_from_slice(&tcp);
    packet
}

/// Hop limit of what we make ourselves (IANA's recommended default, RFC 1700).
const HOPS: u8 = 64;

fn encode_ip_header(ends: &Ends, payload_bytes: u16) -> Vec<u8> {
    if ends.source.is_v4() {
        let mut head = vec![0x45, 0];
        head.extend((20 + payload_bytes).to_be_bytes());
        head.extend([0, 0, 0x40, 0, HOPS, protocol::TCP, 0, 0]); // do not fragment
        head.extend((ends.source.0 as u32).to_be_bytes());
        head.extend((ends.destination.0 as u32).to_be_bytes());
        let checksum = !fold(sum(0, &head));
        head[10..12].copy_from_slice(&checksum.to_be_bytes());
        return head;
    }
    let mut head = vec![0x60, 0, 0, 0];
    head.extend(payload_bytes.to_be_bytes());
    head.extend([protocol::TCP, HOPS]);
    head.extend(ends.source.0.to_be_bytes());
    head.extend(ends.destination.0.to_be_bytes());
    head
}

fn be16(high: u8, low: u8) -> u16 {
    u16::from_be_bytes([high, low])
}

fn pseudo_sum(source: Address, destination: Address, number: u8, length: usize) -> u64 {
    let mut total = u64::from(number) + length as u64;
    for address in [source, destination] {
        total = match address.is_v4() {
            true => sum(total, &(address.0 as u32).to_be_bytes()),
            false => sum(total, &address.0.to_be_bytes()),
        };
    }
    total
}

/// Add the bytes as 16-bit words; 64 bits hold the sum of any packet.
fn sum(start: u64, bytes: &[u8]) -> u64 {
    let (words, last) = bytes.as_chunks::<2>();
    let total: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    start + total + last.first().map_or(0, |byte| u64::from(*byte) << 8)
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}
