//! ARP, neighbour discovery, DHCP, router advertisements.

use super::*;

const GATEWAY: [u8; 4] = [192, 168, 1, 1];

fn arp(operation: u8, sender: (u8, [u8; 4]), target: (u8, [u8; 4]), to: u8) -> Vec<u8> {
    let mac = |last: u8| if last == 0 { [0; 6] } else { [2, 0, 0, 0, 0, last] };
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
    body.extend(mac(sender.0));
    body.extend(sender.1);
    body.extend(mac(target.0));
    body.extend(target.1);
    ethernet(sender.0, to, 0x0806, &body)
}

/// The host with station 5 asks for the gateway, which is station 1.
fn ordinary(bench: &mut Bench) {
    let host = [192, 168, 1, 5];
    bench.frame(&arp(1, (5, host), (0, GATEWAY), 0xff));
    bench.frame(&arp(2, (1, GATEWAY), (5, host), 5));
}

#[test]
fn an_unasked_answer_that_moves_a_living_gateway_is_seen_at_once() {
    let mut bench = Bench::new(&[]);
    for _ in 0..3 {
        ordinary(&mut bench);
        bench.wait(5 * SECOND);
    }
    assert_eq!(bench.starts(), []);
    bench.frame(&arp(2, (66, GATEWAY), (5, [192, 168, 1, 5]), 5));
    assert_eq!(bench.starts(), [Kind::ArpSpoof]);
    let evidence = bench.found.first().map(|finding| finding.evidence.clone()).unwrap_or_default();
    assert!(evidence.contains(&("owner_mac", crate::detectors::Value::Mac(0x0200_0000_0001))));
}

#[test]
fn two_stations_that_answer_one_question_are_seen() {
    let mut bench = Bench::new(&[]);
    ordinary(&mut bench);
    bench.frame(&arp(2, (66, GATEWAY), (5, [192, 168, 1, 5]), 5));
    assert_eq!(bench.starts(), [Kind::ArpSpoof]);
}

#[test]
fn a_fixed_address_may_not_move_and_a_virtual_one_may() {
    for (setting, value, expected) in [
        ("detectors.spoof.fixed", "192.168.1.1=02:00:00:00:00:01", vec![Kind::ArpSpoof]),
        ("detectors.spoof.virtual", "192.168.1.1", vec![]),
    ] {
        let mut bench = Bench::new(&[(setting, value)]);
        bench.frame(&arp(1, (66, GATEWAY), (0, GATEWAY), 0xff));
        ordinary(&mut bench);
        bench.frame(&arp(2, (66, GATEWAY), (5, [192, 168, 1, 5]), 5));
        assert_eq!(bench.starts(), expected, "{setting}");
    }
}

#[test]
fn the_failover_of_a_virtual_address_is_no_spoofing() {
    let mut bench = Bench::new(&[]);
    ordinary(&mut bench);
    bench.wait(5 * SECOND);
    // the second of the pair announces itself five times to all, and again five seconds later
    for round in 0..2 {
        for _ in 0..5 {
            bench.frame(&arp(2 - round, (2, GATEWAY), (0, GATEWAY), 0xff));
        }
        bench.wait(5 * SECOND);
    }
    bench.frame(&arp(1, (5, [192, 168, 1, 5]), (0, GATEWAY), 0xff));
    bench.frame(&arp(2, (2, GATEWAY), (5, [192, 168, 1, 5]), 5));
    bench.wait(60 * SECOND);
    // and back
    bench.frame(&arp(1, (1, GATEWAY), (0, GATEWAY), 0xff));
    bench.wait(60 * SECOND);
    assert_eq!(bench.starts(), []);
}

#[test]
fn a_lease_that_goes_to_another_host_is_no_spoofing() {
    let mut bench = Bench::new(&[]);
    bench.frame(&arp(1, (5, [192, 168, 1, 5]), (0, [192, 168, 1, 5]), 0xff));
    bench.wait(120 * SECOND);
    bench.frame(&arp(1, (6, [192, 168, 1, 5]), (0, [192, 168, 1, 5]), 0xff));
    bench.frame(&arp(1, (1, GATEWAY), (0, [192, 168, 1, 5]), 0xff));
    bench.frame(&arp(2, (6, [192, 168, 1, 5]), (1, GATEWAY), 1));
    assert_eq!(bench.starts(), []);
}

#[test]
fn an_owner_that_claims_again_after_the_grace_shows_that_there_are_two() {
    let mut bench = Bench::new(&[]);
    ordinary(&mut bench);
    bench.wait(5 * SECOND);
    bench.frame(&arp(1, (66, GATEWAY), (0, GATEWAY), 0xff));
    bench.wait(10 * SECOND);
    assert_eq!(bench.starts(), []);
    bench.frame(&arp(1, (1, GATEWAY), (0, [192, 168, 1, 9]), 0xff));
    assert_eq!(bench.starts(), [Kind::ArpSpoof]);
}

#[test]
fn an_address_that_two_stations_announce_in_turn_is_seen() {
    let mut bench = Bench::new(&[]);
    for station in [1, 66, 1, 66] {
        bench.frame(&arp(1, (station, GATEWAY), (0, GATEWAY), 0xff));
        bench.wait(SECOND);
    }
    assert_eq!(bench.starts(), [Kind::ArpSpoof]);
}

#[test]
fn replies_that_nobody_asked_for_are_counted() {
    for (count, expected) in [(19, vec![]), (25, vec![Kind::ArpGratuitous])] {
        let mut bench = Bench::new(&[]);
        for _ in 0..count {
            bench.frame(&arp(2, (66, GATEWAY), (5, [192, 168, 1, 5]), 5));
            bench.wait(50 * MILLI);
        }
        assert_eq!(bench.starts(), expected, "{count}");
    }
}

#[test]
fn an_arp_sweep_is_seen_and_a_router_with_many_hosts_is_none() {
    for (is_answered, expected) in [(false, vec![Kind::ArpSweep]), (true, vec![])] {
        let mut bench = Bench::new(&[]);
        for host in 10..100 {
            let target = [192, 168, 1, host];
            bench.frame(&arp(1, (1, GATEWAY), (0, target), 0xff));
            if is_answered {
                bench.frame(&arp(2, (host, target), (1, GATEWAY), 1));
            }
            bench.wait(10 * MILLI);
        }
        bench.wait(SECOND);
        assert_eq!(bench.starts(), expected);
    }
}

fn advertisement(station: u8, to: &str, flags: u8) -> Vec<u8> {
    let mut body = vec![136, 0, 0, 0, flags, 0, 0, 0];
    body.extend(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).octets());
    body.extend([2, 1, 2, 0, 0, 0, 0, station]);
    ethernet(station, 5, 0x86dd, &ip_packet("fe80::1", to, 58, &body))
}

fn solicitation() -> Vec<u8> {
    let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
    body.extend(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).octets());
    body.extend([1, 1, 2, 0, 0, 0, 0, 5]);
    ethernet(5, 0xff, 0x86dd, &ip_packet("fe80::5", "ff02::1:ff00:1", 58, &body))
}

#[test]
fn a_neighbour_s_address_that_moves_is_judged_as_in_arp() {
    // solicited and override; unsolicited and override, to one; the same to all, as in a failover
    let rows = [
        (66, "fe80::5", 0x20, vec![Kind::NeighbourSpoof]),
        (66, "ff02::1", 0x20, vec![]),
        (1, "fe80::5", 0x60, vec![]),
    ];
    for (station, to, flags, expected) in rows {
        let mut bench = Bench::new(&[]);
        bench.frame(&solicitation());
        bench.frame(&advertisement(1, "fe80::5", 0x60));
        bench.wait(10 * SECOND);
        bench.frame(&advertisement(station, to, flags));
        assert_eq!(bench.starts(), expected, "{to}");
    }
}

fn dhcp(server: [u8; 4], from: &str, kind: u8) -> Vec<u8> {
    let mut message = vec![2, 1, 6, 0];
    message.extend([0; 12]);
    message.extend([192, 168, 1, 77]);
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind, 54, 4]);
    message.extend(server);
    message.extend([3, 4, 192, 168, 1, 66, 255]);
    udp((from, 67), ("255.255.255.255", 68), &message)
}

#[test]
fn a_second_dhcp_server_is_seen_and_renewals_by_a_relay_are_not() {
    let mut bench = Bench::new(&[]);
    for _ in 0..50 {
        bench.frame(&dhcp([192, 168, 1, 1], "192.168.1.1", 2));
        bench.frame(&dhcp([192, 168, 1, 1], "192.168.2.254", 5));
        bench.frame(&dhcp([192, 168, 1, 66], "192.168.1.66", 6)); // a refusal offers nothing
        bench.wait(10 * SECOND);
    }
    assert_eq!(bench.starts(), []);
    bench.frame(&dhcp([192, 168, 1, 66], "192.168.1.66", 2));
    assert_eq!(bench.starts(), [Kind::RogueDhcp]);
}

#[test]
fn of_listed_servers_every_one_may_answer_and_no_other() {
    let mut bench = Bench::new(&[("detectors.rogue.dhcp.servers", "192.168.1.1, 192.168.1.3")]);
    bench.frame(&dhcp([192, 168, 1, 3], "192.168.1.3", 2));
    bench.frame(&dhcp([192, 168, 1, 1], "192.168.1.1", 2));
    assert_eq!(bench.starts(), []);
    bench.frame(&dhcp([192, 168, 1, 66], "192.168.1.66", 5));
    assert_eq!(bench.starts(), [Kind::RogueDhcp]);
}

#[test]
fn a_second_router_that_advertises_itself_is_seen_unless_it_is_listed() {
    let router = |from: &str| {
        let mut body = vec![134, 0, 0, 0, 64, 0, 7, 8];
        body.extend([0; 8]);
        body.extend([1, 1, 2, 0, 0, 0, 0, 1]);
        ethernet(1, 0xff, 0x86dd, &ip_packet(from, "ff02::1", 58, &body))
    };
    for (listed, expected) in [("", vec![Kind::RogueRouter]), ("fe80::1,fe80::2", vec![])] {
        let mut bench = Bench::new(&[("detectors.rogue.router.routers", listed)]);
        for _ in 0..5 {
            bench.frame(&router("fe80::1"));
            bench.wait(10 * SECOND);
        }
        assert_eq!(bench.starts(), []);
        bench.frame(&router("fe80::2"));
        assert_eq!(bench.starts(), expected, "{listed}");
    }
}
