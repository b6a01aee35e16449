//! Undoing `Content-Encoding`: gzip and deflate in all their disguises, and lzma where it is wanted.
//!
//! What a header says is only a hint: each layer looks at the bytes for what they are, and what is no compressed data
//! goes through as it is, because that is what browsers show.

use std::cell::Cell;
use std::io::Write;

use lzma_rs::decompress::{Options, Stream, UnpackedSize};
use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

use super::deflate::choose;

/// As the reference library: more bytes out for one byte in, all layers together, are an attack.
const BOMB_RATIO: u64 = 2048;
/// The reference's `lzma-memlimit`.
const LZMA_MEMORY: usize = 1 << 20;
/// One step of output, on the stack.
const STEP: usize = 4096;

/// The encodings that there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Coding {
    /// gzip, zlib, or deflate without a header.
    Deflate,
    /// LZMA alone.
    Lzma,
}

/// What a `Content-Encoding` header asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Layers, in the order in which they are written.
    pub codings: Vec<Coding>,
    /// There were more.
    pub is_too_many: bool,
    /// A name was not exactly one.
    pub is_abnormal: bool,
}

/// Read a `Content-Encoding` value. Names may stand among anything: `x gzip`, `,deflate`.
pub fn parse_codings(value: &[u8], most: usize, is_lzma_on: bool) -> Asked {
    let mut asked = Asked::default();
    let words = value.split(|byte| *byte == b',' || byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    for word in words {
        let word: Vec<u8> = word.iter().filter(|byte| **byte != 0).map(u8::to_ascii_lowercase).collect();
        let has = |name: &[u8]| word.windows(name.len()).any(|part| part == name);
        let coding = if has(b"gzip") || has(b"deflate") {
            Coding::Deflate
        } else if has(b"lzma") && is_lzma_on {
            Coding::Lzma
        } else {
            asked.is_abnormal |= !has(b"identity") && !has(b"inflate") && !has(b"br") && !has(b"lzma");
            continue;
        };
        asked.is_abnormal |= !matches!(word.as_slice(), b"gzip" | b"x-gzip" | b"deflate" | b"x-deflate" | b"lzma");
        if asked.codings.len() >= most {
            asked.is_too_many = true;
            break;
        }
        asked.codings.push(coding);
    }
    asked
}

/// What went wrong, to be asked for after each call.
#[derive(Default)]
pub struct Trouble {
    /// A layer gave up.
    pub has_failed: Cell<bool>,
    /// Too much came out.
    pub is_bomb: bool,
    /// LZMA wanted more memory than there is.
    pub is_over_memory: Cell<bool>,
}

/// Takes what comes out; returns whether more is wanted.
type Sink<'a> = dyn FnMut(&[u8]) -> bool + 'a;

/// All layers of one body.
pub struct Decoder {
    layers: Vec<Layer>,
    bomb_limit: u64,
    read: u64,
    written: u64,
    /// What went wrong so far.
    pub trouble: Trouble,
}

impl Decoder {
    /// Begin.
    pub fn new(codings: &[Coding], bomb_limit: u64) -> Decoder {
        let layers = codings.iter().map(|coding| match coding {
            Coding::Deflate => Layer::Deciding { held: Vec::new() },
            Coding::Lzma => Layer::Lzma { stream: None },
        });
        Decoder { layers: layers.collect(), bomb_limit, read: 0, written: 0, trouble: Trouble::default() }
    }

    /// Take bytes; `sink` gets what comes out and says whether it wants more; what is not wanted is still made until
    /// it is clear whether it is a bomb, then no longer. `is_end`: nothing follows.
    pub fn push(&mut self, data: &[u8], is_end: bool, sink: &mut Sink<'_>) {
        self.read = self.read.saturating_add(data.len() as u64);
        let (limit, read, mut is_bomb) = (self.bomb_limit, self.read, false);
        let written = &mut self.written;
        push(&mut self.layers, &self.trouble, data, is_end, &mut |piece| {
            let is_wanted = sink(piece);
            *written = written.saturating_add(piece.len() as u64);
            is_bomb |= *written > limit && *written / BOMB_RATIO > read;
            !is_bomb && (is_wanted || *written <= limit)
        });
        self.trouble.is_bomb |= is_bomb;
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        let layers = self.layers.iter().map(|layer| match layer {
            Layer::Deciding { held } => held.capacity(),
            Layer::Inflating { .. } => size_of::<InflateState>(),
            Layer::Lzma { stream: Some(_) } => LZMA_MEMORY, // at most
            _ => 0,
        });
        layers.sum::<usize>() + self.layers.capacity() * size_of::<Layer>()
    }
}

fn push(layers: &mut [Layer], trouble: &Trouble, data: &[u8], is_end: bool, sink: &mut Sink<'_>) -> bool {
    let Some((layer, rest)) = layers.split_first_mut() else {
        return data.is_empty() || sink(data);
    };
    let is_wanted = layer.feed(data, is_end, trouble, &mut |piece| push(rest, trouble, piece, false, sink));
    if !is_wanted {
        *layer = Layer::Over;
    }
    if is_end {
        return push(rest, trouble, &[], true, sink);
    }
    is_wanted
}

enum Layer {
    Deciding {
        held: Vec<u8>,
    },
    Inflating {
        state: Box<InflateState>,
        is_gzip: bool,
    },
    /// Behind a gzip member: so many bytes of its trailer are left, then another may begin.
    Behind {
        left: usize,
    },
    Lzma {
        stream: Option<Box<Stream<Bounded>>>,
    },
    Passing,
    Over,
}

impl Layer {
    /// Take bytes and return whether more are wanted.
    fn feed(&mut self, data: &[u8], is_end: bool, trouble: &Trouble, sink: &mut Sink<'_>) -> bool {
        let mut data = data;
        loop {
            match self {
                Layer::Passing => return data.is_empty() || sink(data),
                Layer::Over => return false,
                Layer::Deciding { held } => {
                    held.extend_from_slice(data);
                    let Some(choice) = choose(held, is_end) else { return true };
                    let held = std::mem::take(held);
                    let offset = choice.map_or(0, |choice| choice.offset);
                    *self = match choice {
                        Some(choice) => {
                            let state = InflateState::new_boxed(DataFormat::Raw);
                            Layer::Inflating { state, is_gzip: choice.is_gzip }
                        }
                        None => Layer::Passing,
                    };
                    trouble.has_failed.set(trouble.has_failed.get() || choice.is_none());
                    return self.feed(held.get(offset..).unwrap_or_default(), is_end, trouble, sink);
                }
                Layer::Inflating { .. } => match self.inflate(data, trouble, sink) {
                    Ok(rest) => data = rest,
                    Err(is_wanted) => return is_wanted,
                },
                Layer::Behind { left } => {
                    let skipped = (*left).min(data.len());
                    *left -= skipped;
                    data = data.get(skipped..).unwrap_or_default();
                    match data.first() {
                        None => return true,
                        Some(0x1f) => *self = Layer::Deciding { held: Vec::new() },
                        Some(_) => *self = Layer::Over, // padding
                    }
                }
                Layer::Lzma { .. } => return self.unpack(data, is_end, trouble, sink),
            }
        }
    }

    /// Inflate. What is left (`Ok`) belongs to the state that this layer is in afterwards; `Err`: all was read, and
    /// whether more is wanted.
    fn inflate<'a>(&mut self, data: &'a [u8], trouble: &Trouble, sink: &mut Sink<'_>) -> Result<&'a [u8], bool> {
        let Layer::Inflating { state, is_gzip } = self else { return Err(false) };
        let mut rest = data;
        let mut out = [0; STEP];
        loop {
            let result = inflate(state, rest, &mut out, MZFlush::None);
            rest = rest.get(result.bytes_consumed..).unwrap_or_default();
            if result.bytes_written > 0 && !sink(out.get(..result.bytes_written).unwrap_or_default()) {
                return Err(false);
            }
            match result.status {
                Ok(MZStatus::StreamEnd) => {
                    *self = if *is_gzip { Layer::Behind { left: GZIP_TRAILER } } else { Layer::Over };
                    return if rest.is_empty() { Err(true) } else { Ok(rest) };
                }
                Ok(_) if result.bytes_consumed == 0 && result.bytes_written == 0 => return Err(true),
                Ok(_) => {}
                Err(MZError::Buf) => return Err(true), // wants more
                Err(_) => {
                    trouble.has_failed.set(true);
                    *self = Layer::Passing;
                    return Ok(rest);
                }
            }
        }
    }

    fn unpack(&mut self, data: &[u8], is_end: bool, trouble: &Trouble, sink: &mut Sink<'_>) -> bool {
        let Layer::Lzma { stream } = self else { return false };
        let Some(&properties) = data.first() else { return self.finish_lzma(is_end, sink) };
        if stream.is_none() && !is_modest(properties) {
            trouble.has_failed.set(true);
            trouble.is_over_memory.set(properties < LZMA_PROPERTIES);
            *self = Layer::Passing;
            return sink(data);
        }
        let stream = stream.get_or_insert_with(lzma_stream);
        let is_bad = stream.write_all(data).is_err();
        let out = stream.get_output_mut().map(|out| std::mem::take(&mut out.0)).unwrap_or_default();
        if !out.is_empty() && !sink(&out) {
            return false;
        }
        trouble.has_failed.set(trouble.has_failed.get() || is_bad);
        trouble.is_over_memory.set(trouble.is_over_memory.get() || is_bad);
        self.finish_lzma(is_bad || is_end, sink)
    }

    /// Put out the rest, if that was all; return whether more is wanted.
    fn finish_lzma(&mut self, is_end: bool, sink: &mut Sink<'_>) -> bool {
        if !is_end {
            return true;
        }
        if let Layer::Lzma { stream: Some(stream) } = std::mem::replace(self, Layer::Over)
            && let Ok(out) = stream.finish()
            && !out.0.is_empty()
        {
            sink(&out.0);
        }
        false
    }
}

/// A properties byte is below this: 9 values of lc, 5 of lp, 5 of pb.
const LZMA_PROPERTIES: u8 = 225;
/// As in LZMA2: lc + lp. Tables grow with two to the power of it, to 6 MiB at 12.
const MOST_CONTEXT: u8 = 4;

/// Return whether data with these properties can be unpacked with little memory.
fn is_modest(properties: u8) -> bool {
    properties < LZMA_PROPERTIES && properties % 9 + properties / 9 % 5 <= MOST_CONTEXT
}

fn lzma_stream() -> Box<Stream<Bounded>> {
    let options =
        Options { unpacked_size: UnpackedSize::ReadFromHeader, memlimit: Some(LZMA_MEMORY), allow_incomplete: true };
    Box::new(Stream::new_with_options(&options, Bounded::default()))
}

/// RFC 1952 section 2.3: checksum and length.
const GZIP_TRAILER: usize = 8;

/// What LZMA puts out, between two looks.
#[derive(Default)]
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + data.len() > LZMA_MEMORY {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        self.0.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use miniz_oxide::deflate::{compress_to_vec, compress_to_vec_zlib};

    use super::*;

    const TEXT: &[u8] =
        b"An answer that is long enough to be worth the effort, and then some more of it, and some more.";

    fn gzip(flags: u8, extra: &[u8], data: &[u8]) -> Vec<u8> {
        let header = [0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 3];
        [&header, extra, &compress_to_vec(data, 6), &[0xff; GZIP_TRAILER]].concat()
    }

    fn decode(codings: &str, data: &[u8], step: usize) -> Vec<u8> {
        let asked = parse_codings(codings.as_bytes(), 3, true);
        let mut decoder = Decoder::new(&asked.codings, 1 << 20);
        let mut out = Vec::new();
        for piece in data.chunks(step) {
            decoder.push(piece, false, &mut |data| {
                out.extend_from_slice(data);
                true
            });
        }
        decoder.push(&[], true, &mut |data| {
            out.extend_from_slice(data);
            true
        });
        out
    }

    #[test]
    fn whatever_the_name_says_the_bytes_decide() {
        let plain = compress_to_vec(TEXT, 6);
        let zlib = compress_to_vec_zlib(TEXT, 6);
        let rows = [
            ("gzip", gzip(0, &[], TEXT)),
            ("deflate", gzip(0, &[], TEXT)),
            ("gzip", zlib.clone()),
            ("deflate", zlib),
            ("x gzip", plain.clone()),
            (",deflate", plain),
            ("gzip", TEXT.to_vec()),
            ("gzip,deflate", TEXT.to_vec()),
            ("gzip, deflate", gzip(0, &[], &compress_to_vec(TEXT, 6))),
            ("deflate, gzip, gzip", gzip(0, &[], TEXT)),
            ("identity", TEXT.to_vec()),
            ("gzip", gzip(4, &[2, 0, 7, 7], TEXT)),
            ("gzip", gzip(8, b"name\0", TEXT)),
            ("gzip", gzip(16, b"comment\0", TEXT)),
            ("gzip", gzip(2, &[1, 2], TEXT)),
            ("gzip", gzip(4, &[], TEXT)), // promised, not there
            ("gzip", gzip(0xe0, &[], TEXT)),
        ];
        for (codings, data) in rows {
            for step in [1, 7, 4096] {
                assert_eq!(decode(codings, &data, step), TEXT, "{codings} {step} {data:02x?}");
            }
        }
    }

    #[test]
    fn members_follow_each_other_and_ends_may_be_missing() {
        let two = [gzip(0, &[], b"one "), gzip(0, &[], b"two")].concat();
        assert_eq!(decode("gzip", &two, 5), b"one two");
        let whole = gzip(0, &[], TEXT);
        let cut = decode("gzip", &whole[..whole.len() - 20], 9);
        assert!(TEXT.starts_with(&cut) && cut.len() > TEXT.len() / 2);
    }

    #[test]
    fn a_bomb_is_stopped() {
        let bomb = compress_to_vec(&compress_to_vec(&vec![0; 64 << 20], 9), 9);
        let mut decoder = Decoder::new(&[Coding::Deflate, Coding::Deflate], 1 << 20);
        let mut count = 0;
        decoder.push(&bomb, true, &mut |data| {
            count += data.len();
            true
        });
        assert!(decoder.trouble.is_bomb && count < 8 << 20, "{count}");
    }

    #[test]
    fn nothing_is_made_that_nobody_wants() {
        let data = compress_to_vec(&vec![b'a'; 32 << 20], 6);
        let mut decoder = Decoder::new(&[Coding::Deflate], 1 << 20);
        let mut count = 0;
        decoder.push(&data, true, &mut |data| {
            count += data.len();
            false
        });
        assert!((1 << 20..2 << 20).contains(&count), "{count}");
    }

    #[test]
    fn headers_are_read() {
        let asked = parse_codings(b"gzip, gzip, deflate", 2, false);
        assert!(asked.is_too_many && asked.codings.len() == 2);
        assert!(parse_codings(b"foo gzip", 2, false).is_abnormal);
        assert!(parse_codings(b"lzma", 2, false).codings.is_empty());
    }

    #[test]
    fn broken_data_of_any_kind_makes_nothing_panic() {
        let mut packed = Vec::new();
        assert!(lzma_rs::lzma_compress(&mut TEXT.repeat(4).as_slice(), &mut packed).is_ok());
        assert_eq!(decode("lzma", &packed, 5), TEXT.repeat(4));
        let samples = [("lzma", packed), ("gzip", gzip(0, &[], &TEXT.repeat(4)))];
        let mut seed = 0x9e37_79b9_u32;
        for _ in 0..2000 {
            for (codings, sample) in &samples {
                let mut data = sample.clone();
                for _ in 0..3 {
                    seed ^= seed << 13;
                    seed ^= seed >> 17;
                    seed ^= seed << 5;
                    let at = seed as usize % data.len();
                    data[at] = seed.to_le_bytes()[3];
                }
                decode(codings, &data, 16);
            }
        }
    }
}
