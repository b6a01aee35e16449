//! MQTT packets of a client: MQTT 3.1.1 (OASIS 2014) and 5.0 (OASIS 2019); 3.1 has the same frames.

use super::patterns::{TopicUse, is_filter};
use super::reader::Reader;
use super::rules::{Facts, Field, Key, Rule};
use super::{Stop, Verdict, malformed, whole};

/// Held of one packet before it is judged: a topic, its properties, or a CONNECT with a token for a password. A
/// payload of PUBLISH is not held.
pub const MAX_JUDGED: usize = 16_384;
const MAX_FILTERS: usize = 64; // of one SUBSCRIBE: each is held against every pattern
const MAX_ALIASES: usize = 32; // brokers offer 10 (mosquitto) to 16; a client's 33rd is refused
const MAX_REMEMBERED: usize = 1024; // bytes of a topic behind an alias, or of a client identifier

const CONNECT: u8 = 1;
const PUBLISH: u8 = 3;
const SUBSCRIBE: u8 = 8;
const UNSUBSCRIBE: u8 = 10;
const AUTH: u8 = 15;

const TOPIC_ALIAS: u8 = 0x23;

/// What a connection has agreed upon: the protocol level, who the client is, what its topic aliases stand for.
#[derive(Debug, Clone, Default)]
pub struct Session {
    level: u8,
    client: String,
    aliases: Vec<(u16, String)>,
}

impl Session {
    pub fn heap_bytes(&self) -> usize {
        let topics: usize = self.aliases.iter().map(|(_, topic)| topic.capacity()).sum();
        self.client.capacity() + topics + self.aliases.capacity() * size_of::<(u16, String)>()
    }

    fn facts<'a>(&'a self, packet_type: u8, topics: Field<TopicUse<'a>>) -> Facts<'a> {
        let mut facts = Facts::default().with(Key::Actions, packet_type);
        facts.clients = Field::One(&self.client);
        facts.topics = topics;
        facts
    }

    fn is_five(&self) -> bool {
        self.level == 5
    }
}

/// Judge one packet; of a PUBLISH, all but its payload.
pub fn judge(rule: &Rule, session: &mut Session, bytes: &[u8]) -> Result<Verdict, Stop> {
    let first = bytes[0];
    let (packet_type, flags) = (first >> 4, first & 0x0f);
    check_flags(packet_type, flags)?;
    if (session.level == 0) != (packet_type == CONNECT) {
        return malformed("mqtt: the first packet, and it alone, is CONNECT");
    }
    let (header, remaining) = read_remaining(&bytes[1..])?;
    let header = header + 1;
    if packet_type == PUBLISH {
        return judge_publish(rule, session, Publish { flags, bytes, header, remaining });
    }
    let length = header + remaining;
    if length > MAX_JUDGED {
        return malformed("mqtt: a packet of more than 16384 bytes");
    }
    let body = Reader(&whole(bytes, length)?[header..]);
    let refused = match packet_type {
        CONNECT => judge_connect(rule, session, body)?,
        SUBSCRIBE | UNSUBSCRIBE => judge_filters(rule, session, packet_type, body)?,
        AUTH => rule.refuses(&session.facts(packet_type, Field::Exempt)),
        _ => check_plain(session, packet_type, body).map(|()| None)?,
    };
    Ok(Verdict::of(length, refused))
}

/// Section 2.1.3 (5.0) and 2.2.2 (3.1.1), and what only a server sends.
fn check_flags(packet_type: u8, flags: u8) -> Result<(), Stop> {
    match (packet_type, flags) {
        (PUBLISH, flags) if flags & 0x06 == 0x06 => malformed("mqtt: a quality of service of 3"),
        (PUBLISH, flags) if flags & 0x0e == 0x08 => malformed("mqtt: a duplicate without quality of service"),
        (PUBLISH, _) => Ok(()),
        (6 | SUBSCRIBE | UNSUBSCRIBE, 2) => Ok(()),
        (CONNECT | 4 | 5 | 7 | 12 | 14 | AUTH, 0) => Ok(()),
        (2 | 9 | 11 | 13, _) => malformed("mqtt: a server's packet from a client"),
        _ => malformed("mqtt: flags that the packet does not have"),
    }
}

/// Bytes of the length field and its value; it has to be written in as few bytes as it needs.
fn read_remaining(bytes: &[u8]) -> Result<(usize, usize), Stop> {
    let mut value = 0;
    for place in 0..4 {
        let byte = *bytes.get(place).ok_or(Stop::More)?;
        value |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return match (place, byte) {
                (1.., 0) => malformed("mqtt: a length written longer than it is"),
                _ => Ok((place + 1, value)),
            };
        }
    }
    malformed("mqtt: a length of more than four bytes")
}

/// PUBACK and its kin, PINGREQ, DISCONNECT: they ask for nothing that a rule could refuse.
fn check_plain(session: &Session, packet_type: u8, mut body: Reader<'_>) -> Result<(), Stop> {
    let fixed = if matches!(packet_type, 12 | 14) { 0 } else { 2 };
    body.take(fixed)?;
    if session.is_five() && packet_type != 12 && !body.is_empty() {
        body.u8()?; // reason code
        if !body.is_empty() {
            read_properties(&mut body)?;
        }
    }
    body.finish("mqtt: bytes after the packet")
}

fn judge_connect(rule: &Rule, session: &mut Session, mut body: Reader<'_>) -> Result<Option<String>, Stop> {
    let (name, level, flags) = (text(&mut body)?, body.u8()?, body.u8()?);
    if !matches!((name, level), ("MQTT", 4 | 5) | ("MQIsdp", 3)) {
        return malformed("mqtt: a protocol that is not MQTT 3.1, 3.1.1 or 5.0");
    }
    let has_will = flags & 0x04 != 0;
    if flags & 0x01 != 0 || flags & 0x18 == 0x18 || (!has_will && flags & 0x38 != 0) {
        return malformed("mqtt: connect flags that do not exist");
    }
    if level != 5 && flags & 0xc0 == 0x40 {
        return malformed("mqtt: a password without a user name"); // 3.1.1, section 3.1.2.9
    }
    body.u16()?; // keep alive
    if level == 5 {
        read_properties(&mut body)?;
    }
    let client = text(&mut body)?;
    if client.len() > MAX_REMEMBERED {
        return malformed("mqtt: a client identifier of more than 1024 bytes");
    }
    let will = if has_will { Some(read_will(&mut body, level)?) } else { None };
    if flags & 0x80 != 0 {
        text(&mut body)?;
    }
    if flags & 0x40 != 0 {
        binary(&mut body)?;
    }
    body.finish("mqtt: bytes after the packet")?;
    *session = Session { level, client: client.to_owned(), aliases: Vec::new() };
    let connect = session.facts(CONNECT, Field::Exempt);
    let refused = rule.refuses(&connect);
    // the server will publish the will in the client's place
    let Some(topic) = will.filter(|_| refused.is_none()) else { return Ok(refused) };
    Ok(rule.refuses(&session.facts(PUBLISH, Field::One(TopicUse { text: topic }))))
}

fn read_will<'a>(body: &mut Reader<'a>, level: u8) -> Result<&'a str, Stop> {
    if level == 5 {
        read_properties(body)?;
    }
    let topic = topic_name(text(body)?)?;
    binary(body)?;
    if topic.is_empty() { malformed("mqtt: a will without a topic") } else { Ok(topic) }
}

struct Publish<'a> {
    flags: u8,
    bytes: &'a [u8],
    header: usize,
    remaining: usize,
}

fn judge_publish(rule: &Rule, session: &mut Session, packet: Publish<'_>) -> Result<Verdict, Stop> {
    let Publish { flags, bytes, header, remaining } = packet;
    let here = &bytes[header..bytes.len().min(header + remaining)];
    let judged = match variable_header(session.is_five(), flags, here) {
        Err(Stop::More) if here.len() == remaining => return malformed("mqtt: a length exceeds its packet"),
        other => other?,
    };
    if judged > remaining {
        return malformed("mqtt: a length exceeds its packet");
    }
    if header + judged > MAX_JUDGED {
        return malformed("mqtt: a topic and properties of more than 16384 bytes");
    }
    let (topic, alias) = read_publish_header(session.is_five(), flags, Reader(whole(here, judged)?))?;
    let topic = match (topic, alias) {
        ("", None) => return malformed("mqtt: a message without a topic"),
        (_, None) => topic.to_owned(),
        (_, Some(alias)) => session.resolve(alias, topic)?,
    };
    let facts = session.facts(PUBLISH, Field::One(TopicUse { text: &topic }));
    let refused = rule.refuses(&facts);
    Ok(Verdict { len: header + judged, skip: (remaining - judged) as u64, refused })
}

/// Bytes of topic, packet identifier and properties, by their lengths alone.
fn variable_header(is_five: bool, flags: u8, here: &[u8]) -> Result<usize, Stop> {
    let topic = usize::from(Reader(whole(here, 2)?).u16()?);
    let fixed = 2 + topic + if flags & 0x06 != 0 { 2 } else { 0 };
    if !is_five {
        return Ok(fixed);
    }
    let (bytes, value) = read_remaining(here.get(fixed..).ok_or(Stop::More)?)?;
    Ok(fixed + bytes + value)
}

fn read_publish_header(is_five: bool, flags: u8, mut body: Reader<'_>) -> Result<(&str, Option<u16>), Stop> {
    let topic = topic_name(text(&mut body)?)?;
    if flags & 0x06 != 0 && body.u16()? == 0 {
        return malformed("mqtt: a packet identifier of 0");
    }
    let alias = if is_five { read_properties(&mut body)? } else { None };
    Ok((topic, alias))
}

impl Session {
    /// The topic that an alias stands for (5.0, section 3.3.2.3.4); one that comes with a topic is remembered.
    fn resolve(&mut self, alias: u16, topic: &str) -> Result<String, Stop> {
        let kept = self.aliases.len();
        let slot = self.aliases.iter_mut().find(|(number, _)| *number == alias);
        match (slot, topic) {
            (Some((_, known)), "") => return Ok(known.clone()),
            (None, "") => return malformed("mqtt: a topic alias that stands for nothing"),
            _ if topic.len() > MAX_REMEMBERED => return malformed("mqtt: an alias for more than 1024 bytes"),
            (Some((_, known)), _) => topic.clone_into(known),
            (None, _) if kept < MAX_ALIASES => self.aliases.push((alias, topic.to_owned())),
            (None, _) => return malformed("mqtt: more topic aliases than are kept"),
        }
        Ok(topic.to_owned())
    }
}

fn judge_filters(
    rule: &Rule,
    session: &Session,
    packet_type: u8,
    mut body: Reader<'_>,
) -> Result<Option<String>, Stop> {
    if body.u16()? == 0 {
        return malformed("mqtt: a packet identifier of 0");
    }
    if session.is_five() {
        read_properties(&mut body)?;
    }
    let (mut refused, mut count) = (None, 0);
    while !body.is_empty() {
        let filter = read_filter(text(&mut body)?)?;
        if packet_type == SUBSCRIBE {
            let options = body.u8()?;
            let reserved = if session.is_five() { 0xc0 } else { 0xfc };
            if options & reserved != 0 || options & 0x03 == 0x03 || options & 0x30 == 0x30 {
                return malformed("mqtt: subscription options that do not exist");
            }
        }
        count += 1;
        if count > MAX_FILTERS {
            return malformed("mqtt: more than 64 filters in one packet");
        }
        let facts = session.facts(packet_type, Field::One(TopicUse { text: filter }));
        refused = refused.or_else(|| rule.refuses(&facts));
    }
    if count == 0 { malformed("mqtt: a packet without a filter") } else { Ok(refused) }
}

/// A filter without the "$share/GROUP/" of a shared subscription (5.0, section 4.8.2).
fn read_filter(text: &str) -> Result<&str, Stop> {
    let filter = match text.strip_prefix("$share/") {
        None if text == "$share" => "",
        None => text,
        Some(rest) => match rest.split_once('/') {
            Some((group, filter)) if !group.is_empty() && !group.contains(['#', '+']) => filter,
            _ => "",
        },
    };
    if is_filter(filter) { Ok(filter) } else { malformed("mqtt: a topic filter of a wrong form") }
}

/// The name of a topic: no wildcards (section 3.3.2.1); empty only with an alias.
fn topic_name(text: &str) -> Result<&str, Stop> {
    if text.contains(['#', '+']) { malformed("mqtt: a topic with wildcards") } else { Ok(text) }
}

/// UTF-8 without U+0000 (section 1.5.4).
fn text<'a>(body: &mut Reader<'a>) -> Result<&'a str, Stop> {
    match std::str::from_utf8(binary(body)?) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => malformed("mqtt: a text that is not UTF-8"),
    }
}

fn binary<'a>(body: &mut Reader<'a>) -> Result<&'a [u8], Stop> {
    let length = body.u16()?;
    body.take(usize::from(length))
}

/// Step over the properties (5.0, section 2.2.2): the topic alias, if there is one.
fn read_properties(body: &mut Reader<'_>) -> Result<Option<u16>, Stop> {
    let (bytes, length) = match read_remaining(body.0) {
        Err(Stop::More) => return malformed("a length inside the message exceeds it"),
        other => other?,
    };
    body.take(bytes)?;
    let (mut properties, mut alias) = (Reader(body.take(length)?), None);
    while !properties.is_empty() {
        let identifier = properties.u8()?;
        match identifier {
            0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2a => _ = properties.u8()?,
            0x13 | 0x21 | 0x22 => _ = properties.u16()?,
            0x02 | 0x11 | 0x18 | 0x27 => _ = properties.u32()?,
            TOPIC_ALIAS if alias.is_some() => return malformed("mqtt: two topic aliases"),
            TOPIC_ALIAS => alias = Some(properties.u16()?),
            0x0b => match read_remaining(properties.0) {
                Err(Stop::More) => return malformed("a length inside the message exceeds it"),
                other => _ = properties.take(other?.0)?,
            },
            0x03 | 0x08 | 0x12 | 0x15 | 0x1a | 0x1c | 0x1f => _ = text(&mut properties)?,
            0x09 | 0x16 => _ = binary(&mut properties)?,
            0x26 => {
                text(&mut properties)?;
                text(&mut properties)?;
            }
            _ => return malformed("mqtt: a property that does not exist"),
        }
    }
    if alias == Some(0) { malformed("mqtt: a topic alias of 0") } else { Ok(alias) }
}
