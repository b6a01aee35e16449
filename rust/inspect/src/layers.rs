//! A frame to its layers: link, network, transport, payload, and what a tunnel carries.
//!
//! Every field is read through a bounds check. What is wrong is an event, named as Suricata names it (without
//! `decoder.`); after an error in a header the packet is invalid: it has no flow, and only rules about events see it.

use protocols::Reader;
use sensor::Link;

use crate::transport::transport;
use crate::tunnel::{self, Tunnel};

/// Deeper stacks are an attack on decoders; 802.1Q allows two, providers use three.
pub const MAX_VLAN_TAGS: usize = 3;
/// RFC 8200 section 4.1 lists seven, of which one may occur twice.
const MAX_EXTENSIONS: usize = 8;
/// More things wrong with one packet than this are not worth their memory.
const MAX_EVENTS: usize = 8;
/// One frame passes at most this many decoders: tags and labels are bounded above, tunnels are new packets.
const MAX_STEPS: usize = 12;

/// IANA protocol numbers.
#[allow(missing_docs)]
pub mod ip {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const GRE: u8 = 47;
    pub const ESP: u8 = 50;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
}

/// A decoder that a packet passed; each has a counter in EVE's `stats.decoder`.
macro_rules! steps {
    ($($name:ident = $text:literal,)*) => {
        /// A decoder that a packet passed.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum Step { $($name,)* }
        impl Step {
            /// Every one, in the order of its counter.
            pub const NAMES: &'static [&'static str] = &[$($text,)*];
        }
    };
}
steps! {
    Ethernet = "ethernet", Arp = "arp", UnknownEtherType = "unknown_ethertype", Chdlc = "chdlc", Raw = "raw",
    Null = "null", Sll = "sll", Sll2 = "sll2", Ppp = "ppp", Pppoe = "pppoe", Vlan = "vlan", VlanQinq = "vlan_qinq",
    VlanQinqinq = "vlan_qinqinq", Mpls = "mpls", Nsh = "nsh", Vntag = "vntag", Ieee8021ah = "ieee8021ah", Ipv4 = "ipv4", Ipv6 = "ipv6", Ipv4InIpv4 = "ipv4_in_ipv4", Ipv4InIpv6 = "ipv4_in_ipv6",
    Ipv6InIpv4 = "ipv6_in_ipv4", Ipv6InIpv6 = "ipv6_in_ipv6", Tcp = "tcp", Udp = "udp", Sctp = "sctp", Esp = "esp",
    Icmpv4 = "icmpv4", Icmpv6 = "icmpv6", Igmp = "igmp", Gre = "gre", Geneve = "geneve", Vxlan = "vxlan", Teredo = "teredo",
    Erspan = "erspan", Etherip = "etherip",
}

/// TCP fields beyond the ports.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Tcp {
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    pub window: u16,
    pub window_scale: Option<u8>,
    pub mss: u16,
    pub has_sack: bool,
    pub has_timestamp: bool,
    pub timestamp: [u32; 2],
    pub has_fast_open: bool,
}

/// A piece of a larger packet.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    /// Its place in the whole, in bytes.
    pub offset: u32,
    /// More follow.
    pub has_more: bool,
    /// What the pieces of one packet have in common.
    pub id: u32,
    /// Where the fragmented part begins in `network` (IPv4: the header's end).
    pub data_at: usize,
    /// IPv6: where the fragment header begins, and where in `network` the number of that header stands.
    pub v6: Option<(usize, usize)>,
}

/// One decoded packet.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Layers<'a> {
    /// The whole frame, or what a tunnel carried.
    pub frame: &'a [u8],
    /// The Ethernet header.
    pub link: &'a [u8],
    pub vlan: [u16; MAX_VLAN_TAGS],
    pub vlan_count: u8,
    /// From the IP header on, without padding.
    pub network: &'a [u8],
    pub network_header_bytes: usize,
    pub transport: &'a [u8],
    pub payload: &'a [u8],
    /// 4, 6, or 0 where there is no IP.
    pub version: u8,
    pub protocol: u8,
    pub source: u128,
    pub destination: u128,
    pub source_port: u16,
    pub destination_port: u16,
    /// Type and code.
    pub icmp: [u8; 2],
    pub tcp: Tcp,
    pub fragment: Option<Fragment>,
    pub tunnel: Option<Tunnel<'a>>,
    pub is_arp: bool,
    /// The link or network header is wrong: no flow, no payload.
    pub is_invalid: bool,
    /// The transport header is wrong: no flow, but rules about IP hold.
    pub is_transport_invalid: bool,
    events: [&'static str; MAX_EVENTS],
    event_count: u8,
    steps: [Step; MAX_STEPS],
    step_count: u8,
}

impl<'a> Layers<'a> {
    fn empty(frame: &'a [u8]) -> Layers<'a> {
        Layers {
            frame,
            link: &[],
            vlan: [0; MAX_VLAN_TAGS],
            vlan_count: 0,
            network: &[],
            network_header_bytes: 0,
            transport: &[],
            payload: &[],
            version: 0,
            protocol: 0,
            source: 0,
            destination: 0,
            source_port: 0,
            destination_port: 0,
            icmp: [0; 2],
            tcp: Tcp::default(),
            fragment: None,
            tunnel: None,
            is_arp: false,
            is_invalid: false,
            is_transport_invalid: false,
            events: [""; MAX_EVENTS],
            event_count: 0,
            steps: [Step::Raw; MAX_STEPS],
            step_count: 0,
        }
    }

    /// What was wrong.
    pub fn events(&self) -> &[&'static str] {
        self.events.get(..usize::from(self.event_count)).unwrap_or_default()
    }

    /// The decoders that it passed.
    pub fn steps(&self) -> &[Step] {
        self.steps.get(..usize::from(self.step_count)).unwrap_or_default()
    }

    /// VLAN ids, outermost first.
    pub fn vlans(&self) -> &[u16] {
        self.vlan.get(..usize::from(self.vlan_count)).unwrap_or_default()
    }

    pub(crate) fn step(&mut self, step: Step) {
        if let Some(slot) = self.steps.get_mut(usize::from(self.step_count)) {
            *slot = step;
            self.step_count += 1;
        }
    }

    pub(crate) fn event(&mut self, name: &'static str) {
        if let Some(slot) = self.events.get_mut(usize::from(self.event_count)) {
            *slot = name;
            self.event_count += 1;
        }
    }

    pub(crate) fn invalid(&mut self, name: &'static str) {
        self.is_invalid = true;
        self.event(name);
    }
}

impl Layers<'_> {
    pub(crate) fn bad_transport(&mut self, name: &'static str) {
        self.is_transport_invalid = true;
        self.payload = &[];
        self.event(name);
    }
}

const MAPPED: u128 = 0xffff_0000_0000;

/// Return the layers of a frame. Never panics.
pub fn decode(frame: &[u8], link: Link) -> Layers<'_> {
    let mut layers = Layers::empty(frame);
    match link {
        Link::Ethernet => ethernet(&mut layers, frame),
        Link::RawIp => {
            layers.step(Step::Raw);
            raw_ip(&mut layers, frame);
        }
        Link::Cooked => {
            layers.step(Step::Sll);
            match frame.get(14..16) {
                Some(&[high, low]) => ether_type(&mut layers, u16::from_be_bytes([high, low]), &frame[16..]),
                _ => layers.invalid("sll.pkt_too_small"),
            }
        }
        Link::Cooked2 => {
            layers.step(Step::Sll2);
            match (frame.get(..2), frame.get(20..)) {
                (Some(&[high, low]), Some(rest)) => ether_type(&mut layers, u16::from_be_bytes([high, low]), rest),
                _ => layers.invalid("sll2.pkt_too_small"),
            }
        }
        Link::Null => null(&mut layers, frame),
        Link::Ppp => ppp(&mut layers, frame),
        Link::Chdlc => {
            layers.step(Step::Chdlc);
            match frame.get(2..4) {
                Some(&[high, low]) => ether_type(&mut layers, u16::from_be_bytes([high, low]), &frame[4..]),
                _ => layers.invalid("chdlc.pkt_too_small"),
            }
        }
    }
    layers
}

/// Return the layers of what a tunnel carries.
pub fn decode_inner<'a>(tunnel: &Tunnel<'a>) -> Layers<'a> {
    let mut layers = Layers::empty(tunnel.data);
    match tunnel.next {
        tunnel::Next::Ethernet => ethernet(&mut layers, tunnel.data),
        tunnel::Next::Ip => raw_ip(&mut layers, tunnel.data),
        tunnel::Next::Ppp => ppp(&mut layers, tunnel.data),
        tunnel::Next::EtherType(kind) => ether_type(&mut layers, kind, tunnel.data),
    }
    layers
}

/// Return the layers of an IP packet that was put together from fragments.
pub fn decode_ip(packet: &[u8]) -> Layers<'_> {
    let mut layers = Layers::empty(packet);
    raw_ip(&mut layers, packet);
    layers
}

fn ethernet<'a>(layers: &mut Layers<'a>, frame: &'a [u8]) {
    layers.step(Step::Ethernet);
    let Some(header) = frame.first_chunk::<14>() else { return layers.invalid("ethernet.pkt_too_small") };
    layers.link = &frame[..14];
    ether_type(layers, u16::from_be_bytes([header[12], header[13]]), &frame[14..]);
}

fn null<'a>(layers: &mut Layers<'a>, frame: &'a [u8]) {
    layers.step(Step::Null);
    let Some(&[a, b, c, d]) = frame.first_chunk::<4>() else { return layers.invalid("null.pkt_too_small") };
    // the family is a small number in either byte order
    match (a | d, b | c) {
        (2, 0) => ipv4(layers, &frame[4..]),
        (10 | 23 | 24 | 28 | 30, 0) => ipv6(layers, &frame[4..]),
        _ => layers.event("null.unsupported_type"),
    }
}

fn ppp<'a>(layers: &mut Layers<'a>, frame: &'a [u8]) {
    layers.step(Step::Ppp);
    let mut reader = Reader::new(frame);
    if frame.first_chunk() == Some(&[0xff, 0x03]) {
        reader.take(2); // address and control of HDLC
    }
    // protocol field compression: an odd first byte is the whole number (RFC 1661 section 6.5)
    let kind = match reader.rest().first() {
        Some(&first) if first & 1 == 1 => reader.u8().map(u16::from),
        _ => reader.be16(),
    };
    ppp_protocol(layers, kind, reader.rest());
}

pub(crate) fn ppp_protocol<'a>(layers: &mut Layers<'a>, kind: Option<u16>, rest: &'a [u8]) {
    match kind {
        Some(0x21) if rest.len() < 20 => layers.invalid("ppp.ip4_pkt_too_small"),
        Some(0x57) if rest.len() < 40 => layers.invalid("ppp.ip6_pkt_too_small"),
        Some(0x21) => ipv4(layers, rest),
        Some(0x57) => ipv6(layers, rest),
        Some(0x2d) => layers.event("ppp.unsup_proto"), // van Jacobson compression
        Some(kind) if kind & 1 == 1 || kind >= 0x8000 => layers.event("ppp.unsup_proto"),
        Some(_) => layers.invalid("ppp.wrong_type"),
        None => layers.invalid("ppp.pkt_too_small"),
    }
}

pub(crate) fn ether_type<'a>(layers: &mut Layers<'a>, mut kind: u16, mut data: &'a [u8]) {
    while matches!(kind, 0x8100 | 0x88a8 | 0x9100) {
        let Some(&[a, b, c, d]) = data.first_chunk::<4>() else { return layers.invalid("vlan.header_too_small") };
        let Some(slot) = layers.vlan.get_mut(usize::from(layers.vlan_count)) else {
            return layers.invalid("vlan.too_many_layers");
        };
        *slot = u16::from_be_bytes([a, b]) & 0x0fff;
        layers.step([Step::Vlan, Step::VlanQinq, Step::VlanQinqinq][usize::from(layers.vlan_count)]);
        layers.vlan_count += 1;
        (kind, data) = (u16::from_be_bytes([c, d]), &data[4..]);
    }
    match kind {
        0x0800 => ipv4(layers, data),
        0x86dd => ipv6(layers, data),
        0x0806 => arp(layers, data),
        0x8863 | 0x8864 => tunnel::pppoe(layers, kind, data),
        0x8847 | 0x8848 => tunnel::mpls(layers, data),
        0x894f => tunnel::nsh(layers, data),
        0x8926 => tunnel::vntag(layers, data),
        0x88e7 => tunnel::provider_backbone(layers, data),
        0x6558 => ethernet(layers, data), // transparent Ethernet bridging
        kind if kind < 0x0600 && kind > 0 => layers.step(Step::UnknownEtherType), // a length: IEEE 802.3
        _ => {
            layers.step(Step::UnknownEtherType);
            layers.event("ethernet.unknown_ethertype");
        }
    }
}

fn arp<'a>(layers: &mut Layers<'a>, data: &'a [u8]) {
    layers.step(Step::Arp);
    layers.is_arp = true;
    let Some(header) = data.first_chunk::<28>() else { return layers.invalid("arp.pkt_too_small") };
    layers.network = &data[..28];
    let field = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    if field(0) != 1 {
        layers.event("arp.unsupported_hardware");
    } else if field(2) != 0x0800 {
        layers.event("arp.unsupported_protocol");
    } else if header[4] != 6 {
        layers.event("arp.invalid_hardware_size");
    } else if header[5] != 4 {
        layers.event("arp.invalid_protocol_size");
    } else if !matches!(field(6), 1..=10) {
        layers.event("arp.unsupported_opcode");
    }
}

fn raw_ip<'a>(layers: &mut Layers<'a>, data: &'a [u8]) {
    match data.first().map(|first| first >> 4) {
        Some(4) => ipv4(layers, data),
        Some(6) => ipv6(layers, data),
        Some(_) => layers.invalid("ipraw.invalid_ip_version"),
        None => layers.invalid("ipv4.pkt_too_small"),
    }
}

fn ipv4<'a>(layers: &mut Layers<'a>, data: &'a [u8]) {
    layers.step(Step::Ipv4);
    let Some(header) = data.first_chunk::<20>() else { return layers.invalid("ipv4.pkt_too_small") };
    if header[0] >> 4 != 4 {
        return layers.invalid("ipv4.wrong_ip_version");
    }
    let header_bytes = usize::from(header[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header_bytes < 20 {
        return layers.invalid("ipv4.hlen_too_small");
    }
    // segmentation offload leaves 0 in packets above 64 KiB: the frame's length holds then
    let total = if total == 0 && data.len() > 1500 { data.len() } else { total };
    if total < header_bytes {
        return layers.invalid("ipv4.iplen_smaller_than_hlen");
    }
    let Some(network) = data.get(..total) else { return layers.invalid("ipv4.trunc_pkt") };
    layers.version = 4;
    layers.network = network;
    layers.network_header_bytes = header_bytes;
    layers.source = MAPPED | u128::from(u32::from_be_bytes([header[12], header[13], header[14], header[15]]));
    layers.destination = MAPPED | u128::from(u32::from_be_bytes([header[16], header[17], header[18], header[19]]));
    layers.protocol = header[9];
    ipv4_options(layers, &network[20..header_bytes]);
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let (offset, has_more) = (u32::from(fragment & 0x1fff) * 8, fragment & 0x2000 != 0);
    if offset > 0 || has_more {
        let id = u32::from(u16::from_be_bytes([header[4], header[5]]));
        layers.fragment = Some(Fragment { offset, has_more, id, data_at: header_bytes, v6: None });
        layers.transport = &network[header_bytes..];
        layers.payload = layers.transport;
        return;
    }
    transport(layers, &network[header_bytes..]);
}

fn ipv4_options(layers: &mut Layers<'_>, mut options: &[u8]) {
    let mut seen = 0_u64;
    while let [kind, rest @ ..] = options {
        match kind {
            0 => return,
            1 => options = rest,
            _ => {
                let Some(&length) = rest.first() else { return layers.event("ipv4.opt_invalid_len") };
                if length < 2 || usize::from(length) > options.len() {
                    return layers.event("ipv4.opt_invalid_len");
                }
                let bit = 1_u64 << (kind & 63);
                if seen & bit != 0 {
                    layers.event("ipv4.opt_duplicate");
                }
                seen |= bit;
                if !matches!(kind, 7 | 68 | 130 | 131 | 134 | 136 | 137 | 133 | 148) {
                    layers.event("ipv4.opt_unknown");
                }
                options = &options[usize::from(length)..];
            }
        }
    }
}

fn ipv6<'a>(layers: &mut Layers<'a>, data: &'a [u8]) {
    layers.step(Step::Ipv6);
    let Some(header) = data.first_chunk::<40>() else { return layers.invalid("ipv6.pkt_too_small") };
    if header[0] >> 4 != 6 {
        return layers.invalid("ipv6.wrong_ip_version");
    }
    let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let total = if payload == 0 { data.len() } else { 40 + payload };
    let Some(network) = data.get(..total) else { return layers.invalid("ipv6.trunc_pkt") };
    layers.version = 6;
    layers.network = network;
    let address = |at: usize| header[at..at + 16].iter().fold(0_u128, |sum, byte| sum << 8 | u128::from(*byte));
    (layers.source, layers.destination) = (address(8), address(24));
    let mut reader = Reader::new(network);
    reader.take(40);
    extensions(layers, network, reader, header[6], 6);
}

/// Walk along the extension headers; `number_at` is where in the packet the number of the next header stands.
fn extensions<'a>(layers: &mut Layers<'a>, network: &'a [u8], mut reader: Reader<'a>, first: u8, mut number_at: usize) {
    let mut next = first;
    let mut seen = [0_u8; 4];
    for _ in 0..MAX_EXTENSIONS {
        let at = reader.position();
        layers.network_header_bytes = at;
        match next {
            0 | 43 | 60 | 135 | 139 | 140 => {
                let Some([after, words]) = reader.array::<2>() else { return layers.invalid("ipv6.trunc_exthdr") };
                let bytes = (usize::from(words) + 1) * 8;
                let Some(body) = reader.take(bytes - 2) else { return layers.invalid("ipv6.trunc_exthdr") };
                extension_events(layers, next, body, &mut seen);
                (next, number_at) = (after, at);
            }
            44 => {
                let Some([after, _, high, low, a, b, c, d]) = reader.array::<8>() else {
                    return layers.invalid("ipv6.trunc_exthdr");
                };
                let field = u16::from_be_bytes([high, low]);
                let (offset, has_more) = (u32::from(field & 0xfff8), field & 1 != 0);
                layers.network_header_bytes = reader.position();
                if offset == 0 && !has_more {
                    layers.event("ipv6.exthdr_useless_fh");
                    (next, number_at) = (after, at);
                    continue;
                }
                let id = u32::from_be_bytes([a, b, c, d]);
                let data_at = reader.position();
                layers.fragment = Some(Fragment { offset, has_more, id, data_at, v6: Some((at, number_at)) });
                layers.protocol = after;
                layers.transport = reader.rest();
                layers.payload = layers.transport;
                return;
            }
            51 => {
                let Some([after, words]) = reader.array::<2>() else { return layers.invalid("ipv6.trunc_exthdr") };
                if reader.take((usize::from(words) + 2) * 4 - 2).is_none() {
                    return layers.invalid("ipv6.trunc_exthdr");
                }
                if std::mem::replace(&mut seen[3], 1) == 1 {
                    layers.event("ipv6.exthdr_dupl_ah");
                }
                (next, number_at) = (after, at);
            }
            59 => {
                layers.protocol = 59;
                layers.transport = reader.rest();
                layers.payload = reader.rest();
                if reader.left() > 0 {
                    layers.event("ipv6.data_after_none_header");
                }
                return;
            }
            number => {
                layers.protocol = number;
                let _ = network;
                return transport(layers, reader.rest());
            }
        }
    }
    layers.invalid("ipv6.too_many_exthdrs");
}

fn extension_events(layers: &mut Layers<'_>, kind: u8, body: &[u8], seen: &mut [u8; 4]) {
    let (slot, duplicate) = match kind {
        0 => (0, "ipv6.exthdr_dupl_hh"),
        43 => (1, "ipv6.exthdr_dupl_rh"),
        60 => (2, "ipv6.exthdr_dupl_dh"),
        _ => return,
    };
    seen[slot] = seen[slot].saturating_add(1);
    // a second destination header is legal, after a routing header
    if seen[slot] > if kind == 60 { 2 } else { 1 } {
        layers.event(duplicate);
    }
    if kind == 43 && body.first() == Some(&0) {
        layers.event("ipv6.rh_type_0");
    }
    if kind != 43 && !body.is_empty() && body.iter().all(|byte| *byte == 0) && body.len() > 6 {
        layers.event(if kind == 0 { "ipv6.hopopts_only_padding" } else { "ipv6.dstopts_only_padding" });
    }
}
