//! First bytes, made by hand.

use super::*;

const LDAP_BIND: &[u8] = b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\x00\x80\x00";
const SNMP_GET: &[u8] = b"\x30\x26\x02\x01\x01\x04\x06public\xa0\x19\x02\x04";
const COTP_OF_S7: &[u8] = b"\x03\x00\x00\x16\x11\xe0\x00\x00\x00\x01\x00\xc1\x02\x01\x00\xc2\x02\x01\x02\xc0\x01\x0a";
const RDP: &[u8] = b"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00";
const BIND: &[u8] = b"\x05\x00\x0b\x03\x10\x00\x00\x00\x48\x00\x00\x00\x01\x00\x00\x00\xb8\x10";
const AS_REQ: &[u8] = b"\x6a\x81\xa0\x30\x81\x9d\xa1\x03\x02\x01\x05\xa2\x03\x02\x01\x0a";
const NFS_CALL: &[u8] = b"\x80\x00\x00\x28\0\0\0\x01\0\0\0\0\0\0\0\x02\0\x01\x86\xa3\0\0\0\x03\0\0\0\0";
const PORTMAP: &[u8] = b"\x80\x00\x00\x28\0\0\0\x01\0\0\0\0\0\0\0\x02\0\x01\x86\xa0\0\0\0\x02\0\0\0\0";

/// Protocol, first bytes, their way, what carries them, whether on a usual port, and the verdict.
type Row<'d> = (&'d Protocol, &'d [u8], Way, Transport, bool, Probe);

fn ask(protocol: &Protocol, data: &[u8], way: Way, transport: Transport, is_usual_port: bool) -> Probe {
    (protocol.probe)(&Start { data, way, transport, is_usual_port })
}

#[test]
fn each_is_recognised_by_its_own_bytes_alone() {
    use Way::{ToClient, ToServer};
    let rows: &[Row<'_>] = &[
        (&HTTP2, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ToServer, Tcp, false, Probe::Yes),
        (&HTTP2, b"PRI * HT", ToServer, Tcp, false, Probe::More),
        (&HTTP2, b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n", ToServer, Tcp, false, Probe::No),
        (&HTTP2, b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64", ToClient, Tcp, false, Probe::Yes),
        (&HTTP2, b"\0\0\0\x04\0\0\0\0\0\0\0", ToClient, Tcp, false, Probe::No),
        (&TELNET, b"\xff\xfd\x18\xff\xfd\x20", ToClient, Tcp, false, Probe::Yes),
        (&TELNET, b"\xff\xfd\x18", ToClient, Tcp, true, Probe::Yes),
        (&TELNET, b"\xff\xfd\x18", ToClient, Tcp, false, Probe::More),
        (&TELNET, b"\xff\xd8\xff\xe0", ToClient, Tcp, true, Probe::No),
        (&IMAP, b"* OK [CAPABILITY IMAP4rev1] ready\r\n", ToClient, Tcp, false, Probe::Yes),
        (&IMAP, b"* OK hello\r\n", ToClient, Tcp, false, Probe::No),
        (&IMAP, b"a1 LOGIN me x\r\n", ToServer, Tcp, false, Probe::Yes),
        (&IMAP, b"A001 capability\r\n", ToServer, Tcp, false, Probe::Yes),
        (&IMAP, b"GET / HTTP/1.1\r\n", ToServer, Tcp, true, Probe::No),
        (&WEBSOCKET, b"\x81\x88\0\0\0\0{\"a\":12}", ToServer, Tcp, false, Probe::Yes),
        (&WEBSOCKET, b"\x81\x88\0\0\0\0\x01\x02", ToServer, Tcp, false, Probe::No),
        (&LDAP, LDAP_BIND, ToServer, Tcp, false, Probe::Yes),
        (&LDAP, LDAP_BIND, ToClient, Tcp, false, Probe::No),
        (&LDAP, SNMP_GET, ToServer, Udp, true, Probe::No),
        (&KRB5, AS_REQ, ToServer, Udp, false, Probe::Yes),
        (&KRB5, &[&[0, 0, 0, 163], AS_REQ].concat(), ToServer, Tcp, false, Probe::Yes),
        (&KRB5, &AS_REQ[..9], ToServer, Udp, true, Probe::No),
        (&NFS, NFS_CALL, ToServer, Tcp, false, Probe::Yes),
        (&NFS, &NFS_CALL[4..], ToServer, Udp, false, Probe::Yes),
        (&NFS, PORTMAP, ToServer, Tcp, true, Probe::No),
        (&SMB, b"\0\0\0\x90\xffSMBr", ToServer, Tcp, false, Probe::Yes),
        (&SMB, b"\0\0\0\x90\xfeSM", ToServer, Tcp, false, Probe::More),
        (&SMB, b"\0\0\0\x90\xfeSSH", ToServer, Tcp, true, Probe::No),
        (&DCERPC, BIND, ToServer, Tcp, false, Probe::Yes),
        (&DCERPC, b"\x05\x01\x00\x03\x0a\x00\x00\x01\x01\x01\x01\x01\x00\x50\x00\x00", ToServer, Tcp, true, Probe::No),
        (&RDP_PROTOCOL, RDP, ToServer, Tcp, false, Probe::Yes),
        (&RDP_PROTOCOL, COTP_OF_S7, ToServer, Tcp, false, Probe::No),
        (&QUIC, &quic_initial(1), ToServer, Udp, false, Probe::Yes),
        (&QUIC, &quic_initial(0x0102_0304), ToServer, Udp, true, Probe::No),
        (&QUIC, &quic_initial(1)[..60], ToServer, Udp, true, Probe::No),
        (&IKE, &ike_header(28), ToServer, Udp, true, Probe::Yes),
        (&IKE, &[&[0; 4][..], &ike_header(28)].concat(), ToServer, Udp, true, Probe::Yes),
        (&IKE, &ike_header(29), ToServer, Udp, true, Probe::No),
    ];
    for (protocol, data, way, transport, is_usual_port, expected) in rows {
        let verdict = ask(protocol, data, *way, *transport, *is_usual_port);
        assert_eq!(verdict, *expected, "{} {data:02x?}", protocol.name);
    }
}

use super::RDP as RDP_PROTOCOL;

fn quic_initial(version: u32) -> Vec<u8> {
    let mut data = [&[0xc3][..], &version.to_be_bytes(), &[8], &[7; 8], &[0, 0]].concat();
    data.resize(1200, 0x55);
    data
}

fn ike_header(length: u32) -> Vec<u8> {
    [&[1; 8][..], &[0; 8], &[33, 0x20, 34, 8], &[0; 4], &length.to_be_bytes()].concat()
}

#[test]
fn a_verdict_never_changes_with_more_bytes() {
    let all = [&HTTP2, &TELNET, &IMAP, &WEBSOCKET, &LDAP, &KRB5, &NFS, &SMB, &DCERPC, &RDP_PROTOCOL];
    let tcp = [&[0, 0, 0, 163], AS_REQ].concat();
    let begins: [&[u8]; 9] = [
        LDAP_BIND,
        NFS_CALL,
        BIND,
        RDP,
        &tcp,
        b"\0\0\0\x90\xffSMBr",
        b"\xff\xfd\x18\xff\xfd\x20\xff\xfb",
        b"a1 LOGIN me x\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0",
    ];
    for (protocol, data) in all.iter().flat_map(|protocol| begins.iter().map(move |data| (protocol, data))) {
        let whole = ask(protocol, data, Way::ToServer, Tcp, false);
        for end in 1..data.len() {
            let verdict = ask(protocol, &data[..end], Way::ToServer, Tcp, false);
            let agrees = verdict == Probe::More || verdict == whole;
            assert!(agrees, "{} says {verdict:?} of {end} bytes and {whole:?} of all of {data:02x?}", protocol.name);
        }
    }
}

#[test]
fn bent_beginnings_never_panic() {
    let all = [&HTTP2, &TELNET, &IMAP, &WEBSOCKET, &LDAP, &KRB5, &NFS, &SMB, &DCERPC, &RDP_PROTOCOL, &QUIC, &IKE];
    let mut random = 0x1234_5678_u32;
    for _ in 0..20_000 {
        let mut bytes = [0; 32];
        for byte in &mut bytes {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            *byte = if random & 0x300 == 0 { random as u8 } else { [0, 5, 0x30, 0xff][random as usize % 4] };
        }
        for protocol in all {
            for (way, transport) in [(Way::ToServer, Tcp), (Way::ToClient, Udp)] {
                let _ = ask(protocol, &bytes[..1 + random as usize % 32], way, transport, true);
            }
        }
    }
}
