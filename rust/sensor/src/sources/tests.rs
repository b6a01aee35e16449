use super::*;
use crate::decode::protocol;

const SCANNER: u32 = 7;
const DEVICE: u32 = 9;

struct Bench {
    sources: Sources,
    counters: Counters,
    alerts: Vec<Alert>,
}

impl Bench {
    fn new(capacity: usize) -> Bench {
        let config = ScanConfig { ports: 20, window_s: 10, flag_packets: 5 };
        let sources = Sources::new(capacity, &config, 5_000_000, SipKey([5, 6]));
        Bench { sources, counters: Counters::ZERO, alerts: Vec::new() }
    }

    fn at(now_us: u64) -> Seen {
        Seen { now_us, flow_id: 1, direction: Direction::In }
    }

    fn syn(&mut self, source: u32, port: u16, now_us: u64) {
        let packet = tcp(source, DEVICE, 40_000, port, flags::SYN);
        self.sources.probe(&packet, Bench::at(now_us), &mut self.counters, &mut self.alerts);
    }

    fn reset(&mut self, port: u16, now_us: u64) {
        let packet = tcp(DEVICE, SCANNER, port, 40_000, flags::RST | flags::ACK);
        self.sources.refused(&packet, now_us, &mut self.alerts);
    }

    fn syn_ack(&mut self, port: u16, direction: Direction) {
        let packet = tcp(DEVICE, SCANNER, port, 40_000, flags::SYN | flags::ACK);
        self.sources.answered(&packet, direction);
    }

    fn starts(&self) -> Vec<Detector> {
        self.alerts.iter().filter(|alert| alert.phase == Phase::Start).map(|alert| alert.detector).collect()
    }
}

fn tcp(source: u32, destination: u32, source_port: u16, destination_port: u16, tcp_flags: u8) -> Packet {
    Packet {
        source: Address::from_v4(source),
        destination: Address::from_v4(destination),
        source_port,
        destination_port,
        protocol: protocol::TCP,
        tcp_flags,
        ..Packet::default()
    }
}

#[test]
fn the_twentieth_refusing_port_raises_one_alert() {
    let mut bench = Bench::new(64);
    for port in 1..=19 {
        bench.syn(SCANNER, port, 0);
        bench.reset(port, 1);
    }
    assert!(bench.alerts.is_empty());
    for port in 20..=1000 {
        bench.syn(SCANNER, port, 2);
        bench.reset(port, 3);
    }
    assert_eq!(bench.starts(), [Detector::SynScan]);
    assert_eq!((bench.alerts.len(), bench.alerts[0].measure), (1, 20));
}

#[test]
fn ignored_ports_count_after_the_grace_and_without_further_packets() {
    let mut bench = Bench::new(64);
    (1..=20).for_each(|port| bench.syn(SCANNER, port, 0));
    bench.sources.tick(GRACE_US - 1, &mut bench.alerts);
    assert!(bench.alerts.is_empty());
    bench.sources.tick(GRACE_US, &mut bench.alerts);
    assert_eq!(bench.starts(), [Detector::SynScan]);
}

#[test]
fn a_source_that_never_pauses_is_judged_within_twice_the_grace() {
    let mut bench = Bench::new(64);
    for step in 0..100_u64 {
        let now_us = step * GRACE_US / 50;
        bench.syn(SCANNER, (step % 20) as u16, now_us);
        bench.sources.tick(now_us, &mut bench.alerts);
        assert!(now_us >= GRACE_US || bench.alerts.is_empty(), "no port has had its grace");
    }
    bench.sources.tick(2 * GRACE_US, &mut bench.alerts);
    assert_eq!(bench.starts(), [Detector::SynScan]);
}

#[test]
fn a_client_of_services_that_exist_is_never_flagged() {
    let mut bench = Bench::new(64);
    for round in 0..50 {
        (1..=60).for_each(|port| bench.syn(SCANNER, port, round * 100_000));
        (1..=60).for_each(|port| bench.syn_ack(port, Direction::Out));
        bench.sources.tick(round * 100_000 + 50_000, &mut bench.alerts);
    }
    bench.sources.tick(90_000_000, &mut bench.alerts);
    assert!(bench.alerts.is_empty());
}

#[test]
fn a_client_that_insists_on_one_closed_port_is_no_scanner() {
    let mut bench = Bench::new(64);
    for round in 0..1000 {
        bench.syn(SCANNER, 443, round);
        bench.reset(443, round);
    }
    assert!(bench.alerts.is_empty());
}

#[test]
fn answers_that_come_the_scanner_s_own_way_are_not_believed() {
    let mut bench = Bench::new(64);
    for port in 1..=20 {
        bench.syn(SCANNER, port, 0);
        bench.syn_ack(port, Direction::In);
    }
    bench.sources.tick(GRACE_US, &mut bench.alerts);
    bench.sources.tick(2 * GRACE_US, &mut bench.alerts);
    assert_eq!(bench.starts(), [Detector::SynScan]);
}

#[test]
fn each_illegal_combination_has_its_detector() {
    let rows = [
        (flags::FIN | flags::PSH | flags::URG, Some(Detector::XmasScan)),
        (0, Some(Detector::NullScan)),
        (flags::FIN, Some(Detector::FinScan)),
        (flags::SYN | flags::FIN, Some(Detector::SynFinScan)),
        (flags::FIN | flags::ACK, None),
        (flags::SYN | flags::ACK, None),
        (flags::RST, None),
        (0xc0 | flags::SYN, None),
    ];
    for (tcp_flags, expected) in rows {
        let mut bench = Bench::new(64);
        for port in 0..5 {
            assert!(bench.alerts.is_empty());
            let packet = tcp(SCANNER, DEVICE, 1, port, tcp_flags);
            bench.sources.illegal(&packet, Bench::at(0), &mut bench.counters, &mut bench.alerts);
        }
        assert_eq!(bench.starts().first().copied(), expected, "{tcp_flags:#x}");
    }
}

#[test]
fn updates_are_seconds_apart_and_silence_ends_the_alert() {
    let mut bench = Bench::new(64);
    for step in 0..=120_u64 {
        let port = (step % 60) as u16;
        bench.syn(SCANNER, port, step * 100_000);
        bench.reset(port, step * 100_000);
    }
    bench.sources.tick(60_000_000, &mut bench.alerts);
    let phases: Vec<_> = bench.alerts.iter().map(|alert| alert.phase).collect();
    assert_eq!(phases.first(), Some(&Phase::Start));
    assert_eq!(phases.last(), Some(&Phase::End));
    assert!(phases.len() <= 5, "{phases:?}");
    assert_eq!(bench.alerts.last().map(|alert| alert.count), Some(121));
}

#[test]
fn made_up_sources_do_not_hide_a_scanner() {
    let mut bench = Bench::new(64);
    let mut fake = 1_000_000;
    for port in 1..=40 {
        bench.syn(SCANNER, port, u64::from(port) * 1000);
        bench.reset(port, u64::from(port) * 1000);
        for _ in 0..20 {
            fake += 1;
            bench.syn(fake, 80, u64::from(port) * 1000);
        }
    }
    assert_eq!(bench.starts(), [Detector::SynScan]);
    assert!(bench.counters.sources_evicted > 0 && bench.sources.pending.len() <= 64);
}
