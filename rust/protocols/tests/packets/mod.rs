//! Just enough of captures and packets to show streams to parsers: no checks, no fragments, no tunnels.

use std::collections::BTreeMap;
use std::net::IpAddr;

use protocols::{Transport, Way};

/// A packet of TCP or UDP.
pub struct Packet {
    pub transport: Transport,
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
    pub sequence: u32,
    /// TCP: SYN is 2, ACK is 16.
    pub flags: u8,
    pub payload: Vec<u8>,
}

fn number<const N: usize>(data: &[u8], at: usize, is_little: bool) -> Option<u32> {
    let mut bytes = data.get(at..at + N)?.to_vec();
    if is_little {
        bytes.reverse();
    }
    Some(bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
}

/// Read the packets of a pcap or pcapng file; stops where it is broken.
pub fn read(file: &[u8]) -> Vec<Packet> {
    let mut packets = Vec::new();
    let frames = match number::<4>(file, 0, false) {
        Some(0x0a0d_0d0a) => read_blocks(file),
        Some(0xa1b2_c3d4 | 0xa1b2_3c4d) => read_records(file, false),
        Some(0xd4c3_b2a1 | 0x4d3c_b2a1) => read_records(file, true),
        _ => Vec::new(),
    };
    packets.extend(frames.iter().filter_map(|(link, frame)| decode(*link, frame)));
    packets
}

fn read_records(file: &[u8], is_little: bool) -> Vec<(u32, Vec<u8>)> {
    let mut frames = Vec::new();
    let link = number::<4>(file, 20, is_little).unwrap_or_default() & 0xffff;
    let mut at = 24;
    while let Some(length) = number::<4>(file, at + 8, is_little) {
        let Some(frame) = file.get(at + 16..at + 16 + length as usize) else { break };
        frames.push((link, frame.to_vec()));
        at += 16 + length as usize;
    }
    frames
}

fn read_blocks(file: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let (mut frames, mut links, mut at, mut is_little) = (Vec::new(), Vec::new(), 0, true);
    while let Some(kind) = number::<4>(file, at, is_little) {
        if kind == 0x0a0d_0d0a {
            is_little = number::<4>(file, at + 8, false) == Some(0x4d3c_2b1a);
            links.clear();
        }
        let Some(length) = number::<4>(file, at + 4, is_little).filter(|length| *length >= 12) else { break };
        match kind {
            1 => links.push(number::<2>(file, at + 8, is_little).unwrap_or_default()),
            6 => {
                let interface = number::<4>(file, at + 8, is_little).unwrap_or_default() as usize;
                let captured = number::<4>(file, at + 20, is_little).unwrap_or_default() as usize;
                if let (Some(link), Some(frame)) = (links.get(interface), file.get(at + 28..at + 28 + captured)) {
                    frames.push((*link, frame.to_vec()));
                }
            }
            _ => {}
        }
        at += length as usize;
    }
    frames
}

fn decode(link: u32, frame: &[u8]) -> Option<Packet> {
    let (mut kind, mut at) = match link {
        0 => (if frame.first()? | frame.get(3)? == 2 { 0x0800 } else { 0x86dd }, 4),
        1 => (number::<2>(frame, 12, false)?, 14),
        9 => (if frame.get(2..4)? == [0, 0x57] { 0x86dd } else { 0x0800 }, 4),
        101 | 12 | 228 | 229 => (if frame.first()? >> 4 == 6 { 0x86dd } else { 0x0800 }, 0),
        113 => (number::<2>(frame, 14, false)?, 16),
        276 => (number::<2>(frame, 0, false)?, 20),
        _ => return None,
    };
    while matches!(kind, 0x8100 | 0x88a8) {
        kind = number::<2>(frame, at + 2, false)?;
        at += 4;
    }
    let packet = frame.get(at..)?;
    match kind {
        0x0800 => decode_ipv4(packet),
        0x86dd => decode_ipv6(packet),
        _ => None,
    }
}

fn decode_ipv4(packet: &[u8]) -> Option<Packet> {
    let header = usize::from(packet.first()? & 15) * 4;
    let length = number::<2>(packet, 2, false)? as usize;
    let is_fragment = number::<2>(packet, 6, false)? & 0x3fff != 0;
    let address = |at: usize| packet.get(at..at + 4)?.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes));
    // a length of 0 is what a card that segments by itself leaves
    let end = if length == 0 { packet.len() } else { length.min(packet.len()) };
    let body = packet.get(header..end).filter(|_| !is_fragment)?;
    decode_transport(*packet.get(9)?, address(12)?, address(16)?, body)
}

fn decode_ipv6(packet: &[u8]) -> Option<Packet> {
    let length = number::<2>(packet, 4, false)? as usize;
    let address = |at: usize| packet.get(at..at + 16)?.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes));
    let body = packet.get(40..(40 + length).min(packet.len()))?;
    decode_transport(*packet.get(6)?, address(8)?, address(24)?, body)
}

fn decode_transport(protocol: u8, source: IpAddr, destination: IpAddr, body: &[u8]) -> Option<Packet> {
    let ports = (number::<2>(body, 0, false)? as u16, number::<2>(body, 2, false)? as u16);
    let (transport, header) = match protocol {
        6 => (Transport::Tcp, usize::from(body.get(12)? >> 4) * 4),
        17 => (Transport::Udp, 8),
        _ => return None,
    };
    let end = if transport == Transport::Udp { number::<2>(body, 4, false)? as usize } else { body.len() };
    Some(Packet {
        transport,
        source: (source, ports.0),
        destination: (destination, ports.1),
        sequence: number::<4>(body, 4, false)?,
        flags: *body.get(13).filter(|_| protocol == 6).unwrap_or(&0),
        payload: body.get(header..end.min(body.len()))?.to_vec(),
    })
}

/// One way of a TCP connection.
#[derive(Default)]
pub struct Stream {
    next: Option<u32>,
    waiting: BTreeMap<u32, Vec<u8>>,
}

impl Stream {
    /// Put a segment in; return the bytes that are in order now.
    pub fn insert(&mut self, packet: &Packet) -> Vec<u8> {
        if packet.flags & 2 != 0 {
            self.next = Some(packet.sequence.wrapping_add(1));
            return Vec::new();
        }
        let next = self.next.get_or_insert(packet.sequence);
        // distances are signed: the sequence number goes round
        let distance = packet.sequence.wrapping_sub(*next) as i32;
        if !packet.payload.is_empty() && distance + packet.payload.len() as i32 > 0 {
            self.waiting.entry(packet.sequence).or_insert_with(|| packet.payload.clone());
        }
        let mut ready = Vec::new();
        let find = |waiting: &BTreeMap<u32, Vec<u8>>, next: u32| {
            waiting.keys().copied().find(|start| next.wrapping_sub(*start) as i32 >= 0)
        };
        while let Some(start) = find(&self.waiting, *next) {
            let data = self.waiting.remove(&start).unwrap_or_default();
            let fresh = data.get(next.wrapping_sub(start) as usize..).unwrap_or_default();
            ready.extend_from_slice(fresh);
            *next = next.wrapping_add(fresh.len() as u32);
        }
        ready
    }
}

/// A flow's ends, the client first, and whether it is TCP.
pub type Ends = (bool, (IpAddr, u16), (IpAddr, u16));

/// Return the flow that a packet belongs to as if its sender were the client, and the other way round.
pub fn ends(packet: &Packet) -> [Ends; 2] {
    let Packet { transport, source, destination, .. } = packet;
    let is_tcp = *transport == Transport::Tcp;
    [(is_tcp, *source, *destination), (is_tcp, *destination, *source)]
}

/// Who the client is by a flow's first packet.
pub fn first_way(packet: &Packet) -> Way {
    let is_answer = packet.flags & 18 == 18;
    let looks_reversed = packet.flags & 2 == 0 && packet.source.1 < 1024 && packet.destination.1 >= 1024;
    if is_answer || looks_reversed { Way::ToClient } else { Way::ToServer }
}
