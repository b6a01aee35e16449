//! Scans and sweeps.

use super::*;
use flag::{ACK, FIN, PSH, RST, SYN};

const SCANNER: &str = "198.51.100.7";
const VICTIM: &str = "192.168.1.2";

#[test]
fn a_scan_of_ports_is_seen_whether_they_refuse_ignore_or_accept() {
    let rows: [(&str, &[u8]); 3] = [("refuse", &[RST | ACK]), ("ignore", &[]), ("accept", &[SYN | ACK])];
    for (name, answers) in rows {
        let mut bench = Bench::new(&[]);
        for port in 1..=40_u16 {
            let (from, to) = ((SCANNER, 40_000), (VICTIM, port));
            bench.frame(&tcp(from, to, SYN, b""));
            for flags in answers {
                bench.frame(&tcp(to, from, *flags, b""));
            }
            if name == "accept" {
                bench.frame(&tcp(from, to, RST, b""));
            }
            bench.wait(20 * MILLI);
        }
        bench.wait(15 * SECOND);
        assert_eq!(bench.starts(), [Kind::ConnectScan], "{name}");
        assert!(bench.delay_us(Kind::ConnectScan).is_some_and(|us| us < 2 * SECOND), "{name}");
        assert!(bench.found.iter().any(|finding| finding.phase == Phase::End && finding.count >= 40), "{name}");
    }
}

#[test]
fn one_port_less_than_the_threshold_is_no_scan() {
    let mut bench = Bench::new(&[]);
    for port in 1..=11 {
        bench.frame(&tcp((SCANNER, 40_000), (VICTIM, port), SYN, b""));
        bench.frame(&tcp((VICTIM, port), (SCANNER, 40_000), RST | ACK, b""));
    }
    bench.wait(30 * SECOND);
    assert_eq!(bench.starts(), []);
}

#[test]
fn a_busy_client_a_passive_transfer_and_a_busy_server_are_no_scan() {
    let mut bench = Bench::new(&[]);
    for number in 0..200_u16 {
        // many services of one host, each used; and data connections that only the server fills
        session(&mut bench, (SCANNER, 20_000 + number), (VICTIM, 100 + number), b"GET", b"ok");
        session(&mut bench, (SCANNER, 30_000 + number), (VICTIM, 2000 + number), b"", b"data");
        // a server with many clients behind one address
        session(&mut bench, ("203.0.113.1", 10_000 + number), (VICTIM, 443), b"hello", b"hello");
        bench.wait(10 * MILLI);
    }
    bench.wait(30 * SECOND);
    assert_eq!(bench.starts(), []);
}

#[test]
fn a_slow_scan_is_seen_after_hours_and_only_towards_home() {
    for (victim, expected) in [(VICTIM, vec![Kind::SlowScan]), ("203.0.113.50", vec![])] {
        let mut bench = Bench::new(&[]);
        for port in 1..=150 {
            bench.frame(&tcp((SCANNER, 40_000), (victim, port), SYN, b""));
            bench.wait(2 * SECOND);
            bench.now_us += 58 * SECOND;
        }
        assert_eq!(bench.starts(), expected, "{victim}");
        let distinct = bench.found.first().map(|finding| finding.evidence.clone());
        assert!(distinct.is_none_or(|evidence| evidence.len() == 1));
    }
}

#[test]
fn the_same_dead_service_asked_for_all_day_is_no_slow_scan() {
    let mut bench = Bench::new(&[]);
    for _ in 0..2000 {
        bench.frame(&tcp((SCANNER, 40_000), (VICTIM, 80), SYN, b""));
        bench.now_us += 20 * SECOND;
    }
    assert_eq!(bench.starts(), []);
}

#[test]
fn a_sweep_is_seen_over_tcp_udp_and_icmp() {
    type Probe = fn(&str) -> Vec<u8>;
    let rows: [(Kind, u32, Probe); 3] = [
        (Kind::TcpSweep, 8, |host| tcp((SCANNER, 40_000), (host, 22), SYN, b"")),
        (Kind::UdpSweep, 24, |host| udp((SCANNER, 40_000), (host, 161), b"x")),
        (Kind::IcmpSweep, 8, |host| ip_frame(SCANNER, host, 1, &[8, 0, 0, 0, 0, 1, 0, 1])),
    ];
    for (kind, threshold, probe) in rows {
        for (hosts, expected) in [(threshold - 1, vec![]), (threshold + 1, vec![kind])] {
            let mut bench = Bench::new(&[]);
            for host in 1..=hosts {
                bench.frame(&probe(&format!("192.168.1.{host}")));
                bench.wait(20 * MILLI);
            }
            bench.wait(SECOND);
            assert_eq!(bench.starts(), expected, "{kind:?} {hosts}");
            assert!(expected.is_empty() || bench.delay_us(kind).is_some_and(|us| us < 2 * SECOND));
        }
    }
}

#[test]
fn who_talks_to_many_hosts_that_answer_sweeps_nothing() {
    let mut bench = Bench::new(&[]);
    for host in 1..=200 {
        let host = format!("203.0.113.{host}");
        session(&mut bench, (VICTIM, 40_000), (&host, 443), b"hello", b"hello");
        bench.frame(&udp((VICTIM, 123), (&host, 123), b"time?"));
        bench.frame(&udp((&host, 123), (VICTIM, 123), b"time!"));
        bench.frame(&ip_frame(VICTIM, &host, 1, &[8, 0, 0, 0, 0, 1, 0, 1]));
        bench.frame(&ip_frame(&host, VICTIM, 1, &[0, 0, 0, 0, 0, 1, 0, 1]));
    }
    bench.wait(30 * SECOND);
    assert_eq!(bench.starts(), []);
}

fn unreachable(asked: &[u8]) -> Vec<u8> {
    let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
    message.extend(asked.get(14..).unwrap_or_default());
    ip_frame(VICTIM, SCANNER, 1, &message)
}

#[test]
fn a_udp_scan_is_seen_by_refusals_or_silence_and_a_traceroute_is_none() {
    for (first, refuses, expected) in
        [(1000, true, vec![Kind::UdpScan]), (1000, false, vec![Kind::UdpScan]), (33_434, false, vec![])]
    {
        let mut bench = Bench::new(&[]);
        for port in first..first + 30 {
            let asked = udp((SCANNER, 40_000), (VICTIM, port), b"x");
            bench.frame(&asked);
            if refuses {
                bench.frame(&unreachable(&asked));
            }
            bench.wait(10 * MILLI);
        }
        bench.wait(SECOND);
        assert_eq!(bench.starts(), expected);
    }
}

#[test]
fn a_resolver_whose_answers_come_too_late_scans_nobody() {
    let mut bench = Bench::new(&[]);
    for port in 20_000..20_100 {
        bench.frame(&udp((VICTIM, port), ("203.0.113.53", 53), b"question"));
        bench.wait(300 * MILLI);
        bench.frame(&udp(("203.0.113.53", 53), (VICTIM, port), b"answer"));
        let late = udp(("203.0.113.53", 53), (VICTIM, port), b"answer");
        let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
        message.extend(late.get(14..).unwrap_or_default());
        bench.frame(&ip_frame(VICTIM, "203.0.113.53", 1, &message));
    }
    bench.wait(30 * SECOND);
    assert_eq!(bench.starts(), []);
}

fn lone_ack() -> FlowSeen {
    FlowSeen { protocol: 6, is_unsolicited: true, packets: [1, 0], ..FlowSeen::default() }
}

#[test]
fn an_ack_scan_needs_resets_and_a_flood_needs_a_rate() {
    for (ports, answers, expected) in [(30, true, vec![Kind::AckScan]), (9, true, vec![]), (300, false, vec![])] {
        let mut bench = Bench::new(&[]);
        for port in 1..=ports {
            bench.frame_in(&tcp((SCANNER, 40_000), (VICTIM, port), ACK, b""), Some(&lone_ack()));
            if answers {
                bench.frame(&tcp((VICTIM, port), (SCANNER, 40_000), RST, b""));
            }
            bench.wait(10 * MILLI);
        }
        bench.wait(SECOND);
        assert_eq!(bench.starts(), expected, "{ports}");
    }
    for (per_s, expected) in [(900_u64, vec![]), (3000, vec![Kind::AckFlood])] {
        let mut bench = Bench::new(&[]);
        for number in 0..per_s * 3 {
            let source = format!("203.0.113.{}", number % 250);
            bench.frame_in(&tcp((&source, number as u16), (VICTIM, 80), ACK, b""), Some(&lone_ack()));
            bench.now_us += SECOND / per_s;
        }
        bench.wait(10 * SECOND);
        assert_eq!(bench.starts(), expected, "{per_s}");
        assert!(bench.found.first().is_none_or(|finding| finding.subject.source == 0), "no source sent most of it");
        assert!(expected.is_empty() || bench.delay_us(Kind::AckFlood).is_some_and(|us| us < 2 * SECOND));
    }
}

#[test]
fn acknowledgements_within_connections_are_no_flood() {
    let mut bench = Bench::new(&[]);
    let flow = FlowSeen { protocol: 6, packets: [5, 5], is_established: true, ..FlowSeen::default() };
    for number in 0..20_000_u64 {
        bench.frame_in(&tcp((SCANNER, 40_000), (VICTIM, 80), ACK, b""), Some(&flow));
        bench.now_us += number % 100;
    }
    bench.frame(&tcp((SCANNER, 40_000), (VICTIM, 80), FIN | PSH | ACK, b"x"));
    assert_eq!(bench.starts(), []);
}

#[test]
fn a_dead_uplink_sweeps_nothing_and_a_worm_does() {
    for (port, expected) in [(443, vec![]), (23, vec![Kind::TcpSweep])] {
        let mut bench = Bench::new(&[]);
        for host in 1..60 {
            bench.frame(&tcp((VICTIM, 40_000), (&format!("203.0.113.{host}"), port), SYN, b""));
            bench.wait(30 * MILLI);
        }
        bench.wait(SECOND);
        assert_eq!(bench.starts(), expected, "{port}");
    }
}

#[test]
fn health_checks_of_many_servers_and_the_operator_s_scanner_are_no_finding() {
    let mut bench = Bench::new(&[("detectors.ignore", "198.51.100.0/24")]);
    for number in 0..200_u16 {
        let host = format!("192.168.1.{}", number % 40 + 1);
        session(&mut bench, (VICTIM, 20_000 + number), (&host, 8080), b"", b"");
        bench.frame(&tcp((SCANNER, 40_000), (VICTIM, number + 1), SYN, b""));
        bench.wait(20 * MILLI);
    }
    bench.wait(30 * SECOND);
    assert_eq!(bench.starts(), []);
}

#[test]
fn a_detector_that_is_off_is_silent() {
    let mut bench = Bench::new(&[("detectors.scan.connect.enabled", "no"), ("detectors.scan.slow.enabled", "no")]);
    for port in 1..=1000 {
        bench.frame(&tcp((SCANNER, 40_000), (VICTIM, port), SYN, b""));
        bench.wait(5 * MILLI);
    }
    assert_eq!(bench.starts(), []);
}
