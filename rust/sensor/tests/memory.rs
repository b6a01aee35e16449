//! One number bounds the sensor: a hostile stream of made-up 5-tuples must not make the process grow.

use sensor::{Config, Direction, FlowEvents, Frame, Link, Sensor, SipKey};

const MEMORY_BYTES: usize = 8 << 20;
const PACKETS: u64 = 1_000_000; // some thirty times the slots of the flow table

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or(0) * 1024
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 24
    }
}

/// A packet with a made-up sender, in turn TCP with any flags, UDP, ICMP, or garbage.
fn hostile(random: &mut Random, packet: &mut [u8; 54]) {
    let [source, ports, more] = [random.next(), random.next(), random.next()];
    packet[12..14].copy_from_slice(&[8, 0]);
    packet[14..34].copy_from_slice(&[0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
    packet[23] = [6, 6, 6, 17, 1][(more % 5) as usize];
    packet[26..30].copy_from_slice(&(source as u32).to_be_bytes());
    packet[34..38].copy_from_slice(&(ports as u32).to_be_bytes());
    packet[46] = 0x50;
    packet[47] = if more & 64 == 0 { 2 } else { (more >> 8) as u8 };
    packet[14] = if more & 0x3f00 == 0 { 0 } else { 0x45 };
}

#[test]
fn a_hostile_stream_does_not_grow_the_process() {
    let before = resident_bytes();
    let config = Config { memory_bytes: MEMORY_BYTES, flow_events: FlowEvents::All, ..Config::default() };
    let Ok(mut sensor) = Sensor::new(config, SipKey([1, 2])) else { panic!("the configuration is valid") };
    let (mut random, mut packet, mut halfway) = (Random(1), [0; 54], 0);
    for number in 0..PACKETS {
        hostile(&mut random, &mut packet);
        let time_us = 1_000_000 + number * 10; // 100,000 a second
        sensor.packet(&Frame {
            time_us,
            data: &packet,
            wire_bytes: 54,
            link: Link::Ethernet,
            direction: Direction::In,
        });
        if number == PACKETS / 2 {
            halfway = resident_bytes();
        }
    }
    let after = resident_bytes();
    // the ring's share is the capture's to use: what is here must fit into the rest
    let share = MEMORY_BYTES - sensor.ring_bytes();
    assert!(after - before <= share, "grew by {} bytes, share {share}", after - before);
    assert!(after <= halfway + (64 << 10), "still growing: {halfway} to {after}");
    let counters = sensor.counters();
    assert!(counters.flows_evicted > PACKETS / 2 && counters.sources_evicted > 100_000);
    assert!(counters.events_refused > 0, "nobody reads: the queue is full and says so");
    let mut line = String::new();
    let mut alerts = 0;
    while sensor.next_line(&mut line) {
        alerts += usize::from(line.contains("\"event_type\":\"alert\""));
    }
    assert!((1..=250).contains(&alerts), "{alerts} alerts in 10 s");
    assert_eq!(counters_sum(&sensor), PACKETS, "every packet is counted as one thing");
}

fn counters_sum(sensor: &Sensor) -> u64 {
    let counters = sensor.counters();
    counters.ipv4 + counters.ipv6 + counters.arp + counters.other + counters.malformed.iter().sum::<u64>()
}
