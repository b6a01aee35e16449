//! NFQUEUE over a raw netlink socket: packets that the kernel holds until we say what becomes of them.
//!
//! Sources: Linux include/uapi/linux/netfilter/nfnetlink_queue.h, nfnetlink.h, netlink.h; net/netfilter/
//! nfnetlink_queue.c. Two flags are left off on purpose. Without `F_FAIL_OPEN` a full queue drops. Without `F_GSO` the
//! kernel cuts what was joined on the way in into real packets with real checksums before it shows them to us: a verdict
//! then falls on one segment or datagram, and never on a bundle of them.
//!
//! The kernel wants CAP_NET_ADMIN for each verdict, not only for the binding.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::error::CaptureError;

/// Packets that wait for a verdict in the kernel; 1,024 (its own default) are 1.5 MB of full frames.
const QUEUE_PACKETS: u32 = 1024;
/// Copies of them that wait for us: the same number of full frames with their attributes, as the kernel accounts them.
const RECEIVE_BUFFER_BYTES: libc::c_int = 8 << 20;
/// The largest IP packet, and room for the attributes around it.
const MESSAGE_BYTES: usize = 65_535 + 1_024;
/// Packets for which verdicts are collected before they go to the kernel in one call.
const BATCH_PACKETS: usize = 64;
/// Patience with the kernel's answer to a configuration message: it answers within the call.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

const SUBSYSTEM: u16 = 3 << 8; // NFNL_SUBSYS_QUEUE
const MSG_PACKET: u16 = SUBSYSTEM;
const MSG_VERDICT: u16 = SUBSYSTEM | 1;
const MSG_CONFIG: u16 = SUBSYSTEM | 2;
const CFG_CMD: u16 = 1;
const CFG_PARAMS: u16 = 2;
const CFG_QUEUE_MAXLEN: u16 = 3;
const CFG_MASK: u16 = 4;
const CFG_FLAGS: u16 = 5;
const CMD_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const ATTR_PACKET_HDR: u16 = 1;
const ATTR_VERDICT_HDR: u16 = 2;
const ATTR_MARK: u16 = 3;
const ATTR_PAYLOAD: u16 = 10;
const ATTR_CAP_LEN: u16 = 13;
const ATTR_SKB_INFO: u16 = 14;
const ATTR_TYPE_MASK: u16 = 0x3fff; // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
const SKB_CHECKSUM_NOT_READY: u32 = 1;
const HEADER_BYTES: usize = 20; // nlmsghdr, nfgenmsg

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
    socket: OwnedFd,
    number: u16,
    buffer: Vec<u8>,
    verdicts: Vec<u8>,
    statistics: Option<File>,
}

impl Queue {
    /// Bind queue `number`; needs CAP_NET_ADMIN. A queue has one owner.
    pub fn bind(number: u16) -> Result<Queue, CaptureError> {
        let socket = open_socket()?;
        let mut queue = Queue {
            socket,
            number,
            buffer: vec![0; MESSAGE_BYTES],
            verdicts: Vec::with_capacity(BATCH_PACKETS * 40),
            statistics: File::open("/proc/self/net/netfilter/nfnetlink_queue").ok(),
        };
        // one message binds and sets up, so that no packet comes in between
        let mut message = Message::begin(MSG_CONFIG, libc::NLM_F_REQUEST | libc::NLM_F_ACK, number);
        message.attribute(CFG_CMD, &[CMD_BIND, 0, 0, 0]);
        message.attribute(CFG_PARAMS, &[0, 0, 0xff, 0xff, COPY_PACKET]);
        message.attribute(CFG_QUEUE_MAXLEN, &QUEUE_PACKETS.to_be_bytes());
        message.attribute(CFG_MASK, &(1_u32 | 4).to_be_bytes()); // F_FAIL_OPEN and F_GSO ...
        message.attribute(CFG_FLAGS, &0_u32.to_be_bytes()); // ... are off
        queue.send(&message.finish())?;
        queue.await_acknowledgement()?;
        Ok(queue)
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
        if !self.wait(timeout_ms)? {
            return Ok(0);
        }
        self.verdicts.clear();
        let mut buffer = std::mem::take(&mut self.buffer); // borrowed apart from the socket
        let outcome = self.receive_batch(&mut buffer, &mut decide);
        self.buffer = buffer;
        if !self.verdicts.is_empty() {
            let verdicts = std::mem::take(&mut self.verdicts);
            self.send(&verdicts)?;
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

    fn wait(&self, timeout_ms: i32) -> io::Result<bool> {
        let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one valid pollfd that outlives the call.
        if unsafe { libc::poll(&mut poll, 1, timeout_ms) } < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) };
        }
        Ok(poll.revents != 0)
    }

    fn receive_batch(
        &mut self,
        buffer: &mut [u8],
        decide: &mut impl FnMut(&Waiting<'_>) -> Answer,
    ) -> io::Result<usize> {
        let mut packets = 0;
        while packets < BATCH_PACKETS {
            let Some(message) = self.receive(buffer)? else { break };
            for (kind, body) in messages(message) {
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

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        loop {
            // SAFETY: the kernel reads `bytes.len()` bytes of `bytes`, which outlives the call.
            let sent = unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
            if sent >= 0 {
                return Ok(()); // netlink takes a message whole
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Receive one message of the kernel, or nothing where none waits.
    fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        // SAFETY: sockaddr_nl is plain numbers; all zero is a valid value.
        let mut sender: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        let mut length = size_of_val(&sender) as libc::socklen_t;
        // SAFETY: the kernel writes at most `buffer.len()` bytes into `buffer` and at most `length` into `sender`.
        let received = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
                std::ptr::from_mut(&mut sender).cast(),
                &mut length,
            )
        };
        if received < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(None), // counted in user_dropped
                _ => Err(error),
            };
        }
        if sender.nl_pid != 0 {
            return Ok(Some(&[])); // another process speaks to us: only the kernel is believed
        }
        Ok(buffer.get(..received as usize))
    }

    fn await_acknowledgement(&mut self) -> Result<(), CaptureError> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut buffer = vec![0; MESSAGE_BYTES];
        while Instant::now() < deadline {
            if !self.wait(100)? {
                continue;
            }
            let Some(message) = self.receive(&mut buffer)? else { continue };
            for (kind, body) in messages(message) {
                if kind == libc::NLMSG_ERROR as u16 {
                    return match body.first_chunk::<4>().map(|word| -i32::from_ne_bytes(*word)) {
                        Some(0) => Ok(()),
                        // not for want of a capability: the socket's buffer took that before
                        Some(libc::EPERM | libc::EBUSY) => Err(CaptureError::QueueBusy(self.number)),
                        Some(number) => Err(io::Error::from_raw_os_error(number).into()),
                        None => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
                    };
                }
            }
        }
        Err(io::Error::from(io::ErrorKind::TimedOut).into())
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

/// A netlink message under construction.
struct Message(Vec<u8>);

impl Message {
    fn begin(kind: u16, flags: libc::c_int, queue: u16) -> Message {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
        bytes[18..20].copy_from_slice(&queue.to_be_bytes()); // nfgenmsg.res_id; family and version are 0
        Message(bytes)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Return type and body of each message in a datagram.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.first_chunk::<16>()?;
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let body = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([head[4], head[5]]), body))
    })
}

/// A verdict that came too late is no fault: its packet was flushed. One that we may not give would leave packets waiting.
fn check_complaint(kind: u16, body: &[u8]) -> io::Result<()> {
    let number = body.first_chunk::<4>().map_or(0, |word| -i32::from_ne_bytes(*word));
    match kind == libc::NLMSG_ERROR as u16 && number == libc::EPERM {
        true => Err(io::Error::from_raw_os_error(number)),
        false => Ok(()),
    }
}

/// Return the packet's number and the packet, or nothing where the message has no number to answer to.
fn parse_packet(body: &[u8]) -> Option<(u32, Waiting<'_>)> {
    let mut rest = body.get(4..)?; // nfgenmsg
    let mut id = None;
    let mut waiting = Waiting { mark: 0, data: &[], is_cut: false, is_checksum_pending: false };
    while let Some(head) = rest.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let Some(value) = rest.get(4..length) else { break };
        let word = value.first_chunk::<4>().map_or(0, |word| u32::from_be_bytes(*word));
        match u16::from_ne_bytes([head[2], head[3]]) & ATTR_TYPE_MASK {
            ATTR_PACKET_HDR if value.len() >= 4 => id = Some(word),
            ATTR_MARK => waiting.mark = word,
            ATTR_PAYLOAD => waiting.data = value,
            ATTR_CAP_LEN => waiting.is_cut = true,
            ATTR_SKB_INFO => waiting.is_checksum_pending = word & SKB_CHECKSUM_NOT_READY != 0,
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some((id?, waiting))
}

fn open_socket() -> Result<OwnedFd, CaptureError> {
    let socket = socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_NETFILTER)?;
    // SAFETY: sockaddr_nl is plain numbers; all zero is a valid value, and lets the kernel choose our address.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    // SAFETY: `address` is a sockaddr_nl and the length given is its own.
    check(unsafe {
        libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), size_of_val(&address) as libc::socklen_t)
    })?;
    // a message for which there is no room is a packet dropped and counted, and no reason to stop
    set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_NO_ENOBUFS, 1)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)?;
    Ok(socket)
}

fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked before it becomes an owned descriptor.
    let descriptor = unsafe { libc::socket(family, kind, protocol) };
    check(descriptor)?;
    // SAFETY: the descriptor is fresh and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn set_option(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one integer, which outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    })
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

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
