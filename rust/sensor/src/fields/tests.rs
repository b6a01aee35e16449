//! Attacks and genuine messages, per protocol; every message is also cut, lengthened and doubled.

use super::{Judged, MAX_JUDGED_BYTES, Rule, RuleSet, SessionState, judge};

mod bacnet;
mod coap;
mod config;
mod dnp3;
mod dns;
mod modbus;
mod mqtt;
mod patterns;

/// A rule of `protocol` with `allow` and `deny`, both JSON arrays.
fn rule(protocol: &str, allow: &str, deny: &str) -> Rule {
    let json = format!(
        r#"{{"version":1,"memory_bytes":65536,"rules":[{{"id":7,"name":"t","protocol":"{protocol}","mode":"enforce",
        "unparsable":"drop","allow":{allow},"deny":{deny}}}]}}"#
    );
    let set = RuleSet::parse(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
    some(set.rule(7)).clone()
}

/// A value that the test itself made sure of.
#[track_caller]
fn some<T>(value: Option<T>) -> T {
    value.unwrap_or_else(|| panic!("nothing there"))
}

fn one(rule: &Rule, bytes: &[u8], datagram: bool) -> Judged {
    judge(rule, &mut SessionState::default(), bytes, datagram)
}

#[track_caller]
fn passes(rule: &Rule, bytes: &[u8], datagram: bool) {
    assert_eq!(one(rule, bytes, datagram), Judged::Pass { len: bytes.len(), skip: 0 }, "{bytes:02x?}");
}

#[track_caller]
fn refused(rule: &Rule, bytes: &[u8], datagram: bool) -> String {
    match one(rule, bytes, datagram) {
        Judged::Refuse { len, skip: 0, what } if len == bytes.len() => what,
        other => panic!("{other:?}: {bytes:02x?}"),
    }
}

#[track_caller]
fn malformed(rule: &Rule, bytes: &[u8], datagram: bool) -> &'static str {
    match one(rule, bytes, datagram) {
        Judged::Malformed(why) => why,
        other => panic!("{other:?}: {bytes:02x?}"),
    }
}

/// However a genuine message of a stream is cut, nothing is decided before it is whole, and what follows is not read.
#[track_caller]
fn holds_every_cut(rule: &Rule, message: &[u8]) {
    let whole = one(rule, message, false);
    assert!(matches!(whole, Judged::Pass { .. } | Judged::Refuse { .. }), "{whole:?}");
    for cut in 0..message.len() {
        assert_eq!(one(rule, &message[..cut], false), Judged::More, "cut at {cut}");
        assert!(matches!(one(rule, &message[..cut], true), Judged::Malformed(_)), "datagram cut at {cut}");
    }
    let mut pipelined = message.to_vec();
    pipelined.extend_from_slice(message);
    pipelined.push(0);
    assert_eq!(one(rule, &pipelined, false), whole);
}

#[test]
fn nothing_is_asked_for_beyond_the_bound() {
    for protocol in ["modbus", "dnp3", "bacnet", "mqtt", "coap", "dns"] {
        let key = match protocol {
            "modbus" | "dnp3" => r#"[{"functions":[[0,255]]}]"#,
            "bacnet" => r#"[{"services":[[0,1279]]}]"#,
            "mqtt" => r#"[{"actions":[[1,15]]}]"#,
            "coap" => r#"[{"methods":[[0,255]]}]"#,
            _ => r#"[{"types":[[0,65535]]}]"#,
        };
        let rule = rule(protocol, key, "[]");
        for fill in 0..=255 {
            let long = vec![fill; MAX_JUDGED_BYTES];
            assert_ne!(one(&rule, &long, false), Judged::More, "{protocol} {fill}");
        }
    }
}
