//! Capture files, whole and broken: what is readable is read, the end says how the file ended, nothing panics.

use capture::{CaptureError, CaptureFile, FileEnd, Record};

#[derive(Debug, PartialEq)]
struct Read {
    frames: Vec<(u64, Vec<u8>, u32)>,
    unsupported: usize,
    end: FileEnd,
}

fn read(bytes: &[u8]) -> Result<Read, CaptureError> {
    let mut file = CaptureFile::open(bytes)?;
    let (mut frames, mut unsupported) = (Vec::new(), 0);
    loop {
        match file.next_record()? {
            Record::Frame(frame) => frames.push((frame.time_us, frame.data.to_vec(), frame.wire_bytes)),
            Record::UnsupportedLink => unsupported += 1,
            Record::End(end) => return Ok(Read { frames, unsupported, end }),
        }
    }
}

fn pcap(magic: u32, link_type: u32, fraction: u32) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [magic, 0x0004_0002, 0, 0, 65_535, link_type] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    for data in [&b"first frame"[..], b"second"] {
        for word in [7, fraction, data.len() as u32, 100] {
            file.extend_from_slice(&u32::to_le_bytes(word));
        }
        file.extend_from_slice(data);
    }
    file
}

fn block(kind: u32, body: &[u8], big_endian: bool) -> Vec<u8> {
    let mut padded = body.to_vec();
    padded.resize(body.len().next_multiple_of(4), 0);
    let length = padded.len() as u32 + 12;
    let word = |value: u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
    [&word(kind)[..], &word(length), &padded, &word(length)].concat()
}

fn pcapng(big_endian: bool, resolution: Option<u8>) -> Vec<u8> {
    let word = |value: u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
    let half = |value: u16| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
    let section = [&word(0x1a2b_3c4d)[..], &half(1), &half(0), &word(u32::MAX), &word(u32::MAX)].concat();
    let mut interface = [&half(1)[..], &half(0), &word(0)].concat();
    if let Some(value) = resolution {
        interface.extend_from_slice(&[&half(9)[..], &half(1), &[value, 0, 0, 0], &half(0), &half(0)].concat());
    }
    let ticks = 7_000_000_u64; // 7 s in microseconds
    let enhanced =
        [&word(0)[..], &word((ticks >> 32) as u32), &word(ticks as u32), &word(5), &word(9), b"frame"].concat();
    let simple = [&word(4)[..], b"data"].concat();
    [
        block(0x0a0d_0d0a, &section, big_endian),
        block(1, &interface, big_endian),
        block(4, b"names we do not need", big_endian),
        block(6, &enhanced, big_endian),
        block(3, &simple, big_endian),
    ]
    .concat()
}

#[test]
fn both_byte_orders_and_resolutions_read_alike() {
    let expected = vec![(7_500_000, b"first frame".to_vec(), 100), (7_500_000, b"second".to_vec(), 100)];
    let micro = pcap(0xa1b2_c3d4, 1, 500_000);
    let nano = pcap(0xa1b2_3c4d, 1, 500_000_000);
    let mut swapped = micro.clone();
    let mut at = 0;
    while at < swapped.len() {
        // turn every word of the headers round; the data in between stays
        let header = if at == 0 { 24 } else { 16 };
        let captured = u32::from_le_bytes([swapped[at + 8], swapped[at + 9], swapped[at + 10], swapped[at + 11]]);
        swapped[at..at + header].chunks_mut(4).for_each(<[u8]>::reverse);
        at += header + if at == 0 { 0 } else { captured as usize };
    }
    for file in [micro, nano, swapped] {
        let Ok(read) = read(&file) else { panic!("not readable") };
        assert_eq!((read.frames.as_slice(), read.end), (expected.as_slice(), FileEnd::Whole));
    }
}

#[test]
fn pcapng_reads_in_both_byte_orders() {
    for big_endian in [false, true] {
        let Ok(whole) = read(&pcapng(big_endian, None)) else { panic!("not readable") };
        assert_eq!(whole.frames, [(7_000_000, b"frame".to_vec(), 9), (0, b"data".to_vec(), 4)]);
        assert_eq!(whole.end, FileEnd::Whole);
    }
    let Ok(nano) = read(&pcapng(false, Some(9))) else { panic!("not readable") };
    assert_eq!(nano.frames[0].0, 7_000);
    let Ok(binary) = read(&pcapng(false, Some(0x80 | 20))) else { panic!("not readable") };
    assert_eq!(binary.frames[0].0, 7_000_000 * 1_000_000 / (1 << 20));
}

#[test]
fn an_unknown_link_type_is_counted() {
    let Ok(read) = read(&pcap(0xa1b2_c3d4, 147, 0)) else { panic!("not readable") };
    assert_eq!((read.frames.len(), read.unsupported), (0, 2));
}

#[test]
fn what_is_no_capture_is_refused() {
    for bytes in [&b""[..], b"abc", b"\x1f\x8b\x08\x00compressed.............", &[0x0a, 0x0d, 0x0d, 0x0a, 0, 0, 0, 0]] {
        assert!(matches!(read(bytes), Err(CaptureError::NotACapture)), "{bytes:?}");
    }
}

#[test]
fn a_cut_file_is_read_up_to_the_cut() {
    for file in [pcap(0xa1b2_c3d4, 1, 0), pcapng(false, Some(6)), pcapng(true, None)] {
        let Ok(whole) = read(&file) else { panic!("not readable") };
        for length in 0..file.len() {
            if let Ok(part) = read(&file[..length]) {
                assert!(whole.frames.starts_with(&part.frames), "cut at {length}");
            }
        }
    }
}

#[test]
fn no_flipped_byte_panics_or_loops() {
    for file in [pcap(0xa1b2_c3d4, 1, 0), pcapng(false, Some(6)), pcapng(true, None)] {
        for at in 0..file.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff, file[at] ^ 1, file[at] ^ 0x10] {
                let mut bad = file.clone();
                bad[at] = value;
                if let Ok(read) = read(&bad) {
                    assert!(read.frames.len() <= 8);
                }
            }
        }
    }
}

#[test]
fn a_record_larger_than_any_capture_ends_the_reading() {
    let mut file = pcap(0xa1b2_c3d4, 1, 0);
    file[24 + 8..24 + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    let Ok(read) = read(&file) else { panic!("not readable") };
    assert_eq!((read.frames.len(), read.end), (0, FileEnd::Truncated));
}
