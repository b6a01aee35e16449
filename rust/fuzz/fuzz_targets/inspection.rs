//! Invariant: no bytes make the conditions of a rule panic, take more than their steps, or capture beyond the bytes;
//! and that something is missing behind the end makes no match of what needs the end.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../shared/inspection.rs"]
mod shared;

fuzz_target!(|input: &[u8]| shared::run(input));
