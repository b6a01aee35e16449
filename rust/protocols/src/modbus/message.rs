//! What a Modbus message says: MODBUS Application Protocol V1.1b3, section 6.

use crate::{Json, Reader, Way};

/// Function codes from here on are exceptions.
pub const EXCEPTION: u8 = 0x80;
/// Coils or inputs in one request: section 6.1.
const MOST_BITS: u16 = 2000;
/// Registers in one request: section 6.3.
const MOST_REGISTERS: u16 = 125;

pub mod access {
    pub const READ: u8 = 1;
    pub const WRITE: u8 = 2;
    pub const DISCRETES: u8 = 4;
    pub const COILS: u8 = 8;
    pub const INPUT: u8 = 16;
    pub const HOLDING: u8 = 32;
    pub const SINGLE: u8 = 64;
    pub const MULTIPLE: u8 = 128;
    pub const TABLES: u8 = DISCRETES | COILS | INPUT | HOLDING;
}

pub mod category {
    pub const NONE: u8 = 0;
    pub const ASSIGNED: u8 = 1;
    pub const UNASSIGNED: u8 = 2;
    pub const USER: u8 = 4;
    pub const RESERVED: u8 = 8;
}

pub mod error {
    pub const VALUE: u8 = 1;
    pub const LENGTH: u8 = 2;
    pub const EXCEPTION: u8 = 4;
    pub const FUNCTION: u8 = 8;
    pub const PROTOCOL: u8 = 16;
}

/// What follows the function code. Lists are at most a PDU long (253 bytes), or as the length field says, up to 64 KiB.
#[derive(Debug)]
pub enum Data {
    Exception(u8),
    Diagnostic(u16, Vec<u8>),
    Mei(u8, Vec<u8>),
    ReadRequest { address: u16, quantity: u16 },
    ReadResponse(Vec<u8>),
    WriteMultiple { address: u16, quantity: u16, data: Vec<u8> },
    WriteMask { address: u16, and: u16, or: u16 },
    Write { address: u16, data: u16 },
    ReadWrite { read: (u16, u16), address: u16, quantity: u16, data: Vec<u8> },
    Bytes(Vec<u8>),
    Empty,
}

#[derive(Debug)]
pub struct Message {
    pub id: u16,
    pub unit: u8,
    pub function: u8,
    pub access: u8,
    pub category: u8,
    pub errors: u8,
    pub data: Data,
    protocol: u16,
}

fn access_of(function: u8) -> u8 {
    use access::*;
    match function & !EXCEPTION {
        1 => COILS | READ,
        2 => DISCRETES | READ,
        3 => HOLDING | READ,
        4 => INPUT | READ,
        5 => COILS | WRITE | SINGLE,
        6 => HOLDING | WRITE | SINGLE,
        15 => COILS | WRITE | MULTIPLE,
        16 => HOLDING | WRITE | MULTIPLE,
        22 => HOLDING | WRITE,
        23 => HOLDING | READ | WRITE | MULTIPLE,
        _ => 0,
    }
}

fn category_of(function: u8, data: &Data) -> u8 {
    match (function & !EXCEPTION, data) {
        (8, Data::Diagnostic(0..=4 | 10..=21, _)) | (43, Data::Mei(13 | 14, _)) => category::ASSIGNED,
        (8 | 43, Data::Diagnostic(..) | Data::Mei(..)) => category::RESERVED,
        (8 | 43, _) | (0, _) => category::NONE,
        (1..=24, _) => category::ASSIGNED,
        (41..=42 | 90..=91 | 125..=127, _) => category::RESERVED,
        (65..=72 | 100..=110, _) => category::USER,
        _ => category::UNASSIGNED,
    }
}

impl Message {
    /// Read a message with its header; `None` only if there is no header.
    pub fn read(way: Way, bytes: &[u8]) -> Option<Message> {
        let mut reader = Reader::new(bytes);
        let (id, protocol, length) = (reader.be16()?, reader.be16()?, reader.be16()?);
        let (unit, function) = (reader.u8().unwrap_or(0), reader.u8().unwrap_or(0));
        let access = access_of(function);
        let mut message = Message { id, unit, function, access, category: 0, errors: 0, data: Data::Empty, protocol };
        if protocol != 0 {
            message.errors |= error::PROTOCOL;
        }
        if !(super::LEAST_LENGTH..=super::MOST_LENGTH).contains(&length) {
            message.errors |= error::LENGTH;
        }
        if length >= super::LEAST_LENGTH && (function == 0 || (way == Way::ToServer && function >= EXCEPTION)) {
            message.errors |= error::FUNCTION;
        }
        let body = match way {
            Way::ToServer => message.read_request(reader),
            Way::ToClient => message.read_response(reader),
        };
        match body {
            Some(data) => message.data = data,
            None => message.errors |= error::LENGTH,
        }
        message.category = category_of(function, &message.data);
        Some(message)
    }

    fn check(&mut self, is_right: bool, flag: u8) {
        self.errors |= if is_right { 0 } else { flag };
    }

    fn read_request(&mut self, mut reader: Reader<'_>) -> Option<Data> {
        let left = reader.left();
        match self.function {
            8 => {
                self.check(left == 4 || reader.rest().starts_with(&[0, 0]), error::LENGTH);
                return self.read_diagnostic(reader, true);
            }
            43 => return Some(Data::Mei(reader.u8()?, reader.rest().to_vec())),
            20 | 21 => self.check(left > 0, error::LENGTH),
            7 | 11 | 12 | 17 => self.check(left == 0, error::LENGTH),
            24 => self.check(left == 2, error::LENGTH),
            23 => return self.read_both(reader),
            1..=4 => {
                let (address, quantity) = (reader.be16()?, reader.be16()?);
                self.check(left == 4, error::LENGTH);
                self.check_quantity(quantity);
                return Some(Data::ReadRequest { address, quantity });
            }
            _ if self.access & access::WRITE != 0 => return self.read_write(reader),
            _ => {}
        }
        Some(Data::Bytes(reader.rest().to_vec()))
    }

    fn check_quantity(&mut self, quantity: u16) {
        let is_bits = self.access & (access::COILS | access::DISCRETES) != 0;
        let most = if is_bits { MOST_BITS } else { MOST_REGISTERS };
        self.check((1..=most).contains(&quantity), error::VALUE);
    }

    fn read_diagnostic(&mut self, mut reader: Reader<'_>, is_request: bool) -> Option<Data> {
        let (function, data) = (reader.be16()?, reader.rest());
        if let (&[high, low], true) = (data, is_request) {
            let is_right = match function {
                0 | 4 => true,
                1 => low == 0 && matches!(high, 0 | 0xff),
                3 => low == 0,
                2 | 10..=21 => (high, low) == (0, 0),
                _ => true,
            };
            self.check(is_right, error::VALUE);
        }
        Some(Data::Diagnostic(function, data.to_vec()))
    }

    fn read_both(&mut self, mut reader: Reader<'_>) -> Option<Data> {
        let read = (reader.be16()?, reader.be16()?);
        self.check_quantity(read.1);
        match self.read_write(reader)? {
            Data::WriteMultiple { address, quantity, data } => Some(Data::ReadWrite { read, address, quantity, data }),
            other => Some(other),
        }
    }

    fn read_write(&mut self, mut reader: Reader<'_>) -> Option<Data> {
        let left = reader.left();
        let (address, second) = (reader.be16()?, reader.be16()?);
        if self.access & access::SINGLE != 0 {
            self.check(left == 4, error::LENGTH);
            self.check(self.access & access::COILS == 0 || matches!(second, 0 | 0xff00), error::VALUE);
            return Some(Data::Write { address, data: second });
        }
        if self.access & access::MULTIPLE == 0 {
            self.check(left == 6, error::LENGTH);
            return Some(Data::WriteMask { address, and: second, or: reader.be16()? });
        }
        let count = usize::from(reader.u8()?);
        let data = reader.rest();
        let is_bits = self.access & access::COILS != 0;
        let due = if is_bits { usize::from(second).div_ceil(8) } else { usize::from(second) * 2 };
        self.check_quantity(second);
        self.check(data.len() == count && count == due, error::VALUE);
        Some(Data::WriteMultiple { address, quantity: second, data: data.to_vec() })
    }

    fn read_response(&mut self, mut reader: Reader<'_>) -> Option<Data> {
        let left = reader.left();
        match self.function {
            function if function >= EXCEPTION => {
                let code = reader.u8()?;
                let is_file = matches!(function & !EXCEPTION, 20 | 21);
                let is_right = match code {
                    1 | 4..=6 | 10 | 11 => true,
                    2 => !matches!(function & !EXCEPTION, 7..=14 | 17..=19),
                    3 => function & !EXCEPTION != 7,
                    8 => is_file,
                    _ => false,
                };
                self.check(is_right, error::EXCEPTION);
                self.check(left == 1, error::LENGTH);
                return Some(Data::Exception(code));
            }
            8 => return self.read_diagnostic(reader, false),
            43 => return Some(Data::Mei(reader.u8()?, reader.rest().to_vec())),
            7 => self.check(left == 1, error::LENGTH),
            11 => self.check(left == 4, error::LENGTH),
            1..=4 | 23 => {
                let count = usize::from(reader.u8()?);
                self.check(reader.left() == count && count > 0, error::VALUE);
                return Some(Data::ReadResponse(reader.rest().to_vec()));
            }
            _ if self.access & access::WRITE != 0 => {
                let (address, data) = (reader.be16()?, reader.be16()?);
                let is_mask = self.access & (access::SINGLE | access::MULTIPLE) == 0;
                self.check(left == if is_mask { 6 } else { 4 }, error::LENGTH);
                if is_mask {
                    return Some(Data::WriteMask { address, and: data, or: reader.be16()? });
                }
                if self.access & access::MULTIPLE != 0 {
                    self.check_quantity(data);
                }
                return Some(Data::Write { address, data });
            }
            _ => {}
        }
        Some(Data::Bytes(reader.rest().to_vec()))
    }

    /// Return whether `response` is what this request asks for.
    pub fn fits(&self, response: &Message) -> bool {
        if self.unit != response.unit || self.function & !EXCEPTION != response.function & !EXCEPTION {
            return false;
        }
        let is_bits = self.access & (access::COILS | access::DISCRETES) != 0;
        let bytes = |quantity: u16| if is_bits { usize::from(quantity).div_ceil(8) } else { usize::from(quantity) * 2 };
        match (&self.data, &response.data) {
            (_, Data::Exception(_)) => true,
            (
                Data::ReadRequest { quantity, .. } | Data::ReadWrite { read: (_, quantity), .. },
                Data::ReadResponse(data),
            ) => data.len() == bytes(*quantity),
            (Data::Write { address, data }, Data::Write { address: other, data: value }) => {
                (address, data) == (other, value)
            }
            (Data::WriteMultiple { address, quantity, .. }, Data::Write { address: other, data }) => {
                (address, quantity) == (other, data)
            }
            (Data::WriteMask { address, and, or }, Data::WriteMask { address: other, and: mask, or: set }) => {
                (address, and, or) == (other, mask, set)
            }
            (Data::Diagnostic(function, data), Data::Diagnostic(other, echo)) => {
                // section 6.8: only a query's data comes back as it was sent
                function == other && (*function != 0 || data == echo)
            }
            (Data::Mei(kind, _), Data::Mei(other, _)) => kind == other,
            (Data::ReadRequest { .. } | Data::ReadWrite { .. } | Data::Write { .. }, _) => false,
            _ => true,
        }
    }

    /// The first and the last address that a request touches, counted from 1 as rules do.
    pub fn addresses(&self) -> Option<(u32, u32)> {
        let (address, quantity) = match &self.data {
            Data::ReadRequest { address, quantity } | Data::WriteMultiple { address, quantity, .. } => {
                (*address, *quantity)
            }
            Data::ReadWrite { address, quantity, .. } => (*address, *quantity),
            Data::Write { address, .. } | Data::WriteMask { address, .. } => (*address, 1),
            _ => return None,
        };
        (quantity > 0).then(|| (u32::from(address) + 1, u32::from(address) + u32::from(quantity)))
    }

    /// The values that a request writes to the addresses between `first` and `last` (counted from 1).
    pub fn written(&self, first: u32, last: u32) -> impl Iterator<Item = u16> + '_ {
        let (from, to) = self.addresses().unwrap_or((1, 0));
        (from.max(first)..=to.min(last)).filter_map(move |address| self.value_at(address - from))
    }

    fn value_at(&self, index: u32) -> Option<u16> {
        let index = usize::try_from(index).ok()?;
        match &self.data {
            Data::Write { data, .. } => Some(*data),
            Data::WriteMultiple { data, .. } if self.access & access::COILS != 0 => {
                data.get(index / 8).map(|byte| u16::from(byte >> (index % 8) & 1))
            }
            Data::WriteMultiple { data, .. } | Data::ReadWrite { data, .. } => {
                data.get(index * 2..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
            }
            _ => None,
        }
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        match &self.data {
            Data::Diagnostic(_, data) | Data::Mei(_, data) | Data::ReadResponse(data) | Data::Bytes(data) => {
                data.capacity()
            }
            Data::WriteMultiple { data, .. } | Data::ReadWrite { data, .. } => data.capacity(),
            _ => 0,
        }
    }

    /// Write the members of a message object.
    pub fn log(&self, json: &mut Json) {
        json.number("transaction_id", u64::from(self.id));
        json.number("protocol_id", u64::from(self.protocol));
        json.number("unit_id", u64::from(self.unit));
        json.number("function_raw", u64::from(self.function));
        json.text("function_code", function_name(self.function & !EXCEPTION));
        json.text("access_type", flags(&ACCESS_NAMES, self.access));
        json.text("category", flags(&CATEGORY_NAMES, self.category));
        json.text("error_flags", flags(&ERROR_NAMES, self.errors & 7));
        self.log_data(json);
    }

    fn log_data(&self, json: &mut Json) {
        match &self.data {
            Data::Exception(code) => {
                json.open("exception");
                json.number("raw", u64::from(*code));
                json.text("code", exception_name(*code));
                json.close();
            }
            Data::Diagnostic(function, data) => {
                json.open("diagnostic");
                json.number("raw", u64::from(*function));
                json.text("code", diagnostic_name(*function));
                json.text("data", data);
                json.close();
            }
            Data::Mei(kind, data) => {
                json.open("mei");
                json.number("raw", u64::from(*kind));
                json.text("code", mei_name(*kind));
                json.text("data", data);
                json.close();
            }
            Data::ReadRequest { address, quantity } => {
                log_words(json, "read", &[("address", *address), ("quantity", *quantity)], None)
            }
            Data::ReadResponse(data) => log_words(json, "read", &[], Some(data)),
            Data::WriteMultiple { address, quantity, data } => {
                log_words(json, "write", &[("address", *address), ("quantity", *quantity)], Some(data));
            }
            Data::WriteMask { address, and, or } => {
                log_words(json, "write", &[("address", *address), ("and_mask", *and), ("or_mask", *or)], None);
            }
            Data::Write { address, data } => log_words(json, "write", &[("address", *address), ("data", *data)], None),
            Data::ReadWrite { read, address, quantity, data } => {
                json.open("read_write");
                log_words(json, "read", &[("address", read.0), ("quantity", read.1)], None);
                log_words(json, "write", &[("address", *address), ("quantity", *quantity)], Some(data));
                json.close();
            }
            Data::Bytes(data) => json.text("data", data),
            Data::Empty => {}
        }
    }
}

fn log_words(json: &mut Json, name: &str, words: &[(&str, u16)], data: Option<&Vec<u8>>) {
    json.open(name);
    words.iter().for_each(|(name, value)| json.number(name, u64::from(*value)));
    if let Some(data) = data {
        json.text("data", data);
    }
    json.close();
}

/// Names of bits, those of combinations behind them.
const ACCESS_NAMES: [(&str, u8); 10] = [
    ("READ", access::READ),
    ("WRITE", access::WRITE),
    ("DISCRETES", access::DISCRETES),
    ("COILS", access::COILS),
    ("INPUT", access::INPUT),
    ("HOLDING", access::HOLDING),
    ("SINGLE", access::SINGLE),
    ("MULTIPLE", access::MULTIPLE),
    ("WRITE_SINGLE", access::WRITE | access::SINGLE),
    ("WRITE_MULTIPLE", access::WRITE | access::MULTIPLE),
];
const CATEGORY_NAMES: [(&str, u8); 4] = [
    ("PUBLIC_ASSIGNED", category::ASSIGNED),
    ("PUBLIC_UNASSIGNED", category::UNASSIGNED),
    ("USER_DEFINED", category::USER),
    ("RESERVED", category::RESERVED),
];
const ERROR_NAMES: [(&str, u8); 3] =
    [("DATA_VALUE", error::VALUE), ("DATA_LENGTH", error::LENGTH), ("EXC_CODE", error::EXCEPTION)];

fn flags(names: &[(&str, u8)], value: u8) -> String {
    let set: Vec<&str> = names.iter().filter(|(_, bits)| value & bits == *bits).map(|(name, _)| *name).collect();
    if set.is_empty() { "NONE".to_owned() } else { set.join(" | ") }
}

const FUNCTIONS: [&str; 24] = [
    "RdCoils",
    "RdDiscreteInputs",
    "RdHoldRegs",
    "RdInputRegs",
    "WrSingleCoil",
    "WrSingleReg",
    "RdExcStatus",
    "Diagnostic",
    "Program484",
    "Poll484",
    "GetCommEventCtr",
    "GetCommEventLog",
    "ProgramController",
    "PollController",
    "WrMultCoils",
    "WrMultRegs",
    "ReportServerID",
    "Program884",
    "ResetCommLink",
    "RdFileRec",
    "WrFileRec",
    "MaskWrReg",
    "RdWrMultRegs",
    "RdFIFOQueue",
];

fn function_name(function: u8) -> &'static str {
    let index = usize::from(function).wrapping_sub(1);
    if function == 43 { "MEI" } else { FUNCTIONS.get(index).copied().unwrap_or("Unknown") }
}

fn mei_name(kind: u8) -> &'static str {
    match kind {
        13 => "CANOpenGenRefReqResp",
        14 => "RdDevId",
        _ => "Unknown",
    }
}

fn exception_name(code: u8) -> &'static str {
    match code {
        1 => "IllegalFunction",
        2 => "IllegalDataAddr",
        3 => "IllegalDataValue",
        4 => "ServerDeviceFail",
        5 => "Ack",
        6 => "ServerDeviceBusy",
        7 => "NegAck",
        8 => "MemParityErr",
        10 => "GatewayPathUnavailable",
        11 => "GatewayTargetFailToResp",
        _ => "Unknown",
    }
}

fn diagnostic_name(function: u16) -> &'static str {
    match function {
        0 => "RetQueryData",
        1 => "RestartCommOpt",
        2 => "RetDiagReg",
        3 => "ChangeInputDelimiter",
        4 => "ForceListenOnlyMode",
        10 => "ClearCtrDiagReg",
        11 => "RetBusMsgCount",
        12 => "RetBusCommErrCount",
        13 => "RetBusExcErrCount",
        14 => "RetServerMsgCount",
        15 => "RetServerNoRespCount",
        16 => "RetServerNAKCount",
        17 => "RetServerBusyCount",
        18 => "RetBusCharOverrunCount",
        19 => "RetOverrunErrCount",
        20 => "ClearOverrunCounterFlag",
        21 => "GetClearPlusStats",
        _ => "Reserved",
    }
}
