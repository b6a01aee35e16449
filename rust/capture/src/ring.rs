//! AF_PACKET with a TPACKET_V3 ring: the kernel fills blocks, we read them in place and hand them back.
//!
//! Source: Linux Documentation/networking/packet_mmap.rst and include/uapi/linux/if_packet.h. The ring is memory
//! that another party writes, so lengths and offsets found in it are checked against the block before each use.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use sensor::{Direction, Frame, Link};

use crate::error::CaptureError;

/// A block is handed over when it is full or [`RETIRE_MS`] after its first frame. At 100,000 small frames a second
/// 128 KiB fill in about 9 ms: few wake-ups, and enough blocks in a small ring.
pub const BLOCK_BYTES: usize = 128 * 1024;
/// How long a frame may wait in a block that does not fill; small against the two seconds in which alerts are due.
const RETIRE_MS: u32 = 50;
/// Fixed by the kernel: `TPACKET_ALIGNMENT`.
const FRAME_ALIGNMENT: u32 = 16;
/// Headers only: Ethernet, two tags, IPv6 with eight small extension headers, TCP. The detectors of scans and floods do
/// not read payload, and short frames make the ring last longer.
const HEADER_BYTES: u32 = 256;
/// The largest IP packet and its link headers: what rules read.
const WHOLE_BYTES: u32 = 65_535 + 64;
/// Where the socket address stands behind a frame's header: `TPACKET_ALIGN(sizeof(struct tpacket3_hdr))`.
const ADDRESS_OFFSET: usize = size_of::<libc::tpacket3_hdr>().next_multiple_of(FRAME_ALIGNMENT as usize);

/// How much of a frame is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snap {
    /// Link, IP and transport headers.
    Headers,
    /// All of it.
    Whole,
}

/// How a ring is to be.
#[derive(Clone, Copy, Debug)]
pub struct RingOptions {
    /// The ring has at most so many bytes.
    pub ring_bytes: usize,
    /// How much of a frame is captured.
    pub snap: Snap,
    /// Rings of one interface and one group share its frames: each flow, both directions and all fragments, goes to one.
    pub fanout: Option<u16>,
}

/// What the kernel says of a frame's transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing: it has to be computed.
    Unknown,
    /// It is right, or left to the network card, or the frame is several that were joined: the field says nothing.
    Vouched,
}

/// What the kernel counted since the ring was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStatistics {
    /// Frames that passed the filter, the dropped ones included.
    pub packets: u64,
    /// Frames for which the ring had no room.
    pub drops: u64,
}

/// An open capture on one interface. Its memory is `blocks * BLOCK_BYTES`, shared with the kernel.
pub struct Ring {
    socket: OwnedFd,
    memory: NonNull<u8>,
    blocks: usize,
    next: usize,
    link: Link,
    is_loopback: bool,
    statistics: RingStatistics,
}

// SAFETY: the mapping belongs to this value alone and is reached only through `&mut self`, from whatever thread.
unsafe impl Send for Ring {}

impl Ring {
    /// Open a ring on `interface`; needs CAP_NET_RAW.
    pub fn open(interface: &str, options: &RingOptions) -> Result<Ring, CaptureError> {
        let blocks = options.ring_bytes / BLOCK_BYTES;
        if blocks < 2 {
            return Err(CaptureError::RingTooSmall(options.ring_bytes)); // one to fill while the other is read
        }
        let socket = open_socket()?;
        let index = interface_index(interface)?;
        let (link, is_loopback) = interface_link(&socket, interface)?;
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_VERSION, &libc::tpacket_versions::TPACKET_V3)?;
        let snap_bytes = if options.snap == Snap::Whole { WHOLE_BYTES } else { HEADER_BYTES };
        // a group is joined once bound: until then this ring would see what belongs to others
        set_snap_length(&socket, if options.fanout.is_some() { 0 } else { snap_bytes })?;
        let request = libc::tpacket_req3 {
            tp_block_size: BLOCK_BYTES as u32,
            tp_block_nr: blocks as u32,
            tp_frame_size: 2048, // only its alignment and divisibility are looked at for this version
            tp_frame_nr: (BLOCK_BYTES / 2048 * blocks) as u32,
            tp_retire_blk_tov: RETIRE_MS,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        let memory = map_ring(&socket, blocks * BLOCK_BYTES)?;
        let mut ring =
            Ring { socket, memory, blocks, next: 0, link, is_loopback, statistics: RingStatistics::default() };
        ring.bind(index, interface)?;
        if let Some(group) = options.fanout {
            join_group(&ring.socket, group)?;
            set_snap_length(&ring.socket, snap_bytes)?;
        }
        ring.update_statistics()?; // what arrived before the binding counts for nobody
        ring.statistics = RingStatistics::default();
        Ok(ring)
    }

    /// Wait for a block at most `timeout_ms`; return whether one is ready. A signal ends the waiting early.
    pub fn wait(&mut self, timeout_ms: i32) -> Result<bool, CaptureError> {
        if self.is_ready() {
            return Ok(true);
        }
        let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one valid pollfd that outlives the call.
        if unsafe { libc::poll(&mut poll, 1, timeout_ms) } < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error.into()) };
        }
        if poll.revents & (libc::POLLERR | libc::POLLNVAL) != 0 {
            self.take_socket_error()?;
        }
        Ok(self.is_ready())
    }

    /// Hand every frame of every ready block to `see`, at most one round through the ring; return how many.
    pub fn drain(&mut self, mut see: impl FnMut(&Frame<'_>, Checksum)) -> usize {
        let mut frames = 0;
        for _ in 0..self.blocks {
            if !self.is_ready() {
                break;
            }
            frames += self.read_block(&mut see);
            self.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.next = (self.next + 1) % self.blocks;
        }
        frames
    }

    /// Ask the kernel for its counters and return the sums since the opening.
    pub fn update_statistics(&mut self) -> Result<RingStatistics, CaptureError> {
        let mut counted = libc::tpacket_stats_v3 { tp_packets: 0, tp_drops: 0, tp_freeze_q_cnt: 0 };
        let mut length = size_of_val(&counted) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes into `counted`, which is that long.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                ptr::from_mut(&mut counted).cast(),
                &mut length,
            )
        };
        check(result)?;
        self.statistics.packets += u64::from(counted.tp_packets);
        self.statistics.drops += u64::from(counted.tp_drops);
        Ok(self.statistics)
    }

    /// Return the size of the mapping.
    pub fn size_bytes(&self) -> usize {
        self.blocks * BLOCK_BYTES
    }

    fn block(&self) -> NonNull<u8> {
        // SAFETY: `next < blocks`, so the block lies wholly inside the mapping.
        unsafe { self.memory.add(self.next * BLOCK_BYTES) }
    }

    /// The word through which the kernel and we hand the block to each other.
    fn status(&self) -> &AtomicU32 {
        const STATUS_OFFSET: usize = 8; // tpacket_block_desc: version, offset_to_priv, then tpacket_hdr_v1.block_status
        // SAFETY: inside the block, aligned to 4, alive as long as `self`; both parties access it atomically.
        unsafe { AtomicU32::from_ptr(self.block().add(STATUS_OFFSET).cast().as_ptr()) }
    }

    fn is_ready(&self) -> bool {
        self.status().load(Ordering::Acquire) & libc::TP_STATUS_USER != 0
    }

    fn read_block(&mut self, see: &mut impl FnMut(&Frame<'_>, Checksum)) -> usize {
        // SAFETY: the block is ours until its status is given back (the caller's `Acquire` load saw TP_STATUS_USER), the
        // kernel does not write to it meanwhile, and the slice does not outlive this call.
        let block = unsafe { std::slice::from_raw_parts(self.block().as_ptr(), BLOCK_BYTES) };
        let count = word(block, 12); // tpacket_hdr_v1.num_pkts
        let mut offset = word(block, 16) as usize; // tpacket_hdr_v1.offset_to_first_pkt
        let mut frames = 0;
        for _ in 0..count {
            let Some(header) = block.get(offset..) else { break };
            if let Some(frame) = self.read_frame(header) {
                see(&frame, checksum_of(word(header, 20))); // tp_status
                frames += 1;
            }
            match word(header, 0) as usize {
                0 => break, // the last of its block
                step => offset = offset.saturating_add(step),
            }
        }
        frames
    }

    /// `struct tpacket3_hdr`, then the socket address, then the frame at `tp_mac`.
    fn read_frame<'a>(&self, header: &'a [u8]) -> Option<Frame<'a>> {
        const PACKET_TYPE: usize = 10; // sockaddr_ll.sll_pkttype
        let captured = word(header, 12) as usize; // tp_snaplen
        let start = usize::from(u16::from_ne_bytes([*header.get(24)?, *header.get(25)?])); // tp_mac
        let data = header.get(start..start.checked_add(captured)?)?;
        let is_outgoing = *header.get(ADDRESS_OFFSET + PACKET_TYPE)? == libc::PACKET_OUTGOING;
        if is_outgoing && self.is_loopback {
            return None; // each frame passes a loopback interface twice
        }
        Some(Frame {
            time_us: u64::from(word(header, 4)) * 1_000_000 + u64::from(word(header, 8)) / 1000, // tp_sec, tp_nsec
            data,
            wire_bytes: word(header, 16), // tp_len
            link: self.link,
            direction: if is_outgoing { Direction::Out } else { Direction::In },
        })
    }

    fn bind(&mut self, index: u32, interface: &str) -> Result<(), CaptureError> {
        // SAFETY: sockaddr_ll is plain numbers; all zero is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        // SAFETY: `address` is a sockaddr_ll and the length given is its own.
        let result = unsafe {
            libc::bind(
                self.socket.as_raw_fd(),
                ptr::from_ref(&address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        match check(result) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                Err(CaptureError::NoInterface(interface.to_owned()))
            }
            other => other.map_err(CaptureError::from),
        }
    }

    /// The socket has an error: the interface went down (it may come back: not ours to end) or away.
    fn take_socket_error(&mut self) -> Result<(), CaptureError> {
        let mut error: libc::c_int = 0;
        let mut length = size_of_val(&error) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes into `error`, which is that long.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ERROR,
                ptr::from_mut(&mut error).cast(),
                &mut length,
            )
        };
        check(result)?;
        match error {
            0 | libc::ENETDOWN => Ok(()),
            number => Err(io::Error::from_raw_os_error(number).into()),
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map_ring` made, with its length; nothing refers to it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.size_bytes()) };
    }
}

/// Protocol 0: nothing is captured before the ring is set up and bound to its one interface.
fn open_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked before it becomes an owned descriptor.
    let descriptor = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    check(descriptor)?;
    // SAFETY: the descriptor is fresh and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn interface_index(name: &str) -> Result<u32, CaptureError> {
    let missing = || CaptureError::NoInterface(name.to_owned());
    let text = CString::new(name).map_err(|_| missing())?;
    // SAFETY: `text` is a terminated string that outlives the call.
    match unsafe { libc::if_nametoindex(text.as_ptr()) } {
        0 => Err(missing()),
        index => Ok(index),
    }
}

/// Return what the interface's frames begin with, and whether it is a loopback.
fn interface_link(socket: &OwnedFd, name: &str) -> Result<(Link, bool), CaptureError> {
    // SAFETY: ifreq is numbers and a union of numbers; all zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(CaptureError::NoInterface(name.to_owned()));
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    // SAFETY: SIOCGIFHWADDR reads the name and writes the union inside `request`, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR as _, &mut request) })?;
    // SAFETY: SIOCGIFHWADDR has just filled this member.
    let kind = unsafe { request.ifr_ifru.ifru_hwaddr.sa_family };
    match kind {
        libc::ARPHRD_ETHER => Ok((Link::Ethernet, false)),
        libc::ARPHRD_LOOPBACK => Ok((Link::Ethernet, true)),
        libc::ARPHRD_NONE | libc::ARPHRD_PPP | libc::ARPHRD_TUNNEL | libc::ARPHRD_TUNNEL6 | libc::ARPHRD_SIT => {
            Ok((Link::RawIp, false))
        }
        other => Err(CaptureError::UnsupportedInterface(other)),
    }
}

/// Frames that were left to the network card on their way out, that it has checked on their way in, or that the kernel
/// has joined from several (which it does with checked ones only), have no checksum that could be compared.
fn checksum_of(status: u32) -> Checksum {
    match status & (libc::TP_STATUS_CSUMNOTREADY | libc::TP_STATUS_CSUM_VALID) {
        0 => Checksum::Unknown,
        _ => Checksum::Vouched,
    }
}

/// Share the interface with the other rings of the group: by a hash of addresses and ports that is the same for both
/// directions, with fragments put together before (else all but the first would go by addresses alone).
fn join_group(socket: &OwnedFd, group: u16) -> io::Result<()> {
    let mode = libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_DEFRAG;
    set_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT, &(u32::from(group) | mode << 16))
}

/// A filter of one instruction: "accept, so many bytes of it", or nothing where it is 0.
fn set_snap_length(socket: &OwnedFd, bytes: u32) -> io::Result<()> {
    let mut code = [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: bytes }];
    let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

fn map_ring(socket: &OwnedFd, size_bytes: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: the kernel chooses the address of a new mapping of the socket's ring, whose size this is.
    let memory = unsafe {
        libc::mmap(
            ptr::null_mut(),
            size_bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            socket.as_raw_fd(),
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(memory.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}

fn set_option<T>(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of `value`; each caller passes the type that the option takes.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    check(result)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Return the native 32-bit word at `offset`, 0 where there is none.
fn word(bytes: &[u8], offset: usize) -> u32 {
    match bytes.get(offset..).and_then(|rest| rest.first_chunk::<4>()) {
        Some(word) => u32::from_ne_bytes(*word),
        None => 0,
    }
}
