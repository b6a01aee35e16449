//! Reading DER (ITU-T X.690), as much of it as certificates need. Nothing here recurses.

use crate::Reader;

pub const INTEGER: u8 = 0x02;
pub const BIT_STRING: u8 = 0x03;
pub const OCTET_STRING: u8 = 0x04;
pub const OID: u8 = 0x06;
pub const UTC_TIME: u8 = 0x17;
pub const GENERALIZED_TIME: u8 = 0x18;
pub const BMP_STRING: u8 = 0x1e;
pub const UNIVERSAL_STRING: u8 = 0x1c;
pub const SEQUENCE: u8 = 0x30;
pub const SET: u8 = 0x31;

/// Elements one after the other.
#[derive(Clone, Copy)]
pub struct Der<'a> {
    reader: Reader<'a>,
}

impl<'a> Der<'a> {
    pub fn new(data: &'a [u8]) -> Der<'a> {
        Der { reader: Reader::new(data) }
    }

    /// Return the next element's tag.
    pub fn tag(&self) -> Option<u8> {
        self.reader.rest().first().copied()
    }

    /// Read the next element: its tag and its contents.
    pub fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let mut reader = self.reader;
        let tag = reader.u8()?;
        if tag & 0x1f == 0x1f {
            return None; // certificates have no tags of several bytes
        }
        let length = match reader.u8()? {
            short @ 0..=0x7f => usize::from(short),
            0x81 => usize::from(reader.u8()?),
            0x82 => usize::from(reader.be16()?),
            0x83 => usize::try_from(reader.be24()?).ok()?,
            _ => return None, // indefinite, or larger than any message
        };
        let contents = reader.take(length)?;
        self.reader = reader;
        Some((tag, contents))
    }

    /// Read the next element's contents if its tag is `tag`; else do not move.
    pub fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        if self.tag()? != tag {
            return None;
        }
        self.next().map(|(_, contents)| contents)
    }
}

/// Write an object identifier with dots.
pub fn dotted(oid: &[u8]) -> String {
    let mut text = String::new();
    let mut value: u64 = 0;
    for &byte in oid {
        value = value.wrapping_shl(7) | u64::from(byte & 0x7f);
        if byte & 0x80 != 0 {
            continue;
        }
        if text.is_empty() {
            let first = (value / 40).min(2);
            text = format!("{first}.{}", value - first * 40);
        } else {
            text.push('.');
            text.push_str(&value.to_string());
        }
        value = 0;
    }
    text
}
