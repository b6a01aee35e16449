//! CIP messages: ODVA volume 1, chapter 2 (messages), appendix A (services), appendix C (paths).

use crate::{Reader, Way};

/// CIP messages in one encapsulation: a multiple service packet that fits into a connection of 4000 bytes has fewer.
const MOST_CIP: usize = 128;
/// Segments of one path: its length is in words of a byte's count, but a path that means something has some ten.
const MOST_SEGMENTS: usize = 32;
/// A message may carry others (unconnected send, multiple service packet), and these may as well: deeper is refused.
const MOST_DEPTH: u8 = 3;

const MULTIPLE: u8 = 0x0a;
const UNCONNECTED_SEND: u8 = 0x52;
const CONNECTION_MANAGER: u32 = 6;
const RESPONSE: u8 = 0x80;

pub const SERVICES: &[(&str, u64)] = &[
    ("get_attributes_all", 0x01),
    ("set_attributes_all", 0x02),
    ("get_attribute_list", 0x03),
    ("set_attribute_list", 0x04),
    ("reset", 0x05),
    ("start", 0x06),
    ("stop", 0x07),
    ("create", 0x08),
    ("delete", 0x09),
    ("multiple_service", 0x0a),
    ("apply_attributes", 0x0d),
    ("get_attribute_single", 0x0e),
    ("set_attribute_single", 0x10),
    ("find_next_object_instance", 0x11),
    ("restore", 0x15),
    ("save", 0x16),
    ("no_op", 0x17),
    ("get_member", 0x18),
    ("set_member", 0x19),
    ("insert_member", 0x1a),
    ("remove_member", 0x1b),
    ("group_sync", 0x1c),
    ("execute_pccc", 0x4b),
    ("read_tag", 0x4c),
    ("write_tag", 0x4d),
    ("read_modify_write_tag", 0x4e),
    ("read_tag_fragmented", 0x52),
    ("write_tag_fragmented", 0x53),
    ("forward_open", 0x54),
    ("get_instance_attribute_list", 0x55),
    ("large_forward_open", 0x5b),
];

/// One CIP message.
#[derive(Debug, Default)]
pub struct Item {
    /// Without the bit that marks a response.
    pub service: u8,
    pub is_response: bool,
    pub classes: Vec<u32>,
    pub instances: Vec<u32>,
    pub attributes: Vec<u32>,
    pub symbols: Vec<Vec<u8>>,
    pub status: Option<u8>,
    pub extended: Option<u16>,
}

impl Item {
    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        let numbers = [&self.classes, &self.instances, &self.attributes];
        let symbols = self.symbols.iter().map(|symbol| symbol.capacity() + size_of::<Vec<u8>>());
        numbers.iter().map(|list| 4 * list.capacity()).sum::<usize>() + symbols.sum::<usize>()
    }
}

/// Read a CIP message and those in it; `None` where it is not one.
pub fn read(way: Way, data: &[u8], items: &mut Vec<Item>) -> Option<()> {
    read_nested(way, data, items, MOST_DEPTH)
}

fn read_nested(way: Way, data: &[u8], items: &mut Vec<Item>, depth: u8) -> Option<()> {
    let mut reader = Reader::new(data);
    let first = reader.u8()?;
    let mut item = Item { service: first & !RESPONSE, is_response: first & RESPONSE != 0, ..Item::default() };
    if item.is_response {
        reader.u8()?; // reserved
        item.status = Some(reader.u8()?);
        let words = usize::from(reader.u8()?);
        item.extended = reader.take(words * 2)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes));
    } else {
        let words = usize::from(reader.u8()?);
        read_path(reader.take(words * 2)?, &mut item)?;
        read_listed(&reader, &mut item);
    }
    let is_manager = item.classes.first() == Some(&CONNECTION_MANAGER);
    let (service, is_response) = (item.service, item.is_response);
    if items.len() >= MOST_CIP {
        return None;
    }
    items.push(item);
    match service {
        MULTIPLE => read_multiple(way, reader.rest(), items, depth.checked_sub(1)?),
        UNCONNECTED_SEND if !is_response && is_manager => {
            reader.take(2)?; // priority and timeout
            let length = usize::from(reader.le16()?);
            read_nested(way, reader.take(length)?, items, depth.checked_sub(1)?)
        }
        _ => Some(()),
    }
}

/// A list of offsets, and the messages that these point to: volume 1, appendix.
fn read_multiple(way: Way, data: &[u8], items: &mut Vec<Item>, depth: u8) -> Option<()> {
    let mut reader = Reader::new(data);
    let Some(count) = reader.le16() else { return Some(()) };
    let mut offsets = Vec::new();
    for _ in 0..usize::from(count).min(MOST_CIP) {
        offsets.push(usize::from(reader.le16()?));
    }
    for (index, from) in offsets.iter().enumerate() {
        let to = offsets.get(index + 1).copied().unwrap_or(data.len());
        // offsets that go back would let few bytes stand for many messages
        read_nested(way, data.get(*from..to)?, items, depth)?;
    }
    Some(())
}

/// Attributes that the list services name in their data and not in the path.
fn read_listed(reader: &Reader<'_>, item: &mut Item) {
    if !matches!(item.service, 0x03 | 0x04) {
        return;
    }
    let mut reader = *reader;
    let count = reader.le16().map_or(0, usize::from);
    // values of unknown lengths stand between the attributes of a setting
    let most = if item.service == 0x03 { count } else { count.min(1) };
    for _ in 0..most.min(MOST_SEGMENTS) {
        let Some(attribute) = reader.le16() else { return };
        item.attributes.push(u32::from(attribute));
    }
}

fn read_path(path: &[u8], item: &mut Item) -> Option<()> {
    let mut reader = Reader::new(path);
    let mut segments = 0;
    while reader.left() > 0 {
        segments += 1;
        if segments > MOST_SEGMENTS {
            return None;
        }
        let first = reader.u8()?;
        match first >> 5 {
            0 => read_port(first, &mut reader)?,
            1 => read_logical(first, &mut reader, item)?,
            4 if first == 0x91 => {
                let length = usize::from(reader.u8()?);
                item.symbols.push(reader.take(length)?.to_vec());
                reader.take(length % 2)?;
            }
            4 if first == 0x80 => {
                let words = usize::from(reader.u8()?);
                reader.take(words * 2)?;
            }
            3 => {
                let length = usize::from(first & 0x1f);
                item.symbols.push(reader.take(length)?.to_vec());
            }
            _ => return None,
        }
    }
    Some(())
}

/// Port segments: appendix C-1.4.1.
fn read_port(first: u8, reader: &mut Reader<'_>) -> Option<()> {
    let length = if first & 0x10 != 0 { usize::from(reader.u8()?) } else { 1 };
    if first & 0x0f == 0x0f {
        reader.le16()?;
    }
    reader.take(length)?;
    reader.take(if first & 0x10 != 0 { length % 2 } else { 0 })?;
    Some(())
}

/// Logical segments: appendix C-1.4.2.
fn read_logical(first: u8, reader: &mut Reader<'_>, item: &mut Item) -> Option<()> {
    if first == 0x34 {
        return reader.take(9).map(|_| ()); // an electronic key
    }
    let value = match first & 3 {
        0 => u32::from(reader.u8()?),
        1 => {
            reader.u8()?;
            u32::from(reader.le16()?)
        }
        2 => {
            reader.u8()?;
            reader.le32()?
        }
        _ => return None,
    };
    match first >> 2 & 7 {
        0 => item.classes.push(value),
        1 => item.instances.push(value),
        4 => item.attributes.push(value),
        _ => {}
    }
    Some(())
}
