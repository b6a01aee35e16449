//! One number bounds everything: how it is divided.

use crate::event::Event;
use crate::floods::{BUCKET as FLOOD_BUCKET, Flood};
use crate::flow::Flow;
use crate::peers::{BUCKET as PEER_BUCKET, Peer};
use crate::sources::{BUCKET as SOURCE_BUCKET, Source};

/// Below this the tables are too small to tell a flood from a service.
pub const MIN_MEMORY_BYTES: usize = 2 << 20;
/// Table indices are 32 bits wide and a device has less.
pub const MAX_MEMORY_BYTES: usize = 1 << 30;

/// Shares in thousandths. The ring must bridge the time in which Linux does not schedule us (100,000 packets a second
/// are about 15 MB a second in the ring); flows are the most numerous thing to remember; 10 thousandths are
/// left for what is not counted here (allocator, lists of pending entries).
const RING: usize = 350;
const FLOWS: usize = 450;
const SOURCES: usize = 100;
const FLOODS: usize = 30;
const PEERS: usize = 10;
const OUTPUT: usize = 50;

/// The longest EVE line we write is an alert between two IPv6 addresses: 900 bytes measured, rounded up.
pub const EVE_LINE_BYTES: usize = 1024;

/// How many of each thing the memory number allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// For the capture ring, or the buffer of a capture file.
    pub ring_bytes: usize,
    /// Slots of the flow table.
    pub flows: usize,
    /// Sources watched for scans.
    pub sources: usize,
    /// Destinations watched for floods.
    pub floods: usize,
    /// Peers remembered as genuine.
    pub peers: usize,
    /// Events waiting to be read.
    pub events: usize,
}

impl Budget {
    /// Divide `memory_bytes`; the parts together are never larger.
    pub fn divide(memory_bytes: usize) -> Budget {
        let share = |thousandths: usize| memory_bytes / 1000 * thousandths;
        let whole = |count: usize, bucket: usize| (count / bucket).max(1) * bucket;
        Budget {
            ring_bytes: share(RING),
            flows: share(FLOWS) / FLOW_BYTES,
            sources: whole(share(SOURCES) / size_of::<Source>(), SOURCE_BUCKET),
            floods: whole(share(FLOODS) / size_of::<Flood>(), FLOOD_BUCKET),
            peers: whole(share(PEERS) / size_of::<Peer>(), PEER_BUCKET),
            events: share(OUTPUT) / (size_of::<Event>() + EVE_LINE_BYTES),
        }
    }

    /// Return what all parts together can occupy.
    pub fn total_bytes(&self) -> usize {
        self.ring_bytes
            + self.flows * FLOW_BYTES
            + self.sources * size_of::<Source>()
            + self.floods * size_of::<Flood>()
            + self.peers * size_of::<Peer>()
            + self.events * (size_of::<Event>() + EVE_LINE_BYTES)
    }
}

/// A slot and its share of the hash heads, of which there are at most two for each slot.
const FLOW_BYTES: usize = size_of::<Flow>() + 2 * size_of::<u32>();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_never_exceed_the_number() {
        for memory in [MIN_MEMORY_BYTES, 3_333_333, 12 << 20, 24 << 20, 100_000_007, MAX_MEMORY_BYTES] {
            let budget = Budget::divide(memory);
            assert!(budget.total_bytes() <= memory, "{memory}: {budget:?}");
            assert!(budget.total_bytes() > memory * 95 / 100, "{memory}: {budget:?}");
        }
    }
}
