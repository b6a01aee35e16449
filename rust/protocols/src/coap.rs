//! CoAP over UDP (RFC 7252, with Observe of RFC 7641): a request and its response are one transaction.

use crate::framed::{Dialect, Frame, Framed, buffer, buffers, cut, log_named, number};
use crate::pair::{Pair, Said, records, sort};
use crate::{
    BufferInfo, Json, NumberInfo, ParseError, Probe, Protocol, Reader, RecordInfo, Start, Transactions, Transport, Way,
};

/// Section 3: longer tokens are a format error.
const MOST_TOKEN: usize = 8;
/// Options of one message; a request of the specification has some ten, path segments included.
const MOST_OPTIONS: usize = 64;
/// A datagram's text fields together: section 4.6 recommends messages of at most 1152 bytes.
const MOST_TEXT: usize = 4096;
/// Section 4.6, with room for jumbo frames: what is kept of a payload.
const MOST_PAYLOAD: usize = 9216;

mod event {
    pub const FLOODED: u8 = 0;
    pub const MALFORMED: u8 = 1;
}

mod option {
    pub const URI_HOST: u32 = 3;
    pub const OBSERVE: u32 = 6;
    pub const URI_PATH: u32 = 11;
    pub const CONTENT_FORMAT: u32 = 12;
    pub const URI_QUERY: u32 = 15;
}

const TYPES: &[(&str, u64)] = &[("con", 0), ("non", 1), ("ack", 2), ("rst", 3)];

const CODES: &[(&str, u64)] = &[
    ("empty", 0),
    ("get", 1),
    ("post", 2),
    ("put", 3),
    ("delete", 4),
    ("fetch", 5),
    ("patch", 6),
    ("ipatch", 7),
    ("created", 0x41),
    ("deleted", 0x42),
    ("valid", 0x43),
    ("changed", 0x44),
    ("content", 0x45),
    ("continue", 0x5f),
    ("bad_request", 0x80),
    ("unauthorized", 0x81),
    ("bad_option", 0x82),
    ("forbidden", 0x83),
    ("not_found", 0x84),
    ("method_not_allowed", 0x85),
    ("not_acceptable", 0x86),
    ("request_entity_incomplete", 0x88),
    ("conflict", 0x89),
    ("precondition_failed", 0x8c),
    ("request_entity_too_large", 0x8d),
    ("unsupported_content_format", 0x8f),
    ("unprocessable_entity", 0x96),
    ("too_many_requests", 0x9d),
    ("internal_server_error", 0xa0),
    ("not_implemented", 0xa1),
    ("bad_gateway", 0xa2),
    ("service_unavailable", 0xa3),
    ("gateway_timeout", 0xa4),
    ("proxying_not_supported", 0xa5),
];

static BUFFERS: [BufferInfo; 5] =
    [buffer("coap.path"), buffers("coap.query"), buffer("coap.host"), buffer("coap.payload"), buffer("coap.token")];

static NUMBERS: [NumberInfo; 6] = [
    NumberInfo { aliases: &["coap.method"], ..number("coap.code", 8, CODES) },
    number("coap.type", 8, TYPES),
    number("coap.mid", 16, &[]),
    number(
        "coap.content_format",
        16,
        &[("text", 0), ("link", 40), ("xml", 41), ("octet_stream", 42), ("exi", 47), ("json", 50), ("cbor", 60)],
    ),
    number("coap.observe", 32, &[("register", 0), ("deregister", 1)]),
    number("coap.version", 8, &[]),
];

static RECORDS: [RecordInfo; 2] = records("coap");

/// CoAP.
pub static PROTOCOL: Protocol = Protocol {
    name: "coap",
    aliases: &[],
    transports: &[Transport::Udp],
    ports: &[5683],
    probe,
    parser: |_, transport| Box::new(Framed::new(Coap, transport)),
    buffers: &BUFFERS,
    numbers: &NUMBERS,
    keywords: &[],
    states: &[],
    records: &RECORDS,
    events: &["flooded", "malformed"],
};

fn probe(start: &Start<'_>) -> Probe {
    let Some(message) = Message::read(start.data).filter(|message| message.is_right) else { return Probe::No };
    // version, options and code leave some thirty thousand of four billion beginnings: not enough without the port
    let is_likely =
        start.is_usual_port && (message.code == 0 || crate::framed::name_of(CODES, message.code.into()).is_some());
    match is_likely {
        true if message.is_response() && start.way == Way::ToServer => Probe::YesReversed,
        true => Probe::Yes,
        false => Probe::No,
    }
}

struct Coap;

impl Dialect for Coap {
    type Unit = Pair<Message>;
    const FLOODED: Option<u8> = Some(event::FLOODED);

    fn frame(&mut self, _way: Way, _data: &[u8]) -> Result<Frame, ParseError> {
        Err(ParseError("CoAP here is a protocol of datagrams"))
    }

    fn read(
        &mut self,
        way: Way,
        bytes: &[u8],
        _is_cut: bool,
        units: &mut Transactions<Pair<Message>>,
    ) -> Result<(), ParseError> {
        let message = Message::read(bytes).ok_or(ParseError("no CoAP header"))?;
        let problem = (!message.is_right).then_some(event::MALFORMED);
        sort(units, way, message, problem)
    }
}

#[derive(Debug)]
struct Message {
    version: u8,
    kind: u8,
    code: u8,
    id: u16,
    token: Vec<u8>,
    host: Option<Vec<u8>>,
    path: Vec<u8>,
    queries: Vec<Vec<u8>>,
    content_format: Option<u16>,
    observe: Option<u32>,
    payload: Vec<u8>,
    is_right: bool,
}

impl Message {
    fn read(data: &[u8]) -> Option<Message> {
        let mut reader = Reader::new(data);
        let (first, code, id) = (reader.u8()?, reader.u8()?, reader.be16()?);
        let mut message = Message {
            version: first >> 6,
            kind: first >> 4 & 3,
            code,
            id,
            token: Vec::new(),
            host: None,
            path: Vec::new(),
            queries: Vec::new(),
            content_format: None,
            observe: None,
            payload: Vec::new(),
            is_right: false,
        };
        let length = usize::from(first & 0x0f);
        message.is_right = message.version == 1
            && length <= MOST_TOKEN
            && reader.take(length).map(|token| message.token = token.to_vec()).is_some()
            && message.read_options(&mut reader).is_some()
            && (code != 0 || data.len() == 4);
        Some(message)
    }

    /// Section 3.1: each option says how much its number is above that of the one before.
    fn read_options(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let mut number = 0_u32;
        for _ in 0..MOST_OPTIONS {
            let Some(first) = reader.u8() else { return Some(()) };
            if first == 0xff {
                self.payload = cut(reader.rest(), MOST_PAYLOAD);
                // section 3: a marker without a payload is a format error
                return (!self.payload.is_empty()).then_some(());
            }
            let delta = extended(first >> 4, reader)?;
            let length = extended(first & 0x0f, reader)?;
            number = number.checked_add(delta)?;
            let value = reader.take(usize::try_from(length).ok()?)?;
            self.keep(number, value);
        }
        None
    }

    fn keep(&mut self, number: u32, value: &[u8]) {
        let integer = || value.iter().take(4).fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte));
        match number {
            option::URI_HOST => self.host = Some(cut(value, MOST_TEXT)),
            option::URI_PATH if self.path.len() + value.len() < MOST_TEXT => {
                self.path.push(b'/');
                self.path.extend_from_slice(value);
            }
            option::URI_QUERY => self.queries.push(cut(value, MOST_TEXT)),
            option::CONTENT_FORMAT => self.content_format = u16::try_from(integer()).ok(),
            option::OBSERVE => self.observe = Some(integer()),
            _ => {}
        }
    }

    fn is_request(&self) -> bool {
        (1..0x20).contains(&self.code)
    }

    fn is_response(&self) -> bool {
        self.code >= 0x40
    }
}

/// Section 3.1: 13 and 14 stand for one and two bytes more, 15 for nothing.
fn extended(nibble: u8, reader: &mut Reader<'_>) -> Option<u32> {
    match nibble {
        13 => Some(u32::from(reader.u8()?) + 13),
        14 => Some(u32::from(reader.be16()?) + 269),
        15 => None,
        value => Some(u32::from(value)),
    }
}

impl Said for Message {
    const NAME: &'static str = "coap";
    const IS_PAIRED: bool = true;

    fn waits(&self) -> bool {
        self.is_request()
    }

    fn is_answer(&self) -> bool {
        // an empty acknowledgement only says that the response comes later; a reset is all that comes
        self.is_response() || (self.code == 0 && self.kind == 3)
    }

    fn answers(&self, request: &Message) -> bool {
        if self.code == 0 { self.id == request.id } else { self.token == request.token }
    }

    fn buffer(&self, index: usize, nth: usize) -> Option<&[u8]> {
        let bytes = match index {
            1 => return self.queries.get(nth).map(Vec::as_slice),
            _ if nth > 0 => return None,
            0 if self.is_request() => &self.path,
            2 => self.host.as_ref()?,
            3 => &self.payload,
            4 => &self.token,
            _ => return None,
        };
        Some(bytes)
    }

    fn number(&self, index: usize, nth: usize) -> Option<u64> {
        match index {
            _ if nth > 0 => None,
            0 => Some(u64::from(self.code)),
            1 => Some(u64::from(self.kind)),
            2 => Some(u64::from(self.id)),
            3 => self.content_format.map(u64::from),
            4 => self.observe.map(u64::from),
            5 => Some(u64::from(self.version)),
            _ => None,
        }
    }

    fn log(&self, json: &mut Json<'_>) {
        log_named(json, "type", TYPES, u64::from(self.kind));
        log_named(json, "code", CODES, u64::from(self.code));
        json.number("message_id", u64::from(self.id));
        json.hex("token", &self.token);
        if let Some(host) = &self.host {
            json.text("host", host);
        }
        if self.is_request() {
            json.text("path", if self.path.is_empty() { b"/" } else { self.path.as_slice() });
        }
        if !self.queries.is_empty() {
            json.text("query", self.queries.join(&b'&'));
        }
        if let Some(format) = self.content_format {
            json.number("content_format", u64::from(format));
        }
        if let Some(observe) = self.observe {
            json.number("observe", u64::from(observe));
        }
        json.number("payload_length", self.payload.len() as u64);
    }

    fn heap_bytes(&self) -> usize {
        let queries = self.queries.iter().map(|query| query.capacity() + size_of::<Vec<u8>>()).sum::<usize>();
        let texts = [&self.token, &self.path, &self.payload].into_iter().chain(&self.host);
        texts.map(Vec::capacity).sum::<usize>() + queries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Talk, events, feed, json, torture};

    fn talk() -> Talk {
        let get =
            [&[0x42, 1, 0, 1, 0xaa, 0xbb, 0x31][..], b"h", &[0x81], b"a", &[0x02], b"bc", &[0x43], b"k=v"].concat();
        vec![
            (Way::ToServer, get),
            (Way::ToClient, vec![0x60, 0, 0, 1]),
            (Way::ToClient, [&[0x52, 0x45, 9, 9, 0xaa, 0xbb, 0xc1, 50, 0xff][..], b"{}"].concat()),
            (Way::ToServer, vec![0x40, 3, 0, 2, 0xb1, b'x', 0xff, 1]),
            (Way::ToClient, vec![0x70, 0, 0, 2]),
            (Way::ToClient, vec![0x52, 0x45, 9, 10, 0xaa, 0xbb, 0x61, 7, 0xff, 1]),
        ]
    }

    #[test]
    fn responses_find_their_requests() {
        let parser = feed(&PROTOCOL, Transport::Udp, &talk(), 0);
        assert_eq!(parser.range(), (0, 4));
        let text = json(&*parser, 0);
        assert!(
            text.contains(r#""code":"get","message_id":1,"token":"aabb","host":"h","path":"/a/bc","query":"k=v""#),
            "{text}"
        );
        assert!(text.contains(r#""response":{"type":"non","code":"content""#), "{text}");
        assert!(json(&*parser, 2).contains(r#""code":"put""#) && json(&*parser, 2).contains(r#""type":"rst""#));
        assert!(json(&*parser, 3).contains(r#""observe":7"#));
        let view = parser.transaction(0).and_then(|it| it.buffer(3, Way::ToClient, 0));
        assert_eq!(view.map(|view| view.data), Some(&b"{}"[..]));
    }

    #[test]
    fn lies_become_events() {
        for bytes in
            [&[0x49, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1][..], &[0x40, 1, 0, 1, 0xf1, 1], &[0x40, 1, 0, 1, 0xbd, 200]]
        {
            let parser = feed(&PROTOCOL, Transport::Udp, &vec![(Way::ToServer, bytes.to_vec())], 0);
            assert_eq!(events(&PROTOCOL, &*parser, 0), ["malformed"]);
        }
    }

    #[test]
    fn mutations_do_no_harm() {
        torture(&PROTOCOL, Transport::Udp, &talk(), 1 << 20);
    }
}
