//! One number bounds the inspector: whoever sends, and whatever, the process grows by no more than that.
//!
//! One test after another, in one function: they measure the process.

mod common;

use common::*;

const MEMORY_BYTES: usize = 8 << 20;
/// What the number does not include: tables of thresholds and hosts (their files say 3.5 MiB), and the allocator.
const BESIDES_BYTES: usize = 5 << 20;

const ROUNDS: u32 = 5000;
const RULES: &str = "alert http any any -> any any (http.uri; content:\"evil\"; sid:1;)\n\
    alert http any any -> any any (http.host; content:\"a\"; http.request_body; content:\"zz\"; sid:2;)\n\
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

/// Send `attack` again and again; return how much was refused for it. The process may grow by the number, over all attacks.
fn refused(name: &str, start: usize, settings: &[(&str, &str)], mut attack: impl FnMut(&mut Wire, &mut Random)) -> u64 {
    let mut wire = Wire::with_memory(RULES, settings, MEMORY_BYTES);
    let ring = wire.inspector.ring_bytes();
    let mut random = Random(7);
    let mut most_held = 0;
    for _ in 0..ROUNDS {
        attack(&mut wire, &mut random);
        most_held = most_held.max(wire.inspector.live().1);
    }
    let grown = resident_bytes().saturating_sub(start);
    let most = MEMORY_BYTES - ring + BESIDES_BYTES;
    assert!(most_held <= wire.counter("memory.stream_bytes") as usize, "{name}: {most_held} bytes were held");
    let counters = ["flow.end.reason.forced", "memory.refused", "memory.fragments_refused", "output.refused"];
    let refused = counters.iter().map(|counter| wire.counter(counter)).sum();
    println!("{name}: {} of {} KiB, {refused} refused", grown >> 10, most >> 10);
    assert!(grown <= most, "{name}: grew by {grown} bytes, {most} are allowed");
    assert!(wire.inspector.live().0 <= wire.counter("memory.flow_slots") as usize);
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
    // code and tables that are used for the first time are no growth
    for kind in 0..3 {
        let mut wire = Wire::new(RULES, &[]);
        let mut connection = Connection::open(&mut wire);
        connection.say(&mut wire, 0, b"GET /evil HTTP/1.1\r\nHost: a\r\n\r\n");
        wire.frame(&udp(CLIENT, (SERVER.0, 53), &dns_query(kind, &["a.b"])));
        wire.finish();
    }
    let start = resident_bytes();
    assert!(
        refused("SYN", start, &[], |wire, random| {
            for _ in 0..10 {
                wire.frame(&tcp(source(random), SERVER, SYN, 1, 0, b""));
            }
        }) > 0
    );
    assert!(
        refused("UDP", start, &[], |wire, random| {
            for _ in 0..5 {
                wire.frame(&udp(source(random), SERVER, b"xyz"));
            }
        }) > 0
    );
    assert!(
        refused("DNS", start, &[], |wire, random| {
            wire.frame(&udp(source(random), (SERVER.0, 53), &dns_query(1, &["a.example.org", "b.example.org"])));
        }) > 0
    );
    assert!(
        refused("fragments", start, &[], |wire, random| {
            let (from, _) = source(random);
            let (id, place) = (random.next() as u16, random.below(8000) as u16);
            for offset in [1, place + 2] {
                wire.frame(&ethernet(0x0800, &ipv4_part(from, SERVER.0, 17, id, 0x2000 | offset, &[1; 8])));
            }
        }) > 0
    );
    assert!(
        refused("open requests", start, &[], |wire, random| {
            let mut connection = Connection::new(source(random), SERVER);
            connection.shake(wire);
            connection.say(wire, 0, b"POST /evil HTTP/1.1\r\nHost: abc\r\nContent-Length: 100000\r\n\r\nbody");
        }) > 0
    );
    assert!(
        refused("endless headers", start, &[], |wire, random| {
            let mut connection = Connection::new(source(random), SERVER);
            connection.shake(wire);
            connection.say(wire, 0, &[&b"GET / HTTP/1.1\r\nA: "[..], &[b'a'; 1300]].concat());
        }) > 0
    );
    assert!(
        refused("pipelined requests", start, &[], |wire, random| {
            let mut connection = Connection::new(source(random), SERVER);
            connection.shake(wire);
            connection.say(wire, 0, &b"GET /evil HTTP/1.1\r\nHost: a\r\n\r\n".repeat(30));
        }) > 0
    );
    assert!(
        refused("single bytes between holes", start, &[], |wire, random| {
            // as many as a stream takes: the cost of each is some sixty times its byte
            if random.below(5) == 0 {
                holes(wire, random, 250, b"x");
            }
        }) > 0
    );
    assert!(
        refused("large segments between holes", start, &[], |wire, random| holes(wire, random, 2, &[b'z'; 1400])) > 0
    );
    let shown = [("outputs.eve-log.types.alert.payload", "yes"), ("stream.reassembly.toserver-chunk-size", "1")];
    assert!(
        refused("what alerts show", start, &shown, |wire, random| {
            let mut connection = Connection::new(source(random), SERVER);
            connection.shake(wire);
            connection.say(wire, 0, &[b'x'; 1400]);
            wire.frame(&connection.at(0, 0, b"-"));
        }) > 0
    );
}
