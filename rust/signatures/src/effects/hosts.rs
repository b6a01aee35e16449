//! Bits of hosts and of pairs of hosts, with the time at which they are forgotten.

use crate::bounded::Bounded;

/// Hosts and pairs held at once; then the one that was new the longest ago is forgotten. They take half a MiB with a bit
/// each, and 4 MiB if somebody manages to set all bits of all.
const MOST_KEYS: usize = 4 << 10;
/// Bits of one host.
const MOST_BITS: usize = 64;
const MICROSECONDS: u64 = 1_000_000;

/// Whose bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HostKey {
    /// One address.
    Host(u128),
    /// Two addresses, the lower first.
    Pair(u128, u128),
}

impl HostKey {
    /// Return the key of a pair, the same both ways.
    pub fn pair(one: u128, other: u128) -> HostKey {
        HostKey::Pair(one.min(other), one.max(other))
    }
}

/// The table. Bounded: 4 thousand hosts and pairs, 64 bits each.
#[derive(Debug)]
pub struct HostState {
    table: Bounded<HostKey, Vec<(u32, u64)>>,
}

impl Default for HostState {
    fn default() -> HostState {
        HostState { table: Bounded::new(MOST_KEYS) }
    }
}

impl HostState {
    /// Return whether a bit is set and not yet forgotten.
    pub fn has(&self, key: HostKey, bit: u32, now_us: u64) -> bool {
        self.table.get(&key).is_some_and(|bits| bits.iter().any(|(known, until)| *known == bit && *until >= now_us))
    }

    /// Set a bit for `expiry_s` seconds from now.
    pub fn set(&mut self, key: HostKey, bit: u32, now_us: u64, expiry_s: u32) {
        let until = now_us.saturating_add(u64::from(expiry_s).saturating_mul(MICROSECONDS));
        let bits = self.table.entry(key);
        if let Some(slot) = bits.iter_mut().find(|(known, _)| *known == bit) {
            slot.1 = until;
            return;
        }
        if bits.len() >= MOST_BITS {
            bits.retain(|(_, until)| *until >= now_us);
        }
        if bits.len() < MOST_BITS {
            bits.push((bit, until));
        }
    }

    /// Clear a bit.
    pub fn clear(&mut self, key: HostKey, bit: u32) {
        if let Some(bits) = self.table.get_mut(&key) {
            bits.retain(|(known, _)| *known != bit);
        }
    }

    /// How many hosts and pairs are held.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_forgotten_in_time_and_by_number() {
        let mut hosts = HostState::default();
        let key = HostKey::pair(9, 1);
        hosts.set(key, 3, 0, 10);
        assert!(hosts.has(HostKey::pair(1, 9), 3, 10 * MICROSECONDS) && !hosts.has(key, 3, 10 * MICROSECONDS + 1));
        for host in 0..MOST_KEYS as u128 + 5 {
            hosts.set(HostKey::Host(host), 1, 0, 1);
        }
        assert!(hosts.len() == MOST_KEYS && !hosts.has(key, 3, 0) && hosts.has(HostKey::Host(9), 1, 0));
        (0..1000).for_each(|bit| hosts.set(HostKey::Host(9), bit, 0, 1));
        hosts.set(HostKey::Host(9), 5000, MICROSECONDS * 2, 1);
        assert!(hosts.has(HostKey::Host(9), 5000, MICROSECONDS * 2));
    }
}
