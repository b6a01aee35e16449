//! A small reader of pcap and pcapng files, and naive reassembly: enough for the corpora, not for hostile networks.

use std::collections::BTreeMap;

use protocols::{Transport, Way};

/// What one flow's two sides sent, in the order of the capture.
pub struct Flow {
    pub transport: Transport,
    pub server_port: u16,
    pub pieces: Vec<(Way, Piece)>,
}

/// Bytes, or that so many are missing.
pub enum Piece {
    Data(Vec<u8>),
    Gap(u64),
}

/// Segments that may be early before the one between is taken for lost.
const MOST_EARLY: usize = 2;

type Endpoint = (Vec<u8>, u16);
type Key = (u8, Endpoint, Endpoint);

#[derive(Default)]
struct Side {
    next: Option<u32>,
    early: BTreeMap<u32, Vec<u8>>,
}

struct Open {
    client: Endpoint,
    flow: Flow,
    sides: [Side; 2],
}

fn number(data: &[u8], at: usize, bytes: usize, is_big: bool) -> Option<u32> {
    let field = data.get(at..at + bytes)?;
    let digits: Vec<u8> = if is_big { field.to_vec() } else { field.iter().rev().copied().collect() };
    Some(digits.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
}

/// Link type and bytes of every packet.
fn packets(file: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut out = Vec::new();
    if file.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]) {
        blocks(file, &mut out);
        return out;
    }
    let is_big = file.first() == Some(&0xa1);
    let Some(link) = number(file, 20, 4, is_big) else { return out };
    let mut at = 24;
    while let Some(length) = number(file, at + 8, 4, is_big) {
        let Some(packet) = file.get(at + 16..at + 16 + length as usize) else { break };
        out.push((link & 0xffff, packet.to_vec()));
        at += 16 + length as usize;
    }
    out
}

fn blocks(file: &[u8], out: &mut Vec<(u32, Vec<u8>)>) {
    let is_big = file.get(8) == Some(&0x1a);
    let (mut at, mut links) = (0, Vec::new());
    while let (Some(kind), Some(total)) = (number(file, at, 4, is_big), number(file, at + 4, 4, is_big)) {
        match kind {
            1 => links.extend(number(file, at + 8, 2, is_big)),
            6 => {
                let interface = number(file, at + 8, 4, is_big).unwrap_or(0) as usize;
                let length = number(file, at + 20, 4, is_big).unwrap_or(0) as usize;
                let packet = file.get(at + 28..at + 28 + length);
                out.extend(links.get(interface).copied().zip(packet.map(<[u8]>::to_vec)));
            }
            _ => {}
        }
        at += (total as usize).max(12);
    }
}

/// The IP packet in a frame.
fn network(link: u32, frame: &[u8]) -> Option<&[u8]> {
    let (mut kind_at, mut at) = match link {
        1 => (12, 14),
        113 => (14, 16),
        0 => return frame.get(4..),
        12 | 14 | 101 => return Some(frame),
        _ => return None,
    };
    while matches!(number(frame, kind_at, 2, true)?, 0x8100 | 0x88a8) {
        (kind_at, at) = (kind_at + 4, at + 4);
    }
    matches!(number(frame, kind_at, 2, true)?, 0x0800 | 0x86dd).then(|| frame.get(at..))?
}

/// Protocol, addresses, and what the IP packet carries.
type Carried<'a> = (u8, Vec<u8>, Vec<u8>, &'a [u8]);

fn transport(packet: &[u8]) -> Option<Carried<'_>> {
    match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet.first()? & 15) * 4;
            let total = number(packet, 2, 2, true)? as usize;
            let body = packet.get(header..total.min(packet.len()).max(header))?;
            Some((*packet.get(9)?, packet.get(12..16)?.to_vec(), packet.get(16..20)?.to_vec(), body))
        }
        6 => Some((*packet.get(6)?, packet.get(8..24)?.to_vec(), packet.get(24..40)?.to_vec(), packet.get(40..)?)),
        _ => None,
    }
}

/// Read every flow that has one of `ports` at one of its ends; that end is the server. Without ports: every flow, and the
/// server is who did not begin.
pub fn flows(file: &[u8], ports: &[u16]) -> Vec<Flow> {
    let mut open: BTreeMap<Key, Open> = BTreeMap::new();
    let mut done = Vec::new();
    for (link, frame) in packets(file) {
        if let Some((protocol, source, destination, body)) = network(link, &frame).and_then(transport) {
            take(protocol, source, destination, body, ports, &mut open, &mut done);
        }
    }
    for mut it in open.into_values() {
        for way in Way::BOTH {
            if let Some(side) = it.sides.get_mut(way as usize) {
                skip(side, &mut it.flow, way);
            }
        }
        done.push(it.flow);
    }
    done
}

fn take(
    protocol: u8,
    source: Vec<u8>,
    destination: Vec<u8>,
    body: &[u8],
    ports: &[u16],
    open: &mut BTreeMap<Key, Open>,
    done: &mut Vec<Flow>,
) -> Option<()> {
    let (from, to) = (number(body, 0, 2, true)? as u16, number(body, 2, 2, true)? as u16);
    let (transport, payload) = match protocol {
        6 => (Transport::Tcp, body.get(usize::from(body.get(12)? >> 4) * 4..)?),
        17 => (Transport::Udp, body.get(8..)?),
        _ => return None,
    };
    let (sender, receiver) = ((source, from), (destination, to));
    let server_port = if ports.contains(&to) || ports.is_empty() { to } else { from };
    if !ports.contains(&server_port) && !ports.is_empty() {
        return None;
    }
    let key = (protocol, sender.clone().min(receiver.clone()), sender.clone().max(receiver.clone()));
    let flags = if protocol == 6 { *body.get(13)? } else { 0 };
    if flags & 0x12 == 0x02 {
        done.extend(open.remove(&key).map(|it| it.flow)); // the same ports again: a new connection
    }
    let client = if server_port == to { sender.clone() } else { receiver };
    let entry = open.entry(key).or_insert_with(|| Open {
        client,
        flow: Flow { transport, server_port, pieces: Vec::new() },
        sides: Default::default(),
    });
    let way = if entry.client == sender { Way::ToServer } else { Way::ToClient };
    if protocol == 17 {
        entry.flow.pieces.push((way, Piece::Data(payload.to_vec())));
        return Some(());
    }
    let sequence = number(body, 4, 4, true)?;
    let side = entry.sides.get_mut(way as usize)?;
    if flags & 2 != 0 {
        side.next = Some(sequence.wrapping_add(1));
        return Some(());
    }
    if payload.is_empty() {
        return Some(());
    }
    side.next.get_or_insert(sequence);
    side.early.insert(sequence, payload.to_vec());
    drain(side, &mut entry.flow, way);
    if side.early.len() > MOST_EARLY {
        skip(side, &mut entry.flow, way);
    }
    Some(())
}

/// Pass on what is next.
fn drain(side: &mut Side, flow: &mut Flow, way: Way) {
    while let Some(next) = side.next {
        let Some(at) = side.early.keys().copied().find(|at| next.wrapping_sub(*at) < 1 << 30) else { return };
        let data = side.early.remove(&at).unwrap_or_default();
        let known = next.wrapping_sub(at) as usize;
        if let Some(fresh) = data.get(known..).filter(|fresh| !fresh.is_empty()) {
            side.next = Some(next.wrapping_add(fresh.len() as u32));
            flow.pieces.push((way, Piece::Data(fresh.to_vec())));
        }
    }
}

/// What lies before the earliest of the early segments will not come.
fn skip(side: &mut Side, flow: &mut Flow, way: Way) {
    while let Some(next) = side.next {
        let Some(at) = side.early.keys().copied().min_by_key(|at| at.wrapping_sub(next)) else { return };
        flow.pieces.push((way, Piece::Gap(u64::from(at.wrapping_sub(next)))));
        side.next = Some(at);
        drain(side, flow, way);
    }
}
