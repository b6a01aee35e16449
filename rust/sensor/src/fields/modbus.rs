//! Modbus requests: MODBUS Application Protocol V1.1b3, MODBUS Messaging on TCP/IP V1.0b.

use super::patterns::Span;
use super::reader::Reader;
use super::rules::{Facts, Field, Key, Rule};
use super::{Stop, Verdict, malformed, whole};

/// Transaction, protocol and length fields: what stands before the bytes that the length counts.
const PREFIX: usize = 6;
/// A unit identifier and a PDU of at most 253 bytes: Messaging on TCP/IP, section 4.1.
const MAX_LENGTH: usize = 254;
const ADDRESSES: u32 = 0x1_0000;

// Most that one request may ask for: Application Protocol, section 6
const MAX_READ_BITS: u16 = 2000;
const MAX_READ_WORDS: u16 = 125;
const MAX_WRITE_BITS: u16 = 1968;
const MAX_WRITE_WORDS: u16 = 123;
const MAX_EXCHANGE_WORDS: u16 = 121;
const MAX_FILE_BYTES: u8 = 0xf5;

/// Judge one request; the same frames travel in UDP datagrams.
pub fn judge(rule: &Rule, bytes: &[u8]) -> Result<Verdict, Stop> {
    let mut header = Reader(whole(bytes, PREFIX)?);
    let (_transaction, protocol, length) = (header.u16()?, header.u16()?, usize::from(header.u16()?));
    if protocol != 0 {
        return malformed("modbus: the protocol identifier is not 0");
    }
    if !(2..=MAX_LENGTH).contains(&length) {
        return malformed("modbus: the length field is not within 2 to 254");
    }
    let frame = whole(bytes, PREFIX + length)?;
    let mut body = Reader(&frame[PREFIX..]);
    let (unit, function) = (body.u8()?, body.u8()?);
    let mut facts = Facts::default().with(Key::Units, unit).with(Key::Functions, function);
    read_request(function, &mut body, &mut facts)?;
    body.finish("modbus: bytes after the request")?;
    Ok(Verdict::of(frame.len(), rule.refuses(&facts)))
}

fn read_request(function: u8, body: &mut Reader<'_>, facts: &mut Facts<'_>) -> Result<(), Stop> {
    facts.set(Key::Values, Field::Exempt); // until something is written
    match function {
        1 | 2 => access(body, MAX_READ_BITS, facts),
        3 | 4 => access(body, MAX_READ_WORDS, facts),
        5 => {
            facts.set(Key::Registers, Field::One(Span::one(body.u16()?)));
            let value = match body.u16()? {
                0 => 0_u8,
                0xff00 => 1,
                _ => return malformed("modbus: a coil is neither on nor off"),
            };
            facts.set(Key::Values, Field::One(Span::one(value)));
            Ok(())
        }
        6 => {
            facts.set(Key::Registers, Field::One(Span::one(body.u16()?)));
            facts.set(Key::Values, Field::One(Span::one(body.u16()?)));
            Ok(())
        }
        7 | 11 | 12 | 17 => Ok(()),
        8 => diagnostics(body),
        15 => write_coils(body, facts),
        16 => {
            let (span, count) = span(body, MAX_WRITE_WORDS)?;
            facts.set(Key::Registers, Field::One(span));
            facts.set(Key::Values, words(body, count)?);
            Ok(())
        }
        20 => file_references(body, facts),
        21 => file_records(body, facts),
        22 => mask_write(body, facts),
        23 => {
            let (read, _) = span(body, MAX_READ_WORDS)?;
            let (written, count) = span(body, MAX_EXCHANGE_WORDS)?;
            facts.set(Key::Registers, Field::Many(vec![written, read]));
            facts.set(Key::Values, words(body, count)?);
            Ok(())
        }
        24 => {
            facts.set(Key::Registers, Field::One(Span::one(body.u16()?)));
            Ok(())
        }
        43 => encapsulated(body, facts),
        0 => malformed("modbus: function 0 does not exist"),
        128.. => malformed("modbus: an answer where a request is due"),
        // user-defined and reserved functions: what they touch is not known
        _ => opaque(body, facts),
    }
}

fn opaque(body: &mut Reader<'_>, facts: &mut Facts<'_>) -> Result<(), Stop> {
    facts.set(Key::Registers, Field::Unknown);
    facts.set(Key::Values, Field::Unknown);
    body.take(body.0.len())?;
    Ok(())
}

/// The first address, the count, and the span of both, which must not leave the address space.
fn span(body: &mut Reader<'_>, most: u16) -> Result<(Span, u16), Stop> {
    let (first, count) = (u32::from(body.u16()?), body.u16()?);
    let end = first + u32::from(count);
    if count == 0 || count > most || end > ADDRESSES {
        return malformed("modbus: a count that the function does not have");
    }
    Ok((Span { first, last: end - 1 }, count))
}

fn access(body: &mut Reader<'_>, most: u16, facts: &mut Facts<'_>) -> Result<(), Stop> {
    facts.set(Key::Registers, Field::One(span(body, most)?.0));
    Ok(())
}

fn words(body: &mut Reader<'_>, count: u16) -> Result<Field<Span>, Stop> {
    if u16::from(body.u8()?) != count * 2 {
        return malformed("modbus: byte count and register count disagree");
    }
    (0..count).map(|_| body.u16().map(Span::one)).collect::<Result<Vec<Span>, Stop>>().map(Field::Many)
}

fn write_coils(body: &mut Reader<'_>, facts: &mut Facts<'_>) -> Result<(), Stop> {
    let (span, count) = span(body, MAX_WRITE_BITS)?;
    let bytes = body.u8()?;
    if u16::from(bytes) != count.div_ceil(8) {
        return malformed("modbus: byte count and coil count disagree");
    }
    let bits = body.take(usize::from(bytes))?;
    let (mut any_on, mut any_off) = (false, false);
    for place in 0..usize::from(count) {
        let on = bits[place / 8] >> (place % 8) & 1 == 1;
        any_on |= on;
        any_off |= !on;
    }
    if let (rest @ 1.., Some(last)) = (count % 8, bits.last())
        && last >> rest != 0
    {
        return malformed("modbus: bits after the last coil are not zero");
    }
    facts.set(Key::Registers, Field::One(span));
    facts.set(Key::Values, Field::One(Span { first: u32::from(!any_off), last: u32::from(any_on) }));
    Ok(())
}

/// The result is (old AND mask) OR (or-mask AND NOT mask): known only if nothing of the old value stays.
fn mask_write(body: &mut Reader<'_>, facts: &mut Facts<'_>) -> Result<(), Stop> {
    let (address, and_mask, or_mask) = (body.u16()?, body.u16()?, body.u16()?);
    facts.set(Key::Registers, Field::One(Span::one(address)));
    facts.set(Key::Values, if and_mask == 0 { Field::One(Span::one(or_mask)) } else { Field::Unknown });
    Ok(())
}

/// Sub-function 0 echoes any number of words, the others take one.
fn diagnostics(body: &mut Reader<'_>) -> Result<(), Stop> {
    let sub_function = body.u16()?;
    let bytes = body.0.len();
    if !bytes.is_multiple_of(2) || bytes == 0 || (sub_function != 0 && bytes != 2) {
        return malformed("modbus: a diagnostic request of odd length");
    }
    body.take(bytes)?;
    Ok(())
}

/// Which registers a file's records are is the device's own matter.
fn file_references(body: &mut Reader<'_>, facts: &mut Facts<'_>) -> Result<(), Stop> {
    let bytes = body.u8()?;
    if bytes == 0 || !bytes.is_multiple_of(7) || bytes > MAX_FILE_BYTES {
        return malformed("modbus: a byte count that is no number of file references");
    }
    let mut references = Reader(body.take(usize::from(bytes))?);
    while !references.is_empty() {
        file_reference(&mut references)?;
    }
    facts.set(Key::Registers, Field::Unknown);
    Ok(())
}

fn file_records(body: &mut Reader<'_>, facts: &mut Facts<'_>) -> Result<(), Stop> {
    let bytes = body.u8()?;
    if bytes < 9 {
        return malformed("modbus: a byte count that holds no file record");
    }
    let (mut records, mut values) = (Reader(body.take(usize::from(bytes))?), Vec::new());
    while !records.is_empty() {
        for _ in 0..file_reference(&mut records)? {
            values.push(Span::one(records.u16()?));
        }
    }
    facts.set(Key::Registers, Field::Unknown);
    facts.set(Key::Values, Field::Many(values));
    Ok(())
}

/// Reference type 6, file, record, length: the length.
fn file_reference(references: &mut Reader<'_>) -> Result<u16, Stop> {
    let (kind, _file, _record, length) = (references.u8()?, references.u16()?, references.u16()?, references.u16()?);
    if kind != 6 || length == 0 {
        return malformed("modbus: a file reference of another type, or of nothing");
    }
    Ok(length)
}

/// MEI type 14 reads the identification; 13 carries CANopen, and the others are reserved.
fn encapsulated(body: &mut Reader<'_>, facts: &mut Facts<'_>) -> Result<(), Stop> {
    if body.u8()? != 14 {
        return opaque(body, facts);
    }
    let (code, _object) = (body.u8()?, body.u8()?);
    if !(1..=4).contains(&code) {
        return malformed("modbus: a device identification code that does not exist");
    }
    Ok(())
}
