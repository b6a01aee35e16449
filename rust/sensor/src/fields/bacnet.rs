//! BACnet/IP requests: ANSI/ASHRAE 135-2020, annex J (BVLL), clauses 6 (network layer) and 20 (application layer).
//!
//! A message has one number: the confirmed services, and blocks of 256 for each other kind (docs/formats/fields.md).

use super::patterns::Span;
use super::reader::Reader;
use super::rules::{Facts, Field, Key, Rule};
use super::{Stop, Verdict, malformed, whole};

/// The largest APDU (1476), an NPDU with both addresses, and the BVLL of a forwarded message: J.2.
const MAX_MESSAGE: usize = 1600;
const MAX_NESTING: usize = 8; // of constructed values: more than any standard property has

const UNCONFIRMED: u32 = 0x100;
const BVLC: u32 = 0x200;
const NETWORK: u32 = 0x300;
const ANSWER: u32 = 0x400;

const ALL: u32 = 8;
const OPTIONAL: u32 = 80;
const REQUIRED: u32 = 105;

/// Judge one message; a datagram has exactly one.
pub fn judge(rule: &Rule, bytes: &[u8], datagram: bool) -> Result<Verdict, Stop> {
    let mut header = Reader(whole(bytes, 4)?);
    let (kind, function, length) = (header.u8()?, header.u8()?, usize::from(header.u16()?));
    if kind != 0x81 {
        return malformed("bacnet: not BACnet/IP");
    }
    if !(4..=MAX_MESSAGE).contains(&length) || (datagram && length != bytes.len()) {
        return malformed("bacnet: the length field is not the message's");
    }
    let message = whole(bytes, length)?;
    let mut body = Reader(&message[4..]);
    let refused = match function {
        0x09..=0x0b => judge_npdu(rule, body)?,
        0x04 => {
            body.take(6)?; // the origin
            judge_npdu(rule, body)?
        }
        0x00..=0x08 => rule.refuses(&Facts::default().with(Key::Services, BVLC + u32::from(function))),
        _ => return malformed("bacnet: a BVLC function that cannot be read"),
    };
    Ok(Verdict::of(length, refused))
}

fn judge_npdu(rule: &Rule, mut body: Reader<'_>) -> Result<Option<String>, Stop> {
    let (version, control) = (body.u8()?, body.u8()?);
    if version != 1 || control & 0x50 != 0 {
        return malformed("bacnet: another network layer, or reserved bits");
    }
    if control & 0x20 != 0 {
        let (network, length) = (body.u16()?, body.u8()?);
        body.take(usize::from(length))?;
        if network == 0 {
            return malformed("bacnet: a destination network that does not exist");
        }
    }
    if control & 0x08 != 0 {
        let (network, length) = (body.u16()?, body.u8()?);
        body.take(usize::from(length))?;
        if network == 0 || network == 0xffff || length == 0 {
            return malformed("bacnet: a source address that does not exist");
        }
    }
    if control & 0x20 != 0 {
        body.u8()?; // hop count
    }
    if control & 0x80 != 0 {
        let kind = u32::from(body.u8()?);
        return Ok(rule.refuses(&Facts::default().with(Key::Services, NETWORK + kind)));
    }
    judge_apdu(rule, body)
}

fn judge_apdu(rule: &Rule, mut body: Reader<'_>) -> Result<Option<String>, Stop> {
    let first = body.u8()?;
    let facts = Facts::default();
    match first >> 4 {
        0 if first & 0x0c != 0 => malformed("bacnet: a segmented request"),
        0 if first & 0x01 != 0 => malformed("bacnet: reserved bits of a request"),
        0 => {
            let [_sizes, _invoke, service] = body.array()?;
            judge_confirmed(rule, service, body)
        }
        1 if first & 0x0f != 0 => malformed("bacnet: reserved bits of a request"),
        1 => {
            let service = body.u8()?;
            let mut facts = facts.with(Key::Services, UNCONFIRMED + u32::from(service));
            // who-is and the time have no object; all others may
            if !matches!(service, 6 | 8 | 9) {
                facts.set(Key::Objects, Field::Unknown);
                facts.set(Key::Properties, Field::Unknown);
            }
            Ok(rule.refuses(&facts))
        }
        // a client's own part in receiving an answer: the next segment, or no more of it
        4 if first == 0x40 || first == 0x42 => body_end(body, 3).map(|()| None),
        7 if first == 0x70 => body_end(body, 2).map(|()| None),
        kind @ 2..=7 => Ok(rule.refuses(&facts.with(Key::Services, ANSWER + u32::from(kind)))),
        _ => malformed("bacnet: an APDU type that does not exist"),
    }
}

fn body_end(body: Reader<'_>, bytes: usize) -> Result<(), Stop> {
    if body.0.len() == bytes { Ok(()) } else { malformed("bacnet: bytes after the message") }
}

fn judge_confirmed(rule: &Rule, service: u8, mut body: Reader<'_>) -> Result<Option<String>, Stop> {
    let mut judge = Judge { rule, facts: Facts::default().with(Key::Services, service), refused: None };
    match service {
        // ReadProperty, AddListElement, RemoveListElement, WriteProperty, ReadRange
        8 | 9 | 12 | 15 | 26 => {
            let object = read_object(&mut body, 0)?;
            let property = read_number(&mut body, 1, 3)?;
            optional_number(&mut body, 2)?;
            match service {
                12 => {}
                26 if body.is_empty() => {}
                _ => skip_constructed(&mut body)?,
            }
            if service == 15 {
                optional_number(&mut body, 4)?;
            }
            judge.access(object, property);
        }
        14 => read_multiple(&mut body, &mut judge)?,
        16 => write_multiple(&mut body, &mut judge)?,
        // SubscribeCOV, SubscribeCOVProperty
        5 | 28 => {
            read_number(&mut body, 0, 4)?;
            let object = read_object(&mut body, 1)?;
            optional_number(&mut body, 2)?;
            optional_number(&mut body, 3)?;
            if service == 5 {
                judge.object(object, Field::Exempt); // which properties it reports is the object's own matter
            } else {
                open(&mut body, 4)?;
                let property = read_number(&mut body, 0, 4)?;
                optional_number(&mut body, 1)?;
                close(&mut body, 4)?;
                optional_number(&mut body, 5)?;
                judge.access(object, property);
            }
        }
        // DeviceCommunicationControl, ReinitializeDevice, GetAlarmSummary, GetEventInformation: no object
        3 | 17 | 20 | 29 => return Ok(rule.refuses(&judge.facts)),
        _ => {
            judge.facts.set(Key::Objects, Field::Unknown);
            judge.facts.set(Key::Properties, Field::Unknown);
            return Ok(rule.refuses(&judge.facts));
        }
    }
    body.finish("bacnet: bytes after the request")?;
    Ok(judge.refused)
}

struct Judge<'a> {
    rule: &'a Rule,
    facts: Facts<'static>,
    refused: Option<String>,
}

impl Judge<'_> {
    fn access(&mut self, object: u32, property: u32) {
        let span = Span::one(property);
        let many = matches!(property, ALL | OPTIONAL | REQUIRED);
        self.object(object, if many { Field::Vague(span) } else { Field::One(span) });
    }

    fn object(&mut self, object: u32, property: Field<Span>) {
        self.facts.set(Key::Objects, Field::One(Span::one(object >> 22)));
        self.facts.set(Key::Properties, property);
        if self.refused.is_none() {
            self.refused = self.rule.refuses(&self.facts);
        }
    }
}

fn read_multiple(body: &mut Reader<'_>, judge: &mut Judge<'_>) -> Result<(), Stop> {
    while !body.is_empty() {
        let object = read_object(body, 0)?;
        open(body, 1)?;
        loop {
            let property = read_number(body, 0, 4)?;
            optional_number(body, 1)?;
            judge.access(object, property);
            if closes(body, 1)? {
                break;
            }
        }
    }
    if judge.facts_are_bare() { malformed("bacnet: a request for nothing") } else { Ok(()) }
}

fn write_multiple(body: &mut Reader<'_>, judge: &mut Judge<'_>) -> Result<(), Stop> {
    while !body.is_empty() {
        let object = read_object(body, 0)?;
        open(body, 1)?;
        loop {
            let property = read_number(body, 0, 4)?;
            optional_number(body, 1)?;
            if !matches!(peek(body), Some(tag) if tag == opening(2)) {
                return malformed("bacnet: a property without a value");
            }
            skip_constructed(body)?;
            optional_number(body, 3)?;
            judge.access(object, property);
            if closes(body, 1)? {
                break;
            }
        }
    }
    if judge.facts_are_bare() { malformed("bacnet: a request for nothing") } else { Ok(()) }
}

impl Judge<'_> {
    fn facts_are_bare(&self) -> bool {
        self.facts.is_absent(Key::Objects)
    }
}

fn opening(tag: u8) -> u8 {
    tag << 4 | 0x0e
}

fn closing(tag: u8) -> u8 {
    tag << 4 | 0x0f
}

fn peek(body: &Reader<'_>) -> Option<u8> {
    body.0.first().copied()
}

fn open(body: &mut Reader<'_>, tag: u8) -> Result<(), Stop> {
    if body.u8()? == opening(tag) { Ok(()) } else { malformed("bacnet: another tag than the service has") }
}

fn close(body: &mut Reader<'_>, tag: u8) -> Result<(), Stop> {
    if body.u8()? == closing(tag) { Ok(()) } else { malformed("bacnet: another tag than the service has") }
}

/// Whether the constructed value ends here; then its end is read.
fn closes(body: &mut Reader<'_>, tag: u8) -> Result<bool, Stop> {
    if peek(body) == Some(closing(tag)) { body.u8().map(|_| true) } else { Ok(false) }
}

/// A context-tagged number of 1 to `most` bytes.
fn read_number(body: &mut Reader<'_>, tag: u8, most: usize) -> Result<u32, Stop> {
    let first = body.u8()?;
    let length = usize::from(first & 0x07);
    if first & 0xf8 != tag << 4 | 0x08 || !(1..=most).contains(&length) {
        return malformed("bacnet: another tag than the service has");
    }
    Ok(body.take(length)?.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
}

fn read_object(body: &mut Reader<'_>, tag: u8) -> Result<u32, Stop> {
    if peek(body) != Some(tag << 4 | 0x0c) {
        return malformed("bacnet: an object identifier that is not of four bytes");
    }
    read_number(body, tag, 4)
}

fn optional_number(body: &mut Reader<'_>, tag: u8) -> Result<(), Stop> {
    match peek(body) {
        Some(first) if first & 0xf8 == tag << 4 | 0x08 && first & 0x07 <= 4 => read_number(body, tag, 4).map(|_| ()),
        _ => Ok(()),
    }
}

/// Skip one constructed value, from its opening tag to the closing tag of the same number: 20.2.1.
fn skip_constructed(body: &mut Reader<'_>) -> Result<(), Stop> {
    let mut open_tags = [0_u8; MAX_NESTING];
    let mut depth = 0;
    loop {
        let first = body.u8()?;
        let number = if first >> 4 == 0x0f { body.u8()? } else { first >> 4 };
        match first & 0x0f {
            0x0e => {
                let Some(slot) = open_tags.get_mut(depth) else { return malformed("bacnet: values nested too deep") };
                *slot = number;
                depth += 1;
            }
            0x0f if depth > 0 && open_tags[depth - 1] == number => depth -= 1,
            _ if depth == 0 => return malformed("bacnet: a value that is not between tags"),
            0x0f => return malformed("bacnet: a closing tag of another value"),
            _ => skip_primitive(body, first, number)?,
        }
        if depth == 0 {
            return Ok(());
        }
    }
}

/// Length of a value's content: 20.2.1.3. An application-tagged boolean has its value there, and no content.
fn skip_primitive(body: &mut Reader<'_>, first: u8, number: u8) -> Result<(), Stop> {
    let is_boolean = first & 0x08 == 0 && number == 1;
    let length = match first & 0x07 {
        0 | 1 if is_boolean => 0,
        length @ 0..=4 => u32::from(length),
        5 => match body.u8()? {
            254 => u32::from(body.u16()?),
            255 => body.u32()?,
            length => u32::from(length),
        },
        _ => return malformed("bacnet: a length that does not exist"),
    };
    body.take(usize::try_from(length).unwrap_or(usize::MAX))?;
    Ok(())
}
