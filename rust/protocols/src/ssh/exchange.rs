//! The lists of algorithms that each side offers (RFC 4253 section 7.1), and HASSH, which is made of them.

use crate::tls::fingerprint::md5_hex;
use crate::{Reader, Way};

/// Numbers of messages.
pub const KEXINIT: u8 = 20;
pub const NEWKEYS: u8 = 21;
const COOKIE_BYTES: usize = 16;
/// Lists up to compression to the client.
const LISTS: usize = 8;

/// Return HASSH's string and digest: key exchange, encryption, MAC and compression of the sender's own way.
/// `payload` begins behind the message's number.
pub fn hassh(payload: &[u8], way: Way) -> Option<(Box<[u8]>, Box<str>)> {
    let mut reader = Reader::new(payload);
    reader.take(COOKIE_BYTES)?;
    let mut lists: [&[u8]; LISTS] = [&[]; LISTS];
    for list in &mut lists {
        let length = reader.be32()?;
        *list = reader.take(usize::try_from(length).ok()?)?;
    }
    let [exchange, _host_keys, up_encryption, down_encryption, up_mac, down_mac, up_compression, down_compression] =
        lists;
    let text = match way {
        Way::ToServer => [exchange, up_encryption, up_mac, up_compression],
        Way::ToClient => [exchange, down_encryption, down_mac, down_compression],
    };
    let text = text.join(&b';');
    let hash = md5_hex(&text);
    Some((text.into(), hash.into()))
}
