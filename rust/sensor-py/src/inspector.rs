//! The classes `RuleSet` and `Inspector`.

use std::sync::{Arc, Mutex};

use inspect::{Detector, Filter, Inspector as Deep};
use protocols::{Settings, Transport};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use sensor::CaptureCounters;
use serde::Deserialize;
use serde_json::json;
use signatures::{Budget, Device, Environment, Files, Outcome, Service, Source};

use crate::captures::FileReader;
use crate::config::parse_config;
use crate::core::{Core, random_key};
use crate::errors::{Failure, detached, lock};

/// What is needed besides the rules: the least of the tally and as much for flows and streams.
const LEAST_BYTES: usize = 4 << 20;
/// The part of the memory number that goes to detectors of scans and floods, where both run.
const TALLY_PERCENT: usize = 25;

fn settings_from(pairs: &[(String, String)]) -> Settings {
    let mut settings = Settings::default();
    for (name, value) in pairs {
        settings.set(name, value);
    }
    settings
}

/// Files that rules name, given out by Python.
struct NamedFiles<'py> {
    callback: Bound<'py, PyAny>,
}

impl Files for NamedFiles<'_> {
    fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        let bytes = self.callback.call1((name,)).map_err(|error| error.value(self.callback.py()).to_string())?;
        bytes.extract::<Vec<u8>>().map_err(|error| error.to_string())
    }
}

/// Rules, sorted and ready.
#[pyclass(frozen, module = "tidegate.ids._sensor")]
pub struct RuleSet {
    detector: Arc<Detector>,
    sources: Vec<String>,
}

#[pymethods]
impl RuleSet {
    /// Read rule files: `sources` is iterated over for their names and bytes, so that one is in memory at a time. What a
    /// rule names is read through `files`.
    #[new]
    fn new(sources: Bound<'_, PyAny>, settings: Vec<(String, String)>, files: Bound<'_, PyAny>) -> PyResult<RuleSet> {
        let settings = settings_from(&settings);
        let named = NamedFiles { callback: files };
        let text = |name: &str| settings.text(name).map(str::to_owned);
        let read = |setting: &str| -> String {
            let bytes = text(setting).and_then(|name| named.read(&name).ok()).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (classification, reference, thresholds) =
            (read("classification-file"), read("reference-config-file"), read("threshold-file"));
        let environment = Environment {
            settings: &settings,
            classification: &classification,
            reference: &reference,
            thresholds: &thresholds,
            files: &named,
        };
        let (mut loader, mut names) = (signatures::Loader::new(&environment), Vec::new());
        for source in sources.try_iter()? {
            let (name, text): (String, PyBackedBytes) = source?.extract()?;
            loader.add(Source { name: &name, text: &text });
            names.push(name);
        }
        Ok(RuleSet { detector: Arc::new(Detector::new(loader.finish())), sources: names })
    }

    /// Return the load report as JSON: totals, and each rule that was not loaded as written.
    fn report(&self) -> String {
        let rules = &self.detector.rules;
        let (mut approximated, mut refused) = (0, 0);
        let entries: Vec<_> = rules
            .report
            .iter()
            .map(|entry| {
                let (outcome, reason) = match &entry.outcome {
                    Outcome::Loaded => ("loaded", ""),
                    Outcome::Approximated(reason) => {
                        approximated += 1;
                        ("approximated", reason.as_str())
                    }
                    Outcome::Refused(reason) => {
                        refused += 1;
                        ("refused", reason.as_str())
                    }
                };
                json!({"source": entry.source, "line": entry.line, "sid": entry.sid, "outcome": outcome, "reason": reason})
            })
            .collect();
        let (loaded, bytes) = (rules.loaded, self.detector.groups.heap_bytes());
        json!({"loaded": loaded, "approximated": approximated, "refused": refused, "matcher_bytes": bytes, "rules": entries})
            .to_string()
    }

    /// Return which rules fit a device, as JSON; the question is JSON too (docs/how-to/detect-intrusions.md).
    fn budget(&self, config_json: &str) -> PyResult<String> {
        self.choose(config_json).map_err(|error| Failure::config(error).into())
    }
}

/// What `RuleSet.budget` is asked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    services: Vec<Offered>,
    limit: usize,
    #[serde(default)]
    networks: Vec<String>,
    /// The present year: rules lose weight with age.
    #[serde(default)]
    year: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Offered {
    protocol: Option<String>,
    port: Option<u16>,
    application: Option<String>,
}

impl RuleSet {
    fn choose(&self, config_json: &str) -> Result<String, String> {
        let question: Question = serde_json::from_str(config_json).map_err(|error| error.to_string())?;
        let mut services = Vec::new();
        for offered in &question.services {
            services.extend(services_of(offered)?);
        }
        let mut networks = Vec::new();
        for text in &question.networks {
            let (address, bits) = text.split_once('/').unwrap_or((text, "128"));
            let address: std::net::IpAddr = address.parse().map_err(|_| format!("{text} is no network"))?;
            networks.push((address, bits.parse::<u8>().map_err(|_| format!("{text} is no network"))?));
        }
        let device = Device { services, networks, year: question.year };
        let rules = &self.detector.rules.signatures;
        let selection = signatures::choose(rules, &device, Budget::Rules(question.limit));
        let entry = |index: usize, reason: &str| {
            let rule = rules.get(index)?;
            let source = self.sources.get(usize::from(rule.origin.0))?;
            Some(json!({"source": source, "line": rule.origin.1, "sid": rule.sid, "reason": reason}))
        };
        let kept: Vec<_> = selection.kept.iter().filter_map(|index| entry(*index, "")).collect();
        let left_out: Vec<_> =
            selection.rejected.iter().filter_map(|(index, reason)| entry(*index, &reason_text(reason))).collect();
        Ok(json!({"kept": kept, "left_out": left_out}).to_string())
    }
}

/// A port by its transport, or every port on which an application usually listens.
fn services_of(offered: &Offered) -> Result<Vec<Service>, String> {
    let transport = match offered.protocol.as_deref() {
        None | Some("tcp") => Transport::Tcp,
        Some("udp") => Transport::Udp,
        Some(other) => return Err(format!("{other} is no transport of services")),
    };
    if let Some(port) = offered.port {
        return Ok(vec![Service { transport, port, app: offered.application.clone() }]);
    }
    let name = offered.application.as_deref().ok_or("a service needs a port or an application")?;
    let found = protocols::PROTOCOLS.iter().find(|protocol| protocol.name == name || protocol.aliases.contains(&name));
    let protocol = found.ok_or_else(|| format!("{name} is no application protocol that the sensor knows"))?;
    let app = Some(protocol.name.to_owned());
    let ports =
        protocol.ports.iter().flat_map(|port| protocol.transports.iter().map(move |transport| (port, transport)));
    Ok(ports.map(|(port, transport)| Service { transport: *transport, port: *port, app: app.clone() }).collect())
}

fn reason_text(reason: &signatures::Reason) -> String {
    use signatures::Reason;
    match reason {
        Reason::OtherNetwork => "about other addresses than the device's".to_owned(),
        Reason::NoSuchService => "about a service that the device does not offer".to_owned(),
        Reason::OtherSystem(system) => format!("about another system: {system}"),
        Reason::NeedsDecryption => "needs decrypted traffic".to_owned(),
        Reason::BeyondLimit(_) => "beyond the limit: others matter more".to_owned(),
    }
}

/// Deep inspection of a capture file or an interface.
#[pyclass(frozen, module = "tidegate.ids._sensor")]
pub struct Inspector {
    pub core: Arc<Mutex<Core>>,
    reader: Mutex<Option<FileReader>>,
    has_begun: Mutex<bool>,
}

#[pymethods]
impl Inspector {
    /// `settings` have Suricata's names. Detectors run beside the rules; `detectors.enabled=no` switches them off.
    #[new]
    fn new(
        py: Python<'_>,
        rules: Option<&RuleSet>,
        settings: Vec<(String, String)>,
        memory_bytes: usize,
    ) -> PyResult<Inspector> {
        let detector = rules.map(|rules| Arc::clone(&rules.detector));
        detached(py, move || {
            let settings = settings_from(&settings);
            let rules = detector.as_ref().map_or(0, |detector| detector.heap_bytes());
            let Some(mut left) = memory_bytes.checked_sub(rules).filter(|left| *left >= LEAST_BYTES) else {
                let needed = (rules + LEAST_BYTES).div_ceil(1 << 20);
                return Err(Failure::config(format!(
                    "the rules leave too little: memory must be at least {needed}MiB"
                )));
            };
            let is_on = |name: &str| settings.flag(name, true);
            let wants_tally = is_on("tidegate.detectors.scan") || is_on("tidegate.detectors.flood");
            let tally = match is_on("detectors.enabled") && wants_tally {
                true => {
                    let share = (left / 100 * TALLY_PERCENT).max(LEAST_BYTES / 2);
                    left -= share;
                    let mut config = parse_config(settings.text("detectors.config").unwrap_or("{}"))?;
                    config.memory_bytes = share;
                    config.flow_events = sensor::FlowEvents::Off;
                    Some(sensor::Sensor::new(config, random_key())?)
                }
                false => None,
            };
            let tells_peers = settings.flag("tidegate.peers", false);
            let filter = settings.text("bpf-filter").map(Filter::parse).transpose();
            let filter = filter.map_err(|error| Failure::config(format!("bpf-filter: {error}")))?;
            let mut inspector = Deep::new(settings, detector, left, random_key());
            if let Some(filter) = filter {
                inspector.set_filter(filter);
            }
            let inspector = Some(inspector);
            let core = Core { tally, inspector, capture: CaptureCounters::default(), tells_peers };
            Ok(Inspector { core: Arc::new(Mutex::new(core)), reader: Mutex::new(None), has_begun: Mutex::new(false) })
        })
    }

    /// Read on in a capture file; return EVE lines, at least `most_lines` unless it ends, or None when it has ended.
    fn replay(&self, py: Python<'_>, path: &str, most_lines: usize) -> PyResult<Option<Vec<String>>> {
        detached(py, || {
            let mut guard = lock(&self.reader)?;
            if !std::mem::replace(&mut *lock(&self.has_begun)?, true) {
                *guard = Some(FileReader::open(path)?);
                if let Some(inspector) = &mut lock(&self.core)?.inspector {
                    inspector.set_file();
                }
            }
            let Some(reader) = guard.as_mut() else { return Ok(None) };
            let mut core = lock(&self.core)?;
            let mut lines = Vec::new();
            while lines.len() < most_lines {
                if reader.read(&mut core, 1)? {
                    guard.take(); // what is still open comes with finish
                    break;
                }
                if core.is_crowded() {
                    lines.append(&mut core.drain(usize::MAX));
                }
            }
            lines.append(&mut core.drain(usize::MAX));
            Ok(Some(lines))
        })
    }

    /// End open flows and take the events that this makes; call it until it returns none.
    fn finish(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        detached(py, || Ok(lock(&self.core)?.finish_lines()))
    }

    /// Return the statistics as an EVE line.
    fn stats_line(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || Ok(lock(&self.core)?.stats_line()))
    }

    /// Return data sets that rules say are to be kept: name of the file and its bytes.
    fn kept_files(&self, py: Python<'_>) -> PyResult<Vec<(String, Vec<u8>)>> {
        detached(py, || Ok(lock(&self.core)?.inspector.as_ref().map(Deep::kept_files).unwrap_or_default()))
    }
}
