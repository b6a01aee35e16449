//! SSH (RFC 4253): which software both sides announce, and HASSH, a name for what they offer before they encrypt.
//!
//! Promises: one transaction for the connection, the same wherever the stream is cut; nothing encrypted is looked at.
//! Leaves to others: keys, users, and what is done in the session; nobody can see those.
//! Read first: [`Side`], then `exchange.rs`.

mod exchange;
#[cfg(test)]
mod tests;

use std::any::Any;

use crate::{
    BufferInfo, COMPLETE, Custom, Json, KeywordInfo, ParseError, Parser, Probe, Protocol, RecordInfo, Settings, Start,
    Transaction, Transport, View, Way, Ways,
};

/// RFC 4253 section 4.2: 255 bytes, the line's end included.
const MOST_BANNER: usize = 255;
/// RFC 4253 section 6.1: every implementation takes this much; a key exchange list is far below.
const MOST_PACKET: usize = 35_000;
/// Lines before a banner that are passed over (RFC 4253 section 4.2 lets servers greet users of old).
const MOST_LINES: u8 = 32;

/// Steps of each way.
mod step {
    pub const BANNER: u8 = 2;
    /// Everything was seen that is ever logged.
    pub const KEYS: u8 = 3;
}

mod buffer {
    pub const PROTO: usize = 0;
    pub const SOFTWARE: usize = 1;
    pub const HASSH: usize = 2;
    pub const HASSH_STRING: usize = 3;
    pub const HASSH_SERVER: usize = 4;
    pub const HASSH_SERVER_STRING: usize = 5;
}

mod event {
    pub const INVALID_BANNER: u8 = 0;
    pub const LONG_BANNER: u8 = 1;
    pub const INVALID_RECORD: u8 = 2;
}

const fn text(keyword: &'static str, aliases: &'static [&'static str], ways: Ways, progress: u8) -> BufferInfo {
    BufferInfo { keyword, aliases, modifiers: &[], ways, progress, is_multiple: false, is_growing: false }
}

/// SSH.
pub static PROTOCOL: Protocol = Protocol {
    name: "ssh",
    aliases: &[],
    transports: &[Transport::Tcp],
    ports: &[22],
    probe,
    parser: |settings: &Settings, _| Box::new(Ssh::new(settings)),
    buffers: &[
        text("ssh.proto", &["ssh_proto"], Ways::Both, step::BANNER),
        text("ssh.software", &["ssh_software"], Ways::Both, step::BANNER),
        text("ssh.hassh", &[], Ways::ToServer, step::KEYS),
        text("ssh.hassh.string", &[], Ways::ToServer, step::KEYS),
        text("ssh.hassh.server", &[], Ways::ToClient, step::KEYS),
        text("ssh.hassh.server.string", &[], Ways::ToClient, step::KEYS),
    ],
    numbers: &[],
    keywords: &[
        KeywordInfo {
            keyword: "ssh.protoversion",
            aliases: &[],
            ways: Ways::Both,
            progress: step::BANNER,
            parse: parse_protoversion,
        },
        KeywordInfo {
            keyword: "ssh.softwareversion",
            aliases: &[],
            ways: Ways::Both,
            progress: step::BANNER,
            parse: parse_softwareversion,
        },
    ],
    states: &[
        ("request_in_progress", Way::ToServer, 0),
        ("request_banner_wait_eol", Way::ToServer, 1),
        ("request_banner_done", Way::ToServer, step::BANNER),
        ("request_finished", Way::ToServer, COMPLETE),
        ("response_in_progress", Way::ToClient, 0),
        ("response_banner_wait_eol", Way::ToClient, 1),
        ("response_banner_done", Way::ToClient, step::BANNER),
        ("response_finished", Way::ToClient, COMPLETE),
    ],
    records: &[RecordInfo { event_type: "ssh", to_server: step::KEYS, to_client: step::KEYS, way: Way::ToServer }],
    events: &["invalid_banner", "long_banner", "invalid_record"],
};

fn probe(start: &Start<'_>) -> Probe {
    let magic = b"SSH-";
    match start.data {
        [b'S', b'S', b'H', b'-', ..] => Probe::Yes,
        data if magic.starts_with(data) => Probe::More,
        _ => Probe::No,
    }
}

/// What one side has shown of itself.
#[derive(Default)]
struct Side {
    progress: u8,
    proto: Box<[u8]>,
    software: Box<[u8]>,
    /// What HASSH is made of, and the digest.
    hassh: Option<(Box<[u8]>, Box<str>)>,
    lines: u8,
    /// The rest of a line that was too long.
    is_skipping_line: bool,
    /// Bytes of a packet that nobody reads.
    skip: usize,
}

/// The connection.
struct Connection {
    sides: [Side; 2],
    events: Vec<u8>,
}

struct Ssh {
    connection: Option<Connection>,
    has_begun: bool,
    has_hassh: bool,
}

impl Ssh {
    fn new(settings: &Settings) -> Ssh {
        let name = "app-layer.protocols.ssh.hassh";
        let has_hassh = settings.text(name).is_none_or(|text| text == "auto" || settings.flag(name, true));
        Ssh { connection: None, has_begun: false, has_hassh }
    }
}

impl Connection {
    fn note(&mut self, event: u8) {
        if !self.events.contains(&event) {
            self.events.push(event);
        }
    }

    /// Read one line, packet or part of one at the front; 0: not all of it is there.
    fn read(&mut self, way: Way, data: &[u8], has_hassh: bool) -> usize {
        let side = &mut self.sides[way as usize];
        if side.progress == COMPLETE {
            return data.len();
        }
        if side.skip > 0 {
            let used = side.skip.min(data.len());
            side.skip -= used;
            return used;
        }
        if side.progress >= step::BANNER && !side.is_skipping_line {
            return self.read_packet(way, data, has_hassh);
        }
        self.read_line(way, data, has_hassh)
    }

    fn read_line(&mut self, way: Way, data: &[u8], has_hassh: bool) -> usize {
        let side = &mut self.sides[way as usize];
        let end = data.iter().take(MOST_BANNER).position(|&byte| byte == b'\n');
        let line = match end {
            None if data.len() < MOST_BANNER => {
                side.progress = side.progress.max(u8::from(!side.is_skipping_line));
                return 0;
            }
            None => data.get(..MOST_BANNER).unwrap_or_default(),
            Some(end) => data.get(..=end).unwrap_or_default(),
        };
        if side.is_skipping_line {
            side.is_skipping_line = end.is_none();
            return line.len();
        }
        side.is_skipping_line = end.is_none();
        if end.is_none() {
            self.note(event::LONG_BANNER);
        }
        self.take_line(way, line, has_hassh);
        line.len()
    }

    fn take_line(&mut self, way: Way, line: &[u8], has_hassh: bool) {
        let parsed = parse_banner(line);
        let side = &mut self.sides[way as usize];
        match parsed {
            Some((proto, software)) => {
                side.proto = proto.into();
                side.software = software.into();
                side.progress = step::BANNER;
                if !proto.starts_with(b"2") && proto != b"1.99" {
                    side.progress = COMPLETE; // SSH 1 frames its packets otherwise and has no lists to read
                } else if !has_hassh {
                    side.progress = step::KEYS;
                }
            }
            None => {
                side.lines = side.lines.saturating_add(1);
                if side.lines > MOST_LINES {
                    side.progress = COMPLETE;
                }
                self.note(event::INVALID_BANNER);
            }
        }
    }

    /// RFC 4253 section 6: length, padding, and the number of a message.
    fn read_packet(&mut self, way: Way, data: &[u8], has_hassh: bool) -> usize {
        let Some(&[a, b, c, d, padding, kind]) = data.first_chunk::<6>() else { return 0 };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if !(2..=MOST_PACKET).contains(&length) {
            self.note(event::INVALID_RECORD);
            self.sides[way as usize].progress = COMPLETE;
            return data.len();
        }
        let side = &mut self.sides[way as usize];
        if kind == exchange::KEXINIT && has_hassh && side.hassh.is_none() {
            let Some(packet) = data.get(6..4 + length) else { return 0 };
            let payload = packet.get(..packet.len().saturating_sub(padding.into())).unwrap_or_default();
            side.hassh = exchange::hassh(payload, way);
            side.progress = side.progress.max(step::KEYS);
            return 4 + length;
        }
        if kind == exchange::NEWKEYS {
            side.progress = COMPLETE;
        }
        let used = data.len().min(4 + length);
        side.skip = 4 + length - used;
        used
    }
}

/// `SSH-2.0-OpenSSH_9.6 comment`: version, and software up to a space.
fn parse_banner(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = line.strip_prefix(b"SSH-")?;
    let dash = rest.iter().position(|&byte| byte == b'-')?;
    let (proto, software) = (rest.get(..dash)?, rest.get(dash + 1..)?);
    let end = software.iter().position(|byte| matches!(byte, b' ' | b'\r' | b'\n')).unwrap_or(software.len());
    Some((proto, software.get(..end)?))
}

impl Parser for Ssh {
    fn parse(&mut self, way: Way, data: &[u8], _is_end: bool) -> Result<usize, ParseError> {
        if !self.has_begun {
            self.has_begun = true;
            self.connection = Some(Connection { sides: Default::default(), events: Vec::new() });
        }
        let Some(connection) = &mut self.connection else { return Ok(data.len()) };
        let mut used = 0;
        while let Some(rest) = data.get(used..).filter(|rest| !rest.is_empty()) {
            match connection.read(way, rest, self.has_hassh) {
                0 => break,
                bytes => used += bytes,
            }
        }
        Ok(used)
    }

    /// Lost bytes end what can be told about that side.
    fn gap(&mut self, way: Way, _bytes: u64) -> Result<(), ParseError> {
        if let Some(connection) = &mut self.connection {
            connection.sides[way as usize].progress = COMPLETE;
        }
        Ok(())
    }

    fn range(&self) -> (u64, u64) {
        (u64::from(self.has_begun && self.connection.is_none()), u64::from(self.has_begun))
    }

    fn transaction(&self, id: u64) -> Option<&dyn Transaction> {
        self.connection.as_ref().filter(|_| id == 0).map(|connection| connection as _)
    }

    fn remove(&mut self, id: u64) {
        if id == 0 {
            self.connection = None;
        }
    }

    fn finish(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.sides.iter_mut().for_each(|side| side.progress = COMPLETE);
        }
    }

    fn heap_bytes(&self) -> usize {
        let sides = self.connection.iter().flat_map(|connection| &connection.sides);
        let of = |side: &Side| {
            let hassh = side.hassh.as_ref().map_or(0, |(text, hash)| text.len() + hash.len());
            side.proto.len() + side.software.len() + hassh
        };
        sides.map(of).sum()
    }

    fn is_opaque(&self) -> bool {
        self.has_begun
            && self.connection.as_ref().is_none_or(|all| all.sides.iter().all(|side| side.progress == COMPLETE))
    }
}

impl Transaction for Connection {
    fn progress(&self, way: Way) -> u8 {
        self.sides[way as usize].progress
    }

    fn buffer(&self, index: usize, way: Way, nth: usize) -> Option<View<'_>> {
        let side = &self.sides[way as usize];
        let hassh = side.hassh.as_ref().filter(|_| match index {
            buffer::HASSH | buffer::HASSH_STRING => way == Way::ToServer,
            _ => way == Way::ToClient,
        });
        let text = match index {
            _ if nth > 0 => None,
            buffer::PROTO => Some(&*side.proto),
            buffer::SOFTWARE => Some(&*side.software),
            buffer::HASSH | buffer::HASSH_SERVER => hassh.map(|(_, hash)| hash.as_bytes()),
            buffer::HASSH_STRING | buffer::HASSH_SERVER_STRING => hassh.map(|(text, _)| &**text),
            _ => None,
        };
        text.filter(|text| !text.is_empty()).map(View::whole)
    }

    fn events(&self) -> &[u8] {
        &self.events
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        json.open("ssh");
        for (name, side) in ["client", "server"].into_iter().zip(&self.sides) {
            if side.proto.is_empty() {
                continue;
            }
            json.open(name);
            json.text("proto_version", &side.proto);
            json.text("software_version", &side.software);
            if let Some((text, hash)) = &side.hassh {
                json.open("hassh");
                json.plain("hash", hash);
                json.text("string", text);
                json.close();
            }
            json.close();
        }
        json.close();
    }

    /// Something without a banner on either side was no SSH worth a record.
    fn is_logged(&self, _record: usize) -> bool {
        self.sides.iter().all(|side| !side.proto.is_empty())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `ssh.protoversion` and `ssh.softwareversion`.
enum Banner {
    Version(Vec<u8>),
    Compatible,
    Software(Vec<u8>),
}

impl Custom for Banner {
    fn matches(&self, transaction: &dyn Transaction, way: Way) -> bool {
        let Some(connection) = transaction.as_any().downcast_ref::<Connection>() else { return false };
        let side = &connection.sides[way as usize];
        match self {
            Banner::Version(version) => *side.proto == **version,
            Banner::Compatible => matches!(&*side.proto, b"2" | b"2.0" | b"1.99"),
            Banner::Software(part) => side.software.windows(part.len()).any(|window| window == part),
        }
    }
}

fn parse_protoversion(argument: &str) -> Result<Box<dyn Custom>, String> {
    let argument = argument.trim().trim_matches('"');
    if argument == "2_compat" {
        return Ok(Box::new(Banner::Compatible));
    }
    let is_version = !argument.is_empty() && argument.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if is_version { Ok(Box::new(Banner::Version(argument.into()))) } else { Err(format!("{argument} is no version")) }
}

fn parse_softwareversion(argument: &str) -> Result<Box<dyn Custom>, String> {
    let argument = argument.trim().trim_matches('"');
    if argument.is_empty() {
        Err("there is nothing to look for".into())
    } else {
        Ok(Box::new(Banner::Software(argument.into())))
    }
}
