//! A million invented sources: tables stay as they are, alerts stay few, and who was suspicious stays known.

use super::*;

#[test]
fn a_million_sources_change_no_table_s_size_and_hide_no_scanner() {
    let memory = 1 << 20;
    let mut bench = Bench::with_memory(memory, &[]);
    let bytes = bench.detectors.table_bytes();
    assert!(bytes <= memory, "{bytes}");
    let mut frame = tcp(("198.51.100.1", 1), ("192.168.1.2", 80), flag::SYN, b"");
    let key = SipKey([5, 6]);
    for number in 0..1_000_000_u64 {
        let random = key.hash(&[number]);
        // another source, port and target host each time
        frame[26..30].copy_from_slice(&(random as u32 | 1).to_be_bytes());
        frame[34..36].copy_from_slice(&((random >> 32) as u16).to_be_bytes());
        frame[33] = (random >> 48) as u8;
        bench.frame(&frame);
        bench.now_us += 10;
        if number % 25_000 == 0 {
            bench.detectors.tick(bench.now_us);
        }
        if number % 2000 == 0 {
            let port = (number / 2000) as u16 + 1;
            bench.frame(&tcp(("203.0.113.66", 40_000), ("192.168.1.2", port), flag::SYN, b""));
            bench.frame(&tcp(("192.168.1.2", port), ("203.0.113.66", 40_000), flag::RST | flag::ACK, b""));
        }
    }
    bench.wait(SECOND);
    assert_eq!(bench.detectors.table_bytes(), bytes);
    let scanner = address("203.0.113.66");
    let starts: Vec<_> = bench.found.iter().filter(|finding| finding.phase == Phase::Start).collect();
    assert!(starts.iter().any(|finding| finding.kind == Kind::ConnectScan && finding.subject.source == scanner));
    assert!(starts.len() <= 3, "{starts:?}");
    assert!(bench.detectors.counters().iter().any(|(name, count)| *name == "entries_evicted" && *count > 500_000));
}
