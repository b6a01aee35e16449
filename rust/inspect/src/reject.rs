//! What ends are told whose packet was refused: a TCP reset, or an ICMP message that says so.
//!
//! Sources: RFC 9293 section 3.10.7.1 and RFC 5961 section 3 (the reset has the very number that its receiver expects),
//! RFC 792 and RFC 1812 section 4.3.2 (when no ICMP error may be sent), RFC 4443 section 2.4. Of other protocols than TCP
//! the sender alone is told: an ICMP error about a packet that its receiver has not sent means nothing to it.

use std::collections::VecDeque;

use signatures::RejectTarget;

use crate::checksum::{fold, sum};
use crate::layers::{self, Layers, ip};
use crate::tcp::flag;

/// Hop limit of what we make ourselves (IANA's recommended default, RFC 1700).
const HOPS: u8 = 64;
/// RFC 792: the header and 64 bits of what follows.
const QUOTED_V4: usize = 8;
/// RFC 4443 section 2.4 (c): as much as fits the least MTU, 1,280, with the headers.
const QUOTED_V6: usize = 1280 - 40 - 8;
/// Destination unreachable, communication administratively prohibited.
const PROHIBITED_V4: [u8; 2] = [3, 13];
const PROHIBITED_V6: [u8; 2] = [1, 1];

/// What the kernel sends in ICMP messages at most, as a rate and as a burst (`net.ipv4.icmp_msgs_per_sec`, `_burst`):
/// somebody who provokes answers, maybe in another's name, gets no more out of us than out of the machine itself.
const REPLIES_PER_S: u64 = 1000;
const BURST: u64 = 50;
/// Replies whose return through the queue is expected: a burst that nobody has taken yet.
const MOST_EXPECTED: usize = BURST as usize;

/// Replies to refused packets: within a rate, and known again when the firewall hands them to us.
#[derive(Default)]
pub struct Replies {
    /// In units of a millionth of a reply.
    spent: u64,
    last_us: u64,
    waiting: VecDeque<Vec<u8>>,
    expected: VecDeque<Vec<u8>>,
    /// Replies made.
    pub made: u64,
    /// Replies that the rate limit kept back.
    pub suppressed: u64,
}

impl Replies {
    /// Prepare the replies to a refused `packet`.
    pub fn refuse(&mut self, packet: &[u8], target: RejectTarget, now_us: u64) {
        let passed_us = now_us.saturating_sub(self.last_us);
        self.last_us = self.last_us.max(now_us);
        self.spent = self.spent.saturating_sub(passed_us.saturating_mul(REPLIES_PER_S));
        for reply in encode_rejects(packet, target) {
            if self.spent > (BURST - 1) * 1_000_000 {
                self.suppressed += 1;
                continue;
            }
            self.spent += 1_000_000;
            self.made += 1;
            self.waiting.push_back(reply);
        }
    }

    /// Take the next reply that is to be sent.
    pub fn next_reply(&mut self) -> Option<Vec<u8>> {
        let reply = self.waiting.pop_front()?;
        if self.expected.len() == MOST_EXPECTED {
            self.expected.pop_front();
        }
        self.expected.push_back(reply.clone());
        Some(reply)
    }

    /// Return whether a packet is a reply of ours on its way, which is let go although its flow is dropped.
    ///
    /// It may come more than once: on its way out, and on its way in where it is for this machine itself.
    pub fn is_own(&self, packet: &[u8]) -> bool {
        self.expected.iter().any(|reply| identity(reply) == identity(packet))
    }
}

/// A packet without what the kernel changes in its header: identification, hops, checksum.
fn identity(packet: &[u8]) -> Option<&[u8]> {
    match packet.first()? >> 4 {
        4 => packet.get(12..),
        _ => packet.get(8..),
    }
}

/// Return the IP packets, at most two, that tell `target` that `packet` (from its IP header on) was refused.
///
/// None where it must not be answered: it is itself a reset or an ICMP error, a later fragment, to or from many.
pub fn encode_rejects(packet: &[u8], target: RejectTarget) -> Vec<Vec<u8>> {
    let layers = layers::decode_ip(packet);
    if layers.is_invalid || layers.version == 0 || layers.fragment.is_some_and(|fragment| fragment.offset > 0) {
        return Vec::new();
    }
    if !is_single(layers.source, layers.version) || !is_single(layers.destination, layers.version) {
        return Vec::new();
    }
    if layers.protocol != ip::TCP {
        return prohibited(&layers).filter(|_| target != RejectTarget::Destination).into_iter().collect();
    }
    if layers.is_transport_invalid || layers.tcp.flags & flag::RST != 0 {
        return Vec::new();
    }
    let to_source = || reset(&layers, true);
    let to_destination = || reset(&layers, false);
    match target {
        RejectTarget::Source => vec![to_source()],
        RejectTarget::Destination => vec![to_destination()],
        RejectTarget::Both => vec![to_source(), to_destination()],
    }
}

/// One host: neither nobody, nor a group, nor everybody.
fn is_single(address: u128, version: u8) -> bool {
    match version {
        4 => {
            let first = (address as u32 >> 24) as u8;
            first != 0 && first < 224
        }
        _ => address != 0 && (address >> 120) as u8 != 0xff,
    }
}

/// A reset to the packet's source, as if from its destination, or the other way.
fn reset(layers: &Layers<'_>, is_to_source: bool) -> Vec<u8> {
    let tcp = layers.tcp;
    let begins = u32::from(tcp.flags & flag::SYN != 0);
    let end = tcp.sequence.wrapping_add(layers.payload.len() as u32).wrapping_add(begins);
    let (ends, ports, sequence, acknowledgement) = match is_to_source {
        true => (
            (layers.destination, layers.source),
            (layers.destination_port, layers.source_port),
            if tcp.flags & flag::ACK != 0 { tcp.acknowledgement } else { 0 },
            end,
        ),
        false => (
            (layers.source, layers.destination),
            (layers.source_port, layers.destination_port),
            tcp.sequence,
            tcp.acknowledgement,
        ),
    };
    let mut segment = Vec::with_capacity(20);
    segment.extend(ports.0.to_be_bytes());
    segment.extend(ports.1.to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledgement.to_be_bytes());
    segment.extend([5 << 4, flag::RST | flag::ACK, 0, 0, 0, 0, 0, 0]);
    with_ip(layers.version, ends, ip::TCP, segment, 16)
}

/// An ICMP error to the packet's source.
fn prohibited(layers: &Layers<'_>) -> Option<Vec<u8>> {
    let is_v4 = layers.version == 4;
    let is_error = match layers.protocol {
        ip::ICMP => !matches!(layers.icmp[0], 0 | 8 | 9 | 10 | 13..=18),
        ip::ICMPV6 => layers.icmp[0] < 128,
        _ => false,
    };
    if is_error {
        return None;
    }
    let quoted = if is_v4 { layers.network_header_bytes + QUOTED_V4 } else { QUOTED_V6 };
    let [kind, code] = if is_v4 { PROHIBITED_V4 } else { PROHIBITED_V6 };
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(layers.network.get(..quoted.min(layers.network.len()))?);
    let protocol = if is_v4 { ip::ICMP } else { ip::ICMPV6 };
    Some(with_ip(layers.version, (layers.destination, layers.source), protocol, message, 2))
}

/// Put an IP header in front, and the checksum in its place in `body`.
fn with_ip(version: u8, ends: (u128, u128), protocol: u8, mut body: Vec<u8>, checksum_at: usize) -> Vec<u8> {
    let length = body.len() as u16; // at most QUOTED_V6 and a header
    let mut packet = match version {
        4 => {
            let mut head = vec![0x45, 0];
            head.extend((20 + length).to_be_bytes());
            head.extend([0, 0, 0x40, 0, HOPS, protocol, 0, 0]); // do not fragment
            head.extend((ends.0 as u32).to_be_bytes());
            head.extend((ends.1 as u32).to_be_bytes());
            let checksum = !fold(sum(&head, 0));
            put_word(&mut head, 10, checksum);
            head
        }
        _ => {
            let mut head = vec![0x60, 0, 0, 0];
            head.extend(length.to_be_bytes());
            head.extend([protocol, HOPS]);
            head.extend(ends.0.to_be_bytes());
            head.extend(ends.1.to_be_bytes());
            head
        }
    };
    let addresses = packet.get(if version == 4 { 12 } else { 8 }..).unwrap_or_default();
    let pseudo = match protocol {
        ip::ICMP => 0,
        _ => sum(addresses, u32::from(protocol) + u32::from(length)),
    };
    let checksum = !fold(sum(&body, pseudo));
    put_word(&mut body, checksum_at, checksum);
    packet.append(&mut body);
    packet
}

fn put_word(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum;

    /// A packet of a client (192.0.2.2 or 2001:db8::2) to a server, with right checksums.
    fn packet(version: u8, protocol: u8, head: &[u8], checksum_at: usize) -> Vec<u8> {
        let ends = match version {
            4 => (0xc000_0202, 0xc000_0201),
            _ => ((0x2001_0db8 << 96) | 2, (0x2001_0db8 << 96) | 1),
        };
        with_ip(version, ends, protocol, head.to_vec(), checksum_at)
    }

    fn segment(version: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut head = vec![0x9c, 0x40, 0, 80, 0, 0, 0, 100, 0, 0, 0, 200, 5 << 4, flags, 32, 0, 0, 0, 0, 0];
        head.extend_from_slice(payload);
        packet(version, ip::TCP, &head, 16)
    }

    #[test]
    fn both_ends_get_a_reset_that_they_believe() {
        for version in [4, 6] {
            let replies = encode_rejects(&segment(version, flag::ACK | flag::PSH, b"hello"), RejectTarget::Both);
            let [to_client, to_server] = [&replies[0], &replies[1]].map(|reply| layers::decode_ip(reply));
            for reply in [&to_client, &to_server] {
                assert!(checksum::is_right(reply) && !reply.is_invalid && !reply.is_transport_invalid);
                assert_eq!(reply.tcp.flags, flag::RST | flag::ACK);
            }
            assert_eq!((to_client.source_port, to_client.destination_port), (80, 40_000));
            assert_eq!((to_client.tcp.sequence, to_client.tcp.acknowledgement), (200, 105));
            assert_eq!((to_server.source_port, to_server.destination_port), (40_000, 80));
            assert_eq!((to_server.tcp.sequence, to_server.tcp.acknowledgement), (100, 200));
        }
    }

    #[test]
    fn a_client_that_only_asked_is_refused() {
        let reply = encode_rejects(&segment(4, flag::SYN, &[]), RejectTarget::Source);
        let reply = layers::decode_ip(&reply[0]);
        assert_eq!((reply.tcp.sequence, reply.tcp.acknowledgement), (0, 101));
    }

    #[test]
    fn a_datagram_is_answered_with_an_error_that_quotes_it() {
        for (version, kind) in [(4, PROHIBITED_V4), (6, PROHIBITED_V6)] {
            let datagram = packet(version, ip::UDP, &[0x9c, 0x40, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4], 6);
            let replies = encode_rejects(&datagram, RejectTarget::Both);
            assert_eq!(replies.len(), 1);
            let reply = layers::decode_ip(&replies[0]);
            assert!(checksum::is_right(&reply));
            assert_eq!(reply.icmp, kind);
            let quoted = &reply.transport[8..];
            assert!(datagram.starts_with(quoted) && quoted.len() >= datagram.len() - 4);
            assert!(encode_rejects(&datagram, RejectTarget::Destination).is_empty());
            assert!(encode_rejects(&replies[0], RejectTarget::Both).is_empty(), "no error about an error");
        }
    }

    #[test]
    fn what_must_not_be_answered_is_not() {
        assert!(encode_rejects(&segment(4, flag::RST, &[]), RejectTarget::Both).is_empty());
        for (at, value) in [(16, 224), (16, 255), (12, 0), (12, 240)] {
            let mut bytes = segment(4, flag::ACK, &[]);
            bytes[at] = value;
            assert!(encode_rejects(&bytes, RejectTarget::Both).is_empty(), "to or from many");
        }
        let mut fragment = segment(4, flag::ACK, &[0; 40]);
        fragment[7] = 3;
        assert!(encode_rejects(&fragment, RejectTarget::Both).is_empty());
        let whole = segment(6, flag::ACK, b"hello");
        for end in 0..whole.len() {
            let _ = encode_rejects(&whole[..end], RejectTarget::Both);
        }
    }

    #[test]
    fn replies_are_limited_and_known_again() {
        let mut replies = Replies::default();
        let refused = segment(4, flag::ACK, b"hello");
        for _ in 0..200 {
            replies.refuse(&refused, RejectTarget::Source, 1_000_000_000);
        }
        assert_eq!((replies.made, replies.suppressed), (BURST, 200 - BURST));
        replies.refuse(&refused, RejectTarget::Source, 1_000_000_000 + 1_000);
        assert_eq!(replies.made, BURST + 1, "a millisecond later one more");
        let mut sent = replies.next_reply().unwrap_or_default();
        sent[8] = 63; // what the kernel fills in
        assert!(!replies.is_own(&refused));
        assert!(replies.is_own(&sent) && replies.is_own(&sent));
    }
}
