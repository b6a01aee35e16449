//! What rules and logs ask about a certificate (RFC 5280), as text.

use std::net::{Ipv4Addr, Ipv6Addr};

use sha1::{Digest, Sha1};

use super::der::{self, Der};
use super::{dates, event};

/// Alternative names that are kept; certificates of large hosting firms have a hundred.
const MOST_ALT_NAMES: usize = 512;
/// A name's attributes; the longest in public logs have about a dozen.
const MOST_ATTRIBUTES: usize = 64;

/// RFC 5280 section 4.1.2.2 allows 20 bytes; private authorities use more.
const MOST_SERIAL: usize = 256;

/// One certificate.
#[derive(Debug, Default)]
pub struct Certificate {
    /// `C=US, O=Example, CN=*.example.org`.
    pub subject: Box<[u8]>,
    pub issuer: Box<[u8]>,
    /// `0A:1B:…`, as encoded.
    pub serial: Box<str>,
    /// SHA-1 of all of it: `aa:bb:…`.
    pub fingerprint: Box<str>,
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
    pub alt_names: Vec<Box<[u8]>>,
}

impl Certificate {
    /// Read a certificate, or say which event tells what is wrong with it.
    pub fn parse(data: &[u8]) -> Result<Certificate, u8> {
        let whole = Der::new(data).expect(der::SEQUENCE).ok_or(event::CERTIFICATE_INVALID_DER)?;
        let mut tbs = Der::new(Der::new(whole).expect(der::SEQUENCE).ok_or(event::CERTIFICATE_INVALID_DER)?);
        if tbs.tag() == Some(0xa0) {
            tbs.next().ok_or(event::CERTIFICATE_INVALID_VERSION)?;
        }
        let serial = tbs
            .expect(der::INTEGER)
            .filter(|serial| serial.len() <= MOST_SERIAL)
            .ok_or(event::CERTIFICATE_INVALID_SERIAL)?;
        tbs.expect(der::SEQUENCE).ok_or(event::INVALID_CERTIFICATE)?;
        let issuer = tbs.expect(der::SEQUENCE).and_then(name).ok_or(event::CERTIFICATE_INVALID_X509NAME)?;
        let (not_before, not_after) =
            tbs.expect(der::SEQUENCE).and_then(validity).ok_or(event::CERTIFICATE_INVALID_DATE)?;
        let subject = tbs.expect(der::SEQUENCE).and_then(name).ok_or(event::CERTIFICATE_INVALID_X509NAME)?;
        tbs.expect(der::SEQUENCE).ok_or(event::INVALID_CERTIFICATE)?;
        let alt_names = alt_names(&mut tbs).ok_or(event::CERTIFICATE_INVALID_EXTENSIONS)?;
        Ok(Certificate {
            subject: subject.into(),
            issuer: issuer.into(),
            serial: joined(serial, true).into(),
            fingerprint: joined(&Sha1::digest(data), false).into(),
            not_before,
            not_after,
            alt_names,
        })
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        let names: usize = self.alt_names.iter().map(|name| name.len() + size_of::<Box<[u8]>>()).sum();
        self.subject.len() + self.issuer.len() + self.serial.len() + self.fingerprint.len() + names
    }
}

fn validity(data: &[u8]) -> Option<(i64, i64)> {
    let mut times = Der::new(data);
    let mut time = || times.next().and_then(|(tag, text)| dates::parse_der(tag, text));
    Some((time()?, time()?))
}

/// Write a distinguished name as Suricata does: in the order of the encoding, `, ` between, ` + ` within a set.
fn name(data: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut sets = Der::new(data);
    for _ in 0..MOST_ATTRIBUTES {
        if sets.tag().is_none() {
            break;
        }
        let mut set = Der::new(sets.expect(der::SET)?);
        let mut separator: &[u8] = if out.is_empty() { b"" } else { b", " };
        while set.tag().is_some() && out.len() <= data.len() * 8 {
            let mut attribute = Der::new(set.expect(der::SEQUENCE)?);
            let oid = attribute.expect(der::OID)?;
            let (tag, value) = attribute.next()?;
            out.extend_from_slice(separator);
            out.extend_from_slice(attribute_name(oid).as_bytes());
            out.push(b'=');
            append_text(&mut out, tag, value);
            separator = b" + ";
        }
    }
    Some(out)
}

fn attribute_name(oid: &[u8]) -> String {
    let known = match oid {
        [0x55, 4, 3] => "CN",
        [0x55, 4, 4] => "surname",
        [0x55, 4, 5] => "serialNumber",
        [0x55, 4, 6] => "C",
        [0x55, 4, 7] => "L",
        [0x55, 4, 8] => "ST",
        [0x55, 4, 9] => "STREET",
        [0x55, 4, 10] => "O",
        [0x55, 4, 11] => "OU",
        [0x55, 4, 12] => "title",
        [0x55, 4, 13] => "description",
        [0x55, 4, 15] => "businessCategory",
        [0x55, 4, 17] => "postalCode",
        [0x55, 4, 20] => "telephoneNumber",
        [0x55, 4, 41] => "name",
        [0x55, 4, 42] => "givenName",
        [0x55, 4, 43] => "initials",
        [0x55, 4, 46] => "dnQualifier",
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1] => "Email",
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 2] => "unstructuredName",
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1] => "userId",
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25] => "DC",
        [0x2b, 6, 1, 4, 1, 0x82, 0x37, 60, 2, 1, 1] => "jurisdictionOfIncorporationL",
        [0x2b, 6, 1, 4, 1, 0x82, 0x37, 60, 2, 1, 2] => "jurisdictionOfIncorporationST",
        [0x2b, 6, 1, 4, 1, 0x82, 0x37, 60, 2, 1, 3] => "jurisdictionOfIncorporationC",
        _ => return der::dotted(oid),
    };
    known.to_owned()
}

/// Strings of one byte a letter stay as they are, zero bytes included: rules look for those. Wider ones become UTF-8.
fn append_text(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    let mut push = |letter: Option<char>| {
        let mut buffer = [0; 4];
        out.extend_from_slice(letter.unwrap_or(char::REPLACEMENT_CHARACTER).encode_utf8(&mut buffer).as_bytes());
    };
    match tag {
        der::BMP_STRING => {
            let units = value.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            char::decode_utf16(units).for_each(|letter| push(letter.ok()));
        }
        der::UNIVERSAL_STRING => {
            let units = value.chunks_exact(4).map(|four| u32::from_be_bytes([four[0], four[1], four[2], four[3]]));
            units.for_each(|unit| push(char::from_u32(unit)));
        }
        der::BIT_STRING => out.extend_from_slice(value.get(1..).unwrap_or_default()),
        _ => out.extend_from_slice(value),
    }
}

/// Find the names in the extension subjectAltName. `None`: extensions are malformed.
fn alt_names(tbs: &mut Der<'_>) -> Option<Vec<Box<[u8]>>> {
    while tbs.tag().is_some_and(|tag| tag != 0xa3) {
        tbs.next()?; // unique identifiers
    }
    let Some((_, wrapped)) = tbs.next() else { return Some(Vec::new()) };
    let mut extensions = Der::new(Der::new(wrapped).expect(der::SEQUENCE)?);
    while extensions.tag().is_some() {
        let mut extension = Der::new(extensions.expect(der::SEQUENCE)?);
        let oid = extension.expect(der::OID)?;
        if extension.tag() != Some(der::OCTET_STRING) {
            extension.next()?; // critical
        }
        let value = extension.expect(der::OCTET_STRING)?;
        if oid == [0x55, 0x1d, 17] {
            return general_names(Der::new(value).expect(der::SEQUENCE)?);
        }
    }
    Some(Vec::new())
}

fn general_names(data: &[u8]) -> Option<Vec<Box<[u8]>>> {
    let mut names = Vec::new();
    let mut elements = Der::new(data);
    while elements.tag().is_some() && names.len() < MOST_ALT_NAMES {
        let (tag, value) = elements.next()?;
        let text: Vec<u8> = match (tag, value) {
            (0x81 | 0x82 | 0x86, _) => value.to_vec(), // mail address, host name, URI
            (0x87, &[a, b, c, d]) => Ipv4Addr::new(a, b, c, d).to_string().into(),
            (0x87, _) => match <[u8; 16]>::try_from(value) {
                Ok(bytes) => Ipv6Addr::from(bytes).to_string().into(),
                Err(_) => continue,
            },
            (0xa4, _) => Der::new(value).expect(der::SEQUENCE).and_then(name)?,
            (0x88, _) => der::dotted(value).into(),
            _ => continue,
        };
        names.push(text.into());
    }
    names.shrink_to_fit();
    Some(names)
}

/// Write bytes as pairs of digits with colons between.
fn joined(bytes: &[u8], is_upper: bool) -> String {
    let pairs: Vec<String> =
        bytes.iter().map(|byte| if is_upper { format!("{byte:02X}") } else { format!("{byte:02x}") }).collect();
    pairs.join(":")
}
