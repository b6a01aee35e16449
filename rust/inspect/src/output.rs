//! Lines that wait to be read: bounded in bytes, alerts served first.

use std::collections::VecDeque;

use crate::config::OutputConfig;

/// Everything but alerts leaves this part of the room free.
const ALERT_RESERVE_PERCENT: usize = 25;
/// The allocator's header and rounding.
const ALLOCATION_BYTES: usize = 24;

/// The queue.
pub struct Lines {
    queue: VecDeque<String>,
    bytes: usize,
    most_bytes: usize,
    /// Lines that found no room.
    pub refused: u64,
    /// Lines in all.
    pub written: u64,
    /// What is written.
    pub config: OutputConfig,
}

/// What a line costs while it waits: its place in the queue and the allocation included.
fn cost(line: &str) -> usize {
    line.len() + size_of::<String>() + ALLOCATION_BYTES
}

impl Lines {
    /// Return an empty queue.
    pub fn new(most_bytes: usize, config: OutputConfig) -> Lines {
        Lines { queue: VecDeque::new(), bytes: 0, most_bytes, refused: 0, written: 0, config }
    }

    /// Append a line, or count that there was no room.
    pub fn put(&mut self, mut line: String, is_alert: bool) {
        line.shrink_to_fit(); // lines are written with room to spare, and may wait for long
        let room = if is_alert { self.most_bytes } else { self.most_bytes * (100 - ALERT_RESERVE_PERCENT) / 100 };
        if self.bytes + cost(&line) > room && !self.queue.is_empty() {
            self.refused += 1;
            return;
        }
        self.bytes += cost(&line);
        self.written += 1;
        self.queue.push_back(line);
    }

    /// Take the oldest.
    pub fn take(&mut self) -> Option<String> {
        let line = self.queue.pop_front()?;
        self.bytes -= cost(&line);
        Some(line)
    }

    /// Whether they should be read.
    pub fn is_crowded(&self) -> bool {
        self.bytes > self.most_bytes / 4
    }
}
