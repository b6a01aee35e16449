//! One number bounds the inspector: whoever sends, and whatever, the process grows by no more than that.
//!
//! One test after another, in one function: they measure the process.

mod common;

use common::*;

const MEMORY_BYTES: usize = 8 << 20;
/// What the number does not include: tables of thresholds and hosts (their files say 3.5 MiB), and the allocator.
const BESIDES_BYTES: usize = 5 << 20;

const RULES: &str = "alert http any any -> any any (http.uri; content:\"evil\"; sid:1;)\n\
    alert http any any -> any any (http.host; content:\"a\"; http.stat_code; content:\"404\"; sid:2;)\n\
    alert tcp any any -> any any (content:\"x\"; threshold:type limit, track by_src, count 1, seconds 60; sid:3;)\n\
    alert udp any any -> any any (content:\"y\"; xbits:set,seen,track ip_src,expire 600; sid:4;)";

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or(0) * 1024
}

fn source(random: &mut Random) -> End {
    let word = random.next();
    ((word as u32 | 1).to_be_bytes(), (word >> 32) as u16)
}

/// Packets of `attack`, until the process cannot grow any more; then what it grew by, and how many flows were ended.
fn grown(name: &str, settings: &[(&str, &str)], mut attack: impl FnMut(&mut Wire, &mut Random)) -> u64 {
    let before = resident_bytes();
    let mut wire = Wire::with_memory(RULES, settings, MEMORY_BYTES);
    let ring = wire.inspector.ring_bytes();
    let mut random = Random(7);
    let mut halfway = 0;
    for round in 0..20_000 {
        attack(&mut wire, &mut random);
        if round == 10_000 {
            halfway = resident_bytes();
        }
    }
    let after = resident_bytes();
    let most = MEMORY_BYTES - ring + BESIDES_BYTES;
    let grown = after.saturating_sub(before);
    assert!(grown <= most, "{name}: grew by {grown} bytes, {most} are allowed");
    assert!(after <= halfway.max(before) + (1 << 20), "{name}: still growing: {halfway} to {after}");
    let (_, held, _) = wire.inspector.live();
    assert!(held <= wire.counter("memory.stream_bytes") as usize, "{name}: {held} bytes are held");
    let refused = ["flow.end.reason.forced", "memory.refused", "memory.fragments_refused", "output.refused"];
    let refused = refused.iter().map(|counter| wire.counter(counter)).sum();
    let alerts = wire.alerts().len();
    println!("{name}: {} KiB, {refused} refused, {alerts} alerts", grown >> 10);
    refused
}

/// Half a handshake, then segments that wait for bytes which never come.
fn holes(wire: &mut Wire, random: &mut Random, segments: u32, bytes: &[u8]) {
    let connection = &mut Connection::new(source(random), SERVER);
    connection.shake(wire);
    for number in 1..=segments {
        wire.frame(&connection.at(0, number * 2 + number * bytes.len() as u32, bytes));
    }
}

#[test]
fn the_process_stays_within_its_number() {
    assert!(
        grown("SYN", &[], |wire, random| {
            for _ in 0..10 {
                wire.frame(&tcp(source(random), SERVER, SYN, 1, 0, b""));
            }
        }) > 0
    );
    assert!(
        grown("UDP", &[], |wire, random| {
            for _ in 0..5 {
                wire.frame(&udp(source(random), SERVER, b"xyz"));
            }
        }) > 0
    );
    assert!(
        grown("DNS", &[], |wire, random| {
            wire.frame(&udp(source(random), (SERVER.0, 53), &dns_query(1, &["a.example.org", "b.example.org"])));
        }) > 0
    );
    assert!(
        grown("fragments", &[], |wire, random| {
            let (from, _) = source(random);
            let (id, place) = (random.next() as u16, random.below(8000) as u16);
            for offset in [1, place + 2] {
                wire.frame(&ethernet(0x0800, &ipv4_part(from, SERVER.0, 17, id, 0x2000 | offset, &[1; 8])));
            }
        }) > 0
    );
    assert!(
        grown("open requests", &[], |wire, random| {
            let mut connection = Connection::new(source(random), SERVER);
            connection.shake(wire);
            connection.say(wire, 0, b"POST /evil HTTP/1.1\r\nHost: abc\r\nContent-Length: 100000\r\n\r\nbody");
        }) > 0
    );
    assert!(
        grown("endless headers", &[], |wire, random| {
            let mut connection = Connection::new(source(random), SERVER);
            connection.shake(wire);
            connection.say(wire, 0, &[&b"GET / HTTP/1.1\r\nA: "[..], &[b'a'; 1300]].concat());
        }) > 0
    );
    assert!(
        grown("pipelined requests", &[], |wire, random| {
            let mut connection = Connection::new(source(random), SERVER);
            connection.shake(wire);
            connection.say(wire, 0, &b"GET /evil HTTP/1.1\r\nHost: a\r\n\r\n".repeat(30));
        }) > 0
    );
    assert!(grown("single bytes between holes", &[], |wire, random| holes(wire, random, 6, b"x")) > 0);
    assert!(grown("large segments between holes", &[], |wire, random| holes(wire, random, 2, &[b'z'; 1400])) > 0);
    let shown = [("outputs.eve-log.types.alert.payload", "yes"), ("stream.reassembly.toserver-chunk-size", "1")];
    assert!(
        grown("what alerts show", &shown, |wire, random| {
            let mut connection = Connection::new(source(random), SERVER);
            connection.shake(wire);
            connection.say(wire, 0, &[b'x'; 1400]);
            wire.frame(&connection.at(0, 0, b"-"));
        }) > 0
    );
}
