//! Invariant: any text loads or is refused with a reason; what was loaded can be grouped and looked for in hostile bytes
//! within its steps.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../shared/rule_text.rs"]
mod shared;

fuzz_target!(|input: &[u8]| shared::run(input));
