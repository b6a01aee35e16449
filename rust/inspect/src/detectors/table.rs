//! A table of fixed size: eight places for each bucket of a keyed hash, and a rule for who makes room.

use sensor::SipKey;

/// Places that an entry may be in: a bucket fills by chance long before the table does, with eight at some two thirds.
const BUCKET: usize = 8;

/// What a table holds.
pub trait Entry: Clone + Default {
    /// How much would be forgotten with it: entries with less make room for new ones, the longest silent among equals.
    fn weight(&self) -> u32;
}

/// What tables refused or gave up, for the statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TableCounters {
    pub created: u64,
    pub evicted: u64,
}

#[derive(Clone, Default)]
struct Place<const N: usize, V> {
    key: Option<[u64; N]>,
    last_us: u64,
    value: V,
}

/// Entries by keys of `N` words. Never grows; a key that an outsider chooses cannot be aimed at a bucket.
pub struct Table<const N: usize, V> {
    places: Vec<Place<N, V>>,
    key: SipKey,
    idle_us: u64,
    /// What happened so far.
    pub counters: TableCounters,
}

impl<const N: usize, V: Entry> Table<N, V> {
    /// Return an empty table within `bytes` (at least one bucket); entries silent for `idle_us` begin anew.
    pub fn new(bytes: usize, idle_us: u64, key: SipKey) -> Table<N, V> {
        let buckets = (bytes / size_of::<Place<N, V>>() / BUCKET).max(1);
        let empty = Place { key: None, last_us: 0, value: V::default() };
        Table { places: vec![empty; buckets * BUCKET], key, idle_us, counters: TableCounters::default() }
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.places.capacity() * size_of::<Place<N, V>>()
    }

    fn bucket(&self, key: &[u64; N]) -> std::ops::Range<usize> {
        let buckets = (self.places.len() / BUCKET).max(1) as u64;
        let number = ((self.key.hash(key) & 0xffff_ffff) * buckets) >> 32; // fewer than 2^32 buckets: the product fits
        let first = number as usize * BUCKET;
        first..first + BUCKET
    }

    /// Return where an entry is.
    pub fn find(&self, key: &[u64; N]) -> Option<usize> {
        let range = self.bucket(key);
        let first = range.start;
        let places = self.places.get(range)?;
        places.iter().position(|place| place.key.as_ref() == Some(key)).map(|index| first + index)
    }

    /// Return an entry that is there.
    pub fn get_mut(&mut self, key: &[u64; N]) -> Option<&mut V> {
        let index = self.find(key)?;
        self.places.get_mut(index).map(|place| &mut place.value)
    }

    /// Return the entry at a place, with its key.
    pub fn at_mut(&mut self, index: usize) -> Option<(&[u64; N], &mut V)> {
        let place = self.places.get_mut(index)?;
        Some((place.key.as_ref()?, &mut place.value))
    }

    /// Return the entry of a key, made where it is not there, and its place. Somebody may have to make room.
    pub fn enter(&mut self, key: &[u64; N], now_us: u64) -> Option<(usize, &mut V)> {
        let index = match self.find(key) {
            Some(index) => index,
            None => self.make(key, now_us)?,
        };
        let idle_us = self.idle_us;
        let place = self.places.get_mut(index)?;
        if now_us.saturating_sub(place.last_us) > idle_us {
            place.value = V::default();
        }
        place.last_us = now_us;
        Some((index, &mut place.value))
    }

    fn make(&mut self, key: &[u64; N], now_us: u64) -> Option<usize> {
        let range = self.bucket(key);
        let first = range.start;
        let idle_us = self.idle_us;
        let cost = |place: &Place<N, V>| match place.key {
            None => (0, 0, 0),
            Some(_) if now_us.saturating_sub(place.last_us) > idle_us => (1, 0, place.last_us),
            Some(_) => (2, place.value.weight(), place.last_us),
        };
        let places = self.places.get(range)?;
        let (index, _) = places.iter().enumerate().min_by_key(|(_, place)| cost(place))?;
        let place = self.places.get_mut(first + index)?;
        self.counters.created += 1;
        self.counters.evicted += u64::from(place.key.is_some());
        *place = Place { key: Some(*key), last_us: now_us, value: V::default() };
        Some(first + index)
    }
}

/// An address as two words of a key.
pub fn words(address: u128) -> [u64; 2] {
    [(address >> 64) as u64, address as u64]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Count(u32);

    impl Entry for Count {
        fn weight(&self) -> u32 {
            self.0
        }
    }

    #[test]
    fn the_suspicious_stay_while_a_million_others_pass() {
        let mut table: Table<1, Count> = Table::new(64 << 10, 1 << 40, SipKey([1, 2]));
        let bytes = table.bytes();
        if let Some((_, entry)) = table.enter(&[7], 0) {
            entry.0 = 9;
        }
        for number in 0..1_000_000_u64 {
            if let Some((_, entry)) = table.enter(&[number + 100], number) {
                entry.0 += 1;
            }
        }
        assert_eq!(table.get_mut(&[7]).map(|entry| entry.0), Some(9));
        assert_eq!(table.bytes(), bytes);
        assert!(table.counters.evicted > 900_000);
    }

    #[test]
    fn who_was_silent_too_long_begins_anew() {
        let mut table: Table<1, Count> = Table::new(4096, 10, SipKey([1, 2]));
        for (now_us, expected) in [(0, 1), (10, 2), (21, 1)] {
            let count = table.enter(&[7], now_us).map(|(_, entry)| {
                entry.0 += 1;
                entry.0
            });
            assert_eq!(count, Some(expected));
        }
    }
}
