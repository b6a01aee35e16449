//! Transactions of protocols in which a message may be answered by one other, and either side may ask.

use std::any::Any;

use crate::framed::{Events, Unit, find};
use crate::{COMPLETE, Json, ParseError, RecordInfo, Transaction, Transactions, View, Way};

/// What one side says.
pub(crate) trait Said: Send + 'static {
    /// The name of the object in EVE.
    const NAME: &'static str;
    /// Messages have answers: the log object has `request` and `response`. Else its members are the message's own.
    const IS_PAIRED: bool;

    /// An answer is due.
    fn waits(&self) -> bool {
        false
    }
    /// It is the answer to something.
    fn is_answer(&self) -> bool {
        false
    }
    /// It is the answer to that.
    fn answers(&self, _request: &Self) -> bool {
        false
    }
    /// See [`Transaction::buffer`].
    fn buffer(&self, _index: usize, _nth: usize) -> Option<&[u8]> {
        None
    }
    /// See [`Transaction::number`].
    fn number(&self, _index: usize, _nth: usize) -> Option<u64> {
        None
    }
    /// Write its members.
    fn log(&self, json: &mut Json);
    /// Whether it is worth a line in the log.
    fn is_logged(&self) -> bool {
        true
    }
    /// Bytes on the heap.
    fn heap_bytes(&self) -> usize;
}

/// A message and, where there is one, its answer.
pub(crate) struct Pair<M> {
    asker: Way,
    asked: M,
    answer: Option<M>,
    is_closed: bool,
    events: Events,
}

/// The records of a protocol of pairs: the first for those that the client began.
pub(crate) const fn records(event_type: &'static str) -> [RecordInfo; 2] {
    [
        RecordInfo { event_type, to_server: COMPLETE, to_client: COMPLETE, way: Way::ToServer },
        RecordInfo { event_type, to_server: COMPLETE, to_client: COMPLETE, way: Way::ToClient },
    ]
}

impl<M: Said> Pair<M> {
    /// What that side said.
    pub(crate) fn side(&self, way: Way) -> Option<&M> {
        if way == self.asker { Some(&self.asked) } else { self.answer.as_ref() }
    }
}

/// Put a message where it belongs: behind what it answers, or first in a new transaction.
pub(crate) fn sort<M: Said>(
    units: &mut Transactions<Pair<M>>,
    way: Way,
    message: M,
    problem: Option<u8>,
) -> Result<(), ParseError> {
    if message.is_answer() {
        let is_it = |pair: &Pair<M>| {
            pair.asker != way && pair.answer.is_none() && pair.asked.waits() && message.answers(&pair.asked)
        };
        if let Some(pair) = find(units, is_it).and_then(|id| units.get_mut(id)) {
            pair.answer = Some(message);
            problem.into_iter().for_each(|event| pair.events.add(event));
            return Ok(());
        }
    }
    let mut events = Events::default();
    problem.into_iter().for_each(|event| events.add(event));
    let is_closed = !message.waits();
    let pair = Pair { asker: way, asked: message, answer: None, is_closed, events };
    units.push(pair).map(|_| ()).ok_or(ParseError("too many messages wait"))
}

impl<M: Said> Unit for Pair<M> {
    fn close(&mut self) {
        self.is_closed = true;
    }

    fn note(&mut self, event: u8) {
        self.events.add(event);
    }

    fn heap_bytes(&self) -> usize {
        self.asked.heap_bytes() + self.answer.as_ref().map_or(0, Said::heap_bytes)
    }
}

impl<M: Said> Transaction for Pair<M> {
    fn progress(&self, way: Way) -> u8 {
        if self.is_closed || self.answer.is_some() || way == self.asker { COMPLETE } else { 0 }
    }

    fn buffer(&self, index: usize, way: Way, nth: usize) -> Option<View<'_>> {
        self.side(way)?.buffer(index, nth).map(View::whole)
    }

    fn number(&self, index: usize, way: Way, nth: usize) -> Option<u64> {
        self.side(way)?.number(index, nth)
    }

    fn events(&self) -> &[u8] {
        self.events.list()
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        json.open(M::NAME);
        if M::IS_PAIRED {
            let is_bare_answer = self.asked.is_answer();
            json.open(if is_bare_answer { "response" } else { "request" });
            self.asked.log(json);
            json.close();
            if let Some(answer) = &self.answer {
                json.open("response");
                answer.log(json);
                json.close();
            }
        } else {
            self.asked.log(json);
        }
        json.close();
    }

    fn is_logged(&self, record: usize) -> bool {
        record == self.asker as usize && self.asked.is_logged()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
