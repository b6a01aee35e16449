//! Object headers and points: IEEE 1815, sections 4.2.2.7 (headers) and 11.

use super::event;
use super::shapes::{self, Shape};
use crate::framed::Events;
use crate::{Json, Reader};

/// Objects of one fragment that are read: a fragment of 2048 bytes has room for some 500 bare headers.
const MOST_OBJECTS: usize = 256;
/// Points of one fragment that may be claimed: 2048 bytes of single bits.
const MOST_POINTS: u64 = 16 << 10;
/// Points of one fragment that are logged; what is beyond stands in `count` alone.
const MOST_LOGGED: usize = 256;

/// One object header, and where its points are in the fragment.
#[derive(Debug)]
pub struct Object {
    pub group: u8,
    pub variation: u8,
    qualifier: u8,
    start: u32,
    stop: u32,
    count: u32,
    from: usize,
    to: usize,
    has_points: bool,
}

impl Object {
    fn prefix_code(&self) -> u8 {
        self.qualifier >> 4 & 7
    }

    fn range_code(&self) -> u8 {
        self.qualifier & 0x0f
    }

    /// Read a header: group, variation, qualifier, range.
    fn read(reader: &mut Reader<'_>) -> Option<Object> {
        let (group, variation, qualifier) = (reader.u8()?, reader.u8()?, reader.u8()?);
        let mut object =
            Object { group, variation, qualifier, start: 0, stop: 0, count: 0, from: 0, to: 0, has_points: false };
        match object.range_code() {
            code @ 0..=5 => {
                let width = 1 << (code % 3);
                (object.start, object.stop) = (little(reader, width)?, little(reader, width)?);
                object.count = object.stop.checked_sub(object.start)?.checked_add(1)?;
            }
            6 => {}
            code @ 7..=9 => object.count = little(reader, 1 << (code - 7))?,
            0x0b => object.count = little(reader, 1)?,
            _ => return None,
        }
        Some(object)
    }

    /// How long the prefix of each point is, and whether it tells the point's size.
    fn prefix(&self) -> Option<(usize, bool)> {
        match self.prefix_code() {
            0 => Some((0, false)),
            code @ 1..=3 => Some((1 << (code - 1), false)),
            code @ 4..=6 => Some((1 << (code - 4), true)),
            _ => None,
        }
    }

    /// Pass over the points. False: nobody knows how long they are.
    fn pass_over(&self, reader: &mut Reader<'_>) -> Option<bool> {
        let (prefix, is_size) = self.prefix()?;
        let shape = if self.has_points { shapes::of(self.group, self.variation) } else { Some(Shape::Nothing) };
        if let (Some(Shape::Bits(width)), 0) = (shape, prefix) {
            let bytes = (u64::from(self.count) * u64::from(width)).div_ceil(8);
            reader.take(usize::try_from(bytes).ok()?)?;
            return Some(true);
        }
        if prefix == 0 && shape.is_some_and(|shape| shape.fixed() == Some(0)) {
            return Some(true);
        }
        for _ in 0..self.count {
            let value = little(reader, prefix)?;
            let size = match shape {
                _ if is_size => usize::try_from(value).ok()?,
                Some(shape) => match shape.size(reader) {
                    Some(size) => size,
                    None => return Some(false),
                },
                None => return Some(false),
            };
            reader.take(size)?;
        }
        Some(true)
    }
}

/// Read a number of `width` bytes (0 to 4), least significant first.
fn little(reader: &mut Reader<'_>, width: usize) -> Option<u32> {
    let bytes = reader.take(width)?;
    Some(bytes.iter().rev().fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte)))
}

/// Functions whose object headers are followed by values: section 4.4. In others they only say what is meant.
fn has_points(function: u8) -> bool {
    matches!(function, 2..=6 | 11 | 12 | 25..=30 | 31..=33 | 129..=131)
}

/// Read the objects of a fragment from `at`; true if they are all there.
pub fn read(data: &[u8], at: usize, function: u8, events: &mut Events) -> (Vec<Object>, bool) {
    let mut objects = Vec::new();
    let mut reader = Reader::new(data);
    let mut points = 0_u64;
    let _ = reader.take(at);
    while reader.left() > 0 {
        if objects.len() >= MOST_OBJECTS {
            events.add(event::TOO_MANY_OBJECTS);
            return (objects, false);
        }
        let Some(mut object) = Object::read(&mut reader) else {
            events.add(event::MALFORMED);
            return (objects, false);
        };
        points = points.saturating_add(u64::from(object.count));
        if points > MOST_POINTS {
            events.add(event::TOO_MANY_POINTS);
            objects.push(object);
            return (objects, false);
        }
        object.has_points = has_points(function) && object.range_code() != 6;
        object.from = reader.position();
        let passed = object.pass_over(&mut reader);
        object.to = if passed == Some(true) { reader.position() } else { object.from };
        objects.push(object);
        match passed {
            Some(true) => {}
            Some(false) => {
                events.add(event::UNKNOWN_OBJECT);
                return (objects, false);
            }
            None => {
                events.add(event::MALFORMED);
                return (objects, false);
            }
        }
    }
    (objects, true)
}

/// Write objects as elements of an array.
pub fn log(json: &mut Json, objects: &[Object], data: &[u8]) {
    let mut budget = MOST_LOGGED;
    for object in objects {
        json.open_element();
        json.number("group", u64::from(object.group));
        json.number("variation", u64::from(object.variation));
        json.number("qualifier", u64::from(object.qualifier));
        json.number("prefix_code", u64::from(object.prefix_code()));
        json.number("range_code", u64::from(object.range_code()));
        json.number("start", u64::from(object.start));
        json.number("stop", u64::from(object.stop));
        json.number("count", u64::from(object.count));
        if object.to > object.from && budget > 0 {
            json.open_array("points");
            let points = data.get(object.from..object.to).unwrap_or_default();
            budget = budget.saturating_sub(log_points(json, object, points, budget).unwrap_or(budget));
            json.close_array();
        }
        json.close();
    }
}

fn log_points(json: &mut Json, object: &Object, points: &[u8], budget: usize) -> Option<usize> {
    let mut reader = Reader::new(points);
    let (width, is_size) = object.prefix()?;
    let shape = if object.has_points { shapes::of(object.group, object.variation) } else { Some(Shape::Nothing) };
    let most = usize::try_from(object.count).ok()?.min(budget);
    for nth in 0..most {
        let prefix = little(&mut reader, width)?;
        let place = u32::try_from(nth).ok()?.saturating_add(object.start);
        let bytes = match shape {
            _ if is_size => reader.take(usize::try_from(prefix).ok()?)?,
            Some(Shape::Bits(_)) => points,
            Some(shape) => {
                let size = shape.size(&mut reader)?;
                reader.take(size)?
            }
            None => return Some(nth),
        };
        json.open_element();
        json.number("prefix", u64::from(prefix));
        json.number("index", u64::from(if width > 0 && !is_size { prefix } else { place }));
        if let Some(shape) = shape {
            shape.log(json, bytes, nth);
        }
        json.close();
    }
    Some(most)
}
