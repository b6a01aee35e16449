//! Invariant: no frames make the inspector panic or hold more than its shares; every line is JSON; and when all flows were
//! ended, nothing is held and nothing counted as held.

use std::sync::{Arc, OnceLock};

use inspect::{Detector, Inspector};
use protocols::Settings;
use sensor::{CaptureCounters, Direction, Frame, Link, SipKey};
use signatures::{Environment, Files, RuleSet, Source};

/// The smallest number with which everything is small.
const MEMORY_BYTES: usize = 1 << 20;
/// Of it, for streams and parsers; the packet at hand may bring its own length on top.
const STREAM_BYTES: usize = MEMORY_BYTES / 100 * 40;
const LINKS: [Link; 5] = [Link::Ethernet, Link::RawIp, Link::Cooked, Link::Cooked2, Link::Null];

const RULES: &str = r#"
alert tcp any any -> any any (flow:established; content:"a"; content:"b"; distance:0; flowbits:set,x; sid:1;)
alert tcp any any -> any any (flowbits:isset,x; pcre:"/a+b/"; threshold:type limit, track by_src, count 1, seconds 9; sid:2;)
alert udp any any -> any any (content:"|00 01|"; xbits:set,y,track ip_pair,expire 9; sid:3;)
alert http any any -> any any (http.uri; content:"/"; http.host; content:"a"; sid:4;)
alert http any any -> any any (flow:to_client; file.data; content:"b"; sid:5;)
alert dns any any -> any any (dns.query; to_uppercase; content:"A"; sid:6;)
alert tls any any -> any any (tls.sni; bsize:<9; sid:7;)
drop tcp any any -> any 22 (content:"SSH"; sid:8;)
pass icmp any any -> any any (itype:8; sid:9;)
alert ip any any -> any any (fragbits:M; sid:10;)
alert tcp any any -> any any (stream-event:reassembly_overlap_different_data; sid:11;)
alert modbus any any -> any any (modbus: function 5; sid:12;)
alert smtp any any -> any any (file.name; content:"a"; sid:13;)
alert tcp any any -> any any (stream_size:server,>,3; flowint:n,+,1; flowint:n,>,2; sid:14;)
"#;

struct NoFiles;

impl Files for NoFiles {
    fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        Err(name.to_owned())
    }
}

fn detector() -> Arc<Detector> {
    static DETECTOR: OnceLock<Arc<Detector>> = OnceLock::new();
    Arc::clone(DETECTOR.get_or_init(|| {
        let settings = Settings::default();
        let environment =
            Environment { settings: &settings, classification: "", reference: "", thresholds: "", files: &NoFiles };
        let rules = RuleSet::load(&[Source { name: "fixed", text: RULES.as_bytes() }], &environment);
        assert_eq!(rules.signatures.len(), 14, "{:?}", rules.report);
        Arc::new(Detector::new(rules))
    }))
}

/// First byte: settings. Then frames: a byte of kind, a byte of time, two of length, bytes; many are the payload of one of
/// four connections whose headers are made here, because a mutator seldom makes a sequence number right.
pub fn run(input: &[u8]) {
    let [choice, rest @ ..] = input else { return };
    let mut bench = Bench::new(*choice);
    let mut rest = rest;
    while let [kind, time, high, low, more @ ..] = rest {
        let length = usize::from(*high & 0x0f) << 8 | usize::from(*low);
        let (data, more) = more.split_at(length.min(more.len()));
        rest = more;
        bench.now_us = bench.now_us.saturating_add(u64::from(*time).pow(3) * 1000);
        match kind >> 6 {
            0 => bench.frame(data, LINKS[usize::from(*kind) % LINKS.len()]),
            1 => bench.datagram(*kind, data),
            _ => bench.segment(*kind, *high, data),
        }
    }
    bench.finish();
}

/// Frames of a capture, one after another.
#[allow(dead_code)] // the quick run has captures, the target has not
pub fn run_capture(frames: &[(u64, Vec<u8>, Link)], choice: u8) {
    let mut bench = Bench::new(choice);
    for (time_us, data, link) in frames {
        bench.now_us = *time_us;
        bench.frame(data, *link);
    }
    bench.finish();
}

const PORTS: [u16; 16] = [80, 53, 443, 22, 25, 21, 502, 20_000, 102, 1883, 5060, 110, 4840, 2404, 44_818, 9999];

struct Bench {
    inspector: Inspector,
    now_us: u64,
    /// Of each connection and way.
    next: [[u32; 2]; 4],
}

impl Bench {
    fn new(choice: u8) -> Bench {
        let mut settings = Settings::default();
        let flags = ["stream.midstream", "simulate-ips", "outputs.eve-log.types.alert.payload", "stream.async-oneside"];
        for (bit, name) in flags.iter().enumerate() {
            settings.set(name, if choice >> bit & 1 == 1 { "yes" } else { "no" });
        }
        settings.set("stream.checksum-validation", if choice & 0x10 == 0 { "no" } else { "yes" });
        settings.set("exception-policy", ["ignore", "auto", "bypass", "pass-flow"][usize::from(choice >> 5 & 3)]);
        let overlap = ["bsd", "windows", "last", "old-linux"][usize::from(choice >> 6)];
        settings.set(&format!("host-os-policy.{overlap}"), "[0.0.0.0/0]");
        let inspector = Inspector::new(settings, Some(detector()), MEMORY_BYTES, SipKey([1, 2]));
        Bench { inspector, now_us: 1_700_000_000_000_000, next: [[1, 1]; 4] }
    }

    fn frame(&mut self, data: &[u8], link: Link) {
        let (time_us, wire_bytes) = (self.now_us, data.len() as u32);
        self.inspector.packet(&Frame { time_us, data, wire_bytes, link, direction: Direction::Unknown });
        let (_, held, fragments) = self.inspector.live();
        assert!(held <= STREAM_BYTES, "{held} bytes are held");
        assert!(fragments <= 1024);
        self.read();
    }

    fn read(&mut self) {
        while let Some(line) = self.inspector.next_line() {
            let parsed: Result<serde_json::Value, _> = serde_json::from_str(&line);
            assert!(parsed.is_ok_and(|event| event["event_type"].is_string()), "{line}");
        }
    }

    fn ip(&mut self, kind: u8, protocol: u8, body: &[u8]) {
        let is_answer = kind & 1 == 1;
        let host = 1 + (kind >> 1 & 3);
        let (from, to) =
            if is_answer { ([10, 0, 0, 99], [10, 0, 0, host]) } else { ([10, 0, 0, host], [10, 0, 0, 99]) };
        let mut packet = vec![0x45, 0];
        packet.extend((20 + body.len() as u16).to_be_bytes());
        packet.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
        packet.extend(from);
        packet.extend(to);
        packet.extend(body);
        self.frame(&packet, Link::RawIp);
    }

    fn ports(kind: u8) -> [u16; 2] {
        let server = PORTS[usize::from(kind >> 1 & 15) % PORTS.len()];
        if kind & 1 == 1 { [server, 30_000] } else { [30_000, server] }
    }

    fn datagram(&mut self, kind: u8, data: &[u8]) {
        let mut body: Vec<u8> = Bench::ports(kind).iter().flat_map(|port| port.to_be_bytes()).collect();
        body.extend((8 + data.len() as u16).to_be_bytes());
        body.extend([0, 0]);
        body.extend(data);
        self.ip(kind, 17, &body);
    }

    /// The upper bits of the length say what kind of segment: in order, over what was sent, behind a gap, or other flags.
    fn segment(&mut self, kind: u8, high: u8, data: &[u8]) {
        let connection = usize::from(kind >> 1 & 3);
        let way = usize::from(kind & 1);
        if self.next[connection] == [1, 1] {
            for (from, flags, numbers) in [(0, 2, [0, 0]), (1, 0x12, [0, 1]), (0, 0x10, [1, 1])] {
                self.tcp(kind & !1 | from, flags, numbers, &[]);
            }
        }
        let (mine, theirs) = (self.next[connection][way], self.next[connection][1 - way]);
        let (sequence, flags) = match high >> 4 {
            0..=9 => (mine, 0x18),
            10 => (mine.wrapping_sub(u32::from(kind)), 0x18),
            11 | 12 => (mine.wrapping_add(u32::from(high & 15) + 1), 0x18),
            13 => (mine, 0x11),
            14 => (mine, 0x14),
            _ => (mine, high << 2 | kind >> 3),
        };
        self.tcp(kind, flags, [sequence, theirs], data);
        let next = &mut self.next[connection][way];
        if (high >> 4) < 10 {
            *next = next.wrapping_add(data.len() as u32);
        }
        let next = *next;
        self.tcp(kind ^ 1, 0x10, [theirs, next], &[]);
    }

    fn tcp(&mut self, kind: u8, flags: u8, numbers: [u32; 2], data: &[u8]) {
        let mut body: Vec<u8> = Bench::ports(kind).iter().flat_map(|port| port.to_be_bytes()).collect();
        numbers.iter().for_each(|number| body.extend(number.to_be_bytes()));
        body.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        body.extend(data);
        self.ip(kind, 6, &body);
    }

    fn finish(mut self) {
        while self.inspector.finish() {
            self.read();
        }
        self.read();
        let (flows, held, _) = self.inspector.live();
        assert_eq!((flows, held), (0, 0));
        let stats = self.inspector.stats_line(&CaptureCounters::default());
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(&stats);
        assert!(parsed.is_ok(), "{stats}");
    }
}
