//! SipHash: a keyed hash, so that nobody outside can aim packets at one bucket of a table.
//!
//! Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF". Tables use one compression and three
//! finalisation rounds, as Rust's own `HashMap` does; the standard library does not let the key be handed in.

/// The secret of one sensor's tables, from the machine's random generator.
#[derive(Clone, Copy)]
pub struct SipKey(pub [u64; 2]);

impl SipKey {
    /// Hash whole 64-bit words; the caller packs its key into them without ambiguity.
    #[inline]
    pub fn hash(self, words: &[u64]) -> u64 {
        siphash::<1, 3>(self.0, words, 0, 0)
    }

    /// Return which of `buckets` the words belong to.
    #[inline]
    pub(crate) fn bucket(self, words: &[u64], buckets: usize) -> usize {
        let hash = self.hash(words) & 0xffff_ffff; // tables have far fewer buckets: the product fits 64 bits
        ((hash * buckets as u64) >> 32) as usize
    }
}

#[inline(always)]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[inline(always)]
fn siphash<const C: usize, const D: usize>(key: [u64; 2], words: &[u64], tail: u64, tail_bytes: u64) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    let total = (words.len() as u64).wrapping_mul(8).wrapping_add(tail_bytes);
    for &word in words.iter().chain(std::iter::once(&((total << 56) | tail))) {
        v[3] ^= word;
        for _ in 0..C {
            round(&mut v);
        }
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    for _ in 0..D {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paper_s_test_vector_holds_for_two_and_four_rounds() {
        // Appendix A of the paper: key 00..0f, message 00..0e
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let hash = siphash::<2, 4>(key, &[0x0706_0504_0302_0100], 0x000e_0d0c_0b0a_0908, 7);
        assert_eq!(hash, 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn one_and_three_rounds_agree_with_the_standard_library() {
        use std::hash::Hasher;
        #[allow(deprecated)]
        let mut reference = std::collections::hash_map::DefaultHasher::new(); // SipHash-1-3 with the zero key
        reference.write_u64(7);
        reference.write_u64(u64::MAX);
        assert_eq!(SipKey([0, 0]).hash(&[7, u64::MAX]), reference.finish());
    }
}
