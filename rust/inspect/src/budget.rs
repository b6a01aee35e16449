//! One number bounds everything: how it is divided.

use crate::flow::Flow;
use crate::tcp::Session;

/// Bytes of a flow's slot, its index entry, and the connection that most have.
const FLOW_BYTES: usize = size_of::<Flow>() + size_of::<Session>() + 64;
/// Shares in percent. The ring is the capture's; streams and parsers hold what flows have in flight; a quarter
/// is left to flows, which are what an attacker makes most of; the rest for fragments, output, and what is not counted.
const RING: usize = 15;
const FLOWS: usize = 25;
const STREAMS: usize = 40;
const DEFRAG: usize = 5;
const OUTPUT: usize = 5;
/// Fewer flows than this tell nothing.
const LEAST_FLOWS: usize = 64;

/// How much of each thing the memory number allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Budget {
    pub memory_bytes: usize,
    pub ring_bytes: usize,
    pub flows: usize,
    pub stream_bytes: usize,
    pub defrag_bytes: usize,
    pub output_bytes: usize,
}

impl Budget {
    /// Divide `memory_bytes`.
    pub fn divide(memory_bytes: usize) -> Budget {
        let share = |percent: usize| memory_bytes / 100 * percent;
        Budget {
            memory_bytes,
            ring_bytes: share(RING),
            flows: (share(FLOWS) / FLOW_BYTES).max(LEAST_FLOWS),
            stream_bytes: share(STREAMS),
            defrag_bytes: share(DEFRAG),
            output_bytes: share(OUTPUT).max(64 << 10),
        }
    }
}
