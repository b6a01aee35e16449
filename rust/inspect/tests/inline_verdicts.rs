//! Inline: what becomes of each packet, by the rules and outside and inside of tunnels.

use std::sync::Arc;

use inspect::{Checksums, Detector, Inspector, Verdict};
use protocols::Settings;
use sensor::{Direction, Frame, Link, SipKey};
use signatures::{Environment, Files, RejectTarget, RuleSet, Source};

const CLIENT: [u8; 4] = [192, 0, 2, 2];
const SERVER: [u8; 4] = [192, 0, 2, 1];
const SYN: u8 = 2;
const PUSH: u8 = 0x18;
const ACK: u8 = 0x10;

struct NoFiles;

impl Files for NoFiles {
    fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        Err(format!("no {name}"))
    }
}

struct Line {
    inspector: Inspector,
    now_us: u64,
    next: [u32; 2],
}

impl Line {
    fn new(rule: &str, settings: &[(&str, &str)]) -> Line {
        let mut all = Settings::default();
        all.set("stream.checksum-validation", "no");
        settings.iter().for_each(|(name, value)| all.set(name, value));
        let environment =
            Environment { settings: &all, classification: "", reference: "", thresholds: "", files: &NoFiles };
        let rules = RuleSet::load(&[Source { name: "test", text: rule.as_bytes() }], &environment);
        assert_eq!(rules.loaded, 1, "{:?}", rules.report);
        let detector = Some(Arc::new(Detector::new(rules)));
        Line { inspector: Inspector::new(all, detector, 16 << 20, SipKey([1, 2])), now_us: 1 << 50, next: [1000, 9000] }
    }

    fn show(&mut self, packet: &[u8]) -> Verdict {
        self.now_us += 1000;
        let frame = Frame {
            time_us: self.now_us,
            data: packet,
            wire_bytes: packet.len() as u32,
            link: Link::RawIp,
            direction: Direction::Unknown,
        };
        self.inspector.packet_verdict(&frame, Checksums::Unknown)
    }

    /// The next segment of the client (0) or the server (1).
    fn segment(&mut self, from: usize, flags: u8, payload: &[u8]) -> Vec<u8> {
        let (ports, ends) = if from == 0 { ([40_000, 80], [CLIENT, SERVER]) } else { ([80, 40_000], [SERVER, CLIENT]) };
        let acknowledged = if flags & ACK == 0 { 0 } else { self.next[1 - from] };
        let mut tcp: Vec<u8> = ports.iter().flat_map(|port: &u16| port.to_be_bytes()).collect();
        tcp.extend(self.next[from].to_be_bytes());
        tcp.extend(acknowledged.to_be_bytes());
        tcp.extend([5 << 4, flags, 32, 0, 0, 0, 0, 0]);
        tcp.extend(payload);
        self.next[from] += payload.len() as u32 + u32::from(flags & SYN != 0);
        ipv4(ends, 6, &tcp)
    }

    fn connect(&mut self) {
        for (from, flags) in [(0, SYN), (1, SYN | ACK), (0, ACK)] {
            let packet = self.segment(from, flags, &[]);
            assert_eq!(self.show(&packet), Verdict::Accept);
        }
    }

    fn ask(&mut self, path: &str) -> Verdict {
        let packet = self.segment(0, PUSH, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        self.show(&packet)
    }
}

fn ipv4(ends: [[u8; 4]; 2], protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + body.len() as u16).to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
    packet.extend(ends.concat());
    let mut sum: u32 = packet.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet.extend_from_slice(body);
    packet
}

fn rule(action: &str) -> String {
    format!("{action} http any any -> any any (http.uri; content:\"/secret\"; sid:1;)")
}

const INLINE: &[(&str, &str)] = &[("simulate-ips", "yes")];

#[test]
fn a_drop_rule_stops_the_request_and_its_flow() {
    let mut line = Line::new(&rule("drop"), INLINE);
    line.connect();
    assert_eq!(line.ask("/index"), Verdict::Accept);
    assert_eq!(line.ask("/secret"), Verdict::Drop);
    let repeated = line.segment(0, PUSH, b"more");
    assert_eq!(line.show(&repeated), Verdict::Drop);
}

#[test]
fn other_rules_and_other_modes_let_it_go_on() {
    for (action, settings) in [("alert", INLINE), ("pass", INLINE), ("drop", &[])] {
        let mut line = Line::new(&rule(action), settings);
        line.connect();
        assert_eq!(line.ask("/secret"), Verdict::Accept, "{action}");
    }
}

#[test]
fn reject_says_whom_to_tell_and_then_drops() {
    for (action, target) in [
        ("reject", RejectTarget::Source),
        ("rejectsrc", RejectTarget::Source),
        ("rejectdst", RejectTarget::Destination),
        ("rejectboth", RejectTarget::Both),
    ] {
        let mut line = Line::new(&rule(action), INLINE);
        line.connect();
        assert_eq!(line.ask("/secret"), Verdict::Reject(target), "{action}");
        assert_eq!(line.ask("/index"), Verdict::Drop, "the flow is dropped");
    }
}

#[test]
fn what_is_dropped_in_a_tunnel_drops_the_outer_packet() {
    for action in ["drop", "reject"] {
        let mut line = Line::new(&format!("{action} icmp any any -> {} any (itype:8; sid:1;)", "198.51.100.9"), INLINE);
        let ping = ipv4([CLIENT, [198, 51, 100, 9]], 1, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
        assert_eq!(line.show(&ipv4([CLIENT, SERVER], 4, &ping)), Verdict::Drop, "nobody inside is told");
        let other = ipv4([CLIENT, [198, 51, 100, 8]], 1, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
        assert_eq!(line.show(&ipv4([CLIENT, SERVER], 4, &other)), Verdict::Accept);
    }
}

#[test]
fn a_connection_that_began_before_us_is_not_believed() {
    let mut line = Line::new(&rule("alert"), INLINE);
    assert_eq!(line.ask("/index"), Verdict::Drop);
    let mut line = Line::new(&rule("alert"), &[("simulate-ips", "yes"), ("stream.midstream", "yes")]);
    assert_eq!(line.ask("/index"), Verdict::Accept);
}

#[test]
fn checksums_count_unless_the_source_vouches() {
    let settings = &[("simulate-ips", "yes"), ("stream.checksum-validation", "yes")];
    for (checksums, expected) in [
        (Checksums::Unknown, Verdict::Accept),
        (Checksums::MayBePending, Verdict::Accept),
        (Checksums::Vouched, Verdict::Drop),
    ] {
        let mut line = Line::new(&rule("drop"), settings);
        let mut last = Verdict::Accept;
        for (from, flags, payload) in [
            (0, SYN, &b""[..]),
            (1, SYN | ACK, b""),
            (0, ACK, b""),
            (0, PUSH, b"GET /secret HTTP/1.1\r\nHost: x\r\n\r\n"),
        ] {
            let packet = line.segment(from, flags, payload); // their checksums are 0
            let (data, wire_bytes) = (&packet[..], packet.len() as u32);
            let (time_us, link, direction) = (line.now_us, Link::RawIp, Direction::Unknown);
            last = line.inspector.packet_verdict(&Frame { time_us, data, wire_bytes, link, direction }, checksums);
        }
        assert_eq!(last, expected, "{checksums:?}");
    }
}
