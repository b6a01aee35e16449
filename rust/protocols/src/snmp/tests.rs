//! Datagrams made by hand.

use super::*;

fn tlv(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag, body.len() as u8][..], body].concat()
}

fn pdu(kind: u8, error: u8) -> Vec<u8> {
    let name = tlv(6, &[0x2b, 6, 1, 2, 1, 1, 0x81, 0x48, 0]);
    let list = tlv(0x30, &tlv(0x30, &[name, tlv(5, &[])].concat()));
    tlv(0xa0 + kind, &[tlv(2, &[7]), tlv(2, &[error]), tlv(2, &[0]), list].concat())
}

fn v2c() -> Vec<u8> {
    tlv(0x30, &[tlv(2, &[1]), tlv(4, b"private"), pdu(2, 2)].concat())
}

fn v3(model: u8, is_encrypted: bool) -> Vec<u8> {
    let header = tlv(0x30, &[tlv(2, &[1]), tlv(2, &[0x05, 0xc0]), tlv(4, &[4]), tlv(2, &[model])].concat());
    let security = [tlv(4, b"engine"), tlv(2, &[1]), tlv(2, &[1]), tlv(4, b"admin"), tlv(4, b""), tlv(4, b"")].concat();
    let scoped = tlv(0x30, &[tlv(4, b"engine"), tlv(4, b""), pdu(0, 0)].concat());
    let scoped = if is_encrypted { tlv(4, &[9; 40]) } else { scoped };
    tlv(0x30, &[tlv(2, &[3]), header, tlv(4, &tlv(0x30, &security)), scoped].concat())
}

fn parsed(messages: &[Vec<u8>]) -> Box<dyn Parser> {
    let mut parser = (PROTOCOL.parser)(&Settings::default(), Transport::Udp);
    for message in messages {
        assert_eq!(parser.parse(Way::ToServer, message, false), Ok(message.len()));
    }
    parser
}

fn written(parser: &dyn Parser, id: u64) -> String {
    let mut out = String::new();
    if let Some(transaction) = parser.transaction(id) {
        transaction.log(None, &mut Json::inside(&mut out, false));
    }
    out
}

#[test]
fn community_and_user_are_seen() {
    let parser = parsed(&[v2c(), v3(3, false), v3(3, true)]);
    assert_eq!(
        written(parser.as_ref(), 0),
        r#""snmp":{"version":2,"pdu_type":"response","error":"NoSuchName","vars":["1.3.6.1.2.1.1.200.0"],"community":"private"}"#
    );
    assert_eq!(
        written(parser.as_ref(), 1),
        r#""snmp":{"version":3,"pdu_type":"get_request","vars":["1.3.6.1.2.1.1.200.0"],"usm":"admin"}"#
    );
    assert_eq!(written(parser.as_ref(), 2), r#""snmp":{"version":3,"pdu_type":"encrypted","usm":"admin"}"#);
    let Some(transaction) = parser.transaction(0) else { panic!("no message") };
    assert_eq!(transaction.number(number::VERSION, Way::ToServer, 0), Some(2));
    assert_eq!(transaction.number(number::PDU_TYPE, Way::ToServer, 0), Some(2));
    assert_eq!(transaction.number(number::PDU_TYPE, Way::ToClient, 0), None);
    assert_eq!(transaction.buffer(buffer::COMMUNITY, Way::ToServer, 0).map(|view| view.data), Some(&b"private"[..]));
}

#[test]
fn a_trap_tells_who_and_why() {
    let list = tlv(0x30, &[]);
    let parts = [tlv(6, &[0x2b, 6, 1]), tlv(0x40, &[192, 0, 2, 1]), tlv(2, &[2]), tlv(2, &[0]), tlv(0x43, &[1]), list];
    let parser = parsed(&[tlv(0x30, &[tlv(2, &[0]), tlv(4, b"public"), tlv(0xa4, &parts.concat())].concat())]);
    let text = written(parser.as_ref(), 0);
    assert!(text.contains(r#""trap_type":"linkDown","trap_oid":"1.3.6.1","trap_address":"192.0.2.1""#), "{text}");
}

#[test]
fn faults_are_events_and_nothing_panics() {
    let events = |messages: &[Vec<u8>], id| {
        parsed(messages).transaction(id).map(|message| message.events().to_vec()).unwrap_or_default()
    };
    assert_eq!(events(&[v2c()], 0), []);
    assert_eq!(events(&[v2c()[..12].to_vec()], 0), [event::MALFORMED_DATA]);
    assert_eq!(events(&[v3(9, true)], 0), [event::UNKNOWN_SECURITY_MODEL]);
    assert_eq!(events(&[v2c(), v3(3, true)], 1), [event::VERSION_MISMATCH]);
    for whole in [v2c(), v3(3, false)] {
        for at in 0..whole.len() {
            for value in 0..=255 {
                let mut bent = whole.clone();
                bent[at] = value;
                let parser = parsed(&[bent]);
                let _ = written(parser.as_ref(), 0);
                assert!(parser.heap_bytes() < 2048);
            }
        }
    }
}
