//! NFLOG over a raw netlink socket: copies of the packets that firewall rules log to a group.
//!
//! Sources: Linux include/uapi/linux/netfilter/nfnetlink_log.h, net/netfilter/nfnetlink_log.c. Each message of a group
//! has a number; numbers that are missing are packets for which there was no room, and are counted as that.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::CaptureError;
use crate::netlink::{Message, Netlink, Received, attributes, messages, word};

/// Copies that wait for us: what the ring of a sensor with rules holds at its default memory, twice.
const RECEIVE_BUFFER_BYTES: libc::c_int = 4 << 20;
/// Packets come in bundles of at most this size, or one that is larger by itself.
const BUNDLE_BYTES: u32 = 65_536;
/// The largest packet with its attributes, as an attribute's length of 16 bits and the kernel's own limit
/// (`NFULNL_NLBUFSIZ_MAX`) allow.
const MESSAGE_BYTES: usize = 131_072;
/// A bundle waits so long for more, in hundredths of a second; as a block of the capture ring does.
const BUNDLE_TIMEOUT_CS: u32 = 5;
/// Packets that make a bundle go out at once.
const BUNDLE_PACKETS: u32 = 64;
/// Datagrams that one call takes: time has to pass and lines have to go out meanwhile.
const MOST_DATAGRAMS: usize = 256;
/// The year 5138, as in capture files: later times are a broken field.
const LATEST_S: u64 = 100_000_000_000;

const SUBSYSTEM: u16 = 4 << 8; // NFNL_SUBSYS_ULOG
const MSG_PACKET: u16 = SUBSYSTEM;
const MSG_CONFIG: u16 = SUBSYSTEM | 1;
const CFG_CMD: u16 = 1;
const CFG_MODE: u16 = 2;
const CFG_NLBUFSIZ: u16 = 3;
const CFG_TIMEOUT: u16 = 4;
const CFG_QTHRESH: u16 = 5;
const CFG_FLAGS: u16 = 6;
const CMD_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const FLAG_SEQUENCE: u16 = 1;
const ATTR_PACKET_HDR: u16 = 1;
const ATTR_MARK: u16 = 2;
const ATTR_TIMESTAMP: u16 = 3;
const ATTR_INDEX_IN: u16 = 4;
const ATTR_INDEX_OUT: u16 = 5;
const ATTR_PAYLOAD: u16 = 9;
const ATTR_PREFIX: u16 = 10;
const ATTR_SEQUENCE: u16 = 12;

/// A packet that a firewall rule logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Logged<'a> {
    /// When it came in, microseconds since 1970-01-01 UTC; none for packets that this machine sends.
    pub time_us: Option<u64>,
    /// Its EtherType.
    pub ether_type: u16,
    /// The text that the rule gives, without the zero at its end.
    pub prefix: &'a [u8],
    /// The interface through which it came, 0 if through none.
    pub index_in: u32,
    /// The interface through which it goes, 0 if through none or not known yet.
    pub index_out: u32,
    /// The packet mark.
    pub mark: u32,
    /// Its number in the group.
    pub sequence: Option<u32>,
    /// From the IP header on.
    pub data: &'a [u8],
}

impl Logged<'_> {
    /// Return whether it is IP, version 4 or 6.
    pub fn is_ip(&self) -> bool {
        matches!(self.ether_type, 0x0800 | 0x86dd)
    }
}

/// What came, and what did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStatistics {
    /// Packets handed out.
    pub packets: u64,
    /// Packets that were logged and never came.
    pub lost: u64,
    /// How often the socket's buffer was full.
    pub overruns: u64,
}

/// One group that belongs to this process.
pub struct PacketLog {
    netlink: Netlink,
    buffer: Vec<u8>,
    expected: Option<u32>,
    statistics: LogStatistics,
}

impl PacketLog {
    /// Bind `group`; needs CAP_NET_ADMIN here, nothing afterwards. A group has one owner.
    pub fn bind(group: u16) -> Result<PacketLog, CaptureError> {
        let netlink = Netlink::open(RECEIVE_BUFFER_BYTES)?;
        // one message binds and sets up, so that no packet comes in between
        let mut message = Message::begin(MSG_CONFIG, libc::NLM_F_REQUEST | libc::NLM_F_ACK, group);
        message.attribute(CFG_CMD, &[CMD_BIND]);
        message.attribute(CFG_MODE, &[0, 0, 0xff, 0xff, COPY_PACKET, 0]);
        message.attribute(CFG_NLBUFSIZ, &BUNDLE_BYTES.to_be_bytes());
        message.attribute(CFG_TIMEOUT, &BUNDLE_TIMEOUT_CS.to_be_bytes());
        message.attribute(CFG_QTHRESH, &BUNDLE_PACKETS.to_be_bytes());
        message.attribute(CFG_FLAGS, &FLAG_SEQUENCE.to_be_bytes());
        netlink.send(&message.finish())?;
        netlink.await_acknowledgement(CaptureError::LogBusy(group))?;
        Ok(PacketLog { netlink, buffer: vec![0; MESSAGE_BYTES], expected: None, statistics: LogStatistics::default() })
    }

    /// Wait at most `timeout_ms` for packets, then hand those that are there to `see`, with the time of each in
    /// microseconds; return how many. A signal ends the waiting early.
    pub fn drain(&mut self, timeout_ms: i32, mut see: impl FnMut(&Logged<'_>, u64)) -> Result<usize, CaptureError> {
        if !self.netlink.wait(timeout_ms)? {
            return Ok(0);
        }
        let now_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_micros() as u64);
        let mut count = 0;
        let mut buffer = std::mem::take(&mut self.buffer); // borrowed apart from the counters
        for _ in 0..MOST_DATAGRAMS {
            match self.netlink.receive(&mut buffer) {
                Ok(Received::Nothing) => break,
                Ok(Received::Overrun) => self.statistics.overruns += 1,
                Ok(Received::Datagram(datagram)) => {
                    for (_, body) in messages(datagram).filter(|(kind, _)| *kind == MSG_PACKET) {
                        let logged = parse_logged(body);
                        self.account(&logged);
                        see(&logged, logged.time_us.unwrap_or(now_us));
                        count += 1;
                    }
                }
                Err(error) => {
                    self.buffer = buffer;
                    return Err(error.into());
                }
            }
        }
        self.buffer = buffer;
        Ok(count)
    }

    /// Return what was counted since the binding.
    pub fn statistics(&self) -> LogStatistics {
        self.statistics
    }

    fn account(&mut self, logged: &Logged<'_>) {
        self.statistics.packets += 1;
        self.statistics.lost += missing(&mut self.expected, logged.sequence);
    }
}

/// Return how many numbers lie between the expected one and this, and expect the next.
fn missing(expected: &mut Option<u32>, sequence: Option<u32>) -> u64 {
    let Some(sequence) = sequence else { return 0 };
    let before = expected.replace(sequence.wrapping_add(1));
    let gap = before.map_or(0, |before| sequence.wrapping_sub(before));
    // a number from before the expected one: the group was set up anew, and nothing can be said
    if gap > u32::MAX / 2 { 0 } else { gap.into() }
}

/// Read one message; what it does not have keeps its zero.
fn parse_logged(body: &[u8]) -> Logged<'_> {
    let mut logged = Logged::default();
    for (kind, value) in attributes(body) {
        match kind {
            ATTR_PACKET_HDR => {
                logged.ether_type = value.first_chunk::<2>().map_or(0, |word| u16::from_be_bytes(*word));
            }
            ATTR_MARK => logged.mark = word(value),
            ATTR_TIMESTAMP => logged.time_us = parse_time(value),
            ATTR_INDEX_IN => logged.index_in = word(value),
            ATTR_INDEX_OUT => logged.index_out = word(value),
            ATTR_PAYLOAD => logged.data = value,
            ATTR_PREFIX => logged.prefix = value.split(|byte| *byte == 0).next().unwrap_or_default(),
            ATTR_SEQUENCE => logged.sequence = Some(word(value)),
            _ => {}
        }
    }
    logged
}

/// Seconds and microseconds, 64 bits each, in network order.
fn parse_time(value: &[u8]) -> Option<u64> {
    let word =
        |at: usize| value.get(at..).and_then(|rest| rest.first_chunk::<8>()).map(|word| u64::from_be_bytes(*word));
    let (seconds, micros) = (word(0)?, word(8)?);
    (seconds <= LATEST_S && micros < 1_000_000).then(|| seconds * 1_000_000 + micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> Vec<u8> {
        let mut message = Message::begin(MSG_PACKET, 0, 5);
        message.attribute(ATTR_PACKET_HDR, &[0x08, 0x00, 1, 0]);
        message.attribute(ATTR_MARK, &[0, 0, 0, 7]);
        message.attribute(ATTR_TIMESTAMP, &[1_700_000_000_u64.to_be_bytes(), 250_000_u64.to_be_bytes()].concat());
        message.attribute(ATTR_INDEX_IN, &[0, 0, 0, 2]);
        message.attribute(ATTR_PREFIX, b"hello\0");
        message.attribute(ATTR_SEQUENCE, &[0, 0, 0, 9]);
        message.attribute(ATTR_PAYLOAD, &[0x45; 40]);
        message.finish().split_off(16)
    }

    #[test]
    fn a_logged_packet_is_read_with_what_the_kernel_says_of_it() {
        let bytes = body();
        let logged = parse_logged(&bytes);
        assert!(logged.is_ip());
        assert_eq!(logged.time_us, Some(1_700_000_000_250_000));
        assert_eq!((logged.prefix, logged.index_in, logged.index_out), (&b"hello"[..], 2, 0));
        assert_eq!((logged.mark, logged.sequence, logged.data), (7, Some(9), &[0x45; 40][..]));
    }

    #[test]
    fn cut_and_flipped_messages_never_panic() {
        let bytes = body();
        for end in 0..bytes.len() {
            let _ = parse_logged(&bytes[..end]);
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut flipped = bytes.clone();
                flipped[at] = value;
                let logged = parse_logged(&flipped);
                assert!(logged.data.len() <= bytes.len());
            }
        }
    }

    #[test]
    fn a_time_that_cannot_be_is_none() {
        assert_eq!(parse_time(&[0xff; 16]), None);
        assert_eq!(parse_time(&[0; 15]), None);
        assert_eq!(parse_time(&[[0; 8], 1_000_000_u64.to_be_bytes()].concat()), None);
    }

    #[test]
    fn missing_numbers_are_lost_packets() {
        let mut expected = None;
        let mut lost = |sequence| missing(&mut expected, sequence);
        assert_eq!([Some(5), Some(6), Some(9), None, Some(10)].map(&mut lost), [0, 0, 2, 0, 0]);
        assert_eq!([Some(0), Some(1)].map(&mut lost), [0, 0], "set up anew");
        assert_eq!([Some(u32::MAX - 1)].map(&mut lost), [0]);
        assert_eq!([Some(1)].map(&mut lost), [2], "past the largest number");
    }
}
