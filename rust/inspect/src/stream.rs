//! One way of a TCP connection: bytes in order, whatever the order in which they came.
//!
//! Offsets are 64 bits wide and count from the byte behind the SYN. Two readers go along the bytes on their own: the
//! application's parser and the rules about raw streams. What both have passed is let go of.

use crate::defrag::{Overlap, without};

/// Stretches that wait for a gap before them; the peer's window holds no more segments than this in practice.
const MAX_BLOCKS: usize = 256;
/// What an allocation costs besides its bytes, at most: the allocator's header, and its least size of 32.
const ALLOCATION_BYTES: usize = 24;

#[derive(Debug)]
struct Block {
    at: u64,
    data: Vec<u8>,
}

impl Block {
    fn end(&self) -> u64 {
        self.at + self.data.len() as u64
    }
}

/// Bytes in order.
#[derive(Debug, Default)]
pub struct Stream {
    /// In order; between two of them bytes are missing.
    blocks: Vec<Block>,
    held: usize,
    /// The parser's place.
    pub app: u64,
    /// The place of rules about raw streams.
    pub raw: u64,
    /// What alerts show of the stream: its last bytes, with a note where some are missing. Kept only if alerts do.
    pub history: Vec<u8>,
    /// The end of what rules about raw streams have seen; inline, they see some bytes before it again.
    pub raw_seen: u64,
    /// The other side has confirmed everything before this.
    pub acked: u64,
    /// The highest byte seen, plus one.
    pub end: u64,
    /// Bytes are missing for good.
    pub has_gap: bool,
    /// Bytes behind the depth limit are not kept.
    pub is_deep: bool,
    /// Nothing is kept any more.
    pub is_off: bool,
    /// The most blocks there were at once: EVE's `tcp.ts_max_regions`.
    pub most_blocks: usize,
    /// Rules are to look at what there is now, however little.
    pub is_triggered: bool,
}

/// What happened to a segment's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Inserted {
    /// They were kept, at least in part.
    pub is_kept: bool,
    /// Bytes were there already …
    pub has_overlap: bool,
    /// … and were different.
    pub has_conflict: bool,
}

impl Stream {
    /// Bytes of the stream that are held.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Bytes on the heap, what allocations cost included: a sender may cut its stream into single bytes.
    pub fn heap_bytes(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(|block| block.data.capacity() + ALLOCATION_BYTES).sum();
        blocks + self.blocks.capacity() * size_of::<Block>() + self.history.capacity()
    }

    /// Put a segment in. `depth` (0: none) is where the sensor stops looking.
    pub fn insert(&mut self, offset: u64, data: &[u8], policy: Overlap, depth: u64) -> Inserted {
        let mut result = Inserted::default();
        if self.is_off || data.is_empty() {
            return result;
        }
        self.end = self.end.max(offset + data.len() as u64);
        let base = self.app.min(self.raw);
        let mut range = (offset.max(base), offset + data.len() as u64);
        if depth > 0 && range.1 > depth {
            self.is_deep = true;
            range.1 = depth;
        }
        if range.0 >= range.1 {
            result.has_overlap = offset < base;
            return result;
        }
        let piece = |from: u64, to: u64| data.get((from - offset) as usize..(to - offset) as usize).unwrap_or_default();
        // nearly always: right behind the last block, or the first one
        match self.blocks.last_mut() {
            Some(block) if block.end() == range.0 => {
                block.data.extend_from_slice(piece(range.0, range.1));
                self.held += (range.1 - range.0) as usize;
                result.is_kept = true;
            }
            Some(block) if range.0 < block.end() => {
                self.insert_slowly(range, (offset, offset + data.len() as u64), &piece, policy, &mut result);
            }
            _ => result.is_kept = self.put(range.0, piece(range.0, range.1)),
        }
        result
    }

    /// Put a block where none is; return whether there was room for it.
    fn put(&mut self, at: u64, data: &[u8]) -> bool {
        if self.blocks.len() >= MAX_BLOCKS {
            return false;
        }
        let place = self.blocks.partition_point(|block| block.at < at);
        self.blocks.insert(place, Block { at, data: data.to_vec() });
        self.held += data.len();
        self.most_blocks = self.most_blocks.max(self.blocks.len());
        true
    }

    fn insert_slowly<'d>(
        &mut self,
        range: (u64, u64),
        segment: (u64, u64),
        piece: &dyn Fn(u64, u64) -> &'d [u8],
        policy: Overlap,
        result: &mut Inserted,
    ) {
        let mut gaps = vec![range];
        for block in &mut self.blocks {
            let whole = (block.at, block.end());
            let common = (whole.0.max(range.0), whole.1.min(range.1));
            if common.0 >= common.1 {
                continue;
            }
            result.has_overlap = true;
            let new = piece(common.0, common.1);
            let place = (common.0 - whole.0) as usize..(common.1 - whole.0) as usize;
            let Some(there) = block.data.get_mut(place) else { continue };
            if there != new {
                result.has_conflict = true;
                if policy.prefers_new(segment, whole) {
                    there.copy_from_slice(new);
                }
            }
            gaps = gaps.into_iter().flat_map(|gap| without(gap, whole)).collect();
        }
        for (from, to) in gaps {
            result.is_kept |= self.put(from, piece(from, to));
        }
        self.join();
    }

    /// Make one block of those that touch.
    fn join(&mut self) {
        let mut joined: Vec<Block> = Vec::with_capacity(self.blocks.len());
        for block in self.blocks.drain(..) {
            match joined.last_mut() {
                Some(last) if last.end() == block.at => last.data.extend_from_slice(&block.data),
                _ => joined.push(block),
            }
        }
        self.blocks = joined;
    }

    /// Return the bytes from `from` on that are there without a gap, up to `to`.
    #[inline]
    pub fn contiguous(&self, from: u64, to: u64) -> &[u8] {
        let place = self.blocks.partition_point(|block| block.at <= from);
        let Some(block) = place.checked_sub(1).and_then(|place| self.blocks.get(place)) else { return &[] };
        let rest = block.data.get((from - block.at) as usize..).unwrap_or_default();
        let most = usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
        rest.get(..most).unwrap_or(rest)
    }

    /// Return how many bytes are missing at `from`, if something behind them is there; else 0.
    pub fn gap_at(&self, from: u64) -> u64 {
        if self.blocks.is_empty() || !self.contiguous(from, u64::MAX).is_empty() {
            return 0;
        }
        let place = self.blocks.partition_point(|block| block.at < from);
        self.blocks.get(place).map_or(0, |block| block.at - from)
    }

    /// Whether there are bytes behind those that rules have seen and a gap.
    pub fn has_beyond(&self) -> bool {
        self.blocks.last().is_some_and(|block| block.end() > self.raw)
    }

    /// Let go of what both readers have passed.
    #[inline]
    pub fn release(&mut self) {
        if self.held > 0 {
            self.release_to(if self.is_off { u64::MAX } else { self.app.min(self.raw) });
        }
    }

    fn release_to(&mut self, base: u64) {
        let over = self.blocks.iter().take_while(|block| block.end() <= base).count();
        for block in self.blocks.drain(..over) {
            self.held -= block.data.len();
        }
        let Some(first) = self.blocks.first_mut() else { return };
        // a copy of the rest costs as much as it frees: only when half is over
        if base > first.at && (base - first.at) * 2 >= first.data.len() as u64 {
            let count = (base - first.at) as usize;
            first.data.drain(..count);
            first.at = base;
            self.held -= count;
        }
    }

    /// Keep nothing any more.
    pub fn stop(&mut self) {
        self.is_off = true;
        self.blocks.clear();
        self.held = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(stream: &mut Stream, offset: u64, data: &[u8]) -> Inserted {
        stream.insert(offset, data, Overlap::Bsd, 0)
    }

    #[test]
    fn any_order_gives_the_same_bytes() {
        let whole = b"abcdefghijkl";
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
            let mut stream = Stream::default();
            for part in order {
                put(&mut stream, part * 3, &whole[part as usize * 3..part as usize * 3 + 3]);
            }
            assert_eq!(stream.contiguous(0, u64::MAX), whole);
        }
    }

    #[test]
    fn who_wins_an_overlap_is_the_policys_business() {
        let rows = [
            (Overlap::Bsd, 2, b"aaaabb"),
            (Overlap::Last, 2, b"aabbbb"),
            (Overlap::First, 2, b"aaaabb"),
            (Overlap::OldLinux, 0, b"bbbb__"),
        ];
        for (policy, at, expected) in rows {
            let mut stream = Stream::default();
            stream.insert(0, b"aaaa", policy, 0);
            let told = stream.insert(at, b"bbbb", policy, 0);
            assert!(told.has_conflict);
            let mut bytes = stream.contiguous(0, u64::MAX).to_vec();
            bytes.resize(6, b'_');
            assert_eq!(&bytes, expected, "{policy:?}");
        }
        let mut stream = Stream::default();
        put(&mut stream, 2, b"aaaa");
        put(&mut stream, 0, b"bbbb");
        assert_eq!(stream.contiguous(0, u64::MAX), b"bbbbaa");
    }

    #[test]
    fn what_both_readers_passed_is_let_go_of() {
        let mut stream = Stream::default();
        put(&mut stream, 0, &[1; 100]);
        (stream.app, stream.raw) = (100, 60);
        stream.release();
        assert_eq!((stream.held(), stream.contiguous(60, u64::MAX).len()), (40, 40));
        stream.raw = 100;
        stream.release();
        assert_eq!(stream.held(), 0);
        assert!(!put(&mut stream, 50, &[2; 50]).is_kept);
        put(&mut stream, 110, &[3; 5]);
        assert_eq!((stream.gap_at(100), stream.gap_at(110)), (10, 0));
    }

    #[test]
    fn the_depth_is_where_looking_ends() {
        let mut stream = Stream::default();
        stream.insert(0, &[1; 30], Overlap::Bsd, 20);
        assert_eq!((stream.held(), stream.is_deep), (20, true));
    }
}
