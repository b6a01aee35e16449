//! Invariant: no frames make the inspector panic or hold more than its shares; every line is JSON; and when all flows were
//! ended, nothing is held and nothing counted as held.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../shared/inspect.rs"]
mod shared;

fuzz_target!(|input: &[u8]| shared::run(input));
