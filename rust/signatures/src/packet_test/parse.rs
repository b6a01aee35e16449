//! Arguments of keywords about packets.

use crate::header::{ICMP, ICMPV6, SCTP, TCP, UDP};
use crate::number::{Choice, Comparison};
use crate::parse::unquoted;

use super::{Bits, PacketTest, Side};

impl PacketTest {
    /// Read a keyword about packets; `None` where `name` is none. `app-layer-protocol` is read by the loader, which
    /// knows the protocols.
    pub(crate) fn parse(name: &str, value: Option<&str>) -> Option<Result<PacketTest, String>> {
        let argument = || value.ok_or_else(|| "it needs an argument".to_owned()).and_then(unquoted).map(str::trim);
        let number = |bits: u8| argument().and_then(|text| Comparison::parse(text, bits, &[]));
        Some(match name {
            "dsize" => number(16).map(PacketTest::PayloadSize),
            "flags" | "tcp.flags" => argument().and_then(tcp_flags),
            "seq" | "tcp.seq" => argument().and_then(exact32).map(PacketTest::Sequence),
            "ack" | "tcp.ack" => argument().and_then(exact32).map(PacketTest::Acknowledgement),
            "window" | "tcp.window" => number(16).map(PacketTest::Window),
            "tcp.mss" => number(16).map(PacketTest::SegmentSize),
            "tcp.wscale" => number(8).map(PacketTest::WindowScale),
            "ttl" => number(8).map(PacketTest::TimeToLive),
            "tos" => number(8).map(PacketTest::TypeOfService),
            "id" => number(16).map(PacketTest::Ipv4Id),
            "ipopts" => argument().and_then(ip_option),
            "sameip" => bare(value).map(|()| PacketTest::SameAddress),
            "ip_proto" => argument().and_then(ip_protocol),
            "fragbits" => argument().and_then(fragment_bits),
            "fragoffset" => number(16).map(PacketTest::FragmentOffset),
            "itype" => number(8).map(PacketTest::IcmpType),
            "icode" => number(8).map(PacketTest::IcmpCode),
            "icmp_id" => argument().and_then(exact16).map(PacketTest::IcmpId),
            "icmp_seq" => argument().and_then(exact16).map(PacketTest::IcmpSequence),
            "icmpv6.mtu" => number(32).map(PacketTest::Icmpv6Mtu),
            "vlan.id" => argument().and_then(vlan_id),
            "vlan.layers" => argument().and_then(vlan_layers),
            "decode-event" | "engine-event" => argument().and_then(event).map(PacketTest::Event),
            "stream-event" => argument().and_then(event).map(|name| PacketTest::Event(format!("stream.{name}").into())),
            _ => return flow_test(name, &argument),
        })
    }

    /// Whether it looks at one packet's header, so that contents are to be looked for in that packet.
    pub(crate) fn requires_packet(&self) -> bool {
        !matches!(
            self,
            PacketTest::AppProtocol(_)
                | PacketTest::AppIs(_)
                | PacketTest::FlowAge(_)
                | PacketTest::FlowPackets(..)
                | PacketTest::FlowBytes(..)
                | PacketTest::StreamSize(..)
                | PacketTest::VlanId(..)
                | PacketTest::VlanLayers(_)
                | PacketTest::IpProtocol(_)
                | PacketTest::SameAddress
        )
    }

    /// Whether it needs a flow.
    pub(crate) fn requires_flow(&self) -> bool {
        matches!(
            self,
            PacketTest::AppProtocol(_)
                | PacketTest::AppIs(_)
                | PacketTest::FlowAge(_)
                | PacketTest::FlowPackets(..)
                | PacketTest::FlowBytes(..)
                | PacketTest::StreamSize(..)
        )
    }
}

fn flow_test<'a>(name: &str, argument: &dyn Fn() -> Result<&'a str, String>) -> Option<Result<PacketTest, String>> {
    let number = |bits: u8| argument().and_then(|text| Comparison::parse(text, bits, &[]));
    Some(match name {
        "flow.age" => number(32).map(PacketTest::FlowAge),
        "flow.pkts_toserver" => number(32).map(|range| PacketTest::FlowPackets(Side::ToServer, range)),
        "flow.pkts_toclient" => number(32).map(|range| PacketTest::FlowPackets(Side::ToClient, range)),
        "flow.bytes_toserver" => number(64).map(|range| PacketTest::FlowBytes(Side::ToServer, range)),
        "flow.bytes_toclient" => number(64).map(|range| PacketTest::FlowBytes(Side::ToClient, range)),
        "flow.pkts" => {
            argument().and_then(|text| sided(text, 32)).map(|(side, range)| PacketTest::FlowPackets(side, range))
        }
        "flow.bytes" => {
            argument().and_then(|text| sided(text, 64)).map(|(side, range)| PacketTest::FlowBytes(side, range))
        }
        "stream_size" => argument().and_then(stream_size),
        _ => return None,
    })
}

fn bare(value: Option<&str>) -> Result<(), String> {
    if value.is_some() { Err("it takes no argument".to_owned()) } else { Ok(()) }
}

fn exact32(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text} is no number of 32 bits"))
}

fn exact16(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("{text} is no number of 16 bits"))
}

fn event(text: &str) -> Result<Box<str>, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.chars().all(is_name) { Ok(text.into()) } else { Err(format!("{text} is no event")) }
}

/// The modifier may stand before or (`S+`) after the letters.
fn modifier(text: &str) -> (Bits, &str) {
    let how = |mark: char| match mark {
        '+' => Some(Bits::All),
        '*' => Some(Bits::Any),
        '!' => Some(Bits::Not),
        _ => None,
    };
    let text = text.trim();
    if let Some(found) = text.chars().next().and_then(how) {
        return (found, text.get(1..).unwrap_or_default().trim());
    }
    match text.chars().next_back().and_then(how) {
        Some(found) => (found, text.get(..text.len().saturating_sub(1)).unwrap_or_default().trim()),
        None => (Bits::Exactly, text),
    }
}

fn tcp_flags(text: &str) -> Result<PacketTest, String> {
    let (flags, ignored) = text.split_once(',').map_or((text, None), |(flags, ignored)| (flags, Some(ignored)));
    let (how, letters) = modifier(flags);
    let wanted = tcp_letters(letters)?;
    let ignored = ignored.map_or(Ok(0), |letters| tcp_letters(letters.trim()))?;
    if wanted & ignored != 0 {
        return Err("a flag is both wanted and ignored".to_owned());
    }
    Ok(PacketTest::TcpFlags(wanted, !ignored, how))
}

fn tcp_letters(text: &str) -> Result<u8, String> {
    let (mut bits, mut has_zero) = (0u8, false);
    for letter in text.chars() {
        bits |= match letter.to_ascii_uppercase() {
            'F' => 1,
            'S' => 2,
            'R' => 4,
            'P' => 8,
            'A' => 0x10,
            'U' => 0x20,
            'E' | '2' => 0x40,
            'C' | '1' => 0x80,
            '0' => {
                has_zero = true;
                0
            }
            other => return Err(format!("{other} is no TCP flag")),
        };
    }
    if text.is_empty() || (has_zero && bits != 0) { Err("no TCP flags".to_owned()) } else { Ok(bits) }
}

fn fragment_bits(text: &str) -> Result<PacketTest, String> {
    let (how, letters) = modifier(text);
    let mut bits = 0;
    for letter in letters.chars() {
        bits |= match letter.to_ascii_uppercase() {
            'R' => 0x8000,
            'D' => 0x4000,
            'M' => 0x2000,
            other => return Err(format!("{other} is no fragment bit")),
        };
    }
    if bits == 0 { Err("no fragment bits".to_owned()) } else { Ok(PacketTest::FragmentBits(bits, how)) }
}

fn ip_option(text: &str) -> Result<PacketTest, String> {
    Ok(PacketTest::IpOption(match text {
        "any" => None,
        "eol" => Some(0),
        "nop" => Some(1),
        "rr" => Some(7),
        "ts" => Some(0x44),
        "sec" => Some(0x82),
        "lsrr" | "lsrre" => Some(0x83),
        "esec" => Some(0x85),
        "cipso" => Some(0x86),
        "satid" => Some(0x88),
        "ssrr" => Some(0x89),
        "rtralt" => Some(0x94),
        other => return Err(format!("{other} is no IP option")),
    }))
}

fn ip_protocol(text: &str) -> Result<PacketTest, String> {
    let names: &[(&str, u64)] = &[
        ("icmp", ICMP as u64),
        ("igmp", 2),
        ("ipv4", 4),
        ("ipip", 4),
        ("tcp", TCP as u64),
        ("udp", UDP as u64),
        ("ipv6", 41),
        ("gre", 47),
        ("esp", 50),
        ("ah", 51),
        ("icmpv6", ICMPV6 as u64),
        ("ipv6-icmp", ICMPV6 as u64),
        ("ospf", 89),
        ("pim", 103),
        ("vrrp", 112),
        ("sctp", SCTP as u64),
    ];
    Comparison::parse(text, 8, names).map(PacketTest::IpProtocol)
}

fn vlan_id(text: &str) -> Result<PacketTest, String> {
    let (choice, value) = Choice::parse(text)?;
    let range = if value.is_empty() { Comparison::AtLeast(0) } else { Comparison::parse(value, 16, &[])? };
    // IEEE 802.1Q: twelve bits, all ones reserved
    if matches!(range, Comparison::Equal(id) | Comparison::Above(id) if id >= 0xfff) {
        return Err("no VLAN has such an id".to_owned());
    }
    Ok(PacketTest::VlanId(range, choice))
}

fn vlan_layers(text: &str) -> Result<PacketTest, String> {
    let range = Comparison::parse(text, 8, &[])?;
    // three tags are the most that are decoded
    if matches!(range, Comparison::Equal(count) if count > 3) || matches!(range, Comparison::Above(count) if count > 2)
    {
        return Err("at most three layers are decoded".to_owned());
    }
    Ok(PacketTest::VlanLayers(range))
}

fn side(text: &str) -> Result<Side, String> {
    Ok(match text.trim() {
        "toserver" | "to_server" => Side::ToServer,
        "toclient" | "to_client" => Side::ToClient,
        "both" => Side::Both,
        "either" => Side::Either,
        other => return Err(format!("{other} is no direction")),
    })
}

fn sided(text: &str, bits: u8) -> Result<(Side, Comparison), String> {
    let (way, range) = text.split_once(',').ok_or("direction and number are expected")?;
    Ok((side(way)?, Comparison::parse(range, bits, &[])?))
}

/// `server` counts what the server sent: the way to the client.
fn stream_size(text: &str) -> Result<PacketTest, String> {
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    let [who, operator, number] = *parts.as_slice() else {
        return Err("side, operator and number are expected".to_owned());
    };
    let side = match who {
        "server" => Side::ToClient,
        "client" => Side::ToServer,
        "both" => Side::Both,
        "either" => Side::Either,
        other => return Err(format!("{other} is no side")),
    };
    let range = Comparison::parse(&format!("{operator}{number}"), 32, &[])?;
    Ok(PacketTest::StreamSize(side, range))
}
