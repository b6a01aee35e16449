//! Sends made-up frames at a fixed rate: `blast INTERFACE PACKETS_PER_S SECONDS (flows | syn)`.
//!
//! For measurements inside network namespaces; nobody answers. `flows`: TCP acknowledgements of 1,024 flows between two
//! addresses. `syn`: SYNs of 65,536 flows, each with an address and ports of its own. Prints one JSON line: how many
//! were sent in how many seconds.

use std::ffi::CString;
use std::time::{Duration, Instant};
use std::{env, io, ptr};

const BATCH: usize = 50; // at 100,000 a second a batch every 0.5 ms
const FRAME_BYTES: usize = 64;
const FLOWS: u32 = 1024;
const SYNS: u32 = 65_536;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().collect();
    let [_, interface, rate, seconds, what] = arguments.as_slice() else {
        return Err("usage: blast INTERFACE PACKETS_PER_S SECONDS (flows | syn)".into());
    };
    let (rate, seconds): (f64, f64) = (rate.parse()?, seconds.parse()?);
    let frames: Vec<[u8; FRAME_BYTES]> = match what.as_str() {
        "flows" => (0..FLOWS).map(acknowledgement).collect(),
        "syn" => (0..SYNS).map(syn).collect(),
        other => return Err(format!("{other}: neither flows nor syn").into()),
    };
    let socket = open(interface)?;
    let start = Instant::now();
    let (mut sent, mut next) = (0_usize, 0_usize);
    while start.elapsed().as_secs_f64() < seconds {
        let due = Duration::from_secs_f64(sent as f64 / rate);
        if let Some(wait) = due.checked_sub(start.elapsed()) {
            std::thread::sleep(wait);
        }
        let count = send(socket, &frames[next..(next + BATCH).min(frames.len())])?;
        sent += count;
        next = (next + count) % frames.len();
    }
    println!("{{\"sent\":{sent},\"seconds\":{:.3}}}", start.elapsed().as_secs_f64());
    Ok(())
}

fn acknowledgement(flow: u32) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 2]); // nobody's: the receiving stack drops it behind the capture
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14..34].copy_from_slice(&[0x45, 0, 0, 50, 0, 1, 0, 0, 64, 6, 0, 0, 10, 99, 0, 1, 10, 99, 0, 2]);
    frame[34..36].copy_from_slice(&(1024 + flow as u16).to_be_bytes());
    frame[36..38].copy_from_slice(&[0x1f, 0x90]);
    (frame[46], frame[47]) = (0x50, 0x10);
    frame
}

fn syn(number: u32) -> [u8; FRAME_BYTES] {
    let mut frame = acknowledgement(0);
    frame[26..30].copy_from_slice(&number.wrapping_mul(2_654_435_761).to_be_bytes());
    frame[34..38].copy_from_slice(&number.wrapping_mul(40_503).to_be_bytes());
    frame[47] = 2;
    frame
}

fn open(interface: &str) -> io::Result<i32> {
    let name = CString::new(interface)?;
    // SAFETY: no pointers; the result is checked below.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: plain numbers; all zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    // SAFETY: a terminated string that outlives the call.
    address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
    let length = size_of_val(&address) as u32;
    // SAFETY: `address` is a sockaddr_ll of the length given.
    if unsafe { libc::bind(socket, ptr::from_ref(&address).cast(), length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

fn send(socket: i32, frames: &[[u8; FRAME_BYTES]]) -> io::Result<usize> {
    let mut parts: Vec<libc::iovec> = frames
        .iter()
        .map(|frame| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: FRAME_BYTES })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: plain numbers and null pointers; all zero is valid.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (part, 1);
            message
        })
        .collect();
    // SAFETY: every message points at one iovec that points at one frame; all outlive the call, which only reads them.
    let count = unsafe { libc::sendmmsg(socket, messages.as_mut_ptr(), messages.len() as u32, 0) };
    if count < 0 {
        let error = io::Error::last_os_error();
        let is_full = matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN));
        return if is_full { Ok(0) } else { Err(error) };
    }
    Ok(count as usize)
}
