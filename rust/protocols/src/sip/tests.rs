//! Messages made by hand.

use super::*;
use crate::Json;

const UP: &[u8] =
    b"INVITE sip:bob@b.test SIP/2.0\r\nVia: SIP/2.0/TCP a\r\nv: SIP/2.0/TCP b\r\nf: Alice <sip:a@a.test>\r\n\
To: Bob\r\nUser-Agent: phone\r\n 1\r\nContent-Type: application/sdp\r\nl: 5\r\n\r\nv=0\r\n\r\n\r\n\
ACK sip:bob@b.test SIP/2.0\r\nTo: Bob\r\n\r\n";
const DOWN: &[u8] = b"SIP/2.0 100 Trying\r\n\r\nSIP/2.0 404 Not Found\r\nContent-Length: 0\r\n\r\n";

fn parser(transport: Transport) -> Box<dyn Parser> {
    (PROTOCOL.parser)(&Settings::default(), transport)
}

fn feed(parser: &mut dyn Parser, way: Way, data: &[u8], cut: usize) {
    let used = parser.parse(way, &data[..cut], false).unwrap_or(usize::MAX);
    assert_eq!(parser.parse(way, &data[used..], false), Ok(data.len() - used), "cut at {cut}");
}

fn session(cut: usize) -> Vec<String> {
    let mut parser = parser(Transport::Tcp);
    feed(parser.as_mut(), Way::ToServer, UP, cut.min(UP.len()));
    feed(parser.as_mut(), Way::ToClient, DOWN, cut.min(DOWN.len()));
    let (first, end) = parser.range();
    let write = |id| {
        let mut out = String::new();
        parser.transaction(id).inspect(|transaction| transaction.log(None, &mut Json::inside(&mut out, false)));
        out
    };
    (first..end).map(write).collect()
}

#[test]
fn every_cut_gives_the_same() {
    let expected = session(0);
    assert_eq!(
        expected,
        [
            r#""sip":{"method":"INVITE","uri":"sip:bob@b.test","version":"SIP/2.0","request_line":"INVITE sip:bob@b.test SIP/2.0"}"#,
            r#""sip":{"method":"ACK","uri":"sip:bob@b.test","version":"SIP/2.0","request_line":"ACK sip:bob@b.test SIP/2.0"}"#,
            r#""sip":{"code":"100","reason":"Trying","version":"SIP/2.0","response_line":"SIP/2.0 100 Trying"}"#,
            r#""sip":{"code":"404","reason":"Not Found","version":"SIP/2.0","response_line":"SIP/2.0 404 Not Found"}"#,
        ]
    );
    for cut in 0..UP.len() {
        assert_eq!(session(cut), expected, "cut at {cut}");
    }
}

#[test]
fn short_names_count_as_long_ones() {
    let mut parser = parser(Transport::Udp);
    assert_eq!(parser.parse(Way::ToServer, UP, true), Ok(UP.len()));
    let Some(message) = parser.transaction(0) else { panic!("no message") };
    let text = |keyword: &str, way, nth| {
        let index = PROTOCOL.buffers.iter().position(|info| info.keyword == keyword).unwrap_or(usize::MAX);
        message.buffer(index, way, nth).map(|view| String::from_utf8_lossy(view.data).into_owned())
    };
    let rows = [
        ("sip.from", 0, Some("Alice <sip:a@a.test>")),
        ("sip.via", 1, Some("SIP/2.0/TCP b")),
        ("sip.via", 2, None),
        ("sip.user_agent", 0, Some("phone 1")),
        ("sip.content_type", 0, Some("application/sdp")),
        ("sip.content_length", 0, Some("5")),
        ("sip.protocol", 0, Some("SIP/2.0")),
        ("sip.stat_code", 0, None),
    ];
    for (keyword, nth, expected) in rows {
        assert_eq!(text(keyword, Way::ToServer, nth).as_deref(), expected, "{keyword}");
    }
    assert_eq!(text("sip.from", Way::ToClient, 0), None, "it went the other way");
}

#[test]
fn datagrams_that_are_no_messages_are_told() {
    let rows: [(&[u8], &[u8]); 4] = [
        (b"\r\n\r\n", &[]),
        (b"jaK\0", &[]),
        (b"INVITE nonsense", &[event::INVALID_DATA]),
        (b"BYE sip:a SIP/2.0\r\nTo: x", &[event::INCOMPLETE_DATA]),
    ];
    for (data, expected) in rows {
        let mut parser = parser(Transport::Udp);
        assert_eq!(parser.parse(Way::ToServer, data, true), Ok(data.len()));
        let events = parser.transaction(0).map(|message| message.events().to_vec()).unwrap_or_default();
        assert_eq!(events, expected, "{:?}", String::from_utf8_lossy(data));
    }
}

#[test]
fn other_protocols_of_the_same_shape_are_not_recognised() {
    let rows: [(&[u8], Transport, Probe); 8] = [
        (b"REGISTER sip:x SIP/2.0\r\n", Transport::Udp, Probe::Yes),
        (b"SIP/2.0 200 OK\r\n", Transport::Udp, Probe::Yes),
        (b"OPTIONS", Transport::Tcp, Probe::More),
        (b"OPTIONS", Transport::Udp, Probe::No),
        (b"OPTIONS rtsp://x RTSP/1.0\r\n", Transport::Tcp, Probe::No),
        (b"NOTIFY * HTTP/1.1\r\n", Transport::Udp, Probe::No),
        (b"OPTIONS * HTTP/1.1", Transport::Tcp, Probe::No),
        (b"SIP", Transport::Tcp, Probe::More),
    ];
    for (data, transport, expected) in rows {
        let start = Start { data, way: Way::ToServer, transport, is_usual_port: true };
        assert_eq!((PROTOCOL.probe)(&start), expected, "{:?}", String::from_utf8_lossy(data));
    }
}

#[test]
fn bent_messages_never_panic_and_stay_small() {
    for transport in [Transport::Tcp, Transport::Udp] {
        crate::line::mutation::run(UP, DOWN, 2000, 64 << 10, || parser(transport));
    }
}
