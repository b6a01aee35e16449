//! The inspector as its documentation promises it, a row for each thing that networks and attackers do.

mod common;

use common::*;

const NONE: [u64; 0] = [];

const EVIL: &str =
    "alert tcp any any -> any any (msg:\"x\"; flow:established,to_server; content:\"evil-word\"; sid:1;)";
const EVIL_UDP: &str = "alert udp any any -> any any (content:\"evil-word\"; sid:2;)";
const IPS: (&str, &str) = ("simulate-ips", "yes");

fn flows(wire: &mut Wire) -> Vec<serde_json::Value> {
    wire.finish();
    wire.of_type("flow")
}

#[test]
fn a_word_is_found_however_its_stream_is_cut_and_ordered() {
    let word = b"..evil-word..";
    for cut in 1..word.len() {
        for is_swapped in [false, true] {
            let mut wire = Wire::new(EVIL, &[]);
            let mut connection = Connection::open(&mut wire);
            let mut parts = [connection.at(0, 0, &word[..cut]), connection.at(0, cut as u32, &word[cut..])];
            if is_swapped {
                parts.reverse();
            }
            wire.frames(&parts);
            let frame = connection.confirm(0, word.len() as u32);
            wire.frame(&frame);
            connection.close(&mut wire);
            assert_eq!(wire.all_alerts(), [1], "cut at {cut}, swapped: {is_swapped}");
        }
    }
}

#[test]
fn bytes_sent_twice_make_one_alert() {
    let mut wire = Wire::new(EVIL, &[]);
    let mut connection = Connection::open(&mut wire);
    for _ in 0..3 {
        wire.frame(&connection.at(0, 0, b"evil-word"));
    }
    let frame = connection.confirm(0, 9);
    wire.frame(&frame);
    wire.frame(&connection.packet(0, PSH | ACK, connection.next[0] - 9, connection.next[1], b"evil-word"));
    assert_eq!(wire.all_alerts(), [1]);
}

#[test]
fn without_a_handshake_a_connection_is_followed_if_so_set() {
    for (settings, expected) in [(&[][..], 0), (&[("stream.midstream", "true")][..], 1)] {
        let mut wire = Wire::new(EVIL, settings);
        let mut connection = Connection::new(CLIENT, SERVER);
        connection.say(&mut wire, 0, b"..evil-");
        connection.say(&mut wire, 0, b"word..");
        assert_eq!(wire.all_alerts().len(), expected, "{settings:?}");
        assert_eq!(wire.counter("tcp.midstream_pickups"), expected as u64);
    }
}

#[test]
fn what_is_missing_joins_nothing_and_hides_nothing() {
    let mut wire = Wire::new(EVIL, &[]);
    let mut connection = Connection::open(&mut wire);
    wire.frame(&connection.at(0, 0, b"..evil"));
    wire.frame(&connection.at(0, 10, b"-word..")); // four bytes were lost
    let frame = connection.confirm(0, 17);
    wire.frame(&frame);
    connection.say(&mut wire, 0, b"more");
    assert_eq!(wire.all_alerts(), NONE);

    let mut wire = Wire::new(EVIL, &[]);
    let mut connection = Connection::open(&mut wire);
    wire.frame(&connection.at(0, 0, b"some bytes"));
    wire.frame(&connection.at(0, 20, b"evil-word"));
    let frame = connection.confirm(0, 29);
    wire.frame(&frame);
    connection.close(&mut wire);
    assert_eq!(wire.all_alerts(), [1]);
}

#[test]
fn what_was_never_confirmed_is_looked_at_when_the_flow_ends() {
    let mut wire = Wire::new(EVIL, &[]);
    let connection = Connection::open(&mut wire);
    wire.frame(&connection.at(0, 0, b"evil-word"));
    assert_eq!(wire.all_alerts(), [1]);
}

#[test]
fn segments_that_a_receiver_drops_are_not_inspected_as_its_stream() {
    let mut wire = Wire::new(EVIL, &[]);
    let mut connection = Connection::open(&mut wire);
    wire.frame(&connection.at(0, 0, b"..evil-"));
    wire.frame(&connection.at(0, 1 << 30, b"XXXX")); // out of the window
    wire.frame(&connection.at(0, 7, b"word.."));
    let frame = connection.confirm(0, 13);
    wire.frame(&frame);
    assert_eq!(wire.all_alerts(), [1]);
    assert_eq!(wire.counter("stream.est_packet_out_of_window"), 1);
}

/// Cut a datagram into fragments of 8 bytes.
fn fragments(data: &[u8], id: u16) -> Vec<Vec<u8>> {
    let datagram = udp_datagram(4000, 4001, data);
    let count = datagram.chunks(8).len();
    let part = |(number, part): (usize, &[u8])| {
        let more = if number + 1 < count { 0x2000 } else { 0 };
        ethernet(0x0800, &ipv4_part([10, 0, 0, 1], [10, 0, 0, 2], 17, id, more | number as u16, part))
    };
    datagram.chunks(8).enumerate().map(part).collect()
}

#[test]
fn fragments_in_any_order_are_one_packet() {
    let mut random = Random(99);
    for round in 0..50 {
        let mut wire = Wire::new(EVIL_UDP, &[]);
        let mut parts = fragments(b"12345evil-word67", round);
        for place in (1..parts.len()).rev() {
            parts.swap(place, random.below(place as u64 + 1) as usize);
        }
        wire.frames(&parts);
        assert_eq!(wire.all_alerts(), [2]);
        assert_eq!(wire.counter("defrag.ipv4.fragments"), parts.len() as u64);
        assert_eq!(wire.counter("defrag.ipv4.reassembled"), 1);
        assert_eq!(wire.inspector.live(), (0, 0, 0));
    }
}

#[test]
fn fragments_of_which_one_is_missing_are_forgotten_in_time() {
    let mut wire = Wire::new(EVIL_UDP, &[]);
    let parts = fragments(b"12345evil-word67", 1);
    wire.frames(&parts[..parts.len() - 1]);
    assert_eq!(wire.inspector.live().2, 1);
    wire.wait_s(90);
    wire.frame(&parts[parts.len() - 1]);
    assert_eq!(wire.all_alerts(), NONE);
}

#[test]
fn every_tunnel_is_looked_into() {
    let inner = ipv4([10, 1, 0, 1], [10, 1, 0, 2], 17, &udp_datagram(9, 10, b"evil-word"));
    let inner6 = ipv6(1, 2, 17, &udp_datagram(9, 10, b"evil-word"));
    let outer = |protocol, body: &[u8]| ethernet(0x0800, &ipv4([192, 0, 2, 1], [192, 0, 2, 2], protocol, body));
    let framed = ethernet(0x0800, &inner);
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("IP in IP", outer(4, &inner)),
        ("IPv6 in IPv4", outer(41, &inner6)),
        ("GRE", outer(47, &[&[0, 0, 8, 0][..], &inner].concat())),
        ("GRE with key", outer(47, &[&[0x20, 0, 8, 0, 0, 0, 0, 5][..], &inner].concat())),
        ("IPv4 in IPv6", ethernet(0x86dd, &ipv6(3, 4, 4, &inner))),
        ("VXLAN", outer(17, &udp_datagram(5000, 4789, &[&[8, 0, 0, 0, 0, 0, 7, 0][..], &framed].concat()))),
        ("Geneve", outer(17, &udp_datagram(5000, 6081, &[&[0, 0, 0x65, 0x58, 0, 0, 7, 0][..], &framed].concat()))),
        ("Teredo", outer(17, &udp_datagram(5000, 3544, &inner6))),
        ("a VLAN tag", ethernet(0x8100, &[&[0, 5, 8, 0][..], &inner].concat())),
        ("two VLAN tags", ethernet(0x88a8, &[&[0, 5, 0x81, 0, 0, 6, 8, 0][..], &inner].concat())),
    ];
    let rule = "alert udp any any -> any 10 (content:\"evil-word\"; startswith; sid:3;)";
    for (name, frame) in rows {
        let mut wire = Wire::new(rule, &[]);
        wire.frame(&frame);
        assert_eq!(wire.all_alerts(), [3], "{name}");
    }
}

#[test]
fn tunnels_in_tunnels_end_somewhere() {
    let mut packet = ipv4([10, 1, 0, 1], [10, 1, 0, 2], 17, &udp_datagram(9, 10, b"evil-word"));
    for _ in 0..200 {
        packet = ipv4([10, 1, 0, 1], [10, 1, 0, 2], 4, &packet);
    }
    let mut wire = Wire::new(EVIL_UDP, &[]);
    wire.frame(&ethernet(0x0800, &packet));
    assert!(wire.inspector.live().0 < 10);
    assert_eq!(wire.counter("decoder.pkts"), 1);
}

#[test]
fn each_end_of_a_flow_has_its_reason() {
    let mut wire = Wire::new("", &[]);
    let mut connection = Connection::open(&mut wire);
    connection.say(&mut wire, 0, b"abc");
    wire.wait_s(700);
    let ended = wire.of_type("flow");
    assert_eq!((ended.len(), &ended[0]["flow"]["reason"]), (1, &"timeout".into()));
    assert_eq!(ended[0]["flow"]["state"], "established");
    assert_eq!(wire.inspector.live().0, 0);

    let mut wire = Wire::new("", &[]);
    let mut connection = Connection::open(&mut wire);
    connection.close(&mut wire);
    connection.next = [90_000, 95_000];
    connection.shake(&mut wire);
    let ended = flows(&mut wire);
    let told: Vec<_> = ended.iter().map(|event| (&event["flow"]["reason"], &event["flow"]["state"])).collect();
    assert_eq!(told, [(&"tcp_reuse".into(), &"closed".into()), (&"shutdown".into(), &"established".into())]);
    assert_eq!(ended[0]["tcp"]["state"], "closed");
}

#[test]
fn a_flow_record_counts_both_ways() {
    let mut wire = Wire::new("", &[]);
    let mut connection = Connection::open(&mut wire);
    connection.say(&mut wire, 0, b"abc");
    connection.say(&mut wire, 1, b"defgh");
    connection.close(&mut wire);
    let ended = flows(&mut wire);
    let flow = &ended[0]["flow"];
    assert_eq!((&flow["pkts_toserver"], &flow["pkts_toclient"]), (&6.into(), &4.into()));
    let bytes = |packets: u64, data: u64| serde_json::Value::from(packets * 54 + data);
    assert_eq!((&flow["bytes_toserver"], &flow["bytes_toclient"]), (&bytes(6, 3), &bytes(4, 5)));
    assert_eq!((&ended[0]["src_ip"], &ended[0]["dest_port"]), (&"198.51.100.7".into(), &80.into()));
}

#[test]
fn bytes_of_no_protocol_and_broken_ones_end_quietly() {
    let rows: [&[u8]; 4] = [
        b"\x00\x01\x02\x03 nothing that anyone speaks",
        b"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"\x16\x03\x01\xff\xff\x01\x00\x00\x00broken",
        b"SSH-2.0-x\r\n\xff\xff\xff\xff\xff\xff\xff",
    ];
    for bytes in rows {
        let mut wire = Wire::new(EVIL, &[]);
        let mut connection = Connection::open(&mut wire);
        connection.say(&mut wire, 0, bytes);
        connection.say(&mut wire, 1, bytes);
        connection.say(&mut wire, 0, b"....evil-word....");
        connection.close(&mut wire);
        assert_eq!(wire.all_alerts(), [1], "a parser that gave up blinds no rule about the stream");
        assert_eq!(wire.inspector.live(), (0, 0, 0));
    }
}

#[test]
fn exception_policies_do_what_they_say() {
    // who fails, which policy, is the device inline: reason of the drop, alerts on what follows
    let at_offset = ("simulate-applayer-error-at-offset-ts", "1");
    let no_memory = ("simulate-packet-tcp-reassembly-memcap", "4");
    type Row<'a> = (&'a [(&'a str, &'a str)], &'a str, usize);
    let rows: [Row<'_>; 8] = [
        (&[IPS, at_offset, ("app-layer.error-policy", "drop-flow")], "applayer error", 0),
        (&[IPS, at_offset, ("app-layer.error-policy", "pass-flow")], "", 0),
        (&[IPS, at_offset, ("app-layer.error-policy", "bypass")], "", 0),
        (&[IPS, at_offset, ("app-layer.error-policy", "ignore")], "", 1),
        (&[at_offset, ("app-layer.error-policy", "ignore")], "", 1),
        (&[IPS, no_memory, ("stream.reassembly.memcap-policy", "drop-flow")], "stream reassembly", 0),
        (&[IPS, no_memory, ("stream.reassembly.memcap-policy", "pass-flow")], "", 0),
        (&[IPS, no_memory, ("stream.reassembly.memcap-policy", "ignore")], "", 1),
    ];
    for (settings, reason, alerts) in rows {
        let mut wire = Wire::new(EVIL, settings);
        let mut connection = Connection::open(&mut wire);
        connection.say(&mut wire, 0, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        connection.say(&mut wire, 0, b"GET /evil-word HTTP/1.1\r\nHost: a\r\n\r\n");
        connection.close(&mut wire);
        assert_eq!(wire.all_alerts().len(), alerts, "{settings:?}");
        let dropped = wire.of_type("drop");
        let told = dropped.first().map_or("", |event| event["drop"]["reason"].as_str().unwrap_or_default());
        assert_eq!(told, reason, "{settings:?}");
    }
}

#[test]
fn inline_a_connection_without_its_beginning_is_dropped_unless_allowed() {
    let rows: [(&[(&str, &str)], bool); 3] = [
        (&[IPS], true),
        (&[IPS, ("stream.midstream", "true")], false),
        (&[IPS, ("exception-policy", "ignore")], false),
    ];
    for (settings, is_dropped) in rows {
        let mut wire = Wire::new(EVIL, settings);
        let mut connection = Connection::new(CLIENT, SERVER);
        connection.say(&mut wire, 0, b"bytes");
        connection.say(&mut wire, 0, b"bytes");
        wire.finish();
        assert_eq!(wire.counter("ips.blocked") > 0, is_dropped, "{settings:?}");
    }
}

#[test]
fn a_flow_that_finds_no_room_is_counted_and_meets_its_policy() {
    let settings = [IPS, ("simulate-packet-flow-memcap", "1"), ("flow.memcap-policy", "drop-packet")];
    let mut wire = Wire::new(EVIL_UDP, &settings);
    wire.frame(&udp(CLIENT, SERVER, b"evil-word"));
    assert_eq!((wire.counter("flow.refused"), wire.counter("ips.blocked")), (1, 1));
    assert_eq!(wire.of_type("drop")[0]["drop"]["reason"], "flow memcap");
}

#[test]
fn a_full_table_gives_up_flows_that_nobody_answered_first() {
    let mut wire = Wire::with_memory(EVIL, &[], 2 << 20);
    let slots = wire.counter("memory.flow_slots") as usize;
    let mut kept = Connection::open(&mut wire);
    kept.say(&mut wire, 0, b"..evil-");
    for number in 0..slots as u32 * 3 {
        let source = (0x0a00_0000 + number).to_be_bytes();
        wire.frame(&tcp((source, 1025), SERVER, SYN, number, 0, b""));
        wire.read();
    }
    assert!(wire.inspector.live().0 <= slots);
    assert!(wire.counter("flow.end.reason.forced") as usize >= slots);
    kept.say(&mut wire, 0, b"word..");
    assert_eq!(wire.all_alerts(), [1], "who talks is not pushed out by who only knocks");
}

#[test]
fn lines_that_nobody_reads_are_refused_and_counted_and_alerts_have_room_of_their_own() {
    let mut wire = Wire::with_memory(EVIL_UDP, &[], 2 << 20);
    for number in 0..4000_u32 {
        let source = (0x0a00_0000 + number).to_be_bytes();
        wire.frame(&udp((source, 53), SERVER, &dns_query(number as u16, &["example.org"])));
    }
    assert!(wire.counter("output.refused") > 0);
    wire.frame(&udp(CLIENT, SERVER, b"evil-word"));
    assert_eq!(wire.alerts(), [2]);
}

#[test]
fn time_that_jumps_either_way_does_no_harm() {
    let mut wire = Wire::new(EVIL_UDP, &[]);
    for time_us in [0, u64::MAX, 1, u64::MAX - 5, 1_700_000_000_000_000, u64::MAX / 2, 7] {
        wire.now_us = time_us.saturating_sub(2000);
        wire.frame(&udp(CLIENT, SERVER, b"evil-word"));
        wire.inspector.tick(time_us);
        wire.read();
    }
    assert_eq!(wire.all_alerts(), [2; 7]);
}
