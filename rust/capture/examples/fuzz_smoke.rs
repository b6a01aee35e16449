//! A bounded fuzz run for stable Rust: `fuzz_smoke SECONDS [CAPTURE...]`.
//!
//! A deterministic mutator (same seeds, same inputs in the same order) over built-in seeds and the capture files given, or
//! else some of those below TIDEGATE_CORPORA.
//! Invariants: no capture makes reader or sensor panic; every frame is counted as one thing; every flow ends; every
//! event line is closed; field rules judge within the bytes, within their bound, and alike however a stream is cut; and those of
//! the fuzz targets for rules, conditions, protocols and deep inspection (`rust/fuzz/shared`). A panic prints the number of
//! the input, which repeats it.

use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{env, fs};

use capture::{CaptureFile, Record};
use sensor::fields::{Judged, MAX_JUDGED_BYTES, RuleSet, SessionState, judge};
use sensor::{Config, FlowEvents, Link, Sensor, SipKey};

#[path = "../../fuzz/shared/inspect.rs"]
mod inspect_target;
#[path = "../../fuzz/shared/inspection.rs"]
mod inspection_target;
#[path = "../../fuzz/shared/protocols.rs"]
mod protocols_target;
#[path = "../../fuzz/shared/rule_text.rs"]
mod rule_text_target;

/// Captures of the corpora that are enough for a quick run.
const MAX_CORPUS_CAPTURES: usize = 100;
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
    let paths = if paths.is_empty() { corpus_captures() } else { paths.iter().map(PathBuf::from).collect() };
    for path in &paths {
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
    let deep_seeds = DeepSeeds::new(&seeds);
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
        let outcome = std::panic::catch_unwind(|| deep_seeds.run(number));
        outcome.map_err(|_| format!("deep input {number} broke an invariant"))?;
        inputs += 1;
    }
    println!(
        "{{\"seeds\":{},\"inputs\":{inputs},\"frames\":{frames},\"messages\":{messages},\"seconds\":{}}}",
        seeds.len(),
        limit.as_secs_f64()
    );
    Ok(())
}

/// Some captures of the corpora, where they are.
fn corpus_captures() -> Vec<PathBuf> {
    let Some(corpora) = env::var_os("TIDEGATE_CORPORA").map(PathBuf::from) else { return Vec::new() };
    let folders = ["malformed-pcap", "ics-pcap", "ndpi-pcap"].map(|name| corpora.join(name));
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    paths.sort();
    let step = paths.len().div_ceil(MAX_CORPUS_CAPTURES).max(1);
    paths.into_iter().step_by(step).collect()
}

/// What is run, and what it begins with.
type Target = (fn(&[u8]), Vec<Vec<u8>>);

/// Seeds of the four targets of deep inspection, and captures as frames.
struct DeepSeeds {
    targets: [Target; 4],
    captures: Vec<Vec<(u64, Vec<u8>, Link)>>,
}

impl DeepSeeds {
    fn new(captures: &[Vec<u8>]) -> DeepSeeds {
        let list = |seeds: &[&[u8]]| seeds.iter().map(|seed| seed.to_vec()).collect::<Vec<_>>();
        let captures = captures.iter().map(|file| frames(file)).collect();
        DeepSeeds {
            targets: [
                (rule_text_target::run, list(RULE_SEEDS)),
                (inspection_target::run, list(BYTE_SEEDS)),
                (protocols_target::run, protocol_seeds()),
                (inspect_target::run, segment_seeds()),
            ],
            captures,
        }
    }

    /// Run one mutated input of each target, and one capture of which some frames were changed.
    fn run(&self, number: u64) {
        let random = &mut Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for (target, seeds) in &self.targets {
            let mut input = seeds[random.below(seeds.len() as u64)].clone();
            mutate(&mut input, seeds, random);
            target(&input);
        }
        let mut frames = self.captures[random.below(self.captures.len() as u64)].clone();
        for _ in 0..random.below(MAX_CHANGES) {
            if frames.is_empty() {
                return;
            }
            let (from, to) = (random.below(frames.len() as u64), random.below(frames.len() as u64));
            match random.below(3) {
                0 => frames.swap(from, to),
                1 => frames[to] = frames[from].clone(),
                _ => mutate(&mut frames[to].1, &[vec![0; 64]], random),
            }
        }
        inspect_target::run_capture(&frames, random.below(256) as u8);
    }
}

/// At most so many frames: the beginning of a connection is what parsers see.
const MAX_FRAMES: usize = 64;

fn frames(file: &[u8]) -> Vec<(u64, Vec<u8>, Link)> {
    let mut list = Vec::new();
    let Ok(mut file) = CaptureFile::open(file) else { return list };
    while let Ok(Record::Frame(frame)) = file.next_record() {
        list.push((frame.time_us, frame.data.to_vec(), frame.link));
        if list.len() >= MAX_FRAMES {
            break;
        }
    }
    list
}

const RULE_SEEDS: &[&[u8]] = &[
    b"\x00content:\"a|00 01|b\"; nocase; offset:3; depth:9; pcre:\"/a(b|c)+d/i\"; byte_test:2,>,5,0,relative;",
    b"\x01content:\"/x\"; http.host; content:\"a\"; bsize:<9; fast_pattern; dataset:set,n,type string,save s.lst;",
    b"\x02flowbits:set,a; threshold:type limit, track by_src, count 1, seconds 60; dsize:>4; ttl:<5; sameip;",
    b"\x03content:\"a\"; dotprefix; to_md5; flowint:n,+,1; xbits:isset,b,track ip_pair; metadata:a b, c d;",
    b"\x06modbus: function 5; iprep:src,BadHosts,>,30; target:src_ip; classtype:trojan-activity; priority:2;",
    b"\xc0alert tcp [10.0.0.0/8,!10.1.0.0/16] [80,443,!81:90] <> $HOME_NET any (msg:\"m\\;\"; flow:established; sid:1;)\n",
    b"\xc1suppress gen_id 1, sig_id 1, track by_src, ip 10.0.0.0/8\nrate_filter gen_id 1, sig_id 2, track by_rule, count 3, \
        seconds 9, new_action drop, timeout 5\n",
];

const BYTE_SEEDS: &[&[u8]] = &[
    b"\x00\x00aaaaaaaaaaaaaaaaaaab",
    b"\x02\x00aaaaaaaaaaaaaaaaaaaaaaaaaac",
    b"\x04\x00\x00\x00\x01\x02\x03\x04abcxyz\xff\xff",
    b"\x09\x00n=0000000007abab",
    b"\x0b\x00 YWJjZXZpbA==evil",
    b"\x93\x05abcdefgh0123456789xx",
];

/// Conversations: the protocol's place in the list, then pieces with their way and length.
fn protocol_seeds() -> Vec<Vec<u8>> {
    let talk = |name: &str, pieces: &[(u8, &[u8])]| {
        let index = protocols::PROTOCOLS.iter().position(|protocol| protocol.name == name).unwrap_or_default();
        let mut seed = vec![index as u8];
        for (way, bytes) in pieces {
            seed.extend([*way, bytes.len() as u8]);
            seed.extend_from_slice(bytes);
        }
        seed
    };
    vec![
        talk(
            "http",
            &[
                (0xc0, b"POST /a?b=c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
                (
                    0xc1,
                    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\n\x1f\x8b\x08\0\0\0\0\0\0",
                ),
            ],
        ),
        talk("dns", &[(0xc0, b"\x07\x07\x01\0\0\x01\0\0\0\0\0\0\x01a\x02bc\0\0\x01\0\x01")]),
        talk(
            "tls",
            &[(
                0xc0,
                b"\x16\x03\x01\0\x2d\x01\0\0\x29\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\0\0\x02\x13\x01\x01\0\0\0",
            )],
        ),
        talk("ssh", &[(0xc0, b"SSH-2.0-x\r\n\0\0\0\x0c\x0a\x14\0\0\0\0\0\0\0\0\0\0"), (0xc1, b"SSH-2.0-y\r\n")]),
        talk(
            "smtp",
            &[(1, b"220 a\r\n"), (0xc0, b"EHLO a\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n"), (1, b"250 a\r\n")],
        ),
        talk(
            "ftp",
            &[(1, b"220 a\r\n"), (0xc0, b"USER a\r\nPORT 1,2,3,4,5,6\r\nRETR f\r\n"), (1, b"227 (1,2,3,4,5,6)\r\n")],
        ),
        talk(
            "modbus",
            &[(0xc0, b"\0\x01\0\0\0\x06\x01\x03\0\0\0\x02"), (0xc1, b"\0\x01\0\0\0\x07\x01\x03\x04\0\0\0\0")],
        ),
        talk("mqtt", &[(0xc0, b"\x10\x0e\0\x04MQTT\x05\x02\0\x3c\0\0\x01c\x30\x0b\0\x03a/b\x03\x23\0\x01hi")]),
        talk("dnp3", &[(0xc0, b"\x05\x64\x0b\xc4\x0a\0\x01\0\xe1\x1d\xc0\xc1\x01\x3c\x01\x06\x0d\xba")]),
        talk(
            "snmp",
            &[(0xc0, b"\x30\x19\x02\x01\x01\x04\x06public\xa0\x0c\x02\x01\x01\x02\x01\0\x02\x01\0\x30\x01\0")],
        ),
        talk("sip", &[(0xc0, b"OPTIONS sip:a SIP/2.0\r\nVia: b\r\nContent-Length: 0\r\n\r\n")]),
        talk("tftp", &[(0xc0, b"\0\x01file\0octet\0")]),
        talk("coap", &[(0xc0, b"\x42\x01\0\x07\xaa\xbb\xb1a\x01b\xff\x01")]),
        talk("bacnet", &[(0xc0, b"\x81\x0a\0\x11\x01\x04\0\x05\x01\x0c\x0c\0\0\0\x01\x19\x55")]),
        talk("enip", &[(0xc0, b"\x65\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0")]),
        talk("iec104", &[(0xc0, b"\x68\x04\x07\0\0\0\x68\x0e\0\0\0\0\x64\x01\x06\0\x01\0\0\0\0\x14")]),
    ]
}

/// Segments of connections and datagrams, as the target for deep inspection reads them.
fn segment_seeds() -> Vec<Vec<u8>> {
    let piece = |kind: u8, flags: u8, data: &[u8]| [&[kind, 1, flags, data.len() as u8], data].concat();
    let http = [
        piece(0x80, 0, b"GET /ab HTTP/1.1\r\nHost: a\r\n\r\n"),
        piece(0x81, 0, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabab"),
        piece(0x80, 0xd0, b""),
    ];
    let overlaps = [
        piece(0x82, 0, b"aaaa"),
        piece(0x82, 0xa0, b"bbbbbbbb"),
        piece(0x82, 0xb3, b"ab"),
        piece(0x83, 0, b"SSH-2.0-a\r\n"),
        piece(0x82, 0xe0, b""),
    ];
    let dns = piece(0x42, 0, b"\x07\x07\x01\0\0\x01\0\0\0\0\0\0\x01a\x02bc\0\0\x01\0\x01");
    let fragment = b"\x45\0\0\x24\0\x07\x20\0\x40\x11\0\0\x0a\0\0\x01\x0a\0\0\x02\0\x35\0\x35\0\x20\0\0abababab";
    [[vec![0], http.concat()].concat(), [vec![0x41], overlaps.concat()].concat(), [vec![2], dns].concat()]
        .into_iter()
        .chain([[vec![4], piece(0x01, 0, fragment)].concat()])
        .collect()
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
