//! Handshakes made by hand.

use super::*;

fn init() -> Vec<u8> {
    let format = [32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0];
    [&[5, 0, 3, 32][..], &format, &[0, 0, 0, 4], b"desk"].concat()
}

/// In turns: what a side says, and then the other.
fn vnc() -> Vec<(Way, Vec<u8>)> {
    vec![
        (Way::ToClient, b"RFB 003.008\n".to_vec()),
        (Way::ToServer, b"RFB 003.008\n".to_vec()),
        (Way::ToClient, vec![2, 1, 2]),
        (Way::ToServer, vec![2]),
        (Way::ToClient, vec![7; 16]),
        (Way::ToServer, vec![9; 16]),
        (Way::ToClient, vec![0; 4]),
        (Way::ToServer, vec![1]),
        (Way::ToClient, init()),
    ]
}

fn parser() -> Box<dyn Parser> {
    (PROTOCOL.parser)(&Settings::default(), Transport::Tcp)
}

fn run(steps: &[(Way, Vec<u8>)], cut: usize) -> Box<dyn Parser> {
    let mut parser = parser();
    for (way, data) in steps {
        let cut = cut.min(data.len());
        let used = parser.parse(*way, &data[..cut], false).unwrap_or(usize::MAX);
        assert_eq!(parser.parse(*way, &data[used..], false), Ok(data.len() - used), "cut at {cut}");
    }
    parser
}

fn written(parser: &dyn Parser) -> String {
    let mut out = String::new();
    parser.transaction(0).inspect(|all| all.log(None, &mut Json::inside(&mut out, false)));
    out
}

#[test]
fn every_cut_gives_the_same() {
    let expected = concat!(
        r#""rfb":{"server_protocol_version":{"major":"003","minor":"008"},"client_protocol_version":{"major":"003","minor":"008"},"#,
        r#""authentication":{"security_type":2,"vnc":{"challenge":"07070707070707070707070707070707","#,
        r#""response":"09090909090909090909090909090909"},"security_result":"OK"},"screen_shared":true,"#,
        r#""framebuffer":{"width":1280,"height":800,"name":"desk","pixel_format":{"bits_per_pixel":32,"depth":24,"#,
        r#""big_endian":false,"true_color":true,"red_max":255,"green_max":255,"blue_max":255,"red_shift":16,"#,
        r#""green_shift":8,"blue_shift":0}}}"#
    );
    for cut in 0..30 {
        let parser = run(&vnc(), cut);
        assert_eq!(written(parser.as_ref()), expected, "cut at {cut}");
        assert!(parser.is_opaque());
    }
}

#[test]
fn each_version_has_its_own_order() {
    let old = [
        (Way::ToClient, b"RFB 003.003\n".to_vec()),
        (Way::ToServer, b"RFB 003.003\n".to_vec()),
        (Way::ToClient, vec![0, 0, 0, 1]),
        (Way::ToServer, vec![0]),
        (Way::ToClient, init()),
    ];
    assert!(written(run(&old, 0).as_ref()).contains(r#""security_type":1}"#), "3.3 has no result without a password");
    let refused = [&vnc()[..6], &[(Way::ToClient, [&[0, 0, 0, 1, 0, 0, 0, 3][..], b"bad"].concat())]].concat();
    let parser = run(&refused, 0);
    assert!(written(parser.as_ref()).contains(r#""security_result":"FAIL","failure_reason":"bad""#));
    let asks = |text| {
        let Some(transaction) = parser.transaction(0) else { return false };
        parse_secresult(text).is_ok_and(|custom| custom.matches(transaction, Way::ToClient))
    };
    assert!(asks("fail") && !asks("ok") && !asks("unknown") && parse_secresult("maybe").is_err());
    assert_eq!(parser.transaction(0).and_then(|all| all.number(number::SECTYPE, Way::ToClient, 0)), Some(2));
}

#[test]
fn each_fault_has_its_event() {
    let rows: [(usize, Way, Vec<u8>, u8); 3] = [
        (3, Way::ToServer, vec![30], event::UNIMPLEMENTED_SECURITY_TYPE),
        (6, Way::ToClient, vec![0, 0, 0, 9], event::UNKNOWN_SECURITY_RESULT),
        (8, Way::ToClient, [&init()[..20], &[0xff; 4]].concat(), event::MALFORMED_MESSAGE),
    ];
    for (count, way, message, event) in rows {
        let steps = [&vnc()[..count], &[(way, message)]].concat();
        let parser = run(&steps, 0);
        assert_eq!(parser.transaction(0).map(|all| all.events().to_vec()), Some(vec![event]));
    }
}

#[test]
fn bent_handshakes_never_panic_and_stay_small() {
    let side = |way| vnc().into_iter().filter(|(side, _)| *side == way).flat_map(|(_, data)| data).collect::<Vec<u8>>();
    crate::line::mutation::run(&side(Way::ToServer), &side(Way::ToClient), 3000, 8192, parser);
}
