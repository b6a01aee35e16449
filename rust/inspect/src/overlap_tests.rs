//! Random segments and fragments, put together by the code and by a byte-by-byte reference.

use sensor::Link;

use crate::defrag::{Defrag, Overlap};
use crate::layers::decode;
use crate::stream::Stream;

const POLICIES: [Overlap; 6] =
    [Overlap::Bsd, Overlap::First, Overlap::Last, Overlap::OldLinux, Overlap::Windows, Overlap::Solaris];
/// Bytes of a stream or packet: small, so that pieces meet.
const SPACE: usize = 64;
const ROUNDS: u64 = 3000;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

/// Bytes with who brought them. What lies together of one bringer (or, for streams, lies together at all) is a piece.
struct Reference {
    bytes: [Option<(u8, usize)>; SPACE],
    is_joined: bool,
}

impl Reference {
    fn new(is_joined: bool) -> Reference {
        Reference { bytes: [None; SPACE], is_joined }
    }

    fn is_same(&self, one: usize, other: usize) -> bool {
        match (self.bytes[one], self.bytes[other]) {
            (Some(one), Some(other)) => self.is_joined || one.1 == other.1,
            _ => false,
        }
    }

    fn piece(&self, at: usize) -> (u64, u64) {
        let start = (0..at).rev().take_while(|place| self.is_same(*place, place + 1)).last().unwrap_or(at);
        let end = (at + 1..SPACE).take_while(|place| self.is_same(*place, place - 1)).last().unwrap_or(at);
        (start as u64, end as u64 + 1)
    }

    fn put(&mut self, at: usize, data: &[u8], policy: Overlap, number: usize) {
        let new = (at as u64, (at + data.len()) as u64);
        let winners: Vec<bool> = (at..at + data.len())
            .map(|place| self.bytes[place].is_none() || policy.prefers_new(new, self.piece(place)))
            .collect();
        for (index, byte) in data.iter().enumerate().filter(|(index, _)| winners[*index]) {
            self.bytes[at + index] = Some((*byte, number));
        }
    }

    /// The bytes from the first on, up to what is missing.
    fn beginning(&self) -> Vec<u8> {
        self.bytes.iter().map_while(|byte| byte.map(|(value, _)| value)).collect()
    }
}

/// A random place in units of `unit` bytes, and bytes that no other piece has.
fn piece(random: &mut Random, unit: usize, number: usize) -> (usize, Vec<u8>) {
    let at = random.below(SPACE / unit) * unit;
    let length = (1 + random.below(20 / unit + 1)) * unit;
    let length = length.min(SPACE - at);
    (at, (0..length).map(|index| (number * 16 + index % 16) as u8).collect())
}

#[test]
fn a_stream_is_what_its_policy_says_byte_by_byte() {
    for policy in POLICIES {
        for round in 0..ROUNDS {
            let mut random = Random(round);
            let (mut stream, mut reference) = (Stream::default(), Reference::new(true));
            for number in 0..12 {
                let (at, data) = piece(&mut random, 1, number);
                stream.insert(at as u64, &data, policy, 0);
                reference.put(at, &data, policy, number);
                let told = stream.contiguous(0, u64::MAX);
                assert_eq!(told, reference.beginning(), "{policy:?}, round {round}, piece {number} at {at}");
            }
            for at in 0..SPACE {
                let told = stream.contiguous(at as u64, at as u64 + 1).first().copied();
                assert_eq!(told, reference.bytes[at].map(|(byte, _)| byte), "{policy:?}, round {round}, byte {at}");
            }
        }
    }
}

#[test]
fn readers_that_move_on_change_no_byte_of_what_follows() {
    for round in 0..ROUNDS {
        let mut random = Random(round);
        let (mut stream, mut reference) = (Stream::default(), Reference::new(true));
        let mut base = 0;
        for number in 0..14 {
            let (at, data) = piece(&mut random, 1, number);
            stream.insert(at as u64, &data, Overlap::First, 0);
            reference.put(at, &data, Overlap::First, number);
            let there = stream.contiguous(base, u64::MAX).len();
            assert_eq!(stream.contiguous(base, u64::MAX), &reference.beginning()[base as usize..]);
            base += random.below(there + 1) as u64;
            (stream.app, stream.raw) = (base, base + random.below(2) as u64 * (there as u64).min(1));
            stream.raw = stream.raw.min(base + stream.contiguous(base, u64::MAX).len() as u64);
            stream.release();
            assert!(stream.held() <= SPACE && stream.heap_bytes() < 16 << 10);
        }
    }
}

fn frame(offset: usize, has_more: bool, data: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((20 + data.len() as u16).to_be_bytes());
    frame.extend([0, 9]);
    frame.extend(((u16::from(has_more) << 13) | (offset as u16 / 8)).to_be_bytes());
    frame.extend([64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend(data);
    frame
}

#[test]
fn a_packet_of_fragments_is_what_its_policy_says_byte_by_byte() {
    let mut completed = 0;
    for policy in POLICIES {
        for round in 0..ROUNDS {
            let mut random = Random(round);
            let (mut defrag, mut reference) = (Defrag::new(1 << 20, policy), Reference::new(false));
            let mut has_end = false;
            for number in 0..15 {
                let (at, data) = piece(&mut random, 8, number);
                let is_end = at + data.len() == SPACE;
                let bytes = frame(at, !is_end, &data);
                let told = defrag.add(&decode(&bytes, Link::Ethernet), 1);
                reference.put(at, &data, policy, number);
                has_end |= is_end;
                let expected = Some(reference.beginning()).filter(|bytes| has_end && bytes.len() == SPACE);
                let whole = told.frame.map(|frame| frame[34..].to_vec());
                assert_eq!(whole, expected, "{policy:?}, round {round}, piece {number} at {at}");
                if whole.is_some() {
                    completed += 1;
                    assert_eq!(defrag.live(), 0);
                    break;
                }
            }
        }
    }
    assert!(completed > POLICIES.len() as u64 as usize * ROUNDS as usize / 10, "{completed}");
}

#[test]
fn packets_that_are_completed_behind_one_that_is_not_leave_nothing_behind() {
    let mut defrag = Defrag::new(1 << 20, Overlap::Bsd);
    let mut first = frame(0, true, &[1; 8]);
    first[26] = 99;
    defrag.add(&decode(&first, Link::Ethernet), 1);
    for number in 0..50_000_u32 {
        let mut parts = [frame(0, true, &[1; 8]), frame(8, false, &[2; 8])];
        for part in &mut parts {
            part[27..30].copy_from_slice(&number.to_be_bytes()[1..]);
        }
        assert!(defrag.add(&decode(&parts[0], Link::Ethernet), 2).frame.is_none());
        assert!(defrag.add(&decode(&parts[1], Link::Ethernet), 2).frame.is_some());
        assert!(defrag.waiting_in_line() <= 4096, "packet {number}");
    }
    assert_eq!((defrag.live(), defrag.evicted), (1, 0));
}

#[test]
fn single_bytes_are_counted_with_what_their_allocations_cost() {
    let mut stream = Stream::default();
    for place in 0..1000 {
        stream.insert(place * 2, b"x", Overlap::Bsd, 0);
    }
    assert!(stream.held() <= 256 && stream.heap_bytes() >= stream.held() * 40);
    let mut defrag = Defrag::new(64 << 10, Overlap::Bsd);
    for number in 0..5000_u16 {
        let mut bytes = frame(8, true, &[1; 8]);
        bytes[18..20].copy_from_slice(&number.to_be_bytes());
        defrag.add(&decode(&bytes, Link::Ethernet), 1);
    }
    assert!(defrag.live() <= 128 && defrag.evicted > 4000, "{} live", defrag.live());
}
