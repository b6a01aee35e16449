//! Sets of bytes.

/// A set of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Set([u64; 4]);

impl Set {
    /// `\s` as PCRE2 has it: with the vertical tab.
    pub const SPACE: &[(u8, u8)] = &[(9, 13), (b' ', b' ')];
    pub const DIGIT: &[(u8, u8)] = &[(b'0', b'9')];
    pub const WORD: &[(u8, u8)] = &[(b'0', b'9'), (b'A', b'Z'), (b'_', b'_'), (b'a', b'z')];
    /// `\h`, with the no-break space of Latin-1.
    pub const HORIZONTAL: &[(u8, u8)] = &[(b'\t', b'\t'), (b' ', b' '), (0xa0, 0xa0)];
    /// `\v`, with the next-line of Latin-1.
    pub const VERTICAL: &[(u8, u8)] = &[(10, 13), (0x85, 0x85)];

    pub fn of(ranges: &[(u8, u8)]) -> Set {
        let mut set = Set::default();
        ranges.iter().for_each(|&(low, high)| set.add_range(low, high));
        set
    }

    #[inline]
    pub fn contains(&self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] >> (byte & 63) & 1 != 0
    }

    pub fn add(&mut self, byte: u8) {
        self.0[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }

    pub fn add_range(&mut self, low: u8, high: u8) {
        (low..=high).for_each(|byte| self.add(byte));
    }

    pub fn add_all(&mut self, other: &Set) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, others)| *mine |= others);
    }

    pub fn inverted(&self) -> Set {
        Set(self.0.map(|word| !word))
    }

    /// Return it with both cases of each letter in it.
    pub fn caseless(&self) -> Set {
        let mut set = *self;
        for byte in (b'a'..=b'z').filter(|byte| self.contains(*byte) || self.contains(byte.to_ascii_uppercase())) {
            set.add(byte);
            set.add(byte.to_ascii_uppercase());
        }
        set
    }

    /// Return its ranges in order, for the automaton.
    pub fn ranges(&self) -> Vec<(u8, u8)> {
        let mut ranges: Vec<(u8, u8)> = Vec::new();
        for byte in (0..=u8::MAX).filter(|byte| self.contains(*byte)) {
            match ranges.last_mut() {
                Some(last) if last.1.checked_add(1) == Some(byte) => last.1 = byte,
                _ => ranges.push((byte, byte)),
            }
        }
        ranges
    }

    /// Return the byte, if there is exactly one in it.
    pub fn single(&self) -> Option<u8> {
        let count: u32 = self.0.iter().map(|word| word.count_ones()).sum();
        (count == 1).then(|| (0..=u8::MAX).find(|byte| self.contains(*byte))).flatten()
    }
}
