//! What was seen and, above all, what was refused: nothing is dropped in silence.

use crate::decode::Malformed;

/// Counters of one sensor since its start.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // the names are the documentation: they are the keys of docs/formats/eve.md
pub struct Counters {
    pub packets: u64,
    pub bytes: u64,
    pub ipv4: u64,
    pub ipv6: u64,
    pub arp: u64,
    pub other: u64,
    pub tcp: u64,
    pub udp: u64,
    pub icmp: u64,
    pub fragments: u64,
    pub malformed: [u64; Malformed::ALL.len()],
    pub flows_created: u64,
    pub flows_ended: u64,
    pub flows_evicted: u64,
    pub flows_refused: u64,
    pub sources_created: u64,
    pub sources_evicted: u64,
    pub sources_refused: u64,
    pub floods_created: u64,
    pub floods_evicted: u64,
    pub floods_refused: u64,
    pub alerts: u64,
    pub alerts_suppressed: u64,
    pub flow_records: u64,
    pub flow_records_suppressed: u64,
    pub events_refused: u64,
}

impl Counters {
    pub(crate) const ZERO: Counters = Counters {
        packets: 0,
        bytes: 0,
        ipv4: 0,
        ipv6: 0,
        arp: 0,
        other: 0,
        tcp: 0,
        udp: 0,
        icmp: 0,
        fragments: 0,
        malformed: [0; Malformed::ALL.len()],
        flows_created: 0,
        flows_ended: 0,
        flows_evicted: 0,
        flows_refused: 0,
        sources_created: 0,
        sources_evicted: 0,
        sources_refused: 0,
        floods_created: 0,
        floods_evicted: 0,
        floods_refused: 0,
        alerts: 0,
        alerts_suppressed: 0,
        flow_records: 0,
        flow_records_suppressed: 0,
        events_refused: 0,
    };
}

/// What the capture counted; the caller hands it in when it asks for the statistics.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct CaptureCounters {
    pub kernel_packets: u64,
    pub kernel_drops: u64,
    pub truncated_records: u64,
    pub unsupported_link: u64,
    /// How often a packet log's buffer was full; what was lost is in `kernel_drops`.
    pub overruns: u64,
    /// Resets and ICMP errors that told an end that its packet was refused.
    pub replies: u64,
    /// Those beyond the rate limit, which were not sent.
    pub replies_suppressed: u64,
}
