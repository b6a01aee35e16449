//! What can be wrong with HTTP, by the names that rules use.

macro_rules! events {
    ($($variant:ident => $name:literal),* $(,)?) => {
        /// Something odd in a transaction.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum Event { $($variant),* }

        /// Their names, in the order of their numbers.
        pub static NAMES: &[&str] = &[$($name),*];
    };
}

// Some have no place here where they could be noticed (the server's port is the sensor's knowledge, say); rules that
// name them must load all the same.
#[allow(dead_code)]
mod list {
    events! {
        UnknownError => "unknown_error",
        DecompressionFailed => "gzip_decompression_failed",
        RequestColonMissing => "request_field_missing_colon",
        ResponseColonMissing => "response_field_missing_colon",
        RequestChunkLength => "invalid_request_chunk_len",
        ResponseChunkLength => "invalid_response_chunk_len",
        RequestTransferEncoding => "invalid_transfer_encoding_value_in_request",
        ResponseTransferEncoding => "invalid_transfer_encoding_value_in_response",
        RequestContentLength => "invalid_content_length_field_in_request",
        ResponseContentLength => "invalid_content_length_field_in_response",
        RequestDuplicateLength => "duplicate_content_length_field_in_request",
        ResponseDuplicateLength => "duplicate_content_length_field_in_response",
        SecondContinue => "100_continue_already_seen",
        NoRequest => "unable_to_match_response_to_request",
        InvalidServerPort => "invalid_server_port_in_request",
        InvalidAuthorityPort => "invalid_authority_port",
        RequestHeaderInvalid => "request_header_invalid",
        ResponseHeaderInvalid => "response_header_invalid",
        HostMissing => "missing_host_header",
        HostAmbiguous => "host_header_ambiguous",
        RequestFolding => "invalid_request_field_folding",
        ResponseFolding => "invalid_response_field_folding",
        RequestTooLong => "request_field_too_long",
        ResponseTooLong => "response_field_too_long",
        PortMismatch => "request_server_port_tcp_port_mismatch",
        UriHostInvalid => "request_uri_host_invalid",
        HeaderHostInvalid => "request_header_host_invalid",
        MethodDelimiter => "method_delim_non_compliant",
        UriDelimiter => "uri_delim_non_compliant",
        LeadingWhitespace => "request_line_leading_whitespace",
        TooManyLayers => "too_many_encoding_layers",
        AbnormalEncoding => "abnormal_ce_header",
        AuthUnrecognised => "request_auth_unrecognized",
        RequestRepetition => "request_header_repetition",
        ResponseRepetition => "response_header_repetition",
        ByteRanges => "response_multipart_byteranges",
        AbnormalTransfer => "response_abnormal_transfer_encoding",
        ChunkedOldProtocol => "response_chunked_old_proto",
        InvalidProtocol => "response_invalid_protocol",
        InvalidStatus => "response_invalid_status",
        LineIncomplete => "request_line_incomplete",
        DoubleEncoded => "double_encoded_uri",
        LineInvalid => "request_line_invalid",
        UnexpectedBody => "request_body_unexpected",
        LzmaLimit => "lzma_memlimit_reached",
        Bomb => "compression_bomb",
        TooManyWarnings => "too_many_warnings",
        RangeInvalid => "range_invalid",
        FileNameTooLong => "file_name_too_long",
        FailedProtocolChange => "failed_protocol_change",
        RequestChunkExtension => "request_chunk_extension",
        ProtocolMissing => "request_line_missing_protocol",
        RequestTooManyHeaders => "request_too_many_headers",
        ResponseTooManyHeaders => "response_too_many_headers",
        ResponseChunkExtension => "response_chunk_extension",
        MultipartError => "multipart_generic_error",
        MultipartNoData => "multipart_no_filedata",
        MultipartHeader => "multipart_invalid_header",
    }
}

pub use list::{Event, NAMES};

use crate::Way;

impl Event {
    /// Return the event of that way, of two that differ in nothing else.
    pub fn of(way: Way, request: Event, response: Event) -> Event {
        match way {
            Way::ToServer => request,
            Way::ToClient => response,
        }
    }
}
