//! The checksum of DNP3's link layer: IEEE 1815, section 9.2.5.

const fn table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u16;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 != 0 { value >> 1 ^ 0xa6bc } else { value >> 1 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
}

static TABLE: [u16; 256] = table();

/// Return the checksum of `data`.
pub fn crc(data: &[u8]) -> u16 {
    !data.iter().fold(0_u16, |sum, byte| sum >> 8 ^ TABLE[usize::from(sum as u8 ^ byte)])
}

/// Return whether the last two bytes of `block` are the checksum of those before.
pub fn is_right(block: &[u8]) -> bool {
    block.split_last_chunk::<2>().is_some_and(|(data, sum)| crc(data) == u16::from_le_bytes(*sum))
}
