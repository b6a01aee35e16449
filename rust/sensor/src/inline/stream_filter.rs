//! The same decisions for a proxy: bytes from a client in, the bytes that may go to the server out.

use crate::fields::{Judged, Protocol, Rule, SessionState, judge};

/// So much of a refused message is kept for an answer: Modbus/TCP's header and function code.
const HEAD_BYTES: usize = 8;
/// Refused messages of one call that are described; a call is one read of a socket.
const MAX_DESCRIBED: usize = 64;

/// What became of the bytes of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filtered {
    /// To be passed on: whole judged parts of messages that are allowed, and what belongs to them.
    pub allowed: Vec<u8>,
    /// What the rule does not allow, in words; bytes that are no message come last.
    pub violations: Vec<String>,
    /// The first bytes of each message that was read and held back.
    pub refused: Vec<Vec<u8>>,
    /// Nothing can be read any more: close, or (where the rule says so) pass all on.
    pub is_condemned: bool,
}

/// One direction of one connection, or the datagrams of one client.
#[derive(Debug)]
pub struct FieldStream {
    rule: Rule,
    is_datagram: bool,
    session: SessionState,
    message: Vec<u8>,
    skip: u64,
    is_condemned: bool,
    is_blind: bool,
}

impl FieldStream {
    /// Begin with nothing read.
    pub fn new(rule: Rule, is_datagram: bool) -> FieldStream {
        FieldStream {
            rule,
            is_datagram,
            session: SessionState::default(),
            message: Vec::new(),
            skip: 0,
            is_condemned: false,
            is_blind: false,
        }
    }

    /// Judge what came; with `is_datagram`, it is one whole datagram, of which all or nothing is allowed.
    pub fn feed(&mut self, bytes: &[u8]) -> Filtered {
        if self.is_datagram {
            return self.feed_datagram(bytes);
        }
        let mut filtered = Filtered { is_condemned: self.is_condemned, ..Filtered::default() };
        if self.is_blind {
            filtered.allowed.extend_from_slice(bytes);
        } else if !self.is_condemned {
            let mut joined = std::mem::take(&mut self.message);
            joined.extend_from_slice(bytes);
            self.feed_messages(&joined, &mut filtered);
        }
        filtered
    }

    fn feed_messages(&mut self, mut bytes: &[u8], filtered: &mut Filtered) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let count = bytes.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
                let (payload, rest) = bytes.split_at(count);
                self.skip -= count as u64;
                filtered.allowed.extend_from_slice(payload);
                bytes = rest;
                continue;
            }
            let verdict = judge(&self.rule, &mut self.session, bytes, false);
            let (len, skip, refused) = match verdict {
                Judged::More => {
                    self.message = bytes.to_vec();
                    return;
                }
                Judged::Pass { len, skip } => (len, skip, None),
                Judged::Refuse { len, skip, what } => (len, skip, Some(what)),
                Judged::Malformed(why) => return self.give_up(bytes, why, filtered),
            };
            let Some((judged, rest)) = bytes.split_at_checked(len).filter(|(judged, _)| !judged.is_empty()) else {
                return self.give_up(bytes, "a message of no length", filtered);
            };
            if let Some(what) = refused {
                note(what, filtered);
                if !self.rule.observe {
                    if filtered.refused.len() < MAX_DESCRIBED {
                        filtered.refused.push(judged.get(..HEAD_BYTES).unwrap_or(judged).to_vec());
                    }
                    // only of Modbus can one request be left out: every other is answered by its number all the same
                    if self.rule.protocol != Protocol::Modbus || skip > 0 {
                        (self.is_condemned, filtered.is_condemned) = (true, true);
                        return;
                    }
                    bytes = rest;
                    continue;
                }
            }
            filtered.allowed.extend_from_slice(judged);
            (self.skip, bytes) = (skip, rest);
        }
    }

    fn give_up(&mut self, bytes: &[u8], why: &str, filtered: &mut Filtered) {
        note(why.to_owned(), filtered);
        if self.rule.observe || self.rule.pass_unparsable {
            self.is_blind = true;
            filtered.allowed.extend_from_slice(bytes);
        } else {
            self.is_condemned = true;
            filtered.is_condemned = true;
        }
    }

    fn feed_datagram(&self, bytes: &[u8]) -> Filtered {
        let mut filtered = Filtered::default();
        let passes = match super::judge_datagram(&self.rule, bytes) {
            Ok(()) => true,
            Err(super::Fault::Refused(what)) => {
                note(what, &mut filtered);
                self.rule.observe
            }
            Err(super::Fault::Malformed(why)) => {
                note(why.to_owned(), &mut filtered);
                self.rule.observe || self.rule.pass_unparsable
            }
        };
        if passes {
            filtered.allowed.extend_from_slice(bytes);
        }
        filtered
    }
}

fn note(what: String, filtered: &mut Filtered) {
    if filtered.violations.len() < MAX_DESCRIBED {
        filtered.violations.push(what);
    }
}
