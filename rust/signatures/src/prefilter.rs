//! Which rules are worth a look: one Aho-Corasick automaton over the literals of a group of rules.

/// A literal that has to occur.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Its bytes.
    pub literal: Vec<u8>,
    /// Written by a person as `fast_pattern`.
    pub is_chosen: bool,
}

/// An automaton. Upper and lower case are the same to it: the rule itself looks closer.
#[derive(Debug)]
pub struct Prefilter {}

impl Prefilter {
    /// Build it from literals and the rules that want them. A literal may occur several times.
    pub fn build(_entries: &[(Vec<u8>, u32)]) -> Prefilter {
        Prefilter {}
    }

    /// Add to `found` every rule one of whose literals occurs in `data`.
    pub fn scan(&self, _data: &[u8], _found: &mut Found) {}

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        0
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

    /// Forget all.
    pub fn clear(&mut self) {
        for rule in self.rules.drain(..) {
            if let Some(word) = self.seen.get_mut(rule as usize / 64) {
                *word = 0;
            }
        }
    }
}
