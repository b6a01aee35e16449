//! A map that never grows beyond its bound: the entry that was new the longest ago makes room.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

#[derive(Debug)]
pub(crate) struct Bounded<K, V> {
    map: HashMap<K, V>,
    order: VecDeque<K>,
    most: usize,
}

impl<K: Copy + Eq + Hash, V: Default> Bounded<K, V> {
    pub fn new(most: usize) -> Bounded<K, V> {
        Bounded { map: HashMap::new(), order: VecDeque::new(), most }
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        self.map.get(key)
    }

    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.map.get_mut(key)
    }

    /// Return the entry, an empty one if it is new.
    pub fn entry(&mut self, key: K) -> &mut V {
        if !self.map.contains_key(&key) {
            while self.map.len() >= self.most
                && let Some(oldest) = self.order.pop_front()
            {
                self.map.remove(&oldest);
            }
            self.order.push_back(key);
        }
        self.map.entry(key).or_default()
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }
}
