//! Beacons, the baseline, control networks.

use super::*;
use crate::detectors::control::Control;
use crate::detectors::reporter::Reporter;
use crate::detectors::{Config, Context, Home};

const HOST: &str = "192.168.1.2";
const CLOUD: &str = "203.0.113.80";

fn ended(number: u64, start_us: u64, server: &str, bytes: u64) -> FlowSeen {
    FlowSeen {
        id: number + 1,
        addresses: [address(HOST), address(server)],
        ports: [20_000 + (number % 10_000) as u16, 443],
        protocol: 6,
        first_us: start_us,
        packets: [5, 5],
        bytes: [bytes, 500],
        is_established: true,
        ..FlowSeen::default()
    }
}

/// Flows with these intervals and sizes; what is found.
fn beacon(count: u64, server: &str, each: impl Fn(u64) -> (u64, u64)) -> Vec<Kind> {
    let mut bench = Bench::new(&[]);
    for number in 0..count {
        let (interval_us, bytes) = each(number);
        bench.now_us += interval_us;
        let flow = ended(number, bench.now_us, server, bytes);
        bench.wait(SECOND);
        bench.now_us -= SECOND;
        bench.detectors.flow_ended(&flow);
        bench.found.append(&mut bench.detectors.take());
    }
    bench.starts()
}

#[test]
fn a_beacon_is_regular_in_time_and_size() {
    let jitter = |number: u64, part: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33 & part;
    // a minute and a few seconds, one lost
    let ticks =
        |number: u64| (60 * SECOND + jitter(number, 0x1f_ffff) + if number == 9 { 60 * SECOND } else { 0 }, 700);
    assert_eq!(beacon(20, CLOUD, ticks), [Kind::Beacon]);
    assert_eq!(beacon(16, CLOUD, ticks), [], "one fewer than needed");
    assert_eq!(beacon(40, CLOUD, |number| (10 * SECOND + jitter(number, 0x3ff_ffff), 700)), [], "a person");
    assert_eq!(beacon(40, CLOUD, |number| (60 * SECOND, 700 + number % 7 * 400)), [], "different each time");
    assert_eq!(beacon(40, "192.168.1.9", ticks), [], "at home");
    assert_eq!(beacon(40, CLOUD, |_| (2 * SECOND, 700)), [], "faster than anything that hides");
}

const BASELINE: &str = r#"{"format": "tidegate-baseline-1", "forgotten": 0, "entries": [
 {"talk": {"server": "203.0.113.80", "port": 443, "proto": "TCP", "client": "192.168.1.2", "app": "tls"},
  "seen": {"flows": 3, "bytes_toserver": 1, "bytes_toclient": 2, "first": "", "last": ""}},
 {"talk": {"server": "192.168.1.1", "port": null, "proto": "ICMP", "client": "192.168.1.2", "app": ""}, "seen": {"flows": 1}}
]}"#;

fn answer(bench: &mut Bench, client: &str, server: (&str, u16)) {
    let flow = FlowSeen {
        addresses: [address(client), address(server.0)],
        ports: [40_000, server.1],
        protocol: 6,
        is_to_client: true,
        packets: [1, 1],
        ..FlowSeen::default()
    };
    bench.frame_in(&tcp(server, (client, 40_000), flag::SYN | flag::ACK, b""), Some(&flow));
}

#[test]
fn what_is_outside_the_baseline_is_told_once_an_hour() {
    let mut bench = Bench::new(&[("detectors.baseline.text", BASELINE)]);
    assert_eq!(bench.detectors.baseline_error(), None);
    for _ in 0..100 {
        answer(&mut bench, HOST, (CLOUD, 443));
        bench.wait(SECOND);
    }
    assert_eq!(bench.starts(), []);
    for _ in 0..100 {
        answer(&mut bench, "192.168.1.3", (CLOUD, 443));
        answer(&mut bench, HOST, (CLOUD, 8443));
        bench.now_us += 60 * SECOND;
    }
    assert_eq!(bench.starts(), [Kind::NewPeer, Kind::NewService]);
    assert_eq!(bench.found.len(), 4, "and once more after an hour");
}

#[test]
fn a_baseline_that_cannot_be_read_is_none_and_says_so() {
    let rows = [
        ("", false),
        ("{\"format\": \"another\", \"entries\": []}", true),
        (BASELINE.get(..300).unwrap_or_default(), true),
        ("[1, 2]", true),
    ];
    for (text, has_error) in rows {
        let mut bench = Bench::new(&[("detectors.baseline.text", text)]);
        assert_eq!(bench.detectors.baseline_error().is_some(), has_error, "{text}");
        answer(&mut bench, HOST, (CLOUD, 4433));
        assert_eq!(bench.starts(), []);
    }
    let bench = Bench::with_memory(200, &[("detectors.baseline.text", BASELINE)]);
    assert!(bench.detectors.baseline_error().is_some(), "no room");
}

#[test]
fn a_known_peer_s_polls_are_no_beacon() {
    let mut bench = Bench::new(&[("detectors.baseline.text", BASELINE)]);
    for number in 0..40 {
        bench.now_us += 60 * SECOND;
        let flow = ended(number, bench.now_us, CLOUD, 700);
        bench.detectors.flow_ended(&flow);
    }
    assert!(bench.detectors.take().is_empty());
}

#[test]
fn after_an_hour_a_new_function_and_a_flood_of_writes_are_seen() {
    let config = Config::from_settings(&Settings::default());
    let (mut control, mut reporter) =
        (Control::new(64 << 10, SipKey([1, 2])), Reporter::new(5 * SECOND, Home::default(), SipKey([1, 2])));
    let flow =
        |client: &str| FlowSeen { addresses: [address(client), address(HOST)], ports: [1, 502], ..FlowSeen::default() };
    let mut use_function = |client: &str, function: &str, is_write: bool, now_us: u64| {
        let mut context = Context { now_us, config: &config, reporter: &mut reporter };
        control.used(&flow(client), 1, "modbus", function, is_write, &mut context);
        reporter.take().into_iter().map(|finding| finding.kind).collect::<Vec<_>>()
    };
    let hour = 3600 * SECOND;
    // an hour of polls, with thirty writes in ten seconds
    for number in 0..3600 * 3 {
        let now_us = START_US + number * SECOND / 3;
        assert_eq!(use_function("192.168.1.9", "3", false, now_us), []);
        assert_eq!(use_function("192.168.1.9", "6", true, now_us), []);
    }
    for number in 0..300 {
        assert_eq!(use_function("192.168.1.9", "6", true, START_US + hour + number * SECOND / 10), [], "{number}");
    }
    let later = START_US + 2 * hour;
    assert_eq!(use_function("192.168.1.9", "15", true, later), [Kind::IcsNewFunction]);
    assert_eq!(use_function("192.168.1.10", "3", false, later), [Kind::IcsNewFunction], "a new client");
    let found: Vec<_> = (0..500).flat_map(|at| use_function("192.168.1.9", "6", true, later + at * MILLI)).collect();
    assert_eq!(found, [Kind::IcsWriteRate]);
}
