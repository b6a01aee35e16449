//! Packets that are made here, an inspector to see them, and what it says.
#![allow(dead_code)] // each file of tests uses its own part

use std::sync::Arc;

use inspect::{Detector, Inspector};
use protocols::Settings;
use sensor::{CaptureCounters, Direction, Frame, Link, SipKey};
use serde_json::Value;
use signatures::{Environment, Files, Outcome, RuleSet, Source};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// An afternoon: time never begins at 0.
const START_US: u64 = 1_700_000_000_000_000;
const MEMORY_BYTES: usize = 16 << 20;
/// The steps of time between packets.
const STEP_US: u64 = 1000;

pub type End = ([u8; 4], u16);

pub const CLIENT: End = ([198, 51, 100, 7], 40_000);
pub const SERVER: End = ([192, 168, 1, 2], 80);

struct NoFiles;

impl Files for NoFiles {
    fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        Err(format!("there is no {name}"))
    }
}

/// Rules of which every one has to be loaded as written.
pub fn load(rules: &str, settings: &Settings) -> Arc<Detector> {
    let environment = Environment { settings, classification: "", reference: "", thresholds: "", files: &NoFiles };
    let set = RuleSet::load(&[Source { name: "made-up.rules", text: rules.as_bytes() }], &environment);
    let others: Vec<_> = set.report.iter().filter(|entry| entry.outcome != Outcome::Loaded).collect();
    assert!(others.is_empty(), "{others:?}");
    Arc::new(Detector::new(set))
}

/// An inspector and its clock.
pub struct Wire {
    pub inspector: Inspector,
    pub now_us: u64,
    lines: Vec<Value>,
}

impl Wire {
    pub fn new(rules: &str, settings: &[(&str, &str)]) -> Wire {
        Wire::with_memory(rules, settings, MEMORY_BYTES)
    }

    /// Settings that are not given: packets carry no checksums, and detectors without rules are silent.
    pub fn with_memory(rules: &str, settings: &[(&str, &str)], memory_bytes: usize) -> Wire {
        let mut all = Settings::default();
        all.set("stream.checksum-validation", "no");
        all.set("detectors.enabled", "no");
        settings.iter().for_each(|(name, value)| all.set(name, value));
        let detector = (!rules.is_empty()).then(|| load(rules, &all));
        let inspector = Inspector::new(all, detector, memory_bytes, SipKey([1, 2]));
        Wire { inspector, now_us: START_US, lines: Vec::new() }
    }

    pub fn frame(&mut self, data: &[u8]) {
        self.now_us += STEP_US;
        let (time_us, wire_bytes) = (self.now_us, data.len() as u32);
        self.inspector.packet(&Frame {
            data,
            time_us,
            wire_bytes,
            link: Link::Ethernet,
            direction: Direction::Unknown,
        });
    }

    pub fn frames<'a>(&mut self, frames: impl IntoIterator<Item = &'a Vec<u8>>) {
        frames.into_iter().for_each(|frame| self.frame(frame));
    }

    pub fn wait_s(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            self.now_us += 250_000;
            self.inspector.tick(self.now_us);
        }
    }

    /// Everything that was said so far, as JSON.
    pub fn read(&mut self) -> &[Value] {
        while let Some(line) = self.inspector.next_line() {
            match serde_json::from_str(&line) {
                Ok(value) => self.lines.push(value),
                Err(error) => panic!("{error}: {line}"),
            }
        }
        &self.lines
    }

    /// Likewise, after every flow was ended.
    pub fn finish(&mut self) -> &[Value] {
        while self.inspector.finish() {
            self.read();
        }
        self.read()
    }

    pub fn of_type(&mut self, event_type: &str) -> Vec<Value> {
        self.read().iter().filter(|event| event["event_type"] == event_type).cloned().collect()
    }

    /// Ids of the rules that gave alerts so far, in their order.
    pub fn alerts(&mut self) -> Vec<u64> {
        let alerts = self.of_type("alert");
        alerts.iter().filter_map(|event| event["alert"]["signature_id"].as_u64()).collect()
    }

    /// Likewise, after every flow was ended.
    pub fn all_alerts(&mut self) -> Vec<u64> {
        self.finish();
        self.alerts()
    }

    /// A counter by its dotted name; 0 where there is none of that name.
    pub fn counter(&self, name: &str) -> u64 {
        let line = self.inspector.stats_line(&CaptureCounters::default());
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        let mut place = &event["stats"];
        for part in name.split('.') {
            place = &place[part];
        }
        place.as_u64().unwrap_or(0)
    }
}

/// A connection between two ends; index 0 is the client.
pub struct Connection {
    pub ends: [End; 2],
    pub next: [u32; 2],
}

impl Connection {
    pub fn new(client: End, server: End) -> Connection {
        Connection { ends: [client, server], next: [1000, 5000] }
    }

    /// One that is open already.
    pub fn open(wire: &mut Wire) -> Connection {
        let mut connection = Connection::new(CLIENT, SERVER);
        connection.shake(wire);
        connection
    }

    pub fn shake(&mut self, wire: &mut Wire) {
        let [client, server] = self.next;
        wire.frame(&self.packet(0, SYN, client, 0, b""));
        wire.frame(&self.packet(1, SYN | ACK, server, client + 1, b""));
        self.next = [client + 1, server + 1];
        wire.frame(&self.packet(0, ACK, client + 1, server + 1, b""));
    }

    /// Any packet of it.
    pub fn packet(&self, from: usize, flags: u8, sequence: u32, acknowledgement: u32, data: &[u8]) -> Vec<u8> {
        tcp(self.ends[from], self.ends[1 - from], flags, sequence, acknowledgement, data)
    }

    /// Bytes at a distance from the next expected one, without moving on.
    pub fn at(&self, from: usize, distance: u32, data: &[u8]) -> Vec<u8> {
        self.packet(from, PSH | ACK, self.next[from] + distance, self.next[1 - from], data)
    }

    /// The other side confirms `count` bytes.
    pub fn confirm(&mut self, from: usize, count: u32) -> Vec<u8> {
        self.next[from] += count;
        self.packet(1 - from, ACK, self.next[1 - from], self.next[from], b"")
    }

    /// Send and confirm.
    pub fn say(&mut self, wire: &mut Wire, from: usize, data: &[u8]) {
        wire.frame(&self.at(from, 0, data));
        let frame = self.confirm(from, data.len() as u32);
        wire.frame(&frame);
    }

    pub fn close(&mut self, wire: &mut Wire) {
        let [client, server] = self.next;
        wire.frame(&self.packet(0, FIN | ACK, client, server, b""));
        wire.frame(&self.packet(1, FIN | ACK, server, client + 1, b""));
        wire.frame(&self.packet(0, ACK, client + 1, server + 1, b""));
    }
}

pub fn ethernet(kind: u16, body: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &kind.to_be_bytes(), body].concat()
}

/// An IPv4 packet; `fragment` is the field with flags and offset.
pub fn ipv4_part(from: [u8; 4], to: [u8; 4], protocol: u8, id: u16, fragment: u16, body: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((20 + body.len() as u16).to_be_bytes());
    header.extend(id.to_be_bytes());
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend(from);
    header.extend(to);
    [&header[..], body].concat()
}

pub fn ipv4(from: [u8; 4], to: [u8; 4], protocol: u8, body: &[u8]) -> Vec<u8> {
    ipv4_part(from, to, protocol, 7, 0, body)
}

pub fn ipv6(from: u8, to: u8, next: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((body.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    for last in [from, to] {
        packet.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    [&packet[..], body].concat()
}

pub fn udp_datagram(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let length = 8 + data.len() as u16;
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], data].concat()
}

pub fn udp(from: End, to: End, data: &[u8]) -> Vec<u8> {
    ethernet(0x0800, &ipv4(from.0, to.0, 17, &udp_datagram(from.1, to.1, data)))
}

pub fn tcp_segment(from: u16, to: u16, flags: u8, sequence: u32, acknowledgement: u32, data: &[u8]) -> Vec<u8> {
    let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledgement.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    [&segment[..], data].concat()
}

pub fn tcp(from: End, to: End, flags: u8, sequence: u32, acknowledgement: u32, data: &[u8]) -> Vec<u8> {
    let segment = tcp_segment(from.1, to.1, flags, sequence, acknowledgement, data);
    ethernet(0x0800, &ipv4(from.0, to.0, 6, &segment))
}

/// A query for a name, with all its names.
pub fn dns_query(id: u16, names: &[&str]) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, names.len() as u8, 0, 0, 0, 0, 0, 0]);
    for name in names {
        for label in name.split('.') {
            message.push(label.len() as u8);
            message.extend(label.as_bytes());
        }
        message.extend([0, 0, 1, 0, 1]);
    }
    message
}

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}
