//! What packet queues and packet logs have in common: a netlink socket of netfilter, its messages and attributes.
//!
//! Sources: Linux include/uapi/linux/netlink.h, netfilter/nfnetlink.h. Only the kernel is believed; what it says is
//! still checked against the bytes that came.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::error::CaptureError;

/// Patience with the kernel's answer to a configuration message: it answers within the call.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// An acknowledgement repeats at most the message that it is about.
const ANSWER_BYTES: usize = 4096;
const HEADER_BYTES: usize = 20; // nlmsghdr, nfgenmsg
const ATTR_TYPE_MASK: u16 = 0x3fff; // without NLA_F_NESTED and NLA_F_NET_BYTEORDER

/// What a look at the socket brought.
pub(crate) enum Received<'a> {
    /// None waits.
    Nothing,
    /// The socket's buffer was full: messages are lost.
    Overrun,
    /// One or more messages; empty where another process spoke.
    Datagram(&'a [u8]),
}

/// A socket to netfilter in the kernel.
pub(crate) struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    /// Open a socket whose buffer holds `buffer_bytes`, whatever the system's limit is; needs CAP_NET_ADMIN.
    pub fn open(buffer_bytes: libc::c_int) -> Result<Netlink, CaptureError> {
        let socket = socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_NETFILTER)?;
        // SAFETY: sockaddr_nl is plain numbers; all zero is a valid value, and lets the kernel choose our address.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as u16;
        // SAFETY: `address` is a sockaddr_nl and the length given is its own.
        check(unsafe {
            libc::bind(
                socket.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        })?;
        let made = Netlink { socket };
        made.set_option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, buffer_bytes)?;
        Ok(made)
    }

    /// Set an option that is one integer.
    pub fn set_option(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: the kernel reads one integer, which outlives the call.
        check(unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                level,
                name,
                std::ptr::from_ref(&value).cast(),
                size_of_val(&value) as libc::socklen_t,
            )
        })
    }

    /// Wait at most `timeout_ms`; return whether something is there. A signal ends the waiting early.
    pub fn wait(&self, timeout_ms: i32) -> io::Result<bool> {
        let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one valid pollfd that outlives the call.
        if unsafe { libc::poll(&mut poll, 1, timeout_ms) } < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) };
        }
        Ok(poll.revents != 0)
    }

    /// Send messages to the kernel.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
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

    /// Receive what the kernel sent in one piece, without waiting.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Received<'a>> {
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
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Received::Nothing),
                _ if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Received::Overrun),
                _ => Err(error),
            };
        }
        if sender.nl_pid != 0 {
            return Ok(Received::Datagram(&[])); // another process speaks to us: only the kernel is believed
        }
        Ok(Received::Datagram(buffer.get(..received as usize).unwrap_or_default()))
    }

    /// Wait for the kernel's answer to a configuration message; `busy` is the error where another process was first.
    pub fn await_acknowledgement(&self, busy: CaptureError) -> Result<(), CaptureError> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut buffer = vec![0; ANSWER_BYTES];
        while Instant::now() < deadline {
            if !self.wait(100)? {
                continue;
            }
            let Received::Datagram(datagram) = self.receive(&mut buffer)? else { continue };
            for (kind, body) in messages(datagram) {
                if kind == libc::NLMSG_ERROR as u16 {
                    return match error_number(body) {
                        Some(0) => Ok(()),
                        // not for want of a capability: the socket's buffer took that before
                        Some(libc::EPERM | libc::EBUSY) => Err(busy),
                        Some(number) => Err(io::Error::from_raw_os_error(number).into()),
                        None => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
                    };
                }
            }
        }
        Err(io::Error::from(io::ErrorKind::TimedOut).into())
    }
}

/// The number in an answer of type `NLMSG_ERROR`; 0 is success.
pub(crate) fn error_number(body: &[u8]) -> Option<i32> {
    body.first_chunk::<4>().map(|word| i32::from_ne_bytes(*word).wrapping_neg())
}

/// A netlink message under construction.
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// Begin a message about the queue or group `resource`.
    pub fn begin(kind: u16, flags: libc::c_int, resource: u16) -> Message {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
        bytes[18..20].copy_from_slice(&resource.to_be_bytes()); // nfgenmsg.res_id; family and version are 0
        Message(bytes)
    }

    /// Add an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Return its bytes.
    pub fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Return type and body of each message in a datagram, up to the first that cannot be.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.first_chunk::<16>()?;
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let body = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([head[4], head[5]]), body))
    })
}

/// Return type and value of each attribute behind the `nfgenmsg` of a message, up to the first that cannot be.
pub(crate) fn attributes(body: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(4..).unwrap_or_default();
    std::iter::from_fn(move || {
        let head = rest.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([head[2], head[3]]) & ATTR_TYPE_MASK, value))
    })
}

/// Return the 32-bit word, in network order, that a value begins with; 0 where it is shorter.
pub(crate) fn word(value: &[u8]) -> u32 {
    value.first_chunk::<4>().map_or(0, |word| u32::from_be_bytes(*word))
}

/// Open a socket of whatever family.
pub(crate) fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked before it becomes an owned descriptor.
    let descriptor = unsafe { libc::socket(family, kind, protocol) };
    check(descriptor)?;
    // SAFETY: the descriptor is fresh and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_built_is_read_back() {
        let mut message = Message::begin(0x0301, 5, 7);
        message.attribute(3, b"abcde");
        message.attribute(9 | 0x8000, &8_u32.to_be_bytes());
        let bytes = message.finish();
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!((all.len(), all[0].0), (1, 0x0301));
        let attributes: Vec<_> = attributes(all[0].1).collect();
        assert_eq!(attributes, [(3, &b"abcde"[..]), (9, &[0, 0, 0, 8][..])]);
        assert_eq!(word(attributes[1].1), 8);
    }

    #[test]
    fn lengths_that_cannot_be_end_the_list() {
        for length in [0_u32, 15, 4096, u32::MAX] {
            let mut bytes = Message::begin(1, 0, 0).finish();
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(messages(&bytes).count(), 0);
        }
        for length in [0_u16, 3, 100, u16::MAX] {
            let mut body = vec![0; 12];
            body[4..6].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(attributes(&body).count(), 0);
        }
        assert_eq!(attributes(&[]).count(), 0);
        assert_eq!(error_number(&i32::MIN.to_ne_bytes()), Some(i32::MIN)); // has no opposite
    }
}
