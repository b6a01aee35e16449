//! OPC UA's binary transport (part 6, section 7.1) up to the secure channel: hello, acknowledge, error, open, close.
//! What services a channel carries is passed over: it may be encrypted, and no rule here asks for it.

use crate::framed::{Dialect, Frame, Framed, buffer, cut, number};
use crate::pair::{Pair, Said, records, sort};
use crate::{
    BufferInfo, Json, NumberInfo, ParseError, Probe, Protocol, Reader, RecordInfo, Start, Transactions, Transport, Way,
};

/// Section 7.1.2.2: type, chunk, length.
const HEADER_BYTES: usize = 8;
/// Section 7.1.2.3: an endpoint url, and by 6.7.2 a policy's, is shorter.
const MOST_TEXT: usize = 4096;
/// A chunk that claims to be longer belongs to no server that anybody runs: the usual limit is 64 KiB.
const MOST_CHUNK: u32 = 1 << 28;

mod event {
    pub const FLOODED: u8 = 0;
    pub const MALFORMED: u8 = 1;
}

const TYPES: &[(&str, u64)] =
    &[("hello", 0), ("acknowledge", 1), ("error", 2), ("reverse_hello", 3), ("open", 4), ("close", 5)];
const CODES: [&[u8; 3]; 6] = [b"HEL", b"ACK", b"ERR", b"RHE", b"OPN", b"CLO"];

static BUFFERS: [BufferInfo; 5] = [
    buffer("opcua.endpoint_url"),
    buffer("opcua.security_policy"),
    buffer("opcua.error_reason"),
    buffer("opcua.server_uri"),
    buffer("opcua.certificate"),
];

static NUMBERS: [NumberInfo; 4] = [
    number("opcua.message_type", 8, TYPES),
    number("opcua.protocol_version", 32, &[]),
    number("opcua.channel_id", 32, &[]),
    number("opcua.error", 32, &[]),
];

static RECORDS: [RecordInfo; 2] = records("opcua");

/// OPC UA.
pub static PROTOCOL: Protocol = Protocol {
    name: "opcua",
    aliases: &[],
    transports: &[Transport::Tcp],
    ports: &[4840],
    probe,
    parser: |_, transport| Box::new(Framed::new(OpcUa, transport)),
    buffers: &BUFFERS,
    numbers: &NUMBERS,
    keywords: &[],
    states: &[],
    records: &RECORDS,
    events: &["flooded", "malformed"],
};

fn probe(start: &Start<'_>) -> Probe {
    let Some(header) = start.data.get(..HEADER_BYTES) else {
        let is_possible = |code: &&[u8; 3]| code.iter().zip(start.data).all(|(due, is)| due == is);
        return if CODES.iter().any(is_possible) { Probe::More } else { Probe::No };
    };
    let length = header.get(4..).and_then(|bytes| Reader::new(bytes).le32()).unwrap_or(0);
    let is_final = header.get(3) == Some(&b'F');
    match header.get(..3) {
        _ if !is_final || !(HEADER_BYTES as u32..=MOST_CHUNK).contains(&length) => Probe::No,
        Some(b"HEL") if (32..=8192).contains(&length) => Probe::Yes,
        Some(b"RHE") => Probe::Yes,
        Some(b"ACK") if length == 28 && start.way == Way::ToServer => Probe::YesReversed,
        Some(b"ACK") if length == 28 => Probe::Yes,
        Some(b"OPN" | b"MSG" | b"ERR" | b"CLO") if start.is_usual_port => Probe::Yes,
        _ => Probe::No,
    }
}

struct OpcUa;

impl Dialect for OpcUa {
    type Unit = Pair<Message>;
    const FLOODED: Option<u8> = Some(event::FLOODED);

    fn frame(&mut self, _way: Way, data: &[u8]) -> Result<Frame, ParseError> {
        let Some(length) = data.get(4..HEADER_BYTES).and_then(|bytes| Reader::new(bytes).le32()) else {
            return Ok(Frame::More);
        };
        if !(HEADER_BYTES as u32..=MOST_CHUNK).contains(&length) {
            return Err(ParseError("a chunk of impossible length"));
        }
        Ok(Frame::Message(u64::from(length)))
    }

    fn read(
        &mut self,
        way: Way,
        bytes: &[u8],
        is_cut: bool,
        units: &mut Transactions<Pair<Message>>,
    ) -> Result<(), ParseError> {
        let Some((code, _)) = bytes.split_first_chunk::<3>() else { return Ok(()) };
        let Some(kind) = CODES.iter().position(|known| *known == code) else {
            return if code == b"MSG" { Ok(()) } else { Err(ParseError("an unknown type of message")) };
        };
        let mut message = Message { kind: u8::try_from(kind).unwrap_or(u8::MAX), ..Message::default() };
        let read = message.read(Reader::new(bytes.get(HEADER_BYTES..).unwrap_or_default()));
        let problem = (read.is_none() || is_cut).then_some(event::MALFORMED);
        sort(units, way, message, problem)
    }
}

#[derive(Default, Debug)]
struct Message {
    kind: u8,
    version: Option<u32>,
    /// What buffers and messages the sender accepts.
    limits: Option<[u32; 4]>,
    endpoint: Option<Vec<u8>>,
    server: Option<Vec<u8>>,
    channel: Option<u32>,
    policy: Option<Vec<u8>>,
    certificate: Option<Vec<u8>>,
    error: Option<u32>,
    reason: Option<Vec<u8>>,
}

/// A string with its length before it; -1 stands for none.
fn text(reader: &mut Reader<'_>) -> Option<Vec<u8>> {
    match reader.le32()? {
        u32::MAX => Some(Vec::new()),
        length => reader.take(usize::try_from(length).ok()?).map(|bytes| cut(bytes, MOST_TEXT)),
    }
}

impl Message {
    fn read(&mut self, mut reader: Reader<'_>) -> Option<()> {
        match self.kind {
            0 | 1 => {
                self.version = Some(reader.le32()?);
                self.limits = Some([reader.le32()?, reader.le32()?, reader.le32()?, reader.le32()?]);
                if self.kind == 0 {
                    self.endpoint = Some(text(&mut reader)?);
                }
            }
            2 => {
                self.error = Some(reader.le32()?);
                self.reason = Some(text(&mut reader)?);
            }
            3 => {
                self.server = Some(text(&mut reader)?);
                self.endpoint = Some(text(&mut reader)?);
            }
            4 => {
                self.channel = Some(reader.le32()?);
                self.policy = Some(text(&mut reader)?);
                self.certificate = Some(text(&mut reader)?);
                text(&mut reader)?; // the receiver's certificate's thumbprint
            }
            _ => self.channel = Some(reader.le32()?),
        }
        Some(())
    }
}

impl Said for Message {
    const NAME: &'static str = "opcua";
    const IS_PAIRED: bool = false;

    fn buffer(&self, index: usize, nth: usize) -> Option<&[u8]> {
        let all = [&self.endpoint, &self.policy, &self.reason, &self.server, &self.certificate];
        all.get(index).filter(|_| nth == 0)?.as_deref()
    }

    fn number(&self, index: usize, nth: usize) -> Option<u64> {
        match index {
            _ if nth > 0 => None,
            0 => Some(u64::from(self.kind)),
            1 => self.version.map(u64::from),
            2 => self.channel.map(u64::from),
            3 => self.error.map(u64::from),
            _ => None,
        }
    }

    fn log(&self, json: &mut Json) {
        let name = crate::framed::name_of(TYPES, u64::from(self.kind)).unwrap_or("unknown");
        json.text("message_type", name);
        let numbers = [("protocol_version", self.version), ("channel_id", self.channel), ("error", self.error)];
        for (name, value) in numbers {
            if let Some(value) = value {
                json.number(name, u64::from(value));
            }
        }
        if let Some(limits) = self.limits {
            let names = ["receive_buffer_size", "send_buffer_size", "max_message_size", "max_chunk_count"];
            names.iter().zip(limits).for_each(|(name, value)| json.number(name, u64::from(value)));
        }
        let texts = [
            ("endpoint_url", &self.endpoint),
            ("server_uri", &self.server),
            ("security_policy", &self.policy),
            ("error_reason", &self.reason),
        ];
        for (name, value) in texts {
            if let Some(value) = value {
                json.text(name, value);
            }
        }
    }

    fn heap_bytes(&self) -> usize {
        let all = [&self.endpoint, &self.policy, &self.reason, &self.server, &self.certificate];
        all.into_iter().flatten().map(Vec::capacity).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Talk, events, feed, json, torture};

    fn string(text: &[u8]) -> Vec<u8> {
        [&(text.len() as u32).to_le_bytes()[..], text].concat()
    }

    fn chunk(code: &[u8], body: &[u8]) -> Vec<u8> {
        [code, b"F", &(body.len() as u32 + 8).to_le_bytes(), body].concat()
    }

    fn talk() -> Talk {
        let hello = [&[0; 12][..], &[0; 8], &string(b"opc.tcp://plc:4840")].concat();
        let policy = string(b"http://opcfoundation.org/UA/SecurityPolicy#None");
        let open = [&[0; 4][..], &policy, &[0xff; 4], &[0xff; 4], &[1, 0, 0, 0]].concat();
        vec![
            (Way::ToServer, chunk(b"HEL", &hello)),
            (Way::ToClient, chunk(b"ACK", &[7; 20])),
            (Way::ToServer, chunk(b"OPN", &open)),
            (Way::ToServer, chunk(b"MSG", &[9; 300])),
            (Way::ToClient, chunk(b"ERR", &[&[0, 0, 0x0d, 0x80][..], &string(b"no")].concat())),
        ]
    }

    #[test]
    fn what_it_says_is_told() {
        let parser = feed(&PROTOCOL, Transport::Tcp, &talk(), usize::MAX);
        assert_eq!(parser.range(), (0, 4));
        assert!(json(&*parser, 0).contains(r#""endpoint_url":"opc.tcp://plc:4840""#));
        assert!(json(&*parser, 2).contains("SecurityPolicy#None"));
        assert!(json(&*parser, 3).contains(r#""error":2148335616,"error_reason":"no""#), "{}", json(&*parser, 3));
        assert!((0..4).all(|id| events(&PROTOCOL, &*parser, id).is_empty()));
    }

    #[test]
    fn lies_become_events() {
        let talk = vec![(Way::ToServer, chunk(b"HEL", &[&[0; 20][..], &[200, 0, 0, 0, 1]].concat()))];
        let parser = feed(&PROTOCOL, Transport::Tcp, &talk, usize::MAX);
        assert_eq!(events(&PROTOCOL, &*parser, 0), ["malformed"]);
    }

    #[test]
    fn cuts_and_mutations_do_no_harm() {
        torture(&PROTOCOL, Transport::Tcp, &talk(), 1 << 20);
    }
}
