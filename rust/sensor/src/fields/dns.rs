//! DNS queries: RFC 1035 in datagrams and over TCP (section 4.2.2), with EDNS (RFC 6891) and TSIG (RFC 8945).

use super::patterns::Span;
use super::reader::Reader;
use super::rules::{Facts, Field, Key, Rule};
use super::{Stop, Verdict, malformed, whole};

/// A query is a name of 255 bytes and a few options; over TCP this much is held.
const MAX_QUERY: usize = 4096;
const MAX_NAME: usize = 255; // RFC 1035, section 3.1
const MAX_ADDITIONAL: u16 = 3; // OPT, TSIG or SIG(0), KEY
const HEADER: usize = 12;

const INTERNET: u16 = 1;
const IXFR: u16 = 251;
const SOA: u16 = 6;
const OPT: u16 = 41;
const TSIG: u16 = 250;
const SIG: u16 = 24;

/// Judge a datagram: one query, to its last byte.
pub fn judge_datagram(rule: &Rule, bytes: &[u8]) -> Result<Verdict, Stop> {
    if bytes.len() > MAX_QUERY {
        return malformed("dns: a query of more than 4096 bytes");
    }
    Ok(Verdict::of(bytes.len(), judge_query(rule, bytes)?))
}

/// Judge one query of a stream, behind its length.
pub fn judge_stream(rule: &Rule, bytes: &[u8]) -> Result<Verdict, Stop> {
    let length = usize::from(Reader(whole(bytes, 2)?).u16()?);
    if !(HEADER..=MAX_QUERY).contains(&length) {
        return malformed("dns: the length field is not within 12 to 4096");
    }
    let query = &whole(bytes, 2 + length)?[2..];
    Ok(Verdict::of(2 + length, judge_query(rule, query)?))
}

fn judge_query(rule: &Rule, query: &[u8]) -> Result<Option<String>, Stop> {
    let mut reader = Reader(query);
    let [_id, flags, questions, answers, authorities, additional] = header(&mut reader)?;
    if flags & 0x8000 != 0 {
        return malformed("dns: an answer where a query is due");
    }
    // an update's or a notification's question is not what it changes (RFC 2136, RFC 1996)
    if flags & 0x7800 != 0 || flags & 0x020f != 0 {
        return malformed("dns: not a plain query");
    }
    if questions != 1 || answers != 0 {
        return malformed("dns: not exactly one question and no answer");
    }
    let name = read_name(&mut reader)?;
    let (kind, class) = (reader.u16()?, reader.u16()?);
    if class != INTERNET {
        return malformed("dns: another class than IN");
    }
    let is_transfer = kind == IXFR && authorities == 1; // the version that the client has: RFC 1995
    if authorities != 0 && !is_transfer {
        return malformed("dns: an authority in a query");
    }
    if is_transfer && read_record(&mut reader)? != SOA {
        return malformed("dns: an authority in a query");
    }
    read_additional(&mut reader, additional)?;
    reader.finish("dns: bytes after the query")?;
    let mut facts = Facts::default();
    facts.names = Field::One(name);
    facts.set(Key::Types, Field::One(Span::one(kind)));
    Ok(rule.refuses(&facts))
}

fn header(reader: &mut Reader<'_>) -> Result<[u16; 6], Stop> {
    let mut fields = [0; 6];
    for field in &mut fields {
        *field = reader.u16()?;
    }
    Ok(fields)
}

/// The labels of a question's name. A pointer there could only lead into itself, or into the header.
fn read_name<'a>(reader: &mut Reader<'a>) -> Result<Vec<&'a [u8]>, Stop> {
    let (mut labels, mut bytes) = (Vec::new(), 1);
    loop {
        let length = usize::from(reader.u8()?);
        bytes += length + 1;
        match length {
            0 => return Ok(labels),
            64.. => return malformed("dns: a compressed name in a question"),
            _ if bytes > MAX_NAME => return malformed("dns: a name of more than 255 bytes"),
            _ => labels.push(reader.take(length)?),
        }
    }
}

fn read_additional(reader: &mut Reader<'_>, count: u16) -> Result<(), Stop> {
    if count > MAX_ADDITIONAL {
        return malformed("dns: too many additional records");
    }
    let mut options = 0;
    for _ in 0..count {
        match read_record(reader)? {
            OPT => options += 1,
            TSIG | SIG => {}
            _ => return malformed("dns: an additional record that a query does not have"),
        }
    }
    if options > 1 { malformed("dns: more than one OPT") } else { Ok(()) }
}

/// Step over a record: its type. Names may end in a pointer here; nobody follows it.
fn read_record(reader: &mut Reader<'_>) -> Result<u16, Stop> {
    loop {
        match usize::from(reader.u8()?) {
            0 => break,
            length @ 1..=63 => {
                reader.take(length)?;
            }
            192.. => {
                reader.u8()?;
                break;
            }
            _ => return malformed("dns: a label type that does not exist"),
        }
    }
    let (kind, _class, _ttl, length) = (reader.u16()?, reader.u16()?, reader.u32()?, reader.u16()?);
    reader.take(usize::from(length))?;
    Ok(kind)
}
