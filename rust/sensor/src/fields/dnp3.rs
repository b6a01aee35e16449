//! DNP3 requests of a master: IEEE 1815-2012, clauses 4 (application), 8 (transport function), 9 (data link).
//!
//! A fragment is judged whole, over all link frames that carry it. Frames that carry no user data are judged alone.
//! In UDP, a fragment must lie in one datagram.

use super::patterns::Span;
use super::reader::Reader;
use super::rules::{Facts, Field, Key, Rule};
use super::{Stop, Verdict, malformed, whole};

/// What outstations must take at least and rarely exceed: IEEE 1815, 4.2.3.
const MAX_FRAGMENT: usize = 2048;
/// Frames of one fragment with all their checksums: 2048 bytes in full frames take 9 of 292 bytes; twice that for
/// masters that do not fill them.
const MAX_HELD: usize = 2 * 9 * 292;

const HEADER: usize = 10;
const START: [u8; 2] = [0x05, 0x64];
const FROM_MASTER: u8 = 0x80;
const PRIMARY: u8 = 0x40;
const FINAL: u8 = 0x80;
const FIRST: u8 = 0x40;

/// A frame of the data link layer without its checksums.
struct Frame {
    wire: usize,
    has_user_data: bool,
    destination: u16,
    source: u16,
    data: Vec<u8>,
}

/// Judge one link frame without user data, or all frames of one application fragment.
pub fn judge(rule: &Rule, bytes: &[u8]) -> Result<Verdict, Stop> {
    let first = read_frame(bytes)?;
    let facts = Facts::default().with(Key::Sources, first.source).with(Key::Destinations, first.destination);
    if !first.has_user_data {
        return Ok(Verdict::of(first.wire, judge_link(rule, facts)));
    }
    let (wire, fragment) = read_fragment(bytes, first)?;
    Ok(Verdict::of(wire, judge_fragment(rule, &fragment, facts)?))
}

/// Keep-alives and resets of the link run nothing in the outstation: addresses alone decide.
fn judge_link(rule: &Rule, mut facts: Facts<'_>) -> Option<String> {
    facts.set(Key::Functions, Field::Exempt);
    facts.set(Key::Objects, Field::Exempt);
    rule.refuses(&facts)
}

fn read_frame(bytes: &[u8]) -> Result<Frame, Stop> {
    if bytes.iter().zip(START).any(|(is, due)| *is != due) {
        return malformed("dnp3: no start of a frame");
    }
    let header = whole(bytes, HEADER)?;
    let mut fields = Reader(&header[2..]);
    let (length, control) = (usize::from(fields.u8()?), fields.u8()?);
    let (destination, source) = (fields.little(2)? as u16, fields.little(2)? as u16);
    if checksum(&header[..8]) != header[8..] {
        return malformed("dnp3: the header's checksum is wrong");
    }
    let Some(user_bytes) = length.checked_sub(5) else { return malformed("dnp3: a length below 5") };
    let has_user_data = check_control(control, user_bytes)?;
    let wire = HEADER + user_bytes + 2 * user_bytes.div_ceil(16);
    let frame = whole(bytes, wire)?;
    let mut data = Vec::with_capacity(user_bytes);
    for block in frame[HEADER..].chunks(18) {
        let (content, sum) = block.split_at(block.len().saturating_sub(2));
        if checksum(content) != *sum {
            return malformed("dnp3: a block's checksum is wrong");
        }
        data.extend_from_slice(content);
    }
    Ok(Frame { wire, has_user_data, destination, source, data })
}

/// Whether the frame carries user data: tables 9-1 and 9-2.
fn check_control(control: u8, user_bytes: usize) -> Result<bool, Stop> {
    if control & FROM_MASTER == 0 {
        return malformed("dnp3: a frame of an outstation where a master's is due");
    }
    match (control & PRIMARY != 0, control & 0x0f) {
        (true, 3 | 4) if user_bytes >= 2 => Ok(true),
        (true, 3 | 4) => malformed("dnp3: user data without any"),
        (true, 0 | 2 | 9) | (false, 0 | 1 | 11 | 15) if user_bytes == 0 => Ok(false),
        (true, 0 | 2 | 9) | (false, 0 | 1 | 11 | 15) => malformed("dnp3: user data in a frame that has none"),
        _ => malformed("dnp3: a link function that does not exist"),
    }
}

/// Checksum of a block as it stands on the wire: IEEE 1815, 9.2.4.4 (CRC-16/DNP).
pub(super) fn checksum(block: &[u8]) -> [u8; 2] {
    let mut sum = 0_u16;
    for byte in block {
        sum ^= u16::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0xa6bc } else { sum >> 1 };
        }
    }
    (!sum).to_le_bytes()
}

/// Join the segments of one fragment: from the same master to the same outstation, in order, nothing in between.
fn read_fragment(bytes: &[u8], first: Frame) -> Result<(usize, Vec<u8>), Stop> {
    let (source, destination) = (first.source, first.destination);
    let (mut wire, mut fragment, mut frame) = (0, Vec::new(), first);
    let mut due = frame.data[0] & 0x3f;
    loop {
        let (transport, segment) = (frame.data[0], &frame.data[1..]);
        if !frame.has_user_data || frame.source != source || frame.destination != destination {
            return malformed("dnp3: another frame inside a fragment");
        }
        if (transport & FIRST != 0) != fragment.is_empty() || transport & 0x3f != due {
            return malformed("dnp3: segments out of order");
        }
        wire += frame.wire;
        fragment.extend_from_slice(segment);
        if fragment.len() > MAX_FRAGMENT || wire > MAX_HELD {
            return malformed("dnp3: a fragment of more than 2048 bytes");
        }
        if transport & FINAL != 0 {
            return Ok((wire, fragment));
        }
        due = (due + 1) & 0x3f;
        frame = read_frame(&bytes[wire..])?;
        if frame.data.is_empty() {
            return malformed("dnp3: another frame inside a fragment");
        }
    }
}

fn judge_fragment(rule: &Rule, fragment: &[u8], facts: Facts<'_>) -> Result<Option<String>, Stop> {
    let mut reader = Reader(fragment);
    let (control, function) = (reader.u8()?, reader.u8()?);
    if function > 128 {
        return malformed("dnp3: an answer where a request is due");
    }
    if control & 0xc0 != 0xc0 {
        return malformed("dnp3: a request of several fragments"); // 4.2.2.4.1: requests have one
    }
    if control & 0x10 != 0 && function != 0 {
        return malformed("dnp3: an unsolicited request");
    }
    let mut facts = facts.with(Key::Functions, function);
    if reader.is_empty() {
        return Ok(rule.refuses(&facts));
    }
    let mut refused = None;
    while !reader.is_empty() {
        let (group, known) = read_header(function, &mut reader)?;
        facts.set(Key::Objects, Field::One(Span::one(group)));
        refused = refused.or_else(|| rule.refuses(&facts));
        if !known {
            facts.set(Key::Objects, Field::Unknown); // the next header cannot be found
            return Ok(refused.or_else(|| rule.refuses(&facts)));
        }
    }
    Ok(refused)
}

/// Read an object header and the objects after it: its group, and whether their end is known (4.2.2.7).
fn read_header(function: u8, reader: &mut Reader<'_>) -> Result<(u8, bool), Stop> {
    let (group, variation, qualifier) = (reader.u8()?, reader.u8()?, reader.u8()?);
    let (prefix, range) = (qualifier >> 4, qualifier & 0x0f);
    let count = match range {
        0..=2 => count_of_range(reader, 1 << range)?,
        3..=5 => count_of_range(reader, 1 << (range - 3))?,
        6 if prefix == 0 => return Ok((group, true)),
        7..=9 => u64::from(reader.little(1 << (range - 7))?),
        11 if prefix == 5 => u64::from(reader.u8()?),
        _ => return malformed("dnp3: a qualifier that does not exist"),
    };
    let is_range = range < 6;
    match prefix {
        0 => skip_bare(function, [group, variation], count, reader),
        1..=3 if !is_range => {
            let Some(size) = size_of(function, group, variation) else { return give_up(group, reader) };
            skip(reader, count * u64::from(size + (1 << (prefix - 1))))?;
            Ok((group, true))
        }
        4..=6 if !is_range => {
            for _ in 0..count.min(MAX_FRAGMENT as u64 + 1) {
                let size = reader.little(1 << (prefix - 4))?;
                skip(reader, u64::from(size))?;
            }
            Ok((group, true))
        }
        _ => malformed("dnp3: a qualifier that does not exist"),
    }
}

fn count_of_range(reader: &mut Reader<'_>, width: usize) -> Result<u64, Stop> {
    let (start, stop) = (u64::from(reader.little(width)?), u64::from(reader.little(width)?));
    match stop.checked_sub(start) {
        Some(more) => Ok(more + 1),
        None => malformed("dnp3: a range that ends before it begins"),
    }
}

fn skip(reader: &mut Reader<'_>, bytes: u64) -> Result<(), Stop> {
    reader.take(usize::try_from(bytes).unwrap_or(usize::MAX))?;
    Ok(())
}

fn give_up(group: u8, reader: &mut Reader<'_>) -> Result<(u8, bool), Stop> {
    reader.take(reader.0.len())?;
    Ok((group, false))
}

/// Objects without an index each: bits are packed, eight to the byte.
fn skip_bare(function: u8, kind: [u8; 2], count: u64, reader: &mut Reader<'_>) -> Result<(u8, bool), Stop> {
    let [group, variation] = kind;
    let bytes = match kind {
        _ if !carries_objects(function, group) => 0,
        [1 | 10 | 80, 1] | [12, 3] => count.div_ceil(8),
        [3, 1] => count.div_ceil(4),
        _ => match size_of(function, group, variation) {
            Some(size) => count * u64::from(size),
            None => return give_up(group, reader),
        },
    };
    skip(reader, bytes)?;
    Ok((group, true))
}

/// Whether a request's headers are followed by objects; the others only name points (annex A, per function code).
fn carries_objects(function: u8, group: u8) -> bool {
    match function {
        2..=6 | 25..=33 => true,
        11 | 12 => group == 50, // when to freeze; the headers after it say what
        34.. => true,           // not known: then its objects are not, either
        _ => false,
    }
}

/// Bytes of an object in a request, without its index; None if that is not known.
fn size_of(function: u8, group: u8, variation: u8) -> Option<u32> {
    if !carries_objects(function, group) {
        return Some(0);
    }
    if function >= 34 {
        return None;
    }
    match (group, variation) {
        (60, _) => Some(0),
        (12, 1 | 2) => Some(11),
        (10, 2) => Some(1),
        (41, 1 | 3) => Some(5),
        (41, 2) => Some(3),
        (41, 4) => Some(9),
        (34, 1) => Some(2),
        (34, 2 | 3) => Some(4),
        (50, 1) => Some(6),
        (50, 2) => Some(10),
        (50, 4) => Some(11),
        (51, 1 | 2) => Some(6),
        (52, 1 | 2) => Some(2),
        (101, 1) => Some(2),
        (101, 2) => Some(4),
        (101, 3) => Some(8),
        (102, 1) => Some(1),
        (110, size) if size > 0 => Some(u32::from(size)), // the variation of a string is its length
        _ => None,
    }
}
