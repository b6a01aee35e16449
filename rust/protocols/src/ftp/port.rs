//! The four ways in which FTP says a port (RFC 959 section 4.1.2, RFC 2428).

use std::net::{IpAddr, Ipv4Addr};

/// Where the data will go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// `EPSV` says none.
    pub address: Option<IpAddr>,
    /// Above 0.
    pub port: u16,
}

/// Read `192,168,0,13,234,10`, which may stand in brackets somewhere in a text.
pub fn parse_commas(text: &[u8]) -> Option<Announced> {
    let begin = text.iter().position(|byte| *byte == b'(').map_or(0, |at| at + 1);
    let text = text.get(begin..)?;
    // some servers leave the brackets out
    let begin = text.iter().position(u8::is_ascii_digit)?;
    let text = text.get(begin..)?;
    let end = text.iter().position(|byte| !byte.is_ascii_digit() && *byte != b',').unwrap_or(text.len());
    let mut numbers = [0_u8; 6];
    let mut words = text.get(..end)?.split(|byte| *byte == b',');
    for number in &mut numbers {
        *number = str::from_utf8(words.next()?).ok()?.parse().ok()?;
    }
    let [a, b, c, d, high, low] = numbers;
    announced(Some(Ipv4Addr::new(a, b, c, d).into()), u16::from_be_bytes([high, low]))
}

/// Read `|1|132.235.1.2|6275|` or `(|||6446|)`; any character may stand for the bar.
pub fn parse_bars(text: &[u8]) -> Option<Announced> {
    let begin = text.iter().position(|byte| *byte == b'(').map_or(0, |at| at + 1);
    let text = text.get(begin..)?.trim_ascii();
    let bar = *text.first()?;
    let mut fields = text.get(1..)?.split(|byte| *byte == bar);
    let (_family, address, port) = (fields.next()?, fields.next()?, fields.next()?);
    let address = str::from_utf8(address).ok()?;
    let port = str::from_utf8(port).ok()?.parse().ok()?;
    announced(address.parse().ok(), port)
}

fn announced(address: Option<IpAddr>, port: u16) -> Option<Announced> {
    (port > 0).then_some(Announced { address, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_four_are_read_and_nonsense_is_not() {
        let port = |found: Option<Announced>| found.map(|found| found.port);
        assert_eq!(port(parse_commas(b"192,168,0,13,234,10")), Some(59914));
        assert_eq!(
            port(parse_commas(b"227 Entering Passive Mode (10,0,0,1,4,1).".get(4..).unwrap_or_default())),
            Some(1025)
        );
        assert_eq!(port(parse_commas(b"=10,0,0,1,4,1")), Some(1025));
        assert_eq!(port(parse_bars(b"|1|132.235.1.2|6275|")), Some(6275));
        assert_eq!(port(parse_bars(b"Extended Passive Mode Entered (|||55007|)")), Some(55007));
        for bad in [&b"1,2,3,4,5"[..], b"1,2,3,4,256,1", b"", b"(", b"1,2,3,4,0,0", b"9999999999,1,1,1,1,1"] {
            assert_eq!(parse_commas(bad), None, "{bad:?}");
        }
        for bad in [&b"|||70000|"[..], b"|||0|", b"||", b"", b"(|"] {
            assert_eq!(parse_bars(bad), None, "{bad:?}");
        }
    }
}
