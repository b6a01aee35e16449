//! `threshold`, `detection_filter`, and the file of thresholds, rate filters and suppressions.

/// How many matches make an alert.
#[derive(Debug)]
pub struct Threshold {}
