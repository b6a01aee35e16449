//! What detectors get to know about a flow.

use protocols::Way;

use crate::flow::{Flow, Stage};
use crate::layers::ip;
use crate::tcp::{State, flag};

/// A flow as it stands at a packet, a transaction or its end.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct FlowSeen {
    pub id: u64,
    /// Client and server.
    pub addresses: [u128; 2],
    pub ports: [u16; 2],
    pub protocol: u8,
    /// The packet at hand goes to the client.
    pub is_to_client: bool,
    pub first_us: u64,
    pub last_us: u64,
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    /// Both sides took part; in TCP, the handshake was completed.
    pub is_established: bool,
    /// TCP without a handshake that was seen, and nothing from the other side but resets.
    pub is_unsolicited: bool,
}

impl FlowSeen {
    /// Of a flow, at a packet that goes `way`.
    pub fn new(flow: &Flow, way: Way) -> FlowSeen {
        let other = flow.packets[way.reverse() as usize];
        let is_unsolicited = flow.tcp.as_ref().is_some_and(|tcp| {
            let has_reset = tcp.flags[way.reverse() as usize] & flag::RST != 0;
            tcp.state == State::None && (other == 0 || has_reset)
        });
        FlowSeen {
            id: flow.id,
            addresses: flow.addresses,
            ports: flow.ports,
            protocol: flow.protocol,
            is_to_client: way == Way::ToClient,
            first_us: flow.first_us,
            last_us: flow.last_us,
            packets: flow.packets,
            bytes: flow.bytes,
            is_established: match flow.protocol {
                ip::TCP => {
                    let has_handshake = flow.tcp.as_ref().is_some_and(|tcp| tcp.flags[1] & flag::SYN != 0);
                    matches!(flow.stage, Stage::Established | Stage::Closed) && has_handshake
                }
                _ => flow.is_answered(),
            },
            is_unsolicited,
        }
    }
}
