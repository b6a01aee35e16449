//! The connections that are being inspected: bounded in number and in the bytes that they hold.
//!
//! A connection that is forgotten is refused when it speaks again (its place among the messages is lost), so what goes
//! first is what is over, then what never said anything, then what was silent for long.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use super::packet::Ends;
use super::stream::{OVERHEAD_BYTES, Stream};
use crate::siphash::SipKey;

/// How long a closed connection is remembered: its last acknowledgements may come late (conntrack: 120 s).
const CLOSED_US: u64 = 120_000_000;
/// How long one without data is: a client that opens ahead of its first request is asked to do so within this time.
const SILENT_US: u64 = 300_000_000;
/// How long an open one may be idle: masters poll within minutes; NAT devices keep two hours four minutes (RFC 5382).
const IDLE_US: u64 = 7_440_000_000;
/// In a full table: the same, shorter. Three seconds is a lost SYN and its repetition; ten minutes of silence is long.
const FULL_US: [u64; 3] = [1_000_000, 3_000_000, 600_000_000];
/// A full table, or an empty pool, is searched at most so often: the search looks at every connection.
const SEARCH_US: u64 = 1_000_000;
/// What a connection that is idle keeps of its history: more than any single message of the request protocols.
const KEPT_BYTES: usize = 512;

/// The four parts of the memory: one for the slots, three for what the connections hold.
const SLOT_SHARE: usize = 4;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Every byte is judged.
    Judged,
    /// The policy lets it pass although it cannot be read.
    Blind,
    /// Nothing passes any more; so many packets are still answered with resets.
    Condemned { resets: u8 },
}

/// One direction of one connection.
#[derive(Debug)]
pub(crate) struct Flow {
    pub state: State,
    pub rule_id: u8,
    pub initial: u32,
    /// The sequence number of the first byte that has not passed.
    pub edge: u32,
    pub has_data: bool,
    pub is_closed: bool,
    pub last_us: u64,
    pub stream: Stream,
}

impl Flow {
    pub fn begin(rule_id: u8, initial: u32, edge: u32, now_us: u64) -> Flow {
        Flow {
            state: State::Judged,
            rule_id,
            initial,
            edge,
            has_data: false,
            is_closed: false,
            last_us: now_us,
            stream: Stream::default(),
        }
    }

    fn is_over(&self, now_us: u64, [closed_us, silent_us, idle_us]: [u64; 3]) -> bool {
        let limit_us = match (self.is_closed, self.has_data || self.state != State::Judged) {
            (true, _) => closed_us,
            (false, false) => silent_us,
            (false, true) => idle_us,
        };
        now_us.saturating_sub(self.last_us) >= limit_us
    }
}

/// A connection's name, with its keyed hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    hash: u64,
    words: [u64; 5],
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// The key brings its hash along.
#[derive(Debug, Default)]
struct Through(u64);

impl Hasher for Through {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

/// What is known of the connections.
pub(crate) struct Table {
    flows: HashMap<Key, Flow, BuildHasherDefault<Through>>,
    key: SipKey,
    capacity: usize,
    pool_bytes: usize,
    held_bytes: usize,
    searched_us: [u64; 2],
    pub evicted: u64,
}

impl Table {
    pub fn new(memory_bytes: usize, key: SipKey) -> Table {
        let slot_bytes = 2 * (size_of::<Key>() + size_of::<Flow>() + 1); // a hash map may be half empty
        let capacity = (memory_bytes / SLOT_SHARE / slot_bytes).max(1);
        Table {
            flows: HashMap::with_capacity_and_hasher(capacity, BuildHasherDefault::default()),
            key,
            capacity,
            pool_bytes: memory_bytes - memory_bytes / SLOT_SHARE,
            held_bytes: 0,
            searched_us: [0; 2],
            evicted: 0,
        }
    }

    pub fn name(&self, ends: &Ends) -> Key {
        let (from, to) = (ends.source.words(), ends.destination.words());
        let ports = u64::from(ends.source_port) << 16 | u64::from(ends.destination_port);
        let words = [from[0], from[1], to[0], to[1], ports];
        Key { hash: self.key.hash(&words), words }
    }

    pub fn get(&mut self, key: &Key) -> Option<&mut Flow> {
        self.flows.get_mut(key)
    }

    /// Put a new connection in, or in the place of an old one; return it, or nothing where there is no room.
    pub fn insert(&mut self, key: Key, flow: Flow, now_us: u64) -> Option<&mut Flow> {
        if let Some(old) = self.flows.remove(&key) {
            self.held_bytes -= old.stream.footprint();
        }
        if self.flows.len() >= self.capacity && self.may_search(0, now_us) {
            self.forget(now_us, FULL_US);
        }
        if self.flows.len() >= self.capacity {
            return None;
        }
        Some(self.flows.entry(key).or_insert(flow))
    }

    /// Return whether a connection may come to hold `more` bytes; make room where there is some to be made.
    pub fn can_hold(&mut self, more: usize, now_us: u64) -> bool {
        let wanted = more.saturating_mul(3).saturating_add(OVERHEAD_BYTES);
        if self.held_bytes + wanted > self.pool_bytes && self.may_search(1, now_us) {
            for flow in self.flows.values_mut() {
                if now_us.saturating_sub(flow.last_us) >= SEARCH_US {
                    let before = flow.stream.footprint();
                    flow.stream.shorten(KEPT_BYTES);
                    self.held_bytes = self.held_bytes - before + flow.stream.footprint();
                }
            }
        }
        self.held_bytes + wanted <= self.pool_bytes
    }

    /// Account what a connection holds now and held before.
    pub fn account(&mut self, before: usize, after: usize) {
        self.held_bytes = self.held_bytes + after - before;
    }

    /// Forget what is over.
    pub fn expire(&mut self, now_us: u64) {
        self.forget(now_us, [CLOSED_US, SILENT_US, IDLE_US]);
    }

    pub fn live(&self) -> usize {
        self.flows.len()
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    fn may_search(&mut self, which: usize, now_us: u64) -> bool {
        let is_due = now_us.saturating_sub(self.searched_us[which]) >= SEARCH_US;
        if is_due {
            self.searched_us[which] = now_us;
        }
        is_due
    }

    fn forget(&mut self, now_us: u64, limits: [u64; 3]) {
        let before = self.flows.len();
        let held_bytes = &mut self.held_bytes;
        self.flows.retain(|_, flow| {
            let is_over = flow.is_over(now_us, limits);
            if is_over {
                *held_bytes -= flow.stream.footprint();
            }
            !is_over
        });
        self.evicted += (before - self.flows.len()) as u64;
    }
}
