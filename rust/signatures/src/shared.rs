//! Small lists and texts that thousands of rules have in common, each once in memory.

use std::collections::HashMap;
use std::sync::Arc;

use crate::registry::Place;

#[derive(Debug, Default)]
pub(crate) struct Shared {
    places: HashMap<Vec<Place>, Arc<[Place]>>,
    protocols: HashMap<Vec<u8>, Arc<[u8]>>,
    texts: HashMap<String, Arc<str>>,
}

impl Shared {
    pub fn places(&mut self, list: &[Place]) -> Arc<[Place]> {
        match self.places.get(list) {
            Some(known) => known.clone(),
            None => self.places.entry(list.to_vec()).or_insert_with(|| list.into()).clone(),
        }
    }

    pub fn protocols(&mut self, list: &[u8]) -> Arc<[u8]> {
        match self.protocols.get(list) {
            Some(known) => known.clone(),
            None => self.protocols.entry(list.to_vec()).or_insert_with(|| list.into()).clone(),
        }
    }

    pub fn text(&mut self, text: &str) -> Arc<str> {
        match self.texts.get(text) {
            Some(known) => known.clone(),
            None => self.texts.entry(text.to_owned()).or_insert_with(|| text.into()).clone(),
        }
    }
}
