//! Telnet (RFC 854): recognised and logged as `app_proto`; nothing of a session is kept.

use crate::{ParseError, Parser, Probe, Protocol, Start, Transaction, Transport, Way};

/// Interpret As Command, and the four that negotiate options.
const IAC: u8 = 255;
const NEGOTIATIONS: std::ops::RangeInclusive<u8> = 251..=254;
/// Options that IANA has assigned up to here, and 255 for their extension.
const MOST_OPTION: u8 = 49;

/// Telnet.
pub static PROTOCOL: Protocol = Protocol {
    name: "telnet",
    aliases: &[],
    transports: &[Transport::Tcp],
    ports: &[23],
    probe,
    parser: |_, _| Box::new(Telnet),
    buffers: &[],
    numbers: &[],
    keywords: &[],
    states: &[],
    records: &[],
    events: &[],
};

fn probe(start: &Start<'_>) -> Probe {
    let is_option = |option: &u8| *option <= MOST_OPTION || *option == 255;
    match start.data {
        [IAC, command, option, ..] if NEGOTIATIONS.contains(command) && is_option(option) => {
            // one negotiation is three bytes: elsewhere than on the port, there must be two of them
            let is_second = matches!(start.data.get(3..), Some([IAC, command, ..]) if NEGOTIATIONS.contains(command));
            if start.is_usual_port || is_second { Probe::Yes } else { Probe::No }
        }
        [IAC] => Probe::More,
        [IAC, command] if NEGOTIATIONS.contains(command) => Probe::More,
        _ => Probe::No,
    }
}

struct Telnet;

impl Parser for Telnet {
    fn parse(&mut self, _way: Way, data: &[u8], _is_end: bool) -> Result<usize, ParseError> {
        Ok(data.len())
    }

    fn gap(&mut self, _way: Way, _bytes: u64) -> Result<(), ParseError> {
        Ok(())
    }

    fn range(&self) -> (u64, u64) {
        (0, 0)
    }

    fn transaction(&self, _id: u64) -> Option<&dyn Transaction> {
        None
    }

    fn remove(&mut self, _id: u64) {}

    fn finish(&mut self) {}

    fn heap_bytes(&self) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negotiation_is_the_beginning() {
        let probe = |data: &[u8], is_usual_port| {
            probe(&Start { data, way: Way::ToClient, transport: Transport::Tcp, is_usual_port })
        };
        assert_eq!(probe(&[255, 253, 24], true), Probe::Yes);
        assert_eq!(probe(&[255, 253, 24], false), Probe::No);
        assert_eq!(probe(&[255, 253, 24, 255, 251, 1], false), Probe::Yes);
        assert_eq!(probe(&[255, 253], true), Probe::More);
        assert_eq!(probe(b"login: ", true), Probe::No);
    }
}
