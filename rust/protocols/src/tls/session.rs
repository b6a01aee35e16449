//! The one transaction of a flow: what both sides have said in the clear.

use std::any::Any;

use super::certificate::Certificate;
use super::hello::Hello;
use super::options::{Options, field};
use super::{buffer, client, event, fingerprint, log, number, server};
use crate::{COMPLETE, Json, Reader, Transaction, View, Way};

/// Certificates of a chain that are kept; public chains have two to four, and every further one costs memory.
const MOST_CERTIFICATES: usize = 16;
/// Each event is noted once, so there are never more than there are names.
const MOST_EVENTS: usize = super::EVENTS.len();

/// Messages that were seen, as bits, for `ssl_state`.
pub mod seen {
    pub const CLIENT_HELLO: u8 = 1;
    pub const SERVER_HELLO: u8 = 1 << 1;
    pub const CLIENT_KEYX: u8 = 1 << 2;
    pub const SERVER_KEYX: u8 = 1 << 3;
    pub const UNKNOWN: u8 = 1 << 4;
}

/// What one side has shown of itself.
#[derive(Debug, Default)]
pub(super) struct Side {
    pub progress: u8,
    pub seen: u8,
    /// 0: no hello yet.
    pub version: u16,
    pub random: Option<[u8; 32]>,
    pub session_id: Box<[u8]>,
    pub has_ticket: bool,
    pub has_changed_cipher: bool,
    pub alpns: Vec<Vec<u8>>,
    /// JA3 or JA3S: string and digest.
    pub ja3: Option<(Box<str>, Box<str>)>,
    /// Ciphers, extensions, signature algorithms: only if they are logged.
    pub lists: Option<Box<[Vec<u16>; 3]>>,
    pub certificate: Option<Box<Certificate>>,
    /// DER, the first belongs to the side itself; dropped once the session is encrypted.
    pub chain: Vec<Box<[u8]>>,
    pub chain_length: usize,
}

/// A session.
#[derive(Debug)]
pub struct Session {
    pub(super) sides: [Side; 2],
    pub(super) sni: Option<Box<[u8]>>,
    pub(super) ja4: Option<Box<str>>,
    pub(super) options: Options,
    events: Vec<u8>,
}

impl Session {
    pub(super) fn new(options: Options) -> Session {
        Session { sides: Default::default(), sni: None, ja4: None, options, events: Vec::new() }
    }

    /// When the server's certificate begins to be valid, in seconds since 1970.
    pub fn not_before(&self) -> Option<i64> {
        self.certificate(Way::ToClient).map(|certificate| certificate.not_before)
    }

    /// When the server's certificate stops being valid, in seconds since 1970.
    pub fn not_after(&self) -> Option<i64> {
        self.certificate(Way::ToClient).map(|certificate| certificate.not_after)
    }

    /// Certificates as they came, the sender's own first, for whoever stores them. Gone once the session is encrypted
    /// and more of it has arrived.
    pub fn chain(&self, way: Way) -> &[Box<[u8]>] {
        &self.side(way).chain
    }

    /// The version that the side has spoken; `None` before its hello.
    pub fn version(&self, way: Way) -> Option<u16> {
        Some(self.side(way).version).filter(|&version| version != 0)
    }

    /// An earlier session goes on, so no certificate is shown. From TLS 1.3 on, nobody but the peers can tell.
    pub fn is_resumed(&self) -> bool {
        let (client, server) = (self.side(Way::ToServer), self.side(Way::ToClient));
        let is_same = !client.session_id.is_empty() && client.session_id == server.session_id;
        server.version != 0
            && !self.is_13()
            && server.chain_length == 0
            && (is_same || client.has_ticket && server.has_changed_cipher)
    }

    pub(super) fn is_13(&self) -> bool {
        is_13(self.side(Way::ToClient).version)
    }

    pub(super) fn side(&self, way: Way) -> &Side {
        &self.sides[way as usize]
    }

    pub(super) fn side_mut(&mut self, way: Way) -> &mut Side {
        &mut self.sides[way as usize]
    }

    pub(super) fn certificate(&self, way: Way) -> Option<&Certificate> {
        self.side(way).certificate.as_deref()
    }

    pub(super) fn note(&mut self, event: u8) {
        if !self.events.contains(&event) && self.events.len() < MOST_EVENTS {
            self.events.push(event);
        }
    }

    /// Progress never goes back.
    pub(super) fn advance(&mut self, way: Way, progress: u8) {
        let side = self.side_mut(way);
        side.progress = side.progress.max(progress);
    }

    /// The side's handshake is over.
    pub(super) fn shake(&mut self, way: Way) {
        self.advance(way, if way == Way::ToServer { client::HANDSHAKE } else { server::HANDSHAKE });
    }

    pub(super) fn is_shaken(&self) -> bool {
        self.side(Way::ToServer).progress >= client::HANDSHAKE && self.side(Way::ToClient).progress >= server::HANDSHAKE
    }

    pub(super) fn complete(&mut self) {
        self.advance(Way::ToServer, COMPLETE);
        self.advance(Way::ToClient, COMPLETE);
    }

    /// The first ClientHello counts; a second one (RFC 8446 section 4.1.2) says the same with another key share.
    pub(super) fn client_hello(&mut self, hello: Hello) {
        hello.events.iter().for_each(|&event| self.note(event));
        let options = self.options;
        if self.side(Way::ToServer).version == 0 {
            if options.has_ja4 {
                self.ja4 = Some(fingerprint::ja4(&hello).into());
            }
            let ja3 = options.has_ja3.then(|| fingerprint::ja3(&hello));
            self.sni = hello.sni.as_deref().map(Box::from);
            self.side_mut(Way::ToServer).take(hello, ja3, options.logs(field::CLIENT_HANDSHAKE));
        }
        self.side_mut(Way::ToServer).seen |= seen::CLIENT_HELLO;
        self.advance(Way::ToServer, client::HELLO);
    }

    pub(super) fn server_hello(&mut self, hello: Hello) {
        if self.side(Way::ToClient).random.is_none() && !hello.is_retry() {
            let ja3s = self.options.has_ja3.then(|| fingerprint::ja3s(&hello));
            let keeps_lists = self.options.logs(field::SERVER_HANDSHAKE);
            self.side_mut(Way::ToClient).take(hello, ja3s, keeps_lists);
        } else if self.side(Way::ToClient).version == 0 {
            self.side_mut(Way::ToClient).version = hello.version();
        }
        self.side_mut(Way::ToClient).seen |= seen::SERVER_HELLO;
        self.advance(Way::ToClient, server::HELLO);
    }

    /// RFC 5246 section 7.4.2: a list of certificates, the sender's own first.
    pub(super) fn certificates(&mut self, way: Way, data: &[u8]) {
        if self.side(way).chain_length > 0 {
            return; // a renegotiation
        }
        let mut reader = Reader::new(data);
        let length = reader.be24().and_then(|length| usize::try_from(length).ok());
        let Some(list) = length.and_then(|length| reader.take(length)) else {
            return self.note(event::CERTIFICATE_INVALID_LENGTH);
        };
        let mut list = Reader::new(list);
        while list.left() > 0 {
            let length = list.be24().and_then(|length| usize::try_from(length).ok());
            let Some(der) = length.and_then(|length| list.take(length)) else {
                return self.note(event::CERTIFICATE_INVALID_LENGTH);
            };
            self.certificate_seen(way, der);
        }
        if self.side(way).chain_length > 0 {
            self.advance(way, if way == Way::ToServer { client::CERTIFICATE } else { server::CERTIFICATE });
        }
    }

    pub(super) fn certificate_seen(&mut self, way: Way, der: &[u8]) {
        if self.side(way).chain_length == 0 {
            match Certificate::parse(der) {
                Ok(certificate) => self.side_mut(way).certificate = Some(Box::new(certificate)),
                Err(event) => self.note(event),
            }
        }
        let side = self.side_mut(way);
        side.chain_length = side.chain_length.saturating_add(1);
        if side.chain.len() < MOST_CERTIFICATES {
            side.chain.push(der.into());
        }
    }

    /// Let go of what only rules about the handshake look at.
    pub(super) fn drop_chains(&mut self) {
        self.sides.iter_mut().for_each(|side| side.chain = Vec::new());
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let sides: usize = self.sides.iter().map(Side::heap_bytes).sum();
        let texts = self.sni.as_ref().map_or(0, |sni| sni.len()) + self.ja4.as_ref().map_or(0, |ja4| ja4.len());
        sides + texts + self.events.capacity()
    }
}

/// TLS 1.3, its drafts, and what follows.
pub(super) fn is_13(version: u16) -> bool {
    version >= 0x0304
}

impl Side {
    fn take(&mut self, hello: Hello, ja3: Option<String>, keeps_lists: bool) {
        self.version = hello.version();
        self.random = Some(hello.random);
        self.session_id = hello.session_id.into();
        self.has_ticket = hello.has_ticket;
        self.alpns = hello.alpns;
        self.ja3 = ja3.map(|text| (text.as_str().into(), fingerprint::md5_hex(text.as_bytes()).into()));
        self.lists = keeps_lists.then(|| Box::new([hello.ciphers, hello.extensions, hello.signatures]));
    }

    fn heap_bytes(&self) -> usize {
        let chain: usize = self.chain.iter().map(|der| der.len() + size_of::<Box<[u8]>>()).sum();
        let alpns: usize = self.alpns.iter().map(|alpn| alpn.capacity() + size_of::<Vec<u8>>()).sum();
        let ja3 = self.ja3.as_ref().map_or(0, |(text, hash)| text.len() + hash.len());
        let lists: usize = self.lists.iter().flat_map(|lists| lists.iter()).map(|list| list.capacity() * 2).sum();
        let certificate = self.certificate.as_ref().map_or(0, |one| one.heap_bytes() + size_of::<Certificate>());
        self.session_id.len() + chain + alpns + ja3 + lists + certificate
    }
}

impl Transaction for Session {
    fn progress(&self, way: Way) -> u8 {
        self.side(way).progress
    }

    fn buffer(&self, index: usize, way: Way, nth: usize) -> Option<View<'_>> {
        let side = self.side(way);
        let (is_client, certificate) = (way == Way::ToServer, side.certificate.as_deref());
        let whole = match index {
            buffer::ALT_NAME => certificate?.alt_names.get(nth).map(|name| &**name),
            buffer::CERTS => side.chain.get(nth).map(|der| &**der),
            buffer::ALPN => side.alpns.get(nth).map(Vec::as_slice),
            _ if nth > 0 => None,
            buffer::SNI if is_client => self.sni.as_deref(),
            buffer::SUBJECT => certificate.map(|certificate| &*certificate.subject),
            buffer::ISSUER => certificate.map(|certificate| &*certificate.issuer),
            buffer::SERIAL => certificate.map(|certificate| certificate.serial.as_bytes()),
            buffer::FINGERPRINT => certificate.map(|certificate| certificate.fingerprint.as_bytes()),
            buffer::RANDOM => side.random.as_ref().map(<[u8; 32]>::as_slice),
            buffer::RANDOM_TIME => side.random.as_ref().and_then(|random| random.get(..4)),
            buffer::RANDOM_BYTES => side.random.as_ref().and_then(|random| random.get(4..)),
            buffer::JA3_HASH if is_client => side.ja3.as_ref().map(|(_, hash)| hash.as_bytes()),
            buffer::JA3_STRING if is_client => side.ja3.as_ref().map(|(text, _)| text.as_bytes()),
            buffer::JA3S_HASH if !is_client => side.ja3.as_ref().map(|(_, hash)| hash.as_bytes()),
            buffer::JA3S_STRING if !is_client => side.ja3.as_ref().map(|(text, _)| text.as_bytes()),
            buffer::JA4_HASH if is_client => self.ja4.as_ref().map(|ja4| ja4.as_bytes()),
            _ => None,
        };
        whole.map(View::whole)
    }

    fn number(&self, index: usize, way: Way, nth: usize) -> Option<u64> {
        let length = self.side(way).chain_length;
        (index == number::CHAIN_LENGTH && nth == 0 && length > 0).then_some(length as u64)
    }

    fn events(&self) -> &[u8] {
        &self.events
    }

    fn log(&self, record: Option<usize>, json: &mut Json) {
        let fields = if record.is_some() { self.options.fields } else { self.options.fields | field::EXTENDED };
        log::write(self, fields, json);
    }

    /// A session is worth a record once it shows a certificate, cannot show one, or need not.
    fn is_logged(&self, _record: usize) -> bool {
        let is_resumed = self.options.is_resumption_logged && self.is_resumed();
        self.certificate(Way::ToClient).is_some() || self.is_13() || is_resumed
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
