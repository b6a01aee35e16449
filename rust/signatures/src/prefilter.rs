//! Which rules are worth a look: one pass over the bytes for the literals of a whole group of rules.
//!
//! Of each literal the four bytes are chosen that are rarest in traffic and among the literals. A bit table says for
//! four bytes of the data whether they may be such ones, which fits into a processor's first cache; only where it says
//! so the literals are compared. An automaton for ten thousand literals would take megabytes, and each byte of the
//! data would wait for memory. Hostile data can make at most as many comparisons for a byte as literals share four
//! bytes, which choosing keeps small.

mod build;
#[cfg(test)]
mod tests;

use build::Table;

/// A literal that has to occur.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Its bytes.
    pub literal: Vec<u8>,
    /// Written by a person as `fast_pattern`.
    pub is_chosen: bool,
}

impl Pattern {
    /// Return the pattern of a literal.
    pub fn new(literal: &[u8], is_chosen: bool) -> Pattern {
        Pattern { literal: literal.to_vec(), is_chosen }
    }

    /// Return how rarely it may be found where it means nothing: more for longer ones and for rarer bytes. Of a rule's
    /// patterns in several buffers, take a chosen one, else the strongest.
    pub fn strength(&self) -> u32 {
        let mut seen = [false; 256];
        let weights = self.literal.iter().map(|byte| {
            let was_seen = std::mem::replace(&mut seen[usize::from(*byte)], true);
            if was_seen { 1 } else { u32::from(rarity(*byte)) + 1 }
        });
        weights.fold(0, u32::saturating_add)
    }
}

/// Return how rare a byte is in traffic, from 1 (text and padding are full of it) to 6. Cases are alike.
pub(crate) fn rarity(byte: u8) -> u8 {
    match byte.to_ascii_lowercase() {
        0 | b' ' | b'e' | b't' | b'a' | b'o' | b'i' | b'n' | b's' | b'r' => 1,
        b'c' | b'd' | b'h' | b'l' | b'm' | b'p' | b'u' | b'/' | b'.' | b'0' | b'1' | b'=' => 2,
        b'a'..=b'w' | b'2'..=b'9' | b'\r' | b'\n' | b'-' | b':' | 0xff => 3,
        b'x' | b'y' | b'z' | b'"' | b'%' | b'&' | b',' | b';' | b'_' | b'<' | b'>' | b'(' | b')' | b'\'' | 1..=8 => 4,
        0x21..=0x7e => 5,
        _ => 6,
    }
}

/// The literals of a group of rules. Upper and lower case are the same to it: the rule itself looks closer.
#[derive(Debug, Default)]
pub struct Prefilter {
    /// By length of what is looked for in the data: four bytes, two, one. Empty ones cost nothing.
    quads: Table,
    pairs: Table,
    singles: Table,
}

impl Prefilter {
    /// Build it from literals and the rules that want them. A literal may occur several times; empty ones are left out.
    pub fn build(entries: &[(Vec<u8>, u32)]) -> Prefilter {
        let literals = build::merge(entries);
        let of = |lengths: std::ops::RangeInclusive<usize>| {
            literals.iter().filter(move |(literal, _)| lengths.contains(&literal.len()))
        };
        Prefilter {
            quads: Table::new::<4>(of(4..=usize::MAX)),
            pairs: Table::new::<2>(of(2..=3)),
            singles: Table::new::<1>(of(1..=1)),
        }
    }

    /// Add to `found` every rule one of whose literals occurs in `data`.
    pub fn scan(&self, data: &[u8], found: &mut Found) {
        self.quads.scan::<4>(data, found);
        self.pairs.scan::<2>(data, found);
        self.singles.scan_bytes(data, found);
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.quads.heap_bytes() + self.pairs.heap_bytes() + self.singles.heap_bytes()
    }
}

/// A set of rules, each once, in the order in which they were found; reused from packet to packet.
#[derive(Debug, Default)]
pub struct Found {
    /// The rules.
    pub rules: Vec<u32>,
    seen: Vec<u64>,
}

impl Found {
    /// Return an empty set of rules below `most`.
    pub fn new(most: usize) -> Found {
        Found { rules: Vec::new(), seen: vec![0; most.div_ceil(64)] }
    }

    /// Add one.
    #[inline]
    pub fn add(&mut self, rule: u32) {
        let Some(word) = self.seen.get_mut(rule as usize / 64) else { return };
        let bit = 1 << (rule % 64);
        if *word & bit == 0 {
            *word |= bit;
            self.rules.push(rule);
        }
    }

    /// Return whether it is in it.
    #[inline]
    pub fn contains(&self, rule: u32) -> bool {
        self.seen.get(rule as usize / 64).is_some_and(|word| word >> (rule % 64) & 1 != 0)
    }

    /// Forget all.
    pub fn clear(&mut self) {
        for rule in self.rules.drain(..) {
            if let Some(word) = self.seen.get_mut(rule as usize / 64) {
                *word = 0;
            }
        }
    }
}
