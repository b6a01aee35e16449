//! What the points of each object group and variation consist of: IEEE 1815, Annex A.

use crate::{Json, Reader};

/// Names of a flags octet, lowest bit first.
type Flags = [&'static str; 8];

const BINARY: &Flags =
    &["online", "restart", "comm_lost", "remote_forced", "local_forced", "chatter_filter", "reserved", "state"];
const OUTPUT: &Flags =
    &["online", "restart", "comm_lost", "remote_forced", "local_forced", "reserved0", "reserved1", "state"];
const COUNTER: &Flags =
    &["online", "restart", "comm_lost", "remote_forced", "local_forced", "rollover", "discontinuity", "reserved0"];
const ANALOG: &Flags =
    &["online", "restart", "comm_lost", "remote_forced", "local_forced", "over_range", "reference_err", "reserved0"];

/// A field of a point.
#[derive(Clone, Copy, Debug)]
pub enum Field {
    Flags(&'static Flags),
    Unsigned(&'static str, usize),
    Signed(&'static str, usize),
    Float(&'static str),
    Double(&'static str),
    /// Operation type, queue, clear, trip-close code: table A-? of g12v1.
    ControlCode,
}

use Field::{ControlCode, Double, Float, Signed, Unsigned};

impl Field {
    const fn bytes(self) -> usize {
        match self {
            Field::Flags(_) | ControlCode => 1,
            Unsigned(_, bytes) | Signed(_, bytes) => bytes,
            Float(_) => 4,
            Double(_) => 8,
        }
    }
}

/// What a point looks like.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// There is none; the header says it all.
    Nothing,
    /// That many bits, packed.
    Bits(u8),
    /// Fields one after the other.
    Fields(&'static [Field]),
    /// A string of that many bytes.
    Octets(usize),
    /// A type, a length, and as many bytes: device attributes.
    Attribute,
}

impl Shape {
    /// The size of a point, where it is always the same.
    pub fn fixed(self) -> Option<usize> {
        match self {
            Shape::Nothing => Some(0),
            Shape::Bits(_) => Some(1),
            Shape::Fields(fields) => Some(fields.iter().map(|field| field.bytes()).sum()),
            Shape::Octets(bytes) => Some(bytes),
            Shape::Attribute => None,
        }
    }

    /// The size of the point at the reader's place.
    pub fn size(self, reader: &mut Reader<'_>) -> Option<usize> {
        self.fixed().or_else(|| reader.rest().get(1).map(|length| 2 + usize::from(*length)))
    }

    /// Write the members of a point; `nth` finds the bits of packed ones.
    pub fn log(self, json: &mut Json, bytes: &[u8], nth: usize) {
        match self {
            Shape::Nothing => {}
            Shape::Bits(width) => {
                let bit = nth.saturating_mul(usize::from(width));
                let byte = bytes.get(bit / 8).copied().unwrap_or(0);
                json.number("state", u64::from(byte >> (bit % 8) & ((1 << width) - 1)));
            }
            Shape::Fields(fields) => {
                let mut reader = Reader::new(bytes);
                fields.iter().for_each(|field| log_field(json, *field, reader.take(field.bytes()).unwrap_or_default()));
            }
            Shape::Octets(_) => json.hex("data", bytes),
            Shape::Attribute => {
                json.number("data_type_code", u64::from(bytes.first().copied().unwrap_or(0)));
                json.text("data", bytes.get(2..).unwrap_or_default());
            }
        }
    }
}

fn log_field(json: &mut Json, field: Field, bytes: &[u8]) {
    let raw = bytes.iter().rev().take(8).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    match field {
        Field::Flags(names) => {
            (0..).zip(names).for_each(|(bit, name)| json.number(name, raw >> bit & 1));
        }
        ControlCode => {
            let parts = [("op_type", 0, 15), ("qu", 4, 1), ("cr", 5, 1), ("tcc", 6, 3)];
            parts.iter().for_each(|(name, shift, mask)| json.number(name, raw >> shift & mask));
        }
        Unsigned(name, _) => json.number(name, raw),
        Signed(name, width) => {
            let shift = 64_usize.saturating_sub(8 * width);
            json.signed(name, (raw << shift) as i64 >> shift);
        }
        Float(name) => json.float(name, f64::from(f32::from_bits(raw as u32))),
        Double(name) => json.float(name, f64::from_bits(raw)),
    }
}

const TIME: Field = Unsigned("timestamp", 6);
const STATUS: Field = Unsigned("control_status", 1);

macro_rules! fields {
    ($($field:expr),*) => { Some(Shape::Fields(const { &[$($field),*] })) };
}

/// Return the shape of a group's variation; `None` where it is not known here.
pub fn of(group: u8, variation: u8) -> Option<Shape> {
    match (group, variation) {
        (0, _) => Some(Shape::Attribute),
        (1 | 10 | 80, 1) => Some(Shape::Bits(1)),
        (3, 1) => Some(Shape::Bits(2)),
        (1..=4, _) => binary(group, variation),
        (10, 2) | (11, 1) => fields!(Field::Flags(OUTPUT)),
        (11, 2) => fields!(Field::Flags(OUTPUT), TIME),
        (12, 1 | 2) => fields!(
            ControlCode,
            Unsigned("count", 1),
            Unsigned("ontime", 4),
            Unsigned("offtime", 4),
            Unsigned("status_code", 1)
        ),
        (12, 3) => Some(Shape::Bits(1)),
        (13, 1) => fields!(STATUS),
        (13, 2) => fields!(STATUS, TIME),
        (20..=23, _) => counter(group, variation),
        (30..=33 | 40 | 42, _) => analog(group, variation),
        (34, 1) => fields!(Unsigned("deadband_value", 2)),
        (34, 2) => fields!(Unsigned("deadband_value", 4)),
        (34, 3) => fields!(Float("deadband_value")),
        (41, 1) => fields!(Signed("value", 4), STATUS),
        (41, 2) => fields!(Signed("value", 2), STATUS),
        (41, 3) => fields!(Float("value"), STATUS),
        (41, 4) => fields!(Double("value"), STATUS),
        (43, 1) => fields!(STATUS, Signed("value", 4)),
        (43, 2) => fields!(STATUS, Signed("value", 2)),
        (43, 3) => fields!(STATUS, Signed("value", 4), TIME),
        (43, 4) => fields!(STATUS, Signed("value", 2), TIME),
        (43, 5) => fields!(STATUS, Float("value")),
        (43, 6) => fields!(STATUS, Double("value")),
        (50, 1 | 3) | (51, 1 | 2) => fields!(TIME),
        (50, 2) => fields!(TIME, Unsigned("interval", 4)),
        (50, 4) => fields!(TIME, Unsigned("interval_count", 4), Unsigned("interval_units", 1)),
        (52, 1) => fields!(Unsigned("delay_secs", 2)),
        (52, 2) => fields!(Unsigned("delay_ms", 2)),
        (60, _) => Some(Shape::Nothing),
        (101, 1) => fields!(Unsigned("data_value", 2)),
        (101, 2) => fields!(Unsigned("data_value", 4)),
        (101, 3) => fields!(Unsigned("data_value", 8)),
        (102, 1) => fields!(Unsigned("value", 1)),
        (110 | 111 | 113, bytes) => Some(Shape::Octets(usize::from(bytes))),
        (112, bytes) => Some(Shape::Octets(usize::from(bytes))),
        (120, 3) => fields!(Unsigned("csq", 4), Unsigned("usr", 2)),
        (120, 4) => fields!(Unsigned("user_number", 2)),
        (121, 1) => fields!(Field::Flags(COUNTER), Unsigned("assoc_id", 2), Unsigned("count_value", 4)),
        (122, 1) => fields!(Field::Flags(COUNTER), Unsigned("assoc_id", 2), Unsigned("count_value", 4)),
        (122, 2) => fields!(Field::Flags(COUNTER), Unsigned("assoc_id", 2), Unsigned("count_value", 4), TIME),
        _ => None,
    }
}

fn binary(group: u8, variation: u8) -> Option<Shape> {
    match (group, variation) {
        (1 | 3, 2) | (2 | 4, 1) => fields!(Field::Flags(BINARY)),
        (2 | 4, 2) => fields!(Field::Flags(BINARY), TIME),
        (2 | 4, 3) => fields!(Field::Flags(BINARY), Unsigned("timestamp", 2)),
        _ => None,
    }
}

fn counter(group: u8, variation: u8) -> Option<Shape> {
    const FLAGS: Field = Field::Flags(COUNTER);
    match (group, variation) {
        (_, 1 | 3) => fields!(FLAGS, Unsigned("count", 4)),
        (_, 2 | 4) => fields!(FLAGS, Unsigned("count", 2)),
        (20, 5 | 7) | (21, 9 | 11) => fields!(Unsigned("count", 4)),
        (20, 6 | 8) | (21, 10 | 12) => fields!(Unsigned("count", 2)),
        (21..=23, 5 | 7) => fields!(FLAGS, Unsigned("count", 4), TIME),
        (21..=23, 6 | 8) => fields!(FLAGS, Unsigned("count", 2), TIME),
        _ => None,
    }
}

fn analog(group: u8, variation: u8) -> Option<Shape> {
    const FLAGS: Field = Field::Flags(ANALOG);
    match (group, variation) {
        (30 | 31 | 32 | 33 | 40 | 42, 1) => fields!(FLAGS, Signed("value", 4)),
        (30 | 31 | 32 | 33 | 40 | 42, 2) => fields!(FLAGS, Signed("value", 2)),
        (30, 3) | (31, 5) => fields!(Signed("value", 4)),
        (30, 4) | (31, 6) => fields!(Signed("value", 2)),
        (30 | 32 | 33 | 42, 5) | (31, 7) | (40, 3) => fields!(FLAGS, Float("value")),
        (30 | 32 | 33 | 42, 6) | (31, 8) | (40, 4) => fields!(FLAGS, Double("value")),
        (31 | 32 | 33 | 42, 3) => fields!(FLAGS, Signed("value", 4), TIME),
        (31 | 32 | 33 | 42, 4) => fields!(FLAGS, Signed("value", 2), TIME),
        (32 | 33 | 42, 7) => fields!(FLAGS, Float("value"), TIME),
        (32 | 33 | 42, 8) => fields!(FLAGS, Double("value"), TIME),
        _ => None,
    }
}
