use super::*;

fn frame(data: &[u8], link: Link) -> Frame<'_> {
    Frame { time_us: 0, data, wire_bytes: data.len() as u32, link, direction: Direction::Unknown }
}

fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    packet.extend_from_slice(payload);
    let total = packet.len() as u16;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
    packet.extend_from_slice(&0x2001_0db8_0000_0000_0000_0000_0000_0001_u128.to_be_bytes());
    packet.extend_from_slice(&0x2001_0db8_0000_0000_0000_0000_0000_0002_u128.to_be_bytes());
    packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    packet.extend_from_slice(payload);
    packet
}

fn tcp(flags: u8) -> Vec<u8> {
    vec![0x04, 0xd2, 0, 80, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, flags, 0, 0, 0, 0, 0, 0]
}

fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut data = vec![0; 12];
    data.extend_from_slice(&kind.to_be_bytes());
    data.extend_from_slice(payload);
    data
}

fn samples() -> Vec<(Vec<u8>, Link)> {
    let vlan = |inner: u16, payload: &[u8]| {
        let mut data = vec![0, 5];
        data.extend_from_slice(&inner.to_be_bytes());
        data.extend_from_slice(payload);
        data
    };
    let v4 = ipv4(6, &tcp(2));
    let extension = [&[60, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0][..], &tcp(2)].concat();
    vec![
        (ethernet(0x0800, &v4), Link::Ethernet),
        (ethernet(0x8100, &vlan(0x0800, &v4)), Link::Ethernet),
        (ethernet(0x88a8, &vlan(0x8100, &vlan(0x0800, &v4))), Link::Ethernet),
        (ethernet(0x86dd, &ipv6(0, &extension)), Link::Ethernet),
        (ethernet(0x86dd, &ipv6(17, &[0, 53, 0, 53, 0, 9, 0, 0, 1])), Link::Ethernet),
        (ethernet(0x86dd, &ipv6(58, &[128, 0, 0, 0, 0, 7, 0, 1])), Link::Ethernet),
        (ethernet(0x0806, &[0; 28]), Link::Ethernet),
        (v4.clone(), Link::RawIp),
        (ipv6(6, &tcp(16)), Link::RawIp),
        ([&[0; 14][..], &[8, 0], &ipv4(1, &[8, 0, 0, 0, 0, 7, 0, 1])].concat(), Link::Cooked),
        ([&[8, 0][..], &[0; 18], &ipv4(17, &[0, 53, 0, 53, 0, 9, 0, 0, 1])].concat(), Link::Cooked2),
        ([&[2, 0, 0, 0][..], &v4].concat(), Link::Null),
        ([&[0, 0, 0, 30][..], &ipv6(6, &tcp(16))].concat(), Link::Null),
    ]
}

#[test]
fn every_sample_decodes_to_the_expected_headers() {
    let decoded: Vec<_> = samples().iter().map(|(data, link)| decode(&frame(data, *link))).collect();
    assert!(decoded.iter().all(Result::is_ok), "{decoded:?}");
    let Ok(Decoded::Ip(first)) = decoded[0] else { panic!("not IP") };
    assert_eq!((first.source_port, first.destination_port, first.tcp_flags), (1234, 80, flags::SYN));
    assert_eq!((first.sequence, first.acknowledgement, first.payload_bytes), (7, 9, 0));
    assert_eq!(first.source.to_string(), "10.0.0.1");
    for same in [1, 2, 7, 11] {
        let Ok(Decoded::Ip(other)) = decoded[same] else { panic!("not IP") };
        assert_eq!(Packet { wire_bytes: 0, ..other }, Packet { wire_bytes: 0, ..first });
    }
    let Ok(Decoded::Ip(sixth)) = decoded[3] else { panic!("not IP") };
    assert_eq!((sixth.protocol, sixth.source.to_string().as_str()), (6, "2001:db8::1"));
    assert_eq!(decoded[6], Ok(Decoded::Arp));
}

#[test]
fn each_cut_is_refused_and_a_cut_by_the_capture_is_told_apart() {
    for (data, link) in samples() {
        for length in 0..data.len() {
            let cut = &data[..length];
            let result = decode(&frame(cut, link));
            assert!(!matches!(result, Err(Malformed::Snapped)), "{link:?} cut at {length}: {result:?}");
            let snapped = Frame { wire_bytes: data.len() as u32, ..frame(cut, link) };
            assert!(matches!(decode(&snapped), Ok(_) | Err(Malformed::Snapped)), "{link:?} at {length}");
        }
    }
}

#[test]
fn no_flipped_byte_panics() {
    for (data, link) in samples() {
        for at in 0..data.len() {
            for value in 0..=255 {
                let mut bad = data.clone();
                bad[at] = value;
                let _ = decode(&frame(&bad, link));
            }
        }
    }
}

#[test]
fn each_reason_has_a_packet_that_only_it_explains() {
    let v4 = ipv4(6, &tcp(2));
    let edited = |at: usize, value: u8| {
        let mut packet = v4.clone();
        packet[at] = value;
        packet
    };
    let mapped = {
        let mut packet = ipv6(6, &tcp(2));
        packet[8..24].copy_from_slice(&Address::from_v4(1).0.to_be_bytes());
        packet
    };
    let tagged = [0, 1, 0x81, 0, 0, 1, 0x81, 0, 0, 1, 8, 0];
    let rows: Vec<(Malformed, Vec<u8>, Link)> = vec![
        (Malformed::EthernetTooSmall, vec![0; 13], Link::Ethernet),
        (Malformed::VlanTooSmall, ethernet(0x8100, &[0, 1, 8]), Link::Ethernet),
        (Malformed::VlanTooMany, ethernet(0x8100, &tagged), Link::Ethernet),
        (Malformed::CookedTooSmall, vec![0; 15], Link::Cooked),
        (Malformed::CookedTooSmall, vec![0; 19], Link::Cooked2),
        (Malformed::NullTooSmall, vec![2, 0, 0], Link::Null),
        (Malformed::ArpTooSmall, ethernet(0x0806, &[0; 27]), Link::Ethernet),
        (Malformed::IpVersion, vec![0x55; 40], Link::RawIp),
        (Malformed::IpVersion, ethernet(0x0800, &edited(0, 0x65)), Link::Ethernet),
        (Malformed::Ipv4TooSmall, v4[..19].to_vec(), Link::RawIp),
        (Malformed::Ipv4HeaderLength, edited(0, 0x44), Link::RawIp),
        (Malformed::Ipv4TotalLength, edited(3, 19), Link::RawIp),
        (Malformed::Ipv4Truncated, edited(3, 41), Link::RawIp),
        (Malformed::Ipv6TooSmall, ipv6(6, &[])[..39].to_vec(), Link::RawIp),
        (Malformed::Ipv6Truncated, ipv6(6, &tcp(2))[..59].to_vec(), Link::RawIp),
        (Malformed::Ipv6ExtensionTruncated, ipv6(60, &[6, 1, 0, 0, 0, 0, 0, 0]), Link::RawIp),
        (Malformed::Ipv6ExtensionTooMany, ipv6(60, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(9)), Link::RawIp),
        (Malformed::Ipv6MappedAddress, mapped, Link::RawIp),
        (Malformed::TcpTooSmall, ipv4(6, &[0; 19]), Link::RawIp),
        (Malformed::TcpHeaderLength, edited(32, 0x40), Link::RawIp),
        (Malformed::TcpHeaderLength, edited(32, 0x60), Link::RawIp),
        (Malformed::UdpTooSmall, ipv4(17, &[0; 7]), Link::RawIp),
        (Malformed::UdpLength, ipv4(17, &[0, 1, 0, 1, 0, 7, 0, 0]), Link::RawIp),
        (Malformed::IcmpTooSmall, ipv4(1, &[8, 0, 0]), Link::RawIp),
        (Malformed::Icmpv6TooSmall, ipv6(58, &[128, 0, 0]), Link::RawIp),
    ];
    for (reason, data, link) in rows {
        assert_eq!(decode(&frame(&data, link)), Err(reason));
    }
}

#[test]
fn a_later_fragment_has_no_ports() {
    let mut packet = ipv4(6, &tcp(2));
    packet[7] = 1;
    let Ok(Decoded::Ip(decoded)) = decode(&frame(&packet, Link::RawIp)) else { panic!("not IP") };
    assert!(decoded.is_later_fragment && decoded.source_port == 0 && decoded.tcp_flags == 0);
}
