//! The class `InlineInspector`: rules that decide about packets of a queue.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use capture::{Answer, Queue, RawSender, Waiting};
use inspect::{Checksums, Replies, Verdict};
use pyo3::prelude::*;
use sensor::{Direction, Frame, Link};

use crate::core::Core;
use crate::errors::{Failure, detached, lock};
use crate::inline::{netfilter_failure, time_us};
use crate::inspector::Inspector;

struct Worker {
    queue: Queue,
    sender: Option<RawSender>,
    replies: Replies,
    is_fail_open: bool,
    packets: u64,
}

impl Worker {
    /// Serve the queue until `deadline`, or until there are lines.
    fn work(&mut self, core: &mut Core, deadline: Instant) -> Result<(), Failure> {
        loop {
            let left_ms = deadline.saturating_duration_since(Instant::now()).as_millis() as i32;
            let (replies, is_fail_open) = (&mut self.replies, self.is_fail_open);
            let served = self.queue.serve(left_ms, |waiting| answer(core, replies, waiting, is_fail_open))?;
            while let Some(reply) = self.replies.next_reply() {
                if let Some(sender) = &self.sender {
                    sender.send(&reply);
                }
            }
            self.packets = self.packets.saturating_add(served as u64);
            core.tick(time_us());
            if served == 0 || core.is_crowded() || Instant::now() >= deadline {
                return Ok(());
            }
        }
    }

    fn count(&mut self, core: &mut Core) {
        let lost = self.queue.statistics();
        let drops = lost.queue_dropped.saturating_add(lost.user_dropped);
        core.capture.kernel_drops = drops;
        core.capture.kernel_packets = self.packets.saturating_add(drops);
        (core.capture.replies, core.capture.replies_suppressed) = (self.replies.made, self.replies.suppressed);
    }
}

fn answer(core: &mut Core, replies: &mut Replies, waiting: &Waiting<'_>, is_fail_open: bool) -> Answer {
    if replies.is_own(waiting.data) {
        return Answer::Accept(waiting.mark);
    }
    if waiting.is_cut && !is_fail_open {
        return Answer::Drop; // rules would decide about less than the receiver gets
    }
    let now_us = time_us();
    let frame = Frame {
        time_us: now_us,
        data: waiting.data,
        wire_bytes: waiting.data.len() as u32,
        link: Link::RawIp,
        direction: Direction::Unknown,
    };
    let checksums = if waiting.is_checksum_pending { Checksums::Vouched } else { Checksums::Unknown };
    match core.verdict(&frame, checksums) {
        Verdict::Accept => Answer::Accept(waiting.mark),
        Verdict::Drop => Answer::Drop,
        Verdict::Reject(target) => {
            replies.refuse(waiting.data, target, now_us);
            Answer::Drop
        }
    }
}

/// A packet queue whose packets rules let go or stop.
#[pyclass(frozen, module = "tidegate.ids._sensor")]
pub struct InlineInspector {
    worker: Mutex<Option<Worker>>,
    core: Arc<Mutex<Core>>,
}

#[pymethods]
impl InlineInspector {
    /// `inspector` has the setting `simulate-ips`. With `fail_open`, packets that find the queue full go on unseen.
    #[new]
    fn new(py: Python<'_>, queue_number: u16, inspector: &Inspector, fail_open: bool) -> PyResult<InlineInspector> {
        let core = Arc::clone(&inspector.core);
        detached(py, move || {
            let queue = Queue::bind(queue_number, fail_open).map_err(netfilter_failure)?;
            let (sender, replies) = (RawSender::open().ok(), Replies::default());
            let worker = Worker { queue, sender, replies, is_fail_open: fail_open, packets: 0 };
            Ok(InlineInspector { worker: Mutex::new(Some(worker)), core })
        })
    }

    /// Decide on packets for at most `timeout_ms`; return up to `max_lines` events as EVE lines.
    fn poll(&self, py: Python<'_>, timeout_ms: u32, max_lines: usize) -> PyResult<Vec<String>> {
        detached(py, || {
            let mut guard = lock(&self.worker)?;
            let worker = guard.as_mut().ok_or_else(Failure::closed)?;
            let mut core = lock(&self.core)?;
            worker.work(&mut core, Instant::now() + Duration::from_millis(timeout_ms.into()))?;
            worker.count(&mut core);
            Ok(core.drain(max_lines))
        })
    }

    /// Give the queue back: what waits in it is dropped; what comes is dropped or goes on as the firewall says.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, || {
            lock(&self.worker)?.take();
            Ok(())
        })
    }
}
