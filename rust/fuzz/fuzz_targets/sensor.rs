//! Invariant: no capture makes the sensor panic, every frame is counted as one thing, every event line is closed JSON.
#![no_main]

use capture::{CaptureFile, Record};
use libfuzzer_sys::fuzz_target;
use sensor::{Config, FlowEvents, Sensor, SipKey};

fuzz_target!(|input: &[u8]| {
    let Ok(mut file) = CaptureFile::open(input) else { return };
    let config = Config { memory_bytes: 2 << 20, flow_events: FlowEvents::All, ..Config::default() };
    let Ok(mut sensor) = Sensor::new(config, SipKey([1, 2])) else { return };
    while let Ok(record) = file.next_record() {
        match record {
            Record::Frame(frame) => sensor.packet(&frame),
            Record::UnsupportedLink => {}
            Record::End(_) => break,
        }
    }
    while sensor.finish() {}
    let counters = sensor.counters();
    let parts = counters.ipv4 + counters.ipv6 + counters.arp + counters.other;
    assert_eq!(parts + counters.malformed.iter().sum::<u64>(), counters.packets);
    assert_eq!(counters.flows_created, counters.flows_ended);
    let mut line = String::new();
    while sensor.next_line(&mut line) {
        assert!(line.starts_with('{') && line.ends_with('}'));
    }
});
