//! The internet checksum (RFC 1071) of IP, TCP, UDP and ICMP.

use crate::layers::{Layers, ip};

/// Add 16-bit words to a running sum; an odd last byte is the upper half of a word.
pub(crate) fn sum(data: &[u8], start: u32) -> u32 {
    // sums of wider words fold to the same: 32 bits at once, in 64 that cannot overflow below 16 GiB
    let (words, rest) = data.as_chunks::<4>();
    let mut total = u64::from(start);
    for word in words {
        total += u64::from(u32::from_be_bytes(*word));
    }
    let (words, rest) = rest.as_chunks::<2>();
    for word in words {
        total += u64::from(u16::from_be_bytes(*word));
    }
    if let [last] = rest {
        total += u64::from(*last) << 8;
    }
    while total > 0xffff_ffff {
        total = (total & 0xffff_ffff) + (total >> 32);
    }
    total as u32
}

/// Fold a sum into 16 bits.
pub(crate) fn fold(mut total: u32) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

fn is_header_right(layers: &Layers<'_>) -> bool {
    let header = layers.network.get(..layers.network_header_bytes).unwrap_or_default();
    layers.version != 4 || fold(sum(header, 0)) == 0xffff
}

/// The sum of what transport checksums cover besides the transport: addresses, protocol, length.
pub(crate) fn pseudo_sum(layers: &Layers<'_>) -> u32 {
    let length = layers.transport.len() as u32;
    let addresses = match layers.version {
        4 => layers.network.get(12..20),
        _ => layers.network.get(8..40),
    };
    sum(addresses.unwrap_or_default(), u32::from(layers.protocol) + (length & 0xffff) + (length >> 16))
}

/// Return whether the field holds the sum over the pseudo-header, as the kernel leaves it for the network card to go on.
pub(crate) fn is_pending(layers: &Layers<'_>) -> bool {
    let at = match layers.protocol {
        ip::TCP => 16,
        ip::UDP => 6,
        _ => return false,
    };
    let field = layers.transport.get(at..).and_then(|rest| rest.first_chunk::<2>());
    is_header_right(layers) && field == Some(&fold(pseudo_sum(layers)).to_be_bytes())
}

/// Return whether the transport checksum (and, in IPv4, that of the header) is right.
pub(crate) fn is_right(layers: &Layers<'_>) -> bool {
    if !is_header_right(layers) {
        return false;
    }
    match layers.protocol {
        ip::UDP if layers.transport.get(6..8) == Some(&[0, 0]) => layers.version == 4, // RFC 768: none was computed
        ip::TCP | ip::UDP | ip::ICMPV6 => fold(sum(layers.transport, pseudo_sum(layers))) == 0xffff,
        ip::ICMP => fold(sum(layers.transport, 0)) == 0xffff,
        _ => true,
    }
}
