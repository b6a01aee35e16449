//! The list of a flow's transactions that every parser keeps.

use std::collections::VecDeque;

/// Transactions by id, in the order in which they began. Ids count from 0 and are never reused.
#[derive(Debug)]
pub struct Transactions<T> {
    first: u64,
    list: VecDeque<Option<T>>,
    most: usize,
}

impl<T> Transactions<T> {
    /// Return an empty list that never holds more than `most`.
    pub fn new(most: usize) -> Transactions<T> {
        Transactions { first: 0, list: VecDeque::new(), most }
    }

    /// Append one and return its id; `None` where `most` are held already.
    pub fn push(&mut self, transaction: T) -> Option<u64> {
        if self.list.len() >= self.most {
            return None;
        }
        self.list.push_back(Some(transaction));
        Some(self.first + self.list.len() as u64 - 1)
    }

    /// Return one.
    pub fn get(&self, id: u64) -> Option<&T> {
        self.list.get(usize::try_from(id.checked_sub(self.first)?).ok()?)?.as_ref()
    }

    /// Return one to change it.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        self.list.get_mut(usize::try_from(id.checked_sub(self.first)?).ok()?)?.as_mut()
    }

    /// Return the youngest.
    pub fn last_mut(&mut self) -> Option<&mut T> {
        self.list.back_mut()?.as_mut()
    }

    /// Forget one.
    pub fn remove(&mut self, id: u64) {
        let index = id.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        if let Some(slot) = index.and_then(|index| self.list.get_mut(index)) {
            *slot = None;
        }
        while let Some(None) = self.list.front() {
            self.list.pop_front();
            self.first += 1;
        }
    }

    /// The first id held, and one behind the last: [`crate::Parser::range`].
    pub fn range(&self) -> (u64, u64) {
        (self.first, self.first + self.list.len() as u64)
    }

    /// Iterate over all with their ids.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        let first = self.first;
        self.list.iter_mut().enumerate().filter_map(move |(index, slot)| Some((first + index as u64, slot.as_mut()?)))
    }

    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}
