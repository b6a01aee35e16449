use super::*;
use crate::testing::{Talk, events, feed, json, torture};

fn message(function: u8, npdu: &[u8], apdu: &[u8]) -> Vec<u8> {
    let length = (4 + npdu.len() + apdu.len()) as u16;
    [&[0x81, function][..], &length.to_be_bytes(), npdu, apdu].concat()
}

fn talk() -> Talk {
    let write = [0, 5, 7, 15, 0x0c, 0x00, 0x80, 0x00, 0x2a, 0x19, 85, 0x3e, 0x91, 1, 0x3f, 0x49, 8];
    let several = [
        &[0, 5, 8, 14][..],
        &[0x0c, 0, 0, 0, 1, 0x1e, 0x09, 85, 0x09, 111, 0x1f],
        &[0x0c, 2, 0, 0, 5, 0x1e, 0x09, 76, 0x19, 0, 0x1f],
    ]
    .concat();
    vec![
        (Way::ToServer, message(10, &[1, 4], &write)),
        (Way::ToClient, message(10, &[1, 0], &[0x20, 7, 15])),
        (Way::ToServer, message(10, &[1, 4], &several)),
        (Way::ToClient, message(10, &[1, 0], &[0x50, 8, 14, 0x91, 2, 0x91, 32])),
        (Way::ToServer, message(11, &[1, 0x20, 0xff, 0xff, 0, 0xff], &[0x10, 8, 0x09, 1, 0x1a, 1, 0])),
        (
            Way::ToClient,
            message(10, &[1, 8, 0, 99, 1, 5], &[0x10, 0, 0xc4, 2, 0, 0, 9, 0x22, 5, 0xc4, 0x91, 3, 0x22, 1, 4]),
        ),
        (Way::ToServer, message(10, &[1, 4], &[0, 5, 9, 20, 0x09, 0, 0x1d, 5, 0, b'f', b'o', b'u', b'r'])),
        (Way::ToServer, message(5, &[0, 60], &[])),
    ]
}

fn ask(parser: &dyn crate::Parser, id: u64, keyword: &str, way: Way, nth: usize) -> Option<u64> {
    let index = NUMBERS.iter().position(|info| info.keyword == keyword)?;
    parser.transaction(id)?.number(index, way, nth)
}

#[test]
fn answers_find_their_requests() {
    let parser = feed(&PROTOCOL, Transport::Udp, &talk(), 0);
    assert_eq!(parser.range(), (0, 6));
    let text = json(&*parser, 0);
    assert!(text.contains(r#""service":"write_property","objects":[{"type":"analog_value","instance":42}],"properties":["present_value"],"priority":8"#), "{text}");
    assert!(text.contains(r#""response":{"bvlc_function":"original_unicast","pdu_type":"simple_ack","invoke_id":7"#));
    assert!(json(&*parser, 1).contains(r#""error_class":2,"error_code":32"#));
    assert!(json(&*parser, 3).contains(r#""source_network":99"#) && json(&*parser, 3).contains(r#""vendor_id":260"#));
    assert!((0..6).all(|id| events(&PROTOCOL, &*parser, id).is_empty()));
}

#[test]
fn rules_can_ask() {
    let parser = feed(&PROTOCOL, Transport::Udp, &talk(), 0);
    let rows = [
        (0, "bacnet.service", Way::ToServer, 0, Some(15)),
        (0, "bacnet.pdu_type", Way::ToClient, 0, Some(2)),
        (1, "bacnet.property", Way::ToServer, 2, Some(76)),
        (1, "bacnet.object_type", Way::ToServer, 1, Some(8)),
        (1, "bacnet.device_instance", Way::ToServer, 0, Some(5)),
        (2, "bacnet.destination_network", Way::ToServer, 0, Some(0xffff)),
        (2, "bacnet.device_instance", Way::ToServer, 1, Some(256)),
        (3, "bacnet.service", Way::ToClient, 0, Some(256)),
        (3, "bacnet.device_instance", Way::ToClient, 0, Some(9)),
        (4, "bacnet.state", Way::ToServer, 0, Some(0)),
        (5, "bacnet.bvlc_function", Way::ToServer, 0, Some(5)),
    ];
    for (id, keyword, way, nth, value) in rows {
        assert_eq!(ask(&*parser, id, keyword, way, nth), value, "{id} {keyword}");
    }
    let password = parser.transaction(4).and_then(|it| it.buffer(1, Way::ToServer, 0)).map(|view| view.data.to_vec());
    assert_eq!(password.as_deref(), Some(&b"four"[..]));
    assert!(!json(&*parser, 4).contains("four"));
}

#[test]
fn lies_become_events() {
    let mut long = message(10, &[1, 4], &[0, 5, 7, 15, 0x0c, 0, 0, 0, 1, 0x3e]);
    let unclosed = long.clone();
    long.push(0);
    for bytes in [long, unclosed, message(10, &[2, 0], &[0x10, 8]), message(0x77, &[], &[])] {
        let parser = feed(&PROTOCOL, Transport::Udp, &vec![(Way::ToServer, bytes)], 0);
        assert_eq!(events(&PROTOCOL, &*parser, 0), ["malformed"]);
    }
}

#[test]
fn mutations_do_no_harm() {
    torture(&PROTOCOL, Transport::Udp, &talk(), 1 << 20);
}
