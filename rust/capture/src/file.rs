//! Capture files, read as a stream through one bounded buffer.
//!
//! Sources: draft-ietf-opsawg-pcap (pcap) and draft-ietf-opsawg-pcapng (pcapng). A file that ends inside a record or
//! holds a record that cannot be is read up to there; the end says which it was.

use std::io::{self, Read};

use sensor::{Direction, Frame, Link};

use crate::error::CaptureError;

/// The largest captured length that libpcap itself writes or accepts (`MAXIMUM_SNAPLEN`).
pub const MAX_RECORD_BYTES: usize = 262_144;
/// A record, its header and the options that may follow; well below the ring's share of the smallest memory number.
const BUFFER_BYTES: usize = MAX_RECORD_BYTES + 65_536;
/// Interfaces of one pcapng section whose descriptions we keep; captures have a handful.
const MAX_INTERFACES: usize = 256;

/// One step through a file.
pub enum Record<'a> {
    /// A frame that the sensor has a decoder for.
    Frame(Frame<'a>),
    /// A frame of another link type.
    UnsupportedLink,
    /// Nothing more follows.
    End(FileEnd),
}

/// How a file ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileEnd {
    /// After a whole record.
    Whole,
    /// Inside a record, or at one that cannot be: what came before was read.
    Truncated,
}

#[derive(Clone, Copy)]
struct Interface {
    link: Option<Link>,
    ticks: Ticks,
}

/// The unit of a timestamp: so many in a second, never 0.
#[derive(Clone, Copy)]
struct Ticks(u64);

impl Ticks {
    #[inline]
    fn micros(self, ticks: u64) -> u64 {
        match self.0 {
            1_000_000 => ticks.min(LATEST_US),
            rate => (u128::from(ticks) * 1_000_000 / u128::from(rate)).min(u128::from(LATEST_US)) as u64,
        }
    }
}

/// The year 5138: later times are a broken field, and sums with this one cannot overflow.
const LATEST_US: u64 = 100_000_000_000 * 1_000_000;

enum Format {
    Pcap { header_bytes: usize, interface: Interface },
    Pcapng { interfaces: Vec<Interface> },
}

/// A capture file being read.
pub struct CaptureFile<R> {
    window: Window<R>,
    format: Format,
    big_endian: bool,
    ended: Option<FileEnd>,
}

impl<R: Read> CaptureFile<R> {
    /// Read the file's header, or say that this is no capture.
    pub fn open(source: R) -> Result<CaptureFile<R>, CaptureError> {
        let mut window = Window::new(source);
        let Some(magic) = window.peek(4)?.and_then(|bytes| bytes.first_chunk::<4>().copied()) else {
            return Err(CaptureError::NotACapture);
        };
        let (big_endian, format) = match magic {
            [0x0a, 0x0d, 0x0d, 0x0a] => (false, Format::Pcapng { interfaces: Vec::new() }),
            _ => {
                let (big_endian, format, link_type) = parse_pcap_header(&mut window, magic)?;
                (big_endian, with_link(format, link_type))
            }
        };
        let mut file = CaptureFile { window, format, big_endian, ended: None };
        if matches!(file.format, Format::Pcapng { .. }) {
            file.begin_section()?.ok_or(CaptureError::NotACapture)?;
        }
        Ok(file)
    }

    /// Return the next frame, or how the file ended; after the end, the same end again.
    pub fn next_record(&mut self) -> Result<Record<'_>, CaptureError> {
        if let Some(end) = self.ended {
            return Ok(Record::End(end));
        }
        match self.format {
            Format::Pcap { header_bytes, interface } => self.next_pcap(header_bytes, interface),
            Format::Pcapng { .. } => self.next_pcapng(),
        }
    }

    fn end(&mut self, end: FileEnd) -> Result<Record<'_>, CaptureError> {
        self.ended = Some(end);
        Ok(Record::End(end))
    }

    fn next_pcap(&mut self, header_bytes: usize, interface: Interface) -> Result<Record<'_>, CaptureError> {
        let big_endian = self.big_endian;
        let Some(header) = self.window.peek(header_bytes)? else {
            let end = if self.window.is_at_end() { FileEnd::Whole } else { FileEnd::Truncated };
            return self.end(end);
        };
        let field = |at: usize| u32_at(header, at, big_endian);
        let (seconds, fraction, captured, wire) = (field(0), field(4), field(8) as usize, field(12));
        if captured > MAX_RECORD_BYTES {
            return self.end(FileEnd::Truncated);
        }
        if self.window.peek(header_bytes + captured)?.is_none() {
            return self.end(FileEnd::Truncated);
        }
        let time_us = u64::from(seconds) * 1_000_000 + interface.ticks.micros(fraction.into());
        let data = &self.window.take(header_bytes + captured)[header_bytes..];
        Ok(frame(interface.link, time_us, data, wire))
    }

    fn next_pcapng(&mut self) -> Result<Record<'_>, CaptureError> {
        loop {
            let Some(head) = self.window.peek(8)? else {
                let end = if self.window.is_at_end() { FileEnd::Whole } else { FileEnd::Truncated };
                return self.end(end);
            };
            let (kind, length) = (u32_at(head, 0, self.big_endian), u32_at(head, 4, self.big_endian) as usize);
            if kind == 0x0a0d_0d0a {
                if self.begin_section()?.is_none() {
                    return self.end(FileEnd::Truncated);
                }
                continue;
            }
            if length < 12 || !length.is_multiple_of(4) {
                return self.end(FileEnd::Truncated);
            }
            let known = matches!(kind, 1 | 2 | 3 | 6);
            if !known || length > BUFFER_BYTES {
                // names, secrets, statistics, or a frame too large to be one: passed over without keeping it
                if !self.window.skip(length)? {
                    return self.end(FileEnd::Truncated);
                }
                continue;
            }
            if self.window.peek(length)?.is_none() {
                return self.end(FileEnd::Truncated);
            }
            if kind == 1 {
                if !self.add_interface(length) {
                    return self.end(FileEnd::Truncated);
                }
                continue;
            }
            let Format::Pcapng { interfaces } = &self.format else { return self.end(FileEnd::Truncated) };
            let block = self.window.current(length);
            let Some(packet) = parse_packet_block(kind, block, interfaces, self.big_endian) else {
                return self.end(FileEnd::Truncated);
            };
            let data = &self.window.take(length)[packet.start..packet.start + packet.captured];
            return Ok(frame(packet.link, packet.time_us, data, packet.wire));
        }
    }

    /// A section has its own byte order and its own interfaces.
    fn begin_section(&mut self) -> Result<Option<()>, CaptureError> {
        let Some(head) = self.window.peek(28)? else { return Ok(None) };
        let big_endian = match head[8..12] {
            [0x1a, 0x2b, 0x3c, 0x4d] => true,
            [0x4d, 0x3c, 0x2b, 0x1a] => false,
            _ => return Ok(None),
        };
        let length = u32_at(head, 4, big_endian) as usize;
        if length < 28 || !length.is_multiple_of(4) || !self.window.skip(length)? {
            return Ok(None);
        }
        self.big_endian = big_endian;
        if let Format::Pcapng { interfaces } = &mut self.format {
            interfaces.clear();
        }
        Ok(Some(()))
    }

    fn add_interface(&mut self, length: usize) -> bool {
        let big_endian = self.big_endian;
        let block = self.window.take(length);
        if length < 20 {
            return false;
        }
        let link = Link::from_link_type(u16_at(block, 8, big_endian).into());
        let ticks = parse_resolution(&block[16..length - 4], big_endian);
        let Format::Pcapng { interfaces } = &mut self.format else { return false };
        if interfaces.len() < MAX_INTERFACES {
            interfaces.push(Interface { link, ticks });
        }
        true
    }
}

fn frame(link: Option<Link>, time_us: u64, data: &[u8], wire: u32) -> Record<'_> {
    match link {
        Some(link) => {
            let wire_bytes = wire.max(data.len() as u32);
            Record::Frame(Frame { time_us, data, wire_bytes, link, direction: Direction::Unknown })
        }
        None => Record::UnsupportedLink,
    }
}

fn with_link(format: Format, link_type: u32) -> Format {
    match format {
        Format::Pcap { header_bytes, interface } => {
            // the upper bits hold the length of a frame check sequence and flags
            let link = Link::from_link_type(link_type & 0xffff);
            Format::Pcap { header_bytes, interface: Interface { link, ..interface } }
        }
        other => other,
    }
}

fn parse_pcap_header<R: Read>(window: &mut Window<R>, magic: [u8; 4]) -> Result<(bool, Format, u32), CaptureError> {
    const KUZNETZOV: u32 = 0xa1b2_cd34; // a patched libpcap of the 1990s: 8 more bytes in each record header
    let big_endian = matches!(magic, [0xa1, 0xb2, ..]);
    let number = if big_endian { u32::from_be_bytes(magic) } else { u32::from_le_bytes(magic) };
    let (header_bytes, rate) = match number {
        0xa1b2_c3d4 => (16, 1_000_000),
        0xa1b2_3c4d => (16, 1_000_000_000),
        KUZNETZOV => (24, 1_000_000),
        _ => return Err(CaptureError::NotACapture),
    };
    let Some(header) = window.peek(24)? else { return Err(CaptureError::NotACapture) };
    let link_type = u32_at(header, 20, big_endian);
    window.take(24);
    let interface = Interface { link: None, ticks: Ticks(rate) };
    Ok((big_endian, Format::Pcap { header_bytes, interface }, link_type))
}

/// Options of an interface description: only the time resolution matters here.
fn parse_resolution(mut options: &[u8], big_endian: bool) -> Ticks {
    const IF_TSRESOL: u16 = 9;
    while let Some(head) = options.first_chunk::<4>() {
        let (code, length) = (u16_at(head, 0, big_endian), usize::from(u16_at(head, 2, big_endian)));
        if code == 0 {
            break;
        }
        if let (IF_TSRESOL, Some(&value)) = (code, options.get(4)) {
            let exponent = u32::from(value & 0x7f);
            let rate = if value & 0x80 == 0 { 10_u64.checked_pow(exponent) } else { 1_u64.checked_shl(exponent) };
            return Ticks(rate.filter(|&rate| rate > 0).unwrap_or(1_000_000));
        }
        options = options.get(4 + length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ticks(1_000_000)
}

struct PacketBlock {
    start: usize,
    captured: usize,
    wire: u32,
    time_us: u64,
    link: Option<Link>,
}

/// An enhanced (6), simple (3) or obsolete (2) packet block; `None` if its lengths contradict each other.
fn parse_packet_block(kind: u32, block: &[u8], interfaces: &[Interface], big_endian: bool) -> Option<PacketBlock> {
    let field = |at: usize| u32_at(block, at, big_endian);
    let (interface, start) = match kind {
        6 => (field(8) as usize, 28),
        2 => (usize::from(u16_at(block, 8, big_endian)), 28),
        _ => (0, 12),
    };
    let room = block.len().checked_sub(start + 4)?;
    let (captured, wire) = match kind {
        3 => (room.min(field(8) as usize), field(8)),
        _ => (field(20) as usize, field(24)),
    };
    if captured > room || captured > MAX_RECORD_BYTES {
        return None;
    }
    let interface = interfaces.get(interface)?;
    let ticks = u64::from(field(12)) << 32 | u64::from(field(16));
    let time_us = if kind == 3 { 0 } else { interface.ticks.micros(ticks) };
    Some(PacketBlock { start, captured, wire, time_us, link: interface.link })
}

fn u32_at(bytes: &[u8], at: usize, big_endian: bool) -> u32 {
    match bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        Some(word) if big_endian => u32::from_be_bytes(*word),
        Some(word) => u32::from_le_bytes(*word),
        None => 0,
    }
}

fn u16_at(bytes: &[u8], at: usize, big_endian: bool) -> u16 {
    match bytes.get(at..).and_then(|rest| rest.first_chunk::<2>()) {
        Some(word) if big_endian => u16::from_be_bytes(*word),
        Some(word) => u16::from_le_bytes(*word),
        None => 0,
    }
}

/// A stretch of the stream in one buffer of fixed size.
struct Window<R> {
    source: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    is_exhausted: bool,
}

impl<R: Read> Window<R> {
    fn new(source: R) -> Window<R> {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Window { source, buffer, start: 0, end: 0, is_exhausted: false }
    }

    /// Return the next `count` bytes without consuming them; `None` if the stream ends before.
    #[inline]
    fn peek(&mut self, count: usize) -> io::Result<Option<&[u8]>> {
        if self.end - self.start < count && !self.fill(count)? {
            return Ok(None);
        }
        Ok(Some(&self.buffer[self.start..self.start + count]))
    }

    /// Return `count` bytes that `peek` has shown to be there.
    fn current(&self, count: usize) -> &[u8] {
        &self.buffer[self.start..self.start + count]
    }

    /// Consume `count` bytes that `peek` has shown to be there.
    fn take(&mut self, count: usize) -> &[u8] {
        let start = self.start;
        self.start += count;
        &self.buffer[start..start + count]
    }

    #[cold]
    fn fill(&mut self, count: usize) -> io::Result<bool> {
        if count > self.buffer.len() {
            return Ok(false);
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        while self.end < count && !self.is_exhausted {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.is_exhausted = true,
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.end >= count)
    }

    /// Pass over `count` bytes, however many; return whether they were all there.
    fn skip(&mut self, mut count: usize) -> io::Result<bool> {
        loop {
            let here = count.min(self.end - self.start);
            self.start += here;
            count -= here;
            if count == 0 {
                return Ok(true);
            }
            if !self.fill(1)? {
                return Ok(false);
            }
        }
    }

    fn is_at_end(&self) -> bool {
        self.start == self.end
    }
}
