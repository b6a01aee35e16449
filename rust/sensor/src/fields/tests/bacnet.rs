use super::*;

const READ: u32 = 12;
const WRITE: u32 = 15;

fn bvlc(function: u8, rest: &[u8]) -> Vec<u8> {
    [&[0x81, function][..], &(rest.len() as u16 + 4).to_be_bytes(), rest].concat()
}

fn unicast(npdu: &[u8]) -> Vec<u8> {
    bvlc(0x0a, npdu)
}

fn confirmed(service: u32, body: &[u8]) -> Vec<u8> {
    unicast(&[&[1, 4, 0, 5, 1, service as u8][..], body].concat())
}

fn object(tag: u8, kind: u32, instance: u32) -> Vec<u8> {
    [&[tag << 4 | 0x0c][..], &(kind << 22 | instance).to_be_bytes()].concat()
}

fn read(kind: u32, property: u8) -> Vec<u8> {
    confirmed(READ, &[object(0, kind, 1), vec![0x19, property]].concat())
}

fn write(kind: u32, property: u8, value: &[u8], rest: &[u8]) -> Vec<u8> {
    confirmed(WRITE, &[&object(0, kind, 1)[..], &[0x19, property, 0x3e], value, &[0x3f], rest].concat())
}

const ALLOW: &str =
    r#"[{"services":[[12,12],[14,14]],"objects":[[0,2]],"properties":[[85,85]]},{"services":[[264,264]]}]"#;

#[test]
fn reads_of_a_property_pass_and_writes_do_not() {
    let rule = rule("bacnet", ALLOW, "[]");
    passes(&rule, &read(0, 85), true);
    passes(&rule, &read(2, 85), true);
    refused(&rule, &read(3, 85), true);
    refused(&rule, &read(0, 77), true);
    assert_eq!(
        refused(&rule, &write(0, 85, &[0x44, 0, 0, 0, 0], &[]), true),
        "bacnet service confirmed:15 object 0 property 85"
    );
    passes(&rule, &bvlc(0x0b, &[1, 0x20, 0xff, 0xff, 0, 0xff, 0x10, 8]), true); // who-is
    refused(&rule, &bvlc(0x0b, &[1, 0x20, 0xff, 0xff, 0, 0xff, 0x10, 7, 0x3d, 1, 0]), true); // who-has
    holds_every_cut(&rule, &read(0, 85));
    holds_every_cut(&rule, &write(0, 85, &[0x44, 0, 0, 0, 0], &[0x49, 8]));
}

#[test]
fn every_property_of_a_multiple_read_is_judged() {
    let rule = rule("bacnet", ALLOW, "[]");
    let multiple = |second: u8| {
        let body = [&object(0, 0, 1)[..], &[0x1e, 9, 85, 9, second, 0x1f], &object(0, 2, 1), &[0x1e, 9, 85, 0x1f]];
        confirmed(14, &body.concat())
    };
    passes(&rule, &multiple(85), true);
    refused(&rule, &multiple(77), true);
    refused(&rule, &multiple(8), true); // "all" is more than one of them
    let names_hidden = super::rule("bacnet", "[]", r#"[{"properties":[[77,77]]}]"#);
    passes(&names_hidden, &multiple(85), true);
    for special in [77, 8, 80, 105] {
        refused(&names_hidden, &multiple(special), true);
    }
    malformed(&rule, &confirmed(14, &[]), true);
}

#[test]
fn every_property_of_a_multiple_write_is_judged() {
    let rule = rule("bacnet", r#"[{"services":[[16,16]],"objects":[[2,2]],"properties":[[85,85]]}]"#, "[]");
    let multiple = |kind: u32, property: u8| {
        let value = [0x2e, 0x44, 0, 0, 0, 0, 0x2f];
        let body = [
            &object(0, 2, 1)[..],
            &[0x1e, 9, 85],
            &value,
            &[0x39, 8, 9, property],
            &value,
            &[0x1f],
            &object(0, kind, 1),
            &[0x1e, 9, 85],
            &value,
            &[0x1f],
        ];
        confirmed(16, &body.concat())
    };
    passes(&rule, &multiple(2, 85), true);
    refused(&rule, &multiple(2, 87), true);
    refused(&rule, &multiple(1, 85), true);
}

#[test]
fn a_request_hidden_in_a_value_is_the_value() {
    let rule = rule("bacnet", r#"[{"services":[[15,15]],"objects":[[0,0]],"properties":[[85,85]]}]"#, "[]");
    passes(&rule, &write(0, 85, &[0x65, 5, 0x3f, 0x3f, 0x19, 87, 0x3e], &[]), true); // closing tags in an octet string
    passes(&rule, &write(0, 85, &[0x3e, 0x44, 0, 0, 0, 0, 0x3f, 0x0e, 0x0f], &[0x49, 8]), true); // nested
    passes(&rule, &write(0, 85, &[0x11, 0xfe, 20, 0xff, 20], &[]), true); // a boolean, extended tag numbers
    malformed(&rule, &write(0, 85, &[0x44, 0, 0, 0, 0, 0x3f], &[]), true); // ends early, bytes behind
    malformed(&rule, &write(0, 85, &[0x4f], &[]), true); // the wrong end
    malformed(&rule, &write(0, 85, &[0x0e; 9], &[]), true); // too deep
    malformed(&rule, &write(0, 85, &[0x65, 200], &[]), true); // a string past the end
    malformed(&rule, &write(0, 85, &[0x65, 255, 255, 255, 255, 255], &[]), true);
    malformed(&rule, &write(0, 85, &[], &[0x49, 8, 0]), true);
}

#[test]
fn routed_and_forwarded_requests_are_read_where_they_are() {
    let rule = rule("bacnet", ALLOW, "[]");
    let apdu = |service: u8| [&[0, 5, 1, service][..], &object(0, 0, 1), &[0x19, 85]].concat();
    for (service, allowed) in [(12, true), (15, false)] {
        let mut rest = apdu(service);
        if service == 15 {
            rest.extend_from_slice(&[0x3e, 0x00, 0x3f]);
        }
        let routed = unicast(&[&[1, 0x2c, 0, 5, 1, 9, 0, 7, 6, 1, 2, 3, 4, 0xba, 0xc0, 255][..], &rest].concat());
        let forwarded = bvlc(4, &[&[192, 0, 2, 1, 0xba, 0xc0, 1, 4][..], &rest].concat());
        let distribute = bvlc(9, &[&[1, 4][..], &rest].concat());
        for message in [routed, forwarded, distribute] {
            if allowed {
                passes(&rule, &message, true);
            } else {
                refused(&rule, &message, true);
            }
        }
    }
}

#[test]
fn lengths_that_lie_are_malformed() {
    let rule = rule("bacnet", r#"[{"services":[[0,1279]]}]"#, "[]");
    let good = read(0, 85);
    for cut in 1..good.len() {
        malformed(&rule, &good[..cut], true);
        let mut fitted = good[..cut].to_vec(); // the outer length says so, too
        if cut >= 4 {
            fitted[3] = cut as u8;
            malformed(&rule, &fitted, true);
        }
    }
    malformed(&rule, &[&good[..], &[0]].concat(), true); // padding
    malformed(&rule, &[&good[..], &write(0, 85, &[0], &[])].concat(), true); // a second message
    let mut padded = [&good[..], &[0]].concat();
    padded[3] += 1;
    malformed(&rule, &padded, true);
}

#[test]
fn what_no_client_sends_is_malformed() {
    let rule = rule("bacnet", r#"[{"services":[[0,767]]}]"#, "[]");
    malformed(&rule, &[0x82, 0x0a, 0, 4], true);
    malformed(&rule, &bvlc(0x0c, &[0; 20]), true); // sealed
    malformed(&rule, &unicast(&[2, 0, 0x10, 8]), true);
    malformed(&rule, &unicast(&[1, 0x10, 0x10, 8]), true);
    malformed(&rule, &unicast(&[1, 4, 0x08, 5, 1, 0, 1, 15]), true); // segmented
    malformed(&rule, &unicast(&[1, 4, 0x04, 5, 1, 15]), true);
    malformed(&rule, &unicast(&[1, 0, 0x90, 0]), true);
    malformed(&rule, &confirmed(READ, &[0x0b, 0, 0, 1, 0x19, 85]), true); // an object of three bytes
    for answer in [[0x20, 1, 15], [0x30, 1, 12], [0x50, 1, 12], [0x41, 1, 0]] {
        refused(&rule, &unicast(&[&[1, 0][..], &answer, &[0]].concat()), true); // needs "answer:N" by name
    }
}

#[test]
fn a_client_may_receive_what_it_asked_for() {
    let rule = rule("bacnet", ALLOW, "[]");
    passes(&rule, &unicast(&[1, 0, 0x40, 1, 0, 4]), true); // the next segment, please
    passes(&rule, &unicast(&[1, 0, 0x70, 1, 4]), true); // no more of it
    malformed(&rule, &unicast(&[1, 0, 0x40, 1, 0, 4, 0]), true);
    malformed(&rule, &unicast(&[1, 0, 0x70, 1]), true);
}

#[test]
fn management_of_the_network_has_numbers_of_its_own() {
    let rule = rule("bacnet", r#"[{"services":[[517,517],[768,768]]}]"#, "[]");
    passes(&rule, &bvlc(5, &[0, 60]), true); // register as foreign device
    refused(&rule, &bvlc(1, &[0; 10]), true);
    passes(&rule, &unicast(&[1, 0x80, 0]), true); // who is the router
    assert_eq!(refused(&rule, &unicast(&[1, 0x80, 6, 1]), true), "bacnet service network:6");
}

#[test]
fn subscriptions_name_their_object() {
    let rule = rule("bacnet", r#"[{"services":[[5,5],[28,28]],"objects":[[0,0]],"properties":[[85,85]]}]"#, "[]");
    let subscribe = |kind| confirmed(5, &[&[9, 1][..], &object(1, kind, 1), &[0x29, 0, 0x39, 60]].concat());
    passes(&rule, &subscribe(0), true);
    refused(&rule, &subscribe(3), true);
    let property = |p| confirmed(28, &[&[9, 1][..], &object(1, 0, 1), &[0x29, 0, 0x39, 60, 0x4e, 9, p, 0x4f]].concat());
    passes(&rule, &property(85), true);
    refused(&rule, &property(77), true);
}

#[test]
fn services_that_are_not_read_match_no_object() {
    let rule = rule("bacnet", r#"[{"services":[[0,255]],"objects":[[0,1023]]}]"#, "[]");
    for service in [7, 10, 11, 18, 20, 99] {
        refused(&rule, &confirmed(service, &[0xc4, 0, 0, 0, 1]), true);
    }
    let denied = super::rule("bacnet", "[]", r#"[{"objects":[[8,8]]}]"#);
    refused(&denied, &confirmed(11, &[0xc4, 2, 0, 0, 1]), true);
    passes(&denied, &confirmed(20, &[9, 0]), true); // restarting has no object: deny it by its name
}
