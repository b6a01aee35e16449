//! Signature rules: the Suricata language, from text to a match.
//!
//! Promises: a rule is loaded as written, or the report says how it was approximated or why it was refused; matching
//! takes a bounded number of steps for each rule and buffer, whatever the bytes are. Nothing here reads a clock, a
//! file or a socket: what rules refer to comes through [`Files`].
//! Leaves to others: which packet or transaction is looked at when (`sensor`), what an alert leads to.
//! Read first: `model.rs`, then `ruleset.rs`, `inspection.rs`.
#![forbid(unsafe_code)]

mod address;
mod bounded;
mod budget;
mod classes;
mod compile;
mod dataset;
mod effects;
mod facts;
mod header;
mod inspection;
mod model;
mod number;
mod order;
mod packet_test;
mod parse;
mod pcre;
mod port;
mod prefilter;
mod ranges;
mod registry;
mod ruleset;
mod shared;
mod threshold;
mod transform;
mod variables;

pub use budget::{Budget, Device, Reason, Selection, Service, choose};
pub use dataset::{DatasetId, DatasetTest, Datasets, Operation, ValueKind};
pub use effects::{
    Effect, Expiry, FlowState, FlowTest, HostKey, HostState, Operand, Owner, Reputation, ReputationSide, State,
};
pub use facts::{FlowFacts, PacketFacts};
pub use header::{Carrier, Direction, Header};
pub use inspection::{Builder, Context, Inspection, Lookup, Names, Piece, Subject};
pub use model::*;
pub use number::{Choice, Comparison};
pub use packet_test::{AppState, AppTest, AppView, Bits, PacketTest, Side};
pub use pcre::{Capture, CaptureScope, Pcre, Regexes};
pub use prefilter::{Found, Pattern, Prefilter};
pub use ruleset::{Entry, Environment, Files, Loader, Outcome, RuleSet, Source};
pub use threshold::{Decision, Limit, Threshold, Thresholds, Track};
pub use transform::Transform;
