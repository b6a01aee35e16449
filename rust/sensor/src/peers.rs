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
    first_us: u64,
    last_us: u64, // 0: free
}

/// What an address has proved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proof {
    /// Seconds since its last proof.
    pub age_s: u32,
    /// Seconds since its first proof, unless there was none for [`FORGOTTEN_US`] in between.
    pub known_s: u32,
}

/// Who was silent for an hour is new: as long as the response remembers a peer.
const FORGOTTEN_US: u64 = 3_600_000_000;

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
        let last_us = now_us.max(1);
        let still_known = |peer: &Peer| last_us.saturating_sub(peer.last_us) < FORGOTTEN_US;
        let first_us = known.and_then(|index| bucket.get(index)).filter(|peer| still_known(peer));
        let first_us = first_us.map_or(last_us, |peer| peer.first_us);
        if let Some(place) = known.or_else(oldest).and_then(|index| bucket.get_mut(index)) {
            *place = Peer { address, first_us, last_us };
        }
    }

    /// Return what `address` has proved, if anything.
    pub fn proof(&mut self, address: Address, now_us: u64) -> Option<Proof> {
        let peer = self.bucket(address).iter().find(|peer| peer.last_us != 0 && peer.address == address)?;
        let age_s = |time_us: u64| u32::try_from(now_us.saturating_sub(time_us) / 1_000_000).unwrap_or(u32::MAX);
        Some(Proof { age_s: age_s(peer.last_us), known_s: age_s(peer.first_us) })
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
        assert_eq!(peers.proof(Address::from_v4(1), 9_000_000), None);
        assert_eq!(peers.proof(Address::from_v4(5), 9_000_000), Some(Proof { age_s: 4, known_s: 4 }));
    }

    #[test]
    fn a_peer_is_known_since_its_first_proof_until_it_is_silent_for_an_hour() {
        let (mut peers, address) = (Peers::new(BUCKET, SipKey([1, 2])), Address::from_v4(1));
        peers.note(address, 1_000_000);
        peers.note(address, 61_000_000);
        assert_eq!(peers.proof(address, 62_000_000), Some(Proof { age_s: 1, known_s: 61 }));
        peers.note(address, 61_000_000 + FORGOTTEN_US);
        assert_eq!(peers.proof(address, 63_000_000 + FORGOTTEN_US), Some(Proof { age_s: 2, known_s: 2 }));
    }
}
