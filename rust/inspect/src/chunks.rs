//! Stretches of a reassembled stream, as rules about raw streams look at them and as alerts show them.

use protocols::Way;

use crate::engine::{FlowStep, Inspector};
use crate::flow::Flow;
use crate::stream::Stream;

impl Inspector {
    /// The stretch of stream that rules about raw streams look at with this packet.
    pub(crate) fn chunk(&self, flow: &Flow, step: &FlowStep, is_pseudo: bool) -> Option<Vec<u8>> {
        let tcp = flow.tcp.as_ref()?;
        let stream = &tcp.sides[step.way as usize].stream;
        let is_inline = self.config.stream.is_inline;
        let limit = raw_limit(stream, is_inline, is_pseudo);
        let data = stream.contiguous(stream.raw, limit);
        // inline, a packet whose bytes were replaced by those that came first is looked at again
        let is_new = limit > stream.raw_seen || step.is_rewritten && !is_pseudo;
        if data.is_empty() || !is_new || (is_inline && !step.is_in_stream && !is_pseudo) {
            return None;
        }
        let is_enough = data.len() as u64 >= self.config.stream.chunk[step.way as usize];
        let is_due = is_enough || is_inline || is_pseudo || stream.is_triggered || stream.has_gap || stream.is_deep;
        is_due.then(|| data.to_vec())
    }

    /// Rules go on behind bytes that are missing for good.
    pub(crate) fn pass_gap(&mut self, flow: &mut Flow, way: Way, is_pseudo: bool) {
        let Some(tcp) = &mut flow.tcp else { return };
        let stream = &mut tcp.side(way).stream;
        let missing = stream.gap_at(stream.raw);
        let is_lost = is_pseudo || stream.raw + missing <= stream.app.max(stream.acked);
        if missing == 0 || !is_lost || self.config.stream.is_inline && !is_pseudo {
            return;
        }
        stream.raw += missing;
        self.remember(flow, way, format!("[{missing} bytes missing]").as_bytes());
    }

    /// Keep what alerts show of a stream: its last bytes.
    pub(crate) fn remember(&self, flow: &mut Flow, way: Way, bytes: &[u8]) {
        let output = &self.config.output;
        let Some(tcp) = flow.tcp.as_mut().filter(|_| output.payload || output.payload_printable) else { return };
        let stream = &mut tcp.side(way).stream;
        if self.config.stream.is_inline {
            stream.history.clear(); // a window that overlaps the last one
        }
        stream.history.extend_from_slice(bytes);
        let surplus = stream.history.len().saturating_sub(output.payload_buffer);
        stream.history.drain(..surplus);
    }
}

/// Where the bytes end that rules may see.
pub(crate) fn raw_limit(stream: &Stream, is_inline: bool, is_pseudo: bool) -> u64 {
    let limit = if is_inline || is_pseudo { stream.end } else { stream.acked.min(stream.end) };
    stream.raw + stream.contiguous(stream.raw, limit).len() as u64
}
