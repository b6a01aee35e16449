//! Transforms of text.

/// White space as C's `isspace` has it.
pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, 9..=13 | b' ')
}

pub(super) fn url_decode(input: &[u8], output: &mut Vec<u8>) {
    let mut rest = input;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'+', _) => output.push(b' '),
            (b'%', [high, low, after @ ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => {
                    output.push(high << 4 | low);
                    rest = after;
                }
                _ => output.push(b'%'),
            },
            _ => output.push(*first),
        }
    }
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8) // below 16
}

pub(super) fn compress_whitespace(input: &[u8], output: &mut Vec<u8>) {
    let mut was_space = false;
    for byte in input {
        let is_space = is_space(*byte);
        if !(is_space && was_space) {
            output.push(*byte);
        }
        was_space = is_space;
    }
}

pub(super) fn strip_pseudo_headers(input: &[u8], output: &mut Vec<u8>) {
    for line in input.split_inclusive(|byte| *byte == b'\n').filter(|line| line.first() != Some(&b':')) {
        output.extend_from_slice(line);
    }
}

pub(super) fn header_lowercase(input: &[u8], output: &mut Vec<u8>) {
    for line in input.split_inclusive(|byte| *byte == b'\n') {
        let name = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(name);
        output.extend(name.iter().map(u8::to_ascii_lowercase));
        output.extend_from_slice(value);
    }
}
