//! Invariant: no bytes of any link type make the decoder panic, and a decoded packet's payload lies within the frame.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sensor::{Decoded, Direction, Frame, Link, decode};

const LINKS: [Link; 5] = [Link::Ethernet, Link::RawIp, Link::Cooked, Link::Cooked2, Link::Null];

fuzz_target!(|input: &[u8]| {
    let [link, extra, data @ ..] = input else { return };
    let frame = Frame {
        time_us: 0,
        data,
        wire_bytes: (data.len() + usize::from(*extra)) as u32,
        link: LINKS[usize::from(*link) % LINKS.len()],
        direction: Direction::Unknown,
    };
    if let Ok(Decoded::Ip(packet)) = decode(&frame) {
        assert!(packet.payload_bytes <= packet.wire_bytes);
    }
});
