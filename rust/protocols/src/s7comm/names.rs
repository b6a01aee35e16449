//! Names of S7comm's numbers.

type Names = &'static [(&'static str, u64)];

pub const ROSCTR: Names = &[("job", 1), ("ack", 2), ("ack_data", 3), ("userdata", 7)];

pub const FUNCTIONS: Names = &[
    ("cpu_services", 0x00),
    ("read_var", 0x04),
    ("write_var", 0x05),
    ("request_download", 0x1a),
    ("download_block", 0x1b),
    ("download_ended", 0x1c),
    ("start_upload", 0x1d),
    ("upload", 0x1e),
    ("end_upload", 0x1f),
    ("plc_control", 0x28),
    ("plc_stop", 0x29),
    ("setup_communication", 0xf0),
];

pub const AREAS: Names = &[
    ("system_info", 0x03),
    ("system_flags", 0x05),
    ("analog_inputs", 0x06),
    ("analog_outputs", 0x07),
    ("counters", 0x1c),
    ("timers", 0x1d),
    ("peripherals", 0x80),
    ("inputs", 0x81),
    ("outputs", 0x82),
    ("flags", 0x83),
    ("db", 0x84),
    ("instance_db", 0x85),
    ("local", 0x86),
];

pub const GROUPS: Names = &[
    ("mode_transition", 0),
    ("programmer", 1),
    ("cyclic", 2),
    ("block", 3),
    ("cpu", 4),
    ("security", 5),
    ("pbc", 6),
    ("time", 7),
    ("nc", 15),
];
