//! Remote procedure calls: Sun's, Microsoft's, and SMB below the latter.

use super::{decide, short};
use crate::{Probe, Reader, Start, Transport, Way};

/// RFC 1813 and its kin.
const NFS_PROGRAM: u32 = 100_003;
/// RFC 5531 section 11: the top bit says that a record is over; servers take a megabyte in one.
const LAST_FRAGMENT: u32 = 1 << 31;
const MOST_RECORD: u32 = 4 << 20;

/// A call of NFS' program; an answer shows no program, and counts on the usual port.
pub fn nfs(start: &Start<'_>) -> Probe {
    let mark = if start.transport == Transport::Tcp { 4 } else { 0 };
    if let Some(verdict) = short(start, mark + 24) {
        return if mark == 0 || is_record_mark(start.data) { verdict } else { Probe::No };
    }
    if mark > 0 && !is_record_mark(start.data) {
        return Probe::No;
    }
    let parse = || {
        let mut reader = Reader::new(start.data.get(mark..)?);
        let (_id, kind) = (reader.be32()?, reader.be32()?);
        match kind {
            0 => Some((reader.be32()?, reader.be32()?) == (2, NFS_PROGRAM) && (2..=4).contains(&reader.be32()?)),
            // accepted, with a verifier of a known kind
            1 if start.way == Way::ToClient => Some(start.is_usual_port && reader.be32()? == 0 && reader.be32()? <= 6),
            _ => Some(false),
        }
    };
    decide(parse().unwrap_or(false))
}

fn is_record_mark(data: &[u8]) -> bool {
    match data.first_chunk::<4>() {
        Some(mark) => {
            let mark = u32::from_be_bytes(*mark);
            mark & LAST_FRAGMENT != 0 && (24..MOST_RECORD).contains(&(mark & !LAST_FRAGMENT))
        }
        None => data.first().is_none_or(|first| *first == 0x80),
    }
}

/// NetBIOS' session layer (RFC 1002 section 4.3) with a message of SMB in it, or its own beginning.
pub fn smb(start: &Start<'_>) -> Probe {
    match start.data {
        [0, _, _, _, 0xfd..=0xff, b'S', b'M', b'B', ..] => Probe::Yes,
        // a session request: two encoded names of 34 bytes
        [0x81, 0, 0, 68, 0x20, ..] => decide(start.is_usual_port),
        [0x82, 0, 0, 0, ..] if start.way == Way::ToClient => decide(start.is_usual_port),
        [0, _, _, _, rest @ ..] if rest.len() < 4 => {
            let may_be = [&b"\xffSMB"[..], b"\xfeSMB", b"\xfdSMB"].iter().any(|magic| magic.starts_with(rest));
            if may_be { Probe::More } else { Probe::No }
        }
        [0x81 | 0x82 | 0, rest @ ..] if rest.len() < 3 => Probe::More,
        [0x81, 0, 0, 68] => Probe::More,
        _ => Probe::No,
    }
}

/// C706 chapter 12: the header of a PDU whose fields agree.
pub fn dcerpc(start: &Start<'_>) -> Probe {
    match start.transport {
        Transport::Tcp => dcerpc_stream(start),
        Transport::Udp => decide(is_dcerpc_datagram(start.data).unwrap_or(false)),
    }
}

fn dcerpc_stream(start: &Start<'_>) -> Probe {
    if start.data.first() != Some(&5) {
        return Probe::No;
    }
    if let Some(verdict) = short(start, 16) {
        return verdict;
    }
    let parse = || {
        let mut reader = Reader::new(start.data);
        let (_major, minor, kind, _flags) = (reader.u8()?, reader.u8()?, reader.u8()?, reader.u8()?);
        let order = reader.array::<4>()?;
        let lengths = [reader.array::<2>()?, reader.array::<2>()?];
        let read = if order[0] & 0x10 != 0 { u16::from_le_bytes } else { u16::from_be_bytes };
        let [length, authentication] = lengths.map(read);
        // request, bind, alter_context, and their answers
        let is_kind = match start.way {
            Way::ToServer => matches!(kind, 0 | 11 | 14 | 16),
            Way::ToClient => matches!(kind, 2 | 3 | 12 | 13 | 15),
        };
        Some(minor <= 1 && is_kind && is_representation(order) && length >= 24 && authentication < length)
    };
    decide(parse().unwrap_or(false))
}

fn is_dcerpc_datagram(data: &[u8]) -> Option<bool> {
    /// C706 section 12.5.
    const HEADER: usize = 80;
    let mut reader = Reader::new(data);
    let (version, kind, _flags) = (reader.u8()?, reader.u8()?, reader.array::<2>()?);
    let [a, b, c] = reader.array::<3>()?;
    let tail = data.get(74..76)?.first_chunk::<2>()?;
    let length = if a & 0x10 != 0 { u16::from_le_bytes(*tail) } else { u16::from_be_bytes(*tail) };
    let fits = data.len().checked_sub(HEADER)? == usize::from(length);
    Some(version == 4 && kind <= 10 && is_representation([a, b, c, 0]) && fits)
}

/// Byte order and character set, floating point, and nothing else.
fn is_representation([order, float, a, b]: [u8; 4]) -> bool {
    order & 0xee == 0 && float <= 3 && (a, b) == (0, 0)
}
