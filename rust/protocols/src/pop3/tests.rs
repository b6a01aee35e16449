//! Sessions made by hand.

use super::*;
use crate::Json;

const UP: &[u8] = b"USER me\r\nPASS x y\r\nLIST\r\nDELE 9\r\nAUTH PLAIN\r\nc2VjcmV0\r\nQUIT\r\n";
const GREETING: &[u8] = b"+OK POP3 ready\r\n";
const DOWN: &[u8] = b"+OK\r\n+OK in\r\n+OK 2\r\n1 120\r\n2 200\r\n.\r\n-ERR no such\r\n+ \r\n+OK auth\r\n+OK bye\r\n";

fn parser() -> Box<dyn Parser> {
    (PROTOCOL.parser)(&Settings::default(), Transport::Tcp)
}

fn feed(parser: &mut dyn Parser, way: Way, data: &[u8], cut: usize) {
    let used = parser.parse(way, &data[..cut], false).unwrap_or(usize::MAX);
    assert_eq!(parser.parse(way, &data[used..], false), Ok(data.len() - used), "cut at {cut}");
}

fn session(up: usize, down: usize) -> Vec<String> {
    let mut parser = parser();
    feed(parser.as_mut(), Way::ToClient, GREETING, down.min(GREETING.len()));
    let quit = UP.len() - 6;
    feed(parser.as_mut(), Way::ToServer, &UP[..quit], up.min(quit));
    feed(parser.as_mut(), Way::ToClient, DOWN, down.min(DOWN.len()));
    feed(parser.as_mut(), Way::ToServer, &UP[quit..], up.saturating_sub(quit));
    let (first, end) = parser.range();
    let write = |id| {
        let mut out = String::new();
        parser.transaction(id).inspect(|exchange| exchange.log(None, &mut Json::inside(&mut out, false)));
        out
    };
    (first..end).map(write).collect()
}

#[test]
fn every_cut_gives_the_same() {
    let expected = session(0, 0);
    assert_eq!(expected[0], r#""pop3":{"response":{"success":true,"status":"OK","header":"POP3 ready","data":[]}}"#);
    assert_eq!(
        expected[3],
        concat!(
            r#""pop3":{"request":{"command":"LIST","args":[]},"#,
            r#""response":{"success":true,"status":"OK","header":"2","data":["1 120","2 200"]}}"#
        )
    );
    assert!(expected[4].contains(r#""success":false,"status":"ERR","header":"no such""#), "{}", expected[4]);
    assert!(expected[5].contains("PLAIN") && !expected[5].contains("c2Vj"), "credentials are no command");
    for cut in 0..UP.len() {
        assert_eq!(session(cut, 0), expected, "up, cut at {cut}");
    }
    for cut in 0..DOWN.len() {
        assert_eq!(session(0, cut), expected, "down, cut at {cut}");
    }
}

#[test]
fn tls_takes_over_after_the_response() {
    let mut parser = parser();
    feed(parser.as_mut(), Way::ToServer, b"STLS\r\n", 0);
    feed(parser.as_mut(), Way::ToClient, b"+OK go\r\n", 0);
    assert_eq!(parser.upgraded(), Some("tls"));
    assert_eq!(parser.parse(Way::ToServer, b"\x16\x03", false), Ok(0));
}

#[test]
fn servers_are_recognised() {
    let rows: [(&[u8], Way, bool, Probe); 7] = [
        (b"+OK ready\r\n", Way::ToClient, true, Probe::Yes),
        (b"+OK Dovecot POP3\r\n", Way::ToClient, false, Probe::Yes),
        (b"+OK\r\n", Way::ToClient, false, Probe::No),
        (b"+O", Way::ToClient, false, Probe::More),
        (b"CAPA\r\n", Way::ToServer, false, Probe::Yes),
        (b"USER a\r\n", Way::ToServer, false, Probe::No),
        (b"USER a\r\n", Way::ToServer, true, Probe::Yes),
    ];
    for (data, way, is_usual_port, expected) in rows {
        let start = Start { data, way, transport: Transport::Tcp, is_usual_port };
        assert_eq!((PROTOCOL.probe)(&start), expected, "{:?}", String::from_utf8_lossy(data));
    }
}

#[test]
fn bent_sessions_never_panic_and_stay_small() {
    crate::line::mutation::run(UP, DOWN, 3000, 64 << 10, parser);
}
