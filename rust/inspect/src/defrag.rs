//! Fragments of IP packets put together, with one explicit rule for overlaps.
//!
//! Promises: at most [`Defrag::new`]'s bytes and [`MAX_TRACKERS`] packets are held; the oldest is given up first.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::layers::Layers;

/// Packets that are put together at one time.
const MAX_TRACKERS: usize = 1024;
/// Pieces of one packet: 64 KiB in the smallest useful pieces.
const MAX_PIECES: usize = 1024;
/// RFC 8200 section 4.5 gives up after a minute.
const TIMEOUT_US: u64 = 60_000_000;
/// An IP packet cannot be longer.
const MAX_PACKET: u32 = 65_535;
/// What a piece costs besides its bytes: its share of a tree node that is half empty, and an allocation.
const PIECE_BYTES: usize = 80;
/// What a packet that is being put together costs besides: its place in the table, its first node, and headers.
const TRACKER_BYTES: usize = 512;
/// Packets that are over stay in line until so many more of them than of others are there.
const MAX_STALE: usize = MAX_TRACKERS;

/// Who wins where two pieces (of a packet, or of a stream) claim the same bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub enum Overlap {
    /// The earlier one, except where the later begins before it.
    #[default]
    Bsd,
    /// The earlier one.
    First,
    /// The later one.
    Last,
    /// As BSD; a later piece that begins at the same place and is longer wins as well.
    OldLinux,
    /// The earlier one, except where the later begins before it and covers it.
    Windows,
    /// The earlier one, except where the later covers it.
    Solaris,
}

impl Overlap {
    /// Return the policy of that name in `host-os-policy`.
    pub fn from_name(name: &str) -> Option<Overlap> {
        Some(match name {
            "bsd" | "bsd-right" | "linux" | "hpux10" | "irix" => Overlap::Bsd,
            "first" | "macos" => Overlap::First,
            "last" => Overlap::Last,
            "old-linux" | "old_linux" => Overlap::OldLinux,
            "windows" | "windows2k3" | "vista" => Overlap::Windows,
            "solaris" | "hpux11" => Overlap::Solaris,
            _ => return None,
        })
    }

    /// Return whether the newer piece (`new`) replaces what the older one (`old`) has in common with it.
    pub fn prefers_new(self, new: (u64, u64), old: (u64, u64)) -> bool {
        match self {
            Overlap::First => false,
            Overlap::Last => true,
            Overlap::Bsd => new.0 < old.0,
            Overlap::OldLinux => new.0 < old.0 || (new.0 == old.0 && new.1 >= old.1),
            Overlap::Windows => new.0 < old.0 && new.1 >= old.1,
            Overlap::Solaris => new.0 <= old.0 && new.1 >= old.1,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    source: u128,
    destination: u128,
    id: u32,
    protocol: u8,
    vlan: [u16; 3],
}

struct Tracker {
    /// Frame bytes before the fragmented part, from the first fragment, with its fields patched.
    head: Option<Vec<u8>>,
    pieces: BTreeMap<u32, Vec<u8>>,
    total: Option<u32>,
    began_us: u64,
    serial: u64,
    bytes: usize,
}

/// Packets that are not complete yet.
pub struct Defrag {
    trackers: HashMap<Key, Tracker>,
    /// Oldest first; an entry whose tracker is gone, or is a later one with the same key, is over.
    order: VecDeque<(Key, u64)>,
    serial: u64,
    bytes: usize,
    most_bytes: usize,
    policy: Overlap,
    /// Packets that were given up for others.
    pub evicted: u64,
}

/// What became of a fragment.
pub struct Defragged {
    /// The whole frame: link header, IP header, data, when it is complete.
    pub frame: Option<Vec<u8>>,
    /// What was wrong.
    pub event: Option<&'static str>,
}

impl Defrag {
    /// Return an empty table that holds at most `most_bytes` of fragments.
    pub fn new(most_bytes: usize, policy: Overlap) -> Defrag {
        Defrag { trackers: HashMap::new(), order: VecDeque::new(), serial: 0, bytes: 0, most_bytes, policy, evicted: 0 }
    }

    /// How many packets are being put together.
    pub fn live(&self) -> usize {
        self.trackers.len()
    }

    #[cfg(test)]
    pub(crate) fn waiting_in_line(&self) -> usize {
        self.order.len()
    }

    /// Add one fragment.
    pub fn add(&mut self, layers: &Layers<'_>, now_us: u64) -> Defragged {
        let Some(fragment) = layers.fragment else { return Defragged { frame: None, event: None } };
        let is_v4 = layers.version == 4;
        let name = |v4, v6| Some(if is_v4 { v4 } else { v6 });
        let nothing = |event| Defragged { frame: None, event };
        let length = layers.payload.len() as u32;
        let Some(end) = fragment.offset.checked_add(length).filter(|end| *end <= MAX_PACKET) else {
            return nothing(name("ipv4.frag_pkt_too_large", "ipv6.frag_pkt_too_large"));
        };
        if fragment.has_more && !is_v4 && !length.is_multiple_of(8) {
            return nothing(Some("ipv6.frag_invalid_length"));
        }
        self.expire(now_us);
        let key = Key {
            source: layers.source,
            destination: layers.destination,
            id: fragment.id,
            protocol: if is_v4 { layers.protocol } else { 0 },
            vlan: layers.vlan,
        };
        self.make_room(key, length as usize);
        let policy = self.policy;
        let tracker = self.trackers.entry(key).or_insert_with(|| {
            self.serial += 1;
            self.order.push_back((key, self.serial));
            self.bytes += TRACKER_BYTES;
            Tracker::new(now_us, self.serial)
        });
        if tracker.pieces.len() >= MAX_PIECES {
            return nothing(name("ipv4.frag_ignored", "ipv6.frag_ignored"));
        }
        let before = tracker.bytes;
        let has_overlap = tracker.insert(fragment.offset, layers.payload, policy);
        if fragment.offset == 0 {
            tracker.set_head(patched_head(layers));
        }
        if !fragment.has_more && tracker.total.is_none() {
            tracker.total = Some(end);
        }
        self.bytes = (self.bytes + tracker.bytes).saturating_sub(before);
        let frame = tracker.whole();
        if frame.is_some() {
            self.remove(&key);
        }
        let event = if has_overlap { name("ipv4.frag_overlap", "ipv6.frag_overlap") } else { None };
        Defragged { frame, event }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(tracker) = self.trackers.remove(key) {
            self.bytes = self.bytes.saturating_sub(tracker.bytes);
        }
        // one packet that is never completed must not keep all that came after it in line
        if self.order.len() > self.trackers.len() + MAX_STALE {
            let trackers = &self.trackers;
            self.order.retain(|(key, serial)| trackers.get(key).is_some_and(|tracker| tracker.serial == *serial));
        }
    }

    fn expire(&mut self, now_us: u64) {
        while let Some((key, serial)) = self.order.front().copied() {
            match self.trackers.get(&key).filter(|tracker| tracker.serial == serial) {
                Some(tracker) if now_us.saturating_sub(tracker.began_us) < TIMEOUT_US => return,
                Some(_) => self.remove(&key),
                None => {}
            }
            self.order.pop_front();
        }
    }

    fn make_room(&mut self, wanted: Key, length: usize) {
        let length = length + PIECE_BYTES + TRACKER_BYTES;
        while (self.bytes + length > self.most_bytes || self.trackers.len() >= MAX_TRACKERS)
            && let Some((key, serial)) = self.order.pop_front()
        {
            if self.trackers.get(&key).is_none_or(|tracker| tracker.serial != serial) {
                continue;
            }
            if key != wanted {
                self.remove(&key);
                self.evicted += 1;
                continue;
            }
            self.order.push_back((key, serial));
            if self.trackers.len() == 1 {
                return;
            }
        }
    }
}

impl Tracker {
    fn new(began_us: u64, serial: u64) -> Tracker {
        Tracker { head: None, pieces: BTreeMap::new(), total: None, began_us, serial, bytes: TRACKER_BYTES }
    }

    fn set_head(&mut self, head: Option<Vec<u8>>) {
        let bytes = |head: &Option<Vec<u8>>| head.as_ref().map_or(0, Vec::len);
        self.bytes = (self.bytes + bytes(&head)).saturating_sub(bytes(&self.head));
        self.head = head;
    }

    /// Put `data` at `offset`; return whether bytes were there already.
    fn insert(&mut self, offset: u32, data: &[u8], policy: Overlap) -> bool {
        let new = (u64::from(offset), u64::from(offset) + data.len() as u64);
        let mut gaps = vec![new];
        let mut has_overlap = false;
        let old: Vec<(u32, u32)> = self.pieces.iter().map(|(at, piece)| (*at, *at + piece.len() as u32)).collect();
        for (start, end) in old {
            let piece = (u64::from(start), u64::from(end));
            if piece.1 <= new.0 || piece.0 >= new.1 {
                continue;
            }
            has_overlap = true;
            if policy.prefers_new(new, piece) {
                self.cut(start, new);
            } else {
                gaps = gaps.into_iter().flat_map(|gap| without(gap, piece)).collect();
            }
        }
        for (from, to) in gaps {
            let bytes = data.get((from - new.0) as usize..(to - new.0) as usize).unwrap_or_default();
            if !bytes.is_empty() {
                self.bytes += bytes.len() + PIECE_BYTES;
                self.pieces.insert(from as u32, bytes.to_vec());
            }
        }
        has_overlap
    }

    /// Take the bytes of `hole` out of the piece that begins at `start`.
    fn cut(&mut self, start: u32, hole: (u64, u64)) {
        let Some(piece) = self.pieces.remove(&start) else { return };
        self.bytes = self.bytes.saturating_sub(piece.len() + PIECE_BYTES);
        let whole = (u64::from(start), u64::from(start) + piece.len() as u64);
        for (from, to) in without(whole, hole) {
            let bytes = piece.get((from - whole.0) as usize..(to - whole.0) as usize).unwrap_or_default();
            self.bytes += bytes.len() + PIECE_BYTES;
            self.pieces.insert(from as u32, bytes.to_vec());
        }
    }

    /// Return the whole frame if every byte is there.
    fn whole(&self) -> Option<Vec<u8>> {
        let (total, head) = (self.total?, self.head.as_ref()?);
        // pieces do not overlap: fewer bytes than there must be are not all of them, and need no copy to see that
        if self.pieces.values().map(Vec::len).sum::<usize>() < total as usize {
            return None;
        }
        let mut frame = head.clone();
        let mut next = 0;
        for (at, piece) in &self.pieces {
            if *at > next {
                return None;
            }
            let skip = (next - at) as usize;
            frame.extend_from_slice(piece.get(skip..).unwrap_or_default());
            next = next.max(at + piece.len() as u32);
        }
        if next < total {
            return None;
        }
        frame.truncate(head.len() + total as usize);
        set_lengths(&mut frame, head.len(), total)
    }
}

/// Return the stretches of `whole` outside `hole`.
pub(crate) fn without(whole: (u64, u64), hole: (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    [(whole.0, whole.1.min(hole.0)), (whole.0.max(hole.1), whole.1)].into_iter().filter(|(from, to)| from < to)
}

/// Everything before the fragmented part, as if the packet had never been cut.
fn patched_head(layers: &Layers<'_>) -> Option<Vec<u8>> {
    let fragment = layers.fragment?;
    let network_at = layers.network.as_ptr().addr().checked_sub(layers.frame.as_ptr().addr())?;
    let mut head = layers.frame.get(..network_at)?.to_vec();
    match fragment.v6 {
        None => head.extend_from_slice(layers.network.get(..fragment.data_at)?),
        Some((header_at, number_at)) => {
            head.extend_from_slice(layers.network.get(..header_at)?);
            *head.get_mut(network_at + number_at)? = layers.protocol;
        }
    }
    Some(head)
}

/// Write the length, clear the fragment fields, and compute the checksum of IPv4 anew.
fn set_lengths(frame: &mut [u8], head_bytes: usize, data_bytes: u32) -> Option<Vec<u8>> {
    // the IP header is the last thing in the head; its version tells where it begins
    let v4 = |header: &[u8]| header.first().is_some_and(|first| first >> 4 == 4);
    for at in 0..head_bytes {
        let header = frame.get(at..head_bytes)?;
        let header_bytes = usize::from(header.first()? & 15) * 4;
        if v4(header) && header_bytes == header.len() && header_bytes >= 20 {
            let total = u16::try_from(header_bytes as u32 + data_bytes).ok()?;
            let header = frame.get_mut(at..head_bytes)?;
            header.get_mut(2..4)?.copy_from_slice(&total.to_be_bytes());
            header.get_mut(6..8)?.fill(0);
            header.get_mut(10..12)?.fill(0);
            let sum = crate::checksum::fold(crate::checksum::sum(header, 0));
            header.get_mut(10..12)?.copy_from_slice(&(!sum).to_be_bytes());
            return Some(frame.to_vec());
        }
        if header.first()? >> 4 == 6 && header.len() >= 40 {
            let length = u16::try_from(header.len() as u32 - 40 + data_bytes).ok();
            // the addresses of an Ethernet header may look like a version: only a plausible header counts
            if is_link_length(at) {
                frame.get_mut(at + 4..at + 6)?.copy_from_slice(&length?.to_be_bytes());
                return Some(frame.to_vec());
            }
        }
    }
    None
}

/// Whether a link layer of that many bytes exists: none, PPP, loopback, Ethernet with up to three tags, cooked.
fn is_link_length(bytes: usize) -> bool {
    matches!(bytes, 0 | 1 | 2 | 4 | 14 | 16 | 18 | 20 | 22 | 26)
}
