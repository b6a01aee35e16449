//! Connections made by hand.

use super::*;
use crate::tls::fingerprint::md5_hex;

fn packet(body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 5).to_be_bytes();
    [&length[..], &[4], body, &[0; 4]].concat()
}

fn kexinit(side: &str) -> Vec<u8> {
    let mut body = vec![exchange::KEXINIT];
    body.extend([0; 16]);
    for list in ["kex", "key", "enc-up", "enc-down", "mac-up", "mac-down", "none", "zlib", "", ""] {
        let text = if list == "kex" { format!("kex-{side}") } else { list.to_owned() };
        body.extend((text.len() as u32).to_be_bytes());
        body.extend(text.as_bytes());
    }
    body.extend([0; 5]);
    packet(&body)
}

fn up() -> Vec<u8> {
    [b"SSH-2.0-OpenSSH_9.6 a comment\r\n".to_vec(), kexinit("c"), packet(&[30; 40]), packet(&[exchange::NEWKEYS])]
        .concat()
}

fn down() -> Vec<u8> {
    [b"Welcome\r\nSSH-1.99-dropbear\n".to_vec(), kexinit("s"), packet(&[exchange::NEWKEYS])].concat()
}

fn parser(hassh: &str) -> Box<dyn Parser> {
    let mut settings = Settings::default();
    settings.set("app-layer.protocols.ssh.hassh", hassh);
    (PROTOCOL.parser)(&settings, Transport::Tcp)
}

fn feed(parser: &mut dyn Parser, way: Way, data: &[u8], cut: usize) {
    let used = parser.parse(way, &data[..cut], false).unwrap_or(usize::MAX);
    assert_eq!(parser.parse(way, &data[used..], false), Ok(data.len() - used));
}

fn written(parser: &dyn Parser) -> String {
    let mut out = String::new();
    if let Some(transaction) = parser.transaction(0) {
        transaction.log(None, &mut Json::inside(&mut out, false));
    }
    out
}

#[test]
fn every_cut_gives_the_same() {
    let expected = format!(
        concat!(
            r#""ssh":{{"client":{{"proto_version":"2.0","software_version":"OpenSSH_9.6","#,
            r#""hassh":{{"hash":"{}","string":"kex-c;enc-up;mac-up;none"}}}},"#,
            r#""server":{{"proto_version":"1.99","software_version":"dropbear","#,
            r#""hassh":{{"hash":"{}","string":"kex-s;enc-down;mac-down;zlib"}}}}}}"#
        ),
        md5_hex(b"kex-c;enc-up;mac-up;none"),
        md5_hex(b"kex-s;enc-down;mac-down;zlib")
    );
    for cut in 0..up().len() {
        let mut parser = parser("auto");
        feed(parser.as_mut(), Way::ToServer, &up(), cut);
        feed(parser.as_mut(), Way::ToClient, &down(), cut.min(down().len()));
        assert_eq!(written(parser.as_ref()), expected, "cut at {cut}");
        assert!(parser.is_opaque());
    }
}

#[test]
fn buffers_belong_to_their_ways_and_keywords_read_banners() {
    let mut parser = parser("yes");
    feed(parser.as_mut(), Way::ToServer, &up(), 0);
    feed(parser.as_mut(), Way::ToClient, &down(), 0);
    let Some(transaction) = parser.transaction(0) else { panic!("no connection") };
    let has = |index, way| transaction.buffer(index, way, 0).is_some();
    assert!(has(buffer::HASSH, Way::ToServer) && !has(buffer::HASSH, Way::ToClient));
    assert!(has(buffer::HASSH_SERVER_STRING, Way::ToClient) && !has(buffer::HASSH_SERVER, Way::ToServer));
    assert!(has(buffer::SOFTWARE, Way::ToServer) && transaction.buffer(buffer::PROTO, Way::ToServer, 1).is_none());
    let asks =
        |parsed: Result<Box<dyn Custom>, String>, way| parsed.is_ok_and(|custom| custom.matches(transaction, way));
    assert!(asks(parse_protoversion("2_compat"), Way::ToClient));
    assert!(asks(parse_protoversion("2.0"), Way::ToServer));
    assert!(!asks(parse_protoversion("1.5"), Way::ToServer));
    assert!(asks(parse_softwareversion("\"OpenSSH\""), Way::ToServer));
    assert!(parse_protoversion("new").is_err());
}

#[test]
fn without_hassh_the_banners_are_enough() {
    let mut parser = parser("no");
    feed(parser.as_mut(), Way::ToServer, b"SSH-2.0-a\r\n", 3);
    assert_eq!(parser.transaction(0).map(|all| all.progress(Way::ToServer)), Some(step::KEYS));
    feed(parser.as_mut(), Way::ToClient, b"SSH-1.5-b\n", 3);
    assert_eq!(parser.transaction(0).map(|all| all.progress(Way::ToClient)), Some(COMPLETE));
    assert!(!written(parser.as_ref()).contains("hassh"));
}

#[test]
fn each_fault_has_its_event() {
    let long = [&b"SSH-2.0-"[..], &[b'x'; 400], b"\n"].concat();
    let rows: [(Vec<u8>, u8); 3] = [
        (b"HELLO\n".to_vec(), event::INVALID_BANNER),
        (long, event::LONG_BANNER),
        ([&b"SSH-2.0-x\n"[..], &[0xff; 8]].concat(), event::INVALID_RECORD),
    ];
    for (data, event) in rows {
        let mut parser = parser("yes");
        feed(parser.as_mut(), Way::ToServer, &data, 0);
        assert_eq!(parser.transaction(0).map(|all| all.events().to_vec()), Some(vec![event]));
    }
}

#[test]
fn bent_connections_never_panic_and_stay_small() {
    let mut random = 0xdead_beef_u32;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random
    };
    for _ in 0..5000 {
        let mut parser = parser("yes");
        for (way, mut data) in [(Way::ToServer, up()), (Way::ToClient, down())] {
            for _ in 0..next() % 5 {
                let at = next() as usize % data.len();
                data[at] = next() as u8;
            }
            assert!(parser.parse(way, &data, false).is_ok_and(|used| used <= data.len()));
        }
        assert!(parser.heap_bytes() < 4096);
        let _ = written(parser.as_ref());
    }
}
