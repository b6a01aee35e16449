//! Field rules: which messages of a protocol may reach a server, decided on whole messages.
//!
//! Promises: a message passes only when its bytes were read completely and a rule allows it; bytes after it, lengths
//! that disagree and answers where a request is due are refused. Each protocol names the most that it holds before it
//! decides. It keeps nothing but [`SessionState`], and that is bounded.
//! Leaves to others: putting segments in order, holding and answering packets (`inline`).
//! Read first: `rules.rs` (what an entry means), then one protocol, `modbus.rs`.

mod config;
mod rules;

pub use config::FieldConfigError;
pub use rules::{Protocol, Rule, RuleSet};

/// What becomes of the message at the front of the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// The message, or the part of it that is judged, is not all there yet.
    More,
    /// It may go on: `len` bytes were judged, `skip` bytes after them belong to it and need no look.
    Pass {
        /// Bytes of the judged part.
        len: usize,
        /// Bytes after the judged part that belong to the same message.
        skip: u64,
    },
    /// It was read and the rule does not allow it.
    Refuse {
        /// Bytes of the judged part.
        len: usize,
        /// Bytes after the judged part that belong to the same message.
        skip: u64,
        /// The offending fields, for the operator: "modbus function 6 unit 1 register 40".
        what: String,
    },
    /// It is no message of this protocol in this direction; where the next one begins is unknown.
    Malformed(&'static str),
}

/// What a flow's direction has to remember between messages: small, and bounded by constants.
#[derive(Debug, Clone, Default)]
pub struct SessionState {}

/// Judge the message at the front of `bytes`, which begin at a message boundary and hold all that has come so far.
///
/// `datagram`: the bytes are one whole datagram (or its rest); more will never come.
pub fn judge(rule: &Rule, state: &mut SessionState, bytes: &[u8], datagram: bool) -> Judged {
    let _ = (rule, state, bytes, datagram);
    Judged::Malformed("no parser yet")
}
