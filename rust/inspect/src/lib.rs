//! Deep inspection: streams, application protocols, signature rules, EVE records.
//!
//! Promises: no packet makes it panic; flows, streams, parsers, fragments and output stay within the shares of one
//! memory number, and whatever finds no room is counted. It reads no clock, no randomness, no file and no socket.
//! Leaves to others: capturing (crate `capture`), scans and floods (crate `sensor`), protocols (crate `protocols`),
//! the rule language (crate `signatures`).
//! Read first: `engine.rs`, then `detect.rs`.
#![forbid(unsafe_code)]

mod alerts;
mod app;
mod budget;
mod checksum;
mod chunks;
mod config;
mod counters;
mod defrag;
mod detect;
mod detectors;
mod engine;
mod eve;
mod expected;
mod fate;
mod feeding;
mod filter;
mod flow;
mod groups;
mod icmp;
mod layers;
mod memory;
mod output;
#[cfg(test)]
mod overlap_tests;
mod policies;
mod records;
mod reject;
mod stats;
mod stream;
mod tcp;
mod transactions;
mod transport;
mod tunnel;
mod verdict;
mod xff;

pub use budget::Budget;
pub use detect::Detector;
pub use detectors::{
    Config as DetectorConfig, Detectors, Evidence, Finding, FlowSeen, Home, Kind, KindInfo, Phase, Subject, Value,
    encode,
};
pub use engine::Inspector;
pub use fate::{Checksums, Verdict};
pub use filter::Filter;
pub use layers::{Layers, decode};
pub use reject::{Replies, encode_rejects};
