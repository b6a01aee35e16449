//! TFTP (RFC 1350): requests to read and to write. Their data goes between other ports, in a flow of its own.

use crate::framed::{Dialect, Frame, Framed, buffer, cut, number};
use crate::pair::{Pair, Said, records, sort};
use crate::{
    BufferInfo, Json, NumberInfo, ParseError, Probe, Protocol, Reader, RecordInfo, Start, Transactions, Transport, Way,
};

/// RFC 2347: a request with all its options is at most this long.
const MOST_REQUEST: usize = 512;

const MODES: [&[u8]; 3] = [b"netascii", b"octet", b"mail"];
const OPCODES: &[(&str, u64)] = &[("read", 1), ("write", 2), ("data", 3), ("ack", 4), ("error", 5), ("oack", 6)];

static BUFFERS: [BufferInfo; 2] = [buffer("tftp.file"), buffer("tftp.mode")];
static NUMBERS: [NumberInfo; 1] = [number("tftp.opcode", 16, OPCODES)];
static RECORDS: [RecordInfo; 2] = records("tftp");

/// TFTP.
pub static PROTOCOL: Protocol = Protocol {
    name: "tftp",
    aliases: &[],
    transports: &[Transport::Udp],
    ports: &[69],
    probe,
    parser: |_, transport| Box::new(Framed::new(Tftp, transport)),
    buffers: &BUFFERS,
    numbers: &NUMBERS,
    keywords: &[],
    states: &[],
    records: &RECORDS,
    events: &[],
};

fn probe(start: &Start<'_>) -> Probe {
    let is_request =
        start.way == Way::ToServer && Request::read(start.data).is_some_and(|request| !request.file.is_empty());
    // file, mode and both their ends are evidence on any port, but a name that nobody can type is none
    if is_request { Probe::Yes } else { Probe::No }
}

struct Tftp;

impl Dialect for Tftp {
    type Unit = Pair<Request>;
    const FLOODED: Option<u8> = None;

    fn frame(&mut self, _way: Way, _data: &[u8]) -> Result<Frame, ParseError> {
        Err(ParseError("TFTP is a protocol of datagrams"))
    }

    fn read(
        &mut self,
        way: Way,
        bytes: &[u8],
        _is_cut: bool,
        units: &mut Transactions<Pair<Request>>,
    ) -> Result<(), ParseError> {
        match Request::read(bytes) {
            Some(request) => sort(units, way, request, None),
            None => Ok(()), // data, acknowledgements and errors say nothing that is not in the request
        }
    }
}

struct Request {
    opcode: u16,
    file: Vec<u8>,
    mode: Vec<u8>,
}

impl Request {
    fn read(data: &[u8]) -> Option<Request> {
        let mut reader = Reader::new(data.get(..MOST_REQUEST).unwrap_or(data));
        let opcode = reader.be16().filter(|opcode| matches!(opcode, 1 | 2))?;
        let mut parts = reader.rest().split(|byte| *byte == 0);
        let (file, mode) = (parts.next()?, parts.next()?);
        parts.next()?; // the zero behind the mode
        let is_name = file.iter().all(|byte| *byte >= b' ' && *byte != 0x7f);
        let is_mode = MODES.iter().any(|known| known.eq_ignore_ascii_case(mode));
        (is_name && is_mode).then(|| Request { opcode, file: cut(file, MOST_REQUEST), mode: mode.to_vec() })
    }
}

impl Said for Request {
    const NAME: &'static str = "tftp";
    const IS_PAIRED: bool = false;

    fn buffer(&self, index: usize, nth: usize) -> Option<&[u8]> {
        match (index, nth) {
            (0, 0) => Some(&self.file),
            (1, 0) => Some(&self.mode),
            _ => None,
        }
    }

    fn number(&self, index: usize, nth: usize) -> Option<u64> {
        (index == 0 && nth == 0).then(|| u64::from(self.opcode))
    }

    fn log(&self, json: &mut Json) {
        json.text("packet", if self.opcode == 1 { "read" } else { "write" });
        json.text("file", &self.file);
        json.text("mode", &self.mode);
    }

    fn heap_bytes(&self) -> usize {
        self.file.capacity() + self.mode.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Talk, feed, json, torture};

    fn talk() -> Talk {
        vec![
            (Way::ToServer, b"\0\x01boot.bin\0octet\0blksize\x001024\0".to_vec()),
            (Way::ToClient, b"\0\x03\0\x01data".to_vec()),
            (Way::ToServer, b"\0\x02up.cfg\0NetASCII\0".to_vec()),
        ]
    }

    #[test]
    fn requests_are_told() {
        let parser = feed(&PROTOCOL, Transport::Udp, &talk(), 0);
        assert_eq!(parser.range(), (0, 2));
        assert_eq!(json(&*parser, 0), r#""tftp":{"packet":"read","file":"boot.bin","mode":"octet"}"#);
        assert_eq!(json(&*parser, 1), r#""tftp":{"packet":"write","file":"up.cfg","mode":"NetASCII"}"#);
    }

    #[test]
    fn the_probe_is_strict() {
        let probe =
            |data: &[u8]| probe(&Start { data, way: Way::ToServer, transport: Transport::Udp, is_usual_port: true });
        assert_eq!(probe(b"\0\x01a\0octet\0"), Probe::Yes);
        for bytes in [&b"\0\x01a\0octet"[..], b"\0\x01\0octet\0", b"\0\x01a\0binary\0", b"\0\x03\0\x01", b"\0"] {
            assert_eq!(probe(bytes), Probe::No);
        }
    }

    #[test]
    fn mutations_do_no_harm() {
        torture(&PROTOCOL, Transport::Udp, &talk(), 1 << 20);
    }
}
