//! ICMP errors quote the packet that they are about.

use crate::layers::{Layers, ip};

type End = (u128, u16);

/// Return the ends and the protocol of the packet that an ICMP error quotes.
pub fn quoted(layers: &Layers<'_>) -> Option<(End, End, u8)> {
    let is_error = match (layers.protocol, layers.icmp[0]) {
        (ip::ICMP, kind) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        (ip::ICMPV6, kind) => (1..=4).contains(&kind),
        _ => false,
    };
    if !is_error {
        return None;
    }
    let inner = layers.transport.get(8..)?;
    let (source, destination, protocol, header) = match inner.first()? >> 4 {
        4 => {
            let address = |at: usize| {
                inner
                    .get(at..at + 4)
                    .map(|b| 0xffff_0000_0000 | u128::from(u32::from_be_bytes([b[0], b[1], b[2], b[3]])))
            };
            (address(12)?, address(16)?, *inner.get(9)?, usize::from(inner.first()? & 15) * 4)
        }
        6 => {
            let address = |at: usize| {
                inner.get(at..at + 16).map(|b| b.iter().fold(0_u128, |sum, byte| sum << 8 | u128::from(*byte)))
            };
            (address(8)?, address(24)?, *inner.get(6)?, 40)
        }
        _ => return None,
    };
    if !matches!(protocol, ip::TCP | ip::UDP | ip::SCTP) {
        return None;
    }
    let ports = inner.get(header..header + 4)?;
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Some(((source, port(0)), (destination, port(2)), protocol))
}
