//! S7 communication of SIMATIC controllers, over TPKT (RFC 1006) and COTP (ISO 8073): a job and its answer are one
//! transaction. Of S7comm-plus (protocol 0x72), only that it is spoken.
//!
//! There is no public specification; names are those that the field's tools use.
//! Read first: this file (transport layers, tables for rules), then `message.rs`.

use crate::framed::{Dialect, Frame, Framed, buffer, buffers, number, numbers};
use crate::pair::{Pair, records, sort};
use crate::{
    BufferInfo, COMPLETE, Custom, KeywordInfo, NumberInfo, ParseError, Probe, Protocol, Reader, RecordInfo, Start,
    Transaction, Transactions, Transport, Way, Ways,
};

mod message;
mod names;
#[cfg(test)]
mod tests;

use message::{Message, function};

/// RFC 1006: version, reserved, length.
const TPKT_BYTES: usize = 4;
/// The smallest TPDU: a length and a type and a number.
const LEAST_TPKT: u16 = 7;
/// A PDU put together from TPDUs: controllers negotiate 240 to 960 bytes, S7comm-plus goes beyond.
const MOST_PDU: usize = 16 << 10;

mod event {
    pub const FLOODED: u8 = 0;
    pub const MALFORMED: u8 = 1;
    pub const TOO_LONG_REASSEMBLY: u8 = 2;
}

static BUFFERS: [BufferInfo; 4] =
    [buffer("s7.data"), buffer("s7.pi_service"), buffer("s7.block"), buffers("s7.item_data")];

static NUMBERS: [NumberInfo; 12] = [
    number("s7.rosctr", 8, names::ROSCTR),
    number("s7.function", 8, names::FUNCTIONS),
    numbers("s7.area", 8, names::AREAS),
    numbers("s7.db", 16, &[]),
    numbers("s7.address", 32, &[]),
    numbers("s7.length", 16, &[]),
    number("s7.userdata_group", 8, names::GROUPS),
    number("s7.userdata_subfunction", 8, &[]),
    number("s7.error_class", 8, &[]),
    number("s7.error_code", 8, &[]),
    number("s7.protocol_id", 8, &[("s7comm", 0x32), ("s7comm_plus", 0x72)]),
    number("s7.pdu_reference", 16, &[]),
];

static RECORDS: [RecordInfo; 2] = records("s7comm");

const fn flag(keyword: &'static str, parse: fn(&str) -> Result<Box<dyn Custom>, String>) -> KeywordInfo {
    KeywordInfo { keyword, aliases: &[], ways: Ways::ToServer, progress: COMPLETE, parse }
}

/// S7comm.
pub static PROTOCOL: Protocol = Protocol {
    name: "s7comm",
    aliases: &["s7"],
    transports: &[Transport::Tcp],
    ports: &[102],
    probe,
    parser: |_, transport| Box::new(Framed::new(S7::default(), transport)),
    buffers: &BUFFERS,
    numbers: &NUMBERS,
    keywords: &[
        flag("s7.plc_stop", |argument| functions(argument, function::PLC_STOP, function::PLC_STOP)),
        flag("s7.plc_control", |argument| functions(argument, function::PI_SERVICE, function::PI_SERVICE)),
        flag("s7.program_transfer", |argument| functions(argument, function::REQUEST_DOWNLOAD, function::END_UPLOAD)),
    ],
    states: &[],
    records: &RECORDS,
    events: &["flooded", "malformed", "too_long_reassembly"],
};

/// What a TPKT carries.
struct Tpdu<'a> {
    kind: u8,
    is_last: bool,
    data: &'a [u8],
}

impl<'a> Tpdu<'a> {
    fn read(data: &'a [u8]) -> Option<Tpdu<'a>> {
        let mut reader = Reader::new(data);
        let (version, _, length) = (reader.u8()?, reader.u8()?, reader.be16()?);
        let mut body = Reader::new(reader.take(usize::from(length).checked_sub(TPKT_BYTES)?)?);
        let header_length = usize::from(body.u8()?);
        let header = body.take(header_length)?;
        let (kind, last) = (header.first()? & 0xf0, header.get(1).copied());
        let is_right = version == 3 && matches!(kind, 0xd0 | 0xe0 | 0xf0 | 0x80 | 0x70);
        is_right.then_some(Tpdu { kind, is_last: last.is_none_or(|last| last & 0x80 != 0), data: body.rest() })
    }
}

/// COTP carries other protocols as well (MMS, T.125): the first data decides.
fn probe(start: &Start<'_>) -> Probe {
    let mut rest = start.data;
    // connection request or confirmation, then data
    for _ in 0..4 {
        let Some(length) = rest.get(2..4).and_then(|bytes| Reader::new(bytes).be16()) else {
            let is_possible = rest.iter().zip([3, 0]).all(|(byte, due)| *byte == due);
            return if is_possible { Probe::More } else { Probe::No };
        };
        let Some(whole) = rest.get(..usize::from(length)) else {
            return if rest.starts_with(&[3, 0]) && length >= LEAST_TPKT { more(start, rest) } else { Probe::No };
        };
        match Tpdu::read(whole) {
            Some(Tpdu { kind: 0xe0 | 0xd0, .. }) => {}
            Some(Tpdu { kind: 0xf0, data: [0x32, 1..=3 | 7, ..] | [0x72, ..], .. }) => return direction(start, whole),
            _ => return Probe::No,
        }
        rest = rest.get(usize::from(length)..).unwrap_or_default();
        if rest.is_empty() {
            return Probe::More;
        }
    }
    Probe::No
}

/// The beginning of a long data TPDU is enough.
fn more(start: &Start<'_>, rest: &[u8]) -> Probe {
    match rest.get(4..) {
        Some([2, 0xf0, _, 0x32, 1..=3 | 7, ..] | [2, 0xf0, _, 0x72, ..]) => direction(start, rest),
        Some([2, 0xf0, _, 0x32] | [2, 0xf0, _] | [2, 0xf0] | [2] | []) | None => Probe::More,
        Some([_, 0xe0 | 0xd0, ..] | [_]) => Probe::More,
        _ => Probe::No,
    }
}

fn direction(start: &Start<'_>, tpkt: &[u8]) -> Probe {
    let is_answer = matches!(tpkt.get(7..9), Some([0x32, 2 | 3]));
    if is_answer && start.way == Way::ToServer { Probe::YesReversed } else { Probe::Yes }
}

/// A PDU that is not all there, by way.
#[derive(Default)]
struct S7 {
    open: [Vec<u8>; 2],
}

impl Dialect for S7 {
    type Unit = Pair<Message>;
    const FLOODED: Option<u8> = Some(event::FLOODED);
    const RESUMES: bool = true;

    fn frame(&mut self, _way: Way, data: &[u8]) -> Result<Frame, ParseError> {
        let Some(length) = data.get(2..4).and_then(|bytes| Reader::new(bytes).be16()) else { return Ok(Frame::More) };
        if data.first() != Some(&3) || length < LEAST_TPKT {
            return Err(ParseError("not TPKT"));
        }
        Ok(Frame::Message(u64::from(length)))
    }

    fn read(
        &mut self,
        way: Way,
        bytes: &[u8],
        _is_cut: bool,
        units: &mut Transactions<Pair<Message>>,
    ) -> Result<(), ParseError> {
        let tpdu = Tpdu::read(bytes).ok_or(ParseError("not COTP"))?;
        let Some(open) = self.open.get_mut(way as usize).filter(|_| tpdu.kind == 0xf0) else { return Ok(()) };
        if open.len() + tpdu.data.len() > MOST_PDU {
            let message = Message::read(open);
            open.clear();
            return message.map_or(Ok(()), |it| sort(units, way, it, Some(event::TOO_LONG_REASSEMBLY)));
        }
        open.extend_from_slice(tpdu.data);
        if !tpdu.is_last || open.is_empty() {
            return Ok(());
        }
        let message = Message::read(open).ok_or(ParseError("neither S7comm nor S7comm-plus"))?;
        open.clear();
        let problem = (!message.is_right).then_some(event::MALFORMED);
        sort(units, way, message, problem)
    }

    fn begins(&self, data: &[u8]) -> bool {
        matches!(data, [3, 0, _, _, 2, 0xf0, _, 0x32 | 0x72, ..])
    }

    fn lose(&mut self, way: Way) {
        if let Some(open) = self.open.get_mut(way as usize) {
            open.clear();
        }
    }

    fn heap_bytes(&self) -> usize {
        self.open.iter().map(Vec::capacity).sum()
    }
}

/// A job with a function between these.
struct Functions {
    first: u8,
    last: u8,
}

fn functions(argument: &str, first: u8, last: u8) -> Result<Box<dyn Custom>, String> {
    if argument.is_empty() { Ok(Box::new(Functions { first, last })) } else { Err("it has no argument".to_owned()) }
}

impl Custom for Functions {
    fn matches(&self, transaction: &dyn Transaction, way: Way) -> bool {
        let pair = transaction.as_any().downcast_ref::<Pair<Message>>();
        let job = pair.and_then(|pair| pair.side(way)).filter(|message| message.is_job());
        job.and_then(|job| job.function).is_some_and(|is| (self.first..=self.last).contains(&is))
    }
}
