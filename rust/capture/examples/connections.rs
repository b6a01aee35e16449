//! Opens and closes TCP connections as fast as it can: `connections server ADDRESS:PORT` or
//! `connections client ADDRESS:PORT SECONDS`.
//!
//! For measurements between network namespaces. The server takes each connection and closes it, the client waits for
//! that and ends with a reset, so that no port waits for its turn. It prints one JSON line: how many connections were
//! made in how many seconds.

use std::env;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "server", address] => serve(address.parse()?),
        [_, "client", address, seconds] => call(address.parse()?, Duration::from_secs_f64(seconds.parse()?)),
        _ => Err("usage: connections server ADDRESS:PORT | client ADDRESS:PORT SECONDS".into()),
    }
}

fn serve(address: SocketAddr) -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind(address)?;
    println!("ready");
    loop {
        drop(listener.accept()); // a caller that was gone before we took it is no reason to end
    }
}

fn call(address: SocketAddr, duration: Duration) -> Result<(), Box<dyn std::error::Error>> {
    let (start, mut made) = (Instant::now(), 0_u64);
    while start.elapsed() < duration {
        let mut stream = TcpStream::connect(address)?;
        reset_on_close(&stream)?;
        stream.read_to_end(&mut Vec::new())?; // nothing comes: it was taken and closed
        made += 1;
    }
    println!("{{\"connections\":{made},\"seconds\":{:.3}}}", start.elapsed().as_secs_f64());
    Ok(())
}

fn reset_on_close(stream: &TcpStream) -> std::io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = u32::try_from(size_of::<libc::linger>()).unwrap_or(u32::MAX);
    // SAFETY: the descriptor is open for the whole call, and the pointer is to a value of the size that is given.
    let status = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size)
    };
    if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
