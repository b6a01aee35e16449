//! Handshakes made by hand: whole, cut everywhere, and bent.

use super::*;
use crate::{Json, Parser};

fn be16(value: usize) -> [u8; 2] {
    (value as u16).to_be_bytes()
}

/// Put a length of `width` bytes before `body`.
fn prefixed(width: usize, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32).to_be_bytes();
    [&length[4 - width..], body].concat()
}

fn numbers(list: &[u16]) -> Vec<u8> {
    list.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &prefixed(2, body)].concat()
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &prefixed(3, body)].concat()
}

fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1][..], &prefixed(2, body)].concat()
}

fn der(tag: u8, body: &[u8]) -> Vec<u8> {
    match body.len() {
        length @ 0..=127 => [&[tag, length as u8][..], body].concat(),
        length => [&[tag, 0x82][..], &be16(length), body].concat(),
    }
}

fn der_name(parts: &[(u8, &[u8])]) -> Vec<u8> {
    let sets: Vec<u8> = parts
        .iter()
        .flat_map(|(kind, value)| der(0x31, &der(0x30, &[der(6, &[0x55, 4, *kind]), der(0x0c, value)].concat())))
        .collect();
    der(0x30, &sets)
}

fn certificate() -> Vec<u8> {
    let names = [der(0x82, b"a.example"), der(0x82, b"*.b.example"), der(0x87, &[192, 0, 2, 1])].concat();
    let alt = der(0x30, &[der(6, &[0x55, 0x1d, 17]), der(1, &[0xff]), der(4, &der(0x30, &names))].concat());
    let algorithm = der(0x30, &der(6, &[0x2a, 3]));
    let tbs = [
        der(0xa0, &der(2, &[2])),
        der(2, &[0x00, 0xab, 0x01]),
        algorithm.clone(),
        der_name(&[(6, b"US"), (10, b"Example, Inc\0!"), (3, b"Root")]),
        der(0x30, &[der(0x17, b"150212180727Z"), der(0x18, b"20500101000000Z")].concat()),
        der_name(&[(3, b"a.example")]),
        der(0x30, &[algorithm.clone(), der(3, &[0, 1])].concat()),
        der(0xa3, &der(0x30, &alt)),
    ];
    der(0x30, &[der(0x30, &tbs.concat()), algorithm, der(3, &[0, 1])].concat())
}

/// The example of JA4's technical description, grease included.
fn client_hello() -> Vec<u8> {
    let ciphers = numbers(&[
        0x1a1a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014, 0x009c, 0x009d,
        0x002f, 0x0035,
    ]);
    let signatures = numbers(&[0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601]);
    let extensions = [
        extension(0x6a6a, &[]),
        extension(0x001b, &[2, 0, 2]),
        extension(0, &prefixed(2, &[&[0][..], &prefixed(2, b"a.example")].concat())),
        extension(0x0033, &[]),
        extension(0x0010, &prefixed(2, b"\x02h2\x08http/1.1")),
        extension(0x4469, &[]),
        extension(0x0017, &[]),
        extension(0x002d, &[1, 1]),
        extension(0x000d, &prefixed(2, &signatures)),
        extension(0x0005, &[1, 0, 0, 0, 0]),
        extension(0x0023, &[]),
        extension(0x0012, &[]),
        extension(0x002b, &prefixed(1, &numbers(&[0x2a2a, 0x0304, 0x0303]))),
        extension(0xff01, &[0]),
        extension(0x000b, &[1, 0]),
        extension(0x000a, &prefixed(2, &numbers(&[0x3a3a, 29, 23, 24]))),
        extension(0x0015, &[0; 10]),
    ];
    let parts = [
        vec![3, 3],
        vec![7; 32],
        prefixed(1, &[9; 32]),
        prefixed(2, &ciphers),
        vec![1, 0],
        prefixed(2, &extensions.concat()),
    ];
    message(1, &parts.concat())
}

fn server_hello(version: u16, session: u8) -> Vec<u8> {
    let mut extensions = vec![extension(0xff01, &[0]), extension(0x0010, &prefixed(2, b"\x02h2"))];
    if version == 0x0304 {
        extensions.push(extension(0x002b, &version.to_be_bytes()));
    }
    let legacy = version.min(0x0303).to_be_bytes().to_vec();
    let parts =
        [legacy, vec![5; 32], prefixed(1, &[session; 32]), vec![0xc0, 0x2f, 0], prefixed(2, &extensions.concat())];
    message(2, &parts.concat())
}

fn chain() -> Vec<u8> {
    let list = [prefixed(3, &certificate()), prefixed(3, b"another")].concat();
    message(11, &prefixed(3, &list))
}

/// A TLS 1.2 session: what goes which way, in turn.
fn session() -> Vec<(Way, Vec<u8>)> {
    let flight = [server_hello(0x0303, 5), chain(), message(12, &[1; 40]), message(14, &[])].concat();
    let torn = flight.chunks(100).flat_map(|part| record(22, part)).collect();
    let keys = [record(22, &message(16, &[2; 66])), record(20, &[1]), record(22, &[0xee; 40])].concat();
    vec![
        (Way::ToServer, record(22, &client_hello())),
        (Way::ToClient, torn),
        (Way::ToServer, keys),
        (Way::ToClient, [record(20, &[1]), record(22, &[0xee; 40])].concat()),
        (Way::ToServer, record(23, &[0xcc; 3000])),
    ]
}

fn parser(settings: &[(&str, &str)]) -> Box<dyn Parser> {
    let mut all = Settings::default();
    settings.iter().for_each(|(name, value)| all.set(name, value));
    (PROTOCOL.parser)(&all, Transport::Tcp)
}

/// Give a parser `data` piece by piece, cut at `cut`.
fn feed(parser: &mut dyn Parser, way: Way, data: &[u8], cut: usize) {
    let cut = cut.min(data.len());
    let used = parser.parse(way, &data[..cut], false).unwrap_or(usize::MAX);
    assert!(used <= cut);
    let used = used + parser.parse(way, &data[used..], false).unwrap_or(usize::MAX);
    assert_eq!(used, data.len());
}

fn played(settings: &[(&str, &str)], script: &[(Way, Vec<u8>)]) -> Box<dyn Parser> {
    let mut parser = parser(settings);
    script.iter().for_each(|(way, data)| feed(parser.as_mut(), *way, data, data.len()));
    parser
}

fn text(parser: &dyn Parser, index: usize, way: Way, nth: usize) -> Option<String> {
    let view = parser.transaction(0)?.buffer(index, way, nth)?;
    Some(String::from_utf8_lossy(view.data).into_owned())
}

fn written(parser: &dyn Parser, record: Option<usize>) -> String {
    let mut out = String::new();
    if let Some(transaction) = parser.transaction(0) {
        transaction.log(record, &mut Json::inside(&mut out, false));
    }
    out
}

fn events(parser: &dyn Parser) -> Vec<&'static str> {
    let list = parser.transaction(0).map(|transaction| transaction.events().to_vec()).unwrap_or_default();
    list.iter().filter_map(|&event| EVENTS.get(usize::from(event)).copied()).collect()
}

#[test]
fn fingerprints_are_those_of_their_descriptions() {
    let parser = played(&[], &session());
    let ja4 = text(parser.as_ref(), buffer::JA4_HASH, Way::ToServer, 0);
    assert_eq!(ja4.as_deref(), Some("t13d1516h2_8daaf6152771_e5627efa2ab1"));
    let ja3 = "771,4865-4866-4867-49195-49199-49196-49200-52393-52392-49171-49172-156-157-47-53,\
               27-0-51-16-17513-23-45-13-5-35-18-43-65281-11-10-21,29-23-24,0";
    assert_eq!(text(parser.as_ref(), buffer::JA3_STRING, Way::ToServer, 0).as_deref(), Some(ja3));
    // Chrome's, widely published
    assert_eq!(
        text(parser.as_ref(), buffer::JA3_HASH, Way::ToServer, 0).as_deref(),
        Some(fingerprint::md5_hex(ja3.as_bytes()).as_str())
    );
    assert_eq!(text(parser.as_ref(), buffer::JA3S_STRING, Way::ToClient, 0).as_deref(), Some("771,49199,65281-16"));
    assert_eq!(fingerprint::md5_hex(b""), "d41d8cd98f00b204e9800998ecf8427e");
}

#[test]
fn rules_see_the_certificate_and_the_greetings() {
    let mut script = session();
    script.truncate(2);
    let parser = played(&[], &script);
    let seen = |index, way, nth| text(parser.as_ref(), index, way, nth);
    let (up, down) = (Way::ToServer, Way::ToClient);
    assert_eq!(seen(buffer::SNI, up, 0).as_deref(), Some("a.example"));
    assert_eq!(seen(buffer::SUBJECT, down, 0).as_deref(), Some("CN=a.example"));
    assert_eq!(seen(buffer::SUBJECT, up, 0), None);
    assert_eq!(seen(buffer::ISSUER, down, 0).as_deref(), Some("C=US, O=Example, Inc\0!, CN=Root"));
    assert_eq!(seen(buffer::SERIAL, down, 0).as_deref(), Some("00:AB:01"));
    let names: Vec<_> = (0..).map_while(|nth| seen(buffer::ALT_NAME, down, nth)).collect();
    assert_eq!(names, ["a.example", "*.b.example", "192.0.2.1"]);
    assert_eq!(seen(buffer::CERTS, down, 1).as_deref(), Some("another"));
    assert_eq!(seen(buffer::CERTS, down, 2), None);
    assert_eq!(seen(buffer::ALPN, up, 1).as_deref(), Some("http/1.1"));
    assert_eq!(seen(buffer::ALPN, down, 0).as_deref(), Some("h2"));
    assert_eq!(seen(buffer::RANDOM_TIME, down, 0).map(|text| text.len()), Some(4));
    assert_eq!(seen(buffer::RANDOM_BYTES, up, 0).map(|text| text.len()), Some(28));
    let transaction = parser.transaction(0);
    assert_eq!(transaction.and_then(|transaction| transaction.number(number::CHAIN_LENGTH, down, 0)), Some(2));
}

#[test]
fn the_record_is_due_once_both_sides_are_encrypted() {
    let mut parser = parser(&[]);
    let mut due = Vec::new();
    for (way, data) in session() {
        feed(parser.as_mut(), way, &data, 7);
        let Some(transaction) = parser.transaction(0) else { panic!("no session") };
        let [up, down] = Way::BOTH.map(|way| transaction.progress(way));
        due.push((up, down, parser.is_opaque()));
    }
    assert_eq!(due, [(1, 0, false), (1, 3, false), (3, 3, false), (3, 4, true), (3, 4, true)]);
    assert_eq!(text(parser.as_ref(), buffer::CERTS, Way::ToClient, 0), None, "kept for nobody");
    let log = written(parser.as_ref(), Some(0));
    for part in [
        r#""subject":"CN=a.example","issuerdn":"C=US, O=Example, Inc\u0000!, CN=Root","serial":"00:AB:01""#,
        r#""notbefore":"2015-02-12T18:07:27","notafter":"2050-01-01T00:00:00""#,
        r#""subjectaltname":["a.example","*.b.example","192.0.2.1"]"#,
        r#""sni":"a.example","version":"TLS 1.2""#,
        r#""client_alpns":["h2","http/1.1"],"server_alpns":["h2"]"#,
    ] {
        assert!(log.contains(part), "{part} is not in {log}");
    }
    assert!(!log.contains("ja4"), "{log}");
}

#[test]
fn settings_choose_the_fields() {
    let basic = played(&[("outputs.eve-log.types.tls.extended", "no")], &session()[..4]);
    assert!(written(basic.as_ref(), Some(0)).contains("issuerdn"));
    assert!(!written(basic.as_ref(), Some(0)).contains("sni"));
    assert!(written(basic.as_ref(), None).contains("sni"), "alerts carry everything");
    let list = ("outputs.eve-log.types.tls.custom", "[sni, ja4, certificate, client_handshake]");
    let custom = played(&[list], &session()[..4]);
    let log = written(custom.as_ref(), Some(0));
    assert!(log.starts_with(r#""tls":{"sni":"a.example","certificate":"MII"#), "{log}");
    assert!(log.contains(r#""ja4":"t13d1516h2_"#) && log.contains(r#""sig_algs":[1027,"#), "{log}");
}

#[test]
fn every_cut_gives_the_same() {
    let whole = played(&[], &session()[..4]);
    for turn in 0..4 {
        let length = session()[turn].1.len();
        for cut in 0..length {
            let mut parser = parser(&[]);
            for (index, (way, data)) in session()[..4].iter().enumerate() {
                feed(parser.as_mut(), *way, data, if index == turn { cut } else { data.len() });
            }
            assert_eq!(written(parser.as_ref(), Some(0)), written(whole.as_ref(), Some(0)), "turn {turn}, cut {cut}");
            assert_eq!(events(parser.as_ref()), Vec::<&str>::new());
        }
    }
}

#[test]
fn thirteen_needs_no_certificate_and_ignores_its_compatibility_message() {
    let script = vec![
        (Way::ToServer, record(22, &client_hello())),
        (Way::ToClient, [record(22, &server_hello(0x0304, 9)), record(20, &[1])].concat()),
        (Way::ToClient, record(23, &[1; 500])),
        (Way::ToServer, [record(20, &[1]), record(23, &[1; 60])].concat()),
    ];
    let before = played(&[], &script[..2]);
    assert!(!before.is_opaque());
    let parser = played(&[], &script);
    assert!(parser.is_opaque());
    let log = written(parser.as_ref(), Some(0));
    assert!(log.contains(r#""version":"TLS 1.3""#) && !log.contains("session_resumed"), "{log}");
    assert_eq!(parser.transaction(0).map(|transaction| transaction.is_logged(0)), Some(true));
}

#[test]
fn half_a_session_is_not_misread() {
    // TLS 1.3 is offered, TLS 1.2 chosen, and only the client's way was captured
    let finished = [record(20, &[1]), record(22, &[0xee; 40])].concat();
    let parser = played(&[], &[(Way::ToServer, record(22, &client_hello())), (Way::ToServer, finished)]);
    assert_eq!(events(parser.as_ref()), Vec::<&str>::new());
    assert_eq!(parser.transaction(0).map(|session| session.progress(Way::ToServer)), Some(client::HANDSHAKE));
    // a second hello behind the compatibility message is one
    let again = [record(20, &[1]), record(22, &client_hello())].concat();
    let parser = played(&[], &[(Way::ToServer, record(22, &client_hello())), (Way::ToServer, again)]);
    assert_eq!(parser.transaction(0).map(|session| session.progress(Way::ToServer)), Some(client::HELLO));
}

#[test]
fn a_resumed_session_is_told_from_one_that_ends_early() {
    let mut script = vec![
        (Way::ToServer, record(22, &client_hello())),
        (Way::ToClient, [record(22, &server_hello(0x0303, 9)), record(20, &[1])].concat()),
    ];
    let resumed = played(&[], &script);
    assert!(written(resumed.as_ref(), Some(0)).contains(r#""session_resumed":true"#));
    script.truncate(1);
    let mut early = played(&[], &script);
    early.finish();
    let transaction = early.transaction(0);
    assert_eq!(transaction.map(|transaction| transaction.is_logged(0)), Some(false));
    assert_eq!(transaction.map(|transaction| transaction.progress(Way::ToClient)), Some(COMPLETE));
}

#[test]
fn a_bypassed_session_ends_with_its_handshake() {
    let parser = played(&[("app-layer.protocols.tls.encryption-handling", "bypass")], &session()[..4]);
    assert_eq!(parser.transaction(0).map(|transaction| transaction.progress(Way::ToServer)), Some(COMPLETE));
    let full = played(&[("app-layer.protocols.tls.encryption-handling", "full")], &session());
    assert!(!full.is_opaque());
}

fn asks(keyword: &str, argument: &str, parser: &dyn Parser, way: Way) -> bool {
    let Some(info) = KEYWORDS.iter().find(|info| info.keyword == keyword) else { panic!("{keyword}") };
    match ((info.parse)(argument), parser.transaction(0)) {
        (Ok(custom), Some(transaction)) => custom.matches(transaction, way),
        (Err(fault), _) => panic!("{keyword}:{argument}: {fault}"),
        _ => panic!("no session"),
    }
}

#[test]
fn keywords_compare() {
    let parser = played(&[], &session()[..2]);
    let rows = [
        ("tls.version", "1.2", Way::ToClient, true),
        ("tls.version", "\"1.3\"", Way::ToServer, true),
        ("tls.version", "0x7f12", Way::ToClient, false),
        ("ssl_version", "sslv3,tls1.2", Way::ToClient, true),
        ("ssl_version", "!tls1.0,tls1.1", Way::ToClient, true),
        ("ssl_version", "!tls1.2", Way::ToClient, false),
        ("ssl_state", "client_hello", Way::ToServer, true),
        ("ssl_state", "client_hello", Way::ToClient, false),
        ("ssl_state", "server_keyx|client_keyx", Way::ToClient, true),
        ("ssl_state", "!server_hello", Way::ToClient, false),
        ("tls_cert_notafter", ">2015", Way::ToClient, true),
        ("tls_cert_notbefore", "<2015-02-12", Way::ToClient, false),
        ("tls_cert_notbefore", "2015-02-12<>2015-02-13", Way::ToClient, true),
        ("tls_cert_notbefore", "2015-02-12T18:07:27", Way::ToClient, true),
        ("tls.subject", "\"CN=a.exam\"", Way::ToClient, true),
        ("tls.issuerdn", "!\"CN=Root\"", Way::ToClient, false),
        ("tls.fingerprint", "\"aa:bb\"", Way::ToClient, false),
        ("tls.store", "", Way::ToClient, true),
    ];
    for (keyword, argument, way, answer) in rows {
        assert_eq!(asks(keyword, argument, parser.as_ref(), way), answer, "{keyword}:{argument}");
    }
    for (keyword, argument) in [
        ("tls.version", "9"),
        ("ssl_version", "tls"),
        ("ssl_state", "x"),
        ("tls_cert_notafter", ">x"),
        ("tls.subject", ""),
    ] {
        let info = KEYWORDS.iter().find(|info| info.keyword == keyword);
        assert!(info.is_some_and(|info| (info.parse)(argument).is_err()), "{keyword}:{argument}");
    }
}

#[test]
fn each_fault_has_its_event() {
    let two_names = [extension(0, &[]), extension(0, b"\0\x04\0\0\x01a")].concat();
    let hello = |extensions: &[u8]| {
        let parts = [vec![3, 3], vec![7; 32], vec![0], prefixed(2, &[0, 5]), vec![1, 0], prefixed(2, extensions)];
        record(22, &message(1, &parts.concat()))
    };
    let rows: Vec<(Vec<u8>, &str)> = vec![
        (hello(&two_names), "multiple_sni_extensions"),
        (hello(&extension(0, b"\0\x04\x01\0\x01a")), "invalid_sni_type"),
        (hello(&extension(0, b"\0\x04\0\0\x09a")), "invalid_sni_length"),
        (record(22, &message(1, &[3, 3, 0])), "handshake_invalid_length"),
        (record(22, &[1, 0xff, 0, 0]), "handshake_invalid_length"),
        (record(22, &message(99, &[])), "invalid_handshake_message"),
        (vec![99, 3, 1, 0, 1, 0], "invalid_tls_header"),
        (vec![22, 9, 1, 0, 1, 0], "invalid_record_version"),
        ([hello(&[]), vec![99, 3, 1, 0, 1, 0]].concat(), "invalid_record_type"),
        (vec![22, 3, 1, 0xff, 0xff, 0], "invalid_ssl_record"),
        (record(21, &[9, 9]), "invalid_alert"),
        (record(24, &[1, 0x40, 0]), "overflow_heartbeat_message"),
        (record(24, &[7, 0, 0]), "invalid_heartbeat_message"),
        (record(24, &[1, 0, 0]), "heartbeat_message"),
        (record(21, &[1, 0]).repeat(300), "too_many_records_in_packet"),
        (record(22, &message(11, &[0, 0, 9, 1])), "certificate_invalid_length"),
        (record(22, &message(11, &prefixed(3, &prefixed(3, b"junk")))), "certificate_invalid_der"),
        (vec![0x80, 9, 1, 3, 1, 0, 0, 0, 0, 0, 9], "invalid_sslv2_header"),
    ];
    for (data, event) in rows {
        let parser = played(&[], &[(Way::ToServer, data.clone())]);
        assert!(events(parser.as_ref()).contains(&event), "{event}: {:?} of {data:?}", events(parser.as_ref()));
    }
}

#[test]
fn a_hello_in_old_clothes_is_known() {
    let hello = [&[0x80, 0x1c, 1, 3, 1, 0, 3, 0, 0, 0, 16, 0, 0, 5][..], &[4; 16]].concat();
    let start = |data, way| Start { data, way, transport: Transport::Tcp, is_usual_port: true };
    assert_eq!(probe(&start(&hello, Way::ToServer)), Probe::Yes);
    assert_eq!(probe(&start(&hello[..9], Way::ToServer)), Probe::More);
    assert_eq!(probe(&start(&hello, Way::ToClient)), Probe::No);
    let parser = played(&[], &[(Way::ToServer, hello.clone()), (Way::ToClient, record(22, &server_hello(0x0301, 1)))]);
    assert!(asks("ssl_version", "tls1.0", parser.as_ref(), Way::ToServer));
    assert!(asks("ssl_version", "tls1.0", parser.as_ref(), Way::ToClient));
    let answer = [&[0x80, 15, 4, 0, 1, 0, 2, 0, 0, 0, 0, 0, 4][..], &[1; 4]].concat();
    assert_eq!(probe(&start(&answer, Way::ToClient)), Probe::Yes);
    let parser = played(&[], &[(Way::ToClient, answer)]);
    assert!(parser.is_opaque() && written(parser.as_ref(), None).contains(r#""version":"SSLv2""#));
}

#[test]
fn probes_know_their_own() {
    let start = |data, way| Start { data, way, transport: Transport::Tcp, is_usual_port: false };
    let hello = record(22, &client_hello());
    assert_eq!(probe(&start(&hello, Way::ToServer)), Probe::Yes);
    assert_eq!(probe(&start(&hello, Way::ToClient)), Probe::YesReversed);
    (1..6).for_each(|length| assert_eq!(probe(&start(&hello[..length], Way::ToServer)), Probe::More));
    assert_eq!(probe(&start(b"SSH-2.0-", Way::ToServer)), Probe::No);
    assert_eq!(probe(&start(&[22, 3, 1, 0, 0, 1], Way::ToServer)), Probe::No);
}

#[test]
fn bent_handshakes_never_panic_and_stay_small() {
    let mut random = 0x1234_5678_u32;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random
    };
    for _ in 0..4000 {
        let mut parser = parser(&[("app-layer.protocols.tls.encryption-handling", "full")]);
        for (way, mut data) in session() {
            for _ in 0..next() % 4 {
                let at = next() as usize % data.len();
                data[at] = next() as u8;
            }
            let used = parser.parse(way, &data, false).unwrap_or(usize::MAX);
            assert!(used <= data.len());
            assert!(parser.heap_bytes() < 32 << 10, "{}", parser.heap_bytes());
        }
        let _ = written(parser.as_ref(), None);
        parser.finish();
    }
}

#[test]
fn a_message_without_end_is_held_up_to_a_limit() {
    let mut parser = parser(&[]);
    feed(parser.as_mut(), Way::ToServer, &record(22, &[1, 1, 0, 0]), 3);
    for _ in 0..100 {
        feed(parser.as_mut(), Way::ToServer, &record(22, &[0; 16_000]), 5);
        assert!(parser.heap_bytes() <= 2 * (64 << 10) + 1024, "{}", parser.heap_bytes());
    }
}
