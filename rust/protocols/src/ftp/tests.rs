//! Sessions made by hand.

use super::*;
use crate::{Json, Parser};

const UP: &[u8] =
    b"USER anonymous\r\nPASS x\r\nPORT 192,168,0,13,234,10\r\nRETR temp.txt\r\nEPSV\r\nSTOR up.bin\r\nQUIT\r\n";
const DOWN: &[u8] =
    b"220-Welcome\r\n to this\r\n220 ready\r\n331 Please specify the password.\r\n230 in.\r\n200 PORT ok.\r\n\
    150 Opening.\r\n226 Transfer complete.\r\n229 Extended (|||55007|)\r\n150 go\r\n226 done\r\n221 Bye.\r\n";

fn parser() -> Box<dyn Parser> {
    (PROTOCOL.parser)(&Settings::default(), Transport::Tcp)
}

fn feed(parser: &mut dyn Parser, way: Way, data: &[u8], cut: usize) {
    let used = parser.parse(way, &data[..cut], false).unwrap_or(usize::MAX);
    assert_eq!(parser.parse(way, &data[used..], false), Ok(data.len() - used), "cut at {cut}");
}

fn written(parser: &dyn Parser) -> Vec<String> {
    let (first, end) = parser.range();
    let write = |id| {
        let mut out = String::new();
        parser.transaction(id).inspect(|transaction| transaction.log(Some(0), &mut Json::inside(&mut out, false)));
        out
    };
    (first..end).map(write).collect()
}

/// The greeting, then as if every command waited for its reply.
fn session(cut_up: usize, cut_down: usize) -> Vec<String> {
    let mut parser = parser();
    let greeting = DOWN.windows(7).position(|window| window == b"ready\r\n").unwrap_or(0) + 7;
    feed(parser.as_mut(), Way::ToClient, &DOWN[..greeting], cut_down.min(greeting));
    feed(parser.as_mut(), Way::ToServer, UP, cut_up);
    let rest = &DOWN[greeting..];
    feed(parser.as_mut(), Way::ToClient, rest, cut_down.saturating_sub(greeting).min(rest.len()));
    written(parser.as_ref())
}

#[test]
fn every_cut_gives_the_same() {
    let expected = session(0, 0);
    assert_eq!(expected.len(), 8, "a greeting and seven commands: {expected:#?}");
    assert_eq!(
        expected[0],
        r#""ftp":{"completion_code":["220","220"],"reply":["Welcome"," to this","ready"],"reply_received":"yes","reply_truncated":false}"#
    );
    assert_eq!(
        expected[3],
        concat!(
            r#""ftp":{"command":"PORT","command_data":"192,168,0,13,234,10","command_truncated":false,"#,
            r#""completion_code":["200"],"reply":["PORT ok."],"dynamic_port":59914,"mode":"active","#,
            r#""reply_received":"yes","reply_truncated":false}"#
        )
    );
    assert!(expected[4].contains(r#""reply":["Opening.","Transfer complete."]"#), "{}", expected[4]);
    assert!(expected[5].contains(r#""dynamic_port":55007,"mode":"passive""#), "{}", expected[5]);
    for cut in 0..UP.len() {
        assert_eq!(session(cut, 0), expected, "up, cut at {cut}");
    }
    for cut in 0..DOWN.len() {
        assert_eq!(session(0, cut), expected, "down, cut at {cut}");
    }
}

#[test]
fn transfers_announce_their_data() {
    // one command at a time: a port belongs to the transfer behind it
    let mut parser = parser();
    for (way, line) in [
        (Way::ToServer, "PORT 10,0,0,1,1,0\r\n"),
        (Way::ToServer, "RETR a\r\n"),
        (Way::ToServer, "EPSV\r\n"),
        (Way::ToClient, "200 ok\r\n226 done\r\n229 x (|||700|)\r\n"),
        (Way::ToServer, "STOR b\r\n"),
        (Way::ToServer, "STOR c\r\n"),
    ] {
        feed(parser.as_mut(), way, line.as_bytes(), 0);
    }
    let expected = |id| {
        let transaction = parser.transaction(id)?.as_any().downcast_ref::<FtpTransaction>()?;
        transaction.expected().map(|all| (all.port, all.is_active, all.transfer, all.name.clone()))
    };
    assert_eq!(expected(1), Some((256, true, Transfer::Retrieve, b"a".to_vec())));
    assert_eq!(expected(3), Some((700, false, Transfer::Store, b"b".to_vec())));
    assert_eq!(expected(4), None, "a port serves one transfer");
}

#[test]
fn a_file_is_the_flow() {
    let expected = Expected { port: 1, is_active: true, transfer: Transfer::Store, name: b"up".to_vec() };
    let mut parser = data_parser(&expected);
    assert_eq!(parser.parse(Way::ToClient, b"content", true), Ok(7));
    let Some(transaction) = parser.transaction(0) else { panic!("no file") };
    assert_eq!(transaction.files()[0].view().data, b"content");
    assert_eq!(transaction.files()[0].state, crate::BodyState::Closed);
    assert!(transaction.buffer(0, Way::ToServer, 0).is_none(), "the other way has no file");
    let asks = |text| (DATA.keywords[0].parse)(text).is_ok_and(|custom| custom.matches(transaction, Way::ToClient));
    assert!(asks("stor") && !asks("retr") && (DATA.keywords[0].parse)("list").is_err());
}

#[test]
fn keywords_ask_for_what_they_name() {
    let mut parser = parser();
    feed(parser.as_mut(), Way::ToServer, b"PORT 10,0,0,9,1,0\r\nNOOP\r\n", 0);
    feed(parser.as_mut(), Way::ToClient, b"200 ok\r\n", 0);
    let ask = |index: usize, text: &str, id: u64| {
        let (Ok(custom), Some(transaction)) = ((PROTOCOL.keywords[index].parse)(text), parser.transaction(id)) else {
            panic!("{text} is not read")
        };
        custom.matches_between(transaction, Way::ToServer, "10.0.0.1".parse().unwrap_or([0, 0, 0, 0].into()))
    };
    assert!(ask(0, "active", 0) && !ask(0, "passive", 0) && !ask(0, "passive", 1));
    assert!(ask(1, "yes", 0) && ask(1, "no", 1));
    assert!(ask(2, "", 0) && !ask(2, "", 1));
}

#[test]
fn long_lines_are_cut_and_told() {
    let mut parser = parser();
    let long = [b"USER ".to_vec(), vec![b'a'; 9000], b"\r\nQUIT\r\n".to_vec()].concat();
    feed(parser.as_mut(), Way::ToServer, &long, 0);
    assert_eq!(parser.range(), (0, 2));
    assert_eq!(parser.transaction(0).map(|all| all.events().to_vec()), Some(vec![event::REQUEST_TOO_LONG]));
}

#[test]
fn tls_takes_over_after_the_reply() {
    let mut parser = parser();
    feed(parser.as_mut(), Way::ToServer, b"AUTH TLS\r\n", 0);
    assert_eq!(parser.upgraded(), None);
    feed(parser.as_mut(), Way::ToClient, b"234 go\r\n", 0);
    assert_eq!((parser.upgraded(), parser.upgraded()), (Some("tls"), None));
}

#[test]
fn greetings_and_commands_are_recognised() {
    let rows: [(&[u8], Way, bool, Probe); 10] = [
        (b"220 (vsFTPd 3.0.3)\r\n", Way::ToClient, false, Probe::Yes),
        (b"220 hello\r\n", Way::ToClient, true, Probe::Yes),
        (b"220 mail ESMTP\r\n", Way::ToClient, false, Probe::No),
        (b"220 hello\r\n", Way::ToClient, false, Probe::More),
        (b"2", Way::ToClient, true, Probe::More),
        (b"USER me\r\n", Way::ToServer, false, Probe::Yes),
        (b"USER a 0 * :irc\r\n", Way::ToServer, false, Probe::No),
        (b"US", Way::ToServer, false, Probe::More),
        (b"GET / HTTP/1.0\r\n", Way::ToServer, true, Probe::No),
        (b"2205\r\n", Way::ToClient, true, Probe::No),
    ];
    for (data, way, is_usual_port, expected) in rows {
        let start = Start { data, way, transport: Transport::Tcp, is_usual_port };
        assert_eq!((PROTOCOL.probe)(&start), expected, "{:?}", String::from_utf8_lossy(data));
    }
}

#[test]
fn bent_sessions_never_panic_and_stay_small() {
    crate::line::mutation::run(UP, DOWN, 3000, 64 << 10, || parser());
}
