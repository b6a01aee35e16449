//! Signature rules: the Suricata language, from text to a match.
//!
//! Promises: a rule is loaded as written, or the report says how it was approximated or why it was refused; matching
//! takes a bounded number of steps for each rule and buffer, whatever the bytes are. Nothing here reads a clock, a
//! file or a socket: what rules refer to comes through [`Files`].
//! Leaves to others: which packet or transaction is looked at when (`sensor`), what an alert leads to.
//! Read first: `model.rs`, then `ruleset.rs`, `inspection.rs`.
#![forbid(unsafe_code)]

mod effects;
mod facts;
mod header;
mod inspection;
mod model;
mod number;
mod packet_test;
mod pcre;
mod prefilter;
mod ruleset;
mod threshold;
mod transform;

pub use effects::{Effect, FlowTest};
pub use facts::{FlowFacts, PacketFacts};
pub use header::Header;
pub use inspection::{Builder, Context, Inspection, Lookup, Names, Piece, Subject};
pub use model::*;
pub use number::Comparison;
pub use packet_test::PacketTest;
pub use pcre::{Capture, CaptureScope, Pcre, Regexes};
pub use prefilter::{Found, Pattern, Prefilter};
pub use ruleset::{Entry, Environment, Files, Outcome, RuleSet, Source};
pub use threshold::Threshold;
pub use transform::Transform;
