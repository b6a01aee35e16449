//! Reads captures (pcap and pcapng) and plays their flows to parsers, for tests over corpora. It trusts its files: what
//! it does not know it passes over, and reassembly is the simplest that works on clean captures.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use protocols::{Parser, Probe, Protocol, Settings, Start, Transport, Way};

/// Return the folder of corpora, or say why its tests are skipped.
pub fn corpora(part: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("TIDEGATE_CORPORA").map(|folder| Path::new(&folder).join(part)) else {
        println!("skipped: TIDEGATE_CORPORA does not name the folder of corpora");
        return None;
    };
    if !folder.is_dir() {
        println!("skipped: there is no {}", folder.display());
        return None;
    }
    Some(folder)
}

type Key = (Vec<u8>, u16, Vec<u8>, u16);
type Streams = HashMap<(Key, bool), Stream>;

struct Segment {
    key: Key,
    transport: Transport,
    sequence: u32,
    is_syn: bool,
    data: Vec<u8>,
}

/// One flow of a capture and what `protocol` has made of it.
pub struct Flow {
    pub parser: Box<dyn Parser>,
    /// The capture began with an answer.
    is_reversed: bool,
}

struct Stream {
    flow: usize,
    way: Way,
    next: Option<u32>,
    waiting: BTreeMap<u32, Vec<u8>>,
    held: Vec<u8>,
}

/// Play a capture to `protocol`: all its flows that the probe takes.
pub fn play(path: &Path, protocol: &Protocol, settings: &Settings) -> Vec<Flow> {
    let mut streams = Streams::new();
    let mut flows: Vec<Option<Flow>> = Vec::new();
    for segment in segments(&std::fs::read(path).unwrap_or_default()) {
        if !protocol.transports.contains(&segment.transport) || segment.data.is_empty() && !segment.is_syn {
            continue;
        }
        let is_tcp = segment.transport == Transport::Tcp;
        let own = (segment.key.clone(), is_tcp);
        if !streams.contains_key(&own) {
            let stream = begun(&segment.key, is_tcp, &streams, &mut flows);
            streams.insert(own.clone(), stream);
        }
        let Some(stream) = streams.get_mut(&own) else { continue };
        let ports = [segment.key.1, segment.key.3];
        let is_usual_port = ports.iter().any(|port| protocol.ports.contains(port));
        for data in arrived(stream, segment) {
            let (transport, way) = (if is_tcp { Transport::Tcp } else { Transport::Udp }, stream.way);
            stream.held.extend(data);
            let start = Start { data: &stream.held, way, transport, is_usual_port };
            let flow = &mut flows[stream.flow];
            if flow.is_none() {
                match (protocol.probe)(&start) {
                    probe @ (Probe::Yes | Probe::YesReversed) => {
                        let is_reversed = probe == Probe::YesReversed;
                        *flow = Some(Flow { parser: (protocol.parser)(settings, transport), is_reversed });
                    }
                    _ if is_tcp => continue,
                    _ => stream.held.clear(),
                }
            }
            if let Some(flow) = flow {
                let way = if flow.is_reversed { way.reverse() } else { way };
                let used = flow.parser.parse(way, &stream.held, false).unwrap_or(stream.held.len());
                stream.held.drain(..used);
            }
        }
    }
    let mut flows: Vec<Flow> = flows.into_iter().flatten().collect();
    flows.iter_mut().for_each(|flow| flow.parser.finish());
    flows
}

/// Begin a way of a flow, and the flow where the other way is not known either.
fn begun(key: &Key, is_tcp: bool, streams: &Streams, flows: &mut Vec<Option<Flow>>) -> Stream {
    let (a, b, c, d) = key.clone();
    let (flow, way) = match streams.get(&((c, d, a, b), is_tcp)) {
        Some(stream) => (stream.flow, stream.way.reverse()),
        None => {
            flows.push(None);
            (flows.len() - 1, Way::ToServer)
        }
    };
    Stream { flow, way, next: None, waiting: BTreeMap::new(), held: Vec::new() }
}

/// What a segment makes readable, in order.
fn arrived(stream: &mut Stream, segment: Segment) -> Vec<Vec<u8>> {
    if segment.transport == Transport::Udp {
        return vec![segment.data];
    }
    if segment.is_syn {
        stream.next = Some(segment.sequence.wrapping_add(1));
    }
    let next = *stream.next.get_or_insert(segment.sequence);
    let ahead = segment.sequence.wrapping_sub(next) as i32;
    let skipped = usize::try_from(-i64::from(ahead.min(0))).unwrap_or_default();
    let data = segment.data.get(skipped..).unwrap_or_default().to_vec();
    if !data.is_empty() {
        stream.waiting.insert(segment.sequence.wrapping_add(skipped as u32), data);
    }
    let mut ready = Vec::new();
    while let Some(data) = stream.next.and_then(|next| stream.waiting.remove(&next)) {
        stream.next = stream.next.map(|next| next.wrapping_add(data.len() as u32));
        ready.push(data);
    }
    ready
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]))
}

fn u32_le(data: &[u8], at: usize) -> Option<usize> {
    data.get(at..at + 4).map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]]) as usize)
}

fn segments(file: &[u8]) -> Vec<Segment> {
    let packets = match file.get(..4) {
        Some([0x0a, 0x0d, 0x0d, 0x0a]) => pcapng(file),
        Some([0xd4 | 0x4d, 0xc3 | 0x3c, 0xb2, 0xa1]) => pcap(file),
        _ => Vec::new(),
    };
    packets.into_iter().filter_map(|(link, packet)| network(link, packet).and_then(segment)).collect()
}

fn pcap(file: &[u8]) -> Vec<(usize, &[u8])> {
    let (link, mut at) = (u32_le(file, 20).unwrap_or_default(), 24);
    let mut packets = Vec::new();
    while let Some(length) = u32_le(file, at + 8) {
        let Some(packet) = file.get(at + 16..at + 16 + length) else { break };
        packets.push((link, packet));
        at += 16 + length;
    }
    packets
}

fn pcapng(file: &[u8]) -> Vec<(usize, &[u8])> {
    let (mut link, mut at) = (1, 0);
    let mut packets = Vec::new();
    while let (Some(kind), Some(length)) = (u32_le(file, at), u32_le(file, at + 4)) {
        match kind {
            1 => link = u32_le(file, at + 8).unwrap_or_default() & 0xffff,
            6 => {
                let captured = u32_le(file, at + 20).unwrap_or_default();
                packets.extend(file.get(at + 28..at + 28 + captured).map(|packet| (link, packet)));
            }
            _ => {}
        }
        at += length.max(12);
    }
    packets
}

fn network(link: usize, packet: &[u8]) -> Option<&[u8]> {
    match link {
        0 => packet.get(4..),
        101 => Some(packet),
        113 => packet.get(16..),
        1 => {
            let mut at = 12;
            while matches!(u16_at(packet, at)?, 0x8100 | 0x88a8) {
                at += 4;
            }
            packet.get(at + 2..)
        }
        _ => None,
    }
}

fn segment(packet: &[u8]) -> Option<Segment> {
    let (protocol, source, destination, rest) = match packet.first()? >> 4 {
        4 => {
            let (header, total) = (usize::from(packet[0] & 15) * 4, usize::from(u16_at(packet, 2)?));
            let end = if total == 0 { packet.len() } else { total.min(packet.len()) };
            (*packet.get(9)?, packet.get(12..16)?, packet.get(16..20)?, packet.get(header..end)?)
        }
        6 => (*packet.get(6)?, packet.get(8..24)?, packet.get(24..40)?, packet.get(40..)?),
        _ => return None,
    };
    let key = (source.to_vec(), u16_at(rest, 0)?, destination.to_vec(), u16_at(rest, 2)?);
    match protocol {
        6 => {
            let sequence = u32::from_be_bytes(rest.get(4..8)?.try_into().ok()?);
            let data = rest.get(usize::from(rest.get(12)? >> 4) * 4..)?.to_vec();
            let is_syn = rest.get(13)? & 2 != 0;
            Some(Segment { key, transport: Transport::Tcp, sequence, is_syn, data })
        }
        17 => {
            let data = rest.get(8..)?.to_vec();
            Some(Segment { key, transport: Transport::Udp, sequence: 0, is_syn: false, data })
        }
        _ => None,
    }
}
