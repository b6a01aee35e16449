//! RFB (RFC 6143), which VNC speaks: the handshake up to the desktop's name.
//!
//! Promises: one transaction for the connection, the same wherever the stream is cut; what is on the screen is not
//! looked at. Leaves to others: security types other than None and VNC, whose messages only their vendors know.
//! Read first: `rfb/handshake.rs`.

mod handshake;
mod log;
#[cfg(test)]
mod tests;

use std::any::Any;

use crate::{
    BufferInfo, COMPLETE, Custom, Json, KeywordInfo, NumberInfo, ParseError, Parser, Probe, Protocol, RecordInfo,
    Settings, Start, Transaction, Transport, View, Way, Ways,
};
use handshake::Handshake;

mod buffer {
    pub const NAME: usize = 0;
}

mod number {
    pub const SECTYPE: usize = 0;
}

mod event {
    pub const UNIMPLEMENTED_SECURITY_TYPE: u8 = 0;
    pub const UNKNOWN_SECURITY_RESULT: u8 = 1;
    pub const MALFORMED_MESSAGE: u8 = 2;
}

/// RFB.
pub static PROTOCOL: Protocol = Protocol {
    name: "rfb",
    aliases: &[],
    transports: &[Transport::Tcp],
    ports: &[5900, 5901, 5902],
    probe,
    parser: |_: &Settings, _| Box::new(Rfb { handshake: Some(Handshake::default()), has_begun: false }),
    buffers: &[BufferInfo {
        keyword: "rfb.name",
        aliases: &[],
        modifiers: &[],
        ways: Ways::ToClient,
        progress: COMPLETE,
        is_multiple: false,
        is_growing: false,
    }],
    numbers: &[NumberInfo {
        keyword: "rfb.sectype",
        aliases: &[],
        ways: Ways::ToClient,
        progress: COMPLETE,
        bits: 32,
        names: &[],
        is_multiple: false,
    }],
    keywords: &[KeywordInfo {
        keyword: "rfb.secresult",
        aliases: &[],
        ways: Ways::ToClient,
        progress: COMPLETE,
        parse: parse_secresult,
    }],
    states: &[],
    records: &[RecordInfo { event_type: "rfb", to_server: COMPLETE, to_client: COMPLETE, way: Way::ToServer }],
    events: &["unimplemented_security_type", "unknown_security_result", "malformed_message", "confused_state"],
};

/// `RFB 003.008` and a line's end; the server speaks first.
fn probe(start: &Start<'_>) -> Probe {
    match start.data.first_chunk() {
        Some(version) if handshake::parse_version(version).is_some() => Probe::Yes,
        None if b"RFB ".starts_with(start.data.get(..start.data.len().min(4)).unwrap_or_default()) => Probe::More,
        _ => Probe::No,
    }
}

struct Rfb {
    handshake: Option<Handshake>,
    has_begun: bool,
}

impl Parser for Rfb {
    fn parse(&mut self, way: Way, data: &[u8], _is_end: bool) -> Result<usize, ParseError> {
        self.has_begun = true;
        let Some(handshake) = &mut self.handshake else { return Ok(data.len()) };
        let mut at = 0;
        while let Some(rest) = data.get(at..).filter(|rest| !rest.is_empty()) {
            match handshake.read(way, rest) {
                0 => break,
                used => at += used,
            }
        }
        Ok(at)
    }

    /// What comes behind a gap is not read.
    fn gap(&mut self, _way: Way, _bytes: u64) -> Result<(), ParseError> {
        if let Some(handshake) = &mut self.handshake {
            handshake.end();
        }
        Ok(())
    }

    fn range(&self) -> (u64, u64) {
        (u64::from(self.has_begun && self.handshake.is_none()), u64::from(self.has_begun))
    }

    fn transaction(&self, id: u64) -> Option<&dyn Transaction> {
        self.handshake.as_ref().filter(|_| id == 0 && self.has_begun).map(|handshake| handshake as _)
    }

    fn remove(&mut self, id: u64) {
        if id == 0 {
            self.handshake = None;
        }
    }

    fn finish(&mut self) {
        if let Some(handshake) = &mut self.handshake {
            handshake.end();
        }
    }

    fn heap_bytes(&self) -> usize {
        self.handshake.as_ref().map_or(0, Handshake::heap_bytes)
    }

    fn is_opaque(&self) -> bool {
        self.handshake.as_ref().is_none_or(|handshake| handshake.is_over())
    }
}

impl Transaction for Handshake {
    fn progress(&self, _way: Way) -> u8 {
        if self.is_over() { COMPLETE } else { 1 }
    }

    fn buffer(&self, index: usize, way: Way, nth: usize) -> Option<View<'_>> {
        let is_name = (index, way, nth) == (buffer::NAME, Way::ToClient, 0);
        self.screen.as_ref().filter(|screen| is_name && !screen.name.is_empty()).map(|screen| View::whole(&screen.name))
    }

    fn number(&self, index: usize, way: Way, nth: usize) -> Option<u64> {
        self.security.filter(|_| (index, way, nth) == (number::SECTYPE, Way::ToClient, 0)).map(u64::from)
    }

    fn events(&self) -> &[u8] {
        &self.events
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        log::write(self, json);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `rfb.secresult`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Known(u32),
    Unknown,
}

impl Custom for Outcome {
    fn matches(&self, transaction: &dyn Transaction, _way: Way) -> bool {
        let Some(result) = transaction.as_any().downcast_ref::<Handshake>().and_then(|all| all.result) else {
            return false;
        };
        match self {
            Outcome::Known(wanted) => result == *wanted,
            Outcome::Unknown => result > 2,
        }
    }
}

fn parse_secresult(argument: &str) -> Result<Box<dyn Custom>, String> {
    let outcome = match argument.trim().to_ascii_lowercase().as_str() {
        "ok" => Outcome::Known(0),
        "fail" => Outcome::Known(1),
        "toomany" => Outcome::Known(2),
        "unknown" => Outcome::Unknown,
        other => return Err(format!("{other} is none of ok, fail, toomany, unknown")),
    };
    Ok(Box::new(outcome))
}
