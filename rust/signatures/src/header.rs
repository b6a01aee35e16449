//! The rule header: protocol, addresses, ports, direction.

use crate::facts::{FlowFacts, PacketFacts};

/// What stands before the parenthesis.
#[derive(Debug, Default)]
pub struct Header {}

impl Header {
    /// Return whether the packet is between the rule's endpoints and of its transport protocol.
    pub fn matches(&self, _packet: &PacketFacts<'_>, _flow: Option<&FlowFacts>) -> bool {
        false
    }
}
