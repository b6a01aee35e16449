//! The greetings: ClientHello and ServerHello (RFC 8446 section 4.1), of every version since SSL 3.

use super::event;
use crate::Reader;

/// Entries of each list that are kept; clients offer a few dozen.
const MOST_ENTRIES: usize = 512;
/// Protocols in ALPN that are kept.
const MOST_ALPNS: usize = 64;
/// RFC 6066 section 3: a host name; RFC 1035 gives it 255 bytes.
const MOST_SNI: usize = 255;
/// RFC 8446 section 4.1.3: the random of a ServerHello that asks for another ClientHello.
const RETRY_RANDOM: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2, 0xa2, 0x11,
    0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// IANA's numbers of extensions.
pub mod extension {
    pub const SNI: u16 = 0;
    pub const GROUPS: u16 = 10;
    pub const POINT_FORMATS: u16 = 11;
    pub const SIGNATURES: u16 = 13;
    pub const ALPN: u16 = 16;
    pub const TICKET: u16 = 35;
    pub const VERSIONS: u16 = 43;
}

/// RFC 8701: values that mean nothing and keep servers from choking on new ones.
pub fn is_grease(value: u16) -> bool {
    value & 0x0f0f == 0x0a0a && value >> 8 == value & 0xff
}

/// A greeting, all lists in their order on the wire.
#[derive(Debug, Default)]
pub struct Hello {
    /// The version field.
    pub legacy_version: u16,
    pub random: [u8; 32],
    pub session_id: Vec<u8>,
    /// The server's is one.
    pub ciphers: Vec<u16>,
    pub extensions: Vec<u16>,
    pub sni: Option<Vec<u8>>,
    pub alpns: Vec<Vec<u8>>,
    pub versions: Vec<u16>,
    pub groups: Vec<u16>,
    pub point_formats: Vec<u8>,
    pub signatures: Vec<u16>,
    /// The client shows a ticket of an earlier session.
    pub has_ticket: bool,
    /// What was wrong.
    pub events: Vec<u8>,
}

impl Hello {
    /// Read a ClientHello.
    pub fn parse_client(data: &[u8]) -> Option<Hello> {
        let mut reader = Reader::new(data);
        let mut hello = Hello::parse_beginning(&mut reader)?;
        let length = reader.be16()?;
        hello.ciphers = list16(reader.take(length.into())?);
        let length = reader.u8()?;
        reader.take(length.into())?; // compression methods
        hello.parse_extensions(&mut reader, true)?;
        Some(hello)
    }

    /// Read a ServerHello.
    pub fn parse_server(data: &[u8]) -> Option<Hello> {
        let mut reader = Reader::new(data);
        let mut hello = Hello::parse_beginning(&mut reader)?;
        hello.ciphers = vec![reader.be16()?];
        reader.u8()?; // compression method
        hello.parse_extensions(&mut reader, false)?;
        Some(hello)
    }

    fn parse_beginning(reader: &mut Reader<'_>) -> Option<Hello> {
        let (legacy_version, random) = (reader.be16()?, reader.array::<32>()?);
        let length = reader.u8()?;
        let session_id = reader.take(length.into())?.to_vec();
        Some(Hello { legacy_version, random, session_id, ..Hello::default() })
    }

    /// Extensions may be missing altogether, as they were before RFC 3546.
    fn parse_extensions(&mut self, reader: &mut Reader<'_>, is_client: bool) -> Option<()> {
        if reader.left() == 0 {
            return Some(());
        }
        let length = reader.be16()?;
        let mut extensions = Reader::new(reader.take(length.into())?);
        while extensions.left() > 0 {
            let kind = extensions.be16()?;
            let length = extensions.be16()?;
            let data = extensions.take(length.into())?;
            if kind == extension::SNI && is_client && self.extensions.contains(&kind) {
                self.events.push(event::MULTIPLE_SNI_EXTENSIONS);
            }
            if self.extensions.len() < MOST_ENTRIES {
                self.extensions.push(kind);
            }
            if is_client {
                self.parse_client_extension(kind, data)
            } else {
                self.parse_server_extension(kind, data)
            };
        }
        Some(())
    }

    /// A malformed extension counts as an empty one: servers differ in what they forgive, and so must a watcher.
    fn parse_client_extension(&mut self, kind: u16, data: &[u8]) -> Option<()> {
        let mut reader = Reader::new(data);
        match kind {
            extension::SNI if self.sni.is_none() && !data.is_empty() => self.parse_sni(&mut reader),
            extension::GROUPS => {
                let length = reader.be16()?;
                self.groups = list16(reader.take(length.into())?);
            }
            extension::POINT_FORMATS => {
                let length = reader.u8()?;
                self.point_formats = reader.take(length.into())?.to_vec();
            }
            extension::SIGNATURES => {
                let length = reader.be16()?;
                self.signatures = list16(reader.take(length.into())?);
            }
            extension::ALPN => self.parse_alpns(&mut reader)?,
            extension::TICKET => self.has_ticket = !data.is_empty(),
            extension::VERSIONS => {
                let length = reader.u8()?;
                self.versions = list16(reader.take(length.into())?);
            }
            _ => {}
        }
        Some(())
    }

    fn parse_server_extension(&mut self, kind: u16, data: &[u8]) -> Option<()> {
        let mut reader = Reader::new(data);
        match kind {
            extension::ALPN => self.parse_alpns(&mut reader)?,
            extension::VERSIONS => self.versions = vec![reader.be16()?],
            _ => {}
        }
        Some(())
    }

    /// RFC 6066 section 3: a list, of which only one entry of one type was ever defined.
    fn parse_sni(&mut self, reader: &mut Reader<'_>) {
        let (Some(_list), Some(kind), Some(length)) = (reader.be16(), reader.u8(), reader.be16()) else {
            return self.events.push(event::INVALID_SNI_LENGTH);
        };
        if kind != 0 {
            return self.events.push(event::INVALID_SNI_TYPE);
        }
        match reader.take(length.into()) {
            Some(name) if name.len() <= MOST_SNI => self.sni = Some(name.to_vec()),
            _ => self.events.push(event::INVALID_SNI_LENGTH),
        }
    }

    fn parse_alpns(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let length = reader.be16()?;
        let mut list = Reader::new(reader.take(length.into())?);
        while list.left() > 0 && self.alpns.len() < MOST_ALPNS {
            let length = list.u8()?;
            self.alpns.push(list.take(length.into())?.to_vec());
        }
        Some(())
    }

    /// The version that this side means: the first that is no grease in the extension, else the old field.
    pub fn version(&self) -> u16 {
        self.versions.iter().copied().find(|&version| is_known(version)).unwrap_or(self.legacy_version)
    }

    /// A ServerHello that only asks for another ClientHello.
    pub fn is_retry(&self) -> bool {
        self.random == RETRY_RANDOM
    }
}

fn is_known(version: u16) -> bool {
    (0x0300..=0x0304).contains(&version) || matches!(version >> 8, 0x7f | 0xfb)
}

fn list16(data: &[u8]) -> Vec<u16> {
    data.chunks_exact(2).take(MOST_ENTRIES).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
}
