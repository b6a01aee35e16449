use super::*;

const READS: &str = r#"[{"sources":[[1,1]],"destinations":[[10,10]],"functions":[[0,1]]}]"#;

/// A link frame of the master 1 for the outstation 10.
fn link(control: u8, data: &[u8]) -> Vec<u8> {
    let mut frame = vec![5, 0x64, (data.len() + 5) as u8, control, 10, 0, 1, 0];
    let sum = super::super::dnp3::checksum(&frame);
    frame.extend_from_slice(&sum);
    for block in data.chunks(16) {
        frame.extend_from_slice(block);
        frame.extend_from_slice(&super::super::dnp3::checksum(block));
    }
    frame
}

fn request(fragment: &[u8]) -> Vec<u8> {
    link(0xc4, &[&[0xc0][..], fragment].concat())
}

/// The fragment in segments of `size` bytes.
fn split(fragment: &[u8], size: usize) -> Vec<u8> {
    let last = fragment.chunks(size).count() - 1;
    let segment = |(number, part): (usize, &[u8])| {
        let bits = if number == 0 { 0x40 } else { 0 } | if number == last { 0x80 } else { 0 };
        link(0xc4, &[&[bits | (60 + number as u8) & 0x3f][..], part].concat())
    };
    fragment.chunks(size).enumerate().flat_map(segment).collect()
}

const CLASS_0: [u8; 5] = [0xc1, 1, 60, 1, 6];
const OPERATE: [u8; 18] = [0xc1, 5, 12, 1, 0x17, 1, 3, 3, 1, 100, 0, 0, 0, 100, 0, 0, 0, 0];

#[test]
fn the_checksum_is_that_of_the_standard() {
    let check = super::super::dnp3::checksum(b"123456789"); // the catalogue of CRC algorithms: 0xea82
    assert_eq!(check, 0xea82_u16.to_le_bytes());
}

#[test]
fn reads_pass_and_controls_do_not() {
    let rule = rule("dnp3", READS, "[]");
    passes(&rule, &request(&CLASS_0), false);
    passes(&rule, &request(&CLASS_0), true);
    assert_eq!(refused(&rule, &request(&OPERATE), false), "dnp3 function 5 source 1 destination 10 object 12");
    holds_every_cut(&rule, &request(&CLASS_0));
    holds_every_cut(&rule, &request(&OPERATE));
    refused(&rule, &request(&[0xc0, 13]), false); // cold restart
}

#[test]
fn a_control_over_many_frames_is_judged_whole() {
    let only_time = rule("dnp3", r#"[{"functions":[[2,2]],"objects":[[50,50]]}]"#, "[]");
    let mut fragment = vec![0xc1, 2];
    for _ in 0..12 {
        fragment.extend_from_slice(&[50, 1, 7, 1, 1, 2, 3, 4, 5, 6]);
    }
    for size in [1, 2, 5, 16, 100, 200] {
        passes(&only_time, &split(&fragment, size), false);
    }
    holds_every_cut(&only_time, &split(&fragment, 30));
    fragment.extend_from_slice(&[80, 1, 0, 7, 7, 0]); // clear the restart bit, in the last segment
    for size in [1, 2, 5, 16, 100, 200] {
        refused(&only_time, &split(&fragment, size), false);
    }
    passes(&only_time, &split(&fragment[..122], 50), true); // several frames in one datagram
}

#[test]
fn segments_that_do_not_follow_are_malformed() {
    let rule = rule("dnp3", r#"[{"functions":[[0,128]]}]"#, "[]");
    let first = link(0xc4, &[0x40, 0xc1]);
    for next in [
        link(0xc4, &[0x82, 1]), // a number left out
        link(0xc4, &[0x80, 1]), // the same again
        link(0xc4, &[0xc1, 1]), // a first one in the middle
        link(0xc9, &[]),        // a status request in between
    ] {
        malformed(&rule, &[first.clone(), next].concat(), false);
    }
    for place in [4, 6] {
        let mut other = link(0xc4, &[0x81, 1]); // for another outstation, of another master
        other[place] = 2;
        let sum = super::super::dnp3::checksum(&other[..8]);
        other[8..10].copy_from_slice(&sum);
        malformed(&rule, &[first.clone(), other].concat(), false);
    }
    malformed(&rule, &link(0xc4, &[0x81, 0xc1, 1]), false); // it does not begin
    malformed(&rule, &first, true); // a datagram with half a fragment
    passes(&rule, &[first, link(0xc4, &[0x81, 1])].concat(), false);
}

#[test]
fn a_fragment_without_end_is_malformed() {
    let rule = rule("dnp3", r#"[{"functions":[[0,128]]}]"#, "[]");
    for size in [1, 16, 249] {
        let mut endless = Vec::new();
        for number in 0..600_u32 {
            let bits = if number == 0 { 0x40 } else { 0 };
            let data = [vec![bits | (number & 0x3f) as u8], vec![0xc1; size]].concat();
            endless.extend_from_slice(&link(0xc4, &data));
        }
        malformed(&rule, &endless, false);
    }
}

#[test]
fn damaged_and_foreign_frames_are_malformed() {
    let rule = rule("dnp3", r#"[{"functions":[[0,128]]}]"#, "[]");
    let good = request(&OPERATE);
    for place in 0..good.len() {
        let mut bad = good.clone();
        bad[place] ^= 1;
        malformed(&rule, &bad[..], true);
    }
    malformed(&rule, &link(0x44, &[0xc0, 0xc1, 1]), false); // an outstation's
    malformed(&rule, &link(0xc4, &[]), false);
    malformed(&rule, &link(0xc4, &[0xc0]), false);
    malformed(&rule, &link(0xc9, &[0xc0, 0xc1]), false);
    malformed(&rule, &link(0xc7, &[0xc0, 0xc1]), false);
    malformed(&rule, &request(&[0xc1, 129, 0, 0]), false); // an answer
    malformed(&rule, &request(&[0x41, 1, 60, 1, 6]), false); // the last of several
    malformed(&rule, &request(&[0x81, 1, 60, 1, 6]), false); // the first of several
    malformed(&rule, &request(&[0xd1, 1, 60, 1, 6]), false); // unsolicited
    passes(&rule, &request(&[0xd0, 0]), false); // the confirmation of an unsolicited answer
}

#[test]
fn keep_alives_are_judged_by_their_addresses() {
    let rule = rule("dnp3", READS, "[]");
    for control in [0xc0, 0xd2, 0xc9, 0x80, 0x81, 0x8b] {
        passes(&rule, &link(control, &[]), false);
        holds_every_cut(&rule, &link(control, &[]));
    }
    let mut other = link(0xc9, &[]);
    other[4] = 11;
    let sum = super::super::dnp3::checksum(&other[..8]);
    other[8..10].copy_from_slice(&sum);
    refused(&rule, &other, false);
}

#[test]
fn every_object_header_is_found() {
    let rule = rule("dnp3", r#"[{"functions":[[0,128]],"objects":[[1,1],[30,30],[12,12],[60,60]]}]"#, "[]");
    let bad: &[&[u8]] = &[
        &[0xc1, 1, 60, 2, 6, 80, 1, 0, 7, 7],                // behind "all"
        &[0xc1, 1, 1, 0, 0, 0, 9, 80, 1, 0, 7, 7],           // behind a range
        &[0xc1, 1, 30, 0, 1, 0, 0, 9, 0, 80, 1, 0, 7, 7],    // behind a wide range
        &[0xc1, 1, 30, 0, 8, 9, 0, 80, 1, 0, 7, 7],          // behind a count
        &[0xc1, 1, 30, 0, 0x17, 2, 4, 5, 80, 1, 0, 7, 7],    // behind indexes
        &[0xc1, 5, 12, 3, 0, 0, 8, 1, 1, 80, 1, 0, 7, 7, 0], // behind packed bits
    ];
    for fragment in bad {
        assert!(refused(&rule, &request(fragment), false).ends_with("object 80"));
    }
    let behind_control = [&OPERATE[..], &[80, 1, 0, 7, 7, 0]].concat();
    assert!(refused(&rule, &request(&behind_control), false).ends_with("object 80"));
    passes(&rule, &request(&[0xc1, 1, 60, 2, 6, 60, 3, 6, 30, 0, 0x28, 1, 0, 9, 0]), false);
    refused(&rule, &request(&[0xc0, 13]), false); // no object is not one of these
}

#[test]
fn objects_of_unknown_size_hide_nothing() {
    let allowed = rule("dnp3", r#"[{"functions":[[2,2]],"objects":[[0,0]]}]"#, "[]");
    refused(&allowed, &request(&[0xc1, 2, 0, 240, 0, 0, 0, 2, 4, 1, 2, 3, 4]), false);
    let denied = rule("dnp3", "[]", r#"[{"objects":[[80,80]]}]"#);
    refused(&denied, &request(&[0xc1, 2, 0, 240, 0, 0, 0, 2, 4, 1, 2, 3, 4]), false);
    let by_function = rule("dnp3", r#"[{"functions":[[2,2]]}]"#, "[]");
    passes(&by_function, &request(&[0xc1, 2, 0, 240, 0, 0, 0, 2, 4, 1, 2, 3, 4]), false);
}

#[test]
fn object_headers_that_lie_are_malformed() {
    let rule = rule("dnp3", r#"[{"functions":[[0,128]]}]"#, "[]");
    let bad: &[&[u8]] = &[
        &[0xc1, 1, 60], // half a header
        &[0xc1, 1, 60, 1],
        &[0xc1, 1, 1, 0, 0, 9],                                             // half a range
        &[0xc1, 1, 1, 0, 0, 9, 0],                                          // it falls
        &[0xc1, 1, 1, 0, 0x0c, 1],                                          // no such range
        &[0xc1, 1, 1, 0, 0x76, 1],                                          // no such prefix
        &[0xc1, 1, 1, 0, 0x16],                                             // a prefix without a count
        &[0xc1, 1, 1, 0, 0x10, 0, 1],                                       // a prefix in a range
        &[0xc1, 1, 1, 0, 0x80, 0, 1],                                       // the reserved bit
        &[0xc1, 5, 12, 1, 0x17, 2, 3, 3, 1, 100, 0, 0, 0, 100, 0, 0, 0, 0], // two announced, one there
        &[0xc1, 5, 12, 1, 9, 255, 255, 255, 255],                           // four billion
        &[0xc1, 2, 70, 3, 0x5b, 1, 255, 255, 1],                            // an object of 65535 bytes
        &[0xc1, 1, 60, 1, 6, 0],                                            // a byte behind
    ];
    for fragment in bad {
        malformed(&rule, &request(fragment), false);
    }
}
