//! Field rules: which messages of a protocol may reach a server, decided on whole messages.
//!
//! Promises: a message passes only when its bytes were read completely and a rule allows it; bytes after it, lengths
//! that disagree and answers where a request is due are refused. Each protocol names the most that is held before it
//! decides. It keeps nothing but [`SessionState`], and that is bounded.
//! Leaves to others: putting segments in order, holding and answering packets (`inline`), what `observe` and
//! `unparsable` make of an answer.
//! Read first: `rules.rs` (what an entry means), then one protocol, `modbus.rs`.

mod bacnet;
mod coap;
mod config;
mod dnp3;
mod dns;
mod modbus;
mod mqtt;
mod patterns;
mod reader;
mod rules;

pub use config::FieldConfigError;
pub use rules::{Protocol, Rule, RuleSet};

/// The most bytes that [`judge`] ever asks for with [`Judged::More`]: the largest of the protocols' own bounds.
pub const MAX_JUDGED_BYTES: usize = mqtt::MAX_JUDGED;

/// What becomes of the message at the front of the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// The message, or the part of it that is judged, is not all there yet.
    More,
    /// It may go on: `len` bytes were judged, `skip` bytes after them belong to it and need no look.
    Pass {
        /// Bytes of the judged part, at least 1.
        len: usize,
        /// Bytes after the judged part that belong to the same message.
        skip: u64,
    },
    /// It was read and the rule does not allow it.
    Refuse {
        /// Bytes of the judged part, at least 1.
        len: usize,
        /// Bytes after the judged part that belong to the same message.
        skip: u64,
        /// What it said, for the operator: "modbus function 6 unit 1 register 40 value 1". Printable ASCII.
        what: String,
    },
    /// It is no message of this protocol in this direction; where the next one begins is unknown.
    Malformed(&'static str),
}

/// What a flow's direction has to remember between messages: small, and bounded by constants.
#[derive(Debug, Clone, Default)]
pub struct SessionState {
    mqtt: mqtt::Session,
}

impl SessionState {
    /// Bytes that it holds on the heap: count them against the inspector's budget.
    pub fn heap_bytes(&self) -> usize {
        self.mqtt.heap_bytes()
    }
}

/// Why a parser stops before it has judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    More,
    Malformed(&'static str),
}

/// What a parser found: the extent of a message and, if it must not pass, why.
struct Verdict {
    len: usize,
    skip: u64,
    refused: Option<String>,
}

impl Verdict {
    fn of(len: usize, refused: Option<String>) -> Verdict {
        Verdict { len, skip: 0, refused }
    }
}

/// Judge the message at the front of `bytes`, which begin at a message boundary and hold all that has come so far.
///
/// `datagram`: the bytes are one whole datagram (or what follows a first message in it); more will never come. The
/// state changes only together with an answer other than `More`.
pub fn judge(rule: &Rule, state: &mut SessionState, bytes: &[u8], datagram: bool) -> Judged {
    let judged = match rule.protocol {
        _ if bytes.is_empty() => Err(Stop::More),
        Protocol::Modbus => modbus::judge(rule, bytes),
        Protocol::Dnp3 => dnp3::judge(rule, bytes),
        Protocol::Bacnet => bacnet::judge(rule, bytes, datagram),
        Protocol::Mqtt => mqtt::judge(rule, &mut state.mqtt, bytes),
        Protocol::Coap if datagram => coap::judge_datagram(rule, bytes),
        Protocol::Coap => coap::judge_stream(rule, bytes),
        Protocol::Dns if datagram => dns::judge_datagram(rule, bytes),
        Protocol::Dns => dns::judge_stream(rule, bytes),
    };
    match judged {
        Ok(Verdict { len, skip, .. }) if datagram && (len > bytes.len() || skip > (bytes.len() - len) as u64) => {
            Judged::Malformed("a message is longer than its datagram")
        }
        Ok(Verdict { len, skip, refused: None }) => Judged::Pass { len, skip },
        Ok(Verdict { len, skip, refused: Some(what) }) => Judged::Refuse { len, skip, what },
        Err(Stop::More) if datagram => Judged::Malformed("a message is longer than its datagram"),
        Err(Stop::More) => Judged::More,
        Err(Stop::Malformed(why)) => Judged::Malformed(why),
    }
}

/// The first `count` bytes, or the wish for more of them.
fn whole(bytes: &[u8], count: usize) -> Result<&[u8], Stop> {
    bytes.get(..count).ok_or(Stop::More)
}

/// A parser's way to say that a message is none.
fn malformed<T>(why: &'static str) -> Result<T, Stop> {
    Err(Stop::Malformed(why))
}

#[cfg(test)]
mod tests;
