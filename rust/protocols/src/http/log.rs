//! What EVE tells about a transaction.

use super::HttpTransaction;
use super::header::{Header, number};
use super::line::trim;
use crate::Json;

/// Write the object `http`.
pub fn write(transaction: &HttpTransaction, json: &mut Json) {
    let [request, response] = &transaction.headers;
    let text = |json: &mut Json, name: &str, value: Option<&[u8]>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            json.text(name, value);
        }
    };
    json.open("http");
    text(json, "hostname", Some(&transaction.host));
    if let Some(port) = transaction.port {
        json.number("http_port", u64::from(port));
    }
    text(json, "url", Some(transaction.line.uri()));
    text(json, "http_user_agent", request.get(b"user-agent"));
    let kind = response.get(b"content-type").and_then(|kind| kind.split(|byte| *byte == b';').next());
    text(json, "http_content_type", kind.map(trim));
    if !transaction.is_extended {
        return json.close();
    }
    if let Some(range) = response.get(b"content-range") {
        write_range(range, json);
    }
    text(json, "http_refer", request.get(b"referer"));
    text(json, "http_method", Some(transaction.line.method()));
    text(json, "protocol", Some(transaction.line.protocol()));
    let code = transaction.status.code();
    match code {
        Some(code) => json.number("status", u64::from(code)),
        None => text(json, "status_string", Some(transaction.status.status())),
    }
    if code.is_some_and(|code| (301..303).contains(&code)) {
        text(json, "redirect", response.get(b"location"));
    }
    json.number("length", transaction.message_bytes[1]);
    for (name, header, is_wanted) in [
        ("request_headers", request, transaction.dumps_headers[0]),
        ("response_headers", response, transaction.dumps_headers[1]),
    ] {
        if is_wanted {
            write_header(name, header, json);
        }
    }
    json.close();
}

fn write_header(name: &str, header: &Header, json: &mut Json) {
    json.open_array(name);
    for field in header.fields() {
        json.open_element();
        json.text("name", field.name());
        json.text("value", field.value());
        json.close();
    }
    json.close_array();
}

/// `bytes 0-499/1234` (RFC 9110 section 14.4).
fn write_range(range: &[u8], json: &mut Json) {
    json.open("content_range");
    json.text("raw", range);
    let mut halves = range.splitn(2, |byte| *byte == b'/');
    let mut ends = halves.next().unwrap_or_default().splitn(2, |byte| *byte == b'-').map(number);
    if let (Some(Some(start)), Some(Some(end))) = (ends.next(), ends.next()) {
        json.number("start", start);
        json.number("end", end);
    }
    if let Some(size) = halves.next().and_then(number) {
        json.number("size", size);
    }
    json.close();
}
