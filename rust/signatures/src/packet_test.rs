//! Keywords about one packet: `dsize`, `flags`, `ttl`, `itype`, `decode-event` …

use crate::facts::{FlowFacts, PacketFacts};

/// One condition on a packet.
#[derive(Debug)]
pub enum PacketTest {}

impl PacketTest {
    /// Return whether the packet meets it.
    pub fn matches(&self, _packet: &PacketFacts<'_>, _flow: Option<&FlowFacts>) -> bool {
        match *self {}
    }
}
