//! Community ID version 1: a flow's identifier that other tools compute alike.
//!
//! Source: the corelight/community-id-spec description. SHA-1 is what the format prescribes; nothing here relies on
//! its being hard to collide.

use sha1::{Digest, Sha1};

use crate::decode::{Address, protocol};

/// Seed of every network that does not choose its own.
const SEED: [u8; 2] = [0, 0];

/// The fields that go into the identifier.
#[allow(missing_docs)]
pub struct Tuple {
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
    pub icmp: [u8; 2],
}

/// Return the identifier of a flow, the same for both ways.
pub fn community_id(tuple: &Tuple) -> String {
    let (mut ports, mut one_way) = ((tuple.source_port, tuple.destination_port), false);
    if matches!(tuple.protocol, protocol::ICMP | protocol::ICMPV6) {
        (ports, one_way) = icmp_ports(tuple);
    }
    let forward = (tuple.source, ports.0) < (tuple.destination, ports.1) || one_way;
    let (low, high) = if forward {
        ((tuple.source, ports.0), (tuple.destination, ports.1))
    } else {
        ((tuple.destination, ports.1), (tuple.source, ports.0))
    };
    let mut hash = Sha1::new();
    hash.update(SEED);
    for address in [low.0, high.0] {
        if address.is_v4() {
            hash.update((address.0 as u32).to_be_bytes());
        } else {
            hash.update(address.0.to_be_bytes());
        }
    }
    hash.update([tuple.protocol, 0]);
    if matches!(tuple.protocol, protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6 | 132) {
        hash.update(low.1.to_be_bytes());
        hash.update(high.1.to_be_bytes());
    }
    format!("1:{}", base64(&hash.finalize()))
}

/// ICMP has no ports: the message type and the type that answers it stand in, else type and code, one way.
fn icmp_ports(tuple: &Tuple) -> ((u16, u16), bool) {
    let [kind, code] = tuple.icmp;
    let answer = match (tuple.protocol, kind) {
        (protocol::ICMP, 0) => 8,
        (protocol::ICMP, 8) => 0,
        (protocol::ICMP, 9) => 10,
        (protocol::ICMP, 10) => 9,
        (protocol::ICMP, 13) => 14,
        (protocol::ICMP, 14) => 13,
        (protocol::ICMP, 15) => 16,
        (protocol::ICMP, 16) => 15,
        (protocol::ICMP, 17) => 18,
        (protocol::ICMP, 18) => 17,
        (protocol::ICMPV6, 128) => 129,
        (protocol::ICMPV6, 129) => 128,
        (protocol::ICMPV6, 130) => 131,
        (protocol::ICMPV6, 131) => 130,
        (protocol::ICMPV6, 133) => 134,
        (protocol::ICMPV6, 134) => 133,
        (protocol::ICMPV6, 135) => 136,
        (protocol::ICMPV6, 136) => 135,
        (protocol::ICMPV6, 139) => 140,
        (protocol::ICMPV6, 140) => 139,
        (protocol::ICMPV6, 144) => 145,
        (protocol::ICMPV6, 145) => 144,
        _ => return ((u16::from(kind), u16::from(code)), true),
    };
    ((u16::from(kind), answer), false)
}

fn base64(data: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(data.len().div_ceil(3) * 4);
    for chunk in data.chunks(3) {
        let group = chunk.iter().fold(0_u32, |sum, &byte| sum << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            if place <= chunk.len() {
                text.push(char::from(ALPHABET[(group >> (18 - 6 * place) & 63) as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(text: &str) -> Address {
        Address::from_v4(text.parse::<std::net::Ipv4Addr>().map_or(0, std::net::Ipv4Addr::to_bits))
    }

    #[test]
    fn the_published_baselines_hold() {
        // corelight/community-id-spec, baseline_deflt.json
        let tuple = |protocol, a: &str, b: &str, source_port, destination_port, icmp| Tuple {
            source: v4(a),
            destination: v4(b),
            source_port,
            destination_port,
            protocol,
            icmp,
        };
        let rows = [
            (tuple(6, "128.232.110.120", "66.35.250.204", 34855, 80, [0, 0]), "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
            (tuple(6, "66.35.250.204", "128.232.110.120", 80, 34855, [0, 0]), "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
            (tuple(17, "192.168.1.52", "8.8.8.8", 54585, 53, [0, 0]), "1:d/FP5EW3wiY1vCndhwleRRKHowQ="),
            (tuple(1, "192.168.0.89", "192.168.0.1", 7, 7, [8, 0]), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="),
        ];
        for (tuple, expected) in rows {
            assert_eq!(community_id(&tuple), expected);
        }
    }
}
