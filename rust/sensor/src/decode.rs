//! Bytes to one [`Packet`]: link layer, up to two VLAN tags, IPv4 or IPv6, TCP, UDP or ICMP headers.
//!
//! Every field is read through a bounds check; what does not fit is a [`Malformed`] reason, named as Suricata names
//! its decoder events. A header that the capture cut off (but that was on the wire) is [`Malformed::Snapped`], which
//! says something about the capture and nothing about the sender.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// 802.1Q and 802.1ad allow one tag inside one other; deeper stacks are an attack on decoders.
const MAX_VLAN_TAGS: usize = 2;
/// RFC 8200 section 4.1 lists seven extension headers, of which one may occur twice.
const MAX_EXTENSION_HEADERS: usize = 8;

/// What the frame's first byte belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// IEEE 802.3 (capture link type 1).
    Ethernet,
    /// An IP packet without a link layer (12, 14, 101, 228, 229).
    RawIp,
    /// Linux cooked, version 1 (113).
    Cooked,
    /// Linux cooked, version 2 (276).
    Cooked2,
    /// BSD loopback: the address family in the capturing machine's or in network byte order (0, 108).
    Null,
    /// PPP, with or without HDLC framing (9, 50).
    Ppp,
    /// Cisco HDLC (104).
    Chdlc,
}

impl Link {
    /// Return the link layer of a capture file's link type number, or `None` where we have no decoder for it.
    pub fn from_link_type(number: u32) -> Option<Link> {
        match number {
            0 | 108 => Some(Link::Null),
            1 => Some(Link::Ethernet),
            9 | 50 => Some(Link::Ppp),
            104 => Some(Link::Chdlc),
            12 | 14 | 101 | 228 | 229 => Some(Link::RawIp),
            113 => Some(Link::Cooked),
            276 => Some(Link::Cooked2),
            _ => None,
        }
    }
}

/// Which way a frame crossed the interface; a capture file does not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Direction {
    /// Nobody recorded it.
    #[default]
    Unknown,
    /// Towards this machine (or seen in passing).
    In,
    /// Sent by this machine.
    Out,
}

/// One captured frame.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    /// Microseconds since 1970-01-01 UTC.
    pub time_us: u64,
    /// What was captured.
    pub data: &'a [u8],
    /// How long it was on the wire; never less than `data.len()` is assumed.
    pub wire_bytes: u32,
    /// What `data` begins with.
    pub link: Link,
    /// Which way it went.
    pub direction: Direction,
}

/// An IPv4 address in its mapped form, or an IPv6 address. Mapped addresses inside IPv6 packets are refused by the
/// decoder, so that an IPv6 sender cannot pass for an IPv4 one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Hash)]
pub struct Address(pub u128);

const MAPPED: u128 = 0xffff_0000_0000;

impl Address {
    /// Return the address of four bytes.
    #[inline]
    pub fn from_v4(value: u32) -> Address {
        Address(MAPPED | u128::from(value))
    }

    /// Return whether this is an IPv4 address.
    #[inline]
    pub fn is_v4(self) -> bool {
        self.0 >> 32 == MAPPED >> 32
    }

    /// Return the two halves, for hashing.
    #[inline]
    pub fn words(self) -> [u64; 2] {
        [(self.0 >> 64) as u64, self.0 as u64]
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_v4() {
            Ipv4Addr::from_bits(self.0 as u32).fmt(formatter)
        } else {
            Ipv6Addr::from_bits(self.0).fmt(formatter)
        }
    }
}

/// TCP flag bits.
pub mod flags {
    #![allow(missing_docs)] // RFC 9293 section 3.1
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
    pub const URG: u8 = 32;
}

/// IANA protocol numbers that have meaning here.
pub mod protocol {
    #![allow(missing_docs)]
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
}

/// The headers of one IP packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Who says to have sent it.
    pub source: Address,
    /// Who is to get it.
    pub destination: Address,
    /// TCP or UDP port; the identifier of an ICMP echo; else 0.
    pub source_port: u16,
    /// Likewise.
    pub destination_port: u16,
    /// IANA number of the payload's protocol.
    pub protocol: u8,
    /// TCP flags, 0 for everything else.
    pub tcp_flags: u8,
    /// ICMP type and code, 0 for everything else.
    pub icmp: [u8; 2],
    /// TCP sequence number.
    pub sequence: u32,
    /// TCP acknowledgement number.
    pub acknowledgement: u32,
    /// Bytes behind the transport header.
    pub payload_bytes: u32,
    /// Bytes of the whole frame on the wire.
    pub wire_bytes: u32,
    /// A fragment that is not the first: it has no ports.
    pub is_later_fragment: bool,
}

/// What a frame was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// An IP packet.
    Ip(Packet),
    /// Address resolution.
    Arp,
    /// A protocol above the link layer that the sensor does not look into.
    Other,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a frame could not be decoded.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum Malformed { $($(#[$doc])* $name,)* }
        impl Malformed {
            /// Every reason, in the order of its counter.
            pub const ALL: &'static [Malformed] = &[$(Malformed::$name,)*];
            /// Return the name under which EVE reports it.
            pub fn name(self) -> &'static str {
                match self { $(Malformed::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// The capture cut off a header; not the sender's fault.
    Snapped = "decoder.cut_by_capture",
    /// Shorter than an Ethernet header.
    EthernetTooSmall = "decoder.ethernet.pkt_too_small",
    /// A VLAN tag is cut off.
    VlanTooSmall = "decoder.vlan.header_too_small",
    /// More than two VLAN tags.
    VlanTooMany = "decoder.vlan.too_many_layers",
    /// Shorter than the cooked header.
    CookedTooSmall = "decoder.sll.pkt_too_small",
    /// Shorter than the loopback header.
    NullTooSmall = "decoder.null.pkt_too_small",
    /// Shorter than a PPP header.
    PppTooSmall = "decoder.ppp.pkt_too_small",
    /// Shorter than a Cisco HDLC header.
    ChdlcTooSmall = "decoder.chdlc.pkt_too_small",
    /// Shorter than an ARP message for IPv4 over Ethernet.
    ArpTooSmall = "decoder.arp.pkt_too_small",
    /// No version nibble of IP.
    IpVersion = "decoder.ip.wrong_ip_version",
    /// Shorter than an IPv4 header.
    Ipv4TooSmall = "decoder.ipv4.pkt_too_small",
    /// Header length field below five words.
    Ipv4HeaderLength = "decoder.ipv4.hlen_too_small",
    /// Total length below the header length.
    Ipv4TotalLength = "decoder.ipv4.iplen_smaller_than_hlen",
    /// Total length beyond the frame.
    Ipv4Truncated = "decoder.ipv4.trunc_pkt",
    /// Shorter than an IPv6 header.
    Ipv6TooSmall = "decoder.ipv6.pkt_too_small",
    /// Payload length beyond the frame.
    Ipv6Truncated = "decoder.ipv6.trunc_pkt",
    /// An extension header is cut off.
    Ipv6ExtensionTruncated = "decoder.ipv6.trunc_exthdr",
    /// More extension headers than RFC 8200 has.
    Ipv6ExtensionTooMany = "decoder.ipv6.too_many_exthdrs",
    /// An IPv4-mapped address on the wire (RFC 4942 section 2.2): it would pass for an IPv4 sender.
    Ipv6MappedAddress = "decoder.ipv6.ipv4_mapped_addr",
    /// Shorter than a TCP header.
    TcpTooSmall = "decoder.tcp.pkt_too_small",
    /// Data offset below five words or beyond the packet.
    TcpHeaderLength = "decoder.tcp.hlen_too_small",
    /// Shorter than a UDP header.
    UdpTooSmall = "decoder.udp.pkt_too_small",
    /// Length field below the header's own 8 bytes.
    UdpLength = "decoder.udp.len_invalid",
    /// Shorter than an ICMP header.
    IcmpTooSmall = "decoder.icmpv4.pkt_too_small",
    /// Shorter than an ICMPv6 header.
    Icmpv6TooSmall = "decoder.icmpv6.pkt_too_small",
}

/// A stretch of the frame: the captured part, and how many bytes there were on the wire.
#[derive(Clone, Copy)]
struct View<'a> {
    data: &'a [u8],
    wire: usize,
}

impl<'a> View<'a> {
    /// Return the first `N` bytes, or why they are not there.
    #[inline(always)]
    fn head<const N: usize>(&self, missing: Malformed) -> Result<&'a [u8; N], Malformed> {
        match self.data.first_chunk::<N>() {
            Some(head) => Ok(head),
            None if self.wire >= N => Err(Malformed::Snapped),
            None => Err(missing),
        }
    }

    /// Return what is behind the first `count` bytes.
    #[inline(always)]
    fn after(&self, count: usize) -> View<'a> {
        View { data: self.data.get(count..).unwrap_or_default(), wire: self.wire.saturating_sub(count) }
    }

    /// Return the first `wire` bytes: link-layer padding is cut.
    #[inline(always)]
    fn limited(&self, wire: usize) -> View<'a> {
        View { data: self.data.get(..wire).unwrap_or(self.data), wire: self.wire.min(wire) }
    }
}

#[inline(always)]
fn be16(high: u8, low: u8) -> u16 {
    u16::from_be_bytes([high, low])
}

/// Return what the frame is, or why it is malformed. Never panics.
#[inline]
pub fn decode(frame: &Frame<'_>) -> Result<Decoded, Malformed> {
    let view = View { data: frame.data, wire: frame.data.len().max(frame.wire_bytes as usize) };
    let mut packet = Packet { wire_bytes: view.wire.min(u32::MAX as usize) as u32, ..Packet::default() };
    match frame.link {
        Link::Ethernet => {
            let head = view.head::<14>(Malformed::EthernetTooSmall)?;
            decode_ether_type(view.after(14), be16(head[12], head[13]), &mut packet)
        }
        Link::RawIp => decode_ip(view, &mut packet),
        Link::Cooked => {
            let head = view.head::<16>(Malformed::CookedTooSmall)?;
            decode_ether_type(view.after(16), be16(head[14], head[15]), &mut packet)
        }
        Link::Cooked2 => {
            let head = view.head::<20>(Malformed::CookedTooSmall)?;
            decode_ether_type(view.after(20), be16(head[0], head[1]), &mut packet)
        }
        Link::Null => decode_null(view, &mut packet),
        Link::Ppp => decode_ppp(view, &mut packet),
        Link::Chdlc => {
            let head = view.head::<4>(Malformed::ChdlcTooSmall)?;
            decode_ether_type(view.after(4), be16(head[2], head[3]), &mut packet)
        }
    }
}

fn decode_ppp(mut view: View<'_>, packet: &mut Packet) -> Result<Decoded, Malformed> {
    if view.data.first_chunk() == Some(&[0xff, 0x03]) {
        view = view.after(2); // address and control of HDLC
    }
    let first = view.head::<1>(Malformed::PppTooSmall)?[0];
    // an odd first byte is the whole number (RFC 1661 section 6.5)
    let (kind, rest) = match first & 1 {
        1 => (u16::from(first), view.after(1)),
        _ => (be16(first, view.head::<2>(Malformed::PppTooSmall)?[1]), view.after(2)),
    };
    match kind {
        0x21 => decode_ipv4(rest, packet),
        0x57 => decode_ipv6(rest, packet),
        _ => Ok(Decoded::Other),
    }
}

fn decode_null(view: View<'_>, packet: &mut Packet) -> Result<Decoded, Malformed> {
    let family = view.head::<4>(Malformed::NullTooSmall)?;
    // the family is a small number: whichever end it stands at, the other bytes are zero
    match (family[0] | family[3], family[1] | family[2]) {
        (2, 0) => decode_ipv4(view.after(4), packet),
        (10 | 23 | 24 | 28 | 30, 0) => decode_ipv6(view.after(4), packet), // AF_INET6 on Linux, Windows and the BSDs
        _ => Ok(Decoded::Other),
    }
}

#[inline(always)]
fn decode_ether_type(mut view: View<'_>, mut kind: u16, packet: &mut Packet) -> Result<Decoded, Malformed> {
    let mut tags = 0;
    while matches!(kind, 0x8100 | 0x88a8 | 0x9100) {
        tags += 1;
        if tags > MAX_VLAN_TAGS {
            return Err(Malformed::VlanTooMany);
        }
        let tag = view.head::<4>(Malformed::VlanTooSmall)?;
        kind = be16(tag[2], tag[3]);
        view = view.after(4);
    }
    match kind {
        0x0800 => decode_ipv4(view, packet),
        0x86dd => decode_ipv6(view, packet),
        0x0806 => view.head::<28>(Malformed::ArpTooSmall).map(|_| Decoded::Arp),
        _ => Ok(Decoded::Other),
    }
}

fn decode_ip(view: View<'_>, packet: &mut Packet) -> Result<Decoded, Malformed> {
    match view.head::<1>(Malformed::Ipv4TooSmall)?[0] >> 4 {
        4 => decode_ipv4(view, packet),
        6 => decode_ipv6(view, packet),
        _ => Err(Malformed::IpVersion),
    }
}

#[inline(always)]
fn decode_ipv4(view: View<'_>, packet: &mut Packet) -> Result<Decoded, Malformed> {
    let head = view.head::<20>(Malformed::Ipv4TooSmall)?;
    if head[0] >> 4 != 4 {
        return Err(Malformed::IpVersion);
    }
    let header_bytes = usize::from(head[0] & 15) * 4;
    if header_bytes < 20 {
        return Err(Malformed::Ipv4HeaderLength);
    }
    // segmentation offload leaves 0 in packets above 64 KiB: the frame's length holds then
    let total_bytes = match usize::from(be16(head[2], head[3])) {
        0 => view.wire,
        total => total,
    };
    if total_bytes < header_bytes {
        return Err(Malformed::Ipv4TotalLength);
    }
    if total_bytes > view.wire {
        return Err(Malformed::Ipv4Truncated);
    }
    packet.source = Address::from_v4(u32::from_be_bytes([head[12], head[13], head[14], head[15]]));
    packet.destination = Address::from_v4(u32::from_be_bytes([head[16], head[17], head[18], head[19]]));
    packet.protocol = head[9];
    packet.is_later_fragment = be16(head[6], head[7]) & 0x1fff != 0;
    decode_transport(view.limited(total_bytes).after(header_bytes), packet)
}

fn decode_ipv6(view: View<'_>, packet: &mut Packet) -> Result<Decoded, Malformed> {
    let head = view.head::<40>(Malformed::Ipv6TooSmall)?;
    if head[0] >> 4 != 6 {
        return Err(Malformed::IpVersion);
    }
    let mut next = head[6];
    let mut rest = view.after(40);
    match usize::from(be16(head[4], head[5])) {
        0 => {} // a jumbogram (RFC 2675) or segmentation offload: the frame's length holds
        payload if payload > rest.wire => return Err(Malformed::Ipv6Truncated),
        payload => rest = rest.limited(payload),
    }
    let address = |at: usize| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&head[at..at + 16]);
        Address(u128::from_be_bytes(bytes))
    };
    (packet.source, packet.destination) = (address(8), address(24));
    if packet.source.is_v4() || packet.destination.is_v4() {
        return Err(Malformed::Ipv6MappedAddress);
    }
    let mut headers = 0;
    loop {
        let bytes = match next {
            0 | 43 | 60 | 135 | 139 | 140 => {
                let head = rest.head::<2>(Malformed::Ipv6ExtensionTruncated)?;
                next = head[0];
                usize::from(head[1]) * 8 + 8
            }
            44 => {
                let head = rest.head::<8>(Malformed::Ipv6ExtensionTruncated)?;
                next = head[0];
                packet.is_later_fragment |= be16(head[2], head[3]) & 0xfff8 != 0;
                8
            }
            51 => {
                let head = rest.head::<2>(Malformed::Ipv6ExtensionTruncated)?;
                next = head[0];
                usize::from(head[1]) * 4 + 8
            }
            _ => break,
        };
        headers += 1;
        if headers > MAX_EXTENSION_HEADERS {
            return Err(Malformed::Ipv6ExtensionTooMany);
        }
        if bytes > rest.wire {
            return Err(Malformed::Ipv6ExtensionTruncated);
        }
        rest = rest.after(bytes);
        if packet.is_later_fragment {
            break; // what follows is the middle of something
        }
    }
    packet.protocol = next;
    decode_transport(rest, packet)
}

#[inline(always)]
fn decode_transport(view: View<'_>, packet: &mut Packet) -> Result<Decoded, Malformed> {
    packet.payload_bytes = view.wire as u32;
    if packet.is_later_fragment {
        return Ok(Decoded::Ip(*packet));
    }
    match packet.protocol {
        protocol::TCP => {
            let head = view.head::<20>(Malformed::TcpTooSmall)?;
            let header_bytes = usize::from(head[12] >> 4) * 4;
            if header_bytes < 20 || header_bytes > view.wire {
                return Err(Malformed::TcpHeaderLength);
            }
            packet.source_port = be16(head[0], head[1]);
            packet.destination_port = be16(head[2], head[3]);
            packet.sequence = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
            packet.acknowledgement = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
            packet.tcp_flags = head[13];
            packet.payload_bytes = (view.wire - header_bytes) as u32;
        }
        protocol::UDP => {
            let head = view.head::<8>(Malformed::UdpTooSmall)?;
            packet.source_port = be16(head[0], head[1]);
            packet.destination_port = be16(head[2], head[3]);
            // 0 is a jumbogram's length; a first fragment carries the whole datagram's length and may exceed
            // what is here, so only a length below the header's own is an error there
            let length = usize::from(be16(head[4], head[5]));
            if length != 0 && length < 8 {
                return Err(Malformed::UdpLength);
            }
            packet.payload_bytes = (view.wire - 8) as u32;
        }
        protocol::ICMP => decode_icmp(view, Malformed::IcmpTooSmall, [8, 0], packet)?,
        protocol::ICMPV6 => decode_icmp(view, Malformed::Icmpv6TooSmall, [128, 129], packet)?,
        _ => {}
    }
    Ok(Decoded::Ip(*packet))
}

fn decode_icmp(view: View<'_>, missing: Malformed, echo: [u8; 2], packet: &mut Packet) -> Result<(), Malformed> {
    let head = view.head::<4>(missing)?;
    packet.icmp = [head[0], head[1]];
    if echo.contains(&head[0]) {
        let head = view.head::<8>(missing)?;
        packet.source_port = be16(head[4], head[5]);
        packet.destination_port = packet.source_port; // request and answer share the identifier
    }
    Ok(())
}

#[cfg(test)]
mod tests;
