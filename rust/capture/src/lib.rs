//! Where frames come from: a capture ring shared with the kernel, or a capture file read as a stream.
//!
//! Promises: a frame handed out lies wholly inside the ring block or buffer it came from; memory is bounded by the
//! caller's number; a malformed file ends the reading with a reason and never panics.
//! Leaves to others: what the frames mean (crate `sensor`).
//! Besides, packets that the kernel holds for a verdict (`queue.rs`) and copies that firewall rules log (`nflog.rs`).
//! Read first: `ring.rs`. The unsafe code of the whole workspace is in `ring.rs`, `netlink.rs` and `queue.rs`.

mod error;
mod file;
mod netlink;
mod nflog;
mod queue;
mod ring;

pub use error::CaptureError;
pub use file::{CaptureFile, FileEnd, MAX_RECORD_BYTES, Record};
pub use nflog::{LogStatistics, Logged, PacketLog};
pub use queue::{Answer, Queue, QueueStatistics, RawSender, Waiting};
pub use ring::{BLOCK_BYTES, Checksum, Ring, RingOptions, RingStatistics, Snap};
