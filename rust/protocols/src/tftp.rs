//! TFTP (RFC 1350): which files are asked for.
//!
//! Promises: a transaction for each request. Leaves to others: the data, which goes to ports that only the answer shows.

use std::any::Any;

use memchr::memchr;

use crate::{
    COMPLETE, Json, ParseError, Parser, Probe, Protocol, RecordInfo, Settings, Start, Transaction, Transactions,
    Transport, View, Way,
};

/// Requests that wait for a look.
const MOST_TRANSACTIONS: usize = 16;
/// RFC 1350 section 5.
static MODES: &[&[u8]] = &[b"netascii", b"octet", b"mail"];

/// TFTP.
pub static PROTOCOL: Protocol = Protocol {
    name: "tftp",
    aliases: &[],
    transports: &[Transport::Udp],
    ports: &[69],
    probe,
    parser: |_: &Settings, _| Box::new(Tftp { transactions: Transactions::new(MOST_TRANSACTIONS) }),
    buffers: &[],
    numbers: &[],
    keywords: &[],
    states: &[],
    records: &[RecordInfo { event_type: "tftp", to_server: COMPLETE, to_client: COMPLETE, way: Way::ToServer }],
    events: &[],
};

fn probe(start: &Start<'_>) -> Probe {
    if Request::parse(start.data).is_some() { Probe::Yes } else { Probe::No }
}

struct Tftp {
    transactions: Transactions<Request>,
}

struct Request {
    is_write: bool,
    file: Box<[u8]>,
    mode: Box<[u8]>,
}

impl Request {
    fn parse(data: &[u8]) -> Option<Request> {
        let (is_write, rest) = match data {
            [0, 1, rest @ ..] => (false, rest),
            [0, 2, rest @ ..] => (true, rest),
            _ => return None,
        };
        let end = memchr(0, rest)?;
        let (file, rest) = (rest.get(..end)?, rest.get(end + 1..)?);
        let mode = rest.get(..memchr(0, rest)?)?;
        let is_mode = MODES.iter().any(|known| mode.eq_ignore_ascii_case(known));
        (is_mode && !file.is_empty()).then(|| Request { is_write, file: file.into(), mode: mode.into() })
    }
}

impl Parser for Tftp {
    fn parse(&mut self, way: Way, data: &[u8], _is_end: bool) -> Result<usize, ParseError> {
        if let Some(request) = Request::parse(data).filter(|_| way == Way::ToServer) {
            self.transactions.push(request).ok_or(ParseError("too many requests"))?;
        }
        Ok(data.len())
    }

    fn range(&self) -> (u64, u64) {
        self.transactions.range()
    }

    fn transaction(&self, id: u64) -> Option<&dyn Transaction> {
        self.transactions.get(id).map(|request| request as _)
    }

    fn remove(&mut self, id: u64) {
        self.transactions.remove(id);
    }

    fn finish(&mut self) {}

    fn heap_bytes(&self) -> usize {
        let (first, end) = self.transactions.range();
        let requests = (first..end).filter_map(|id| self.transactions.get(id));
        requests.map(|request| request.file.len() + request.mode.len() + size_of::<Request>()).sum()
    }
}

impl Transaction for Request {
    fn progress(&self, _way: Way) -> u8 {
        COMPLETE
    }

    fn buffer(&self, _index: usize, _way: Way, _nth: usize) -> Option<View<'_>> {
        None
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        json.open("tftp");
        json.text("packet", if self.is_write { "write" } else { "read" });
        json.text("file", &self.file);
        json.text("mode", &self.mode);
        json.close();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_and_nothing_else() {
        let mut parser = (PROTOCOL.parser)(&Settings::default(), Transport::Udp);
        for data in [&b"\0\x01rfc1350.txt\0octet\0"[..], b"\0\x02up\0NETASCII\0blksize\x001024\0", b"\0\x03\0\x01data"]
        {
            assert_eq!(parser.parse(Way::ToServer, data, true), Ok(data.len()));
        }
        assert_eq!(parser.range(), (0, 2));
        let mut out = String::new();
        parser.transaction(0).inspect(|request| request.log(None, &mut Json::inside(&mut out, false)));
        assert_eq!(out, r#""tftp":{"packet":"read","file":"rfc1350.txt","mode":"octet"}"#);
    }

    #[test]
    fn only_whole_requests_are_recognised() {
        for (data, expected) in [
            (&b"\0\x01a\0octet\0"[..], Probe::Yes),
            (b"\0\x01a\0octet", Probe::No),
            (b"\0\x01\0octet\0", Probe::No),
            (b"\0\x01a\0other\0", Probe::No),
            (b"\0\x03\0\x01", Probe::No),
            (b"\0", Probe::No),
        ] {
            let start = Start { data, way: Way::ToServer, transport: Transport::Udp, is_usual_port: true };
            assert_eq!(probe(&start), expected, "{data:?}");
        }
    }

    #[test]
    fn bent_requests_never_panic() {
        let make = || (PROTOCOL.parser)(&Settings::default(), Transport::Udp);
        crate::line::mutation::run(b"\0\x01rfc1350.txt\0octet\0", b"\0\x05\0\x01no\0", 2000, 4096, make);
    }
}
