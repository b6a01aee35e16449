//! `tidegate.ids._sensor`: the sensor and its captures for Python.
//!
//! Converts, releases the interpreter lock while it works, and owns the one table from Rust errors to error codes.
//! Decides nothing. Read first: `errors.rs`.

mod captures;
mod config;
mod core;
mod errors;
mod inline;
mod inspector;
mod prevention;

use pyo3::pymodule;

/// The network sensor; use tidegate.ids.sensor, which raises coded errors.
#[pymodule]
mod _sensor {
    #[pymodule_export]
    use super::captures::{FileCapture, LiveCapture, LogCapture};
    #[pymodule_export]
    use super::core::Sensor;
    #[pymodule_export]
    use super::errors::SensorError;
    #[pymodule_export]
    use super::inline::{FieldStream, InlineQueue};
    #[pymodule_export]
    use super::inspector::{Inspector, RuleSet};
    #[pymodule_export]
    use super::prevention::InlineInspector;
}
