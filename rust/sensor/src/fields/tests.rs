//! Attacks and genuine messages, per protocol.
