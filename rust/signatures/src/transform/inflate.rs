//! Decompression within bounds.

use std::io::Read;

use flate2::bufread::{GzDecoder, ZlibDecoder};

/// What is around the compressed bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wrapper {
    Gzip,
    Zlib,
}

/// Append what `input` unpacks to, at most `most` bytes. What came before an error counts.
pub(super) fn inflate(input: &[u8], wrapper: Wrapper, most: usize, output: &mut Vec<u8>) {
    let most = most as u64;
    // an error ends it: what was unpacked until then is in `output`
    let _ = match wrapper {
        Wrapper::Gzip => GzDecoder::new(input).take(most).read_to_end(output),
        Wrapper::Zlib => ZlibDecoder::new(input).take(most).read_to_end(output),
    };
}
