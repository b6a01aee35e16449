//! What EVE says about a mail.

use super::mime::Mime;
use super::transaction::Mail;
use crate::tls::fingerprint::md5_hex;
use crate::{Json, Settings};

const PREFIX: &str = "outputs.eve-log.types.smtp.";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Text,
    /// Elements are apart by commas.
    List,
    /// One element for each field.
    Each,
}

/// Names in a header and in EVE; whether `extended` has them.
static FIELDS: &[(&str, &str, Shape, bool)] = &[
    ("reply-to", "reply_to", Shape::Text, false),
    ("bcc", "bcc", Shape::List, true),
    ("message-id", "message_id", Shape::Text, true),
    ("subject", "subject", Shape::Text, true),
    ("x-mailer", "x_mailer", Shape::Text, true),
    ("user-agent", "user_agent", Shape::Text, true),
    ("received", "received", Shape::Each, true),
    ("x-originating-ip", "x_originating_ip", Shape::Text, false),
    ("in-reply-to", "in_reply_to", Shape::Text, false),
    ("references", "references", Shape::Text, false),
    ("importance", "importance", Shape::Text, false),
    ("priority", "priority", Shape::Text, false),
    ("sensitivity", "sensitivity", Shape::Text, false),
    ("organization", "organization", Shape::Text, false),
    ("content-md5", "content_md5", Shape::Text, false),
    ("date", "date", Shape::Text, false),
];

/// Which fields are wanted: one bit each.
#[derive(Clone, Copy, Default)]
pub struct Wanted {
    fields: u32,
    has_subject_digest: bool,
}

impl Wanted {
    /// Read `extended`, `custom` and `md5` under EVE's `smtp`.
    pub fn new(settings: &Settings) -> Wanted {
        let is_extended = settings.flag(&format!("{PREFIX}extended"), false);
        let custom = list(settings, "custom");
        let bits = FIELDS.iter().enumerate().filter(|(_, (name, other, _, in_extended))| {
            is_extended && *in_extended || custom.iter().any(|wanted| wanted == name || wanted == other)
        });
        Wanted {
            fields: bits.fold(0, |bits, (index, _)| bits | 1 << index),
            has_subject_digest: list(settings, "md5").iter().any(|wanted| wanted == "subject"),
        }
    }
}

/// A list in one text, or as names below.
fn list(settings: &Settings, name: &str) -> Vec<String> {
    let name = format!("{PREFIX}{name}");
    let below = format!("{name}.");
    let texts = settings.text(&name).into_iter().chain(settings.under(&below).map(|(_, value)| value));
    let words = texts.flat_map(|text| text.split([',', ' ', '[', ']']));
    words.filter(|word| !word.is_empty()).map(str::to_ascii_lowercase).collect()
}

/// Write the objects `smtp` and `email`.
pub fn write(mail: &Mail, wanted: Wanted, json: &mut Json) {
    json.open("smtp");
    for (name, value) in [("helo", &mail.helo), ("mail_from", &mail.sender)] {
        if !value.is_empty() {
            json.text(name, value);
        }
    }
    if !mail.recipients.is_empty() {
        json.open_array("rcpt_to");
        mail.recipients.iter().for_each(|recipient| json.text_element(recipient));
        json.close_array();
    }
    json.close();
    if let Some(mime) = &mail.mime {
        write_email(mime, wanted, json);
    }
}

fn write_email(mime: &Mime, wanted: Wanted, json: &mut Json) {
    json.open("email");
    json.text("status", mime.status());
    write_field(mime, ("from", "from", Shape::Text), json);
    write_field(mime, ("to", "to", Shape::List), json);
    write_field(mime, ("cc", "cc", Shape::List), json);
    for (index, (name, key, shape, _)) in FIELDS.iter().enumerate() {
        if wanted.fields & 1 << index != 0 {
            write_field(mime, (name, key, *shape), json);
        }
    }
    if let Some(subject) = mime.field(b"subject").filter(|_| wanted.has_subject_digest) {
        json.plain("subject_md5", md5_hex(subject));
    }
    if !mime.files.is_empty() {
        json.open_array("attachment");
        mime.files.iter().for_each(|file| json.text_element(&file.name));
        json.close_array();
    }
    if !mime.urls.is_empty() {
        json.open_array("url");
        mime.urls.iter().for_each(|url| json.text_element(url));
        json.close_array();
    }
    json.close();
}

fn write_field(mime: &Mime, (name, key, shape): (&str, &str, Shape), json: &mut Json) {
    let name = name.as_bytes();
    let Some(first) = mime.field(name) else { return };
    match shape {
        Shape::Text => json.text(key, first),
        Shape::List => {
            json.open_array(key);
            first.split(|byte| *byte == b',').for_each(|element| json.text_element(element.trim_ascii()));
            json.close_array();
        }
        Shape::Each => {
            json.open_array(key);
            mime.all_fields(name).for_each(|element| json.text_element(element));
            json.close_array();
        }
    }
}
