//! A mail and its envelope.

use std::any::Any;

use super::keyword::{FIELDS, buffer};
use super::log::{self, Wanted};
use super::mime::Mime;
use super::step;
use crate::{Body, COMPLETE, Json, Transaction, View, Way};

/// Recipients that are kept; RFC 5321 section 4.5.3.1.8 asks servers to take 100.
const MOST_RECIPIENTS: usize = 128;
/// Bytes of all of them.
const MOST_RECIPIENT_BYTES: usize = 16 << 10;

/// A mail, or what was said without one.
#[derive(Default)]
pub struct Mail {
    pub(super) helo: Vec<u8>,
    pub(super) sender: Vec<u8>,
    pub(super) recipients: Vec<Vec<u8>>,
    pub(super) mime: Option<Mime>,
    wanted: Wanted,
    progress: u8,
    events: Vec<u8>,
}

impl Mail {
    pub(super) fn new(helo: &[u8], wanted: Wanted) -> Mail {
        let progress = if helo.is_empty() { step::STARTED } else { step::HELO };
        Mail { helo: helo.to_vec(), wanted, progress, ..Mail::default() }
    }

    pub(super) fn raise(&mut self, event: u8) {
        if !self.events.contains(&event) {
            self.events.push(event);
        }
    }

    /// Progress never goes back.
    pub(super) fn advance(&mut self, progress: u8) {
        self.progress = self.progress.max(progress);
    }

    pub(super) fn add_recipient(&mut self, recipient: &[u8]) {
        let bytes: usize = self.recipients.iter().map(Vec::len).sum();
        if self.recipients.len() < MOST_RECIPIENTS && bytes + recipient.len() <= MOST_RECIPIENT_BYTES {
            self.recipients.push(recipient.to_vec());
        }
    }

    /// Some of the mail.
    pub(super) fn feed(&mut self, data: &[u8]) {
        self.advance(step::DATA);
        let mime = self.mime.get_or_insert_with(Mime::new);
        mime.feed(data);
        if mime.has_header() {
            self.advance(step::HEADER);
        }
        self.take_events();
    }

    /// Nothing more will come; `is_whole`: the mail's end was seen.
    pub(super) fn complete(&mut self, is_whole: bool) {
        if let Some(mime) = &mut self.mime {
            mime.finish(is_whole);
        }
        self.take_events();
        self.progress = COMPLETE;
    }

    pub(super) fn is_complete(&self) -> bool {
        self.progress == COMPLETE
    }

    fn take_events(&mut self) {
        let events = self.mime.as_mut().map(|mime| std::mem::take(&mut mime.events)).unwrap_or_default();
        events.into_iter().for_each(|event| self.raise(event));
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let recipients = self.recipients.iter().map(|recipient| recipient.capacity() + size_of::<Vec<u8>>());
        let mime = self.mime.as_ref().map_or(0, |mime| mime.heap_bytes());
        self.helo.capacity() + self.sender.capacity() + recipients.sum::<usize>() + mime + size_of::<Mail>()
    }

    fn text(&self, index: usize, nth: usize) -> Option<&[u8]> {
        match index {
            buffer::HELO if nth == 0 => Some(&self.helo),
            buffer::MAIL_FROM if nth == 0 => Some(&self.sender),
            buffer::RCPT_TO => self.recipients.get(nth).map(Vec::as_slice),
            buffer::FILE_NAME => self.files().get(nth).map(|file| file.name.as_slice()),
            buffer::URL => self.mime.as_ref()?.urls.get(nth).map(|url| &**url),
            _ => {
                let name = *FIELDS.get(index.checked_sub(buffer::FIELDS)?)?;
                let is_in_reach = nth == 0 || name == b"received";
                self.mime.as_ref().filter(|_| is_in_reach)?.all_fields(name).nth(nth)
            }
        }
    }
}

impl Transaction for Mail {
    /// Replies add nothing: both ways are over together.
    fn progress(&self, way: Way) -> u8 {
        match way {
            Way::ToServer => self.progress,
            Way::ToClient if self.progress == COMPLETE => COMPLETE,
            Way::ToClient => step::STARTED,
        }
    }

    fn buffer(&self, index: usize, way: Way, nth: usize) -> Option<View<'_>> {
        match index {
            _ if way != Way::ToServer => None,
            buffer::FILE_DATA => self.files().get(nth).map(Body::view),
            _ => self.text(index, nth).filter(|text| !text.is_empty()).map(View::whole),
        }
    }

    fn events(&self) -> &[u8] {
        &self.events
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        log::write(self, self.wanted, json);
    }

    fn files(&self) -> &[Body] {
        self.mime.as_ref().map_or(&[], |mime| &mime.files)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
