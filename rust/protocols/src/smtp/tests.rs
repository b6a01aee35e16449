//! Sessions made by hand.

use super::*;
use crate::{Json, Parser};

const GREETING: &[u8] = b"220 mail ESMTP\r\n";
const UP: &[u8] =
    b"EHLO client.test\r\nMAIL FROM:<a@b.test> SIZE=9\r\nRCPT TO:<c@d.test>\r\nRCPT TO: <e@f.test>\r\nDATA\r\n\
From: A <a@b.test>\r\nTo: c@d.test,\r\n e@f.test\r\nSubject: hello\r\n there\r\nMessage-ID: <1@b>\r\n\
Received: from x\r\nReceived: from y\r\nContent-Type: multipart/mixed; boundary=\"XX\"\r\n\r\npreamble\r\n\
--XX\r\nContent-Type: multipart/alternative;\r\n boundary=YY\r\n\r\n\
--YY\r\nContent-Type: text/plain\r\n\r\nsee http://evil.test/a?b <here>\r\n..dot\r\n\r\n--YY--\r\n\
--XX\r\nContent-Type: application/x; name=\"one.bin\"\r\nContent-Transfer-Encoding: base64\r\n\r\n\
aGVsbG8g\r\nd29ybGQ=\r\n--XX\r\nContent-Disposition: attachment; filename=two.txt\r\n\
Content-Transfer-Encoding: quoted-printable\r\n\r\na=3Db=\r\nc\r\nd\r\n--XX--\r\n.\r\n\
MAIL FROM:<z@b.test>\r\nRCPT TO:<y@d.test>\r\nBDAT 20\r\nSubject: chunks\r\n\r\n.\nBDAT 3 LAST\r\nendQUIT\r\n";
const DOWN: &[u8] =
    b"250-mail\r\n250-SIZE\r\n250 PIPELINING\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n250 queued\r\n250 ok\r\n\
250 ok\r\n250 chunk\r\n250 queued\r\n221 bye\r\n";

fn parser() -> Box<dyn Parser> {
    let mut settings = Settings::default();
    settings.set("outputs.eve-log.types.smtp.extended", "yes");
    (PROTOCOL.parser)(&settings, Transport::Tcp)
}

fn feed(parser: &mut dyn Parser, way: Way, data: &[u8], cut: usize) {
    let used = parser.parse(way, &data[..cut], false).unwrap_or(usize::MAX);
    assert_eq!(parser.parse(way, &data[used..], false), Ok(data.len() - used), "cut at {cut}");
}

fn written(parser: &dyn Parser) -> Vec<String> {
    let (first, end) = parser.range();
    let write = |id| {
        let mut out = String::new();
        if let Some(transaction) = parser.transaction(id) {
            transaction.log(Some(0), &mut Json::inside(&mut out, false));
            for file in transaction.files() {
                out += &format!("\n{:?} {:?}", file.state, String::from_utf8_lossy(file.view().data));
            }
            out += &format!("\n{:?}", transaction.events());
        }
        out
    };
    (first..end).map(write).collect()
}

/// As if the server offered to pipeline at once.
fn session(cut_up: usize, cut_down: usize) -> Vec<String> {
    let mut parser = parser();
    feed(parser.as_mut(), Way::ToClient, GREETING, 0);
    let hello = 18;
    feed(parser.as_mut(), Way::ToServer, &UP[..hello], cut_up.min(hello));
    let answer = 36;
    feed(parser.as_mut(), Way::ToClient, &DOWN[..answer], cut_down.min(answer));
    feed(parser.as_mut(), Way::ToServer, &UP[hello..], cut_up.saturating_sub(hello));
    feed(parser.as_mut(), Way::ToClient, &DOWN[answer..], cut_down.saturating_sub(answer));
    written(parser.as_ref())
}

#[test]
fn every_cut_gives_the_same() {
    let expected = session(0, 0);
    assert_eq!(
        expected[0],
        concat!(
            r#""smtp":{"helo":"client.test","mail_from":"<a@b.test>","rcpt_to":["<c@d.test>","<e@f.test>"]},"#,
            r#""email":{"status":"PARSE_DONE","from":"A <a@b.test>","to":["c@d.test","e@f.test"],"message_id":"<1@b>","#,
            r#""subject":"hello there","received":["from x","from y"],"attachment":["one.bin","two.txt"],"#,
            r#""url":["evil.test/a?b"]}"#,
            "\nClosed \"hello world\"\nClosed \"a=bc\\r\\nd\"\n[]"
        )
    );
    assert_eq!(
        expected[1],
        concat!(
            r#""smtp":{"helo":"client.test","mail_from":"<z@b.test>","rcpt_to":["<y@d.test>"]},"#,
            r#""email":{"status":"PARSE_DONE","subject":"chunks"}"#,
            "\n[]"
        )
    );
    assert_eq!(expected.len(), 2, "QUIT begins no mail");
    for cut in 0..UP.len() {
        assert_eq!(session(cut, 0), expected, "up, cut at {cut}");
    }
    for cut in 0..DOWN.len() {
        assert_eq!(session(0, cut), expected, "down, cut at {cut}");
    }
}

#[test]
fn buffers_are_there_once_they_are_complete() {
    let mut parser = parser();
    let end = UP.len() - 30;
    feed(parser.as_mut(), Way::ToServer, UP, end);
    let Some(transaction) = parser.transaction(0) else { panic!("no mail") };
    let texts = |keyword: &str| -> Vec<String> {
        let index = PROTOCOL.buffers.iter().position(|info| info.keyword == keyword).unwrap_or(usize::MAX);
        let views = (0..9).map_while(|nth| transaction.buffer(index, Way::ToServer, nth));
        views.map(|view| String::from_utf8_lossy(view.data).into_owned()).collect()
    };
    assert_eq!(texts("smtp.rcpt_to"), ["<c@d.test>", "<e@f.test>"]);
    assert_eq!(texts("email.to"), ["c@d.test, e@f.test"]);
    assert_eq!(texts("email.received"), ["from x", "from y"]);
    assert_eq!(texts("email.url"), ["evil.test/a?b"]);
    assert_eq!(texts("file.data"), ["hello world", "a=bc\r\nd"]);
    assert_eq!(texts("file.name"), ["one.bin", "two.txt"]);
    assert!(texts("email.cc").is_empty() && texts("email.x_mailer").is_empty());
}

type Step<'d> = (Way, &'d [u8]);

fn events(steps: &[Step<'_>]) -> Vec<&'static str> {
    let mut parser = parser();
    for (way, data) in steps {
        feed(parser.as_mut(), *way, data, 0);
    }
    let (first, end) = parser.range();
    let all =
        (first..end).filter_map(|id| parser.transaction(id)).flat_map(|transaction| transaction.events().to_vec());
    all.map(|event| EVENTS[usize::from(event)]).collect()
}

#[test]
fn each_fault_has_its_event() {
    use Way::{ToClient, ToServer};
    let hello: Step<'_> = (ToServer, b"HELO a\r\n");
    let welcome: Step<'_> = (ToClient, b"220 hi\r\n");
    let mail = |body: &[u8]| [b"EHLO a\r\nDATA\r\n", body, b"\r\n.\r\n"].concat();
    let long = |begin: &[u8], count: usize| mail(&[begin, &vec![b'a'; count]].concat());
    let rows: Vec<(&str, Vec<Step<'_>>)> = vec![
        ("invalid_reply", vec![welcome, hello, (ToClient, b"ok\r\n")]),
        ("unable_to_match_reply_with_request", vec![welcome, hello, (ToClient, b"250 a\r\n250 b\r\n")]),
        ("no_server_welcome_message", vec![(ToClient, b"250 a\r\n"), hello]),
        (
            "tls_rejected",
            vec![welcome, hello, (ToClient, b"250 a\r\n"), (ToServer, b"STARTTLS\r\n"), (ToClient, b"454 no\r\n")],
        ),
        (
            "data_command_rejected",
            vec![welcome, hello, (ToClient, b"250 a\r\n"), (ToServer, b"DATA\r\n"), (ToClient, b"503 no\r\n")],
        ),
        ("invalid_pipelined_sequence", vec![welcome, (ToServer, b"HELO a\r\nMAIL FROM:<a>\r\n")]),
        ("bdat_chunk_len_exceeded", vec![welcome, hello, (ToClient, b"250 a\r\n"), (ToServer, b"BDAT 4294967296\r\n")]),
    ];
    for (expected, steps) in rows {
        assert_eq!(events(&steps), [expected]);
    }
    let rows: [(&str, Vec<u8>); 9] = [
        ("max_command_line_len_exceeded", [&b"EHLO "[..], &[b'a'; 600], b"\r\n"].concat()),
        ("mime_invalid_base64", mail(b"Content-Type: x; name=a\r\nContent-Transfer-Encoding: base64\r\n\r\naG!k")),
        ("mime_invalid_qp", mail(b"Content-Transfer-Encoding: quoted-printable\r\n\r\n=zz")),
        ("mime_long_line", long(b"\r\n", 2000)),
        ("mime_long_header_name", mail(&[&[b'a'; 90][..], b": x\r\n\r\n"].concat())),
        (
            "mime_long_boundary",
            mail(&[b"Content-Type: multipart/x; boundary=", &[b'a'; 300][..], b"\r\n\r\n"].concat()),
        ),
        ("mime_long_filename", mail(&[b"Content-Type: x; name=", &[b'a'; 300][..], b"\r\n\r\n"].concat())),
        ("duplicate_fields", mail(b"From: a\r\nFrom: b\r\n")),
        ("mime_malformed_msg", mail(b"Content-Type: multipart/x; boundary=a\r\n\r\n--a\r\n")),
    ];
    for (expected, data) in rows {
        let found = events(&[(ToServer, &data)]);
        assert!(found.contains(&expected), "{expected} is not among {found:?}");
    }
    assert!(events(&[(ToServer, &long(b"Subject: ", 2500))]).contains(&"mime_long_header_value"));
}

#[test]
fn credentials_are_no_commands_and_tls_takes_over() {
    let mut parser = parser();
    for (way, data) in [
        (Way::ToClient, &b"220 hi\r\n"[..]),
        (Way::ToServer, b"EHLO a\r\n"),
        (Way::ToClient, b"250 a\r\n"),
        (Way::ToServer, b"AUTH LOGIN\r\n"),
        (Way::ToClient, b"334 VXNlcm5hbWU6\r\n"),
        (Way::ToServer, b"DATA\r\n"),
        (Way::ToClient, b"334 UGFzc3dvcmQ6\r\n"),
        (Way::ToServer, b"QUIT\r\n"),
        (Way::ToClient, b"235 in\r\n"),
        (Way::ToServer, b"STARTTLS\r\n"),
        (Way::ToClient, b"220 go\r\n"),
    ] {
        feed(parser.as_mut(), way, data, 0);
    }
    assert_eq!(parser.range(), (0, 1), "one session, no mail");
    assert_eq!((parser.upgraded(), parser.upgraded()), (Some("tls"), None));
    assert_eq!(parser.parse(Way::ToServer, b"\x16\x03", false), Ok(0), "what follows is another parser's");
}

#[test]
fn nesting_is_bounded() {
    let mut body = b"EHLO a\r\nDATA\r\n".to_vec();
    for level in 0..100 {
        body.extend(format!("Content-Type: multipart/mixed; boundary=b{level}\r\n\r\n--b{level}\r\n").bytes());
    }
    body.extend_from_slice(b"Content-Type: x; name=deep\r\n\r\ncontent\r\n.\r\n");
    assert_eq!(events(&[(Way::ToServer, &body)]), ["mime_malformed_msg"]);
}

#[test]
fn servers_and_clients_are_recognised() {
    let rows: [(&[u8], Way, bool, Probe); 9] = [
        (b"220 x ESMTP Postfix\r\n", Way::ToClient, false, Probe::Yes),
        (b"220 x\r\n", Way::ToClient, true, Probe::Yes),
        (b"220 x\r\n", Way::ToClient, false, Probe::More),
        (b"220 x FTP\r\n", Way::ToClient, true, Probe::No),
        (b"EHLO x", Way::ToServer, false, Probe::Yes),
        (b"ehlo x", Way::ToServer, false, Probe::Yes),
        (b"EH", Way::ToServer, true, Probe::More),
        (b"HELP\r\n", Way::ToServer, false, Probe::No),
        (b"HTTP/1.1 220 SMTP\r\n", Way::ToClient, true, Probe::No),
    ];
    for (data, way, is_usual_port, expected) in rows {
        let start = Start { data, way, transport: Transport::Tcp, is_usual_port };
        assert_eq!((PROTOCOL.probe)(&start), expected, "{:?}", String::from_utf8_lossy(data));
    }
}

#[test]
fn bent_sessions_never_panic_and_stay_small() {
    crate::line::mutation::run(UP, DOWN, 3000, 64 << 10, parser);
    // an attachment without an end is held up to its window
    let mut parser = parser();
    feed(parser.as_mut(), Way::ToServer, b"EHLO a\r\nDATA\r\nContent-Type: x; name=a\r\n\r\n", 0);
    for _ in 0..1000 {
        feed(parser.as_mut(), Way::ToServer, &[b'a'; 4000], 0);
    }
    assert!(parser.heap_bytes() < 300 << 10, "{} bytes are held", parser.heap_bytes());
}
