//! Messages made by hand, cut, looped and bent.

use super::*;
use crate::{Json, Parser, Transaction};

/// `www.a.org` asked for, answered with a CNAME and an address, and a SOA behind.
fn answer() -> Vec<u8> {
    let mut data = vec![0x12, 0x34, 0x81, 0x80, 0, 1, 0, 2, 0, 1, 0, 0];
    data.extend(b"\x03www\x01a\x03org\0\0\x01\0\x01");
    data.extend(b"\xc0\x0c\0\x05\0\x01\0\0\0\x0a\0\x04\x01b\xc0\x10");
    data.extend(b"\x01b\xc0\x10\0\x01\0\x01\0\0\0\x14\0\x04\xc0\0\x02\x01");
    data.extend(b"\xc0\x10\0\x06\0\x01\0\0\0\x1e\0\x1b\x02ns\xc0\x10\xc0\x0c");
    data.extend([0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5]);
    data
}

fn question() -> Vec<u8> {
    let mut data = vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    data.extend(b"\x03www\x01a\x03org\0\0\x01\0\x01");
    data
}

fn parser(protocol: &Protocol, transport: Transport) -> Box<dyn Parser> {
    (protocol.parser)(&Settings::default(), transport)
}

fn written(transaction: &dyn Transaction, record: Option<usize>) -> String {
    let mut out = String::new();
    transaction.log(record, &mut Json::inside(&mut out, false));
    out
}

fn names(transaction: &dyn Transaction, index: usize, way: Way) -> Vec<String> {
    (0..)
        .map_while(|nth| transaction.buffer(index, way, nth))
        .map(|view| String::from_utf8_lossy(view.data).into())
        .collect()
}

fn one(data: &[u8], way: Way) -> Box<dyn Parser> {
    let mut parser = parser(&DNS, Transport::Udp);
    assert_eq!(parser.parse(way, data, false), Ok(data.len()));
    parser
}

fn events(data: &[u8], way: Way) -> Vec<&'static str> {
    let parser = one(data, way);
    let transaction = parser.transaction(0).unwrap_or_else(|| unreachable!("one message is one transaction"));
    transaction.events().iter().filter_map(|&event| EVENTS.get(usize::from(event)).copied()).collect()
}

#[test]
fn names_are_seen_in_their_sections_and_in_their_own_way_only() {
    let parser = one(&answer(), Way::ToClient);
    let Some(transaction) = parser.transaction(0) else { panic!("no transaction") };
    assert_eq!(names(transaction, buffer::QUERIES, Way::ToClient), ["www.a.org"]);
    assert_eq!(names(transaction, buffer::ANSWERS, Way::ToClient), ["www.a.org", "b.a.org"]);
    assert_eq!(names(transaction, buffer::AUTHORITIES, Way::ToClient), ["a.org"]);
    let all = ["www.a.org", "www.a.org", "b.a.org", "a.org", "b.a.org", "ns.a.org"];
    assert_eq!(names(transaction, buffer::RESPONSE, Way::ToClient), all);
    assert!(names(transaction, buffer::QUERY, Way::ToServer).is_empty());
    let types: Vec<_> = (0..).map_while(|nth| transaction.number(number::RRTYPE, Way::ToClient, nth)).collect();
    assert_eq!(types, [5, 1]);
}

#[test]
fn a_query_is_dns_query_and_is_logged_once() {
    let parser = one(&question(), Way::ToServer);
    let Some(transaction) = parser.transaction(0) else { panic!("no transaction") };
    assert_eq!(names(transaction, buffer::QUERY, Way::ToServer), ["www.a.org"]);
    assert_eq!([transaction.is_logged(0), transaction.is_logged(1)], [true, false]);
    assert_eq!(
        written(transaction, Some(0)),
        r#""dns":{"version":3,"type":"request","tx_id":0,"id":4660,"flags":"100","rd":true,"opcode":0,"rcode":"NOERROR","queries":[{"rrname":"www.a.org","rrtype":"A"}]}"#
    );
}

#[test]
fn an_answer_is_logged_in_both_formats() {
    let answer = answer();
    let parser = one(&answer, Way::ToClient);
    let Some(transaction) = parser.transaction(0) else { panic!("no transaction") };
    let text = written(transaction, Some(1));
    for part in [
        r#""qr":true,"rd":true,"ra":true"#,
        r#"{"rrname":"www.a.org","rrtype":"CNAME","ttl":10,"rdata":"b.a.org"}"#,
        r#""grouped":{"A":["192.0.2.1"],"CNAME":["b.a.org"]}"#,
        r#""soa":{"mname":"ns.a.org","rname":"www.a.org","serial":1,"refresh":2,"retry":3,"expire":4,"minimum":5}"#,
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let mut settings = Settings::default();
    settings.set("outputs.eve-log.types.dns.version", "2");
    let mut parser = (DNS.parser)(&settings, Transport::Udp);
    assert_eq!(parser.parse(Way::ToClient, &answer, false), Ok(answer.len()));
    let text = parser.transaction(0).map(|transaction| written(transaction, Some(1))).unwrap_or_default();
    assert!(text.starts_with(r#""dns":{"version":2,"type":"answer","id":4660,"flags":"8180""#), "{text}");
    assert!(text.contains(r#""rrname":"www.a.org","rrtype":"A","opcode":0,"rcode":"NOERROR","answers":["#), "{text}");
}

#[test]
fn settings_choose_types_and_sides() {
    for (name, value, is_logged) in [
        ("types", "[aaaa, a]", true),
        ("types", "[aaaa, mx]", false),
        ("custom.0", "a", true),
        ("requests", "no", false),
        ("responses", "no", true),
    ] {
        let mut settings = Settings::default();
        settings.set(&format!("outputs.eve-log.types.dns.{name}"), value);
        let mut parser = (DNS.parser)(&settings, Transport::Udp);
        assert!(parser.parse(Way::ToServer, &question(), false).is_ok());
        assert_eq!(parser.transaction(0).map(|message| message.is_logged(0)), Some(is_logged), "{name}: {value}");
    }
}

#[test]
fn each_fault_has_its_event() {
    let bent = |at: usize, value: u8| {
        let mut data = question();
        data[at] = value;
        data
    };
    assert_eq!(events(&question()[..20], Way::ToServer), ["malformed_data"]);
    assert_eq!(events(&question(), Way::ToClient), ["not_response"]);
    assert_eq!(events(&answer(), Way::ToServer), ["not_request"]);
    assert_eq!(events(&bent(3, 0x40), Way::ToServer), ["z_flag_set"]);
    assert_eq!(events(&bent(2, 0x40), Way::ToServer), ["invalid_opcode"]);
    assert_eq!(events(&bent(11, 1), Way::ToServer), ["invalid_additionals"]);
    assert_eq!(events(&bent(9, 1), Way::ToServer), ["invalid_authorities"]);
    let mut looped = question();
    looped.splice(12..23, [1, b'a', 0xc0, 12]);
    assert_eq!(events(&looped, Way::ToServer), ["infinite_loop"]);
    let mut long = question();
    long.splice(12..12, std::iter::repeat_n([63_u8; 64], 20).flatten());
    assert_eq!(events(&long, Way::ToServer), ["name_too_long"]);
}

#[test]
fn a_stream_gives_the_same_wherever_it_is_cut() {
    let mut stream = Vec::new();
    for message in [question(), question()] {
        stream.extend((message.len() as u16).to_be_bytes());
        stream.extend(message);
    }
    for cut in 0..=stream.len() {
        let mut parser = parser(&DNS, Transport::Tcp);
        let read = parser.parse(Way::ToServer, &stream[..cut], false).unwrap_or_default();
        assert_eq!(parser.parse(Way::ToServer, &stream[read..], false), Ok(stream.len() - read));
        assert_eq!(parser.range(), (0, 2), "cut at {cut}");
    }
}

#[test]
fn a_stream_is_found_again_behind_a_gap() {
    let mut parser = parser(&DNS, Transport::Tcp);
    assert_eq!(parser.gap(Way::ToServer, 100), Ok(()));
    assert_eq!(parser.parse(Way::ToServer, &[0xff; 50], false), Ok(50));
    let message = question();
    let mut stream = (message.len() as u16).to_be_bytes().to_vec();
    stream.extend(&message);
    assert_eq!(parser.parse(Way::ToServer, &stream, false), Ok(stream.len()));
    assert_eq!(parser.range(), (0, 1));
}

#[test]
fn multicast_answers_may_go_either_way() {
    for (protocol, name) in [(&MDNS, "mdns"), (&LLMNR, "llmnr")] {
        let mut parser = parser(protocol, Transport::Udp);
        assert_eq!(parser.parse(Way::ToServer, &answer(), false), Ok(answer().len()));
        let Some(transaction) = parser.transaction(0) else { panic!("no transaction") };
        assert!(transaction.events().is_empty());
        assert_eq!(names(transaction, buffer::RESPONSE, Way::ToServer).len(), 6);
        let text = written(transaction, Some(0));
        assert!(text.starts_with(&format!(r#""{name}":{{"type":"response","id":4660"#)), "{text}");
        assert!(text.contains(r#"{"rrname":"b.a.org","rrtype":"a","a":"192.0.2.1"}"#), "{text}");
    }
}

#[test]
fn probes_know_their_own() {
    let start = |data, is_usual_port, way| Start { data, way, transport: Transport::Udp, is_usual_port };
    let (question, answer) = (question(), answer());
    assert_eq!((DNS.probe)(&start(&question, true, Way::ToServer)), Probe::Yes);
    assert_eq!((DNS.probe)(&start(&answer, true, Way::ToServer)), Probe::YesReversed);
    assert_eq!((DNS.probe)(&start(&question, false, Way::ToServer)), Probe::Yes);
    assert_eq!((DNS.probe)(&start(&question[..25], false, Way::ToServer)), Probe::No);
    assert_eq!((DNS.probe)(&start(b"GET / HTTP/1.1\r\n", true, Way::ToServer)), Probe::No);
    let stream = |data| Start { data, way: Way::ToServer, transport: Transport::Tcp, is_usual_port: false };
    let framed = [&(question.len() as u16).to_be_bytes()[..], &question].concat();
    assert_eq!((DNS.probe)(&stream(&framed)), Probe::Yes);
    assert_eq!((DNS.probe)(&stream(&framed[..20])), Probe::More);
    assert_eq!((DNS.probe)(&stream(b"GET / HTTP/1.1\r\n")), Probe::No, "it must not wait for 18 thousand bytes");
    let usual = |data| Start { is_usual_port: true, ..stream(data) };
    assert_eq!((DNS.probe)(&usual(&framed[..20])), Probe::Yes);
    assert_eq!((DNS.probe)(&usual(b"GET / HTTP/1.1\r\n")), Probe::No);
    assert_eq!((MDNS.probe)(&start(&answer, true, Way::ToServer)), Probe::Yes);
    assert_eq!((MDNS.probe)(&start(&answer, false, Way::ToServer)), Probe::No);
}

#[test]
fn bent_messages_never_panic_and_stay_small() {
    let mut random = 0x9e37_79b9_u32;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random
    };
    let mut parser = parser(&DNS, Transport::Udp);
    for round in 0..20_000_u64 {
        let mut data = answer();
        for _ in 0..=next() % 6 {
            let at = next() as usize % data.len();
            data[at] = next() as u8;
        }
        data.truncate(next() as usize % (data.len() + 1));
        assert_eq!(parser.parse(Way::ToClient, &data, false), Ok(data.len()));
        let text = parser.transaction(round).map(|transaction| written(transaction, None).len());
        assert!(text.is_some());
        assert!(parser.heap_bytes() < 64 << 10, "{}", parser.heap_bytes());
        parser.remove(round);
    }
    assert!(parser.heap_bytes() < 1024);
}

#[test]
fn a_message_of_pointers_costs_a_bounded_amount() {
    let mut data = vec![0, 0, 0x81, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
    data.extend(
        std::iter::repeat_n(*b"\x3faaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 15).flatten(),
    );
    while data.len() + 12 < 60_000 {
        data.extend([1, b'x', 0xc0, 12, 0, 99, 0, 1, 0, 0, 0, 0, 0, 0]);
    }
    let parser = one(&data, Way::ToClient);
    assert!(parser.heap_bytes() < 1 << 20);
}
