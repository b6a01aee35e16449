//! SSL 2 (the draft of 1994) and hellos of later versions in its clothes (RFC 5246 appendix E.2).

use crate::{Probe, Reader, Way};

const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 4;
const ERROR: u8 = 0;

/// What a record of SSL 2 says.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    ClientHello {
        version: u16,
    },
    ServerHello {
        version: u16,
        certificate: &'a [u8],
    },
    Error,
    /// Encrypted, or of no interest.
    Other,
}

/// Return whether a flow begins with a hello of SSL 2.
pub fn probe(data: &[u8], way: Way) -> Probe {
    let (Some(kind), Some(high), Some(low)) = (data.get(2), data.get(3), data.get(4)) else { return Probe::More };
    let is_version = matches!((high, low), (0, 2) | (3, 0..=4));
    match (kind, way) {
        (&CLIENT_HELLO, Way::ToServer) if is_version => match read(data) {
            Some((_, Some(Message::ClientHello { .. }))) => Probe::Yes,
            None if data.len() < 64 => Probe::More,
            _ => Probe::No,
        },
        (&SERVER_HELLO, Way::ToClient) => match read(data) {
            Some((_, Some(Message::ServerHello { version: 2, .. }))) => Probe::Yes,
            None if data.len() < 4096 => Probe::More,
            _ => Probe::No,
        },
        _ => Probe::No,
    }
}

/// Read the record at the front: how many bytes it has, and what it says (`None`: its lengths contradict each other).
/// `None` where not all of it is there. Only records with the short header of two bytes begin a session.
pub fn read(data: &[u8]) -> Option<(usize, Option<Message<'_>>)> {
    let mut reader = Reader::new(data);
    let length = usize::from(reader.be16()? & 0x7fff);
    let body = reader.take(length)?;
    Some((2 + length, parse(body)))
}

fn parse(body: &[u8]) -> Option<Message<'_>> {
    let mut reader = Reader::new(body);
    match reader.u8()? {
        CLIENT_HELLO => {
            let version = reader.be16()?;
            let [ciphers, session, challenge] = [reader.be16()?, reader.be16()?, reader.be16()?];
            let fits = usize::from(ciphers) + usize::from(session) + usize::from(challenge) == reader.left();
            (fits && ciphers > 0 && ciphers % 3 == 0).then_some(Message::ClientHello { version })
        }
        SERVER_HELLO => {
            reader.take(2)?; // whether the session is known, and the certificate's type
            let version = reader.be16()?;
            let [certificate, ciphers, connection] = [reader.be16()?, reader.be16()?, reader.be16()?];
            let fits = usize::from(certificate) + usize::from(ciphers) + usize::from(connection) == reader.left();
            if !fits {
                return None;
            }
            Some(Message::ServerHello { version, certificate: reader.take(certificate.into())? })
        }
        ERROR => Some(Message::Error),
        _ => Some(Message::Other),
    }
}
