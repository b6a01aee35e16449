//! Integers in rules: `5`, `>5`, `!5`, `5-10`, `&0x80`.

/// What an integer must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// Exactly this.
    Equal(u64),
    /// Anything else.
    NotEqual(u64),
    /// Below.
    Below(u64),
    /// At most.
    AtMost(u64),
    /// Above.
    Above(u64),
    /// At least.
    AtLeast(u64),
    /// Between, the ends excluded.
    Between(u64, u64),
    /// Not between, nor at an end.
    NotBetween(u64, u64),
    /// Some of these bits are set (or, negated, none).
    Mask(u64, bool),
}

impl Comparison {
    /// Return whether `value` is so.
    #[inline]
    pub fn matches(self, value: u64) -> bool {
        match self {
            Comparison::Equal(other) => value == other,
            Comparison::NotEqual(other) => value != other,
            Comparison::Below(other) => value < other,
            Comparison::AtMost(other) => value <= other,
            Comparison::Above(other) => value > other,
            Comparison::AtLeast(other) => value >= other,
            Comparison::Between(low, high) => low < value && value < high,
            Comparison::NotBetween(low, high) => value <= low || value >= high,
            Comparison::Mask(bits, wanted) => (value & bits != 0) == wanted,
        }
    }
}
