//! What a rule may ask about the packet at hand and its flow.

use protocols::Way;

/// One decoded packet. Slices are empty where that layer is not there.
#[derive(Clone, Copy, Debug)]
pub struct PacketFacts<'a> {
    /// Microseconds since 1970.
    pub time_us: u64,
    /// The Ethernet header and its tags.
    pub link: &'a [u8],
    /// From the IP header's first byte to the packet's last (link-layer padding is cut).
    pub network: &'a [u8],
    /// How many bytes of `network` are IP header, extension headers included.
    pub network_header_bytes: usize,
    /// What the IP header carries, from the transport header's first byte.
    pub transport: &'a [u8],
    /// What the transport header carries.
    pub payload: &'a [u8],
    /// IANA number of the transport protocol.
    pub protocol: u8,
    /// IPv4 addresses are in their mapped form (`::ffff:a.b.c.d`).
    pub source: u128,
    /// Likewise.
    pub destination: u128,
    /// 0 where there are none.
    pub source_port: u16,
    /// Likewise.
    pub destination_port: u16,
    /// VLAN ids, outermost first.
    pub vlan: &'a [u16],
    /// What was wrong with it: `ipv4.trunc_pkt`, `stream.3whs_ack_in_wrong_dir`.
    pub events: &'a [&'static str],
    /// It was put into a reassembled stream, so rules about streams need not look at its payload.
    pub is_in_stream: bool,
    /// It is a packet that was made up from reassembled bytes because the flow ended.
    pub is_pseudo: bool,
    /// It was put together from fragments.
    pub is_reassembled: bool,
    /// A fragment (for `fragbits` and `flow:no_frag`), before it was put together.
    pub is_fragment: bool,
    /// Its place in the capture file, from 1.
    pub number: u64,
}

impl PacketFacts<'_> {
    /// Return whether it is an IPv4 packet.
    pub fn is_v4(&self) -> bool {
        self.network.first().is_some_and(|first| first >> 4 == 4)
    }

    /// Return whether it is an IPv6 packet.
    pub fn is_v6(&self) -> bool {
        self.network.first().is_some_and(|first| first >> 4 == 6)
    }
}

/// The flow of the packet at hand.
#[derive(Clone, Copy, Debug)]
pub struct FlowFacts {
    /// Which way the packet goes.
    pub way: Way,
    /// TCP: the handshake is complete; others: both sides have sent something.
    pub is_established: bool,
    /// Microseconds since the flow's first packet.
    pub age_us: u64,
    /// Packets by way, this one included.
    pub packets: [u64; 2],
    /// Bytes by way, this packet included.
    pub bytes: [u64; 2],
    /// Bytes of stream by way.
    pub stream_bytes: [u64; 2],
    /// Index in `protocols::PROTOCOLS`; `None` while unknown.
    pub app: Option<u8>,
    /// By way: what each side alone looks like (they may disagree).
    pub apps: [Option<u8>; 2],
    /// Nobody will find out any more which protocol it is.
    pub has_app_failed: bool,
    /// It is the first packet of the flow in any way.
    pub is_first_packet: bool,
}
