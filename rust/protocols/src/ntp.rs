//! NTP (RFC 5905): which mode and version each datagram has.

use std::any::Any;

use crate::{
    COMPLETE, Json, NumberInfo, ParseError, Parser, Probe, Protocol, Settings, Start, Transaction, Transactions,
    Transport, View, Way, Ways,
};

/// A flow's datagrams are looked at one by one; what is not taken away in time is refused.
const MOST_TRANSACTIONS: usize = 16;
/// RFC 5905 section 7.3: the header without extensions.
const HEADER_BYTES: usize = 48;

mod number {
    pub const MODE: usize = 0;
    pub const VERSION: usize = 1;
}

/// NTP.
pub static PROTOCOL: Protocol = Protocol {
    name: "ntp",
    aliases: &[],
    transports: &[Transport::Udp],
    ports: &[123],
    probe,
    parser: |_: &Settings, _| Box::new(Ntp { transactions: Transactions::new(MOST_TRANSACTIONS) }),
    buffers: &[],
    numbers: &[
        NumberInfo {
            keyword: "ntp.mode",
            aliases: &[],
            ways: Ways::Both,
            progress: COMPLETE,
            bits: 8,
            names: &[("client", 3), ("server", 4), ("broadcast", 5), ("control", 6), ("private", 7)],
            is_multiple: false,
        },
        NumberInfo {
            keyword: "ntp.version",
            aliases: &[],
            ways: Ways::Both,
            progress: COMPLETE,
            bits: 8,
            names: &[],
            is_multiple: false,
        },
    ],
    keywords: &[],
    states: &[],
    records: &[],
    events: &[],
};

fn probe(start: &Start<'_>) -> Probe {
    let Some(&first) = start.data.first() else { return Probe::More };
    let (version, mode) = (first >> 3 & 7, first & 7);
    let is_header = (1..=4).contains(&version) && mode != 0 && start.data.len() >= HEADER_BYTES;
    if start.is_usual_port && is_header { Probe::Yes } else { Probe::No }
}

struct Ntp {
    transactions: Transactions<Message>,
}

struct Message {
    way: Way,
    first: u8,
}

impl Parser for Ntp {
    fn parse(&mut self, way: Way, data: &[u8], _is_end: bool) -> Result<usize, ParseError> {
        let Some(&first) = data.first() else { return Ok(0) };
        self.transactions.push(Message { way, first }).ok_or(ParseError("too many messages"))?;
        Ok(data.len())
    }

    fn range(&self) -> (u64, u64) {
        self.transactions.range()
    }

    fn transaction(&self, id: u64) -> Option<&dyn Transaction> {
        self.transactions.get(id).map(|message| message as _)
    }

    fn remove(&mut self, id: u64) {
        self.transactions.remove(id);
    }

    fn finish(&mut self) {}

    fn heap_bytes(&self) -> usize {
        self.transactions.len() * size_of::<Message>()
    }
}

impl Transaction for Message {
    fn progress(&self, _way: Way) -> u8 {
        COMPLETE // the other way has nothing to add
    }

    fn buffer(&self, _index: usize, _way: Way, _nth: usize) -> Option<View<'_>> {
        None
    }

    fn number(&self, index: usize, way: Way, nth: usize) -> Option<u64> {
        match index {
            _ if way != self.way || nth > 0 => None,
            number::MODE => Some(u64::from(self.first & 7)),
            number::VERSION => Some(u64::from(self.first >> 3 & 7)),
            _ => None,
        }
    }

    fn log(&self, _record: Option<usize>, _json: &mut Json) {}

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_and_its_server_are_told_apart() {
        let mut parser = (PROTOCOL.parser)(&Settings::default(), Transport::Udp);
        for (way, first) in [(Way::ToServer, 0x23), (Way::ToClient, 0x24)] {
            assert_eq!(parser.parse(way, &[first; HEADER_BYTES], true), Ok(HEADER_BYTES));
        }
        let modes = [(0, Way::ToServer), (1, Way::ToClient)]
            .map(|(id, way)| parser.transaction(id).and_then(|tx| tx.number(number::MODE, way, 0)));
        assert_eq!(modes, [Some(3), Some(4)]);
    }
}
