//! Counts of functions and services in public captures, against what tshark 4.0 says of the same files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use protocols::{Json, PROTOCOLS, Parser, Probe, Protocol, Settings, Start, Transaction, Way};

mod flows;

/// Left out: captures with fuzzed sequence numbers, of which no two reassemblies say the same; link frames with
/// reserved function codes, whose user data tshark reads and a station does not. Of `tftp.pcap`, one request has no mode.
///
/// File, protocol, what is counted (a number's keyword, or a member of the log record), and tshark's counts.
const EXPECTED: &[(&str, &str, &str, &str)] = &[
    ("ics-pcap/modbus_test_data_part1.pcap", "modbus", "function_raw", "1:14 3:2 5:4 6:2 8:16 17:4 42:1 43:2"),
    (
        "ics-pcap/modbus_test_data_part2.pcap",
        "modbus",
        "function_raw",
        "0:2 1:27 2:2 3:2 4:2 5:2 6:2 7:2 8:2 9:2 10:2 11:2 12:2 13:2 14:2 15:2 16:2 17:2 18:2 19:2 20:2 21:2 22:2 23:2 24:2 25:2 26:2 27:2 28:2 29:2 30:2 31:2 32:2 33:2 34:2 35:2 36:2 37:2 38:2 39:2 40:2 41:2 42:2 43:2 44:2 45:2 46:2 47:2 48:2 49:2 50:2 51:2 52:2 53:2 54:2 55:2 56:2 57:2 58:2 59:2 60:2 61:2 62:2 63:2 64:2 65:2 66:2 67:2 68:2 69:2 70:2 71:2 72:2 73:2 74:2 75:2 76:2 77:2 78:2 79:2 80:2 81:2 82:2 83:2 84:2 85:2 86:2 87:2 88:2 89:2 90:2 91:2 92:2 93:2 94:2 95:2 96:2 97:2 98:2 99:2 100:2 101:2 102:2 103:2 104:2 105:2 106:2 107:2 108:2 109:2 110:2 111:2 112:2 113:2 114:2 115:2 116:2 117:2 118:2 119:2 120:2 121:2 122:2 123:2 124:2 125:2 126:2 127:2",
    ),
    ("ics-pcap/modicon_test.pcap", "modbus", "function_raw", "90:180"),
    ("ics-pcap/DNP3-Malformed.pcap", "dnp3", "dnp3_func", "4:197"),
    ("ics-pcap/DNP3-TestDataPart1.pcap", "dnp3", "dnp3_func", "0:13 1:3 2:6 13:2 14:2 18:4 20:3 21:7 129:23 130:30"),
    ("ics-pcap/DNP3-Write.pcap", "dnp3", "dnp3_func", "2:1"),
    ("ics-pcap/assign_class.pcap", "dnp3", "dnp3_func", "22:1 129:1"),
    ("ics-pcap/auth_change_session_keys.pcap", "dnp3", "dnp3_func", "32:2 131:2"),
    ("ics-pcap/auth_control_challenge_response.pcap", "dnp3", "dnp3_func", "5:1 32:1 129:1 131:1"),
    ("ics-pcap/dataset_exchange.pcap", "dnp3", "dnp3_func", "1:3 129:3"),
    ("ics-pcap/direct_operate_crob_malform_but_good_crc.pcap", "dnp3", "dnp3_func", "5:1"),
    ("ics-pcap/disable_unsolcited_and_response.pcap", "dnp3", "dnp3_func", "21:1 129:1"),
    ("ics-pcap/dnp3.pcap", "dnp3", "dnp3_func", "0:13 1:9 2:6 3:5 13:2 14:2 18:4 20:3 21:7 129:34 130:30"),
    ("ics-pcap/dnp3_del_measure.pcap", "dnp3", "dnp3_func", "23:1 129:1"),
    ("ics-pcap/dnp3_file_read.pcap", "dnp3", "dnp3_func", "0:1 1:1 2:2 25:1 26:1 129:5"),
    ("ics-pcap/dnp3_select_operate.pcap", "dnp3", "dnp3_func", "3:1 4:1 129:2"),
    ("ics-pcap/dnp3_test_data_part2.pcap", "dnp3", "dnp3_func", "1:6 3:5 129:11"),
    ("ics-pcap/dnp3_write.pcap", "dnp3", "dnp3_func", "2:1 129:1"),
    ("ics-pcap/dump.pcap", "dnp3", "dnp3_func", "1:13 129:9"),
    ("ics-pcap/enable_unsolicited_and_response.pcap", "dnp3", "dnp3_func", "20:1 129:1"),
    ("ics-pcap/file_read.pcap", "dnp3", "dnp3_func", "1:1 25:1 26:1 129:3"),
    ("ics-pcap/full_exchange.pcap", "dnp3", "dnp3_func", "0:1 1:1 2:1 20:1 21:1 129:4 130:1"),
    ("ics-pcap/operate_aggressive_mode.pcap", "dnp3", "dnp3_func", "5:1 129:1"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__6.6.2.1__dump.pcap", "dnp3", "dnp3_func", "1:1 129:1"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__7.2__dump.pcap", "dnp3", "dnp3_func", "1:1 129:1"),
    (
        "ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.11.2.1__dump.pcap",
        "dnp3",
        "dnp3_func",
        "0:2 1:1 2:1 129:2 130:7",
    ),
    (
        "ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.11.2.4__dump.pcap",
        "dnp3",
        "dnp3_func",
        "0:3 20:1 21:1 129:2 130:4",
    ),
    (
        "ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.11.2.5__dump.pcap",
        "dnp3",
        "dnp3_func",
        "0:9 1:6 2:5 20:4 129:13 130:27",
    ),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.13.2.2__dump.pcap", "dnp3", "dnp3_func", "1:2 129:2"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.13.2.3__dump.pcap", "dnp3", "dnp3_func", "1:1 129:1"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.14.2.11__dump.pcap", "dnp3", "dnp3_func", "0:2 1:4 129:4"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.14.2.12__dump.pcap", "dnp3", "dnp3_func", "0:1 1:3 129:3"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.14.2.15__dump.pcap", "dnp3", "dnp3_func", "0:1 1:3 129:3"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.14.2.4__dump.pcap", "dnp3", "dnp3_func", "0:2 1:3 129:3"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.14.2.7__dump.pcap", "dnp3", "dnp3_func", "0:2 1:4 129:4"),
    (
        "ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.15.2__dump.pcap",
        "dnp3",
        "dnp3_func",
        "0:3 1:5 2:3 23:2 129:10",
    ),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.16.1.2.2__dump.pcap", "dnp3", "dnp3_func", "1:2 129:2"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.16.2.2.3__dump.pcap", "dnp3", "dnp3_func", "1:2 9:2 129:4"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.16.2.2.5__dump.pcap", "dnp3", "dnp3_func", "1:2 10:2 129:2"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.17.2.5__dump.pcap", "dnp3", "dnp3_func", "0:1 1:4 129:4"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.18.2.2__dump.pcap", "dnp3", "dnp3_func", "1:1 129:1"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.19.2.1__dump.pcap", "dnp3", "dnp3_func", "0:2 1:4 129:4"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.2.1.2.10__dump.pcap", "dnp3", "dnp3_func", "3:1 129:1"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.2.1.2.11__dump.pcap", "dnp3", "dnp3_func", "3:2 4:1 129:3"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.2.1.2.12__dump.pcap", "dnp3", "dnp3_func", "3:2 4:1 129:3"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.2.1.2.15__dump.pcap", "dnp3", "dnp3_func", "3:1 4:2 129:3"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.2.1.2.4__dump.pcap", "dnp3", "dnp3_func", "3:1 4:1 129:2"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.2.1.2.5__dump.pcap", "dnp3", "dnp3_func", "3:1 4:1 129:2"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.2.1.2.6__dump.pcap", "dnp3", "dnp3_func", "3:1 4:1 129:2"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.2.1.2.7__dump.pcap", "dnp3", "dnp3_func", "3:1 4:1 129:2"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.2.1.2.8__dump.pcap", "dnp3", "dnp3_func", "3:1 4:1 129:2"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.2.2.2.1__dump.pcap", "dnp3", "dnp3_func", "5:1 129:1"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.2.4.2__dump.pcap", "dnp3", "dnp3_func", "3:3 4:1 5:1 129:5"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.2.5.2.2__dump.pcap", "dnp3", "dnp3_func", "5:5 129:5"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.20.2__dump.pcap", "dnp3", "dnp3_func", "1:1 129:1"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.21.2.1__dump.pcap", "dnp3", "dnp3_func", "1:2 129:2"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.21.2.2__dump.pcap", "dnp3", "dnp3_func", "1:1 129:1"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.22.2.14__dump.pcap", "dnp3", "dnp3_func", "0:2 1:4 129:4"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.22.2.15__dump.pcap", "dnp3", "dnp3_func", "0:1 1:3 129:3"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.22.2.2__dump.pcap", "dnp3", "dnp3_func", "0:1 1:4 129:4"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.22.2.3__dump.pcap", "dnp3", "dnp3_func", "0:2 1:3 129:3"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.22.2.4__dump.pcap", "dnp3", "dnp3_func", "0:2 1:3 129:3"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.22.2.6__dump.pcap", "dnp3", "dnp3_func", "0:1 1:3 129:3"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.4.1.2.10__dump.pcap", "dnp3", "dnp3_func", "3:1 4:2 129:3"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.4.1.2.11__dump.pcap", "dnp3", "dnp3_func", "3:1 4:2 129:3"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.4.1.2.12__dump.pcap", "dnp3", "dnp3_func", "3:1 4:2 129:3"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.4.1.2.1__dump.pcap", "dnp3", "dnp3_func", "3:1 4:1 129:2"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.4.1.2.2__dump.pcap", "dnp3", "dnp3_func", "3:1 4:1 129:2"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.4.1.2.5__dump.pcap", "dnp3", "dnp3_func", "3:1 4:1 129:2"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.4.1.2.6__dump.pcap", "dnp3", "dnp3_func", "3:1 4:1 129:2"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.4.1.2.7__dump.pcap", "dnp3", "dnp3_func", "3:1 129:1"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.4.1.2.8__dump.pcap", "dnp3", "dnp3_func", "3:2 4:1 129:3"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.4.1.2.9__dump.pcap", "dnp3", "dnp3_func", "3:2 4:1 129:3"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.4.2.2.2__dump.pcap", "dnp3", "dnp3_func", "5:1 129:1"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.4.2.2.3__dump.pcap", "dnp3", "dnp3_func", "5:1 129:1"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.4.3.2.2__dump.pcap", "dnp3", "dnp3_func", "6:1"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.4.4.2__dump.pcap", "dnp3", "dnp3_func", "3:3 4:1 5:1 129:5"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.5.1.2__dump.pcap", "dnp3", "dnp3_func", "1:1 129:1"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.5.2.2.1__dump.pcap", "dnp3", "dnp3_func", "0:1 1:3 129:3"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.5.2.2.2__dump.pcap", "dnp3", "dnp3_func", "0:2 1:4 129:4"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.5.3.2.4__dump.pcap", "dnp3", "dnp3_func", "0:2 1:4 129:4"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.5.5.2.1__dump.pcap", "dnp3", "dnp3_func", "1:2 129:2"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.6.1.2__dump.pcap", "dnp3", "dnp3_func", "1:1 2:1 129:2"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.6.2.2__dump.pcap", "dnp3", "dnp3_func", "1:1 112:1 129:2"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.6.3.2__dump.pcap", "dnp3", "dnp3_func", "1:2 129:2"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.6.5.4__dump.pcap", "dnp3", "dnp3_func", "0:1 1:8 2:2 129:8"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.6.6.2.2__dump.pcap", "dnp3", "dnp3_func", "0:2 1:4 129:4"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.6.6.2.3__dump.pcap", "dnp3", "dnp3_func", "0:2 1:4 129:4"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.6.6.2.4__dump.pcap", "dnp3", "dnp3_func", "0:2 1:4 129:4"),
    ("ics-pcap/pcaps__dnp3__opendnp3-3__conformance__8.8.2__dump.pcap", "dnp3", "dnp3_func", "1:1 2:1 13:1 129:3"),
    ("ics-pcap/serial_time_sync.pcap", "dnp3", "dnp3_func", "2:1 23:1 129:2"),
    ("ics-pcap/warm_restart_and_response.pcap", "dnp3", "dnp3_func", "14:1 129:1"),
    ("ics-pcap/write_binary_output.pcap", "dnp3", "dnp3_func", "2:1"),
    ("ics-pcap/CL5000EIP-Remote Mode Change Attempt.pcap", "enip", "enip_command", "112:301"),
    ("ics-pcap/CL5000EIP-Software Upload.pcap", "enip", "enip_command", "111:62 112:729"),
    ("ics-pcap/EIP-ChangeDateAttempt.pcap", "enip", "enip_command", "112:267"),
    ("ics-pcap/EIP-ChangeTimeAttempt.pcap", "enip", "enip_command", "112:534"),
    ("ics-pcap/EIP-RebootorRestart.pcap", "enip", "enip_command", "111:60 112:754"),
    ("ics-pcap/cip-eth-set-2.pcap", "enip", "enip_command", "111:1"),
    ("ics-pcap/cip_unlock_cpu.pcap", "enip", "enip_command", "112:1"),
    ("ics-pcap/enip_test.pcap", "enip", "enip_command", "99:2"),
    ("ics-pcap/CL5000EIP-Remote Mode Change Attempt.pcap", "enip", "cip.service", "3:1805 7:2 10:189 75:4 76:1514"),
    (
        "ics-pcap/CL5000EIP-Software Upload.pcap",
        "enip",
        "cip.service",
        "1:36 3:1131 4:2 10:73 75:50 76:4 78:12 79:38 82:18 84:14",
    ),
    ("ics-pcap/EIP-ChangeDateAttempt.pcap", "enip", "cip.service", "3:1075 4:2 10:81"),
    ("ics-pcap/EIP-ChangeTimeAttempt.pcap", "enip", "cip.service", "3:2152 4:2 10:162"),
    (
        "ics-pcap/EIP-RebootorRestart.pcap",
        "enip",
        "cip.service",
        "1:30 3:1312 4:112 5:2 6:2 7:2 8:86 10:116 13:6 75:20 76:620 78:8 79:10 80:16 82:21 84:10",
    ),
    ("ics-pcap/cip-eth-set-2.pcap", "enip", "cip.service", "16:1"),
    ("ics-pcap/cip_unlock_cpu.pcap", "enip", "cip.service", "76:1"),
    ("ics-pcap/s7comm_reading_setting_plc_time.pcap", "s7comm", "s7.rosctr", "1:1 3:1 7:24"),
    ("ics-pcap/snap7_s300_everything.pcapng", "s7comm", "s7.rosctr", "1:22 2:1 3:21 7:20"),
    ("ics-pcap/snap7_s300_stop.pcapng", "s7comm", "s7.rosctr", "1:1 3:1"),
    ("ics-pcap/step7_s300_AuthPassword.pcapng", "s7comm", "s7.rosctr", "7:6"),
    ("ics-pcap/step7_s300_copyRamToRom.pcapng", "s7comm", "s7.rosctr", "1:1 3:1"),
    ("ics-pcap/step7_s300_readVarTab.pcapng", "s7comm", "s7.rosctr", "7:331"),
    ("ics-pcap/step7_s300_stop.pcapng", "s7comm", "s7.rosctr", "1:1 3:1 7:2"),
    ("ics-pcap/wincc_s300_setup-alarm-read-write.pcapng", "s7comm", "s7.rosctr", "1:75 3:75 7:14"),
    ("ics-pcap/wincc_s300_setup-alarm-read_2.pcapng", "s7comm", "s7.rosctr", "1:237 3:237 7:12"),
    ("ndpi-pcap/s7comm.pcap", "s7comm", "s7.rosctr", "1:7 3:7 7:22"),
    ("ics-pcap/s7comm_reading_setting_plc_time.pcap", "s7comm", "s7.function", "240:2"),
    ("ics-pcap/snap7_s300_everything.pcapng", "s7comm", "s7.function", "4:4 5:4 29:9 30:8 31:8 40:6 41:2 240:2"),
    ("ics-pcap/snap7_s300_stop.pcapng", "s7comm", "s7.function", "41:2"),
    ("ics-pcap/step7_s300_copyRamToRom.pcapng", "s7comm", "s7.function", "40:2"),
    ("ics-pcap/step7_s300_stop.pcapng", "s7comm", "s7.function", "41:2"),
    ("ics-pcap/wincc_s300_setup-alarm-read-write.pcapng", "s7comm", "s7.function", "4:76 5:72 240:2"),
    ("ics-pcap/wincc_s300_setup-alarm-read_2.pcapng", "s7comm", "s7.function", "4:456 5:16 240:2"),
    ("ndpi-pcap/s7comm.pcap", "s7comm", "s7.function", "26:2 27:6 28:2 40:2 240:2"),
    ("ndpi-pcap/bacnet.pcap", "bacnet", "bacnet.pdu_type", "0:9 1:11 5:1"),
    ("ndpi-pcap/coap_mqtt.pcap", "coap", "coap.code", "0:2 1:4 2:2 3:3 4:2 65:1 66:1 68:1 69:2 133:1"),
    ("ndpi-pcap/mqtt.pcap", "mqtt", "mqtt.type", "1:2 2:1 3:2 8:1 9:1 14:1"),
    ("ndpi-pcap/opc-ua.pcap", "opcua", "opcua.message_type", "0:1 1:1 4:2 5:1"),
    ("ndpi-pcap/tftp.pcap", "tftp", "tftp.opcode", "1:3 2:2"),
];

/// The folder of public captures: `TIDEGATE_CORPORA`, or `shared/corpora` beside the repository.
fn corpora() -> PathBuf {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/corpora");
    std::env::var_os("TIDEGATE_CORPORA").map_or_else(|| PathBuf::from(beside), PathBuf::from)
}

/// Feed a flow as the sensor would, looking at transactions after each piece and then removing them.
fn run(protocol: &Protocol, flow: &flows::Flow, mut look: impl FnMut(&dyn Transaction)) -> Box<dyn Parser> {
    let mut parser = (protocol.parser)(&Settings::default(), flow.transport);
    let mut held = [Vec::new(), Vec::new()];
    for (way, piece) in &flow.pieces {
        let held = &mut held[*way as usize];
        match piece {
            flows::Piece::Data(piece) => held.extend_from_slice(piece),
            flows::Piece::Gap(bytes) => {
                held.clear();
                if parser.gap(*way, *bytes).is_err() {
                    break;
                }
                continue;
            }
        }
        match parser.parse(*way, held, false) {
            Ok(read) => drop(held.drain(..read)),
            Err(error) => {
                println!("{}: {}", protocol.name, error.0);
                break;
            }
        }
        let (first, end) = parser.range();
        for id in first..end {
            let is_over = |it: &&dyn Transaction| Way::BOTH.iter().all(|way| it.progress(*way) == protocols::COMPLETE);
            if let Some(transaction) = parser.transaction(id).filter(is_over) {
                look(transaction);
                parser.remove(id);
            }
        }
    }
    parser.finish();
    let (first, end) = parser.range();
    (first..end).filter_map(|id| parser.transaction(id)).for_each(look);
    parser
}

fn count(protocol: &Protocol, transaction: &dyn Transaction, what: &str, counts: &mut BTreeMap<u64, usize>) {
    if let Some(index) = protocol.numbers.iter().position(|info| info.keyword == what) {
        let values = Way::BOTH.iter().flat_map(|way| (0..).map_while(move |nth| transaction.number(index, *way, nth)));
        values.for_each(|value| *counts.entry(value).or_default() += 1);
        return;
    }
    let mut text = String::new();
    transaction.log(None, &mut Json::inside(&mut text, false));
    let key = format!("\"{what}\":");
    for rest in text.split(&key).skip(1) {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        // an exception's function is that of its request, as tshark has it
        let value = rest[..digits].parse::<u64>().map(|value| value & 0x7f);
        *counts.entry(value.unwrap_or(u64::MAX)).or_default() += 1;
    }
}

#[test]
fn counts_are_those_of_tshark() {
    let corpora = corpora();
    if !corpora.join("ics-pcap").is_dir() {
        println!("skipped: no folder ics-pcap in TIDEGATE_CORPORA");
        return;
    }
    let mut wrong = Vec::new();
    for (file, name, what, expected) in EXPECTED {
        let Some(protocol) = PROTOCOLS.iter().find(|protocol| protocol.name == *name) else { panic!("{name}") };
        let Ok(bytes) = std::fs::read(corpora.join(file)) else {
            println!("skipped: {file} is absent");
            continue;
        };
        let mut counts = BTreeMap::new();
        for flow in flows::flows(&bytes, protocol.ports) {
            if protocol.transports.contains(&flow.transport) && flow.server_port != 0 {
                run(protocol, &flow, |transaction| count(protocol, transaction, what, &mut counts));
            }
        }
        let found: Vec<String> = counts.iter().map(|(value, count)| format!("{value}:{count}")).collect();
        if found.join(" ") != *expected {
            wrong.push(format!("{file} {what}\n  expected {expected}\n  found    {}", found.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whose probes are judged here.
const OURS: &[&str] =
    &["modbus", "mqtt", "dnp3", "enip", "coap", "bacnet", "s7comm", "iec104", "opcua", "tftp", "ftp", "smtp", "telnet"];

/// Captures in which our protocols are spoken, by a part of their names.
const SPOKEN: &[(&str, &[&str])] = &[
    ("bacnet", &["bacnet"]),
    ("coap_mqtt", &["coap", "mqtt"]),
    ("fuzz-2006-06-26-2594", &["ftp"]),
    ("mqtt", &["mqtt"]),
    ("opc-ua", &["opcua"]),
    ("s7comm", &["s7comm"]),
    ("smtps", &["smtp"]),
    ("tftp", &["tftp"]),
    ("umas", &["modbus"]),
];

/// The protocol that claims the beginning of a flow, as the sensor asks: each way's first bytes, in turn.
fn claimed(flow: &flows::Flow) -> Option<&'static str> {
    let mut begun = [Vec::new(), Vec::new()];
    for (way, piece) in flow.pieces.iter().take(6) {
        let flows::Piece::Data(piece) = piece else { return None };
        let data = &mut begun[*way as usize];
        if data.is_empty() || flow.transport == protocols::Transport::Tcp {
            data.extend_from_slice(piece);
        }
        let fits =
            |protocol: &&&Protocol| OURS.contains(&protocol.name) && protocol.transports.contains(&flow.transport);
        for protocol in PROTOCOLS.iter().filter(fits) {
            let is_usual_port = protocol.ports.contains(&flow.server_port);
            let start = Start { data, way: *way, transport: flow.transport, is_usual_port };
            if !data.is_empty() && matches!((protocol.probe)(&start), Probe::Yes | Probe::YesReversed) {
                return Some(protocol.name);
            }
        }
    }
    None
}

#[test]
fn probes_claim_only_their_own() {
    let folder = corpora().join("ndpi-pcap");
    let Ok(files) = std::fs::read_dir(&folder) else {
        println!("skipped: no folder ndpi-pcap in TIDEGATE_CORPORA");
        return;
    };
    let mut wrong = Vec::new();
    for file in files.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        let Ok(bytes) = std::fs::read(file.path()) else { continue };
        for flow in flows::flows(&bytes, &[]) {
            let Some(claim) = claimed(&flow) else { continue };
            let is_right = SPOKEN.iter().any(|(part, claims)| name.contains(part) && claims.contains(&claim));
            if !is_right {
                wrong.push(format!("{name}: port {} is taken for {claim}", flow.server_port));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
