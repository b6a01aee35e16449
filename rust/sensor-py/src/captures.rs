//! The classes `LiveCapture`, `LogCapture` and `FileCapture`.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use capture::{CaptureError, CaptureFile, Checksum, FileEnd, PacketLog, Record, Ring, RingOptions, Snap};
use inspect::Checksums;
use pyo3::prelude::*;
use sensor::{Direction, Frame, Link};

use crate::core::{Core, Sensor};
use crate::errors::{Failure, detached, lock};
use crate::inline::{netfilter_failure, time_us};
use crate::inspector::Inspector;

/// Frames may wait this long in a block that is not full: time must not overtake them.
const FRAME_LAG_US: u64 = 100_000;

/// A ring on one interface, feeding one sensor.
#[pyclass(frozen, module = "tidegate.ids._sensor")]
pub struct LiveCapture {
    ring: Mutex<Option<Ring>>,
    core: Arc<Mutex<Core>>,
}

/// What a capture can feed.
#[derive(FromPyObject)]
enum Feed<'py> {
    Sensor(PyRef<'py, Sensor>),
    Inspector(PyRef<'py, Inspector>),
}

impl Feed<'_> {
    fn core(&self) -> Arc<Mutex<Core>> {
        match self {
            Feed::Sensor(sensor) => Arc::clone(&sensor.core),
            Feed::Inspector(inspector) => Arc::clone(&inspector.core),
        }
    }
}

#[pymethods]
impl LiveCapture {
    /// Captures of one `fanout` group share an interface, each flow going to one of them.
    #[new]
    #[pyo3(signature = (interface, sensor, fanout=None))]
    fn new(py: Python<'_>, interface: &str, sensor: Feed<'_>, fanout: Option<u16>) -> PyResult<LiveCapture> {
        let core = sensor.core();
        detached(py, move || {
            let options = {
                let core = lock(&core)?;
                let snap = if core.inspector.is_some() { Snap::Whole } else { Snap::Headers };
                RingOptions { ring_bytes: core.ring_bytes(), snap, fanout }
            };
            let ring = Ring::open(interface, &options)?;
            Ok(LiveCapture { ring: Mutex::new(Some(ring)), core })
        })
    }

    /// Wait at most `timeout_ms` for frames, look at all that are there, return up to `max_lines` events as EVE lines.
    fn poll(&self, py: Python<'_>, timeout_ms: i32, max_lines: usize) -> PyResult<Vec<String>> {
        detached(py, || {
            let mut guard = lock(&self.ring)?;
            let ring = guard.as_mut().ok_or_else(Failure::closed)?;
            ring.wait(timeout_ms)?;
            let mut core = lock(&self.core)?;
            ring.drain(|frame, checksum| {
                let checksums = if checksum == Checksum::Vouched { Checksums::Vouched } else { Checksums::Unknown };
                core.verdict(frame, checksums);
            });
            core.tick(time_us().saturating_sub(FRAME_LAG_US));
            let counted = ring.update_statistics()?;
            (core.capture.kernel_packets, core.capture.kernel_drops) = (counted.packets, counted.drops);
            Ok(core.drain(max_lines))
        })
    }

    /// Give the ring back; harmless when repeated.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, || {
            lock(&self.ring)?.take();
            Ok(())
        })
    }
}

/// A group to which firewall rules log packets, feeding one sensor.
#[pyclass(frozen, module = "tidegate.ids._sensor")]
pub struct LogCapture {
    log: Mutex<Option<PacketLog>>,
    core: Arc<Mutex<Core>>,
}

#[pymethods]
impl LogCapture {
    #[new]
    fn new(py: Python<'_>, group: u16, sensor: Feed<'_>) -> PyResult<LogCapture> {
        let core = sensor.core();
        detached(py, move || {
            let log = PacketLog::bind(group).map_err(netfilter_failure)?;
            Ok(LogCapture { log: Mutex::new(Some(log)), core })
        })
    }

    /// Wait at most `timeout_ms` for packets, look at those that are there, return up to `max_lines` events as EVE lines.
    fn poll(&self, py: Python<'_>, timeout_ms: i32, max_lines: usize) -> PyResult<Vec<String>> {
        detached(py, || {
            let mut guard = lock(&self.log)?;
            let log = guard.as_mut().ok_or_else(Failure::closed)?;
            let mut core = lock(&self.core)?;
            log.drain(timeout_ms, |logged, time_us| {
                if !logged.is_ip() {
                    core.capture.unsupported_link += 1;
                    return;
                }
                let direction = match (logged.index_in, logged.index_out) {
                    (0, 1..) => Direction::Out,
                    (1.., 0) => Direction::In,
                    _ => Direction::Unknown, // forwarded
                };
                let (data, wire_bytes) = (logged.data, logged.data.len() as u32);
                let frame = Frame { time_us, data, wire_bytes, link: Link::RawIp, direction };
                core.verdict(&frame, Checksums::MayBePending);
            })?;
            core.tick(time_us().saturating_sub(FRAME_LAG_US));
            let counted = log.statistics();
            core.capture.kernel_packets = counted.packets.saturating_add(counted.lost);
            (core.capture.kernel_drops, core.capture.overruns) = (counted.lost, counted.overruns);
            Ok(core.drain(max_lines))
        })
    }

    /// Give the group back; harmless when repeated.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, || {
            lock(&self.log)?.take();
            Ok(())
        })
    }
}

/// A capture file on its way through a sensor.
pub struct FileReader {
    file: CaptureFile<File>,
}

impl FileReader {
    pub fn open(path: &str) -> Result<FileReader, Failure> {
        let source = File::open(path).map_err(|error| match error.kind() {
            // what a file denies has nothing to do with capabilities
            io::ErrorKind::PermissionDenied => CaptureError::Io(error),
            _ => CaptureError::from(error),
        })?;
        Ok(FileReader { file: CaptureFile::open(source)? })
    }

    /// Read up to `count` records; return whether the file has ended.
    pub fn read(&mut self, core: &mut Core, count: u64) -> Result<bool, Failure> {
        for _ in 0..count {
            match self.file.next_record()? {
                Record::Frame(frame) => core.packet(&frame),
                Record::UnsupportedLink => core.capture.unsupported_link += 1,
                Record::End(end) => {
                    core.capture.truncated_records += u64::from(end == FileEnd::Truncated);
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// A capture file, read piece by piece.
#[pyclass(frozen, module = "tidegate.ids._sensor")]
pub struct FileCapture {
    reader: Mutex<Option<FileReader>>,
    core: Arc<Mutex<Core>>,
}

#[pymethods]
impl FileCapture {
    #[new]
    fn new(py: Python<'_>, path: &str, sensor: &Sensor) -> PyResult<FileCapture> {
        let core = Arc::clone(&sensor.core);
        detached(py, move || Ok(FileCapture { reader: Mutex::new(Some(FileReader::open(path)?)), core }))
    }

    /// Read up to `packets` records, fewer if they bring many events; return the events as EVE lines, or None when the
    /// file has ended.
    fn poll(&self, py: Python<'_>, packets: u64) -> PyResult<Option<Vec<String>>> {
        detached(py, || {
            let mut guard = lock(&self.reader)?;
            let Some(reader) = guard.as_mut() else { return Ok(None) };
            let mut core = lock(&self.core)?;
            for _ in 0..packets {
                if core.is_crowded() {
                    break;
                }
                if reader.read(&mut core, 1)? {
                    guard.take(); // what is still open comes with Sensor.finish
                    break;
                }
            }
            Ok(Some(core.drain(usize::MAX)))
        })
    }
}
