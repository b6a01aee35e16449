//! The class `Sensor`, and what it and `Inspector` share: one thing that takes frames and gives lines.

use std::hash::BuildHasher;
use std::hash::RandomState;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use inspect::{Checksums, Verdict};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use sensor::{Address, CaptureCounters, Frame, Proof, SipKey};

use crate::captures::FileReader;
use crate::config::parse_config;
use crate::errors::{Failure, detached, lock};

/// What looks at frames: the tally of scans and floods, deep inspection, or both.
pub struct Core {
    pub tally: Option<sensor::Sensor>,
    pub inspector: Option<inspect::Inspector>,
    pub capture: CaptureCounters,
    /// Whether alerts of the inspector say what the tally knows about their source.
    pub tells_peers: bool,
}

/// Return a key that nobody outside can know.
pub fn random_key() -> SipKey {
    // the standard library's own random keys come from the kernel's generator; through SipHash they become ours
    let random = RandomState::new();
    SipKey([random.hash_one(1_u64), random.hash_one(2_u64)])
}

impl Core {
    /// Look at one frame.
    #[inline]
    pub fn packet(&mut self, frame: &Frame<'_>) {
        self.verdict(frame, Checksums::Unknown);
    }

    /// Look at one frame whose source says this of its checksums; return what is to become of it.
    #[inline]
    pub fn verdict(&mut self, frame: &Frame<'_>, checksums: Checksums) -> Verdict {
        if let Some(tally) = &mut self.tally {
            tally.packet(frame);
        }
        match &mut self.inspector {
            Some(inspector) => inspector.packet_verdict(frame, checksums),
            None => Verdict::Accept,
        }
    }

    /// Let time pass.
    pub fn tick(&mut self, now_us: u64) {
        if let Some(tally) = &mut self.tally {
            tally.tick(now_us);
        }
        if let Some(inspector) = &mut self.inspector {
            inspector.tick(now_us);
        }
    }

    /// Whether lines should be taken before more frames are looked at.
    pub fn is_crowded(&self) -> bool {
        self.tally.as_ref().is_some_and(sensor::Sensor::is_crowded)
            || self.inspector.as_ref().is_some_and(inspect::Inspector::is_crowded)
    }

    /// How many bytes the capture may use.
    pub fn ring_bytes(&self) -> usize {
        let tally = self.tally.as_ref().map_or(0, sensor::Sensor::ring_bytes);
        tally.max(self.inspector.as_ref().map_or(0, inspect::Inspector::ring_bytes))
    }

    /// End what is open, as much as there is room for; return whether more is left.
    pub fn finish(&mut self) -> bool {
        let is_left = self.tally.as_mut().is_some_and(sensor::Sensor::finish);
        self.inspector.as_mut().is_some_and(inspect::Inspector::finish) || is_left
    }

    /// Take up to `most` waiting events as EVE lines.
    pub fn drain(&mut self, most: usize) -> Vec<String> {
        let (mut lines, mut line) = (Vec::new(), String::with_capacity(1024));
        if let Some(tally) = &mut self.tally {
            while lines.len() < most && tally.next_line(&mut line) {
                lines.push(line.clone());
            }
        }
        if let Some(inspector) = &mut self.inspector {
            while lines.len() < most
                && let Some(mut line) = inspector.next_line()
            {
                if let (true, Some(tally)) = (self.tells_peers, &mut self.tally) {
                    tell_peer(tally, &mut line);
                }
                lines.push(line);
            }
        }
        lines
    }

    /// End open flows and alerts and take the events that this makes; empty once nothing is left.
    pub fn finish_lines(&mut self) -> Vec<String> {
        loop {
            let is_more_left = self.finish();
            let lines = self.drain(usize::MAX);
            if !lines.is_empty() || !is_more_left {
                return lines;
            }
        }
    }

    /// The statistics as an EVE line.
    pub fn stats_line(&self) -> String {
        match (&self.inspector, &self.tally) {
            (Some(inspector), _) => inspector.stats_line(&self.capture),
            (None, Some(tally)) => tally.stats_line(&self.capture),
            (None, None) => String::from("{}"),
        }
    }
}

/// Time, numbers, type and addresses stand in front of everything that a sender can write, within this many bytes.
const HEAD_BYTES: usize = 512;

/// Add `peer` to an alert that names a source: whether it is a genuine peer, and since when.
fn tell_peer(tally: &mut sensor::Sensor, line: &mut String) {
    let Some(address) = source_of_alert(line) else { return };
    if line.pop() != Some('}') {
        return;
    }
    line.push_str(&match tally.proof_of(address) {
        Some(Proof { age_s, known_s }) => format!(",\"peer\":{{\"age_s\":{age_s},\"known_s\":{known_s}}}}}"),
        None => ",\"peer\":{}}".to_owned(),
    });
}

fn source_of_alert(line: &str) -> Option<Address> {
    let head = line.get(..HEAD_BYTES).unwrap_or(line);
    let (_, rest) = head.split_once("\"event_type\":\"alert\"")?;
    let (_, rest) = rest.split_once("\"src_ip\":\"")?;
    let (text, _) = rest.split_once('"')?;
    Some(match text.parse().ok()? {
        IpAddr::V4(v4) => Address::from_v4(v4.to_bits()),
        IpAddr::V6(v6) => Address(v6.to_bits()),
    })
}

/// One sensor: bounded tables, detectors, a queue of events.
#[pyclass(frozen, module = "tidegate.ids._sensor")]
pub struct Sensor {
    pub core: Arc<Mutex<Core>>,
}

#[pymethods]
impl Sensor {
    #[new]
    fn new(py: Python<'_>, config_json: &str) -> PyResult<Sensor> {
        detached(py, || {
            let tally = Some(sensor::Sensor::new(parse_config(config_json)?, random_key())?);
            let core = Core { tally, inspector: None, capture: CaptureCounters::default(), tells_peers: false };
            Ok(Sensor { core: Arc::new(Mutex::new(core)) })
        })
    }

    /// Read a whole capture file, end what is open, return the statistics; events that the queue cannot hold are counted.
    fn replay<'py>(&self, py: Python<'py>, path: &str) -> PyResult<Bound<'py, PyDict>> {
        detached(py, || {
            let mut reader = FileReader::open(path)?;
            let mut core = lock(&self.core)?;
            while !reader.read(&mut core, u64::MAX)? {}
            while core.finish() {}
            Ok(())
        })?;
        self.stats(py)
    }

    /// Take the waiting events, one EVE line each.
    fn events(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        detached(py, || Ok(lock(&self.core)?.drain(usize::MAX)))
    }

    /// End open flows and alerts and take the events that this makes; call it until it returns none.
    fn finish(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        detached(py, || Ok(lock(&self.core)?.finish_lines()))
    }

    /// Return the statistics as an EVE line.
    fn stats_line(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || Ok(lock(&self.core)?.stats_line()))
    }

    /// Return the statistics: what stands under `stats` in the EVE line.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let line = self.stats_line(py)?;
        let event = py.import("json")?.call_method1("loads", (line,))?;
        event.get_item("stats")?.cast_into::<PyDict>().map_err(|_| Failure::internal("no statistics").into())
    }
}
