//! The classes `InlineQueue` and `FieldStream`.

use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use capture::{Answer, CaptureError, Queue, RawSender, Waiting};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use sensor::fields::RuleSet;
use sensor::{Inspector, QueuedPacket, SipKey, Verdict};

use crate::errors::{Failure, detached, lock};

/// How often connections that are over are looked for.
const TICK: Duration = Duration::from_secs(10);

/// From some dozen connections to what no device has for this purpose.
const MEMORY_BYTES: RangeInclusive<usize> = 65_536..=1 << 30;

struct Worker {
    queue: Queue,
    sender: Option<RawSender>,
    inspector: Inspector,
    started: Instant,
    next_tick: Instant,
}

impl Worker {
    /// Serve the queue until `deadline`, or until there are reports.
    fn work(&mut self, deadline: Instant) -> Result<(), Failure> {
        loop {
            let left_ms = deadline.saturating_duration_since(Instant::now()).as_millis() as i32;
            let inspector = &mut self.inspector;
            let started = self.started;
            let packets = self.queue.serve(left_ms, |waiting| answer(inspector, waiting, started))?;
            while let Some(reset) = self.inspector.next_reset() {
                if let Some(sender) = &self.sender {
                    sender.send(&reset);
                }
            }
            let now = Instant::now();
            if now >= self.next_tick {
                self.inspector.tick(elapsed_us(self.started));
                self.next_tick = now + TICK;
            }
            if packets == 0 || now >= deadline || self.inspector.has_lines() {
                return Ok(());
            }
        }
    }
}

fn answer(inspector: &mut Inspector, waiting: &Waiting<'_>, started: Instant) -> Answer {
    let packet = QueuedPacket {
        time_us: time_us(),
        now_us: elapsed_us(started),
        mark: waiting.mark,
        data: waiting.data,
        is_cut: waiting.is_cut,
        is_checksum_pending: waiting.is_checksum_pending,
    };
    match inspector.inspect(&packet) {
        Verdict::Drop => Answer::Drop,
        Verdict::Accept { mark } => Answer::Accept(mark),
        Verdict::Replace { mark, packet } => Answer::Replace(mark, packet),
    }
}

/// A packet queue with its inspector.
#[pyclass(frozen, module = "tidegate.ids._sensor")]
pub struct InlineQueue {
    worker: Mutex<Option<Worker>>,
}

#[pymethods]
impl InlineQueue {
    #[new]
    fn new(py: Python<'_>, queue_number: u16, config_json: &str) -> PyResult<InlineQueue> {
        detached(py, move || {
            let random = RandomState::new(); // keyed by the kernel's generator
            let key = SipKey([random.hash_one(1_u64), random.hash_one(2_u64)]);
            let inspector = Inspector::new(&parse_rules(config_json)?, key);
            let queue = Queue::bind(queue_number, false).map_err(netfilter_failure)?;
            let started = Instant::now();
            let worker =
                Worker { queue, sender: RawSender::open().ok(), inspector, started, next_tick: started + TICK };
            Ok(InlineQueue { worker: Mutex::new(Some(worker)) })
        })
    }

    /// Decide on packets for at most `timeout_ms`; return the reports, one EVE line each, as soon as there are some.
    fn poll(&self, py: Python<'_>, timeout_ms: u32, max_lines: usize) -> PyResult<Vec<String>> {
        detached(py, || {
            let mut guard = lock(&self.worker)?;
            let worker = guard.as_mut().ok_or_else(Failure::closed)?;
            worker.work(Instant::now() + Duration::from_millis(timeout_ms.into()))?;
            let lines = std::iter::from_fn(|| worker.inspector.next_line());
            Ok(lines.take(max_lines).collect())
        })
    }

    /// Return the statistics as an EVE line.
    fn stats_line(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || {
            let mut guard = lock(&self.worker)?;
            let worker = guard.as_mut().ok_or_else(Failure::closed)?;
            let lost = worker.queue.statistics();
            Ok(worker.inspector.stats_line(
                time_us(),
                elapsed_us(worker.started),
                [lost.queue_dropped, lost.user_dropped],
            ))
        })
    }

    /// Give the queue back: what waits in it, and what comes, is dropped or goes on as the firewall says.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, || {
            lock(&self.worker)?.take();
            Ok(())
        })
    }
}

/// The decisions of one rule for one direction of one connection.
#[pyclass(frozen, module = "tidegate.ids._sensor")]
pub struct FieldStream {
    stream: Mutex<sensor::FieldStream>,
}

type Fed<'py> = (Bound<'py, PyBytes>, Vec<String>, Vec<Bound<'py, PyBytes>>, bool);

#[pymethods]
impl FieldStream {
    #[new]
    fn new(py: Python<'_>, config_json: &str, rule_id: u8, datagram: bool) -> PyResult<FieldStream> {
        detached(py, || {
            let rules = parse_rules(config_json)?;
            let rule = rules.rule(rule_id).cloned();
            let rule = rule.ok_or_else(|| Failure::config(format!("there is no field rule {rule_id}")))?;
            Ok(FieldStream { stream: Mutex::new(sensor::FieldStream::new(rule, datagram)) })
        })
    }

    /// Judge `data`; return the bytes to pass on, the violations in words, the first bytes of each refused message, and
    /// whether nothing can be read any more.
    fn feed<'py>(&self, py: Python<'py>, data: &[u8]) -> PyResult<Fed<'py>> {
        let fed = detached(py, || Ok(lock(&self.stream)?.feed(data)))?;
        let refused = fed.refused.iter().map(|head| PyBytes::new(py, head)).collect();
        Ok((PyBytes::new(py, &fed.allowed), fed.violations, refused, fed.is_condemned))
    }
}

fn parse_rules(config_json: &str) -> Result<RuleSet, Failure> {
    let rules = RuleSet::parse(config_json).map_err(|error| Failure::config(error.to_string()))?;
    if !MEMORY_BYTES.contains(&rules.memory_bytes) {
        let (least, most) = MEMORY_BYTES.into_inner();
        return Err(Failure::config(format!("memory_bytes must be from {least} to {most}")));
    }
    Ok(rules)
}

/// What lacks here is another capability than for packet sockets.
pub fn netfilter_failure(error: CaptureError) -> Failure {
    match error {
        CaptureError::Permission => Failure::queue_permission(),
        other => Failure::from(other),
    }
}

fn elapsed_us(started: Instant) -> u64 {
    started.elapsed().as_micros() as u64
}

pub fn time_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_micros() as u64)
}
