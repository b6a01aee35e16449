//! Passwords that are tried, web servers that are kept waiting, names that carry data.

use protocols::{PROTOCOLS, Parser, Transport, Way};

use super::*;
use flag::{ACK, PSH, SYN};

const ATTACKER: &str = "198.51.100.7";
const SERVER: &str = "192.168.1.2";

#[test]
fn many_short_logins_are_seen_and_a_few_or_long_ones_are_not() {
    // (connections, bytes that the server sends, what is found)
    let rows = [(15, 2000, vec![Kind::BruteForce]), (9, 2000, vec![]), (60, 40_000, vec![])];
    for (connections, bytes, expected) in rows {
        let mut bench = Bench::new(&[]);
        for number in 0..connections {
            session(&mut bench, (ATTACKER, 20_000 + number), (SERVER, 22), &[7; 1500], &vec![7; bytes]);
            bench.wait(100 * MILLI);
        }
        bench.wait(SECOND);
        assert_eq!(bench.starts(), expected, "{connections} of {bytes}");
        assert!(expected.is_empty() || bench.delay_us(Kind::BruteForce).is_some_and(|us| us < 2 * SECOND));
    }
}

#[test]
fn many_clients_behind_one_address_with_sessions_of_their_own_try_no_passwords() {
    let mut bench = Bench::new(&[]);
    for number in 0..40_u16 {
        let (client, server) = (("203.0.113.9", 30_000 + number), (SERVER, 22));
        bench.frame(&tcp(client, server, SYN, b""));
        bench.frame(&tcp(server, client, SYN | ACK, b""));
        for _ in 0..10 {
            bench.frame(&tcp(client, server, PSH | ACK, &[1; 600]));
            bench.frame(&tcp(server, client, PSH | ACK, &[1; 1200]));
        }
        bench.wait(SECOND);
    }
    // a broker's clients come and go by the dozen
    for number in 0..100_u16 {
        session(&mut bench, ("203.0.113.9", 40_000 + number), (SERVER, 1883), b"connect", b"ok");
    }
    bench.wait(60 * SECOND);
    assert_eq!(bench.starts(), []);
}

fn half_open(bench: &mut Bench, port: u16, request: &[u8]) {
    let (client, server) = ((ATTACKER, port), (SERVER, 80));
    bench.frame(&tcp(client, server, SYN, b""));
    bench.frame(&tcp(server, client, SYN | ACK, b""));
    bench.frame(&tcp(client, server, ACK, b""));
    bench.frame(&tcp(client, server, PSH | ACK, request));
}

#[test]
fn connections_that_never_finish_their_request_are_seen() {
    let rows: [(u16, &[u8], Vec<Kind>); 3] = [
        (60, b"GET / HTTP/1.1\r\nX-a: b\r\n", vec![Kind::Slowloris]),
        (39, b"GET / HTTP/1.1\r\nX-a: b\r\n", vec![]),
        // a slow server: the requests are there
        (60, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", vec![]),
    ];
    for (connections, request, expected) in rows {
        let mut bench = Bench::new(&[]);
        for number in 0..connections {
            half_open(&mut bench, 20_000 + number, request);
            bench.wait(5 * MILLI);
        }
        for _ in 0..5 {
            bench.wait(500 * MILLI);
            bench.frame(&tcp((ATTACKER, 20_000), (SERVER, 80), PSH | ACK, b"X-b: c\r\n"));
        }
        assert_eq!(bench.starts(), expected, "{connections}");
        assert!(expected.is_empty() || bench.delay_us(Kind::Slowloris).is_some_and(|us| us < 2 * SECOND));
    }
}

#[test]
fn a_proxy_with_many_idle_connections_starves_nobody() {
    let mut bench = Bench::new(&[]);
    for port in 20_000..20_500 {
        half_open(&mut bench, port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        bench.frame(&tcp((SERVER, 80), (ATTACKER, port), PSH | ACK, b"HTTP/1.1 200 OK\r\n"));
        bench.wait(10 * MILLI);
    }
    assert_eq!(bench.starts(), []);
}

struct Dns {
    parser: Box<dyn Parser>,
    protocol: usize,
    next: u64,
}

impl Dns {
    fn new() -> Dns {
        let protocol = PROTOCOLS.iter().position(|protocol| protocol.name == "dns").unwrap_or(usize::MAX);
        let parser = (PROTOCOLS[protocol].parser)(&Settings::default(), Transport::Udp);
        Dns { parser, protocol, next: 0 }
    }

    fn message(&mut self, bench: &mut Bench, way: Way, data: &[u8]) {
        let flow = FlowSeen {
            addresses: [address(SERVER), address("203.0.113.53")],
            ports: [30_000, 53],
            protocol: 17,
            ..FlowSeen::default()
        };
        assert_eq!(self.parser.parse(way, data, true), Ok(data.len()));
        let transaction = self.parser.transaction(self.next);
        assert!(transaction.is_some());
        if let Some(transaction) = transaction {
            bench.detectors.transaction(&flow, self.protocol, transaction, bench.now_us);
        }
        self.parser.remove(self.next);
        self.next += 1;
        bench.found.append(&mut bench.detectors.take());
    }

    fn question(name: &str, rrtype: u16, answer: &[u8]) -> Vec<u8> {
        let flags = if answer.is_empty() { 0x01 } else { 0x81 };
        let mut data = vec![0, 7, flags, 0, 0, 1, 0, u8::from(!answer.is_empty()), 0, 0, 0, 0];
        for label in name.split('.') {
            data.push(label.len() as u8);
            data.extend(label.as_bytes());
        }
        data.push(0);
        data.extend(rrtype.to_be_bytes());
        data.extend([0, 1]);
        if !answer.is_empty() {
            data.extend([0xc0, 12]);
            data.extend(rrtype.to_be_bytes());
            data.extend([0, 1, 0, 0, 0, 0]);
            data.extend((answer.len() as u16).to_be_bytes());
            data.extend(answer);
        }
        data
    }
}

/// Letters that no human chose.
fn random(seed: u64, length: usize) -> String {
    let key = SipKey([3, 4]);
    let letter =
        |at: usize| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[(key.hash(&[seed, at as u64]) % 32) as usize]);
    (0..length).map(letter).collect()
}

#[test]
fn data_in_names_is_seen_and_what_content_networks_do_is_not() {
    let rows: [(&str, u64, usize, Vec<Kind>); 4] = [
        ("tunnel", 45, 40, vec![Kind::DnsTunnel]),
        ("just below", 24, 40, vec![]),
        ("short names, as of reputation lists", 200, 12, vec![]),
        ("the same names again and again", 5, 40, vec![]),
    ];
    for (name, names, length, expected) in rows {
        let (mut bench, mut dns) = (Bench::new(&[]), Dns::new());
        for number in 0..200_u64 {
            let label = random(number % names, length);
            dns.message(&mut bench, Way::ToServer, &Dns::question(&format!("{label}.t.example.com"), 1, b""));
            bench.wait(30 * MILLI);
        }
        assert_eq!(bench.starts(), expected, "{name}");
        assert!(expected.is_empty() || bench.delay_us(Kind::DnsTunnel).is_some_and(|us| us < 2 * SECOND));
    }
}

#[test]
fn much_text_in_answers_to_names_that_change_is_seen() {
    for (changes, expected) in [(true, vec![Kind::DnsTunnel]), (false, vec![])] {
        let (mut bench, mut dns) = (Bench::new(&[]), Dns::new());
        let text = [[250_u8].as_slice(), &[b'x'; 250]].concat();
        for number in 0..80 {
            let name = format!("{}.example.net", random(if changes { number } else { 1 }, 8));
            dns.message(&mut bench, Way::ToServer, &Dns::question(&name, 16, b""));
            dns.message(&mut bench, Way::ToClient, &Dns::question(&name, 16, &text));
        }
        assert_eq!(bench.starts(), expected);
    }
}

/// Show a parser the messages of one flow and the detectors its transactions.
fn converse(bench: &mut Bench, name: &str, port: u16, messages: &[(Way, &[u8])]) {
    let Some(protocol) = PROTOCOLS.iter().position(|protocol| protocol.name == name) else { panic!("no {name}") };
    let flow = FlowSeen {
        addresses: [address(ATTACKER), address(SERVER)],
        ports: [30_000, port],
        protocol: 6,
        ..FlowSeen::default()
    };
    let mut parser = (PROTOCOLS[protocol].parser)(&Settings::default(), Transport::Tcp);
    for (way, data) in messages {
        assert!(parser.parse(*way, data, false).is_ok());
    }
    parser.finish();
    let (first, end) = parser.range();
    for transaction in (first..end).filter_map(|id| parser.transaction(id)) {
        bench.detectors.transaction(&flow, protocol, transaction, bench.now_us);
    }
    bench.found.append(&mut bench.detectors.take());
}

#[test]
fn what_protocols_say_about_logins_is_counted() {
    use Way::{ToClient, ToServer};
    let request: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let (no, yes): (&[u8], &[u8]) =
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let connect: &[u8] = b"\x10\x11\x00\x04MQTT\x04\xc2\x00\x3c\x00\x01a\x00\x00\x00\x00";
    type Row<'a> = (&'a str, u16, &'a [(Way, &'a [u8])], u32, Vec<Kind>);
    let rows: [Row<'_>; 6] = [
        ("http", 80, &[(ToServer, request), (ToClient, no)], 25, vec![Kind::BruteForce]),
        ("http", 80, &[(ToServer, request), (ToClient, no)], 19, vec![]),
        // a browser that is asked for a password before each page
        ("http", 80, &[(ToServer, request), (ToClient, no), (ToServer, request), (ToClient, yes)], 200, vec![]),
        ("mqtt", 1883, &[(ToServer, connect), (ToClient, b"\x20\x02\x00\x05")], 12, vec![Kind::BruteForce]),
        ("mqtt", 1883, &[(ToServer, connect), (ToClient, b"\x20\x02\x00\x00")], 100, vec![]),
        (
            "ftp",
            21,
            &[
                (ToClient, b"220 hello\r\n"),
                (ToServer, b"USER a\r\n"),
                (ToClient, b"331 go on\r\n"),
                (ToServer, b"PASS b\r\n"),
                (ToClient, b"530 no\r\n"),
            ],
            12,
            vec![Kind::BruteForce],
        ),
    ];
    for (name, port, messages, count, expected) in rows {
        let mut bench = Bench::new(&[]);
        for _ in 0..count {
            converse(&mut bench, name, port, messages);
            bench.wait(100 * MILLI);
        }
        assert_eq!(bench.starts(), expected, "{name} {count}");
    }
}

#[test]
fn functions_of_control_protocols_are_read_by_their_parsers() {
    let mut bench = Bench::new(&[]);
    let message = |function: u8| vec![0, 1, 0, 0, 0, 6, 1, function, 0, 1, 0, 1];
    converse(&mut bench, "modbus", 502, &[(Way::ToServer, &message(3))]);
    bench.wait(3700 * SECOND);
    converse(&mut bench, "modbus", 502, &[(Way::ToServer, &message(3))]);
    assert_eq!(bench.starts(), []);
    converse(&mut bench, "modbus", 502, &[(Way::ToServer, &message(6))]);
    assert_eq!(bench.starts(), [Kind::IcsNewFunction]);
    let evidence = bench.found.first().map(|finding| finding.evidence.clone()).unwrap_or_default();
    assert!(evidence.contains(&("function", crate::detectors::Value::text(b"6"))), "{evidence:?}");
}
