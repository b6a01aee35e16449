//! A cursor over a complete message: whoever reads past its end has met a length that lies.

use super::Stop;

/// Bytes not read yet.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(pub &'a [u8]);

/// What reading past the end of a complete message means.
const SHORT: Stop = Stop::Malformed("a length inside the message exceeds it");

impl<'a> Reader<'a> {
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(SHORT)?;
        self.0 = rest;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*head)
    }

    pub fn u8(&mut self) -> Result<u8, Stop> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16, Stop> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, Stop> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// A number of `count` bytes (at most 4), the lowest first.
    pub fn little(&mut self, count: usize) -> Result<u32, Stop> {
        Ok(self.take(count)?.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn finish(&self, what: &'static str) -> Result<(), Stop> {
        if self.0.is_empty() { Ok(()) } else { Err(Stop::Malformed(what)) }
    }
}
