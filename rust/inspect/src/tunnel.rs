//! What carries another packet inside: GRE, IP in IP, VXLAN, Geneve, Teredo, EtherIP; and the layers between link and
//! network that carry exactly one packet: PPPoE, MPLS, NSH, VN-Tag.

use protocols::Reader;

use crate::layers::{Layers, Step, ether_type, ip, ppp_protocol};

/// Labels on one packet; more are an attack on decoders.
const MAX_LABELS: usize = 8;

/// What the carried bytes begin with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Next {
    Ethernet,
    Ip,
    Ppp,
    EtherType(u16),
}

/// A packet inside a packet.
#[derive(Clone, Copy, Debug)]
pub struct Tunnel<'a> {
    /// What it begins with.
    pub next: Next,
    /// Its bytes.
    pub data: &'a [u8],
    /// Teredo is guessed: what is no valid IPv6 inside is no tunnel at all.
    pub is_guess: bool,
}

/// UDP ports of tunnels, as IANA has them.
mod port {
    pub const VXLAN: u16 = 4789;
    pub const GENEVE: u16 = 6081;
}

pub(crate) fn by_ip_protocol<'a>(layers: &mut Layers<'a>, number: u8, data: &'a [u8]) {
    let (step, expected) = match (number, layers.version) {
        (4, 4) => (Step::Ipv4InIpv4, 4),
        (41, 4) => (Step::Ipv6InIpv4, 6),
        (4, 6) => (Step::Ipv4InIpv6, 4),
        (41, 6) => (Step::Ipv6InIpv6, 6),
        (ip::GRE, _) => return gre(layers, data),
        (97, _) => {
            layers.step(Step::Etherip);
            return match data {
                [version, _, rest @ ..] if version >> 4 == 3 => {
                    layers.tunnel = Some(Tunnel { next: Next::Ethernet, data: rest, is_guess: false });
                }
                _ => layers.event("etherip.invalid_version"),
            };
        }
        (_, 6) => return layers.event("ipv6.unknown_next_header"),
        _ => return,
    };
    layers.step(step);
    if data.first().is_some_and(|first| first >> 4 == expected) {
        layers.tunnel = Some(Tunnel { next: Next::Ip, data, is_guess: false });
    } else if layers.version == 6 {
        layers.event(if expected == 4 { "ipv6.ipv4_in_ipv6_wrong_version" } else { "ipv6.ipv6_in_ipv6_wrong_version" });
    }
}

fn gre<'a>(layers: &mut Layers<'a>, data: &'a [u8]) {
    layers.step(Step::Gre);
    let mut reader = Reader::new(data);
    let (Some(flags), Some(kind)) = (reader.be16(), reader.be16()) else {
        return layers.bad_transport("gre.pkt_too_small");
    };
    let version = flags & 7;
    let (has_checksum, has_routing, has_key, has_sequence) =
        (flags & 0x8000 != 0, flags & 0x4000 != 0, flags & 0x2000 != 0, flags & 0x1000 != 0);
    let fields = match version {
        0 => usize::from(has_checksum || has_routing) + usize::from(has_key) + usize::from(has_sequence),
        1 => 1 + usize::from(has_sequence) + usize::from(flags & 0x80 != 0), // RFC 2637: key, sequence, acknowledgement
        _ => return layers.bad_transport("gre.wrong_version"),
    };
    if reader.take(fields * 4).is_none() {
        return layers.bad_transport("gre.pkt_too_small");
    }
    if version == 0 && has_routing && !gre_routing(&mut reader) {
        return layers.bad_transport("gre.pkt_too_small");
    }
    let next = match kind {
        0x0800 | 0x86dd => Next::Ip,
        0x880b => Next::Ppp,
        0x6558 => Next::Ethernet,
        0x88be => {
            layers.step(Step::Erspan);
            match reader.rest().first().map(|first| first >> 4) {
                Some(1) if reader.take(8).is_some() => Next::Ethernet,
                Some(0) if !has_sequence => Next::Ethernet, // type I has no header
                Some(_) => return layers.bad_transport("erspan.unsupported_version"),
                None => return layers.bad_transport("erspan.header_too_small"),
            }
        }
        0x8100 | 0x88a8 | 0x8847 | 0x8848 | 0x0806 => Next::EtherType(kind),
        _ => return,
    };
    layers.tunnel = Some(Tunnel { next, data: reader.rest(), is_guess: false });
}

/// Skip the source route entries of RFC 1701; return whether they are all there.
fn gre_routing(reader: &mut Reader<'_>) -> bool {
    while let (Some(family), Some([_, length])) = (reader.be16(), reader.array::<2>()) {
        if family == 0 && length == 0 {
            return true;
        }
        if reader.take(usize::from(length)).is_none() {
            return false;
        }
    }
    false
}

pub(crate) fn by_udp_port(layers: &mut Layers<'_>) {
    let data = layers.payload;
    if layers.destination_port == port::VXLAN {
        // RFC 7348 section 5: the I flag, a network id, reserved bytes
        if let [flags, _, _, _, _, _, _, _, inner @ ..] = data
            && flags & 0x08 != 0
            && inner.len() >= 14
        {
            layers.step(Step::Vxlan);
            layers.tunnel = Some(Tunnel { next: Next::Ethernet, data: inner, is_guess: false });
        }
    } else if layers.destination_port == port::GENEVE {
        geneve(layers, data);
    } else {
        teredo(layers, data); // on any port: clients talk to each other on their own
    }
}

fn geneve<'a>(layers: &mut Layers<'a>, data: &'a [u8]) {
    // RFC 8926 section 3.4
    let Some(&[first, _, high, low, _, _, _, _]) = data.first_chunk::<8>() else { return };
    let options = usize::from(first & 0x3f) * 4;
    let Some(inner) = data.get(8 + options..) else { return layers.event("geneve.unknown_payload_type") };
    if first >> 6 != 0 {
        return;
    }
    let next = match u16::from_be_bytes([high, low]) {
        0x6558 => Next::Ethernet,
        kind @ (0x0800 | 0x86dd | 0x0806) => Next::EtherType(kind),
        _ => return layers.event("geneve.unknown_payload_type"),
    };
    layers.step(Step::Geneve);
    layers.tunnel = Some(Tunnel { next, data: inner, is_guess: false });
}

fn teredo<'a>(layers: &mut Layers<'a>, data: &'a [u8]) {
    let mut reader = Reader::new(data);
    // authentication (RFC 4380 section 5.1.1) is how a tunnel is set up; nothing is carried in it
    if reader.rest().first_chunk() == Some(&[0, 0]) && reader.take(8).is_none() {
        return; // an origin indication is 8 bytes
    }
    let inner = reader.rest();
    let Some(header) = inner.first_chunk::<40>() else { return };
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if header[0] >> 4 == 6 && (length + 40 == inner.len() || header[6] == 59) {
        layers.step(Step::Teredo);
        layers.tunnel = Some(Tunnel { next: Next::Ip, data: inner, is_guess: true });
    }
}

pub(crate) fn pppoe<'a>(layers: &mut Layers<'a>, kind: u16, data: &'a [u8]) {
    layers.step(Step::Pppoe);
    let mut reader = Reader::new(data);
    let Some([_, _, _, _, high, low]) = reader.array::<6>() else { return layers.invalid("pppoe.pkt_too_small") };
    if kind == 0x8863 {
        return; // discovery carries nothing
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > reader.left() {
        return layers.invalid("pppoe.malformed_tags");
    }
    let kind = reader.be16();
    match kind {
        Some(0x21 | 0x57) => ppp_protocol(layers, kind, reader.rest()),
        Some(kind) if kind >= 0x8000 || kind & 1 == 1 => {}
        Some(_) => layers.invalid("pppoe.wrong_code"),
        None => layers.invalid("pppoe.pkt_too_small"),
    }
}

pub(crate) fn mpls<'a>(layers: &mut Layers<'a>, data: &'a [u8]) {
    layers.step(Step::Mpls);
    let mut reader = Reader::new(data);
    for _ in 0..MAX_LABELS {
        let Some(entry) = reader.be32() else { return layers.invalid("mpls.header_too_small") };
        if entry & 0x100 == 0 {
            continue; // not the bottom of the stack
        }
        match entry >> 12 {
            0 => return ether_type(layers, 0x0800, reader.rest()),
            2 => return ether_type(layers, 0x86dd, reader.rest()),
            1 => return layers.invalid("mpls.bad_label_router_alert"),
            3 => return layers.invalid("mpls.bad_label_implicit_null"),
            4..=15 => return layers.invalid("mpls.bad_label_reserved"),
            _ => {}
        }
        return match reader.rest().first().map(|first| first >> 4) {
            Some(4) => ether_type(layers, 0x0800, reader.rest()),
            Some(6) => ether_type(layers, 0x86dd, reader.rest()),
            Some(0) if reader.take(4).is_some() => ether_type(layers, 0x6558, reader.rest()), // pseudowire control word
            _ => layers.invalid("mpls.unknown_payload_type"),
        };
    }
    layers.invalid("mpls.unknown_payload_type");
}

pub(crate) fn nsh<'a>(layers: &mut Layers<'a>, data: &'a [u8]) {
    layers.step(Step::Nsh);
    // RFC 8300 section 2.2
    let Some(&[first, second, kind, next, ..]) = data.first_chunk::<8>() else {
        return layers.invalid("nsh.header_too_small");
    };
    if first >> 6 != 0 {
        return layers.event("nsh.unsupported_version");
    }
    let length = usize::from(second & 0x3f) * 4;
    if length < 8 {
        return layers.invalid("nsh.bad_header_length");
    }
    let Some(rest) = data.get(length..) else { return layers.invalid("nsh.bad_header_length") };
    match kind & 0x0f {
        0 => return layers.event("nsh.reserved_type"),
        1 if length != 24 => return layers.invalid("nsh.bad_header_length"),
        1 | 2 => {}
        _ => return layers.event("nsh.unsupported_type"),
    }
    match next {
        1 => ether_type(layers, 0x0800, rest),
        2 => ether_type(layers, 0x86dd, rest),
        3 => ether_type(layers, 0x6558, rest),
        _ => layers.event("nsh.unknown_payload"),
    }
}

pub(crate) fn vntag<'a>(layers: &mut Layers<'a>, data: &'a [u8]) {
    layers.step(Step::Vntag);
    match data.first_chunk::<6>() {
        Some(&[_, _, _, _, high, low]) => ether_type(layers, u16::from_be_bytes([high, low]), &data[6..]),
        None => layers.invalid("vntag.header_too_small"),
    }
}

pub(crate) fn provider_backbone<'a>(layers: &mut Layers<'a>, data: &'a [u8]) {
    layers.step(Step::Ieee8021ah);
    // IEEE 802.1ah: service tag, then the customer's Ethernet header
    match data.get(16..18) {
        Some(&[high, low]) => ether_type(layers, u16::from_be_bytes([high, low]), &data[18..]),
        _ => layers.invalid("ieee8021ah.header_too_small"),
    }
}
