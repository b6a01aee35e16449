//! Sends made-up frames at a fixed rate: `blast INTERFACE PACKETS_PER_S SECONDS [DESTINATION_MAC]`.
//!
//! For measurements inside network namespaces. The frames are TCP acknowledgements of 1,024 flows between private
//! addresses; nobody answers them. Prints one JSON line: how many were sent in how many seconds.

use std::ffi::CString;
use std::time::{Duration, Instant};
use std::{env, io, ptr};

const BATCH: usize = 50; // at 100,000 a second a batch every 0.5 ms
const FRAME_BYTES: usize = 64;
const FLOWS: u16 = 1024;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().collect();
    let [_, interface, rate, seconds, rest @ ..] = arguments.as_slice() else {
        return Err("usage: blast INTERFACE PACKETS_PER_S SECONDS [DESTINATION_MAC]".into());
    };
    let (rate, seconds): (f64, f64) = (rate.parse()?, seconds.parse()?);
    let destination = parse_mac(rest.first().map_or("02:00:00:00:00:02", String::as_str))?;
    let socket = open(interface)?;
    let frames: Vec<[u8; FRAME_BYTES]> = (0..FLOWS).map(|flow| frame(destination, flow)).collect();
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

fn parse_mac(text: &str) -> Result<[u8; 6], Box<dyn std::error::Error>> {
    let bytes = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect::<Result<Vec<_>, _>>()?;
    Ok(bytes.try_into().map_err(|_| "a hardware address has six bytes")?)
}

fn frame(destination: [u8; 6], flow: u16) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    frame[..6].copy_from_slice(&destination);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14..34].copy_from_slice(&[0x45, 0, 0, 50, 0, 1, 0, 0, 64, 6, 0, 0, 10, 99, 0, 1, 10, 99, 0, 2]);
    frame[34..36].copy_from_slice(&(1024 + flow).to_be_bytes());
    frame[36..38].copy_from_slice(&[0x1f, 0x90]);
    (frame[46], frame[47]) = (0x50, 0x10);
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
