//! A fragment of DNP3's application layer: IEEE 1815, clause 4.

use std::any::Any;

use super::objects::{self, Object};
use super::{Link, event, keywords};
use crate::framed::{Events, Unit};
use crate::{COMPLETE, Json, Reader, Transaction, View, Way};

const RESPONSE: u8 = 129;
const AUTHENTICATE_RESPONSE: u8 = 131;
const UNSOLICITED: u8 = 130;

/// What a fragment says. The bytes are at most [`super::MOST_FRAGMENT`] long.
pub struct Fragment {
    way: Way,
    link: Link,
    control: u8,
    pub function: Option<u8>,
    pub indications: Option<u16>,
    pub objects: Vec<Object>,
    data: Vec<u8>,
    is_complete: bool,
    events: Events,
}

impl Fragment {
    /// Read a fragment that is as complete as it will be.
    pub fn read(way: Way, link: Link, data: Vec<u8>, mut events: Events) -> Fragment {
        let mut reader = Reader::new(&data);
        let (control, function) = (reader.u8(), reader.u8());
        let is_response = function.is_some_and(|function| (RESPONSE..=AUTHENTICATE_RESPONSE).contains(&function));
        let indications = if is_response { reader.be16() } else { None };
        if function.is_none() && events.list().is_empty() {
            events.add(event::LEN_TOO_SMALL);
        }
        // a damaged fragment's objects are anybody's guess
        let (objects, is_complete) = if events.list().is_empty() {
            objects::read(&data, reader.position(), function.unwrap_or(0), &mut events)
        } else {
            (Vec::new(), false)
        };
        let control = control.unwrap_or(0);
        Fragment { way, link, control, function, indications, objects, data, is_complete, events }
    }

    fn log_link(&self, json: &mut Json) {
        let control = self.link.control;
        json.open("control");
        for (name, bit) in [("dir", 0x80), ("pri", 0x40), ("fcb", 0x20), ("fcv", 0x10)] {
            json.flag(name, control & bit != 0);
        }
        json.number("function_code", u64::from(control & 0x0f));
        json.close();
        json.number("src", u64::from(self.link.source));
        json.number("dst", u64::from(self.link.destination));
    }

    fn log_application(&self, json: &mut Json) {
        let Some(function) = self.function else { return };
        json.open("application");
        json.open("control");
        for (name, bit) in [("fir", 0x80), ("fin", 0x40), ("con", 0x20), ("uns", 0x10)] {
            json.flag(name, self.control & bit != 0);
        }
        json.number("sequence", u64::from(self.control & 0x0f));
        json.close();
        json.number("function_code", u64::from(function));
        json.open_array("objects");
        objects::log(json, &self.objects, &self.data);
        json.close_array();
        json.flag("complete", self.is_complete);
        json.close();
    }

    fn log_members(&self, json: &mut Json) {
        let kind = match (self.way, self.function) {
            (Way::ToServer, _) => "request",
            (Way::ToClient, Some(UNSOLICITED)) => "unsolicited_response",
            (Way::ToClient, _) => "response",
        };
        json.text("type", kind);
        self.log_link(json);
        self.log_application(json);
        if let Some(indications) = self.indications {
            json.open("iin");
            json.open_array("indicators");
            keywords::indicators(indications).for_each(|name| json.text_element(name));
            json.close_array();
            json.close();
        }
    }
}

impl Unit for Fragment {
    fn close(&mut self) {}

    fn note(&mut self, event: u8) {
        self.events.add(event);
    }

    fn heap_bytes(&self) -> usize {
        self.data.capacity() + self.objects.capacity() * size_of::<Object>()
    }
}

impl Transaction for Fragment {
    fn progress(&self, _way: Way) -> u8 {
        COMPLETE // nothing belongs to it but itself
    }

    fn buffer(&self, _index: usize, way: Way, nth: usize) -> Option<View<'_>> {
        (way == self.way && nth == 0 && !self.data.is_empty()).then(|| View::whole(&self.data))
    }

    fn number(&self, index: usize, way: Way, nth: usize) -> Option<u64> {
        (way == self.way && index == 0 && nth == 0).then_some(self.function).flatten().map(u64::from)
    }

    fn events(&self) -> &[u8] {
        self.events.list()
    }

    fn log(&self, record: Option<usize>, json: &mut Json) {
        json.open("dnp3");
        if record.is_some() {
            self.log_members(json);
        } else {
            json.open(if self.way == Way::ToServer { "request" } else { "response" });
            self.log_members(json);
            json.close();
        }
        json.close();
    }

    fn is_logged(&self, record: usize) -> bool {
        self.function.is_some() && record == self.way as usize
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Fragment {
    /// Which way it goes.
    pub fn way(&self) -> Way {
        self.way
    }
}
