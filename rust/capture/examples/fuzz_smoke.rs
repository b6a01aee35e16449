//! A bounded fuzz run for stable Rust: `fuzz_smoke SECONDS [CAPTURE...]`.
//!
//! A deterministic mutator (same seeds, same inputs in the same order) over built-in seeds and the capture files given.
//! Invariants: no capture makes reader or sensor panic; every frame is counted as one thing; every flow ends; every
//! event line is closed. A panic prints the number of the input, which repeats it.

use std::time::{Duration, Instant};
use std::{env, fs};

use capture::{CaptureFile, Record};
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
    while start.elapsed() < limit {
        let mut input = seeds[random.below(seeds.len() as u64)].clone();
        mutate(&mut input, &seeds, &mut random);
        let number = inputs;
        let outcome = std::panic::catch_unwind(|| run(&input));
        frames += outcome.map_err(|_| format!("input {number} broke an invariant"))?;
        inputs += 1;
    }
    println!(
        "{{\"seeds\":{},\"inputs\":{inputs},\"frames\":{frames},\"seconds\":{}}}",
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
