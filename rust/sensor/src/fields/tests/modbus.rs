use super::*;

const READS: &str = r#"[{"units":[[1,1]],"functions":[[3,4]],"registers":[[0,99]]}]"#;

fn frame(unit: u8, pdu: &[u8]) -> Vec<u8> {
    let length = (pdu.len() + 1) as u16;
    [&[0, 9, 0, 0][..], &length.to_be_bytes(), &[unit], pdu].concat()
}

fn read(first: u16, count: u16) -> Vec<u8> {
    frame(1, &[&[3][..], &first.to_be_bytes(), &count.to_be_bytes()].concat())
}

#[test]
fn a_read_within_the_span_passes_and_no_other() {
    let rule = rule("modbus", READS, "[]");
    passes(&rule, &read(0, 100), false);
    passes(&rule, &read(99, 1), true);
    assert_eq!(refused(&rule, &read(99, 2), false), "modbus function 3 unit 1 register 99-100");
    refused(&rule, &read(100, 1), false);
    refused(&rule, &frame(2, &[3, 0, 0, 0, 1]), false); // another unit
    refused(&rule, &frame(1, &[1, 0, 0, 0, 1]), false); // another function
    assert_eq!(refused(&rule, &frame(1, &[6, 0, 40, 0, 1]), false), "modbus function 6 unit 1 register 40 value 1");
    holds_every_cut(&rule, &read(0, 100));
    holds_every_cut(&rule, &frame(1, &[6, 0, 40, 0, 1]));
}

#[test]
fn a_write_behind_a_read_is_judged_by_itself() {
    let rule = rule("modbus", READS, "[]");
    let both = [read(0, 1), frame(1, &[6, 0, 40, 0, 1])].concat();
    let Judged::Pass { len, skip: 0 } = one(&rule, &both, false) else { panic!() };
    refused(&rule, &both[len..], false);
    let Judged::Pass { len, skip: 0 } = one(&rule, &both, true) else { panic!() };
    refused(&rule, &both[len..], true);
}

#[test]
fn a_write_inside_the_length_of_a_read_is_malformed() {
    let rule = rule("modbus", READS, "[]");
    let hidden = frame(1, &[&[3, 0, 0, 0, 1][..], &frame(1, &[6, 0, 40, 0, 1])].concat());
    malformed(&rule, &hidden, false);
    let mut long = read(0, 1); // the length counts a byte more than the read has
    long[5] += 1;
    long.push(0);
    malformed(&rule, &long, false);
    let mut short = read(0, 1); // and one less
    short[5] -= 1;
    malformed(&rule, &short, false);
}

#[test]
fn headers_that_lie_are_malformed() {
    let rule = rule("modbus", READS, "[]");
    for (place, value) in [(2, 1), (3, 1), (4, 1), (5, 0), (5, 1), (5, 255)] {
        let mut lie = read(0, 1);
        lie[place] = value;
        malformed(&rule, &lie, false);
        malformed(&rule, &lie, true);
    }
}

#[test]
fn odd_requests_are_malformed() {
    let every = rule("modbus", r#"[{"functions":[[0,255]]}]"#, "[]");
    let pdus: &[&[u8]] = &[
        &[0],                                         // no function
        &[0x83, 2],                                   // an exception
        &[3, 2, 0, 7],                                // an answer
        &[3, 0, 0, 0, 0],                             // nothing to read
        &[3, 0, 0, 0, 126],                           // more than a frame has room for
        &[1, 0, 0, 7, 0xd1],                          // 2001 coils
        &[3, 0xff, 0xff, 0, 2],                       // past the last register
        &[5, 0, 0, 1, 0],                             // neither on nor off
        &[6, 0, 0, 0],                                // short
        &[7, 0],                                      // long
        &[8, 0, 1, 0, 0, 0, 0],                       // two words where there is one
        &[15, 0, 0, 0, 9, 1, 1],                      // nine coils in one byte
        &[15, 0, 0, 0, 3, 1, 0x0f],                   // a fourth coil in the padding
        &[16, 0, 0, 0, 1, 4, 0, 1, 0, 2],             // two words where there is one
        &[16, 0, 0, 0, 2, 2, 0, 1],                   // one where there are two
        &[20, 8, 6, 0, 1, 0, 0, 0, 1, 0],             // not a number of references
        &[20, 7, 7, 0, 1, 0, 0, 0, 1],                // another reference type
        &[21, 9, 6, 0, 1, 0, 0, 0, 2, 0, 1],          // two words announced, one there
        &[22, 0, 0, 0, 0],                            // short
        &[23, 0, 0, 0, 1, 0, 0, 0, 1, 4, 0, 1, 0, 2], // byte count
        &[43, 14, 9, 0],                              // a code that does not exist
        &[43, 14, 1, 0, 0],                           // long
    ];
    for pdu in pdus {
        malformed(&every, &frame(1, pdu), false);
    }
}

#[test]
fn every_function_of_the_standard_is_read() {
    let every = rule("modbus", r#"[{"functions":[[0,127]]}]"#, "[]");
    let pdus: &[&[u8]] = &[
        &[1, 0, 0, 7, 0xd0],
        &[2, 0xff, 0xff, 0, 1],
        &[3, 0, 0, 0, 125],
        &[4, 0, 0, 0, 1],
        &[5, 0, 0, 0xff, 0],
        &[6, 0, 0, 1, 2],
        &[7],
        &[8, 0, 0, 1, 2, 3, 4],
        &[8, 0, 10, 0, 0],
        &[11],
        &[12],
        &[15, 0, 0, 0, 10, 2, 0xcd, 1],
        &[16, 0, 1, 0, 2, 4, 0, 10, 1, 2],
        &[17],
        &[20, 14, 6, 0, 4, 0, 1, 0, 2, 6, 0, 3, 0, 9, 0, 2],
        &[21, 13, 6, 0, 4, 0, 7, 0, 3, 6, 0xaf, 4, 0xbe, 0x10, 0x0d],
        &[22, 0, 4, 0, 0xf2, 0, 0x25],
        &[23, 0, 3, 0, 6, 0, 14, 0, 3, 6, 0, 255, 0, 255, 0, 255],
        &[24, 4, 0xde],
        &[43, 14, 1, 0],
        &[43, 13, 1, 2, 3],
        &[65, 1, 2, 3],
        &[100],
    ];
    for pdu in pdus {
        passes(&every, &frame(1, pdu), false);
        holds_every_cut(&every, &frame(1, pdu));
    }
}

#[test]
fn both_spans_of_an_exchange_are_judged() {
    let rule = rule("modbus", r#"[{"functions":[[23,23]],"registers":[[0,9]]}]"#, "[]");
    let exchange = |read: u8, write: u8| frame(1, &[23, 0, read, 0, 2, 0, write, 0, 1, 2, 0, 5]);
    passes(&rule, &exchange(0, 9), false);
    refused(&rule, &exchange(9, 0), false);
    assert_eq!(refused(&rule, &exchange(0, 10), false), "modbus function 23 unit 1 register 10 and 1 more value 5");
}

#[test]
fn every_written_value_is_judged() {
    let low = rule("modbus", r#"[{"values":[[0,100]]}]"#, "[]");
    passes(&low, &frame(1, &[6, 0, 0, 0, 100]), false);
    refused(&low, &frame(1, &[6, 0, 0, 0, 101]), false);
    refused(&low, &frame(1, &[16, 0, 0, 0, 2, 4, 0, 100, 0, 101]), false);
    refused(&low, &frame(1, &[21, 9, 6, 0, 4, 0, 7, 0, 1, 6, 0xaf]), false);
    passes(&low, &read(0, 1), false); // a read writes nothing
    let off = rule("modbus", r#"[{"values":[[0,0]]}]"#, "[]");
    passes(&off, &frame(1, &[5, 0, 0, 0, 0]), false);
    refused(&off, &frame(1, &[5, 0, 0, 0xff, 0]), false);
    refused(&off, &frame(1, &[15, 0, 0, 0, 10, 2, 0, 2]), false); // the last of ten is on
    passes(&off, &frame(1, &[15, 0, 0, 0, 10, 2, 0, 0]), false);
}

#[test]
fn a_mask_write_is_known_only_if_it_overwrites_all() {
    let low = rule("modbus", r#"[{"values":[[0,100]]}]"#, "[]");
    passes(&low, &frame(1, &[22, 0, 4, 0, 0, 0, 5]), false);
    refused(&low, &frame(1, &[22, 0, 4, 0xff, 0xff, 0, 5]), false);
}

#[test]
fn deny_needs_to_meet_only_a_part() {
    let rule = rule("modbus", "[]", r#"[{"registers":[[40,49]]}]"#);
    passes(&rule, &read(0, 40), false);
    passes(&rule, &read(50, 1), false);
    refused(&rule, &read(0, 41), false);
    refused(&rule, &read(49, 10), false);
    refused(&rule, &read(0, 100), false);
    refused(&rule, &frame(1, &[23, 0, 0, 0, 2, 0, 45, 0, 1, 2, 0, 5]), false);
    passes(&rule, &frame(1, &[17]), false); // no register in it
    refused(&rule, &frame(1, &[100, 1]), false); // who knows
    refused(&rule, &frame(1, &[20, 7, 6, 0, 4, 0, 1, 0, 2]), false);
}

#[test]
fn what_cannot_be_read_is_not_allowed_by_registers() {
    let rule = rule("modbus", r#"[{"registers":[[0,65535]]}]"#, "[]");
    passes(&rule, &read(0, 1), false);
    refused(&rule, &frame(1, &[17]), false);
    refused(&rule, &frame(1, &[100, 1]), false);
    refused(&rule, &frame(1, &[43, 13, 1]), false);
}
