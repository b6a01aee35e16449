//! One mail: its envelope, its headers, its attachments.

use std::any::Any;

use super::mime::Mime;
use crate::framed::{Events, buffer, buffers};
use crate::{Body, BufferInfo, COMPLETE, Json, Transaction, View, Way, Ways};

/// Recipients of one mail that are kept: RFC 5321 section 4.5.3.1.8 asks for 100.
const MOST_RECIPIENTS: usize = 100;

/// How far a mail is to the server: each step means that what is before it is known.
mod step {
    pub const BEGUN: u8 = 1;
    pub const HELO: u8 = 2;
    pub const FROM: u8 = 3;
    pub const RECIPIENTS: u8 = 4;
    pub const HEADERS: u8 = 5;
}

const fn text(keyword: &'static str, progress: u8) -> BufferInfo {
    BufferInfo { ways: Ways::ToServer, progress, ..buffer(keyword) }
}

const fn texts(keyword: &'static str, progress: u8) -> BufferInfo {
    BufferInfo { ways: Ways::ToServer, progress, ..buffers(keyword) }
}

pub static BUFFERS: [BufferInfo; 14] = [
    text("smtp.helo", step::HELO),
    text("smtp.mail_from", step::FROM),
    texts("smtp.rcpt_to", step::RECIPIENTS),
    BufferInfo { aliases: &["file_data"], is_growing: true, ..texts("file.data", step::HEADERS) },
    texts("file.name", COMPLETE),
    text("email.from", step::HEADERS),
    text("email.to", step::HEADERS),
    text("email.cc", step::HEADERS),
    text("email.subject", step::HEADERS),
    text("email.date", step::HEADERS),
    text("email.message_id", step::HEADERS),
    text("email.x_mailer", step::HEADERS),
    texts("email.received", step::HEADERS),
    texts("email.url", COMPLETE),
];

/// Headers in the order of their buffers, from 5.
const HEADERS: [&str; 8] = ["from", "to", "cc", "subject", "date", "message-id", "x-mailer", "received"];
const FIRST_HEADER: usize = 5;

pub struct Mail {
    pub helo: Vec<u8>,
    pub from: Option<Vec<u8>>,
    pub events: Events,
    /// All of it came; the server's reply is waited for.
    pub is_sent: bool,
    recipients: Vec<Vec<u8>>,
    mime: Option<Box<Mime>>,
    is_over: bool,
    is_accepted: bool,
}

impl Mail {
    /// Begin one, in a session whose client called itself so.
    pub fn new(helo: &[u8]) -> Mail {
        Mail {
            helo: helo.to_vec(),
            from: None,
            events: Events::default(),
            is_sent: false,
            recipients: Vec::new(),
            mime: None,
            is_over: false,
            is_accepted: false,
        }
    }

    /// Add a recipient.
    pub fn add_recipient(&mut self, to: Vec<u8>) {
        if self.recipients.len() < MOST_RECIPIENTS {
            self.recipients.push(to);
        }
    }

    /// Read a line of text; `is_whole`: its end is not in a later piece.
    pub fn line(&mut self, bytes: &[u8], is_whole: bool) {
        self.mime.get_or_insert_default().line(bytes, is_whole, &mut self.events);
    }

    /// Read bytes of a chunk.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.mime.get_or_insert_default().bytes(bytes, &mut self.events);
    }

    /// Bytes are missing.
    pub fn gap(&mut self, bytes: u64) {
        self.mime.get_or_insert_default().gap(bytes);
    }

    /// All of the text came.
    pub fn sent(&mut self) {
        self.is_sent = true;
        self.mime.get_or_insert_default().end(true, &mut self.events);
    }

    /// Nothing more will come.
    pub fn end(&mut self, is_accepted: bool) {
        if self.is_over {
            return;
        }
        (self.is_over, self.is_accepted) = (true, is_accepted);
        if let Some(mime) = &mut self.mime {
            mime.end(self.is_sent, &mut self.events);
        }
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        let recipients = self.recipients.iter().map(|to| to.capacity() + size_of::<Vec<u8>>()).sum::<usize>();
        size_of::<Mail>()
            + self.helo.capacity()
            + self.from.as_ref().map_or(0, Vec::capacity)
            + recipients
            + self.mime.as_ref().map_or(0, |mime| mime.heap_bytes())
    }

    fn log_email(&self, json: &mut Json, mime: &Mime) {
        json.open("email");
        json.text("status", if self.is_sent { "PARSE_DONE" } else { "BODY_STARTED" });
        for name in ["from", "subject", "date", "message_id"] {
            let wanted = if name == "message_id" { "message-id" } else { name };
            if let Some(value) = mime.header(wanted, 0) {
                json.text(name, value);
            }
        }
        for name in ["to", "cc"] {
            if let Some(value) = mime.header(name, 0) {
                json.open_array(name);
                value.split(|byte| *byte == b',').for_each(|one| json.text_element(one.trim_ascii()));
                json.close_array();
            }
        }
        if !mime.files().is_empty() {
            json.open_array("attachment");
            mime.files().iter().for_each(|file| json.text_element(&file.name));
            json.close_array();
        }
        if !mime.urls().is_empty() {
            json.open_array("url");
            mime.urls().iter().for_each(|url| json.text_element(url));
            json.close_array();
        }
        json.close();
    }
}

impl Transaction for Mail {
    fn progress(&self, way: Way) -> u8 {
        match (way, &self.mime) {
            _ if self.is_over => COMPLETE,
            (Way::ToClient, _) => step::BEGUN,
            _ if self.is_sent => COMPLETE,
            (_, Some(mime)) if mime.has_headers() => step::HEADERS,
            (_, Some(_)) => step::RECIPIENTS,
            _ if self.from.is_some() => step::FROM,
            _ if !self.helo.is_empty() => step::HELO,
            _ => step::BEGUN,
        }
    }

    fn buffer(&self, index: usize, way: Way, nth: usize) -> Option<View<'_>> {
        let mime = self.mime.as_deref();
        let bytes = match index {
            _ if way != Way::ToServer => return None,
            2 => self.recipients.get(nth)?,
            3 => {
                let files = mime?.files();
                return files.get(nth).or((nth == files.len()).then(|| mime?.text()).flatten()).map(Body::view);
            }
            4 => &mime?.files().get(nth)?.name,
            12 => return mime?.header("received", nth).map(View::whole),
            13 => mime?.urls().get(nth)?,
            _ if nth > 0 => return None,
            0 => return (!self.helo.is_empty()).then(|| View::whole(&self.helo)),
            1 => self.from.as_ref()?,
            _ => {
                let name = HEADERS.get(index.checked_sub(FIRST_HEADER)?)?;
                return mime?.header(name, 0).map(View::whole);
            }
        };
        Some(View::whole(bytes))
    }

    fn events(&self) -> &[u8] {
        self.events.list()
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        json.open("smtp");
        if !self.helo.is_empty() {
            json.text("helo", &self.helo);
        }
        if let Some(from) = &self.from {
            json.text("mail_from", from);
        }
        if !self.recipients.is_empty() {
            json.open_array("rcpt_to");
            self.recipients.iter().for_each(|to| json.text_element(to));
            json.close_array();
        }
        json.close();
        if let Some(mime) = &self.mime {
            self.log_email(json, mime);
        }
    }

    fn files(&self) -> &[Body] {
        self.mime.as_ref().map_or(&[], |mime| mime.files())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
