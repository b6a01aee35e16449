//! The same through the inspector: what flows and parsers tell, and what stands in the lines.

use protocols::Way;
use sensor::Frame;

use super::*;
use crate::Inspector;
use flag::{ACK, FIN, PSH, RST, SYN};

const ATTACKER: &str = "198.51.100.7";
const SERVER: &str = "192.168.1.2";

struct Wire {
    inspector: Inspector,
    now_us: u64,
}

impl Wire {
    fn new(settings: &[(&str, &str)]) -> Wire {
        let mut all = Settings::default();
        // the frames of these tests carry no checksums
        all.set("stream.checksum-validation", "no");
        settings.iter().for_each(|(name, value)| all.set(name, value));
        Wire { inspector: Inspector::new(all, None, 16 << 20, SipKey([1, 2])), now_us: START_US }
    }

    fn frame(&mut self, data: &[u8]) {
        self.now_us += MILLI;
        let (time_us, wire_bytes) = (self.now_us, data.len() as u32);
        let direction = sensor::Direction::Unknown;
        self.inspector.packet(&Frame { data, time_us, wire_bytes, link: Link::Ethernet, direction });
    }

    fn session(&mut self, client: (&str, u16), server: (&str, u16), bytes: &[u8]) {
        for (from, to, flags, payload) in [
            (client, server, SYN, &[] as &[u8]),
            (server, client, SYN | ACK, &[]),
            (client, server, ACK, &[]),
            (client, server, PSH | ACK, bytes),
            (server, client, PSH | ACK, bytes),
            (client, server, FIN | ACK, &[]),
            (server, client, FIN | ACK, &[]),
        ] {
            self.frame(&tcp(from, to, flags, payload));
        }
    }

    /// Detectors and states of all alerts, and the lines.
    fn alerts(&mut self) -> (Vec<String>, Vec<String>) {
        while self.inspector.finish() {}
        let mut lines = Vec::new();
        while let Some(line) = self.inspector.next_line() {
            if line.contains("\"event_type\":\"alert\"") {
                lines.push(line);
            }
        }
        let member = |line: &str, name: &str| {
            let rest = line.split(&format!("\"{name}\":\"")).nth(1).unwrap_or_default();
            rest.split('"').next().unwrap_or_default().to_owned()
        };
        (lines.iter().map(|line| format!("{} {}", member(line, "detector"), member(line, "state"))).collect(), lines)
    }
}

#[test]
fn an_ack_scan_is_told_from_connections_that_were_there_before() {
    let mut wire = Wire::new(&[]);
    for number in 0..200 {
        // one side's acknowledgements, the other's data: a capture that began too late
        let (client, server) = ((SERVER, 20_000 + number), ("203.0.113.80", 443));
        wire.frame(&tcp(client, server, ACK, b""));
        wire.frame(&tcp(server, client, PSH | ACK, b"data"));
        wire.frame(&tcp(client, server, ACK, b""));
    }
    assert_eq!(wire.alerts().0, [] as [&str; 0]);
    let mut wire = Wire::new(&[]);
    for port in 1..30 {
        wire.frame(&tcp((ATTACKER, 40_000), (SERVER, port), ACK, b""));
        wire.frame(&tcp((SERVER, port), (ATTACKER, 40_000), RST, b""));
    }
    assert_eq!(wire.alerts().0, ["scan.ack start", "scan.ack end"]);
}

#[test]
fn a_flood_of_acks_to_one_port_is_seen() {
    let mut wire = Wire::new(&[("detectors.flood.ack.high-per-s", "400")]);
    for number in 0..2000 {
        wire.frame(&tcp((ATTACKER, 1000 + number % 5), (SERVER, 80), ACK, b""));
    }
    let (alerts, lines) = wire.alerts();
    assert_eq!(alerts, ["flood.ack start", "flood.ack end"]);
    assert!(lines[0].contains("\"src_ip\":\"198.51.100.7\""), "{}", lines[0]);
}

#[test]
fn logins_end_before_their_flows_do() {
    let mut wire = Wire::new(&[]);
    for port in 20_000..20_020 {
        wire.session((ATTACKER, port), (SERVER, 22), b"SSH-2.0-x\r\n");
    }
    let (alerts, lines) = wire.alerts();
    assert_eq!(alerts, ["login.brute-force start", "login.brute-force end"]);
    assert!(lines[0].contains("\"dest_port\":22,") && lines[0].contains("\"failures\":10,"), "{}", lines[0]);
}

#[test]
fn everything_can_be_switched_off() {
    let mut wire = Wire::new(&[("detectors.enabled", "no")]);
    for port in 1..500 {
        wire.frame(&tcp((ATTACKER, 40_000), (SERVER, port), SYN, b""));
    }
    assert_eq!(wire.alerts().0, [] as [&str; 0]);
}

#[test]
fn a_refused_connection_is_not_established_and_a_used_one_is() {
    let mut wire = Wire::new(&[("outputs.eve-log.enabled-types", "alert")]);
    wire.frame(&tcp((ATTACKER, 1), (SERVER, 2), SYN, b""));
    wire.frame(&tcp((SERVER, 2), (ATTACKER, 1), RST | ACK, b""));
    let flow =
        crate::flow::Flow { protocol: 6, packets: [1, 1], stage: crate::flow::Stage::Closed, ..Default::default() };
    assert!(!FlowSeen::new(&flow, Way::ToServer).is_established);
}

#[test]
fn frames_that_were_changed_at_random_do_no_harm() {
    let key = SipKey([7, 8]);
    let mut seeds = vec![
        tcp((ATTACKER, 1), (SERVER, 22), SYN | ACK, b"x"),
        udp((ATTACKER, 67), (SERVER, 68), &[2; 300]),
        udp(
            (SERVER, 30_000),
            (ATTACKER, 53),
            b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03abc\x02de\x00\x00\x01\x00\x01",
        ),
        ip_frame(
            "fe80::1",
            "fe80::2",
            58,
            &[136, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 1, 2, 0, 0, 0, 0, 9],
        ),
        ethernet(
            1,
            0xff,
            0x0806,
            &[0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 2, 0, 0, 0, 0, 2, 10, 0, 0, 2],
        ),
    ];
    seeds.push(ip_frame(SERVER, ATTACKER, 1, &[[3, 3, 0, 0, 0, 0, 0, 0].as_slice(), &seeds[1][14..]].concat()));
    let mut wire = Wire::new(&[]);
    for round in 0..30_000_u64 {
        let mut frame = seeds[(round % seeds.len() as u64) as usize].clone();
        for change in 0..3 {
            let random = key.hash(&[round, change]);
            let at = (random >> 8) as usize % frame.len();
            frame[at] = random as u8;
        }
        let length = frame.len() - (key.hash(&[round]) % 8 / 7) as usize;
        wire.now_us = wire.now_us.wrapping_add(key.hash(&[round, 9]) % 10_000).wrapping_sub(4000);
        wire.frame(&frame[..length]);
        while wire.inspector.next_line().is_some() {}
    }
}
