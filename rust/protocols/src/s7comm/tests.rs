use super::*;
use crate::testing::{Talk, events, feed, json, matches, torture};

fn tpkt(body: &[u8]) -> Vec<u8> {
    [&[3, 0][..], &((body.len() + 4) as u16).to_be_bytes(), body].concat()
}

fn pdu(rosctr: u8, reference: u16, parameter: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x32, rosctr, 0, 0];
    for number in [reference, parameter.len() as u16, data.len() as u16] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    if matches!(rosctr, 2 | 3) {
        out.extend_from_slice(&[0, 0]);
    }
    [out, parameter.to_vec(), data.to_vec()].concat()
}

fn dt(pdu: Vec<u8>) -> Vec<u8> {
    tpkt(&[&[2, 0xf0, 0x80][..], &pdu].concat())
}

fn talk() -> Talk {
    let write = [5, 1, 0x12, 10, 0x10, 2, 0, 4, 0, 7, 0x84, 0, 0, 80];
    let stop = [&[0x29, 0, 0, 0, 0, 0, 9][..], b"P_PROGRAM"].concat();
    let control = [&[0x28, 0, 0, 0, 0, 0, 0, 0xfd, 0, 0, 9][..], b"P_PROGRAM"].concat();
    let whole = pdu(7, 4, &[0, 1, 0x12, 4, 0x11, 0x44, 1, 0], &[0xff, 9, 0, 4, 0x01, 0x32, 0, 0]);
    let (head, tail) = whole.split_at(9);
    vec![
        (Way::ToServer, tpkt(&[17, 0xe0, 0, 0, 0, 1, 0, 0xc0, 1, 10, 0xc1, 2, 1, 0, 0xc2, 2, 1, 2])),
        (Way::ToClient, tpkt(&[17, 0xd0, 0, 1, 0, 2, 0, 0xc0, 1, 10, 0xc1, 2, 1, 0, 0xc2, 2, 1, 2])),
        (Way::ToServer, dt(pdu(1, 1, &[0xf0, 0, 0, 1, 0, 1, 1, 0xe0], &[]))),
        (Way::ToClient, dt(pdu(3, 1, &[0xf0, 0, 0, 1, 0, 1, 0, 0xf0], &[]))),
        (Way::ToServer, dt(pdu(1, 2, &write, &[0, 4, 0, 32, 1, 2, 3, 4]))),
        (Way::ToClient, dt(pdu(3, 2, &[5, 1], &[0xff]))),
        (Way::ToServer, dt(pdu(1, 3, &stop, &[]))),
        (Way::ToServer, tpkt(&[&[2, 0xf0, 0x00][..], head].concat())),
        (Way::ToServer, tpkt(&[&[2, 0xf0, 0x80][..], tail].concat())),
        (Way::ToClient, dt(pdu(7, 4, &[0, 1, 0x12, 8, 0x12, 0x84, 1, 0, 0, 0, 0, 0], &[]))),
        (Way::ToServer, dt(pdu(1, 5, &control, &[]))),
    ]
}

#[test]
fn answers_find_their_jobs() {
    let parser = feed(&PROTOCOL, Transport::Tcp, &talk(), usize::MAX);
    assert_eq!(parser.range(), (0, 5));
    let text = json(&*parser, 1);
    assert!(
        text.contains(r#""function":"write_var","items":[{"area":"db","db":7,"address":10,"length":4}]"#),
        "{text}"
    );
    assert!(text.contains(r#""response":{"rosctr":"ack_data","pdu_reference":2"#), "{text}");
    assert!(json(&*parser, 2).contains(r#""function":"plc_stop","pi_service":"P_PROGRAM""#));
    let text = json(&*parser, 3);
    assert!(text.contains(r#""userdata":{"type":"request","group":"cpu","subfunction":1}"#), "{text}");
    assert!(text.contains(r#""type":"response""#), "{text}");
    assert!((0..5).all(|id| events(&PROTOCOL, &*parser, id).is_empty()));
}

#[test]
fn rules_can_ask() {
    let parser = feed(&PROTOCOL, Transport::Tcp, &talk(), usize::MAX);
    assert!(matches(&PROTOCOL, &*parser, 2, "s7.plc_stop", "", Way::ToServer));
    assert!(!matches(&PROTOCOL, &*parser, 1, "s7.plc_stop", "", Way::ToServer));
    assert!(matches(&PROTOCOL, &*parser, 4, "s7.plc_control", "", Way::ToServer));
    let number = |id: u64, name: &str, way| {
        let index = NUMBERS.iter().position(|info| info.keyword == name)?;
        parser.transaction(id)?.number(index, way, 0)
    };
    assert_eq!(number(1, "s7.db", Way::ToServer), Some(7));
    assert_eq!(number(1, "s7.address", Way::ToServer), Some(10));
    assert_eq!(number(3, "s7.userdata_group", Way::ToClient), Some(4));
    assert_eq!(number(0, "s7.error_class", Way::ToClient), Some(0));
    let value = parser.transaction(1).and_then(|it| it.buffer(3, Way::ToServer, 0)).map(|view| view.data.to_vec());
    assert_eq!(value, Some(vec![1, 2, 3, 4]));
}

#[test]
fn the_probe_waits_for_the_first_data() {
    let probe = |data: &[u8], way| probe(&Start { data, way, transport: Transport::Tcp, is_usual_port: true });
    let talk = talk();
    let connect = talk[0].1.clone();
    assert_eq!(probe(&connect, Way::ToServer), Probe::More);
    assert_eq!(probe(&connect[..3], Way::ToServer), Probe::More);
    let mms = [connect.clone(), tpkt(&[2, 0xf0, 0x80, 0x0d, 0xb2])].concat();
    assert_eq!(probe(&mms, Way::ToServer), Probe::No);
    assert_eq!(probe(&[connect, talk[2].1.clone()].concat(), Way::ToServer), Probe::Yes);
    assert_eq!(probe(&talk[3].1, Way::ToServer), Probe::YesReversed);
    assert_eq!(probe(b"GET / HTTP/1.1", Way::ToServer), Probe::No);
}

#[test]
fn lies_become_events() {
    let mut bad = pdu(1, 1, &[4, 1, 0x12, 10, 0x10, 2, 0, 4], &[]);
    bad[7] = 200;
    for bytes in [bad, pdu(1, 1, &[4, 9, 0x12, 10], &[]), pdu(9, 1, &[], &[])] {
        let parser = feed(&PROTOCOL, Transport::Tcp, &vec![(Way::ToServer, dt(bytes))], usize::MAX);
        assert_eq!(events(&PROTOCOL, &*parser, 0), ["malformed"]);
    }
}

#[test]
fn cuts_and_mutations_do_no_harm() {
    torture(&PROTOCOL, Transport::Tcp, &talk(), 1 << 20);
}
