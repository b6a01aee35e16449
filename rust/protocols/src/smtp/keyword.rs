//! What rules can look at in SMTP.

use super::step;
use crate::{BufferInfo, COMPLETE, Ways};

pub mod buffer {
    pub const HELO: usize = 0;
    pub const MAIL_FROM: usize = 1;
    pub const RCPT_TO: usize = 2;
    pub const FILE_DATA: usize = 3;
    pub const FILE_NAME: usize = 4;
    pub const URL: usize = 5;
    /// Fields of the mail's header follow; see [`super::FIELDS`].
    pub const FIELDS: usize = 6;
}

const fn one(keyword: &'static str, progress: u8) -> BufferInfo {
    let (aliases, modifiers, ways): (&[&str], &[&str], Ways) = (&[], &[], Ways::ToServer);
    BufferInfo { keyword, aliases, modifiers, ways, progress, is_multiple: false, is_growing: false }
}

const fn many(keyword: &'static str, aliases: &'static [&'static str], progress: u8) -> BufferInfo {
    BufferInfo { aliases, is_multiple: true, ..one(keyword, progress) }
}

/// Sticky buffers.
pub static BUFFERS: &[BufferInfo] = &[
    one("smtp.helo", step::HELO),
    one("smtp.mail_from", step::SENDER),
    many("smtp.rcpt_to", &[], step::DATA),
    BufferInfo { is_growing: true, ..many("file.data", &["file_data"], step::HEADER) },
    many("file.name", &[], step::HEADER),
    many("email.url", &[], COMPLETE),
    one("email.from", step::HEADER),
    one("email.to", step::HEADER),
    one("email.cc", step::HEADER),
    one("email.subject", step::HEADER),
    one("email.date", step::HEADER),
    one("email.message_id", step::HEADER),
    one("email.x_mailer", step::HEADER),
    many("email.received", &[], step::HEADER),
];

/// Fields of the mail's header behind [`buffer::FIELDS`].
pub static FIELDS: &[&[u8]] = &[b"from", b"to", b"cc", b"subject", b"date", b"message-id", b"x-mailer", b"received"];
