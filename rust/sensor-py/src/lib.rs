//! `tidegate.ids._sensor`: the sensor and its captures for Python.
//!
//! Converts, releases the interpreter lock while it works, and owns the one table from Rust errors to error codes.
//! Decides nothing. Read first: `errors.rs`.

mod captures;
mod config;
mod core;
mod errors;
mod inline;

use pyo3::prelude::*;

/// The network sensor; use tidegate.ids.sensor, which raises coded errors.
#[pymodule]
mod _sensor {
    #[pymodule_export]
    use super::captures::{FileCapture, LiveCapture};
    #[pymodule_export]
    use super::core::Sensor;
    #[pymodule_export]
    use super::errors::SensorError;
    #[pymodule_export]
    use super::inline::{FieldStream, InlineQueue};
    use super::*;

    /// Give up the ability to gain privileges, and die with the parent process. Call it after the change of user.
    #[pyfunction]
    fn confine() -> PyResult<()> {
        capture::confine().map_err(|error| errors::raise("ids.worker.confinement", error.to_string()))
    }

    /// Become user and group `user` for good, keep only CAP_NET_ADMIN (each verdict needs it), and die with the parent
    /// process.
    #[pyfunction]
    fn confine_inline(user: u32) -> PyResult<()> {
        super::inline::confine_inline(user).map_err(|error| errors::raise("ids.worker.confinement", error.to_string()))
    }
}
