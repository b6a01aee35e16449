//! What a rule is once it is loaded.

use std::sync::Arc;

use protocols::Way;

use crate::dataset::DatasetTest;
use crate::effects::{Effect, FlowTest};
use crate::header::Header;
use crate::inspection::Inspection;
use crate::number::Choice;
use crate::packet_test::PacketTest;
use crate::threshold::Threshold;
use crate::transform::Transform;

/// What a rule says is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Action {
    Pass,
    Drop,
    Reject(RejectTarget),
    Alert,
}

/// Who is told that the packet was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum RejectTarget {
    Source,
    Destination,
    Both,
}

/// When a rule is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// For every packet, malformed ones included (`pkthdr`, `decode-event`, `stream-event`).
    Decode,
    /// Only addresses and IP protocol matter: once for each way of a flow, or for each packet without one.
    IpOnly,
    /// For every packet of the header's transport.
    Packet,
    /// For transactions of application protocols.
    Transaction,
}

/// A rule. Lists are boxed slices and empty ones cost nothing: there may be twenty thousand.
#[derive(Debug)]
pub struct Signature {
    /// Generator id.
    pub gid: u32,
    /// Signature id.
    pub sid: u32,
    /// Revision.
    pub rev: u32,
    /// Where it was written: index of the file, and the line on which it begins, from 1.
    pub origin: (u16, u32),
    /// `msg`.
    pub message: Box<str>,
    /// Index into [`crate::RuleSet::classes`] plus one; 0 where there is no `classtype`.
    pub class: u16,
    /// 1 is the most urgent. From `priority`, else from the class, else 3.
    pub priority: u8,
    /// `metadata` as written, without quotes.
    pub metadata: Box<str>,
    /// `reference` options: system and id.
    pub references: Box<[(Arc<str>, Box<str>)]>,
    /// `target:src_ip` is `Some(true)`, `target:dest_ip` is `Some(false)`.
    pub target_is_source: Option<bool>,
    /// What is to be done.
    pub action: Action,
    /// `noalert`: effects only.
    pub is_silent: bool,
    /// When it is looked at.
    pub kind: Kind,
    /// Protocol, addresses, ports.
    pub header: Header,
    /// `flow`.
    pub flow: FlowGate,
    /// Packet keywords, cheapest first.
    pub packet_tests: Box<[PacketTest]>,
    /// flowbits, flowint, xbits, iprep, datasets on addresses, `stream_size` …: tests that need state, in written order.
    pub flow_tests: Box<[FlowTest]>,
    /// Contents without a buffer keyword.
    pub payload: Option<Box<Inspection>>,
    /// How `payload` is looked at in TCP.
    pub payload_scope: PayloadScope,
    /// Contents in buffers of packets (`ip.hdr`, `tcp.hdr`).
    pub packet_buffers: Box<[(PacketBuffer, Inspection)]>,
    /// Indices into `protocols::PROTOCOLS`: which protocols' transactions are looked at. Empty for other kinds.
    pub protocols: Arc<[u8]>,
    /// What has to match in a transaction, in written order.
    pub transaction_tests: Box<[TransactionTest]>,
    /// `http1:response_headers` in the header: only at this progress of this way, even without a test on it.
    pub hook: Option<(Way, u8)>,
    /// What a match does to state: `flowbits:set` …
    pub effects: Box<[Effect]>,
    /// `threshold` and `detection_filter`.
    pub threshold: Option<Box<Threshold>>,
    /// `bypass`, `tag`, `filestore` and what else is accepted and does nothing here stand in the report, not here.
    pub is_bypass: bool,
    /// `app-layer-protocol` and nothing else about packets: looked at once for each way of a flow, on the packet with
    /// which detection of the protocol came to an end in that way (found or given up).
    pub is_detection_only: bool,
}

/// The `flow` keyword.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowGate {
    /// `to_server`, `to_client` and their other names.
    pub way: Option<Way>,
    /// `established` is `Some(true)`, `not_established` is `Some(false)`.
    pub established: Option<bool>,
    /// `only_frag` is `Some(true)`, `no_frag` is `Some(false)`.
    pub fragment: Option<bool>,
    /// Any `flow` keyword that needs a flow: packets without one do not match.
    pub needs_flow: bool,
}

/// Where a payload's contents are looked for in TCP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum PayloadScope {
    /// `tcp-pkt`, `flow:no_stream`, `dsize`, …
    Packet,
    /// `tcp-stream`, `flow:only_stream`.
    StreamOnly,
    /// Plain `tcp`: in the stream; in a packet only if that is not part of one.
    Stream,
    /// With `depth` or `offset` or `stream_size`: in the stream, else in the packet.
    StreamOrPacket,
}

/// A part of the packet that contents can be looked for in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs)]
pub enum PacketBuffer {
    Ipv4Header,
    Ipv6Header,
    TcpHeader,
    UdpHeader,
    Icmpv4Header,
    Icmpv6Header,
    SourceAddress,
    DestinationAddress,
}

/// One condition on a transaction.
#[derive(Debug)]
pub enum TransactionTest {
    /// Contents in a buffer.
    Buffer(BufferTest),
    /// An integer.
    Number(NumberTest),
    /// A keyword of the protocol's own.
    Custom(CustomTest),
    /// `app-layer-event`: index of the protocol's event.
    Event {
        /// Index into `protocols::PROTOCOLS`.
        protocol: u8,
        /// Index into that protocol's `events`.
        event: u8,
    },
}

/// Contents in a buffer that may exist in several protocols (`file.data`).
#[derive(Debug)]
pub struct BufferTest {
    /// Which: by protocol, an index into its `buffers`.
    pub places: Arc<[(u8, u16)]>,
    /// What is done to the bytes first.
    pub transforms: Box<[Transform]>,
    /// What is looked for.
    pub inspection: Inspection,
    /// Data sets that the bytes are looked up in, after everything else of this buffer.
    pub datasets: Box<[DatasetTest]>,
    /// Only this way's buffer is meant (`=>` rules, `bidir.toserver`); `None`: whichever way the rule is looked at.
    pub way: Option<Way>,
}

/// An integer of a protocol.
#[derive(Debug)]
pub struct NumberTest {
    /// Which: by protocol, an index into its `numbers`.
    pub places: Arc<[(u8, u16)]>,
    /// What it must be.
    pub range: crate::number::Comparison,
    /// Which of several have to be so: [`Choice::matches`].
    pub choice: Choice,
}

/// A protocol, an index into its `keywords`, and the parsed argument.
pub type CustomPlace = (u8, u16, Box<dyn protocols::Custom>);

/// A keyword of a protocol's own.
pub struct CustomTest {
    /// By protocol, an index into its `keywords`, and the parsed argument.
    pub places: Box<[CustomPlace]>,
    /// `!` before the argument is the protocol's business; this is for keywords that the loader negates itself.
    pub is_negated: bool,
}

impl std::fmt::Debug for CustomTest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("CustomTest").field("places", &self.places.len()).finish_non_exhaustive()
    }
}
