//! A bounded fuzz run for stable Rust: `fuzz_smoke SECONDS [CAPTURE...]`.
//!
//! A deterministic mutator (same seeds, same inputs in the same order) over built-in seeds and the capture files given.
//! Invariants: no capture makes reader or sensor panic; every frame is counted as one thing; every flow ends; every
//! event line is closed; field rules judge within the bytes, within their bound, and alike however a stream is cut. A
//! panic prints the number of the input, which repeats it.

use std::time::{Duration, Instant};
use std::{env, fs};

use capture::{CaptureFile, Record};
use sensor::fields::{Judged, MAX_JUDGED_BYTES, RuleSet, SessionState, judge};
use sensor::{Config, FlowEvents, Sensor, SipKey};

const MAX_SEED_BYTES: u64 = 65_536; // small inputs find more in the same time
const MAX_CHANGES: u64 = 8;
const INTERESTING: [u8; 10] = [0, 1, 4, 5, 0x0f, 0x45, 0x60, 0x7f, 0x80, 0xff];

struct Random(u64);

impl Random {
    /// xorshift64*: a quick sequence without repetition is all that is needed.
    fn below(&mut self, limit: u64) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit.max(1)) as usize
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let Some((seconds, paths)) = arguments.split_first() else {
        return Err("usage: fuzz_smoke SECONDS [CAPTURE...]".into());
    };
    let limit = Duration::from_secs_f64(seconds.parse()?);
    let mut seeds = vec![built_in_seed()];
    for path in paths {
        if fs::metadata(path)?.len() <= MAX_SEED_BYTES {
            seeds.push(fs::read(path)?);
        }
    }
    let (start, mut random, mut inputs, mut frames) = (Instant::now(), Random(0x5eed), 0_u64, 0_u64);
    for seed in &seeds {
        frames += run(seed);
    }
    let rules = RuleSet::parse(FIELD_RULES)?;
    let (field_seeds, mut messages) = (field_seeds(), 0_u64);
    while start.elapsed() < limit {
        let mut message = field_seeds[random.below(field_seeds.len() as u64)].clone();
        mutate(&mut message, &field_seeds, &mut random);
        let outcome = std::panic::catch_unwind(|| run_fields(&rules, &message));
        messages += outcome.map_err(|_| format!("message {messages} broke an invariant: {message:02x?}"))?;
        let mut input = seeds[random.below(seeds.len() as u64)].clone();
        mutate(&mut input, &seeds, &mut random);
        let number = inputs;
        let outcome = std::panic::catch_unwind(|| run(&input));
        frames += outcome.map_err(|_| format!("input {number} broke an invariant"))?;
        inputs += 1;
    }
    println!(
        "{{\"seeds\":{},\"inputs\":{inputs},\"frames\":{frames},\"messages\":{messages},\"seconds\":{}}}",
        seeds.len(),
        limit.as_secs_f64()
    );
    Ok(())
}

/// Read a capture through a sensor, check the invariants, return the number of frames.
fn run(input: &[u8]) -> u64 {
    let Ok(mut file) = CaptureFile::open(input) else { return 0 };
    let config = Config { memory_bytes: 2 << 20, flow_events: FlowEvents::All, ..Config::default() };
    let Ok(mut sensor) = Sensor::new(config, SipKey([1, 2])) else { return 0 };
    while let Ok(record) = file.next_record() {
        match record {
            Record::Frame(frame) => sensor.packet(&frame),
            Record::UnsupportedLink => {}
            Record::End(_) => break,
        }
    }
    let mut line = String::new();
    while sensor.finish() {
        read_lines(&mut sensor, &mut line);
    }
    read_lines(&mut sensor, &mut line);
    let counters = sensor.counters();
    let parts = counters.ipv4 + counters.ipv6 + counters.arp + counters.other;
    assert_eq!(parts + counters.malformed.iter().sum::<u64>(), counters.packets);
    assert_eq!(counters.flows_created, counters.flows_ended);
    counters.packets
}

const FIELD_RULES: &str = r#"{"version":1,"memory_bytes":65536,"rules":[
{"id":1,"name":"a","protocol":"modbus","mode":"enforce","unparsable":"drop","allow":[{"registers":[[0,99]]}],"deny":[]},
{"id":2,"name":"b","protocol":"dnp3","mode":"enforce","unparsable":"drop","allow":[{"objects":[[1,60]]}],"deny":[]},
{"id":3,"name":"c","protocol":"bacnet","mode":"enforce","unparsable":"drop","allow":[],"deny":[{"objects":[[8,8]]}]},
{"id":4,"name":"d","protocol":"mqtt","mode":"enforce","unparsable":"drop","allow":[{"topics":["a/#"]}],"deny":[]},
{"id":5,"name":"e","protocol":"coap","mode":"enforce","unparsable":"drop","allow":[{"paths":["/a/*"]}],"deny":[]},
{"id":6,"name":"f","protocol":"dns","mode":"enforce","unparsable":"drop","allow":[{"names":["*.a"]}],"deny":[]}]}"#;

/// Judge all messages of an input, whose first byte picks the rule; return 1.
fn run_fields(rules: &RuleSet, input: &[u8]) -> u64 {
    let [choice, bytes @ ..] = input else { return 1 };
    let Some(rule) = rules.rule(choice % 6 + 1) else { panic!("there are six rules") };
    let datagram = choice & 0x80 != 0;
    let (mut state, mut rest) = (SessionState::default(), bytes);
    while !rest.is_empty() {
        let before = state.clone();
        let judged = judge(rule, &mut state, rest, datagram);
        let (len, skip) = match &judged {
            Judged::Pass { len, skip } | Judged::Refuse { len, skip, .. } => (*len, *skip),
            Judged::More => {
                assert!(!datagram && rest.len() < MAX_JUDGED_BYTES);
                break;
            }
            Judged::Malformed(_) => break,
        };
        assert!(len > 0 && len <= rest.len() && state.heap_bytes() <= MAX_JUDGED_BYTES * 4);
        if !datagram {
            assert_eq!(judge(rule, &mut before.clone(), &rest[..len], false), judged);
            assert_eq!(judge(rule, &mut before.clone(), &rest[..len - 1], false), Judged::More);
        }
        rest = rest.get(len.saturating_add(skip as usize)..).unwrap_or_default();
    }
    1
}

/// A message or two of each protocol, behind the byte that picks the rule.
fn field_seeds() -> Vec<Vec<u8>> {
    let seeds: [&[u8]; 9] = [
        b"\x00\0\x09\0\0\0\x06\x01\x03\0\0\0\x01\0\x0a\0\0\0\x09\x01\x10\0\x05\0\x01\x02\0\x07",
        b"\x00\0\x09\0\0\0\x0d\x01\x17\0\0\0\x01\0\x05\0\x01\x02\0\x07\0\0",
        b"\x01\x05\x64\x0b\xc4\x0a\0\x01\0\xe1\x1d\xc0\xc1\x01\x3c\x01\x06\x0d\xba",
        b"\x82\x81\x0a\0\x11\x01\x04\0\x05\x01\x0c\x0c\0\0\0\x01\x19\x55",
        b"\x82\x81\x0a\0\x18\x01\x04\0\x05\x01\x0f\x0c\0\0\0\x01\x19\x55\x3e\x44\0\0\0\0\x3f",
        b"\x03\x10\x0e\0\x04MQTT\x05\x02\0\x3c\0\0\x01c\x30\x0b\0\x03a/b\x03\x23\0\x01hi\x82\x09\0\x09\0\0\x03a/#\x01",
        b"\x84\x42\x01\0\x07\xaa\xbb\xb1a\x01b\xff\x01",
        b"\x04\x41\x01\x77\xb1a\x01b\0\xe2",
        b"\x85\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x01b\x01a\0\0\x01\0\x01\0\0\x29\x10\0\0\0\0\0\0\0",
    ];
    seeds.iter().map(|seed| seed.to_vec()).collect()
}

fn read_lines(sensor: &mut Sensor, line: &mut String) {
    while sensor.next_line(line) {
        assert!(line.starts_with('{') && line.ends_with('}'));
    }
}

fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    for _ in 0..=random.below(MAX_CHANGES) {
        let length = input.len() as u64;
        let at = random.below(length);
        match random.below(6) {
            _ if input.is_empty() => return,
            0 => input[at] ^= 1 << random.below(8),
            1 => input[at] = INTERESTING[random.below(INTERESTING.len() as u64)],
            2 => input[at] = random.below(256) as u8,
            3 => input.truncate(at),
            4 => {
                let end = at + random.below(length - at as u64);
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            _ => {
                let other = &seeds[random.below(seeds.len() as u64)];
                let from = random.below(other.len() as u64);
                input.splice(at.., other[from.min(other.len())..].iter().copied());
            }
        }
    }
}

/// A pcap with one packet of each kind that the decoder knows.
fn built_in_seed() -> Vec<u8> {
    let tcp = [4, 210, 0, 80, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, 2, 4, 0, 0, 0, 0, 0];
    let udp = [0, 53, 0, 53, 0, 9, 0, 0, 1];
    let echo = [8, 0, 0, 0, 0, 7, 0, 1];
    let options = [&[60, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0][..], &tcp].concat();
    let packets: [Vec<u8>; 7] = [
        ethernet(&[8, 0], &ipv4(6, &tcp)),
        ethernet(&[8, 0], &ipv4(17, &udp)),
        ethernet(&[8, 0], &ipv4(1, &echo)),
        ethernet(&[0x86, 0xdd], &ipv6(0, &options)),
        ethernet(&[0x81, 0, 0, 5, 0x81, 0, 0, 6, 8, 0], &ipv4(6, &tcp)),
        ethernet(&[8, 6], &[0; 28]),
        ethernet(&[0x86, 0xdd], &ipv6(44, &[&[17, 0, 0, 1, 0, 0, 0, 1][..], &udp].concat())),
    ];
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    for (number, packet) in packets.iter().enumerate() {
        for word in [1000 + number as u32, 0, packet.len() as u32, packet.len() as u32] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(packet);
    }
    file
}

fn ethernet(kind: &[u8], payload: &[u8]) -> Vec<u8> {
    [&[0; 12][..], kind, payload].concat()
}

fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let total = 20 + payload.len() as u8;
    [&[0x45, 0, 0, total, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2][..], payload].concat()
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 64];
    for last in [1, 2] {
        packet.extend_from_slice(&[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    [packet, payload.to_vec()].concat()
}
