use super::*;
use crate::BodyState;
use crate::testing::{Talk, events, feed, json, torture};

const MAIL: &[u8] = b"From: Anna <anna@example.org>\r\nTo: b@example.org,\r\n c@example.org\r\nSubject: hello\r\n\
MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"xyz\"\r\n\r\npreamble\r\n--xyz\r\n\
Content-Type: text/plain\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nSee http://example.org/a=3Db for=\r\n more\r\n\
..dot\r\n--xyz\r\nContent-Type: application/octet-stream; name=\"a.bin\"\r\nContent-Disposition: attachment; \
filename=\"a.bin\"\r\nContent-Transfer-Encoding: base64\r\n\r\nAAEC\r\nAwQ=\r\n--xyz--\r\nepilogue\r\n.\r\n";

fn talk() -> Talk {
    let line = |way, text: &[u8]| (way, text.to_vec());
    vec![
        line(Way::ToClient, b"220 mx ESMTP\r\n"),
        line(Way::ToServer, b"EHLO client\r\n"),
        line(Way::ToClient, b"250-mx\r\n250 8BITMIME\r\n"),
        line(
            Way::ToServer,
            b"MAIL FROM:<a@example.org> SIZE=5\r\nRCPT TO:<b@example.org>\r\nRCPT TO: <c@example.org>\r\nDATA\r\n",
        ),
        line(Way::ToClient, b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n"),
        line(Way::ToServer, MAIL),
        line(Way::ToClient, b"250 queued\r\n"),
        line(Way::ToServer, b"MAIL FROM:<>\r\nRCPT TO:<d@example.org>\r\nBDAT 21\r\nSubject: chunk\r\n\r\nend"),
        line(Way::ToServer, b"BDAT 3 LAST\r\ning"),
        line(Way::ToClient, b"250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n250 queued\r\n"),
        line(Way::ToServer, b"QUIT\r\n"),
        line(Way::ToClient, b"221 bye\r\n"),
    ]
}

fn ask(parser: &dyn Parser, id: u64, keyword: &str, nth: usize) -> Option<String> {
    let index = mail::BUFFERS.iter().position(|info| info.keyword == keyword)?;
    let view = parser.transaction(id)?.buffer(index, Way::ToServer, nth)?;
    Some(view.data.iter().map(|byte| char::from(*byte)).collect())
}

#[test]
fn a_mail_is_a_transaction_and_its_attachment_a_file() {
    let parser = feed(&PROTOCOL, Transport::Tcp, &talk(), usize::MAX);
    assert_eq!(parser.range(), (0, 2));
    let text = json(&*parser, 0);
    assert!(
        text.contains(
            r#""helo":"client","mail_from":"<a@example.org>","rcpt_to":["<b@example.org>","<c@example.org>"]"#
        )
    );
    assert!(text.contains(r#""to":["b@example.org","c@example.org"],"attachment":["a.bin"]"#), "{text}");
    assert_eq!(ask(&*parser, 0, "file.data", 0).as_deref(), Some("\0\u{1}\u{2}\u{3}\u{4}"));
    assert_eq!(ask(&*parser, 0, "file.data", 1).as_deref(), Some("See http://example.org/a=b for more\r\n.dot\r\n"));
    assert_eq!(ask(&*parser, 0, "file.name", 0).as_deref(), Some("a.bin"));
    assert_eq!(ask(&*parser, 0, "email.subject", 0).as_deref(), Some("hello"));
    assert_eq!(ask(&*parser, 0, "email.url", 0).as_deref(), Some("http://example.org/a=b"));
    let files =
        parser.transaction(0).map(|it| it.files().iter().map(|file| (file.size, file.state)).collect::<Vec<_>>());
    assert_eq!(files, Some(vec![(5, BodyState::Closed)]));
    assert_eq!(ask(&*parser, 1, "email.subject", 0).as_deref(), Some("chunk"));
    assert_eq!(ask(&*parser, 1, "file.data", 0).as_deref(), Some("ending\r\n"));
    assert!((0..2).all(|id| events(&PROTOCOL, &*parser, id).is_empty()), "{:?}", events(&PROTOCOL, &*parser, 1));
}

type Row<'a> = (&'a [(Way, &'a [u8])], &'a str);

#[test]
fn lies_become_events() {
    let rows: [Row<'_>; 7] = [
        (&[(Way::ToClient, b"220 x\r\n250 what\r\n")], "unable_to_match_reply_with_request"),
        (&[(Way::ToClient, b"220 x\r\n999 what\r\n")], "invalid_reply"),
        (&[(Way::ToClient, b"250 x\r\n")], "no_server_welcome_message"),
        (
            &[(Way::ToClient, b"220 x\r\n"), (Way::ToServer, b"STARTTLS\r\n"), (Way::ToClient, b"454 no\r\n")],
            "tls_rejected",
        ),
        (
            &[(Way::ToClient, b"220 x\r\n"), (Way::ToServer, b"DATA\r\n"), (Way::ToClient, b"503 no\r\n")],
            "data_command_rejected",
        ),
        (&[(Way::ToServer, b"DATA\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!!\r\n.\r\n")], "mime_invalid_base64"),
        (&[(Way::ToServer, b"DATA\r\nno header\r\n\r\n.\r\n")], "mime_malformed_msg"),
    ];
    for (talk, name) in rows {
        let talk = talk.iter().map(|(way, bytes)| (*way, bytes.to_vec())).collect();
        let parser = feed(&PROTOCOL, Transport::Tcp, &talk, usize::MAX);
        assert_eq!(events(&PROTOCOL, &*parser, 0), [name]);
    }
}

#[test]
fn tls_ends_the_reading() {
    let talk = vec![
        (Way::ToClient, b"220 x\r\n".to_vec()),
        (Way::ToServer, b"STARTTLS\r\n".to_vec()),
        (Way::ToClient, b"220 go\r\n".to_vec()),
        (Way::ToServer, vec![0x16, 3, 1, 0, 5]),
    ];
    let mut parser = feed(&PROTOCOL, Transport::Tcp, &talk, usize::MAX);
    assert_eq!((parser.upgraded(), parser.upgraded()), (Some("tls"), None));
}

#[test]
fn a_refused_mail_does_not_swallow_the_commands_behind_it() {
    let talk = vec![
        (Way::ToClient, b"220 x\r\n".to_vec()),
        (Way::ToServer, b"MAIL FROM:<a>\r\nDATA\r\n".to_vec()),
        (Way::ToClient, b"250 ok\r\n554 no\r\n".to_vec()),
        (Way::ToServer, b"RSET\r\nMAIL FROM:<b>\r\n".to_vec()),
    ];
    let parser = feed(&PROTOCOL, Transport::Tcp, &talk, usize::MAX);
    assert_eq!(ask(&*parser, 1, "smtp.mail_from", 0).as_deref(), Some("<b>"));
}

#[test]
fn cuts_and_mutations_do_no_harm() {
    torture(&PROTOCOL, Transport::Tcp, &talk(), 4 << 20);
}
