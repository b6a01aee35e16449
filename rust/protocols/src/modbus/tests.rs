use super::*;
use crate::testing::{Talk, events, feed, json, matches, torture};

fn message(id: u16, unit: u8, pdu: &[u8]) -> Vec<u8> {
    let mut out = [&id.to_be_bytes()[..], &[0, 0], &(pdu.len() as u16 + 1).to_be_bytes(), &[unit]].concat();
    out.extend_from_slice(pdu);
    out
}

fn talk() -> Talk {
    vec![
        (Way::ToServer, message(1, 5, &[3, 0, 99, 0, 2])),
        (Way::ToServer, message(2, 5, &[16, 1, 0xf3, 0, 2, 4, 0, 100, 0, 201])),
        (Way::ToClient, message(1, 5, &[3, 4, 0, 1, 0, 2])),
        (Way::ToClient, message(2, 5, &[0x90, 2])),
        (Way::ToServer, message(3, 1, &[8, 0, 4, 0, 0])),
        (Way::ToClient, message(9, 1, &[8, 0, 4, 0, 0])),
        (Way::ToServer, message(4, 1, &[15, 0, 0, 0, 3, 1, 5])),
    ]
}

#[test]
fn responses_find_their_requests() {
    let parser = feed(&PROTOCOL, Transport::Tcp, &talk(), usize::MAX);
    assert_eq!(parser.range(), (0, 5));
    let text = json(&*parser, 0);
    assert!(
        text.contains(r#""function_code":"RdHoldRegs","access_type":"READ | HOLDING","category":"PUBLIC_ASSIGNED""#)
    );
    assert!(text.contains(r#""read":{"address":99,"quantity":2}"#), "{text}");
    assert!(text.contains(r#""response":{"transaction_id":1"#));
    assert!(json(&*parser, 1).contains(r#""exception":{"raw":2,"code":"IllegalDataAddr"}"#));
    assert_eq!(events(&PROTOCOL, &*parser, 3), ["unsolicited_response"]);
    assert!(events(&PROTOCOL, &*parser, 0).is_empty());
}

#[test]
fn the_keyword_means_what_the_manual_says() {
    let parser = feed(&PROTOCOL, Transport::Tcp, &talk(), usize::MAX);
    let rows = [
        (0, "function 3", true),
        (0, "function 4", false),
        (0, "unit 5, function 3", true),
        (0, "unit 5<>6, function 3", true),
        (0, "unit >5", false),
        (0, "access read holding, address 100", true),
        (0, "access read holding, address 101<>200", false),
        (0, "access read holding, address 99<>200", true),
        (0, "access read holding, address <100", false),
        (0, "access write", false),
        (1, "access write holding, address 500, value >99", true),
        (1, "access write holding, address 501, value >200", true),
        (1, "access write holding, address 500, value >200", false),
        (2, "function 8, subfunction 4", true),
        (2, "function 8, subfunction 3", false),
        (2, "function public", true),
        (2, "function !reserved", true),
        (2, "function user", false),
        (3, "function 8", false), // only requests are asked
        (4, "access write coils, address 3, value 1", true),
        (4, "access write coils, address 2, value 1", false),
    ];
    for (id, argument, is_match) in rows {
        let argument = argument.replace("5<>6", "4<>6");
        assert_eq!(matches(&PROTOCOL, &*parser, id, "modbus", &argument, Way::ToServer), is_match, "{argument}");
    }
    for wrong in ["", "function", "access", "access write input", "access read, value 1", "function 3, sub", "unit x"] {
        assert!(keyword::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn lies_become_events() {
    let rows: [(&[u8], &str); 5] = [
        (&[0, 1, 0, 1, 0, 6, 1, 3, 0, 0, 0, 1], "invalid_protocol_id"),
        (&[0, 1, 0, 0, 0, 1, 1], "invalid_length"),
        (&[0, 1, 0, 0, 0, 6, 1, 3, 0, 0, 0, 0], "invalid_value"),
        (&[0, 1, 0, 0, 0, 6, 1, 0x83, 0, 0, 0, 0], "invalid_function_code"),
        (&[0, 1, 0, 0, 0, 7, 1, 3, 0, 0, 0, 1, 0], "invalid_length"),
    ];
    for (bytes, name) in rows {
        let parser = feed(&PROTOCOL, Transport::Tcp, &vec![(Way::ToServer, bytes.to_vec())], usize::MAX);
        assert!(events(&PROTOCOL, &*parser, 0).contains(&name), "{name}");
    }
    let request = message(1, 1, &[6, 0, 1, 0, 2]);
    let talk = vec![(Way::ToServer, request), (Way::ToClient, message(1, 1, &[6, 0, 1, 0, 3]))];
    let parser = feed(&PROTOCOL, Transport::Tcp, &talk, usize::MAX);
    assert_eq!(events(&PROTOCOL, &*parser, 0), ["value_mismatch"]);
}

#[test]
fn floods_are_bounded_and_noticed() {
    let flood = (0..2000_u16).flat_map(|id| message(id, 1, &[3, 0, 0, 0, 1])).collect();
    let parser = feed(&PROTOCOL, Transport::Tcp, &vec![(Way::ToServer, flood)], 4096);
    let (first, end) = parser.range();
    assert_eq!((end, end - first), (2000, crate::framed::MOST_UNITS as u64));
    assert_eq!(events(&PROTOCOL, &*parser, end - 2), ["flooded"]);
}

#[test]
fn cuts_and_mutations_do_no_harm() {
    torture(&PROTOCOL, Transport::Tcp, &talk(), 1 << 20);
}
