use super::*;

const PLANT: &str = r#"[{"actions":[[1,1]],"clients":["pump-*"]},
    {"actions":[[3,3]],"topics":["plant/+/state"]},{"actions":[[8,8],[10,10]],"topics":["plant/#"]}]"#;

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let (mut bytes, mut rest) = (vec![first], body.len());
    loop {
        let more = if rest > 127 { 0x80 } else { 0 };
        bytes.push(rest as u8 & 0x7f | more);
        rest >>= 7;
        if more == 0 {
            return [&bytes[..], body].concat();
        }
    }
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u16).to_be_bytes()[..], value.as_bytes()].concat()
}

fn connect(level: u8, client: &str) -> Vec<u8> {
    let properties: &[u8] = if level == 5 { &[0] } else { &[] };
    packet(0x10, &[&text("MQTT")[..], &[level, 2, 0, 60], properties, &text(client)].concat())
}

fn publish(topic: &str, payload: &[u8]) -> Vec<u8> {
    packet(0x30, &[&text(topic)[..], payload].concat())
}

fn publish5(topic: &str, properties: &[u8]) -> Vec<u8> {
    packet(0x30, &[&text(topic)[..], &[properties.len() as u8], properties].concat())
}

fn subscribe(filters: &[&str]) -> Vec<u8> {
    let body: Vec<u8> = filters.iter().flat_map(|filter| [text(filter), vec![1]].concat()).collect();
    packet(0x82, &[&[0, 9][..], &body].concat())
}

/// A state that has seen the CONNECT of a client of `level`.
fn connected(rule: &Rule, level: u8) -> SessionState {
    let mut state = SessionState::default();
    let hello = connect(level, "pump-1");
    assert_eq!(judge(rule, &mut state, &hello, false), Judged::Pass { len: hello.len(), skip: 0 });
    state
}

#[track_caller]
fn judged(rule: &Rule, state: &mut SessionState, bytes: &[u8]) -> &'static str {
    match judge(rule, state, bytes, false) {
        Judged::Pass { len, skip } if len as u64 + skip == bytes.len() as u64 => "pass",
        Judged::Refuse { len, skip, .. } if len as u64 + skip == bytes.len() as u64 => "refuse",
        Judged::Malformed(_) => "malformed",
        other => panic!("{other:?}"),
    }
}

#[test]
fn clients_topics_and_filters_decide() {
    let rule = rule("mqtt", PLANT, "[]");
    holds_every_cut(&rule, &connect(4, "pump-1"));
    holds_every_cut(&rule, &connect(5, "pump-1"));
    refused(&rule, &connect(4, "valve-1"), false);
    refused(&rule, &connect(4, ""), false);
    for level in [3, 4] {
        let name = if level == 3 { "MQIsdp" } else { "MQTT" };
        passes(&rule, &packet(0x10, &[&text(name)[..], &[level, 2, 0, 60], &text("pump-1")].concat()), false);
    }
    let mut state = connected(&rule, 4);
    for (bytes, verdict) in [
        (publish("plant/3/state", b"on"), "pass"),
        (publish("plant/3/command", b"on"), "refuse"),
        (publish("plant/3/state/x", b"on"), "refuse"),
        (publish("/plant/3/state", b"on"), "refuse"),
        (subscribe(&["plant/3/state"]), "pass"),
        (subscribe(&["plant/#"]), "pass"),
        (subscribe(&["plant/+/command", "plant/+"]), "pass"),
        (subscribe(&["#"]), "refuse"),
        (subscribe(&["+/#"]), "refuse"),
        (subscribe(&["+/3"]), "refuse"),
        (subscribe(&["plant/3", "other"]), "refuse"), // the second of two
        (subscribe(&["$share/group/plant/3"]), "pass"),
        (subscribe(&["$share/group/other/3"]), "refuse"),
        (subscribe(&["$share/plant/#"]), "refuse"), // the group is "plant", the filter "#"
        (subscribe(&["$SYS/#"]), "refuse"),
        (packet(0xa2, &[&[0, 9][..], &text("plant/3")].concat()), "pass"),
        (packet(0xa2, &[&[0, 9][..], &text("other")].concat()), "refuse"),
        (vec![0xc0, 0], "pass"),
        (vec![0xe0, 0], "pass"),
        (vec![0x40, 2, 0, 1], "pass"),
        (vec![0x62, 2, 0, 1], "pass"),
    ] {
        assert_eq!(judged(&rule, &mut state, &bytes), verdict, "{bytes:02x?}");
    }
}

#[test]
fn a_payload_is_not_held() {
    let rule = rule("mqtt", PLANT, "[]");
    let mut state = connected(&rule, 4);
    let large = publish("plant/3/state", &vec![0; 200_000]);
    let head = 4 + 2 + 13;
    let judged = Judged::Pass { len: head, skip: 200_000 };
    assert_eq!(judge(&rule, &mut state, &large, false), judged);
    assert_eq!(judge(&rule, &mut state, &large[..head], false), judged);
    for cut in 1..head {
        assert_eq!(judge(&rule, &mut state, &large[..cut], false), Judged::More, "{cut}");
    }
    assert!(matches!(judge(&rule, &mut state, &large, true), Judged::Pass { .. }));
    assert!(matches!(judge(&rule, &mut state, &large[..head], true), Judged::Malformed(_)));
}

#[test]
fn the_order_of_packets_is_the_protocol_s() {
    let rule = rule("mqtt", r#"[{"actions":[[1,15]]}]"#, "[]");
    malformed(&rule, &publish("plant/3/state", b""), false); // before CONNECT
    malformed(&rule, &[0xc0, 0], false);
    let mut state = connected(&rule, 4);
    assert_eq!(judged(&rule, &mut state, &connect(4, "pump-2")), "malformed"); // a second one
    for server in [[0x20, 2], [0x90, 3], [0xb0, 2], [0xd0, 0]] {
        assert_eq!(judged(&rule, &mut state, &server), "malformed");
    }
}

#[test]
fn the_will_is_a_message_too() {
    let rule = rule("mqtt", PLANT, "[]");
    let with_will = |topic: &str| {
        let body = [&text("MQTT")[..], &[4, 6, 0, 60], &text("pump-1"), &text(topic), &text("bye")].concat();
        packet(0x10, &body)
    };
    passes(&rule, &with_will("plant/3/state"), false);
    assert_eq!(
        refused(&rule, &with_will("plant/3/command"), false),
        "mqtt action publish topic plant/3/command client pump-1"
    );
    malformed(&rule, &with_will("plant/#"), false);
    malformed(&rule, &with_will(""), false);
}

#[test]
fn aliases_stand_for_what_they_were_given() {
    let rule = rule("mqtt", PLANT, "[]");
    let mut state = connected(&rule, 5);
    let alias = |number: u8| [0x23, 0, number];
    for (bytes, verdict) in [
        (publish5("", &alias(1)), "malformed"), // nothing yet
        (publish5("plant/3/state", &alias(1)), "pass"),
        (publish5("", &alias(1)), "pass"),
        (publish5("plant/3/command", &alias(2)), "refuse"),
        (publish5("", &alias(2)), "refuse"),
        (publish5("plant/3/command", &alias(1)), "refuse"), // a new meaning
        (publish5("", &alias(1)), "refuse"),
        (publish5("plant/3/state", &alias(0)), "malformed"),
        (publish5("", &[]), "malformed"),
        (publish5("plant/3/state", &[alias(1), alias(2)].concat()), "malformed"),
    ] {
        assert_eq!(judged(&rule, &mut state, &bytes), verdict, "{bytes:02x?}");
    }
    for number in 3..33 {
        assert_eq!(judged(&rule, &mut state, &publish5("plant/3/state", &alias(number))), "pass");
    }
    assert_eq!(judged(&rule, &mut state, &publish5("plant/3/state", &alias(33))), "malformed");
    assert!(state.heap_bytes() < 8192);
    let long = format!("plant/{}/state", "x".repeat(1100));
    let body = [&text(&long)[..], &[3, 0x23, 0, 1]].concat();
    assert_eq!(judged(&rule, &mut state, &packet(0x30, &body)), "malformed");
    // before MQTT 5 there are no properties: the same bytes are payload
    let mut older = connected(&rule, 4);
    assert_eq!(judged(&rule, &mut older, &publish5("plant/3/state", &alias(1))), "pass");
}

#[test]
fn properties_are_read_to_their_end() {
    let rule = rule("mqtt", r#"[{"actions":[[1,15]]}]"#, "[]");
    let mut state = connected(&rule, 5);
    let every: &[&[u8]] = &[&[
        1, 1, 2, 0, 0, 0, 9, 8, 0, 1, b'r', 9, 0, 1, b'c', 11, 0x80, 1, 0x26, 0, 1, b'k', 0, 1, b'v', 3, 0, 1, b't',
    ]];
    for properties in every {
        assert_eq!(judged(&rule, &mut state, &publish5("a", properties)), "pass");
    }
    let bad: &[&[u8]] =
        &[&[0x7f], &[2, 0, 0], &[0x26, 0, 1, b'k'], &[3, 0, 2, 0xc3, 0x28], &[11, 0x80], &[11, 0x80, 0]];
    for properties in bad {
        assert_eq!(judged(&rule, &mut state, &publish5("a", properties)), "malformed", "{properties:02x?}");
    }
    // a property length that reaches past the packet
    let body = [&text("a")[..], &[5, 1, 1]].concat();
    assert_eq!(judged(&rule, &mut state, &packet(0x30, &body)), "malformed");
    assert_eq!(judged(&rule, &mut state, &packet(0x30, &[0, 9, b'a'])), "malformed"); // and a topic's
    for good in [&[0xe0, 0][..], &[0xe0, 1, 4], &[0xe0, 2, 4, 0], &[0x40, 3, 0, 1, 0], &[0x40, 4, 0, 1, 0, 0]] {
        assert_eq!(judged(&rule, &mut state, good), "pass");
    }
    assert_eq!(judged(&rule, &mut state, &[0xe0, 3, 4, 0, 0]), "malformed");
    assert_eq!(judged(&rule, &mut state, &packet(0xf0, &[0x18, 0])), "pass");
}

#[test]
fn odd_packets_are_malformed() {
    let rule = rule("mqtt", r#"[{"actions":[[1,15]]}]"#, "[]");
    let mut state = connected(&rule, 4);
    let filter = |options: u8| packet(0x82, &[&[0, 9][..], &text("a"), &[options]].concat());
    let bad: Vec<Vec<u8>> = vec![
        vec![0x00, 0],                         // type 0
        vec![0xc1, 0],                         // a flag of PINGREQ
        vec![0xc0, 1, 0],                      // a body of it
        vec![0xc0, 0x80, 0],                   // a length in two bytes
        vec![0x30, 0x80, 0x80, 0x80, 0x80, 1], // in five
        packet(0x36, &[0, 1, b'a', 0, 1]),     // quality of service 3
        packet(0x38, &[0, 1, b'a']),           // a duplicate of none
        packet(0x32, &[0, 1, b'a', 0, 0]),     // identifier 0
        publish("a/#", b""),
        publish("a/+/b", b""),
        publish("", b"x"),
        publish("a\0b", b""),
        packet(0x30, &[0, 2, 0xc3, 0x28]),                       // not UTF-8
        packet(0x30, &[0, 3, 0xed, 0xa0, 0x80]),                 // a surrogate
        packet(0x80, &[&[0, 9][..], &text("a"), &[0]].concat()), // without its flag
        packet(0x82, &[0, 9]),
        packet(0x82, &[&[0, 0][..], &text("a"), &[0]].concat()),
        packet(0x82, &[&[0, 9][..], &text("a")].concat()), // without its options
        filter(3),
        filter(4),
        subscribe(&["a#"]),
        subscribe(&["#/a"]),
        subscribe(&["a+"]),
        subscribe(&[""]),
        subscribe(&["$share/group"]),
        subscribe(&["$share//a"]),
        subscribe(&["$share/+/a"]),
        subscribe(&["$share/group/"]),
        subscribe(&["a"; 65]),
        packet(0x10, &[0; 20_000]),
        packet(0x82, &[0; 20_000]),
    ];
    for bytes in bad {
        let head = &bytes[..bytes.len().min(40)];
        assert_eq!(judged(&rule, &mut state, &bytes), "malformed", "{head:02x?}");
    }
    let hello =
        |flags: u8, rest: &[u8]| packet(0x10, &[&text("MQTT")[..], &[4, flags, 0, 60], &text("a"), rest].concat());
    for (flags, rest) in
        [(1, &[][..]), (0x08, &[]), (0x20, &[]), (0x1e, &[0, 1, b'a', 0, 0]), (0x40, &[0, 0]), (2, &[0])]
    {
        malformed(&rule, &hello(flags, rest), false);
    }
    malformed(&rule, &packet(0x10, &[&text("MQTT")[..], &[6, 2, 0, 60], &text("a")].concat()), false);
    malformed(&rule, &packet(0x10, &[&text("HTTP")[..], &[4, 2, 0, 60], &text("a")].concat()), false);
    malformed(&rule, b"GET / HTTP/1.1\r\n\r\n", false);
}

#[test]
fn an_entry_of_topics_alone_lets_clients_in() {
    let rule = rule("mqtt", r#"[{"topics":["plant/#"]}]"#, "[]");
    let mut state = connected(&rule, 4);
    assert_eq!(judged(&rule, &mut state, &publish("plant/1", b"")), "pass");
    assert_eq!(judged(&rule, &mut state, &publish("other", b"")), "refuse");
}

#[test]
fn an_entry_can_bind_a_topic_to_a_client() {
    let rule = rule("mqtt", r#"[{"actions":[[1,1]]},{"clients":["pump-1"],"topics":["plant/1/#"]}]"#, "[]");
    let mut state = connected(&rule, 4);
    assert_eq!(judged(&rule, &mut state, &publish("plant/1/x", b"")), "pass");
    let mut other = SessionState::default();
    assert_eq!(judged(&rule, &mut other, &connect(4, "pump-2")), "pass");
    assert_eq!(judged(&rule, &mut other, &publish("plant/1/x", b"")), "refuse");
}

#[test]
fn deny_meets_every_filter_that_would_see_the_topic() {
    let rule = rule("mqtt", r#"[{"actions":[[1,15]]}]"#, r#"[{"topics":["secret/+/key"]}]"#);
    let mut state = connected(&rule, 4);
    for filter in ["#", "+/+/+", "secret/#", "secret/1/key", "secret/+/key", "+/1/#", "$share/g/#"] {
        assert_eq!(judged(&rule, &mut state, &subscribe(&[filter])), "refuse", "{filter}");
    }
    for filter in ["other/#", "secret/1", "secret/1/key/x", "+", "$SYS/#"] {
        assert_eq!(judged(&rule, &mut state, &subscribe(&[filter])), "pass", "{filter}");
    }
}
