//! One direction of one connection as a row of messages, and a memory of what was let through.
//!
//! The rule that everything rests on: **for each sequence number, only one value of the byte ever passes.** Then the
//! receiver cannot see another stream than the one that was judged, whatever is lost, repeated, or thrown away behind us.

use std::collections::VecDeque;

use crate::fields::{Judged, Rule, SessionState, judge};

/// Judged bytes remembered behind the edge. A Modbus client may have 16 requests of 260 bytes on their way (Modbus
/// messaging guide, 4.3: NumberMaxOfClientTransaction); this is twice that.
pub(crate) const HISTORY_BYTES: usize = 8192;
/// Alternations of judged and free bytes remembered: so many small messages with payload may be on their way.
const HISTORY_PIECES: usize = 64;
/// What a history grows by beyond need: fewer copies, little waste.
const GROWTH_BYTES: usize = 256;
/// Lists that a protocol's session keeps, besides the texts in them (MQTT: 32 topic aliases).
const SESSION_BYTES: usize = 2048;
/// The most that [`Stream::take`] comes to hold besides three copies of the bytes that it takes: in the message, in the
/// history, in the session.
pub(crate) const OVERHEAD_BYTES: usize = GROWTH_BYTES + 2 * HISTORY_PIECES * size_of::<Piece>() + SESSION_BYTES;

/// What a segment's new bytes were.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// The first message that the rule refuses, in words.
    pub refused: Option<String>,
    /// How many more there are; only counted where the stream goes on (observing).
    pub more: u32,
    /// Why the stream cannot be read any further.
    pub malformed: Option<&'static str>,
}

impl Findings {
    fn refuse(&mut self, what: String) {
        match self.refused {
            Some(_) => self.more += 1,
            None => self.refused = Some(what),
        }
    }
}

/// How repeated bytes compare with those that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overlap {
    Same,
    Different,
    /// Older than what is remembered.
    Forgotten,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    len: u32,
    /// A payload that no rule looks into: any bytes there are as good as any others.
    is_free: bool,
}

/// Bytes that passed, oldest first.
#[derive(Debug, Default)]
struct History {
    judged: Vec<u8>,
    pieces: VecDeque<Piece>,
    span: u64,
}

impl History {
    fn push_judged(&mut self, bytes: &[u8]) {
        if self.judged.capacity() - self.judged.len() < bytes.len() {
            self.judged.reserve_exact(bytes.len() + GROWTH_BYTES); // doubling would take more than the pool was asked for
        }
        self.judged.extend_from_slice(bytes);
        self.push_piece(bytes.len() as u32, false);
        if self.judged.len() > 2 * HISTORY_BYTES {
            self.shorten(HISTORY_BYTES); // seldom, so that moving the rest costs little for each byte
        }
    }

    fn push_piece(&mut self, len: u32, is_free: bool) {
        self.span += u64::from(len);
        match self.pieces.back_mut() {
            Some(last) if last.is_free == is_free && last.len.checked_add(len).is_some() => last.len += len,
            _ => self.pieces.push_back(Piece { len, is_free }),
        }
        while self.pieces.len() > HISTORY_PIECES {
            self.pop_piece();
        }
    }

    fn pop_piece(&mut self) {
        if let Some(piece) = self.pieces.pop_front() {
            self.span -= u64::from(piece.len);
            if !piece.is_free {
                self.judged.drain(..piece.len as usize);
            }
        }
    }

    /// Forget all but the last `keep` judged bytes.
    fn shorten(&mut self, keep: usize) {
        while self.judged.len() > keep {
            let excess = self.judged.len() - keep;
            match self.pieces.front_mut() {
                Some(piece) if !piece.is_free && piece.len as usize > excess => {
                    piece.len -= excess as u32;
                    self.span -= excess as u64;
                    self.judged.drain(..excess);
                }
                Some(_) => self.pop_piece(),
                None => return,
            }
        }
    }

    fn footprint(&self) -> usize {
        self.judged.capacity() + self.pieces.capacity() * size_of::<Piece>()
    }
}

/// A direction's reassembly.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    session: SessionState,
    /// The message that is not complete yet; its bytes have passed, except the one that would complete it.
    message: Vec<u8>,
    skip: u64,
    history: History,
}

impl Stream {
    /// Judge bytes that follow those taken before. Where something is found and `is_enforced`, the state is void.
    pub fn take(&mut self, rule: &Rule, bytes: &[u8], is_enforced: bool) -> Findings {
        let mut findings = Findings::default();
        if self.message.is_empty() {
            self.take_messages(rule, bytes, is_enforced, &mut findings);
        } else {
            let mut joined = std::mem::take(&mut self.message);
            joined.extend_from_slice(bytes);
            self.take_messages(rule, &joined, is_enforced, &mut findings);
        }
        findings
    }

    /// `bytes` begin at a message boundary or within a part that needs no look.
    fn take_messages(&mut self, rule: &Rule, mut bytes: &[u8], is_enforced: bool, findings: &mut Findings) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let count = bytes.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
                self.skip -= count as u64;
                self.history.push_piece(count as u32, true);
                bytes = &bytes[count..];
                continue;
            }
            let (len, skip) = match judge(rule, &mut self.session, bytes, false) {
                Judged::More => {
                    self.message = bytes.to_vec();
                    return;
                }
                Judged::Pass { len, skip } => (len, skip),
                Judged::Refuse { len, skip, what } => {
                    findings.refuse(what);
                    if is_enforced {
                        return;
                    }
                    (len, skip)
                }
                Judged::Malformed(why) => {
                    findings.malformed = Some(why);
                    return;
                }
            };
            let Some((judged, rest)) = bytes.split_at_checked(len).filter(|(judged, _)| !judged.is_empty()) else {
                findings.malformed = Some("a message of no length"); // no parser says so; it would be an endless loop
                return;
            };
            self.history.push_judged(judged);
            (self.skip, bytes) = (skip, rest);
        }
    }

    /// Compare `bytes`, the first of which is `back` before the edge, with what passed there; none may lie beyond it.
    pub fn compare(&self, back: u64, bytes: &[u8]) -> Overlap {
        let Some(mut at) = (self.history.span + self.message.len() as u64).checked_sub(back) else {
            return Overlap::Forgotten;
        };
        let (mut rest, mut base, mut judged_base) = (bytes, 0_u64, 0_usize);
        for piece in &self.history.pieces {
            let end = base + u64::from(piece.len);
            if at < end && !rest.is_empty() {
                let count = rest.len().min((end - at) as usize);
                let from = judged_base + (at - base) as usize;
                if !piece.is_free && self.history.judged.get(from..from + count) != Some(&rest[..count]) {
                    return Overlap::Different;
                }
                (at, rest) = (at + count as u64, &rest[count..]);
            }
            base = end;
            judged_base += if piece.is_free { 0 } else { piece.len as usize };
        }
        let from = at.saturating_sub(base) as usize;
        match rest.is_empty() || self.message.get(from..from + rest.len()) == Some(rest) {
            true => Overlap::Same,
            false => Overlap::Different,
        }
    }

    /// Begin at another place, in the hope that it is a message's beginning; what the session agreed upon stays.
    pub fn restart(&mut self) {
        (self.message, self.skip, self.history) = (Vec::new(), 0, History::default());
    }

    /// Forget all but the last `keep` judged bytes and give their memory back.
    pub fn shorten(&mut self, keep: usize) {
        self.history.shorten(keep);
        self.history.judged.shrink_to_fit();
        self.history.pieces.shrink_to_fit();
        if self.message.is_empty() {
            self.message = Vec::new();
        }
    }

    /// Return the bytes that this direction occupies besides its slot.
    pub fn footprint(&self) -> usize {
        self.message.capacity() + self.history.footprint() + self.session.heap_bytes()
    }
}
