//! Addresses that have proved to be genuine: they completed a handshake and exchanged data both ways.
//!
//! A SYN or a datagram proves nothing about its sender. This table is what lets the response tell "an address that
//! has no business here" from "a peer whom somebody may be framing".

use crate::decode::Address;
use crate::siphash::SipKey;

/// Slots that an address may occupy.
pub(crate) const BUCKET: usize = 4;

#[derive(Clone, Copy, Default)]
pub(crate) struct Peer {
    address: Address,
    last_us: u64, // 0: free
}

pub(crate) struct Peers {
    slots: Box<[Peer]>,
    key: SipKey,
}

impl Peers {
    pub fn new(capacity: usize, key: SipKey) -> Peers {
        Peers { slots: vec![Peer::default(); capacity].into_boxed_slice(), key }
    }

    pub fn note(&mut self, address: Address, now_us: u64) {
        let bucket = self.bucket(address);
        let known = bucket.iter().position(|peer| peer.last_us != 0 && peer.address == address);
        let oldest = || bucket.iter().enumerate().min_by_key(|(_, peer)| peer.last_us).map(|(index, _)| index);
        if let Some(index) = known.or_else(oldest) {
            bucket[index] = Peer { address, last_us: now_us.max(1) };
        }
    }

    /// Return the seconds since `address` last proved itself.
    pub fn age_s(&mut self, address: Address, now_us: u64) -> Option<u32> {
        let bucket = self.bucket(address);
        let peer = bucket.iter().find(|peer| peer.last_us != 0 && peer.address == address)?;
        Some((now_us.saturating_sub(peer.last_us) / 1_000_000).min(u64::from(u32::MAX)) as u32)
    }

    fn bucket(&mut self, address: Address) -> &mut [Peer] {
        let number = self.key.bucket(&address.words(), self.slots.len() / BUCKET);
        &mut self.slots[number * BUCKET..(number + 1) * BUCKET]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_bucket_forgets_the_oldest() {
        let mut peers = Peers::new(BUCKET, SipKey([1, 2]));
        for number in 1..=5 {
            peers.note(Address::from_v4(number), u64::from(number) * 1_000_000);
        }
        assert_eq!(peers.age_s(Address::from_v4(1), 9_000_000), None);
        assert_eq!(peers.age_s(Address::from_v4(5), 9_000_000), Some(4));
    }
}
