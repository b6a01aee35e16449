//! Datagrams made by hand.

use super::*;

fn message(operation: u8, options: &[u8]) -> Vec<u8> {
    let mut data = vec![operation, 1, 6, 0, 0, 0, 0x12, 0x34];
    data.extend([0; 4]);
    data.extend([[0, 0, 0, 0], [192, 0, 2, 7], [192, 0, 2, 1], [0, 0, 0, 0]].concat());
    data.extend([2, 0, 0, 0, 0, 9]);
    data.extend([0; 10 + 64 + 128]);
    data.extend(COOKIE.to_be_bytes());
    data.extend(options);
    data
}

const ACK: &[u8] = b"\x35\x01\x05\x33\x04\0\0\x0e\x10\x3a\x04\0\0\x07\x08\x0c\x03cam\x03\x04\xc0\0\x02\x01\xff";

fn parsed(data: &[u8], extended: &str) -> Box<dyn Parser> {
    let mut settings = Settings::default();
    settings.set("outputs.eve-log.types.dhcp.extended", extended);
    let mut parser = (PROTOCOL.parser)(&settings, Transport::Udp);
    assert_eq!(parser.parse(Way::ToClient, data, false), Ok(data.len()));
    parser
}

fn written(parser: &dyn Parser) -> String {
    let mut out = String::new();
    if let Some(transaction) = parser.transaction(0) {
        transaction.log(Some(1), &mut Json::inside(&mut out, false));
    }
    out
}

#[test]
fn an_acknowledgement_maps_an_address_to_hardware() {
    let parser = parsed(&message(2, ACK), "no");
    let mapping = r#""dhcp":{"type":"reply","id":4660,"client_mac":"02:00:00:00:00:09","assigned_ip":"192.0.2.7","#;
    let text = written(parser.as_ref());
    assert!(text.starts_with(mapping) && text.contains(r#""dhcp_type":"ack","lease_time":3600"#), "{text}");
    assert!(!text.contains("routers"), "{text}");
    let Some(transaction) = parser.transaction(0) else { panic!("no message") };
    assert_eq!(transaction.number(0, Way::ToClient, 0), Some(3600));
    assert_eq!(transaction.number(1, Way::ToClient, 0), None);
    assert_eq!(transaction.number(2, Way::ToClient, 0), Some(1800));
    assert_eq!([0, 1].map(|record| transaction.is_logged(record)), [false, true]);
    let text = written(parsed(&message(2, ACK), "yes").as_ref());
    assert!(text.contains(r#""next_server_ip":"192.0.2.1""#) && text.contains(r#""routers":["192.0.2.1"]"#), "{text}");
}

#[test]
fn faults_are_events_and_nothing_panics() {
    let events = |options: &[u8]| {
        let parser = parsed(&message(1, options), "yes");
        parser.transaction(0).map(|message| message.events().to_vec()).unwrap_or_default()
    };
    assert_eq!(events(ACK), []);
    assert_eq!(events(b"\x35\x09\x05"), [event::TRUNCATED_OPTIONS]);
    assert_eq!(events(b"\x35\0\xff"), [event::MALFORMED_OPTIONS]);
    let whole = message(2, ACK);
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bent = whole.clone();
            bent[at] = value;
            let _ = written(parsed(&bent, "yes").as_ref());
            let _ = written(parsed(&bent[..at], "yes").as_ref());
        }
    }
    assert!(parsed(&[whole, vec![1; 60_000]].concat(), "yes").heap_bytes() < 32 << 10);
}

#[test]
fn the_cookie_is_the_proof() {
    let whole = message(1, ACK);
    let start = |data| Start { data, way: Way::ToServer, transport: Transport::Udp, is_usual_port: false };
    assert_eq!(probe(&start(&whole)), Probe::Yes);
    assert_eq!(probe(&start(&whole[..HEADER_BYTES - 1])), Probe::No);
}
