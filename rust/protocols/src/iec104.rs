//! IEC 60870-5-104: each APDU is a transaction of its own, as confirmations name what they confirm only by its content.

use crate::framed::{Dialect, Frame, Framed, buffer, cut, log_named, number, numbers};
use crate::pair::{Pair, Said, records, sort};
use crate::{
    BufferInfo, Json, NumberInfo, ParseError, Probe, Protocol, Reader, RecordInfo, Start, Transactions, Transport, Way,
};

mod types;

use types::{CAUSES, TYPES, U_FUNCTIONS};

const START: u8 = 0x68;
/// Section 5: the control field alone, and an APDU of 255 bytes less the first two.
const LEAST_LENGTH: u8 = 4;
const MOST_LENGTH: u8 = 253;
/// Information objects of one ASDU: seven bits count them.
const MOST_OBJECTS: usize = 127;

mod event {
    pub const FLOODED: u8 = 0;
    pub const MALFORMED: u8 = 1;
}

const FORMATS: &[(&str, u64)] = &[("i", 0), ("s", 1), ("u", 3)];

static BUFFERS: [BufferInfo; 1] = [buffer("iec104.data")];

static NUMBERS: [NumberInfo; 9] = [
    number("iec104.type_id", 8, TYPES),
    number("iec104.cause", 8, CAUSES),
    number("iec104.common_address", 16, &[]),
    numbers("iec104.ioa", 32, &[]),
    number("iec104.apci", 8, FORMATS),
    number("iec104.u_function", 8, U_FUNCTIONS),
    number("iec104.negative", 8, &[("no", 0), ("yes", 1)]),
    number("iec104.test", 8, &[("no", 0), ("yes", 1)]),
    number("iec104.originator", 8, &[]),
];

static RECORDS: [RecordInfo; 2] = records("iec104");

/// IEC 60870-5-104.
pub static PROTOCOL: Protocol = Protocol {
    name: "iec104",
    aliases: &[],
    transports: &[Transport::Tcp],
    ports: &[2404],
    probe,
    parser: |_, transport| Box::new(Framed::new(Iec104, transport)),
    buffers: &BUFFERS,
    numbers: &NUMBERS,
    keywords: &[],
    states: &[],
    records: &RECORDS,
    events: &["flooded", "malformed"],
};

fn probe(start: &Start<'_>) -> Probe {
    let (Some(first), length) = (start.data.first(), start.data.get(1).copied()) else { return Probe::More };
    let is_length = length.is_none_or(|length| (LEAST_LENGTH..=MOST_LENGTH).contains(&length));
    if *first != START || !is_length {
        return Probe::No;
    }
    let Some(whole) = length.and_then(|length| start.data.get(..usize::from(length) + 2)) else { return Probe::More };
    let Some(apdu) = Apdu::read(whole).filter(|apdu| apdu.is_right) else { return Probe::No };
    // STARTDT or TESTFR in six bytes of which four are fixed is as good as a port
    if start.is_usual_port || apdu.format == 3 { Probe::Yes } else { Probe::No }
}

struct Iec104;

impl Dialect for Iec104 {
    type Unit = Pair<Apdu>;
    const FLOODED: Option<u8> = Some(event::FLOODED);
    const RESUMES: bool = true;

    fn begins(&self, data: &[u8]) -> bool {
        matches!(data, [START, LEAST_LENGTH..=MOST_LENGTH, ..])
    }

    fn frame(&mut self, _way: Way, data: &[u8]) -> Result<Frame, ParseError> {
        match data {
            [START, length, ..] if *length >= LEAST_LENGTH => Ok(Frame::Message(u64::from(*length) + 2)),
            [START] => Ok(Frame::More),
            _ => Err(ParseError("no start of an APDU")),
        }
    }

    fn read(
        &mut self,
        way: Way,
        bytes: &[u8],
        _is_cut: bool,
        units: &mut Transactions<Pair<Apdu>>,
    ) -> Result<(), ParseError> {
        let apdu = Apdu::read(bytes).ok_or(ParseError("no control field"))?;
        let problem = (!apdu.is_right).then_some(event::MALFORMED);
        sort(units, way, apdu, problem)
    }
}

#[derive(Debug, Default)]
struct Apdu {
    format: u8,
    u_function: Option<u8>,
    type_id: Option<u8>,
    cause: u8,
    originator: u8,
    common_address: u16,
    objects: Vec<u32>,
    data: Vec<u8>,
    is_right: bool,
}

impl Apdu {
    fn read(bytes: &[u8]) -> Option<Apdu> {
        let mut reader = Reader::new(bytes);
        let (_start, length) = (reader.u8()?, reader.u8()?);
        let control = reader.array::<4>()?;
        let format = if control[0] & 1 == 0 { 0 } else { control[0] & 3 };
        let mut apdu = Apdu { format, ..Apdu::default() };
        let is_length = usize::from(length) + 2 == bytes.len() && length <= MOST_LENGTH;
        let read = match format {
            0 => apdu.read_asdu(&mut reader),
            1 => (length == LEAST_LENGTH && control[1] == 0).then_some(()),
            _ => {
                apdu.u_function = Some(control[0]);
                let is_known = U_FUNCTIONS.iter().any(|(_, value)| *value == u64::from(control[0]));
                (length == LEAST_LENGTH && is_known && control[1..] == [0, 0, 0]).then_some(())
            }
        };
        apdu.is_right = is_length && read.is_some();
        Some(apdu)
    }

    /// Type, number of objects, cause of two bytes, common address of two, object addresses of three: clause 7.1.
    fn read_asdu(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        self.data = cut(reader.rest(), usize::from(MOST_LENGTH));
        let (type_id, qualifier) = (reader.u8()?, reader.u8()?);
        self.type_id = Some(type_id);
        (self.cause, self.originator) = (reader.u8()?, reader.u8()?);
        self.common_address = reader.le16()?;
        let count = usize::from(qualifier & 0x7f).min(MOST_OBJECTS);
        if qualifier & 0x80 != 0 {
            // a sequence: one address, and elements of the addresses behind it
            let first = address(reader)?;
            let last = first.saturating_add(u32::try_from(count).ok()?);
            self.objects.extend(first..last);
            return types::size(type_id).is_none_or(|size| reader.left() == size * count).then_some(());
        }
        for _ in 0..count {
            self.objects.push(address(reader)?);
            match types::size(type_id) {
                Some(size) => reader.take(size).map(|_| ())?,
                None => return Some(()),
            }
        }
        (reader.left() == 0).then_some(())
    }

    fn flag(&self, bit: u8) -> bool {
        self.cause & bit != 0
    }
}

fn address(reader: &mut Reader<'_>) -> Option<u32> {
    let [low, middle, high] = reader.array()?;
    Some(u32::from_le_bytes([low, middle, high, 0]))
}

impl Said for Apdu {
    const NAME: &'static str = "iec104";
    const IS_PAIRED: bool = false;

    fn buffer(&self, index: usize, nth: usize) -> Option<&[u8]> {
        (index == 0 && nth == 0 && self.format == 0).then_some(self.data.as_slice())
    }

    fn number(&self, index: usize, nth: usize) -> Option<u64> {
        let type_id = self.type_id.map(u64::from);
        match index {
            3 => return self.objects.get(nth).map(|object| u64::from(*object)),
            _ if nth > 0 => return None,
            4 => return Some(u64::from(self.format)),
            5 => return self.u_function.map(u64::from),
            0 => return type_id,
            _ => {}
        }
        type_id?;
        match index {
            1 => Some(u64::from(self.cause & 0x3f)),
            2 => Some(u64::from(self.common_address)),
            6 => Some(u64::from(self.flag(0x40))),
            7 => Some(u64::from(self.flag(0x80))),
            8 => Some(u64::from(self.originator)),
            _ => None,
        }
    }

    fn log(&self, json: &mut Json) {
        log_named(json, "apci", FORMATS, u64::from(self.format));
        if let Some(function) = self.u_function {
            log_named(json, "u_function", U_FUNCTIONS, u64::from(function));
        }
        if let Some(type_id) = self.type_id {
            log_named(json, "type", TYPES, u64::from(type_id));
            json.number("type_id", u64::from(type_id));
            log_named(json, "cause", CAUSES, u64::from(self.cause & 0x3f));
            json.flag("negative", self.flag(0x40));
            json.flag("test", self.flag(0x80));
            json.number("originator", u64::from(self.originator));
            json.number("common_address", u64::from(self.common_address));
            json.open_array("ioa");
            self.objects.iter().for_each(|object| json.number_element(u64::from(*object)));
            json.close_array();
        }
    }

    fn is_logged(&self) -> bool {
        self.format != 1 // acknowledgements say nothing
    }

    fn heap_bytes(&self) -> usize {
        self.data.capacity() + 4 * self.objects.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Talk, events, feed, json, torture};

    fn i(asdu: &[u8]) -> Vec<u8> {
        [&[START, asdu.len() as u8 + 4, 2, 0, 4, 0][..], asdu].concat()
    }

    fn talk() -> Talk {
        vec![
            (Way::ToServer, vec![START, 4, 7, 0, 0, 0]),
            (Way::ToClient, vec![START, 4, 11, 0, 0, 0]),
            (Way::ToServer, i(&[100, 1, 6, 0, 1, 0, 0, 0, 0, 20])),
            (Way::ToClient, i(&[1, 0x83, 20, 0, 1, 0, 5, 1, 0, 1, 0, 1])),
            (Way::ToServer, i(&[45, 2, 0x46, 3, 2, 1, 9, 0, 0, 1, 10, 0, 1, 0])),
            (Way::ToServer, vec![START, 4, 1, 0, 2, 0]),
        ]
    }

    #[test]
    fn what_it_says_is_told() {
        let parser = feed(&PROTOCOL, Transport::Tcp, &talk(), usize::MAX);
        assert_eq!(parser.range(), (0, 6));
        assert_eq!(json(&*parser, 0), r#""iec104":{"apci":"u","u_function":"startdt_act"}"#);
        let text = json(&*parser, 3);
        assert!(text.contains(r#""type":"m_sp_na_1","type_id":1,"cause":"interrogated_by_station""#), "{text}");
        assert!(text.contains(r#""ioa":[261,262,263]"#), "{text}");
        let text = json(&*parser, 4);
        assert!(
            text.contains(r#""cause":"activation","negative":true,"test":false,"originator":3,"common_address":258"#)
        );
        assert!(text.contains(r#""ioa":[9,65546]"#), "{text}");
        assert!((0..6).all(|id| events(&PROTOCOL, &*parser, id).is_empty()));
        let number = |id: u64, index, nth| parser.transaction(id).and_then(|it| it.number(index, Way::ToServer, nth));
        assert_eq!((number(2, 0, 0), number(4, 3, 1), number(4, 6, 0)), (Some(100), Some(65546), Some(1)));
    }

    #[test]
    fn lies_become_events() {
        for bytes in [i(&[45, 2, 6, 0, 1, 0, 9, 0, 0, 1]), i(&[1]), vec![START, 4, 0x47, 0, 0, 0]] {
            let parser = feed(&PROTOCOL, Transport::Tcp, &vec![(Way::ToServer, bytes)], usize::MAX);
            assert_eq!(events(&PROTOCOL, &*parser, 0), ["malformed"]);
        }
    }

    #[test]
    fn cuts_and_mutations_do_no_harm() {
        torture(&PROTOCOL, Transport::Tcp, &talk(), 1 << 20);
    }
}
