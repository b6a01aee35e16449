//! The one error table: what Rust reports, as (code, message) for `tidegate.ids.errors`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard};

use capture::CaptureError;
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use sensor::ConfigError;

create_exception!(
    tidegate.ids._sensor,
    SensorError,
    PyException,
    "args are (code, message); tidegate.ids.sensor turns it into the coded error."
);

/// A failure on its way to Python.
pub struct Failure {
    code: &'static str,
    message: String,
}

impl Failure {
    pub fn config(message: String) -> Failure {
        Failure { code: "ids.config.invalid", message }
    }

    pub fn closed() -> Failure {
        Failure { code: "ids.capture.closed", message: "the capture was closed".to_owned() }
    }

    pub fn queue_permission() -> Failure {
        let message = "packet queues and packet logs need the capability CAP_NET_ADMIN".to_owned();
        Failure { code: "ids.queue.permission", message }
    }

    pub fn internal(message: &str) -> Failure {
        Failure { code: "ids.sensor.internal", message: message.to_owned() }
    }
}

impl From<CaptureError> for Failure {
    fn from(error: CaptureError) -> Failure {
        let code = match error {
            CaptureError::Permission => "ids.capture.permission",
            CaptureError::NoInterface(_) => "ids.capture.no-interface",
            CaptureError::UnsupportedInterface(_) => "ids.capture.unsupported-interface",
            CaptureError::RingTooSmall(_) => "ids.config.invalid",
            CaptureError::NotACapture => "ids.capture.not-a-capture",
            CaptureError::QueueBusy(_) => "ids.queue.busy",
            CaptureError::LogBusy(_) => "ids.log.busy",
            CaptureError::Io(_) => "ids.capture.failed",
        };
        Failure { code, message: error.to_string() }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::config(error.to_string())
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> PyErr {
        raise(failure.code, failure.message)
    }
}

pub fn raise(code: &'static str, message: String) -> PyErr {
    SensorError::new_err((code, message))
}

/// Run `work` without the interpreter lock; a panic becomes `ids.sensor.internal`.
pub fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T, Failure> + Send) -> PyResult<T> {
    let outcome = py.detach(|| catch_unwind(AssertUnwindSafe(work)));
    let result = outcome.unwrap_or_else(|_| Err(Failure::internal("the sensor stopped at a broken invariant")));
    result.map_err(PyErr::from)
}

/// Lock, or report that a panic left the value in an unknown state.
pub fn lock<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>, Failure> {
    mutex.lock().map_err(|_| Failure::internal("the sensor stopped earlier; make a new one"))
}
