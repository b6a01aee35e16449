//! TCP, UDP, ICMP and SCTP headers.

use crate::layers::{Layers, Step, Tcp, ip};
use crate::tunnel;

/// Read what an IP header carries.
pub(crate) fn transport<'a>(layers: &mut Layers<'a>, data: &'a [u8]) {
    layers.transport = data;
    layers.payload = data;
    match layers.protocol {
        ip::TCP => tcp(layers, data),
        ip::UDP => udp(layers, data),
        ip::ICMP if layers.version == 4 => icmp(layers, data, Step::Icmpv4, "icmpv4.pkt_too_small"),
        ip::ICMPV6 if layers.version == 6 => icmp(layers, data, Step::Icmpv6, "icmpv6.pkt_too_small"),
        ip::ICMP => layers.event("ipv6.icmpv4"),
        ip::ICMPV6 => layers.event("ipv4.icmpv6"),
        ip::SCTP => {
            layers.step(Step::Sctp);
            match data.first_chunk::<12>() {
                Some(&[a, b, c, d, ..]) => {
                    (layers.source_port, layers.destination_port) =
                        (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                    layers.payload = &data[12..];
                }
                None => layers.bad_transport("sctp.pkt_too_small"),
            }
        }
        ip::ESP => {
            layers.step(Step::Esp);
            if data.len() < 8 {
                layers.bad_transport("esp.pkt_too_small");
            }
        }
        2 => layers.step(Step::Igmp),
        number => tunnel::by_ip_protocol(layers, number, data),
    }
}

fn udp<'a>(layers: &mut Layers<'a>, data: &'a [u8]) {
    layers.step(Step::Udp);
    let Some(&[a, b, c, d, e, f, _, _]) = data.first_chunk::<8>() else {
        return layers.bad_transport("udp.pkt_too_small");
    };
    let length = usize::from(u16::from_be_bytes([e, f]));
    if length > data.len() {
        return layers.bad_transport("udp.pkt_too_small");
    }
    if length != data.len() && length != 0 {
        layers.event("udp.hlen_invalid");
    }
    if length < 8 && length != 0 {
        return layers.bad_transport("udp.len_invalid");
    }
    (layers.source_port, layers.destination_port) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    layers.payload = if length == 0 { &data[8..] } else { &data[8..length] };
    tunnel::by_udp_port(layers);
}

fn icmp<'a>(layers: &mut Layers<'a>, data: &'a [u8], step: Step, too_small: &'static str) {
    layers.step(step);
    let Some(&[kind, code, ..]) = data.first_chunk::<4>() else { return layers.bad_transport(too_small) };
    layers.icmp = [kind, code];
    let header = match (step, kind) {
        (Step::Icmpv4, 13 | 14) => 20,
        (Step::Icmpv4, 17 | 18) => 12,
        (Step::Icmpv4, 9) => 8 + usize::from(data.get(4).copied().unwrap_or(0)) * 8, // a router's addresses
        _ => 8,
    };
    layers.payload = &data[header.min(data.len())..];
}

fn tcp<'a>(layers: &mut Layers<'a>, data: &'a [u8]) {
    layers.step(Step::Tcp);
    let Some(header) = data.first_chunk::<20>() else { return layers.bad_transport("tcp.pkt_too_small") };
    let header_bytes = usize::from(header[12] >> 4) * 4;
    if header_bytes < 20 || header_bytes > data.len() {
        return layers.bad_transport("tcp.hlen_too_small");
    }
    layers.source_port = u16::from_be_bytes([header[0], header[1]]);
    layers.destination_port = u16::from_be_bytes([header[2], header[3]]);
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    layers.tcp = Tcp {
        sequence: word(4),
        acknowledgement: word(8),
        flags: header[13],
        window: u16::from_be_bytes([header[14], header[15]]),
        ..Tcp::default()
    };
    layers.payload = &data[header_bytes..];
    if header_bytes > 20 {
        tcp_options(layers, &data[20..header_bytes]);
    }
}

fn tcp_options(layers: &mut Layers<'_>, mut options: &[u8]) {
    while let [kind, rest @ ..] = options {
        match kind {
            0 => return,
            1 => options = rest,
            _ => {
                let length = rest.first().map_or(0, |length| usize::from(*length));
                let Some(body) = options.get(2..length) else { return layers.event("tcp.opt_invalid_len") };
                if !tcp_option(&mut layers.tcp, *kind, body) {
                    layers.event("tcp.opt_invalid_len");
                }
                options = &options[length..];
            }
        }
    }
}

/// Return whether the option has the length that its kind has.
fn tcp_option(tcp: &mut Tcp, kind: u8, body: &[u8]) -> bool {
    match (kind, body) {
        (2, &[high, low]) => tcp.mss = u16::from_be_bytes([high, low]),
        (3, &[scale]) => tcp.window_scale = Some(scale.min(14)), // RFC 7323 section 2.3
        (4, []) => tcp.has_sack = true,
        (8, &[a, b, c, d, e, f, g, h]) => {
            tcp.has_timestamp = true;
            tcp.timestamp = [u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])];
        }
        (34, _) => tcp.has_fast_open = body.len() >= 4 || body.is_empty(),
        (253 | 254, &[0xf9, 0x89, ..]) => tcp.has_fast_open = true, // the experimental form of RFC 7413
        (2 | 3 | 4 | 8, _) => return false,
        _ => {}
    }
    true
}
