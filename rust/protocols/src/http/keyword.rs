//! What rules can look at in HTTP.

use super::transaction::progress;
use crate::{BufferInfo, COMPLETE, Way, Ways};

macro_rules! buffers {
    ($($kind:ident => $info:expr),* $(,)?) => {
        /// The buffers.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Buffer { $($kind),* }

        /// They, in the order of [`BUFFERS`].
        pub static KINDS: &[Buffer] = &[$(Buffer::$kind),*];

        /// What rules need to know about them.
        pub static BUFFERS: &[BufferInfo] = &[$($info),*];
    };
}

type Names = &'static [&'static str];

const fn text(keyword: &'static str, aliases: Names, modifiers: Names, ways: Ways, progress: u8) -> BufferInfo {
    BufferInfo { keyword, aliases, modifiers, ways, progress, is_multiple: false, is_growing: false }
}

const fn in_line(keyword: &'static str, aliases: Names, modifiers: Names, ways: Ways) -> BufferInfo {
    text(keyword, aliases, modifiers, ways, progress::LINE)
}

const fn in_header(keyword: &'static str, aliases: Names, modifiers: Names, ways: Ways) -> BufferInfo {
    text(keyword, aliases, modifiers, ways, progress::HEADERS)
}

const fn many(info: BufferInfo) -> BufferInfo {
    BufferInfo { is_multiple: true, ..info }
}

const fn growing(info: BufferInfo) -> BufferInfo {
    BufferInfo { is_growing: true, ..info }
}

const fn in_body(keyword: &'static str, aliases: Names, modifiers: Names, ways: Ways) -> BufferInfo {
    growing(text(keyword, aliases, modifiers, ways, progress::BODY))
}

use Ways::{Both, ToClient, ToServer};

buffers! {
    Uri => in_line("http.uri", &[], &["http_uri"], ToServer),
    RawUri => in_line("http.uri.raw", &[], &["http_raw_uri"], ToServer),
    Method => in_line("http.method", &[], &["http_method"], ToServer),
    Protocol => in_line("http.protocol", &["http_protocol"], &[], Both),
    RequestLine => in_line("http.request_line", &["http_request_line"], &[], ToServer),
    ResponseLine => in_line("http.response_line", &["http_response_line"], &[], ToClient),
    StatusCode => in_line("http.stat_code", &[], &["http_stat_code"], ToClient),
    StatusMessage => in_line("http.stat_msg", &[], &["http_stat_msg"], ToClient),
    Host => in_header("http.host", &[], &["http_host"], ToServer),
    RawHost => in_header("http.host.raw", &[], &["http_raw_host"], ToServer),
    UserAgent => in_header("http.user_agent", &[], &["http_user_agent"], ToServer),
    Referer => in_header("http.referer", &["http_referer"], &[], ToServer),
    Cookie => in_header("http.cookie", &[], &["http_cookie"], Both),
    Accept => in_header("http.accept", &["http_accept"], &[], ToServer),
    AcceptLanguage => in_header("http.accept_lang", &["http_accept_lang"], &[], ToServer),
    AcceptEncoding => in_header("http.accept_enc", &["http_accept_enc"], &[], ToServer),
    Connection => in_header("http.connection", &["http_connection"], &[], Both),
    ContentType => in_header("http.content_type", &["http_content_type"], &[], Both),
    ContentLength => in_header("http.content_len", &["http_content_len"], &[], Both),
    Location => in_header("http.location", &[], &[], ToClient),
    Server => in_header("http.server", &[], &[], ToClient),
    Start => in_header("http.start", &["http_start"], &[], Both),
    Header => in_header("http.header", &[], &["http_header"], Both),
    RawHeader => in_header("http.header.raw", &[], &["http_raw_header"], Both),
    HeaderNames => in_header("http.header_names", &["http_header_names"], &[], Both),
    RequestHeader => many(in_header("http.request_header", &[], &[], ToServer)),
    ResponseHeader => many(in_header("http.response_header", &[], &[], ToClient)),
    RequestBody => in_body("http.request_body", &[], &["http_client_body"], ToServer),
    ResponseBody => in_body("http.response_body", &[], &["http_server_body"], ToClient),
    FileData => many(in_body("file.data", &["file_data"], &[], Both)),
    FileName => many(text("file.name", &[], &[], Both, progress::BODY)),
}

/// Names of states for rule headers.
pub static STATES: &[(&str, Way, u8)] = &[
    ("request_started", Way::ToServer, progress::STARTED),
    ("request_line", Way::ToServer, progress::LINE),
    ("request_headers", Way::ToServer, progress::HEADERS),
    ("request_body", Way::ToServer, progress::BODY),
    ("request_trailer", Way::ToServer, progress::TRAILER),
    ("request_complete", Way::ToServer, COMPLETE),
    ("response_started", Way::ToClient, progress::STARTED),
    ("response_line", Way::ToClient, progress::LINE),
    ("response_headers", Way::ToClient, progress::HEADERS),
    ("response_body", Way::ToClient, progress::BODY),
    ("response_trailer", Way::ToClient, progress::TRAILER),
    ("response_complete", Way::ToClient, COMPLETE),
];

impl Buffer {
    /// The header's field that it is, in lower case.
    pub fn field(self) -> Option<&'static [u8]> {
        Some(match self {
            Buffer::UserAgent => b"user-agent",
            Buffer::Referer => b"referer",
            Buffer::Accept => b"accept",
            Buffer::AcceptLanguage => b"accept-language",
            Buffer::AcceptEncoding => b"accept-encoding",
            Buffer::Connection => b"connection",
            Buffer::ContentType => b"content-type",
            Buffer::ContentLength => b"content-length",
            Buffer::Location => b"location",
            Buffer::Server => b"server",
            _ => return None,
        })
    }

    /// It is made of a header's fields.
    pub fn is_of_header(self) -> bool {
        let made = [
            Buffer::Start,
            Buffer::Header,
            Buffer::RawHeader,
            Buffer::HeaderNames,
            Buffer::RequestHeader,
            Buffer::ResponseHeader,
            Buffer::Cookie,
        ];
        self.field().is_some() || made.contains(&self)
    }
}
