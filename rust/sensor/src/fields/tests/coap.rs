use super::*;

const GETS: &str = r#"[{"methods":[[1,1]],"paths":["/sensors/*","/.well-known/core"]}]"#;

fn options(parts: &[(u32, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut before) = (Vec::new(), 0);
    for (number, value) in parts {
        let (delta, length) = (number - before, value.len());
        before = *number;
        let nibble = |value: usize| match value {
            0..=12 => (value as u8, vec![]),
            13..=268 => (13, vec![(value - 13) as u8]),
            _ => (14, ((value - 269) as u16).to_be_bytes().to_vec()),
        };
        let ((high, more), (low, even_more)) = (nibble(delta as usize), nibble(length));
        bytes.push(high << 4 | low);
        bytes.extend([more, even_more].concat());
        bytes.extend_from_slice(value);
    }
    bytes
}

fn datagram(code: u8, parts: &[(u32, &[u8])]) -> Vec<u8> {
    [&[0x42, code, 0, 7, 0xaa, 0xbb][..], &options(parts)].concat()
}

fn path<'a>(segments: &[&'a str]) -> Vec<(u32, &'a [u8])> {
    segments.iter().map(|segment| (11, segment.as_bytes())).collect()
}

fn stream(code: u8, body: &[u8]) -> Vec<u8> {
    match body.len() {
        length @ 0..=12 => [&[(length as u8) << 4 | 1, code, 0x77][..], body].concat(),
        length => [&[0xd1, (length - 13) as u8, code, 0x77][..], body].concat(),
    }
}

#[test]
fn methods_and_paths_decide() {
    let rule = rule("coap", GETS, "[]");
    passes(&rule, &datagram(1, &path(&["sensors", "t1"])), true);
    passes(&rule, &datagram(1, &path(&[".well-known", "core"])), true);
    refused(&rule, &datagram(1, &path(&["sensors"])), true);
    refused(&rule, &datagram(1, &path(&["Sensors", "t1"])), true);
    assert_eq!(refused(&rule, &datagram(3, &path(&["sensors", "t1"])), true), "coap method 3 path /sensors/t1");
    refused(&rule, &datagram(1, &[]), true);
    let with_query = [path(&["sensors", "t1"]), vec![(15, &b"unit=c"[..]), (23, &[2])]].concat();
    passes(&rule, &datagram(1, &with_query), true);
    let payload = [&datagram(1, &path(&["sensors", "t1"]))[..], b"\xff\x01\x02"].concat();
    passes(&rule, &payload, true);
}

#[test]
fn paths_are_compared_by_segments() {
    let rule = rule("coap", GETS, "[]");
    malformed(&rule, &datagram(1, &path(&["sensors/t1"])), true);
    malformed(&rule, &datagram(1, &path(&["sensors", "..", "config"])), true);
    malformed(&rule, &datagram(1, &path(&["sensors", "."])), true);
    malformed(&rule, &datagram(1, &[(11, b"sensors"), (11, b"t\xff")]), true);
    malformed(&rule, &datagram(1, &[(11, b"sensors"), (11, b"t\x001")]), true);
    refused(&rule, &datagram(1, &path(&["", "sensors", "t1"])), true);
    refused(&rule, &datagram(1, &path(&["%73ensors", "t1"])), true);
    let closed = super::rule("coap", "[]", r#"[{"paths":["/config/*","/admin"]}]"#);
    passes(&closed, &datagram(3, &path(&["sensors"])), true);
    for evasion in [&["admin"][..], &["", "admin"], &["admin", ""], &["config", "a"], &["", "config", "", "a"]] {
        refused(&closed, &datagram(3, &path(evasion)), true);
    }
}

#[test]
fn proxies_and_hidden_requests_are_refused() {
    let every = rule("coap", r#"[{"methods":[[0,31]]}]"#, "[]");
    refused(&every, &datagram(1, &[(35, b"coap://192.0.2.1/x")]), true);
    refused(&every, &datagram(1, &[(11, b"sensors"), (39, b"coap")]), true);
    refused(&every, &datagram(2, &[(9, b"\x09\x01")]), true); // OSCORE
    refused(&rule("coap", "[]", r#"[{"paths":["/admin"]}]"#), &datagram(2, &[(9, b"\x09\x01")]), true);
    malformed(&every, &datagram(1, &[(13, b"\x00")]), true); // critical and unknown: perhaps another path
    passes(&every, &datagram(1, &[(14, b"\x00"), (2048, b"x")]), true); // elective
}

#[test]
fn acknowledgements_pass_and_answers_do_not() {
    let rule = rule("coap", GETS, "[]");
    for first in [0x40, 0x60, 0x70] {
        passes(&rule, &[first, 0, 0, 7], true);
    }
    malformed(&rule, &[0x50, 0, 0, 7], true);
    malformed(&rule, &[0x40, 0, 0, 7, 0], true);
    malformed(&rule, &[0x41, 0, 0, 7, 0], true);
    malformed(&rule, &[0x60, 0x45, 0, 7], true); // 2.05
    malformed(&rule, &[0x40, 0x45, 0, 7], true);
    malformed(&rule, &[0x60, 1, 0, 7], true); // a GET in an acknowledgement
    malformed(&rule, &[0x40, 0x20, 0, 7], true); // a class that does not exist
    malformed(&rule, &[0x40, 0xe1, 0, 7], true); // a signal in a datagram
}

#[test]
fn options_that_lie_are_malformed() {
    let rule = rule("coap", GETS, "[]");
    let good = datagram(1, &path(&["sensors", "t1"]));
    malformed(&rule, &[&good[..], &[0xff]].concat(), true); // no payload behind the marker
    malformed(&rule, &[&good[..], &[0x0f]].concat(), true);
    malformed(&rule, &[&good[..], &[0xf0]].concat(), true);
    malformed(&rule, &[&good[..], &[0x0d]].concat(), true);
    malformed(&rule, &[&good[..], &[0x0e, 1]].concat(), true);
    malformed(&rule, &[&good[..], &[0x05, 1, 2]].concat(), true);
    malformed(&rule, &[&good[..], &[0xe0, 0xff, 0xff]].concat(), true);
    malformed(&rule, &[&[0x82][..], &good[1..]].concat(), true); // version 2
    malformed(&rule, &[&[0x49][..], &good[1..]].concat(), true); // a token of nine
    for cut in 1..6 {
        malformed(&rule, &good[..cut], true);
    }
}

#[test]
fn streams_are_cut_by_their_lengths() {
    let rule = rule("coap", GETS, "[]");
    let get = stream(1, &options(&path(&["sensors", "temperature"])));
    passes(&rule, &get, false);
    passes(&rule, &stream(0xe1, &options(&[(2, &[1, 0])])), false); // settings
    passes(&rule, &[0, 0], false);
    passes(&rule, &[0, 0xe2], false); // ping
    refused(&rule, &stream(4, &options(&path(&["sensors", "temperature"]))), false);
    malformed(&rule, &[0xf0, 0, 0, 0, 0, 1], false);
    malformed(&rule, &[0xe0, 0xff, 0xff, 1], false);
    malformed(&rule, &stream(0x45, &[]), false);
    holds_every_stream_cut(&rule, &get);
    let both = [get.clone(), stream(4, &options(&path(&["a"])))].concat();
    assert_eq!(one(&rule, &both, false), Judged::Pass { len: get.len(), skip: 0 });
    refused(&rule, &both[get.len()..], false);
}

/// A datagram has other headers, so only the stream is cut.
fn holds_every_stream_cut(rule: &Rule, message: &[u8]) {
    for cut in 0..message.len() {
        assert_eq!(one(rule, &message[..cut], false), Judged::More, "cut at {cut}");
    }
}
