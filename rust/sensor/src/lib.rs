//! The network sensor's deciding half: bytes in, events out.
//!
//! Promises: no packet makes it panic, and nothing in it grows beyond the shares of one memory number
//! ([`Budget`]); whatever is refused for lack of room is a counter ([`Counters`]). It reads no clock, no
//! randomness, no file and no socket: time comes with each frame, the hash key from the caller.
//! Leaves to others: capturing (crate `capture`), deciding what to do about an alert (`tidegate.ids.response`).
//! Read first: `engine.rs`, then `flow.rs`.
#![forbid(unsafe_code)]

mod alarm;
mod budget;
mod community;
mod config;
mod counters;
mod decode;
mod engine;
mod eve;
mod event;
pub mod fields;
mod floods;
mod flow;
mod inline;
mod peers;
mod siphash;
mod sources;

pub use budget::Budget;
pub use community::{Tuple, community_id};
pub use config::{Config, ConfigError, FloodConfig, FlowEvents, ScanConfig};
pub use counters::{CaptureCounters, Counters};
pub use decode::{Address, Decoded, Direction, Frame, Link, Malformed, Packet, decode};
pub use engine::Sensor;
pub use eve::Timestamp;
pub use event::{Alert, Anomaly, Detector, Event, FlowEnd, FlowRecord, FlowState, Phase};
pub use inline::{FieldStream, Filtered, InlineCounters, Inspector, MARK_BITS, QueuedPacket, Verdict};
pub use peers::Proof;
pub use siphash::SipKey;
