//! DNP3 (IEEE 1815-2012) over TCP: each fragment of the application layer is a transaction of its own, as requests and
//! responses are not bound to each other by more than a number of four bits.
//!
//! Read first: this file (link and transport layer), then `application.rs`, `objects.rs`, `keywords.rs`.

use crate::framed::{Dialect, Events, Frame, Framed};
use crate::{COMPLETE, ParseError, Probe, Protocol, Reader, RecordInfo, Start, Transactions, Transport, Way};

mod application;
mod crc;
mod keywords;
mod objects;
mod shapes;
#[cfg(test)]
mod tests;

use application::Fragment;

/// IEEE 1815 section 9.2: start, length, control, destination, source, CRC.
const HEADER_BYTES: usize = 10;
/// Control, destination and source are what every length counts.
const LEAST_LENGTH: u8 = 5;
/// User data comes in blocks of 16 bytes with two of CRC behind each.
const BLOCK_BYTES: usize = 16;
/// A reassembled fragment: twice the largest of section 8.2.1 (2048).
const MOST_FRAGMENT: usize = 4096;
const START: [u8; 2] = [0x05, 0x64];

mod event {
    pub const FLOODED: u8 = 0;
    pub const LEN_TOO_SMALL: u8 = 1;
    pub const BAD_LINK_CRC: u8 = 2;
    pub const BAD_TRANSPORT_CRC: u8 = 3;
    pub const MALFORMED: u8 = 4;
    pub const UNKNOWN_OBJECT: u8 = 5;
    pub const TOO_MANY_POINTS: u8 = 6;
    pub const TOO_MANY_OBJECTS: u8 = 7;
    pub const TOO_LONG_REASSEMBLY: u8 = 8;
}

/// DNP3.
pub static PROTOCOL: Protocol = Protocol {
    name: "dnp3",
    aliases: &[],
    transports: &[Transport::Tcp],
    ports: &[20000],
    probe,
    parser: |_, transport| Box::new(Framed::new(Dnp3::default(), transport)),
    buffers: &keywords::BUFFERS,
    numbers: &keywords::NUMBERS,
    keywords: &keywords::KEYWORDS,
    states: &[],
    records: &[
        RecordInfo { event_type: "dnp3", to_server: COMPLETE, to_client: 0, way: Way::ToServer },
        RecordInfo { event_type: "dnp3", to_server: 0, to_client: COMPLETE, way: Way::ToClient },
    ],
    events: &[
        "flooded",
        "len_too_small",
        "bad_link_crc",
        "bad_transport_crc",
        "malformed",
        "unknown_object",
        "too_many_points",
        "too_many_objects",
        "too_long_reassembly",
    ],
};

/// The fixed part of a link frame.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    length: u8,
    control: u8,
    destination: u16,
    source: u16,
}

impl Link {
    fn read(data: &[u8]) -> Option<Link> {
        let mut reader = Reader::new(data);
        reader.take(2)?;
        let (length, control) = (reader.u8()?, reader.u8()?);
        Some(Link { length, control, destination: reader.le16()?, source: reader.le16()? })
    }

    /// From the master.
    fn is_from_master(self) -> bool {
        self.control & 0x80 != 0
    }

    /// CONFIRMED_USER_DATA or UNCONFIRMED_USER_DATA of a primary station: section 9.2.4.
    fn has_user_data(self) -> bool {
        self.control & 0x40 != 0 && matches!(self.control & 0x0f, 3 | 4)
    }

    fn total(length: u8) -> usize {
        let user = usize::from(length.saturating_sub(LEAST_LENGTH));
        HEADER_BYTES + user + 2 * user.div_ceil(BLOCK_BYTES)
    }
}

fn probe(start: &Start<'_>) -> Probe {
    let data = start.data;
    if !data.starts_with(&START) && !START.starts_with(data) {
        return Probe::No;
    }
    let Some((header, link)) = data.get(..HEADER_BYTES).zip(Link::read(data)) else { return Probe::More };
    if link.length < LEAST_LENGTH || !crc::is_right(header) {
        return Probe::No;
    }
    if link.is_from_master() == (start.way == Way::ToServer) { Probe::Yes } else { Probe::YesReversed }
}

/// A fragment that is not all there, by way.
#[derive(Default)]
struct Dnp3 {
    open: [Option<Assembly>; 2],
}

struct Assembly {
    link: Link,
    sequence: u8,
    data: Vec<u8>,
    events: Events,
}

impl Dialect for Dnp3 {
    type Unit = Fragment;
    const FLOODED: Option<u8> = Some(event::FLOODED);
    const RESUMES: bool = true;

    fn frame(&mut self, _way: Way, data: &[u8]) -> Result<Frame, ParseError> {
        match data {
            [0x05, 0x64, length, ..] => Ok(Frame::Message(Link::total(*length) as u64)),
            [0x05] | [0x05, 0x64] => Ok(Frame::More),
            // no frame: pass over what cannot be the start of one
            _ => {
                let next = data.iter().skip(1).position(|byte| *byte == START[0]);
                Ok(Frame::Message(next.map_or(data.len(), |at| at + 1) as u64))
            }
        }
    }

    fn read(
        &mut self,
        way: Way,
        frame: &[u8],
        _is_cut: bool,
        units: &mut Transactions<Fragment>,
    ) -> Result<(), ParseError> {
        let Some(link) = Link::read(frame).filter(|_| frame.starts_with(&START)) else { return Ok(()) };
        let mut problem = None;
        if link.length < LEAST_LENGTH || (link.has_user_data() && link.length <= LEAST_LENGTH) {
            problem = Some(event::LEN_TOO_SMALL);
        } else if !frame.get(..HEADER_BYTES).is_some_and(crc::is_right) {
            problem = Some(event::BAD_LINK_CRC);
        }
        if let Some(event) = problem {
            return Dnp3::finish(way, Assembly::new(link, 0, event), units);
        }
        if !link.has_user_data() {
            return Ok(());
        }
        let mut user = Vec::with_capacity(usize::from(link.length));
        let mut is_right = true;
        for block in frame.get(HEADER_BYTES..).unwrap_or_default().chunks(BLOCK_BYTES + 2) {
            is_right &= crc::is_right(block);
            user.extend_from_slice(block.get(..block.len().saturating_sub(2)).unwrap_or_default());
        }
        self.transport(way, link, &user, is_right, units)
    }

    fn lose(&mut self, way: Way) {
        if let Some(slot) = self.open.get_mut(way as usize) {
            *slot = None;
        }
    }

    fn heap_bytes(&self) -> usize {
        self.open.iter().flatten().map(|assembly| assembly.data.capacity()).sum()
    }
}

impl Assembly {
    fn new(link: Link, sequence: u8, event: u8) -> Assembly {
        let mut events = Events::default();
        events.add(event);
        Assembly { link, sequence, data: Vec::new(), events }
    }
}

impl Dnp3 {
    fn finish(way: Way, assembly: Assembly, units: &mut Transactions<Fragment>) -> Result<(), ParseError> {
        let fragment = Fragment::read(way, assembly.link, assembly.data, assembly.events);
        units.push(fragment).map(|_| ()).ok_or(ParseError("too many fragments"))
    }

    /// The transport function: section 8.2. First, next and last segments of a fragment.
    fn transport(
        &mut self,
        way: Way,
        link: Link,
        user: &[u8],
        is_right: bool,
        units: &mut Transactions<Fragment>,
    ) -> Result<(), ParseError> {
        let Some((header, data)) = user.split_first() else { return Ok(()) };
        let (is_last, is_first, sequence) = (header & 0x80 != 0, header & 0x40 != 0, header & 0x3f);
        let Some(slot) = self.open.get_mut(way as usize) else { return Ok(()) };
        let mut assembly = match slot.take() {
            _ if is_first => Assembly { link, sequence, data: Vec::new(), events: Events::default() },
            Some(open) if open.sequence.wrapping_add(1) & 0x3f == sequence => Assembly { sequence, ..open },
            // a segment of something whose beginning nobody saw
            other => {
                *slot = other;
                return Ok(());
            }
        };
        if !is_right {
            assembly.events.add(event::BAD_TRANSPORT_CRC);
        }
        if assembly.data.len() + data.len() > MOST_FRAGMENT {
            assembly.events.add(event::TOO_LONG_REASSEMBLY);
            return Dnp3::finish(way, assembly, units);
        }
        assembly.data.extend_from_slice(data);
        if is_last {
            return Dnp3::finish(way, assembly, units);
        }
        *slot = Some(assembly);
        Ok(())
    }
}
