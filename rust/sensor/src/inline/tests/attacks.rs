//! Random attackers against servers with every habit of reassembly: no server may ever read a write.

use std::collections::HashMap;

use super::*;

/// Xorshift: repeatable.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// A server that may lose what passed, keep the first or the last of bytes that overlap, and read late.
struct Server {
    bytes: HashMap<u32, u8>,
    next: u32,
    stream: Vec<u8>,
    prefers_last: bool,
}

impl Server {
    fn receive(&mut self, sequence: u32, payload: &[u8]) {
        for (at, &byte) in (sequence..).zip(payload) {
            if at < self.next {
                continue;
            }
            if self.prefers_last {
                self.bytes.insert(at, byte);
            } else {
                self.bytes.entry(at).or_insert(byte);
            }
        }
    }

    fn read(&mut self) {
        while let Some(byte) = self.bytes.remove(&self.next) {
            self.stream.push(byte);
            self.next += 1;
        }
    }

    /// The function codes that arrived.
    fn functions(&self) -> Vec<u8> {
        self.stream.chunks_exact(12).map(|message| message[7]).collect()
    }
}

#[test]
fn no_server_ever_reads_a_write() {
    let (mut reads, mut writes_tried) = (0, 0);
    for seed in 1..=3_000 {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed) | 1);
        let (mut inspector, mut client) = (inspector(), Client::new());
        client.open(&mut inspector, 99);
        let mut server =
            Server { bytes: HashMap::new(), next: 100, stream: Vec::new(), prefers_last: dice.roll(2) == 1 };
        for _ in 0..60 {
            // two streams of aligned messages, one of reads and one with writes, cut anywhere around what is due
            let start = (server.stream.len() as i64 + dice.roll(40) as i64 - 24).max(0) as usize;
            let length = 1 + dice.roll(30) as usize;
            let has_writes = dice.roll(8) == 0;
            writes_tried += u32::from(has_writes);
            let function = if has_writes { 6 } else { 3 };
            let payload: Vec<u8> = request(function).into_iter().cycle().skip(start % 12).take(length).collect();
            let sequence = 100 + start as u32;
            client.now_us += dice.roll(5_000_000);
            let flags = if dice.roll(50) == 0 { SYN } else { ACK };
            let verdict = client.send(&mut inspector, sequence, flags, &payload);
            if verdict == PASS && flags == ACK && dice.roll(4) != 0 {
                server.receive(sequence, &payload);
            }
            if dice.roll(3) == 0 {
                server.read();
            }
        }
        server.read();
        assert!(server.functions().iter().all(|function| *function == 3), "seed {seed}: {:?}", server.functions());
        reads += server.functions().len();
    }
    assert!(reads > 1_000 && writes_tried > 1_000, "{reads} {writes_tried}"); // otherwise it proves nothing
}

#[test]
fn an_honest_client_on_a_bad_line_gets_everything_through() {
    for seed in 1..=200 {
        let mut dice = Dice(0x2545_f491_4f6c_dd1d_u64.wrapping_mul(seed) | 1);
        let (mut inspector, client) = (inspector(), Client::new());
        client.open(&mut inspector, 99);
        let mut server = Server { bytes: HashMap::new(), next: 100, stream: Vec::new(), prefers_last: true };
        let sent = request(4).repeat(50);
        let mut rounds = 0;
        while server.stream.len() < sent.len() {
            rounds += 1;
            assert!(rounds < 20_000, "seed {seed}: it does not end");
            let start = server.stream.len() + dice.roll(100) as usize;
            let end = sent.len().min(start + 1 + dice.roll(200) as usize);
            if start >= end {
                continue;
            }
            let sequence = 100 + start as u32;
            if client.send(&mut inspector, sequence, ACK, &sent[start..end]) == PASS && dice.roll(5) != 0 {
                server.receive(sequence, &sent[start..end]);
            }
            server.read();
        }
        assert_eq!(server.stream, sent);
        let counters = inspector.counters();
        assert_eq!((counters.refused, counters.malformed, counters.tampered), (0, 0, 0));
    }
}

#[test]
fn no_packet_makes_it_panic() {
    let mut dice = Dice(0x1234_5678_9abc_def1);
    let (mut inspector, client) = (inspector(), Client::new());
    client.open(&mut inspector, 99);
    for round in 0..200_000_u32 {
        let payload: Vec<u8> = (0..dice.roll(40)).map(|_| dice.roll(256) as u8).collect();
        let mut packet = match dice.roll(3) {
            0 => client.tcp(100 + dice.roll(64) as u32, dice.roll(64) as u8, &payload),
            1 => Client { six: true, ..client.clone() }.tcp(dice.roll(1 << 32) as u32, dice.roll(64) as u8, &payload),
            _ => client.udp(&payload),
        };
        for _ in 0..dice.roll(4) {
            let at = dice.roll(packet.len() as u64) as usize;
            packet[at] = dice.roll(256) as u8;
        }
        packet.truncate(packet.len() - (dice.roll(4) * dice.roll(10)) as usize % packet.len());
        let mut queued = client.queued(&packet);
        queued.is_checksum_pending = round % 2 == 0;
        queued.mark ^= (dice.roll(4) as u32) << 24;
        queued.now_us += u64::from(round) * 1000;
        inspector.inspect(&queued);
        while inspector.next_line().is_some() || inspector.next_reset().is_some() {}
    }
}
