use super::*;
use crate::Transaction;
use crate::testing::{Talk, events, feed, json, matches, torture};

fn text(value: &[u8]) -> Vec<u8> {
    [&(value.len() as u16).to_be_bytes()[..], value].concat()
}

fn packet(first: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut out = vec![first];
    let mut length = body.len();
    loop {
        let byte = (length % 128) as u8;
        length /= 128;
        out.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            break;
        }
    }
    [out, body].concat()
}

fn connect() -> Vec<u8> {
    let texts = [text(b"me"), text(b"last/will"), text(b"gone"), text(b"anna"), text(b"secret")].concat();
    packet(0x10, &[&text(b"MQTT"), &[4, 0xc6, 0, 60], &texts])
}

fn talk() -> Talk {
    vec![
        (Way::ToServer, connect()),
        (Way::ToClient, packet(0x20, &[&[1, 0]])),
        (Way::ToServer, packet(0x82, &[&[0, 1], &text(b"a/b"), &[1], &text(b"#"), &[0]])),
        (Way::ToClient, packet(0x90, &[&[0, 1, 1, 0]])),
        (Way::ToServer, packet(0x34, &[&text(b"t"), &[0, 7], b"payload"])),
        (Way::ToClient, packet(0x50, &[&[0, 7]])),
        (Way::ToServer, packet(0x62, &[&[0, 7]])),
        (Way::ToClient, packet(0x70, &[&[0, 7]])),
        (Way::ToClient, packet(0x31, &[&text(b"from/server"), b"x"])),
        (Way::ToClient, packet(0x40, &[&[0, 99]])),
        (Way::ToServer, packet(0xe0, &[])),
    ]
}

#[test]
fn packets_that_belong_together_are_one_transaction() {
    let parser = feed(&PROTOCOL, Transport::Tcp, &talk(), usize::MAX);
    assert_eq!(parser.range(), (0, 6));
    let text = json(&*parser, 0);
    assert!(
        text.contains(r#""client_id":"me","flags":{"username":true,"password":true,"will_retain":false,"will":true"#)
    );
    assert!(text.contains(r#""connack":{"qos":0,"retain":false,"dup":false,"session_present":true,"return_code":0}"#));
    assert!(!text.contains("secret"));
    assert!(json(&*parser, 1).contains(r##""topics":[{"topic":"a/b","qos":1},{"topic":"#","qos":0}]"##));
    assert!(json(&*parser, 1).contains(r#""qos_granted":[1,0]"#));
    for part in ["publish", "pubrec", "pubrel", "pubcomp"] {
        assert!(json(&*parser, 2).contains(part));
    }
    assert_eq!(events(&PROTOCOL, &*parser, 4), ["missing_publish"]);
}

#[test]
fn rules_can_ask() {
    let parser = feed(&PROTOCOL, Transport::Tcp, &talk(), usize::MAX);
    let rows = [
        (0, "mqtt.connect.flags", "username,password,!will_retain", true),
        (0, "mqtt.connect.flags", "!will", false),
        (0, "mqtt.connack.session_present", "yes", true),
        (0, "mqtt.connack.session_present", "false", false),
        (3, "mqtt.flags", "retain,!dup", true),
        (3, "mqtt.flags", "dup", false),
    ];
    for (id, name, argument, is_match) in rows {
        assert_eq!(matches(&PROTOCOL, &*parser, id, name, argument, Way::ToServer), is_match, "{name}:{argument}");
    }
    let ask = |id, index, nth| {
        let view = parser.transaction(id).and_then(|it| it.buffer(index, Way::ToServer, nth));
        view.map(|view| String::from_utf8_lossy(view.data).into_owned())
    };
    assert_eq!(ask(0, 2, 0).as_deref(), Some("secret"));
    assert_eq!(ask(1, 8, 1).as_deref(), Some("#"));
    assert_eq!(ask(2, 7, 0).as_deref(), Some("payload"));
    let numbers =
        |id, index, nth| parser.transaction(id).and_then(|it: &dyn Transaction| it.number(index, Way::ToServer, nth));
    assert_eq!(numbers(2, 0, 3), Some(7));
    assert_eq!(numbers(0, 2, 0), Some(0));
    assert_eq!(numbers(0, 3, 0), Some(4));
}

#[test]
fn version_five_has_properties_and_reasons() {
    let properties = [&[38][..], &text(b"key"), &text(b"value")].concat();
    let client = [&[properties.len() as u8][..], &properties, &text(b"five")].concat();
    let talk = vec![
        (Way::ToServer, packet(0x10, &[&text(b"MQTT"), &[5, 2, 0, 60], &client])),
        (Way::ToClient, packet(0x20, &[&[0, 134, 3, 33, 0, 10]])),
    ];
    let parser = feed(&PROTOCOL, Transport::Tcp, &talk, usize::MAX);
    let text = json(&*parser, 0);
    assert!(text.contains(r#""properties":{"key":"value"}"#), "{text}");
    assert!(text.contains(r#""return_code":134,"properties":{"receive_maximum":10}"#), "{text}");
}

#[test]
fn the_end_of_a_long_message_is_passed_over() {
    let payload = vec![b'x'; 200_000];
    let mut talk = talk();
    talk.push((Way::ToServer, packet(0x30, &[&text(b"long"), &payload])));
    talk.push((Way::ToServer, packet(0x30, &[&text(b"next"), b"y"])));
    let parser = feed(&PROTOCOL, Transport::Tcp, &talk, 1460);
    assert_eq!(parser.range().1, 8);
    assert!(json(&*parser, 6).contains("[truncated "));
    assert!(json(&*parser, 7).contains("next"));
}

#[test]
fn cuts_and_mutations_do_no_harm() {
    torture(&PROTOCOL, Transport::Tcp, &talk(), 2 << 20);
    assert_eq!(
        events(&PROTOCOL, &*feed(&PROTOCOL, Transport::Tcp, &vec![(Way::ToServer, packet(0xc0, &[]))], 9), 0),
        ["unintroduced_message"]
    );
}
