//! From the stream to records, from records to handshake messages, whole wherever either is cut.

use super::hello::Hello;
use super::options::{Handling, Options};
use super::session::{Session, is_13, seen};
use super::{client, event, server, sslv2};
use crate::{ParseError, Parser, Reader, Settings, Transaction, Way};

/// RFC 5246 section 6.2.3: 2^14 bytes and what encryption may add.
pub const MOST_RECORD: usize = (1 << 14) + 2048;
const HEADER_BYTES: usize = 5;
/// A handshake message, certificates included. Public chains stay below 20 KiB.
const MOST_HANDSHAKE: usize = 64 << 10;
/// Records in one segment, as in Suricata: more of them are an attack on whoever reads them.
const MOST_RECORDS: usize = 255;

/// Content types.
mod content {
    pub const CHANGE_CIPHER_SPEC: u8 = 20;
    pub const ALERT: u8 = 21;
    pub const HANDSHAKE: u8 = 22;
    pub const APPLICATION_DATA: u8 = 23;
    pub const HEARTBEAT: u8 = 24;
}

/// Return whether a record holds exactly one message, as a second ClientHello comes.
fn is_one_message(body: &[u8]) -> bool {
    let mut reader = Reader::new(body);
    let (kind, length) = (reader.u8(), reader.be24());
    kind == Some(1) && length.and_then(|length| usize::try_from(length).ok()) == Some(reader.left())
}

/// Why nothing more is read; what was noted stays.
struct Broken(u8);

/// The parser of a flow.
pub struct Tls {
    session: Option<Session>,
    /// There was a session at all; its id is 0.
    has_begun: bool,
    options: Options,
    /// By way: handshake messages that wait for their ends.
    pending: [Vec<u8>; 2],
    /// By way: bytes of an encrypted record that are still to come.
    skip: [usize; 2],
    has_record: [bool; 2],
    /// By way: the cipher may have changed, or not: TLS 1.3 is offered, and nobody has seen the answer.
    is_doubtful: [bool; 2],
    /// Length of the latest heartbeat request, to compare its answer with.
    heartbeat: [usize; 2],
    /// Nothing more is read: an error, SSL 2, or the session is over.
    is_over: bool,
}

impl Tls {
    pub fn new(settings: &Settings) -> Tls {
        Tls {
            session: None,
            has_begun: false,
            options: Options::new(settings),
            pending: Default::default(),
            skip: [0; 2],
            has_record: [false; 2],
            is_doubtful: [false; 2],
            heartbeat: [0; 2],
            is_over: false,
        }
    }

    fn read(&mut self, way: Way, data: &[u8]) -> Result<usize, Broken> {
        let mut used = self.skip[way as usize].min(data.len());
        self.skip[way as usize] -= used;
        let mut count = 0;
        while let Some(rest) = data.get(used..).filter(|rest| !rest.is_empty()) {
            count += 1;
            if count > MOST_RECORDS {
                return Err(Broken(event::TOO_MANY_RECORDS_IN_PACKET));
            }
            match self.read_record(way, rest)? {
                0 => break,
                bytes => used += bytes,
            }
            if self.is_over {
                return Ok(data.len());
            }
        }
        Ok(used)
    }

    /// Read the record at the front and return its length; 0: not all of it is there.
    fn read_record(&mut self, way: Way, data: &[u8]) -> Result<usize, Broken> {
        let is_first = !self.has_record[way as usize];
        if is_first && data.first().is_some_and(|first| first & 0x80 != 0) {
            return self.read_sslv2(way, data);
        }
        let Some(&[kind, major, _, high, low]) = data.first_chunk::<HEADER_BYTES>() else { return Ok(0) };
        if !(content::CHANGE_CIPHER_SPEC..=content::HEARTBEAT).contains(&kind) {
            return Err(Broken(if is_first { event::INVALID_TLS_HEADER } else { event::INVALID_RECORD_TYPE }));
        }
        if major != 3 {
            return Err(Broken(event::INVALID_RECORD_VERSION));
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > MOST_RECORD {
            return Err(Broken(event::INVALID_SSL_RECORD));
        }
        if kind == content::APPLICATION_DATA {
            self.has_record[way as usize] = true;
            self.application_data(way);
            let here = data.len().min(HEADER_BYTES + length);
            self.skip[way as usize] = HEADER_BYTES + length - here;
            return Ok(here);
        }
        let Some(body) = data.get(HEADER_BYTES..HEADER_BYTES + length) else { return Ok(0) };
        self.has_record[way as usize] = true;
        self.record(way, kind, body)?;
        Ok(HEADER_BYTES + length)
    }

    fn record(&mut self, way: Way, kind: u8, body: &[u8]) -> Result<(), Broken> {
        let Some(session) = &mut self.session else { return Ok(()) };
        if self.is_doubtful[way as usize] && kind == content::HANDSHAKE && !is_one_message(body) {
            session.side_mut(way).has_changed_cipher = true; // no second hello, so it was TLS 1.2 or older
            session.shake(way);
        }
        let is_encrypted = session.side(way).has_changed_cipher;
        match kind {
            content::CHANGE_CIPHER_SPEC => self.change_cipher(way),
            content::HEARTBEAT => self.heartbeat(way, body, is_encrypted),
            _ if is_encrypted => {}
            content::ALERT if !matches!(body, [1 | 2, _]) => session.note(event::INVALID_ALERT),
            content::HANDSHAKE => return self.handshake(way, body),
            _ => {}
        }
        Ok(())
    }

    /// In TLS 1.3 the message means nothing (RFC 8446 appendix D.4), and in a hello that offers it, nobody knows yet.
    fn change_cipher(&mut self, way: Way) {
        let Some(session) = &mut self.session else { return };
        let is_unknown = session.side(Way::ToClient).version == 0 && is_13(session.side(Way::ToServer).version);
        self.is_doubtful[way as usize] = is_unknown;
        if !session.is_13() && !is_unknown {
            session.side_mut(way).has_changed_cipher = true;
            session.shake(way);
        }
        self.settle();
    }

    fn application_data(&mut self, way: Way) {
        if let Some(session) = &mut self.session {
            session.side_mut(way).has_changed_cipher = true;
            session.shake(way);
        }
        self.settle();
    }

    fn settle(&mut self) {
        let is_bypassed = self.options.handling == Handling::Bypass;
        if let Some(session) = self.session.as_mut().filter(|session| is_bypassed && session.is_shaken()) {
            session.complete();
            self.is_over = true;
        }
    }

    /// RFC 6520, and the bug that made it famous (CVE-2014-0160): an answer longer than its request.
    fn heartbeat(&mut self, way: Way, body: &[u8], is_encrypted: bool) {
        let asked = self.heartbeat[way.reverse() as usize];
        let Some(session) = &mut self.session else { return };
        if is_encrypted {
            if asked > 0 && body.len() > asked {
                session.note(event::DATALEAK_HEARTBEAT_MISMATCH);
            }
            self.heartbeat[way.reverse() as usize] = 0;
            self.heartbeat[way as usize] = body.len();
            return;
        }
        let mut reader = Reader::new(body);
        session.note(event::HEARTBEAT_MESSAGE);
        match (reader.u8(), reader.be16()) {
            (Some(1), Some(length)) if usize::from(length) > reader.left() => {
                session.note(event::OVERFLOW_HEARTBEAT_MESSAGE);
            }
            (Some(1 | 2), Some(_)) => {}
            _ => session.note(event::INVALID_HEARTBEAT_MESSAGE),
        }
    }

    /// Put messages together that records have torn apart, and read those that are whole.
    fn handshake(&mut self, way: Way, body: &[u8]) -> Result<(), Broken> {
        let mut pending = std::mem::take(&mut self.pending[way as usize]);
        if pending.is_empty() {
            let used = self.messages(way, body)?;
            pending.extend_from_slice(body.get(used..).unwrap_or_default());
        } else {
            pending.extend_from_slice(body);
            let used = self.messages(way, &pending)?;
            pending.drain(..used);
        }
        if !pending.is_empty() {
            self.pending[way as usize] = pending;
        }
        Ok(())
    }

    fn messages(&mut self, way: Way, data: &[u8]) -> Result<usize, Broken> {
        let mut reader = Reader::new(data);
        loop {
            let used = reader.position();
            let (Some(kind), Some(length)) = (reader.u8(), reader.be24()) else { return Ok(used) };
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > MOST_HANDSHAKE {
                return Err(Broken(event::HANDSHAKE_INVALID_LENGTH));
            }
            let Some(body) = reader.take(length) else { return Ok(used) };
            if !self.message(way, kind, body) {
                return Ok(data.len());
            }
        }
    }

    /// Read a message; return whether what stands behind it can be one.
    fn message(&mut self, way: Way, kind: u8, body: &[u8]) -> bool {
        let Some(session) = &mut self.session else { return false };
        match (kind, way) {
            (1, Way::ToServer) => match Hello::parse_client(body) {
                Some(hello) => session.client_hello(hello),
                None => session.note(event::HANDSHAKE_INVALID_LENGTH),
            },
            (2, Way::ToClient) => match Hello::parse_server(body) {
                Some(hello) => session.server_hello(hello),
                None => session.note(event::HANDSHAKE_INVALID_LENGTH),
            },
            (11, _) => session.certificates(way, body),
            (12, Way::ToClient) => session.side_mut(way).seen |= seen::SERVER_KEYX,
            (14, Way::ToClient) => session.advance(way, server::HELLO_DONE),
            (16, Way::ToServer) => session.side_mut(way).seen |= seen::CLIENT_KEYX,
            // IANA's registry "TLS HandshakeType", and NPN's 67
            (0..=6 | 8 | 11..=16 | 20..=25 | 67 | 254, _) => {}
            _ => {
                session.note(event::INVALID_HANDSHAKE_MESSAGE);
                session.side_mut(way).seen |= seen::UNKNOWN;
                return false;
            }
        }
        true
    }

    fn read_sslv2(&mut self, way: Way, data: &[u8]) -> Result<usize, Broken> {
        let Some((length, message)) = sslv2::read(data) else { return Ok(0) };
        let Some(session) = &mut self.session else { return Ok(length) };
        self.has_record[way as usize] = true;
        match (message, way) {
            (Some(sslv2::Message::ClientHello { version }), Way::ToServer) => {
                session.side_mut(way).version = version;
                session.side_mut(way).seen |= seen::CLIENT_HELLO;
                session.advance(way, client::HELLO);
                // the server chooses: what follows may be TLS, and then looks like it; or stays SSL 2
                self.has_record[way as usize] = version != 2;
            }
            (Some(sslv2::Message::ServerHello { version, certificate }), Way::ToClient) => {
                session.side_mut(way).version = version;
                session.side_mut(way).seen |= seen::SERVER_HELLO;
                session.advance(way, server::HELLO);
                if !certificate.is_empty() {
                    session.certificate_seen(way, certificate);
                    session.advance(way, server::CERTIFICATE);
                }
                session.shake(Way::ToServer);
                session.shake(Way::ToClient);
                self.is_over = true;
            }
            (Some(sslv2::Message::Error), _) => return Err(Broken(event::ERROR_MESSAGE_ENCOUNTERED)),
            (None, _) => return Err(Broken(event::INVALID_SSLV2_HEADER)),
            _ => {}
        }
        Ok(length)
    }

    fn give_up(&mut self, event: u8) {
        self.is_over = true;
        self.pending = Default::default();
        if let Some(session) = &mut self.session {
            session.note(event);
            session.complete();
        }
    }
}

impl Parser for Tls {
    fn parse(&mut self, way: Way, data: &[u8], _is_end: bool) -> Result<usize, ParseError> {
        if !self.has_begun {
            self.has_begun = true;
            self.session = Some(Session::new(self.options));
        }
        if self.is_over {
            return Ok(data.len());
        }
        if let Some(session) = self.session.as_mut().filter(|session| !data.is_empty() && session.is_shaken()) {
            session.drop_chains(); // whoever wanted them has looked at them after the last call
        }
        match self.read(way, data) {
            Ok(used) => Ok(used),
            Err(Broken(event)) => {
                self.give_up(event);
                Ok(data.len())
            }
        }
    }

    /// Only encrypted bytes can be missing without harm.
    fn gap(&mut self, way: Way, bytes: u64) -> Result<(), ParseError> {
        let skip = self.skip[way as usize];
        match usize::try_from(bytes) {
            Ok(bytes) if bytes <= skip => self.skip[way as usize] = skip - bytes,
            _ => {
                self.is_over = true;
                self.pending = Default::default();
                if let Some(session) = &mut self.session {
                    session.complete();
                }
            }
        }
        Ok(())
    }

    fn range(&self) -> (u64, u64) {
        match (&self.session, self.has_begun) {
            (Some(_), _) => (0, 1),
            (None, true) => (1, 1),
            (None, false) => (0, 0),
        }
    }

    fn transaction(&self, id: u64) -> Option<&dyn Transaction> {
        self.session.as_ref().filter(|_| id == 0).map(|session| session as _)
    }

    fn remove(&mut self, id: u64) {
        if id == 0 {
            self.session = None;
            self.is_over = true;
            self.pending = Default::default();
        }
    }

    fn finish(&mut self) {
        if let Some(session) = &mut self.session {
            session.complete();
        }
    }

    fn heap_bytes(&self) -> usize {
        let pending: usize = self.pending.iter().map(Vec::capacity).sum();
        pending + self.session.as_ref().map_or(0, Session::heap_bytes)
    }

    fn is_opaque(&self) -> bool {
        let is_followed = self.options.handling == Handling::Full;
        self.is_over || !is_followed && self.session.as_ref().is_some_and(Session::is_shaken)
    }
}
