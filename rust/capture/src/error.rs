//! Why a capture could not begin or go on.

use std::{fmt, io};

/// Each variant is one code of the Python side's error table.
#[derive(Debug)]
pub enum CaptureError {
    /// The process may not open packet sockets.
    Permission,
    /// There is no interface of this name, or it went away.
    NoInterface(String),
    /// The interface's frames begin with something that the sensor has no decoder for.
    UnsupportedInterface(u16),
    /// The ring would have fewer than two blocks.
    RingTooSmall(usize),
    /// The file is neither pcap nor pcapng.
    NotACapture,
    /// Another process owns the queue of this number.
    QueueBusy(u16),
    /// Another process owns the log group of this number.
    LogBusy(u16),
    /// The operating system said no.
    Io(io::Error),
}

impl fmt::Display for CaptureError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CaptureError::Permission => write!(formatter, "packet sockets need the capability CAP_NET_RAW"),
            CaptureError::NoInterface(name) => write!(formatter, "there is no network interface {name:?}"),
            CaptureError::UnsupportedInterface(kind) => {
                write!(formatter, "interfaces of hardware type {kind} are not supported")
            }
            CaptureError::RingTooSmall(bytes) => write!(formatter, "{bytes} bytes are too few for a capture ring"),
            CaptureError::NotACapture => write!(formatter, "the file is neither pcap nor pcapng"),
            CaptureError::QueueBusy(number) => write!(formatter, "another process owns the packet queue {number}"),
            CaptureError::LogBusy(group) => write!(formatter, "another process owns the packet log group {group}"),
            CaptureError::Io(error) => error.fmt(formatter),
        }
    }
}

impl std::error::Error for CaptureError {}

impl From<io::Error> for CaptureError {
    fn from(error: io::Error) -> CaptureError {
        match error.kind() {
            io::ErrorKind::PermissionDenied => CaptureError::Permission,
            _ => CaptureError::Io(error),
        }
    }
}
