//! JSON text, written member by member, without a tree.

use std::fmt::Write;

/// A writer of the members of one object. Commas and escapes are its business; balance is the caller's.
pub struct Json<'a> {
    out: &'a mut String,
    has_member: bool,
}

impl<'a> Json<'a> {
    /// Continue an object that is open in `out`; `has_member` tells whether a comma is due.
    pub fn inside(out: &'a mut String, has_member: bool) -> Json<'a> {
        Json { out, has_member }
    }

    fn key(&mut self, name: &str) {
        if self.has_member {
            self.out.push(',');
        }
        self.has_member = true;
        escape(self.out, name.as_bytes());
        self.out.push(':');
    }

    fn comma(&mut self) {
        if self.has_member {
            self.out.push(',');
        }
        self.has_member = true;
    }

    /// A number.
    pub fn number(&mut self, name: &str, value: u64) {
        self.key(name);
        let _ = write!(self.out, "{value}"); // writing to a String cannot fail
    }

    /// A number with a sign.
    pub fn signed(&mut self, name: &str, value: i64) {
        self.key(name);
        let _ = write!(self.out, "{value}");
    }

    /// A number with a fraction.
    pub fn float(&mut self, name: &str, value: f64) {
        self.key(name);
        let _ = if value.is_finite() { write!(self.out, "{value:?}") } else { write!(self.out, "null") };
    }

    /// True or false.
    pub fn flag(&mut self, name: &str, value: bool) {
        self.key(name);
        self.out.push_str(if value { "true" } else { "false" });
    }

    /// Text, or bytes that are mostly text: what is no UTF-8 becomes `\u00XX` of the byte.
    pub fn text(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.key(name);
        escape(self.out, value.as_ref());
    }

    /// Bytes as lower-case hexadecimal digits.
    pub fn hex(&mut self, name: &str, value: &[u8]) {
        self.key(name);
        self.out.push('"');
        for byte in value {
            let _ = write!(self.out, "{byte:02x}");
        }
        self.out.push('"');
    }

    /// Text that needs no escaping, such as an address.
    pub fn plain(&mut self, name: &str, value: impl std::fmt::Display) {
        self.key(name);
        let _ = write!(self.out, "\"{value}\"");
    }

    /// JSON text that is already written.
    pub fn raw(&mut self, name: &str, value: &str) {
        self.key(name);
        self.out.push_str(value);
    }

    /// Begin an object under `name`; end it with [`Json::close`].
    pub fn open(&mut self, name: &str) {
        self.key(name);
        self.out.push('{');
        self.has_member = false;
    }

    /// End an object.
    pub fn close(&mut self) {
        self.out.push('}');
        self.has_member = true;
    }

    /// Begin an array under `name`; end it with [`Json::close_array`].
    pub fn open_array(&mut self, name: &str) {
        self.key(name);
        self.out.push('[');
        self.has_member = false;
    }

    /// End an array.
    pub fn close_array(&mut self) {
        self.out.push(']');
        self.has_member = true;
    }

    /// Begin an object that is an array's element.
    pub fn open_element(&mut self) {
        self.comma();
        self.out.push('{');
        self.has_member = false;
    }

    /// A number that is an array's element.
    pub fn number_element(&mut self, value: u64) {
        self.comma();
        let _ = write!(self.out, "{value}");
    }

    /// Text that is an array's element.
    pub fn text_element(&mut self, value: impl AsRef<[u8]>) {
        self.comma();
        escape(self.out, value.as_ref());
    }
}

fn escape(out: &mut String, bytes: &[u8]) {
    out.push('"');
    // nearly always: nothing to escape
    let is_plain = |byte: &u8| (b' '..=b'~').contains(byte) && !matches!(byte, b'"' | b'\\');
    if bytes.iter().all(is_plain)
        && let Ok(text) = std::str::from_utf8(bytes)
    {
        out.push_str(text);
        out.push('"');
        return;
    }
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                control if control < ' ' || control == '\u{7f}' => {
                    let _ = write!(out, "\\u{:04x}", control as u32);
                }
                other => out.push(other),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\u{byte:04x}");
        }
    }
    out.push('"');
}
