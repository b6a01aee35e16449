use super::*;
use crate::testing::{Talk, events, feed, json, matches, torture};

fn frame(control: u8, user: &[u8]) -> Vec<u8> {
    let mut out = vec![5, 0x64, 5 + user.len() as u8, control, 1, 0, 2, 0];
    out.extend_from_slice(&crc::crc(&out).to_le_bytes());
    for block in user.chunks(16) {
        out.extend_from_slice(block);
        out.extend_from_slice(&crc::crc(block).to_le_bytes());
    }
    out
}

fn talk() -> Talk {
    let operate = [
        0xc0, 0xc2, 5, 12, 1, 0x28, 1, 0, 7, 0, 0x41, 1, 0xe8, 3, 0, 0, 0xe8, 3, 0, 0, 0, 50, 1, 7, 1, 1, 2, 3, 4, 5, 6,
    ];
    vec![
        (Way::ToServer, frame(0xc4, &[0xc0, 0xc1, 1, 60, 2, 6, 60, 3, 6, 1, 2, 0, 0, 9])),
        (Way::ToClient, frame(0x44, &[0x40, 0xe1, 129, 0x90, 0, 1, 2, 0, 0, 1])),
        (Way::ToClient, frame(0x44, &[0x81, 0x81, 1, 30, 1, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff])),
        (Way::ToServer, frame(0xc9, &[])),
        (Way::ToServer, frame(0xc4, &operate)),
    ]
}

#[test]
fn the_checksum_is_the_standards() {
    // the example of IEEE 1815: a reset of the link
    assert!(crc::is_right(&[0x05, 0x64, 0x05, 0xc0, 0x01, 0x00, 0x00, 0x04, 0xe9, 0x21]));
}

#[test]
fn fragments_are_put_together_and_read() {
    let parser = feed(&PROTOCOL, Transport::Tcp, &talk(), usize::MAX);
    assert_eq!(parser.range(), (0, 3));
    let text = json(&*parser, 0);
    assert!(
        text.starts_with(r#""dnp3":{"request":{"type":"request","control":{"dir":true,"pri":true,"fcb":false"#),
        "{text}"
    );
    assert!(text.contains(r#"{"group":60,"variation":2,"qualifier":6,"prefix_code":0,"range_code":6,"start":0"#));
    let text = json(&*parser, 1);
    assert!(text.contains(r#""indicators":["need_time","device_restart"]"#), "{text}");
    assert!(text.contains(r#""index":1,"online":1"#) && text.contains(r#""value":-1"#), "{text}");
    assert!(json(&*parser, 2).contains(r#""index":7,"op_type":1,"qu":0,"cr":0,"tcc":1,"count":1,"ontime":1000"#));
    assert!(json(&*parser, 2).contains(r#""complete":true"#));
    assert!((0..3).all(|id| events(&PROTOCOL, &*parser, id).is_empty()));
}

#[test]
fn rules_can_ask() {
    let parser = feed(&PROTOCOL, Transport::Tcp, &talk(), usize::MAX);
    let rows = [
        (0, "dnp3_obj", "60,3", Way::ToServer, true),
        (0, "dnp3_obj", "60, 4", Way::ToServer, false),
        (0, "dnp3_obj", "60,3", Way::ToClient, false),
        (1, "dnp3_ind", "device_restart", Way::ToClient, true),
        (1, "dnp3_ind", "class_1_events,need_time", Way::ToClient, true),
        (1, "dnp3_ind", "object_unknown", Way::ToClient, false),
        (2, "dnp3_obj", "12,1", Way::ToServer, true),
    ];
    for (id, name, argument, way, is_match) in rows {
        assert_eq!(matches(&PROTOCOL, &*parser, id, name, argument, way), is_match, "{name}:{argument}");
    }
    let function = |id: u64, way| parser.transaction(id).and_then(|it| it.number(0, way, 0));
    assert_eq!(
        (function(0, Way::ToServer), function(1, Way::ToClient), function(2, Way::ToServer)),
        (Some(1), Some(129), Some(5))
    );
}

#[test]
fn lies_become_events() {
    let mut bad_header = frame(0xc4, &[0xc0, 0xc1, 1]);
    bad_header[9] ^= 1;
    let mut bad_block = frame(0xc4, &[0xc0, 0xc1, 1, 60, 1, 6]);
    bad_block[12] ^= 1;
    let rows = [
        (bad_header, "bad_link_crc"),
        (bad_block, "bad_transport_crc"),
        (frame(0xc4, &[]), "len_too_small"),
        (frame(0xc4, &[0xc0, 0xc1, 2, 200, 1, 0, 0, 0, 1]), "unknown_object"),
        (frame(0xc4, &[0xc0, 0xc1, 2, 50, 1, 7, 9, 1]), "malformed"),
        (frame(0xc4, &[0xc0, 0xc1, 1, 1, 1, 2, 0, 0, 0, 0, 255, 255, 255, 0]), "too_many_points"),
    ];
    for (bytes, name) in rows {
        let parser = feed(&PROTOCOL, Transport::Tcp, &vec![(Way::ToServer, bytes)], usize::MAX);
        assert_eq!(events(&PROTOCOL, &*parser, 0), [name]);
    }
}

#[test]
fn rubbish_between_frames_is_passed_over() {
    let mut talk = talk();
    talk.insert(1, (Way::ToServer, vec![0x00, 0x05, 0x05, 0x64 ^ 1, 0x77]));
    assert_eq!(feed(&PROTOCOL, Transport::Tcp, &talk, 3).range(), (0, 3));
}

#[test]
fn cuts_and_mutations_do_no_harm() {
    torture(&PROTOCOL, Transport::Tcp, &talk(), 1 << 20);
}
