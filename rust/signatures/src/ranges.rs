//! Sets of integers as sorted ranges that neither overlap nor touch: addresses and ports.

use std::fmt::Debug;

/// An integer that ranges are made of.
pub(crate) trait Whole: Copy + Ord + Debug {
    /// The least and the greatest.
    const ENDS: (Self, Self);
    /// One more, unless it is the greatest.
    fn after(self) -> Option<Self>;
    /// One less, unless it is the least.
    fn before(self) -> Option<Self>;
}

macro_rules! whole {
    ($($kind:ty),*) => {$(
        impl Whole for $kind {
            const ENDS: ($kind, $kind) = (<$kind>::MIN, <$kind>::MAX);
            fn after(self) -> Option<$kind> {
                self.checked_add(1)
            }
            fn before(self) -> Option<$kind> {
                self.checked_sub(1)
            }
        }
    )*};
}
whole!(u16, u128);

/// A set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ranges<T>(Box<[(T, T)]>);

impl<T: Whole> Ranges<T> {
    /// Everything.
    pub fn all() -> Ranges<T> {
        Ranges(Box::new([T::ENDS]))
    }

    /// The union of ranges, each with both ends.
    pub fn new(mut list: Vec<(T, T)>) -> Ranges<T> {
        list.retain(|(low, high)| low <= high);
        list.sort_unstable();
        let mut merged: Vec<(T, T)> = Vec::with_capacity(list.len());
        for (low, high) in list {
            match merged.last_mut() {
                Some(last) if last.1.after().is_none_or(|after| low <= after) => last.1 = last.1.max(high),
                _ => merged.push((low, high)),
            }
        }
        Ranges(merged.into_boxed_slice())
    }

    /// What is in `self` and not in `other`.
    pub fn without(&self, other: &Ranges<T>) -> Ranges<T> {
        let mut left = Vec::new();
        let mut holes = other.0.iter().peekable();
        for &(low, high) in &self.0 {
            let mut from = Some(low);
            while let (Some(start), Some(&&(hole_low, hole_high))) = (from, holes.peek()) {
                if hole_low > high {
                    break;
                }
                if let Some(before) = hole_low.before().filter(|before| *before >= start) {
                    left.push((start, before));
                }
                if hole_high >= start {
                    from = hole_high.after();
                }
                if hole_high > high {
                    break; // this hole reaches into the next range
                }
                holes.next();
            }
            left.extend(from.filter(|from| *from <= high).map(|from| (from, high)));
        }
        Ranges(left.into_boxed_slice())
    }

    /// Return whether `value` is in it. Takes steps by the logarithm of the number of ranges.
    #[inline]
    pub fn contains(&self, value: T) -> bool {
        let above = self.0.partition_point(|(low, _)| *low <= value);
        above.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|(_, high)| value <= *high)
    }

    /// Return whether something is in both.
    pub fn overlaps(&self, other: &Ranges<T>) -> bool {
        self.without(other) != *self
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn is_all(&self) -> bool {
        *self.0 == [T::ENDS]
    }

    pub fn as_slice(&self) -> &[(T, T)] {
        &self.0
    }
}

/// A list as rules write it: what is in, and what is not; with no word of what is in, everything is.
pub(crate) fn listed<T: Whole>(is_in: Vec<(T, T)>, has_positive: bool, out: Vec<(T, T)>) -> Ranges<T> {
    let all = if has_positive { Ranges::new(is_in) } else { Ranges::all() };
    all.without(&Ranges::new(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_agree_with_counting() {
        let mut seed = 7u32;
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u16 % 60
        };
        for _ in 0..500 {
            let mut list = || -> Vec<(u16, u16)> { (0..4).map(|_| (next(), next())).collect() };
            let (one, other) = (Ranges::new(list()), Ranges::new(list()));
            let left = one.without(&other);
            for value in 0..70 {
                assert_eq!(left.contains(value), one.contains(value) && !other.contains(value), "{one:?} {other:?}");
            }
            assert_eq!(one.overlaps(&other), (0..70).any(|value| one.contains(value) && other.contains(value)));
        }
    }

    #[test]
    fn the_ends_are_in() {
        let all = Ranges::<u128>::all();
        assert!(all.contains(0) && all.contains(u128::MAX) && all.is_all());
        assert!(all.without(&all).is_empty());
    }
}
