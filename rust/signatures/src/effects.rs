//! Keywords with memory: flowbits, flowint, xbits, hostbits, iprep, datasets on addresses.

/// A condition on what earlier packets left behind.
#[derive(Debug)]
pub enum FlowTest {}

/// What a match leaves behind.
#[derive(Debug)]
pub enum Effect {}
