//! Invariant: no file makes the reader panic or read for ever, and what it hands out is never more than the file held.
#![no_main]

use capture::{CaptureFile, MAX_RECORD_BYTES, Record};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(mut file) = CaptureFile::open(input) else { return };
    let mut handed_out = 0;
    loop {
        match file.next_record() {
            Ok(Record::Frame(frame)) => {
                assert!(frame.data.len() <= MAX_RECORD_BYTES && frame.wire_bytes as usize >= frame.data.len());
                handed_out += frame.data.len() + 1; // a record has a header: empty frames cost bytes too
                assert!(handed_out <= input.len());
            }
            Ok(Record::UnsupportedLink) => {}
            Ok(Record::End(_)) | Err(_) => break,
        }
    }
});
