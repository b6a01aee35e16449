//! Invariant: no bytes in any pieces make a parser panic, claim to have read more than there was, or hold more than
//! [`MOST_HEAP`]; all that its transactions say can be asked for, and their logs are closed JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../shared/protocols.rs"]
mod shared;

fuzz_target!(|input: &[u8]| shared::run(input));
