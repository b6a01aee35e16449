//! The messages before the first picture (RFC 6143 section 7).

use super::event;
use crate::{Reader, Way};

/// Bytes of a desktop's name or of a reason that are taken; longer ones are no such thing.
const MOST_TEXT: usize = 4096;
/// RFC 6143 section 7.2.
const NONE: u32 = 1;
const VNC: u32 = 2;

/// What a side's next message is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Server {
    #[default]
    Version,
    /// One type (3.3), or a list (3.7 and later).
    Security,
    /// What the client chose decides.
    AwaitChoice,
    Challenge,
    Result,
    /// Why it refuses.
    Reason,
    Init,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Client {
    #[default]
    Version,
    Choice,
    /// What the server says decides.
    AwaitServer,
    Response,
    Init,
    Done,
}

/// The picture's size and form.
#[derive(Debug)]
pub struct Screen {
    pub width: u16,
    pub height: u16,
    /// RFC 6143 section 7.4.
    pub format: [u8; 16],
    pub name: Box<[u8]>,
}

/// All that is learnt.
#[derive(Debug, Default)]
pub struct Handshake {
    server: Server,
    client: Client,
    is_over: bool,
    /// Major and minor number as written, by way: the client's first.
    pub versions: [Option<[[u8; 3]; 2]>; 2],
    /// The security type that is used.
    pub security: Option<u32>,
    pub challenge: Option<[u8; 16]>,
    pub response: Option<[u8; 16]>,
    pub result: Option<u32>,
    pub reason: Option<Box<[u8]>>,
    pub is_shared: Option<bool>,
    pub screen: Option<Screen>,
    pub events: Vec<u8>,
}

/// Read `RFB 003.008\n`.
pub fn parse_version(message: &[u8; 12]) -> Option<[[u8; 3]; 2]> {
    let [b'R', b'F', b'B', b' ', a, b, c, b'.', d, e, f, b'\n'] = *message else { return None };
    let parts = [[a, b, c], [d, e, f]];
    parts.as_flattened().iter().all(u8::is_ascii_digit).then_some(parts)
}

impl Handshake {
    /// Nothing more is learnt.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Stop here.
    pub fn end(&mut self) {
        self.is_over = true;
    }

    pub fn heap_bytes(&self) -> usize {
        let name = self.screen.as_ref().map_or(0, |screen| screen.name.len());
        name + self.reason.as_ref().map_or(0, |reason| reason.len()) + self.events.capacity()
    }

    /// Read one message at the front; 0: it is not all there, or it is not its turn.
    pub fn read(&mut self, way: Way, data: &[u8]) -> usize {
        if self.is_over {
            return data.len();
        }
        let mut reader = Reader::new(data);
        let found = match way {
            Way::ToServer => self.read_client(&mut reader),
            Way::ToClient => self.read_server(&mut reader),
        };
        match found {
            Some(()) => reader.position(),
            None if self.is_over => data.len(),
            None => 0,
        }
    }

    /// Say what is wrong and stop.
    fn fail(&mut self, event: u8) -> Option<()> {
        self.events.push(event);
        self.is_over = true;
        None
    }

    /// What the client agreed to; older than 3.7 until it has.
    fn is_old(&self) -> bool {
        let [_, minor] = self.versions[0].or(self.versions[1]).unwrap_or([*b"003"; 2]);
        minor < *b"007"
    }

    fn is_newest(&self) -> bool {
        let [major, minor] = self.versions[0].or(self.versions[1]).unwrap_or([*b"003"; 2]);
        major > *b"003" || minor >= *b"008"
    }

    fn read_client(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        match self.client {
            Client::Version => {
                let Some(version) = parse_version(&reader.array()?) else { return self.fail(event::MALFORMED_MESSAGE) };
                self.versions[0] = Some(version);
                self.client = if self.is_old() { Client::AwaitServer } else { Client::Choice };
            }
            Client::Choice => {
                // the list comes first
                if self.server != Server::AwaitChoice {
                    return None;
                }
                let security = u32::from(reader.u8()?);
                self.choose(security);
            }
            Client::AwaitServer => return None,
            Client::Response => {
                self.response = Some(reader.array()?);
                self.client = Client::Init;
            }
            Client::Init => {
                self.is_shared = Some(reader.u8()? != 0);
                self.client = Client::Done;
            }
            Client::Done => {
                reader.take(reader.left())?;
            }
        }
        Some(())
    }

    /// Both sides know now what comes next.
    fn choose(&mut self, security: u32) {
        self.security = Some(security);
        match security {
            NONE => {
                self.client = Client::Init;
                self.server = if self.is_newest() { Server::Result } else { Server::Init };
            }
            VNC => {
                self.client = Client::Response;
                self.server = Server::Challenge;
            }
            _ => {
                self.fail(event::UNIMPLEMENTED_SECURITY_TYPE);
            }
        }
    }

    fn read_server(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        match self.server {
            Server::Version => {
                let Some(version) = parse_version(&reader.array()?) else { return self.fail(event::MALFORMED_MESSAGE) };
                self.versions[1] = Some(version);
                self.server = Server::Security;
            }
            Server::Security => return self.read_security(reader),
            Server::AwaitChoice => return None,
            Server::Challenge => {
                self.challenge = Some(reader.array()?);
                self.server = Server::Result;
            }
            Server::Result => {
                let result = reader.be32()?;
                self.result = Some(result);
                match result {
                    0 => self.server = Server::Init,
                    1 | 2 if self.is_newest() => self.server = Server::Reason,
                    1 | 2 => self.is_over = true,
                    _ => return self.fail(event::UNKNOWN_SECURITY_RESULT),
                }
            }
            Server::Reason => {
                let reason = self.text(reader)?;
                self.reason = Some(reason);
                self.is_over = true;
            }
            Server::Init => {
                let (width, height, format) = (reader.be16()?, reader.be16()?, reader.array()?);
                let name = self.text(reader)?;
                self.screen = Some(Screen { width, height, format, name });
                self.is_over = true;
            }
        }
        Some(())
    }

    /// Which shape the message has depends on the client's version.
    fn read_security(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        self.versions[0]?;
        if self.is_old() {
            match reader.be32()? {
                0 => self.server = Server::Reason,
                security => self.choose(security),
            }
            return Some(());
        }
        match reader.u8()? {
            0 => self.server = Server::Reason,
            count => {
                reader.take(count.into())?;
                self.server = Server::AwaitChoice;
            }
        }
        Some(())
    }

    fn text(&mut self, reader: &mut Reader<'_>) -> Option<Box<[u8]>> {
        let length = reader.be32()? as usize;
        if length > MOST_TEXT {
            self.fail(event::MALFORMED_MESSAGE)?;
        }
        reader.take(length).map(Box::from)
    }
}
