use super::*;
use crate::testing::{Talk, events, feed, json, matches, torture};

fn message(command: u16, session: u32, context: u8, body: &[u8]) -> Vec<u8> {
    let mut out = [command.to_le_bytes(), (body.len() as u16).to_le_bytes()].concat();
    out.extend_from_slice(&session.to_le_bytes());
    out.extend_from_slice(&[0, 0, 0, 0, context, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(body);
    out
}

fn unconnected(cip: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0xb2, 0];
    out.extend_from_slice(&(cip.len() as u16).to_le_bytes());
    out.extend_from_slice(cip);
    out
}

fn talk() -> Talk {
    let identity = [
        &[1, 0, 0x0c, 0, 0x23, 0, 1, 0][..],
        &[0; 16],
        &[1, 0, 14, 0, 54, 0, 20, 11, 0x60, 0x31, 0x78, 0x56, 0x34, 0x12, 1, b'P', 3],
    ]
    .concat();
    let multiple =
        [10, 2, 0x20, 2, 0x24, 1, 2, 0, 6, 0, 14, 0, 14, 3, 0x20, 1, 0x24, 1, 0x30, 7, 5, 2, 0x20, 1, 0x24, 1];
    vec![
        (Way::ToServer, message(0x65, 0, 1, &[1, 0, 0, 0])),
        (Way::ToClient, message(0x65, 9, 1, &[1, 0, 0, 0])),
        (Way::ToServer, message(0x63, 9, 2, &[])),
        (Way::ToServer, message(0x6f, 9, 3, &unconnected(&multiple))),
        (Way::ToClient, message(0x63, 9, 2, &identity)),
        (Way::ToClient, message(0x6f, 9, 3, &unconnected(&[0x8a, 0, 5, 1, 0x34, 0x12]))),
        (Way::ToServer, message(0x66, 9, 4, &[])),
    ]
}

#[test]
fn replies_find_their_requests() {
    let parser = feed(&PROTOCOL, Transport::Tcp, &talk(), usize::MAX);
    assert_eq!(parser.range(), (0, 4));
    assert!(json(&*parser, 0).contains(r#""request":{"command":"RegisterSession","status":"success""#));
    let text = json(&*parser, 1);
    assert!(text.contains(r#""revision":"20.11""#) && text.contains(r#""product_name":"P","state":3"#), "{text}");
    let text = json(&*parser, 2);
    assert!(text.contains(r#""cip":{"service":"multiple_service""#) && text.contains("get_attribute_single"), "{text}");
    assert!(text.contains(r#""status":5,"status_extended":4660"#), "{text}");
    assert!((0..4).all(|id| events(&PROTOCOL, &*parser, id).is_empty()));
}

#[test]
fn rules_can_ask() {
    let parser = feed(&PROTOCOL, Transport::Tcp, &talk(), usize::MAX);
    let rows = [
        ("10", Way::ToServer, true),
        ("14,1,7", Way::ToServer, true),
        ("14,2", Way::ToServer, false),
        ("reset", Way::ToServer, true),
        ("5,1,7", Way::ToServer, false),
        ("10", Way::ToClient, true),
    ];
    for (argument, way, is_match) in rows {
        assert_eq!(matches(&PROTOCOL, &*parser, 2, "cip_service", argument, way), is_match, "{argument}");
    }
    let number = |id: u64, name: &str, way, nth| {
        let index = NUMBERS.iter().position(|info| info.keyword == name)?;
        parser.transaction(id)?.number(index, way, nth)
    };
    assert_eq!(number(1, "enip.serial", Way::ToClient, 0), Some(0x1234_5678));
    assert_eq!(number(1, "enip.vendor_id", Way::ToClient, 0), Some(1));
    assert_eq!(number(2, "enip.cip_attribute", Way::ToServer, 0), Some(7));
    assert_eq!(number(2, "enip.cip_class", Way::ToServer, 2), Some(1));
    assert_eq!(number(2, "enip.cip_extendedstatus", Way::ToClient, 0), Some(0x1234));
    assert_eq!(number(3, "enip_command", Way::ToServer, 0), Some(0x66));
}

#[test]
fn lies_become_events() {
    let mut bad = unconnected(&[14, 3, 0x20, 1, 0x24, 1, 0x30, 7]);
    bad[14] = 200;
    let parser = feed(&PROTOCOL, Transport::Tcp, &vec![(Way::ToServer, message(0x6f, 9, 3, &bad))], usize::MAX);
    assert_eq!(events(&PROTOCOL, &*parser, 0), ["invalid_pdu"]);
}

#[test]
fn a_list_that_points_to_itself_ends() {
    let mut nested = vec![10, 0, 8, 0];
    (0..8).for_each(|_| nested.extend_from_slice(&[0, 0]));
    let parser =
        feed(&PROTOCOL, Transport::Tcp, &vec![(Way::ToServer, message(0x6f, 9, 3, &unconnected(&nested)))], usize::MAX);
    assert_eq!(events(&PROTOCOL, &*parser, 0), ["invalid_pdu"]);
}

#[test]
fn cuts_and_mutations_do_no_harm() {
    torture(&PROTOCOL, Transport::Tcp, &talk(), 2 << 20);
    torture(&PROTOCOL, Transport::Udp, &talk(), 2 << 20);
}
