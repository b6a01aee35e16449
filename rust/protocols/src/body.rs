//! A body that arrives piece by piece: of an HTTP message, a mail's attachment, a file by FTP.

use crate::{View, Way};

/// How a body stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyState {
    /// More is to come.
    Open,
    /// All of it came.
    Closed,
    /// It ended early, or is not followed any further.
    Truncated,
}

/// The window of a body that rules can see, and what is known about the whole.
#[derive(Clone, Debug)]
pub struct Body {
    /// The file's name, where the protocol tells one.
    pub name: Vec<u8>,
    /// Which way it goes.
    pub way: Way,
    /// How it stands.
    pub state: BodyState,
    /// Bytes of the whole so far.
    pub size: u64,
    /// Bytes were missing.
    pub has_gaps: bool,
    data: Vec<u8>,
    start: u64,
    most: usize,
}

impl Body {
    /// Begin a body of which at most `most` bytes are held: the last ones.
    pub fn new(name: &[u8], way: Way, most: usize) -> Body {
        let name = name.to_vec();
        Body { name, way, state: BodyState::Open, size: 0, has_gaps: false, data: Vec::new(), start: 0, most }
    }

    /// Append what came.
    pub fn append(&mut self, data: &[u8]) {
        self.size += data.len() as u64;
        self.data.extend_from_slice(data);
        if self.data.len() > self.most {
            // by a quarter at once: a copy for every piece would cost the square of the body's size
            let surplus = (self.data.len() - self.most * 3 / 4).min(self.data.len());
            self.data.drain(..surplus);
            self.start += surplus as u64;
        }
    }

    /// Nothing more will come.
    pub fn close(&mut self, state: BodyState) {
        if self.state == BodyState::Open {
            self.state = state;
        }
    }

    /// Return what rules can see.
    pub fn view(&self) -> View<'_> {
        View { data: &self.data, start: self.start, is_complete: self.state != BodyState::Open }
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.data.capacity() + self.name.capacity()
    }
}
