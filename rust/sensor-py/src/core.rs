//! The class `Sensor`.

use std::hash::BuildHasher;
use std::hash::RandomState;
use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use sensor::{CaptureCounters, SipKey};

use crate::captures::FileReader;
use crate::config::parse_config;
use crate::errors::{Failure, detached, lock};

/// The sensor and what its captures counted.
pub struct Core {
    pub sensor: sensor::Sensor,
    pub capture: CaptureCounters,
}

impl Core {
    /// Take up to `most` waiting events as EVE lines.
    pub fn drain(&mut self, most: usize) -> Vec<String> {
        let (mut lines, mut line) = (Vec::new(), String::with_capacity(1024));
        while lines.len() < most && self.sensor.next_line(&mut line) {
            lines.push(line.clone());
        }
        lines
    }
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
            // the standard library's own random keys come from the kernel's generator; through SipHash they become ours
            let random = RandomState::new();
            let key = SipKey([random.hash_one(1_u64), random.hash_one(2_u64)]);
            let sensor = sensor::Sensor::new(parse_config(config_json)?, key)?;
            Ok(Sensor { core: Arc::new(Mutex::new(Core { sensor, capture: CaptureCounters::default() })) })
        })
    }

    /// Read a whole capture file, end what is open, return the statistics; events that the queue cannot hold are counted.
    fn replay<'py>(&self, py: Python<'py>, path: &str) -> PyResult<Bound<'py, PyDict>> {
        detached(py, || {
            let mut reader = FileReader::open(path)?;
            let mut core = lock(&self.core)?;
            while !reader.read(&mut core, u64::MAX)? {}
            while core.sensor.finish() {}
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
        detached(py, || {
            let mut core = lock(&self.core)?;
            loop {
                let is_more_left = core.sensor.finish();
                let lines = core.drain(usize::MAX);
                if !lines.is_empty() || !is_more_left {
                    return Ok(lines);
                }
            }
        })
    }

    /// Return the statistics as an EVE line.
    fn stats_line(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || {
            let core = lock(&self.core)?;
            Ok(core.sensor.stats_line(&core.capture))
        })
    }

    /// Return the statistics: what stands under `stats` in the EVE line.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let line = self.stats_line(py)?;
        let event = py.import("json")?.call_method1("loads", (line,))?;
        event.get_item("stats")?.cast_into::<PyDict>().map_err(|_| Failure::internal("no statistics").into())
    }
}
