//! NFQUEUE over a raw netlink socket: packets that the kernel holds until we say what becomes of them.
//!
//! Sources: Linux include/uapi/linux/netfilter/nfnetlink_queue.h; net/netfilter/nfnetlink_queue.c. Without `F_FAIL_OPEN`
//! a full queue drops; it is set only where the caller asks for it. `F_GSO` is never set: the kernel then cuts what was
//! joined on the way in into real packets with real checksums before it shows them to us, and a verdict falls on one
//! segment or datagram, never on a bundle of them.
//!
//! The kernel wants CAP_NET_ADMIN for each verdict, not only for the binding.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::error::CaptureError;
use crate::netlink::{Message, Netlink, Received, attributes, error_number, messages, socket, word};

/// Packets that wait for a verdict in the kernel; 1,024 (its own default) are 1.5 MB of full frames.
const QUEUE_PACKETS: u32 = 1024;
/// Copies of them that wait for us: the same number of full frames with their attributes, as the kernel accounts them.
const RECEIVE_BUFFER_BYTES: libc::c_int = 8 << 20;
/// The largest IP packet, and room for the attributes around it.
const MESSAGE_BYTES: usize = 65_535 + 1_024;
/// Packets for which verdicts are collected before they go to the kernel in one call.
const BATCH_PACKETS: usize = 64;

const SUBSYSTEM: u16 = 3 << 8; // NFNL_SUBSYS_QUEUE
const MSG_PACKET: u16 = SUBSYSTEM;
const MSG_VERDICT: u16 = SUBSYSTEM | 1;
const MSG_CONFIG: u16 = SUBSYSTEM | 2;
const CFG_CMD: u16 = 1;
const CFG_PARAMS: u16 = 2;
const CFG_QUEUE_MAXLEN: u16 = 3;
const CFG_MASK: u16 = 4;
const CFG_FLAGS: u16 = 5;
const FLAG_FAIL_OPEN: u32 = 1;
const FLAG_GSO: u32 = 4;
const CMD_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const ATTR_PACKET_HDR: u16 = 1;
const ATTR_VERDICT_HDR: u16 = 2;
const ATTR_MARK: u16 = 3;
const ATTR_PAYLOAD: u16 = 10;
const ATTR_CAP_LEN: u16 = 13;
const ATTR_SKB_INFO: u16 = 14;
const SKB_CHECKSUM_NOT_READY: u32 = 1;

/// A packet that waits in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Waiting<'a> {
    /// The packet mark.
    pub mark: u32,
    /// From the IP header on.
    pub data: &'a [u8],
    /// The copy is shorter than the packet.
    pub is_cut: bool,
    /// The transport checksum is not filled in yet.
    pub is_checksum_pending: bool,
}

/// What the kernel is to do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Throw it away.
    Drop,
    /// Let it go on with this mark.
    Accept(u32),
    /// Let it go on with this mark and this content.
    Replace(u32, Vec<u8>),
}

/// What the kernel lost, from /proc/net/netfilter/nfnetlink_queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStatistics {
    /// The queue was full.
    pub queue_dropped: u64,
    /// The socket's buffer was full.
    pub user_dropped: u64,
}

/// One queue that belongs to this process.
pub struct Queue {
    netlink: Netlink,
    number: u16,
    buffer: Vec<u8>,
    verdicts: Vec<u8>,
    statistics: Option<File>,
}

impl Queue {
    /// Bind queue `number`; needs CAP_NET_ADMIN. A queue has one owner. What finds it full is dropped, or goes on
    /// without a verdict where `is_fail_open`.
    pub fn bind(number: u16, is_fail_open: bool) -> Result<Queue, CaptureError> {
        let netlink = Netlink::open(RECEIVE_BUFFER_BYTES)?;
        // a message for which there is no room is a packet dropped and counted, and no reason to stop
        netlink.set_option(libc::SOL_NETLINK, libc::NETLINK_NO_ENOBUFS, 1)?;
        let flags = if is_fail_open { FLAG_FAIL_OPEN } else { 0 };
        // one message binds and sets up, so that no packet comes in between
        let mut message = Message::begin(MSG_CONFIG, libc::NLM_F_REQUEST | libc::NLM_F_ACK, number);
        message.attribute(CFG_CMD, &[CMD_BIND, 0, 0, 0]);
        message.attribute(CFG_PARAMS, &[0, 0, 0xff, 0xff, COPY_PACKET]);
        message.attribute(CFG_QUEUE_MAXLEN, &QUEUE_PACKETS.to_be_bytes());
        message.attribute(CFG_MASK, &(FLAG_FAIL_OPEN | FLAG_GSO).to_be_bytes());
        message.attribute(CFG_FLAGS, &flags.to_be_bytes());
        netlink.send(&message.finish())?;
        netlink.await_acknowledgement(CaptureError::QueueBusy(number))?;
        Ok(Queue {
            netlink,
            number,
            buffer: vec![0; MESSAGE_BYTES],
            verdicts: Vec::with_capacity(BATCH_PACKETS * 40),
            statistics: File::open("/proc/self/net/netfilter/nfnetlink_queue").ok(),
        })
    }

    /// Return the number of the queue.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Wait at most `timeout_ms` for packets, then ask `decide` about all that are there, at most one batch; return how
    /// many there were. A signal ends the waiting early.
    pub fn serve(
        &mut self,
        timeout_ms: i32,
        mut decide: impl FnMut(&Waiting<'_>) -> Answer,
    ) -> Result<usize, CaptureError> {
        if !self.netlink.wait(timeout_ms)? {
            return Ok(0);
        }
        self.verdicts.clear();
        let mut buffer = std::mem::take(&mut self.buffer); // borrowed apart from the socket
        let outcome = self.receive_batch(&mut buffer, &mut decide);
        self.buffer = buffer;
        if !self.verdicts.is_empty() {
            let verdicts = std::mem::take(&mut self.verdicts);
            self.netlink.send(&verdicts)?;
            self.verdicts = verdicts;
        }
        Ok(outcome?)
    }

    /// Return what the kernel lost since the binding.
    pub fn statistics(&mut self) -> QueueStatistics {
        let mut text = String::new();
        let is_read = self.statistics.as_mut().is_some_and(|file| {
            file.seek(SeekFrom::Start(0)).is_ok() && file.take(65_536).read_to_string(&mut text).is_ok()
        });
        let mine = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let number = self.number.to_string();
        // queue, port id, waiting, copy mode, copy range, queue dropped, user dropped, sequence, 1
        match mine.into_iter().find(|fields| is_read && fields.first() == Some(&number.as_str())) {
            Some(fields) => {
                let count = |index: usize| fields.get(index).and_then(|word| word.parse().ok()).unwrap_or(0);
                QueueStatistics { queue_dropped: count(5), user_dropped: count(6) }
            }
            None => QueueStatistics::default(),
        }
    }

    fn receive_batch(
        &mut self,
        buffer: &mut [u8],
        decide: &mut impl FnMut(&Waiting<'_>) -> Answer,
    ) -> io::Result<usize> {
        let mut packets = 0;
        while packets < BATCH_PACKETS {
            // what an overrun lost is counted in user_dropped
            let Received::Datagram(datagram) = self.netlink.receive(buffer)? else { break };
            for (kind, body) in messages(datagram) {
                if kind != MSG_PACKET {
                    check_complaint(kind, body)?;
                    continue;
                }
                if let Some((id, waiting)) = parse_packet(body) {
                    let answer = decide(&waiting);
                    self.answer(id, &answer);
                    packets += 1;
                }
            }
        }
        Ok(packets)
    }

    fn answer(&mut self, id: u32, answer: &Answer) {
        const DROP: u32 = 0;
        const ACCEPT: u32 = 1;
        let mut message = Message::begin(MSG_VERDICT, libc::NLM_F_REQUEST, self.number);
        let verdict = if *answer == Answer::Drop { DROP } else { ACCEPT };
        let mut header = [0; 8];
        header[..4].copy_from_slice(&verdict.to_be_bytes());
        header[4..].copy_from_slice(&id.to_be_bytes());
        message.attribute(ATTR_VERDICT_HDR, &header);
        match answer {
            Answer::Drop => {}
            Answer::Accept(mark) => message.attribute(ATTR_MARK, &mark.to_be_bytes()),
            Answer::Replace(mark, packet) => {
                message.attribute(ATTR_MARK, &mark.to_be_bytes());
                message.attribute(ATTR_PAYLOAD, packet);
            }
        }
        self.verdicts.extend_from_slice(&message.finish());
    }
}

/// Sends whole IP packets from any address: resets for the clients of condemned connections.
pub struct RawSender {
    v4: OwnedFd,
    v6: Option<OwnedFd>,
}

impl RawSender {
    /// Open the sockets; needs CAP_NET_RAW. A machine without IPv6 has no socket for it.
    pub fn open() -> Result<RawSender, CaptureError> {
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let v4 = socket(libc::AF_INET, flags, libc::IPPROTO_RAW)?;
        let v6 = socket(libc::AF_INET6, flags, libc::IPPROTO_RAW).ok();
        Ok(RawSender { v4, v6 })
    }

    /// Send one packet; return whether it went out. Nobody waits for it, and a lost one is sent again with the next.
    pub fn send(&self, packet: &[u8]) -> bool {
        match packet.first().map(|byte| byte >> 4) {
            Some(4) if packet.len() >= 20 => self.send_v4(packet),
            Some(6) if packet.len() >= 40 => self.send_v6(packet),
            _ => false,
        }
    }

    fn send_v4(&self, packet: &[u8]) -> bool {
        let word = packet.get(16..20).and_then(|bytes| bytes.first_chunk::<4>()).copied().unwrap_or_default();
        // SAFETY: sockaddr_in is plain numbers; all zero is a valid value.
        let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        to.sin_family = libc::AF_INET as u16;
        to.sin_addr.s_addr = u32::from_ne_bytes(word);
        send_to(&self.v4, packet, &to)
    }

    fn send_v6(&self, packet: &[u8]) -> bool {
        let Some(socket) = &self.v6 else { return false };
        let Some(bytes) = packet.get(24..40).and_then(|bytes| bytes.first_chunk::<16>()) else { return false };
        // SAFETY: sockaddr_in6 is plain numbers; all zero is a valid value.
        let mut to: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
        to.sin6_family = libc::AF_INET6 as u16;
        to.sin6_addr.s6_addr = *bytes;
        send_to(socket, packet, &to)
    }
}

/// A verdict that came too late is no fault: its packet was flushed. One that we may not give would leave packets waiting.
fn check_complaint(kind: u16, body: &[u8]) -> io::Result<()> {
    match kind == libc::NLMSG_ERROR as u16 && error_number(body) == Some(libc::EPERM) {
        true => Err(io::Error::from_raw_os_error(libc::EPERM)),
        false => Ok(()),
    }
}

/// Return the packet's number and the packet, or nothing where the message has no number to answer to.
fn parse_packet(body: &[u8]) -> Option<(u32, Waiting<'_>)> {
    let mut id = None;
    let mut waiting = Waiting { mark: 0, data: &[], is_cut: false, is_checksum_pending: false };
    for (kind, value) in attributes(body) {
        match kind {
            ATTR_PACKET_HDR if value.len() >= 4 => id = Some(word(value)),
            ATTR_MARK => waiting.mark = word(value),
            ATTR_PAYLOAD => waiting.data = value,
            ATTR_CAP_LEN => waiting.is_cut = true,
            ATTR_SKB_INFO => waiting.is_checksum_pending = word(value) & SKB_CHECKSUM_NOT_READY != 0,
            _ => {}
        }
    }
    Some((id?, waiting))
}

fn send_to<T>(socket: &OwnedFd, packet: &[u8], to: &T) -> bool {
    // SAFETY: the kernel reads `packet.len()` bytes of `packet` and `size_of::<T>()` of `to`; callers pass the address
    // type of the socket's family.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            std::ptr::from_ref(to).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    sent >= 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = Message::begin(MSG_PACKET, 0, 0);
        attributes.iter().for_each(|(kind, value)| message.attribute(*kind, value));
        message.finish().split_off(16)
    }

    #[test]
    fn a_packet_is_read_with_what_the_kernel_says_of_it() {
        let bytes = body(&[
            (ATTR_PACKET_HDR, &[0, 0, 1, 2, 8, 0, 1]),
            (ATTR_MARK, &[0, 0, 0, 9]),
            (ATTR_SKB_INFO, &[0, 0, 0, 1]),
            (ATTR_PAYLOAD, b"packet"),
        ]);
        let told = parse_packet(&bytes).map(|(id, waiting)| (id, waiting.mark, waiting.data.to_vec()));
        assert_eq!(told, Some((258, 9, b"packet".to_vec())));
        assert!(parse_packet(&bytes).is_some_and(|(_, waiting)| waiting.is_checksum_pending && !waiting.is_cut));
    }

    #[test]
    fn cut_and_flipped_messages_never_panic() {
        let bytes = body(&[(ATTR_PACKET_HDR, &[0, 0, 1, 2, 8, 0, 1]), (ATTR_PAYLOAD, &[7; 40])]);
        for end in 0..bytes.len() {
            let _ = parse_packet(&bytes[..end]);
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut flipped = bytes.clone();
                flipped[at] = value;
                let _ = parse_packet(&flipped);
            }
        }
        assert!(parse_packet(&[]).is_none(), "no number to answer to");
    }
}
